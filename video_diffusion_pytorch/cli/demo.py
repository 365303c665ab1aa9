"""`video-diffusion demo`: makes clips, trains a small model on them, and draws samples."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch.conditions import repeat_rows
from video_diffusion_pytorch.data.display import text_picture, video_grid
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.checkpoint import list_checkpoints, newest
from video_diffusion_pytorch.training.samples import draw_samples
from video_diffusion_pytorch.training.trainer import Trainer

HELP = "train a small model on moving digits, with nothing to fetch"

# What two CPU cores can learn in three minutes. The digits were scanned at 8 x 8 pixels, which is
# what they have again in clips of 32 x 32 that are read at 16 x 16.
CLIP = {"image_size": 32, "num_frames": 8}
UNET: dict[str, Any] = {
    "dim": 16,
    "dim_mults": (1, 2, 4),
    "channels": 1,
    "attn_heads": 2,
    "attn_dim_head": 16,
}
DIFFUSION: dict[str, Any] = {
    "image_size": 16,
    "num_frames": 8,
    "timesteps": 200,
    "loss_type": "l2",
}
TRAINER: dict[str, Any] = {
    "train_batch_size": 4,
    "train_lr": 2e-3,
    "gradient_accumulate_every": 1,
    "max_grad_norm": 1.0,
    "ema_decay": 0.995,
    "step_start_ema": 100,
    "update_ema_every": 1,
}
DEFAULT_STEPS = 1600
TIME_LIMIT = 200.0  # seconds of training, where no number of steps is asked for
CHECKPOINT_EVERY = 250
GRID = (4, 4)
ZOOM = 4


def make_parser() -> ArgumentParser:
    """The options of `demo`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Trains a small model on clips of moving digits, and shows what it has "
        "learned. A second run in the same folder goes on where the last one ended.",
    )
    parser.add_function_arguments(run_demo, as_group=False, skip={"say"})
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Runs the demo as options say."""
    run_demo(**options.as_dict(), say=say)


def run_demo(
    folder: str = "demo",
    *,
    steps: int | None = None,
    clips: int = 500,
    seed: int = 0,
    device: str | None = None,
    say: Callable[[str], None],
) -> None:
    """Trains a small model on clips of moving digits, and shows what it has learned.

    A second run in the same folder goes on where the last one ended.

    Args:
        folder: Where everything goes; made if missing.
        steps: Number of training steps, counted from the first run; None for 1600, or for what fits
            into 200 seconds of training.
        clips: Number of clips to make and train on.
        seed: Of the clips, the first weights, the training and the samples.
        device: Where to train, such as `"cpu"`; None for the fastest there is.
        say: Called with each line of the report.

    Raises:
        ValueError: If `steps` or `clips` is less than 1, or a checkpoint there is of another model.
    """
    if steps is not None and steps < 1:
        raise ValueError(f"demo: steps must be at least 1, got {steps}; give a positive number")
    home, total = Path(folder), steps or DEFAULT_STEPS
    checkpoints = list_checkpoints(home / "checkpoints")

    # clips
    torch.manual_seed(seed)
    if not checkpoints:
        write_moving_digits(home / "clips", clips, **CLIP, seed=seed)
        say(f"wrote {clips} clips of moving digits to {home / 'clips'}")

    # model
    trainer = _make_trainer(home, total, device)
    if checkpoints:
        trainer.load(-1)
        say(f"goes on from {trainer.resumed_from}, step {trainer.step}; clips are left as they are")
        if trainer.step >= total:
            say(f"nothing left to train: for more, pass --steps with more than {trainer.step}")

    # training and samples
    losses = LossFile(home / "loss.csv", trainer.step)
    with _one_thread():
        _train(trainer, losses, None if steps else TIME_LIMIT)
        if trainer.step < total:
            say(f"the time is up at step {trainer.step} of {total}; run again to go on")
        say("draws samples ...")
        samples = draw_samples(trainer.ema_model, GRID[0] * GRID[1], 16, {}, seed).cpu()

    # report
    real = torch.stack([trainer.ds[i] for i in range(min(len(trainer.ds), len(samples)))]) / 255
    write_comparison(repeat_rows(real, len(samples)), samples, home / "samples.gif")
    losses.plot(home / "loss.png")
    last = newest(home / "checkpoints")
    say(f"samples beside training clips: {home / 'samples.gif'}")
    say(f"checkpoint: {last}")
    say(f"loss curve: {home / 'loss.png'}, its numbers: {losses.path}")
    say(losses.summary())
    say(f"more samples: video-diffusion sample {last} -n 16 -o {home / 'more.gif'}")


def _make_trainer(home: Path, total: int, device: str | None) -> Trainer:
    return Trainer(
        GaussianDiffusion(Unet3D(**UNET), **DIFFUSION),
        home / "clips",
        **TRAINER,
        train_num_steps=total,
        # `_train` writes the checkpoints, and samples are drawn at the end only
        save_and_sample_every=total + 1,
        results_folder=home / "checkpoints",
        device=device,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Spares layers this small the second thread: on a CPU they lose more to it than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(trainer: Trainer, losses: LossFile, time_limit: float | None) -> None:
    """Trains to the end or the time limit, with a checkpoint now and then and at the end."""
    start = time.monotonic()

    def time_passed() -> float:
        return 0.0 if time_limit is None else (time.monotonic() - start) / time_limit

    def set_learning_rate(step: int) -> None:
        """Constant for the first half, then falling to zero."""
        left = 1 - max(time_passed(), step / trainer.train_num_steps)
        for group in trainer.opt.param_groups:
            group["lr"] = TRAINER["train_lr"] * min(1.0, max(0.0, 2 * left))

    def after_step(log: dict[str, Any]) -> None:
        losses.add(log["step"], log["loss"])
        set_learning_rate(log["step"])
        if time_passed() >= 1:
            trainer.train_num_steps = log["step"]
        if log["step"] % CHECKPOINT_EVERY == 0 or log["step"] == trainer.train_num_steps:
            # named by step rather than by milestone: a longer run keeps the order
            trainer.save(log["step"])

    if trainer.step < trainer.train_num_steps:
        set_learning_rate(trainer.step)
        trainer.train(log_fn=after_step)


class LossFile:
    """The loss of every step, in a file that an interrupted run leaves behind complete.

    Args:
        path: The file, of lines `step,loss`.
        step: Up to this step its lines are kept: those after it are of a run that is repeated.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        self.rows: list[tuple[int, float]] = []
        if path.is_file():
            with path.open(newline="") as file:
                found = [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]
            self.rows = [row for row in found if row[0] <= step]
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *self.rows])

    def add(self, step: int, loss: float) -> None:
        """Adds the loss of a step."""
        self.rows.append((step, loss))
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow((step, loss))

    def summary(self) -> str:
        """The loss at the start and at the end, in words."""
        losses = [loss for _, loss in self.rows]
        if not losses:
            return "loss: no step has been recorded"
        first, last = min(10, len(losses)), min(50, len(losses))
        start, end = sum(losses[:first]) / first, sum(losses[-last:]) / last
        return (
            f"loss: {start:.4f} at the start (mean of {first} steps), {end:.4f} at the end (mean "
            f"of {last})"
        )

    def plot(self, path: Path) -> None:
        """Draws the curve, every step's loss and their running mean, as a picture."""
        # a figure without pyplot needs no display and leaves no state behind
        from matplotlib.figure import Figure

        if not self.rows:
            return
        steps, losses = (np.array(column) for column in zip(*self.rows, strict=True))
        window = max(1, min(50, len(losses) // 5))
        means = np.convolve(losses, np.ones(window) / window, mode="valid")
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, color="lightsteelblue", linewidth=0.8, label="each step")
        axes.plot(
            steps[window - 1 :], means, color="navy", label=f"mean of the last {window} steps"
        )
        axes.set(xlabel="step", ylabel="loss (noise prediction)", yscale="log")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
        figure.savefig(path, dpi=120)


def write_comparison(real: Tensor, samples: Tensor, path: Path) -> None:
    """Writes a gif with real clips on the left, samples on the right, and a title over each.

    Args:
        real: Grey clips, `(b, 1, f, h, w)` in [0, 1], as many as `GRID` has places.
        samples: As many.
        path: The gif.
    """
    halves = []
    for title, videos in (("training clips", real), ("samples", samples)):
        grid = video_grid(videos, GRID[1], zoom=ZOOM, frame=0.35)
        head = text_picture(title, grid.shape[-1]).expand(1, grid.shape[1], -1, -1)
        halves.append(torch.cat((head, grid), dim=-2))
    gap = halves[0].new_ones(*halves[0].shape[:-1], 4 * ZOOM)
    video_tensor_to_gif(torch.cat((halves[0], gap, halves[1]), dim=-1), path)
