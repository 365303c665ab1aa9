"""Transforms: from the frames and pixels of a file to those of a clip, and the value range."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import ValueRange, as_count, shown
from video_diffusion_pytorch.data.errors import UnreadableVideoError, unreadable
from video_diffusion_pytorch.data.formats.pictures import ToTensor
from video_diffusion_pytorch.data.formats.readers import VideoReader
from video_diffusion_pytorch.value_scale import (
    Standardization,
    as_transforms,
    check_domain,
    parse_scale,
    transformed,
)

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("cover", "contain", "stretch")
CROPS = ("center", "random")

# A frame that exceeds the target by this factor is cropped before it is scaled, as the whole scaled
# frame might not fit into memory
_EXTREME = 8

# Tolerance for the rounding of timestamps, in seconds
_ROUNDING = 1e-4

# The part of a frame to keep, vertically and horizontally: from 0, the top or left end, to 1
Offset = tuple[float, float]


class FrameSize:
    """Brings frames to one height and width: scales, then crops or pads them.

    Pictures are scaled by Pillow, arrays by torch, both bilinear with antialiasing.

    Args:
        size: `(height, width)` in pixels.
        fit: `"cover"` scales a frame until it covers the target, then crops; `"contain"` until it
            fits in, then pads with black; `"stretch"` scales height and width independently.
        crop: Keep the `"center"` of a frame that covers the target, or a `"random"` part, drawn for
            each clip.

    Raises:
        ValueError: `fit` or `crop` is none of these.

    Example:
        >>> FrameSize((16, 16)).scaled_size(20, 30)
        (16, 24)
        >>> FrameSize((16, 16)).finish_array(torch.rand(2, 5, 16, 24)).shape
        torch.Size([2, 5, 16, 16])
    """

    def __init__(self, size: tuple[int, int], fit: str = "cover", crop: str = "center") -> None:
        for name, value, known in (("fit", fit, FITS), ("crop", crop, CROPS)):
            if value not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}; choose one of them"
                )
        self.size, self.fit, self.crop = size, fit, crop
        self._to_tensor = ToTensor()

    def __call__(self, frame: Image) -> torch.Tensor:
        """Converts a picture to `(c, height, width)` float32 in [0, 1]."""
        return self._to_tensor(self.finish(self.scale(frame)))

    def __repr__(self) -> str:
        return f"FrameSize({self.size}, fit={self.fit!r}, crop={self.crop!r})"

    @property
    def is_cut_at_once(self) -> bool:
        """Whether `read` and `read_array` crop at once; otherwise `finish_array` does later."""
        return self.crop == "center" and self.fit != "contain"

    def scaled_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that a frame is scaled to before it is cropped or padded."""
        target_h, target_w = self.size
        if self.fit == "stretch":
            return self.size
        # one side fits exactly, the other is rounded down, as torchvision does
        is_tall = height * target_w >= width * target_h
        if is_tall == (self.fit == "cover"):
            return max(1, target_w * height // width), target_w
        return target_h, max(1, target_h * width // height)

    def _part_to_scale(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the whole frame, or of the center of an extreme one."""
        (target_h, target_w), (scaled_h, scaled_w) = self.size, self.scaled_size(height, width)
        top, bottom, left, right = 0, height, 0, width
        # twice the target: the antialiasing filter reads beyond the crop
        if self.crop == "center" and scaled_w > _EXTREME * target_w:
            left, right = _center(width, -(-2 * height * target_w // target_h))
        elif self.crop == "center" and scaled_h > _EXTREME * target_h:
            top, bottom = _center(height, -(-2 * width * target_h // target_w))
        return left, top, right, bottom

    def places(self, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the centre of each row and column of a finished frame is in that of a file.

        Example:
            >>> rows, columns = FrameSize((2, 2)).places(4, 8)
            >>> rows.tolist(), columns.tolist()
            ([0.5, 2.5], [2.5, 4.5])
        """
        left, top, right, bottom = self._part_to_scale(height, width)
        scaled = self.scaled_size(bottom - top, right - left)
        corner = self._corner(*scaled, (0.5, 0.5))
        along = []
        for axis, (start, stop) in enumerate(((top, bottom), (left, right))):
            middles = np.arange(self.size[axis]) + corner[axis] + 0.5
            along.append(start + middles * (stop - start) / scaled[axis] - 0.5)
        return along[0], along[1]

    # pictures

    def scale(self, frame: Image) -> Image:
        """Scales a picture, before the crop."""
        from PIL.Image import Resampling

        left, top, right, bottom = box = self._part_to_scale(frame.height, frame.width)
        if box != (0, 0, *frame.size):
            frame = frame.crop(box)
        height, width = self.scaled_size(bottom - top, right - left)
        # Pillow would copy it
        is_scaled = frame.size == (width, height)
        return frame if is_scaled else frame.resize((width, height), Resampling.BILINEAR)

    def finish(self, frame: Image) -> Image:
        """Crops a scaled picture to its center, or pads it with black on all sides."""
        if frame.size == self.size[::-1]:
            return frame
        top, left = self._corner(frame.height, frame.width, (0.5, 0.5))
        # Pillow pads with black
        return frame.crop((left, top, left + self.size[1], top + self.size[0]))

    def read(self, frame: Image) -> np.ndarray:
        """Scales a picture to `(h, w, c)` uint8, as it is cached.

        Not yet cropped if `crop` is random, nor padded: the pad value may not fit uint8.
        """
        frame = self.scale(frame)
        if self.is_cut_at_once:
            frame = self.finish(frame)
        return np.atleast_3d(np.asarray(frame))

    # arrays

    def scale_array(self, video: torch.Tensor) -> torch.Tensor:
        """Scales `(c, f, h, w)`, floats or uint8, before the crop."""
        left, top, right, bottom = self._part_to_scale(*video.shape[-2:])
        video = video[..., top:bottom, left:right]
        size = self.scaled_size(*video.shape[-2:])
        if tuple(video.shape[-2:]) == size:
            return video
        frames = video.movedim(1, 0)
        scaled = F.interpolate(
            frames.float(), size=size, mode="bilinear", antialias=True, align_corners=False
        )
        if video.dtype == torch.uint8:
            scaled = scaled.round_().clamp_(0, 255).to(torch.uint8)
        return scaled.movedim(0, 1)

    def read_array(self, video: torch.Tensor) -> torch.Tensor:
        """Scales `(c, f, h, w)`, as `read` does pictures."""
        scaled = self.scale_array(video)
        return self.finish_array(scaled) if self.is_cut_at_once else scaled

    def finish_array(
        self, video: torch.Tensor, offset: Offset = (0.5, 0.5), black: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Crops a scaled `(c, f, h, w)` to the target, or pads it on all sides.

        Args:
            video: The scaled clip.
            offset: The part to keep: 0 the top or left end, 1 the bottom or right one.
            black: The pad value of each channel, `(c,)`; None for 0.
        """
        (target_h, target_w), (h, w) = self.size, video.shape[-2:]
        if (h, w) == (target_h, target_w):
            return video
        top, left = self._corner(h, w, offset)
        if h >= target_h and w >= target_w:
            return video[..., top : top + target_h, left : left + target_w]
        filled = video.new_zeros((*video.shape[:-2], target_h, target_w))
        if black is not None:
            filled += black.to(video.dtype).view(-1, 1, 1, 1)
        filled[..., -top : h - top, -left : w - left] = video
        return filled

    def _corner(self, height: int, width: int, offset: Offset) -> tuple[int, int]:
        return (
            round((height - self.size[0]) * offset[0]),
            round((width - self.size[1]) * offset[1]),
        )


def _center(length: int, wanted: int) -> tuple[int, int]:
    """Start and end of the center of this length, or one more for equal margins on both sides."""
    kept = min(length, wanted + (length - wanted) % 2)
    return (length - kept) // 2, (length + kept) // 2


class Timeline:
    """Every n-th frame of a file, or its frames resampled to a frame rate.

    Positions count from the beginning of the file, so that all clips of a file share frames.

    Args:
        frame_skip: Take every `frame_skip`-th frame.
        fps: Frames per second: at each instant the frame displayed then, which may repeat. None to
            use `frame_skip`.

    Raises:
        ValueError: An argument is out of range, or both are given.
    """

    def __init__(self, frame_skip: int = 1, fps: float | None = None) -> None:
        self.frame_skip, self.fps = as_count(frame_skip, "frame_skip"), fps
        is_rate = isinstance(fps, Real) and 0 < fps < math.inf
        if fps is not None and not (is_rate and frame_skip == 1):
            raise ValueError(
                "fps must be a positive number of frames per second, without frame_skip, got "
                f"{frame_skip=} and {fps=}; pass one of them"
            )

    def length(self, file: VideoReader) -> int:
        """Number of positions."""
        if self.fps is None:
            return -(-file.num_frames // self.frame_skip)
        times = self._times(file)
        end = file.end
        if end is None:  # the last frame counts for as long as the one before it
            end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / self.fps)
        return max(1, math.ceil((end - times[0] - _ROUNDING) * self.fps))

    def frames(self, file: VideoReader, positions: Sequence[int]) -> list[int]:
        """The file's frames at these positions; with `fps`, none past its end."""
        if self.fps is None:
            # without counting the frames: reading past the end gives fewer
            return [position * self.frame_skip for position in positions]
        times = self._times(file)
        length = self.length(file)
        instants = (times[0] + position / self.fps for position in positions if position < length)
        return [max(0, bisect_right(times, instant + _ROUNDING) - 1) for instant in instants]

    def between(self, file: VideoReader, start: float | None, end: float | None) -> range:
        """The positions from second `start` on and before second `end`.

        Raises:
            UnreadableVideoError: There is none.
            ValueError: The file has no timestamps.
        """
        length = self.length(file)
        if start is None and end is None:
            return range(length)
        times = self._times(file)
        if self.fps is None:
            shown = [times[i] - times[0] for i in self.frames(file, range(length))]
        else:
            shown = [position / self.fps for position in range(length)]
        first = 0 if start is None else bisect_left(shown, start - _ROUNDING)
        stop = length if end is None else bisect_left(shown, end - _ROUNDING)
        if first >= stop:
            last = times[-1] if file.end is None else file.end
            expected = f"frames from second {start} to {end}"
            got = f"a file of {last - times[0]:.3f} seconds"
            raise unreadable(file.path, expected, got, "correct start and end")
        return range(first, stop)

    def _times(self, file: VideoReader) -> Sequence[float]:
        times = file.times
        if times is None and file.num_frames == 1:
            return [0.0]  # a still picture
        if times is None:
            raise ValueError(
                f"fps, start and end must go with files that have timestamps, got {file.path} "
                "without; choose frames by number, as with frame_skip"
            )
        return times


def cast_num_frames(t: torch.Tensor, *, frames: int) -> torch.Tensor:
    """Cuts a clip to its first frames, or pads it with black ones.

    Args:
        t: `(c, f, h, w)`.
        frames: The target length.

    Returns:
        `(c, frames, h, w)`; a view of `t` if it is long enough.

    Example:
        >>> cast_num_frames(torch.ones(1, 3, 2, 2), frames=5)[0, :, 0, 0]
        tensor([1., 1., 1., 0., 0.])
    """
    missing = frames - t.shape[1]
    if missing > 0:
        return F.pad(t, (0, 0, 0, 0, 0, missing))
    return t[:, :frames]


def windows(span: range, length: int) -> list[range]:
    """Consecutive clips of a span; the remainder is dropped unless it is the only clip.

    Example:
        >>> windows(range(10, 31), 10)
        [range(10, 20), range(20, 30)]
        >>> windows(range(4), 10)
        [range(0, 4)]
    """
    starts = range(span.start, span.stop - length + 1, length)
    return [range(start, start + length) for start in starts] or [span]


def random_window(span: range, length: int, generator: torch.Generator | None) -> range:
    """A part of `span`, drawn uniformly."""
    room = len(span) - length
    if room <= 0:
        return span
    start = span.start + int(torch.randint(room + 1, (), generator=generator, device="cpu"))
    return range(start, start + length)


def stretched(span: range, length: int) -> Sequence[int]:
    """`length` evenly spaced positions from the first of `span` to its last, rounded to nearest.

    Example:
        >>> stretched(range(10, 14), 7), stretched(range(10), 4)
        ([10, 11, 11, 12, 12, 13, 13], [0, 3, 6, 9])
    """
    steps = max(length - 1, 1)
    # in integers, halves up: floats could round to another frame
    return [span[(2 * i * (len(span) - 1) + steps) // (2 * steps)] for i in range(length)]


def _places(count: int, length: int, position: str) -> torch.Tensor:
    """Index of the file's frame at each place of a padded clip; out of range for padding."""
    before = max(0, length - count) // 2 if position == "center" else 0
    return torch.arange(length, device="cpu") - before


def real_frames(count: int, length: int, position: str) -> torch.Tensor:
    """The mask `(length,)` of a padded clip: true for the `count` frames of its file."""
    places = _places(count, length, position)
    return (places >= 0) & (places < count)


def repeat_ends(
    values: torch.Tensor, length: int | None, dim: int, position: str = "end"
) -> torch.Tensor:
    """Pads `values` along `dim` with its last entry and, before it, with its first one."""
    count = values.shape[dim]
    if length is None or count >= length:
        return values
    return values.index_select(dim, _places(count, length, position).clamp(0, count - 1))


def pad_black(
    video: torch.Tensor, length: int, black: torch.Tensor | None, position: str = "end"
) -> torch.Tensor:
    """Pads a clip that is too short with black frames.

    Args:
        video: `(c, f, h, w)`.
        length: Target number of frames.
        black: The value of black in each channel, `(c,)`; None for 0.
        position: `pad_position` of `Dataset`.
    """
    count = video.shape[1]
    if count >= length:
        return video
    padded = repeat_ends(video, length, 1, position)
    dark = 0 if black is None else black.to(video.dtype).view(-1, 1, 1, 1)
    padded[:, ~real_frames(count, length, position)] = dark
    return padded


@dataclass(frozen=True)
class View:
    """The crop and the flips of a clip and its field.

    Attributes:
        offset: The part of a larger frame to keep.
        flips: Axes to flip.
    """

    offset: Offset = (0.5, 0.5)
    flips: tuple[int, ...] = ()

    @classmethod
    def draw(
        cls, has_random_crop: bool, flips: tuple[bool, bool], generator: torch.Generator | None
    ) -> View:
        """Draws the random crop, and the flips that are wanted: horizontal, vertical."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator, device="cpu"))

        offset = (uniform(), uniform()) if has_random_crop else (0.5, 0.5)
        wanted = [axis for axis, is_wanted in zip((-1, -2), flips, strict=True) if is_wanted]
        return cls(offset, tuple(axis for axis in wanted if uniform() < 0.5))

    def of(
        self, video: torch.Tensor, size: FrameSize | None, black: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Crops or pads `(c, f, h, w)` to a size, None to skip this, and flips it."""
        if size is not None:
            video = size.finish_array(video, self.offset, black)
        return video.flip(self.flips) if self.flips else video


_Part = TypeVar("_Part")


def fit_value_range(
    parts: Sequence[_Part], read: Callable[[_Part], Iterable[torch.Tensor]]
) -> tuple[ValueRange, float]:
    """Finds the least and the largest value of each channel, and how far values are from the mean.

    Args:
        parts: Arguments of `read`.
        read: Gives the values of a part, one or several `(c, f, h, w)`, finite or NaN where they
            are missing; parts for which it raises an `UnreadableVideoError` are skipped.

    Returns:
        Lows and highs, one per channel each; and the standard deviation of all values, once this
        range is scaled to [-1, 1].

    Raises:
        ValueError: No part is readable, or a channel is constant.

    Example:
        >>> fit_value_range([0.0, 4.0], lambda top: [torch.tensor([0.0, top]).view(1, 1, 1, 2)])
        (((0.0,), (4.0,)), 0.8660254037844386)
    """
    unread: UnreadableVideoError | None = None
    limits: list[torch.Tensor] = []
    moments = Moments()
    for part in tqdm(parts, desc="fitting the value range", leave=False):
        try:
            for video in read(part):
                values = video.flatten(1)
                is_there = ~values.isnan()
                ends = (
                    values.where(is_there, torch.inf).amin(dim=1),
                    values.where(is_there, -torch.inf).amax(dim=1),
                )
                limits.append(torch.stack(ends).double())
                moments.add(values)
        except UnreadableVideoError as error:
            unread = unread or error  # training reports it
    if not limits:
        raise ValueError(
            f"value_range='fit' must find a file that can be read, got none; repair them: {unread}"
        ) from unread
    lows, highs = torch.stack(limits).unbind(dim=1)
    least, most = lows.amin(0), highs.amax(0)
    # scaling the frames rounds the values of a constant channel
    rounding = 8 * torch.finfo(torch.float32).eps * torch.maximum(least.abs(), most.abs())
    if (most - least <= rounding).any():
        raise ValueError(
            f"value_range='fit' must find values that differ in each channel, got "
            f"{least.tolist()} to {most.tolist()}; give the range, or leave the channel out"
        )
    found = tuple(least.tolist()), tuple(most.tolist())
    return found, moments.deviation(least, most)


def fit_scale(
    scale: Any,
    channels: int,
    parts: Sequence[_Part],
    read: Callable[[_Part], Iterable[torch.Tensor]],
    transform: Any = None,
    most: int | None = None,
) -> tuple[ValueRange | Standardization | None, float | None]:
    """Finds or parses a `value_range`, as of `Dataset`.

    Args:
        scale: The argument.
        channels: Number of channels.
        parts: Clips, as in `fit_value_range`.
        read: Likewise.
        transform: The argument `value_transform`.
        most: The argument `fit_clips`.

    Returns:
        The scale; None for None. And where it is found, the standard deviation of the values in the
        range of the network; else None.

    Raises:
        ValueError: As `fit_value_range`, `fit_standardization` and `parse_scale`; or an argument
            belongs to another `value_range`.
    """
    fits = isinstance(scale, str) and scale in ("fit", "standardize")
    if most is not None and not fits:
        raise ValueError(
            f"fit_clips must go with value_range='fit' or 'standardize', got {shown(scale)}; leave "
            "it out"
        )
    if transform is not None and not (fits and scale == "standardize"):
        raise ValueError(
            f"value_transform must go with value_range='standardize', got {shown(scale)}; leave "
            "it out, or give the mean and std of transformed values with their transform"
        )
    if not fits:
        parsed = parse_scale(scale, channels, others="'fit', 'standardize' or ")
        return parsed, 1.0 if isinstance(parsed, Standardization) else None
    if most is not None:
        count = min(as_count(most, "fit_clips"), len(parts))
        parts = [parts[i * len(parts) // count] for i in range(count)]
    if scale == "fit":
        return fit_value_range(parts, read)
    names = as_transforms(transform, channels, "value_transform")
    return fit_standardization(parts, read, names), 1.0


def fit_standardization(
    parts: Sequence[_Part],
    read: Callable[[_Part], Iterable[torch.Tensor]],
    transform: Sequence[str | None],
) -> Standardization:
    """Finds the mean and the standard deviation of each channel, in float64.

    Args:
        parts: Arguments of `read`.
        read: As in `fit_value_range`.
        transform: Names of `TRANSFORMS` to apply first, one per channel; None for none.

    Raises:
        ValueError: No part is readable, a channel is constant, or values are outside of what its
            transform takes.

    Example:
        >>> fit_standardization([1.0, 3.0], lambda v: [torch.full((1, 1, 1, 1), v)], (None,))
        Standardization(mean=(2.0,), std=(1.0,), transform=(None,))
    """
    unread: UnreadableVideoError | None = None
    moments = Moments()
    for part in tqdm(parts, desc="fitting the standardization", leave=False):
        try:
            for video in read(part):
                values, name = video.flatten(1), f"value_range='standardize': values of {part}"
                check_domain(values.nan_to_num(1.0), transform, name, axis=0)
                moments.add(values, transform)
        except UnreadableVideoError as error:
            unread = unread or error  # training reports it
    if not bool((moments.count > 0).all()):
        raise ValueError(
            "value_range='standardize' must find a file that can be read, got none; repair them: "
            f"{unread}"
        ) from unread
    mean, std = moments.mean, (moments.squares / moments.count).sqrt()
    # scaling the frames rounds the values of a constant channel
    if (std <= 8 * torch.finfo(torch.float32).eps * mean.abs()).any():
        raise ValueError(
            "value_range='standardize' must find values that differ in each channel, got standard "
            f"deviations {std.tolist()}; leave out channels that are constant"
        )
    return Standardization(tuple(mean.tolist()), tuple(std.tolist()), tuple(transform))


class Moments:
    """Mean and sum of squared differences from it, of each channel, over tensors that come."""

    # as many values at a time are copied to float64
    PART = 2**20

    def __init__(self) -> None:
        self.count = self.mean = self.squares = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, values: torch.Tensor, transform: Sequence[str | None] = ()) -> None:
        """Adds values, `(c, n)`, after a transform by channel; NaN are left out."""
        for part in values.split(self.PART, dim=1):
            part = transformed(part.double(), transform, axis=0)
            is_there = ~part.isnan()
            n = is_there.sum(dim=1).double()
            some = n.clamp(min=1)
            mean = part.where(is_there, 0.0).sum(dim=1) / some
            apart, whole = mean - self.mean, self.count + n
            # without differences of large sums (Chan et al. 1979, eq. 2.1)
            own = (part - mean[:, None]).square().where(is_there, 0.0).sum(dim=1)
            share = n / whole.clamp(min=1)
            self.squares = self.squares + own + apart.square() * self.count * share
            self.mean, self.count = self.mean + apart * share, whole

    def deviation(self, low: torch.Tensor, high: torch.Tensor) -> float:
        """Standard deviation of all values, of which `low` to `high` is scaled to [-1, 1]."""
        scale = 2 / (high - low)
        mean = (self.mean - low) * scale
        variance = self.squares / self.count * scale**2
        return (variance.mean() + mean.var(correction=0)).sqrt().item()
