"""First step of the path, gone wrong: what every reader raises for a file it cannot decode."""

from __future__ import annotations

import os
from pathlib import Path

REPLACE = "fetch or write the file again, or remove it"
"""What to do about a damaged file."""


class UnreadableVideoError(ValueError):
    """A file is there, but no clip can be decoded from it; the message names the file."""


def unreadable(
    path: str | os.PathLike[str], expected: str, got: str, what_to_do: str = REPLACE
) -> UnreadableVideoError:
    """Put the four parts of the message together, for the caller to raise.

    Example:
        >>> print(unreadable("a.gif", "a complete gif", "an empty file"))
        cannot read a.gif: expected a complete gif, got an empty file; fetch or write the ...
    """
    return UnreadableVideoError(f"cannot read {path}: expected {expected}, got {got}; {what_to_do}")


def missing_file(path: str | os.PathLike[str]) -> FileNotFoundError:
    """Say that there is no file of that name, for the caller to raise.

    Example:
        >>> print(missing_file("a.gif"))
        expected a video file at a.gif, found none; check the path (working folder: ...)
    """
    return FileNotFoundError(
        f"expected a video file at {path}, found none; check the path (working folder: "
        f"{Path.cwd()})"
    )
