"""The samplers: how noise becomes a video, step by step, by what the denoiser predicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from numbers import Real
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.diffusion.diffusers_scheduler import (
    DiffusersScheduler,
    is_scheduler,
)
from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.noise_level import Denoise, Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.sampler import Sampler
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.spacing import whole_number

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
