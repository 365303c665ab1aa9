"""Noise schedules and the forward process: betas, log-SNR, q(x_t | x_start), and the posterior."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import shown

MAX_LOG_SNR = 20.0
"""The continuous schedule's log-SNR goes from this at time 0 to its negative at time 1."""

# angles of the continuous schedule at its two ends: tan of the first is exp(-MAX_LOG_SNR / 2)
_FIRST_ANGLE = math.atan(math.exp(-MAX_LOG_SNR / 2))
_ANGLES = math.pi / 2 - 2 * _FIRST_ANGLE


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


def continuous_log_snr(u: Tensor) -> Tensor:
    """Log-SNR of the paper's schedule in continuous time: a cosine between -20 and 20.

    `alpha = cos(pi * u / 2)`, except for 0.003 % of the time at either end, which keeps the log-SNR
    finite (Ho et al. 2022, section 2; Salimans and Ho 2022, appendix).

    Args:
        u: Time, in [0, 1].

    Returns:
        A tensor of the shape of `u`.
    """
    from_end = 1 - u
    # each half from the angle that is small there, whose tangent is accurate
    early = -2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * u.clamp(max=0.5)))
    late = 2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * from_end.clamp(max=0.5)))
    return torch.where(u <= 0.5, early, late)


def continuous_time_of(log_snr: float) -> float:
    """The time `u` in [0, 1] that has this log-SNR in the continuous schedule."""
    angle = math.atan(math.exp(-log_snr / 2))
    return min(1.0, max(0.0, (angle - _FIRST_ANGLE) / _ANGLES))


def continuous_beta_schedule(timesteps: int) -> Tensor:
    """The continuous schedule in steps of equal time, the last of which ends at 1.

    Args:
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`, below 1: after each step the log-SNR is exactly the
        continuous schedule's, however few there are.
    """
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")[1:]
    signal = torch.sigmoid(continuous_log_snr(u))
    # the remaining signal, 2e-9, is far above the precision of float64
    return 1 - signal / torch.cat((signal.new_ones(1), signal[:-1]))


def _betas_of(signal: Tensor) -> Tensor:
    """Variances of the steps between given shares of the clip's variance."""
    signal = signal / signal[0]
    return (1 - signal[1:] / signal[:-1]).clamp(0, 0.9999)


CONTINUOUS = "continuous_cosine"
"""The schedule whose times are real numbers in training."""

SCHEDULES: dict[str, Callable[[int], Tensor]] = {
    "cosine": cosine_beta_schedule,
    "linear": linear_beta_schedule,
    "sigmoid": sigmoid_beta_schedule,
    CONTINUOUS: continuous_beta_schedule,
}


def make_betas(beta_schedule: str | Sequence[float] | Tensor, timesteps: int) -> Tensor:
    """The variances of a schedule by name, or given ones after a check.

    Args:
        beta_schedule: A name, or `timesteps` variances, each above 0 and below 1.
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`.

    Raises:
        ValueError: If the name is unknown, the variances are not as described, or they leave
            nothing of a clip or add no noise in float32.
    """
    if isinstance(beta_schedule, str) and beta_schedule in SCHEDULES:
        return SCHEDULES[beta_schedule](timesteps)
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
    """Takes `a[t]` as `(b, 1, ..., 1)`, with as many axes as `x_shape`."""
    return a.gather(-1, t).reshape(t.shape[0], *[1] * (len(x_shape) - 1))


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
        alpha: Factor of the clean video, in (0, 1].
        sigma: Factor of the noise, in [0, 1), with `alpha**2 + sigma**2 = 1`.
    """

    t: float
    alpha: float
    sigma: float

    @property
    def log_snr(self) -> float:
        """`log(alpha**2 / sigma**2)`, the paper's lambda; infinite without noise."""
        return 2 * math.log(self.alpha / self.sigma) if self.sigma else math.inf


CLEAN = NoiseLevel(t=-1.0, alpha=1.0, sigma=0.0)
"""The end of sampling, without noise."""


class ForwardProcess(nn.Module):
    """The Markov chain that turns a clip into noise, and its closed forms.

    Time is counted in steps. Whole steps `t` are those of the chain, from 0 to `num_timesteps - 1`;
    between them the log-SNR is interpolated, or, for a continuous schedule, exact.

    Args:
        betas: Variance of the noise that each step adds, float64 `(num_timesteps,)`.
        is_continuous: Whether the chain is `continuous_log_snr` in steps, so that time is drawn
            from all of (-1, num_timesteps - 1] and not from whole steps.

    Attributes:
        num_timesteps: Number of steps.
        alphas_cumprod: Share of the clip in the variance after each step; the other buffers,
            named as in every DDPM code, follow from it.
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

    def __init__(self, betas: Tensor, is_continuous: bool = False) -> None:
        super().__init__()
        self.num_timesteps = betas.shape[0]
        self.is_continuous = is_continuous
        alphas = 1 - betas
        cumprod = alphas.cumprod(0)
        before = torch.cat((cumprod.new_ones(1), cumprod[:-1]))
        posterior_variance = betas * (1 - before) / (1 - cumprod)
        buffers = {
            "betas": betas,
            "alphas_cumprod": cumprod,
            "alphas_cumprod_prev": before,
            # q(x_t | x_start)
            "sqrt_alphas_cumprod": cumprod.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - cumprod).sqrt(),
            "log_one_minus_alphas_cumprod": (1 - cumprod).log(),
            # x_start from x_t and the noise
            "sqrt_recip_alphas_cumprod": cumprod.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / cumprod - 1).sqrt(),
            # q(x_{t-1} | x_t, x_start)
            "posterior_variance": posterior_variance,
            # the first is zero: x_start is then known
            "posterior_log_variance_clipped": posterior_variance.clamp(min=1e-20).log(),
            "posterior_mean_coef1": betas * before.sqrt() / (1 - cumprod),
            "posterior_mean_coef2": (1 - before) * alphas.sqrt() / (1 - cumprod),
        }
        # computed on the CPU, as not every device has float64
        for name, values in buffers.items():
            self.register_buffer(name, values.float().to(torch.get_default_device()))

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
        n = self.num_timesteps
        device = self.betas.device if generator is None else generator.device
        if self.is_continuous:
            times = torch.rand(count, device=device, generator=generator) * n - 1
        else:
            times = torch.randint(0, n, (count,), device=device, generator=generator)
        return times.to(self.betas.device)

    def log_snr(self, t: Tensor) -> Tensor:
        """Log of the signal-to-noise ratio, `log(alpha**2 / sigma**2)`, at time steps `t`.

        Args:
            t: Of any shape; whole, or between two steps. In a continuous schedule from -1, where
                the clip is almost clean, else from 0.
        """
        if self.is_continuous:
            return continuous_log_snr((t + 1) / self.num_timesteps)
        return _interpolate(self._log_snr_table(self.betas.dtype), t)

    def signal_and_noise(self, t: Tensor, x_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """The factors alpha and sigma of `x_t = alpha * x_start + sigma * noise`.

        Args:
            t: Time steps, `(b,)`, whole or not.
            x_shape: The factors have as many axes, `(b, 1, ..., 1)`.
        """
        if not t.is_floating_point():
            alpha = extract(self.sqrt_alphas_cumprod, t, x_shape)
            return alpha, extract(self.sqrt_one_minus_alphas_cumprod, t, x_shape)
        log_snr = self.log_snr(t).view(-1, *[1] * (len(x_shape) - 1))
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

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
        if self.is_continuous:
            log_snr = self.log_snr(t_of_all)
        else:
            log_snr = _interpolate(self._log_snr_table(torch.float64), t_of_all)
        return [
            CLEAN if t == CLEAN.t else NoiseLevel(float(t), _sqrt_sigmoid(x), _sqrt_sigmoid(-x))
            for t, x in zip(times, log_snr.tolist(), strict=True)
        ]

    def noise_level(self, t: float) -> NoiseLevel:
        """The noise level of one time step, as `noise_levels`."""
        return self.noise_levels([t])[0]

    def times_of(self, log_snrs: Sequence[float]) -> list[float]:
        """The time steps, whole or not, with these log-SNRs, between the first and the last."""
        if self.is_continuous:
            return [max(0.0, continuous_time_of(x) * self.num_timesteps - 1) for x in log_snrs]
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
        variance = extract(1.0 - self.alphas_cumprod, t, x_start.shape)
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


def _sqrt_sigmoid(x: float) -> float:
    return math.exp(-0.5 * math.log1p(math.exp(-x)))


def _interpolate(table: Tensor, t: Tensor) -> Tensor:
    """`table[t]`, also between whole steps."""
    if not t.is_floating_point():
        return table[t]
    below = t.floor().long().clamp(0, len(table) - 1)
    above = (below + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[below], table[above], (t - below).to(table.dtype))
