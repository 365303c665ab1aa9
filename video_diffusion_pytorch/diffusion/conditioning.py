"""Conditions of clips as tensors for the network: captions, arrays, fields and known frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.conditions import CONDITIONS
from video_diffusion_pytorch.text import embed_captions, encode_captions

# keywords of conditions in the public calls
CONDITION_NAMES = (*CONDITIONS, "first_frames")


def is_list_str(x: Any) -> bool:
    """Whether `x` is a list or tuple of strings."""
    return isinstance(x, (list, tuple)) and all(isinstance(item, str) for item in x)


def is_captions(cond: Any) -> bool:
    """Whether `cond` is a list or tuple of captions, some of which may be None."""
    return isinstance(cond, (list, tuple)) and all(
        item is None or isinstance(item, str) for item in cond
    )


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrapped = getattr(module, "_orig_mod", None)
    if wrapped is None and isinstance(
        module, (nn.DataParallel, nn.parallel.DistributedDataParallel)
    ):
        wrapped = module.module
    return module if wrapped is None else unwrap(wrapped)


def show_first_frames(first_frames: Tensor, num_frames: int) -> Tensor:
    """The first frames of a clip as channels of a network's `cond_video`.

    Args:
        first_frames: In [-1, 1], `(b, c, k, h, w)`.
        num_frames: Frames of the clip, at least `k`.

    Returns:
        `(b, c + 1, num_frames, h, w)`: the frames, and a channel of ones where they are known;
        zeros elsewhere.

    Example:
        >>> shown = show_first_frames(torch.full((1, 3, 2, 4, 4), 0.5), num_frames=6)
        >>> shown[0, :, :, 0, 0].mean(dim=0)
        tensor([0.6250, 0.6250, 0.0000, 0.0000, 0.0000, 0.0000])
    """
    known = torch.ones_like(first_frames[:, :1])
    shown = torch.cat((first_frames, known), dim=1)
    return F.pad(shown, (0, 0, 0, 0, 0, num_frames - first_frames.shape[2]))


def join_fields(field: Tensor | None, first_frames: Tensor, channels: int | None) -> Tensor:
    """Appends the channels of known frames to those of the user's own field.

    Args:
        field: `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike; None for none.
        first_frames: From `show_first_frames`, `(b, c + 1, f, h, w)`.
        channels: The `n` that the network leaves for the field; None for any.

    Raises:
        ValueError: If the field has another shape.
    """
    b, _, f, h, w = first_frames.shape
    if field is None and not channels:
        return first_frames
    if field is not None and field.ndim == 4:
        field = field.unsqueeze(2).expand(-1, -1, f, -1, -1)
    n = field.shape[1] if field is not None and channels is None else channels
    if field is None or tuple(field.shape) != (b, n, f, h, w):
        got = None if field is None else tuple(field.shape)
        raise ValueError(
            f"GaussianDiffusion: cond_video must have the shape {(b, n, f, h, w)}, what the "
            f"network's cond_channels leave for it, got {got}; reshape it, or build the network "
            "with other cond_channels"
        )
    return torch.cat((field.to(first_frames.dtype), first_frames), dim=1)


def encode_condition(
    conditions: Mapping[str, Any], *, states: bool, use_cls: bool, device: torch.device
) -> dict[str, Any]:
    """Encodes captions.

    Args:
        conditions: By keyword; `cond` holds captions, some of which may be None.
        states: Whether the network takes sequences of states instead of vectors.
        use_cls: As in `text.embed_captions`.
        device: The device of the encoder and of the result.

    Returns:
        `cond`; for states also `cond_mask`; and `null_cond_mask` if captions are missing.

    Raises:
        ValueError: If there is a `cond_mask`.
    """
    captions: Sequence[str | None] = conditions["cond"]
    if conditions.get("cond_mask") is not None:
        raise ValueError(
            "GaussianDiffusion: cond_mask must be None with captions, whose tokens the encoder "
            f"counts, got {type(conditions['cond_mask']).__name__}; leave it out, or give states "
            "as cond"
        )
    encoded: dict[str, Any] = {}
    if None in captions:
        missing = torch.tensor([caption is None for caption in captions], device="cpu")
        mask = conditions.get("null_cond_mask")
        encoded["null_cond_mask"] = (
            missing if mask is None else missing | as_tensor("null_cond_mask", mask, missing)
        )
    # the vector of a missing caption is not used, but takes its row
    texts = [caption or "" for caption in captions]
    if states:
        encoded["cond"], encoded["cond_mask"] = encode_captions(texts, device=device)
    else:
        encoded["cond"] = embed_captions(texts, use_cls=use_cls, device=device)
    return encoded


def as_tensor(name: str, value: Any, like: Tensor) -> Tensor:
    """A condition as a tensor on the device of `like`; other numbers than tensors in its dtype.

    Raises:
        TypeError: If it is not numbers with one row per video.
    """
    tensor = value
    if not torch.is_tensor(value):
        try:
            # through an array, since a list of arrays is slow to convert
            tensor = torch.tensor(np.array(value, order="C"), device="cpu")
        except (TypeError, ValueError, RuntimeError):
            tensor = torch.zeros((), device="cpu")
        if tensor.is_floating_point():
            tensor = tensor.to(like.dtype)
    if not tensor.ndim:
        captions = ", or a list of captions" if name == "cond" else ""
        raise TypeError(
            f"GaussianDiffusion: {name} must be a tensor, an array or a list of numbers{captions}, "
            f"with one row per video, got {type(value).__name__} {str(value)[:40]!r}"
        )
    return tensor.to(like.device)
