"""Evaluation of a model: its settings, and the evaluator that draws and scores videos."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork, random_features
from video_diffusion_pytorch.evaluation.frame_classifier import (
    PROTOCOL,
    ClassScores,
    FrameClassifier,
    LabelledClips,
    train_frame_classifier,
)
from video_diffusion_pytorch.evaluation.frame_similarity import SIMILARITIES, FrameSimilarity
from video_diffusion_pytorch.evaluation.results import differences, in_words
from video_diffusion_pytorch.evaluation.temporal_scores import LEAST_FRAMES, TemporalStatistics
from video_diffusion_pytorch.evaluation.video_scores import Networks, VideoStatistics, scores
from video_diffusion_pytorch.files import replacing

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

SAMPLER = "dpm++sde"
"""Default sampler of an evaluation, with 20 steps."""

# so that evaluations with neighbouring seeds share no videos
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class Evaluation:
    """Settings of an evaluation.

    Results record them as their protocol.

    Attributes:
        features: Network that computes features of videos, for the Frechet video distance `fvd`,
            such as I3D, C3D or VideoMAE. None for `RandomFeatures`, whose distance is called
            `random_feature_distance`.
        classes: Classifier of videos, for the inception score; None for no such score.
        frame_features: Network that computes features of images, for FID-avg and FID-first; None
            for no such scores.
        frame_classes: Classifier of images, for IS-avg and IS-first; None for no such scores.
        class_outputs: Outputs of the classifiers, `"logits"` or `"probabilities"`.
        splits: Number of parts over which inception scores are averaged.
        given_frames: Number of first frames of a clip that are given, while the others are
            predicted by `GaussianDiffusion.predict`, for a model trained without `given_frames`;
            0 for none. A model trained with them always predicts.
        similarities: Measures of predicted frames: `"psnr"`, `"ssim"`, both or none.
        lpips: Network of LPIPS for predicted frames: `"alex"`, `"vgg"` or `"squeeze"`, whose
            weights torchvision downloads on first use; a TorchScript file; or a function. None for
            no LPIPS.
        lpips_name: Name of a `lpips` that is a function.
        clips: Largest number of real clips, evenly spaced.
        count: Number of videos to draw; None for the number of real clips.
        seed: Seed of the videos; video `n` is the same in any batch and number of processes.
        sampler: `"ddpm"`, `"ancestral"`, `"ddim"`, `"euler"`, `"heun"`, `"dpm++"`, `"dpm++sde"` or
            another, as in `GaussianDiffusion.sample`.
        steps: Number of steps; None for the model's `sampling_timesteps`, or the sampler's default.
        cond_scale: Guidance scale; 1 disables guidance. Or one by condition, as in
            `GaussianDiffusion.sample`.
        max_batch: Largest number of videos per batch.
        value_range: `(low, high)`, the clips' values that are 0 and 1 for the networks; None for
            the model's `value_range`, or [0, 1].
        statistics: File that keeps the statistics of the real clips, written if missing; None for
            no file.
        labels: Whether to train a classifier of single frames on the labels that the real clips
            have, which tells how long drawn videos show one class.

    Raises:
        ValueError: If a number is out of range.
    """

    features: FeatureNetwork | None = None
    classes: FeatureNetwork | None = None
    frame_features: FeatureNetwork | None = None
    frame_classes: FeatureNetwork | None = None
    class_outputs: str = "logits"
    splits: int = 10
    given_frames: int = 0
    similarities: Sequence[str] = SIMILARITIES
    lpips: str | os.PathLike[str] | Callable[..., Any] | None = None
    lpips_name: str | None = None
    clips: int = 2048
    count: int | None = None
    seed: int = 0
    sampler: Any = SAMPLER
    steps: int | None = None
    cond_scale: float | Mapping[str, float] = 1.0
    max_batch: int = 16
    value_range: tuple[Any, Any] | None = None
    statistics: str | os.PathLike[str] | None = None
    labels: bool = False

    def __post_init__(self) -> None:
        least = {"clips": 2, "count": 2, "max_batch": 1, "splits": 1, "steps": 1}
        for name, lowest in {**least, "seed": 0, "given_frames": 0}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"Evaluation: {name} must be at least {lowest}, got {value}")

    def networks(self, channels: int) -> Networks:
        """Makes the networks for videos with `channels` channels."""
        return Networks(
            random_features(channels) if self.features is None else self.features,
            "random_feature_distance" if self.features is None else "fvd",
            self.classes,
            self.frame_features,
            self.frame_classes,
            self.splits,
            self.class_outputs,
        )

    def frames_to_give(self, diffusion: GaussianDiffusion) -> int:
        """Number of first frames of a clip that the model is given.

        Raises:
            ValueError: If the model was trained with another number, or no frame is left to
                predict.
        """
        own, asked = diffusion.given_frames, self.given_frames
        if own and asked not in (0, own):
            raise ValueError(
                f"Evaluation: given_frames must be {own}, as in training, got {asked}; leave it out"
            )
        if asked >= diffusion.num_frames:
            raise ValueError(
                f"Evaluation: given_frames must leave some of {diffusion.num_frames} frames to "
                f"predict, got {asked}; give fewer"
            )
        return own or asked

    def similarity(self, diffusion: GaussianDiffusion) -> FrameSimilarity | None:
        """Makes the measure of predicted frames; None if no frames are predicted."""
        if not self.frames_to_give(diffusion):
            if self.lpips is not None:
                raise ValueError(
                    "Evaluation: for LPIPS frames must be predicted, got given_frames=0; give some "
                    "frames, or leave lpips out"
                )
            return None
        c, _, h, w = diffusion.clip_shape
        return FrameSimilarity(
            self.similarities, lpips=self.lpips, size=(h, w), channels=c, name=self.lpips_name
        )


class ClipBatch(NamedTuple):
    """A batch of real clips, or only the numbers of the videos to draw.

    Attributes:
        videos: `(b, c, f, h, w)`, in the units of the clips; None for a model that needs none.
        conditions: Conditions of the clips, by keyword of `GaussianDiffusion.forward`.
        numbers: Numbers of the videos, the same for any number of processes.
        counted: Number of videos that count, from the first on: the others are there because all
            processes take the same number of steps.
    """

    videos: Tensor | None
    conditions: Mapping[str, Any]
    numbers: list[int]
    counted: int


class RealClips(NamedTuple):
    """What is kept of the real clips.

    Attributes:
        statistics: Their statistics.
        classifier: Classifier of their frames; None without labels.
    """

    statistics: VideoStatistics
    classifier: FrameClassifier | None


class Evaluator:
    """Compares videos drawn from a model with real clips, each call by the same protocol.

    The statistics of the real clips are computed once. Each process does its share.

    Args:
        diffusion: The model, or one with the same settings.
        clips: The real clips: `number` of them, their `protocol` in plain values, `batches(count)`
            that yields a process's share as `ClipBatch`, `ready(conditions)` that prepares
            conditions for the model, and `to_unit_range(videos)` that maps their units to [0, 1].
        evaluation: Settings of the evaluation.
        sampling: Keywords of `diffusion.sample` that are the same for all videos: `sampler`,
            `steps`, and for a model with conditions `cond_scale`.
        version: Version of the library, for results.
        share: Rank and world size.
        total: Sums a tensor over the processes.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If the model does not fit the evaluation, or the file of statistics is of other
            clips or networks.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        clips: Any,
        evaluation: Evaluation,
        sampling: Mapping[str, Any],
        *,
        version: str = "",
        share: tuple[int, int] = (0, 1),
        total: Callable[[Tensor], Tensor] = lambda values: values,
        progress: bool = False,
    ) -> None:
        self.clips, self.evaluation, self.sampling = clips, evaluation, dict(sampling)
        self.version, self.share, self.total, self.progress = version, share, total, progress
        self.given_frames = evaluation.frames_to_give(diffusion)
        self.networks = evaluation.networks(diffusion.channels)
        self.count = evaluation.count or clips.number
        self._is_temporal = diffusion.num_frames >= LEAST_FRAMES
        similarity = evaluation.similarity(diffusion)
        protocol = {
            "clips": {**clips.protocol, "number": clips.number},
            "samples": {**self._sampling_protocol(diffusion), "number": self.count},
            **self.networks.protocol,
            "similarity": None if similarity is None else similarity.protocol,
            "labels": dict(PROTOCOL) if evaluation.labels else None,
        }
        self.protocol = json.loads(json.dumps(protocol))
        self._real = self._read_statistics()

    def _sampling_protocol(self, diffusion: GaussianDiffusion) -> dict[str, Any]:
        """Description of the sampling in a result, in plain values."""
        k, scale = self.given_frames, self.sampling.get("cond_scale")
        kind = "prediction" if k else "generation"
        return {
            "task": f"{kind} by guidance" if k and not diffusion.given_frames else kind,
            "given_frames": k,
            "seed": self.evaluation.seed,
            "sampler": sampler_in_words(self.evaluation.sampler, diffusion),
            "steps": self.sampling["steps"],
            # as pairs, whose order counts
            "cond_scale": [*scale.items()] if isinstance(scale, Mapping) else scale,
            "conditions": list(diffusion.condition_names),
        }

    def __call__(
        self, diffusion: GaussianDiffusion, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Draws videos and computes their scores; the global random state is unchanged.

        Args:
            diffusion: The model.
            stop: Called after each batch, with the same result on all processes: whether to stop.

        Returns:
            The scores of `evaluation.video_scores.scores`, for predicted frames those of
            `FrameSimilarity.compute`, and with labels those of `ClassScores.compute`, also of the
            held-out real clips, with the ending `_real`; None if stopped.

        Raises:
            FloatingPointError: If the model draws videos with NaN or infinite values.
        """
        device = diffusion.betas.device
        self.networks.to(device)
        if self._real is None:
            self._real = self._read_clips(device)
            self._write_statistics()
        real_clips, drawn, classes = self._real, self._statistics(self.count), ClassScores()
        bad = torch.zeros((), dtype=torch.float64, device="cpu")
        similarity = self.evaluation.similarity(diffusion)
        for batch in self._shown(self._to_draw(diffusion), self.count, "drawing videos"):
            samples = self.clips.to_unit_range(self._draw(diffusion, batch))
            # an error here would leave the other processes waiting
            is_bad = ~samples.isfinite().flatten(1).all(dim=1)
            bad += is_bad[: batch.counted].sum().item()
            samples = samples.nan_to_num(posinf=0.0, neginf=0.0)
            if similarity is not None and batch.videos is not None:
                real, k = self.clips.to_unit_range(batch.videos.to(device)), self.given_frames
                pair = (v[: batch.counted, :, k:] for v in (samples, real))
                similarity.add(*pair)
                # the distance is that of whole videos, given and predicted frames
                samples = torch.cat((real[:, :, :k], samples[:, :, k:]), dim=2)
            drawn.add(samples, batch.numbers, batch.counted)
            if real_clips.classifier is not None:
                wanted = _labels(batch) if "labels" in diffusion.condition_names else None
                classifier = real_clips.classifier.to(device)
                classes.add(classifier, samples, wanted, batch.counted)
            if stop():
                return None
        bad = self.total(bad)
        if bad:
            raise FloatingPointError(
                f"Evaluation: drawn videos must be finite, got {round(bad.item())} of {self.count} "
                "with NaN or infinite values; the model has diverged, take an earlier checkpoint"
            )
        found = scores(real_clips.statistics, drawn.over_processes(self.total))
        if similarity is not None:
            found |= similarity.over_processes(self.total)
        if real_clips.classifier is not None:
            found |= classes.over_processes(self.total).compute()
            found |= {f"{name}_real": value for name, value in real_clips.classifier.real.items()}
        return found

    def result(
        self, found: Mapping[str, float], about: Mapping[str, Any], device: torch.device | str
    ) -> dict[str, Any]:
        """Makes a result for `evaluation.results.write_result`.

        Args:
            found: The scores.
            about: Description of the model, in plain values.
            device: Device they were computed on.
        """
        return {
            "scores": dict(found),
            "model": dict(about),
            "protocol": self.protocol,
            "version": self.version,
            "torch": torch.__version__,
            "device": str(device),
            "time": time.time(),
        }

    # real clips

    def _statistics(self, count: int) -> VideoStatistics:
        """Statistics of `count` videos, without these so far."""
        temporal = TemporalStatistics(count) if self._is_temporal else None
        return VideoStatistics(self.networks, temporal)

    def _read_clips(self, device: torch.device) -> RealClips:
        number = self.clips.number
        found = self._statistics(number)
        labelled = LabelledClips(number) if self.evaluation.labels else None
        for batch in self._shown(self.clips.batches(number), number, "reading clips"):
            assert batch.videos is not None
            videos = self.clips.to_unit_range(batch.videos.to(device))
            found.add(videos, batch.numbers, batch.counted)
            if labelled is not None:
                labelled.add(videos, _labels(batch), batch.numbers, batch.counted)
        classifier = None
        if labelled is not None:
            # on the CPU, so that all processes have the same
            classifier = train_frame_classifier(labelled.over_processes(self.total))
        return RealClips(found.over_processes(self.total), classifier)

    def _read_statistics(self) -> RealClips | None:
        file = self.evaluation.statistics
        if file is None:
            return None
        if not Path(file).is_file():
            if not Path(file).parent.is_dir():
                raise FileNotFoundError(
                    f"Evaluation: expected a folder at {Path(file).parent} to keep statistics in, "
                    "found none; create it first"
                )
            return None
        try:
            state = torch.load(file, weights_only=True)
            theirs, kept = json.loads(state["protocol"]), state["statistics"]
        # torch.load raises many kinds of errors for other files
        except Exception as error:
            raise ValueError(
                f"Evaluation: statistics must be a file of real clips' statistics, got {file} "
                f"({type(error).__name__}); remove it, or give another path"
            ) from error
        differ = differences(theirs, self._protocol_of_real)
        if differ:
            raise ValueError(
                f"Evaluation: the statistics in {file} must be of these clips and networks, got "
                f"others, with {in_words(differ)}; remove the file, or give another path"
            )
        if self._is_temporal and "temporal" not in kept:
            return None  # written before there were temporal scores
        found, classifier = VideoStatistics(self.networks), None
        found.load_state_dict(kept)
        if self.evaluation.labels:
            classifier = FrameClassifier.from_state(state["classifier"])
        return RealClips(found, classifier)

    @property
    def _protocol_of_real(self) -> dict[str, Any]:
        """The part of the protocol that determines the statistics of the real clips."""
        names = ("clips", "features", "frame_features", "labels")
        return {name: self.protocol[name] for name in names}

    def _write_statistics(self) -> None:
        file = self.evaluation.statistics
        if file is None or self.share[0] or self._real is None:
            return
        statistics, classifier = self._real
        state = {
            "protocol": json.dumps(self._protocol_of_real),
            "statistics": statistics.state_dict(),
            "classifier": None if classifier is None else classifier.full_state(),
        }
        with replacing(Path(file)) as unfinished:
            torch.save(state, unfinished)

    # drawn videos

    def _to_draw(self, diffusion: GaussianDiffusion) -> Iterator[ClipBatch]:
        """Yields the videos to draw, with the clips whose conditions and frames they get."""
        if diffusion.condition_names or self.given_frames:
            yield from self.clips.batches(self.count)
            return
        process, processes = self.share
        own = ceil(self.count / processes)
        for start in range(0, own, self.evaluation.max_batch):
            stop = min(start + self.evaluation.max_batch, own)
            numbers = [process * own + i for i in range(start, stop)]
            yield ClipBatch(None, {}, numbers, len([n for n in numbers if n < self.count]))

    def _draw(self, diffusion: GaussianDiffusion, batch: ClipBatch) -> Tensor:
        names, device = diffusion.condition_names, diffusion.betas.device
        conditions = {n: v for n, v in batch.conditions.items() if n in names}
        options = self.clips.ready(conditions) if conditions else {}
        first = self.evaluation.seed * _SEEDS_APART
        options |= {**self.sampling, "seed": [first + number for number in batch.numbers]}
        options["progress"] = False
        given = None
        if self.given_frames and batch.videos is not None:
            given = batch.videos[:, :, : self.given_frames].to(device)
        # custom samplers and models may draw from the global random state
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(first + batch.numbers[0])
            if given is not None and not diffusion.given_frames:
                return diffusion.predict(given, **options)
            if given is not None:
                options["first_frames"] = given
            return diffusion.sample(**options, batch_size=len(batch.numbers))

    def _shown(self, batches: Iterable[ClipBatch], count: int, what: str) -> Iterator[ClipBatch]:
        is_shown = self.progress and self.share[0] == 0
        with tqdm(total=count, desc=what, disable=not is_shown) as bar:
            for batch in batches:
                yield batch
                bar.update(min(batch.counted * self.share[1], count - bar.n))


def _labels(batch: ClipBatch) -> Tensor:
    """The labels of the clips of a batch, by the clips' own numbers of classes."""
    return torch.as_tensor(batch.conditions["labels"], device="cpu")


def sampler_in_words(sampler: Any, diffusion: GaussianDiffusion) -> str:
    """The name of a sampler with its settings."""
    if sampler == "ddim":
        return f"ddim, eta={diffusion.ddim_sampling_eta}"
    if isinstance(sampler, str):
        return sampler
    own = {**vars(sampler), **dict(getattr(sampler, "config", {}))}
    plain = {n: v for n, v in own.items() if isinstance(v, (bool, int, float, str))}
    settings = (f"{n}={v!r}" for n, v in sorted(plain.items()) if not n.startswith("_"))
    return f"{type(sampler).__name__}({', '.join(settings)})"
