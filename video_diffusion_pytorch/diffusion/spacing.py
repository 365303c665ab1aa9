"""Which steps of the forward process a sampler stops at, if not at all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np

from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.shown import shown

SPREAD = 100.0
"""The spacing `spectrum` expects components of the data of variance 1 / SPREAD to SPREAD."""

KARRAS_RHO = 7.0
"""The exponent of the spacing `karras`."""


def spaced_times(
    process: ForwardProcess, steps: int | Sequence[float], spacing: str = "trailing"
) -> list[float]:
    """The time steps at which a sampler asks the network.

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
            - `"spectrum"`: as close as the samples need them, see `spectrum_times`. Whole steps.

    Returns:
        Falling times, without the clean end.

    Raises:
        TypeError: If `steps` is neither a number nor numbers.
        ValueError: If there are too many or too few, or they don't fall or are out of range, or the
            spacing is unknown.

    Example:
        >>> from video_diffusion_pytorch.diffusion.noise_schedule import cosine_beta_schedule
        >>> process = ForwardProcess(cosine_beta_schedule(1000))
        >>> spaced_times(process, 4)
        [999.0, 749.0, 499.0, 249.0]
        >>> spaced_times(process, 4, "spectrum")
        [999.0, 865.0, 495.0, 126.0]
    """
    check_spacing(spacing)
    number = whole_number(steps)
    if number is None:
        return _checked_times(process, steps)
    if not 1 <= number <= process.num_timesteps:
        raise ValueError(
            f"sample: steps must be from 1 to the model's {process.num_timesteps}, got {steps}; "
            "pass such a number, or a list of time steps"
        )
    return [float(t) for t in SPACINGS[spacing](process, number)]


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
    # upwards, as diffusers, since by rounding the order decides where halves go
    return np.linspace(0, last, steps).round()[::-1].astype(int).tolist()


def log_snr_times(process: ForwardProcess, steps: int) -> list[float]:
    """Even in log-SNR, from the noisiest step to the cleanest."""
    first, last = (process.noise_level(t).log_snr for t in (process.num_timesteps - 1, 0))
    return _between_the_ends(process, np.linspace(first, last, steps))


def karras_times(process: ForwardProcess, steps: int) -> list[float]:
    """Even in a small power of sigma / alpha, from the noisiest step to the cleanest."""
    first, last = (_noise_ratio(process, t) for t in (process.num_timesteps - 1, 0))
    roots = np.linspace(first ** (1 / KARRAS_RHO), last ** (1 / KARRAS_RHO), steps)
    return _between_the_ends(process, -2 * KARRAS_RHO * np.log(roots))


def spectrum_times(process: ForwardProcess, steps: int) -> list[int]:
    """Whole steps that are dense where noise is of the size of something in the data.

    In `r = sigma / alpha`, Euler steps of density `g` get the log variance of a normal component
    of variance `c` wrong by the integral of `c / (c + r^2)^2 / g`. For one `c` the best density is
    `1 / (c + r^2)` (a tangent law, as in Sabour et al. 2024), and for `c = 1` that is even in the
    time of the cosine schedule. But videos have components of many sizes, from what stays the same
    all over to the finest detail. If `c` is anywhere from `low` to `high`, evenly in its logarithm,
    the best density is `1 / sqrt((low + r^2) * (high + r^2))`: even in log-SNR in between, thinner
    on either side, where there is nothing but noise, or next to none.
    """
    low, high = 1 / SPREAD, SPREAD
    # by the angle whose tangent is r / sqrt(low), all of r is a short interval
    end = math.atan(_noise_ratio(process, process.num_timesteps - 1) / math.sqrt(low))
    angle = np.linspace(0, end, 10_001)
    density = (high * np.cos(angle) ** 2 + low * np.sin(angle) ** 2) ** -0.5
    passed = np.append(0, np.cumsum(density[1:] + density[:-1]))
    places = passed[-1] * (1 - np.arange(steps) / steps)
    ratios = math.sqrt(low) * np.tan(np.interp(places, passed, angle))
    return _distinct([process.time_of(-2 * math.log(ratio)) for ratio in ratios], process)


SPACINGS: dict[str, Callable[[ForwardProcess, int], Sequence[float]]] = {
    "trailing": trailing_times,
    "leading": leading_times,
    "linspace": linspace_times,
    "log_snr": log_snr_times,
    "karras": karras_times,
    "spectrum": spectrum_times,
}


def whole_number(steps: Any) -> int | None:
    """`steps` as an int; None if it is something else."""
    return int(steps) if isinstance(steps, Integral) else None


def check_spacing(spacing: str) -> None:
    """Raises a ValueError for a spacing that there is not."""
    if spacing not in SPACINGS:
        raise ValueError(
            f"sample: spacing must be one of {', '.join(SPACINGS)}, got {shown(spacing)}; choose "
            "one, or pass a list of time steps"
        )


def _checked_times(process: ForwardProcess, steps: Any) -> list[float]:
    last = process.num_timesteps - 1
    try:
        times = [float(t) for t in steps]
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"sample: steps must be a whole number of steps, or a list of time steps, got "
            f"{shown(steps)}; pass e.g. steps=50"
        ) from error
    falls = all(t > s for t, s in pairwise(times))
    if not times or not falls or not all(0 <= t <= last for t in times):
        raise ValueError(
            f"sample: a list of steps must hold falling times from {last} to 0, got {times}; sort "
            "them, and leave out others"
        )
    return times


def _noise_ratio(process: ForwardProcess, t: float) -> float:
    """Sigma / alpha."""
    return math.exp(-process.noise_level(t).log_snr / 2)


def _between_the_ends(process: ForwardProcess, log_snrs: np.ndarray) -> list[float]:
    """Times of log-SNRs from the noisiest step's to the cleanest's, free of rounding at these."""
    inner = [process.time_of(log_snr) for log_snr in log_snrs[1:-1].tolist()]
    return [process.num_timesteps - 1, *inner, 0][: len(log_snrs)]


def _distinct(times: Sequence[float], process: ForwardProcess) -> list[int]:
    """Whole steps close to falling times, no two of them the same."""
    still_to_come = np.arange(len(times))[::-1]
    room = np.round(times).astype(int) - still_to_come
    # as many steps must be left below each as are still to come, and above it as came before
    room = np.maximum.accumulate(room[::-1])[::-1]
    room = np.minimum(room, process.num_timesteps - len(times))
    return (room + still_to_come).tolist()
