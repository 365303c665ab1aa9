"""What was measured of a video that is being drawn, in any differentiable way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.guidance import (
    RECONSTRUCTION_WEIGHT,
    Guidance,
    checked_weight,
    rows_of,
)
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.value_range import ValueRanges


class Measurement(Guidance):
    """Something that was measured of each video, by any differentiable function.

    It may be a low resolution, a mean over time, a projection, the values at a few sensors. What
    the predicted video gives is compared with it, and corrects the prediction (Ho et al. 2022,
    eq. 8).

    Args:
        y: What was measured: a row per video, `(b, ...)`, or one for all, `(1, ...)`.
        operator: What measures: takes videos `(b, c, f, h, w)` in the range of the clips, as
            `sample` gives them, any number of them and each for itself, and gives such as `y`,
            real numbers, through operations of torch that have a gradient.
        weight: The weight w_r of the error.
        scale: The unit of the error, a number or a tensor that broadcasts against `y`. None for
            half the width of the range of the clips, which makes it as if videos and measurement
            were in [-1, 1], right where the operator keeps the units of the clips.

    Raises:
        TypeError: If `y` is no tensor of real numbers, the operator cannot be called, or the scale
            is something else.
        ValueError: If the weight is negative or the scale not positive; from `sample`, if shapes
            don't fit, or the operator gives no gradient.

    Example:
        Any videos whose mean over time is a given picture:

        >>> picture = torch.full((1, 3, 8, 8), 0.5)
        >>> mean = Measurement(picture, lambda videos: videos.mean(dim=2), weight=5.0)
        >>> # diffusion.sample(batch_size=4, guidance=mean)
    """

    # what prepare() adds
    _to_users_range: Callable[[Tensor], Tensor]
    _unit: Tensor

    def __init__(
        self,
        y: Tensor,
        operator: Callable[[Tensor], Tensor],
        weight: float = RECONSTRUCTION_WEIGHT,
        *,
        scale: float | Tensor | None = None,
    ) -> None:
        if not torch.is_tensor(y) or not y.ndim:
            got = "a single number" if torch.is_tensor(y) else type(y).__name__
            raise TypeError(
                "Measurement: y must be a tensor with one row per video, or one for all, got "
                f"{got}; make one of it, as with torch.stack"
            )
        if y.is_complex():
            raise TypeError(
                f"Measurement: y must be real, got {y.dtype}; let y and the operator give "
                "torch.view_as_real of the complex numbers"
            )
        if not callable(operator):
            raise TypeError(
                "Measurement: operator must be a function of videos (b, c, f, h, w), got "
                f"{type(operator).__name__}; give one that measures y"
            )
        if scale is not None:
            _check_scale(scale)
        self.y = y
        self.operator = operator
        self.weight = checked_weight("Measurement", weight)
        self.scale = scale
        self.num_videos = len(y) if len(y) > 1 else None

    # in inference mode too it must be made of tensors that a gradient can pass
    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, diffusion: ValueRanges, shape: tuple[int, ...]) -> Measurement:
        """See `Guidance.prepare`."""
        if len(self.y) not in (1, shape[0]):
            raise ValueError(
                f"Measurement: y must have a row for each of {shape[0]} videos, or one for all, "
                f"got {len(self.y)}; give as many, or another batch_size"
            )
        y = self.y.to(diffusion.betas, copy=True)
        if not y.isfinite().all():
            raise ValueError(
                "Measurement: y must be finite, got NaN or infinity; let the operator leave out "
                "what was not measured"
            )
        ready = copy.copy(self)
        ready.y, ready._unit = y, self._unit_of(y, diffusion)
        ready._to_users_range = diffusion._to_users_range
        ready._check_operator(y.new_zeros(1, *shape[1:]))
        return ready

    def _unit_of(self, y: Tensor, diffusion: ValueRanges) -> Tensor:
        """What to divide errors by, in the shape of `y`."""
        if self.scale is not None:
            scale = torch.as_tensor(self.scale).to(y, copy=True)
            sizes = zip(reversed(scale.shape), reversed(y.shape), strict=False)
            if scale.ndim > y.ndim or any(n not in (1, m) for n, m in sizes):
                raise ValueError(
                    f"Measurement: scale must broadcast against y, {tuple(y.shape)}, got "
                    f"{tuple(scale.shape)}; give a number, or 1 for an axis along which it is the "
                    "same"
                )
            return scale.expand(y.shape)
        low_high = y.new_tensor([[-1.0], [1.0]])
        low, high = diffusion._to_users_range(
            low_high.view(2, 1, 1, 1, 1).expand(2, diffusion.channels, 1, 1, 1)
        ).flatten(1)
        half = (high - low) / 2
        if bool((half == half[0]).all()):
            return half[0].expand(y.shape)
        if y.ndim < 2 or y.shape[1] != diffusion.channels:
            raise ValueError(
                "Measurement: scale is needed where the channels' ranges differ and axis 1 of y is "
                f"not the {diffusion.channels} channels, got None and y of {tuple(y.shape)}; give "
                "the scale of an error in the units of y"
            )
        return half.view(1, -1, *[1] * (y.ndim - 2)).expand(y.shape)

    def _check_operator(self, videos: Tensor) -> None:
        """Raises a ValueError unless the operator gives what `y` is, with a gradient."""
        with torch.enable_grad():
            measured = self._measured(videos.requires_grad_())
        if not measured.requires_grad:
            raise ValueError(
                "Measurement: operator must be differentiable, got a result that has no gradient; "
                "compute it with operations of torch, without rounding, detach or no_grad"
            )

    def _measured(self, videos: Tensor) -> Tensor:
        """What the operator gives for videos in [-1, 1].

        Raises:
            ValueError: If it is not what `y` is.
        """
        measured = self.operator(self._to_users_range(videos))
        expected = (len(videos), *self.y.shape[1:])
        is_tensor = torch.is_tensor(measured)
        if not is_tensor or measured.shape != expected or measured.is_complex():
            kind = type(measured).__name__
            got = f"{measured.dtype} of {tuple(measured.shape)}" if is_tensor else kind
            raise ValueError(
                "Measurement: operator must give what y is, a tensor of real numbers of the shape "
                f"{expected}, got {got} for videos of {tuple(videos.shape)}; change it, or y"
            )
        return measured

    def rows(self, rows: slice) -> Measurement:
        """See `Guidance.rows`."""
        part = copy.copy(self)
        part.y, part._unit = rows_of(self.y, rows), rows_of(self._unit, rows)
        return part

    def squared_error(self, x_start: Tensor) -> Tensor:
        """Sum of the squared errors of what is measured; see `Guidance.squared_error`."""
        error = (self.y - self._measured(x_start)) / self._unit
        return self.weight * error.square().reshape(len(x_start), -1).sum(dim=1)


def _check_scale(scale: Any) -> None:
    """Raises a TypeError or a ValueError unless it is a positive number, or a tensor of these."""
    is_tensor = torch.is_tensor(scale) and not scale.is_complex()
    if not is_tensor and not isinstance(scale, Real):
        raise TypeError(
            "Measurement: scale must be a number or a tensor of real numbers, got "
            f"{shown(scale)}; give "
            "the size of an error, in the units of y"
        )
    values = torch.as_tensor(scale)
    if not bool(((values > 0) & values.isfinite()).all()):
        raise ValueError(
            f"Measurement: scale must be positive and finite, got {scale}; give the size of an "
            "error that counts as much as one of 1 in a video in [-1, 1]"
        )
