"""The interface of readers, and the kinds of files by their names and first bytes."""

from __future__ import annotations

import contextlib
import itertools
import reprlib
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from video_diffusion_pytorch.data.errors import (
    REPLACE,
    UnreadableVideoError,
    is_of_the_machine,
    missing_file,
    regular_file,
    unreadable,
)

if TYPE_CHECKING:
    from PIL.Image import Image
    from typing_extensions import Self


CHANNELS_TO_MODE = {1: "L", 3: "RGB", 4: "RGBA"}
"""Number of channels of a clip -> Pillow's name for such a picture."""


def mode_of(channels: int) -> str:
    """Pillow's name for pictures with this number of channels.

    Raises:
        ValueError: `channels` is none of 1, 3, 4.
    """
    if channels not in CHANNELS_TO_MODE:
        raise ValueError(
            f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 for "
            "grey, 3 for colour, 4 for colour and opacity"
        )
    return CHANNELS_TO_MODE[channels]


class Clock(NamedTuple):
    """Time stamps of a video; without any by default.

    Attributes:
        fps: Average frames per second.
        times: When each frame is displayed, in seconds after the first.
        end: When the last frame stops being displayed.
    """

    fps: float | None = None
    times: Sequence[float] | None = None
    end: float | None = None

    @classmethod
    def of_durations(cls, durations: Sequence[float]) -> Clock:
        """From the duration of each frame in seconds; no clock if these are all 0.

        Example:
            >>> Clock.of_durations([0.1, 0.1, 0.3])
            Clock(fps=6.0, times=[0.0, 0.1, 0.2], end=0.5)
        """
        total = sum(durations)
        if total <= 0:
            return cls()
        times = list(itertools.accumulate(durations[:-1], initial=0.0))
        return cls(len(durations) / total, times, total)

    @classmethod
    def of_rate(cls, fps: float | None, num_frames: int) -> Clock:
        """From a constant rate; no clock if it is None."""
        return cls() if fps is None else cls(fps, [i / fps for i in range(num_frames)])


class VideoReader:
    """An opened video, whose frames are decoded on demand.

    Close it after use, or open it in a `with` statement. A subclass decodes one frame in `_frame`.

    Args:
        path: The file, or the folder of frames.
        channels: Of the decoded frames.
        num_frames: Number of frames.
        clock: When they are displayed.

    Attributes:
        path: As given.
        channels: As given.
        is_array: Whether frames come from `array`, as tensors of any value range, or from
            `pictures`.
    """

    is_array: bool = False

    def __init__(
        self, path: Path, channels: int, num_frames: int = 0, clock: Clock | None = None
    ) -> None:
        self.path, self.channels = path, channels
        self._num_frames, self._clock = num_frames, clock or Clock()
        self._is_closed = False

    @property
    def num_frames(self) -> int:
        """Number of frames; found without decoding them."""
        return self._num_frames

    @property
    def fps(self) -> float | None:
        """Average frames per second; None if the file has no clock."""
        return self._clock.fps

    @property
    def times(self) -> Sequence[float] | None:
        """When each frame is displayed, in seconds after the first; None if there is no clock."""
        return self._clock.times

    @property
    def end(self) -> float | None:
        """When the last frame stops being displayed, in the seconds of `times`; None if unknown."""
        return self._clock.end

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decodes frames of a picture file or a movie.

        Args:
            indices: Numbers of frames, from 0 up, strictly increasing. They may exceed the end of
                the file, where the pictures end, too.

        Returns:
            An iterator over pictures of mode L, RGB or RGBA, depending on `channels`.

        Raises:
            TypeError: The file holds an array.
            ValueError: `indices` are negative or do not increase, or the reader is closed.
            UnreadableVideoError: The file is damaged; raised when the damage is reached.
        """
        if self.is_array:
            raise TypeError(
                f"frames of {self.path} as pictures: expected a picture file or a movie, got an "
                "array; call array() instead"
            )
        return self._decode(check_indices(indices))

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """Reads frames of an array file, or of a picture or movie of more than 8 bits.

        Args:
            indices: As for `pictures`.

        Returns:
            `(c, len(indices), h, w)`, uint8 if the file holds uint8, else float32.

        Raises:
            TypeError: The file holds pictures of 8 bits.
            ValueError: `indices` are negative or do not increase, or the reader is closed.
            UnreadableVideoError: The file is damaged, or its frames differ in size.
        """
        if not self.is_array:
            raise TypeError(
                f"frames of {self.path} as an array: expected an array file, got a picture file or "
                "a movie; call pictures() instead"
            )
        return self._array(check_indices(indices))

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError(
                f"frames of {self.path}: expected an open reader, got a closed one; read inside "
                "the with statement"
            )

    def _frame(self, index: int) -> Any:
        """A picture, or a tensor `(c, h, w)` if `is_array`; None past the end."""
        raise NotImplementedError

    def _decode(self, indices: Sequence[int] | range) -> Iterator[Any]:
        for index in indices:
            self._check_open()
            frame = self._frame(index)
            if frame is None:
                return
            yield frame
            del frame  # large ones may not fit into memory twice

    def _array(self, indices: Sequence[int] | range) -> torch.Tensor:
        frames = list(self._decode(indices))
        if not frames:
            return torch.empty(self.channels, 0, 0, 0, device="cpu")
        check_sizes(self.path, frames)
        if len(frames) == 1:
            return frames[0][:, None].contiguous()  # no copy of a large frame
        return torch.stack(frames, dim=1)


def check_sizes(path: Path, frames: Sequence[Any]) -> None:
    """Rejects frames, as tensors or arrays, of different shapes.

    Raises:
        UnreadableVideoError: Their shapes differ.
    """
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        raise unreadable(path, "frames of one size", f"{shapes}", "bring them to one size first")


def check_indices(indices: Sequence[int] | range) -> Sequence[int] | range:
    """Rejects numbers of frames that cannot be read in one pass.

    Raises:
        ValueError: They are negative or do not increase.

    Example:
        >>> check_indices(range(0, 10**12, 3))
        range(0, 1000000000000, 3)
    """
    if isinstance(indices, range):  # without iterating over it
        increasing = indices.step > 0 or not indices[1:]
    else:
        increasing = all(a < b for a, b in itertools.pairwise(indices))
    if not increasing or next(iter(indices), 0) < 0:
        raise ValueError(
            "numbers of frames must be at least 0 and increase from each to the next, got "
            f"{reprlib.repr(indices)}; sort them, and leave out repeated ones"
        )
    return indices


_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_FORMATS = {  # name: extensions, offset of the signature, alternatives of it
    "gif": (("gif",), 0, (b"GIF87a", b"GIF89a")),
    "webp": (("webp",), 8, (b"WEBP",)),
    "png": (("png", "apng"), 0, (b"\x89PNG\r\n\x1a\n",)),
    "mp4": (("mp4", "m4v", "mov"), 4, _MP4_BOXES),
    "mkv": (("mkv", "webm"), 0, (b"\x1a\x45\xdf\xa3",)),
    "avi": (("avi",), 8, (b"AVI ",)),
    "npy": (("npy",), 0, (b"\x93NUMPY",)),
    "zip": (("npz", "pt"), 0, (b"PK\x03\x04",)),
}

FAMILY_OF_ENDING = {
    ending: family for family, (endings, _, _) in _FORMATS.items() for ending in endings
}
"""Extension of a file's name -> the file format."""


def family_of_name(path: Path) -> str | None:
    """The file format that a name promises, one of the values of `FAMILY_OF_ENDING`, or None."""
    return FAMILY_OF_ENDING.get(path.suffix.lower().lstrip("."))


def family_of_bytes(head: bytes) -> str | None:
    """The file format by its first 16 bytes, one of the values of `FAMILY_OF_ENDING`, or None.

    Example:
        >>> family_of_bytes(b"GIF89a"), family_of_bytes(b"<!DOCTYPE html>")
        ('gif', None)
    """
    for family, (_, offset, signatures) in _FORMATS.items():
        if head.startswith(signatures, offset):
            return family
    return None


def open_file(path: Path) -> FileIO:
    """Opens a file for unbuffered reading.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: It is not a regular file.
    """
    try:
        return regular_file(path).open("rb", buffering=0)
    except FileNotFoundError as error:
        raise missing_file(path) from error


@contextlib.contextmanager
def decoding(
    path: Path,
    expected: str,
    advice: str = REPLACE,
    damage: tuple[type[Exception], ...] = (MemoryError,),
) -> Iterator[None]:
    """Converts any exception of a decoder to an `UnreadableVideoError`.

    A full or lost disk, and a lack of memory, handles or a library, are raised unchanged: they
    would affect the next file, too.

    Args:
        path: The file.
        expected: What was expected of it, for the error.
        advice: What to do, for the error.
        damage: Exceptions of these types concern the file.

    Raises:
        UnreadableVideoError: Something was raised.
    """
    try:
        yield
    except UnreadableVideoError:
        raise
    except Exception as error:
        is_general = isinstance(error, (MemoryError, ImportError)) or is_of_the_machine(error)
        if is_general and not isinstance(error, damage):
            raise
        reason = str(error).partition("\n")[0][:500]
        raise unreadable(path, expected, f"{type(error).__name__}: {reason}", advice) from error


def check_signature(path: Path) -> None:
    """Rejects a file whose content is not of the format that its name promises.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: The file is empty, or of another format.
    """
    with open_file(path) as file:
        head = file.read(16)
    family, found = family_of_name(path), family_of_bytes(head)
    if found == family:
        return
    expected = f"the {family} file that its name promises"
    if not head:
        raise unreadable(path, expected, "an empty file")
    if found is None:
        raise unreadable(path, expected, f"bytes of no known kind of video ({head!r})")
    advice = f"rename it to .{' or .'.join(_FORMATS[found][0])}"
    raise unreadable(path, expected, f"bytes that look like {found}", advice)
