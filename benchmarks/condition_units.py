"""Whether numeric conditions train as well in units of their own as standardised.

    python benchmarks/condition_units.py

Clips are flat, of a grey that a number determines. Small models are trained on the number as it is,
in several units, and with `cond_standardization`; then samples are drawn for numbers over the whole
range. The error is the root mean square difference of the samples' mean grey from what the number
says, in shares of the standard deviation of the greys: 1 for samples that ignore the condition.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D

# low and high of the number
UNITS = {"0 to 1": (0.0, 1.0), "20 to 75": (20.0, 75.0), "100325 to 102325": (100325.0, 102325.0)}


class Greys(torch.utils.data.IterableDataset[dict[str, Tensor]]):
    """Flat clips, `(1, 4, 8, 8)`, and their number."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            grey = torch.rand(())
            noise = 0.02 * torch.randn(1, 4, 8, 8)
            number = self.low + grey * (self.high - self.low)
            yield {"video": (grey + noise).clamp(0, 1), "cond": number.view(1)}


def error(low: float, high: float, is_standardised: bool, steps: int, seed: int) -> float:
    """Trains a model, and gives the error of its samples."""
    torch.manual_seed(seed)
    scale = {"cond": {"mean": (low + high) / 2, "std": (high - low) / 12**0.5}}
    diffusion = GaussianDiffusion(
        Unet3D(16, dim_mults=(1, 2), channels=1, cond_dim=1, attn_heads=1, init_kernel_size=3),
        image_size=8,
        num_frames=4,
        objective="flow",
        loss_type="l2",
        cond_standardization=scale if is_standardised else None,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            diffusion,
            dataset=Greys(low, high),
            results_folder=Path(folder),
            train_batch_size=16,
            gradient_accumulate_every=1,
            train_lr=1e-3,
            max_grad_norm=1.0,
            train_num_steps=steps,
            ema_decay=0.99,
            step_start_ema=50,
            update_ema_every=1,
            save_and_sample_every=steps,
            num_sample_rows=1,
            num_workers=0,
            seed=seed,
        )
        trainer.train(log_fn=lambda line: None)
    wanted = torch.linspace(0.05, 0.95, 64)
    numbers = (low + wanted * (high - low))[:, None]
    samples = trainer.ema_model.sample(cond=numbers, steps=10, seed=seed, progress=False)
    apart = samples.mean(dim=(1, 2, 3, 4)) - wanted
    return (apart.square().mean().sqrt() / wanted.std()).item()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print("| number | as it is | standardised |\n|---|---|---|")
    for name, (low, high) in UNITS.items():
        cells = []
        for is_standardised in (False, True):
            found = [error(low, high, is_standardised, options.steps, s) for s in options.seeds]
            cells.append(", ".join(f"{one:.2f}" for one in found))
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
