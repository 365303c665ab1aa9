"""Videos whose perfect denoiser is known, and the exact moments of what a sampler makes of it."""

from collections import deque

import torch
from torch import nn

from video_diffusion_pytorch.diffusion.sampling_steps import Prediction


class GaussianVideos:
    """Pixels are independent; the frames of each are normal, with the same mean and covariance.

    Args:
        variance: Of each frame.
        correlation: Of neighbouring frames; of others its power by their distance.
        mean: Of each frame, `(f,)`.
    """

    def __init__(self, variance=0.25, correlation=0.8, mean=(-0.5, -0.3, -0.1, 0.1, 0.3, 0.5)):
        self.mean = torch.tensor(mean, dtype=torch.float64)
        frame = torch.arange(len(mean), dtype=torch.float64)
        self.covariance = variance * correlation ** (frame[:, None] - frame).abs()

    @property
    def num_frames(self):
        return len(self.mean)

    def gain(self, alpha, sigma):
        """The matrix that takes noisy videos, less their mean, to clean ones, less theirs.

        Args:
            alpha: Factor of the clean frames, a number or one per frame, `(f,)`.
            sigma: Likewise of the noise.
        """
        alpha, sigma = (
            torch.as_tensor(one).double().expand(self.num_frames) for one in (alpha, sigma)
        )
        mixed = self.covariance * alpha
        noisy = alpha[:, None] * mixed + torch.diag(sigma**2)
        return torch.linalg.solve(noisy, mixed.T).T

    def expected(self, x, alpha, sigma):
        """The mean of the clean videos that may be in `x`, `(b, c, f, h, w)`."""
        mean = self.mean.to(x).view(-1, 1, 1)
        gain = self.gain(alpha, sigma).to(x)
        expected = torch.as_tensor(alpha).to(x).expand(self.num_frames).view(-1, 1, 1) * mean
        return mean + torch.einsum("fg,bcghw->bcfhw", gain, x - expected)

    def denoise(self, x, level):
        """The perfect denoiser, as samplers call it."""
        x_start = self.expected(x, level.alpha, level.sigma)
        return Prediction(x_start, (x - level.alpha * x_start) / level.sigma, x)

    def given_first(self, known):
        """Mean and covariance of the other frames, if the first are `known`, `(..., k)`."""
        k = known.shape[-1]
        slope = torch.linalg.solve(self.covariance[:k, :k], self.covariance[:k, k:])
        mean = self.mean[k:] + (known.double() - self.mean[:k]) @ slope
        return mean, self.covariance[k:, k:] - slope.T @ self.covariance[:k, k:]


class PerfectNetwork(nn.Module):
    """The perfect denoiser as a network, for `GaussianDiffusion`.

    Args:
        videos: `GaussianVideos`.
        process: The forward process of the model that it is for, or one alike.
        objective: What it predicts.
        sigma_data: Of EDM.
    """

    channels = 1

    def __init__(self, videos, process, objective="pred_noise", sigma_data=0.5):
        super().__init__()
        self.videos = videos
        self.levels = {t: process.noise_level(t) for t in range(process.num_timesteps)}
        self.process = process
        self.objective = objective
        self.sigma_data = sigma_data

    def forward(self, x, t, cond=None):
        # one for all frames, or one for each
        of_video = t[0].expand(self.videos.num_frames).tolist()
        levels = [self.levels.setdefault(t, self.process.noise_level(t)) for t in of_video]
        own = torch.tensor([(level.alpha, level.sigma) for level in levels], dtype=torch.float64)
        alpha, sigma = own.to(x.dtype).view(-1, 1, 1, 2).unbind(-1)
        length = torch.hypot(sigma, torch.tensor(self.sigma_data).to(sigma))
        if self.objective == "edm":
            x = x * length
        x_start = self.videos.expected(x, own[:, 0], own[:, 1])
        noise = (x - alpha * x_start) / sigma
        return {
            "pred_noise": noise,
            "pred_x_start": x_start,
            "pred_v": alpha * noise - sigma * x_start,
            "flow": noise - x_start,
            "edm": (sigma * x_start - self.sigma_data**2 * noise) / (self.sigma_data * length),
        }[self.objective]

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        return self(x, t)


class Impulses:
    """In the place of noise: zeros, but for one number in each row of the batch.

    Samplers are affine in their noise if the denoiser is. What comes of the first row, which has
    none, is then the mean of the samples, and what else comes of the others their deviations.
    """

    def __init__(self, num_frames):
        self.num_frames = num_frames
        self.draws = 0

    def __call__(self, like):
        noise = torch.zeros_like(like)
        rows = slice(1 + self.draws * self.num_frames, 1 + (self.draws + 1) * self.num_frames)
        noise[rows, 0, :, 0, 0] = torch.eye(self.num_frames).to(like)[: len(noise[rows])]
        self.draws += 1
        return noise


def moments(sampler, levels, videos, dtype=torch.float64):
    """Mean `(f,)` and covariance `(f, f)` of samples, without any chance in it."""
    f = videos.num_frames

    def result_of(rows):
        noise = Impulses(f)
        x = levels[0].scale * noise(torch.zeros(rows, 1, f, 1, 1, dtype=dtype))
        x = deque(sampler.run(x, levels, videos.denoise, noise), maxlen=1).pop()
        return x[:, 0, :, 0, 0], noise.draws

    _, draws = result_of(1)
    samples, _ = result_of(1 + draws * f)
    responses = (samples[1:] - samples[0]).double()
    return samples[0].double(), responses.T @ responses


def relative_error(found, expected):
    """Frobenius norm of the difference, in units of that of what is expected."""
    return (torch.linalg.norm(found - expected) / torch.linalg.norm(expected)).item()
