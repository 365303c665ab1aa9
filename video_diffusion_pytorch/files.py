"""Atomic writes, by which a file is replaced by a whole one or stays as it was; free names."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger("video_diffusion_pytorch")


@contextlib.contextmanager
def replacing(target: Path, *, sync: bool = False) -> Iterator[Path]:
    """Gives a path to write to, which takes the target's place if the block ends without error.

    Args:
        target: The file to make or replace, left as it was if an error ends the block.
        sync: Whether the file and its new name must be on the disk before this returns, so that
            they outlast a power failure.

    Raises:
        OSError: The file cannot be renamed or synchronised.
    """
    # Another machine may have the same process number on a shared disk; a name has a largest length
    name = f".{target.name[:50]}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    unfinished = target.with_name(name)
    try:
        yield unfinished
        if sync:
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        unfinished.replace(target)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
    if sync:
        sync_folder(target.parent)


def free_name(path: Path, number: int) -> Path:
    """`metrics-1.jsonl` for `metrics.jsonl` and number 1; if it exists, that of the next number."""
    names = (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(number))
    return next(name for name in names if not name.exists())


def sync_folder(folder: Path) -> None:
    """Writes a folder's entries to the disk, so that a power failure brings back no old ones.

    Windows has no such call.
    """
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("the newest file in %s may not outlast a power failure: %s", folder, error)
