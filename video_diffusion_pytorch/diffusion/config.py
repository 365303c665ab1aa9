"""The settings of a diffusion: checked, in plain values, compared with those of a file."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import as_image_size, shown
from video_diffusion_pytorch.diffusion.noise_schedule import (
    CONTINUOUS,
    SCHEDULES,
    ForwardProcess,
    make_betas,
)
from video_diffusion_pytorch.diffusion.objective import LOSSES, OBJECTIVES

_FLAGS = ("text_use_bert_cls", "use_dynamic_thres", "auto_normalize")
_COUNTS = ("num_frames", "channels", "timesteps")
_FRACTIONS = ("cond_drop_prob", "dynamic_thres_percentile", "ddim_sampling_eta")
_CHOICES = {"loss_type": tuple(LOSSES), "objective": OBJECTIVES}

CONFIG = (
    "image_size",
    "beta_schedule",
    "given_frames",
    "min_snr_gamma",
    "sampling_timesteps",
    *_FLAGS,
    *_COUNTS,
    *_FRACTIONS,
    *_CHOICES,
)
"""The constructor arguments that a checkpoint holds, in addition to the ranges of values."""


def plain_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in plain numbers, texts and tuples, whatever library their numbers are of.

    Args:
        given: Each of `CONFIG`, as the constructor got it. `beta_schedule` stays as it is.

    Raises:
        ValueError: If one is of another kind than the constructor says, or outside its range.
    """
    config = dict(given)
    size = as_image_size(given["image_size"], "GaussianDiffusion: image_size")
    config["image_size"] = size[0] if isinstance(given["image_size"], Integral) else size
    for name in _FLAGS:
        config[name] = _plain_flag(name, given[name])
    for name in (*_COUNTS, "given_frames"):
        config[name] = _plain_integer(name, given[name])
        if name in _COUNTS and config[name] < 1:
            raise ValueError(
                f"GaussianDiffusion: {name} must be at least 1, got {config[name]}; "
                "give a positive number"
            )
    for name in _FRACTIONS:
        config[name] = _plain_number(name, given[name])
        if not 0 <= config[name] <= 1:
            raise ValueError(
                f"GaussianDiffusion: {name} must be in [0, 1], got {given[name]}; "
                "give it as a fraction"
            )
    for name, choices in _CHOICES.items():
        if not isinstance(given[name], str) or given[name] not in choices:
            raise ValueError(
                f"GaussianDiffusion: {name} must be one of {', '.join(choices)}, got "
                f"{shown(given[name])}; choose one of them"
            )
        config[name] = str(given[name])
    return config | _plain_optional(given, config["timesteps"])


def _plain_optional(given: Mapping[str, Any], timesteps: int) -> dict[str, Any]:
    """Those that may be None."""
    gamma, steps = given["min_snr_gamma"], given["sampling_timesteps"]
    if gamma is not None:
        gamma = _plain_number("min_snr_gamma", gamma)
        if not gamma > 0:
            raise ValueError(
                f"GaussianDiffusion: min_snr_gamma must be above 0, got {given['min_snr_gamma']}; "
                "the paper's is 5"
            )
    if steps is not None:
        steps = _plain_integer("sampling_timesteps", steps)
        if not 1 <= steps <= timesteps:
            raise ValueError(
                "GaussianDiffusion: sampling_timesteps must be from 1 to timesteps = "
                f"{timesteps}, got {steps}; leave it out for all"
            )
    return {"min_snr_gamma": gamma, "sampling_timesteps": steps}


def _plain_flag(name: str, value: Any) -> bool:
    is_flag = isinstance(value, (bool, np.bool_)) or (
        isinstance(value, Integral) and value in (0, 1)
    )
    if not is_flag:
        raise ValueError(
            f"GaussianDiffusion: {name} must be True or False, got {shown(value)}; give one of them"
        )
    return bool(value)


def _plain_integer(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError as error:
        raise ValueError(
            f"GaussianDiffusion: {name} must be an integer, got "
            f"{shown(value)}; give it as int, a whole "
            "number without a point"
        ) from error


def _plain_number(name: str, value: Any) -> float:
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError("text is no number")
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"GaussianDiffusion: {name} must be a number, got "
            f"{shown(value)}; give it as int or float"
        ) from error


# of weights that do not say so, such as the reference's
_USUAL_OBJECTIVE = "pred_noise"


def remember_training(process: ForwardProcess, objective: str) -> None:
    """Adds objective and schedule to the state dict, and checks those of loaded ones.

    Only what is unusual is stored, so that a usual model's state dict has the reference's keys:
    `objective_text`, its characters as bytes, and `continuous_time`, which is 1.

    Args:
        process: The model, with its schedule.
        objective: What its network predicts.
    """
    text, is_continuous = None, None
    if objective != _USUAL_OBJECTIVE:
        text = torch.tensor(list(objective.encode()), dtype=torch.uint8)
    if process.is_continuous:
        is_continuous = torch.ones((), dtype=torch.uint8)
    process.register_buffer("objective_text", text)
    process.register_buffer("continuous_time", is_continuous)
    process.register_load_state_dict_pre_hook(_check_training_of_file)


def training_of(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """What the weights of a diffusion were trained for.

    Args:
        state_dict: Of a `GaussianDiffusion`, or of the reference's.
        prefix: What its keys begin with.

    Returns:
        `timesteps`, `objective` and `beta_schedule`, as the constructor takes them.
    """
    betas = state_dict[f"{prefix}betas"].detach().cpu()
    text = state_dict.get(f"{prefix}objective_text")
    objective = _USUAL_OBJECTIVE if text is None else bytes(text.tolist()).decode()
    schedule: str | tuple[float, ...] = CONTINUOUS
    if f"{prefix}continuous_time" not in state_dict:
        names = (name for name in SCHEDULES if name != CONTINUOUS)
        alike = (name for name in names if _are_alike(make_betas(name, len(betas)), betas))
        schedule = next(alike, tuple(betas.tolist()))
    return {"timesteps": len(betas), "objective": objective, "beta_schedule": schedule}


def _check_training_of_file(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """Refuses weights of another objective or noise schedule.

    Raises:
        ValueError: If the state dict's are not the module's.
    """
    betas = state_dict.get(f"{prefix}betas")
    own_betas = module.get_buffer("betas")
    if betas is None or betas.is_meta or own_betas.is_meta:
        return
    own = training_of(dict(module.named_buffers(recurse=False)))
    theirs = training_of(state_dict, prefix)
    same_betas = betas.shape != own_betas.shape or _are_alike(own_betas.cpu(), betas.cpu())
    same_time = (own["beta_schedule"] == CONTINUOUS) == (theirs["beta_schedule"] == CONTINUOUS)
    wrong = {
        "objective": own["objective"] != theirs["objective"],
        # for another number of steps torch reports the shapes
        "beta_schedule": not (same_betas and same_time),
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        wanted, cure = _in_words(theirs[name])
        raise ValueError(
            f"GaussianDiffusion: the state dict must have the model's {name}, "
            f"{_in_words(own[name])[0]}, got {wanted}; build GaussianDiffusion with {name}={cure}, "
            "or, to begin another training from these weights, load those of denoise_fn alone"
        )


def _are_alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether variances are the same, but for rounding to the coarser of their types."""
    if ours.shape != theirs.shape:
        return False
    coarseness = max(torch.finfo(betas.dtype).eps for betas in (ours, theirs))
    return torch.allclose(ours.double(), theirs.double(), rtol=max(1e-5, coarseness), atol=1e-6)


def _in_words(value: str | tuple[float, ...]) -> tuple[str, str]:
    """A setting, and what to give the constructor for it."""
    if isinstance(value, str):
        return repr(value), repr(value)
    return f"variances of no name from {min(value):.3g} to {max(value):.3g}", "state_dict['betas']"
