"""A long video is drawn a window at a time: which frames, in which order, are drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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


def windows(known: Sequence[bool], told: Sequence[bool], length: int, overlap: int) -> list[Window]:
    """Windows that together draw all frames that are not known, from the first to the last.

    Args:
        known: Of each frame, whether it is known; such frames are drawn only along with others.
        told: Of each frame, whether anything at all is known of it.
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
        keep = _last_to_keep(told, done, stop, reach=length - overlap)
        found.append(Window(start, stop, done - start, keep))
        done = _first_unknown(known, keep)
    return found


def _first_unknown(known: Sequence[bool], start: int) -> int:
    return next((i for i in range(start, len(known)) if not known[i]), len(known))


def _last_to_keep(told: Sequence[bool], done: int, stop: int, reach: int) -> int:
    """Where to end, so that frames between two told ones are drawn by a window that has both.

    Args:
        told: As in `windows`.
        done: The first frame that is not there yet.
        stop: Where the window ends.
        reach: How many frames behind its overlap a window has.
    """
    before = [i for i in range(done, stop) if told[i]]
    after = next((i for i in range(stop, len(told)) if told[i]), None)
    if not before or after is None:
        return stop
    keep = before[-1] + 1
    # only if the next window gets as far
    return keep if after < keep + reach else stop
