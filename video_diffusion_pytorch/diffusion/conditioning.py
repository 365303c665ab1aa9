"""Conditions of clips as tensors for the network: captions, arrays, and known frames."""

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
        zeros where not.

    Example:
        >>> shown = show_first_frames(torch.full((1, 3, 2, 4, 4), 0.5), num_frames=6)
        >>> shown[0, :, :, 0, 0].mean(dim=0)
        tensor([0.6250, 0.6250, 0.0000, 0.0000, 0.0000, 0.0000])
    """
    known = torch.ones_like(first_frames[:, :1])
    shown = torch.cat((first_frames, known), dim=1)
    return F.pad(shown, (0, 0, 0, 0, 0, num_frames - first_frames.shape[2]))


def is_captions(cond: Any) -> bool:
    """Whether `cond` is a list or tuple of captions, of which some may be missing."""
    return isinstance(cond, (list, tuple)) and all(
        item is None or isinstance(item, str) for item in cond
    )


def encode_condition(
    conditions: Mapping[str, Any], *, states: bool, use_cls: bool, device: torch.device
) -> dict[str, Any]:
    """Encodes captions.

    Args:
        conditions: Those that are given, of which `cond` holds captions, some of them None.
        states: Whether the network takes sequences of states instead of vectors.
        use_cls: As in `text.embed_captions`.
        device: Where the encoder runs, and the device of the result.

    Returns:
        `cond`; for states also `cond_mask`; and `null_cond_mask` if captions are missing.

    Raises:
        ValueError: If there is a `cond_mask`, or `null_cond_mask` does not fit the captions.
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
        missing = torch.tensor([caption is None for caption in captions])
        encoded["null_cond_mask"] = _join_masks(missing, conditions.get("null_cond_mask"))
    # of a missing caption no more than its place is used
    texts = [caption or "" for caption in captions]
    if states:
        encoded["cond"], encoded["cond_mask"] = encode_captions(texts, device=device)
    else:
        encoded["cond"] = embed_captions(texts, use_cls=use_cls, device=device)
    return encoded


def _join_masks(missing: Tensor, mask: Any) -> Tensor:
    """True where a caption is missing or the mask of a user is true."""
    if mask is None:
        return missing
    mask = as_tensor("null_cond_mask", mask, missing)
    if mask.dtype != torch.bool or mask.shape != missing.shape:
        raise ValueError(
            "GaussianDiffusion: null_cond_mask must be boolean with one element per caption, shape "
            f"{tuple(missing.shape)}, got {mask.dtype} of shape {tuple(mask.shape)}; use "
            "torch.tensor([True, False, ...])"
        )
    return missing | mask


def as_tensor(name: str, value: Any, like: Tensor) -> Tensor:
    """Numbers as a tensor on the device of `like`, and if they are no tensor yet, in its type."""
    if not torch.is_tensor(value):
        try:
            # by way of an array, since a list of arrays is slow to convert
            value = torch.tensor(np.array(value, order="C"))
        except (TypeError, ValueError, RuntimeError) as error:
            captions = ", or a list of captions" if name == "cond" else ""
            raise TypeError(
                f"GaussianDiffusion: {name} must be a tensor, an array or a list of numbers"
                f"{captions}, got {type(value).__name__} {str(value)[:40]!r}; put one row per "
                "video into a list or a tensor"
            ) from error
        if value.is_floating_point():
            value = value.to(like.dtype)
    if not value.ndim:
        raise ValueError(
            f"GaussianDiffusion: {name} must have one row per video, got a single number; "
            "put it into a list, or expand it to the batch"
        )
    return value.to(like.device)


def common_length(conditions: Mapping[str, Tensor], default: int) -> int:
    """The number of rows that all conditions have; `default` if there are none.

    Raises:
        ValueError: If they differ.
    """
    lengths = {name: len(value) for name, value in conditions.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(
            "GaussianDiffusion: all conditions must have one row per video, got "
            f"{', '.join(f'{n} of {name}' for name, n in lengths.items())}; give as many of each"
        )
    return next(iter(lengths.values()), default)
