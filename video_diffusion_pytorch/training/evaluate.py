"""Validation losses, and evaluation of drawn videos, on the clips of a dataset."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.samplers import make_sampler
from video_diffusion_pytorch.diffusion.value_range import to_unit_range, unnormalize_img
from video_diffusion_pytorch.evaluation.evaluator import ClipBatch, Evaluation, Evaluator
from video_diffusion_pytorch.training.batches import (
    ClipDraws,
    Draw,
    SeededItems,
    Unpack,
    choose_workers,
    collate,
    iterate,
    unpack_batch,
)
from video_diffusion_pytorch.training.checks import (
    check_first_clip,
    check_scale_of_samples,
    take_value_range,
)
from video_diffusion_pytorch.training.metrics import StepMetrics
from video_diffusion_pytorch.training.splits import clips_behind, condition_key, name_of
from video_diffusion_pytorch.value_scale import Standardization, parse_scale
from video_diffusion_pytorch.version import __version__

# Keywords of a batch that validation ignores
_IMAGES = ("images", "image_conditions")

# Least number of noisy clips: fewer would cover too few time steps
_LEAST = 64

# For each condition of a model, the kind of condition of a folder
_KINDS = {
    "cond": "caption",
    "labels": "label",
    "frame_cond": "frame_vectors",
    "cond_video": "field",
}

AS_IN_TRAINING = {
    *("fit", "crop", "frame_skip", "fps", "axes", "square_pixels"),
    *("fit_frames", "pad", "pad_position", "variables", "dims", "static_field"),
}
"""Keywords of `Dataset` by which frames are chosen and scaled; others are for training."""
# Recorded ones that a given one excludes
_EXCLUDES = {
    "fps": ("frame_skip",),
    "frame_skip": ("fps",),
    "fit_frames": ("pad", "pad_position"),
    "pad": ("fit_frames",),
    "pad_position": ("fit_frames",),
}

Ready = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts conditions to the model's inputs, for example captions to vectors."""


class Part(NamedTuple):
    """A validation batch: collated clips, the numbers of their draws, and how many count."""

    batch: Any
    numbers: list[int]
    counted: int


class Validation:
    """Validation clips, with fixed time steps and noise.

    Clips are repeated to at least 64 draws; draw `n`, of clip `n % clips`, has the same time step
    and noise in every run.

    Args:
        dataset: Has a length.
        indices: Indices of the clips that may be used; None for all.
        at_least: Least number of clips.
        at_most: Largest number of clips used, evenly spaced.
        batch_size: Clips per batch.
        share: Rank and world size; each process does its part, in equally many batches.

    Raises:
        ValueError: If there are too few clips, or they have no random access.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int] | None,
        *,
        at_least: int = 1,
        at_most: int,
        batch_size: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        is_stream = isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__")
        if indices is None:
            indices = () if is_stream else range(len(dataset))
        if is_stream or len(indices) < at_least:
            raise ValueError(
                "the clips to validate or evaluate on must be read in any order and be at least "
                f"{at_least}, got {'a stream' if is_stream else len(indices)}; pass a folder, or a "
                "dataset with a length"
            )
        count = min(at_most, len(indices))
        places = torch.linspace(0, len(indices) - 1, count, device="cpu").round().long().tolist()
        self.dataset, self.indices = dataset, [indices[place] for place in places]
        self.batch_size, self.share = batch_size, share
        self._labels: list[int] | None = None

    def check(self, diffusion: GaussianDiffusion, unpack: Unpack, trained: Sequence[str]) -> None:
        """Checks the first clip and the classes before training.

        Args:
            diffusion: The model.
            unpack: Splits a batch into videos and conditions.
            trained: Names of the classes that are trained on, if known.

        Raises:
            ValueError: If the first clip does not fit the model, its units are not the model's, or
                its folder has a class that is not trained on.
        """
        clips = clips_behind(self.dataset)
        take_value_range(diffusion, self.dataset)
        first = collate([SeededItems(self.dataset)[Draw(self.indices[0], 0)]])
        check_first_clip(diffusion, clips, *unpack(first))
        self.number_labels(trained)

    def number_labels(self, trained: Sequence[str]) -> None:
        """Notes the numbers that the classes of the clips had in training.

        Args:
            trained: Names of the classes that are trained on, if known.

        Raises:
            ValueError: If the folder has a class that is not trained on.
        """
        clips = clips_behind(self.dataset)
        own = () if clips is None else clips.class_names
        unknown = [name for name in own if trained and name not in trained]
        if unknown:
            raise ValueError(
                "Trainer: the clips to validate on must be of the classes that are trained on, "
                f"{', '.join(trained)}, got {', '.join(unknown)}; remove them"
            )
        if trained and own != tuple(trained):
            # a folder numbers its own classes
            self._labels = [list(trained).index(name) for name in own]

    def with_trained_labels(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions with the labels that were trained with."""
        if self._labels is None or "labels" not in conditions:
            return dict(conditions)
        labels = conditions["labels"]
        if not torch.is_tensor(labels):
            labels = torch.as_tensor(labels, device="cpu")
        # -1 stands for no class
        numbers = torch.tensor([*self._labels, -1], device=labels.device)
        return {**conditions, "labels": numbers[labels]}

    @property
    def draws(self) -> int:
        """Number of noisy clips that the loss is a mean of."""
        return len(self.indices) * math.ceil(_LEAST / len(self.indices))

    def parts(
        self, num_workers: int, draws: int | None = None, pin_memory: bool = False
    ) -> Iterator[Part]:
        """Yields the batches of this process; of the last ones some clips may not count.

        Args:
            num_workers: Number of worker processes.
            draws: Number of clips, which are repeated as needed; None for `self.draws`.
            pin_memory: As in torch's `DataLoader`, for a GPU.
        """
        process, processes = self.share
        draws = self.draws if draws is None else draws
        own = math.ceil(draws / processes)
        numbers = range(process * own, (process + 1) * own)
        batches = [numbers[i : i + self.batch_size] for i in range(0, own, self.batch_size)]
        # fixed seeds, so that crops and flips are fixed too
        wanted = [[Draw(self.indices[n % len(self.indices)], n) for n in b] for b in batches]
        loader: DataLoader[Any] = DataLoader(
            SeededItems(self.dataset),
            batch_sampler=wanted,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=pin_memory,
            # its own generator, as starting a loader draws from the global one
            generator=torch.Generator(),
        )
        for part, batch in zip(batches, iterate(loader), strict=True):
            yield Part(batch, list(part), len([n for n in part if n < draws]))


@torch.no_grad()
def validation_losses(
    validation: Validation,
    losses: Mapping[str, Callable[..., Tensor]],
    data: Any,
    draws: ClipDraws,
    *,
    by_noise_of: str,
    advance: Callable[[int, int], Any] = lambda done, total: None,
) -> tuple[dict[str, float], list[float | None]]:
    """Computes the mean losses of several models over the validation clips.

    Args:
        validation: The clips.
        losses: `compute_loss` of each model, by the model's name.
        data: A `DataSource`, which unpacks batches and prepares conditions.
        draws: Draws time steps and noise.
        by_noise_of: Name of the model whose losses by noise are returned.
        advance: Called after each batch with the numbers of noisy clips done and in all.

    Returns:
        The mean loss of each model by name, and `BINS` means of one, starting with the least noise.
    """
    processes, device = data.processes, data.processes.device
    metrics = StepMetrics(device, data.diffusion.num_timesteps)
    totals = torch.zeros(len(losses) + 1, device=device)
    for part in validation.parts(data.num_workers or 0, pin_memory=device.type == "cuda"):
        videos, conditions = data.unpack(part.batch)
        # without images, so that losses compare between runs with different image_frames
        conditions = data.to_device({n: v for n, v in conditions.items() if n not in _IMAGES})
        videos = videos.to(device, non_blocking=True)
        given = draws.fixed(part.numbers, videos.shape[2])
        given |= validation.with_trained_labels(conditions)
        for i, (name, compute_loss) in enumerate(losses.items()):
            # makes a model that draws itself draw the same each time
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(part.numbers[0])
                found = compute_loss(videos, **given).float()
            counted = found[: part.counted] if found.ndim else found.expand(part.counted)
            if name == by_noise_of and found.ndim and "t" in given and part.counted:
                metrics.add_losses(counted, given["t"][: part.counted])
            totals[i] += counted.sum()
        totals[-1] += part.counted
        advance((part.numbers[-1] + 1) * processes.world_size, validation.draws)
    *sums, count = processes.sum(totals).tolist()
    means = {name: total / count for name, total in zip(losses, sums, strict=True)}
    return means, metrics.take(0, 0.0, processes.sum)["loss_by_noise"]


def evaluate_diffusion(
    diffusion: GaussianDiffusion,
    data: Any,
    evaluation: Evaluation | None = None,
    *,
    class_names: Sequence[str] = (),
    about: Mapping[str, Any] | None = None,
    accelerator: Any = None,
    num_workers: int | None = None,
    progress: bool = True,
    **data_options: Any,
) -> dict[str, Any]:
    """Compares videos drawn from a model with real clips.

    Args:
        diffusion: The model; `load_diffusion` gives that of a checkpoint.
        data: A folder of clips, or a dataset with a length whose items are as in training. The
            drawn videos are conditioned on the clips' conditions and first frames, if the model
            takes these.
        evaluation: What is measured, and how; None for `Evaluation()`.
        class_names: Names of the classes that the model was trained with; empty for those of its
            `clip_info`, or, if it knows none, those of the clips.
        about: Description of the model for the result, in plain values; None for none.
        accelerator: An `accelerate.Accelerator`, if several processes call this together; None for
            one process.
        num_workers: Number of worker processes that read clips; None for as many as in training.
        progress: Whether to show progress bars.
        **data_options: Further keywords of `data.dataset.Dataset`, for a folder; by default frames
            are selected and scaled as in training, and conditions read, by `clip_info.settings` of
            the model.

    Returns:
        A result for `evaluation.results.write_result`: `scores`, the `protocol` by which they were
        measured, and `model`, `version`, `torch`, `device`, `time` (of the end, in seconds since
        1970) and `seconds` (the duration).

    Raises:
        FileNotFoundError: If the folder, a clip or a condition is missing.
        TypeError: If a keyword is unknown.
        ValueError: If clips, model and evaluation do not fit together.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch import Unet3D
        >>> from video_diffusion_pytorch.data.moving_digits import write_moving_digits
        >>> unet = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1)
        >>> diffusion = GaussianDiffusion(unet, image_size=12, num_frames=2, timesteps=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_moving_digits(folder, num_clips=4, image_size=24, num_frames=2)
        ...     many = Evaluation(count=66)
        ...     result = evaluate_diffusion(diffusion, [*Dataset(folder, 12, 1, 2)] * 17, many,
        ...                                 progress=False)
        >>> [*result["scores"]], result["protocol"]["samples"]["steps"]
        (['random_feature_distance'], 2)
    """
    start = time.time()
    evaluation = Evaluation() if evaluation is None else evaluation
    if isinstance(data, (str, os.PathLike)):
        data = read_folder(data, diffusion, data_options, with_labels=evaluation.labels)
    elif data_options:
        raise TypeError(
            f"evaluate_diffusion: {', '.join(data_options)} must go with a folder of clips, got a "
            f"{type(data).__name__}; leave them out"
        )
    device = diffusion.betas.device
    parts: dict[str, Any] = {}
    if accelerator is not None and accelerator.num_processes > 1:
        parts["share"] = accelerator.process_index, accelerator.num_processes
        parts["total"] = lambda values: accelerator.reduce(values.to(device), "sum").cpu()
    evaluator = make_evaluator(
        diffusion,
        data,
        evaluation,
        class_names=class_names or diffusion.clip_info.class_names,
        num_workers=choose_workers(data) if num_workers is None else num_workers,
        progress=progress,
        **parts,
    )
    was_training = diffusion.training
    found = evaluator(diffusion.eval())
    diffusion.train(was_training)
    assert found is not None
    result = evaluator.result(found, about or {}, device)
    return {**result, "seconds": round(time.time() - start, 1)}


def make_evaluator(
    diffusion: GaussianDiffusion,
    dataset: Any,
    evaluation: Evaluation,
    *,
    share: tuple[int, int] = (0, 1),
    total: Callable[[Tensor], Tensor] = lambda values: values,
    progress: bool = False,
    **clip_options: Any,
) -> Evaluator:
    """Makes the `Evaluator` of a model on the clips of a dataset.

    Args:
        diffusion: The model to evaluate, or one with the same settings.
        dataset: The real clips, with their conditions; has a length.
        evaluation: What is measured.
        share: Rank and world size.
        total: Sums a tensor over the processes.
        progress: Whether to show progress bars.
        **clip_options: Further keywords of `EvaluationClips`.

    Raises:
        ValueError: If the clips do not fit the model or the evaluation, the sampler is unknown, or
            the file of statistics is of other clips or networks.
    """
    return Evaluator(
        diffusion,
        EvaluationClips(diffusion, dataset, evaluation, share=share, **clip_options),
        evaluation,
        sampling_options(diffusion, evaluation.sampler, evaluation.steps, evaluation.cond_scale),
        version=__version__,
        share=share,
        total=total,
        progress=progress,
    )


def sampling_options(
    diffusion: GaussianDiffusion,
    sampler: Any,
    steps: int | None,
    cond_scale: float | Mapping[str, float],
) -> dict[str, Any]:
    """Keywords of `diffusion.sample` that are the same for all videos of an evaluation.

    Args:
        diffusion: The model.
        sampler: As in `GaussianDiffusion.sample`.
        steps: Number of steps; None for the model's `sampling_timesteps`, or the sampler's default.
        cond_scale: As in `GaussianDiffusion.sample`; for a model with conditions.
    """
    default, most = make_sampler(sampler).default_steps, diffusion.num_timesteps
    chosen: Any = steps or diffusion.sampling_timesteps
    if sampler == "ddpm" or chosen is None:
        chosen = min(default or most, most)
    options = {"sampler": sampler, "steps": chosen}
    if diffusion.condition_names:
        check_scale_of_samples("Evaluation: cond_scale", cond_scale, diffusion)
        options["cond_scale"] = cond_scale
    return options


class EvaluationClips(Validation):
    """Clips of a dataset, as an `Evaluator` reads them.

    Args:
        diffusion: The model to evaluate, or one with the same settings.
        dataset: The real clips, with their conditions; has a length.
        evaluation: What is measured.
        indices: Indices of the clips to use; None for all.
        unpack: Splits a batch into videos and conditions.
        ready: Converts conditions to the model's inputs, for example captions to vectors.
        class_names: Names of the classes that the model was trained with, if known.
        share: Rank and world size.
        num_workers: Number of worker processes that read clips.

    Attributes:
        indices: Indices of the clips used, evenly spaced.
        number: Number of these clips.
        protocol: Their description in the result, in plain values.

    Raises:
        ValueError: If the clips have no random access, are fewer than two, do not fit the model,
            have a `value_range` and the model has none, or lack the labels of the evaluation.
    """

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        dataset: Any,
        evaluation: Evaluation,
        *,
        indices: Sequence[int] | None = None,
        unpack: Unpack = unpack_batch,
        ready: Ready = dict,
        class_names: Sequence[str] = (),
        share: tuple[int, int] = (0, 1),
        num_workers: int = 0,
    ) -> None:
        clips = clips_behind(dataset)
        if clips is not None and clips.value_range and diffusion.config["value_range"] is None:
            raise ValueError(
                "Evaluation: the clips must be in the model's units, got a value_range, "
                f"{clips.value_range}, which the model has not; leave it out"
            )
        self._limits = _unit_limits(diffusion, evaluation)
        self._has_gaps = diffusion.missing == "mask"
        sizes = {"at_least": 2, "at_most": evaluation.clips, "batch_size": evaluation.max_batch}
        super().__init__(dataset, indices, share=share, **sizes)
        takes_labels = "labels" in diffusion.condition_names or not evaluation.labels
        self.check(diffusion, unpack if takes_labels else _without_labels(unpack), class_names)
        self._unpack, self._ready, self._num_workers = unpack, ready, num_workers
        self.number = len(self.indices)
        settings = describe_clips(dataset, self.indices)
        self.protocol = {**settings, "value_range": self._limits}
        if evaluation.labels:
            keys = [condition_key(dataset, index) for index in self.indices]
            self.protocol["labels"] = hashlib.sha256(repr(keys).encode()).hexdigest()[:16]

    def batches(self, count: int) -> Iterator[ClipBatch]:
        """This process's share of `count` clips, which are repeated as often as needed."""
        for part in self.parts(self._num_workers, count):
            yield ClipBatch(*self._unpack(part.batch), part.numbers, part.counted)

    def ready(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """Conditions as the model takes them, with the labels that were trained with."""
        return self._ready(self.with_trained_labels(conditions))

    def to_unit_range(self, videos: Tensor) -> Tensor:
        """Converts videos from the clips' units to float32 in [0, 1], for feature networks.

        Values that are missing become the middle.
        """
        if self._has_gaps and videos.is_floating_point():
            return self._to_unit_range(videos.nan_to_num(0.0)).masked_fill(videos.isnan(), 0.5)
        return self._to_unit_range(videos)

    def _to_unit_range(self, videos: Tensor) -> Tensor:
        if self._limits is None:
            return videos.float() / 255 if videos.dtype == torch.uint8 else videos.float()
        scale = parse_scale(self._limits, videos.shape[1])
        if isinstance(scale, Standardization):
            return scale.to_unit_range(videos).float()
        low, high = (torch.tensor(bound, device=videos.device) for bound in self._limits)
        return unnormalize_img(to_unit_range(videos, low, high)).float()


def _without_labels(unpack: Unpack) -> Unpack:
    """Unpacks batches of labelled clips for a model that takes no labels."""

    def unpack_for_model(batch: Any) -> tuple[Tensor, dict[str, Any]]:
        videos, conditions = unpack(batch)
        if "labels" not in conditions:
            raise ValueError(
                "Evaluation: for labels=True clips must have labels, got "
                f"{', '.join(conditions) or 'no condition'} with them; sort them into sub-folders, "
                "give a manifest with labels, or add 'labels' to the items of the dataset"
            )
        return videos, {name: value for name, value in conditions.items() if name != "labels"}

    return unpack_for_model


def _unit_limits(diffusion: GaussianDiffusion, evaluation: Evaluation) -> Any:
    """The clips' values that feature networks get as 0 and 1; None for clips in [0, 1]."""
    given = evaluation.value_range or diffusion.config["value_range"]
    if given is None and not diffusion.auto_normalize:
        raise ValueError(
            "Evaluation: the feature networks need a value_range of the clips, got none, and a "
            "model without auto_normalize; pass value_range=(low, high)"
        )
    scale = parse_scale(given, diffusion.channels)
    # in plain values, as a part of the protocol
    return scale.plain() if isinstance(scale, Standardization) else scale


def describe_clips(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
    """Settings of a `Dataset` and a hash of its files' names and sizes; else the class name."""
    clips = clips_behind(dataset)
    if clips is None:
        return {"dataset": type(dataset).__qualname__}
    found = hashlib.sha256()
    for path in sorted({Path(name_of(dataset, index)) for index in indices}):
        name = path.relative_to(clips.folder) if path.is_relative_to(clips.folder) else path
        size = path.stat().st_size if path.is_file() else 0
        found.update(f"{name.as_posix()} {size}\n".encode())
    return {**clips.settings, "files": found.hexdigest()[:16]}


def read_folder(
    folder: str | os.PathLike[str],
    diffusion: GaussianDiffusion,
    options: dict[str, Any],
    *,
    with_labels: bool = False,
) -> Dataset:
    """Opens the clips of a folder in the shape, units and conditions of the model.

    Args:
        folder: The folder.
        diffusion: The model.
        options: Keywords of `Dataset`, which precede those of the model.
        with_labels: Whether clips must have labels, even if the model takes none.

    Raises:
        FileNotFoundError: If the folder, a clip or a condition is missing.
        TypeError: If a keyword is unknown.
        ValueError: If one is out of range.
    """
    options = dict(options)
    names, units = diffusion.condition_names, diffusion.config["value_range"]
    is_default = options.get("conditions") is None
    settings = diffusion.clip_info.settings
    if is_default:
        columns = list(diffusion.clip_info.cond_ranges)
        kinds: dict[str, Any] = _KINDS | ({"cond": {"cond": columns}} if columns else {})
        usual = [kinds[name] for name in names if name in kinds] or None
        options["conditions"] = settings.get("conditions", usual)
    if with_labels:
        options["conditions"] = _with_label(options["conditions"])
    excluded = {other for name in options for other in _EXCLUDES.get(name, ())}
    wanted = AS_IN_TRAINING - excluded
    trained = {name: value for name, value in settings.items() if name in wanted}
    own: dict[str, Any] = {"value_range": units} if units is not None else {"as_uint8": True}
    own["missing"] = diffusion.missing
    c, f, h, w = diffusion.clip_shape
    sizes: dict[str, Any] = {"image_size": (h, w), "num_frames": f, "channels": c}
    try:
        return Dataset(folder, **{**trained, "exts": None, **sizes, **own, **options})
    except FileNotFoundError as error:
        if is_default and "cond" in names:
            raise FileNotFoundError(
                f"{error}; or, if the model was trained with vectors, conditions='vector'"
            ) from error
        raise


def _with_label(conditions: Any) -> Any:
    """Conditions of clips with their label; a function is left to give it itself."""
    names, function, columns = split_conditions(conditions)
    if "label" in names or "labels" in columns or function is not None:
        return conditions
    return [*names, *[columns] * bool(columns), "label"]
