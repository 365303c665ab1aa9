"""What a Unet3D can be called with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.conditions import (
    CONDITIONS,
    VALUES,
    Shape,
    expected_shape,
)

# The width of BERT's states, which `use_bert_text_cond` stands for.
BERT_DIM = 768

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_STATES_HINT = "give the states of each caption's tokens, of the network's cond_dim, not one vector"


def check_input(
    x: Tensor, time: Tensor, *, channels: int, levels: int, time_input: str = "step"
) -> None:
    """Raises a ValueError unless shapes fit the network and each other."""
    multiple = 2 ** (levels - 1)
    if x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(
            f"Unet3D: x must have the shape (b, {channels}, f, h, w), got "
            f"{tuple(x.shape)}; move the axes, or build the network with channels="
            f"{x.shape[1] if x.ndim == 5 else '...'}"
        )
    if x.shape[3] % multiple or x.shape[4] % multiple:
        raise ValueError(
            f"Unet3D: height and width must be multiples of {multiple} for "
            f"{levels} resolutions, got {x.shape[3]} x {x.shape[4]}; resize or pad "
            f"to {_round_up(x.shape[3], multiple)} x {_round_up(x.shape[4], multiple)}, "
            "or use fewer dim_mults"
        )
    if time.shape != x.shape[:1]:
        raise ValueError(
            f"Unet3D: time must have one step per video, shape ({x.shape[0]},), got "
            f"{tuple(time.shape)}; expand it to the batch"
        )
    if time_input == "log_snr" and not time.is_floating_point():
        raise ValueError(
            "Unet3D: time must be a log-SNR, a real number, as the network was built with "
            f"time_input='log_snr', got {time.dtype}; pass diffusion.log_snr(t)"
        )


def check_image_frames(x: Tensor, image_frames: int, resnet_groups: int | None) -> None:
    """Raises a ValueError unless the last frames of `x`, `(b, c, f, h, w)`, can be images."""
    most = x.shape[2] - 1
    if not isinstance(image_frames, int) or not 0 <= image_frames <= most:
        raise ValueError(
            f"Unet3D: image_frames must be from 0 to {most}, one less than the frames of x, got "
            f"{image_frames!r:.100}; leave the frames of the video in front of the images"
        )
    if image_frames and resnet_groups is not None:
        raise ValueError(
            "Unet3D: image_frames must be 0 in a network with GroupNorm, whose statistics mix all "
            f"frames, got {image_frames}; build the network without resnet_groups"
        )


def check_conditions(
    x: Tensor, conditions: Mapping[str, Any], null_cond_prob: float, config: Mapping[str, Any]
) -> None:
    """Raises a ValueError unless the conditions are those of the network, and fit the videos.

    Args:
        x: Noisy videos that `check_input` has found good, `(b, c, f, h, w)`.
        conditions: By keyword of `Unet3D.forward`, None or absent where not given.
        null_cond_prob: Probability of their being dropped.
        config: The network's.
    """
    for name, shape in _shapes(x, config).items():
        value = conditions.get(name)
        kind = CONDITIONS[name]
        if value is None and shape is not None and null_cond_prob < 1:
            raise ValueError(
                f"Unet3D: this network was built with {kind.network}, so {name} of shape "
                f"{_written(shape)} is expected, got None; pass it, or null_cond_prob=1 for none"
            )
        if value is None:
            continue
        shape = _check_kind(name, name, value, shape)
        frames_alike = kind.frames_optional and value.ndim == len(shape) - 1
        if not _fits(value, (*shape[:2], *shape[3:]) if frames_alike else shape):
            raise ValueError(
                f"Unet3D: {name} must have the shape {_written(shape)}, got {tuple(value.shape)}; "
                f"{_hint(name, value, shape, kind.hint)}"
            )
    if conditions.get("labels") is not None:
        _check_labels(conditions["labels"], config["num_classes"])
    mask = conditions.get("null_cond_mask")
    if mask is not None:
        one = "one element per video"
        _check_mask("null_cond_mask", mask, tuple(x.shape[:1]), one, cond_dim_of(config))
    _check_cond_mask("cond", conditions.get("cond_mask"), conditions.get("cond"), config)


def check_image_conditions(
    x: Tensor, image_frames: int, conditions: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raises a ValueError unless the conditions of images are those of the network, and fit.

    Args:
        x: Noisy videos with images behind them, `(b, c, f + image_frames, h, w)`.
        image_frames: Number of images of a video.
        conditions: By keyword of `Unet3D.forward`, one row per image; None or absent where not
            given.
        config: The network's.
    """
    k = image_frames
    rows = (x.shape[0], k)
    if conditions and not k:
        raise ValueError(
            "Unet3D: image_conditions must go with images, got "
            f"{', '.join(conditions)} for none; say in image_frames how many frames are images"
        )
    shapes = _shapes(x, config, k)
    for name, value in conditions.items():
        full = f"image_conditions[{name!r}]"
        if name not in (*shapes, "null_cond_mask", "cond_mask"):
            raise ValueError(
                f"Unet3D: image_conditions must hold {', '.join(shapes)}, null_cond_mask or "
                f"cond_mask, got {name!r}; rename it, or leave it out"
            )
        if value is None or name == "cond_mask":
            continue
        if name == "null_cond_mask":
            _check_mask(full, value, rows, "one element per image", cond_dim_of(config))
            continue
        shape = _check_kind(full, name, value, shapes[name])
        if not _fits(value, shape):
            raise ValueError(
                f"Unet3D: {full} must have the shape {_written(shape)}, got {tuple(value.shape)}; "
                f"{_hint(name, value, shape, 'give one condition per image')}"
            )
        if name == "labels":
            _check_labels(value, config["num_classes"])
    states, mask = conditions.get("cond"), conditions.get("cond_mask")
    _check_cond_mask("image_conditions['cond']", mask, states, config)


def _check_kind(full: str, name: str, value: Any, shape: Shape | None) -> Shape:
    """Gives the shape that a condition must have, if the network takes it and it is a tensor."""
    kind = CONDITIONS[name]
    if shape is None:
        raise ValueError(
            f"Unet3D: this network was built without {kind.network}, so {full} must be None, got "
            f"{type(value).__name__}; build it with {kind.built_with}"
        )
    if not torch.is_tensor(value):
        raise ValueError(
            f"Unet3D: {full} must be a tensor of shape {_written(shape)}, got "
            f"{type(value).__name__}; "
            "convert it with torch.as_tensor"
        )
    if "n" in shape and not value.is_floating_point():
        raise ValueError(
            f"Unet3D: {full} must be the states of an encoder, real numbers, got {value.dtype}; "
            "numbers of tokens must go through the encoder first"
        )
    return shape


def cond_dim_of(config: Mapping[str, Any]) -> int | None:
    """Width of the network's `cond`; None for a network without."""
    return BERT_DIM if config["use_bert_text_cond"] else config["cond_dim"]


def takes_text_states(config: Mapping[str, Any]) -> bool:
    """Whether the network's `cond` is a sequence of states."""
    return bool(config["num_text_tokens"]) or config["text_pooling"] == "attention"


def _shapes(x: Tensor, config: Mapping[str, Any], images: int = 0) -> dict[str, Shape | None]:
    """The shape that each condition must have; None for one that the network doesn't take."""
    sizes = {axis: x.shape[i] for axis, i in {"b": 0, "f": 2, "h": 3, "w": 4}.items()}
    states = takes_text_states(config)
    widths = {name: config[CONDITIONS[name].width] for name in VALUES}
    widths["cond"] = cond_dim_of(config)
    return {
        name: expected_shape(name, sizes, width, states=states, images=images)
        for name, width in widths.items()
    }


def _hint(name: str, value: Tensor, shape: Shape, usual: str) -> str:
    """What may be done about a condition of a wrong shape."""
    if "n" in shape:
        return _STATES_HINT
    if name == "cond" and value.ndim == len(shape) + 1:
        return (
            "for sequences of states build the network with num_text_tokens or "
            "text_pooling='attention'"
        )
    return usual


def _fits(value: Tensor, shape: Shape) -> bool:
    """Whether a tensor has a shape, and at least one element in a length that is free."""
    if value.ndim != len(shape):
        return False
    pairs = zip(value.shape, shape, strict=True)
    return all(got == wanted or (wanted == "n" and got > 0) for got, wanted in pairs)


def _written(shape: Shape) -> str:
    return str(shape).replace("'", "")


def _check_cond_mask(full: str, mask: Any, states: Any, config: Mapping[str, Any]) -> None:
    if mask is None:
        return
    if not takes_text_states(config):
        raise ValueError(
            f"Unet3D: cond_mask must go with a sequence of states in {full}, got one for a vector; "
            "leave it out, or build the network with num_text_tokens or text_pooling='attention'"
        )
    if states is None:
        raise ValueError(
            f"Unet3D: cond_mask must go with a sequence of states in {full}, got one without; pass "
            "the states, or leave it out"
        )
    shape = tuple(states.shape[:-1])
    if not torch.is_tensor(mask) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if torch.is_tensor(mask) else mask
        raise ValueError(
            f"Unet3D: cond_mask must be boolean with one element per state of {full}, shape "
            f"{shape}, got {got}; make it true where there is a token, false where padding"
        )


def _check_labels(labels: Tensor, num_classes: int) -> None:
    if labels.dtype not in INTEGERS:
        raise ValueError(
            f"Unet3D: labels must be integers, got {labels.dtype}; convert them with .long()"
        )
    # on a GPU a look would make the host wait
    if not labels.is_cpu or not labels.numel() or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"Unet3D: labels must be from 0 to {num_classes - 1}, or -1 for no class, got {low} "
            f"to {high}; number the classes from 0, or build the network with more num_classes"
        )


def _check_mask(full: str, mask: Any, shape: Shape, one: str, cond_dim: int | None) -> None:
    if cond_dim is None:
        raise ValueError(
            f"Unet3D: this network was built without cond, so {full} must be None, got "
            f"{type(mask).__name__}; build it with cond_dim or use_bert_text_cond"
        )
    if not torch.is_tensor(mask) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        got = (
            f"{mask.dtype} of shape {tuple(mask.shape)}"
            if torch.is_tensor(mask)
            else type(mask).__name__
        )
        raise ValueError(
            f"Unet3D: {full} must be boolean with {one}, shape {shape}, got {got}; use "
            "torch.tensor([True, False, ...])"
        )


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
