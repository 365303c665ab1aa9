"""Which videos of a batch lose their condition, and which lose sight of their other frames."""

from typing import Any

import torch
from torch import Tensor


def prob_mask_like(
    shape: tuple[int, ...], prob: float, device: torch.device | str | None
) -> Tensor:
    """A boolean tensor whose elements are true with probability `prob`; 0 and 1 draw nothing."""
    if prob in (0, 1):
        return torch.full(shape, bool(prob), device=device)
    return torch.rand(shape, device=device) < prob


def focus_mask(mask: Tensor | None, prob: float, x: Tensor) -> Tensor | None:
    """The mask of videos whose frames see only themselves; None where all see all."""
    if mask is None:
        return None if prob == 0 else prob_mask_like((x.shape[0],), prob, x.device)
    return _checked("focus_present_mask", mask, x)


def dropped_videos(mask: Tensor | None, prob: float, x: Tensor, *, has_cond: bool) -> Tensor | None:
    """The mask of videos that lose their conditions; None in a network that takes none."""
    if mask is not None:
        mask = _checked("drop_mask", mask, x)
    elif has_cond:
        mask = prob_mask_like(x.shape[:1], prob, x.device)
    return mask if has_cond else None


def _checked(name: str, mask: Any, x: Tensor) -> Tensor:
    is_tensor = torch.is_tensor(mask)
    if not is_tensor or mask.shape != x.shape[:1] or mask.dtype != torch.bool:
        got = f"{mask.dtype} of shape {tuple(mask.shape)}" if is_tensor else type(mask).__name__
        raise ValueError(
            f"Unet3D: {name} must be boolean with one element per video, shape ({x.shape[0]},), "
            f"got {got}; use torch.tensor([True, False, ...])"
        )
    return mask
