"""Value ranges and shapes of clips: from the units of the data to [-1, 1] and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# how far outside its range a clip's values may be before it looks like a mistake
RANGE_TOLERANCE = 0.05
# how many standard deviations from theirs the mean of a batch may be before it looks like one
FAR_FROM_MEAN = 10.0

# folders whose lines are not a user's
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


def check_videos(
    name: str,
    x: Any,
    shape: Sequence[int | str] = ("b", "c", "f", "h", "w"),
    cure: str = "move its axes, cut or resize it",
) -> None:
    """Checks the type and shape of videos.

    Args:
        name: The call and its argument, for the error.
        x: The argument's value.
        shape: The expected shape, in which a letter stands for any length but 0.
        cure: What to do about it, for the error.

    Raises:
        ValueError: If `x` is not a floating-point or uint8 tensor of this shape.
    """
    if not torch.is_tensor(x):
        got = type(x).__name__
    elif not x.is_floating_point() and x.dtype != torch.uint8:
        got, cure = str(x.dtype), "convert it with .float()"
    else:
        sizes = zip(x.shape, shape, strict=False)
        is_right = all(n > 0 if isinstance(wanted, str) else n == wanted for n, wanted in sizes)
        if is_right and x.ndim == len(shape):
            return
        got = str(tuple(x.shape))
    wanted = ", ".join(map(str, shape))
    raise ValueError(
        f"{name} must be a tensor of shape ({wanted}), floating-point or uint8, got {got}; {cure}"
    )


def level_of_user() -> int:
    """The `stacklevel` with which a warning of the caller points at the user's own line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level
