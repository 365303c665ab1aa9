"""Verification of a model's ensemble forecasts on the clips of a dataset, against baselines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.random_streams import stream_seed
from video_diffusion_pytorch.evaluation.evaluator import SAMPLER, sampler_in_words
from video_diffusion_pytorch.evaluation.forecast_scores import ForecastScores, latitude_weights
from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.training.batches import choose_workers, unpack_batch
from video_diffusion_pytorch.training.evaluate import (
    Validation,
    describe_clips,
    read_folder,
    sampling_options,
)
from video_diffusion_pytorch.training.one_step import train_one_step
from video_diffusion_pytorch.version import __version__

SUMMARY = ("crps", "rmse", "vrmse", "spread_skill", "coverage", "acc", "spectral_error_high")
"""Scores of the tables; others are in the result by lead time."""

MODEL = "model"
_PERSISTENCE, _CLIMATOLOGY, _ONE_STEP = "persistence", "climatology", "one-step network"

Forecast = Callable[[Tensor, int], Tensor]
"""Continues frames `(b, c, k, h, w)` by a number of frames, `(b, c, f, h, w)`."""


@dataclass(frozen=True)
class Verification:
    """Settings of the verification of forecasts.

    Results record them, all but `one_step` as their protocol.

    Attributes:
        frames: Number of frames to forecast.
        initial_frames: Number of known frames at the start of a clip; None for the model's
            `given_frames`, or 1.
        members: Members of the ensemble.
        clips: Largest number of clips, evenly spaced.
        seed: Seed of the forecasts; that of a clip is the same in any batch and number of
            processes.
        stride: New frames per window; None as in `GaussianDiffusion.forecast`.
        weight: As in `GaussianDiffusion.forecast`.
        given_noise: As in `GaussianDiffusion.forecast`.
        sampler: As in `GaussianDiffusion.sample`.
        steps: Number of steps; None for the model's `sampling_timesteps`, or the sampler's default.
        cond_scale: Guidance scale; 1 disables guidance.
        max_batch: Largest number of members drawn at once, of all clips together.
        latitudes: Degrees of the rows, whose area weighs the scores; None for equal weights.
        velocity: Channels of the velocity along width and height, by number, for divergence and
            enstrophy; None for none.
        spacing: Distance of grid points along height and width.
        periodic: Whether the domain is periodic along height and width, for derivatives.
        one_step: Number of training steps of a deterministic network of the same size, which
            predicts frame by frame; needs the training clips. 0 for no such baseline.

    Raises:
        ValueError: If a number is out of range.
    """

    frames: int = 16
    initial_frames: int | None = None
    members: int = 8
    clips: int = 2048
    seed: int = 0
    stride: int | None = None
    weight: float | None = None
    given_noise: float = 0.0
    sampler: Any = SAMPLER
    steps: int | None = None
    cond_scale: float | Mapping[str, float] = 1.0
    max_batch: int = 16
    latitudes: Sequence[float] | None = None
    velocity: tuple[int, int] | None = None
    spacing: tuple[float, float] = (1.0, 1.0)
    periodic: tuple[bool, bool] = (False, False)
    one_step: int = 0

    def __post_init__(self) -> None:
        least = {"frames": 1, "initial_frames": 1, "members": 2, "clips": 1, "max_batch": 1}
        for name, lowest in {**least, "steps": 1, "seed": 0, "one_step": 0}.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"Verification: {name} must be at least {lowest}, got {value}")


class Example(NamedTuple):
    """One forecast, to look at.

    Attributes:
        initial: The known frames, `(c, k, h, w)`.
        truth: What happened, `(c, f, h, w)`.
        members: What was forecast, `(m, c, f, h, w)`.
    """

    initial: Tensor
    truth: Tensor
    members: Tensor


def write_example(example: Example, path: Path) -> None:
    """Writes a forecast as the arrays `initial`, `truth` and `members` of a `.npz`."""
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        np.savez_compressed(file, **{n: v.numpy() for n, v in example._asdict().items()})


def verify_forecasts(
    diffusion: GaussianDiffusion,
    data: Any,
    verification: Verification | None = None,
    *,
    training_data: Any = None,
    about: Mapping[str, Any] | None = None,
    accelerator: Any = None,
    num_workers: int | None = None,
    progress: bool = True,
    **data_options: Any,
) -> tuple[dict[str, Any], Example]:
    """Forecasts the rest of clips from their first frames, and scores the forecasts.

    The baselines are persistence (the last known frame stays), with training clips the climatology
    (their mean by channel and grid point), and a deterministic network that predicts one step.

    Args:
        diffusion: The model; `load_diffusion` gives that of a checkpoint.
        data: A folder of clips, or a dataset with a length whose items are as in training, but with
            all frames that are known or forecast. A model with conditions gets those of the clips.
        verification: What is measured, and how; None for `Verification()`.
        training_data: A folder of the clips that the model was trained on, or a dataset, for the
            climatology, with which anomalies are correlated, too, and for the one-step network.
            None for none of these. Of a folder with a manifest, the split `"train"` is used.
        about: Description of the model for the result, in plain values; None for none.
        accelerator: An `accelerate.Accelerator`, if several processes call this together; None for
            one process.
        num_workers: Number of worker processes that read clips; None for as many as in training.
        progress: Whether to show progress bars.
        **data_options: Further keywords of `data.dataset.Dataset`, for folders, as in
            `evaluate_diffusion`.

    Returns:
        A result for `evaluation.results.write_result`, and the first forecast. Of the result,
        `scores` are means over lead times, of several channels by channel, and `baselines` those of
        the baselines; `by_lead_time` holds, for the model and each baseline, all scores of
        `ForecastScores.compute` as lists.

    Raises:
        FileNotFoundError: If a folder, a clip or a condition is missing.
        FloatingPointError: If all forecasts diverge.
        TypeError: If a keyword is unknown.
        ValueError: If clips, model and verification do not fit together.
    """
    begin = time.time()
    settings = Verification() if verification is None else verification
    known = settings.initial_frames or diffusion.given_frames or 1
    if settings.one_step and training_data is None:
        raise ValueError(
            "Verification: one_step must go with the training clips, got none; pass training_data"
        )
    _check(settings, diffusion, known)
    dataset = _dataset(data, diffusion, known + settings.frames, data_options)
    trained = None
    if training_data is not None:
        options = {**data_options, "clip_start": "all"}
        if options.get("manifest") is not None:
            options["split"] = "train"
        trained = _dataset(training_data, diffusion, diffusion.num_frames, options)
    share, total = (0, 1), _unchanged
    device = diffusion.betas.device
    if accelerator is not None and accelerator.num_processes > 1:
        share = accelerator.process_index, accelerator.num_processes
        total = partial(_total, accelerator, device)
    workers = choose_workers(dataset) if num_workers is None else num_workers
    how = _How(settings, known, share, total, workers, progress and share[0] == 0)
    was_training = diffusion.training
    diffusion.eval()
    climatology = None if trained is None else _mean_field(diffusion, trained, how)
    scored = _Scored(diffusion, settings, climatology, known)
    if settings.one_step:
        scored.baselines[_ONE_STEP] = _one_step(diffusion, trained, how)
    size = max(1, settings.max_batch // settings.members)
    clips = Validation(dataset, None, at_most=settings.clips, batch_size=size, share=share)
    clips.number_labels(diffusion.clip_info.class_names)
    example = scored.run(clips, how)
    diffusion.train(was_training)
    result = {
        **scored.result(total),
        "protocol": _protocol(diffusion, settings, known, dataset, clips, trained is not None),
        "one_step": settings.one_step,
        "model": dict(about or {}),
        "version": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "time": time.time(),
        "seconds": round(time.time() - begin, 1),
    }
    return result, example


def _check(settings: Verification, diffusion: GaussianDiffusion, known: int) -> None:
    """Raises a ValueError for settings that do not fit the model, before anything is drawn."""
    channels, frames, height, _ = diffusion.clip_shape
    rows = height if settings.latitudes is None else len(settings.latitudes)
    rules = {
        f"velocity must be two of the {channels} channels, from 0 on": (
            settings.velocity is None or {*settings.velocity} <= {*range(channels)}
        ),
        "spacing must be above 0": min(settings.spacing) > 0,
        f"latitudes must be those of the {height} rows": rows == height,
        f"initial_frames must be fewer than the {frames} of a training clip for one_step": (
            not settings.one_step or known < frames
        ),
    }
    for rule, is_met in rules.items():
        if not is_met:
            name = rule.partition(" ")[0]
            got = known if name == "initial_frames" else getattr(settings, name)
            raise ValueError(f"Verification: {rule}, got {shown(got)}; correct it")


class _How(NamedTuple):
    """How the clips are read and scored: settings, known frames, processes, workers, progress."""

    settings: Verification
    known: int
    share: tuple[int, int]
    total: Callable[[Tensor], Tensor]
    workers: int
    is_shown: bool


def _unchanged(values: Tensor) -> Tensor:
    return values


def _total(accelerator: Any, device: torch.device, values: Tensor) -> Tensor:
    """The sum over processes."""
    found: Tensor = accelerator.reduce(values.to(device), "sum")
    return found.cpu()


def _dataset(
    data: Any, diffusion: GaussianDiffusion, frames: int, options: Mapping[str, Any]
) -> Any:
    """The clips of a folder, or a dataset."""
    if isinstance(data, (str, os.PathLike)):
        usual: dict[str, Any] = {"num_frames": frames}
        if diffusion.clip_info.settings.get("fit_frames") is None and "fit_frames" not in options:
            # forecasts of padding would be scored
            usual["pad"] = "error"
        return read_folder(data, diffusion, {**usual, **options})
    if {*options} - {"clip_start"}:
        raise TypeError(
            f"verify_forecasts: {', '.join(options)} must go with a folder of clips, got a "
            f"{type(data).__name__}; leave them out"
        )
    return data


@torch.no_grad()
def _mean_field(diffusion: GaussianDiffusion, dataset: Any, how: _How) -> Tensor:
    """The mean of clips over time, by channel and grid point, `(c, h, w)`, float64 on the CPU."""
    count = len(dataset)
    clips = Validation(dataset, None, at_most=count, batch_size=16, share=how.share)
    c, _, h, w = diffusion.clip_shape
    sums = torch.zeros(2, c, h, w, dtype=torch.float64, device="cpu")
    with tqdm(total=count, desc="climatology", disable=not how.is_shown, leave=False) as bar:
        for part in clips.parts(how.workers, draws=count):
            videos, _ = unpack_batch(part.batch)
            values = _in_units(diffusion, videos[: part.counted]).double().cpu()
            sums[0] += values.nan_to_num(0.0).sum(dim=(0, 2))
            sums[1] += (~values.isnan()).sum(dim=(0, 2))
            bar.update(part.counted * how.share[1])
    total, number = how.total(sums)
    mean = total / number
    # where nothing is known, the mean of the channel
    usual = total.sum(dim=(1, 2), keepdim=True) / number.sum(dim=(1, 2), keepdim=True)
    return mean.where(number > 0, usual)


def _in_units(diffusion: GaussianDiffusion, videos: Tensor) -> Tensor:
    """Clips in the range of samples."""
    if videos.dtype == torch.uint8 and not diffusion.has_units:
        return videos.float() / 255
    return videos.to(torch.promote_types(videos.dtype, torch.float32))


class _Scored:
    """Scores of a model and of its baselines.

    Args:
        diffusion: The model.
        settings: What is measured.
        climatology: Mean of the training clips, `(c, h, w)`; None for none.
        known: Number of known frames.

    Attributes:
        baselines: Forecasts by name; more may be added before `run`.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        settings: Verification,
        climatology: Tensor | None,
        known: int,
    ) -> None:
        self.diffusion, self.settings, self.known = diffusion, settings, known
        self.climatology = climatology
        self.baselines: dict[str, Forecast] = {_PERSISTENCE: _persist}
        if climatology is not None:
            self.baselines[_CLIMATOLOGY] = partial(_climatology, climatology)
        self._scores: dict[str, ForecastScores] = {}
        # forecasts that diverged, and all
        self._counts = torch.zeros(2, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def run(self, clips: Validation, how: _How) -> Example:
        """Forecasts and scores clips; gives the first forecast."""
        self._scores = {name: self._make_scores() for name in (MODEL, *self.baselines)}
        example = None
        with tqdm(total=len(clips.indices), desc="forecasts", disable=not how.is_shown) as bar:
            for part in clips.parts(how.workers, draws=len(clips.indices)):
                videos, conditions = unpack_batch(part.batch)
                videos = _in_units(self.diffusion, videos.to(self.diffusion.betas.device))
                conditions = clips.with_trained_labels(conditions)
                members = self._members(videos, conditions, part.numbers)
                self._add(videos, members, part.counted)
                if example is None:
                    beginning, rest = videos[0, :, : self.known], videos[0, :, self.known :]
                    example = Example(beginning.cpu(), rest.cpu(), members[0].cpu())
                bar.update(part.counted * how.share[1])
        assert example is not None
        return example

    def _make_scores(self) -> ForecastScores:
        settings = self.settings
        rows = settings.latitudes
        return ForecastScores(
            None if rows is None else latitude_weights(rows),
            self.climatology,
            settings.velocity,
            settings.spacing,
            settings.periodic,
        )

    def _members(
        self, videos: Tensor, conditions: Mapping[str, Any], numbers: Sequence[int]
    ) -> Tensor:
        """The model's forecasts of clips, `(b, m, c, f, h, w)`."""
        settings, model = self.settings, self.diffusion
        frames = self.known + settings.frames
        if videos.shape[2] != frames:
            raise ValueError(
                f"Verification: clips must have {frames} frames, {self.known} known ones and "
                f"{settings.frames} to forecast, got {videos.shape[2]}; change frames or "
                "initial_frames"
            )
        given = {n: v for n, v in conditions.items() if n in model.condition_names}
        sampling = sampling_options(model, settings.sampler, settings.steps, settings.cond_scale)
        return model.forecast(
            videos[:, :, : self.known],
            settings.frames,
            members=settings.members,
            seed=[stream_seed(settings.seed, number) for number in numbers],
            stride=settings.stride,
            weight=settings.weight,
            given_noise=settings.given_noise,
            max_batch=settings.max_batch,
            progress=False,
            **sampling,
            **given,
        )

    def _add(self, videos: Tensor, members: Tensor, counted: int) -> None:
        """Scores the forecasts of a batch, of which `counted` count."""
        truth = videos[:counted, :, self.known :]
        mask = ~truth.isnan() if self.diffusion.missing == "mask" else None
        beginning, _ = self.diffusion.fill_missing(videos[:counted, :, : self.known])
        is_right = members[:counted].isfinite().flatten(1).all(dim=1)
        self._counts += torch.tensor([(~is_right).sum(), counted], device="cpu")
        # all forecasts are scored on the same clips
        truth, mask = truth[is_right], None if mask is None else mask[is_right]
        for name, scores in self._scores.items():
            found = members[:counted][is_right]
            if name != MODEL:
                found = self.baselines[name](beginning[is_right], self.settings.frames)[:, None]
            scores.add(found, truth, mask)

    def result(self, total: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The scores of all processes, in plain values."""
        diverged, number = (round(n) for n in total(self._counts).tolist())
        if diverged == number:
            raise FloatingPointError(
                f"Verification: forecasts must be finite, got NaN or infinite values in all "
                f"{number}; the model has diverged, take an earlier checkpoint"
            )
        joined = {name: scores.over_processes(total) for name, scores in self._scores.items()}
        computed = {name: scores.compute() for name, scores in joined.items()}
        names = channel_names(self.diffusion)
        means = {name: _means(found, names) for name, found in computed.items()}
        return {
            "scores": {**means.pop(MODEL), "diverged_forecasts": diverged},
            "baselines": means,
            "channels": names,
            "by_lead_time": {
                name: {score: values.tolist() for score, values in found.items()}
                for name, found in computed.items()
            },
        }


def _persist(initial_frames: Tensor, num_frames: int) -> Tensor:
    """The last known frame."""
    return initial_frames[:, :, -1:].expand(-1, -1, num_frames, -1, -1)


def _climatology(mean: Tensor, initial_frames: Tensor, num_frames: int) -> Tensor:
    """The mean of the training clips."""
    # with all its digits, so that it has no anomaly
    return mean[None, :, None].expand(len(initial_frames), -1, num_frames, -1, -1)


def _one_step(diffusion: GaussianDiffusion, dataset: Any, how: _How) -> Forecast:
    """The forecast of a network that is trained on these clips."""
    model = train_one_step(
        diffusion,
        dataset,
        how.known,
        how.settings.one_step,
        seed=how.settings.seed,
        num_workers=how.workers,
        progress=how.is_shown,
    )
    return model.forecast


def channel_names(diffusion: GaussianDiffusion) -> list[str]:
    """Names of the channels of a model: the variables of its training clips, or numbers."""
    names = diffusion.clip_info.settings.get("variables") or ()
    if len(names) == diffusion.channels:
        return list(names)
    return [str(channel) for channel in range(diffusion.channels)]


def _means(found: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    """Means of the scores over lead times; of several channels one each."""
    means = {}
    for score in SUMMARY:
        if score in found:
            # of intervals, the widest
            values = found[score][..., 0] if score == "coverage" else found[score]
            for name, value in zip(names, values.mean(dim=1).tolist(), strict=True):
                means[score if len(names) == 1 else f"{score}.{name}"] = value
    return means


def _protocol(
    diffusion: GaussianDiffusion,
    settings: Verification,
    known: int,
    dataset: Any,
    clips: Validation,
    has_climatology: bool,
) -> dict[str, Any]:
    """The protocol of a result, in plain values."""
    sampling = sampling_options(diffusion, settings.sampler, settings.steps, settings.cond_scale)
    # not one_step, which the scores of the model do not depend on
    names = ("frames", "members", "seed", "stride", "weight", "given_noise")
    own = {name: getattr(settings, name) for name in names}
    grid = ("latitudes", "velocity", "spacing", "periodic")
    protocol = {
        "clips": {**describe_clips(dataset, clips.indices), "number": len(clips.indices)},
        "forecasts": {
            "initial_frames": known,
            **own,
            "sampler": sampler_in_words(settings.sampler, diffusion),
            "steps": sampling["steps"],
            "cond_scale": sampling.get("cond_scale"),
            "conditions": list(diffusion.condition_names),
        },
        "grid": {name: getattr(settings, name) for name in grid},
        "climatology": has_climatology,
    }
    plain: dict[str, Any] = json.loads(json.dumps(protocol))
    return plain
