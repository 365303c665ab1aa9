"""Steps of sampling: their spacing, what a sampler is, and the loop over its steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    Noise,
    NoiseLevel,
)

SPREAD = 100.0
"""The spacing `spectrum` expects components of the data of variance 1 / SPREAD to SPREAD."""

KARRAS_RHO = 7.0
"""The exponent of the spacing `karras`."""


def spaced_times(
    process: ForwardProcess, steps: int | Sequence[float], spacing: str = "trailing"
) -> list[float]:
    """The time steps at which a sampler calls the network.

    Args:
        process: The model's forward process.
        steps: Their number, from 1 to `num_timesteps`, or the time steps themselves, falling, in
            [0, num_timesteps - 1], whole or not.
        spacing: Without effect on given time steps.

            - `"trailing"`: evenly from the noisiest step on, with the step to the clean video as
              long as all others: the paper's uniform grid. Whole steps.
            - `"leading"`: evenly to the cleanest step, which leaves out the noisiest ones. Whole
              steps, those of the diffusers package's `DDIMScheduler` without `steps_offset`.
            - `"linspace"`: evenly from the noisiest to the cleanest step. Whole steps, those of
              the same scheduler. (Its `DPMSolverMultistepScheduler` has others by the last two
              names, and the same by the first.)
            - `"log_snr"`: evenly in log-SNR, from the noisiest to the cleanest step.
            - `"karras"`: evenly in `(sigma / alpha) ** (1 / 7)` between the same (Karras et al.
              2022, eq. 5).
            - `"spectrum"`: densest where most components of videos emerge, see `spectrum_times`.
              Whole steps.

    Returns:
        Falling times, without the clean end.

    Raises:
        ValueError: If `steps` is out of range, or times don't fall.

    Example:
        >>> from video_diffusion_pytorch.diffusion.noise_schedule import cosine_beta_schedule
        >>> process = ForwardProcess(cosine_beta_schedule(1000))
        >>> spaced_times(process, 4)
        [999.0, 749.0, 499.0, 249.0]
        >>> spaced_times(process, 4, "spectrum")
        [999.0, 865.0, 495.0, 126.0]
    """
    if isinstance(steps, (int, Integral)):
        return [float(t) for t in SPACINGS[spacing](process, checked_number(process, steps))]
    last = process.num_timesteps - 1
    try:
        times = [] if isinstance(steps, str) else [float(t) for t in steps]
    except (TypeError, ValueError):
        times = []
    falls = all(t > s for t, s in pairwise(times))
    if not times or not falls or not all(0 <= t <= last for t in times):
        raise ValueError(
            f"sample: steps must be a whole number, or a list of falling times from {last} to 0, "
            f"got {shown(steps)}"
        )
    return times


def trailing_times(process: ForwardProcess, steps: int) -> list[int]:
    """Even whole steps, beginning with the noisiest."""
    total = process.num_timesteps
    return [round(total * (steps - i) / steps) - 1 for i in range(steps)]


def leading_times(process: ForwardProcess, steps: int) -> list[int]:
    """Even whole steps, ending with the cleanest."""
    stride = process.num_timesteps // steps
    return [i * stride for i in reversed(range(steps))]


def linspace_times(process: ForwardProcess, steps: int) -> list[int]:
    """Even whole steps from the noisiest to the cleanest."""
    last = process.num_timesteps - 1
    if steps == 1:
        return [last]
    # rising, as in diffusers: the order decides how halves are rounded
    return np.linspace(0, last, steps).round()[::-1].astype(int).tolist()


def log_snr_times(process: ForwardProcess, steps: int) -> list[float]:
    """Even in log-SNR, from the noisiest step to the cleanest."""
    return _between_the_ends(process, np.linspace(*_log_snr_ends(process), steps))


def karras_times(process: ForwardProcess, steps: int) -> list[float]:
    """Even in a small power of sigma / alpha, from the noisiest step to the cleanest."""
    first, last = (math.exp(-log_snr / 2 / KARRAS_RHO) for log_snr in _log_snr_ends(process))
    roots = np.linspace(first, last, steps)
    return _between_the_ends(process, -2 * KARRAS_RHO * np.log(roots))


def spectrum_times(process: ForwardProcess, steps: int) -> list[int]:
    """Whole steps, dense where the noise has the size of some component of the data.

    In `r = sigma / alpha`, Euler steps of density `g` get the log variance of a normal component
    of variance `c` wrong by the integral of `c / (c + r^2)^2 / g`. For one `c` the best density is
    `1 / (c + r^2)` (a tangent law, as in Sabour et al. 2024), and for `c = 1` that is even in the
    time of the cosine schedule. But videos have components of many sizes, from their mean to the
    finest detail. If the logarithm of `c` is uniform between those of `low` and `high`, the best
    density is `1 / sqrt((low + r^2) * (high + r^2))`: even in log-SNR in between, and thinner on
    either side, where there is only noise, or hardly any.
    """
    low, high = 1 / SPREAD, SPREAD
    # integrate over the angle whose tangent is r / sqrt(low): a short interval covers all r
    end = math.atan(_noise_ratio(process, process.num_timesteps - 1) / math.sqrt(low))
    angle = np.linspace(0, end, 10_001)
    density = (high * np.cos(angle) ** 2 + low * np.sin(angle) ** 2) ** -0.5
    passed = np.append(0, np.cumsum(density[1:] + density[:-1]))
    places = passed[-1] * (1 - np.arange(steps) / steps)
    ratios = math.sqrt(low) * np.tan(np.interp(places, passed, angle))
    return _distinct(process.times_of([-2 * math.log(ratio) for ratio in ratios]), process)


SPACINGS: dict[str, Callable[[ForwardProcess, int], Sequence[float]]] = {
    "trailing": trailing_times,
    "leading": leading_times,
    "linspace": linspace_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "spectrum": spectrum_times,
}


def checked_number(process: ForwardProcess, steps: Any) -> int:
    """A number of steps as an int; raises a ValueError unless the model has as many."""
    if not isinstance(steps, Integral) or not 1 <= int(steps) <= process.num_timesteps:
        raise ValueError(
            "sample: steps must be a whole number from 1 to the model's "
            f"{process.num_timesteps}, got {shown(steps)}"
        )
    return int(steps)


def _noise_ratio(process: ForwardProcess, t: float) -> float:
    """Sigma / alpha, which may be infinite."""
    return math.exp(-process.noise_level(t).log_snr / 2)


def _log_snr_ends(process: ForwardProcess) -> tuple[float, float]:
    """Log-SNRs of the noisiest step and of the cleanest, for even steps between them."""
    last = process.num_timesteps - 1
    noisiest, cleanest = process.noise_levels([last, 0])
    if not noisiest.alpha:
        # pure noise, whose log-SNR is infinite
        noisiest = process.noise_level(last - 0.5)
    return noisiest.log_snr, cleanest.log_snr if last else noisiest.log_snr


def _between_the_ends(process: ForwardProcess, log_snrs: np.ndarray) -> list[float]:
    """Times of log-SNRs from the noisiest step's to the cleanest's, exact at these two."""
    inner = process.times_of(log_snrs[1:-1].tolist())
    return [process.num_timesteps - 1, *inner, 0][: len(log_snrs)]


def _distinct(times: Sequence[float], process: ForwardProcess) -> list[int]:
    """Whole steps close to falling times, no two of them the same."""
    still_to_come = np.arange(len(times))[::-1]
    room = np.round(times).astype(int) - still_to_come
    # below each step there must be room for those to come, and above it for those before
    room = np.maximum.accumulate(room[::-1])[::-1]
    room = np.minimum(room, process.num_timesteps - len(times))
    return (room + still_to_come).tolist()


class Prediction(NamedTuple):
    """What the denoiser predicts from noisy videos.

    Attributes:
        x_start: The clean videos, `(b, c, f, h, w)`, in [-1, 1] where the model clamps.
        noise: The noise that, with `x_start`, gives `x_t`; of the same shape.
        x_t: The noisy videos with known parts replaced by guidance: a sampler continues from these.
    """

    x_start: Tensor
    noise: Tensor
    x_t: Tensor


Denoise = Callable[[Tensor, NoiseLevel], Prediction]
"""The denoiser as samplers call it: noisy videos and their noise level in, a prediction out."""


class Sampler:
    """Denoises videos in steps; a subclass of your own only needs `run`.

    Args:
        spacing: How the steps are spaced, see `spaced_times`.

    Attributes:
        default_steps: Number of steps by default; None for all steps of the model.

    Raises:
        ValueError: If the spacing is unknown.

    Example:
        The shortest sampler, DDIM:

        >>> from itertools import pairwise
        >>> class Shortest(Sampler):
        ...     default_steps = 50
        ...
        ...     def run(self, x, levels, denoise, noise):
        ...         for t, s in pairwise(levels):
        ...             prediction = denoise(x, t)
        ...             x = s.alpha * prediction.x_start + s.sigma * prediction.noise
        ...             yield x
        >>> # diffusion.sample(sampler=Shortest(), steps=20)
    """

    default_steps: int | None = None
    spacing: str = "trailing"

    def __init__(self, *, spacing: str = "trailing") -> None:
        if spacing not in SPACINGS:
            raise ValueError(
                f"sample: spacing must be one of {', '.join(SPACINGS)}, got {shown(spacing)}; "
                "choose one, or pass a list of time steps"
            )
        self.spacing = spacing

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels to stop at, one more than steps.

        Args:
            process: The model's forward process.
            steps: Their number, or falling time steps in [0, num_timesteps - 1], the last of which
                is followed by the clean end.

        Returns:
            Falling levels, from that of the initial noise to `CLEAN`.

        Raises:
            ValueError: If `steps` is out of range, or times don't fall.
        """
        return [*process.noise_levels(spaced_times(process, steps, self.spacing)), CLEAN]

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """Denoises videos from the first noise level to the last.

        Args:
            x: Noisy videos of the first level, `(b, c, f, h, w)`; left unchanged.
            levels: From the method `levels`.
            denoise: Predicts the clean videos and the noise in videos of a level.
            noise: Draws standard normal noise in the shape of its argument.

        Yields:
            The videos after each step, of the next level.

        Raises:
            NotImplementedError: If a subclass does not override it.
        """
        raise NotImplementedError


class SamplingStep(NamedTuple):
    """The state after a step of sampling, passed to a callback.

    Attributes:
        step: Number of steps done, from 1.
        steps: Number of steps in all.
        level: The noise level that has been reached.
        x_t: The noisy videos, `(b, c, f, h, w)`, in the range of the model, [-1, 1] and noise.

    Counting starts again for each batch of `max_batch`, and for each window of a longer video.
    """

    step: int
    steps: int
    level: NoiseLevel
    x_t: Tensor


Callback = Callable[[SamplingStep], Any]


def follow(
    x: Tensor,
    run: Iterator[Tensor],
    levels: Sequence[NoiseLevel],
    progress: bool,
    callback: Callback | None = None,
) -> Tensor:
    """Runs a sampler to its end and returns the last videos.

    Args:
        x: The initial noise.
        run: The noisy videos after each step.
        levels: Their noise levels, after that of the initial noise.
        progress: Whether to show a progress bar.
        callback: Called after each step.

    Raises:
        ValueError: If there are more or fewer steps than levels.
    """
    steps = len(levels) - 1
    step = 0
    bar = tqdm(run, "sampling", steps, disable=not progress)
    # below another bar, such as that of windows, it vanishes
    bar.leave = not bar.pos
    for step, x in enumerate(bar, start=1):
        if step <= steps and callback is not None:
            callback(SamplingStep(step, steps, levels[step], x))
    if step != steps:
        raise ValueError(
            f"sample: a sampler must yield the videos after each of its {steps} steps, got {step}; "
            "look at its method run"
        )
    return x
