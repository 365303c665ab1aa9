"""Checkpoints of a run: their names, writing, retention and the lock of the results folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import write_checkpoint
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import (
    FolderLock,
    check_folder,
    check_room,
    find_checkpoint,
)
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import (
    in_order,
    newest,
    read_newest,
    set_aside,
    step_of,
)
from video_diffusion_pytorch.training.checkpoints.retention import best_checkpoint, forget_old
from video_diffusion_pytorch.training.checkpoints.sharded_checkpoint import write_sharded
from video_diffusion_pytorch.training.processes import Processes

logger = logging.getLogger("video_diffusion_pytorch")


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
