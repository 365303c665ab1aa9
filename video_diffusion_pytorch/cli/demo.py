"""`video-diffusion demo`: makes clips, trains a small model on them and samples from it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.cli.plot import METRICS, plot_run
from video_diffusion_pytorch.conditions import repeat_rows
from video_diffusion_pytorch.data.display import text_picture, video_grid
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.checkpoint import list_checkpoints, newest
from video_diffusion_pytorch.training.metrics import read_metrics
from video_diffusion_pytorch.training.samples import draw_samples
from video_diffusion_pytorch.training.trainer import Trainer

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
    "train_batch_size": 8,
    "train_lr": 2e-3,
    "gradient_accumulate_every": 1,
    "max_grad_norm": 1.0,
    "ema_decay": 0.995,
    "step_start_ema": 100,
    "update_ema_every": 1,
}
DEFAULT_STEPS = 1000
TIME_LIMIT = 200.0  # seconds of training, where no number of steps is asked for
CHECKPOINT_EVERY = 250
GRID = (4, 4)
ZOOM = 4


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `demo`."""
    parser = ArgumentParser(
        usage="video-diffusion demo [options]",
        description="Trains a small model on clips of moving digits and samples from it. A second "
        "run in the same folder resumes the first.",
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
    """Trains a small model on clips of moving digits and samples from it.

    A second run in the same folder resumes the first.

    Args:
        folder: Folder for all files; made if missing.
        steps: Number of training steps, counted from the first run; None for 1000, or as many as
            fit into 200 seconds.
        clips: Number of clips to make and train on.
        seed: Seed of the clips, the initial weights, the training and the samples.
        device: Device to train on, such as `"cpu"`; None for the fastest available.
        say: Called with each line of the report.

    Raises:
        ValueError: If `steps` or `clips` is less than 1, or the folder has a checkpoint of another
            model.
    """
    total = DEFAULT_STEPS if steps is None else as_count(steps, "demo: steps")
    home = Path(folder)
    results = home / "checkpoints"

    # clips
    torch.manual_seed(seed)
    checkpoints = list_checkpoints(results)
    if not checkpoints:
        write_moving_digits(home / "clips", clips, **CLIP, seed=seed)
        say(f"wrote {clips} clips of moving digits to {home / 'clips'}")

    # model
    trainer = Trainer(
        GaussianDiffusion(Unet3D(**UNET), **DIFFUSION),
        home / "clips",
        **TRAINER,
        train_num_steps=total,
        # `_train` writes the checkpoints, and samples are drawn only at the end
        save_and_sample_every=total + 1,
        results_folder=results,
        device=device,
    )
    if checkpoints:
        trainer.load(-1)
        say(f"resumes from {trainer.resumed_from}, step {trainer.step}, with the clips of that run")
        if trainer.step >= total:
            say(f"training is complete: to continue, pass --steps above {trainer.step}")

    # training and samples
    _train(trainer, None if steps else TIME_LIMIT)
    if trainer.step < total:
        say(f"time is up at step {trainer.step} of {total}; run again to continue")
    say("drawing samples ...")
    samples = draw_samples(trainer.ema_model, GRID[0] * GRID[1], 16, {}, seed).cpu()

    # report
    real = torch.stack([trainer.ds[i] for i in range(min(len(trainer.ds), len(samples)))]) / 255
    write_comparison(repeat_rows(real, len(samples)), samples, home / "samples.gif")
    plot_run(results, home / "loss.png")
    losses = [line for line in read_metrics(results / METRICS) if line.get("loss") is not None]
    last = newest(results)
    say(f"training clips and samples: {home / 'samples.gif'}")
    say(f"checkpoint: {last}")
    say(f"loss curve: {home / 'loss.png'}")
    for line in losses[:1] + losses[-1:]:
        say(f"loss at step {line['step']}: {line['loss']:.4f}")
    say(f"more samples: video-diffusion sample {last} -n 16 -o {home / 'more.gif'}")


def _train(trainer: Trainer, time_limit: float | None) -> None:
    """Trains to the last step or the time limit, with checkpoints on the way and at the end."""
    start = time.monotonic()

    def time_passed() -> float:
        return 0.0 if time_limit is None else (time.monotonic() - start) / time_limit

    def set_learning_rate(step: int) -> None:
        """Constant for the first half, then falling to zero."""
        left = 1 - max(time_passed(), step / trainer.train_num_steps)
        for group in trainer.opt.param_groups:
            group["lr"] = TRAINER["train_lr"] * min(1.0, max(0.0, 2 * left))

    def after_step(log: dict[str, Any]) -> None:
        set_learning_rate(log["step"])
        if time_passed() >= 1:
            trainer.train_num_steps = log["step"]
        if log["step"] % CHECKPOINT_EVERY == 0 or log["step"] == trainer.train_num_steps:
            # named by step rather than milestone, in order also after a longer run
            trainer.save(log["step"])

    if trainer.step < trainer.train_num_steps:
        set_learning_rate(trainer.step)
        trainer.train(log_fn=after_step)


def write_comparison(real: Tensor, samples: Tensor, path: Path) -> None:
    """Writes a gif with real clips on the left and samples on the right, each with a title.

    Args:
        real: Grey clips, `(b, 1, f, h, w)` in [0, 1], one for each place of `GRID`.
        samples: Likewise.
        path: The gif.
    """
    halves = []
    for title, videos in (("training clips", real), ("samples", samples)):
        grid = video_grid(videos, GRID[1], zoom=ZOOM, frame=0.35)
        head = text_picture(title, grid.shape[-1]).expand(1, grid.shape[1], -1, -1)
        halves.append(torch.cat((head, grid), dim=-2))
    gap = halves[0].new_ones(*halves[0].shape[:-1], 4 * ZOOM)
    video_tensor_to_gif(torch.cat((halves[0], gap, halves[1]), dim=-1), path)
