"""False colours: fields of any channels and units as RGB pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.arguments import per_channel, plain_range

ValueRange = tuple[float | Sequence[float], float | Sequence[float]]
"""A low and a high, each one number or one per channel."""

NOT_FINITE = (1.0, 0.1, 0.2)
"""Red, which viridis has none of: shows what is NaN or infinite."""

_GAP = 1
# Dozens of channels in one row would be a strip that no screen shows
_COLUMNS = 8
# Samples may leave [0, 1] by a rounding error and still be pictures
_TOLERANCE = 1e-3
_PICTURE_CHANNELS = (1, 3, 4)


def to_pictures(
    videos: Tensor,
    value_range: ValueRange | Literal["fit"] | None = None,
    *,
    keep_pictures: bool = False,
) -> Tensor:
    """Make clips of any channels and units visible.

    Pictures stay as they are. Of others each channel is shown in the colours of viridis, from dark
    blue for its low to yellow for its high, the channels side by side, eight in a row, with a white
    line between.

    Args:
        videos: `(b, c, f, h, w)`, floats or integers.
        value_range: The low and the high in the clips' units, each a number or one per channel;
            what is beyond them is shown as they are. One range for several calls makes their
            results comparable. "fit": of each channel the least and the largest of its finite
            values. None: clips with 1, 3 or 4 channels in [0, 1], or in uint8, are pictures; of
            others as "fit".
        keep_pictures: Whether clips with 1, 3 or 4 channels are pictures also where there is a
            range of numbers: from black at its low to white at its high.

    Returns:
        `(b, k, f, h, w)` float32 in [0, 1], `k` 1, 3 or 4 for grey, RGB or RGBA, of pictures; or
        `(b, 3, f, h, c * w + c - 1)` of up to eight channels. Where a value is not finite it is
        `NOT_FINITE`.

    Raises:
        ValueError: The shape or the range is not as described above.

    Example:
        >>> to_pictures(torch.rand(2, 3, 5, 8, 8)).shape
        torch.Size([2, 3, 5, 8, 8])
        >>> to_pictures(torch.randn(2, 80, 5, 8, 8), value_range=(-3, 3)).shape
        torch.Size([2, 3, 5, 89, 71])
    """
    if videos.ndim != 5 or not videos.numel():
        raise ValueError(
            "the videos' shape must be (videos, channels, frames, height, width), got "
            f"{tuple(videos.shape)}; pass a batch that is not empty"
        )
    is_bytes = videos.dtype == torch.uint8
    videos = videos.detach().float()
    finite = videos.isfinite()
    if value_range is None:
        pictures = videos / 255 if is_bytes else videos
        if _are_pictures(pictures, finite):
            return _mark(pictures.clamp(0, 1), finite)
        value_range = "fit"
    if value_range == "fit":
        low, high = _extremes(videos, finite)
    else:
        c = videos.shape[1]
        bounds = per_channel(plain_range(value_range, c, others="'fit' or "), c)
        low, high = (videos.new_tensor(bound).view(1, -1, 1, 1, 1) for bound in bounds)

    # Places in the range, by halves: a difference may be too large for a float. A constant channel
    # is all low
    span = (high / 2 - low / 2).clamp(min=torch.finfo(torch.float32).tiny)
    shares = ((videos / 2 - low / 2) / span).nan_to_num().clamp(0, 1)
    if keep_pictures and value_range != "fit" and videos.shape[1] in _PICTURE_CHANNELS:
        return _mark(shares, finite)

    # To rows of the colour map
    table = _viridis(videos.device)
    rows = (shares * (len(table) - 1)).round().long()
    colors = table[rows]  # (b, c, f, h, w, 3)
    colors[~finite] = torch.tensor(NOT_FINITE, device=videos.device)

    return _tile(colors)


def _tile(colors: Tensor) -> Tensor:
    """From `(b, c, f, h, w, 3)`: the channels in rows, with white lines between."""
    c = colors.shape[1]
    columns = min(c, _COLUMNS)
    rows = -(-c // columns)
    missing = rows * columns - c
    cells = F.pad(colors, (0, 0, 0, _GAP, 0, _GAP, 0, 0, 0, missing), value=1.0)
    grid = rearrange(cells, "b (i j) f h w c -> b c f (i h) (j w)", i=rows)
    return grid[..., :-_GAP, :-_GAP]


def _are_pictures(videos: Tensor, finite: Tensor) -> bool:
    values = videos[finite]
    inside = (values >= -_TOLERANCE) & (values <= 1 + _TOLERANCE)
    return videos.shape[1] in _PICTURE_CHANNELS and bool(inside.all())


def _mark(pictures: Tensor, finite: Tensor) -> Tensor:
    """Pictures, with those pixels in a colour of their own that have a value that is not finite."""
    is_broken = ~finite.all(dim=1, keepdim=True)
    if not is_broken.any():
        return pictures
    c = pictures.shape[1]
    if c == 1:
        pictures = pictures.expand(-1, 3, -1, -1, -1)
    color = torch.tensor([*NOT_FINITE, 1.0][: max(c, 3)], device=pictures.device)
    return torch.where(is_broken, color.view(1, -1, 1, 1, 1), pictures)


def _extremes(videos: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
    """The least and the largest finite value of each channel, `(1, c, 1, 1, 1)` each."""
    axes = (0, 2, 3, 4)
    low = videos.where(finite, torch.inf).amin(dim=axes, keepdim=True)
    high = videos.where(finite, -torch.inf).amax(dim=axes, keepdim=True)
    # A channel without any finite value has no range, and needs none
    return low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)


def _viridis(device: torch.device) -> Tensor:
    """The colours of the map from low to high, `(256, 3)` in [0, 1]."""
    from matplotlib import colormaps

    colors = colormaps["viridis"](range(256))
    return torch.tensor(colors[:, :3], dtype=torch.float32, device=device)
