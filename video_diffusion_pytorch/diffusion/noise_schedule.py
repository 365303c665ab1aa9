"""The forward process: how much noise a clip has at each time step, and how it gets there."""

import math

import torch
from torch import Tensor, nn


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
    signal = signal / signal[0]
    return (1 - signal[1:] / signal[:-1]).clamp(0, 0.9999)


def extract(a: Tensor, t: Tensor, x_shape: tuple[int, ...]) -> Tensor:
    """Takes `a[t]` as `(b, 1, ..., 1)`, with as many axes as `x_shape`."""
    return a.gather(-1, t).reshape(t.shape[0], *[1] * (len(x_shape) - 1))


class ForwardProcess(nn.Module):
    """The Markov chain that turns a clip into noise, and what follows from it in closed form.

    Args:
        betas: Variance of the noise that each step adds, float64 `(num_timesteps,)`.

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

    def __init__(self, betas: Tensor) -> None:
        super().__init__()
        self.num_timesteps = betas.shape[0]
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
        for name, values in buffers.items():
            self.register_buffer(name, values.float())

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
            t: Time steps, `(b,)`.
            noise: A standard normal draw of the same shape; None to draw it.
        """
        if noise is None:
            noise = draw_noise(x_start)
        return (
            extract(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The x_start that, with this noise, gives x_t (Ho et al. 2020, eq. 15)."""
        return (
            extract(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * noise
        )

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance, log variance of q(x_{t-1} | x_t, x_start) (Ho et al. 2020, eq. 6, 7)."""
        mean = (
            extract(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = extract(self.posterior_variance, t, x_t.shape)
        log_variance = extract(self.posterior_log_variance_clipped, t, x_t.shape)
        return mean, variance, log_variance


def draw_noise(like: Tensor) -> Tensor:
    """A standard normal draw of the shape of `like`, the same whatever its memory format."""
    return torch.randn(like.shape, device=like.device, dtype=like.dtype)
