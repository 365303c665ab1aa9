"""Evaluation of a model on the clips of a folder or a dataset."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from video_diffusion_pytorch.arguments import as_value_range
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.samplers import make_sampler
from video_diffusion_pytorch.diffusion.value_range import to_unit_range, unnormalize_img
from video_diffusion_pytorch.evaluation.evaluator import ClipBatch, Evaluation, Evaluator
from video_diffusion_pytorch.training.batches import unpack_batch
from video_diffusion_pytorch.training.data_source import choose_workers
from video_diffusion_pytorch.training.splits import clips_behind, name_of
from video_diffusion_pytorch.training.validation import Unpack, Validation
from video_diffusion_pytorch.version import __version__

# For each condition of a model, the kind of condition of a folder
_KINDS = {
    "cond": "caption",
    "labels": "label",
    "frame_cond": "frame_vectors",
    "cond_video": "field",
}

Ready = Callable[[dict[str, Any]], dict[str, Any]]


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
        class_names: Names of the classes that the model was trained with; empty if they are those
            of the clips.
        about: Description of the model for the result, in plain values; None for none.
        accelerator: An `accelerate.Accelerator`, if several processes call this together; None for
            one process.
        num_workers: Number of worker processes that read clips; None for as many as in training.
        progress: Whether to show progress bars.
        **data_options: Further keywords of `data.dataset.Dataset`, for a folder.

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
        data = _read_folder(data, diffusion, data_options)
    elif data_options:
        raise TypeError(
            f"evaluate_diffusion: {', '.join(data_options)} must go with a folder of clips, got a "
            f"{type(data).__name__}; leave them out"
        )
    share, device = (0, 1), diffusion.betas.device
    if accelerator is not None:
        share = accelerator.process_index, accelerator.num_processes

    def total(values: Tensor) -> Tensor:
        if share[1] == 1:
            return values
        return accelerator.reduce(values.to(device), "sum").cpu()

    evaluator = make_evaluator(
        diffusion,
        data,
        evaluation,
        class_names=class_names,
        share=share,
        total=total,
        num_workers=choose_workers(data) if num_workers is None else num_workers,
        progress=progress,
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
        sampling_options(diffusion, evaluation),
        version=__version__,
        share=share,
        total=total,
        progress=progress,
    )


def sampling_options(diffusion: GaussianDiffusion, evaluation: Evaluation) -> dict[str, Any]:
    """Keywords of `diffusion.sample` that are the same for all videos of an evaluation."""
    sampler, most = make_sampler(evaluation.sampler), diffusion.num_timesteps
    steps: Any = evaluation.steps or diffusion.sampling_timesteps
    if evaluation.sampler == "ddpm" or steps is None:
        steps = min(sampler.default_steps or most, most)
    options = {"sampler": evaluation.sampler, "steps": steps}
    return (
        {**options, "cond_scale": evaluation.cond_scale} if diffusion.condition_names else options
    )


class EvaluationClips:
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
        ValueError: If the clips have no random access, are fewer than two, do not fit the model, or
            have a `value_range` and the model has none.
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
        _check_clips(diffusion, dataset, indices)
        self._limits = _unit_limits(diffusion, evaluation)
        self._clips = Validation(
            dataset,
            range(len(dataset)) if indices is None else indices,
            at_most=evaluation.clips,
            batch_size=evaluation.max_batch,
            share=share,
        )
        self._clips.check(diffusion, unpack, class_names)
        self._unpack, self._ready, self._num_workers = unpack, ready, num_workers
        self.indices = self._clips.indices
        self.number = len(self.indices)
        self.protocol = {
            **_protocol_of_clips(dataset, self.indices),
            "value_range": self._limits,
        }

    def batches(self, count: int) -> Iterator[ClipBatch]:
        """This process's share of `count` clips, which are repeated as often as needed."""
        for part in self._clips.parts(self._num_workers, count):
            yield ClipBatch(*self._unpack(part.batch), part.numbers, part.counted)

    def ready(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """Conditions as the model takes them, with the labels that were trained with."""
        return self._ready(self._clips.with_trained_labels(conditions))

    def to_unit_range(self, videos: Tensor) -> Tensor:
        """Converts videos from the clips' units to float32 in [0, 1], for feature networks."""
        if self._limits is None:
            return videos.float() / 255 if videos.dtype == torch.uint8 else videos.float()
        low, high = (torch.tensor(bound, device=videos.device) for bound in self._limits)
        return unnormalize_img(to_unit_range(videos, low, high)).float()


def _check_clips(diffusion: GaussianDiffusion, dataset: Any, indices: Sequence[int] | None) -> None:
    is_list = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if not is_list or len(dataset if indices is None else indices) < 2:
        found = "fewer" if is_list else f"a {type(dataset).__name__}"
        raise ValueError(
            "Evaluation: there must be at least 2 clips with random access, got "
            f"{found}; give a folder, or a dataset with a length"
        )
    clips = clips_behind(dataset)
    if clips is not None and clips.value_range and diffusion.config["value_range"] is None:
        raise ValueError(
            "Evaluation: the clips must be in the units that the model was trained with, which "
            f"are no value_range, got clips with {clips.value_range}; leave their value_range out"
        )


def _unit_limits(diffusion: GaussianDiffusion, evaluation: Evaluation) -> Any:
    """The clips' values that feature networks get as 0 and 1; None for clips in [0, 1]."""
    given = evaluation.value_range or diffusion.config["value_range"]
    if given is None and not diffusion.auto_normalize:
        raise ValueError(
            "Evaluation: the feature networks need a range of values, got a model with "
            "auto_normalize=False and no value_range; pass value_range=(low, high) of the clips"
        )
    return as_value_range(given, diffusion.channels, others="'fit' or ")


def _protocol_of_clips(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
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


def _read_folder(
    folder: str | os.PathLike[str], diffusion: GaussianDiffusion, options: dict[str, Any]
) -> Dataset:
    """Opens the clips of a folder in the shape, units and conditions of the model."""
    names, units = diffusion.condition_names, diffusion.config["value_range"]
    is_default = options.get("conditions") is None
    if is_default:
        options["conditions"] = [_KINDS[name] for name in names if name in _KINDS] or None
    own: dict[str, Any] = {"value_range": units} if units is not None else {"as_uint8": True}
    c, f, h, w = diffusion.clip_shape
    sizes: dict[str, Any] = {"image_size": (h, w), "num_frames": f, "channels": c}
    try:
        return Dataset(folder, **{"exts": None, **sizes, **own, **options})
    except FileNotFoundError as error:
        if is_default and "cond" in names:
            raise FileNotFoundError(
                f"{error}; or, if the model was trained with vectors, conditions='vector'"
            ) from error
        raise
