"""Checks of the arguments that a Unet3D is built with and called with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.conditions import CONDITIONS, VALUES, Shape, expected_shape

# Width of BERT's states, the meaning of `use_bert_text_cond`
BERT_DIM = 768

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)

_COUNTS: tuple[str, ...] = ("dim", "channels", "attn_dim_head", "spatial_attn_dim_head")
_COUNTS += ("init_kernel_size", "blocks_per_level", "emb_layers")
# None is without, or as many as suit
_OPTIONAL_COUNTS: tuple[str, ...] = ("cond_dim", "out_dim", "init_dim", "attn_heads")
_OPTIONAL_COUNTS += ("resnet_groups", "num_classes", "frame_cond_dim", "num_text_tokens", "emb_dim")
_CHOICES = {
    "text_pooling": ("mean", "attention"),
    "token_shift": (None, "time", "space", "both"),
    "time_input": ("step", "log_snr"),
}


def plain(value: Any) -> Any:
    """An argument in Python's own numbers, as files hold it, whatever library it is of."""
    value = value.tolist() if hasattr(value, "tolist") else value
    is_several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(map(plain, value)) if is_several else value


def check_arguments(config: Mapping[str, Any]) -> None:
    """Raises a ValueError for constructor arguments outside their range."""
    for name in (*_COUNTS, *_OPTIONAL_COUNTS):
        if config[name] is None and name in _OPTIONAL_COUNTS:
            continue
        value = config[name]
        if not isinstance(value, int) or isinstance(value, bool):
            raise ValueError(
                f"Unet3D: {name} must be a whole number, got {value!r:.100}; give it without a "
                "point, quotes or the like"
            )
        if value < 1:
            raise ValueError(
                f"Unet3D: {name} must be at least 1, got {config[name]}; give a positive number"
            )
    if config["cond_channels"] < 0:
        raise ValueError(
            f"Unet3D: cond_channels must be at least 0, got {config['cond_channels']}; give the "
            "number of channels of cond_video, 0 for none"
        )
    if not config["dim_mults"] or min(config["dim_mults"]) < 1:
        raise ValueError(
            "Unet3D: dim_mults must hold a positive factor for each resolution, got "
            f"{config['dim_mults']}; the default is (1, 2, 4, 8)"
        )
    if config["init_kernel_size"] % 2 == 0:
        raise ValueError(
            f"Unet3D: init_kernel_size must be odd, got {config['init_kernel_size']}; "
            f"use {config['init_kernel_size'] + 1}"
        )
    if config["block_type"] != "resnet":
        raise ValueError(
            f'Unet3D: block_type must be "resnet", got {config["block_type"]!r:.100}; leave it out'
        )
    groups, first = config["resnet_groups"], config["init_dim"] or config["dim"]
    widths = [first, config["dim"], *(config["dim"] * mult for mult in config["dim_mults"])]
    if groups is not None and any(width % groups for width in widths):
        raise ValueError(
            f"Unet3D: resnet_groups must divide the channels of every level, {widths}, got "
            f"{groups}; choose a divisor, or leave it out for RMSNorm"
        )
    _check_layers(config)
    _check_text(config)


def _check_layers(config: Mapping[str, Any]) -> None:
    for name, choices in _CHOICES.items():
        if config[name] not in choices:
            raise ValueError(
                f"Unet3D: {name} must be one of {', '.join(map(repr, choices))}, got "
                f"{config[name]!r:.100}; leave it out for {choices[0]!r}"
            )
    last = len(config["dim_mults"]) - 1
    for name in ("full_attn_levels", "temporal_attn_levels"):
        levels = config[name]
        if levels is None and name == "temporal_attn_levels":
            continue
        is_several = isinstance(levels, Sequence) and not isinstance(levels, str)
        if not is_several or not all(type(i) is int and 0 <= i <= last for i in levels):
            raise ValueError(
                f"Unet3D: {name} must be a tuple of numbers of levels from 0, the finest, to "
                f"{last}, got {levels!r:.100}; count the dim_mults"
            )
    share = config["dropout"]
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise ValueError(
            f"Unet3D: dropout must be a number from 0 to below 1, got {share!r:.100}; the paper "
            "has 0.1"
        )


def _check_text(config: Mapping[str, Any]) -> None:
    wanted = [name for name in ("num_text_tokens",) if config[name]]
    wanted += ["text_pooling"] if config["text_pooling"] != "mean" else []
    if wanted and config["cond_dim"] is None and not config["use_bert_text_cond"]:
        raise ValueError(
            f"Unet3D: {wanted[0]} must go with the width of the encoder's states, got no cond_dim; "
            "pass cond_dim, or use_bert_text_cond"
        )


def check_input(x: Tensor, time: Tensor, config: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the shapes of videos and times fit a network and each other."""
    channels, levels = config["channels"], len(config["dim_mults"])
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
    if config["time_input"] == "log_snr" and not time.is_floating_point():
        raise ValueError(
            "Unet3D: time must be a log-SNR, a real number, as the network was built with "
            f"time_input='log_snr', got {time.dtype}; pass diffusion.log_snr(t)"
        )


def check_images(
    x: Tensor, image_frames: int, conditions: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raises a ValueError unless the last frames of `x` can be images with these conditions.

    Args:
        x: Noisy videos with images behind them, `(b, c, f + image_frames, h, w)`.
        image_frames: Number of images of a video.
        conditions: By keyword of `Unet3D.forward`, one row per image.
        config: The network's.
    """
    most = x.shape[2] - 1
    if not isinstance(image_frames, int) or not 0 <= image_frames <= most:
        raise ValueError(
            f"Unet3D: image_frames must be from 0 to {most}, one less than the frames of x, got "
            f"{image_frames!r:.100}; leave the frames of the video in front of the images"
        )
    if image_frames and config["resnet_groups"] is not None:
        raise ValueError(
            "Unet3D: image_frames must be 0 in a network with GroupNorm, whose statistics mix all "
            f"frames, got {image_frames}; build the network without resnet_groups"
        )
    if conditions and not image_frames:
        raise ValueError(
            "Unet3D: image_conditions must go with images, got "
            f"{', '.join(conditions)} for none; say in image_frames how many frames are images"
        )
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise ValueError(
            f"Unet3D: image_conditions must hold {', '.join(VALUES)}, null_cond_mask or cond_mask, "
            f"got {unknown[0]!r}; rename it, or leave it out"
        )
    check_conditions(x, conditions, config, images=image_frames)


def check_conditions(
    x: Tensor,
    conditions: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    images: int = 0,
    required: bool = False,
) -> None:
    """Raises a ValueError unless the conditions are those of the network, and fit the videos.

    Args:
        x: Noisy videos that `check_input` has accepted, `(b, c, f, h, w)`.
        conditions: By keyword of `Unet3D.forward`; those that are None are not given.
        config: The network's.
        images: For conditions with a row per image, the number of images of a video; 0 for those
            of videos.
        required: Whether all conditions of the network must be given.
    """
    shapes = _shapes(x, config, images)
    for name, shape in shapes.items():
        if conditions.get(name) is not None:
            full = f"image_conditions[{name!r}]" if images else name
            _check_condition(name, full, conditions[name], shape, config, images)
        elif required and name in VALUES and shape is not None:
            raise ValueError(
                f"Unet3D: this network was built with {CONDITIONS[name].network}, so {name} of "
                f"shape {_written(shape)} is expected, got None; pass it, or null_cond_prob=1 for "
                "none"
            )
    mask, states = conditions.get("cond_mask"), conditions.get("cond")
    if mask is not None:
        _check_cond_mask("image_conditions['cond']" if images else "cond", mask, states, config)


def _check_condition(
    name: str, full: str, value: Any, shape: Shape | None, config: Mapping[str, Any], images: int
) -> None:
    """Raises a ValueError unless one condition, called `full` in errors, has its shape and type."""
    kind = CONDITIONS[name]
    if shape is None:
        raise ValueError(
            f"Unet3D: this network was built without {kind.network}, so {full} must be None, got "
            f"{type(value).__name__}; build it with {kind.built_with}"
        )
    if name == "null_cond_mask":
        check_mask(full, value, shape, "image" if images else "video")
        return
    if not torch.is_tensor(value):
        raise ValueError(
            f"Unet3D: {full} must be a tensor of shape {_written(shape)}, got "
            f"{type(value).__name__}; convert it with torch.as_tensor"
        )
    if "n" in shape and not value.is_floating_point():
        raise ValueError(
            f"Unet3D: {full} must be the states of an encoder, real numbers, got {value.dtype}; "
            "numbers of tokens must go through the encoder first"
        )
    frames_alike = kind.frames_optional and not images and value.ndim == len(shape) - 1
    if not _fits(value, (*shape[:2], *shape[3:]) if frames_alike else shape):
        hint = _hint(name, value, shape, "give one condition per image" if images else kind.hint)
        raise ValueError(
            f"Unet3D: {full} must have the shape {_written(shape)}, got {tuple(value.shape)}; "
            f"{hint}"
        )
    if name == "labels":
        _check_labels(value, config["num_classes"])


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
    shapes = {
        name: expected_shape(name, sizes, width, states=states, images=images)
        for name, width in widths.items()
    }
    rows = expected_shape("null_cond_mask", sizes, None, images=images)
    return {**shapes, "null_cond_mask": rows if widths["cond"] else None}


def _hint(name: str, value: Tensor, shape: Shape, usual: str) -> str:
    """What may be done about a condition of a wrong shape."""
    if "n" in shape:
        return "give the states of each caption's tokens, of the network's cond_dim, not one vector"
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
        raise ValueError(
            f"Unet3D: cond_mask must be boolean with one element per state of {full}, shape "
            f"{shape}, got {_mask_received(mask)}; make it true where there is a token, "
            "false where padding"
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


def check_mask(name: str, mask: Any, shape: Shape, per: str = "video") -> None:
    """Raises a ValueError unless a mask is boolean and has a shape: one element per `per`."""
    if not torch.is_tensor(mask) or mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(
            f"Unet3D: {name} must be boolean with one element per {per}, shape {shape}, got "
            f"{_mask_received(mask)}; use torch.tensor([True, False, ...])"
        )


def _mask_received(mask: Any) -> str:
    if torch.is_tensor(mask):
        return f"{mask.dtype} of shape {tuple(mask.shape)}"
    return type(mask).__name__


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
