"""Weights tell what they were trained for, and a model that is built for something else refuses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.noise_schedule import CONTINUOUS, SCHEDULES, make_betas

# what weights were trained for that tell nothing, as the reference's do
_USUAL_OBJECTIVE = "pred_noise"


def remember_training(process: ForwardProcess, objective: str) -> None:
    """Puts into the state dict what its numbers don't tell, and checks those that are loaded.

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
        # of another number of steps torch tells, by the shapes
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
