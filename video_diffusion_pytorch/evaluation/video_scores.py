"""Scores of sets of videos: Frechet distances, inception scores, and the statistics for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork, RandomFeatures
from video_diffusion_pytorch.evaluation.temporal_scores import TemporalStatistics, temporal_scores

Total = Callable[[Tensor], Tensor]
"""Sums over the processes a tensor that every process has, such as `accelerator.reduce`."""

OUTPUTS = ("logits", "probabilities")
"""Possible outputs of a classifier."""

NETWORKS = ("features", "classes", "frame_features", "frame_classes")
"""The networks of `Networks`."""


class FeatureStatistics:
    """Mean and covariance of features, accumulated over batches in float64.

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
        self.mean = torch.zeros(width, dtype=torch.float64, device="cpu")
        self._scatter = torch.zeros(width, width, dtype=torch.float64, device="cpu")

    def add(self, features: Tensor) -> None:
        """Adds a batch (Chan et al. 1979, for the scatter of two sets together).

        Args:
            features: `(b, width)`.
        """
        if not len(features):
            return
        new = features.detach().cpu().double()
        mean = new.mean(dim=0)
        apart, total = mean - self.mean, self.count + len(new)
        self._scatter += (new - mean).T @ (new - mean)
        self._scatter += torch.outer(apart, apart) * (self.count * len(new) / total)
        self.mean = self.mean + apart * (len(new) / total)
        self.count = total

    def over_processes(self, total: Total) -> FeatureStatistics:
        """Computes the statistics of the features of all processes."""
        joined = FeatureStatistics(len(self.mean))
        own = torch.tensor(self.count, dtype=torch.float64, device="cpu")
        count = total(own)
        joined.count = round(count.item())
        joined.mean = total(self.mean * own) / count.clamp(min=1)
        apart = self.mean - joined.mean
        joined._scatter = total(self._scatter + torch.outer(apart, apart) * own)
        return joined

    def state_dict(self) -> dict[str, Any]:
        """Returns `count`, `mean` and `scatter`."""
        return {"count": self.count, "mean": self.mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FeatureStatistics:
        """Makes the statistics of a `state_dict`."""
        made = cls(len(state["mean"]))
        made.count, made.mean, made._scatter = (state[n] for n in ("count", "mean", "scatter"))
        return made

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, `(width, width)`, of at least two feature vectors."""
        return self._scatter / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """Computes the squared Frechet distance of two normal distributions.

    `|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))` (Dowson and Landau 1982, eq. 4). The last trace
    is the sum of the singular values of `L1^T L2`, where `C = L L^T` and `L` has a column for each
    direction in which features vary, so that rounding errors of a covariance without full rank do
    not count.

    Args:
        first: Statistics of one set's features.
        second: Statistics of the other set's features, of the same network.

    Returns:
        The distance, at least 0. It is biased upwards for a finite number of videos: compare sets
        of one size.

    Raises:
        ValueError: If a set has fewer than two videos.

    Warns:
        UserWarning: If a set has no more videos than there are features.
    """
    fewest, width = min(first.count, second.count), len(first.mean)
    if fewest < 2:
        raise ValueError(f"frechet_distance: sets must have at least two videos, got {fewest}")
    roots = [_root(statistics.covariance) for statistics in (first, second)]
    if fewest <= width:
        warnings.warn(
            f"frechet_distance: a covariance of {width} features must come from more than {width} "
            f"videos, got {fewest}; the distance is far too large, and comparable only to those of "
            "as many videos: give more",
            stacklevel=2,
        )
    narrow, wide = sorted(roots, key=lambda root: root.shape[1])
    crossed = narrow.T @ wide
    # a tenth of the time of singular values, and as accurate for their sum
    shared = torch.linalg.eigvalsh(crossed @ crossed.T).clamp(min=0).sqrt().sum()
    apart = (first.mean - second.mean).square().sum()
    spread = sum(root.square().sum() for root in roots)
    return (apart + spread - 2 * shared).clamp(min=0).item()


def _root(covariance: Tensor) -> Tensor:
    """Returns `L` with `L L^T` the covariance and a column for each direction of variance."""
    values, vectors = torch.linalg.eigh(covariance)
    # the others differ from 0 by rounding errors only
    rounding = values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
    varies = values > rounding
    return vectors[:, varies] * values[varies].sqrt()


class InceptionScore:
    """`exp E KL(p(y|x) || p(y))` (Salimans et al. 2016, section 4), of a classifier's outputs.

    Accumulated over batches in float64.

    Args:
        splits: Number of parts of the videos, by their numbers. The score is the mean of the
            parts' scores; the paper has 10. A part must be large against the number of classes.
        outputs: Kind of the outputs, `"logits"` or `"probabilities"`.

    Raises:
        ValueError: If `outputs` is neither.

    Example:
        >>> score = InceptionScore(splits=1, outputs="probabilities")
        >>> score.add(torch.eye(4), range(4))
        >>> round(score.compute()[0], 6)  # four classes, each with certainty
        4.0
    """

    def __init__(self, splits: int = 10, outputs: str = "logits") -> None:
        if outputs not in OUTPUTS:
            raise ValueError(
                f"InceptionScore: outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}; "
                "choose what the classifier returns"
            )
        self.splits, self.outputs = splits, outputs
        # of each part: probabilities of the classes, negative entropies, count
        self._sums = torch.zeros(splits, 0, dtype=torch.float64, device="cpu")

    def add(self, outputs: Tensor, numbers: Sequence[int]) -> None:
        """Adds a batch.

        Args:
            outputs: `(b, classes)`.
            numbers: Numbers of the videos, which determine their parts.

        Raises:
            ValueError: If the outputs are logits and not probabilities, or vice versa.
        """
        given = outputs.detach().cpu().double()
        self._check(given)
        probabilities = given if self.outputs == "probabilities" else given.softmax(dim=1)
        negative_entropy = torch.special.xlogy(probabilities, probabilities).sum(1, keepdim=True)
        rows = torch.cat((probabilities, negative_entropy, torch.ones_like(negative_entropy)), 1)
        if not self._sums.shape[1]:
            self._sums = rows.new_zeros(self.splits, rows.shape[1])
        part = torch.tensor(
            [number % self.splits for number in numbers], dtype=torch.long, device="cpu"
        )
        self._sums.index_add_(0, part, rows)

    def _check(self, outputs: Tensor) -> None:
        off = (outputs.sum(dim=1) - 1).abs().amax() if len(outputs) else outputs.new_zeros(())
        are_probabilities = bool(outputs.ge(0).all()) and off.item() < 1e-3
        if len(outputs) and are_probabilities != (self.outputs == "probabilities"):
            found = "probabilities" if are_probabilities else "logits"
            raise ValueError(
                f"InceptionScore: outputs must be {self.outputs}, got {found}, as probabilities "
                f"are not negative and sum to 1; pass outputs={found!r}, or another classifier"
            )

    def over_processes(self, total: Total) -> InceptionScore:
        """Returns the score of the videos of all processes."""
        joined = InceptionScore(self.splits, self.outputs)
        joined._sums = total(self._sums)
        return joined

    def compute(self) -> tuple[float, float]:
        """Computes mean and standard deviation of the parts' scores, 1 to the number of classes.

        Raises:
            ValueError: If there are fewer videos than parts.
        """
        if not self._sums.shape[1] or not bool((self._sums[:, -1] > 0).all()):
            raise ValueError(
                f"InceptionScore: each of {self.splits} parts must have videos, got fewer videos; "
                "give more, or fewer splits"
            )
        means = self._sums[:, :-1] / self._sums[:, -1:]
        marginal, negative_entropy = means[:, :-1], means[:, -1]
        scores = (negative_entropy - torch.special.xlogy(marginal, marginal).sum(dim=1)).exp()
        return scores.mean().item(), scores.std(correction=0).item()


@dataclass(frozen=True)
class Networks:
    """The feature networks and classifiers of an evaluation.

    Attributes:
        features: Network of videos, for the Frechet distance.
        distance: Name of that distance among the scores.
        classes: Classifier of videos, for the inception score; None for no such score.
        frame_features: Network of images, for FID-avg and FID-first; None for no such scores.
        frame_classes: Classifier of images, for IS-avg and IS-first; None for no such scores.
        splits: As in `InceptionScore`.
        outputs: As in `InceptionScore`.

    Raises:
        TypeError: If a network is no `FeatureNetwork`.
        ValueError: If a network of images is given for one of videos, or vice versa.
    """

    features: FeatureNetwork
    distance: str = "fvd"
    classes: FeatureNetwork | None = None
    frame_features: FeatureNetwork | None = None
    frame_classes: FeatureNetwork | None = None
    splits: int = 10
    outputs: str = "logits"

    def __post_init__(self) -> None:
        InceptionScore(self.splits, self.outputs)
        for name, network in self.given().items():
            if not isinstance(network, FeatureNetwork):
                raise TypeError(
                    f"Networks: {name} must be a FeatureNetwork, got a {type(network).__name__}; "
                    "wrap it, as in FeatureNetwork('i3d.pt')"
                )
            layout = "bchw" if name.startswith("frame_") else "bcfhw"
            if len(network.layout) != len(layout):
                raise ValueError(
                    f"Networks: {name} must have the axes {layout}, got a network with the layout "
                    f"{network.layout!r}; give its layout, or another network"
                )

    def given(self) -> dict[str, FeatureNetwork]:
        """Returns the networks that are not None, by name."""
        return {n: getattr(self, n) for n in NETWORKS if getattr(self, n) is not None}

    @property
    def protocol(self) -> dict[str, Any]:
        """Description of the networks in a result, in plain values."""
        given = {name: network.protocol for name, network in self.given().items()}
        protocol: dict[str, Any] = {name: given.get(name) for name in NETWORKS}
        if self.classes is not None or self.frame_classes is not None:
            protocol["inception_score"] = {"splits": self.splits, "outputs": self.outputs}
        return protocol

    def to(self, device: torch.device | str) -> Networks:
        """Moves all networks to a device."""
        for network in self.given().values():
            network.to(device)
        return self


class VideoStatistics:
    """Statistics of a set of videos, accumulated over batches in float64.

    `d` features of a video take `8 d**2` bytes, and so do `d` features of an image, for each frame:
    16 frames with Inception's 2048 features take 512 MiB.

    Args:
        networks: The networks that compute features and classes.
        temporal: Statistics of how frames change, without videos so far; None for none.

    Example:
        >>> from video_diffusion_pytorch.evaluation.feature_network import random_features
        >>> networks = Networks(random_features(channels=1), "random_feature_distance")
        >>> real, drawn = VideoStatistics(networks), VideoStatistics(networks)
        >>> real.add(torch.rand(70, 1, 4, 8, 8), range(70))
        >>> drawn.add(torch.rand(70, 1, 4, 8, 8) / 2, range(70))
        >>> [*scores(real, drawn)]
        ['random_feature_distance']
    """

    def __init__(self, networks: Networks, temporal: TemporalStatistics | None = None) -> None:
        self.networks, self.temporal = networks, temporal
        # by name of the network: statistics of the videos, or of the frames at each position
        self._parts: dict[str, list[Any]] = {}

    def add(self, videos: Tensor, numbers: Sequence[int], counted: int | None = None) -> None:
        """Adds a batch.

        Args:
            videos: `(b, c, f, h, w)` in [0, 1].
            numbers: Numbers of the videos.
            counted: Number of videos that count, from the first on; None for all. The networks get
                the others too, so that several processes take the same steps.
        """
        kept = slice(counted)
        if self.temporal is not None:
            self.temporal.add(videos, numbers, counted)
        for name, network in self.networks.given().items():
            outputs = network(videos)
            rows = outputs.unbind(1) if network.is_of_frames else [outputs]
            are_classes = name.endswith("classes")
            more = [numbers[kept]] if are_classes else []
            if name not in self._parts:
                self._parts[name] = [
                    InceptionScore(self.networks.splits, self.networks.outputs)
                    if are_classes
                    else FeatureStatistics(outputs.shape[-1])
                    for _ in rows
                ]
            for part, row in zip(self._parts[name], rows, strict=True):
                part.add(row[kept], *more)

    def over_processes(self, total: Total) -> VideoStatistics:
        """Returns the statistics of the videos of all processes."""
        temporal = None if self.temporal is None else self.temporal.over_processes(total)
        joined = VideoStatistics(self.networks, temporal)
        for name, parts in self._parts.items():
            joined._parts[name] = [part.over_processes(total) for part in parts]
        return joined

    def inception_scores(self) -> dict[str, float]:
        """Computes those of the inception scores for which there are classifiers."""
        found: dict[str, float] = {}
        for score in self._parts.get("classes", ()):
            found["inception_score"], found["inception_score_std"] = score.compute()
        by_frame = [score.compute()[0] for score in self._parts.get("frame_classes", ())]
        if by_frame:
            found |= {"is_avg": sum(by_frame) / len(by_frame), "is_first": by_frame[0]}
        return found

    def frechet_distances(self, other: VideoStatistics) -> dict[str, float]:
        """Computes the Frechet distances between these videos and others."""
        distances = {
            name: [frechet_distance(*pair) for pair in zip(mine, other._parts[name], strict=True)]
            for name, mine in self._parts.items()
            if name.endswith("features")
        }
        found = {self.networks.distance: distances["features"][0]}
        by_frame = distances.get("frame_features")
        if by_frame:
            found |= {"fid_avg": sum(by_frame) / len(by_frame), "fid_first": by_frame[0]}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the statistics of the features, without those of inception scores."""
        frames = self._parts.get("frame_features", ())
        temporal = {} if self.temporal is None else {"temporal": self.temporal.state_dict()}
        return {
            **temporal,
            "videos": self._parts["features"][0].state_dict(),
            "frames": [statistics.state_dict() for statistics in frames],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replaces the statistics by those of a `state_dict` of the same networks."""
        self._parts["features"] = [FeatureStatistics.from_state(state["videos"])]
        if state["frames"]:
            frames = [FeatureStatistics.from_state(one) for one in state["frames"]]
            self._parts["frame_features"] = frames
        if "temporal" in state:
            self.temporal = TemporalStatistics.from_state(state["temporal"])


def scores(real: VideoStatistics, drawn: VideoStatistics) -> dict[str, float]:
    """Computes the scores of drawn videos.

    Args:
        real: Statistics of real videos.
        drawn: Statistics of as many drawn ones, of the same networks.

    Returns:
        The Frechet distance, under the networks' name for it; and, if there are networks for them,
        `inception_score` with `inception_score_std`, and the scores of frames: `fid_avg` and
        `is_avg`, means over the frames' positions, `fid_first` and `is_first`, of the first frame
        (Ho et al. 2022, section 4.3). If both have temporal statistics, the `temporal_scores`.
    """
    found = real.frechet_distances(drawn) | drawn.inception_scores()
    if real.temporal is not None and drawn.temporal is not None:
        found |= temporal_scores(real.temporal, drawn.temporal)
    return found


@torch.no_grad()
def random_feature_statistics(videos: Tensor, max_batch: int = 64) -> FeatureStatistics:
    """Computes mean and covariance of the random features of videos in [0, 1].

    Args:
        videos: `(b, c, f, h, w)`, at least two.
        max_batch: Largest number of videos per batch.

    Example:
        >>> statistics = random_feature_statistics(torch.rand(66, 1, 4, 8, 8))
        >>> frechet_distance(statistics, statistics) < 1e-6
        True
    """
    network = RandomFeatures(videos.shape[1]).to(videos.device)
    found = FeatureStatistics(network.width)
    for part in videos.split(max_batch):
        found.add(network(part))
    return found
