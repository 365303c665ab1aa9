"""What a Unet3D can be built with."""

from collections.abc import Mapping, Sequence
from typing import Any

from video_diffusion_pytorch.model.attention import TOKEN_SHIFTS
from video_diffusion_pytorch.model.text_tokens import TEXT_POOLINGS

_COUNTS: tuple[str, ...] = ("dim", "channels", "attn_dim_head", "spatial_attn_dim_head")
_COUNTS += ("init_kernel_size", "blocks_per_level", "emb_layers")
# None is without, or as many as suit
_OPTIONAL_COUNTS: tuple[str, ...] = ("cond_dim", "out_dim", "init_dim", "attn_heads")
_OPTIONAL_COUNTS += ("resnet_groups", "num_classes", "frame_cond_dim", "num_text_tokens", "emb_dim")
_CHOICES = {
    "text_pooling": TEXT_POOLINGS,
    "token_shift": TOKEN_SHIFTS,
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
