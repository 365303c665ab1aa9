from pathlib import Path

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.training.checkpoints.load_weights import (
    MismatchedWeights,
    changed_settings,
    load_weights,
)

FILE = Path("results/model-3.pt")


def layers(count, width=2):
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def test_weights_that_fit_are_loaded():
    source, target = layers(2), layers(2)
    load_weights(target, source.state_dict(), FILE, "ema")
    assert torch.equal(target[1].weight, source[1].weight)


def test_missing_ones_are_named():
    with pytest.raises(MismatchedWeights) as caught:
        load_weights(layers(5), layers(1).state_dict(), FILE, "ema")
    text = str(caught.value)
    assert text.startswith(
        f"the entry 'ema' of the checkpoint {FILE} must have the parameters of the Sequential that "
        "it is loaded into, got 8 missing: 1.weight, 1.bias, 2.weight, 2.bias, 3.weight and 3 more;"
    )
    assert "build the model with the settings" in text


def test_unexpected_ones_and_those_of_another_shape_are_named():
    text = (
        r"got 2 unexpected: 1\.weight, 1\.bias; 2 of another shape: "
        r"0\.weight \(3, 3\) instead of \(2, 2\), 0\.bias \(3\) instead of \(2\);"
    )
    with pytest.raises(MismatchedWeights, match=text):
        load_weights(layers(1), layers(2, width=3).state_dict(), FILE, "model")


def test_a_scalar_has_a_shape_too():
    module = nn.Module()
    module.register_buffer("step", torch.zeros(()))
    with pytest.raises(MismatchedWeights, match=r"1 of another shape: step \(2\) instead of \(\)"):
        load_weights(module, {"step": torch.zeros(2)}, FILE, "model")


def test_without_strict_only_shapes_count():
    load_weights(layers(2), layers(1).state_dict(), FILE, "model", strict=False)
    with pytest.raises(MismatchedWeights, match="got 2 of another shape"):
        load_weights(layers(2), layers(1, width=3).state_dict(), FILE, "model", strict=False)


def test_what_is_no_tensor_is_named():
    weights = {"0.weight": "abc", "0.bias": torch.zeros(2)}
    with pytest.raises(MismatchedWeights, match=r"While copying the parameter named .0\.weight"):
        load_weights(layers(1), weights, FILE, "model")


@pytest.mark.parametrize(
    "error", [ValueError("trained for another objective"), RuntimeError("CUDA")]
)
def test_other_errors_pass(error):
    def refuse(*args):
        raise error

    module = layers(1)
    module.register_load_state_dict_pre_hook(refuse)
    with pytest.raises(type(error)) as caught:
        load_weights(module, module.state_dict(), FILE, "model")
    assert caught.value is error


def test_changed_settings_are_named():
    theirs = {"dim": 8, "dim_mults": (1, 2), "channels": 1, "text": None}
    ours = {"dim": 16, "dim_mults": [1, 2], "channels": 1, "text": None}
    assert changed_settings(theirs, ours) == ["dim 16 instead of 8"]
    assert changed_settings(theirs, {**ours, "dim": 8}) == []
    # a tuple is a list in some files, and a setting may be missing
    assert changed_settings({"size": [1, 2]}, {"size": (1, 3)}) == ["size (1, 3) instead of [1, 2]"]
    assert changed_settings({"dim": 8}, {}) == ["dim None instead of 8"]


def test_what_only_the_model_has_is_no_change():
    """An option that is younger than the checkpoint was not another one when it was made."""
    assert changed_settings({"dim": 8}, {"dim": 8, "newer": True}) == []


@pytest.mark.parametrize("nothing", [None, {}])
def test_without_settings_nothing_is_known_to_have_changed(nothing):
    assert changed_settings(nothing, {"dim": 8}) == []
    assert changed_settings({"dim": 8}, nothing) == ["dim None instead of 8"]
