"""The engine behind all completion of videos: it draws the unknown part, a window at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.diffusion.guidance import (
    Guidance,
    KnownRegion,
    check_videos,
    checked_weight,
)
from video_diffusion_pytorch.diffusion.measurement import Measurement
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.sampling import Sampling
from video_diffusion_pytorch.diffusion.windows import Window, windows

# arguments of sample() that follow from the videos
_OWN = ("batch_size", "num_frames", "first_frames")
_CONDITIONS = ("cond", "labels", "frame_cond", "cond_video", "null_cond_mask")


@dataclass(frozen=True)
class LowResolution:
    """Small videos of what is drawn, with some of its frames.

    Attributes:
        video: `(b, c, ceil(f / frame_factor), h', w')`, for a result of `f` frames.
        frame_factor: It has every `frame_factor`-th frame of the result, from the first on.
        weight: The weight w_r of each of its pixels.
    """

    video: Tensor
    frame_factor: int
    weight: float

    def measurement(self, window: Window) -> Measurement | None:
        """What it tells of a window; None if nothing."""
        step = self.frame_factor
        first, end = (-(-frame // step) for frame in (window.start, window.stop))
        if first == end:
            return None
        h, w = self.video.shape[3:]
        operator = partial(shrink, size=(h, w), first=first * step - window.start, step=step)
        return Measurement(self.video[:, :, first:end], operator, self.weight)


def shrink(videos: Tensor, size: tuple[int, int], first: int = 0, step: int = 1) -> Tensor:
    """Every `step`-th frame from `first` on, bilinearly resized without aliasing.

    Args:
        videos: `(b, c, f, h, w)`.
        size: `(h', w')`.
        first: The first frame to take.
        step: How many frames to go on by.

    Example:
        >>> shrink(torch.rand(1, 3, 7, 8, 8), size=(4, 4), step=2).shape
        torch.Size([1, 3, 4, 4, 4])
    """
    chosen = videos[:, :, first::step]
    frames = rearrange(chosen, "b c f h w -> (b f) c h w")
    small = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return rearrange(small, "(b f) c h w -> b c f h w", b=len(videos))


class Filling(Sampling):
    """The part of `GaussianDiffusion` that fills up videos of any length."""

    @torch.no_grad()
    def _fill(
        self,
        call: str,
        video: Tensor,
        known: Tensor,
        sampling: Mapping[str, Any],
        *,
        overlap: int | None,
        weight: float,
        low: LowResolution | None = None,
    ) -> Tensor:
        """Draws what is not known, in place.

        Args:
            call: The method, for messages.
            video: `(b, c, f, h, w)`, from `_as_result`.
            known: Boolean, an axis for each of the video's, that of frames in full, others full
                or 1; true where the video is known.
            sampling: Keywords of `sample`.
            overlap: Frames of a window that are known from before it; None for half of them.
            weight: Weight of what is known.
            low: Small videos of the result; None for none.
        """
        overlap = self._checked_overlap(call, overlap, video.shape[2])
        told = known.amax(dim=(0, 1, 3, 4)).tolist()
        if low is not None:
            if len(low.video) != len(video):
                raise ValueError(
                    f"{call}: low_resolution must have one row per video, {len(video)}, got "
                    f"{len(low.video)}; give the low resolution of each"
                )
            told = [frame % low.frame_factor == 0 or has for frame, has in enumerate(told)]
        plan = windows(known.amin(dim=(0, 1, 3, 4)).tolist(), told, self.num_frames, overlap)
        self._check_given_frames_of(call, plan)
        options, conditions = self._ready_for_all(call, sampling, video)
        own = options.pop("guidance", ())
        own = (own,) if isinstance(own, Guidance) else tuple(own)
        for window in plan:
            frames, kept = slice(window.start, window.stop), slice(window.start, window.keep)
            guidance = list(own)
            if known[:, :, frames].any():
                guidance.append(KnownRegion(video[:, :, frames], known[:, :, frames], weight))
            if low is not None and (measured := low.measurement(window)) is not None:
                guidance.append(measured)
            if self.given_frames:
                first = slice(window.start, window.start + self.given_frames)
                options["first_frames"] = video[:, :, first]
            drawn = self.sample(
                batch_size=len(video),
                num_frames=window.stop - window.start,
                guidance=guidance,
                **{name: _cut(name, value, frames) for name, value in conditions.items()},
                **options,
            )[:, :, : window.keep - window.start]
            video[:, :, kept] = torch.where(known[:, :, kept], video[:, :, kept], drawn)
            known[:, :, kept] = True
        return video

    # what is given

    def _as_result(
        self, name: str, video: Any, image_size: int | tuple[int, int] | None, resize: bool = False
    ) -> Tensor:
        """Given videos in the units, the number type and at the place of `sample`'s results.

        Args:
            name: What they are, for messages.
            video: `(b, c, f, h, w)`.
            image_size: As in `sample`.
            resize: Whether they may be smaller than the result.

        Raises:
            TypeError: If they are no such tensor.
            ValueError: If they don't fit the model.
        """
        check_videos(name, video)
        _, _, height, width = self._shape_of_sample(None, image_size)
        h, w = video.shape[3:]
        is_fit = 0 < h <= height and 0 < w <= width if resize else (h, w) == (height, width)
        if video.shape[1] != self.channels or not is_fit or 0 in video.shape:
            size = f"h, w) with h <= {height} and w <= {width}" if resize else f"{height}, {width})"
            raise ValueError(
                f"{name} must have the shape (b, {self.channels}, f, {size}, got "
                f"{tuple(video.shape)}; cut or resize it, or pass another image_size"
            )
        is_bytes = video.dtype == torch.uint8 and self.value_low is None
        video = video.detach().to(self.betas)
        return video / 255 if is_bytes else video

    def _low(
        self,
        name: str,
        video: Any,
        frame_factor: int,
        num_frames: int,
        weight: float,
        sampling: dict[str, Any],
    ) -> LowResolution:
        """A small video of a whole result of `num_frames` frames.

        Differs from Ho et al. 2022, eq. 8: its weight is `weight` times the number of pixels that
        one of its own is made of. Their equation takes the measured part given the noisy video for
        as uncertain as a pixel; the mean of n pixels is n times less so.
        """
        if frame_factor < 1:
            raise ValueError(
                f"{name}: frame_factor must be at least 1, got {frame_factor}; with 1 it has all "
                "frames of the result"
            )
        video = self._as_result(name, video, sampling.get("image_size"), resize=True)
        frames = (num_frames - 1) // frame_factor + 1
        if video.shape[2] != frames:
            raise ValueError(
                f"{name} must have every {frame_factor}-th of the {num_frames} frames of the "
                f"result, which are {frames}, got {video.shape[2]}; give as many, or another "
                "frame_factor"
            )
        if not checked_weight(name, weight):
            raise ValueError(
                f"{name} guides by weight, which must be above 0, got {weight}; without it this "
                "video would not be looked at"
            )
        # a small pixel is the mean of several, and so much less noisy than one
        _, _, h, w = self._shape_of_sample(None, sampling.get("image_size"))
        pixels = h * w / (video.shape[3] * video.shape[4])
        return LowResolution(video, frame_factor, weight * pixels)

    def _checked_overlap(self, call: str, overlap: int | None, num_frames: int) -> int:
        length = self.num_frames
        if overlap is None and num_frames <= length:
            return 0
        overlap = length // 2 if overlap is None else overlap
        if not 1 <= overlap < length:
            raise ValueError(
                f"{call}: overlap must be from 1 to {length - 1}, one less than the frames of the "
                f"model's clips, got {overlap}; leave it out for half of them"
            )
        return overlap

    def _check_given_frames_of(self, call: str, plan: Sequence[Window]) -> None:
        """Raises a ValueError unless all windows begin with the frames that the network is told."""
        for window in plan:
            if window.ready < self.given_frames:
                raise ValueError(
                    f"{call}: each window must begin with the {self.given_frames} known frames "
                    f"that a model with given_frames is told, got {window.ready} at frame "
                    f"{window.start}; give more frames at the beginning, or a greater overlap"
                )

    def _ready_for_all(
        self, call: str, sampling: Mapping[str, Any], video: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of `sample` for all windows alike, and conditions to be cut for each.

        Captions are encoded here, and the streams of random numbers begun, once for all windows.
        """
        options = dict(sampling)
        if taken := [name for name in _OWN if name in options]:
            raise TypeError(
                f"{call}: {', '.join(taken)} must be left out, since the given video tells it, got "
                f"{options[taken[0]]!r}; pass the video only"
            )
        given = {name: options.pop(name) for name in _CONDITIONS if name in options}
        conditions: dict[str, Any] = self._ready(**given)
        for name, value in conditions.items():
            if len(value) != len(video):
                raise ValueError(
                    f"{call}: conditions must have one row per video, {len(video)}, got "
                    f"{len(value)} of {name}; give as many"
                )
        scale = options.get("cond_scale", 1.0)
        negative = self._ready_negative(options.pop("negative_cond", None), scale, len(video))
        for name, value in (*conditions.items(), *negative.items()):
            _check_frames(call, name, value, video.shape[2])
        if negative:
            conditions["negative_cond"] = negative
        streams = make_streams(
            options.pop("seed", None), options.pop("generator", None), len(video), video.device
        )
        if isinstance(streams, RandomStreams):
            options["generator"] = streams.generators
        return options, conditions


def _frame_axis(name: str, value: Tensor) -> int | None:
    """Which axis of a condition is that of frames; None if it has none."""
    if name == "frame_cond":
        return 1
    return 2 if name == "cond_video" and value.ndim == 5 else None


def _check_frames(call: str, name: str, value: Tensor, num_frames: int) -> None:
    axis = _frame_axis(name, value)
    if axis is not None and value.shape[axis : axis + 1] != (num_frames,):
        raise ValueError(
            f"{call}: {name} must have all {num_frames} frames of the result on axis {axis}, got "
            f"{tuple(value.shape)}; give it for the whole result, it is cut for each window"
        )


def _cut(name: str, value: Any, frames: slice) -> Any:
    """The part of a condition that is about some frames."""
    if isinstance(value, Mapping):
        return {inner: _cut(inner, one, frames) for inner, one in value.items()}
    axis = _frame_axis(name, value)
    return value if axis is None else value[(slice(None),) * axis + (frames,)]
