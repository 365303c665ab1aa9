"""The denoiser that samplers call: it predicts clean video and noise at a noise level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.noise_schedule import NoiseLevel

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.guidance import Guidance


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

        Raises:
            TypeError: If a `squared_error` is no number per video.
            ValueError: If it has no gradient, or the network has none.
        """
        for part in self.guidance:
            x_t = part.replace(x_t, level, self.noise)
        weighed = [part for part in self.guidance if part.weight]
        if weighed:
            x_start = self._reconstructed(x_t, level, weighed)
        else:
            x_start = self.predict_x_start(x_t, times(level, x_t))
        if self.clip is not None:
            x_start = self.clip(x_start)
        x_start = self.settle(x_start)
        return Prediction(x_start, (x_t - level.alpha * x_start) / level.sigma, x_t)

    def settle(self, x_start: Tensor) -> Tensor:
        """Puts known values in their place."""
        for part in self.guidance:
            x_start = part.settle(x_start)
        return x_start

    def _reconstructed(
        self, x_t: Tensor, level: NoiseLevel, guidance: Sequence[Guidance]
    ) -> Tensor:
        """Reconstruction guidance (Ho et al. 2022, eq. 7 and 8).

        The squared error is that of the clamped prediction, but its gradient passes the clamp as if
        there were none: at the highest noise levels, where the prediction is far outside its
        range and means nothing, the correction thus stays small, and is not lost.
        """
        # the caller may be in inference mode, where nothing has a gradient, nor gets one later
        # unless it is copied outside
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            without_weight_gradients(self.network),
        ):
            z = x_t.detach().clone().requires_grad_()
            x_start = self.predict_x_start(z, times(level, z))
            if not x_start.requires_grad:
                raise ValueError(
                    f"sample: the network must be differentiable, as guidance by "
                    f"{type(guidance[0]).__name__} with a weight needs it, got an output that has "
                    "no gradient in its input; compute it without detach or no_grad, or set weight "
                    "to 0"
                )
            if self.clip is not None:
                x_start = x_start + (self.clip(x_start) - x_start).detach()
            error = torch.stack([_error_of(part, x_start).sum() for part in guidance]).sum()
            (gradient,) = torch.autograd.grad(error, z)
        return x_start.detach() - level.alpha / 2 * gradient


def _error_of(part: Guidance, x_start: Tensor) -> Tensor:
    """What `part.squared_error` gives, made sure of: a user may have written it."""
    error = part.squared_error(x_start)
    is_tensor = torch.is_tensor(error)
    if not is_tensor or error.shape != x_start.shape[:1] or not error.is_floating_point():
        got = f"{error.dtype} of {tuple(error.shape)}" if is_tensor else type(error).__name__
        raise TypeError(
            f"{type(part).__name__}: squared_error must give a tensor of real numbers, one per "
            f"video, of the shape {tuple(x_start.shape[:1])}, got {got}; sum over all axes but the "
            "first, as in error.flatten(1).sum(dim=1)"
        )
    if not error.requires_grad:
        raise ValueError(
            f"{type(part).__name__}: squared_error must be differentiable, got a result that has "
            "no gradient in x_start; compute it from x_start with operations of torch, without "
            "rounding, detach or no_grad"
        )
    return error


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


@contextmanager
def in_evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Lets a network that is being trained draw without dropout; afterwards all is as before."""
    in_training = [module for module in network.modules() if module.training]
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
