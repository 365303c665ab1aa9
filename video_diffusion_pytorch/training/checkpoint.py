"""The checkpoints of a results folder: names, order, lock, writing and retention."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from video_diffusion_pytorch.training.checkpoint_file import (
    NewerFormat,
    glance,
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.fsdp import whole_tensors, write_sharded
from video_diffusion_pytorch.training.posthoc_ema import list_snapshots, snapshot_path

if TYPE_CHECKING:
    from video_diffusion_pytorch.training.processes import Processes

logger = logging.getLogger("video_diffusion_pytorch")

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]

# The name has a step if another checkpoint had the number
_NAME = re.compile(r"model-(\d+(?:\.\d+)?)(?:-step\d+)?\.(pt|sharded)")
_SAMPLES = re.compile(r"\d+(-step\d+)?")
# Unreadable checkpoints that the log has named
_logged: set[Path] = set()
# Checkpoints that this process has read or written, by their `_version_of`: a read takes long
_known: dict[tuple[Any, ...], Glance] = {}


class Glance(NamedTuple):
    """A checkpoint of a folder, without its tensors.

    Attributes:
        path: A file `model-N.pt` or a folder `model-N.sharded`.
        step: Optimizer steps done; infinity if it can't be read.
        loss: Its validation loss; infinity for none.
        error: Why it can't be read; None if it can.
    """

    path: Path
    step: float
    loss: float = math.inf
    error: Exception | None = None


def list_checkpoints(folder: Path) -> list[Path]:
    """The files `model-N.pt` and folders `model-N.sharded` of a folder, by rising N, then time.

    A name may have a step as well, `model-N-stepS.pt`.
    """
    found = []
    for path in folder.glob("model-*"):
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir() == (match[2] == "sharded"):
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                found.append((float(match[1]), path.stat().st_mtime_ns, path))
    return [path for _, _, path in sorted(found)]


def glance_at_all(folder: Path) -> list[Glance]:
    """The checkpoints of a folder by rising step, unreadable ones last.

    Their names are no order, as the distance of milestones may have changed. A warning names
    unreadable ones, once.
    """
    found = sorted(map(_glance_at, list_checkpoints(folder)), key=lambda one: one.step)
    for one in found:
        if one.error is not None and one.path not in _logged:
            _logged.add(one.path)
            logger.warning("%s is neither used, counted nor removed: %s", one.path, one.error)
    return found


def _glance_at(path: Path) -> Glance:
    try:
        version = _version_of(path)
        if version not in _known:
            _known[version] = _glance_of(path, glance(path))
    except (ValueError, OSError) as error:
        return Glance(path, math.inf, error=error)
    return _known[version]


def _version_of(path: Path) -> tuple[Any, ...]:
    """Differs whenever the file at a path was replaced or changed."""
    status = (path / "run.pt" if path.is_dir() else path).stat()
    return path, status.st_ino, status.st_size, status.st_mtime_ns


def _glance_of(path: Path, state: dict[str, Any]) -> Glance:
    loss = state.get("losses", {}).get("validation")
    is_rated = isinstance(loss, (int, float)) and math.isfinite(loss)
    return Glance(path, state["step"], loss if is_rated else math.inf)


def newest(folder: Path) -> Path | None:
    """The readable checkpoint of the highest step; None without any."""
    found = _readable(folder)
    return found[-1].path if found else None


def _readable(folder: Path) -> list[Glance]:
    return [one for one in glance_at_all(folder) if one.error is None]


def _by_loss(found: list[Glance]) -> list[Path]:
    """Those with a validation loss, the lowest first, of equal ones the newest first."""
    rated = [one for one in reversed(found) if one.loss < math.inf]
    return [one.path for one in sorted(rated, key=lambda one: one.loss)]


def find_checkpoint(folder: Path, milestone: int | float | str | os.PathLike[str]) -> Path:
    """The path of a milestone's checkpoint, a file or a sharded folder.

    Args:
        folder: The results folder.
        milestone: Its number; -1 for the newest checkpoint; `"best"` for that of the lowest
            validation loss, of equal ones the newest; another name that was passed to `save`; or a
            path.

    Returns:
        Its path. For a number that is missing, the path that the file would have.

    Raises:
        FileNotFoundError: If there is no newest or best checkpoint.
    """
    if milestone in (-1, "best"):
        found = _readable(folder)
        paths = _by_loss(found) if milestone == "best" else [one.path for one in reversed(found)]
        if not paths:
            raise FileNotFoundError(
                "expected a checkpoint model-N.pt or model-N.sharded"
                f"{' with a validation loss' if milestone == 'best' else ''} in "
                f"{folder.resolve()}, found none that can be read; train first, or give the path "
                "of a checkpoint"
            )
        return paths[0]
    if isinstance(milestone, (str, os.PathLike)):
        named = folder / f"model-{milestone}.pt"
        # pathlib raises for a name that is too long
        is_name = os.path.isfile(named) and not os.path.exists(milestone)
        return named if is_name else Path(milestone)
    for path in reversed(list_checkpoints(folder)):
        match = _NAME.fullmatch(path.name)
        if match and float(match[1]) == milestone:
            return path
    return folder / f"model-{milestone}.pt"


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint; of a results folder, its newest.

    Raises:
        FileNotFoundError: If a results folder holds no readable checkpoint.
    """
    given = Path(path)
    is_checkpoint = given.suffix == ".sharded" or (given / "run.pt").exists()
    return find_checkpoint(given, -1) if given.is_dir() and not is_checkpoint else given


def read_newest(
    folder: Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint
) -> tuple[Path, dict[str, Any]]:
    """Reads the newest undamaged checkpoint of a folder; warnings name the damaged ones.

    Args:
        folder: The results folder.
        read: Reads one, given its path; raises a ValueError or FileNotFoundError if it is damaged.

    Returns:
        The path of the checkpoint and its state.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If all are damaged; `NewerFormat` if a later version of this library wrote one.
    """
    found = glance_at_all(folder)[::-1]
    if not found:
        find_checkpoint(folder, -1)  # raises
    for path, _, _, error in found:
        if isinstance(error, NewerFormat):
            raise error  # resuming from an older one would lose its steps
        if error is not None:
            continue
        try:
            return path, read(path)
        except (ValueError, FileNotFoundError) as damage:
            logger.warning("%s is damaged, the checkpoint before it is used: %s", path, damage)
    raise ValueError(
        f"expected an undamaged checkpoint in {folder}, got only damaged ones: "
        f"{', '.join(one.path.name for one in found)}; move them away to start a new run, or "
        "restore one from a backup"
    )


def forget_old(
    folder: Path, keep_last: int | None, keep_best: int = 0, *, written: Path | None = None
) -> list[Path]:
    """Removes the checkpoints that are neither among the newest nor among the best.

    Unreadable ones are neither removed nor counted.

    Args:
        folder: The results folder.
        keep_last: Number of the newest to keep, at least 1; None to keep all.
        keep_best: Number of those with the lowest validation loss to keep as well.
        written: The checkpoint just written, which is always kept: after `load` of an older one
            its step may be lower than those of others.

    Returns:
        The removed ones.
    """
    if keep_last is None:
        return []
    found = _readable(folder)
    kept = {one.path for one in found[-keep_last:]} | {*_by_loss(found)[:keep_best], written}
    return [one.path for one in found if one.path not in kept and _remove(one.path)]


def _remove(path: Path) -> bool:
    try:
        # renamed first, so that no half of a folder is left under its name
        _delete(path.rename(path.with_name(f".{path.name}.removed")))
    except OSError as error:
        logger.warning("the old checkpoint %s could not be removed: %s", path, error)
        return False
    return True


def _delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def set_aside(folder: Path, step: int) -> list[Path]:
    """Moves checkpoints of later steps than a run begins at to a new subfolder `earlier-N`.

    Otherwise they would count as the run's own. Their samples and later snapshots of averages are
    moved as well, and all samples and snapshots if `step` is 0.

    Args:
        folder: The results folder.
        step: The step at which the run begins.

    Returns:
        The new paths of the checkpoints.
    """
    later = [one.path for one in _readable(folder) if one.step > step]
    numbers = {path.stem.removeprefix("model-") for path in later}
    if step == 0:
        # pictures of a user have no values with them
        arrays = [path for path in folder.glob("*.npy") if _SAMPLES.fullmatch(path.stem)]
        numbers |= {path.stem for path in arrays if path.with_suffix(".gif").is_file()}
    samples = [folder / f"{n}{end}" for n in sorted(numbers) for end in (".gif", ".npy", ".txt")]
    samples = [path for path in samples if path.is_file()]
    if later or step == 0:
        # otherwise they are the run's own, which it will write again
        samples += [path for number, path in list_snapshots(folder).items() if number > step]
    if not later and not samples:
        return []
    number = 1
    while (place := folder / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    if later:
        names = ", ".join(path.name for path in later)
        logger.warning("checkpoints of later steps than %d are moved to %s: %s", step, place, names)
    for path in samples:
        path.rename(place / path.name)
    return [path.rename(place / path.name) for path in later]


def check_folder(folder: Path) -> None:
    """Makes the folder if it is missing, and tests whether files can be written there.

    Raises:
        OSError: If they can't.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".probe-", suffix=".tmp") as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())  # a full network disk may fail only here


class FolderLock:
    """Keeps other runs out of a results folder, until it is released or this process ends.

    A lock of the operating system on the file `.lock`, which holds the name of its owner. A killed
    process leaves the file but no lock, and worker processes don't inherit it. On Windows, and on
    disks without locks, it excludes runs of the same process only.

    Args:
        folder: The results folder; it must exist.

    Raises:
        BlockingIOError: If another run trains there.
    """

    # the system's locks don't exclude their own process
    _held: ClassVar[set[Path]] = set()

    def __init__(self, folder: Path) -> None:
        self._path = folder.resolve() / ".lock"
        if self._path in self._held:
            raise _in_use(folder, f"this process, {os.getpid()},")
        self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        self._file.seek(0)
        owner = self._file.read()
        try:
            if fcntl is not None:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._file.close()
            raise _in_use(folder, owner) from None
        except OSError as error:
            logger.warning("%s can't be locked: let no other run use it (%s)", folder, error)
        if not self.is_in(folder):  # its owner has removed it in the meantime
            self._file.close()
            raise _in_use(folder, owner)
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._file.flush()
        self._held.add(self._path)

    def is_in(self, folder: Path) -> bool:
        """Whether the folder is still the locked one, and was not deleted and made again."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(folder / ".lock"))
        except (OSError, ValueError):  # missing, or released
            return False

    def release(self) -> None:
        """Unlocks the folder; idempotent."""
        if self._file.closed:
            return
        self._held.discard(self._path)
        with self._file, contextlib.suppress(OSError):
            # a folder that was made again may have the lock of another run
            if self.is_in(self._path.parent):
                self._path.unlink()


def _in_use(folder: Path, owner: str) -> BlockingIOError:
    return BlockingIOError(
        f"Trainer: only one run at a time can train in a results folder, got {folder}, in which "
        f"{owner or 'another process'} trains; choose another results_folder, or stop that run"
    )


class Checkpoints:
    """The checkpoints that a run writes to its results folder, and its lock on that folder.

    Args:
        folder: The results folder.
        processes: Of the run.
        keep_last: Number of the newest to keep; None for all.
        keep_best: Number of those with the lowest validation loss to keep as well.

    Attributes:
        saved_step: The step of the newest checkpoint of this run; -1 for none.
        saved_path: Its path.
        is_unproven: Whether no step after it has had a finite loss yet.
    """

    def __init__(
        self, folder: Path, processes: Processes, *, keep_last: int | None, keep_best: int
    ) -> None:
        self.folder, self.processes = folder, processes
        self.keep_last, self.keep_best = keep_last, keep_best
        self.saved_step, self.is_unproven = -1, False
        self.saved_path: Path | None = None
        self._lock: FolderLock | None = None

    # writing

    def path_of(self, milestone: Any) -> Path:
        """The path of a milestone's checkpoint."""
        # not 2e-05
        number = f"{Decimal(str(milestone)):f}" if isinstance(milestone, float) else milestone
        suffix = ".sharded" if self.processes.fsdp else ".pt"
        return self.folder / f"model-{number}{suffix}"

    def unused_name(self, milestone: Any, step: int) -> Any:
        """A milestone's name, with the step if another step's checkpoint has that name."""
        path = self.path_of(milestone)
        if self.processes.is_main and path.exists() and _glance_at(path).step != step:
            milestone = f"{path.stem.removeprefix('model-')}-step{step}"
        return self.processes.from_main(milestone)

    def write(self, state: dict[str, Any], milestone: Any) -> None:
        """Writes a checkpoint atomically; every process calls it.

        Raises:
            OSError: If it can't be written.
        """
        path = self.path_of(milestone)
        with self.processes.main_first():
            if self.processes.is_main:
                self.keep_folder()
                if not self.processes.fsdp:
                    write_checkpoint(state, path)
        if self.processes.fsdp:
            write_sharded(state, path, self.processes)
        if self.processes.is_main:
            _known[_version_of(path)] = _glance_of(path, state)
        self.saved_step, self.saved_path, self.is_unproven = state["step"], path, True

    def write_snapshot(self, state: dict[str, Any]) -> None:
        """Writes a snapshot of averages atomically; every process calls it.

        Args:
            state: Of `Trainer.averages_state`; sharded tensors are written whole.

        Raises:
            OSError: If it can't be written.
        """
        if self.processes.fsdp:
            state = whole_tensors(state, is_kept=self.processes.is_main)
        with self.processes.main_first():
            if self.processes.is_main:
                self.keep_folder()
                write_checkpoint(state, snapshot_path(self.folder, state["step"]))

    def set_newest_aside(self) -> None:
        """Renames the newest checkpoint if its weights may have diverged, so that none resumes it.

        The only one stays: its weights may be good and the clips damaged.
        """
        if not self.is_unproven or self.saved_path is None:
            return
        with self.processes.main_first():
            if self.processes.is_main and len(_readable(self.folder)) > 1:
                path = self.path_of(f"not-finite-step{self.saved_step}")
                self.saved_path = self.saved_path.rename(path)

    def forget_old(self) -> None:
        """Removes old checkpoints, once the step after the newest has had a finite loss."""
        if self.processes.is_main and self.is_unproven:
            forget_old(self.folder, self.keep_last, self.keep_best, written=self.saved_path)
        self.is_unproven = False

    # reading

    def read(
        self, milestone: Any, read: Callable[[Path], dict[str, Any]]
    ) -> tuple[Path, dict[str, Any]]:
        """Reads a checkpoint; every process calls it.

        Args:
            milestone: As of `Trainer.load`.
            read: Reads the state of a path.
        """

        def read_together(path: Path) -> dict[str, Any]:
            return self.processes.together(lambda: read(path))

        if milestone == -1:
            return read_newest(self.folder, read_together)
        path = find_checkpoint(self.folder, milestone)
        return path, read_together(path)

    def go_back_to(self, path: Path, step: int) -> None:
        """Makes a checkpoint that was loaded the newest of this run."""
        self.saved_step, self.saved_path, self.is_unproven = step, path, False

    def describe_newest(self, hint: str = "") -> str:
        """Where a run can resume from, in words, with a hint what to do with it."""
        found = newest(self.folder)
        text = f"the last checkpoint is {found}" if found else "there is no checkpoint yet"
        return f"{text}, {hint}" if found and hint else text

    # the folder

    def take_folder(self, step: int) -> None:
        """Locks the folder for a run, and removes or moves what other runs have left there.

        Args:
            step: Steps done so far.

        Raises:
            BlockingIOError: If another run trains there.
            OSError: If it can't be written.
        """
        check_folder(self.folder)
        self._lock = FolderLock(self.folder)
        for pattern in (".model-*.tmp", ".model-*.removed", ".averages-*.tmp"):
            # of processes that were killed while they wrote or removed
            for leftover in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    _delete(leftover)
        set_aside(self.folder, step)

    def keep_folder(self) -> None:
        """Makes the folder again, if it was deleted during the run.

        Raises:
            BlockingIOError: If another run trains there since.
        """
        if self._lock is None or self._lock.is_in(self.folder):
            return
        if not self.folder.is_dir():
            logger.warning("the results folder %s is gone: it is made again", self.folder)
        self._lock.release()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        except BlockingIOError:
            raise
        except OSError:
            pass  # writing to it says what is wrong

    def release_folder(self) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
