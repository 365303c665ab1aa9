"""Parsers of counts, image sizes and value ranges, and values in error messages."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch

PlainRange = tuple[float | tuple[float, ...], float | tuple[float, ...]]
"""Low and high, each one number for all channels or a tuple of one per channel."""
ValueRange = tuple[tuple[float, ...], tuple[float, ...]]
"""Lows and highs, one per channel each."""

_MOST = 100
_FLOAT32 = torch.finfo(torch.float32)


def shown(value: Any) -> str:
    """A value in part of a line: of an array its type and shape, of a long text its beginning.

    Example:
        >>> shown("ddim"), shown({"cond": torch.ones(2)})
        ("'ddim'", "{'cond': torch.float32 of shape (2,)}")
    """
    if getattr(value, "shape", ()):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        text = f"{{{', '.join(f'{name!r}: {shown(each)}' for name, each in value.items())}}}"
    else:
        text = repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The name that was meant by a misspelt or shortened one.

    Args:
        name: The wrong one, in words joined by `_`.
        names: The known ones.

    Returns:
        The name of which it is a typo, or else the only one with all of its words; None if there is
        none, as a wrong guess would mislead.

    Example:
        >>> names = ["timesteps", "train_batch_size", "warmup_steps", "train_num_steps"]
        >>> nearest_name("timestep", names), nearest_name("batch_size", names)
        ('timesteps', 'train_batch_size')
        >>> nearest_name("steps", names) is None
        True
    """
    known = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.82)
    whole = [each for each in known if {*name.split("_")} <= {*each.split("_")}]
    return close[0] if close else whole[0] if len(whole) == 1 else None


def as_count(value: Any, name: str) -> int:
    """Parses a number of things, of which there is at least one.

    Raises:
        ValueError: It is no whole number, or less than 1.

    Example:
        >>> as_count(torch.tensor(3), "steps")
        3
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {shown(value)}")
    return count


def whole(value: Any) -> Any:
    """A float that is whole, such as 1e5, as an int; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    pair = (image_size, image_size) if isinstance(image_size, Integral) else image_size
    try:
        height, width = (0 if isinstance(n, bool) else operator.index(n) for n in pair)
    except (TypeError, ValueError):
        height, width = 0, 0
    if min(height, width) < 1:
        raise ValueError(
            f"{name} must be a whole number of pixels of at least 1, or such a (height, width), "
            f"got {shown(image_size)}; pass for example 64 or (48, 64)"
        )
    return height, width


def plain_range(
    value_range: Any, channels: int | None, name: str = "value_range", others: str = ""
) -> PlainRange:
    """Checks a range of values and turns it into plain numbers.

    Args:
        value_range: `(low, high)`, each a number or one per channel: sequences, arrays or tensors.
        channels: Number of channels; None if it is not known.
        name: The argument, for the error.
        others: What else the argument may be, for the error.

    Raises:
        ValueError: It is no such pair, or a low is not below its high in float32.
    """
    try:
        low, high = map(_plain_bound, value_range)
        counts = {len(bound) for bound in (low, high) if isinstance(bound, tuple)}
        count = channels or max(counts, default=1)
        is_range = counts <= {count} and all(map(_have_width, *per_channel((low, high), count)))
    except (TypeError, ValueError):
        is_range = False
    if not is_range:
        each = "each channel" if channels is None else f"each of {channels} channels"
        raise ValueError(
            f"{name} must be {others}(low, high) with low < high, each a number or one for {each}, "
            f"got {shown(value_range)}; pass for example (-5, 5), bounds that float32 tells "
            "apart, and leave out channels that are constant"
        )
    return low, high


def as_value_range(
    value_range: Any, channels: int, name: str = "value_range", others: str = ""
) -> ValueRange | None:
    """Parses a range of values, see `plain_range`, into lows and highs; None for None.

    Example:
        >>> as_value_range((-5, 5), channels=2)
        ((-5.0, -5.0), (5.0, 5.0))
    """
    if value_range is None:
        return None
    return per_channel(plain_range(value_range, channels, name, others), channels)


def per_channel(limits: PlainRange, channels: int) -> ValueRange:
    """Lows and highs of a range, one per channel each."""
    low, high = (bound if isinstance(bound, tuple) else (bound,) * channels for bound in limits)
    return low, high


def _plain_bound(bound: Any) -> float | tuple[float, ...]:
    if isinstance(bound, str):
        raise TypeError("text is no bound")
    values = bound.tolist() if hasattr(bound, "tolist") else bound
    return tuple(map(float, values)) if isinstance(values, Sequence) else float(values)


def _have_width(low: float, high: float) -> bool:
    """Whether two bounds differ in float32, the type of clips, by a finite number."""
    first, last = torch.tensor([low, high], dtype=torch.float32, device="cpu").tolist()
    return _FLOAT32.tiny <= last - first <= _FLOAT32.max
