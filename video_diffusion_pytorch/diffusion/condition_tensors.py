"""Whatever is given as a condition, captions, arrays or lists of numbers, becomes a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.text import embed_captions, encode_captions


def is_captions(cond: Any) -> bool:
    """Whether `cond` is a list or tuple of captions, of which some may be missing."""
    return isinstance(cond, (list, tuple)) and all(
        item is None or isinstance(item, str) for item in cond
    )


def captions_as_tensors(
    captions: Sequence[str | None],
    conditions: Mapping[str, Any],
    *,
    states: bool,
    use_cls: bool,
    device: torch.device,
) -> dict[str, Any]:
    """Captions as the keywords of a network.

    Args:
        captions: Of each video; None where there is none.
        conditions: The others that are given, by keyword.
        states: Whether the network takes sequences of states instead of vectors.
        use_cls: As in `text.embed_captions`.
        device: Where the encoder runs and the result lies.

    Returns:
        `cond`; of states `cond_mask` as well; and `null_cond_mask` where captions are missing.

    Raises:
        ValueError: If there is a `cond_mask` already, or `null_cond_mask` does not go with them.
    """
    if conditions.get("cond_mask") is not None:
        raise ValueError(
            "GaussianDiffusion: cond_mask must be None with captions, whose tokens the encoder "
            f"counts, got {type(conditions['cond_mask']).__name__}; leave it out, or give states "
            "as cond"
        )
    told: dict[str, Any] = {}
    if None in captions:
        missing = torch.tensor([caption is None for caption in captions])
        told["null_cond_mask"] = _join_masks(missing, conditions.get("null_cond_mask"))
    # of a missing caption no more than its place is used
    texts = [caption or "" for caption in captions]
    if states:
        told["cond"], told["cond_mask"] = encode_captions(texts, device=device)
    else:
        told["cond"] = embed_captions(texts, use_cls=use_cls, device=device)
    return told


def _join_masks(missing: Tensor, mask: Any) -> Tensor:
    """Where captions are missing, or a user's mask, if there is one, says to do without."""
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
