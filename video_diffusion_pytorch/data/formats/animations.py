"""Animations: composed frames of gif, webp and png files, and their durations."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PIXELS = 50_000_000
"""Limit for one picture, as from a phone of 48 megapixels; decoding takes 1 to 1.7 GB of memory."""

_CLEAR, _RESTORE = 2, 3
_ROWS = 256  # composed at a time


@dataclass(frozen=True)
class Patch:
    """The part of the canvas that a frame changes.

    Attributes:
        box: Left, top, right, bottom.
        still: A file of this picture alone: bytes, and slices of the animation's.
        disposal: What happens to it before the next frame, as in a gif: 2 clears it, 3 restores
            what was there before, others leave it.
        background: The colour and opacity that it is cleared to.
        is_over: Whether it is alpha-blended with what is there, or replaces it.
    """

    box: tuple[int, int, int, int]
    still: Sequence[bytes | slice]
    disposal: int
    background: tuple[int, ...] = (0, 0, 0, 0)
    is_over: bool = True


def check_pixels(size: tuple[int, int]) -> None:
    """Rejects a picture that would take too much memory.

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
    """Scales the transparent grey of a png of 2 or 4 bits like its pixels, which Pillow omits.

    Args:
        image: The opened picture.
        header: The file's first bytes.
    """
    if image.format == "PNG" and "transparency" in image.info:
        bits, kind = header[24:26]
        if bits in (2, 4) and not kind:
            image.info["transparency"] *= 255 // (2**bits - 1)


def composed(content: bytes, patches: Iterable[Patch], size: tuple[int, int]) -> Iterator[Image]:
    """Composes the frames of an animation.

    Args:
        content: The whole file.
        patches: Of all frames.
        size: Width and height of the canvas; it grows if a patch exceeds it.

    Returns:
        An iterator over pictures of any mode, each valid until the next one is requested.
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
            # Pillow converts a palette to grey with other rounding than RGB
            canvas = drawn.convert("RGB") if index and drawn.format == "GIF" else drawn
        else:
            if drawn.format == "PNG":
                canvas = _with_opacity(canvas)
            elif canvas.mode != "RGBA":  # opaque frames stay so, which is faster
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


def gif_durations(content: bytes) -> list[float] | None:
    """Walks the blocks of a gif (GIF89a specification, appendix B) up to its trailer.

    Pillow takes the end of a truncated file for the end of the animation.

    Args:
        content: The whole file, of at least its six bytes of signature.

    Returns:
        Duration of each frame in seconds; None if the bytes end before the trailer.

    Example:
        >>> gif_durations(b"GIF89a" + bytes(7) + b";")
        []
    """
    blocks = _frame_blocks(content)
    if blocks is None:
        return None
    delays = (content[at + 1] + 256 * content[at + 2] if at else 0 for at, _, _ in blocks)
    return [delay / 100 for delay in delays]


def gif_patches(content: bytes) -> Iterator[Patch]:
    """The changes by each frame of a complete gif.

    A frame with a transparent colour is cleared to transparent, others to the background colour,
    as by FFmpeg.

    Args:
        content: The whole file.
    """
    screen_palette = content[13 : 13 + _color_table_size(content[10])]
    background = (*screen_palette[3 * content[11] :][:3], 255)
    for control, start, stop in _frame_blocks(content) or []:
        left, top, w, h, flags = struct.unpack_from("<4HB", content, start + 1)
        pixels = start + 10 + _color_table_size(flags)
        palette, size = content[start + 10 : pixels], flags
        if not palette:
            palette, size = screen_palette, content[10]
        packed = content[control] if control else 0
        # The frame as a gif by itself: a screen of its size, its colours and its control block
        head = struct.pack("<6s2H3B", b"GIF89a", w, h, size & 0x87, 0, 0) + palette
        if control:
            head += b"\x21\xf9\x04" + content[control : control + 4] + b"\0"
        head += struct.pack("<c4HB", b",", 0, 0, w, h, flags & 0x40)
        is_cleared = packed & 1 or len(background) < 4
        yield Patch(
            (left, top, left + w, top + h),
            (head, slice(pixels, stop), b";"),
            disposal=packed >> 2 & 7,
            background=(0, 0, 0, 0) if is_cleared else background,
        )


def is_opaque_gif(content: bytes) -> bool:
    """Whether the frames of a gif are opaque, and the first, or each, covers the canvas.

    Pillow composes such a gif correctly, and faster than `composed`, unless a frame that covers
    only a part is to be cleared or restored.

    Args:
        content: The whole file, complete.
    """
    screen = struct.unpack_from("<2H", content, 6)
    blocks = _frame_blocks(content) or []
    cover = [
        struct.unpack_from("<4H", content, start + 1) == (0, 0, *screen) for _, start, _ in blocks
    ]
    packed = [content[control] if control else 0 for control, _, _ in blocks]
    is_kept = all(cover) or (cover[:1] == [True] and all(flags >> 2 & 7 < 2 for flags in packed))
    return is_kept and not any(flags & 1 for flags in packed)


def _frame_blocks(content: bytes) -> list[tuple[int | None, int, int]] | None:
    """Of each frame: where the fields of its control block begin, and the frame begins and ends.

    None if the bytes end before the trailer.
    """
    total = len(content)
    found: list[tuple[int | None, int, int]] = []
    control = None
    position = 13 + _color_table_size(content[10]) if total >= 13 else total
    while position < total:
        block = content[position]
        if block == 0x3B:
            return found
        if block == 0x21:
            # A graphic control extension is for the next frame
            if content[position + 1 : position + 3] == b"\xf9\x04" and position + 6 < total:
                control = position + 3
            position = _end_of_sub_blocks(content, position + 2)
        elif block == 0x2C and position + 10 <= total:
            start = position
            position += 11 + _color_table_size(content[position + 9])
            position = _end_of_sub_blocks(content, position)
            found.append((control, start, position))
            control = None
        else:
            position += 1  # a stray byte between blocks: decoders step over it
    return None


def _color_table_size(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_sub_blocks(content: bytes, position: int) -> int:
    total = len(content)
    while position < total and (size := content[position]):
        position += size + 1
    return position + 1


def webp_durations(content: bytes) -> list[float] | None:
    """Walks the chunks of a webp (RFC 9649, section 2).

    Args:
        content: The whole file, of at least its twelve bytes of signature.

    Returns:
        Duration of each frame of an animation in seconds, none for a still picture. None if the
        bytes end before the end that the header states.

    Example:
        >>> webp_durations(struct.pack("<4sI4s", b"RIFF", 4, b"WEBP"))
        []
    """
    durations: list[float] = []
    end = 8 + struct.unpack_from("<I", content, 4)[0]
    if end > len(content):
        return None
    position = 12
    while position + 8 <= end:
        kind, size = struct.unpack_from("<4sI", content, position)
        body, position = position + 8, position + 8 + size + size % 2
        if kind == b"ANMF" and size >= 16:
            milliseconds = int.from_bytes(content[body + 12 : body + 15], "little")
            durations.append(milliseconds / 1000)
    return durations if position == end else None


def png_durations(content: bytes) -> list[float] | None:
    r"""Walks the chunks of a png (PNG specification, third edition, section 5) up to the last.

    Args:
        content: The whole file, of at least its eight bytes of signature.

    Returns:
        Duration of each frame of an animation in seconds, none for a still picture. None if the
        bytes end before the last chunk, or frames are missing.

    Example:
        >>> end = struct.pack(">I4sI", 0, b"IEND", 0xAE426082)
        >>> png_durations(b"\x89PNG\r\n\x1a\n" + end)
        []
    """
    durations: list[float] = []
    announced = None
    for kind, body, stop in _chunks(content):
        if stop + 4 > len(content):
            return None
        if kind == b"IEND":
            return durations if announced in (None, len(durations)) else None
        if kind == b"acTL" and stop - body == 8:
            announced = struct.unpack_from(">I", content, body)[0]
        elif kind == b"fcTL" and stop - body == 26 and announced is not None:
            numerator, denominator = struct.unpack_from(">HH", content, body + 20)
            durations.append(numerator / (denominator or 100))
    return None


def png_patches(content: bytes) -> Iterator[Patch]:
    """The changes by each frame of a complete animated png.

    Args:
        content: The whole file.
    """
    header = b""
    colours: dict[bytes, bytes] = {}
    control: tuple[int, ...] = ()
    data = bytearray()
    for kind, body, stop in _chunks(content):
        if kind == b"IHDR":
            header = content[body:stop]
        elif kind in (b"PLTE", b"tRNS"):
            colours.setdefault(kind, content[body - 8 : stop + 4])
        elif kind in (b"IDAT", b"fdAT"):
            data += content[body + 4 * (kind == b"fdAT") : stop]
        elif kind in (b"fcTL", b"IEND"):
            if control:
                w, h, left, top, _, dispose, blend = control
                # The frame as a png by itself: a header with its size, the same colours, its data
                size = _chunk(b"IHDR", struct.pack(">II", w, h) + header[8:])
                still = (content[:8], size, *colours.values(), _chunk(b"IDAT", bytes(data)))
                box = (left, top, left + w, top + h)
                yield Patch(box, still, disposal=dispose + 1, is_over=blend == 1)
            if kind == b"IEND":
                return
            control = struct.unpack_from(">4IIBB", content, body + 4) if stop - body == 26 else ()
            data.clear()


def _chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The type of each chunk, where its data begin, and where they end."""
    position = 8
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        yield kind, position + 8, position + 8 + size
        position += 12 + size


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
