"""Second step of the path: what is no number does not get into a clip or a condition."""

from __future__ import annotations

from pathlib import Path

import torch

from video_diffusion_pytorch.data.errors import unreadable


def finite(values: torch.Tensor, path: Path) -> torch.Tensor:
    """Refuses NaN and infinity, of which one would spoil all that a training has learnt.

    Args:
        values: What was read, of any shape and type.
        path: The file, for the error.

    Returns:
        `values` themselves.

    Raises:
        UnreadableVideoError: They are not all finite.

    Example:
        >>> finite(torch.tensor([1.0, 2.0]), Path("wind.npy"))
        tensor([1., 2.])
    """
    if not values.is_floating_point():
        return values
    count = values.numel() - int(values.isfinite().sum())
    if count:
        raise unreadable(
            path,
            "finite numbers in float32",
            f"{count} NaN or infinite ones of {values.numel()}",
            "replace them, as with numpy.nan_to_num, or remove the file",
        )
    return values
