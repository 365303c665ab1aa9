"""The step after training, in one call: a model and a folder of clips in, a result out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.data_source import choose_workers
from video_diffusion_pytorch.training.evaluation_options import Evaluation
from video_diffusion_pytorch.training.evaluator import Evaluator

# What beside a clip tells a condition, where the folder's options do not say
_KINDS = {
    "cond": "caption",
    "labels": "label",
    "frame_cond": "frame_vectors",
    "cond_video": "field",
}


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
    """Measures how near videos of a model are to real clips.

    Args:
        diffusion: The model; `load_diffusion` gives that of a checkpoint.
        data: A folder of clips, or a dataset with a length whose items are as in training. Clips
            tell the drawn videos their own conditions, and first frames, where the model takes
            such.
        evaluation: What is measured, and how; None for `Evaluation()`.
        class_names: Of the classes that the model was trained with; empty where they are those of
            the clips.
        about: What the result shall tell of the model, in plain values.
        accelerator: Of accelerate, in several processes, each of which calls this; None for one.
        num_workers: Processes that read clips; None for as many as in training.
        progress: Whether to show progress bars.
        **data_options: Further keywords of `data.dataset.Dataset`, for a folder.

    Returns:
        What `evaluation.results.write_result` takes: `scores`, the `protocol` by which they were
        measured, and `model`, `version`, `torch`, `device`, `time` (of the end, in seconds since
        1970) and `seconds`.

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

    evaluator = Evaluator(
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


def _read_folder(
    folder: str | os.PathLike[str], diffusion: GaussianDiffusion, options: dict[str, Any]
) -> Dataset:
    """The clips of a folder, as the model takes them."""
    names, units = diffusion.condition_names, diffusion.config["value_range"]
    is_told = options.get("conditions") is None
    if is_told:
        options["conditions"] = [_KINDS[name] for name in names if name in _KINDS] or None
    own: dict[str, Any] = {"value_range": units} if units is not None else {"as_uint8": True}
    c, f, h, w = diffusion.clip_shape
    sizes: dict[str, Any] = {"image_size": (h, w), "num_frames": f, "channels": c}
    try:
        return Dataset(folder, **{"exts": None, **sizes, **own, **options})
    except FileNotFoundError as error:
        if is_told and "cond" in names:
            raise FileNotFoundError(
                f"{error}; or, if the model was trained with vectors, conditions='vector'"
            ) from error
        raise
