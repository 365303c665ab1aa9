"""Videos in a notebook, side by side."""

from __future__ import annotations

import base64
import html
import math
import os
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.data.display import ValueRange, to_pictures, video_grid
from video_diffusion_pytorch.data.write_video import write_video

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAST_SIDE = 96
# frames of this grey separate black videos
_GREY = 0.35


def show(
    videos: ArrayLike | Tensor,
    *,
    fps: float | Fraction = 8.0,
    rows: int | None = None,
    columns: int | None = None,
    zoom: int | None = None,
    captions: Sequence[str] | None = None,
    value_range: ValueRange | Literal["fit"] | None = None,
    false_colour: bool = False,
) -> PlayingGrid:
    """Shows videos in a notebook, in a grid that plays in a loop.

    A notebook displays the result of a cell's last line; elsewhere in a cell, use
    `IPython.display.display(show(videos))`. Outside of notebooks, `show(videos).save(path)` writes
    a file.

    Grey, RGB and RGBA videos are shown as they are, and floats of one channel outside [0, 1] from
    black for the lowest to white for the highest. Videos with other numbers of channels, and other
    floats outside [0, 1], are shown in false colours: each channel by itself, from dark blue for
    its low to yellow for its high. NaN and infinite values are red.

    Args:
        videos: A tensor or array `(b, c, f, h, w)`, or one video `(c, f, h, w)`; floats in [0, 1],
            uint8, or in `value_range`.
        fps: Frames per second, 0.01 to 1000.
        rows: Rows of the grid; None for as many as the columns require, or nearly a square.
        columns: Videos in a row; None for as many as the rows require, or nearly a square.
        zoom: Factor by which pixels are enlarged; None for one that makes the longer side of small
            videos at least 96.
        captions: A text under each video; None for none.
        value_range: Low and high of the values, each a number or one per channel; with 1, 3 or 4
            channels they are black and white. "fit": false colours, from the minimum to the maximum
            of each channel. None: [0, 1] or uint8 if the values are in that range and there are 1,
            3 or 4 channels, otherwise the minimum to the maximum of each channel.
        false_colour: Whether 1, 3 or 4 channels are quantities, such as velocities, not colours.

    Returns:
        An object that a notebook displays.

    Raises:
        TypeError: `videos` is neither a tensor nor an array of numbers.
        ValueError: A shape, a number or the range is not as described above.

    Example:
        >>> show(torch.rand(6, 3, 8, 16, 16), columns=3)
        <6 videos of 8 frames, 3 x 16 x 16, at 8 frames per second, in a grid of 2 x 3: ...>
    """
    batch = _to_batch(videos)
    count, c, f, h, w = batch.shape
    columns = _columns(count, rows, columns)
    if false_colour and value_range is None:
        value_range = "fit"
    if value_range is None:
        # several channels outside [0, 1] are no colours
        keep_pictures = c == 1
    else:
        keep_pictures = not (isinstance(value_range, str) or false_colour)
    pictures = to_pictures(batch, value_range, keep_pictures=keep_pictures)
    if zoom is None:
        zoom = max(1, math.ceil(_LEAST_SIDE / max(pictures.shape[-2:])))
    grid = video_grid(pictures, columns, zoom=zoom, frame=_GREY, captions=captions)
    number = "1 video" if count == 1 else f"{count} videos"
    about = (
        f"{number} of {f} frames, {c} x {h} x {w}, at {float(fps):g} frames per second, in a grid "
        f"of {-(-count // columns)} x {columns}"
    )
    return PlayingGrid(grid, fps, about, captions or ())


class PlayingGrid:
    """A grid of videos, the result of `show`: notebooks display it, and `save` writes it.

    Args:
        video: The whole grid, `(c, f, h, w)`.
        fps: Frames per second.
        about: A description.
        captions: Captions of the videos, for screen readers.

    Attributes:
        video: The whole grid, `(c, f, h, w)` in [0, 1].
        fps: Frames per second.

    Raises:
        ValueError: `fps` is out of range, or the grid is larger than a webp may be.
    """

    def __init__(
        self, video: Tensor, fps: float | Fraction, about: str, captions: Sequence[str] = ()
    ) -> None:
        self.video, self.fps = video, fps
        self._about, self._captions = about, tuple(captions)
        # browsers play webp, which is lossless and has frame times in milliseconds
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grid.webp"
            self.save(path)
            self._webp = path.read_bytes()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the grid to a video file.

        Args:
            path: The file, in a format of `write_video`, such as `.gif` or `.mp4`.

        Raises:
            FileNotFoundError: The folder is missing.
            ValueError: The file's ending is unknown, or `fps` is out of the format's range.

        Example:
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     show(torch.rand(4, 1, 5, 8, 8)).save(f"{folder}/noise.gif")
            ...     os.listdir(folder)
            ['noise.gif']
        """
        write_video(self.video, path, fps=self.fps)

    def __repr__(self) -> str:
        return f"<{self._about}: write it to a file with .save('videos.gif')>"

    def _repr_html_(self) -> str:
        """Returns an animated image with its data inline, for IPython."""
        text = html.escape("; ".join((self._about, *self._captions)), quote=True)
        data = base64.b64encode(self._webp).decode("ascii")
        return f'<img src="data:image/webp;base64,{data}" alt="{text}">'


def _to_batch(videos: Any) -> Tensor:
    try:
        videos = torch.as_tensor(videos, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"videos must be a tensor or an array of numbers, got {type(videos).__name__}; "
            "videos of one size can be joined with torch.stack"
        ) from error
    if videos.ndim == 4:
        videos = videos[None]
    if videos.ndim != 5 or not videos.numel() or videos.is_complex():
        raise ValueError(
            "videos must be real numbers of shape (videos, channels, frames, height, width), or "
            f"one video without the first axis, got {videos.dtype} of shape {tuple(videos.shape)}"
        )
    return videos.detach()


def _columns(count: int, rows: int | None, columns: int | None) -> int:
    rows, columns = (
        None if number is None else as_count(number, name)
        for name, number in (("rows", rows), ("columns", columns))
    )
    if rows is not None and columns is not None and rows * columns < count:
        raise ValueError(
            f"rows and columns must have a place for each of {count} videos, got {rows} x "
            f"{columns}; leave one of them out"
        )
    if columns is None:
        columns = math.ceil(math.sqrt(count) if rows is None else count / rows)
    return columns
