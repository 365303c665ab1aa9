"""The bytes of a gif: whether all are there, and how frames become them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from video_diffusion_pytorch.data.formats.animation import Patch

if TYPE_CHECKING:
    from PIL.Image import Image


def gif_is_complete(content: bytes) -> bool:
    """Walk the blocks of a gif up to its trailer.

    Pillow takes the end of a file for the end of the animation: one cut between two frames would
    pass for a shorter one.

    Args:
        content: The whole file, of at least its six bytes of signature.

    Returns:
        False if the bytes end before the trailer.

    Example:
        >>> empty = b"GIF89a" + bytes(7) + b";"
        >>> gif_is_complete(empty), gif_is_complete(empty[:-1])
        (True, False)
    """
    return gif_durations(content) is not None


def gif_durations(content: bytes) -> list[float] | None:
    """Walk the blocks of a gif (GIF89a specification, appendix B) and count its frames.

    Args:
        content: The whole file, of at least its six bytes of signature.

    Returns:
        How long each frame is to be shown, in seconds; None if the bytes end before the trailer.

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
    """Tell what each frame of a complete gif changes, and what becomes of that afterwards.

    What is cleared becomes transparent if the frame has a transparent colour, else it becomes the
    background colour, as FFmpeg does it.

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
    """Tell whether the frames of a gif are opaque, and the first, or each, covers the screen.

    Pillow composes such a gif right, and faster than `animation.composed`, unless a frame that
    covers a part only is to be cleared or undone.

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
    """Of each frame: where its control block's fields begin, and where the frame itself and ends.

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


def encode_gif(frames: list[Image], duration: float, loop: int | None, optimize: bool) -> bytes:
    """Put frames one by one into a gif.

    Pillow's own `save` merges equal consecutive frames into one that is shown longer, so that the
    number of frames gets lost.

    Args:
        frames: Pictures of one size and one mode: L, RGB or RGBA.
        duration: Milliseconds per frame.
        loop: How often viewers repeat the animation; 0 is for ever, None leaves it out.
        optimize: Store of each later frame only the rectangle that changed (not for RGBA).

    Returns:
        The content of the file.
    """
    from PIL import ImageChops
    from PIL.GifImagePlugin import getdata, getheader

    mode, whole = frames[0].mode, (0, 0, *frames[0].size)
    chunks: list[bytes] = []
    for index, frame in enumerate(frames):
        box = whole
        if index and optimize and mode != "RGBA":
            # A frame that repeats the one before still stores a pixel, and so is counted
            box = ImageChops.difference(frames[index - 1], frame).getbbox() or (0, 0, 1, 1)
        indexed = _to_indexed(frame.crop(box))
        if not index:
            info = {"duration": duration} if loop is None else {"duration": duration, "loop": loop}
            chunks += getheader(indexed, info=info)[0]
        options: dict[str, object] = {"duration": duration}
        if mode != "L":
            options["include_color_table"] = index > 0  # the first one's is in the header
        if mode == "RGBA":
            options |= {"transparency": 255, "disposal": 2}  # wipe before the next frame
        chunks += getdata(indexed, (box[0], box[1]), **options)
    return b"".join([*chunks, b";"])


def _to_indexed(frame: Image) -> Image:
    """Reduce a frame to at most 256 colours; index 255 of an RGBA frame is transparent."""
    from PIL import Image as pillow

    if frame.mode == "L":
        frame = frame.copy()
        frame.putpalette([level for level in range(256) for _ in "rgb"])
        return frame
    if frame.mode == "RGB":
        return frame.convert("P", palette=pillow.Palette.ADAPTIVE)
    indexed = frame.convert("RGB").convert("P", palette=pillow.Palette.ADAPTIVE, colors=255)
    palette = indexed.getpalette() or []
    indexed.putpalette(palette[:765] + [0] * (768 - len(palette[:765])))
    clear = frame.getchannel("A").point(lambda opacity: 255 * (opacity < 128))
    indexed.paste(255, mask=clear.convert("1"))
    return indexed
