"""Unreadable files: their error, checks of files, and a dataset that skips them."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils import data

logger = logging.getLogger("video_diffusion_pytorch")

REPLACE = "fetch or write the file again, or remove it"
"""What to do about a damaged file."""

# Errors of the machine: out of space or handles, a lost disk
_OF_THE_MACHINE = (
    errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ESTALE,
    errno.ENOTCONN, errno.ETIMEDOUT,
)  # fmt: skip


class UnreadableVideoError(ValueError):
    """No clip can be decoded from a file that was found; the message names the file."""


def unreadable(
    path: str | os.PathLike[str], expected: str, got: str, what_to_do: str = REPLACE
) -> UnreadableVideoError:
    """Composes the error of an unreadable file, for the caller to raise.

    Example:
        >>> print(unreadable("a.gif", "a complete gif", "an empty file"))
        cannot read a.gif: expected a complete gif, got an empty file; fetch or write the ...
    """
    return UnreadableVideoError(f"cannot read {path}: expected {expected}, got {got}; {what_to_do}")


def is_of_the_machine(error: Exception) -> bool:
    """Whether an error concerns the machine rather than the file, such as a full or lost disk.

    Example:
        >>> is_of_the_machine(OSError(errno.EMFILE, "Too many open files"))
        True
        >>> is_of_the_machine(PermissionError(errno.EACCES, "Permission denied"))
        False
    """
    return isinstance(error, OSError) and error.errno in _OF_THE_MACHINE


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Converts an `OSError` that concerns one file to an `UnreadableVideoError`.

    A full or lost disk, and too many open files, are raised unchanged: they would affect the next
    file, too.

    Args:
        path: The file, or the folder of frames.

    Raises:
        UnreadableVideoError: The file is missing, a broken link, without permission, or the like.

    Example:
        >>> with file_errors(Path("a.gif")):
        ...     raise PermissionError(13, "Permission denied")
        Traceback (most recent call last):
        video_diffusion_pytorch.data.errors.UnreadableVideoError: cannot read a.gif: expected a ...
    """
    try:
        yield
    except OSError as error:
        if is_of_the_machine(error):
            raise
        # the missing file may be a frame of the folder `path`
        got = f"{type(error).__name__}: {error}"
        advice = "allow reading it, restore or remove it"
        raise unreadable(path, "a file that can be opened", got, advice) from error


def regular_file(path: Path) -> Path:
    """Rejects pipes, sockets and devices, which could block forever.

    Args:
        path: The file to open.

    Returns:
        The path, so that it can be opened in the same expression.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: It is not a regular file.

    Example:
        >>> regular_file(Path(os.devnull))
        Traceback (most recent call last):
        video_diffusion_pytorch.data.errors.UnreadableVideoError: cannot read /dev/null: ...
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        got = "a folder" if path.is_dir() else "a pipe, socket or device"
        raise unreadable(path, "a regular file", got, "store the content in a file, or remove it")
    return path


def missing_file(path: str | os.PathLike[str]) -> FileNotFoundError:
    """Composes the error of a missing file, for the caller to raise.

    Example:
        >>> print(missing_file("a.gif"))
        expected a video file at a.gif, found none; check the path (working folder: ...)
    """
    return FileNotFoundError(
        f"expected a video file at {path}, found none; check the path (working folder: "
        f"{Path.cwd()})"
    )


def finite(values: torch.Tensor, path: Path) -> torch.Tensor:
    """Rejects NaN and infinity, of which one would destroy the model in training.

    Args:
        values: Of any shape and type.
        path: The file, for the error.

    Returns:
        `values`, unchanged.

    Raises:
        UnreadableVideoError: A value is not finite.

    Example:
        >>> finite(torch.tensor([1.0, 2.0]), Path("wind.npy"))
        tensor([1., 2.])
    """
    if not values.is_floating_point():
        return values
    count = values.numel() - int(values.isfinite().sum())
    if count:
        raise unreadable(
            path,
            "finite numbers in float32",
            f"{count} NaN or infinite ones of {values.numel()}",
            "replace them, as with numpy.nan_to_num, or remove the file",
        )
    return values


class SkipUnreadable(data.Dataset[Any]):
    """A dataset with the next readable item in place of each unreadable one.

    One damaged file does not end a long training run: it is logged as a warning. More than a tenth
    of them is an error. Each process, and so each worker of a `DataLoader`, counts for itself.

    Args:
        dataset: Has a length, and raises `UnreadableVideoError` for an item it cannot decode.

    Attributes:
        dataset: The wrapped dataset.
        unreadable: Index -> message, for each item found unreadable so far.

    Example:
        >>> import torch
        >>> clips = [torch.zeros(1, 2, 4, 4)] * 3
        >>> len(SkipUnreadable(clips)), SkipUnreadable(clips)[2].shape
        (3, torch.Size([1, 2, 4, 4]))
    """

    def __init__(self, dataset: data.Dataset[Any] | Sequence[Any]) -> None:
        super().__init__()
        self.dataset: Any = dataset
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """The item, or the next readable one (after the last comes the first).

        Raises:
            IndexError: The index is out of range.
            UnreadableVideoError: More than a tenth of all items are known to be unreadable.
        """
        return self.first_readable(index, self.dataset.__getitem__)

    def first_readable(self, index: int, read: Callable[[int], Any]) -> Any:
        """As `dataset[index]`, with another function to read the item of an index."""
        position = range(len(self))[index]
        self._check_share()
        while True:
            if position not in self.unreadable:
                try:
                    return read(position)
                except UnreadableVideoError as error:
                    self.unreadable[position] = str(error)
                    logger.warning("left out item %d of the dataset: %s", position, error)
                    self._check_share(error)
            position = (position + 1) % len(self)

    def _check_share(self, last: UnreadableVideoError | None = None) -> None:
        count, total = len(self.unreadable), len(self)
        if count > total / 10:
            first = "\n  ".join(list(self.unreadable.values())[:5])
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files to be unreadable, got {count} so "
                f"far; repair or remove them, the first being:\n  {first}"
            ) from last
