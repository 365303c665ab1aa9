"""Standardisation of values by channel: from units of their own to mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import (
    ValueRange,
    as_value_range,
    shown,
)

# by name: the transform, its inverse, and the least value that it takes
_Function = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, tuple[_Function, _Function, float]] = {
    "log": (torch.log, torch.exp, 0.0),
    "log1p": (torch.log1p, torch.expm1, -1.0),
    "sqrt": (torch.sqrt, torch.square, 0.0),
    "asinh": (torch.asinh, torch.sinh, -float("inf")),
}
"""Transforms of heavy-tailed values, such as rain and energy."""

TRANSFORM_CODES: tuple[str | None, ...] = (None, "log", "log1p", "sqrt", "asinh")
"""Transforms by the number that stands for them in a state dict."""

# Deviations from the mean that pictures and feature networks get as black and white
_SHOWN = 3.0


@dataclass(frozen=True)
class Standardization:
    """Maps `x` to `(transform(x) - mean) / std`, each by channel.

    Attributes:
        mean: Mean of the transformed values, one per channel.
        std: Their standard deviation, likewise.
        transform: Names of `TRANSFORMS`, likewise; None for none.

    Example:
        >>> rain = Standardization((1.0,), (0.5,), ("log1p",))
        >>> x = torch.tensor([0.0, 1.0, 10.0]).view(1, 1, 3)
        >>> rain.inverse(rain.forward(x)).flatten().tolist()
        [0.0, 1.0, 10.0]
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    transform: tuple[str | None, ...]

    def plain(self) -> dict[str, Any]:
        """The same in plain numbers, as `parse_scale` takes it."""
        return {"mean": self.mean, "std": self.std, "transform": self.transform}

    def in_words(self) -> str:
        """The numbers of each channel, rounded.

        Example:
            >>> Standardization((280.12345, 1.0), (10.0, 0.5), (None, "log1p")).in_words()
            'mean 280.1, 1; std 10, 0.5; transform none, log1p'
        """
        parts = {"mean": self.mean, "std": self.std}
        words = [
            f"{part} {', '.join(f'{n:.4g}' for n in values)}" for part, values in parts.items()
        ]
        if any(self.transform):
            words.append(f"transform {', '.join(name or 'none' for name in self.transform)}")
        return "; ".join(words)

    def forward(self, x: Tensor, axis: int = 1) -> Tensor:
        """Maps values in their own units to standardised ones.

        Args:
            x: Values; of type float64 they keep their digits until they are near 0.
            axis: Axis of the channels.
        """
        mean, std = self._bounds(x, axis)
        return (transformed(x, self.transform, axis) - mean) / std

    def inverse(self, x: Tensor, axis: int = 1) -> Tensor:
        """Maps standardised values to their own units; the inverse of `forward`."""
        mean, std = self._bounds(x, axis)
        return transformed(x * std + mean, self.transform, axis, inverse=True)

    def _bounds(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        shape = [1] * x.ndim
        shape[axis] = -1
        mean, std = (
            torch.tensor(values, dtype=x.dtype, device=x.device).view(shape)
            for values in (self.mean, self.std)
        )
        return mean, std

    def limits(self) -> ValueRange:
        """Values three standard deviations below and above the mean, in their own units."""
        ends = torch.tensor([[-_SHOWN], [_SHOWN]], dtype=torch.float64, device="cpu")
        low, high = self.inverse(ends.expand(2, len(self.mean))).tolist()
        return tuple(low), tuple(high)


def transformed(
    x: Tensor, names: Sequence[str | None], axis: int = 1, inverse: bool = False
) -> Tensor:
    """Applies transforms by channel.

    Args:
        x: Values.
        names: Names of `TRANSFORMS`, one per channel; None for none.
        axis: Axis of the channels.
        inverse: Whether to apply the inverse ones.
    """
    if not any(names):
        return x
    if len({*names}) == 1:
        return _function(names[0], inverse)(x)
    parts = [
        _function(name, inverse)(part)
        for name, part in zip(names, x.split(1, dim=axis), strict=True)
    ]
    return torch.cat(parts, dim=axis)


def _function(name: str | None, inverse: bool) -> _Function:
    if name is None:
        return lambda x: x
    there, back, _ = TRANSFORMS[name]
    return back if inverse else there


def check_domain(x: Tensor, names: Sequence[str | None], name: str, axis: int = 1) -> None:
    """Raises a ValueError for values that their channel's transform does not take.

    Args:
        x: Values.
        names: Names of `TRANSFORMS`, one per channel; None for none.
        name: What the values are, for the error.
        axis: Axis of the channels.
    """
    for channel, transform in enumerate(names):
        if transform is None:
            continue
        values = x.select(axis, channel)
        least = TRANSFORMS[transform][2]
        is_open = transform in ("log", "log1p")
        lowest = values.min().item()
        if lowest < least or (is_open and lowest == least):
            raise ValueError(
                f"{name} must be {'above' if is_open else 'at least'} {least:g} in channel "
                f"{channel}, for its transform {transform!r}, got values from {lowest:g}; correct "
                "them, or choose asinh"
            )


def as_transforms(transform: Any, channels: int, name: str) -> tuple[str | None, ...]:
    """Parses transforms: a name for all channels, or one or None for each.

    Raises:
        ValueError: If a name is unknown, or their number is wrong.

    Example:
        >>> as_transforms("log1p", 2, "value_transform")
        ('log1p', 'log1p')
    """
    several = (
        (transform,) * channels
        if transform is None or isinstance(transform, str)
        else tuple(transform)
    )
    known = (None, *TRANSFORMS)
    if len(several) != channels or not all(one in known for one in several):
        raise ValueError(
            f"{name} must be one of {', '.join(TRANSFORMS)}, or one or None for each of {channels} "
            f"channels, got {shown(transform)}; correct it"
        )
    return several


def parse_scale(
    value: Any, channels: int, name: str = "value_range", others: str = ""
) -> ValueRange | Standardization | None:
    """Parses a range, see `as_value_range`, or a standardisation; None for None.

    Args:
        value: `(low, high)`; or a mapping of `mean`, `std` and, if wanted, `transform`, each one
            for all channels or one per channel; or a `Standardization`.
        channels: Number of channels.
        name: The argument, for the error.
        others: What else the argument may be, for the error.

    Raises:
        ValueError: If it is neither.

    Example:
        >>> parse_scale({"mean": 280, "std": (10, 12)}, channels=2).std
        (10.0, 12.0)
    """
    if isinstance(value, Standardization):
        value = value.plain()
    if not isinstance(value, Mapping):
        return as_value_range(value, channels, name, others)
    known = {"mean", "std", "transform"}
    if not {"mean", "std"} <= {*value} <= known:
        raise ValueError(
            f"{name} must be (low, high), or a mapping of mean, std and transform, got one of "
            f"{', '.join(map(str, value))}; give mean and std"
        )
    mean, std = _numbers(value["mean"], channels, name), _numbers(value["std"], channels, name)
    if not all(number > 0 for number in std):
        raise ValueError(
            f"{name} must have standard deviations above 0, got {shown(value['std'])}; leave out "
            "channels that are constant"
        )
    return Standardization(mean, std, as_transforms(value.get("transform"), channels, name))


def _numbers(values: Any, channels: int, name: str) -> tuple[float, ...]:
    """One finite number per channel."""
    array = torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten()
    if len(array) not in (1, channels) or not bool(array.isfinite().all()):
        raise ValueError(
            f"{name} must have one finite mean and std, or {channels}, one per channel, got "
            f"{shown(values)}; correct it"
        )
    return tuple(array.expand(channels).tolist())


def shown_limits(scale: Any, channels: int) -> ValueRange | None:
    """The values that pictures show as black and white, one per channel each.

    Args:
        scale: A `value_range`, in any of its forms; None for none.
        channels: Number of channels.

    Returns:
        The range itself, or three standard deviations around the mean; None for None.
    """
    parsed = parse_scale(scale, channels)
    return parsed.limits() if isinstance(parsed, Standardization) else parsed


def padding_values(scale: Any, channels: int) -> tuple[float, ...] | None:
    """The values of black frames and borders: the lows of a range, or the means; None for None."""
    parsed = parse_scale(scale, channels)
    if isinstance(parsed, Standardization):
        middle = torch.zeros(1, channels, dtype=torch.float64, device="cpu")
        return tuple(parsed.inverse(middle)[0].tolist())
    return None if parsed is None else parsed[0]
