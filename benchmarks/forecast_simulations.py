"""Forecasts of two simulations, verified against baselines: padding, scaling and other options.

    python benchmarks/simulations.py turbulence vorticity --count 300
    python benchmarks/forecast_simulations.py train vorticity results/vorticity
    python benchmarks/forecast_simulations.py verify vorticity results/vorticity

`train` trains a small model for each of `ARMS` on all trajectories except the last ones, each model
in a folder of its own; one that is finished is kept. `verify` forecasts the last trajectories from
their first two frames, and prints a table of the arms and of the baselines; the scores by lead time
are in `forecast.json` beside each model.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.evaluation.results import read_result, write_result
from video_diffusion_pytorch.training.verification import (
    SUMMARY,
    Verification,
    verify_forecasts,
    write_example,
)

KNOWN, WINDOW, LEAD, HELD_OUT = 2, 10, 16, 40

# keywords of Unet3D, of GaussianDiffusion and of Trainer
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "circular": ({"padding_mode": "circular"}, {}, {"value_range": "standardize"}),
    "zeros": ({"padding_mode": "zeros"}, {}, {"value_range": "standardize"}),
    "range": ({"padding_mode": "circular"}, {}, {"value_range": "fit"}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains the models, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task", choices=("train", "verify"))
    parser.add_argument("data", type=Path, help="trajectories of simulations.py")
    parser.add_argument("results", type=Path)
    parser.add_argument("--arms", nargs="+", default=[*ARMS], choices=[*ARMS])
    parser.add_argument("--steps", type=int, default=1200, help="training steps")
    parser.add_argument("--one_step", type=int, default=1200, help="its training steps")
    parser.add_argument("--count", type=int, default=HELD_OUT, help="trajectories to verify on")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    training, held_out = split(options.data, options.results / "clips")
    if options.task == "train":
        for arm in options.arms:
            train(arm, training, options.results / arm, options.steps)
    else:
        for number, arm in enumerate(options.arms):
            verify(arm, held_out, training, options, with_baselines=not number)
        print_table(options)


def split(data: Path, folder: Path) -> tuple[Path, Path]:
    """Folders of links to the trajectories to train on, and to those to verify on."""
    paths = sorted(data.glob("*.npy"))
    parts = {"training": paths[:-HELD_OUT], "held_out": paths[-HELD_OUT:]}
    for name, chosen in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in chosen:
            link = folder / name / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    return folder / "training", folder / "held_out"


def channels_of(data: Path) -> int:
    """Number of channels of trajectories."""
    return len(np.load(next(data.glob("*.npy")), mmap_mode="r"))


def build(arm: str, channels: int) -> GaussianDiffusion:
    """The untrained model of an arm."""
    unet, diffusion, _ = ARMS[arm]
    network = Unet3D(
        dim=16,
        dim_mults=(1, 2, 4),
        channels=channels,
        cond_channels=channels + 1,
        init_kernel_size=3,
        attn_heads=2,
        attn_dim_head=16,
        use_sparse_linear_attn=False,
        **unet,
    )
    options = {"loss_type": "l2", "objective": "flow", "given_frames": KNOWN, "cond_drop_prob": 0.0}
    options["sampling_timesteps"] = 20
    return GaussianDiffusion(
        network, image_size=32, num_frames=WINDOW, timesteps=1000, **{**options, **diffusion}
    )


def train(arm: str, data: Path, folder: Path, steps: int) -> None:
    """Trains the model of an arm, and writes how long that took."""
    done = folder / "minutes.txt"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(0)
    begin = time.perf_counter()
    diffusion = build(arm, channels_of(data))
    trainer = Trainer(
        diffusion,
        data,
        exts="npy",
        clip_start="random",
        results_folder=folder,
        train_batch_size=8,
        gradient_accumulate_every=1,
        train_lr=2e-3,
        betas=(0.9, 0.99),
        lr_schedule="cosine",
        warmup_steps=50,
        max_grad_norm=1.0,
        train_num_steps=steps,
        ema_decay=0.995,
        step_start_ema=100,
        update_ema_every=1,
        save_and_sample_every=steps,
        num_sample_rows=1,
        num_workers=0,
        seed=0,
        **ARMS[arm][2],
    )
    trainer.train()
    minutes = (time.perf_counter() - begin) / 60
    done.write_text(f"{minutes:.1f}\n")
    print(f"{arm}: {steps} steps in {minutes:.1f} minutes", flush=True)


def verify(
    arm: str, held_out: Path, training: Path, options: argparse.Namespace, with_baselines: bool
) -> None:
    """Verifies the forecasts of an arm; the one-step network is trained for the first arm only."""
    folder = options.results / arm
    result = folder / "forecast.json"
    if result.exists():
        return
    settings = Verification(
        frames=LEAD,
        initial_frames=KNOWN,
        clips=options.count,
        sampler="dpm++",
        steps=20,
        max_batch=16,
        one_step=options.one_step if with_baselines else 0,
    )
    found, example = verify_forecasts(
        load_diffusion(folder),
        held_out,
        settings,
        training_data=training,
        exts="npy",
        num_workers=0,
        progress=False,
    )
    write_result(found, result)
    write_example(example, result.with_suffix(".npz"))
    print(f"{arm}: {found['seconds'] / 60:.1f} minutes", flush=True)


def print_table(options: argparse.Namespace) -> None:
    """Prints the scores of arms and baselines by channel, means over lead times."""
    results = {arm: read_result(options.results / arm / "forecast.json") for arm in options.arms}
    first = results[options.arms[0]]
    rows = {name: found["scores"] for name, found in results.items()} | first["baselines"]
    minutes = {arm: (options.results / arm / "minutes.txt").read_text().strip() for arm in results}
    channels = first["channels"]
    for channel in channels:
        suffix = f".{channel}" * (len(channels) > 1)
        names = [name for name in SUMMARY if name + suffix in first["scores"]]
        print(f"\nchannel {channel}\n\n| | minutes | {' | '.join(names)} |")
        print("|---|---|" + "---|" * len(names))
        for row, scores in rows.items():
            cells = [minutes.get(row, "")]
            for name in names:
                value = scores.get(name + suffix)
                cells.append("" if value is None else f"{value:.3f}")
            print(f"| {row} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
