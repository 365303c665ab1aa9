"""The words in which samplers, guidance and the denoiser speak: a noise level, and a prediction."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class NoiseLevel(NamedTuple):
    """How much of a noisy video is signal: `x_t = alpha * x_start + sigma * noise`.

    Attributes:
        t: The time step, as the network is told it: whole for the steps of training, from 0 to
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
"""The end of sampling: no noise is left."""


class Prediction(NamedTuple):
    """What the denoiser sees in a noisy video.

    Attributes:
        x_start: The clean video, `(b, c, f, h, w)`, in [-1, 1] where the model clips.
        noise: The noise that, with it, gives the noisy video; of the same shape.
        x_t: The noisy video it was seen in, where known parts were put into it: what a sampler goes
            on from.
    """

    x_start: Tensor
    noise: Tensor
    x_t: Tensor


Denoise = Callable[[Tensor, NoiseLevel], Prediction]
"""Noisy videos and their level in, the prediction out."""

Noise = Callable[[Tensor], Tensor]
"""Gives a standard normal draw of the shape, type and device of its argument."""
