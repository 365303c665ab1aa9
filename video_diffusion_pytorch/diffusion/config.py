"""The arguments of a diffusion become its `config`: checked, and in the plain values files hold."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from video_diffusion_pytorch.diffusion.objective import LOSSES, OBJECTIVES
from video_diffusion_pytorch.diffusion.shown import shown

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
"""The constructor arguments that a checkpoint holds, beside the ranges of values."""


def plain_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in plain numbers, texts and tuples, whatever library their numbers are of.

    Args:
        given: Each of `CONFIG`, as the constructor got it. `beta_schedule` stays as it is.

    Raises:
        ValueError: If one is of another kind than the constructor says, or outside its range.
    """
    config = dict(given)
    config["image_size"] = _plain_size(given["image_size"])
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


def _plain_size(size: Any) -> int | tuple[int, int]:
    is_one = isinstance(size, Integral)
    try:
        height, width = map(operator.index, (size, size) if is_one else size)
    except (TypeError, ValueError):
        height, width = 0, 0
    if min(height, width) < 1:
        raise ValueError(
            f"GaussianDiffusion: image_size must be a positive int or (h, w), got {shown(size)}; "
            "give the height and width of the clips"
        )
    return height if is_one else (height, width)


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
