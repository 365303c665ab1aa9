"""Measures samplers on videos whose optimal denoiser is known, so that all error is the sampler's.

    python benchmarks/gaussian_samplers.py                   # four tables, in some minutes
    python benchmarks/gaussian_samplers.py samplers steps
    python benchmarks/gaussian_samplers.py given --draws 400

samplers: Gaussian videos of 6 frames. What a sampler makes of a linear denoiser is linear in its
noise, so the mean and the covariance of its samples are computed, not estimated. The errors are the
largest over three such data sets.
steps: how often the network must be called for errors of the mean and the covariance of 2 %.
given: the same, of which the first 2 frames are known: how well the others fit them.
digits: clips of moving digits with a little noise at each pixel, which are far from Gaussian: the
distance of samples from those that all 1000 steps make of the same noise.
"""

from __future__ import annotations

import argparse
import bisect
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.diffusion.continuous_schedule import (
    ContinuousSchedule,
    EDMSchedule,
    FlowSchedule,
)
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
from video_diffusion_pytorch.diffusion.noise_schedule import (
    ForwardProcess,
    NoiseLevel,
    cosine_beta_schedule,
)
from video_diffusion_pytorch.diffusion.samplers import DDIM, Ancestral, DPMPlusPlus, Euler, Heun
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
    ("euler", Euler(), (100, 50, 20, 10)),
    ("heun", Heun(), (25, 10, 5)),
    ("heun, churn 10", Heun(churn=10), (25, 10)),
    ("heun, edm, karras", Heun(coordinates="edm", spacing="karras"), (50, 18)),
]
PROCESSES: dict[str, Tensor | ContinuousSchedule] = {
    "cosine": cosine_beta_schedule(STEPS),
    "flow": FlowSchedule(),
    "flow, shift 3": FlowSchedule(3.0),
    "edm": EDMSchedule(),
}
GOAL = 0.02  # largest error of the table steps
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


def errors(sampler: Sampler, process: ForwardProcess, steps: int) -> tuple[float, float]:
    """Largest error of the samples' mean and covariance over the data sets, exactly."""
    levels = sampler.levels(process, steps)
    found = []
    for settings in DATA.values():
        videos = GaussianVideos(*settings)
        mean, covariance = moments(sampler, levels, videos)
        found.append(
            (relative_error(mean, videos.mean), relative_error(covariance, videos.covariance))
        )
    means, covariances = zip(*found, strict=True)
    return max(means), max(covariances)


def is_possible(sampler: Sampler, process: ForwardProcess) -> bool:
    """Whether the sampler can begin where the process ends."""
    starts_at_infinity = not process.noise_level(process.num_timesteps - 1).alpha
    return not (getattr(sampler, "coordinates", None) == "edm" and starts_at_infinity)


def compare_samplers(processes: dict[str, ForwardProcess]) -> None:
    """Errors of the samples' covariance, and the largest of their mean."""
    row = table("sampler", "steps", *processes, "mean")
    for name, sampler, counts in SAMPLERS:
        for steps in counts:
            found = {
                of: errors(sampler, process, steps)
                for of, process in processes.items()
                if is_possible(sampler, process)
            }
            cells = [percent(found[of][1]) if of in found else "" for of in processes]
            row(name, str(steps), *cells, percent(max(mean for mean, _ in found.values())))


def compare_steps(processes: dict[str, ForwardProcess]) -> None:
    """How often samplers must call the network for errors that are below the goal."""
    row = table("sampler", *processes)
    for name, sampler, _ in SAMPLERS:
        cells = []
        for process in processes.values():
            cells.append("")
            if is_possible(sampler, process):
                least = least_steps(sampler, process)
                cells[-1] = "more" if least is None else str(calls(sampler, least))
        row(name, *cells)


def least_steps(sampler: Sampler, process: ForwardProcess) -> int | None:
    """The least number of steps of which the errors are below the goal; None if all are too few."""

    def suffices(steps: int) -> bool:
        return max(errors(sampler, process, steps)) <= GOAL

    most = 4
    while not suffices(most):
        if most == STEPS:
            return None
        most = min(2 * most, STEPS)
    between = range(most // 2 + 1, most)
    return between.start + bisect.bisect_left(between, True, key=suffices)


def calls(sampler: Sampler, steps: int) -> int:
    """How often a sampler calls the network in that number of steps."""
    is_double = isinstance(sampler, Heun) or getattr(sampler, "langevin_delta", 0)
    return 2 * steps - 1 if is_double else steps


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
    known = ["samplers", "steps", "given", "digits"]
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(known)}; all by default")
    parser.add_argument("--draws", type=int, default=96, help="videos per row of the table given")
    arguments = parser.parse_args()
    wanted = arguments.tables or known
    if unknown := set(wanted).difference(known):
        parser.error(f"no table {', '.join(sorted(unknown))}; choose among {', '.join(known)}")
    processes = {name: ForwardProcess(one, STEPS) for name, one in PROCESSES.items()}
    process = processes["cosine"]
    if "samplers" in wanted:
        compare_samplers(processes)
    if "steps" in wanted:
        compare_steps(processes)
    if "given" in wanted:
        compare_guidance(process, arguments.draws)
    if "digits" in wanted:
        compare_on_digits(process)


if __name__ == "__main__":
    main()
