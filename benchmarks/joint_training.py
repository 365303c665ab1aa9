"""Trains on videos with and without independent images, at equal numbers of steps.

    python benchmarks/joint_training.py --seeds 0 1 2 --steps 1500

For each number `k` of images per clip (Ho et al. 2022, section 4.3.1 and table 4, where k is 0,
4 and 8) and each seed, a small model learns clips of moving digits. The validation loss is that
of the averaged weights on clips that were not trained on, videos alone, at fixed time steps and
noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.data.write_video import write_video

FRAMES, SIZE = 8, 16
UNET = {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 2, "attn_dim_head": 16}
HELD_OUT = 128
TIMES = 16  # time steps at which each held-out clip is judged


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="+", default=[0, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--lr", type=float, default=2e-3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    shown, held_out = split_digits()
    validation = make_clips(held_out, HELD_OUT, seed=1)

    print("| k | seed | validation loss | s per step |")
    print("|---|---|---|---|")
    losses: dict[int, list[float]] = {k: [] for k in options.images}
    with tempfile.TemporaryDirectory() as folder:
        write_clips(make_clips(shown, options.clips, seed=2), Path(folder) / "clips")
        for seed in options.seeds:
            for k in options.images:
                start = time.perf_counter()
                diffusion = train(Path(folder), k, seed, options)
                seconds = (time.perf_counter() - start) / options.steps
                losses[k].append(validation_loss(diffusion, validation))
                print(f"| {k} | {seed} | {losses[k][-1]:.5f} | {seconds:.3f} |", flush=True)

    print("\n| k | mean | least | largest |\n|---|---|---|---|")
    for k, values in losses.items():
        print(f"| {k} | {statistics.mean(values):.5f} | {min(values):.5f} | {max(values):.5f} |")


def split_digits() -> tuple[Tensor, Tensor]:
    """Digits to train on, and 128 others that are shown in validation only."""
    images, _ = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[HELD_OUT:]], images[order[:HELD_OUT]]


def make_clips(digits: Tensor, count: int, seed: int) -> Tensor:
    """Clips `(count, 1, f, 32, 32)`, uint8, of digits that move."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(digits), (count,), generator=generator)
    made = [moving_digit_clip(digits[i], FRAMES, 32, generator) for i in chosen.tolist()]
    return torch.stack(made)


def write_clips(clips: Tensor, folder: Path) -> None:
    """One gif for each."""
    folder.mkdir()
    for i, clip in enumerate(clips):
        write_video(clip, folder / f"{i:04d}.gif")


def train(folder: Path, k: int, seed: int, options: argparse.Namespace) -> GaussianDiffusion:
    """A model with averaged weights."""
    torch.manual_seed(seed)
    diffusion = GaussianDiffusion(
        Unet3D(**UNET), image_size=SIZE, num_frames=FRAMES, timesteps=1000, loss_type="l2"
    )
    trainer = Trainer(
        diffusion,
        folder / "clips",
        train_batch_size=options.batch,
        train_lr=options.lr,
        gradient_accumulate_every=1,
        max_grad_norm=1.0,
        ema_decay=0.995,
        step_start_ema=100,
        update_ema_every=1,
        train_num_steps=options.steps,
        save_and_sample_every=options.steps + 1,
        results_folder=folder / f"results_{k}_{seed}",
        cache=folder / "cache",
        num_workers=0,
        device="cpu",
        image_frames=k,
    )

    def lower_the_rate(log: dict[str, float]) -> None:
        """Constant for the first half, then falling to zero."""
        left = 1 - log["step"] / options.steps
        for group in trainer.opt.param_groups:
            group["lr"] = options.lr * min(1.0, 2 * left)

    trainer.train(log_fn=lower_the_rate)
    return trainer.ema_model


@torch.no_grad()
def validation_loss(diffusion: GaussianDiffusion, clips: Tensor) -> float:
    """Mean loss at evenly spaced time steps; noise and steps are those of every other model."""
    generator = torch.Generator().manual_seed(3)
    small = torch.nn.functional.avg_pool3d(clips.float() / 255, (1, 2, 2))
    x_start = small * 2 - 1
    losses = []
    for i in range(TIMES):
        t = torch.full((len(clips),), round((i + 0.5) / TIMES * diffusion.num_timesteps))
        noise = torch.randn(x_start.shape, generator=generator)
        losses.append(diffusion.p_losses(x_start, t, noise=noise).item())
    return statistics.mean(losses)


if __name__ == "__main__":
    main()
