"""The bytes of a png: whether all are there, and how long its frames are shown."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from video_diffusion_pytorch.data.formats.animation import Patch


def png_durations(content: bytes) -> list[float] | None:
    r"""Walk the chunks of a png (PNG specification, third edition, section 5) up to its end chunk.

    Args:
        content: The whole file, of at least its eight bytes of signature.

    Returns:
        How long each frame is shown, in seconds: one number per frame of an animation, none for a
        still picture. None if the bytes end before the end chunk, or frames are missing.

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
    """Tell what each frame of a complete animation changes, and what becomes of that afterwards.

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
    """Go through the chunks: the kind of each, where its data begin, and where they end."""
    position = 8
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        yield kind, position + 8, position + 8 + size
        position += 12 + size


def _chunk(kind: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
