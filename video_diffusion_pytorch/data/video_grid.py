"""Grids of videos that play side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

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
    """Lay clips out in rows, with a frame around each.

    Args:
        pictures: `(b, k, f, h, w)` in [0, 1]; `k` 1, 3 or 4 for grey, RGB or RGBA.
        columns: Clips in a row. Places that are left over in the last row are black.
        zoom: Side, in pixels of the result, of the square that a pixel becomes.
        frame: Brightness of the frames, from 0 to 1.
        captions: A text under each clip, in as many lines as it takes; None for none.

    Returns:
        `(k, f, H, W)`.

    Raises:
        ValueError: If `columns` or `zoom` is less than 1, or there is not a caption for each clip.

    Example:
        >>> video_grid(torch.rand(6, 3, 8, 16, 20), columns=3).shape
        torch.Size([3, 8, 40, 72])
    """
    for name, number in (("columns", columns), ("zoom", zoom)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}; give a positive number")
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
    """Print a text in a picture, in as many lines as it takes.

    Args:
        text: What to print.
        width: Width of the picture in pixels; words that are wider are cut.
        height: Height of the picture; None for what the lines take.
        ink: Brightness of the text, from 0 to 1.
        paper: Brightness of what is behind it.

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
    """White on black, as wide as the cells, all as high as the highest, `(b, k, f, h, w)`."""
    strips = [text_picture(text, cells.shape[-1], ink=1.0, paper=0.0) for text in captions]
    highest = max(len(strip) for strip in strips)
    even = torch.stack([F.pad(strip, (0, 0, 0, highest - len(strip))) for strip in strips])
    printed = even[:, None, None].to(cells).expand(-1, *cells.shape[1:3], -1, -1)
    if cells.shape[1] != 4:
        return printed
    return torch.cat((printed[:, :3], torch.ones_like(printed[:, :1])), dim=1)
