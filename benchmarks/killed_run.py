"""The training run that `kill_and_resume.py` kills, with all options that draw random numbers.

Its arguments are three paths: of the clips, of the results folder, and of the file in which it
records its current phase.
"""

from __future__ import annotations

import json
import mmap
import random
import statistics
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.moving_digits import DIGIT_NAMES

STEPS, SAVE_EVERY, SAMPLE_EVERY = 12, 3, 6
CLIPS = 22
PHASES = ("starting", "reading", "computing", "writing", "sampling", "between")
TIMES = "times.json"


class Marking(Trainer):
    """A Trainer that records its current phase in a file, which outlives it."""

    def __init__(self, mark: Mark, *args: Any, **options: Any) -> None:
        self.mark = mark
        super().__init__(*args, **options)

    def next_batch(self) -> Any:
        """Waits for clips."""
        with self.mark.during("reading", self.step):
            return super().next_batch()

    def compute_loss(self, videos: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Moves the clips a little first, as users' own code may, by all generators there are."""
        shifts = random.randint(-2, 2), int(np.random.randint(-2, 3)), int(torch.randint(3, ()))
        return super().compute_loss(videos.roll(shifts, (4, 3, 2)), **kwargs)

    def train_step(self, **kwargs: Any) -> float:
        """Computes, and waits for clips in between."""
        with self.mark.during("computing", self.step):
            return super().train_step(**kwargs)

    def save(self, milestone: int | float | str) -> None:
        """Writes a checkpoint and removes an old one."""
        with self.mark.during("writing", self.step):
            super().save(milestone)
        self.mark.note(saved=self.step)

    def sample(self, ema_decay: float | None = None) -> Any:
        """Draws the milestone's samples."""
        with self.mark.during("sampling", self.step):
            return super().sample(ema_decay)

    def save_sample(self, videos: torch.Tensor, milestone: int) -> Path:
        """Writes them."""
        with self.mark.during("sampling", self.step):
            return super().save_sample(videos, milestone)


class Mark:
    """A file in memory: the step, what is done, and the step that was last saved.

    Args:
        path: Made if missing; what it says is kept.
    """

    _LAYOUT = struct.Struct("<qqq")

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(self._LAYOUT.pack(0, 0, 0))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), self._LAYOUT.size)
        self.seconds: dict[str, dict[int, float]] = {phase: {} for phase in PHASES}

    def read(self) -> tuple[int, str, int]:
        """Steps done, what is being done, and the step of the newest checkpoint."""
        step, phase, saved = self._LAYOUT.unpack(self._bytes[:])
        return step, PHASES[phase], saved

    def note(self, **values: Any) -> None:
        """Changes `step`, `phase` or `saved`."""
        now = dict(zip(("step", "phase", "saved"), self.read(), strict=True)) | values
        packed = self._LAYOUT.pack(now["step"], PHASES.index(now["phase"]), now["saved"])
        self._bytes[:] = packed

    @contextmanager
    def during(self, phase: str, step: int) -> Iterator[None]:
        """Says within it that this is being done, and counts its seconds."""
        before, start = self.read()[1], time.perf_counter()
        self.note(phase=phase, step=step)
        yield
        self.note(phase="between" if before == "starting" else before)
        by_step = self.seconds[phase]
        by_step[step] = by_step.get(step, 0.0) + time.perf_counter() - start


def label_of(path: Path) -> dict[str, int]:
    """The digit that a clip shows, from its name."""
    # as from a slow disk, so that the run waits for clips now and then
    time.sleep(0.06)
    return {"labels": DIGIT_NAMES.index(path.name.split("_")[1])}


def train(clips: Path, folder: Path, mark: Path) -> None:
    """Trains to the end, from where the last run in this folder was killed."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2, num_classes=10)
    diffusion = GaussianDiffusion(unet, image_size=(24, 16), num_frames=4, timesteps=12)
    trainer = Marking(
        Mark(mark),
        diffusion,
        clips,
        results_folder=folder,
        device="cpu",
        seed=0,
        num_workers=2,
        conditions=label_of,
        crop="random",
        clip_start="random",
        horizontal_flip=True,
        vertical_flip=True,
        train_batch_size=2,
        gradient_accumulate_every=2,
        train_num_steps=STEPS,
        train_lr=1e-3,
        lr_schedule="cosine",
        warmup_steps=3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        ema_decay=(0.9, 0.99),
        step_start_ema=2,
        update_ema_every=2,
        save_every=SAVE_EVERY,
        save_and_sample_every=SAMPLE_EVERY,
        num_sample_rows=2,
        keep_last=2,
        log_every=1,
        resume="auto",
    )
    print(f"begins after step {trainer.step}", flush=True)
    trainer.train(prob_focus_present=0.2)
    usual = {
        phase: statistics.median(by_step.values())
        for phase, by_step in trainer.mark.seconds.items()
        if by_step
    }
    (folder / TIMES).write_text(json.dumps(usual))


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
