"""Completion of videos, window by window: extension, interpolation, upsampling, inpainting."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.conditions import CONDITIONS, frames_of, given
from video_diffusion_pytorch.diffusion.guidance import (
    KnownRegion,
    Measurement,
    as_guidance,
    check_mask,
    checked_weight,
    expand_mask,
)
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.value_range import check_videos

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion


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


def checked_overlap(call: str, overlap: int | None, num_frames: int, length: int) -> int:
    """The overlap of windows.

    Args:
        call: The calling method, for the error.
        overlap: The user's; None for half a window, or 0 for a single one.
        num_frames: Frames in all.
        length: Frames of a window.

    Raises:
        ValueError: If it leaves no frame to draw, or none before it.
    """
    if overlap is None and num_frames <= length:
        return 0
    overlap = length // 2 if overlap is None else operator.index(overlap)
    if not 1 <= overlap < length:
        raise ValueError(
            f"{call}: overlap must be from 1 to {length - 1}, one less than the frames of the "
            f"model's clips, got {overlap}; leave it out for half of them"
        )
    return overlap


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


def extend(
    diffusion: GaussianDiffusion,
    name: str,
    video: Any,
    num_frames: int,
    sampling: Mapping[str, Any],
    *,
    weight: float,
    overlap: int | None = None,
    low_resolution: Any = None,
    frame_factor: int = 1,
) -> Tensor:
    """Continues `video`, called `name` in errors; arguments as in `GaussianDiffusion.extend`."""
    call = name.split(":")[0]
    video = as_result(diffusion, name, video, sampling)
    k, num_frames = video.shape[2], operator.index(num_frames)
    if num_frames <= k:
        raise ValueError(f"{call}: num_frames must be more than the {k} given, got {num_frames}")
    low = None
    if low_resolution is not None:
        name = f"{call}: low_resolution"
        low = _low(diffusion, name, low_resolution, frame_factor, num_frames, weight, sampling)
    elif frame_factor != 1:
        raise ValueError(f"{call}: frame_factor is that of low_resolution, which must be given")
    whole = F.pad(video, (0, 0, 0, 0, 0, num_frames - k))
    known = torch.arange(num_frames) < k
    return fill(diffusion, call, whole, known, sampling, overlap=overlap, weight=weight, low=low)


def interpolate_frames(
    diffusion: GaussianDiffusion,
    video: Any,
    factor: int,
    overlap: int | None,
    weight: float,
    sampling: Mapping[str, Any],
) -> Tensor:
    """Draws frames between those of `video`; as `GaussianDiffusion.interpolate_frames`."""
    call, factor = "interpolate_frames", operator.index(factor)
    longest = diffusion.num_frames - 1
    video = as_result(diffusion, f"{call}: video", video, sampling)
    if not 2 <= factor <= longest or video.shape[2] < 2:
        raise ValueError(
            f"{call}: factor must be from 2 to {longest}, so that a clip of the model has two "
            f"given frames, and video have at least 2 frames, got {factor} and {video.shape[2]}; "
            "interpolate twice, or with a model of longer clips"
        )
    num_frames = (video.shape[2] - 1) * factor + 1
    if overlap is None:
        overlap = min(diffusion.num_frames // 2, diffusion.num_frames - factor)
    whole = video.new_zeros(*video.shape[:2], num_frames, *video.shape[3:])
    whole[:, :, ::factor] = video
    known = torch.arange(num_frames) % factor == 0
    return fill(diffusion, call, whole, known, sampling, overlap=overlap, weight=weight)


def upsample(
    diffusion: GaussianDiffusion,
    video: Any,
    frame_factor: int,
    overlap: int | None,
    weight: float,
    sampling: Mapping[str, Any],
) -> Tensor:
    """Draws `video` at a higher resolution; as `GaussianDiffusion.upsample`."""
    check_videos("upsample: video", video)
    num_frames = (video.shape[2] - 1) * operator.index(frame_factor) + 1
    low = _low(diffusion, "upsample: video", video, frame_factor, num_frames, weight, sampling)
    b, c, f, *small = low.video.shape
    _, _, *size = diffusion.sample_shape(None, sampling.get("image_size"))
    if small == size and f == num_frames:
        raise ValueError(
            f"upsample: video must be smaller than the result, {size[0]} x {size[1]}, or have "
            f"fewer frames, got as many of both; give a greater image_size or frame_factor"
        )
    whole = low.video.new_zeros(b, c, num_frames, *size)
    known = torch.zeros(num_frames, dtype=torch.bool)
    return fill(
        diffusion, "upsample", whole, known, sampling, overlap=overlap, weight=weight, low=low
    )


def inpaint(
    diffusion: GaussianDiffusion,
    video: Any,
    mask: Any,
    overlap: int | None,
    weight: float,
    sampling: Mapping[str, Any],
) -> Tensor:
    """Draws the part of `video` where `mask` is false; as `GaussianDiffusion.inpaint`."""
    video = as_result(diffusion, "inpaint: video", video, sampling)
    check_mask("inpaint: mask", mask)
    known = expand_mask("inpaint: mask", mask.to(video.device), video.shape)
    known = known.expand(-1, -1, video.shape[2], -1, -1).clone()
    video = torch.where(known, video, 0.0)
    return fill(diffusion, "inpaint", video, known, sampling, overlap=overlap, weight=weight)


@torch.no_grad()
def fill(
    diffusion: GaussianDiffusion,
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
        diffusion: The model.
        call: The calling method, for errors.
        video: `(b, c, f, h, w)`, from `as_result`.
        known: Boolean, true where the video is known: by frame, `(f,)`, or with an axis for each of
            the video's, that of frames in full, the others in full or 1.
        sampling: Keywords of `sample`.
        overlap: Frames of a window that are known from before it; None for half of them.
        weight: Weight of what is known.
        low: Small videos of the result; None for none.

    Raises:
        ValueError: If something does not fit the videos, or values that are known or that the next
            window needs are not finite.
    """
    weight = checked_weight(call, weight)
    overlap = checked_overlap(call, overlap, video.shape[2], diffusion.num_frames)
    if known.ndim == 1:
        known = known.view(1, 1, -1, 1, 1).to(video.device)
    if not all(one.isfinite().all() for one in (video, video if low is None else low.video)):
        raise ValueError(
            f"{call}: known values must be finite, got NaN or infinity; let inpaint draw what is "
            "lost, with a mask that is false there"
        )
    partly = known.amax(dim=(0, 1, 3, 4)).tolist()
    if low is not None:
        partly = [frame % low.frame_factor == 0 or has for frame, has in enumerate(partly)]
    plan = windows(known.amin(dim=(0, 1, 3, 4)).tolist(), partly, diffusion.num_frames, overlap)
    _check_beginnings(call, plan, diffusion.given_frames)
    options, conditions, negative = _prepare_for_all(diffusion, call, sampling, video)
    own = as_guidance(options.pop("guidance", ()))
    for window in plan:
        frames, kept = slice(window.start, window.stop), slice(window.start, window.keep)
        guidance = list(own)
        if known[:, :, frames].any():
            guidance.append(KnownRegion(video[:, :, frames], known[:, :, frames], weight))
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


def as_result(
    diffusion: GaussianDiffusion, name: str, video: Any, sampling: Mapping[str, Any]
) -> Tensor:
    """Checks given videos, and converts them to the units, dtype and device of the results.

    Args:
        diffusion: The model.
        name: The call and its argument, for the error.
        video: `(b, c, f, h, w)`.
        sampling: Keywords of `sample`, of which `image_size` counts.

    Raises:
        ValueError: If they don't fit the model.
    """
    c, _, h, w = diffusion.sample_shape(None, sampling.get("image_size"))
    check_videos(name, video, ("b", c, "f", h, w))
    return _in_units(diffusion, video)


def _in_units(diffusion: GaussianDiffusion, video: Tensor) -> Tensor:
    is_bytes = video.dtype == torch.uint8 and diffusion.value_low is None
    video = video.detach().to(diffusion.betas)
    return video / 255 if is_bytes else video


def _low(
    diffusion: GaussianDiffusion,
    name: str,
    video: Any,
    frame_factor: int,
    num_frames: int,
    weight: float,
    sampling: Mapping[str, Any],
) -> LowResolution:
    """A small video of a whole result of `num_frames` frames.

    Differs from Ho et al. 2022, eq. 8: its weight is `weight` times the number of pixels that each
    of its own is made of. Their equation takes the measured part, given the noisy video, to be
    as uncertain as a pixel; the mean of n pixels is n times less so.
    """
    frame_factor = operator.index(frame_factor)
    if frame_factor < 1 or not checked_weight(name.split(":")[0], weight):
        raise ValueError(
            f"{name} needs a frame_factor of at least 1 and a weight above 0, by which it guides, "
            f"got {frame_factor} and {weight}"
        )
    c, _, h, w = diffusion.sample_shape(None, sampling.get("image_size"))
    frames = (num_frames - 1) // frame_factor + 1
    check_videos(name, video, ("b", c, frames, "h", "w"))
    if video.shape[3] > h or video.shape[4] > w:
        raise ValueError(
            f"{name} must be at most {h} x {w}, got {video.shape[3]} x {video.shape[4]}; shrink "
            "it, or pass another image_size"
        )
    # a small pixel is the mean of several, and that much less noisy than one
    pixels = h * w / (video.shape[3] * video.shape[4])
    return LowResolution(_in_units(diffusion, video), frame_factor, weight * pixels)


def _check_beginnings(call: str, plan: Sequence[Window], given_frames: int) -> None:
    """Raises a ValueError unless all windows begin with the frames that the network is given."""
    for window in plan:
        if window.ready < given_frames:
            raise ValueError(
                f"{call}: each window must begin with the {given_frames} known frames that a model "
                f"with given_frames needs, got {window.ready} at frame {window.start}; give more "
                "frames at the beginning, or a greater overlap"
            )


def _prepare_for_all(
    diffusion: GaussianDiffusion, call: str, sampling: Mapping[str, Any], video: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """Keywords of `sample` for all windows, and conditions to be cut for each.

    Captions are encoded and random streams started here, once for all windows.
    """
    options = dict(sampling)
    own = {name: options.pop(name) for name in CONDITIONS if name in options}
    conditions = diffusion.prepare_conditions(own)
    scale, count = options.get("cond_scale", 1.0), len(video)
    negative = diffusion.prepare_negative(options.pop("negative_cond", None), scale, count)
    for name, value in (*conditions.items(), *negative.items()):
        kind, num_frames = CONDITIONS[name], video.shape[2]
        sizes = dict(zip(kind.axes, value.shape, strict=False))
        has_frames = value.ndim == len(kind.axes)
        if len(value) != count or (has_frames and sizes.get("f", num_frames) != num_frames):
            raise ValueError(
                f"{call}: {name} must have one row per video, {count}, and, if it has frames, all "
                f"{num_frames} of the result, which are cut for each window, got "
                f"{tuple(value.shape)}"
            )
    streams = make_streams(
        options.pop("seed", None), options.pop("generator", None), count, video.device
    )
    if isinstance(streams, RandomStreams):
        options["generator"] = streams.generators
    return options, conditions, negative


def _cut(conditions: Mapping[str, Tensor], frames: slice) -> dict[str, Tensor]:
    """The conditions of some frames."""
    return {name: frames_of(name, value, frames) for name, value in conditions.items()}
