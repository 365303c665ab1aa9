"""The engine behind all completion of videos: it draws the unknown part, a window at a time."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.diffusion.guidance import (
    KnownRegion,
    check_videos,
    checked_weight,
)
from video_diffusion_pytorch.diffusion.measurement import Measurement
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.sampling import Sampling
from video_diffusion_pytorch.diffusion.sampling_batch import as_guidance
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.windows import (
    Window,
    check_beginnings,
    check_condition_frames,
    checked_overlap,
    cut_condition,
    whole_frames,
    windows,
)

# arguments of sample() that follow from the videos
_OWN = ("batch_size", "num_frames", "first_frames")
_CONDITIONS = ("cond", "labels", "frame_cond", "cond_video", "null_cond_mask", "cond_mask")


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

        Raises:
            TypeError: If a keyword is unknown, or the videos tell it.
            ValueError: If something does not fit the videos, or known values are not finite.
            RuntimeError: If frames to go on from, which the model has drawn, are not finite.
        """
        self._check_keywords(call, sampling)
        weight = checked_weight(call, weight)
        overlap = checked_overlap(call, overlap, video.shape[2], self.num_frames)
        _check_finite(f"{call}: known values", video)
        partly = known.amax(dim=(0, 1, 3, 4)).tolist()
        if low is not None:
            if len(low.video) != len(video):
                raise ValueError(
                    f"{call}: low_resolution must have one row per video, {len(video)}, got "
                    f"{len(low.video)}; give the low resolution of each"
                )
            partly = [frame % low.frame_factor == 0 or has for frame, has in enumerate(partly)]
        plan = windows(known.amin(dim=(0, 1, 3, 4)).tolist(), partly, self.num_frames, overlap)
        check_beginnings(call, plan, self.given_frames)
        options, conditions = self._ready_for_all(call, sampling, video)
        own = as_guidance(options.pop("guidance", ()))
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
                **{name: cut_condition(name, value, frames) for name, value in conditions.items()},
                **options,
            )[:, :, : window.keep - window.start]
            if window is not plan[-1] and not drawn.isfinite().all():
                raise RuntimeError(
                    f"{call}: frames to go on from must be finite, got NaN or infinity that the "
                    f"model has drawn from frame {window.start} on; the model has diverged, take "
                    "earlier weights of it, or a smaller weight of the guidance"
                )
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
        call: str,
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
        frame_factor = whole_frames(f"{call}: frame_factor", frame_factor)
        if frame_factor < 1:
            raise ValueError(
                f"{call}: frame_factor must be at least 1, got {frame_factor}; with 1 it has all "
                "frames of the result"
            )
        name = f"{call}: {name}"
        video = self._as_result(name, video, sampling.get("image_size"), resize=True)
        _check_finite(name, video)
        frames = (num_frames - 1) // frame_factor + 1
        if video.shape[2] != frames:
            raise ValueError(
                f"{name} must have every {frame_factor}-th of the {num_frames} frames of the "
                f"result, which are {frames}, got {video.shape[2]}; give as many, or another "
                "frame_factor"
            )
        if not checked_weight(call, weight):
            raise ValueError(
                f"{name} guides by weight, which must be above 0, got {weight}; without it this "
                "video would not be looked at"
            )
        # a small pixel is the mean of several, and so much less noisy than one
        _, _, h, w = self._shape_of_sample(None, sampling.get("image_size"))
        pixels = h * w / (video.shape[3] * video.shape[4])
        return LowResolution(video, frame_factor, weight * pixels)

    def _check_keywords(self, call: str, sampling: Mapping[str, Any]) -> None:
        """Raises a TypeError for keywords that `sample` does not take, or that the videos tell."""
        if taken := [name for name in _OWN if name in sampling]:
            raise TypeError(
                f"{call}: {', '.join(taken)} must be left out, since the given video tells it, got "
                f"{shown(sampling[taken[0]])}; pass the video only"
            )
        parameters = inspect.signature(self.sample).parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        unknown = [name for name in sampling if name not in parameters]
        if unknown and not takes_any:
            raise TypeError(
                f"{call}: keywords must be its own or those of sample, got {', '.join(unknown)}; "
                f"choose from {', '.join(name for name in parameters if name not in _OWN)}"
            )

    def _ready_for_all(
        self, call: str, sampling: Mapping[str, Any], video: Tensor
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords of `sample` for all windows alike, and conditions to be cut for each.

        Captions are encoded here, and the streams of random numbers begun, once for all windows.
        """
        options = dict(sampling)
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
            check_condition_frames(call, name, value, video.shape[2])
        if negative:
            conditions["negative_cond"] = negative
        streams = make_streams(
            options.pop("seed", None), options.pop("generator", None), len(video), video.device
        )
        if isinstance(streams, RandomStreams):
            options["generator"] = streams.generators
        return options, conditions


def _check_finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            f"{name} must be finite, got NaN or infinity; let inpaint draw what is lost, with a "
            "mask that is false there"
        )
