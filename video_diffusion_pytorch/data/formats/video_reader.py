"""First step of the path: what the readers of all formats have in common."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

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
