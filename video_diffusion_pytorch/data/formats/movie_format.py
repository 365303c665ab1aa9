"""The bytes of a movie file: whether all are there, which FFmpeg does not ask."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from video_diffusion_pytorch.data.errors import regular_file
from video_diffusion_pytorch.data.formats.file_signature import FAMILY_OF_ENDING

_MP4_BOXES = (b"ftyp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"free", b"skip", b"udta")
_MKV_SEGMENT = b"\x18\x53\x80\x67"


def missing_bytes(path: Path) -> int:
    """Tell how much of a movie file is missing at its end, as far as its bytes say.

    A file that was cut short is often played up to where it ends, as if it were a shorter one.

    Args:
        path: A file whose signature fits its name.

    Returns:
        The number of bytes missing; 0 where the file is complete, or does not state its length (as
        recordings of live streams in mkv).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "cut.avi")
        ...     _ = file.write_bytes(struct.pack("<4sI4s", b"RIFF", 104, b"AVI "))
        ...     missing_bytes(file)
        100
    """
    walk = {"mp4": _end_of_mp4, "mkv": _end_of_mkv, "avi": _end_of_avi}
    family = FAMILY_OF_ENDING[path.suffix.lower().lstrip(".")]
    total = os.path.getsize(path)
    with regular_file(path).open("rb") as file:
        return max(walk[family](file, total) - total, 0)


def _end_of_mp4(file: BinaryIO, total: int) -> int:
    """Go from box to box (ISO/IEC 14496-12, section 4.2); what follows and is no box is left."""
    position, has_index = 0, False
    while position < total:
        file.seek(position)
        header = file.read(16)
        kind = header[4:8]
        if has_index and len(kind) == 4 and kind not in _MP4_BOXES:
            return total
        has_index = has_index or kind in (b"moov", b"moof")
        size = int.from_bytes(header[:4], "big")
        if size == 0 and len(kind) == 4:  # up to the end of the file
            return total if has_index else total + 8
        if size == 1:
            size = int.from_bytes(header[8:], "big")
        position += max(size, 8)
    return position if has_index else max(position, total + 8)


def _end_of_mkv(file: BinaryIO, total: int) -> int:
    """Add up the EBML header and the segment (RFC 8794, section 6)."""

    def number(position: int) -> tuple[int | None, int]:
        """Read a size of 1 to 8 bytes; None stands for unknown."""
        file.seek(position)
        first = file.read(1)
        if not first or not first[0]:
            return None, position + 1
        length = 9 - first[0].bit_length()
        value = int.from_bytes(first + file.read(length - 1), "big") - (1 << 7 * length)
        return (None if value == (1 << 7 * length) - 1 else value), position + length

    size, position = number(4)
    position += size or 0
    if position > total:  # perhaps beyond what a file system can seek to
        return position
    file.seek(position)
    if size is None or file.read(4) != _MKV_SEGMENT:
        return position + 4  # beyond the end only where the header is cut
    size, position = number(position + 4)
    return position + (size or 0)


def _end_of_avi(file: BinaryIO, total: int) -> int:
    """Go from RIFF chunk to RIFF chunk: files of more than a gigabyte have several."""
    position = 0
    while position < total:
        file.seek(position)
        header = file.read(8)
        if header[:4] != b"RIFF" or len(header) < 8:
            break
        size = struct.unpack("<I", header[4:])[0]
        position += 8 + size + size % 2
    return position
