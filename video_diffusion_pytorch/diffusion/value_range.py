"""Ranges of values: from the units of the data to [-1, 1], and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# how far outside its range a clip's values may be before it looks like a mistake
RANGE_TOLERANCE = 0.05

# whose lines are no user's
_LIBRARIES = tuple(
    f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent)
)

# the lowest and the highest value, each for all channels or one per channel
Bound = float | Sequence[float]


def normalize_img(t: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return t * 2 - 1


def unnormalize_img(t: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (t + 1) * 0.5


def to_unit_range(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """From [low, high] of each channel, axis 1, to [-1, 1], in the number type of the bounds."""
    low, high = (bound.view(1, -1, *[1] * (x.ndim - 2)) for bound in (low, high))
    # a float64 clip far from 0 keeps its digits until it is in range
    x = x.to(torch.promote_types(x.dtype, low.dtype))
    return ((x - low) / (high - low) * 2 - 1).to(low.dtype)


def check_type(name: str, x: Tensor) -> None:
    """Finds out whether clips, or parts of clips, are of a number type that has a range.

    Args:
        name: What they are, for the message.
        x: Of any shape.

    Raises:
        ValueError: If they are neither floating-point nor uint8.
    """
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise ValueError(
            f"GaussianDiffusion: {name} must be floating-point or uint8, got {x.dtype}; convert "
            "them with .float(), in the range of the training clips"
        )


def level_of_user() -> int:
    """The `stacklevel` that makes a warning of the caller's point at the user's own line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level


def check_ranges_of_file(
    module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any
) -> None:
    """Refuses weights that were trained on clips in other units.

    Raises:
        ValueError: If the state dict's range is not the module's.
    """
    if f"{prefix}betas" not in state_dict:
        return
    buffers = dict(module.named_buffers(recurse=False))
    for kind in ("value", "cond_value"):
        names = (f"{kind}_low", f"{kind}_high")
        own = [buffers[name] for name in names if buffers.get(name) is not None]
        theirs = [state_dict[prefix + name] for name in names if prefix + name in state_dict]
        if [bound.tolist() for bound in own] == [bound.tolist() for bound in theirs]:
            continue
        wanted = _in_words(theirs)
        raise ValueError(
            f"GaussianDiffusion: the state dict must have the model's {kind}_range, "
            f"{_in_words(own)}, got {wanted}; build GaussianDiffusion with {kind}_range={wanted}"
        )


def _in_words(bounds: Sequence[Tensor]) -> str:
    # the shortest text that identifies the float32
    plain = [tuple(float(str(value)) for value in bound.cpu().numpy()) for bound in bounds]
    alike = [values[0] if len(set(values)) == 1 else values for values in plain]
    return str(tuple(alike)) if alike else "None"
