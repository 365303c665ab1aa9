"""The settings of a diffusion: checked, as plain values, and compared with those of weights."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import as_image_size, shown
from video_diffusion_pytorch.diffusion.noise_schedule import BETA_SCHEDULES, CONTINUOUS, make_betas
from video_diffusion_pytorch.diffusion.objective import LOSSES, OBJECTIVES
from video_diffusion_pytorch.reference.state_dict import unwrap_names
from video_diffusion_pytorch.value_scale import CONDITION_AXES, TRANSFORM_CODES, Standardization

_FLAGS = ("text_use_bert_cls", "use_dynamic_thres", "auto_normalize")
_COUNTS = ("num_frames", "channels", "timesteps")
_FRACTIONS = (
    "cond_drop_prob",
    "shared_noise_prob",
    "dynamic_thres_percentile",
    "ddim_sampling_eta",
)
_CHOICES = {
    "loss_type": tuple(LOSSES),
    "objective": OBJECTIVES,
    "missing": ("error", "mask"),
}

CONFIG = (
    "image_size",
    "beta_schedule",
    "given_frames",
    "min_snr_gamma",
    "sampling_timesteps",
    "time_distribution",
    "time_shift",
    "sigma_data",
    "frame_noise",
    "noise_correlation",
    *_FLAGS,
    *_COUNTS,
    *_FRACTIONS,
    *_CHOICES,
)
"""The constructor arguments that a checkpoint holds, in addition to the value ranges."""

_OR_NONE = ", or None"
_Kind = tuple[Callable[[Any], Any], Callable[[Any], Any], str]

# the objective of weights that name none, such as the reference's
_USUAL_OBJECTIVE = "pred_noise"
# the schedule where none is named
_USUAL_SCHEDULE = "cosine"

OWN_SCHEDULES = ("flow", "edm")
"""The objectives that bring a schedule of the same name with them."""

LOGIT_NORMAL = (0.0, 1.0)
"""Mean and standard deviation of `log(sigma / alpha)`, which is the logit of flow matching's time,
for `time_distribution="logit_normal"` (Esser et al. 2024, section 3.1)."""
EDM_NORMAL = (-1.2, 1.2)
"""The same by default for `objective="edm"` (Karras et al. 2022, table 1)."""


def plain_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as Python's own numbers, strings and tuples, so that files hold no code.

    Args:
        given: Each of `CONFIG`, as the constructor got it. `beta_schedule` stays as it is.

    Raises:
        ValueError: If one has another type than the constructor expects, or is outside its range.
    """
    config = dict(given)
    size = as_image_size(given["image_size"], "GaussianDiffusion: image_size")
    config["image_size"] = size[0] if isinstance(given["image_size"], Integral) else size
    for name, (convert, is_allowed, expected) in _kinds(given).items():
        if given[name] is None and expected.endswith(_OR_NONE):
            continue
        try:
            config[name] = convert(given[name]) if is_allowed(given[name]) else None
        except (TypeError, ValueError, RuntimeError):
            config[name] = None
        if config[name] is None:
            raise ValueError(
                f"GaussianDiffusion: {name} must be {expected}, got {shown(given[name])}"
            )
    _check_schedule(config)
    return config


def _check_schedule(config: dict[str, Any]) -> None:
    """Names the schedule that an objective has, and checks what only some schedules have.

    Raises:
        ValueError: If the objective has another schedule, or the schedule no such option.
    """
    schedule, objective = config["beta_schedule"], config["objective"]
    is_named = isinstance(schedule, str)
    if objective in OWN_SCHEDULES and is_named and schedule == _USUAL_SCHEDULE:
        schedule = config["beta_schedule"] = objective
    own = schedule if is_named and schedule in OWN_SCHEDULES else None
    if own != (objective if objective in OWN_SCHEDULES else None):
        raise ValueError(
            f"GaussianDiffusion: beta_schedule must be left out for objective={objective!r}, which "
            f"has its own, got {shown(schedule)}; leave it out, or choose another objective"
            if objective in OWN_SCHEDULES
            else f"GaussianDiffusion: objective must be {own} for beta_schedule={own!r}, got "
            f"{objective}; pass objective={own!r} alone"
        )
    is_continuous = is_named and schedule in CONTINUOUS
    if config["time_shift"] != 1 and (not is_continuous or objective == "edm"):
        raise ValueError(
            "GaussianDiffusion: time_shift needs objective='flow' or "
            f"beta_schedule='continuous_cosine', got {config['time_shift']:g} for "
            f"{shown(schedule)}; leave it out"
        )
    if config["time_distribution"] is not None and not is_continuous:
        raise ValueError(
            "GaussianDiffusion: time_distribution needs a schedule of continuous time (objective "
            f"flow or edm, or beta_schedule continuous_cosine), got {shown(schedule)}; leave it out"
        )
    if config["min_snr_gamma"] is not None and objective == "edm":
        raise ValueError(
            "GaussianDiffusion: min_snr_gamma must be None for objective='edm', which has a "
            f"weighting of its own, got {config['min_snr_gamma']:g}; leave it out"
        )


def normal_of(config: Mapping[str, Any]) -> tuple[float, float] | None:
    """Mean and standard deviation of `log(sigma / alpha)` in training; None for uniform times."""
    distribution = config["time_distribution"]
    if distribution is None:
        return EDM_NORMAL if config["objective"] == "edm" else None
    return None if distribution == "uniform" else distribution


def _plain_distribution(given: Any) -> Any:
    """A `time_distribution` as `"uniform"`, or two floats; None for anything else."""
    if isinstance(given, str):
        return {"uniform": given, "logit_normal": LOGIT_NORMAL}.get(given)
    mean, deviation = (float(number) for number in given)
    return (mean, deviation) if math.isfinite(mean) and 0 < deviation < math.inf else None


def _kinds(given: Mapping[str, Any]) -> dict[str, _Kind]:
    """For each setting how it becomes plain, which values are allowed, and both in words."""
    frames, steps = given["num_frames"], given["timesteps"]
    one_of = {name: f"one of {', '.join(choices)}" for name, choices in _CHOICES.items()}
    return {
        **dict.fromkeys(_FLAGS, (bool, lambda flag: flag in (True, False), "True or False")),
        **dict.fromkeys(_COUNTS, (operator.index, lambda n: n >= 1, "a whole number, at least 1")),
        **dict.fromkeys(_FRACTIONS, (float, lambda x: 0 <= x <= 1, "a number in [0, 1]")),
        **{name: (str, _CHOICES[name].__contains__, one_of[name]) for name in _CHOICES},
        "given_frames": (
            operator.index,
            lambda k: 0 <= k < frames,
            f"a whole number from 0 to less than num_frames = {frames}",
        ),
        "time_distribution": (
            _plain_distribution,
            lambda value: True,
            f"uniform, logit_normal, two numbers (mean, standard deviation above 0){_OR_NONE}",
        ),
        "frame_noise": (str, lambda kind: kind == "independent", f"independent{_OR_NONE}"),
        "noise_correlation": (float, lambda x: 0 <= x < 1, "a number from 0 to less than 1"),
        "time_shift": (float, lambda shift: 0 < shift < math.inf, "a number above 0"),
        "sigma_data": (float, lambda sigma: 0 < sigma < math.inf, "a number above 0"),
        "min_snr_gamma": (float, lambda gamma: gamma > 0, f"a number above 0{_OR_NONE}"),
        "sampling_timesteps": (
            operator.index,
            lambda n: 1 <= n <= steps,
            f"a whole number from 1 to timesteps = {steps}{_OR_NONE}",
        ),
    }


def remember_training(module: nn.Module, config: Mapping[str, Any]) -> None:
    """Adds the objective and the kind of schedule to the state dict, and checks loaded ones.

    Only unusual values are stored, so that a usual model's state dict has the reference's keys:
    `objective_text`, its characters as bytes, `continuous_time`, which is 1, `time_shift`,
    `sigma_data` of EDM, and `frame_correlation`, the `noise_correlation`.
    """
    objective = config["objective"]
    text = torch.tensor(list(objective.encode()), dtype=torch.uint8)
    module.register_buffer("objective_text", None if objective == _USUAL_OBJECTIVE else text)
    is_continuous = config["beta_schedule"] == "continuous_cosine"
    one = torch.ones((), dtype=torch.uint8)
    module.register_buffer("continuous_time", one if is_continuous else None)
    numbers = {
        "time_shift": config["time_shift"] if config["time_shift"] != 1 else None,
        "sigma_data": config["sigma_data"] if objective == "edm" else None,
        "frame_correlation": config["noise_correlation"] or None,
    }
    for name, number in numbers.items():
        module.register_buffer(name, None if number is None else torch.tensor(number))
    module.register_load_state_dict_pre_hook(_check_state_dict)


def training_of(state_dict: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that the weights of a diffusion were trained with.

    Args:
        state_dict: Of a `GaussianDiffusion`, or of the reference's.
        prefix: What its keys begin with.

    Returns:
        `timesteps`, `objective`, `beta_schedule`, `time_shift`, `sigma_data` and
        `noise_correlation`, as the constructor takes them.
    """
    betas = state_dict[f"{prefix}betas"].detach().cpu()
    text = state_dict.get(f"{prefix}objective_text")
    objective = _USUAL_OBJECTIVE if text is None else bytes(text.tolist()).decode()
    schedule: str | tuple[float, ...] = "continuous_cosine"
    if objective in OWN_SCHEDULES:
        schedule = objective
    elif state_dict.get(f"{prefix}continuous_time") is None:
        alike = (name for name in BETA_SCHEDULES if _are_alike(make_betas(name, len(betas)), betas))
        schedule = next(alike, tuple(betas.tolist()))
    return {
        "timesteps": len(betas),
        "objective": objective,
        "beta_schedule": schedule,
        "time_shift": _number_of(state_dict, f"{prefix}time_shift", 1.0),
        "sigma_data": _number_of(state_dict, f"{prefix}sigma_data", 0.5),
        "noise_correlation": _number_of(state_dict, f"{prefix}frame_correlation", 0.0),
    }


def _number_of(state_dict: Mapping[str, Any], name: str, default: float) -> float:
    """A number among buffers, as the constructor took it; the default if there is none."""
    value = state_dict.get(name)
    # the shortest decimal that identifies the float32
    return default if value is None else float(str(value.detach().float().cpu().numpy()))


def _check_state_dict(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Refuses weights of another objective, noise schedule or value range.

    Names of wrapped modules are unwrapped first.

    Raises:
        ValueError: If the state dict's differs from the module's.
    """
    unwrap_names(module, state_dict, prefix)
    betas, own_betas = state_dict.get(f"{prefix}betas"), module.get_buffer("betas")
    if betas is None or betas.is_meta or own_betas.is_meta:
        return
    buffers = dict(module.named_buffers(recurse=False))
    own, theirs = training_of(buffers), training_of(state_dict, prefix)
    for name in ("value_range", "cond_value_range"):
        own[name], theirs[name] = _range_of(buffers, "", name), _range_of(state_dict, prefix, name)
    own["cond_standardization"] = _condition_scales_of(buffers, "")
    theirs["cond_standardization"] = _condition_scales_of(state_dict, prefix)
    # torch itself reports another number of steps
    is_same = {name: own[name] == theirs[name] for name in own if name != "timesteps"}
    names = [settings["beta_schedule"] for settings in (own, theirs)]
    # of continuous schedules the names tell all; of others betas may be rounded
    if not any(isinstance(name, str) and name in CONTINUOUS for name in names):
        is_other_number = len(betas) != len(own_betas)
        is_same["beta_schedule"] = is_other_number or _are_alike(own_betas.cpu(), betas.cpu())
    for name in is_same:
        if not is_same[name]:
            # a range in full, to be copied
            is_scale = name.endswith(("range", "standardization"))
            found = theirs[name] if is_scale else shown(theirs[name])
            raise ValueError(
                f"GaussianDiffusion: the state dict must have the model's {name}, "
                f"{shown(own[name])}, got {found}; build GaussianDiffusion with that "
                f"{name}, or load the weights of denoise_fn alone to train them otherwise"
            )


def _are_alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether variances are the same up to rounding to the coarser of their types."""
    if ours.shape != theirs.shape:
        return False
    coarseness = max(torch.finfo(betas.dtype).eps for betas in (ours, theirs))
    return torch.allclose(ours.double(), theirs.double(), rtol=max(1e-5, coarseness), atol=1e-6)


def _range_of(state_dict: Mapping[str, Any], prefix: str, name: str) -> Any:
    """A value range in the buffers of a state dict, as the constructor takes it."""
    if name == "value_range" and state_dict.get(f"{prefix}value_mean") is not None:
        mean, std = (_decimals(state_dict[f"{prefix}value_{part}"]) for part in ("mean", "std"))
        codes = state_dict[f"{prefix}value_transform"].tolist()
        return Standardization(mean, std, tuple(TRANSFORM_CODES[code] for code in codes)).plain()
    keys = (prefix + name.replace("range", end) for end in ("low", "high"))
    bounds = [state_dict[key] for key in keys if state_dict.get(key) is not None]
    plain = map(_decimals, bounds)
    return tuple(one[0] if len(set(one)) == 1 else one for one in plain) or None


def _condition_scales_of(state_dict: Mapping[str, Any], prefix: str) -> Any:
    """The `cond_standardization` in the buffers of a state dict, as the constructor takes it."""
    found = {}
    for name in CONDITION_AXES:
        mean, std = (state_dict.get(f"{prefix}{name}_{part}") for part in ("mean", "std"))
        if mean is not None and std is not None:
            found[name] = {"mean": _decimals(mean), "std": _decimals(std)}
    return found or None


def _decimals(values: Tensor) -> tuple[float, ...]:
    """The shortest decimals that identify float32 values."""
    return tuple(float(str(value)) for value in values.float().cpu().numpy())
