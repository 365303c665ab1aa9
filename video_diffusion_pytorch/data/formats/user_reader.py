"""First step of the path, for formats that only the user can read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    is_of_the_machine,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.video_reader import VideoReader, check_indices

ReadFn = Callable[[Path], Any]

_WHOLE = "read_fn to give a number for each pixel"


class FunctionReader(VideoReader):
    """What a function of the user's gives for a file, as an opened video.

    Args:
        path: The file.
        read_fn: Called with the path, gives an array or tensor `(c, f, h, w)`, or that and the
            frames per second.
        channels: Expected; None for any.

    Raises:
        TypeError: The function gives something else.
        UnreadableVideoError: The function fails, other than for lack of memory, files or disk; its
            array has other axes or another number of channels, holds no real numbers, or has
            masked values; or the rate is no number above 0.
    """

    is_array = True

    def __init__(self, path: Path, read_fn: ReadFn, channels: int | None = None) -> None:
        if path.exists() and not path.is_dir():
            regular_file(path)
        given = _call(read_fn, path)
        has_rate = isinstance(given, tuple) and len(given) == 2
        values, fps = given if has_rate else (given, None)
        self._fps = None if fps is None else _as_rate(fps, path)
        if not isinstance(values, (np.ndarray, torch.Tensor)):
            raise TypeError(
                f"read_fn must give an array or tensor (c, f, h, w), or (array, fps), got "
                f"{type(values).__name__} for {path}; convert it with numpy.asarray"
            )
        if np.ma.is_masked(values):
            got = f"{np.ma.count_masked(values)} that are masked"
            raise unreadable(path, _WHOLE, got, "fill them in read_fn, as by values.filled(0)")
        if isinstance(values, np.ndarray):
            is_real = values.dtype.kind in "biuf"
        else:
            is_real = not values.is_complex()
        expected = "any number of" if channels is None else str(channels)
        if values.ndim != 4 or not is_real or channels not in (None, values.shape[0]):
            raise unreadable(
                path,
                f"read_fn to give real numbers of shape (c, f, h, w) with {expected} channels",
                f"{values.dtype} of shape {tuple(values.shape)}",
                "move the axes or convert the numbers in read_fn, or set channels",
            )
        if isinstance(values, np.ndarray):
            # torch knows neither foreign byte orders nor most unsigned types
            values = values.astype(_plain_type(values.dtype))
            values = torch.from_numpy(np.ascontiguousarray(values))
        super().__init__(path, values.shape[0])
        self._video = values if values.dtype == torch.uint8 else values.float()

    @property
    def num_frames(self) -> int:
        """How many frames the function gave."""
        return self._video.shape[1]

    @property
    def fps(self) -> float | None:
        """What the function said; None if nothing."""
        return self._fps

    @property
    def times(self) -> Sequence[float] | None:
        """By the rate that the function said."""
        if self._fps is None:
            return None
        return [index / self._fps for index in range(self.num_frames)]

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """The frames of these numbers, as far as there are such."""
        wanted = [index for index in check_indices(indices) if index < self.num_frames]
        return self._video[:, wanted]

    def close(self) -> None:
        """Nothing is open."""


def _call(read_fn: ReadFn, path: Path) -> Any:
    """What the function gives; any error of its own is one of the file."""
    try:
        return read_fn(path)
    except (UnreadableVideoError, MemoryError):
        raise
    except Exception as error:
        if is_of_the_machine(error):
            raise
        got = f"{type(error).__name__}: {error!s:.500}"
        advice = "repair or remove the file, or correct read_fn"
        raise unreadable(path, "a file that read_fn can read", got, advice) from error


def _as_rate(fps: Any, path: Path) -> float:
    try:
        rate = math.nan if isinstance(fps, (str, bytes, bool)) else float(fps)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        expected = "read_fn to give the frames per second as a number above 0, or None"
        raise unreadable(path, expected, f"{fps!r:.60}", "correct it in read_fn")
    return rate


def _plain_type(dtype: np.dtype) -> type:
    return np.uint8 if dtype == np.uint8 else np.float32
