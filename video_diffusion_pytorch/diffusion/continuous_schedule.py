"""Schedules in continuous time: the paper's cosine, flow matching's straight path, EDM's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SNR = 20.0
"""The cosine's log-SNR goes from this at time 0 to its negative at time 1."""

# angles of the cosine at its two ends: tan of the first is exp(-MAX_LOG_SNR / 2)
_FIRST_ANGLE = math.atan(math.exp(-MAX_LOG_SNR / 2))
_ANGLES = math.pi / 2 - 2 * _FIRST_ANGLE


class ContinuousSchedule:
    """Signal and noise at each time `u` in [0, 1], from a clean video to noise.

    Args:
        shift: Factor of the noise-to-signal ratio `sigma / alpha` at each time. Videos of more
            pixels or frames need more noise, as their values are more redundant (Hoogeboom et al.
            2023, eq. 3; Esser et al. 2024, eq. 23, whose `sqrt(m / n)` this is).

    Attributes:
        is_variance_preserving: Whether `alpha ** 2 + sigma ** 2` is 1 at each time.
    """

    is_variance_preserving = False

    def __init__(self, shift: float = 1.0) -> None:
        self.shift = shift

    def log_snr(self, u: Tensor) -> Tensor:
        """`log(alpha ** 2 / sigma ** 2)` at times `u` of any shape; infinite where one is 0."""
        return self._log_snr(u) - 2 * math.log(self.shift)

    def time_of(self, log_snr: Tensor) -> Tensor:
        """The times in [0, 1] that have these log-SNRs, or are closest to them."""
        return self._time_of(log_snr + 2 * math.log(self.shift)).clamp(0, 1)

    def signal_and_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Alpha and sigma of `x_t = alpha * x_start + sigma * noise` at times `u`."""
        raise NotImplementedError

    def times_at(self, fractions: Tensor, normal: tuple[float, float] | None) -> Tensor:
        """The times at fractions of the distribution that training draws from.

        Args:
            fractions: In [0, 1), of any shape.
            normal: Mean and standard deviation of `log(sigma / alpha)`, before the shift; None
                for a uniform distribution of times.
        """
        if normal is None:
            return fractions
        mean, deviation = normal
        standard = math.sqrt(2) * torch.erfinv((2 * fractions - 1).clamp(-1 + 1e-7, 1 - 1e-7))
        return self._time_of(-2 * (mean + deviation * standard)).clamp(0, 1)

    def _log_snr(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def _time_of(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError


class CosineSchedule(ContinuousSchedule):
    """The paper's schedule: a cosine whose log-SNR is between -20 and 20.

    `alpha = cos(pi * u / 2)`, except for 0.003 % of the time at either end, which keeps the log-SNR
    finite (Ho et al. 2022, section 2; Salimans and Ho 2022, appendix).

    Example:
        >>> CosineSchedule().log_snr(torch.tensor([0.0, 0.25, 1.0]))
        tensor([ 20.0000,   1.7626, -20.0000])
    """

    is_variance_preserving = True

    def signal_and_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `ContinuousSchedule.signal_and_noise`."""
        log_snr = self.log_snr(u)
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()

    def _log_snr(self, u: Tensor) -> Tensor:
        from_end = 1 - u
        # each half from the angle that is small there, whose tangent is accurate
        early = -2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * u.clamp(max=0.5)))
        late = 2 * torch.log(torch.tan(_FIRST_ANGLE + _ANGLES * from_end.clamp(max=0.5)))
        return torch.where(u <= 0.5, early, late)

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return (torch.atan(torch.exp(-log_snr / 2)) - _FIRST_ANGLE) / _ANGLES


class FlowSchedule(ContinuousSchedule):
    """The straight path of rectified flow: `x_t = (1 - u) * x_start + u * noise`.

    Liu et al. 2022, eq. 1; Lipman et al. 2022, eq. 22 with `sigma_min` of 0, in the direction of
    diffusion. With a shift `s` the share of noise is `s * u / (1 + (s - 1) * u)` instead of `u`
    (Esser et al. 2024, eq. 23).

    Example:
        >>> FlowSchedule(shift=3).signal_and_noise(torch.tensor([0.0, 0.5, 1.0]))
        (tensor([1.0000, 0.2500, 0.0000]), tensor([0.0000, 0.7500, 1.0000]))
    """

    def signal_and_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `ContinuousSchedule.signal_and_noise`."""
        whole = 1 + (self.shift - 1) * u
        return (1 - u) / whole, self.shift * u / whole

    def _log_snr(self, u: Tensor) -> Tensor:
        return 2 * (torch.log1p(-u) - torch.log(u))

    def _time_of(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


class EDMSchedule(ContinuousSchedule):
    """The variance-exploding process of Karras et al. 2022: `x_t = x_start + sigma * noise`.

    Time is even in `sigma ** (1 / 7)`, from 0.002 to 80, as in their steps (eq. 5, table 1).

    Example:
        >>> EDMSchedule().signal_and_noise(torch.tensor([0.0, 0.5, 1.0]))[1]
        tensor([2.0000e-03, 2.5152e+00, 8.0000e+01])
    """

    LEAST, MOST, RHO = 0.002, 80.0, 7.0

    def signal_and_noise(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """See `ContinuousSchedule.signal_and_noise`."""
        least, most = (sigma ** (1 / self.RHO) for sigma in (self.LEAST, self.MOST))
        sigma = (least + u * (most - least)) ** self.RHO
        return torch.ones_like(sigma), sigma

    def _log_snr(self, u: Tensor) -> Tensor:
        return -2 * torch.log(self.signal_and_noise(u)[1])

    def _time_of(self, log_snr: Tensor) -> Tensor:
        least, most = (sigma ** (1 / self.RHO) for sigma in (self.LEAST, self.MOST))
        return (torch.exp(-log_snr / (2 * self.RHO)) - least) / (most - least)
