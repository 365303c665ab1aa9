"""Weights and the model they are loaded into: of one objective and one noise schedule, or none."""

import copy
import itertools
import re

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.config import training_of
from video_diffusion_pytorch.diffusion.noise_schedule import continuous_beta_schedule

OWN = tuple(torch.linspace(0.01, 0.9, 10).tolist())
KINDS = [
    {},
    {"objective": "pred_v"},
    {"objective": "pred_x_start"},
    {"beta_schedule": "linear"},
    {"beta_schedule": "sigmoid"},
    {"beta_schedule": "continuous_cosine"},
    {"beta_schedule": tuple(continuous_beta_schedule(10).tolist())},
    {"beta_schedule": OWN},
    {"objective": "pred_v", "beta_schedule": "continuous_cosine"},
]


def diffusion_with(**config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(nn.Conv3d(3, 3, 1), **config)


@pytest.mark.parametrize(("own", "theirs"), list(itertools.product(KINDS, KINDS)))
def test_weights_go_into_a_model_of_their_kind_only(own, theirs):
    model, state = diffusion_with(**own), diffusion_with(**theirs).state_dict()
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
    usual = set(diffusion_with().state_dict())
    assert not usual & {"objective_text", "continuous_time"}
    for own in KINDS:
        added = set(diffusion_with(**own).state_dict()) - usual
        expected = {"objective_text"} if "objective" in own else set()
        if own.get("beta_schedule") == "continuous_cosine":
            expected.add("continuous_time")
        assert added == expected


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_dict_tells_how_to_build_the_model(kind):
    state = diffusion_with(**kind).state_dict()
    told = training_of({f"a.{name}": value for name, value in state.items()}, "a.")
    assert told["objective"] == kind.get("objective", "pred_noise")
    schedule = kind.get("beta_schedule", "cosine")
    if not isinstance(schedule, str):
        # float64 as it was given, float32 as it is stored
        schedule = pytest.approx(schedule, rel=1e-6)
    assert told["beta_schedule"] == schedule
    assert told["timesteps"] == 10


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        (
            {},
            {"objective": "pred_v"},
            "objective, 'pred_noise', got 'pred_v'; build GaussianDiffusion with "
            "objective='pred_v', or, to begin",
        ),
        (
            {"beta_schedule": "linear"},
            {},
            "beta_schedule, 'linear', got 'cosine'; build GaussianDiffusion with "
            "beta_schedule='cosine', or",
        ),
        (
            {},
            {"beta_schedule": OWN},
            "beta_schedule, 'cosine', got variances of no name from 0.01 to 0.9; build "
            "GaussianDiffusion with beta_schedule=state_dict['betas'], or",
        ),
    ],
)
def test_what_differs_is_named(own, theirs, message):
    text = re.escape(f"GaussianDiffusion: the state dict must have the model's {message}")
    with pytest.raises(ValueError, match=text):
        diffusion_with(**own).load_state_dict(diffusion_with(**theirs).state_dict())


def test_rounding_is_no_other_schedule():
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        coarse = diffusion_with().to(dtype)
        diffusion_with().load_state_dict(coarse.state_dict())
        coarse.load_state_dict(diffusion_with().state_dict())
        assert training_of(coarse.state_dict())["beta_schedule"] == "cosine"
    state = diffusion_with().state_dict()
    state["betas"] = state["betas"] + 5e-7
    diffusion_with().load_state_dict(state)


def test_another_number_of_steps_is_left_to_torch():
    state = diffusion_with(timesteps=9).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for betas"):
        diffusion_with().load_state_dict(state)


def test_the_networks_weights_alone_go_anywhere():
    state = diffusion_with(objective="pred_v", beta_schedule="linear").state_dict()
    kept = {name: value for name, value in state.items() if name.startswith("denoise_fn.")}
    model = diffusion_with()
    model.load_state_dict(kept, strict=False)
    assert torch.equal(model.denoise_fn.weight, state["denoise_fn.weight"])
    model.denoise_fn.load_state_dict({n.removeprefix("denoise_fn."): v for n, v in kept.items()})


def test_a_model_without_memory_takes_them_by_assignment():
    state = diffusion_with().state_dict()
    with torch.device("meta"):
        model = diffusion_with()
    model = model.to("meta")
    model.load_state_dict(state, assign=True)
    assert torch.equal(model.betas, state["betas"])
