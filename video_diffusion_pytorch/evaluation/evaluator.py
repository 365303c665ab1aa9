"""Evaluation: what is measured of a model's videos, and the evaluator that draws and measures."""

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
from video_diffusion_pytorch.evaluation.frame_similarity import SIMILARITIES, FrameSimilarity
from video_diffusion_pytorch.evaluation.results import differences
from video_diffusion_pytorch.evaluation.video_scores import Networks, VideoStatistics, scores
from video_diffusion_pytorch.files import replacing

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

SAMPLER = "dpm++sde"
"""The sampler of an evaluation, unless another one is given; it takes 20 steps."""

# Seeds of neighbouring evaluations share no videos
_SEEDS_APART = 1_000_003


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measures, and how; all of it goes into the protocol of a result.

    Attributes:
        features: Gives features of videos, for the Frechet video distance `fvd`: I3D, C3D, VideoMAE
            or any other. None for `RandomFeatures`, whose distance is called
            `random_feature_distance`, as it is no FVD.
        classes: Classifies videos, for the inception score; None for none.
        frame_features: Gives features of pictures, for FID-avg and FID-first; None for none.
        frame_classes: Classifies pictures, for IS-avg and IS-first; None for none.
        class_outputs: What the classifiers give, `"logits"` or `"probabilities"`.
        splits: Parts that inception scores are means over.
        given_frames: How many first frames of a clip are given, and the others predicted, of a
            model that was not trained with `given_frames`, by `GaussianDiffusion.predict`; 0 for
            none. A model that was trained with them predicts in any case.
        similarities: Measures of predicted frames: `"psnr"`, `"ssim"`, both or none.
        lpips: A further one: `"alex"`, `"vgg"` or `"squeeze"`, whose weights torchvision fetches
            when they are first used; a TorchScript file; or a function. None for none.
        lpips_name: Of a `lpips` that is a function.
        clips: The most real clips to compare with, spread over all.
        count: Number of videos to draw; None for as many as there are real clips.
        seed: Of the videos: number `n` is the same in any batch and any number of processes.
        sampler: As in `GaussianDiffusion.sample`.
        steps: Number of steps; None for the model's `sampling_timesteps`, or what suits the
            sampler.
        cond_scale: Strength of the guidance by conditions; 1 is without.
        max_batch: The most videos that are drawn, or looked at, at a time.
        value_range: `(low, high)`, the clips' values that are 0 and 1 to the networks; None for
            the model's `value_range`, or [0, 1].
        statistics: A file that keeps what the real clips came to, and is written where there is
            none; None for no file.

    Raises:
        ValueError: If a number is outside its range.
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
    cond_scale: float = 1.0
    max_batch: int = 16
    value_range: tuple[Any, Any] | None = None
    statistics: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        least = {"clips": 2, "count": 2, "max_batch": 1, "seed": 0, "given_frames": 0}
        for name, at_least in least.items():
            value = getattr(self, name)
            if value is not None and value < at_least:
                raise ValueError(
                    f"Evaluation: {name} must be at least {at_least}, got {value}; give more"
                )

    def networks(self, channels: int) -> Networks:
        """What looks at the videos.

        Args:
            channels: Of the videos.
        """
        is_random = self.features is None
        features = random_features(channels) if self.features is None else self.features
        return Networks(
            features,
            "random_feature_distance" if is_random else "fvd",
            self.classes,
            self.frame_features,
            self.frame_classes,
            self.splits,
            self.class_outputs,
        )

    def frames_to_give(self, diffusion: GaussianDiffusion) -> int:
        """How many first frames of a clip the model is given.

        Raises:
            ValueError: If they are not those it was trained with, or leave none to predict.
        """
        own, asked = diffusion.given_frames, self.given_frames
        if own and asked not in (0, own):
            raise ValueError(
                f"Evaluation: given_frames must be those that the model was trained with, {own}, "
                f"got {asked}; leave it out"
            )
        if asked >= diffusion.num_frames:
            raise ValueError(
                f"Evaluation: given_frames must leave some of {diffusion.num_frames} frames to "
                f"predict, got {asked}; give fewer"
            )
        return own or asked

    def similarity(self, diffusion: GaussianDiffusion) -> FrameSimilarity | None:
        """What predicted frames are measured by; None where none are predicted."""
        if not self.frames_to_give(diffusion):
            return None
        c, _, h, w = diffusion.clip_shape
        return FrameSimilarity(
            self.similarities, lpips=self.lpips, size=(h, w), channels=c, name=self.lpips_name
        )


class ClipBatch(NamedTuple):
    """A batch of real clips; without clips, the numbers of the videos to draw.

    Attributes:
        videos: `(b, c, f, h, w)`, in the units of the clips; None for a model that needs none.
        conditions: What comes with the clips, by keyword of `GaussianDiffusion.forward`.
        numbers: Of the videos, the same in any number of processes.
        counted: How many of them count, from the first on: processes take equally many steps.
    """

    videos: Tensor | None
    conditions: Mapping[str, Any]
    numbers: list[int]
    counted: int


class Evaluator:
    """Compares videos of a model with clips, as often as it is called, by one protocol.

    The statistics of the real clips are computed once. Of several processes each does its share.

    Args:
        diffusion: The model, or one like those to come.
        clips: The real clips: `number` of them, their `protocol` in plain values, `batches(count)`
            that gives a process's share as `ClipBatch`, `ready(conditions)` that prepares
            conditions for the model, and `to_unit_range(videos)` that maps their units to [0, 1].
        evaluation: What is measured.
        sampling: Keywords of `diffusion.sample` that are the same for all videos: `sampler`,
            `steps`, and for a model with conditions `cond_scale`.
        version: Of the library, for results.
        share: Rank and world size.
        total: Gives the sum of a tensor over the processes.
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
        similarity = evaluation.similarity(diffusion)
        protocol = {
            "clips": {**clips.protocol, "number": clips.number},
            "samples": {**self._sampling_protocol(diffusion), "number": self.count},
            **self.networks.protocol,
            "similarity": None if similarity is None else similarity.protocol,
        }
        self.protocol = json.loads(json.dumps(protocol))
        self._real = self._read_statistics()

    def _sampling_protocol(self, diffusion: GaussianDiffusion) -> dict[str, Any]:
        """What a result must say of how videos are drawn, in plain values."""
        k = self.given_frames
        kind = "prediction" if k else "generation"
        return {
            "task": f"{kind} by guidance" if k and not diffusion.given_frames else kind,
            "given_frames": k,
            "seed": self.evaluation.seed,
            "sampler": _in_words(self.evaluation.sampler, diffusion),
            "steps": self.sampling["steps"],
            "cond_scale": self.sampling.get("cond_scale"),
            "conditions": list(diffusion.condition_names),
        }

    def __call__(
        self, diffusion: GaussianDiffusion, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Draws videos, and gives their scores; the caller's random numbers are not touched.

        Args:
            diffusion: The model.
            stop: Asked after each batch, on all processes alike, whether to give up.

        Returns:
            As `evaluation.video_scores.scores`, and for predicted frames as
            `FrameSimilarity.compute`; None if it was stopped.

        Raises:
            FloatingPointError: If the model draws videos that are not finite.
        """
        device = diffusion.betas.device
        self.networks.to(device)
        if self._real is None:
            self._real = self._look_at_clips(device)
            self._write_statistics()
        drawn, bad = VideoStatistics(self.networks), torch.zeros((), dtype=torch.float64)
        similarity = self.evaluation.similarity(diffusion)
        for batch in self._shown(self._to_draw(diffusion), self.count, "drawing videos"):
            samples = self.clips.to_unit_range(self._draw(diffusion, batch))
            # all processes go on to the end, where they learn of it
            is_bad = ~samples.isfinite().flatten(1).all(dim=1)
            bad += is_bad[: batch.counted].sum().item()
            samples = samples.nan_to_num()
            if similarity is not None and batch.videos is not None:
                real, k = self.clips.to_unit_range(batch.videos.to(device)), self.given_frames
                pair = (v[: batch.counted, :, k:] for v in (samples, real))
                similarity.add(*pair)
                # the distance is that of whole videos: what is given, and what follows
                samples = torch.cat((real[:, :, :k], samples[:, :, k:]), dim=2)
            drawn.add(samples, batch.numbers, batch.counted)
            if stop():
                return None
        bad = self.total(bad)
        if bad:
            raise FloatingPointError(
                f"Evaluation: drawn videos must be finite, got {round(bad.item())} of {self.count} "
                "that are not; the model has diverged, take an earlier checkpoint"
            )
        found = scores(self._real, drawn.over_processes(self.total))
        return found if similarity is None else found | similarity.over_processes(self.total)

    def result(
        self, found: Mapping[str, float], about: Mapping[str, Any], device: torch.device | str
    ) -> dict[str, Any]:
        """What `evaluation.results.write_result` takes.

        Args:
            found: The scores.
            about: What the result says of the model, in plain values.
            device: Where they were computed.
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

    def _look_at_clips(self, device: torch.device) -> VideoStatistics:
        found, number = VideoStatistics(self.networks), self.clips.number
        for batch in self._shown(self.clips.batches(number), number, "looking at clips"):
            assert batch.videos is not None
            videos = self.clips.to_unit_range(batch.videos.to(device))
            found.add(videos, batch.numbers, batch.counted)
        return found.over_processes(self.total)

    def _read_statistics(self) -> VideoStatistics | None:
        file = self.evaluation.statistics
        if file is None or not Path(file).is_file():
            return None
        try:
            state = torch.load(file, weights_only=True)
            theirs, kept = json.loads(state["protocol"]), state["statistics"]
        # torch raises what it likes for a file that is none of its own
        except Exception as error:
            raise ValueError(
                f"Evaluation: statistics must be a file of real clips' statistics, got {file}, "
                f"which is none ({type(error).__name__}); remove it, or give another path"
            ) from error
        differ = differences(theirs, self._protocol_of_real)
        if differ:
            told = ", ".join(f"{n}: {a!r} and {b!r}" for n, (a, b) in differ.items())
            raise ValueError(
                f"Evaluation: the statistics in {file} must be of these clips and networks, got "
                f"ones that differ in {told}; remove the file, or give another path"
            )
        found = VideoStatistics(self.networks)
        found.load_state_dict(kept)
        return found

    @property
    def _protocol_of_real(self) -> dict[str, Any]:
        """What the statistics of the real clips depend on."""
        return {name: self.protocol[name] for name in ("clips", "features", "frame_features")}

    def _write_statistics(self) -> None:
        file = self.evaluation.statistics
        if file is None or self.share[0] or self._real is None:
            return
        state = {
            "protocol": json.dumps(self._protocol_of_real),
            "statistics": self._real.state_dict(),
        }
        with replacing(Path(file)) as unfinished:
            torch.save(state, unfinished)

    # drawn videos

    def _to_draw(self, diffusion: GaussianDiffusion) -> Iterator[ClipBatch]:
        """The videos to draw, each with the clip whose conditions it gets."""
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
        # a sampler or a model of the user's own may draw from the global stream
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


def _in_words(sampler: Any, diffusion: GaussianDiffusion) -> str:
    """A sampler with what it was made with."""
    if sampler == "ddim":
        return f"ddim, eta={diffusion.ddim_sampling_eta}"
    if isinstance(sampler, str):
        return sampler
    own = {**vars(sampler), **dict(getattr(sampler, "config", {}))}
    plain = {n: v for n, v in own.items() if isinstance(v, (bool, int, float, str))}
    told = (f"{n}={v!r}" for n, v in sorted(plain.items()) if not n.startswith("_"))
    return f"{type(sampler).__name__}({', '.join(told)})"
