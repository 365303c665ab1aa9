"""What of a training run goes to a checkpoint."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.diffusion.conditions import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.checkpoints.checkpoint_file import FORMAT, write_checkpoint
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import newest
from video_diffusion_pytorch.training.checkpoints.random_states import random_states
from video_diffusion_pytorch.training.checkpoints.retention import forget_old
from video_diffusion_pytorch.training.checkpoints.sharded_checkpoint import write_sharded
from video_diffusion_pytorch.training.clips.batches import EndlessShuffle
from video_diffusion_pytorch.training.clips.clip_source import clips_behind
from video_diffusion_pytorch.training.ema import Averages
from video_diffusion_pytorch.training.engine import Processes
from video_diffusion_pytorch.training.optimizer import optimizer_settings
from video_diffusion_pytorch.training.validation import Sides
from video_diffusion_pytorch.version import __version__


class Saving(Processes):
    """The part of a Trainer that goes to files; `Trainer` has the attributes."""

    step: int
    model: GaussianDiffusion
    averages: Averages
    opt: Any
    scheduler: Any
    results_folder: Path
    ds: Any
    order: EndlessShuffle
    keep_last: int | None
    keep_best: int
    losses: dict[str, float | None]
    skipped_steps: int
    _sides: Sides | None
    _saved_step: int
    _validated_step: int

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
                if self._validated_step == self.step
                else None,
            },
            "skipped_steps": self.skipped_steps,
            "random_states": self.from_all(random_states()),
            "data": {
                "seed": self.order.seed,
                "position": self.order.position,
                "clips": len(self.order.indices),
                "files": self._sides
                and {name: sorted(found) for name, found in self._sides._asdict().items()},
            },
        }

    @property
    def scaler(self) -> Any:
        """The loss scaler of float16 training; None in other precisions."""
        return self.accelerator.scaler

    # to a file

    def save(self, milestone: int | float) -> None:
        """Writes `model-{milestone}.pt`, whole or not at all; every process calls it.

        A sharded model's checkpoint is a folder, `model-{milestone}.sharded`. Afterwards those are
        removed that `keep_last` and `keep_best` don't keep.

        Raises:
            OSError: If it can't be written.
        """
        state = self.checkpoint_state()
        # 2e-05 is no name that is found again
        number = f"{Decimal(str(milestone)):f}" if isinstance(milestone, float) else milestone
        path = self.results_folder / f"model-{number}{'.sharded' if self.fsdp else '.pt'}"
        if self.fsdp:
            write_sharded(state, path, self.is_main)
        else:
            with self.main_first():
                if self.is_main:
                    write_checkpoint(state, path)
        self._saved_step = self.step
        if self.is_main:
            forget_old(self.results_folder, self.keep_last, self.keep_best, written=path)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that labels stand for, where the clips' folder tells them."""
        clips = clips_behind(self.ds)
        return () if clips is None else clips.class_names

    def _last_checkpoint(self) -> str:
        """Where a run can go on from, in words."""
        found = newest(self.results_folder)
        return f"the last checkpoint is {found}" if found else "there is no checkpoint yet"
