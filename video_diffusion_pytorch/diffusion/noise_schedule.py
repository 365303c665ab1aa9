"""How much noise each step of the forward process adds: the schedules to choose from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.shown import shown

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
    progress = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    signal = torch.cos((progress + s) / (1 + s) * math.pi / 2) ** 2
    return _betas_of(signal)


def linear_beta_schedule(timesteps: int) -> Tensor:
    """Variances that grow evenly (Ho et al. 2020, section 4), for any number of steps.

    With 1000 steps they go from 0.0001 to 0.02; with fewer each is larger by as much, so that the
    same noise is added in all. It is meant for a few hundred steps or more: with 20 or fewer
    the last ones would be above the limit and are cut to it, with 10 half of them, so that
    hardly anything is left of a clip midway.

    Args:
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`, at most 0.9999.
    """
    scale = 1000 / timesteps
    betas = torch.linspace(scale * 1e-4, scale * 0.02, timesteps, dtype=torch.float64)
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
    progress = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
    falling = torch.sigmoid(-(progress * (end - start) + start) / tau)
    return _betas_of((falling - falling[-1]) / (falling[0] - falling[-1]))


def continuous_log_snr(u: Tensor) -> Tensor:
    """Log-SNR of the paper's schedule in continuous time: a cosine between -20 and 20.

    `alpha = cos(pi * u / 2)`, but for a cut of 0.003 % of the time at either end, which keeps the
    log-SNR finite (Ho et al. 2022, section 2; Salimans and Ho 2022, appendix).

    Args:
        u: Time, in [0, 1].

    Returns:
        A tensor of the shape of `u`.
    """
    from_end = 1 - u
    # each half by the angle that is small there, whose tangent keeps its digits
    early = -2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * u.clamp(max=0.5)))
    late = 2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * from_end.clamp(max=0.5)))
    return torch.where(u <= 0.5, early, late)


def continuous_time_of(log_snr: float) -> float:
    """The time `u` in [0, 1] that has this log-SNR in the continuous schedule."""
    angle = math.atan(math.exp(-log_snr / 2))
    return min(1.0, max(0.0, (angle - _FIRST_ANGLE) / _ANGLES))


def continuous_beta_schedule(timesteps: int) -> Tensor:
    """The continuous schedule cut into steps of equal time, the last of which ends at 1.

    Args:
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`, below 1: after each step the log-SNR is exactly the
        continuous schedule's, however few there are.
    """
    u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)[1:]
    signal = torch.sigmoid(continuous_log_snr(u))
    # the signal left at the end, 2e-9, is far above what float64 can tell from none
    return 1 - signal / torch.cat((signal.new_ones(1), signal[:-1]))


def _betas_of(signal: Tensor) -> Tensor:
    """Variances of the steps between given shares of the clip in the variance."""
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
    """The variances of a schedule by name, or a user's own.

    Args:
        beta_schedule: A name, or `timesteps` variances, each above 0 and below 1.
        timesteps: Number of steps.

    Returns:
        `betas`, float64 `(timesteps,)`.

    Raises:
        ValueError: If the name is unknown, or the variances are not as said, or leave nothing of
            a clip or add nothing to it that numbers can tell.
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
    if betas.shape != (timesteps,) or not bool(((betas > 0) & (betas < 1)).all()):
        found = f"{betas.min():.3g} to {betas.max():.3g}" if betas.numel() else "none"
        raise ValueError(
            f"GaussianDiffusion: beta_schedule must hold timesteps = {timesteps} variances above 0 "
            f"and below 1, got {found} in the shape {tuple(betas.shape)}; give one for each step"
        )
    kept = (1 - betas).cumprod(0)
    least, most = kept[-1].item(), kept[0].item()
    if least < torch.finfo(torch.float32).tiny or most == 1:
        raise ValueError(
            "GaussianDiffusion: beta_schedule must leave a share of the clip that numbers can tell "
            f"from all and from none, got {most:.3g} after the first step and {least:.3g} after "
            f"the last; give {'smaller' if most < 1 else 'larger'} variances"
        )
    return betas.detach()


def extract(a: Tensor, t: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """Takes `a[t]` as `(b, 1, ..., 1)`, with as many axes as `x_shape`."""
    return a.gather(-1, t).reshape(t.shape[0], *[1] * (len(x_shape) - 1))


def draw_noise(like: Tensor) -> Tensor:
    """A standard normal draw of the shape of `like`, the same whatever its memory format."""
    return torch.randn(like.shape, device=like.device, dtype=like.dtype)
