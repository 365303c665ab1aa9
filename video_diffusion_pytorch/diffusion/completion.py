"""Completion of videos, window by window: extension, interpolation, upsampling, inpainting."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.conditions import CONDITIONS
from video_diffusion_pytorch.diffusion.guidance import (
    KnownRegion,
    Measurement,
    check_mask,
    check_videos,
    checked_weight,
    expand_mask,
)
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.sampling import as_guidance

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion


@dataclass(frozen=True)
class Window:
    """Frames that are drawn together.

    Attributes:
        start: The first.
        stop: The one behind the last.
        ready: How many frames at its beginning are known already, or drawn by windows before it.
        keep: The one behind the last that is kept; those from here on the next window draws again,
            because it sees more of what they lie between.
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
        known: Of each frame, whether it is known; such frames are drawn only along with others.
        partly: Of each frame, whether anything at all is known of it, be it its low resolution.
        length: Frames of a window.
        overlap: Known or drawn frames at the beginning of each window; more if the last
            window would otherwise not be full.

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


def whole_frames(name: str, value: Any) -> int:
    """A number of frames, or a factor of it, as an int.

    Raises:
        ValueError: If it is no whole number.
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}; give it as an int")
    return int(value)


def checked_overlap(call: str, overlap: int | None, num_frames: int, length: int) -> int:
    """The overlap of windows.

    Args:
        call: What draws them, for messages.
        overlap: What was asked for; None for half a window, or 0 where there is one only.
        num_frames: Frames in all.
        length: Frames of a window.

    Raises:
        ValueError: If it is no whole number, leaves no frame to draw, or none before it.
    """
    if overlap is None and num_frames <= length:
        return 0
    overlap = length // 2 if overlap is None else whole_frames(f"{call}: overlap", overlap)
    if not 1 <= overlap < length:
        raise ValueError(
            f"{call}: overlap must be from 1 to {length - 1}, one less than the frames of the "
            f"model's clips, got {overlap}; leave it out for half of them"
        )
    return overlap


def check_beginnings(call: str, plan: Sequence[Window], given_frames: int) -> None:
    """Raises a ValueError unless all windows begin with the frames that the network is given."""
    for window in plan:
        if window.ready < given_frames:
            raise ValueError(
                f"{call}: each window must begin with the {given_frames} known frames that a model "
                f"with given_frames needs, got {window.ready} at frame {window.start}; give more "
                "frames at the beginning, or a greater overlap"
            )


def check_condition_frames(call: str, name: str, value: Tensor, num_frames: int) -> None:
    """Raises a ValueError unless a condition has all frames, or is the same for all."""
    axis = _frame_axis(name, value)
    if axis is not None and value.shape[axis : axis + 1] != (num_frames,):
        raise ValueError(
            f"{call}: {name} must have all {num_frames} frames of the result on axis {axis}, got "
            f"{tuple(value.shape)}; give it for the whole result, it is cut for each window"
        )


def cut_condition(name: str, value: Any, frames: slice) -> Any:
    """The part of a condition, or of a dict of these by name, that is about some frames."""
    if isinstance(value, Mapping):
        return {inner: cut_condition(inner, one, frames) for inner, one in value.items()}
    axis = _frame_axis(name, value)
    return value if axis is None else value[(slice(None),) * axis + (frames,)]


def _frame_axis(name: str, value: Tensor) -> int | None:
    """Which axis of a condition is that of frames; None if it has none."""
    if name == "frame_cond":
        return 1
    return 2 if name == "cond_video" and value.ndim == 5 else None


def _first_unknown(known: Sequence[bool], start: int) -> int:
    return next((i for i in range(start, len(known)) if not known[i]), len(known))


def _last_to_keep(partly: Sequence[bool], done: int, stop: int, reach: int) -> int:
    """Where to end, so that frames between two partly known are drawn by a window that has both.

    Args:
        partly: As in `windows`.
        done: The first frame that is not there yet.
        stop: Where the window ends.
        reach: How many frames behind its overlap a window has.
    """
    before = [i for i in range(done, stop) if partly[i]]
    after = next((i for i in range(stop, len(partly)) if partly[i]), None)
    if not before or after is None:
        return stop
    keep = before[-1] + 1
    # only if the next window gets as far
    return keep if after < keep + reach else stop


# arguments of sample() that follow from the videos
_OWN = ("batch_size", "num_frames", "first_frames")


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
        """The measurement for a window; None if it has no frame in it."""
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
        step: Distance of the frames.

    Example:
        >>> shrink(torch.rand(1, 3, 7, 8, 8), size=(4, 4), step=2).shape
        torch.Size([1, 3, 4, 4, 4])
    """
    chosen = videos[:, :, first::step]
    frames = rearrange(chosen, "b c f h w -> (b f) c h w")
    small = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return rearrange(small, "(b f) c h w -> b c f h w", b=len(videos))


def predict(
    diffusion: GaussianDiffusion,
    frames: Any,
    num_frames: int | None,
    weight: float,
    sampling: dict[str, Any],
) -> Tensor:
    """Draws what follows `frames`; arguments as in `GaussianDiffusion.predict`."""
    length = diffusion.num_frames if num_frames is None else num_frames
    return _continue(diffusion, "predict", "frames", frames, length, sampling, weight=weight)


def extend(
    diffusion: GaussianDiffusion,
    video: Any,
    num_frames: int,
    overlap: int | None,
    weight: float,
    low_resolution: Any,
    frame_factor: int,
    sampling: dict[str, Any],
) -> Tensor:
    """Continues `video`; arguments as in `GaussianDiffusion.extend`."""
    low = None
    if low_resolution is not None:
        num_frames = whole_frames("extend: num_frames", num_frames)
        given = (low_resolution, frame_factor, num_frames, weight)
        low = _low(diffusion, "extend", "low_resolution", *given, sampling)
    elif frame_factor != 1:
        raise ValueError(
            "extend: frame_factor is that of low_resolution, which must then be given, got "
            f"{shown(frame_factor)} and None; leave it out, or see interpolate_frames"
        )
    return _continue(
        diffusion,
        "extend",
        "video",
        video,
        num_frames,
        sampling,
        overlap=overlap,
        weight=weight,
        low=low,
    )


def interpolate_frames(
    diffusion: GaussianDiffusion,
    video: Any,
    factor: int,
    overlap: int | None,
    weight: float,
    sampling: dict[str, Any],
) -> Tensor:
    """Draws the frames between those of `video`; `GaussianDiffusion` has the arguments."""
    video = _as_result(diffusion, "interpolate_frames: video", video, sampling.get("image_size"))
    factor, longest = whole_frames("interpolate_frames: factor", factor), diffusion.num_frames - 1
    if not 2 <= factor <= longest:
        raise ValueError(
            f"interpolate_frames: factor must be from 2 to {longest}, so that a clip of the "
            f"model has two given frames, got {factor}; interpolate twice, or with a model of "
            "longer clips"
        )
    if video.shape[2] < 2:
        raise ValueError(
            "interpolate_frames: video must have at least 2 frames, got 1; give those to draw "
            "frames between"
        )
    num_frames = (video.shape[2] - 1) * factor + 1
    if overlap is None:
        overlap = min(diffusion.num_frames // 2, diffusion.num_frames - factor)
    whole = video.new_zeros(*video.shape[:2], num_frames, *video.shape[3:])
    whole[:, :, ::factor] = video
    known = _of_frames(torch.arange(num_frames) % factor == 0, whole)
    return fill(
        diffusion, "interpolate_frames", whole, known, sampling, overlap=overlap, weight=weight
    )


def upsample(
    diffusion: GaussianDiffusion,
    video: Any,
    image_size: int | tuple[int, int] | None,
    frame_factor: int,
    overlap: int | None,
    weight: float,
    sampling: dict[str, Any],
) -> Tensor:
    """Draws `video` at a higher resolution; arguments as in `GaussianDiffusion.upsample`."""
    if image_size is not None:
        sampling["image_size"] = image_size
    check_videos("upsample: video", video)
    frame_factor = whole_frames("upsample: frame_factor", frame_factor)
    num_frames = (video.shape[2] - 1) * frame_factor + 1
    low = _low(diffusion, "upsample", "video", video, frame_factor, num_frames, weight, sampling)
    b, c, f, *size_of_low = low.video.shape
    _, _, *size = diffusion.sample_shape(None, image_size)
    if size_of_low == size and f == num_frames:
        raise ValueError(
            f"upsample: video must be smaller than the result, {size[0]} x {size[1]}, or have "
            f"fewer frames than it, {f}, got both alike and nothing to draw; give a greater "
            "image_size, or a greater frame_factor for at least 2 frames"
        )
    whole = low.video.new_zeros(b, c, num_frames, *size)
    known = _of_frames(torch.zeros(num_frames, dtype=torch.bool), whole)
    return fill(
        diffusion, "upsample", whole, known, sampling, overlap=overlap, weight=weight, low=low
    )


def inpaint(
    diffusion: GaussianDiffusion,
    video: Any,
    mask: Any,
    overlap: int | None,
    weight: float,
    sampling: dict[str, Any],
) -> Tensor:
    """Draws the part of `video` where `mask` is false; `GaussianDiffusion` has the arguments."""
    video = _as_result(diffusion, "inpaint: video", video, sampling.get("image_size"))
    check_mask("inpaint: mask", mask)
    known = expand_mask("inpaint: mask", mask.to(video.device), video.shape)
    known = known.expand(-1, -1, video.shape[2], -1, -1).clone()
    video = torch.where(known, video, 0.0)
    return fill(diffusion, "inpaint", video, known, sampling, overlap=overlap, weight=weight)


def _continue(
    diffusion: GaussianDiffusion,
    call: str,
    name: str,
    video: Any,
    num_frames: int,
    sampling: dict[str, Any],
    **how: Any,
) -> Tensor:
    """Draws what comes behind a video; further arguments as in `_fill`."""
    video = _as_result(diffusion, f"{call}: {name}", video, sampling.get("image_size"))
    k, num_frames = video.shape[2], whole_frames(f"{call}: num_frames", num_frames)
    if num_frames <= k:
        raise ValueError(
            f"{call}: num_frames must be more than the {k} of {name}, got {num_frames}; ask "
            "for more, or give fewer"
        )
    whole = F.pad(video, (0, 0, 0, 0, 0, num_frames - k))
    known = _of_frames(torch.arange(num_frames) < k, whole)
    return fill(diffusion, call, whole, known, sampling, **{"overlap": None, **how})


def _of_frames(known: Tensor, video: Tensor) -> Tensor:
    """A mask by frame `(f,)`, as `_fill` takes it."""
    return known.view(1, 1, -1, 1, 1).to(video.device)


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
        call: The method, for messages.
        video: `(b, c, f, h, w)`, from `_as_result`.
        known: Boolean, an axis for each of the video's, that of frames in full, others full
            or 1; true where the video is known.
        sampling: Keywords of `sample`.
        overlap: Frames of a window that are known from before it; None for half of them.
        weight: Weight of what is known.
        low: Small videos of the result; None for none.

    Raises:
        TypeError: If a keyword is unknown, or determined by the videos.
        ValueError: If something does not fit the videos, or known values are not finite.
        RuntimeError: If drawn frames that the next window needs are not finite.
    """
    _check_keywords(diffusion, call, sampling)
    weight = checked_weight(call, weight)
    overlap = checked_overlap(call, overlap, video.shape[2], diffusion.num_frames)
    _check_finite(f"{call}: known values", video)
    partly = known.amax(dim=(0, 1, 3, 4)).tolist()
    if low is not None:
        if len(low.video) != len(video):
            raise ValueError(
                f"{call}: low_resolution must have one row per video, {len(video)}, got "
                f"{len(low.video)}; give the low resolution of each"
            )
        partly = [frame % low.frame_factor == 0 or has for frame, has in enumerate(partly)]
    plan = windows(known.amin(dim=(0, 1, 3, 4)).tolist(), partly, diffusion.num_frames, overlap)
    check_beginnings(call, plan, diffusion.given_frames)
    options, conditions = _prepare_for_all(diffusion, call, sampling, video)
    own = as_guidance(options.pop("guidance", ()))
    for window in plan:
        frames, kept = slice(window.start, window.stop), slice(window.start, window.keep)
        guidance = list(own)
        if known[:, :, frames].any():
            guidance.append(KnownRegion(video[:, :, frames], known[:, :, frames], weight))
        if low is not None and (measured := low.measurement(window)) is not None:
            guidance.append(measured)
        if diffusion.given_frames:
            first = slice(window.start, window.start + diffusion.given_frames)
            options["first_frames"] = video[:, :, first]
        drawn = diffusion.sample(
            batch_size=len(video),
            num_frames=window.stop - window.start,
            guidance=guidance,
            **{name: cut_condition(name, value, frames) for name, value in conditions.items()},
            **options,
        )[:, :, : window.keep - window.start]
        if window is not plan[-1] and not drawn.isfinite().all():
            raise RuntimeError(
                f"{call}: drawn frames must be finite, got NaN or infinity that the "
                f"model has drawn from frame {window.start} on; the model has diverged, take "
                "earlier weights of it, or a smaller weight of the guidance"
            )
        video[:, :, kept] = torch.where(known[:, :, kept], video[:, :, kept], drawn)
        known[:, :, kept] = True
    return video


def _as_result(
    diffusion: GaussianDiffusion,
    name: str,
    video: Any,
    image_size: int | tuple[int, int] | None,
    resize: bool = False,
) -> Tensor:
    """Given videos in the units, the number type and at the place of `sample`'s results.

    Args:
        diffusion: The model.
        name: What they are, for messages.
        video: `(b, c, f, h, w)`.
        image_size: As in `sample`.
        resize: Whether they may be smaller than the result.

    Raises:
        TypeError: If they are no such tensor.
        ValueError: If they don't fit the model.
    """
    check_videos(name, video)
    _, _, height, width = diffusion.sample_shape(None, image_size)
    h, w = video.shape[3:]
    is_fit = 0 < h <= height and 0 < w <= width if resize else (h, w) == (height, width)
    if video.shape[1] != diffusion.channels or not is_fit or 0 in video.shape:
        size = f"h, w) with h <= {height} and w <= {width}" if resize else f"{height}, {width})"
        raise ValueError(
            f"{name} must have the shape (b, {diffusion.channels}, f, {size}, got "
            f"{tuple(video.shape)}; cut or resize it, or pass another image_size"
        )
    is_bytes = video.dtype == torch.uint8 and diffusion.value_low is None
    video = video.detach().to(diffusion.betas)
    return video / 255 if is_bytes else video


def _low(
    diffusion: GaussianDiffusion,
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
    video = _as_result(diffusion, name, video, sampling.get("image_size"), resize=True)
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
    _, _, h, w = diffusion.sample_shape(None, sampling.get("image_size"))
    pixels = h * w / (video.shape[3] * video.shape[4])
    return LowResolution(video, frame_factor, weight * pixels)


def _check_keywords(diffusion: GaussianDiffusion, call: str, sampling: Mapping[str, Any]) -> None:
    """Raises a TypeError for keywords that `sample` does not take, or that the videos determine."""
    if taken := [name for name in _OWN if name in sampling]:
        raise TypeError(
            f"{call}: {', '.join(taken)} must be left out, as the video determines it, got "
            f"{shown(sampling[taken[0]])}; pass the video only"
        )
    parameters = inspect.signature(diffusion.sample).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    unknown = [name for name in sampling if name not in parameters]
    if unknown and not takes_any:
        raise TypeError(
            f"{call}: keywords must be its own or those of sample, got {', '.join(unknown)}; "
            f"choose from {', '.join(name for name in parameters if name not in _OWN)}"
        )


def _prepare_for_all(
    diffusion: GaussianDiffusion, call: str, sampling: Mapping[str, Any], video: Tensor
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keywords of `sample` for all windows alike, and conditions to be cut for each.

    Captions are encoded here, and the streams of random numbers begun, once for all windows.
    """
    options = dict(sampling)
    given = {name: options.pop(name) for name in CONDITIONS if name in options}
    conditions: dict[str, Any] = diffusion.prepare_conditions(given)
    for name, value in conditions.items():
        if len(value) != len(video):
            raise ValueError(
                f"{call}: conditions must have one row per video, {len(video)}, got "
                f"{len(value)} of {name}; give as many"
            )
    scale = options.get("cond_scale", 1.0)
    negative = diffusion.prepare_negative(options.pop("negative_cond", None), scale, len(video))
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
