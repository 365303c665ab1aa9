"""Which videos of a batch lose their condition, and which lose sight of their other frames."""

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
    if mask.shape != x.shape[:1] or mask.dtype != torch.bool:
        raise ValueError(
            f"Unet3D: focus_present_mask must be boolean with one element per video, shape "
            f"({x.shape[0]},), got {mask.dtype} of shape {tuple(mask.shape)}; "
            "use torch.tensor([True, False, ...])"
        )
    return mask
