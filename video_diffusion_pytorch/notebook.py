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

from video_diffusion_pytorch.data.display import ValueRange, to_pictures, video_grid
from video_diffusion_pytorch.data.write_video import write_video

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAST_SIDE = 96
# tells black videos apart
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
    """Show videos in a notebook, all at once, in a grid that plays in a loop.

    In a notebook the result of a cell's last line is shown; elsewhere in a cell
    `IPython.display.display(show(videos))` shows it. Outside of notebooks `show(videos).save(path)`
    writes it to a file.

    Grey, RGB and RGBA are shown as they are. Videos with other numbers of channels, and floats that
    are in no known range, are shown in false colours: each channel by itself, from dark blue for
    its low to yellow for its high, and red where a value is not finite.

    Args:
        videos: A tensor or array `(b, c, f, h, w)`, or one video `(c, f, h, w)`; floats in [0, 1],
            uint8, or in `value_range`.
        fps: Frames per second, 0.01 to 1000.
        rows: Rows of the grid; None for what the columns leave, or next to a square.
        columns: Videos in a row; None for what the rows leave, or next to a square.
        zoom: Side, in pixels of the screen, of the square that a pixel becomes; None for one that
            makes the longer side of small videos at least 96.
        captions: A text under each video; None for none.
        value_range: The low and the high of the values, each a number or one per channel; with 1,
            3 or 4 channels they are black and white. "fit": false colours, from the least to the
            largest value of each channel. None: [0, 1] or uint8 where the values fit and there are
            1, 3 or 4 channels, otherwise as "fit".
        false_colour: Whether 1, 3 or 4 channels are quantities, such as a velocity, and no colours.

    Returns:
        What a notebook shows, and `save` writes.

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
    pictures = to_pictures(batch, value_range, keep_pictures=not false_colour)
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
    """Videos side by side, as `show` gives them: a notebook shows it, and `save` writes it.

    Args:
        video: `(c, f, h, w)`, all of it.
        fps: Frames per second.
        about: What it is, in words.
        captions: What screen readers are told of the videos.

    Attributes:
        video: `(c, f, h, w)` in [0, 1], all of it.
        fps: Frames per second.

    Raises:
        ValueError: `fps` is out of range, or the grid is larger than a webp may be.
    """

    def __init__(
        self, video: Tensor, fps: float | Fraction, about: str, captions: Sequence[str] = ()
    ) -> None:
        self.video, self.fps = video, fps
        self._about, self._captions = about, tuple(captions)
        # a format that browsers play, exact, and with the times of frames in milliseconds
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "grid.webp"
            self.save(path)
            self._webp = path.read_bytes()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the grid to a file that plays.

        Args:
            path: The file, in a format that `write_video` knows, such as `.gif` or `.mp4`.

        Raises:
            FileNotFoundError: The folder to write into is missing.
            ValueError: The file's ending is unknown, or `fps` is out of the format's range.

        Example:
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     show(torch.rand(4, 1, 5, 8, 8)).save(f"{folder}/noise.gif")
            ...     os.listdir(folder)
            ['noise.gif']
        """
        write_video(self.video, path, fps=self.fps)

    def __repr__(self) -> str:
        return f"<{self._about}: a notebook shows it, and .save('videos.gif') writes it to a file>"

    def _repr_html_(self) -> str:
        """What IPython asks for: a picture that plays, with nothing outside of it."""
        told = html.escape("; ".join((self._about, *self._captions)), quote=True)
        data = base64.b64encode(self._webp).decode("ascii")
        return f'<img src="data:image/webp;base64,{data}" alt="{told}">'


def _to_batch(videos: Any) -> Tensor:
    if not isinstance(videos, Tensor):
        try:
            videos = torch.as_tensor(videos)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"videos must be a tensor or an array of numbers, got {type(videos).__name__}; "
                "videos of one size can be joined with torch.stack"
            ) from error
    if videos.ndim == 4:
        videos = videos[None]
    if videos.ndim != 5 or not videos.numel():
        raise ValueError(
            "videos must have the shape (videos, channels, frames, height, width), or that of one "
            f"of them, and not be empty, got {tuple(videos.shape)}; add the axes that are missing"
        )
    if videos.is_complex():
        raise TypeError(
            f"videos must be real numbers, got {videos.dtype}; show its real and imaginary parts "
            "as two channels"
        )
    return videos.detach().cpu()


def _columns(count: int, rows: int | None, columns: int | None) -> int:
    for name, number in (("rows", rows), ("columns", columns)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}; give a positive number")
    if rows is not None and columns is not None and rows * columns < count:
        raise ValueError(
            f"rows and columns must have a place for each of {count} videos, got {rows} x "
            f"{columns}; give more of them, or leave one out"
        )
    if columns is None:
        columns = math.ceil(math.sqrt(count) if rows is None else count / rows)
    return columns
