"""What it changes that the time steps of a batch are spread evenly.

    python benchmarks/even_times.py
    python benchmarks/even_times.py --train --seeds 0 1 2

By default it trains a small network on moving digits, and measures how much the mean loss of a
batch varies from batch to batch: with times that are spread evenly, as the `Trainer` draws them,
and with independent ones, of the same clips and noise. With `--train` it trains networks with
either, and compares their averaged weights on digits that they have not seen.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from network_options import FRAMES, HELD_OUT, SIZE, UNET, Clips, validation_loss
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.moving_digits import load_digits
from video_diffusion_pytorch.training.batches import ClipDraws

BATCHES = (4, 8, 32)


class IndependentDraws(ClipDraws):
    """Draws as a `Trainer` does, but each clip's time step independently of the others."""

    def __call__(self, seeds: Sequence[int], *args: Any, **options: Any) -> dict[str, Any]:
        """See `ClipDraws`."""
        drawn = super().__call__(seeds, *args, **options)
        fractions = torch.tensor([np.random.default_rng([seed, 1]).random() for seed in seeds])
        t = self.diffusion.times_at(fractions)
        return {**drawn, "t": t.to(drawn["t"])}


def clips_of(count: int) -> tuple[Clips, Clips]:
    """Clips to train on, and clips of other digits."""
    images, labels = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    new, old = order[:HELD_OUT], order[HELD_OUT:]
    return (
        Clips(images[old], labels[old], count, 2, False),
        Clips(images[new], labels[new], HELD_OUT, 1, False),
    )


def train(clips: Clips, draws: type[ClipDraws], seed: int, options: Any) -> Trainer:
    """A trainer at its end."""
    torch.manual_seed(seed)
    diffusion = GaussianDiffusion(
        Unet3D(**UNET),
        image_size=SIZE,
        num_frames=FRAMES,
        loss_type="l2",
        objective=options.objective,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            diffusion,
            dataset=clips,
            train_batch_size=options.batch,
            gradient_accumulate_every=1,
            train_lr=1e-3,
            max_grad_norm=1.0,
            ema_decay=0.99,
            step_start_ema=20,
            update_ema_every=1,
            train_num_steps=options.steps,
            save_and_sample_every=10 * options.steps,
            results_folder=folder,
            num_workers=0,
            device="cpu",
            seed=seed,
        )
        trainer.clip_draws = draws(diffusion)
        trainer.train()
    return trainer


@torch.no_grad()
def losses_of(diffusion: GaussianDiffusion, clips: Clips, draws: ClipDraws, count: int) -> Tensor:
    """Losses of `count` clips, `(count,)`."""
    diffusion.eval()
    found = []
    for first in range(0, count, 32):
        seeds = range(first, first + 32)
        videos = torch.stack([clips.clips[seed * 37 % len(clips)] for seed in seeds])
        found.append(diffusion(videos, **draws(seeds, FRAMES)))
    return torch.cat(found)


def compare_batches(options: argparse.Namespace) -> None:
    """Standard deviation over batches of their mean loss."""
    clips, _ = clips_of(options.clips)
    diffusion = train(clips, ClipDraws, 0, options).model
    losses = {
        kind: losses_of(diffusion, clips, draws(diffusion), options.batches * max(BATCHES))
        for kind, draws in (("independent", IndependentDraws), ("even", ClipDraws))
    }
    means = ", ".join(f"{kind} {values.mean():.4f}" for kind, values in losses.items())
    print(f"{options.objective}: mean loss {means}\n")
    print("| clips | independent | even | variance |\n|---|---|---|---|")
    for size in BATCHES:
        both = [values.view(-1, size).mean(1).std().item() for values in losses.values()]
        share = (both[1] / both[0]) ** 2
        print(f"| {size} | {both[0]:.4f} | {both[1]:.4f} | {share:.0%} |", flush=True)


def compare_trainings(options: argparse.Namespace) -> None:
    """Validation losses after trainings with either."""
    clips, new = clips_of(options.clips)
    print("| seed | independent | even |\n|---|---|---|")
    for seed in options.seeds:
        both = [
            validation_loss(train(clips, draws, seed, options).ema_model, new)
            for draws in (IndependentDraws, ClipDraws)
        ]
        print(f"| {seed} | {both[0]:.4f} | {both[1]:.4f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--train", action="store_true", help="compare trainings")
    parser.add_argument("--objective", default="pred_noise")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--batches", type=int, default=200, help="of the largest size")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    (compare_trainings if options.train else compare_batches)(options)


if __name__ == "__main__":
    main()
