"""Noise schedules and the forward process: betas, log-SNR, q(x_t | x_start), and the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.continuous_schedule import (
    ContinuousSchedule,
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
)


def cosine_beta_schedule(timesteps: int, s: float = 0.008) -> Tensor:
    """Variances of the steps of the cosine schedule (Nichol and Dhariwal 2021, eq. 17).

    Args:
        timesteps: Number of steps.
        s: Offset that keeps the first steps from being too small.

    Returns:
        `betas`, float64 `(timesteps,)`, at most 0.9999.
    """
    progress = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")
    signal = torch.cos((progress + s) / (1 + s) * math.pi / 2) ** 2
    return _betas_of(signal)


def linear_beta_schedule(timesteps: int) -> Tensor:
    """Variances that grow evenly (Ho et al. 2020, section 4), for any number of steps.

    With 1000 steps they go from 0.0001 to 0.02; with fewer each is larger by as much, so that the
    same noise is added in all. It is meant for a few hundred steps or more: with 20 or fewer the
    last ones are clamped to the limit, with 10 half of them, so that hardly anything is left of a
    clip midway.

    Args:
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`, at most 0.9999.
    """
    scale = 1000 / timesteps
    ends = scale * 1e-4, scale * 0.02
    betas = torch.linspace(*ends, timesteps, dtype=torch.float64, device="cpu")
    return betas.clamp(max=0.9999)


def sigmoid_beta_schedule(
    timesteps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0
) -> Tensor:
    """Variances of the steps of the sigmoid schedule (Jabri et al. 2022, algorithm 5).

    Args:
        timesteps: Number of steps.
        start: Where on the sigmoid time 0 is.
        end: Where time 1 is.
        tau: Its width; above 1 there is less noise for most of the time.

    Returns:
        `betas`, float64 `(timesteps,)`, at most 0.9999.
    """
    progress = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")
    falling = torch.sigmoid(-(progress * (end - start) + start) / tau)
    return _betas_of((falling - falling[-1]) / (falling[0] - falling[-1]))


def _betas_of(signal: Tensor) -> Tensor:
    """Variances of the steps between given shares of the clip's variance."""
    signal = signal / signal[0]
    return (1 - signal[1:] / signal[:-1]).clamp(0, 0.9999)


BETA_SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_beta_schedule,
    "linear": linear_beta_schedule,
    "sigmoid": sigmoid_beta_schedule,
}

CONTINUOUS: dict[str, type[ContinuousSchedule]] = {
    "continuous_cosine": CosineSchedule,
    "flow": FlowSchedule,
    "edm": EDMSchedule,
}
"""The schedules whose times are real numbers in training, by name."""

SCHEDULES = (*BETA_SCHEDULES, "continuous_cosine")
"""Names for `beta_schedule`; the objectives flow and edm have schedules of their own."""


def make_schedule(
    beta_schedule: str | Sequence[float] | Tensor, timesteps: int, shift: float = 1.0
) -> Tensor | ContinuousSchedule:
    """What `ForwardProcess` takes as a schedule, by name.

    Args:
        beta_schedule: A key of `CONTINUOUS`, or as in `make_betas`.
        timesteps: Number of steps.
        shift: Of a continuous schedule.
    """
    if isinstance(beta_schedule, str) and beta_schedule in CONTINUOUS:
        return CONTINUOUS[beta_schedule](shift)
    return make_betas(beta_schedule, timesteps)


def make_betas(beta_schedule: str | Sequence[float] | Tensor, timesteps: int) -> Tensor:
    """The variances of a schedule by name, or given ones after a check.

    Args:
        beta_schedule: A key of `BETA_SCHEDULES`, or `timesteps` variances, each above 0 and
            below 1.
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`.

    Raises:
        ValueError: If the name is unknown, the variances are not as described, or they leave
            nothing of a clip or add no noise in float32.
    """
    if isinstance(beta_schedule, str) and beta_schedule in BETA_SCHEDULES:
        return BETA_SCHEDULES[beta_schedule](timesteps)
    try:
        betas = torch.as_tensor(beta_schedule, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"GaussianDiffusion: beta_schedule must be one of {', '.join(SCHEDULES)}, or the "
            f"betas themselves, got {shown(beta_schedule)}; choose one of them"
        ) from error
    kept = (1 - betas).cumprod(0)
    is_usable = betas.shape == (timesteps,) and bool(((betas > 0) & (betas < 1)).all())
    # after float32 rounding some of the clip must be lost at the first step, and left at the last
    if not is_usable or kept[0] == 1 or kept[-1] < torch.finfo(torch.float32).tiny:
        found = f"{betas.min():.3g} to {betas.max():.3g}" if betas.numel() else "none"
        raise ValueError(
            f"GaussianDiffusion: beta_schedule must hold timesteps = {timesteps} variances above 0 "
            "and below 1 that leave a share of the clip which float32 can tell from all and from "
            f"none, got {found} in the shape {tuple(betas.shape)}; give one for each step"
        )
    return betas.detach()


def extract(a: Tensor, t: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """Takes `a[t]` in a shape that broadcasts against `x_shape`, see `per_frame`."""
    return per_frame(a.gather(-1, t.flatten()).view(t.shape), x_shape)


def per_frame(values: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """Values of videos `(b,)` as `(b, 1, ..., 1)`, or of frames `(b, f)` as `(b, 1, f, 1, 1)`."""
    if values.ndim == 2:
        return values[:, None, :, None, None]
    return values.reshape(-1, *[1] * (len(x_shape) - 1))


Noise = Callable[[Tensor], Tensor]
"""Draws standard normal noise of the shape, type and device of its argument."""


def draw_noise(like: Tensor) -> Tensor:
    """Standard normal noise of the shape of `like`, the same in any memory format."""
    return torch.randn(like.shape, device=like.device, dtype=like.dtype)


class NoiseLevel(NamedTuple):
    """The shares of signal and noise in a noisy video: `x_t = alpha * x_start + sigma * noise`.

    Attributes:
        t: The time step for the network: an integer for the steps of training, from 0 to
            `num_timesteps - 1`, or between two of them.
        alpha: Factor of the clean video, in [0, 1].
        sigma: Factor of the noise, 0 or greater. In a variance-preserving process, which all but
            those of flow matching and EDM are, `alpha**2 + sigma**2` is 1.
        frames: The noise level of each frame, where they differ; None for this one.
    """

    t: float
    alpha: float
    sigma: float
    frames: tuple[NoiseLevel, ...] | None = None

    @property
    def log_snr(self) -> float:
        """`log(alpha**2 / sigma**2)`, the paper's lambda; infinite without noise or signal."""
        if not self.alpha:
            return -math.inf
        return 2 * math.log(self.alpha / self.sigma) if self.sigma else math.inf

    @property
    def scale(self) -> float:
        """Standard deviation of videos at this level whose clean values have variance 1."""
        return math.hypot(self.alpha, self.sigma)


CLEAN = NoiseLevel(t=-1.0, alpha=1.0, sigma=0.0)
"""The end of sampling, without noise."""


class ForwardProcess(nn.Module):
    """The process that turns a clip into noise, and its closed forms.

    Time is counted in steps. Whole steps `t` are those of a Markov chain, from 0 to
    `num_timesteps - 1`; between them the log-SNR is interpolated, or, for a continuous schedule,
    exact. Noise levels may be those of videos, `t` of `(b,)`, or of frames, `(b, f)`.

    Args:
        schedule: Variance of the noise that each step adds, float64 `(num_timesteps,)`, for a
            variance-preserving chain; or a continuous schedule in `num_timesteps` steps of equal
            time, the last of which ends at 1, so that time is drawn from all of
            (-1, num_timesteps - 1] and not from whole steps.
        num_timesteps: Number of steps of a continuous schedule.
        time_distribution: For a continuous schedule, mean and standard deviation of
            `log(sigma / alpha)`, before the schedule's shift, where training draws it from a normal
            distribution; None for times drawn uniformly.

    Attributes:
        num_timesteps: Number of steps.
        schedule: The continuous schedule; None for a chain of whole steps.
        alphas_cumprod: `alpha ** 2` after each step, the share of the clip in the variance where
            the process preserves that; the other buffers, named as in every DDPM code, follow.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __init__(
        self,
        schedule: Tensor | ContinuousSchedule,
        num_timesteps: int = 1000,
        time_distribution: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.schedule = None if torch.is_tensor(schedule) else schedule
        self._distribution = time_distribution
        # computed on the CPU, as not every device has float64
        for name, values in _chain(schedule, num_timesteps).items():
            self.register_buffer(name, values.float().to(torch.get_default_device()))
        self.num_timesteps = len(self.betas)

    @property
    def is_continuous(self) -> bool:
        """Whether times in training are real numbers, from -1, and not whole steps, from 0."""
        return self.schedule is not None

    # how noisy a step is

    def draw_times(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Time steps to train at: whole ones, or real numbers in continuous time.

        Args:
            count: How many.
            generator: Draws them, on its own device; None for torch's generator of the model's
                device.

        Returns:
            `(count,)`, on the model's device.
        """
        device = self.betas.device if generator is None else generator.device
        if self.is_continuous:
            times = self.times_at(torch.rand(count, device=device, generator=generator))
        else:
            n = self.num_timesteps
            times = torch.randint(0, n, (count,), device=device, generator=generator)
        return times.to(self.betas.device)

    def times_at(self, fractions: Tensor) -> Tensor:
        """The time steps at fractions of the distribution that training draws from.

        Args:
            fractions: In [0, 1), of any shape; evenly distributed ones give times as from
                `draw_times`.

        Returns:
            Whole time steps, or, for a continuous schedule, real ones of the type of `fractions`.
        """
        n = self.num_timesteps
        if self.schedule is None:
            return (fractions * n).long().clamp(max=n - 1)
        return self.schedule.times_at(fractions, self._distribution) * n - 1

    def log_snr(self, t: Tensor) -> Tensor:
        """Log of the signal-to-noise ratio, `log(alpha**2 / sigma**2)`, at time steps `t`.

        Args:
            t: Of any shape; whole, or between two steps. In a continuous schedule from -1, where
                the clip is almost clean, else from 0.
        """
        if self.schedule is not None:
            return self.schedule.log_snr((t + 1) / self.num_timesteps)
        return _interpolate(self._log_snr_table(self.betas.dtype), t)

    def signal_and_noise(self, t: Tensor, x_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The factors alpha and sigma of `x_t = alpha * x_start + sigma * noise`.

        Args:
            t: Time steps, `(b,)` or `(b, f)`, whole or not.
            x_shape: Shape of the videos, against which the factors broadcast.
        """
        if not t.is_floating_point():
            alpha = extract(self.sqrt_alphas_cumprod, t, x_shape)
            return alpha, extract(self.sqrt_one_minus_alphas_cumprod, t, x_shape)
        if self.schedule is not None:
            alpha, sigma = self.schedule.signal_and_noise((t + 1) / self.num_timesteps)
        else:
            log_snr = self.log_snr(t)
            alpha, sigma = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        return per_frame(alpha, x_shape), per_frame(sigma, x_shape)

    def noise_levels(self, times: Sequence[float]) -> list[NoiseLevel]:
        """The noise levels of time steps in [0, num_timesteps - 1]; -1 stands for no noise.

        Raises:
            ValueError: If one is outside.
        """
        first, last = -1 if self.is_continuous else 0, self.num_timesteps - 1
        for t in times:
            if t != CLEAN.t and not first <= t <= last:
                raise ValueError(
                    f"noise_levels: time steps must be from {first} to {last}, or -1 for the end, "
                    f"got {t}; choose steps of the model's schedule"
                )
        t_of_all = torch.tensor(list(times), dtype=torch.float64, device="cpu")
        if self.schedule is not None:
            both = self.schedule.signal_and_noise((t_of_all + 1) / self.num_timesteps)
        else:
            log_snr = _interpolate(self._log_snr_table(torch.float64), t_of_all)
            both = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        return [
            CLEAN if t == CLEAN.t else NoiseLevel(float(t), alpha, sigma)
            for t, alpha, sigma in zip(times, *(one.tolist() for one in both), strict=True)
        ]

    def noise_level(self, t: float) -> NoiseLevel:
        """The noise level of one time step, as `noise_levels`."""
        return self.noise_levels([t])[0]

    def level_of_noise(self, size: float) -> NoiseLevel:
        """The noise level with `sigma / alpha` of this size, or the closest that the steps have."""
        return self.noise_level(self.time_of(-2 * math.log(size)) if size else 0)

    def times_of(self, log_snrs: Sequence[float]) -> list[float]:
        """The time steps, whole or not, with these log-SNRs, between the first and the last."""
        if self.schedule is not None:
            wanted = torch.tensor(list(log_snrs), dtype=torch.float64, device="cpu")
            times = self.schedule.time_of(wanted) * self.num_timesteps - 1
            return times.clamp(min=0).tolist()
        # log-SNR falls with t
        rising = -self._log_snr_table(torch.float64).numpy()
        return np.interp(-np.asarray(log_snrs), rising, range(self.num_timesteps)).tolist()

    def time_of(self, log_snr: float) -> float:
        """The time step of one log-SNR, as `times_of`."""
        return self.times_of([log_snr])[0]

    def _log_snr_table(self, dtype: torch.dtype) -> Tensor:
        """Log-SNR of every step, on the model's device, or, in float64, on the CPU."""
        signal, noise = self.sqrt_alphas_cumprod, self.sqrt_one_minus_alphas_cumprod
        if dtype == torch.float64:
            # not every device has float64
            signal, noise = signal.cpu().double(), noise.cpu().double()
        return 2 * (signal.log() - noise.log())

    # from clean to noisy, and back

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of q(x_t | x_start) (Ho et al. 2020, eq. 4).

        Args:
            x_start: Clips in [-1, 1], `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
        """
        mean = extract(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
        variance = extract(self.sqrt_one_minus_alphas_cumprod**2, t, x_start.shape)
        log_variance = extract(self.log_one_minus_alphas_cumprod, t, x_start.shape)
        return mean, variance, log_variance

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draws x_t from q(x_t | x_start) (Ho et al. 2020, eq. 4).

        Args:
            x_start: Clips in [-1, 1], `(b, c, f, h, w)`.
            t: Time steps, `(b,)`, whole or not.
            noise: A standard normal draw of the same shape; None to draw it.
        """
        if noise is None:
            noise = draw_noise(x_start)
        alpha, sigma = self.signal_and_noise(t, x_start.shape)
        return alpha * x_start + sigma * noise

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_start that, with this noise, gives x_t (Ho et al. 2020, eq. 15)."""
        if t.is_floating_point():
            alpha, sigma = self.signal_and_noise(t, x_t.shape)
            return (x_t - sigma * noise) / alpha
        return (
            extract(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * noise
        )

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x_start: Tensor) -> Tensor:
        """The noise that, with this x_start, gives x_t."""
        alpha, sigma = self.signal_and_noise(t, x_t.shape)
        return (x_t - alpha * x_start) / sigma

    def predict_v(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """`v = alpha * noise - sigma * x_start` (Salimans and Ho 2022, section 4)."""
        alpha, sigma = self.signal_and_noise(t, x_start.shape)
        return alpha * noise - sigma * x_start

    def predict_start_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """The x_start that, with this v, gives x_t (Salimans and Ho 2022, appendix D)."""
        alpha, sigma = self.signal_and_noise(t, x_t.shape)
        return alpha * x_t - sigma * v

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance, log variance of q(x_{t-1} | x_t, x_start) (Ho et al. 2020, eq. 6, 7)."""
        mean = (
            extract(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = extract(self.posterior_variance, t, x_t.shape)
        log_variance = extract(self.posterior_log_variance_clipped, t, x_t.shape)
        return mean, variance, log_variance


def _interpolate(table: Tensor, t: Tensor) -> Tensor:
    """`table[t]`, also between whole steps."""
    if not t.is_floating_point():
        return table[t]
    below = t.floor().long().clamp(0, len(table) - 1)
    above = (below + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[below], table[above], (t - below).to(table.dtype))


def _chain(schedule: Tensor | ContinuousSchedule, num_timesteps: int) -> dict[str, Tensor]:
    """The buffers of the chain whose steps a schedule has, in float64.

    In the terms of signal and noise: `alphas` are the ratios of neighbouring `alpha ** 2`, and
    `betas` the variances of the noise that a step adds to what it keeps. The posterior is that of
    any Gaussian chain, whether or not it preserves the variance.
    """
    if torch.is_tensor(schedule):
        betas = schedule
        alphas = 1 - betas
        signal = alphas.cumprod(0)
        noise = 1 - signal
        before = torch.cat((signal.new_ones(1), signal[:-1]))
        noise_before = 1 - before
    else:
        u = torch.linspace(0, 1, num_timesteps + 1, dtype=torch.float64, device="cpu")[1:]
        signal, noise = (factor**2 for factor in schedule.signal_and_noise(u))
        before = torch.cat((signal.new_ones(1), signal[:-1]))
        noise_before = torch.cat((noise.new_zeros(1), noise[:-1]))
        alphas = signal / before
        betas = noise - alphas * noise_before
    posterior_variance = betas * noise_before / noise
    return {
        "betas": betas,
        "alphas_cumprod": signal,
        "alphas_cumprod_prev": before,
        # q(x_t | x_start)
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "log_one_minus_alphas_cumprod": noise.log(),
        # x_start from x_t and the noise
        "sqrt_recip_alphas_cumprod": signal.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (noise / signal).sqrt(),
        # q(x_{t-1} | x_t, x_start)
        "posterior_variance": posterior_variance,
        # the first is zero: x_start is then known
        "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / noise,
        "posterior_mean_coef2": noise_before * alphas.sqrt() / noise,
    }
