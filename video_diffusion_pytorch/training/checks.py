"""Checks before the first step: arguments of `Trainer`, clips and conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import as_value_range, shown
from video_diffusion_pytorch.conditions import CONDITIONS, VALUES
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import RANGE_TOLERANCE
from video_diffusion_pytorch.training.metrics import check_trackers
from video_diffusion_pytorch.training.splits import whole_dataset

# Integer arguments of Trainer, and their least values
_COUNTS = {
    "train_batch_size": 1,
    "gradient_accumulate_every": 1,
    "update_ema_every": 1,
    "save_and_sample_every": 1,
    "num_sample_rows": 1,
    "validation_clips": 1,
    "log_every": 1,
    "max_skipped_steps": 1,
    "train_num_steps": 0,
    "keep_best": 0,
    "image_frames": 0,
}
# Those that may be None
_OPTIONAL = {
    "num_workers": 0,
    "save_every": 1,
    "keep_last": 1,
    "validate_every": 1,
    "evaluate_every": 1,
}


def check_model(diffusion: object) -> None:
    """Raises unless the model is a `GaussianDiffusion` in float32 or float64."""
    if not isinstance(diffusion, GaussianDiffusion):
        raise TypeError(
            "Trainer: the model must be a GaussianDiffusion, got "
            f"{type(diffusion).__name__}; wrap the network in one: GaussianDiffusion(unet, "
            "image_size=64, num_frames=16)"
        )
    if diffusion.betas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "Trainer: the model must be in float32 or float64, whose precision small steps and the "
            f"schedule need, got {diffusion.betas.dtype}; convert it with .float(), and compute in "
            "half precision with amp=True"
        )


def check_arguments(given: Mapping[str, Any], log_with: Any) -> None:
    """Checks arguments of `Trainer` that need no model.

    Args:
        given: Arguments by name.
        log_with: As in `Trainer`.

    Raises:
        ValueError: If one is out of range or contradicts another.
    """
    for name, least in {**_COUNTS, **_OPTIONAL}.items():
        value = given[name]
        if value is None and name in _OPTIONAL:
            continue
        if not isinstance(value, Integral) or value < least:
            advice = "give a positive number" if least else "leave it out"
            raise ValueError(
                f"Trainer: {name} must be at least {least}, got {shown(value)}; {advice}"
            )
    if given["max_grad_norm"] is not None and not given["max_grad_norm"] > 0:
        raise ValueError(
            f"Trainer: max_grad_norm must be above 0, got {shown(given['max_grad_norm'])}; leave "
            "it out to clip nothing"
        )
    if given["image_folder"] is not None and not given["image_frames"]:
        raise ValueError(
            "Trainer: with image_folder, image_frames must be at least 1, got 0; say how many "
            "images go with each clip, or leave image_folder out"
        )
    check_trackers(log_with)
    _check_validation(given)


def _check_validation(arguments: Mapping[str, Any]) -> None:
    """Checks that validation clips have one source, and exist for `keep_best`."""
    names = [f"validation_{name}" for name in ("dataset", "folder", "manifest", "split")]
    given = [name for name in names if arguments[name] is not None]
    # the name of a split says which rows of a manifest, wherever their files are
    is_name = isinstance(arguments["validation_split"], str)
    if len(given) > 1 and ("validation_dataset" in given or not (is_name or given[-1] != names[3])):
        raise ValueError(
            "Trainer: the clips to validate on must come from one place, got "
            f"{' and '.join(given)}; choose one of them (with a validation_folder or a "
            "validation_manifest, validation_split can only be the name of a split)"
        )
    if arguments["keep_best"] and not given:
        raise ValueError(
            "Trainer: keep_best must go with clips to validate on, got none; pass "
            "validation_folder, validation_dataset or validation_split"
        )


def share_of_batch(batch_size: int, num_processes: int) -> int:
    """The batch size of one process, for a total batch size.

    Raises:
        ValueError: If it is not divisible by the number of processes.
    """
    if batch_size % num_processes:
        raise ValueError(
            "Trainer: with split_batches, train_batch_size must be a multiple of the number of "
            f"processes, {num_processes}, got {batch_size}; change one of them"
        )
    return batch_size // num_processes


def take_value_range(diffusion: GaussianDiffusion, dataset: Any, given: Any = None) -> None:
    """Sets the model's `value_range` to that of the clips.

    Args:
        diffusion: The model.
        dataset: The clips, whose attribute `value_range`, if any, is used.
        given: Range to use instead; None for the dataset's.

    Raises:
        ValueError: If the model has another range.
    """
    given = getattr(whole_dataset(dataset), "value_range", None) if given is None else given
    found = as_value_range(given, diffusion.channels, others="'fit' or ")
    if found is None:
        return
    own = diffusion.config["value_range"]
    if own is None:
        diffusion.set_value_range(found)
    elif as_value_range(own, diffusion.channels, others="'fit' or ") != found:
        raise ValueError(
            f"Trainer: the clips must be in the model's value_range, {own}, got {found}; give "
            "one of them only"
        )


def check_first_clip(
    diffusion: GaussianDiffusion,
    clips: Dataset | None,
    videos: Tensor,
    conditions: Mapping[str, Any],
) -> None:
    """Checks a batch against the model.

    Args:
        diffusion: The model.
        clips: The `Dataset` of the batch; None for any other dataset.
        videos: The clips of the batch, `(b, c, f, h, w)`.
        conditions: Its conditions.

    Raises:
        ValueError: If the clips or conditions do not fit the model.
    """
    names = diffusion.condition_names
    missing = [name for name in names if name not in conditions]
    if missing:
        raise ValueError(
            f"Trainer: the network takes {', '.join(names)}, so the data must give them, got "
            f"none for {', '.join(missing)}; say in conditions where they come from, give "
            "them in the dataset's items, or build the network without"
        )
    _check_names(diffusion, conditions)
    if "cond_mask" in conditions and not torch.is_tensor(conditions.get("cond")):
        raise ValueError(
            "Trainer: with captions, the data must give no cond_mask, which the encoder tells, "
            "got one; leave it out, or give states as cond"
        )
    # captions are checked where they are encoded
    given = {name: conditions.get(name) for name in (*names, "cond_mask")}
    tensors = {name: value for name, value in given.items() if torch.is_tensor(value)}
    diffusion.check_batch(videos, **tensors)
    if conditions.get("frame_mask") is not None:
        diffusion.check_frame_mask(conditions["frame_mask"], videos)
    check_units(diffusion, videos, "the first item" if clips is None else str(clips.paths[0]))
    if clips is None:
        return
    classes = getattr(unwrap(diffusion.denoise_fn), "config", {}).get("num_classes")
    if classes is not None and len(clips.class_names) > classes:
        raise ValueError(
            f"Trainer: the clips must be of at most {classes} classes, the network's num_classes, "
            f"got {len(clips.class_names)}; build it with num_classes={len(clips.class_names)}"
        )


def _check_names(diffusion: GaussianDiffusion, conditions: Mapping[str, Any]) -> None:
    """Raises a ValueError for a condition that the network does not take."""
    network = inspect.signature(unwrap(diffusion.denoise_fn).forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in network.values()):
        return
    own = inspect.signature(diffusion.forward).parameters
    used = {*diffusion.condition_names, *["cond_mask"] * diffusion.takes_text_states}
    unused = {*VALUES, "cond_mask"} - used
    has_names = hasattr(unwrap(diffusion.denoise_fn), "condition_names")
    for name in conditions:
        if name not in {*own, *network, "cond"} or (has_names and name in unused):
            known = ", ".join(diffusion.condition_names) or "no condition"
            option = CONDITIONS[name].width if name in VALUES else "it"
            raise ValueError(
                f"Trainer: the network takes {known}, got {name!r} from the data; leave it out, "
                f"rename it, or build the network with {option}"
            )


def check_units(diffusion: GaussianDiffusion, videos: Tensor, where: str) -> None:
    """Raises a ValueError for floats outside [0, 1], unless the model has a value range."""
    config = diffusion.config
    has_units = not config["auto_normalize"] or config["value_range"] is not None
    if has_units or not videos.is_floating_point():
        return
    low, high = (value.item() for value in videos.aminmax())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"Trainer: clips must be in [0, 1], got values from {low:.3g} to {high:.3g} "
            f"in {where}; pass value_range='fit', or (low, high) in the clips' units, or build "
            "GaussianDiffusion with value_range=(low, high) or auto_normalize=False"
        )


def check_sample_conditions(diffusion: GaussianDiffusion, given: Mapping[str, Any]) -> None:
    """Raises a ValueError for `sample_conditions` that do not fit the model."""
    names = [*diffusion.condition_names, *["first_frames"] * bool(diffusion.given_frames)]
    allowed = [*names, *["cond_mask"] * diffusion.takes_text_states]
    for name, value in given.items():
        if name not in allowed or isinstance(value, str) or not hasattr(value, "__len__"):
            raise ValueError(
                "Trainer: sample_conditions must hold rows of "
                f"{', '.join(names) or 'no condition'}, got {name}="
                f"{shown(value)}; give for example "
                "{'cond': ['a whale']}"
            )
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"Trainer: sample_conditions must hold {', '.join(names)}, got none for "
            f"{', '.join(missing)}; add them, or leave sample_conditions out"
        )


def check_network_for_images(diffusion: GaussianDiffusion, count: int) -> None:
    """Raises a ValueError unless the network takes `count` images per clip."""
    network: Any = unwrap(diffusion.denoise_fn)
    if "image_frames" not in inspect.signature(network.forward).parameters:
        raise ValueError(
            "Trainer: image_frames must go with a network whose forward takes image_frames, as "
            f"Unet3D's does, got {type(network).__name__}; leave them out, or add the argument"
        )
    if hasattr(network, "check_inputs"):
        c, f, h, w = diffusion.clip_shape
        x = torch.empty(1, c, f + count, h, w, device="meta")
        network.check_inputs(x, torch.zeros(1), 1.0, image_frames=count)
