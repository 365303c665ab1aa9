"""Frames of a gif or png, composed of the patches that the file stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
"""Of one picture, as of a phone of 48 megapixels; to decode it takes 1 to 1.7 GB of memory."""

_CLEAR, _RESTORE = 2, 3
_ROWS = 256  # composed at a time


@dataclass(frozen=True)
class Patch:
    """What a frame changes.

    Attributes:
        box: Where: left, top, right, bottom.
        still: A file of this picture alone: bytes, and places in the animation's.
        disposal: What becomes of it when the next frame comes, as a gif counts: 2 is cleared, 3
            gives way to what was there before, others stay.
        background: The colour and opacity that it is cleared to.
        is_over: Whether it is laid over what is there, or takes its place.
    """

    box: tuple[int, int, int, int]
    still: Sequence[bytes | slice]
    disposal: int
    background: tuple[int, ...] = (0, 0, 0, 0)
    is_over: bool = True


def check_pixels(size: tuple[int, int]) -> None:
    """Refuse a picture that would take too much memory.

    Raises:
        PIL.Image.DecompressionBombError: It has more pixels than `MAX_PIXELS`, or than Pillow's
            own limit.
    """
    from PIL import Image as pillow

    limit = min(MAX_PIXELS, pillow.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if size[0] * size[1] > limit:
        raise pillow.DecompressionBombError(
            f"{size[0]} x {size[1]} pixels, more than the limit of {limit}"
        )


def scale_transparency(image: Image, header: bytes) -> None:
    """Scale the transparent grey of a png as its pixels are: Pillow leaves it in 2 or 4 bits.

    Args:
        image: The opened picture.
        header: The file's first bytes.
    """
    if image.format == "PNG" and "transparency" in image.info:
        bits, kind = header[24:26]
        if bits in (2, 4) and not kind:
            image.info["transparency"] *= 255 // (2**bits - 1)


def composed(content: bytes, patches: Iterable[Patch], size: tuple[int, int]) -> Iterator[Image]:
    """Go through the frames of an animation.

    Args:
        content: The whole file.
        patches: Of all frames.
        size: Width and height of the screen; it grows where a patch reaches beyond it.

    Returns:
        An iterator over pictures of any mode, each valid until the next one is asked for.
    """
    from PIL import Image as pillow

    canvas: Image | None = None
    undo: tuple[Image | tuple[int, ...], tuple[int, int, int, int]] | None = None
    for index, patch in enumerate(patches):
        canvas = pillow.new("RGBA", size, patch.background) if canvas is None else canvas
        still = b"".join(content[x] if isinstance(x, slice) else x for x in patch.still)
        drawn = pillow.open(BytesIO(still), formats=("GIF", "PNG"))
        check_pixels(drawn.size)
        scale_transparency(drawn, still)
        drawn.load()
        if undo is not None:
            canvas = _with_opacity(canvas)
            canvas.paste(*undo)
        size = max(size[0], patch.box[2]), max(size[1], patch.box[3])
        if size != canvas.size:
            check_pixels(size)
            canvas = _with_opacity(canvas).crop((0, 0, *size))
        undo = (patch.background, patch.box) if patch.disposal == _CLEAR else None
        if patch.disposal == _RESTORE:
            undo = (canvas.crop(patch.box).convert("RGBA"), patch.box)
        if patch.box == (0, 0, *size) and not drawn.has_transparency_data:
            # Pillow's way from a palette to grey rounds otherwise than that from RGB
            canvas = drawn.convert("RGB") if index and drawn.format == "GIF" else drawn
        else:
            if drawn.format == "PNG":
                canvas = _with_opacity(canvas)
            elif canvas.mode != "RGBA":  # what is opaque stays so, and takes less time
                canvas = canvas.convert("RGB")
            _draw(canvas, drawn, patch)
        del drawn, still
        yield canvas


def _with_opacity(image: Image) -> Image:
    return image if image.mode == "RGBA" else image.convert("RGBA")


def _draw(canvas: Image, drawn: Image, patch: Patch) -> None:
    colours = _with_opacity(drawn)
    if not patch.is_over:
        canvas.paste(colours, patch.box)
    elif drawn.format == "GIF":  # on or off
        canvas.paste(colours, patch.box, colours)
    else:
        left, top, _, _ = patch.box
        for row in range(0, colours.height, _ROWS):  # Pillow makes two copies
            strip = (0, row, colours.width, min(row + _ROWS, colours.height))
            canvas.alpha_composite(colours, (left, top + row), strip)
