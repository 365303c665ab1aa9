"""Second step of the path: which part of a file a clip is, and what happens to one too short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from video_diffusion_pytorch.data.frame_size import FrameSize, Offset


def cast_num_frames(t: torch.Tensor, *, frames: int) -> torch.Tensor:
    """Cut a clip to its first frames, or lengthen it with black ones.

    Args:
        t: `(c, f, h, w)`.
        frames: The number of frames wanted.

    Returns:
        `(c, frames, h, w)`: `t` itself where it has that length, a view of it where it is longer.

    Example:
        >>> cast_num_frames(torch.ones(1, 3, 2, 2), frames=5)[0, :, 0, 0]
        tensor([1., 1., 1., 0., 0.])
    """
    missing = frames - t.shape[1]
    if missing > 0:
        return F.pad(t, (0, 0, 0, 0, 0, missing))
    return t[:, :frames]


def windows(span: range, length: int) -> list[range]:
    """One clip after the other; what is left at the end makes a clip only if it is the only one.

    Example:
        >>> windows(range(10, 31), 10)
        [range(10, 20), range(20, 30)]
        >>> windows(range(4), 10)
        [range(0, 4)]
    """
    starts = range(span.start, span.stop - length + 1, length)
    return [range(start, start + length) for start in starts] or [span]


def random_window(span: range, length: int, generator: torch.Generator | None) -> range:
    """A part of `span`, each as likely as the other."""
    room = len(span) - length
    if room <= 0:
        return span
    start = span.start + int(torch.randint(room + 1, (), generator=generator))
    return range(start, start + length)


def stretched(span: range, length: int) -> Sequence[int]:
    """`length` positions at even distances, from the first of `span` to its last, each the nearest.

    Example:
        >>> stretched(range(10, 14), 7), stretched(range(10), 4)
        ([10, 11, 11, 12, 12, 13, 13], [0, 3, 6, 9])
    """
    steps = max(length - 1, 1)
    # in whole numbers, halves up: no rounding of floats moves a frame
    return [span[(2 * i * (len(span) - 1) + steps) // (2 * steps)] for i in range(length)]


def frames_before(count: int, length: int, position: str) -> int:
    """How many of the frames that lengthen a clip of `count` come first; see `pad_position`."""
    return max(0, length - count) // 2 if position == "center" else 0


def repeat_ends(
    values: torch.Tensor, length: int | None, dim: int, position: str = "end"
) -> torch.Tensor:
    """Lengthens `values` along `dim` with its last entry, or around them with the first, too."""
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
    """Lengthens a clip that is too short, as `pad` of `Dataset` says.

    Args:
        video: `(c, f, h, w)`.
        length: Number of frames wanted.
        pad: `"black"`, `"repeat"`, `"mask"` or `"error"`.
        black: The value of black in each channel, `(c,)`; None for 0.
        path: The file, for the error.
        position: `pad_position` of `Dataset`.

    Raises:
        ValueError: It is too short, and `pad` is `"error"`.
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
    """How a clip, and a field that belongs to it, is cropped and mirrored.

    Attributes:
        offset: Which part of a larger frame is kept.
        flips: Axes that are reversed.
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
        """Draws what is to be random: the crop, and whether to flip left to right, upside down."""

        def uniform() -> float:
            return float(torch.rand((), generator=generator))

        offset = (uniform(), uniform()) if is_random_crop else (0.5, 0.5)
        wanted = ((-1, horizontal_flip), (-2, vertical_flip))
        return cls(offset, tuple(axis for axis, is_on in wanted if is_on and uniform() < 0.5))

    def of(
        self, video: torch.Tensor, size: FrameSize | None, black: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Crops `(c, f, h, w)` to a size, None for no crop, and mirrors it."""
        if size is not None:
            video = size.finish_array(video, self.offset, black)
        return video.flip(self.flips) if self.flips else video
