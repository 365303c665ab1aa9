"""Scores of sets of videos: inception score, Frechet distances, and the statistics for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics, frechet_distance

Total = Callable[[Tensor], Tensor]


OUTPUTS = ("logits", "probabilities")
"""What a network of classes may give."""


class InceptionScore:
    """`exp E KL(p(y|x) || p(y))` (Salimans et al. 2016, section 4), of a classifier's outputs.

    They come in batches, of which sums in float64 are kept.

    Args:
        splits: In how many parts videos are taken, by their number. The score is the mean of the
            parts' scores; theirs is 10. A part must be large against the number of classes.
        outputs: What the network gives, `"logits"` or `"probabilities"`.

    Raises:
        ValueError: If an argument is outside its range.

    Example:
        >>> score = InceptionScore(splits=1, outputs="probabilities")
        >>> score.add(torch.eye(4), range(4))
        >>> round(score.compute()[0], 6)  # four classes, each told for certain
        4.0
    """

    def __init__(self, splits: int = 10, outputs: str = "logits") -> None:
        if splits < 1:
            raise ValueError(
                f"InceptionScore: splits must be at least 1, got {splits}; 10 is usual"
            )
        if outputs not in OUTPUTS:
            raise ValueError(
                f"InceptionScore: outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}; "
                "say what the network gives"
            )
        self.splits, self.outputs = splits, outputs
        # of each part: probabilities of the classes, negative entropies, count
        self._sums = torch.zeros(splits, 0, dtype=torch.float64)

    def add(self, outputs: Tensor, numbers: Sequence[int]) -> None:
        """Takes in a batch.

        Args:
            outputs: `(b, classes)`, finite.
            numbers: Of the videos, which say what parts they are of.

        Raises:
            ValueError: If they are not such outputs.
        """
        given = outputs.detach().cpu().double()
        self._check(given)
        probabilities = given if self.outputs == "probabilities" else given.softmax(dim=1)
        negative_entropy = torch.special.xlogy(probabilities, probabilities).sum(1, keepdim=True)
        rows = torch.cat((probabilities, negative_entropy, torch.ones_like(negative_entropy)), 1)
        if not self._sums.shape[1]:
            self._sums = rows.new_zeros(self.splits, rows.shape[1])
        part = torch.tensor([number % self.splits for number in numbers], dtype=torch.long)
        self._sums.index_add_(0, part, rows)

    def _check(self, outputs: Tensor) -> None:
        if not bool(outputs.isfinite().all()):
            raise ValueError(
                "InceptionScore: outputs must be finite, got some that are not; look for "
                "not-a-number in the videos, which a diverged model draws"
            )
        off = (outputs.sum(dim=1) - 1).abs().amax() if len(outputs) else outputs.new_zeros(())
        are_probabilities = bool(outputs.ge(0).all()) and off.item() < 1e-3
        if len(outputs) and are_probabilities != (self.outputs == "probabilities"):
            found = "rows of them" if are_probabilities else "other numbers"
            raise ValueError(
                f"InceptionScore: outputs must be {self.outputs}, and probabilities are not "
                f"negative and sum to 1, got {found}; pass outputs="
                f"{'probabilities' if are_probabilities else 'logits'!r}, or a network of classes"
            )

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> InceptionScore:
        """The score of the videos of all processes.

        Args:
            total: Gives the sum of a tensor that every process has.
        """
        joined = InceptionScore(self.splits, self.outputs)
        joined._sums = total(self._sums)
        return joined

    def compute(self) -> tuple[float, float]:
        """Mean and standard deviation of the parts' scores, from 1 to the number of classes.

        Raises:
            ValueError: If there are fewer videos than parts.
        """
        if not self._sums.shape[1] or not bool((self._sums[:, -1] > 0).all()):
            raise ValueError(
                f"InceptionScore: each of {self.splits} parts must have videos, got fewer videos; "
                "give more, or a smaller number of splits"
            )
        means = self._sums[:, :-1] / self._sums[:, -1:]
        marginal, negative_entropy = means[:, :-1], means[:, -1]
        scores = (negative_entropy - torch.special.xlogy(marginal, marginal).sum(dim=1)).exp()
        return scores.mean().item(), scores.std(correction=0).item()


@dataclass(frozen=True)
class Networks:
    """The networks that look at videos.

    Attributes:
        features: Of videos, for the Frechet distance.
        distance: What that distance is called among the scores.
        classes: Of videos, for the inception score; None for none.
        frame_features: Of pictures, for FID-avg and FID-first; None for none.
        frame_classes: Of pictures, for IS-avg and IS-first; None for none.
        splits: As in `InceptionScore`.
        outputs: As in `InceptionScore`.

    Raises:
        ValueError: If a network of pictures is given for one of videos, or the other way round.
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
        for name in ("features", "classes", "frame_features", "frame_classes"):
            network, wants_frames = getattr(self, name), name.startswith("frame_")
            if network is not None and network.is_of_frames != wants_frames:
                raise ValueError(
                    f"Networks: {name} must be a network of {'pictures' * wants_frames or 'videos'}"
                    f", got one with the layout {network.layout!r}; give the layout "
                    f"{'bchw' if wants_frames else 'bcfhw'!r}, or another network"
                )

    @property
    def protocol(self) -> dict[str, Any]:
        """What a result must tell of them, in plain values."""
        names = ("features", "classes", "frame_features", "frame_classes")
        given = {name: getattr(self, name) for name in names}
        told = {name: None if n is None else n.protocol for name, n in given.items()}
        if self.classes is not None or self.frame_classes is not None:
            told["inception_score"] = {"splits": self.splits, "outputs": self.outputs}
        return told

    def to(self, device: torch.device | str) -> Networks:
        """Moves all of them."""
        for network in (self.features, self.classes, self.frame_features, self.frame_classes):
            if network is not None:
                network.to(device)
        return self


class VideoStatistics:
    """What a set of videos comes to, in sums of float64: no video and no feature is kept.

    Takes `8 d**2` bytes for `d` features of a video, and as much for each frame of a video with
    `d` features of a picture: 16 frames with Inception's 2048 features take 512 MiB.

    Args:
        networks: What looks at the videos.

    Example:
        >>> from video_diffusion_pytorch.evaluation.feature_network import random_features
        >>> networks = Networks(random_features(channels=1), "random_feature_distance")
        >>> real, drawn = VideoStatistics(networks), VideoStatistics(networks)
        >>> real.add(torch.rand(70, 1, 4, 8, 8), range(70))
        >>> drawn.add(torch.rand(70, 1, 4, 8, 8) / 2, range(70))
        >>> [*scores(real, drawn)]
        ['random_feature_distance']
    """

    def __init__(self, networks: Networks) -> None:
        self.networks = networks
        self.videos: FeatureStatistics | None = None
        self.frames: list[FeatureStatistics] = []
        self.classes = InceptionScore(networks.splits, networks.outputs)
        self.frame_classes: list[InceptionScore] = []

    def add(self, videos: Tensor, numbers: Sequence[int], counted: int | None = None) -> None:
        """Takes in a batch.

        Args:
            videos: `(b, c, f, h, w)` in [0, 1].
            numbers: Of the videos.
            counted: How many of them count, from the first on; None for all. The others are looked
                at as well, so that several processes take the same steps.
        """
        networks, kept = self.networks, slice(counted)
        numbers = numbers[kept]
        features = networks.features(videos)
        if self.videos is None:
            self.videos = FeatureStatistics(features.shape[1])
        self.videos.add(features[kept])
        if networks.classes is not None:
            self.classes.add(networks.classes(videos)[kept], numbers)
        if networks.frame_features is not None:
            of_frames = networks.frame_features(videos)
            if not self.frames:
                self.frames = [FeatureStatistics(of_frames.shape[2]) for _ in of_frames[0]]
            for i, statistics in enumerate(self.frames):
                statistics.add(of_frames[kept, i])
        if networks.frame_classes is not None:
            outputs = networks.frame_classes(videos)
            if not self.frame_classes:
                new = [InceptionScore(networks.splits, networks.outputs) for _ in outputs[0]]
                self.frame_classes = new
            for i, score in enumerate(self.frame_classes):
                score.add(outputs[kept, i], numbers)

    def over_processes(self, total: Total) -> VideoStatistics:
        """Those of the videos of all processes, each of which has looked at some.

        Args:
            total: Gives the sum of a tensor that every process has.
        """
        joined = VideoStatistics(self.networks)
        assert self.videos is not None
        joined.videos = self.videos.over_processes(total)
        joined.frames = [statistics.over_processes(total) for statistics in self.frames]
        if self.networks.classes is not None:
            joined.classes = self.classes.over_processes(total)
        joined.frame_classes = [score.over_processes(total) for score in self.frame_classes]
        return joined

    def inception_scores(self) -> dict[str, float]:
        """`inception_score`, its deviation, `is_avg`, `is_first`: those there are networks for."""
        found: dict[str, float] = {}
        if self.networks.classes is not None:
            found["inception_score"], found["inception_score_std"] = self.classes.compute()
        if self.frame_classes:
            by_frame = [score.compute()[0] for score in self.frame_classes]
            found |= {"is_avg": sum(by_frame) / len(by_frame), "is_first": by_frame[0]}
        return found

    def state_dict(self) -> dict[str, Any]:
        """What a file must hold of them to be used again; without inception scores."""
        assert self.videos is not None
        return {
            "videos": self.videos.state_dict(),
            "frames": [statistics.state_dict() for statistics in self.frames],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the place of what was added so far.

        Args:
            state: As `state_dict` gives it, of the same networks.
        """
        self.videos, *self.frames = (_loaded(one) for one in (state["videos"], *state["frames"]))


def scores(real: VideoStatistics, drawn: VideoStatistics) -> dict[str, float]:
    """How near drawn videos are to real ones.

    Args:
        real: Of real videos.
        drawn: Of as many drawn ones, by the same networks.

    Returns:
        The Frechet distance, by the name that the networks have for it; and, as far as there are
        networks for them, the drawn videos' `inception_score` with its standard deviation, and the
        scores of frames: `fid_avg` and `is_avg`, the means over the frames' numbers, `fid_first`
        and `is_first`, those of the first frame (Ho et al. 2022, section 4.3).
    """
    assert real.videos is not None
    assert drawn.videos is not None
    found = {drawn.networks.distance: frechet_distance(real.videos, drawn.videos)}
    if drawn.frames:
        by_frame = [frechet_distance(*p) for p in zip(real.frames, drawn.frames, strict=True)]
        found |= {"fid_avg": sum(by_frame) / len(by_frame), "fid_first": by_frame[0]}
    return found | drawn.inception_scores()


def _loaded(state: dict[str, Any]) -> FeatureStatistics:
    statistics = FeatureStatistics(len(state["mean"]))
    statistics.load_state_dict(state)
    return statistics
