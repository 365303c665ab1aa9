"""The checkpoints of a run's results folder: names, order, lock, writing and retention."""

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
from typing import IO, TYPE_CHECKING, Any, ClassVar

from video_diffusion_pytorch.training.checkpoint_file import (
    NewerFormat,
    glance,
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.sharded_checkpoint import write_sharded

if TYPE_CHECKING:
    from video_diffusion_pytorch.training.processes import Processes

logger = logging.getLogger("video_diffusion_pytorch")

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None  # type: ignore[assignment]


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


# What is passed over is named once, not at every look
_named: set[Path] = set()

_SAMPLES = re.compile(r"\d+(-step\d+)?")


def in_order(folder: Path) -> list[Path]:
    """The checkpoints by rising step; those that can't be read come last.

    Their names are no order: N counts milestones, whose distance may have changed.
    """
    return sorted(list_checkpoints(folder), key=step_of)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step among those that can be read; None without any.

    A warning names what is passed over, once.
    """
    name_strangers(folder)
    found = in_order(folder)
    readable = [path for path in found if step_of(path) < math.inf]
    for path in found[len(readable) :]:
        _name(path, "it can't be read, or is no checkpoint of this library")
    return readable[-1] if readable else None


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint, which may itself be a folder; of a results folder, its newest.

    Raises:
        FileNotFoundError: If a results folder holds none that can be read.
    """
    given = Path(path)
    if not given.is_dir() or given.suffix == ".sharded" or (given / "run.pt").exists():
        return given
    found = newest(given)
    if found is None:
        raise FileNotFoundError(
            f"expected a checkpoint model-N.pt or model-N.sharded in the results folder {given}, "
            "found none that can be read; give the folder of a run that has saved one, or a file"
        )
    return found


def set_aside(folder: Path, step: int) -> list[Path]:
    """Moves the checkpoints of later steps, which a run that begins at `step` leaves behind.

    Their samples go with them, and where `step` is 0 all samples there are. They go to a folder
    `earlier-1` in the same folder, or the next number that is free, as they would else be taken
    for the run's own.

    Args:
        folder: Where the checkpoints are.
        step: Steps done.

    Returns:
        Where the checkpoints are now.

    Raises:
        OSError: If one can't be moved.
    """
    later = [path for path in list_checkpoints(folder) if step < step_of(path) < math.inf]
    numbers = {path.stem.removeprefix("model-") for path in later}
    if step == 0:
        # a user's own pictures have no values beside them
        arrays = [path for path in folder.glob("*.npy") if _SAMPLES.fullmatch(path.stem)]
        numbers |= {path.stem for path in arrays if path.with_suffix(".gif").is_file()}
    samples = [folder / f"{n}{end}" for n in sorted(numbers) for end in (".gif", ".npy", ".txt")]
    samples = [path for path in samples if path.is_file()]
    if not later and not samples:
        return []
    number = 1
    while (place := folder / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    if later:
        logger.warning(
            "%s of later steps than %d, at which this run begins, now in %s: %s",
            "a checkpoint is" if len(later) == 1 else "checkpoints are",
            step,
            place,
            ", ".join(path.name for path in later),
        )
    for path in samples:
        path.rename(place / path.name)
    return [path.rename(place / path.name) for path in later]


def step_of(path: Path) -> float:
    """The steps that a checkpoint has done; infinity if it can't be read."""
    try:
        return glance(path)["step"]
    except (ValueError, OSError):
        return math.inf


def name_strangers(folder: Path) -> None:
    """Warns of what is named like a checkpoint and is none, once for each."""
    named = {*folder.glob("model-*.pt"), *folder.glob("model-*.sharded")}
    for path in sorted(named - {*list_checkpoints(folder)}):
        # one that `save` was given a name for is whole, and found by that name
        if path not in _named and step_of(path) == math.inf:
            _name(path, "it is no checkpoint model-N.pt or model-N.sharded of this library")


def _name(path: Path, reason: str) -> None:
    if path not in _named:
        _named.add(path)
        logger.warning("%s is passed over: %s", path, reason)


def read_newest(
    folder: Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint
) -> tuple[Path, dict[str, Any]]:
    """Reads the newest checkpoint of a folder that is whole.

    A warning names each newer one that is damaged.

    Args:
        folder: Where the checkpoints are.
        read: What reads one, given its path; it raises a ValueError or a FileNotFoundError for
            one that is not whole.

    Returns:
        The path of the checkpoint and its state.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If none is whole; `NewerFormat` if a later version of this library wrote one
            that is newer than those that can be read.
    """
    find_checkpoint(folder, -1)  # raises where there is none
    name_strangers(folder)
    found = in_order(folder)[::-1]
    for path, before in zip(found, [*found[1:], None], strict=True):
        try:
            return path, read(path)
        except NewerFormat:
            raise  # it is whole, and training on from an older one would lose its steps
        except (ValueError, FileNotFoundError) as error:
            if before is not None:
                logger.warning(
                    "%s is cut off or altered: goes back to %s (%s)", path, before.name, error
                )
            failure = error
    raise ValueError(
        f"expected a whole checkpoint in {folder}, got {', '.join(path.name for path in found)}, "
        f"all cut off or altered ({failure}); move them away and begin anew, or restore one from "
        "a copy"
    ) from failure


# Checkpoints that can't be read are told of once, not at every save
_told: set[Path] = set()


def forget_old(
    folder: Path,
    keep_last: int | None,
    keep_best: int = 0,
    *,
    written: Path | None = None,
) -> list[Path]:
    """Removes the checkpoints that are neither among the newest nor among the best.

    Checkpoints that can't be read are left, and count among neither.

    Args:
        folder: Where the checkpoints are.
        keep_last: How many of the newest are kept, those of the highest step, at least 1; None
            removes nothing.
        keep_best: How many are kept besides that have the lowest validation loss, 0 or more;
            those that have none are not among them. One may be both new and good.
        written: The checkpoint just written, which is kept in any case: a run that went back to
            an older checkpoint writes lower numbers than those already there.

    Returns:
        What was removed.

    Raises:
        ValueError: If `keep_last` is less than 1 or `keep_best` less than 0.
    """
    check_keep(keep_last, keep_best)
    if keep_last is None:
        return []
    for leftover in folder.glob(".model-*.sharded.removed"):
        _removed(leftover)
    # one that is damaged is no checkpoint to go back to, so it doesn't take the place of a whole
    # one; it stays because what can't be read here may be a later version's, or worth a rescue
    losses = {path: _validation_loss(path) for path in in_order(folder)}
    readable = [path for path, loss in losses.items() if loss is not None]
    kept = {*readable[-keep_last:], *_by_loss(losses)[:keep_best]}
    if written is not None:
        kept.add(written)
    return [path for path in readable if path not in kept and _removed(path)]


def check_keep(keep_last: int | None, keep_best: int = 0) -> None:
    """Checks how many checkpoints are to be kept, so that a run can do so when it begins.

    Raises:
        ValueError: If `keep_last` is less than 1 or `keep_best` less than 0.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(
            f"keep_last must be at least 1, as a run resumes from its newest checkpoint, got "
            f"{keep_last}; give None to keep all"
        )
    if keep_best < 0:
        raise ValueError(
            f"keep_best must be 0 or more checkpoints, got {keep_best}; give 0 to keep none for "
            "its validation loss"
        )


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint of the lowest validation loss; of equal ones the newest.

    Raises:
        FileNotFoundError: If none has a validation loss.
    """
    found = in_order(folder)
    best = _by_loss({path: _validation_loss(path) for path in found})
    if not best:
        raise FileNotFoundError(
            f"expected a checkpoint with a validation loss in {folder}, found "
            f"{', '.join(path.name for path in found) or 'no checkpoint'}; train with held-out "
            "clips, or give the path of a checkpoint"
        )
    return best[0]


def _by_loss(losses: dict[Path, float | None]) -> list[Path]:
    """Those with a validation loss, the lowest first, of equal ones the newest first."""
    rated = [
        (path, loss)
        for path, loss in reversed(losses.items())
        if loss is not None and math.isfinite(loss)
    ]
    return [path for path, _ in sorted(rated, key=lambda one: one[1])]


def _validation_loss(path: Path) -> float | None:
    """The validation loss in a checkpoint, nan if it has none; None if it can't be read."""
    try:
        losses: Any = glance(path).get("losses")
    except (ValueError, OSError) as error:
        if path not in _told:
            _told.add(path)
            logger.warning("%s is neither removed nor counted: %s", path, error)
        return None
    loss = losses.get("validation") if isinstance(losses, dict) else None
    return float(loss) if isinstance(loss, (int, float)) else math.nan


def _removed(path: Path) -> bool:
    try:
        if path.is_dir():
            # under another name, so that a process killed here leaves no half of a checkpoint
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".{path.name}.removed"))
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s is an old checkpoint that could not be removed: %s", path, error)
        return False
    return True


class Checkpoints:
    """The checkpoints that a run writes to its results folder, and the lock that it holds there.

    Args:
        folder: The results folder.
        processes: Of the run.
        keep_last: How many of the newest are kept; None for all.
        keep_best: How many of those with the lowest validation loss are kept besides.

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
        # 2e-05 is no name that is found again
        number = f"{Decimal(str(milestone)):f}" if isinstance(milestone, float) else milestone
        suffix = ".sharded" if self.processes.fsdp else ".pt"
        return self.folder / f"model-{number}{suffix}"

    def unused_name(self, milestone: Any, step: int) -> Any:
        """A milestone's name, with the step besides where it is another step's checkpoint."""
        path = self.path_of(milestone)
        if self.processes.is_main and path.exists() and step_of(path) != step:
            milestone = f"{path.stem.removeprefix('model-')}-step{step}"
        return self.processes.from_main(milestone)

    def write(self, state: dict[str, Any], milestone: Any) -> None:
        """Writes a checkpoint, whole or not at all; every process calls it.

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
            write_sharded(state, path, self.processes.is_main)
        self.saved_step, self.saved_path, self.is_unproven = state["step"], path, True

    def set_newest_aside(self) -> None:
        """Renames the newest checkpoint, whose weights may have diverged, so that none resumes it.

        An only one stays: it may be whole, and the clips damaged.
        """
        if not self.is_unproven or self.saved_path is None:
            return
        with self.processes.main_first():
            others = [p for p in in_order(self.folder) if step_of(p) < math.inf]
            if self.processes.is_main and len(others) > 1:
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
        """Reads a checkpoint, which counts as the newest of this run from now on.

        Args:
            milestone: As of `Trainer.load`.
            read: Reads the state of a path.
        """
        if milestone == -1:
            path, state = read_newest(self.folder, read)
        else:
            is_best = milestone == "best"
            path = (
                best_checkpoint(self.folder) if is_best else find_checkpoint(self.folder, milestone)
            )
            state = read(path)
        return path, state

    def go_back_to(self, path: Path, step: int) -> None:
        """Makes a checkpoint that was loaded the newest of this run."""
        self.saved_step, self.saved_path, self.is_unproven = step, path, False

    def describe_newest(self) -> str:
        """Where a run can go on from, in words."""
        found = newest(self.folder)
        return f"the last checkpoint is {found}" if found else "there is no checkpoint yet"

    # the folder

    def take_folder(self, step: int, size: int) -> None:
        """Locks the folder for a run, and moves checkpoints of later steps away.

        Args:
            step: Steps done so far.
            size: Bytes that a checkpoint takes.

        Raises:
            BlockingIOError: If another run trains there.
            OSError: If it can't be written.
        """
        check_folder(self.folder)
        self._lock = FolderLock(self.folder)
        set_aside(self.folder, step)
        check_room(self.folder, size)

    def keep_folder(self) -> None:
        """Makes the folder again, if it was deleted during the run.

        Raises:
            BlockingIOError: If another run trains there since.
        """
        if self._lock is None or self._lock.is_in(self.folder):
            return
        is_gone = not self.folder.is_dir()
        self._lock.release()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.folder)
        except BlockingIOError:
            raise
        except OSError:
            return  # what is written to it says what is wrong
        if is_gone:
            folder = self.folder.absolute()
            logger.warning("the results folder %s is gone: it is made again", folder)

    def release_folder(self) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None
