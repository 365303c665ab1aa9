"""A step of sampling asks here for the clean video: of the network, and of what else is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.noise_level import Noise, NoiseLevel, Prediction

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.guidance import Guidance

PredictStart = Callable[[Tensor, Tensor], Tensor]
"""Noisy videos `(b, c, f, h, w)` and time steps `(b,)` in, clean videos out."""


class Denoiser:
    """The function that samplers call: noisy videos and their noise level in, a prediction out.

    Args:
        predict_x_start: The network with its conditions, in terms of the clean video.
        clip: Brings a predicted clean video into its range; None to leave it as it is.
        guidance: What is known of the videos, made ready for this batch.
        noise: Draws the noise of known parts.
        network: Whose weights need no gradient while the guidance takes one of its input.
    """

    def __init__(
        self,
        predict_x_start: PredictStart,
        clip: Callable[[Tensor], Tensor] | None,
        guidance: Sequence[Guidance],
        noise: Noise,
        network: nn.Module,
    ) -> None:
        self.predict_x_start = predict_x_start
        self.clip = clip
        self.guidance = guidance
        self.noise = noise
        self.network = network

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Prediction:
        """Predicts the clean video in `x_t`, and with it the noise.

        Args:
            x_t: Noisy videos, `(b, c, f, h, w)`.
            level: Their noise level.
        """
        for part in self.guidance:
            x_t = part.replace(x_t, level, self.noise)
        t = times(level, x_t)
        weighed = [part for part in self.guidance if part.weight]
        if weighed:
            x_start = self._corrected(x_t, t, level, weighed)
        else:
            x_start = self.predict_x_start(x_t, t)
        if self.clip is not None:
            x_start = self.clip(x_start)
        x_start = self.settle(x_start)
        return Prediction(x_start, (x_t - level.alpha * x_start) / level.sigma)

    def settle(self, x_start: Tensor) -> Tensor:
        """Puts known values in their place."""
        for part in self.guidance:
            x_start = part.settle(x_start)
        return x_start

    def _corrected(
        self, x_t: Tensor, t: Tensor, level: NoiseLevel, guidance: Sequence[Guidance]
    ) -> Tensor:
        """Reconstruction guidance (Ho et al. 2022, eq. 7 and 8).

        The squared error is that of the clipped prediction, but its gradient passes the clip as if
        there were none: at the highest noise levels, where the prediction is far outside its
        range and means nothing, the correction thus stays small, and is not lost.
        """
        with torch.enable_grad(), without_weight_gradients(self.network):
            z = x_t.detach().requires_grad_()
            x_start = self.predict_x_start(z, t)
            if self.clip is not None:
                x_start = x_start + (self.clip(x_start) - x_start).detach()
            error = torch.stack([part.squared_error(x_start).sum() for part in guidance]).sum()
            (gradient,) = torch.autograd.grad(error, z)
        return x_start.detach() - level.alpha / 2 * gradient


def times(level: NoiseLevel, x: Tensor) -> Tensor:
    """The time step of a noise level, once for each video `(b,)`; long if it is a whole one."""
    dtype = torch.long if float(level.t).is_integer() else x.dtype
    return torch.full(x.shape[:1], level.t, device=x.device, dtype=dtype)


@contextmanager
def without_weight_gradients(network: nn.Module) -> Iterator[None]:
    """Spares a gradient of the input the memory that gradients of the weights would need."""
    trained = [weight for weight in network.parameters() if weight.requires_grad]
    for weight in trained:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in trained:
            weight.requires_grad_(True)
