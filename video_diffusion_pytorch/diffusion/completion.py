"""Completion of videos, window by window: extension, interpolation, upsampling, inpainting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.conditions import CONDITIONS, frames_of, given
from video_diffusion_pytorch.diffusion.guidance import (
    RECONSTRUCTION_WEIGHT,
    KnownFrames,
    KnownRegion,
    Measurement,
    as_guidance,
    as_noise_size,
    check_mask,
    checked_weight,
    expand_mask,
)
from video_diffusion_pytorch.diffusion.guided_prediction import open_guide
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.value_range import check_videos

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion


# Arguments of `sample` that each window gets from the video
_OF_THE_VIDEO = ("first_frames", "batch_size", "num_frames")


@dataclass(frozen=True)
class Window:
    """Frames that are drawn together.

    Attributes:
        start: The first frame.
        stop: The frame after the last.
        ready: How many frames at its beginning are known already, or drawn by windows before it.
        keep: The frame after the last that is kept; the next window draws those from here on
            again, since it sees more of their surroundings.
    """

    start: int
    stop: int
    ready: int
    keep: int


def windows(
    known: Sequence[bool], partly: Sequence[bool], length: int, overlap: int
) -> list[Window]:
    """Windows that together draw all frames that are not known, from the first to the last.

    Args:
        known: For each frame, whether it is known; such frames are drawn only along with others.
        partly: For each frame, whether anything is known of it, if only its low resolution.
        length: Frames of a window.
        overlap: Known or drawn frames at the beginning of each window; more if the last window
            would otherwise not be full.

    Example:
        Two known frames become seven, in windows of four:

        >>> known = [True, True, False, False, False, False, False]
        >>> for window in windows(known, known, length=4, overlap=2):
        ...     print(window)
        Window(start=0, stop=4, ready=2, keep=4)
        Window(start=2, stop=6, ready=2, keep=6)
        Window(start=3, stop=7, ready=3, keep=7)
    """
    found = []
    done = _first_unknown(known, 0)
    while done < len(known):
        start = max(0, min(done - overlap, len(known) - length))
        stop = min(start + length, len(known))
        keep = _last_to_keep(partly, done, stop, reach=length - overlap)
        found.append(Window(start, stop, done - start, keep))
        done = _first_unknown(known, keep)
    return found


def _first_unknown(known: Sequence[bool], start: int) -> int:
    return next((i for i in range(start, len(known)) if not known[i]), len(known))


def _last_to_keep(partly: Sequence[bool], done: int, stop: int, reach: int) -> int:
    """Where to end, so that frames between two partly known ones are drawn by a window with both.

    Args:
        partly: As in `windows`.
        done: The first frame that is not there yet.
        stop: Where the window ends.
        reach: How many frames after its overlap a window has.
    """
    before = [i for i in range(done, stop) if partly[i]]
    after = next((i for i in range(stop, len(partly)) if partly[i]), None)
    if not before or after is None:
        return stop
    keep = before[-1] + 1
    # only if the next window gets that far
    return keep if after < keep + reach else stop


@dataclass(frozen=True)
class LowResolution:
    """Small videos of the result, with some of its frames.

    Attributes:
        video: `(b, c, ceil(f / frame_factor), h', w')`, for a result of `f` frames.
        frame_factor: It has every `frame_factor`-th frame of the result, from the first on.
        weight: The weight w_r of each of its pixels.
    """

    video: Tensor
    frame_factor: int
    weight: float

    def measurement(self, window: Window) -> Measurement | None:
        """The measurement for a window; None if it has no frame in it."""
        step = self.frame_factor
        first, end = (-(-frame // step) for frame in (window.start, window.stop))
        if first == end:
            return None
        h, w = self.video.shape[3:]
        shrunk = partial(shrink, size=(h, w), first=first * step - window.start, step=step)
        return Measurement(self.video[:, :, first:end], shrunk, self.weight)


def shrink(videos: Tensor, size: tuple[int, int], first: int = 0, step: int = 1) -> Tensor:
    """Every `step`-th frame from `first` on, bilinearly resized without aliasing.

    Args:
        videos: `(b, c, f, h, w)`.
        size: `(h', w')`.
        first: The first frame to take.
        step: Distance of the frames.

    Example:
        >>> shrink(torch.rand(1, 3, 7, 8, 8), size=(4, 4), step=2).shape
        torch.Size([1, 3, 4, 4, 4])
    """
    chosen = videos[:, :, first::step]
    frames = rearrange(chosen, "b c f h w -> (b f) c h w")
    small = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return rearrange(small, "(b f) c h w -> b c f h w", b=len(videos))


@dataclass(frozen=True)
class Completion:
    """A call that completes videos: the model and the options.

    Its methods take the arguments of those of `GaussianDiffusion` with the same name.

    Attributes:
        diffusion: The model.
        call: The method that was called, for errors.
        weight: Weight w_r of what is known, 0 or greater; None for `RECONSTRUCTION_WEIGHT`, or, for
            frames that a model with `frame_noise` is given, none.
        sampling: Keywords of `sample`.
        overlap: Frames of a window that are known from before it; None for half of them.
        given_noise: Noise of frames that a model with `frame_noise` is given, as `sigma / alpha`.
    """

    diffusion: GaussianDiffusion
    call: str
    weight: float | None
    sampling: Mapping[str, Any]
    overlap: int | None = None
    given_noise: float = 0.0

    def extend(
        self,
        video: Any,
        num_frames: int,
        *,
        name: str = "video",
        low_resolution: Any = None,
        frame_factor: int = 1,
    ) -> Tensor:
        """Continues `video`, the argument `name`."""
        video, num_frames = self.longer(name, video, num_frames)
        k, low = video.shape[2], None
        if low_resolution is not None:
            low = self._low("low_resolution", low_resolution, frame_factor, num_frames)
        elif frame_factor != 1:
            raise ValueError(
                f"{self.call}: frame_factor is that of low_resolution, which must be given"
            )
        whole = F.pad(video, (0, 0, 0, 0, 0, num_frames - k))
        return self._fill(whole, torch.arange(num_frames, device=video.device) < k, low)

    def longer(self, name: str, video: Any, num_frames: int) -> tuple[Tensor, int]:
        """A video in the units of the result, and the frames of that, which must be more."""
        self._checked_weight()
        video = self._as_result(name, video)
        k, num_frames = video.shape[2], as_count(num_frames, f"{self.call}: num_frames")
        if num_frames <= k:
            raise ValueError(
                f"{self.call}: num_frames must be more than the {k} given, got {num_frames}"
            )
        self._check_finite(video)
        return video, num_frames

    def _check_finite(self, *known: Tensor) -> None:
        if not all(one.isfinite().all() for one in known):
            raise ValueError(
                f"{self.call}: known values must be finite, got NaN or infinity; let inpaint draw "
                "what is lost, with a mask that is false there"
            )

    def interpolate_frames(self, video: Any, factor: int) -> Tensor:
        """Draws frames between those of `video`."""
        video = self._as_result("video", video)
        factor = as_count(factor, f"{self.call}: factor")
        length = self.diffusion.num_frames
        if not 2 <= factor < length or video.shape[2] < 2:
            raise ValueError(
                f"{self.call}: factor must be from 2 to {length - 1}, so that a clip of the model "
                f"has two given frames, and video have at least 2 frames, got {factor} and "
                f"{video.shape[2]}; interpolate twice, or with a model of longer clips"
            )
        num_frames = (video.shape[2] - 1) * factor + 1
        whole = video.new_zeros(*video.shape[:2], num_frames, *video.shape[3:])
        whole[:, :, ::factor] = video
        overlap = self.overlap
        if overlap is None:
            # reaches the given frames on both sides of those that are drawn
            overlap = min(length // 2, length - factor)
        return replace(self, overlap=overlap)._fill(
            whole, torch.arange(num_frames, device=video.device) % factor == 0
        )

    def upsample(self, video: Any, frame_factor: int) -> Tensor:
        """Draws `video` at a higher resolution."""
        check_videos(f"{self.call}: video", video)
        frame_factor = as_count(frame_factor, f"{self.call}: frame_factor")
        num_frames = (video.shape[2] - 1) * frame_factor + 1
        low = self._low("video", video, frame_factor, num_frames)
        b, c, f, *small = low.video.shape
        size = list(self._size())
        if small == size and f == num_frames:
            raise ValueError(
                f"{self.call}: video must be smaller than the result, {size[0]} x {size[1]}, or "
                "have fewer frames, got as many of both; give a greater image_size or frame_factor"
            )
        whole = low.video.new_zeros(b, c, num_frames, *size)
        return self._fill(
            whole, torch.zeros(num_frames, dtype=torch.bool, device=low.video.device), low
        )

    def inpaint(self, video: Any, mask: Any) -> Tensor:
        """Draws the part of `video` where `mask` is false."""
        video = self._as_result("video", video)
        check_mask(f"{self.call}: mask", mask)
        known = expand_mask(f"{self.call}: mask", mask.to(video.device), video.shape)
        known = known.expand(-1, -1, video.shape[2], -1, -1).clone()
        return self._fill(torch.where(known, video, 0.0), known)

    @torch.no_grad()
    def _fill(self, video: Tensor, known: Tensor, low: LowResolution | None = None) -> Tensor:
        """Draws what is not known, in place.

        Args:
            video: `(b, c, f, h, w)`, from `_as_result`.
            known: Boolean, true where the video is known: by frame, `(f,)`, or with an axis for
                each of the video's, that of frames in full, the others in full or 1.
            low: Small videos of the result; None for none.

        Raises:
            ValueError: If something does not fit the videos, or values that are known or that the
                next window needs are not finite.
        """
        diffusion, weight = self.diffusion, self._checked_weight()
        if taken := [name for name in _OF_THE_VIDEO if name in self.sampling]:
            raise ValueError(
                f"{self.call}: {taken[0]} must be that of the given video, from which it is taken; "
                "leave it out"
            )
        if known.ndim == 1:
            known = known.view(1, 1, -1, 1, 1).to(video.device)
        self._check_finite(video, *(() if low is None else (low.video,)))
        plan = self._plan(known, 0 if low is None else low.frame_factor)
        options, conditions, negative = self.prepare_for_all(video)
        own = as_guidance(options.pop("guidance", ()))
        counts = [one.num_videos or 1 for one in own] + ([] if low is None else [len(low.video)])
        if wrong := [count for count in counts if count not in (1, len(video))]:
            raise ValueError(
                f"{self.call}: guidance and low_resolution must have one row per video, "
                f"{len(video)}, or one for all, got {wrong[0]}"
            )
        has_bar = len(plan) > 1 and options.get("progress", True)
        for window in tqdm(plan, "windows", disable=not has_bar):
            frames, kept = slice(window.start, window.stop), slice(window.start, window.keep)
            guidance = list(own)
            if known[:, :, frames].any():
                guidance.append(self._known(video[:, :, frames], known[:, :, frames], weight))
            if low is not None and (measured := low.measurement(window)) is not None:
                guidance.append(measured)
            first_frames = video[:, :, window.start : window.start + diffusion.given_frames]
            of_window: dict[str, Any] = {
                "first_frames": first_frames if diffusion.given_frames else None,
                "negative_cond": _cut(negative, frames) or None,
                **_cut(conditions, frames),
            }
            drawn = diffusion.sample(
                batch_size=len(video),
                num_frames=window.stop - window.start,
                guidance=guidance,
                **given(of_window),
                **options,
            )[:, :, : window.keep - window.start]
            video[:, :, kept] = torch.where(known[:, :, kept], video[:, :, kept], drawn)
            known[:, :, kept] = True
        return video

    def _checked_weight(self) -> float:
        """The weight w_r of what is known.

        Raises:
            ValueError: If it is out of range, or goes together with `given_noise`, or that with
                a model that has no use for it.
        """
        noise = as_noise_size(f"{self.call}: given_noise", self.given_noise)
        if noise and (self.diffusion.frame_noise is None or self.weight is not None):
            raise ValueError(
                f"{self.call}: given_noise needs a model trained with frame_noise and no weight, "
                f"got {noise:g}; leave it out"
            )
        return checked_weight(
            self.call, RECONSTRUCTION_WEIGHT if self.weight is None else self.weight
        )

    def _known(self, video: Tensor, known: Tensor, weight: float) -> KnownRegion:
        """What is known of a window: as frames of their own noise level, or as a region."""
        is_by_frame = known.numel() == known.shape[2]
        if self.diffusion.frame_noise is None or self.weight is not None or not is_by_frame:
            return KnownRegion(video, known, weight)
        return KnownFrames(video, known.flatten(), self.given_noise)

    def _plan(self, known: Tensor, frame_factor: int) -> list[Window]:
        """The windows for a mask with five axes; a low resolution has every so many frames.

        Raises:
            ValueError: If the overlap leaves no frame to draw, or none before it, or a window lacks
                frames that the network needs.
        """
        num_frames, length = known.shape[2], self.diffusion.num_frames
        overlap = length // 2
        if self.overlap is not None:
            overlap = as_count(self.overlap, f"{self.call}: overlap")
        if self.overlap is None and num_frames <= length:
            # a single window
            overlap = 0
        elif not 1 <= overlap < length:
            raise ValueError(
                f"{self.call}: overlap must be from 1 to {length - 1}, one less than the frames of "
                f"the model's clips, got {overlap}; leave it out for half of them"
            )
        partly = known.amax(dim=(0, 1, 3, 4)).tolist()
        if frame_factor:
            partly = [frame % frame_factor == 0 or has for frame, has in enumerate(partly)]
        plan = windows(known.amin(dim=(0, 1, 3, 4)).tolist(), partly, length, overlap)
        needed = self.diffusion.given_frames
        for window in plan:
            if window.ready < needed:
                raise ValueError(
                    f"{self.call}: each window must begin with the {needed} known frames that a "
                    f"model with given_frames needs, got {window.ready} at frame {window.start}; "
                    "give more frames at the beginning, or a greater overlap"
                )
        return plan

    def prepare_for_all(
        self, video: Tensor
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        """Keywords of `sample` for all windows, and conditions to be cut for each.

        Captions are encoded, a guide loaded and random streams started here, once for all windows.
        """
        options, count = dict(self.sampling), len(video)
        own = {name: options.pop(name) for name in CONDITIONS if name in options}
        conditions = self.diffusion.prepare_conditions(own)
        scale, negative_cond = options.get("cond_scale", 1.0), options.pop("negative_cond", None)
        negative = self.diffusion.prepare_negative(negative_cond, scale, count)
        for name, value in (*conditions.items(), *negative.items()):
            kind, num_frames = CONDITIONS[name], video.shape[2]
            sizes = dict(zip(kind.axes, value.shape, strict=False))
            has_frames = value.ndim == len(kind.axes)
            if len(value) != count or (has_frames and sizes.get("f", num_frames) != num_frames):
                raise ValueError(
                    f"{self.call}: {name} must have one row per video, {count}, and, if it has "
                    f"frames, all {num_frames} of the result, which are cut for each window, got "
                    f"{tuple(value.shape)}"
                )
        options |= given({"guide": open_guide(self.diffusion, options.pop("guide", None))})
        seed, generator = options.pop("seed", None), options.pop("generator", None)
        streams = make_streams(seed, generator, count, video.device)
        if isinstance(streams, RandomStreams):
            options["generator"] = streams.generators
        return options, conditions, negative

    def _size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.diffusion.sample_shape(None, self.sampling.get("image_size"))[2:]

    def _as_result(self, name: str, video: Any) -> Tensor:
        """Checks given videos, and converts them to the units, dtype and device of the result."""
        shape = ("b", self.diffusion.channels, "f", *self._size())
        check_videos(f"{self.call}: {name}", video, shape)
        return self._in_units(video)

    def _in_units(self, video: Tensor) -> Tensor:
        is_bytes = video.dtype == torch.uint8 and not self.diffusion.has_units
        video = video.detach().to(self.diffusion.betas)
        return video / 255 if is_bytes else video

    def _low(self, name: str, video: Any, frame_factor: int, num_frames: int) -> LowResolution:
        """A small video of a whole result of `num_frames` frames.

        Differs from Ho et al. 2022, eq. 8: its weight is `weight` times the number of pixels that
        each of its own is made of. Their equation takes the measured part, given the noisy video,
        to be as uncertain as a pixel; the mean of n pixels is n times less so.
        """
        name = f"{self.call}: {name}"
        frame_factor = as_count(frame_factor, f"{self.call}: frame_factor")
        weight = self._checked_weight()
        if not weight:
            raise ValueError(f"{name} needs a weight above 0, by which it guides, got 0")
        frames = (num_frames - 1) // frame_factor + 1
        check_videos(name, video, ("b", self.diffusion.channels, frames, "h", "w"))
        (height, width), (h, w) = self._size(), video.shape[3:]
        if h > height or w > width:
            raise ValueError(
                f"{name} must be at most {height} x {width}, got {h} x {w}; shrink it, or pass "
                "another image_size"
            )
        # a small pixel is the mean of several, and that much less noisy than one
        return LowResolution(
            self._in_units(video), frame_factor, weight * (height * width / (h * w))
        )


def _cut(conditions: Mapping[str, Tensor], frames: slice) -> dict[str, Tensor]:
    """The conditions of some frames."""
    return {name: frames_of(name, value, frames) for name, value in conditions.items()}
