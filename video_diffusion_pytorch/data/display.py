"""Display of clips: fields as false colours, grids of clips, and captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count, per_channel, plain_range

ValueRange = tuple[float | Sequence[float], float | Sequence[float]]
"""A low and a high, each one number or one per channel."""

NOT_FINITE = (1.0, 0.1, 0.2)
"""Red, which is not in viridis, for NaN and infinite values."""

_GAP = 1
# Dozens of channels in one row would not fit on a screen
_COLUMNS = 8
# Samples may exceed [0, 1] by a rounding error
_TOLERANCE = 1e-3
_PICTURE_CHANNELS = (1, 3, 4)


def to_pictures(
    videos: Tensor,
    value_range: ValueRange | Literal["fit"] | None = None,
    *,
    keep_pictures: bool = False,
) -> Tensor:
    """Converts clips of any channels and units to pictures.

    Pictures stay as they are. Of others each channel is shown in the colours of viridis, from dark
    blue for its low to yellow for its high, the channels side by side, eight in a row, with white
    lines between.

    Args:
        videos: `(b, c, f, h, w)`, floats or integers.
        value_range: The low and the high in the clips' units, each a number or one per channel;
            values beyond are clamped. One range for several calls makes their results comparable.
            "fit": the least and the largest finite value of each channel. None: clips with 1, 3 or
            4 channels in [0, 1], or in uint8, are pictures; others as with "fit".
        keep_pictures: Whether clips with 1, 3 or 4 channels are pictures even if there is a range:
            from black at its low to white at its high.

    Returns:
        `(b, k, f, h, w)` float32 in [0, 1], `k` 1, 3 or 4 for grey, RGB or RGBA, for pictures; or
        `(b, 3, f, h, c * w + c - 1)` for up to eight channels. Values that are not finite have
        the colour `NOT_FINITE`.

    Raises:
        ValueError: The shape or the range is invalid.

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
        inside = (pictures >= -_TOLERANCE) & (pictures <= 1 + _TOLERANCE)
        if videos.shape[1] in _PICTURE_CHANNELS and bool((inside | ~finite).all()):
            return _mark(pictures.clamp(0, 1), finite)
        value_range = "fit"
    if value_range == "fit":
        low, high = _extremes(videos, finite)
    else:
        c = videos.shape[1]
        bounds = per_channel(plain_range(value_range, c, others="'fit' or "), c)
        low, high = (videos.new_tensor(bound).view(1, -1, 1, 1, 1) for bound in bounds)

    # Positions in the range, by halves: the difference may overflow. A constant channel is all low
    span = (high / 2 - low / 2).clamp(min=torch.finfo(torch.float32).tiny)
    shares = ((videos / 2 - low / 2) / span).nan_to_num().clamp(0, 1)
    if keep_pictures and videos.shape[1] in _PICTURE_CHANNELS:
        return _mark(shares, finite)

    # To rows of the colour map
    table = _viridis(videos.device)
    rows = (shares * (len(table) - 1)).round().long()
    colors = table[rows]  # (b, c, f, h, w, 3)
    colors[~finite] = torch.tensor(NOT_FINITE, device=videos.device)

    return _tile(colors)


def _tile(colors: Tensor) -> Tensor:
    """The channels of `(b, c, f, h, w, 3)` in rows, with white lines between."""
    c = colors.shape[1]
    columns = min(c, _COLUMNS)
    rows = -(-c // columns)
    missing = rows * columns - c
    cells = F.pad(colors, (0, 0, 0, _GAP, 0, _GAP, 0, 0, 0, missing), value=1.0)
    grid = rearrange(cells, "b (i j) f h w c -> b c f (i h) (j w)", i=rows)
    return grid[..., :-_GAP, :-_GAP]


def _mark(pictures: Tensor, finite: Tensor) -> Tensor:
    """Pictures with the pixels in `NOT_FINITE` that have a value that is not finite."""
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
    # A channel without any finite value needs no range
    return low.nan_to_num(posinf=0.0), high.nan_to_num(neginf=0.0)


def _viridis(device: torch.device) -> Tensor:
    """The colours of the map from low to high, `(256, 3)` in [0, 1]."""
    from matplotlib import colormaps

    colors = colormaps["viridis"](range(256))
    return torch.tensor(colors[:, :3], dtype=torch.float32, device=device)


FRAME = 2
"""Width of the frame around each clip, in pixels."""

_FONT_SIZE = 12
_MARGIN = 4


def video_grid(
    pictures: Tensor,
    columns: int,
    *,
    zoom: int = 1,
    frame: float = 0.0,
    captions: Sequence[str] | None = None,
) -> Tensor:
    """Arranges clips in rows, with a frame around each.

    Args:
        pictures: `(b, k, f, h, w)` in [0, 1]; `k` 1, 3 or 4 for grey, RGB or RGBA.
        columns: Clips in a row. Free places in the last row are black.
        zoom: Enlargement factor.
        frame: Brightness of the frames, from 0 to 1.
        captions: A text under each clip, wrapped; None for none.

    Returns:
        `(k, f, H, W)`.

    Raises:
        ValueError: `columns` or `zoom` is less than 1, or the number of captions is wrong.

    Example:
        >>> video_grid(torch.rand(6, 3, 8, 16, 20), columns=3).shape
        torch.Size([3, 8, 40, 72])
    """
    columns, zoom = as_count(columns, "columns"), as_count(zoom, "zoom")
    if captions is not None and len(captions) != len(pictures):
        raise ValueError(
            f"captions must be as many as there are videos, {len(pictures)}, got {len(captions)}; "
            "give one for each"
        )
    large = pictures.repeat_interleave(zoom, dim=-1).repeat_interleave(zoom, dim=-2)
    cells = F.pad(large, (FRAME,) * 4, value=frame)
    if captions is not None:
        cells = torch.cat((cells, _captions(captions, cells)), dim=-2)
    rows = -(-len(cells) // columns)
    cells = F.pad(cells, (0, 0) * 4 + (0, rows * columns - len(cells)))
    return rearrange(cells, "(i j) c f h w -> c f (i h) (j w)", i=rows)


def text_picture(
    text: str, width: int, height: int | None = None, *, ink: float = 0.0, paper: float = 1.0
) -> Tensor:
    """Draws a text, wrapped to the width of the picture.

    Args:
        text: The text.
        width: Width of the picture in pixels; wider words are cut.
        height: Height of the picture; None for that of the lines.
        ink: Brightness of the text, from 0 to 1.
        paper: Brightness of the background.

    Returns:
        `(h, width)` in [0, 1].

    Example:
        >>> text_picture("a three that moves left", width=80).shape
        torch.Size([36, 80])
    """
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * _MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    line_height = _FONT_SIZE + 4
    if height is None:
        height = len(lines) * line_height + _MARGIN
    image = Image.new("L", (width, height), round(255 * paper))
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, number * line_height + 2), line, fill=round(255 * ink), font=font)
    return torch.from_numpy(np.array(image)).float() / 255


def _captions(captions: Sequence[str], cells: Tensor) -> Tensor:
    """White on black, as wide as the cells, and all of one height, `(b, k, f, h, w)`."""
    strips = [text_picture(text, cells.shape[-1], ink=1.0, paper=0.0) for text in captions]
    highest = max(len(strip) for strip in strips)
    even = torch.stack([F.pad(strip, (0, 0, 0, highest - len(strip))) for strip in strips])
    printed = even[:, None, None].to(cells).expand(-1, *cells.shape[1:3], -1, -1)
    if cells.shape[1] != 4:
        return printed
    return torch.cat((printed[:, :3], torch.ones_like(printed[:, :1])), dim=1)
