"""Beside the path: which frames of a file a model sees, and which of them make a clip."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from video_diffusion_pytorch.data.errors import UnreadableVideoError

# A frame counts as shown at a time although rounding puts it this many seconds later.
_ROUNDING = 1e-4


class Clock(Protocol):
    """What a `Timeline` asks of an opened file; a `VideoReader` has it."""

    path: Path

    @property
    def num_frames(self) -> int:
        """Number of frames of the file."""

    @property
    def times(self) -> Sequence[float] | None:
        """Second at which each frame is shown; None where the file does not tell."""

    @property
    def end(self) -> float | None:
        """Second at which the last frame stops being shown; None where the file does not tell."""


class Timeline:
    """Every n-th frame of a file, or the frames that it shows at a rate of ours.

    Positions on the timeline count from the beginning of the file, so that clips cut from it at
    different places share frames.

    Args:
        frame_skip: Every `frame_skip`-th frame is seen.
        fps: Frames per second that are seen: at each instant the frame that is shown then, which
            may be one and the same for several instants. None to go by `frame_skip`.

    Raises:
        ValueError: An argument is out of range, or both are given.
    """

    def __init__(self, frame_skip: int = 1, fps: float | None = None) -> None:
        if isinstance(frame_skip, bool) or not isinstance(frame_skip, int) or frame_skip < 1:
            raise ValueError(
                f"frame_skip must be a whole number of at least 1, got {frame_skip!r}; 1 takes "
                "every frame, 2 every other one"
            )
        if fps is not None and not 0 < fps < float("inf"):
            raise ValueError(
                f"fps must be a positive number of frames per second, got {fps!r}; leave it out "
                "to take every frame"
            )
        if fps is not None and frame_skip != 1:
            raise ValueError(
                f"only one of fps and frame_skip can choose the frames, got fps={fps} and "
                f"frame_skip={frame_skip}; leave one of them out"
            )
        self.frame_skip, self.fps = frame_skip, fps

    def length(self, file: Clock) -> int:
        """Number of positions."""
        if self.fps is None:
            return -(-file.num_frames // self.frame_skip)
        times = self._times(file, "fps")
        end = file.end
        if end is None:  # the last frame counts for as long as the one before it
            end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / self.fps)
        return max(1, math.ceil((end - times[0] - _ROUNDING) * self.fps))

    def frames(self, file: Clock, positions: Sequence[int]) -> list[int]:
        """The file's frames at these positions, as far as it is known to have them."""
        if self.fps is None:
            # the file need not be counted: who reads on beyond its end gets fewer
            return [position * self.frame_skip for position in positions]
        times = self._times(file, "fps")
        length = self.length(file)
        instants = (times[0] + position / self.fps for position in positions if position < length)
        return [max(0, bisect_right(times, instant + _ROUNDING) - 1) for instant in instants]

    def between(self, file: Clock, start: float | None, end: float | None) -> range:
        """The positions shown from second `start` on and before second `end`.

        Raises:
            UnreadableVideoError: There is none.
            ValueError: The file has no clock, which no repair of it would change.
        """
        length = self.length(file)
        if start is None and end is None:
            return range(length)
        times = self._times(file, "start and end")
        if self.fps is None:
            shown = [times[i] - times[0] for i in self.frames(file, range(length))]
        else:
            shown = [position / self.fps for position in range(length)]
        first = 0 if start is None else bisect_left(shown, start - _ROUNDING)
        stop = length if end is None else bisect_left(shown, end - _ROUNDING)
        if first >= stop:
            last = times[-1] if file.end is None else file.end
            raise UnreadableVideoError(
                f"cannot cut {file.path}: expected frames from second {start} to {end}, got none, "
                f"as the file is {last - times[0]:.3f} seconds long; correct start and end"
            )
        return range(first, stop)

    def _times(self, file: Clock, option: str) -> Sequence[float]:
        times = file.times
        if times is None and file.num_frames == 1:
            return [0.0]  # a picture that does not move is shown from the beginning
        if times is None:
            raise ValueError(
                f"cannot cut {file.path} by {option}: expected a file that says when its frames "
                "are shown, got one without a clock (a folder of pictures, or an array); leave "
                f"{option} out and choose frames by number"
            )
        return times
