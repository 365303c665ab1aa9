"""The settings of a diffusion: checked, as plain values, and compared with those of weights."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.config import CONFIG, training_of
from video_diffusion_pytorch.diffusion.continuous_schedule import CosineSchedule
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess


def diffusion_with(**config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(nn.Identity(), **config)


def test_config_holds_every_argument_except_the_network():
    diffusion = diffusion_with()
    assert set(diffusion.config) == {
        *CONFIG,
        "value_range",
        "cond_value_range",
        "cond_standardization",
    }
    assert diffusion.config == diffusion_with(**diffusion.config).config


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"image_size": np.int64(8)}, 8),
        ({"image_size": [6, 10]}, (6, 10)),
        ({"image_size": np.array([6, 10])}, (6, 10)),
        ({"image_size": torch.Size((6, 10))}, (6, 10)),
        ({"min_snr_gamma": torch.tensor(5)}, 5.0),
        ({"num_frames": np.uint8(3)}, 3),
        ({"auto_normalize": 0}, False),
        ({"beta_schedule": [0.5] * 10}, (0.5,) * 10),
    ],
)
def test_values_become_plain(given, plain):
    ((name, _),) = given.items()
    diffusion = diffusion_with(**given)
    assert diffusion.config[name] == plain
    assert type(diffusion.config[name]) is type(plain)
    if name != "beta_schedule":
        assert getattr(diffusion, name) == plain


@pytest.mark.parametrize(
    ("name", "expected", "wrong"),
    [
        (
            "image_size",
            "a whole number of pixels of",
            [None, 8.0, (8.0, 8.0), "88", 0, (8,)],
        ),
        ("timesteps", "a whole number, at least 1", [8.0, None, 0]),
        ("num_frames", "a whole number, at least 1", ["4", 0]),
        ("channels", "a whole number, at least 1", [3.0, 0]),
        ("given_frames", "a whole number from 0 to less than num_frames = 4", [1.5, -1, 4]),
        ("sampling_timesteps", "a whole number from 1 to timesteps = 10, or None", [2.5, 0, 11]),
        ("loss_type", "one of l1, l2, huber", [None, "l3"]),
        ("objective", "one of pred_noise, pred_v, pred_x_start", [["pred_v"], "v"]),
        ("beta_schedule", "one of cosine, linear, sigmoid, contin", [None, "fast"]),
        ("min_snr_gamma", "a number above 0, or None", ["5", (5, 5), float("nan"), 0]),
        ("cond_drop_prob", "a number in [0, 1]", [None, 1.5]),
        ("ddim_sampling_eta", "a number in [0, 1]", [float("nan"), 2]),
        ("dynamic_thres_percentile", "a number in [0, 1]", ["0.9", 90]),
        ("auto_normalize", "True or False", ["False", None]),
        ("use_dynamic_thres", "True or False", [2]),
    ],
)
def test_arguments_of_another_kind_or_outside_their_range(name, expected, wrong):
    for value in wrong:
        message = re.escape(f"GaussianDiffusion: {name} must be {expected}")
        with pytest.raises(ValueError, match=f"^{message}.*, got {re.escape(repr(value))}"):
            diffusion_with(**{name: value})


OWN = tuple(torch.linspace(0.01, 0.9, 10).tolist())
KINDS = [
    {},
    {"objective": "pred_v"},
    {"objective": "pred_x_start"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "continuous_cosine"},
    {"beta_schedule": tuple(ForwardProcess(CosineSchedule(), 10).betas.tolist())},
    {"beta_schedule": OWN},
    {"objective": "pred_v", "beta_schedule": "continuous_cosine"},
]


def trained_with(**config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(nn.Conv3d(3, 3, 1), **config)


@pytest.mark.parametrize(("own", "theirs"), list(itertools.product(KINDS, KINDS)))
def test_weights_load_only_into_a_model_of_their_kind(own, theirs):
    model, state = trained_with(**own), trained_with(**theirs).state_dict()
    if own == theirs:
        model.load_state_dict(state)
        assert torch.equal(model.denoise_fn.weight, state["denoise_fn.weight"])
        return
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"the state dict must have the model's (obj|beta_sch)"):
        model.load_state_dict(state, strict=False)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_usual_model_stores_no_more_than_the_reference():
    usual = set(trained_with().state_dict())
    assert not usual & {"objective_text", "continuous_time"}
    for own in KINDS:
        added = set(trained_with(**own).state_dict()) - usual
        expected = {"objective_text"} if "objective" in own else set()
        if own.get("beta_schedule") == "continuous_cosine":
            expected.add("continuous_time")
        assert added == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_holds_the_settings_of_training(kind):
    state = trained_with(**kind).state_dict()
    received = training_of({f"a.{name}": value for name, value in state.items()}, "a.")
    assert received["objective"] == kind.get("objective", "pred_noise")
    schedule = kind.get("beta_schedule", "cosine")
    if not isinstance(schedule, str):
        # float64 as it was given, float32 as it is stored
        schedule = pytest.approx(schedule, rel=1e-6)
    assert received["beta_schedule"] == schedule
    assert received["timesteps"] == 10


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        ({}, {"objective": "pred_v"}, "objective, 'pred_noise', got 'pred_v'; build"),
        ({"beta_schedule": "linear"}, {}, "beta_schedule, 'linear', got 'cosine'; build"),
        ({}, {"beta_schedule": OWN}, "beta_schedule, 'cosine', got (0.00999"),
        ({}, {"value_range": (0, 0.1)}, "value_range, None, got (0.0, 0.1); build"),
        ({"value_range": (0, 1)}, {}, "value_range, (0.0, 1.0), got None; build"),
        (
            {"value_range": (0, 1)},
            {"value_range": (0, [1, 2, 2])},
            "value_range, (0.0, 1.0), got (0.0, (1.0, 2.0, 2.0)); build",
        ),
        (
            {"cond_value_range": (0, 1)},
            {"cond_value_range": (0, 2)},
            "cond_value_range, (0.0, 1.0), got (0.0, 2.0); build GaussianDiffusion with that "
            "cond_value_range, or load the weights of denoise_fn alone to train them otherwise",
        ),
    ],
)
def test_what_differs_is_named(own, theirs, message):
    text = re.escape(f"GaussianDiffusion: the state dict must have the model's {message}")
    state = trained_with(**theirs).state_dict()
    with pytest.raises(ValueError, match=text):
        trained_with(**own).load_state_dict(state)
    # also as a part of another module
    whole = nn.ModuleDict({"diffusion": trained_with(**own)})
    with pytest.raises(ValueError, match=text):
        whole.load_state_dict({f"diffusion.{key}": value for key, value in state.items()})


def test_rounded_betas_are_the_same_schedule():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        coarse = trained_with().to(dtype)
        trained_with().load_state_dict(coarse.state_dict())
        coarse.load_state_dict(trained_with().state_dict())
        assert training_of(coarse.state_dict())["beta_schedule"] == "cosine"
    state = trained_with().state_dict()
    state["betas"] = state["betas"] + 5e-7
    trained_with().load_state_dict(state)


def test_another_number_of_steps_is_left_to_torch():
    state = trained_with(timesteps=9).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for betas"):
        trained_with().load_state_dict(state)


def test_the_weights_of_the_network_alone_fit_any_model():
    state = trained_with(objective="pred_v", beta_schedule="linear").state_dict()
    kept = {name: value for name, value in state.items() if name.startswith("denoise_fn.")}
    model = trained_with()
    model.load_state_dict(kept, strict=False)
    assert torch.equal(model.denoise_fn.weight, state["denoise_fn.weight"])
    model.denoise_fn.load_state_dict({n.removeprefix("denoise_fn."): v for n, v in kept.items()})


def test_a_meta_model_loads_by_assignment():
    state = trained_with().state_dict()
    with torch.device("meta"):
        model = trained_with()
    model = model.to("meta")
    model.load_state_dict(state, assign=True)
    assert torch.equal(model.betas, state["betas"])
