"""Before the loop: whether what a Trainer is given can be trained with."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.training.trackers import check_trackers

# By attribute of the Trainer: its counts, and the least that each may be
_COUNTS = {
    "gradient_accumulate_every": 1,
    "update_ema_every": 1,
    "save_and_sample_every": 1,
    "num_sample_rows": 1,
    "validate_every": 1,
    "validation_clips": 1,
    "log_every": 1,
    "max_skipped_steps": 1,
    "train_num_steps": 0,
    "keep_best": 0,
    "image_frames": 0,
}
_OPTIONAL = {"num_workers": 0, "save_every": 1, "keep_last": 1, "evaluate_every": 1}


def check_model(diffusion: object) -> None:
    """Raises a TypeError for what is no diffusion, such as its network alone."""
    if not isinstance(diffusion, GaussianDiffusion):
        raise TypeError(
            "Trainer: the model must be a GaussianDiffusion, got "
            f"{type(diffusion).__name__}; wrap the network in one: GaussianDiffusion(unet, "
            "image_size=64, num_frames=16)"
        )


def check_precision(diffusion: GaussianDiffusion) -> None:
    """Raises a ValueError for a model whose weights and schedule are too coarse to train."""
    if diffusion.betas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "Trainer: the model must be in float32 or float64, whose digits small steps and the "
            f"schedule need, got {diffusion.betas.dtype}; convert it with .float(), and compute in "
            "half precision with amp=True"
        )


def check_trainer(trainer: Any, log_with: Any) -> None:
    """Raises a ValueError for arguments of a Trainer that contradict each other or count nothing.

    Args:
        trainer: With its arguments as attributes.
        log_with: As in `Trainer`.
    """
    counts = {"train_batch_size": 1, **_COUNTS}
    values = {**vars(trainer), "train_batch_size": trainer.batch_size}
    check_counts({n: values[n] for n in counts}, counts)
    given = {n: values[n] for n in _OPTIONAL if values[n] is not None}
    check_counts(given, _OPTIONAL)
    if trainer.max_grad_norm is not None and not trainer.max_grad_norm > 0:
        raise ValueError(
            f"Trainer: max_grad_norm must be above 0, got {shown(trainer.max_grad_norm)}; leave it "
            "out to cut nothing"
        )
    check_image_folder(trainer.image_folder, trainer.image_frames)
    check_trackers(log_with)
    check_validation(trainer)


def check_validation(trainer: Any) -> None:
    """Raises a ValueError unless the clips to validate on come from one place at most.

    Args:
        trainer: With its arguments as attributes.
    """
    names = [f"validation_{name}" for name in ("dataset", "folder", "manifest", "split")]
    given = [name for name in names if getattr(trainer, name) is not None]
    # the name of a split says which rows of a manifest, wherever their files are
    is_name = isinstance(trainer.validation_split, str)
    if len(given) > 1 and ("validation_dataset" in given or not (is_name or given[-1] != names[3])):
        raise ValueError(
            "Trainer: the clips to validate on must come from one place, got "
            f"{' and '.join(given)}; choose one of them (with a validation_folder or a "
            "validation_manifest, validation_split can only be the name of a split)"
        )
    if trainer.keep_best and not given:
        raise ValueError(
            "Trainer: keep_best must go with clips to validate on, got none; pass "
            "validation_folder, validation_dataset or validation_split"
        )


def check_counts(counts: Mapping[str, Any], least: Mapping[str, int]) -> None:
    """Raises a ValueError for numbers that count nothing.

    Args:
        counts: By keyword of the Trainer.
        least: What each must be at least.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or value < least[name]:
            advice = "give a positive number" if least[name] else "leave it out"
            raise ValueError(
                f"Trainer: {name} must be at least {least[name]}, got {shown(value)}; {advice}"
            )


def share_of_batch(batch_size: int, num_processes: int) -> int:
    """A process's part of a batch of all.

    Raises:
        ValueError: If it cannot be divided.
    """
    if batch_size % num_processes:
        raise ValueError(
            "Trainer: with split_batches, train_batch_size must be a multiple of the number of "
            f"processes, {num_processes}, got {batch_size}; change one of them"
        )
    return batch_size // num_processes


def check_image_folder(image_folder: object, image_frames: int) -> None:
    """Raises a ValueError for a folder of images of which none is asked for."""
    if image_folder is not None and not image_frames:
        raise ValueError(
            "Trainer: with image_folder, image_frames must be at least 1, got 0; say how many "
            "images go with each clip, or leave image_folder out"
        )
