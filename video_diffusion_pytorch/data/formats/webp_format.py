"""The bytes of a webp: whether all are there, and how long its frames are shown."""

from __future__ import annotations

import struct


def webp_durations(content: bytes) -> list[float] | None:
    """Walk the chunks of a webp (RFC 9649, section 2) through to its end.

    Args:
        content: The whole file, of at least its twelve bytes of signature.

    Returns:
        How long each frame is shown, in seconds: one number per frame of an animation, none for a
        still picture. None if the bytes end before the end that the header states.

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
