"""The bytes of a gif: whether all are there, and how frames become them."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        How long each frame is shown, in seconds; None if the bytes end before the trailer.

    Example:
        >>> gif_durations(b"GIF89a" + bytes(7) + b";")
        []
    """
    total = len(content)
    durations: list[float] = []
    delay = 0
    position = 13 + _color_table_size(content[10]) if total >= 13 else total
    while position < total:
        block = content[position]
        if block == 0x3B:
            return durations
        if block == 0x21:
            # A graphic control extension: its delay is that of the next frame
            if content[position + 1 : position + 3] == b"\xf9\x04" and position + 6 < total:
                delay = content[position + 4] + 256 * content[position + 5]
            position = _end_of_sub_blocks(content, position + 2)
        elif block == 0x2C and position + 10 <= total:
            durations.append(delay / 100)
            delay = 0
            position += 11 + _color_table_size(content[position + 9])
            position = _end_of_sub_blocks(content, position)
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
