"""Parsers of image sizes and value ranges, as users write them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

ValueRange = tuple[tuple[float, ...], tuple[float, ...]]
"""Lows and highs, one per channel each."""

_FLOAT32 = torch.finfo(torch.float32)


def as_image_size(image_size: Any, name: str = "image_size") -> tuple[int, int]:
    """Parses an image size.

    Args:
        image_size: A positive whole number for squares, or `(height, width)`, in pixels.
        name: The argument, for the error.

    Returns:
        Height and width.

    Raises:
        ValueError: It is neither.

    Example:
        >>> as_image_size(64), as_image_size([48, 64])
        ((64, 64), (48, 64))
    """
    is_number = isinstance(image_size, Integral)
    pair = (image_size, image_size) if is_number else image_size
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in pair)
    ):
        raise ValueError(
            f"{name} must be a whole number of pixels of at least 1, or such a (height, width), "
            f"got {image_size!r:.500}; pass for example 64 or (48, 64)"
        )
    return int(pair[0]), int(pair[1])


def as_value_range(value_range: Any, channels: int, name: str = "value_range") -> ValueRange | None:
    """Parses a range of values.

    Args:
        value_range: `(low, high)`, each a number or one per channel: sequences, arrays or tensors;
            None for None.
        channels: Number of channels.
        name: The argument, for the error.

    Returns:
        Lows and highs, one per channel each.

    Raises:
        ValueError: It is no such pair, or a low is not below its high in float32.

    Example:
        >>> as_value_range((-5, 5), channels=2)
        ((-5.0, -5.0), (5.0, 5.0))
    """
    if value_range is None:
        return None
    try:
        low, high = (_per_channel(bound, channels) for bound in value_range)
    except (TypeError, ValueError):
        low = high = ()
    is_range = len(low) == len(high) == channels and all(map(_have_width, low, high))
    if not is_range:
        raise ValueError(
            f"{name} must be 'fit' or (low, high) with low < high, each a number or one for each "
            f"of {channels} channels, got {value_range!r:.500}; pass for example (-5, 5), two "
            "numbers that float32 tells apart"
        )
    return low, high


def _per_channel(bound: Any, channels: int) -> tuple[float, ...]:
    if isinstance(bound, str):
        raise TypeError("text is no bound")
    values = bound.tolist() if hasattr(bound, "tolist") else bound
    if isinstance(values, Sequence):
        return tuple(float(value) for value in values)
    return (float(values),) * channels


def _have_width(low: float, high: float) -> bool:
    """Whether two bounds differ in float32, the type of clips, by a finite number."""
    first, last = torch.tensor([low, high], dtype=torch.float32, device="cpu").tolist()
    return _FLOAT32.tiny <= last - first <= _FLOAT32.max
