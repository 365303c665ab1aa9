"""Features of videos without a trained network: fixed random convolutions over space and time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics


class RandomFeatures(nn.Module):
    """Means and standard deviations of the maps of two random 3-D convolutions.

    They see edges, blobs and motion of a few pixels, and know nothing of what a video shows:
    distances between such features tell sets of videos apart by their texture and motion, and
    are not to be compared with distances between features of a trained network.

    Args:
        channels: Channels of the videos.
        width: Number of features; a multiple of 4.
        seed: Of the kernels. Distances of different seeds are not to be compared.

    Raises:
        ValueError: If `width` is no positive multiple of 4.

    Example:
        >>> RandomFeatures(channels=3)(torch.rand(2, 3, 8, 16, 16)).shape
        torch.Size([2, 64])
    """

    def __init__(self, channels: int, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(
                f"RandomFeatures: width must be a positive multiple of 4, got {width}; give 64, "
                "for one"
            )
        self.width = width
        maps = width // 4
        generator = torch.Generator().manual_seed(seed)
        shapes = {"near": (maps, channels, 3, 5, 5), "far": (maps, maps, 3, 3, 3)}
        for name, shape in shapes.items():
            kernel = torch.randn(shape, generator=generator)
            # each sees contrasts rather than brightness, at unit gain
            kernel = kernel - kernel.mean(dim=(1, 2, 3, 4), keepdim=True)
            kernel = kernel / kernel.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
            self.register_buffer(name, kernel)

    def forward(self, videos: Tensor) -> Tensor:
        """Features of videos in [0, 1].

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, width)`.
        """
        near = F.leaky_relu(F.conv3d(videos, self.get_buffer("near"), padding=(1, 2, 2)), 0.2)
        far = F.conv3d(near, self.get_buffer("far"), stride=(1, 2, 2), padding=1)
        maps = [near.flatten(2), F.leaky_relu(far, 0.2).flatten(2)]
        return torch.cat([f(m) for m in maps for f in (_mean, _deviation)], dim=1)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean(dim=-1)


def _deviation(maps: Tensor) -> Tensor:
    return maps.std(dim=-1, correction=0)


@torch.no_grad()
def random_feature_statistics(videos: Tensor, max_batch: int = 64) -> FeatureStatistics:
    """Mean and covariance of the random features of videos in [0, 1], `(b, c, f, h, w)`.

    Args:
        videos: At least two, to have a covariance.
        max_batch: How many are looked at at a time.

    Example:
        >>> from video_diffusion_pytorch.evaluation.frechet import frechet_distance
        >>> statistics = random_feature_statistics(torch.rand(66, 1, 4, 8, 8))
        >>> frechet_distance(statistics, statistics) < 1e-6
        True
    """
    network = RandomFeatures(videos.shape[1]).to(videos.device)
    found = FeatureStatistics(network.width)
    for part in videos.split(max_batch):
        found.add(network(part))
    return found
