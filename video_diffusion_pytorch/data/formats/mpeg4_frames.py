"""The packets of MPEG-4 part 2 (XviD, DivX): one frame in each, with the time when it is shown."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

_FRAME = b"\0\0\1\xb6"
_B = 2
_MOST_OF_A_REPEAT = 64  # bytes


def in_frames(packets: Iterable[Any], stream: Any) -> Iterator[Any]:
    """Take packets of two frames apart, and date them by when they are decoded.

    An avi counts packets, and some of its encoders put a frame and the one that refers to it into
    one packet, and a placeholder into the next ("packed B-frames").

    Args:
        packets: As demuxed, from a keyframe on.
        stream: PyAV's stream.

    Yields:
        Packets of one frame each; those without a byte as they are.
    """
    from av.bitstream import BitStreamFilterContext

    unpack = BitStreamFilterContext("mpeg4_unpack_bframes", stream)
    is_reordered = stream.codec_context.has_b_frames
    # A frame that others refer to is shown when the next such frame is decoded
    held: list[Any] = []
    for packet in packets:
        for single in unpack.filter(packet) if packet.size else [packet]:
            single.stream = stream
            if not is_reordered:
                yield single
                continue
            if single.size and _kind(bytes(single)) != _B:
                if held:
                    held[0].pts = single.dts
                yield from held
                held = [single]
            else:
                single.pts = single.dts
                held.append(single)
    if held and held[0].size:
        held[0].pts = max(packet.dts or 0 for packet in held) + (held[0].duration or 1)
    yield from held


def is_coded(packet: Any) -> bool:
    """Tell whether a packet holds a frame, rather than a repeat of the one before.

    Args:
        packet: One of `in_frames`.
    """
    if packet.size > _MOST_OF_A_REPEAT:
        return True
    bits = _bits_behind(_FRAME, bytes(packet))
    length = _bits_of_time(packet.stream.codec_context.extradata or b"")
    # its kind, a 1 for each second, 0, 1, a time within the second, 1, and whether it is coded
    seconds = bits.find("0", 2)
    coded = bits[seconds + length + 3 : seconds + length + 4]
    return not length or seconds < 0 or coded != "0"


def _kind(data: bytes) -> int:
    return int(_bits_behind(_FRAME, data)[:2] or "0", 2)


@functools.lru_cache(maxsize=64)
def _bits_of_time(header: bytes) -> int:
    """Read from the layer's header how long a frame's time is; 0 if unknown (ISO/IEC 14496-2)."""
    start = re.search(rb"\x00\x00\x01[\x20-\x2f]", header)
    bits = _bits_behind(start.group(), header) if start else ""
    place = 9  # behind whether any frame can be begun with, and the type
    place += 8 if bits[place : place + 1] == "1" else 1
    place += 20 if bits[place : place + 4] == "1111" else 4  # the shape of pixels
    if bits[place : place + 1] == "1":  # control parameters
        place += 83 if bits[place + 4 : place + 5] == "1" else 4
    shape, resolution = bits[place + 1 : place + 3], bits[place + 4 : place + 20]
    is_plain = shape == "00" and len(resolution) == 16
    return max(1, (int(resolution, 2) - 1).bit_length()) if is_plain else 0


def _bits_behind(start: bytes, data: bytes) -> str:
    place = data.find(start)
    part = data[place + len(start) :][:32] if place >= 0 else b""
    return "".join(f"{byte:08b}" for byte in part)
