"""Samplers: DDPM, ancestral, DDIM, DPM-Solver++, schedulers of diffusers; spacing of steps."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
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
        return [float(t) for t in SPACINGS[spacing](process, _checked_number(process, steps))]
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


def _checked_number(process: ForwardProcess, steps: Any) -> int:
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


# settings of a scheduler that the model determines, where its config has them
_OVERRIDES = {
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}


class DiffusersScheduler(Sampler):
    """Samples with a scheduler of the optional diffusers package.

    The scheduler keeps its own config, including the spacing of steps, except for the betas, the
    kind of prediction and the clamping, which are the model's. It is copied, never changed.
    Random draws follow the seeds of `sample`: through `variance_noise` where its `step` takes that,
    else through a generator per video, seeded from a draw of the video's stream.

    Args:
        scheduler: Such as `diffusers.DPMSolverMultistepScheduler()`; any object with its
            `config`, `from_config`, `set_timesteps`, `scale_model_input` and `step`.

    Raises:
        TypeError: If it does not take betas or predictions of v, as those of flow matching, or its
            `step` needs other arguments.
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
        """The noise levels at which the scheduler calls the network.

        Args:
            process: The model's forward process.
            steps: Their number. A scheduler that calls the network twice in a step has more.

        Returns:
            Falling levels; one that the scheduler asks for twice follows itself.

        Raises:
            ValueError: If `steps` is not a number from 1 to `num_timesteps`.
        """
        number = _checked_number(process, steps)
        scheduler = self._fitted(process)
        scheduler.set_timesteps(number, device=process.betas.device)
        times = [float(t) for t in scheduler.timesteps]
        levels = process.noise_levels(times)
        ratios = [float(ratio) for ratio in getattr(scheduler, "sigmas", ())]
        if len(ratios) == len(times) + 1:
            # more exact than the times, which some schedulers round
            levels = [_level_of(t, ratio) for t, ratio in zip(times, ratios, strict=False)]
        return ScheduledLevels([*levels, CLEAN], scheduler)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`; `levels` must come from this class's `levels`."""
        assert isinstance(levels, ScheduledLevels)
        scheduler = copy.deepcopy(levels.scheduler)
        keywords = inspect.signature(scheduler.step).parameters
        draws: dict[str, Any] = {}
        if "generator" in keywords and "variance_noise" not in keywords:
            draws["generator"] = [_generator(row) for row in noise(x)]
        if hasattr(scheduler, "set_begin_index"):
            # else it searches for the first time, and may find a later step of the same time
            scheduler.set_begin_index(0)
        # some schedulers work on x / alpha, which shows in how they scale the network's input
        first = scheduler.scale_model_input(x.new_ones(()), scheduler.timesteps[0])
        is_divided = float(first) != 1.0
        x = x / first
        for (level, after), t in zip(pairwise(levels), scheduler.timesteps, strict=True):
            scale = scheduler.scale_model_input(x.new_ones(()), t)
            scaled = scheduler.scale_model_input(x, t)
            seen = denoise(scaled, level)
            # guidance may have changed the noisy videos; without any, x stays the same bit for bit
            x = x + (seen.x_t - scaled) / scale
            # v, since it fixes both the noise and the video at either end of the schedule
            v = level.alpha * seen.noise - level.sigma * seen.x_start
            if "variance_noise" in keywords:
                draws["variance_noise"] = noise(x)
            x = scheduler.step(v, t, x, return_dict=False, **draws)[0]
            yield x * after.alpha if is_divided else x

    def _fitted(self, process: ForwardProcess) -> Any:
        """A new scheduler with the same config, except for the model's own settings."""
        total = process.num_timesteps
        kept = [1.0, *(level.alpha**2 for level in process.noise_levels(range(total)))]
        betas = [1 - after / before for before, after in pairwise(kept)]
        config = self.scheduler.config
        known = {name: value for name, value in _OVERRIDES.items() if name in config}
        return type(self.scheduler).from_config(
            config, trained_betas=betas, num_train_timesteps=total, **known
        )


class ScheduledLevels(list[NoiseLevel]):
    """Noise levels and the scheduler that stops at them."""

    def __init__(self, levels: Sequence[NoiseLevel], scheduler: Any) -> None:
        super().__init__(levels)
        self.scheduler = scheduler


def _generator(row: Tensor) -> torch.Generator:
    """A generator seeded from random numbers."""
    words = row.flatten()[:8].float().cpu().numpy().view(np.uint32)
    (seed,) = np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)
    return torch.Generator(row.device).manual_seed(int(seed))


def _level_of(t: float, ratio: float) -> NoiseLevel:
    """The noise level with a given ratio of sigma to alpha."""
    length = math.hypot(1.0, ratio)
    return NoiseLevel(t, 1 / length, ratio / length)


class Ancestral(Sampler):
    """The paper's sampler: each step draws from the posterior (Ho et al. 2022, eq. 3, 4).

    Args:
        gamma: Interpolates the variance of a step, in [0, 1], from the posterior's, the smallest,
            at 0, to that of the forward process, the largest, at 1. The paper uses 0 to 0.3.
        langevin_delta: Size of a Langevin step after each step (eq. 5), which calls the network
            once more; the paper uses 0.1. 0 for none.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    default_steps: int | None = 256

    def __init__(
        self, gamma: float = 0.0, langevin_delta: float = 0.0, *, spacing: str = "trailing"
    ) -> None:
        super().__init__(spacing=spacing)
        self.gamma = _checked("Ancestral: gamma", gamma, 1)
        self.langevin_delta = _checked("Ancestral: langevin_delta", langevin_delta, math.inf)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`."""
        for t, s in pairwise(levels):
            x_start, _, x = denoise(x, t)
            if not s.sigma:
                yield x_start
                return
            new = _share_of_new(t, s)
            old = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
            mean = old * x + new * s.alpha * x_start
            deviation = math.sqrt(new) * s.sigma ** (1 - self.gamma) * t.sigma**self.gamma
            x = mean + deviation * noise(x)
            yield (x := _corrected(x, s, self.langevin_delta, denoise, noise))


class DDPM(Ancestral):
    """The reference's sampler: `Ancestral` with `gamma=0` over all steps of the model.

    Without guidance other than conditions and without seed, `sample` runs the same chain with
    `p_sample`, whose numbers are the reference's bit for bit.
    """

    default_steps: int | None = None

    def __init__(self) -> None:
        super().__init__()

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """See `Sampler.levels`.

        Raises:
            ValueError: If `steps` is not the number of all steps.
        """
        if not isinstance(steps, Integral) or steps != process.num_timesteps:
            raise ValueError(
                f"DDPM: steps must be all {process.num_timesteps} of the model, got {shown(steps)};"
                " for others pass sampler='ancestral', 'ddim' or 'dpm++'"
            )
        return super().levels(process, steps)


class DDIM(Sampler):
    """Steps along the predicted noise, part of which can be new (Song et al. 2021).

    Args:
        eta: Share of new noise, in [0, 1] (eq. 12, 16): at 0 the video is a function of the
            initial noise, at 1 this is ancestral sampling.
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
        self.eta = _checked("DDIM: eta", eta, 1)
        self.langevin_delta = _checked("DDIM: langevin_delta", langevin_delta, math.inf)

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
    """DPM-Solver++ (2M): extrapolates the predicted video for good samples in few steps.

    The multistep form with the midpoint rule (Lu et al. 2022, algorithm 2), with one call of the
    network per step.

    Args:
        sde: Whether each step draws new noise, as the reverse diffusion does (SDE-DPM-Solver++).
        order: 2, or 1 for no extrapolation, which without `sde` is `DDIM()`. The first step, with
            none before it, and the last, which is infinitely long, always have order 1.
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
        before, x_start_before = None, None
        for t, s in pairwise(levels):
            x_start, _, x = denoise(x, t)
            if not s.sigma:
                yield x_start
                return
            kept, gain, lean = multistep_factors(before, t, s, self.sde)
            middle = x_start
            if self.order == 2 and x_start_before is not None:
                middle = x_start + lean * (x_start - x_start_before)
            before, x_start_before = t, x_start
            x = kept * x + gain * middle
            if self.sde:
                x = x + s.sigma * math.sqrt(_share_of_new(t, s)) * noise(x)
            yield x


def multistep_factors(
    before: NoiseLevel | None, t: NoiseLevel, s: NoiseLevel, sde: bool = False
) -> tuple[float, float, float]:
    """The factors of a step of DPM-Solver++ from level `t` to level `s`.

    It is the exact solution for a predicted video that is constant during the step (Lu et al. 2022,
    eq. 9), here the one predicted for its middle by the last two (algorithm 2):
    `x_s = kept * x_t + gain * (x_start + lean * (x_start - x_start_before))`.

    Args:
        before: The level before `t`; None for the first step.
        t: Where the step begins.
        s: Where it ends.
        sde: Whether noise is drawn as well.

    Returns:
        `kept`, `gain` and `lean`, which is 0 where there is nothing to extrapolate.
    """
    # length of the step in the logarithm of alpha / sigma
    step = (s.log_snr - t.log_snr) / 2
    lean = step / (t.log_snr - before.log_snr) if before is not None and s.sigma else 0.0
    gain = -math.expm1(-2 * step if sde else -step)
    kept = s.sigma / t.sigma * (math.exp(-step) if sde else 1.0)
    return kept, s.alpha * gain, lean


class Euler(Sampler):
    """Euler steps along the probability flow, with or without new noise in between.

    The slope is the same in the time of flow matching as in the sigma of Karras et al. 2022, and
    without `churn` a step is that of `DDIM()`.

    Args:
        churn: How much noise is added before steps and then removed again, S_churn of Karras et
            al. 2022, algorithm 2: it raises `sigma / alpha` by the factor
            `1 + min(churn / steps, sqrt(2) - 1)`, but not above that of the first level. 0 for
            none; a few tens at most.
        churn_range: Least and greatest `sigma / alpha` where it is added.
        churn_noise: Standard deviation of the noise that is added, S_noise; slightly above 1 makes
            up for detail that networks remove too much of.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range.
    """

    default_steps: int | None = 50

    def __init__(
        self,
        churn: float = 0.0,
        churn_range: tuple[float, float] = (0.0, math.inf),
        churn_noise: float = 1.0,
        *,
        spacing: str = "spectrum",
    ) -> None:
        super().__init__(spacing=spacing)
        name = type(self).__name__
        self.churn = _checked(f"{name}: churn", churn, math.inf)
        least, most = churn_range
        if not 0 <= least <= most:
            raise ValueError(
                f"{name}: churn_range must be two numbers of at least 0, the second as great as "
                f"the first or greater, got {shown(churn_range)}; give the least and the greatest "
                "sigma / alpha"
            )
        self.churn_range = (float(least), float(most))
        self.churn_noise = _checked(f"{name}: churn_noise", churn_noise, math.inf)

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """See `Sampler.levels`."""
        levels = super().levels(process, steps)
        factor = 1 + min(self.churn / (len(levels) - 1), math.sqrt(2) - 1)
        least, most = self.churn_range
        # no level is noisier than the first
        greatest = math.exp(-levels[0].log_snr / 2)
        raised = []
        for level in levels[:-1]:
            ratio = math.exp(-level.log_snr / 2)
            is_raised = self.churn and least <= ratio <= most and ratio < greatest
            log_snr = -2 * math.log(min(factor * ratio, greatest)) if is_raised else 0.0
            raised.append(process.noise_level(process.time_of(log_snr)) if is_raised else level)
        return ChurnedLevels(levels, raised)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`; with `churn`, `levels` must come from this class's `levels`."""
        assert isinstance(levels, ChurnedLevels) or not self.churn
        starts = levels.raised if isinstance(levels, ChurnedLevels) else levels[:-1]
        for (t, s), raised in zip(pairwise(levels), starts, strict=True):
            if raised is not t:
                gain = raised.alpha / t.alpha
                added = math.sqrt(max(0.0, raised.sigma**2 - (gain * t.sigma) ** 2))
                x = gain * x + self.churn_noise * added * noise(x)
            seen = denoise(x, raised)
            if not s.sigma:
                yield seen.x_start
                return
            yield (x := self._step(seen, raised, s, denoise))

    def _step(self, seen: Prediction, t: NoiseLevel, s: NoiseLevel, denoise: Denoise) -> Tensor:
        """The videos at level `s`, from a prediction at level `t`."""
        return s.alpha * seen.x_start + s.sigma * seen.noise


class Heun(Euler):
    """Heun's second-order steps along the probability flow (Karras et al. 2022, algorithm 2).

    Each calls the network twice, but for the last. The second slope is that at the end of an
    `Euler` step; the mean of both is taken.

    Args:
        churn: As in `Euler`, and so the others.
        churn_range: As in `Euler`.
        churn_noise: As in `Euler`.
        coordinates: What the slope is that of: `"flow"` for `x / (alpha + sigma)` in
            `sigma / (alpha + sigma)`, the time of flow matching, which is bounded; `"edm"` for
            `x / alpha` in `sigma / alpha`, as in the paper, which with `spacing="karras"` and
            `objective="edm"` is its algorithm, but needs many more steps.
        spacing: As in `Sampler`.

    Raises:
        ValueError: If an argument is outside its range; from `sample`, for the coordinates `"edm"`
            if the first level is pure noise, where they are infinite.
    """

    default_steps: int | None = 18

    def __init__(
        self,
        churn: float = 0.0,
        churn_range: tuple[float, float] = (0.0, math.inf),
        churn_noise: float = 1.0,
        *,
        coordinates: str = "flow",
        spacing: str = "spectrum",
    ) -> None:
        super().__init__(churn, churn_range, churn_noise, spacing=spacing)
        if coordinates not in ("flow", "edm"):
            raise ValueError(
                f"Heun: coordinates must be flow or edm, got {shown(coordinates)}; choose one"
            )
        self.coordinates = coordinates

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """See `Sampler.levels`."""
        levels = super().levels(process, steps)
        if self.coordinates == "edm" and not levels[0].alpha:
            raise ValueError(
                "Heun: coordinates='edm' needs some signal at the first level, got pure noise, "
                "where x / alpha is infinite; leave coordinates out, or give steps that begin later"
            )
        return levels

    def _step(self, seen: Prediction, t: NoiseLevel, s: NoiseLevel, denoise: Denoise) -> Tensor:
        first = super()._step(seen, t, s, denoise)
        ahead = denoise(first, s)
        # an Euler step from t again, with the slope at s
        if self.coordinates == "edm":
            length = s.sigma / s.alpha - t.sigma / t.alpha
            second = s.alpha * (seen.x_t / t.alpha + length * ahead.noise)
        else:
            before, after = t.alpha + t.sigma, s.alpha + s.sigma
            length = s.sigma / after - t.sigma / before
            second = after * (seen.x_t / before + length * (ahead.noise - ahead.x_start))
        return (first + second) / 2


class ChurnedLevels(list[NoiseLevel]):
    """Noise levels to stop at, and those that each step goes up to first."""

    def __init__(self, levels: Sequence[NoiseLevel], raised: Sequence[NoiseLevel]) -> None:
        super().__init__(levels)
        self.raised = raised


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddpm": DDPM,
    "ancestral": Ancestral,
    "ddim": DDIM,
    "euler": Euler,
    "heun": Heun,
    "dpm++": DPMPlusPlus,
    "dpm++sde": partial(DPMPlusPlus, sde=True),
}


def make_sampler(sampler: Any) -> Sampler:
    """A sampler by name, or from an object.

    Args:
        sampler: A name in `SAMPLERS`, a `Sampler`, or a scheduler of the diffusers package.

    Raises:
        TypeError: If it is something else, or a scheduler that does not fit.
        ValueError: If the name is unknown.

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
    is_object = not isinstance(sampler, type)
    if is_object and hasattr(sampler, "set_timesteps") and hasattr(sampler, "step"):
        return DiffusersScheduler(sampler)
    raise TypeError(
        f"sample: sampler must be a name ({', '.join(SAMPLERS)}), a Sampler or a scheduler of "
        f"diffusers, got {shown(sampler)}; pass e.g. sampler='ddim'"
    )


def _share_of_new(t: NoiseLevel, s: NoiseLevel) -> float:
    """`1 - exp(log_snr_t - log_snr_s)`, accurate for short steps."""
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


def _checked(name: str, value: float, most: float) -> float:
    """Raises a ValueError unless an option is from 0 to `most`."""
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be from 0 to {most:g}, got {value}")
    return value
