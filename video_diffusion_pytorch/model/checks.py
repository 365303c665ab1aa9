"""What a Unet3D can be built with, and what it can be called with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def check_input(
    x: Tensor,
    time: Tensor,
    cond: Tensor | None,
    null_cond_prob: float,
    *,
    channels: int,
    levels: int,
    cond_dim: int | None,
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
    if cond_dim is None:
        if cond is not None:
            raise ValueError(
                "Unet3D: this network was built without a condition, so cond must be None, "
                f"got {type(cond).__name__}; build it with cond_dim or use_bert_text_cond"
            )
        return
    expected = (x.shape[0], cond_dim)
    if cond is None and null_cond_prob < 1:
        raise ValueError(
            f"Unet3D: this network was built with a condition, so cond of shape {expected} is "
            "expected, got None; pass it, or null_cond_prob=1 for none"
        )
    if cond is not None and tuple(cond.shape) != expected:
        raise ValueError(
            f"Unet3D: cond must have the shape {expected}, got {tuple(cond.shape)}; "
            "check the encoder's width against the network's cond_dim"
        )


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def check_arguments(config: Mapping[str, Any]) -> None:
    """Raises a ValueError for constructor arguments outside their range."""
    optional = ("cond_dim", "out_dim", "init_dim", "resnet_groups")
    for name in ("dim", "channels", "attn_heads", "attn_dim_head", "init_kernel_size", *optional):
        if config[name] is None and name in optional:
            continue
        if config[name] < 1:
            raise ValueError(
                f"Unet3D: {name} must be at least 1, got {config[name]}; give a positive number"
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
            f'Unet3D: block_type must be "resnet", got {config["block_type"]!r}; leave it out'
        )
    groups, first = config["resnet_groups"], config["init_dim"] or config["dim"]
    widths = [first, config["dim"], *(config["dim"] * mult for mult in config["dim_mults"])]
    if groups is not None and any(width % groups for width in widths):
        raise ValueError(
            f"Unet3D: resnet_groups must divide the channels of every level, {widths}, got "
            f"{groups}; choose a divisor, or leave it out for RMSNorm"
        )
