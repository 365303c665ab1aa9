"""Beside the loop: how near a model's videos are to real ones, measured alike each time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.write_video import replacing
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import to_unit_range, unnormalize_img
from video_diffusion_pytorch.evaluation.results import differences
from video_diffusion_pytorch.evaluation.video_scores import VideoStatistics, scores
from video_diffusion_pytorch.training.batches import unpack_batch
from video_diffusion_pytorch.training.evaluation_clips import (
    checked_indices,
    protocol_of_clips,
    unit_limits,
)
from video_diffusion_pytorch.training.evaluation_options import Evaluation
from video_diffusion_pytorch.training.validation import Part, Unpack, Validation
from video_diffusion_pytorch.version import __version__

# Seeds of neighbouring evaluations share no videos
_SEEDS_APART = 1_000_003


def _as_it_is(value: Any) -> Any:
    return value


class Evaluator:
    """Compares videos of a model with clips, as often as it is called, by one protocol.

    What the real clips come to is found out once. Of several processes each does its part.

    Args:
        diffusion: The model, or one that is like those to come.
        dataset: The real clips, with what they are told; has a length.
        evaluation: What is measured.
        indices: Of the clips that are meant; None for all.
        unpack: Splits a batch into videos and conditions.
        ready: Makes conditions ready for the model, such as captions vectors.
        class_names: Of the classes that the model was trained with, where they are known.
        share: Number of this process, and how many there are.
        total: Gives the sum of a tensor that every process has.
        num_workers: Processes that read.
        progress: Whether to show progress bars.

    Raises:
        ValueError: If the clips do not fit the model or the evaluation, or the file of statistics
            is of other clips or networks.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        dataset: Any,
        evaluation: Evaluation,
        *,
        indices: Sequence[int] | None = None,
        unpack: Unpack = unpack_batch,
        ready: Callable[[dict[str, Any]], dict[str, Any]] = _as_it_is,
        class_names: Sequence[str] = (),
        share: tuple[int, int] = (0, 1),
        total: Callable[[Tensor], Tensor] = _as_it_is,
        num_workers: int = 0,
        progress: bool = False,
    ) -> None:
        chosen = checked_indices(diffusion, dataset, indices)
        self.evaluation, self.unpack, self.ready = evaluation, unpack, ready
        self.share, self.total, self.num_workers = share, total, num_workers
        self.progress = progress
        self.given_frames = evaluation.frames_to_give(diffusion)
        self.networks = evaluation.networks(diffusion.channels)
        self.limits = unit_limits(diffusion, evaluation)
        similarity = evaluation.similarity(diffusion)
        sampling = evaluation.sampling(diffusion)
        self.clips = Validation(
            dataset,
            chosen,
            at_most=evaluation.clips,
            batch_size=evaluation.max_batch,
            share=share,
        )
        self.clips.check(diffusion, unpack, class_names)
        self.count = evaluation.count or len(self.clips.indices)
        real = {"value_range": self.limits, "number": len(self.clips.indices)}
        protocol = {
            "clips": {**protocol_of_clips(dataset, self.clips.indices), **real},
            "samples": {**evaluation.sampling_protocol(diffusion), "number": self.count},
            **self.networks.protocol,
            "similarity": None if similarity is None else similarity.protocol,
        }
        self.protocol = json.loads(json.dumps(protocol))
        self._sampling = sampling
        self._real = self._read_statistics()

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
            self._real = self._look_at_clips(diffusion)
            self._write_statistics()
        drawn, bad = VideoStatistics(self.networks), torch.zeros((), dtype=torch.float64)
        similarity = self.evaluation.similarity(diffusion)
        for part in self._shown(self._parts(diffusion), self.count, "drawing videos"):
            videos, told = self._told(part, diffusion)
            samples = self._in_unit_range(self._draw(diffusion, part.numbers, told))
            # all processes go on to the end, where they learn of it
            is_bad = ~samples.isfinite().flatten(1).all(dim=1)
            bad += is_bad[: part.counted].sum().item()
            samples = samples.nan_to_num()
            if similarity is not None:
                real, k = self._in_unit_range(videos), self.given_frames
                pair = (v[: part.counted, :, k:] for v in (samples, real))
                similarity.add(*pair)
                # the distance is that of whole videos: what is given, and what follows
                samples = torch.cat((real[:, :, :k], samples[:, :, k:]), dim=2)
            drawn.add(samples, part.numbers, part.counted)
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
            about: What the result shall tell of the model, in plain values.
            device: Where they were computed.
        """
        return {
            "scores": dict(found),
            "model": dict(about),
            "protocol": self.protocol,
            "version": __version__,
            "torch": torch.__version__,
            "device": str(device),
            "time": time.time(),
        }

    # real clips

    def _look_at_clips(self, diffusion: GaussianDiffusion) -> VideoStatistics:
        found, number = VideoStatistics(self.networks), len(self.clips.indices)
        parts = self.clips.parts(self.num_workers, number)
        for part in self._shown(parts, number, "looking at clips"):
            videos = self.unpack(part.batch)[0].to(diffusion.betas.device)
            found.add(self._in_unit_range(videos), part.numbers, part.counted)
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

    def _parts(self, diffusion: GaussianDiffusion) -> Iterator[Part]:
        """The videos to draw, each with the clip that tells it what to show."""
        if diffusion.condition_names or self.given_frames:
            yield from self.clips.parts(self.num_workers, self.count)
            return
        process, processes = self.share
        own = ceil(self.count / processes)
        for start in range(0, own, self.evaluation.max_batch):
            stop = min(start + self.evaluation.max_batch, own)
            numbers = [process * own + i for i in range(start, stop)]
            yield Part(None, numbers, len([n for n in numbers if n < self.count]))

    def _told(self, part: Part, diffusion: GaussianDiffusion) -> tuple[Any, dict[str, Any]]:
        """The clips of a part, on the device, and what videos like them are told."""
        if part.batch is None:
            return None, {}
        videos, conditions = self.unpack(part.batch)
        videos = videos.to(diffusion.betas.device)
        kept = {n: v for n, v in conditions.items() if n in diffusion.condition_names}
        told = self.ready(self.clips.with_trained_labels(kept))
        if self.given_frames:
            told["first_frames"] = videos[:, :, : self.given_frames]
        return videos, told

    def _draw(
        self, diffusion: GaussianDiffusion, numbers: Sequence[int], told: Mapping[str, Any]
    ) -> Tensor:
        first = self.evaluation.seed * _SEEDS_APART
        options = {**told, **self._sampling, "seed": [first + number for number in numbers]}
        device = diffusion.betas.device
        # a sampler or a model of the user's own may draw from the global stream
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(first + numbers[0])
            if self.given_frames and not diffusion.given_frames:
                return diffusion.predict(options.pop("first_frames"), **options)
            return diffusion.sample(**options, batch_size=len(numbers))

    def _in_unit_range(self, videos: Tensor) -> Tensor:
        """What is 0 and 1 to the networks, of videos in the units of the clips."""
        if self.limits is None:
            return videos.float() / 255 if videos.dtype == torch.uint8 else videos.float()
        low, high = (torch.tensor(bound, device=videos.device) for bound in self.limits)
        return unnormalize_img(to_unit_range(videos, low, high)).float()

    def _shown(self, parts: Iterator[Part], count: int, what: str) -> Iterator[Part]:
        is_shown = self.progress and self.share[0] == 0
        with tqdm(total=count, desc=what, disable=not is_shown) as bar:
            for part in parts:
                yield part
                bar.update(min(part.counted * self.share[1], count - bar.n))
