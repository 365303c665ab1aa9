"""The bytes of a png: whether all are there, and how long its frames are shown."""

from __future__ import annotations

import struct


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
    position = 8
    while position + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        body, position = position + 8, position + 12 + size
        if position > len(content):
            return None
        if kind == b"IEND":
            return durations if announced in (None, len(durations)) else None
        if kind == b"acTL" and size == 8:
            announced = struct.unpack_from(">I", content, body)[0]
        elif kind == b"fcTL" and size == 26 and announced is not None:
            numerator, denominator = struct.unpack_from(">HH", content, body + 20)
            durations.append(numerator / (denominator or 100))
    return None
