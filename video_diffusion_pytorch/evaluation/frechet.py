"""How far two sets of videos are apart: the Frechet distance between their features."""

from __future__ import annotations

import torch
from torch import Tensor


class FeatureStatistics:
    """Mean and covariance of features that come in batches, in float64, none of them kept.

    Args:
        width: Number of features.

    Attributes:
        count: Number of feature vectors so far.
        mean: `(width,)`.

    Example:
        >>> statistics = FeatureStatistics(2)
        >>> statistics.add(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        >>> statistics.add(torch.tensor([[4.0, 4.0]]))
        >>> statistics.mean.tolist(), statistics.covariance.diagonal().tolist()
        ([2.0, 2.0], [4.0, 3.0])
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Takes in a batch (Chan et al. 1979, for the sum of two sets' scatter).

        Args:
            features: `(b, width)`, finite.

        Raises:
            ValueError: If they have another width, or are not finite.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(
                f"FeatureStatistics: features must have the shape (b, {len(self.mean)}), got "
                f"{tuple(features.shape)}; give one row per video, from one network"
            )
        if not bool(features.isfinite().all()):
            raise ValueError(
                "FeatureStatistics: features must be finite, got some that are not; look for "
                "not-a-number in the videos, which a diverged model draws"
            )
        if not len(features):
            return
        new = features.detach().cpu().double()
        mean = new.mean(dim=0)
        apart, total = mean - self.mean, self.count + len(new)
        self._scatter += (new - mean).T @ (new - mean)
        self._scatter += torch.outer(apart, apart) * (self.count * len(new) / total)
        self.mean = self.mean + apart * (len(new) / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """`(width, width)`, without bias.

        Raises:
            ValueError: If there are fewer than two feature vectors.
        """
        if self.count < 2:
            raise ValueError(
                "FeatureStatistics: a covariance needs at least 2 feature vectors, got "
                f"{self.count}; add more videos"
            )
        return self._scatter / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Squared Frechet distance between two normal distributions (Dowson and Landau 1982).

    `|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))`, the last trace from the eigenvalues of
    `C1^(1/2) C2 C1^(1/2)`, which are real and not negative.

    Args:
        first: Of one set's features.
        second: Of the other's, as wide.

    Returns:
        0 for sets of the same mean and covariance, and more the further they are apart. Of sets of
        a finite number of videos it is too large; compare sets of one size.

    Raises:
        ValueError: If the widths differ.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"frechet_distance: both sets must have features of one width, got {len(first.mean)} "
            f"and {len(second.mean)}; compute them with one network"
        )
    values, vectors = torch.linalg.eigh(first.covariance)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    both = torch.linalg.eigvalsh(root @ second.covariance @ root)
    apart = (first.mean - second.mean).square().sum()
    spread = first.covariance.trace() + second.covariance.trace()
    return (apart + spread - 2 * both.clamp(min=0).sqrt().sum()).clamp(min=0).item()
