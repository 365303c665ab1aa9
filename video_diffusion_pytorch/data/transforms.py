"""Transforms of clips: resize, crop, flip, padding in space and time, and the value range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import ValueRange
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.pictures import ToTensor

if TYPE_CHECKING:
    from PIL.Image import Image

FITS = ("cover", "contain", "stretch")
CROPS = ("center", "random")

# A frame that exceeds the target by this factor is cropped before it is scaled
_EXTREME = 8

# Of a crop: 0 is the top and left end, 1 the bottom and right one
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
        # One side fits exactly, the other one is rounded down as torchvision does
        is_tall = height * target_w >= width * target_h
        if is_tall == (self.fit == "cover"):
            other = target_w * height // width
            return self._at_least_or_most(other, target_h), target_w
        other = target_h * width // height
        return target_h, self._at_least_or_most(other, target_w)

    def _at_least_or_most(self, side: int, target: int) -> int:
        return max(target, side) if self.fit == "cover" else min(target, max(1, side))

    def _needed(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a frame to scale, with the target at the center.

        All of them, except for an extreme aspect ratio, where the whole scaled frame might not fit
        into memory.
        """
        rows, columns = slice(0, height), slice(0, width)
        target_h, target_w = self.size
        scaled_h, scaled_w = self.scaled_size(height, width)
        if self.fit != "cover" or self.crop != "center":
            return rows, columns
        # Twice the target: the antialiasing filter reads beyond the crop
        if scaled_w > _EXTREME * target_w:
            columns = _middle(width, -(-2 * height * target_w // target_h))
        elif scaled_h > _EXTREME * target_h:
            rows = _middle(height, -(-2 * width * target_h // target_w))
        return rows, columns

    # pictures

    def scale(self, frame: Image) -> Image:
        """Scales a picture, before the crop."""
        if frame.size == self.size[::-1]:
            return frame
        from PIL.Image import Resampling

        rows, columns = self._needed(frame.height, frame.width)
        if (rows.stop - rows.start, columns.stop - columns.start) != (frame.height, frame.width):
            frame = frame.crop((columns.start, rows.start, columns.stop, rows.stop))
        h, w = self.scaled_size(frame.height, frame.width)
        return frame if (w, h) == frame.size else frame.resize((w, h), Resampling.BILINEAR)

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
        pixels = np.asarray(frame)
        return pixels if pixels.ndim == 3 else pixels[..., None]

    # arrays

    def scale_array(self, video: torch.Tensor) -> torch.Tensor:
        """Scales `(c, f, h, w)`, floats or uint8, before the crop."""
        rows, columns = self._needed(*video.shape[-2:])
        video = video[..., rows, columns]
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
        self,
        video: torch.Tensor,
        offset: Offset = (0.5, 0.5),
        black: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Crops a scaled `(c, f, h, w)` to the target, or pads it on all sides.

        Args:
            video: The scaled clip.
            offset: The part to keep: 0 the upper or left end, 1 the lower or right one.
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


def _middle(length: int, wanted: int) -> slice:
    """The center of this length, or one more for the same margin on both sides."""
    kept = min(length, wanted + (length - wanted) % 2)
    return slice((length - kept) // 2, (length + kept) // 2)


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
    start = span.start + int(torch.randint(room + 1, (), generator=generator))
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


def frames_before(count: int, length: int, position: str) -> int:
    """Number of padding frames before a clip of `count` frames; see `pad_position`."""
    return max(0, length - count) // 2 if position == "center" else 0


def real_frames(count: int, length: int, position: str) -> torch.Tensor:
    """The mask `(length,)` of a padded clip: true for the `count` frames of its file."""
    places = torch.arange(length) - frames_before(count, length, position)
    return (places >= 0) & (places < count)


def repeat_ends(
    values: torch.Tensor, length: int | None, dim: int, position: str = "end"
) -> torch.Tensor:
    """Pads `values` along `dim` with its last entry and, before it, with its first one."""
    count = values.shape[dim]
    if length is None or count >= length:
        return values
    places = torch.arange(length) - frames_before(count, length, position)
    return values.index_select(dim, places.clamp(0, count - 1))


def fill_up(
    video: torch.Tensor,
    length: int,
    pad: str,
    black: torch.Tensor | None,
    path: Path,
    position: str = "end",
) -> torch.Tensor:
    """Pads a clip that is too short, as specified by `pad` of `Dataset`.

    Args:
        video: `(c, f, h, w)`.
        length: Target number of frames.
        pad: `"black"`, `"repeat"`, `"mask"` or `"error"`.
        black: The value of black in each channel, `(c,)`; None for 0.
        path: The file, for the error.
        position: `pad_position` of `Dataset`.

    Raises:
        ValueError: The clip is too short, and `pad` is `"error"`.
    """
    missing = length - video.shape[1]
    if missing <= 0:
        return video
    if pad == "error":
        raise ValueError(
            f"{path} must have {length} frames for a clip, got {video.shape[1]}; remove it, or "
            "pass pad='repeat' or pad='black'"
        )
    if pad != "black":
        return repeat_ends(video, length, 1, position)
    dark = video.new_zeros(len(video)) if black is None else black.to(video.dtype)
    dark = dark.view(-1, 1, 1, 1).expand(-1, missing, *video.shape[2:])
    before = frames_before(video.shape[1], length, position)
    return torch.cat((dark[:, :before], video, dark[:, before:]), dim=1)


@dataclass(frozen=True)
class View:
    """The crop and the flips of a clip and its field.

    Attributes:
        offset: The part of a larger frame to keep.
        flips: Axes to reverse.
    """

    offset: Offset = (0.5, 0.5)
    flips: tuple[int, ...] = ()

    @classmethod
    def draw(
        cls,
        is_random_crop: bool,
        horizontal_flip: bool,
        vertical_flip: bool,
        generator: torch.Generator | None,
    ) -> View:
        """Draws the random crop and flips."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator))

        offset = (uniform(), uniform()) if is_random_crop else (0.5, 0.5)
        wanted = ((-1, horizontal_flip), (-2, vertical_flip))
        return cls(offset, tuple(axis for axis, is_on in wanted if is_on and uniform() < 0.5))

    def of(
        self, video: torch.Tensor, size: FrameSize | None, black: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Crops or pads `(c, f, h, w)` to a size, None to skip this, and flips it."""
        if size is not None:
            video = size.finish_array(video, self.offset, black)
        return video.flip(self.flips) if self.flips else video


_Part = TypeVar("_Part")


def fit_value_range(parts: Sequence[_Part], read: Callable[[_Part], torch.Tensor]) -> ValueRange:
    """Finds the least and the largest value of each channel.

    Args:
        parts: Arguments of `read`.
        read: Gives the finite values of a part, `(c, f, h, w)`; parts for which it raises an
            `UnreadableVideoError` are skipped.

    Returns:
        Lows and highs, one per channel each.

    Raises:
        ValueError: No part is readable, or a channel is constant.

    Example:
        >>> fit_value_range([1.0, 5.0], lambda top: torch.tensor([0.0, top]).view(1, 1, 1, 2))
        ((0.0,), (5.0,))
    """
    unread: UnreadableVideoError | None = None
    lows: list[torch.Tensor] = []
    highs: list[torch.Tensor] = []
    for part in tqdm(parts, desc="fitting the value range", leave=False):
        try:
            values = read(part).flatten(1)
        except UnreadableVideoError as error:
            unread = unread or error
            continue  # training reports it
        lows.append(values.amin(1).double())
        highs.append(values.amax(1).double())
    if not lows:
        raise ValueError(
            "value_range='fit' must find a file that can be read, got none; repair them, the first "
            f"being: {unread}"
        ) from unread
    least, most = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    if (least.float() >= most.float()).any():
        raise ValueError(
            f"value_range='fit' must find values that differ in each channel, got "
            f"{least.tolist()} to {most.tolist()}; give the range, or leave the channel out"
        )
    return tuple(least.tolist()), tuple(most.tolist())
