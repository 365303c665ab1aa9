"""Samplers: DDPM, ancestral, DDIM, Euler, Heun, DPM-Solver++, and the choice of one by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.diffusers_scheduler import DiffusersScheduler
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.sampling_steps import Denoise, Prediction, Sampler


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
        if not self.churn:
            return levels
        factor = 1 + min(self.churn / (len(levels) - 1), math.sqrt(2) - 1)
        least, most = self.churn_range
        ratios = [math.exp(-level.log_snr / 2) for level in levels[:-1]]
        # no level is noisier than the first
        greatest = ratios[0]
        raised = {
            i: -2 * math.log(min(factor * ratio, greatest))
            for i, ratio in enumerate(ratios)
            if least <= ratio <= most and ratio < greatest
        }
        # all at once, as each look at a schedule synchronises with a GPU
        found = process.noise_levels(process.times_of(list(raised.values())))
        starts = {**dict(enumerate(levels[:-1])), **dict(zip(raised, found, strict=True))}
        return ChurnedLevels(levels, list(starts.values()))

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
