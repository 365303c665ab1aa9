"""A long video is drawn a window at a time: which frames, in which order, are drawn together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.diffusion.shown import shown


@dataclass(frozen=True)
class Window:
    """Frames that are drawn together.

    Attributes:
        start: The first.
        stop: The one behind the last.
        ready: How many frames at its beginning are known already, or drawn by windows before it.
        keep: The one behind the last that is kept; those from here on the next window draws again,
            because it sees more of what they lie between.
    """

    start: int
    stop: int
    ready: int
    keep: int


def windows(
    known: Sequence[bool], partly: Sequence[bool], length: int, overlap: int
) -> list[Window]:
    """Windows that together draw all frames that are not known, from the first to the last.

    Args:
        known: Of each frame, whether it is known; such frames are drawn only along with others.
        partly: Of each frame, whether anything at all is known of it, be it its low resolution.
        length: Frames of a window.
        overlap: Frames, known or drawn, that each window begins with, so that it goes on from
            them; more where the last one would not be full.

    Example:
        Two known frames become seven, in windows of four:

        >>> known = [True, True, False, False, False, False, False]
        >>> for window in windows(known, known, length=4, overlap=2):
        ...     print(window)
        Window(start=0, stop=4, ready=2, keep=4)
        Window(start=2, stop=6, ready=2, keep=6)
        Window(start=3, stop=7, ready=3, keep=7)
    """
    found = []
    done = _first_unknown(known, 0)
    while done < len(known):
        start = max(0, min(done - overlap, len(known) - length))
        stop = min(start + length, len(known))
        keep = _last_to_keep(partly, done, stop, reach=length - overlap)
        found.append(Window(start, stop, done - start, keep))
        done = _first_unknown(known, keep)
    return found


def whole_frames(name: str, value: Any) -> int:
    """A number of frames, or a factor of it, as an int.

    Raises:
        ValueError: If it is no whole number.
    """
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be a whole number, got {shown(value)}; give it as an int")
    return int(value)


def checked_overlap(call: str, overlap: int | None, num_frames: int, length: int) -> int:
    """The overlap of windows.

    Args:
        call: What draws them, for messages.
        overlap: What was asked for; None for half a window, or 0 where there is one only.
        num_frames: Frames in all.
        length: Frames of a window.

    Raises:
        ValueError: If it is no whole number, leaves no frame to draw, or none to go on from.
    """
    if overlap is None and num_frames <= length:
        return 0
    overlap = length // 2 if overlap is None else whole_frames(f"{call}: overlap", overlap)
    if not 1 <= overlap < length:
        raise ValueError(
            f"{call}: overlap must be from 1 to {length - 1}, one less than the frames of the "
            f"model's clips, got {overlap}; leave it out for half of them"
        )
    return overlap


def check_beginnings(call: str, plan: Sequence[Window], given_frames: int) -> None:
    """Raises a ValueError unless all windows begin with the frames that the network is told."""
    for window in plan:
        if window.ready < given_frames:
            raise ValueError(
                f"{call}: each window must begin with the {given_frames} known frames that a model "
                f"with given_frames is told, got {window.ready} at frame {window.start}; give more "
                "frames at the beginning, or a greater overlap"
            )


def check_condition_frames(call: str, name: str, value: Tensor, num_frames: int) -> None:
    """Raises a ValueError unless a condition has all frames, or is the same for all."""
    axis = _frame_axis(name, value)
    if axis is not None and value.shape[axis : axis + 1] != (num_frames,):
        raise ValueError(
            f"{call}: {name} must have all {num_frames} frames of the result on axis {axis}, got "
            f"{tuple(value.shape)}; give it for the whole result, it is cut for each window"
        )


def cut_condition(name: str, value: Any, frames: slice) -> Any:
    """The part of a condition, or of a dict of these by name, that is about some frames."""
    if isinstance(value, Mapping):
        return {inner: cut_condition(inner, one, frames) for inner, one in value.items()}
    axis = _frame_axis(name, value)
    return value if axis is None else value[(slice(None),) * axis + (frames,)]


def _frame_axis(name: str, value: Tensor) -> int | None:
    """Which axis of a condition is that of frames; None if it has none."""
    if name == "frame_cond":
        return 1
    return 2 if name == "cond_video" and value.ndim == 5 else None


def _first_unknown(known: Sequence[bool], start: int) -> int:
    return next((i for i in range(start, len(known)) if not known[i]), len(known))


def _last_to_keep(partly: Sequence[bool], done: int, stop: int, reach: int) -> int:
    """Where to end, so that frames between two partly known are drawn by a window that has both.

    Args:
        partly: As in `windows`.
        done: The first frame that is not there yet.
        stop: Where the window ends.
        reach: How many frames behind its overlap a window has.
    """
    before = [i for i in range(done, stop) if partly[i]]
    after = next((i for i in range(stop, len(partly)) if partly[i]), None)
    if not before or after is None:
        return stop
    keep = before[-1] + 1
    # only if the next window gets as far
    return keep if after < keep + reach else stop
