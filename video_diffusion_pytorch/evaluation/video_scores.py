"""Two sets of videos become scores: what each set comes to, and how the two compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics, frechet_distance
from video_diffusion_pytorch.evaluation.inception_score import InceptionScore

Total = Callable[[Tensor], Tensor]


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
