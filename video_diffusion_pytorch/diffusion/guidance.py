"""Guidance of sampling by known values and measurements."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.denoiser import Noise
from video_diffusion_pytorch.diffusion.noise_schedule import NoiseLevel

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

RECONSTRUCTION_WEIGHT = 2.0
"""The weight w_r of known parts, where none is given."""


class Guidance:
    """Knowledge about the videos that `sample` draws; a subclass overrides the methods it needs.

    `sample` calls `prepare` once and `rows` once for each part of the batch, then in each step
    `replace` before the network, `squared_error` and `settle` after it.

    Attributes:
        weight: The weight w_r of reconstruction guidance; 0 to leave out `squared_error`, and with
            it the gradient, which takes about twice the time and much more memory.
        num_videos: How many videos it is about; None if it holds for any number of them.

    Example:
        Videos as bright as asked for on the whole, in a subclass of one method:

        >>> class Brightness(Guidance):
        ...     weight = 10.0
        ...
        ...     def squared_error(self, x_start):
        ...         return self.weight * (x_start.mean(dim=(1, 2, 3, 4)) - 0.5) ** 2
        >>> Brightness().squared_error(torch.zeros(2, 3, 4, 8, 8))
        tensor([2.5000, 2.5000])
    """

    weight: float = 0.0
    num_videos: int | None = None

    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> Guidance:
        """Checks that it fits the videos, and gives it as the steps want it.

        Args:
            diffusion: The model: its device, its numbers, its range of values.
            shape: That of the videos, `(b, c, f, h, w)`.

        Returns:
            On the model's device, and in [-1, 1] where the model works so; a new object, so that
            this one can be used again, with other models as well.
        """
        return self

    def rows(self, rows: slice) -> Guidance:
        """The part that is about these videos of the batch."""
        return self

    def replace(self, x_t: Tensor, level: NoiseLevel, noise: Noise) -> Tensor:
        """Puts what is known into the noisy videos.

        Called in each step, before the network and the sampler see the videos.

        Args:
            x_t: Noisy videos, `(b, c, f, h, w)`.
            level: Their noise level.
            noise: Draws standard normal noise in the shape of its argument.

        Returns:
            `(b, c, f, h, w)`.
        """
        return x_t

    def squared_error(self, x_start: Tensor) -> Tensor:
        """How far predicted videos are from what is known, times `weight`.

        The prediction then moves by `-alpha / 2` times the gradient that the sum has with respect
        to the noisy videos (Ho et al. 2022, eq. 7).

        Args:
            x_start: Predicted clean videos, `(b, c, f, h, w)`, in [-1, 1].

        Returns:
            One number per video, `(b,)`.

        Raises:
            NotImplementedError: If a subclass has a weight, but no such method.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: squared_error must be defined where weight is not 0, got none "
            f"and weight {self.weight:g}; define it, or set weight to 0"
        )

    def settle(self, x_start: Tensor) -> Tensor:
        """Puts known values in their place; also called for the result.

        Args:
            x_start: Clean videos, `(b, c, f, h, w)`, in [-1, 1].

        Returns:
            `(b, c, f, h, w)`.
        """
        return x_start


class KnownRegion(Guidance):
    """A part of the videos that is known, value by value (Ho et al. 2022, section 3.1, eq. 7).

    The noisy known part is replaced by the known values with noise, and the network's error there
    corrects its prediction everywhere. The result has the known values, to the rounding of their
    way into [-1, 1] and back; the calls that complete videos, as `inpaint`, have them exactly.

    Args:
        video: `(b, c, f, h, w)`, or one for all, `(1, c, f, h, w)`, in the range of the clips or
            uint8. What it holds outside the known part does not matter, be it NaN.
        mask: Boolean, true where the video is **known**: for each value `(b, c, f, h, w)`, with
            1 for an axis along which it is the same; or by frame and pixel `(f, h, w)`, by
            pixel `(h, w)`, or by frame `(f,)`.
        weight: The weight w_r of the correction; 0 for the replacement alone, which needs no
            gradient, but fits the rest less well to what is known.

    Raises:
        TypeError: If the video or the mask is no such tensor.
        ValueError: If the weight is negative; from `sample`, if shapes don't fit or known values
            are not finite.

    Example:
        >>> video = torch.zeros(1, 3, 4, 8, 8)
        >>> first_two = torch.tensor([True, True, False, False])
        >>> known = KnownRegion(video, first_two)
        >>> # diffusion.sample(batch_size=5, guidance=known)
    """

    def __init__(self, video: Tensor, mask: Tensor, weight: float = RECONSTRUCTION_WEIGHT) -> None:
        check_videos("KnownRegion: video", video)
        check_mask("KnownRegion: mask", mask)
        self.video = video
        self.mask = mask
        self.weight = checked_weight("KnownRegion", weight)
        rows = max(len(video), len(mask) if mask.ndim == 5 else 1)
        self.num_videos = rows if rows > 1 else None

    # in inference mode too it must be made of tensors that a gradient can pass
    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> KnownRegion:
        """See `Guidance.prepare`."""
        if self.video.shape[1:] != shape[1:] or len(self.video) not in (1, shape[0]):
            raise ValueError(
                f"KnownRegion: video must have the shape of the videos to draw, {tuple(shape)}, or "
                f"with one row for all, got {tuple(self.video.shape)}; cut or resize it"
            )
        device = diffusion.betas.device
        video, mask = self.video.to(device), self.mask.to(device, copy=True)
        mask = expand_mask("KnownRegion: mask", mask, shape)
        if diffusion.value_low is not None or video.is_floating_point():
            # a value in the middle of the range, so that what is unknown raises no alarm
            middle = diffusion.to_data_range(diffusion.betas.new_zeros(1, shape[1], 1, 1, 1))
            video = torch.where(mask, video, middle)
        video = diffusion.to_model_range(video)
        if not video.isfinite().all():
            raise ValueError(
                "KnownRegion: known values must be finite, got NaN or infinity where the mask is "
                "true; take these out of the mask"
            )
        ready = copy.copy(self)
        ready.video, ready.mask = video, mask
        return ready

    def rows(self, rows: slice) -> KnownRegion:
        """See `Guidance.rows`."""
        part = copy.copy(self)
        part.video, part.mask = rows_of(self.video, rows), rows_of(self.mask, rows)
        return part

    def replace(self, x_t: Tensor, level: NoiseLevel, noise: Noise) -> Tensor:
        """Draws the known part from the forward process; see `Guidance.replace`."""
        # noise for all of it, so that a video's random numbers don't depend on the mask
        known = level.alpha * self.video + level.sigma * noise(x_t)
        return torch.where(self.mask, known, x_t)

    def squared_error(self, x_start: Tensor) -> Tensor:
        """Sum of the squared errors of the known part; see `Guidance.squared_error`."""
        error = torch.where(self.mask, x_start - self.video, 0.0)
        return self.weight * error.square().flatten(1).sum(dim=1)

    def settle(self, x_start: Tensor) -> Tensor:
        """The known values, and elsewhere the videos as they are; see `Guidance.settle`."""
        return torch.where(self.mask, self.video, x_start)


def expand_mask(name: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask with an axis for each of the videos', of the same length or 1.

    Args:
        name: What it is, for messages.
        mask: By frame `(f,)`, by pixel `(h, w)`, by both `(f, h, w)`, or with five axes.
        shape: That of the videos, `(b, c, f, h, w)`.

    Raises:
        ValueError: If it does not fit.

    Example:
        >>> expand_mask("mask", torch.tensor([True, False]), (5, 3, 2, 8, 8)).shape
        torch.Size([1, 1, 2, 1, 1])
    """
    full = mask[:, None, None] if mask.ndim == 1 else mask
    full = full[(None,) * (5 - full.ndim)]
    is_known_form = mask.ndim in (1, 2, 3, 5)
    if not is_known_form or any(n not in (1, m) for n, m in zip(full.shape, shape, strict=True)):
        raise ValueError(
            f"{name} must have the shape (f,), (h, w), (f, h, w) or (b, c, f, h, w), or 1 for an "
            f"axis along which it is the same, for videos of {tuple(shape)}, got "
            f"{tuple(mask.shape)}; cut, resize or reshape it"
        )
    return full


def check_mask(name: str, mask: Any) -> None:
    """Raises a TypeError unless it is a boolean tensor."""
    if not torch.is_tensor(mask) or mask.dtype != torch.bool:
        got = mask.dtype if torch.is_tensor(mask) else type(mask).__name__
        raise TypeError(
            f"{name} must be a boolean tensor, true where the video is known, got {got}; compare "
            "it, as in mask > 0.5"
        )


def check_videos(name: str, videos: Any) -> None:
    """Raises a TypeError unless they are a tensor `(b, c, f, h, w)` of numbers or bytes."""
    if not torch.is_tensor(videos) or videos.ndim != 5:
        got = tuple(videos.shape) if torch.is_tensor(videos) else type(videos).__name__
        raise TypeError(
            f"{name} must be a tensor of the shape (b, c, f, h, w), got {got}; convert arrays with "
            "torch.from_numpy, and give a single video as video[None]"
        )
    if not videos.is_floating_point() and videos.dtype != torch.uint8:
        raise TypeError(
            f"{name} must be floating-point or uint8, got {videos.dtype}; convert it with "
            ".float(), in the range of the clips"
        )


def checked_weight(name: str, weight: float) -> float:
    """A weight w_r as a float.

    Raises:
        ValueError: If it is no number, or negative.
    """
    if not isinstance(weight, Real) or not 0 <= weight < math.inf:
        raise ValueError(
            f"{name}: weight must be a number, 0 or greater, got {shown(weight)}; 0 is without "
            f"correction, {RECONSTRUCTION_WEIGHT:g} is common"
        )
    return float(weight)


def rows_of(value: Tensor, rows: slice) -> Tensor:
    """The rows of some videos, where one row may be for all of them."""
    return value if len(value) == 1 else value[rows]


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
    _to_data_range: Callable[[Tensor], Tensor]
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
    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> Measurement:
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
        ready._to_data_range = diffusion.to_data_range
        ready._check_operator(y.new_zeros(1, *shape[1:]))
        return ready

    def _unit_of(self, y: Tensor, diffusion: GaussianDiffusion) -> Tensor:
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
        low, high = diffusion.to_data_range(
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
        measured = self.operator(self._to_data_range(videos))
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
