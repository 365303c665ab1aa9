"""Checks before the first step: arguments of `Trainer`, clips and conditions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import shown, whole
from video_diffusion_pytorch.conditions import VALUES, check_cond_scale
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import RANGE_TOLERANCE
from video_diffusion_pytorch.training.splits import whole_dataset
from video_diffusion_pytorch.value_scale import parse_scale

# Numbers of Trainer, and their least values
_LEAST = {
    "train_batch_size": 1,
    "gradient_accumulate_every": 1,
    "update_ema_every": 1,
    "save_and_sample_every": 1,
    "num_sample_rows": 1,
    "validation_clips": 1,
    "log_every": 1,
    "max_skipped_steps": 1,
    "save_every": 1,
    "keep_last": 1,
    "validate_every": 1,
    "evaluate_every": 1,
    "snapshot_every": 1,
    "train_num_steps": 0,
    "warmup_steps": 0,
    "step_start_ema": 0,
    "keep_best": 0,
    "image_frames": 0,
    "num_workers": 0,
    "held_out": 0,
}
# Those of them that may be floats, such as 1e5, as in the reference
_OF_STEPS = {"train_num_steps", "warmup_steps", "step_start_ema", "update_ema_every", "log_every"}
_OF_STEPS |= {"save_and_sample_every", "save_every", "validate_every", "evaluate_every"}
_OF_STEPS |= {"snapshot_every"}
# Those that may be None
_OPTIONAL = {"save_every", "keep_last", "validate_every", "evaluate_every"}
_OPTIONAL |= {"num_workers", "held_out", "snapshot_every"}


def check_model(diffusion: object) -> None:
    """Raises unless the model is a `GaussianDiffusion` in float32 or float64."""
    if not isinstance(diffusion, GaussianDiffusion):
        raise TypeError(
            "Trainer: the model must be a GaussianDiffusion, got "
            f"{type(diffusion).__name__}; wrap the network in one"
        )
    if diffusion.betas.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "Trainer: the model must be in float32 or float64, got "
            f"{diffusion.betas.dtype}; use .float(), and amp=True to compute in half precision"
        )


def check_arguments(given: Mapping[str, Any]) -> None:
    """Checks arguments of `Trainer` that need no model.

    Args:
        given: Arguments by name.

    Raises:
        ValueError: If one is out of range or contradicts another.
    """
    for name, least in _LEAST.items():
        value = whole(given[name]) if name in _OF_STEPS else given[name]
        is_left_out = value is None and name in _OPTIONAL
        if not is_left_out and not (isinstance(value, Integral) and int(value) >= least):
            kind = "" if isinstance(value, Integral) else "a whole number of "
            raise ValueError(f"Trainer: {name} must be {kind}at least {least}, got {shown(value)}")
    norm, split = given["max_grad_norm"], given["validation_split"]
    validated = [f"validation_{name}" for name in ("dataset", "folder", "manifest", "split")]
    validated = [name for name in validated if given[name] is not None]
    # the name of a split chooses rows of a manifest, wherever their files are
    is_choice = isinstance(split, str) or "validation_split" not in validated
    has_one_source = len(validated) < 2 or (is_choice and "validation_dataset" not in validated)
    requirements = {
        f"max_grad_norm must be above 0, got {norm}; leave it out to clip nothing": (
            norm is None or norm > 0
        ),
        "with image_folder, image_frames must be at least 1, got 0; give the number per clip": (
            given["image_folder"] is None or given["image_frames"]
        ),
        "the clips to validate on must come from one place, got "
        f"{' and '.join(validated)}; choose one (validation_split may be the name of a split of "
        "the validation_folder's or validation_manifest's rows)": has_one_source,
        "init_without must go with init_from, got none; pass the model to start from": (
            given["init_from"] is not None or not given["init_without"]
        ),
        "keep_best must go with clips to validate on, got none; pass validation_folder, "
        "validation_dataset or validation_split": validated or not given["keep_best"],
    }
    for text, is_met in requirements.items():
        if not is_met:
            raise ValueError(f"Trainer: {text}")


def whole_steps(given: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of steps among arguments of `Trainer`, as ints."""
    return {name: whole(given[name]) for name in _OF_STEPS}


def take_condition_scales(diffusion: GaussianDiffusion, dataset: Any) -> None:
    """Sets the model's `cond_standardization` to that of the clips' conditions, if they have one.

    Raises:
        ValueError: If the model has another.
    """
    found = getattr(whole_dataset(dataset), "cond_standardization", None)
    own = diffusion.config["cond_standardization"]
    if found is None or found == own:
        return
    if own is not None:
        raise ValueError(
            f"Trainer: the conditions must have the model's cond_standardization, {own}, got "
            f"{found}; give one of them only"
        )
    diffusion.set_cond_standardization(found)


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
    others = "'fit', 'standardize' or "
    found = parse_scale(given, diffusion.channels, others=others)
    if found is None:
        return
    own = diffusion.config["value_range"]
    if own is None:
        diffusion.set_value_range(found)
    elif parse_scale(own, diffusion.channels, others=others) != found:
        raise ValueError(
            f"Trainer: the clips must be in the model's value_range, {own}, got {found}; give "
            "one of them only"
        )


def take_sigma_data(diffusion: GaussianDiffusion, deviation: float | None) -> bool:
    """Sets the `sigma_data` of a model of EDM to a measured one; returns whether it did.

    Args:
        diffusion: The model.
        deviation: Standard deviation of the clips in the model's range; None if it is unknown.
    """
    is_known = deviation is not None and diffusion.objective == "edm"
    if is_known:
        # as many digits as it is worth, and as one can copy
        diffusion.set_sigma_data(float(f"{deviation:.4g}"))
    return is_known


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
    if not {*names} <= conditions.keys() or not _are_known(diffusion, conditions):
        raise ValueError(
            f"Trainer: the network takes {', '.join(names) or 'no condition'}, got "
            f"{', '.join(conditions) or 'none'} from the data; set conditions, change the keys of "
            "the dataset's items, or build the network for them"
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
            f"got {len(clips.class_names)}; build it with that number"
        )


def _are_known(diffusion: GaussianDiffusion, conditions: Mapping[str, Any]) -> bool:
    """Whether the diffusion or its network takes all of the conditions."""
    network = unwrap(diffusion.denoise_fn)
    parameters = inspect.signature(network.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return True
    known = {"cond", *parameters, *inspect.signature(diffusion.forward).parameters}
    if hasattr(network, "condition_names"):
        known -= {*VALUES, "cond_mask"}
        known |= {*diffusion.condition_names, *["cond_mask"] * diffusion.takes_text_states}
    return conditions.keys() <= known


def check_caption_width(diffusion: GaussianDiffusion, width: int | None) -> None:
    """Checks the text encoder against the network.

    Args:
        diffusion: The model.
        width: Of the encoded captions; None if unknown.

    Raises:
        ValueError: If the network takes others.
    """
    network = unwrap(diffusion.denoise_fn)
    null = getattr(network, "null_cond_emb", None)
    if null is not None and width not in (None, null.shape[-1]):
        is_for_bert = (getattr(network, "config", None) or {}).get("use_bert_text_cond")
        cure = "use_bert_text_cond=False and " * bool(is_for_bert)
        raise ValueError(
            f"Trainer: the text encoder's vectors must have the network's {null.shape[-1]} "
            f"numbers, got {width}; build the network with {cure}cond_dim={width}"
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
            f"in {where}; pass value_range='fit', or (low, high) in the clips' units"
        )


def sampling_conditions(diffusion: GaussianDiffusion) -> list[str]:
    """Keywords of the conditions that samples of the model need, if its network names them."""
    return [*diffusion.condition_names, *["first_frames"] * bool(diffusion.given_frames)]


def check_scale_of_samples(argument: str, cond_scale: Any, diffusion: GaussianDiffusion) -> None:
    """Raises a ValueError for guidance scales by condition that do not fit the model.

    Args:
        argument: The call and its argument, for the error.
        cond_scale: A number, which is not checked, or a mapping.
        diffusion: The model.
    """
    check_cond_scale(argument, cond_scale, sampling_conditions(diffusion) or VALUES)


def check_sample_conditions(diffusion: GaussianDiffusion, given: Mapping[str, Any]) -> None:
    """Raises a ValueError for `sample_conditions` that do not fit the model."""
    names = sampling_conditions(diffusion)
    allowed = [*names, *["cond_mask"] * diffusion.takes_text_states]
    is_mapping = isinstance(given, Mapping)
    wrong = {
        name: value
        for name, value in (given.items() if is_mapping else ())
        if name not in allowed or isinstance(value, str) or not hasattr(value, "__len__")
    }
    if wrong or not is_mapping or not given.keys() >= {*names}:
        raise ValueError(
            f"Trainer: sample_conditions must hold rows of {', '.join(names) or 'no condition'}, "
            f"got {shown(wrong or given)}; give for example {{'cond': ['a whale']}}"
        )
