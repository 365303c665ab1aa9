"""Forecasts of a process whose future is known in closed form: a vector autoregression.

    python benchmarks/linear_forecasts.py --steps 1500

A field on a periodic grid drifts, decays and gets noise that is correlated in space: in Fourier
space each mode is an autoregression of its own, so that the distribution of the future given the
present is Gaussian with a known mean and variance. A small model is trained on trajectories, and
its forecasts are scored beside ideal ones, drawn from that distribution, and beside theory.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.evaluation.forecast_scores import ForecastScores

WINDOW, LEAD, MEMBERS = 5, 8, 8


class LinearFields(NamedTuple):
    """x_{t+1} = A x_t + noise on a periodic grid, stationary with variance 1 at each point.

    Attributes:
        size: Grid points along height and width.
        drift: Grid points per frame along the width.
        memory: Frames in which the mean of the field decays to 1 / e.
        diffusivity: How much faster waves decay: the rate grows by it times the wavenumber squared.
        scale: Width of the correlation of the noise, in grid points.
    """

    size: int = 16
    drift: float = 1.0
    memory: float = 8.0
    diffusivity: float = 0.15
    scale: float = 1.5

    def modes(self) -> tuple[Tensor, Tensor]:
        """The factor from frame to frame, complex, and the stationary variance of each mode.

        Returns:
            Two `(h, w)`, float64; the variances are those of `torch.fft.fft2` of the field.
        """
        k = torch.fft.fftfreq(self.size, dtype=torch.float64) * 2 * math.pi
        kx, ky = k.expand(self.size, self.size), k[:, None].expand(self.size, self.size)
        squared = kx**2 + ky**2
        rate = 1 / self.memory + self.diffusivity * squared
        factor = torch.exp(-rate - 1j * kx * self.drift)
        # the Nyquist frequency of a real field has no direction
        factor = torch.where(kx.abs() > math.pi - 1e-9, factor.abs().to(factor), factor)
        variance = torch.exp(-squared * self.scale**2)
        # the variance of a point is the mean of the variances of the modes by their number
        return factor, variance / variance.sum() * self.size**4

    def noise(self, variance: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Spectra of real fields whose modes have these variances, `(*shape, h, w)`."""
        white = torch.randn(*shape, self.size, self.size, dtype=torch.float64, generator=generator)
        return torch.fft.fft2(white) * (variance / self.size**2).sqrt()

    def trajectories(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """Stationary trajectories, `(count, frames, h, w)`, float64."""
        factor, variance = self.modes()
        spectra = [self.noise(variance, (count,), generator)]
        added = variance * (1 - factor.abs() ** 2)
        for _ in range(frames - 1):
            spectra.append(factor * spectra[-1] + self.noise(added, (count,), generator))
        return torch.fft.ifft2(torch.stack(spectra, dim=1)).real

    def ideal(self, start: Tensor, members: int, frames: int, generator: torch.Generator) -> Tensor:
        """Members drawn from the distribution of the future given frames `(b, h, w)`.

        Returns:
            `(b, members, frames, h, w)`.
        """
        factor, variance = self.modes()
        added = variance * (1 - factor.abs() ** 2)
        spectrum = torch.fft.fft2(start)[:, None].expand(-1, members, -1, -1)
        found = []
        for _ in range(frames):
            spectrum = factor * spectrum + self.noise(added, spectrum.shape[:2], generator)
            found.append(torch.fft.ifft2(spectrum).real)
        return torch.stack(found, dim=2)

    def mean(self, start: Tensor, frames: int) -> Tensor:
        """The mean of the future given frames `(b, h, w)`: `(b, frames, h, w)`."""
        factor, _ = self.modes()
        spectrum = torch.fft.fft2(start)
        steps = torch.arange(1, frames + 1, dtype=torch.float64).view(-1, 1, 1)
        return torch.fft.ifft2(spectrum[:, None] * factor**steps).real

    def deviation(self, frames: int) -> Tensor:
        """The standard deviation of the future of a point given the present, `(frames,)`."""
        factor, variance = self.modes()
        steps = torch.arange(1, frames + 1, dtype=torch.float64).view(-1, 1, 1)
        left = variance * (1 - factor.abs() ** (2 * steps))
        return (left.sum(dim=(1, 2)) / self.size**4).sqrt()


def theory(process: LinearFields, frames: int, members: int) -> dict[str, Tensor]:
    """The scores of ideal members by lead time, in expectation, `(frames,)`."""
    deviation = process.deviation(frames)
    return {
        "crps": deviation / math.sqrt(math.pi),
        "rmse": deviation * math.sqrt((members + 1) / members),
        "spread": deviation,
        "spread_skill": torch.ones_like(deviation),
        "coverage": torch.full_like(deviation, (members - 1) / (members + 1)),
    }


class Clips(torch.utils.data.IterableDataset[Tensor]):
    """New trajectories without end, `(1, f, h, w)`, in the range of the model."""

    def __init__(self, process: LinearFields, frames: int) -> None:
        self.process, self.frames = process, frames

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        while True:
            yield from self.process.trajectories(64, self.frames, generator).float()[:, None]


def build(process: LinearFields) -> GaussianDiffusion:
    """An untrained model of windows after one known frame."""
    unet = Unet3D(
        dim=16,
        dim_mults=(1, 2),
        channels=1,
        cond_channels=2,
        init_kernel_size=3,
        attn_heads=2,
        attn_dim_head=16,
        use_sparse_linear_attn=False,
        padding_mode="circular",
    )
    return GaussianDiffusion(
        unet,
        image_size=process.size,
        num_frames=WINDOW,
        loss_type="l2",
        objective="flow",
        given_frames=1,
        cond_drop_prob=0.0,
        value_range={"mean": 0.0, "std": 1.0},
    )


def scores_of(members: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Scores of `(b, m, f, h, w)` by lead time; of intervals, the widest."""
    scores = ForecastScores()
    scores.add(members[:, :, None], truth[:, None])
    found = scores.compute()
    return {name: found[name][0] for name in ("crps", "rmse", "spread", "spread_skill")} | {
        "coverage": found["coverage"][0, :, 0]
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains a model, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=1500, help="training steps")
    parser.add_argument("--count", type=int, default=64, help="forecasts")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    process, begin = LinearFields(), time.perf_counter()
    diffusion = build(process)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            diffusion,
            dataset=Clips(process, WINDOW),
            results_folder=folder,
            train_batch_size=16,
            gradient_accumulate_every=1,
            train_lr=2e-3,
            betas=(0.9, 0.99),
            lr_schedule="cosine",
            warmup_steps=min(50, options.steps // 2),
            max_grad_norm=1.0,
            train_num_steps=options.steps,
            ema_decay=0.995,
            step_start_ema=100,
            update_ema_every=1,
            save_and_sample_every=options.steps,
            num_sample_rows=1,
            num_workers=0,
            seed=0,
        )
        trainer.train(log_fn=lambda line: None)
    minutes = (time.perf_counter() - begin) / 60
    generator = torch.Generator().manual_seed(1)
    clips = process.trajectories(options.count, 1 + LEAD, generator)
    start, truth = clips[:, 0], clips[:, 1:]
    members = trainer.ema_model.forecast(
        start.float()[:, None, None],
        LEAD,
        members=MEMBERS,
        sampler="dpm++",
        steps=20,
        max_batch=64,
        progress=False,
    )
    found = scores_of(members[:, :, 0].double(), truth)
    ideal = scores_of(process.ideal(start, MEMBERS, LEAD, generator), truth)
    wanted = theory(process, LEAD, MEMBERS)
    print(f"{options.steps} steps in {minutes:.1f} minutes; {options.count} forecasts\n")
    print("| lead time | " + " | ".join(f"{name}: theory, ideal, model" for name in wanted) + " |")
    print("|---|" + "---|" * len(wanted))
    for lead in range(LEAD):
        cells = (
            ", ".join(f"{one[name][lead]:.3f}" for one in (wanted, ideal, found)) for name in wanted
        )
        print(f"| {lead + 1} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
