"""Measures samplers on videos whose optimal denoiser is known, so that all error is the sampler's.

    python benchmarks/gaussian_samplers.py                   # three tables, in about a minute
    python benchmarks/gaussian_samplers.py samplers
    python benchmarks/gaussian_samplers.py given --draws 400

samplers: Gaussian videos of 6 frames. What a sampler makes of a linear denoiser is linear in its
noise, so the mean and the covariance of its samples are computed, not estimated.
given: the same, of which the first 2 frames are known: how well the others fit them.
digits: clips of moving digits with a little noise at each pixel, which are far from Gaussian: the
distance of samples from those that all 1000 steps make of the same noise.
"""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
from video_diffusion_pytorch.diffusion.noise_schedule import (
    ForwardProcess,
    NoiseLevel,
    cosine_beta_schedule,
)
from video_diffusion_pytorch.diffusion.samplers import DDIM, Ancestral, DPMPlusPlus
from video_diffusion_pytorch.diffusion.sampling_steps import Prediction, Sampler

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "diffusion"))
from gaussian_data import GaussianVideos, PerfectNetwork, moments, relative_error

STEPS = 1000
# name: variance of a frame, correlation of neighbouring frames
DATA = {"0.25, 0.8": (0.25, 0.8), "1, 0.95": (1.0, 0.95), "0.05, 0.8": (0.05, 0.8)}
SAMPLERS: list[tuple[str, Sampler, tuple[int, ...]]] = [
    ("ancestral", Ancestral(), (1000, 256, 64)),
    ("ancestral, gamma 0.3", Ancestral(gamma=0.3), (256, 64)),
    ("ancestral, Langevin 0.1", Ancestral(langevin_delta=0.1), (256, 64)),
    ("ddim", DDIM(), (100, 50, 20, 10)),
    ("ddim, spectrum", DDIM(spacing="spectrum"), (100, 50, 20, 10)),
    ("dpm++, trailing", DPMPlusPlus(spacing="trailing"), (50, 20, 10)),
    ("dpm++, karras", DPMPlusPlus(spacing="karras"), (50, 20, 10)),
    ("dpm++", DPMPlusPlus(), (50, 20, 10)),
    ("dpm++sde, trailing", DPMPlusPlus(sde=True, spacing="trailing"), (50, 20, 10)),
    ("dpm++sde", DPMPlusPlus(sde=True), (50, 20, 10)),
]
FEW = [(name, sampler) for name, sampler, steps in SAMPLERS if 10 in steps and "sde" not in name]
KNOWN, SIDE = 2, 8  # frames that are given, and the height and width of videos with these


def table(*head: str) -> Callable[..., None]:
    """Prints the head of a markdown table; gives what prints a row."""

    def row(*cells: str) -> None:
        print("|", " | ".join(cells), "|", flush=True)

    print()
    row(*head)
    row(*("---" for _ in head))
    return row


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def compare_samplers(process: ForwardProcess) -> None:
    """Errors of the samples' mean and covariance, exactly."""
    videos = {name: GaussianVideos(*settings) for name, settings in DATA.items()}
    row = table("sampler", "steps", "error of the mean", *(f"covariance ({name})" for name in DATA))
    for name, sampler, counts in SAMPLERS:
        for steps in counts:
            levels = sampler.levels(process, steps)
            found = [moments(sampler, levels, one) for one in videos.values()]
            pairs = list(zip(found, videos.values(), strict=True))
            mean = max(relative_error(mean, one.mean) for (mean, _), one in pairs)
            errors = [relative_error(covariance, one.covariance) for (_, covariance), one in pairs]
            row(name, str(steps), f"{mean:.1e}", *map(percent, errors))


def compare_guidance(process: ForwardProcess, draws: int) -> None:
    """Errors of the conditional mean and covariance, from `draws` videos of 64 pixels."""
    videos = GaussianVideos()
    model = GaussianDiffusion(
        PerfectNetwork(videos, process),
        image_size=SIDE,
        num_frames=videos.num_frames,
        auto_normalize=False,
    )
    root = torch.linalg.cholesky(videos.covariance)
    noise = torch.randn(SIDE, SIDE, videos.num_frames, generator=torch.Generator().manual_seed(0))
    real = (videos.mean + noise.double() @ root.T).float().movedim(-1, 0)[None, None]
    mask = torch.arange(videos.num_frames) < KNOWN
    mean, covariance = videos.given_first(real[0, 0, :KNOWN].movedim(0, -1))
    row = table("weight", "Langevin", "rms error of the mean", "covariance", "variance")
    for weight in (0, 1, 2, 4):
        for delta in (0.0, 0.1):
            samples = model.sample(
                batch_size=draws,
                sampler=Ancestral(langevin_delta=delta),
                steps=256,
                guidance=KnownRegion(real, mask, weight=weight),
                seed=0,
                progress=False,
            )
            free = samples[:, 0, KNOWN:].movedim(1, -1).double()
            error = (free.mean(dim=0) - mean).square().mean().sqrt()
            apart = (free - free.mean(dim=0)).reshape(-1, free.shape[-1])
            found = apart.T @ apart / (len(apart) * (1 - 1 / draws))
            wider = found.trace() / covariance.trace() - 1
            row(
                str(weight),
                str(delta),
                f"{error:.3f}",
                percent(relative_error(found, covariance)),
                f"{100 * wider:+.1f} %",
            )
    floor = (covariance.trace() / len(covariance) / draws).sqrt()
    print(f"\nSamples without error would have an error of the mean of {floor:.3f} by chance.")


class DigitVideos:
    """Clips of moving digits, with noise of standard deviation 0.1 at each pixel."""

    def __init__(self, count: int, num_frames: int = 8, size: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)
        images, _ = load_digits()
        clips = []
        for _ in range(count):
            image = images[torch.randint(len(images), (), generator=generator)]
            clip = moving_digit_clip(image, num_frames, 2 * size, generator)
            frames = clip.movedim(1, 0).float() / 255
            clips.append(F.interpolate(frames, size=(size, size), mode="area").movedim(0, 1))
        self.clips = torch.stack(clips) * 2 - 1
        self.variance = 0.1**2

    def denoise(self, x: Tensor, level: NoiseLevel) -> Prediction:
        """The optimal denoiser."""
        centres = level.alpha * self.clips.flatten(1).to(x)
        variance = level.alpha**2 * self.variance + level.sigma**2
        distance = torch.cdist(x.flatten(1), centres).square()
        shares = torch.softmax(-distance / (2 * variance), dim=1)
        centre = (shares @ centres).view_as(x)
        x_start = centre / level.alpha + level.alpha * self.variance / variance * (x - centre)
        return Prediction(x_start, (x - level.alpha * x_start) / level.sigma, x)


def compare_on_digits(process: ForwardProcess, count: int = 64) -> None:
    """Distance from the samples of all steps, without chance in the sampler."""
    videos = DigitVideos(400)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *videos.clips.shape[1:], generator=generator, dtype=torch.float64)

    def samples(sampler: Sampler, steps: int) -> Tensor:
        levels = sampler.levels(process, steps)
        return deque(sampler.run(x, levels, videos.denoise, torch.randn_like), maxlen=1).pop()

    exact = samples(DPMPlusPlus(), STEPS)
    counts = (10, 20, 50)
    row = table("sampler", *(f"rms distance, {steps} steps" for steps in counts))
    for name, sampler in FEW:
        distances = [(samples(sampler, steps) - exact).square().mean().sqrt() for steps in counts]
        row(name, *(f"{distance:.3f}" for distance in distances))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="*", help="of samplers, given and digits; all by default")
    parser.add_argument("--draws", type=int, default=96, help="videos per row of the table given")
    arguments = parser.parse_args()
    wanted = arguments.tables or ["samplers", "given", "digits"]
    unknown = set(wanted) - {"samplers", "given", "digits"}
    if unknown:
        parser.error(f"no table {', '.join(sorted(unknown))}; choose samplers, given or digits")
    process = ForwardProcess(cosine_beta_schedule(STEPS))
    if "samplers" in wanted:
        compare_samplers(process)
    if "given" in wanted:
        compare_guidance(process, arguments.draws)
    if "digits" in wanted:
        compare_on_digits(process)


if __name__ == "__main__":
    main()
