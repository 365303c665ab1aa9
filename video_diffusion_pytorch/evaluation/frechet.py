"""The Fréchet distance between features of two sets of videos."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

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

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> FeatureStatistics:
        """The statistics of the features of all processes.

        Args:
            total: Gives the sum of a tensor that every process has, such as `accelerator.reduce`.
        """
        joined = FeatureStatistics(len(self.mean))
        own = torch.tensor(self.count, dtype=torch.float64)
        count = total(own)
        joined.count = round(count.item())
        joined.mean = total(self.mean * own) / count.clamp(min=1)
        apart = self.mean - joined.mean
        joined._scatter = total(self._scatter + torch.outer(apart, apart) * own)
        return joined

    def state_dict(self) -> dict[str, Any]:
        """What a file must hold of them: `count`, `mean` and `scatter`."""
        return {"count": self.count, "mean": self.mean, "scatter": self._scatter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place of what was added so far.

        Args:
            state: As `state_dict` gives it, of features as wide.
        """
        self.count, self.mean, self._scatter = (state[n] for n in ("count", "mean", "scatter"))

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
    """Squared Frechet distance between two normal distributions (Dowson and Landau 1982, eq. 4).

    `|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))`. The last trace is the sum of the singular
    values of `L1^T L2`, where `C = L L^T` has a column for each direction in which features vary:
    of sets so small that their covariances have no full rank, no roots of rounding errors.

    Args:
        first: Of one set's features.
        second: Of the other's, as wide.

    Returns:
        0 for sets of the same mean and covariance, and more the further they are apart. Of sets of
        a finite number of videos it is too large; compare sets of one size.

    Raises:
        ValueError: If the widths differ, or a set has fewer than two features.

    Warns:
        UserWarning: If a set has no more videos than there are features.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"frechet_distance: both sets must have features of one width, got {len(first.mean)} "
            f"and {len(second.mean)}; compute them with one network"
        )
    roots = [_root(statistics.covariance) for statistics in (first, second)]
    fewest, width = min(first.count, second.count), len(first.mean)
    if fewest <= width:
        warnings.warn(
            f"frechet_distance: a covariance of {width} features must come from more than {width} "
            f"videos, got {fewest}; the distance is far too large, and comparable only to "
            "those of as many videos: give more",
            stacklevel=2,
        )
    narrow, wide = sorted(roots, key=lambda root: root.shape[1])
    crossed = narrow.T @ wide
    # a tenth of the time of singular values, and as good for a sum of them
    shared = torch.linalg.eigvalsh(crossed @ crossed.T).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    spread = sum(root.square().sum() for root in roots)
    return (apart + spread - 2 * shared).clamp(min=0).item()


def _root(covariance: Tensor) -> Tensor:
    """`L` with `L L^T` the covariance, a column for each direction in which features vary."""
    values, vectors = torch.linalg.eigh(covariance)
    # what rounding leaves of the other directions is no variance
    rounding = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    varies = values > rounding
    return vectors[:, varies] * values[varies].sqrt()
