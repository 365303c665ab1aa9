"""The folder that checkpoints go to: which are there, and whether another can be written."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import tempfile
from pathlib import Path
from typing import IO, ClassVar

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("video_diffusion_pytorch")

# A step is in the name where another checkpoint had the number already
_NAME = re.compile(r"model-(\d+(?:\.\d+)?)(?:-step\d+)?\.(pt|sharded)")


def list_checkpoints(folder: Path) -> list[Path]:
    """The files `model-N.pt` and folders `model-N.sharded` of a folder, by rising N.

    A name may have a step besides, `model-N-stepS.pt`.

    Of a file and a folder with the same N, that which was written later comes last.
    """
    found = []
    for path in folder.glob("model-*"):
        match = _NAME.fullmatch(path.name)
        is_right = match and (path.is_dir() if match.group(2) == "sharded" else path.is_file())
        if match and is_right:
            found.append((float(match.group(1)), _written_at(path), path))
    return [path for _, _, path in sorted(found)]


def _written_at(path: Path) -> int:
    with contextlib.suppress(OSError):  # another process may have removed it since
        return path.stat().st_mtime_ns
    return 0


def find_checkpoint(folder: Path, milestone: int | float | str | os.PathLike[str]) -> Path:
    """The checkpoint of a milestone, a file or a sharded folder.

    Args:
        folder: Where the checkpoints are.
        milestone: Its number, -1 for the newest, what `save` was told instead of a number, or a
            path.

    Returns:
        Its path. For a number that is not there, that of the file it would have.

    Raises:
        FileNotFoundError: If -1 is asked for and there is no checkpoint.
    """
    if isinstance(milestone, (str, os.PathLike)):
        named = folder / f"model-{milestone}.pt"
        # those of `Path` raise for a name that is too long
        is_name = os.path.isfile(named) and not os.path.exists(milestone)
        return named if is_name else Path(milestone)
    checkpoints = list_checkpoints(folder)
    if milestone == -1 and not checkpoints:
        raise FileNotFoundError(
            f"expected a checkpoint model-N.pt in {folder.resolve()}, found none; train first, or "
            "give the path of a checkpoint"
        )
    if milestone == -1:
        return checkpoints[-1]
    same = [path for path in checkpoints if milestone_of(path) == milestone]
    return same[-1] if same else folder / f"model-{milestone}.pt"


def milestone_of(path: Path) -> float:
    """The N in the name of a checkpoint, `model-N.pt` or `model-N.sharded`.

    Raises:
        ValueError: If it is no such name.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(
            f"a checkpoint must be named model-N.pt or model-N.sharded, got {path.name!r}; "
            "rename it, N being a number such as 12 or 1.5"
        )
    return float(match.group(1))


def check_folder(folder: Path) -> None:
    """Makes the folder if it is missing, and writes a small file there, which it removes.

    So a run that could not write its first checkpoint fails before the training and not after it.

    Raises:
        OSError: If the folder can't be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-", suffix=".tmp") as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # a full network disk may say so here only
    except OSError as error:
        raise OSError(
            f"the results folder {folder} must be one that checkpoints can be written to, got "
            f"{error.strerror or error}; make room, change the folder's permissions or choose "
            "another folder"
        ) from error


class FolderLock:
    """Keeps other runs out of a results folder, until it is released or this process ends.

    A lock of the system on the file `.lock`, which names its owner. A process that was killed
    leaves the file, but no lock, and neither does a process that reads clips inherit it. Windows,
    and disks without locks, keep out runs of this process only.

    Args:
        folder: The results folder; it must be there.

    Raises:
        BlockingIOError: If another run trains there.
    """

    _held: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self._path = folder.resolve() / ".lock"
        if self._path in self._held:
            raise _in_use(folder, f"this process, {os.getpid()},")
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        self._file = self._locked(folder)
        before = self._file.read()
        if before and before.split(" on ")[-1] != socket.gethostname():
            logger.warning(
                "%s was left by %s: if that still trains, end one of the two", self._path, before
            )
        self._file.truncate(0)
        self._file.write(owner)
        self._file.flush()
        self._held.add(self._path)

    def _locked(self, folder: Path) -> IO[str]:
        while True:
            file = self._path.open("a+", encoding="utf-8", errors="replace")
            file.seek(0)
            try:
                if fcntl is not None:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                with file:
                    raise _in_use(folder, file.read() or "another process") from None
            except OSError as error:
                logger.warning("%s can't be locked: let no other run use it (%s)", folder, error)
                return file
            # else it was removed by its owner in between
            if _is_same(file, self._path):
                return file
            file.close()

    def is_in(self, folder: Path) -> bool:
        """Whether a folder is still the one that was locked, and was not made again since."""
        return _is_same(self._file, folder / ".lock")

    def release(self) -> None:
        """Lets other runs in; a second time does nothing."""
        if self._file.closed:
            return
        self._held.discard(self._path)
        with self._file, contextlib.suppress(OSError):
            # a folder that was made again may have the lock of another run
            if _is_same(self._file, self._path):
                self._path.unlink()


def _is_same(file: IO[str], path: Path) -> bool:
    try:
        return not file.closed and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


def _in_use(folder: Path, owner: str) -> BlockingIOError:
    return BlockingIOError(
        f"Trainer: a results folder must be that of one run at a time, got {folder}, to which "
        f"{owner} is training; choose another results_folder, or end that run first"
    )


def check_room(folder: Path, needed_bytes: int) -> None:
    """Warns if the file system has less free space than one checkpoint needs.

    Args:
        folder: Where the checkpoints go; it must be there.
        needed_bytes: Size of one checkpoint in bytes. The one before it stays while it is written.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        logger.warning(
            "a checkpoint takes about %.1f MB, and the disk of %s has %.1f MB free: make room "
            "before the first one is written",
            needed_bytes / 1e6,
            folder,
            free / 1e6,
        )
