"""What of a training run goes to a checkpoint."""

from __future__ import annotations

import logging
import math
from decimal import Decimal
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.diffusion.conditions import unwrap
from video_diffusion_pytorch.training.checkpoints.checkpoint_file import FORMAT, write_checkpoint
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import FolderLock
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import in_order, newest, step_of
from video_diffusion_pytorch.training.checkpoints.random_states import random_states
from video_diffusion_pytorch.training.checkpoints.retention import forget_old
from video_diffusion_pytorch.training.checkpoints.sharded_checkpoint import write_sharded
from video_diffusion_pytorch.training.optimizer import optimizer_settings
from video_diffusion_pytorch.version import __version__

logger = logging.getLogger("video_diffusion_pytorch")


class Saving:
    """The part of a Trainer that goes to files; `Trainer` has the attributes."""

    run: Any
    processes: Any

    def checkpoint_state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values. Every process calls it."""
        denoiser = getattr(unwrap(self.model.denoise_fn), "config", None)
        first, *others = self.averages.named().items()
        return {
            "format": FORMAT,
            "version": __version__,
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": first[1].state_dict(),
            "emas": {name: average.state_dict() for name, average in others},
            "ema_decays": [*self.averages.models],
            "optimizer": self.opt.state_dict(),
            "optimizer_settings": optimizer_settings(self.opt),
            "scheduler": {} if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "config": {
                "unet": denoiser,
                "diffusion": self.model.config,
                "class_names": self.class_names,
            },
            # a validation of other weights says nothing of these
            "losses": {
                "training": self.losses["training"],
                "validation": self.losses["validation"]
                if self.run.validated_step == self.step
                else None,
            },
            "skipped_steps": self.skipped_steps,
            "random_states": self.processes.from_all(random_states()),
            "data": self.data.state_dict(),
        }

    # to a file

    def save(self, milestone: int | float | str) -> None:
        """Writes `model-{milestone}.pt`, whole or not at all; every process calls it.

        A sharded model's checkpoint is a folder, `model-{milestone}.sharded`. Afterwards those are
        removed that `keep_last` and `keep_best` don't keep; in `train` after the next good step.

        Raises:
            OSError: If it can't be written.
        """
        self.run.weights_are_whole = False
        state = self.checkpoint_state()
        path = self._path_of(milestone)
        with self.processes.main_first():
            if self.is_main:
                self._keep_folder()
                if not self.fsdp:
                    write_checkpoint(state, path)
        if self.fsdp:
            write_sharded(state, path, self.is_main)
        self._saved_step, self._saved_path, self.run.weights_are_whole = self.step, path, True
        self._is_unproven = True
        if self.signals is None:
            self._forget_old()

    def _path_of(self, milestone: Any) -> Path:
        # 2e-05 is no name that is found again
        number = f"{Decimal(str(milestone)):f}" if isinstance(milestone, float) else milestone
        return self.results_folder / f"model-{number}{'.sharded' if self.fsdp else '.pt'}"

    def _save_step(self) -> None:
        """Saves under this step's number, and never over the checkpoint of another step."""
        milestone = self.milestone
        path = self._path_of(milestone)
        if self.is_main and path.exists() and step_of(path) != self.step:
            milestone = f"{path.stem.removeprefix('model-')}-step{self.step}"
        self.save(self.processes.from_main(milestone))

    def _set_diverged_aside(self) -> None:
        """Gives weights that may have diverged a name that no run goes on from by itself."""
        try:
            if self.run.good_step > self._saved_step:
                self.save(f"not-finite-step{self.step}")
            elif self._is_unproven and self._saved_path is not None:
                with self.processes.main_first():
                    # an only one stays: it may be whole, and the clips damaged
                    others = [p for p in in_order(self.results_folder) if step_of(p) < math.inf]
                    if self.is_main and len(others) > 1:
                        path = self._path_of(f"not-finite-step{self._saved_step}")
                        self._saved_path = self._saved_path.rename(path)
        # it is no reason to end, or to say less of the other
        except (OSError, RuntimeError) as error:
            logger.warning("the weights of step %d could not be kept: %s", self.step, error)
        self._is_unproven = False
        if self.is_main and self._saved_path is not None:
            logger.warning(
                "loss or gradients are not finite at step %d: its weights are in %s; %s",
                self.step,
                self._saved_path,
                self._last_checkpoint(),
            )

    def _forget_old(self) -> None:
        """Removes old checkpoints, once the step after the newest has a finite loss."""
        if self.is_main and self._is_unproven:
            written = self._saved_path
            forget_old(self.results_folder, self.keep_last, self.keep_best, written=written)
        self._is_unproven = False

    def _keep_folder(self) -> None:
        """Makes the results folder again, if it was deleted during the run.

        Raises:
            BlockingIOError: If another run trains there since.
        """
        if self._lock is None or self._lock.is_in(self.results_folder):
            return
        is_gone = not self.results_folder.is_dir()
        self._lock.release()
        try:
            self.results_folder.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.results_folder)
        except BlockingIOError:
            raise
        except OSError:
            return  # what is written to it says what is wrong
        if is_gone:
            folder = self.results_folder.absolute()
            logger.warning("the results folder %s is gone: it is made again", folder)

    def _last_checkpoint(self) -> str:
        """Where a run can go on from, in words."""
        found = newest(self.results_folder)
        return f"the last checkpoint is {found}" if found else "there is no checkpoint yet"
