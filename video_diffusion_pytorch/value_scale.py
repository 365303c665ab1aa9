"""Standardisation of values by channel: from units of their own to mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import ValueRange, as_value_range, shown


class Transform(NamedTuple):
    """An increasing function of values, for those that are heavy-tailed.

    Attributes:
        forward: The function.
        inverse: Its inverse, for any number: of those that `forward` does not give, the nearest.
        least: The end of the values that `forward` takes.
        is_open: Whether it does not take `least` itself.
    """

    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    least: float
    is_open: bool


TRANSFORMS: dict[str, Transform] = {
    "log": Transform(torch.log, torch.exp, 0.0, True),
    "log1p": Transform(torch.log1p, torch.expm1, -1.0, True),
    "sqrt": Transform(torch.sqrt, lambda y: y.clamp(min=0).square(), 0.0, False),
    "asinh": Transform(torch.asinh, torch.sinh, -float("inf"), False),
}
"""Transforms by name; new ones at the end, as state dicts hold their place."""

TRANSFORM_CODES: tuple[str | None, ...] = (None, *TRANSFORMS)
"""Names by the number that stands for them in a state dict."""

# Standard deviations from the mean that pictures and feature networks get as black and white
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
        >>> [round(value, 4) for value in rain.inverse(rain.forward(x)).flatten().tolist()]
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
        numbers = {"mean": self.mean, "std": self.std}
        words = [f"{name} {', '.join(f'{n:.4g}' for n in each)}" for name, each in numbers.items()]
        if any(self.transform):
            words.append(f"transform {', '.join(name or 'none' for name in self.transform)}")
        return "; ".join(words)

    def forward(self, x: Tensor) -> Tensor:
        """Maps values `(b, c, ...)` in their own units to standardised ones."""
        return standardized(x, *self._tensors(x), self.transform)

    def inverse(self, x: Tensor) -> Tensor:
        """Maps standardised values to their own units; the inverse of `forward`."""
        return unstandardized(x, *self._tensors(x), self.transform)

    def _tensors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        mean, std = (
            torch.tensor(values, dtype=dtype, device=x.device) for values in (self.mean, self.std)
        )
        return mean, std

    def to_unit_range(self, x: Tensor) -> Tensor:
        """Maps values in their own units to [0, 1], for pictures and feature networks.

        0 and 1 are three standard deviations below and above the mean, of transformed values where
        these have a transform, so that heavy tails do not darken the rest.
        """
        return (self.forward(x) + _SHOWN) / (2 * _SHOWN)


def standardized(x: Tensor, mean: Tensor, std: Tensor, transform: Sequence[str | None]) -> Tensor:
    """Standardises values.

    Args:
        x: `(b, c, ...)`. Those of float64 keep their digits until they are near 0.
        mean: Of transformed values, `(c,)`; its type is that of the result.
        std: Likewise.
        transform: Names of `TRANSFORMS` by channel; None for none.
    """
    x = x.to(torch.promote_types(x.dtype, mean.dtype))
    mean, std = (part.view(1, -1, *[1] * (x.ndim - 2)) for part in (mean, std))
    return ((transformed(x, transform) - mean) / std).to(mean.dtype)


def unstandardized(x: Tensor, mean: Tensor, std: Tensor, transform: Sequence[str | None]) -> Tensor:
    """The inverse of `standardized`."""
    mean, std = (part.view(1, -1, *[1] * (x.ndim - 2)) for part in (mean, std))
    return transformed(x * std + mean, transform, inverse=True)


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
    parts = zip(names, x.split(1, dim=axis), strict=True)
    return torch.cat([_function(name, inverse)(part) for name, part in parts], dim=axis)


def _function(name: str | None, inverse: bool) -> Callable[[Tensor], Tensor]:
    if name is None:
        return lambda x: x
    return TRANSFORMS[name].inverse if inverse else TRANSFORMS[name].forward


def in_domain(x: Tensor, names: Sequence[str | None], axis: int = 1) -> Tensor:
    """Whether values are finite and taken by the transform of their channel; of the shape of `x`.

    Args:
        x: Values.
        names: Names of `TRANSFORMS`, one per channel; None for none.
        axis: Axis of the channels.
    """
    found = x.isfinite()
    for channel, name in enumerate(names):
        if name is not None:
            values, kind = x.select(axis, channel), TRANSFORMS[name]
            is_taken = values > kind.least if kind.is_open else values >= kind.least
            found.select(axis, channel).logical_and_(is_taken)
    return found


def check_domain(x: Tensor, names: Sequence[str | None], name: str, axis: int = 1) -> None:
    """Raises a ValueError for values that their channel's transform does not take, NaN included.

    Args:
        x: Values.
        names: Names of `TRANSFORMS`, one per channel; None for none.
        name: What the values are, for the error.
        axis: Axis of the channels.
    """
    taken = in_domain(x, names, axis)
    for channel, transform in enumerate(names):
        if transform is None or bool(taken.select(axis, channel).all()):
            continue
        kind, lowest = TRANSFORMS[transform], x.select(axis, channel).min().item()
        raise ValueError(
            f"{name} must be {'above' if kind.is_open else 'at least'} {kind.least:g} in channel "
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
    is_list = isinstance(transform, Sequence) and not isinstance(transform, str)
    several = tuple(transform) if is_list else (transform,) * channels
    if len(several) != channels or not all(one in TRANSFORM_CODES for one in several):
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
    if not {"mean", "std"} <= {*value} <= {"mean", "std", "transform"}:
        raise ValueError(
            f"{name} must be (low, high), or a mapping of mean, std and transform, got one of "
            f"{', '.join(map(str, value))}; give mean and std"
        )
    mean, std = _numbers(value["mean"], channels, name), _numbers(value["std"], channels, name)
    # as the buffers of a model hold them
    if not bool((torch.tensor(std, dtype=torch.float32, device="cpu") > 0).all()):
        raise ValueError(
            f"{name} must have standard deviations above 0, got {shown(value['std'])}; leave out "
            "channels that are constant"
        )
    return Standardization(mean, std, as_transforms(value.get("transform"), channels, name))


def _numbers(values: Any, channels: int, name: str) -> tuple[float, ...]:
    """One finite number per channel."""
    try:
        array = torch.as_tensor(values, dtype=torch.float64, device="cpu").flatten()
        is_right = len(array) in (1, channels) and bool(array.isfinite().all())
    except (TypeError, ValueError, RuntimeError):
        is_right = False
    if not is_right:
        raise ValueError(
            f"{name} must have one finite mean and std, or {channels}, one per channel, got "
            f"{shown(values)}; correct it"
        )
    return tuple(array.expand(channels).tolist())


CONDITION_AXES = {"cond": -1, "frame_cond": -1, "cond_video": 1}
"""Numeric conditions, by keyword, and the axis of their entries."""


def parse_condition_scales(value: Any, name: str) -> dict[str, dict[str, tuple[float, ...]]] | None:
    """Parses the mean and the standard deviation of numeric conditions; None for None.

    Args:
        value: By keyword of `CONDITION_AXES` a mapping of `mean` and `std`, numbers or one per
            entry.
        name: The argument, for the error.

    Raises:
        ValueError: If it is none of these.

    Example:
        >>> parse_condition_scales({"cond": {"mean": (50, 101325), "std": 10}}, "scales")
        {'cond': {'mean': (50.0, 101325.0), 'std': (10.0, 10.0)}}
    """
    if value is None:
        return None
    is_right = isinstance(value, Mapping) and {*value} <= {*CONDITION_AXES} and bool(value)
    if not is_right or not all(
        isinstance(scale, Mapping) and {*scale} == {"mean", "std"} for scale in value.values()
    ):
        raise ValueError(
            f"{name} must be a mapping of {', '.join(CONDITION_AXES)} to a mean and std each, got "
            f"{shown(value)}; correct it"
        )
    found = {}
    for key, scale in value.items():
        sizes = [torch.as_tensor(n, device="cpu").numel() for n in scale.values()]
        parsed = parse_scale(dict(scale), max(sizes), f"{name}[{key!r}]")
        assert isinstance(parsed, Standardization)
        found[key] = {"mean": parsed.mean, "std": parsed.std}
    return found


def padding_values(scale: Any, channels: int) -> tuple[float, ...] | None:
    """The values of black frames and borders: the lows of a range, or the means; None for None."""
    parsed = parse_scale(scale, channels)
    if isinstance(parsed, Standardization):
        middle = torch.zeros(1, channels, dtype=torch.float64, device="cpu")
        return tuple(parsed.inverse(middle)[0].tolist())
    return None if parsed is None else parsed[0]
