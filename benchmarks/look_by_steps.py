"""Shows how long models of several sizes train until their samples look like the clips.

    python benchmarks/look_by_steps.py --folder look --dims 8 16 32 --steps 200 400 800 1600 3200

A small network, of several widths, learns clips of moving digits. After each of the numbers of
steps the averaged weights are measured: their loss on clips of digits that were not trained on, at
fixed time steps and noise, and the Frechet distance, of fixed random features, between samples and
such clips. Samples, the table and a picture of all are written to the folder, anew after each
measurement. A second call continues, also with more dims and larger numbers of steps. All models
reach the same number of steps before one of them continues.

Minutes are those of one processor core: the median of the processor time of a step, times steps.
Other work of the machine does not count, nor does sampling.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joint_training import HELD_OUT, make_clips, split_digits, write_clips
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.display import video_grid
from video_diffusion_pytorch.evaluation.video_scores import (
    frechet_distance,
    random_feature_statistics,
)

FRAMES, SIZE = 8, 16
UNET: dict[str, Any] = {"dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 2, "attn_dim_head": 16}
TIMESTEPS, LEARNING_RATE, EMA_DECAY = 200, 2e-3, 0.995
PARTS = ("shown", "held_out")  # folders of clips to train on, and to measure with
SAMPLER, SAMPLING_STEPS = "dpm++sde", 20
SHOWN, FRAMES_SHOWN = 4, (0, 2, 4, 6)  # clips and frames of a cell of the picture
HEAD = (
    "| `dim` | million parameters | steps | minutes | validation loss | distance |\n"
    "|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("look"))
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[200, 400, 800, 1600, 3200])
    parser.add_argument("--clips", type=int, default=500, help="to train on")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="clips to measure with")
    parser.add_argument("--count", type=int, default=64, help="samples of a measurement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    write_digits(options)
    real = Clips(options)
    for steps in sorted(options.steps):
        for dim in options.dims:
            if not row_file(dim, steps, options).exists():
                train(dim, steps, real, options)
                table(real, options)
                draw_picture(real, options)
    print("\n".join(table(real, options)))


def write_digits(options: argparse.Namespace) -> None:
    """The clips to train on, and clips of other digits; written once."""
    options.folder.mkdir(parents=True, exist_ok=True)
    counts = (options.clips, options.held_out)
    for digits, name, count in zip(split_digits(), PARTS, counts, strict=True):
        if not (options.folder / name).exists():
            write_clips(make_clips(digits, count, seed=PARTS.index(name)), options.folder / name)


class Clips:
    """Real clips, and how far videos are from those of held-out digits.

    Args:
        options: Those of the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        folders = [Dataset(options.folder / part, SIZE, 1, FRAMES) for part in PARTS]
        self.shown, self.held_out = (
            torch.stack([clips[i] for i in range(len(clips))]) for clips in folders
        )
        self.statistics = random_feature_statistics(self.held_out)

    def distance(self, videos: Tensor) -> float:
        """Frechet distance to the clips of held-out digits."""
        return frechet_distance(random_feature_statistics(videos), self.statistics)


def train(dim: int, steps: int, real: Clips, options: argparse.Namespace) -> None:
    """Trains one model, from where it stopped before, and measures it after the last step."""
    torch.manual_seed(options.seed)
    trainer = Trainer(
        GaussianDiffusion(
            Unet3D(dim=dim, **UNET),
            image_size=SIZE,
            num_frames=FRAMES,
            timesteps=TIMESTEPS,
            loss_type="l2",
        ),
        options.folder / "shown",
        train_batch_size=4,
        train_lr=LEARNING_RATE,
        gradient_accumulate_every=1,
        max_grad_norm=1.0,
        ema_decay=EMA_DECAY,
        step_start_ema=100,
        update_ema_every=1,
        train_num_steps=steps,
        save_and_sample_every=steps + 1,
        keep_last=2,
        validation_folder=options.folder / "held_out",
        validation_clips=options.held_out,
        results_folder=options.folder / f"dim_{dim}",
        cache=options.folder / "cache",
        num_workers=0,
        device="cpu",
        seed=options.seed,
        resume="auto",
    )
    seconds: list[float] = []
    last = time.process_time()

    def after_step(log: dict[str, Any]) -> None:
        nonlocal last
        seconds.append(time.process_time() - last)
        if log["step"] == steps:
            # before the checkpoint is written: a run that ends here measures the next time
            measure(dim, trainer, statistics.median(seconds), real, options)
        last = time.process_time()

    trainer.train(log_fn=after_step)


def measure(
    dim: int, trainer: Trainer, seconds: float, real: Clips, options: argparse.Namespace
) -> None:
    """Writes a model's samples, and a row of the table."""
    samples = trainer.ema_model.sample(
        batch_size=options.count,
        max_batch=32,
        sampler=SAMPLER,
        steps=min(SAMPLING_STEPS, TIMESTEPS),
        seed=options.seed,
        progress=False,
    )
    row = {
        "dim": dim,
        "parameters": sum(p.numel() for p in trainer.model.denoise_fn.parameters()),
        "steps": trainer.step,
        "minutes": seconds * trainer.step / 60,
        "validation_loss": trainer.validate()[f"validation_loss_ema_{EMA_DECAY}"],
        "distance": real.distance(samples),
    }
    path = row_file(dim, trainer.step, options)
    np.save(path.with_suffix(".npy"), samples[:SHOWN].numpy())
    path.write_text(json.dumps(row))
    print(in_words(row), flush=True)


def row_file(dim: int, steps: int, options: argparse.Namespace) -> Path:
    """Where a row of the table is kept."""
    return options.folder / f"dim_{dim}" / f"after_{steps}.json"


def rows(options: argparse.Namespace) -> list[dict[str, Any]]:
    """What has been measured so far."""
    paths = [row_file(dim, steps, options) for dim in options.dims for steps in options.steps]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def in_words(row: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"| {row['dim']} | {row['parameters'] / 1e6:.2f} | {row['steps']} | {row['minutes']:.1f} | "
        f"{row['validation_loss']:.4f} | {row['distance']:.4f} |"
    )


def table(real: Clips, options: argparse.Namespace) -> list[str]:
    """The lines of the table, which is also written to the folder."""
    # as many as there are samples, since the distance of fewer videos is larger
    nearest = real.distance(real.shown[: options.count])
    lines = [HEAD, *map(in_words, rows(options)), f"| real clips | | | | | {nearest:.4f} |"]
    (options.folder / "table.md").write_text("\n".join(lines) + "\n")
    return lines


def draw_picture(real: Clips, options: argparse.Namespace) -> None:
    """A row for each model, a column for each number of steps, and real clips at the right."""
    from matplotlib.figure import Figure

    measured = {(row["dim"], row["steps"]): row for row in rows(options)}
    columns = [*options.steps, None]
    size = (2.2 * len(columns), 2.5 * len(options.dims) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(len(options.dims), len(columns), squeeze=False)
    for line, dim in zip(places, options.dims, strict=True):
        for axes, steps in zip(line, columns, strict=True):
            axes.set(xticks=[], yticks=[])
            if steps is None:
                videos, title = real.held_out[:SHOWN], "real clips"
            elif (dim, steps) in measured:
                videos = torch.from_numpy(
                    np.load(row_file(dim, steps, options).with_suffix(".npy"))
                )
                title = f"{steps} steps, {measured[dim, steps]['minutes']:.1f} minutes"
            else:
                axes.set_axis_off()
                continue
            axes.imshow(cell(videos), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_title(title, fontsize=8)
        line[0].set_ylabel(f"dim={dim}", fontsize=9)
    figure.savefig(options.folder / "look_by_steps.png", dpi=100)


def cell(videos: Tensor) -> np.ndarray:
    """A line of frames for each video, `(h, w)`."""
    frames = videos[:, :, list(FRAMES_SHOWN)].clamp(0, 1)
    stills = frames.transpose(1, 2).flatten(0, 1)[:, :, None]  # a clip of one frame each
    return video_grid(stills, len(FRAMES_SHOWN), frame=0.35)[0, 0].numpy()


if __name__ == "__main__":
    main()
