"""The units of clips: from those of the user to [-1, 1], where the diffusion works, and back."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.shown import shown

# how far outside its range a clip's values may be before it looks like a mistake
RANGE_TOLERANCE = 0.05

_FLOAT32 = torch.finfo(torch.float32)

# whose lines are no user's
_LIBRARIES = tuple(
    f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], Path(torch.__file__).parent)
)

# the lowest and the highest value, each for all channels or one per channel
Bound = float | Sequence[float]
PlainRange = tuple[float | tuple[float, ...], float | tuple[float, ...]]


def normalize_img(t: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return t * 2 - 1


def unnormalize_img(t: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (t + 1) * 0.5


def plain_range(name: str, given: Any, channels: int | None) -> PlainRange:
    """A range in plain floats and tuples, as `config` and files hold it.

    Args:
        name: The constructor argument, for messages.
        given: `(low, high)`, each a number or one per channel.
        channels: How many channels there are; None if that is not known.

    Raises:
        ValueError: If it is no such pair, or low is not below high in every channel.
    """
    try:
        low, high = (_plain_bound(bound) for bound in given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"GaussianDiffusion: {name} must be (low, high), each a number or a sequence of one "
            f"per channel, got {shown(given)}; give it as (0.0, 255.0), for one"
        ) from error
    counts = {len(bound) for bound in (low, high) if isinstance(bound, tuple)}
    expected = channels or max(counts, default=1)
    if counts - {expected}:
        raise ValueError(
            f"GaussianDiffusion: {name} must have one value per channel, {expected}, got "
            f"{' and '.join(map(str, sorted(counts)))}; give as many, or one number for all"
        )
    for low_value, high_value in zip(*_per_channel((low, high), expected), strict=True):
        # in the numbers of the clips
        least, most = torch.tensor([low_value, high_value], dtype=torch.float32).tolist()
        if not _FLOAT32.tiny <= most - least <= _FLOAT32.max:
            raise ValueError(
                f"GaussianDiffusion: {name} must be finite, with low below high in every channel, "
                f"got {low_value} to {high_value}; leave out a channel that is constant, or widen "
                "its range until float32 tells the two apart"
            )
    return low, high


def _plain_bound(bound: Any) -> float | tuple[float, ...]:
    if isinstance(bound, str):
        raise TypeError("text is no bound")
    # also arrays and tensors
    values = bound.tolist() if hasattr(bound, "tolist") else bound
    return tuple(map(float, values)) if isinstance(values, Sequence) else float(values)


def _per_channel(limits: PlainRange, channels: int) -> list[tuple[float, ...]]:
    return [bound if isinstance(bound, tuple) else (bound,) * channels for bound in limits]


class ValueRanges(ForwardProcess):
    """The part of `GaussianDiffusion` that knows units; it documents the arguments.

    A range is in `config`, so that a file tells how to build the model, and in buffers, so that
    weights never meet clips in other units than those they were trained on.
    """

    channels: int
    auto_normalize: bool
    config: dict[str, Any]
    value_low: Tensor | None
    value_high: Tensor | None
    cond_value_low: Tensor | None
    cond_value_high: Tensor | None
    _range_is_known = False

    def _set_ranges(self, clips: Any, field: Any, field_channels: int | None) -> None:
        for name in ("value_low", "value_high", "cond_value_low", "cond_value_high"):
            self.register_buffer(name, None)
        self.config = {**self.config, "value_range": None, "cond_value_range": None}
        if clips is not None:
            self.set_value_range(clips)
        if field is not None:
            if field_channels == 0:
                raise ValueError(
                    "GaussianDiffusion: cond_value_range needs a network that takes a cond_video "
                    f"of your own, got {shown(field)} and none; build the network with more "
                    "cond_channels, or leave it out"
                )
            self._store_range("cond_value", field, field_channels)
        self.register_load_state_dict_pre_hook(_check_ranges_of_file)

    def set_value_range(self, low_high: tuple[Bound, Bound]) -> None:
        """Sets `value_range`, where it is known later than the model; before training.

        Args:
            low_high: As `value_range` of the constructor.

        Raises:
            ValueError: If it is no range, or `auto_normalize` is False.
        """
        if not self.auto_normalize:
            raise ValueError(
                "GaussianDiffusion: value_range needs auto_normalize=True, got False; leave "
                "auto_normalize out, or value_range"
            )
        self._store_range("value", low_high, self.channels)
        self._range_is_known = False

    def _store_range(self, kind: str, given: Any, channels: int | None) -> None:
        limits = plain_range(f"{kind}_range", given, channels)
        counts = [len(bound) for bound in limits if isinstance(bound, tuple)]
        per_channel = _per_channel(limits, channels or max(counts, default=1))
        for end, values in zip(("low", "high"), per_channel, strict=True):
            self.register_buffer(f"{kind}_{end}", self.betas.new_tensor(values))
        self.config = {**self.config, f"{kind}_range": limits}

    # from the user's units to the model's, and back

    def _to_model_range(self, x: Tensor) -> Tensor:
        """Clips as the user has them, as the model wants them."""
        if self.value_low is None and x.dtype == torch.uint8:
            x = x.float() / 255
        # while a graph is traced, by torch or by JAX, the values are not there to look at
        elif self.auto_normalize and not (torch.compiler.is_compiling() or x.device.type == "jax"):
            self._check_range(x)
        if self.value_low is not None and self.value_high is not None:
            return to_unit_range(x, self.value_low, self.value_high)
        x = x.to(self.betas.dtype)
        return normalize_img(x) if self.auto_normalize else x

    def _to_users_range(self, x: Tensor) -> Tensor:
        """Clips as the model makes them, as the user has them."""
        if self.value_low is not None and self.value_high is not None:
            low, high = (bound.view(1, -1, 1, 1, 1) for bound in (self.value_low, self.value_high))
            return low + (x + 1) * 0.5 * (high - low)
        return unnormalize_img(x) if self.auto_normalize else x

    def _field_to_model_range(self, field: Tensor) -> Tensor:
        """A user's `cond_video`, as the network wants it."""
        if self.cond_value_low is None or self.cond_value_high is None:
            is_bytes = field.dtype == torch.uint8
            return normalize_img(field.to(self.betas.dtype) / 255) if is_bytes else field
        channels = len(self.cond_value_low)
        if field.ndim not in (4, 5) or channels not in (1, field.shape[1]):
            raise ValueError(
                f"GaussianDiffusion: cond_video must have the {channels} channels of "
                f"cond_value_range, shape (b, {channels}, f, h, w) or (b, {channels}, h, w), got "
                f"{tuple(field.shape)}; move its axes, or change cond_value_range"
            )
        return to_unit_range(field, self.cond_value_low, self.cond_value_high)

    def _check_range(self, x: Tensor) -> None:
        """Warns once of clips that are not in their range; on a GPU it looks at the first only."""
        if self._range_is_known:
            return
        low, high = 0.0, 1.0
        unit = x.detach()
        if self.value_low is not None and self.value_high is not None:
            low, high = self.value_low.min().item(), self.value_high.max().item()
            unit = unnormalize_img(to_unit_range(unit, self.value_low, self.value_high))
        least, most = (value.item() for value in torch.aminmax(unit))
        # said so that not-a-number is outside, too
        outside = not (least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE)
        # on a GPU each look would make the host wait
        self._range_is_known = outside or not x.is_cpu
        if outside:
            found = " to ".join(f"{value.item():.3g}" for value in torch.aminmax(x.detach()))
            cure = "give the value_range of all clips"
            if self.value_low is None:
                cure = (
                    "rescale them ((x + 1) / 2 if they are in [-1, 1]), build GaussianDiffusion "
                    "with value_range=(low, high) in their units, or with auto_normalize=False to "
                    "keep a range of their own"
                )
            warnings.warn(
                f"GaussianDiffusion: clips must be in [{low:g}, {high:g}], got values from "
                f"{found}; {cure}",
                stacklevel=_level_of_user(),
            )


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


def _level_of_user() -> int:
    """The `stacklevel` that makes a warning of the caller's point at the user's own line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level


def _check_ranges_of_file(
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
    # as short as tells the float32 from its neighbours
    plain = [tuple(float(str(value)) for value in bound.cpu().numpy()) for bound in bounds]
    alike = [values[0] if len(set(values)) == 1 else values for values in plain]
    return str(tuple(alike)) if alike else "None"
