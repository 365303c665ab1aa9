"""Guidance of sampling by known values and measurements, and the denoiser that applies it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.noise_schedule import Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.sampling_steps import Prediction
from video_diffusion_pytorch.diffusion.value_range import check_videos

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

RECONSTRUCTION_WEIGHT = 2.0
"""The default weight w_r of known parts."""


class Guidance:
    """Knowledge about the videos that `sample` draws; a subclass overrides the methods it needs.

    `sample` calls `prepare` once and `rows` once for each part of the batch, then in each step
    `replace` before the network, and `squared_error` and `settle` after it.

    Attributes:
        weight: The weight w_r of reconstruction guidance; 0 to leave out `squared_error`, and with
            it the gradient, which takes about twice the time and much more memory.
        num_videos: How many videos it is about; None if it holds for any number of them.

    Example:
        Videos of a given overall brightness, with a subclass of one method:

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
        """Checks that it fits the videos, and converts it for the steps.

        Args:
            diffusion: The model: its device, dtype and value range.
            shape: That of the videos, `(b, c, f, h, w)`.

        Returns:
            A new object on the model's device, with clips in [-1, 1] unless the model has a range
            of its own; this one can be used again, also with other models.
        """
        return self

    def rows(self, rows: slice) -> Guidance:
        """The part that is about these videos of the batch."""
        return self

    def replace(self, x_t: Tensor, level: NoiseLevel, noise: Noise) -> Tensor:
        """Replaces known parts of the noisy videos.

        Called in each step, before the network and the sampler see the videos.

        Args:
            x_t: Noisy videos, `(b, c, f, h, w)`.
            level: Their noise level.
            noise: Draws standard normal noise of the shape of its argument.

        Returns:
            `(b, c, f, h, w)`.
        """
        return x_t

    def frame_levels(self, level: NoiseLevel) -> NoiseLevel:
        """The noise level of the videos after `replace`, with `frames` where these differ.

        Args:
            level: That of the step.
        """
        return level

    def squared_error(self, x_start: Tensor) -> Tensor:
        """The error of predicted videos, times `weight`.

        The prediction then moves by `-alpha / 2` times the gradient of the sum with respect to the
        noisy videos (Ho et al. 2022, eq. 7).

        Args:
            x_start: Predicted clean videos, `(b, c, f, h, w)`, in [-1, 1].

        Returns:
            One number per video, `(b,)`.

        Raises:
            NotImplementedError: If a subclass has a weight, but does not override it.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: squared_error must be defined where weight is not 0, got none "
            f"and weight {self.weight:g}; define it, or set weight to 0"
        )

    def settle(self, x_start: Tensor) -> Tensor:
        """Inserts known values into clean videos; also called for the result.

        Args:
            x_start: Clean videos, `(b, c, f, h, w)`, in [-1, 1].

        Returns:
            `(b, c, f, h, w)`.
        """
        return x_start


class KnownRegion(Guidance):
    """A part of the videos that is known, value by value (Ho et al. 2022, section 3.1, eq. 7).

    The noisy known part is replaced by the known values with noise, and the network's error there
    corrects its prediction everywhere. The result has the known values up to the rounding of their
    conversion to [-1, 1] and back; `inpaint` and the like return them exactly.

    Args:
        video: `(b, c, f, h, w)`, or one for all, `(1, c, f, h, w)`, in the range of the clips or
            uint8. Values outside the known part are ignored, even NaN.
        mask: Boolean, true where the video is **known**: for each value `(b, c, f, h, w)`, with
            1 for an axis along which it is the same; or by frame and pixel `(f, h, w)`, by
            pixel `(h, w)`, or by frame `(f,)`.
        weight: The weight w_r of the correction; 0 for the replacement alone, which needs no
            gradient, but makes the rest fit the known part less well.

    Raises:
        ValueError: If the video or the mask has another type, or the weight is negative; from
            `sample`, if shapes don't fit or known values are not finite.

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

    # in inference mode too, its tensors must let a gradient pass
    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> KnownRegion:
        """See `Guidance.prepare`."""
        rows = 1 if len(self.video) == 1 else shape[0]
        check_videos("KnownRegion: video", self.video, (rows, *shape[1:]))
        device = diffusion.betas.device
        video, mask = self.video.to(device), self.mask.to(device, copy=True)
        mask = expand_mask("KnownRegion: mask", mask, shape)
        if diffusion.has_units or video.is_floating_point():
            # unknown values become the middle of the range, so that no warning is due to them
            middle = diffusion.to_data_range(diffusion.betas.new_zeros(1, shape[1], 1, 1, 1))
            video = torch.where(mask, video, middle)
        if not video.isfinite().all():
            raise ValueError(
                "KnownRegion: known values must be finite, got NaN or infinity where the mask is "
                "true; take them out of the mask, or, if the model has drawn them, use weights "
                "from before it diverged or a smaller weight of the guidance"
            )
        ready = copy.copy(self)
        ready.video, ready.mask = diffusion.to_model_range(video), mask
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
        """Inserts the known values; see `Guidance.settle`."""
        return torch.where(self.mask, self.video, x_start)


class KnownFrames(KnownRegion):
    """Frames that are known, for a model trained with `frame_noise` (Chen et al. 2024).

    The network sees them with hardly any noise, at a noise level of their own, in each step. That
    needs no gradient.

    Args:
        video: As in `KnownRegion`.
        mask: Boolean, by frame, `(f,)`: true where the video is **known**.
        noise: Size of the noise of the known frames, `sigma / alpha`. A little of it, 0.02 to 0.1,
            say, keeps errors in frames that the model has drawn itself from growing in a rollout;
            0 for the least that the model was trained with.

    Raises:
        ValueError: As `KnownRegion`, if the mask is not by frame, or the noise is negative; from
            `sample`, if the model has a noise level per clip only.

    Example:
        >>> video = torch.zeros(1, 3, 4, 8, 8)
        >>> first_and_last = KnownFrames(video, torch.tensor([True, False, False, True]))
        >>> # diffusion.sample(batch_size=5, guidance=first_and_last)
    """

    # what prepare() adds
    _level: NoiseLevel
    _is_known: list[bool]

    def __init__(self, video: Tensor, mask: Tensor, noise: float = 0.0) -> None:
        super().__init__(video, mask, weight=0.0)
        if mask.ndim != 1:
            raise ValueError(
                f"KnownFrames: mask must be by frame, shape (f,), got {tuple(mask.shape)}; for "
                "parts of frames take KnownRegion"
            )
        self.noise = as_noise_size("KnownFrames: noise", noise)

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> KnownFrames:
        """See `Guidance.prepare`."""
        if diffusion.frame_noise is None:
            raise ValueError(
                "KnownFrames: the model must be trained with frame_noise='independent', got one "
                "with a noise level per clip; take KnownRegion"
            )
        ready = super().prepare(diffusion, shape)
        assert isinstance(ready, KnownFrames)
        ready._is_known = self.mask.expand(shape[2]).tolist()
        ready._level = diffusion.level_of_noise(self.noise)
        return ready

    def replace(self, x_t: Tensor, level: NoiseLevel, noise: Noise) -> Tensor:
        """Puts the known frames in, with the noise of their own level; see `Guidance.replace`."""
        known = self._level.alpha * self.video
        if self.noise:
            known = known + self._level.sigma * noise(x_t)
        return torch.where(self.mask, known, x_t)

    def frame_levels(self, level: NoiseLevel) -> NoiseLevel:
        """See `Guidance.frame_levels`."""
        own = level.frames or (level,) * len(self._is_known)
        pairs = zip(self._is_known, own, strict=True)
        return level._replace(frames=tuple(self._level if known else one for known, one in pairs))


class Measurement(Guidance):
    """A measurement of each video by any differentiable function.

    It may be a low resolution, a mean over time, a projection, or the values at a few sensors. The
    measurement of the predicted video is compared with it and corrects the prediction (Ho et al.
    2022, eq. 8).

    Args:
        y: What was measured: a row per video, `(b, ...)`, or one for all, `(1, ...)`.
        operator: The measurement: maps videos `(b, c, f, h, w)` in the range of the clips, as
            `sample` returns them, any number of them and each by itself, to real numbers of the
            shape of `y`, with differentiable operations of torch.
        weight: The weight w_r of the error.
        scale: The unit of the error, a number or a tensor that broadcasts against `y`. None for
            half the width of the range of the clips, as if videos and measurement were in [-1, 1],
            which is right where the operator keeps the units of the clips.

    Raises:
        ValueError: If `y` is not real numbers, the weight negative or the scale not positive; from
            `sample`, if shapes don't fit, or the operator gives no gradient.

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
        if not torch.is_tensor(y) or not y.ndim or y.is_complex():
            got = f"{y.dtype} of shape {tuple(y.shape)}" if torch.is_tensor(y) else type(y).__name__
            raise ValueError(
                "Measurement: y must be a tensor of real numbers with one row per video, or one "
                f"for all, got {got}; use torch.stack, or torch.view_as_real for complex numbers"
            )
        units = torch.as_tensor(1.0 if scale is None else scale, device="cpu")
        if not bool(((units > 0) & units.isfinite()).all()):
            raise ValueError(
                f"Measurement: scale must be positive and finite, got {shown(scale)}; give the "
                "size of an error that counts as much as one of 1 in a video in [-1, 1]"
            )
        self.y = y
        self.operator = operator
        self.weight = checked_weight("Measurement", weight)
        self.scale = scale
        self.num_videos = len(y) if len(y) > 1 else None

    # in inference mode too, its tensors must let a gradient pass
    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(self, diffusion: GaussianDiffusion, shape: tuple[int, ...]) -> Measurement:
        """See `Guidance.prepare`."""
        y = self.y.to(diffusion.betas, copy=True)
        if not y.isfinite().all():
            raise ValueError(
                "Measurement: y must be finite, got NaN or infinity; let the operator leave out "
                "what was not measured"
            )
        ready = copy.copy(self)
        ready.y, ready._unit = y, self._unit_of(y, diffusion)
        ready._to_data_range = diffusion.to_data_range
        return ready

    def _unit_of(self, y: Tensor, diffusion: GaussianDiffusion) -> Tensor:
        """What to divide errors by, in the shape of `y`."""
        if self.scale is not None:
            return torch.as_tensor(self.scale, device="cpu").to(y, copy=True).expand(y.shape)
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

    def rows(self, rows: slice) -> Measurement:
        """See `Guidance.rows`."""
        part = copy.copy(self)
        part.y, part._unit = rows_of(self.y, rows), rows_of(self._unit, rows)
        return part

    def squared_error(self, x_start: Tensor) -> Tensor:
        """Sum of the squared errors of the measurement; see `Guidance.squared_error`."""
        measured = self.operator(self._to_data_range(x_start))
        expected = (len(x_start), *self.y.shape[1:])
        is_tensor = torch.is_tensor(measured)
        if not is_tensor or tuple(measured.shape) != expected or measured.is_complex():
            got = type(measured).__name__
            if is_tensor:
                got = f"{measured.dtype} of shape {tuple(measured.shape)}"
            raise ValueError(
                "Measurement: operator must give what y is, real numbers of the shape "
                f"{expected}, got {got} for videos of {tuple(x_start.shape)}; change it, or y"
            )
        error = (self.y - measured) / self._unit
        return self.weight * error.square().reshape(len(x_start), -1).sum(dim=1)


def expand_mask(name: str, mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask with an axis for each of the videos', of the same length or 1.

    Args:
        name: The argument, for the error.
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
    """Raises a ValueError unless it is a boolean tensor."""
    if not torch.is_tensor(mask) or mask.dtype != torch.bool:
        got = mask.dtype if torch.is_tensor(mask) else type(mask).__name__
        raise ValueError(
            f"{name} must be a boolean tensor, true where the video is known, got {got}; compare "
            "it, as in mask > 0.5"
        )


def checked_weight(name: str, weight: float) -> float:
    """A weight w_r as a float; raises a ValueError unless it is from 0 to below infinity."""
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"{name}: weight must be a number, 0 or greater, got {weight}; 0 is without "
            f"correction, {RECONSTRUCTION_WEIGHT:g} is common"
        )
    return float(weight)


def rows_of(value: Tensor, rows: slice) -> Tensor:
    """The rows of some videos; a single row holds for all of them."""
    return value if len(value) == 1 else value[rows]


def as_guidance(guidance: Any) -> tuple[Guidance, ...]:
    """One `Guidance` object, or several, as a tuple; raises a TypeError for anything else."""
    several = guidance if isinstance(guidance, (list, tuple)) else (guidance,)
    for one in several:
        if not isinstance(one, Guidance):
            raise TypeError(
                "sample: guidance must be a Guidance, such as KnownRegion or Measurement, or "
                f"several of them, got {shown(one)}; make one of it, or leave it out"
            )
    return tuple(several)


def count_videos(
    conditions: Mapping[str, Tensor], guidance: Sequence[Guidance], default: int
) -> int:
    """How many videos conditions and guidance are for; `default` if for any number.

    Raises:
        ValueError: If they differ, or are 0.
    """
    counts = [(name, len(value)) for name, value in conditions.items()]
    counts += [(type(one).__name__, one.num_videos) for one in guidance if one.num_videos]
    different = {count for _, count in counts}
    if len(different) > 1 or 0 in different:
        raise ValueError(
            "sample: all conditions and guidance must have one row per video, got "
            f"{', '.join(f'{count} of {name}' for name, count in counts)}; give as many of each"
        )
    return counts[0][1] if counts else default


@dataclass(frozen=True)
class Denoiser:
    """The denoiser as samplers call it: noisy videos and their noise level in, a prediction out.

    Attributes:
        predict_x_start: The network with its conditions: maps noisy videos `(b, c, f, h, w)` and
            their noise level to clean videos.
        clamp: Brings predicted clean videos into their range; None to leave them as they are.
        guidance: Knowledge about the videos, prepared for this batch.
        noise: Draws the noise of known parts.
        network: The network, or several as one module, whose weights need no gradient while
            guidance takes that of its input.
    """

    predict_x_start: Callable[[Tensor, NoiseLevel], Tensor]
    clamp: Callable[[Tensor], Tensor] | None
    guidance: Sequence[Guidance]
    noise: Noise
    network: nn.Module

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Prediction:
        """Predicts the clean videos in `x_t`, and the noise that follows from them.

        Args:
            x_t: Noisy videos, `(b, c, f, h, w)`.
            level: Their noise level.

        Raises:
            ValueError: If a `squared_error` is not one number per video, or has no gradient.
        """
        for part in self.guidance:
            x_t = part.replace(x_t, level, self.noise)
            level = part.frame_levels(level)
        weighted = [part for part in self.guidance if part.weight]
        if weighted:
            x_start = self._reconstructed(x_t, level, weighted)
        else:
            x_start = self.predict_x_start(x_t, level)
        if self.clamp is not None:
            x_start = self.clamp(x_start)
        x_start = self.settle(x_start)
        alpha, sigma = signal_and_noise(level, x_t)
        return Prediction(x_start, (x_t - alpha * x_start) / sigma, x_t)

    def settle(self, x_start: Tensor) -> Tensor:
        """Inserts known values into clean videos."""
        for part in self.guidance:
            x_start = part.settle(x_start)
        return x_start

    def _reconstructed(
        self, x_t: Tensor, level: NoiseLevel, guidance: Sequence[Guidance]
    ) -> Tensor:
        """Reconstruction guidance (Ho et al. 2022, eq. 7 and 8).

        The squared error is that of the clamped prediction, but its gradient ignores the clamp: at
        the highest noise levels, where the prediction is far outside its range and means nothing,
        the correction stays small, but does not vanish.
        """
        # the caller may be in inference mode, whose tensors have no gradient: copy them outside it
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            # saves the memory of the weights' gradients
            switched_off(self.network.parameters(), "requires_grad"),
        ):
            z = x_t.detach().clone().requires_grad_()
            x_start = self.predict_x_start(z, level)
            if self.clamp is not None:
                x_start = x_start + (self.clamp(x_start) - x_start).detach()
            error = torch.stack([_error_of(part, x_start).sum() for part in guidance]).sum()
            (gradient,) = torch.autograd.grad(error, z)
        alpha, _ = signal_and_noise(level, x_t)
        return x_start.detach() - alpha / 2 * gradient


def _error_of(part: Guidance, x_start: Tensor) -> Tensor:
    """The checked result of `part.squared_error`, which may be a user's own."""
    error = part.squared_error(x_start)
    is_right = torch.is_tensor(error) and error.shape == x_start.shape[:1]
    if not is_right or not error.is_floating_point() or not error.requires_grad:
        raise ValueError(
            f"{type(part).__name__}: squared_error must give one differentiable real number per "
            f"video, shape {tuple(x_start.shape[:1])}, got {shown(error)}; sum over all axes but "
            "the first, and compute it, and the network's output, without detach or no_grad"
        )
    return error


def as_noise_size(name: str, noise: float) -> float:
    """A size `sigma / alpha` of noise as a float; raises a ValueError unless it is 0 or more."""
    if not 0 <= noise < math.inf:
        raise ValueError(
            f"{name} must be sigma / alpha, a number of at least 0, got {noise}; 0 is the least "
            "noise that the model knows, 0.05 a little"
        )
    return float(noise)


def signal_and_noise(level: NoiseLevel, x: Tensor) -> tuple[Any, Any]:
    """Alpha and sigma of videos `x`: numbers, or by frame, `(1, 1, f, 1, 1)`."""
    if level.frames is None:
        return level.alpha, level.sigma
    both = [(one.alpha, one.sigma) for one in level.frames]
    alpha, sigma = x.new_tensor(both).view(1, 1, -1, 1, 1, 2).unbind(-1)
    return alpha, sigma


def times(level: NoiseLevel, x: Tensor) -> Tensor:
    """The time step of a noise level, once for each video `(b,)`; long if it is a whole one.

    Where frames have noise levels of their own it is one for each frame, `(b, f)`.
    """
    if level.frames is not None:
        steps = [one.t for one in level.frames]
        is_whole = all(float(step).is_integer() for step in steps)
        dtype = torch.long if is_whole else x.dtype
        return torch.tensor(steps, dtype=dtype, device=x.device).expand(len(x), -1)
    dtype = torch.long if float(level.t).is_integer() else x.dtype
    return torch.full(x.shape[:1], level.t, device=x.device, dtype=dtype)


@contextmanager
def switched_off(owners: Iterable[Any], flag: str) -> Iterator[None]:
    """Sets a flag of modules or weights to False, and restores it afterwards."""
    switched = [owner for owner in owners if getattr(owner, flag)]
    for owner in switched:
        setattr(owner, flag, False)
    try:
        yield
    finally:
        for owner in switched:
            setattr(owner, flag, True)
