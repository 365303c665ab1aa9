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
from video_diffusion_pytorch.data.display import text_picture, video_grid
from video_diffusion_pytorch.data.moving_digits import (
    DIGIT_NAMES,
    MANIFEST,
    write_moving_digits,
)
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.presets import preset
from video_diffusion_pytorch.training.checkpoint import list_checkpoints, newest
from video_diffusion_pytorch.training.metrics import read_metrics
from video_diffusion_pytorch.training.trainer import Trainer

# The digits were scanned at 8 x 8 pixels, which is what they have again in clips of 32 x 32 that
# are read at 16 x 16.
CLIP = {"image_size": 32, "num_frames": 8}
_SMALL = preset("small")
UNET: dict[str, Any] = {**_SMALL.unet, "channels": 1, "num_classes": len(DIGIT_NAMES)}
DIFFUSION: dict[str, Any] = _SMALL.diffusion
TRAINER: dict[str, Any] = _SMALL.trainer
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
    total = TRAINER["train_num_steps"] if steps is None else as_count(steps, "demo: steps")
    # a short run has no time for a long one
    warmup = min(TRAINER["warmup_steps"], total // 10)
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
        **{**TRAINER, "train_num_steps": total, "warmup_steps": warmup},
        conditions="label",
        manifest=home / "clips" / MANIFEST,
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

    # training
    _train(trainer, None if steps else TIME_LIMIT)
    if trainer.step < total:
        say(f"time is up at step {trainer.step} of {total}; run again to continue")

    # samples
    say("drawing samples ...")
    _show_samples(trainer, seed, home / "samples.gif")
    _report(home, say)


def _train(trainer: Trainer, time_limit: float | None) -> None:
    """Trains to the last step or the time limit, with checkpoints on the way and at the end."""
    first, total, start = trainer.step, trainer.train_num_steps, time.monotonic()

    def after_step(log: dict[str, Any]) -> None:
        step = log["step"]
        if time_limit is not None:
            # the steps that fit, by those until now; the learning rate falls over as many
            fitting = (step - first) * time_limit / (time.monotonic() - start)
            trainer.train_num_steps = min(total, max(step, first + round(fitting)))
        if step % CHECKPOINT_EVERY == 0 or step == trainer.train_num_steps:
            # named by step rather than milestone, in order also after a longer run
            trainer.save(step)

    if first < total:
        trainer.train(log_fn=after_step)


def _show_samples(trainer: Trainer, seed: int, path: Path) -> None:
    """Writes clips, and samples each of the digit of the clip in the same place."""
    shown = [trainer.ds[i] for i in range(min(len(trainer.ds), GRID[0] * GRID[1]))]
    samples = trainer.ema_model.sample(
        labels=[int(clip["labels"]) for clip in shown],
        cond_scale=_SMALL.cond_scale,
        sampler=_SMALL.sampler,
        steps=min(_SMALL.sampling_steps, trainer.model.num_timesteps),
        seed=seed,
        progress=False,
    )
    real = torch.stack([clip["video"] for clip in shown]) / 255
    write_comparison(real, samples.cpu(), path)


def _report(home: Path, say: Callable[[str], None]) -> None:
    """Plots the losses, and says where everything is."""
    results = home / "checkpoints"
    plot_run(results, home / "loss.png")
    losses = [line for line in read_metrics(results / METRICS) if line.get("loss") is not None]
    last = newest(results)
    say(f"training clips and samples: {home / 'samples.gif'}")
    say(f"checkpoint: {last}")
    say(f"loss curve: {home / 'loss.png'}")
    for line in losses[:1] + losses[-1:]:
        say(f"loss at step {line['step']}: {line['loss']:.4f}")
    digits = " ".join(map(str, range(len(DIGIT_NAMES))))
    more = f"-n 2 --labels {digits} --preset small -o {home / 'more.gif'}"
    say(f"more samples: video-diffusion sample {last} {more}")


def write_comparison(real: Tensor, samples: Tensor, path: Path) -> None:
    """Writes a gif with real clips on the left and samples on the right, each with a title.

    Args:
        real: Grey clips, `(b, 1, f, h, w)` in [0, 1], at most one for each place of `GRID`.
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
