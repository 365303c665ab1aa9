"""A milestone's samples: drawn from the averaged model, written as a grid that plays."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.data.video_file import CHANNELS_TO_MODE, video_tensor_to_gif
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import repeat_to


@torch.no_grad()
def draw_samples(
    diffusion: GaussianDiffusion, count: int, max_batch: int, cond: Any, seed: int
) -> Tensor:
    """Draws videos from a seed of its own, without touching the caller's random numbers.

    Args:
        diffusion: The model.
        count: Number of videos.
        max_batch: How many are drawn at a time.
        cond: Conditions, repeated to `count`; None for none.
        seed: The same seed gives the same noise.

    Returns:
        `(count, c, f, h, w)`.
    """
    device = diffusion.betas.device
    parts = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, count, max_batch):
            size = min(max_batch, count - start)
            part = None if cond is None else repeat_to(cond, count)[start : start + size]
            parts.append(diffusion.sample(cond=part, batch_size=size, progress=False))
    return torch.cat(parts)


def write_sample_grid(videos: Tensor, path: Path, rows: int, in_unit_range: bool = True) -> None:
    """Writes a gif of `rows` rows of videos, with a black frame around each.

    Clips that are no pictures are shown all the same: other than 1, 3 or 4 channels side by side,
    and values of another range from the lowest in black to the highest in white.

    Args:
        videos: `(b, c, f, h, w)`, `b` a multiple of `rows`.
        path: The gif.
        rows: Number of rows.
        in_unit_range: Whether values are in [0, 1].
    """
    # a diverged model must not end the training that may yet recover
    videos = videos.float().nan_to_num()
    if not in_unit_range:
        low, high = videos.aminmax()
        videos = (videos - low) / (high - low).clamp(min=1e-12)
    if videos.shape[1] not in CHANNELS_TO_MODE:
        videos = rearrange(videos, "b c f h w -> b 1 f h (c w)")
    framed = F.pad(videos, (2, 2, 2, 2))
    grid = rearrange(framed, "(i j) c f h w -> c f (i h) (j w)", i=rows)
    video_tensor_to_gif(grid.cpu(), path)
