"""Samplers: DDPM, ancestral, DDIM, DPM-Solver++, schedulers of diffusers; spacing of steps."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.denoiser import Denoise, Noise
from video_diffusion_pytorch.diffusion.noise_schedule import CLEAN, ForwardProcess, NoiseLevel

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


class Sampler:
    """Takes noise to a video in steps; a subclass of your own needs no more than `run`.

    Args:
        spacing: How the steps are spaced, a name from `diffusion.spacing`.

    Attributes:
        default_steps: Number of steps where none is asked for; None for all steps of the model.

    Raises:
        ValueError: If the spacing is unknown.

    Example:
        The shortest sampler that there is, which is DDIM:

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
        check_spacing(spacing)
        self.spacing = spacing

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels to stop at, one more than there are steps.

        Args:
            process: The model's forward process.
            steps: Their number, or falling time steps in [0, num_timesteps - 1], the last of which
                is followed by the clean end.

        Returns:
            Falling: the first is that of the noise at the start, the last is `CLEAN`.

        Raises:
            TypeError: If `steps` is neither a number nor a list.
            ValueError: If there are too many or too few, or times don't fall.
        """
        return [*process.noise_levels(spaced_times(process, steps, self.spacing)), CLEAN]

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """Takes videos from the first noise level to the last.

        Args:
            x: Noisy videos of the first level, `(b, c, f, h, w)`; left unchanged.
            levels: As `levels` gives them.
            denoise: Predicts the clean videos and the noise in videos of a level.
            noise: Draws standard normal noise in the shape of its argument.

        Yields:
            The videos after each step, of the next level.

        Raises:
            NotImplementedError: If a subclass has no such method.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: a sampler must define run(x, levels, denoise, noise), got "
            "none; see the example in Sampler"
        )


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
    """Lets a sampler run to its end, and gives the last video.

    Args:
        x: The video that it starts from.
        run: The noisy videos after each step.
        levels: Their noise levels, and before these that of the noise at the start.
        progress: Whether to show a progress bar.
        callback: Called after each step.

    Raises:
        ValueError: If there are more or fewer steps than levels.
    """
    steps = len(levels) - 1
    step = 0
    for step, x in enumerate(tqdm(run, "sampling", steps, disable=not progress), start=1):
        if step <= steps and callback is not None:
            callback(SamplingStep(step, steps, levels[step], x))
    if step != steps:
        raise ValueError(
            f"sample: a sampler must yield the videos after each of its {steps} steps, got {step}; "
            "look at its method run"
        )
    return x


# settings of a scheduler that the model determines, if its configuration has them
_OVERRIDES = {
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}


class DiffusersScheduler(Sampler):
    """Samples by a scheduler of the diffusers package, which need not be installed otherwise.

    The scheduler keeps its own configuration, spacing of steps included, but for the betas, the
    kind of prediction and the clipping, which are the model's. It is copied, never changed.
    Random draws follow the seeds of `sample`: by `variance_noise`, where its `step` takes that, or
    else by a generator per video that is seeded from a draw of the video's stream.

    Args:
        scheduler: Such as `diffusers.DPMSolverMultistepScheduler()`; any object with its
            `config`, `from_config`, `set_timesteps`, `scale_model_input` and `step`.

    Raises:
        TypeError: If it cannot take betas or predictions of v, as those of flow matching, or its
            `step` needs more arguments than others.
    """

    default_steps: int | None = 50

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        config = getattr(scheduler, "config", {})
        lacking = [name for name in ("trained_betas", "prediction_type") if name not in config]
        parameters = inspect.signature(scheduler.step).parameters.values()
        if sum(one.default is one.empty for one in parameters) != 3:
            lacking.append("such a step")
        if lacking:
            raise TypeError(
                "sample: a diffusers scheduler must have trained_betas and prediction_type in its "
                "config, and a step(model_output, timestep, sample), got "
                f"{type(scheduler).__name__} without {' and '.join(lacking)}; take e.g. "
                "DPMSolverMultistepScheduler or EulerDiscreteScheduler"
            )
        self.scheduler = scheduler

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels at which the scheduler asks the network.

        Args:
            process: The model's forward process.
            steps: Their number. A scheduler that calls the network twice in a step has more.

        Returns:
            They fall, but one that is asked for twice follows itself.

        Raises:
            ValueError: If `steps` is not a number from 1 to `num_timesteps`, or the scheduler goes
                from videos to noise.
        """
        number = whole_number(steps)
        if number is None or not 1 <= number <= process.num_timesteps:
            raise ValueError(
                "sample: with a diffusers scheduler, steps must be a number from 1 to "
                f"{process.num_timesteps}, got {steps}; choose where they are in the scheduler's "
                "config, e.g. timestep_spacing"
            )
        scheduler = self._fitted(process)
        scheduler.set_timesteps(number, device=process.betas.device)
        times = [float(t) for t in scheduler.timesteps]
        levels = process.noise_levels(times)
        ratios = [float(ratio) for ratio in getattr(scheduler, "sigmas", ())]
        if len(ratios) == len(times) + 1:
            # more exact than the times, which some schedulers round
            levels = [_level_of(t, ratio) for t, ratio in zip(times, ratios, strict=False)]
        if levels[0].log_snr > levels[-1].log_snr:
            raise ValueError(
                "sample: a diffusers scheduler must go from noise to videos, got "
                f"{type(scheduler).__name__}, which goes from step {times[0]:g} to {times[-1]:g}; "
                "take the one that it is the inverse of"
            )
        return ScheduledLevels([*levels, CLEAN], scheduler)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`.

        Raises:
            TypeError: If the levels are not from this class's `levels`.
        """
        if not isinstance(levels, ScheduledLevels):
            raise TypeError(
                "DiffusersScheduler: levels must be what its method levels returned, got "
                f"{type(levels).__name__}; a scheduler cannot stop elsewhere, so pass them whole"
            )
        scheduler = copy.deepcopy(levels.scheduler)
        draws = _Draws(scheduler, x, noise)
        if hasattr(scheduler, "set_begin_index"):
            # else it searches for the first time, and may find a later step of the same time
            scheduler.set_begin_index(0)
        # some schedulers work on x / alpha, and say so by what they do before the network
        first = scheduler.scale_model_input(x.new_ones(()), scheduler.timesteps[0])
        is_divided = float(first) != 1.0
        x = x / first
        for (level, after), t in zip(pairwise(levels), scheduler.timesteps, strict=True):
            scale = scheduler.scale_model_input(x.new_ones(()), t)
            scaled = scheduler.scale_model_input(x, t)
            seen = denoise(scaled, level)
            # what guidance has put in, and without any the same to the last digit
            x = x + (seen.x_t - scaled) / scale
            # v, since it fixes both the noise and the video at either end of the schedule
            v = level.alpha * seen.noise - level.sigma * seen.x_start
            x = scheduler.step(v, t, x, return_dict=False, **draws.options(x))[0]
            yield x * after.alpha if is_divided else x

    def _fitted(self, process: ForwardProcess) -> Any:
        """A new scheduler, of the same configuration but for what is the model's."""
        total = process.num_timesteps
        kept = [1.0, *(level.alpha**2 for level in process.noise_levels(range(total)))]
        betas = [1 - after / before for before, after in pairwise(kept)]
        config = self.scheduler.config
        known = {name: value for name, value in _OVERRIDES.items() if name in config}
        return type(self.scheduler).from_config(
            config, trained_betas=betas, num_train_timesteps=total, **known
        )


class ScheduledLevels(list[NoiseLevel]):
    """Noise levels, and the scheduler that stops at them."""

    def __init__(self, levels: Sequence[NoiseLevel], scheduler: Any) -> None:
        super().__init__(levels)
        self.scheduler = scheduler


class _Draws:
    """Gives a scheduler's `step` its random numbers in the form that it takes."""

    def __init__(self, scheduler: Any, x: Tensor, noise: Noise) -> None:
        parameters = inspect.signature(scheduler.step).parameters
        self.noise = noise
        self.takes_noise = "variance_noise" in parameters
        self.generators: list[torch.Generator] | None = None
        if "generator" in parameters and not self.takes_noise:
            self.generators = [_generator(row) for row in noise(x)]

    def options(self, x: Tensor) -> dict[str, Any]:
        """Keywords of `step`."""
        if self.takes_noise:
            return {"variance_noise": self.noise(x)}
        return {} if self.generators is None else {"generator": self.generators}


def _generator(row: Tensor) -> torch.Generator:
    """A generator that is seeded from some random numbers."""
    words = row.flatten()[:8].float().cpu().numpy().view(np.uint32)
    (seed,) = np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)
    return torch.Generator(row.device).manual_seed(int(seed))


def _level_of(t: float, ratio: float) -> NoiseLevel:
    """The noise level of a ratio of sigma to alpha."""
    length = math.hypot(1.0, ratio)
    return NoiseLevel(t, 1 / length, ratio / length)


def is_scheduler(thing: Any) -> bool:
    """Whether it has what a scheduler object of the diffusers package has."""
    is_object = not isinstance(thing, type)
    return is_object and hasattr(thing, "set_timesteps") and hasattr(thing, "step")


__all__ = [
    "DDIM",
    "DDPM",
    "SAMPLERS",
    "Ancestral",
    "DPMPlusPlus",
    "DiffusersScheduler",
    "Sampler",
    "make_sampler",
]


class Ancestral(Sampler):
    """The paper's sampler: each step draws from the posterior (Ho et al. 2022, eq. 3, 4).

    Args:
        gamma: Where the variance of a step lies, in [0, 1]: at 0 it is the posterior's, which is
            the least, at 1 that of the forward process, the most. The paper takes 0 to 0.3.
        langevin_delta: Size of a Langevin step after each step (eq. 5), which calls the network
            once more; the paper takes 0.1. 0 for none.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    default_steps: int | None = 256

    def __init__(
        self, gamma: float = 0.0, langevin_delta: float = 0.0, *, spacing: str = "trailing"
    ) -> None:
        super().__init__(spacing=spacing)
        self.gamma = _checked_share("Ancestral", "gamma", gamma)
        self.langevin_delta = _checked_delta("Ancestral", langevin_delta)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`."""
        for t, s in pairwise(levels):
            x_start, _, x = denoise(x, t)
            if not s.sigma:
                yield x_start
                return
            old, new = math.exp(t.log_snr - s.log_snr), _share_of_new(t, s)
            mean = old * s.alpha / t.alpha * x + new * s.alpha * x_start
            deviation = math.sqrt(new) * s.sigma ** (1 - self.gamma) * t.sigma**self.gamma
            x = mean + deviation * noise(x)
            yield (x := _corrected(x, s, self.langevin_delta, denoise, noise))


class DDPM(Ancestral):
    """The reference's sampler: `Ancestral` with `gamma=0` over all steps of the model.

    Where nothing but conditions guides the samples, and no seed is given, `sample` runs the same
    chain by `p_sample`, whose numbers are the reference's to the last bit.
    """

    default_steps: int | None = None

    def __init__(self) -> None:
        super().__init__()

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """See `Sampler.levels`.

        Raises:
            ValueError: If `steps` is not the number of all steps.
        """
        if whole_number(steps) != process.num_timesteps:
            raise ValueError(
                f"DDPM: steps must be all {process.num_timesteps} of the model, got {steps}; for "
                "others pass sampler='ancestral', 'ddim' or 'dpm++'"
            )
        return super().levels(process, steps)


class DDIM(Sampler):
    """Steps along the noise that is predicted, of which a part can be new (Song et al. 2021).

    Args:
        eta: Share of new noise, in [0, 1] (eq. 12, 16): at 0 the video is a function of the noise
            at the start, at 1 this is ancestral sampling.
        langevin_delta: As in `Ancestral`.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    default_steps: int | None = 50

    def __init__(
        self, eta: float = 0.0, langevin_delta: float = 0.0, *, spacing: str = "trailing"
    ) -> None:
        super().__init__(spacing=spacing)
        self.eta = _checked_share("DDIM", "eta", eta)
        self.langevin_delta = _checked_delta("DDIM", langevin_delta)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`."""
        for t, s in pairwise(levels):
            prediction = denoise(x, t)
            if not s.sigma:
                yield prediction.x_start
                return
            new = self.eta**2 * _share_of_new(t, s)
            x = s.alpha * prediction.x_start + s.sigma * math.sqrt(1 - new) * prediction.noise
            if new:
                x = x + s.sigma * math.sqrt(new) * noise(x)
            yield (x := _corrected(x, s, self.langevin_delta, denoise, noise))


class DPMPlusPlus(Sampler):
    """DPM-Solver++ (2M): extrapolates the predicted video, for good samples in few steps.

    The multistep form with the midpoint rule (Lu et al. 2022, algorithm 2), with one call of the
    network per step.

    Args:
        sde: Whether each step draws new noise, as the reverse diffusion does (SDE-DPM-Solver++).
        order: 2, or 1 for no extrapolation, which without `sde` is `DDIM()`. The first step, which
            has none before it, and the last, which is infinitely long, are always of order 1.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    default_steps: int | None = 20

    def __init__(self, sde: bool = False, order: int = 2, *, spacing: str = "spectrum") -> None:
        super().__init__(spacing=spacing)
        if order not in (1, 2):
            raise ValueError(f"DPMPlusPlus: order must be 1 or 2, got {order}; leave it out for 2")
        self.sde = sde
        self.order = order

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`."""
        x_start_before, step_before = None, 0.0
        for t, s in pairwise(levels):
            x_start, _, x = denoise(x, t)
            if not s.sigma:
                yield x_start
                return
            # length of the step in the logarithm of alpha / sigma
            step = (s.log_snr - t.log_snr) / 2
            middle = x_start
            if self.order == 2 and x_start_before is not None:
                middle = x_start + step / (2 * step_before) * (x_start - x_start_before)
            x_start_before, step_before = x_start, step

            # the exact solution, were the predicted video the same all along the step
            length = 2 * step if self.sde else step
            gain = -math.expm1(-length)
            x = s.sigma / t.sigma * math.exp(step - length) * x + s.alpha * gain * middle
            if self.sde:
                x = x + s.sigma * math.sqrt(gain) * noise(x)
            yield x


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddpm": DDPM,
    "ancestral": Ancestral,
    "ddim": DDIM,
    "dpm++": DPMPlusPlus,
    "dpm++sde": partial(DPMPlusPlus, sde=True),
}


def make_sampler(sampler: Any) -> Sampler:
    """The sampler that a user names or gives.

    Args:
        sampler: A name in `SAMPLERS`, a `Sampler`, or a scheduler of the diffusers package.

    Raises:
        TypeError: If it is something else, or a scheduler that cannot take the model's steps.
        ValueError: If there is none of this name.

    Example:
        >>> make_sampler("ddim").eta
        0.0
    """
    if isinstance(sampler, Sampler):
        return sampler
    if isinstance(sampler, str):
        if sampler not in SAMPLERS:
            raise ValueError(
                f"sample: sampler must be one of {', '.join(SAMPLERS)}, got "
                f"{shown(sampler)}; choose one"
            )
        return SAMPLERS[sampler]()
    if is_scheduler(sampler):
        return DiffusersScheduler(sampler)
    raise TypeError(
        f"sample: sampler must be a name ({', '.join(SAMPLERS)}), a Sampler or a scheduler of "
        f"diffusers, got {shown(sampler)}; pass e.g. sampler='ddim'"
    )


def _share_of_new(t: NoiseLevel, s: NoiseLevel) -> float:
    """`1 - exp(log_snr_t - log_snr_s)`, without loss of digits for short steps."""
    return -math.expm1(t.log_snr - s.log_snr)


def _corrected(
    x: Tensor, level: NoiseLevel, delta: float, denoise: Denoise, noise: Noise
) -> Tensor:
    """A Langevin step at a noise level (Ho et al. 2022, eq. 5); none if `delta` is 0."""
    if not delta:
        return x
    _, predicted, x = denoise(x, level)
    pull = delta / 2 * level.sigma * predicted
    return x - pull + math.sqrt(delta) * level.sigma * noise(x)


def _checked_share(sampler: str, name: str, value: float) -> float:
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(
            f"{sampler}: {name} must be in [0, 1], got {shown(value)}; give it as a fraction"
        )
    return value


def _checked_delta(sampler: str, value: float) -> float:
    if not isinstance(value, Real) or not 0 <= value < math.inf:
        raise ValueError(
            f"{sampler}: langevin_delta must be at least 0, got {shown(value)}; the paper's is 0.1"
        )
    return value
