"""The interface of readers, kinds of files by their first bytes, and readers of users."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    is_of_the_machine,
    missing_file,
    regular_file,
    unreadable,
)

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from typing_extensions import Self


CHANNELS_TO_MODE = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels of a clip -> Pillow's name for such a picture."""


def mode_of(channels: int) -> str:
    """Give Pillow's name for pictures of that many channels.

    Raises:
        ValueError: `channels` is none of 1, 3, 4.
    """
    if channels not in CHANNELS_TO_MODE:
        raise ValueError(
            f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 for "
            "grey, 3 for colour, 4 for colour and opacity"
        )
    return CHANNELS_TO_MODE[channels]


class VideoReader(ABC):
    """An opened video, whose frames are decoded when they are asked for.

    Close it after use, or open it in a `with` statement.

    Attributes:
        path: The file, or the folder of frames.
        channels: Of the frames it gives.
        is_array: Whether frames come from `array`, as tensors of any value range, or from
            `pictures`.
    """

    is_array: bool = False

    def __init__(self, path: Path, channels: int) -> None:
        self.path = path
        self.channels = channels

    @property
    @abstractmethod
    def num_frames(self) -> int:
        """How many frames there are; found without decoding them."""

    @property
    @abstractmethod
    def fps(self) -> float | None:
        """Average frames per second; None where the file has no clock."""

    @property
    @abstractmethod
    def times(self) -> Sequence[float] | None:
        """When each frame is shown, in seconds after the first; None where there is no clock."""

    @property
    def end(self) -> float | None:
        """When the last frame stops being shown, in the seconds of `times`; None if not known."""
        return None

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode frames of a picture file or a movie.

        Args:
            indices: Numbers of frames, from 0 up, strictly increasing. They may run past the end of
                the file, where the pictures end too.

        Returns:
            An iterator over pictures of mode L, RGB or RGBA, as `channels` says.

        Raises:
            TypeError: The file holds an array.
            ValueError: `indices` are negative or do not increase, or the reader is closed.
            UnreadableVideoError: The file is damaged; raised where the damage is met.
        """
        raise TypeError(
            f"frames of {self.path} as pictures: expected a picture file or a movie, got an array; "
            "call array() instead"
        )

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """Read frames of an array file, or of a picture or movie of more than 8 bits.

        Args:
            indices: As for `pictures`.

        Returns:
            `(c, len(indices), h, w)`, uint8 where the file holds uint8, else float32.

        Raises:
            TypeError: The file holds pictures of 8 bits.
            ValueError: `indices` are negative or do not increase, or the reader is closed.
            UnreadableVideoError: The file is damaged.
        """
        raise TypeError(
            f"frames of {self.path} as an array: expected an array file, got a picture file or a "
            "movie; call pictures() instead"
        )

    @abstractmethod
    def close(self) -> None:
        """Let go of the file; harmless when repeated."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def closed_reader(path: Path) -> ValueError:
    """Say that a reader was used after it was closed, for the caller to raise.

    Example:
        >>> print(closed_reader(Path("a.gif")))
        frames of a.gif: expected an open reader, got a closed one; read inside the with ...
    """
    return ValueError(
        f"frames of {path}: expected an open reader, got a closed one; read inside the with "
        "statement"
    )


def check_indices(indices: Sequence[int] | range) -> Sequence[int] | range:
    """Refuse numbers of frames that no reader can go through in one pass.

    Raises:
        ValueError: They are negative or do not increase.

    Example:
        >>> check_indices(range(0, 10**12, 3))
        range(0, 1000000000000, 3)
    """
    if isinstance(indices, range):  # decided without walking through it
        increasing = indices.step > 0 or not indices[1:]
    else:
        increasing = all(a < b for a, b in itertools.pairwise(indices))
    if not increasing or next(iter(indices), 0) < 0:
        is_short = isinstance(indices, range) or len(indices) < 10
        shown = repr(indices) if is_short else f"{str(list(indices[:9]))[:-1]}, ...]"
        raise ValueError(
            "numbers of frames must be at least 0 and increase from each to the next, got "
            f"{shown}; sort them, and leave out repeated ones"
        )
    return indices


class FrameTimes:
    """What a file's clock says: durations of its frames in seconds -> rate, times and end.

    Example:
        >>> clock = FrameTimes([0.1, 0.1, 0.3])
        >>> clock.fps, clock.times, clock.end
        (6.0, [0.0, 0.1, 0.2], 0.5)
    """

    def __init__(self, durations: Sequence[float]) -> None:
        total = sum(durations)
        self.fps: float | None = len(durations) / total if total > 0 else None
        self.times: list[float] | None = (
            list(itertools.accumulate(durations[:-1], initial=0.0)) if total > 0 else None
        )
        self.end: float | None = total if total > 0 else None


SIGNATURE_BYTES = 16
"""How much of a file `family_of_bytes` looks at."""

FAMILY_OF_ENDING = {
    "gif": "gif",
    "webp": "webp",
    "png": "png",
    "apng": "png",
    "mp4": "mp4",
    "m4v": "mp4",
    "mov": "mp4",
    "mkv": "mkv",
    "webm": "mkv",
    "avi": "avi",
    "npy": "npy",
    "npz": "zip",
    "pt": "zip",
}
"""Ending of a file's name -> the kind of bytes that belong in it."""

_ENDINGS_TO_SUGGEST = {"mp4": ".mp4 or .mov", "mkv": ".mkv or .webm", "zip": ".npz or .pt"}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def family_of_bytes(head: bytes) -> str | None:
    """Tell from its first bytes what kind of video a file holds.

    Args:
        head: The first `SIGNATURE_BYTES` of the file, or all of a shorter one.

    Returns:
        One of the values of `FAMILY_OF_ENDING`; None for any other file.

    Example:
        >>> family_of_bytes(b"GIF89a"), family_of_bytes(b"<!DOCTYPE html>")
        ('gif', None)
    """
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12])
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    starts = {
        b"\x89PNG\r\n\x1a\n": "png",
        b"\x1a\x45\xdf\xa3": "mkv",
        b"\x93NUMPY": "npy",
        b"PK\x03\x04": "zip",
    }
    return next((family for start, family in starts.items() if head.startswith(start)), None)


def check_signature(path: Path, family: str) -> None:
    """Refuse a file whose bytes do not belong under its name.

    Args:
        path: The file.
        family: What its name promises: one of the values of `FAMILY_OF_ENDING`.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, or of another kind.
    """
    try:
        with regular_file(path).open("rb") as file:
            head = file.read(SIGNATURE_BYTES)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    found = family_of_bytes(head)
    if found == family:
        return
    expected = f"the {family} file that its name promises"
    if not head:
        raise unreadable(path, expected, "an empty file")
    if found is None:
        raise unreadable(path, expected, f"bytes of no known kind of video ({head!r})")
    ending = _ENDINGS_TO_SUGGEST.get(found, f".{found}")
    raise unreadable(path, expected, f"bytes that look like {found}", f"rename it to {ending}")


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
