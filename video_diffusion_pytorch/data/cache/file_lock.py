"""Around a build of the clip cache: only one process at a time may write."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

logger = logging.getLogger("video_diffusion_pytorch")

# Seconds of waiting after which the log says for what
_PATIENCE = 5.0

if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _holder(descriptor: int) -> str:
    os.lseek(descriptor, 1, os.SEEK_SET)
    holder = os.read(descriptor, 200).decode(errors="replace")
    os.lseek(descriptor, 0, os.SEEK_SET)
    return holder or "another process"


@contextmanager
def exclusive_lock(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock that one process on the machine can hold at a time; wait where another one does.

    After some seconds of waiting, the log names the process that holds it. The operating system
    lets go of it when the process ends, however it ends.

    Args:
        path: The file that stands for the lock. It is made if need be and left behind: one removed
            by its holder could be locked twice.

    Raises:
        OSError: The file cannot be made or locked.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, exclusive_lock(f"{folder}/name.lock"):
        ...     os.listdir(folder)
        ['name.lock']
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        began, is_told = time.monotonic(), False
        while not _try_lock(descriptor):
            if not is_told and time.monotonic() - began > _PATIENCE:
                is_told = True
                logger.warning("waiting for %s, held by %s", path, _holder(descriptor))
            time.sleep(0.1)
        try:
            with suppress(OSError):  # on a full disk nobody is told who holds it
                os.ftruncate(descriptor, 0)
                # Windows locks the first byte
                os.write(descriptor, f" process {os.getpid()} on {socket.gethostname()}".encode())
            yield
        finally:
            _unlock(descriptor)
    finally:
        os.close(descriptor)
