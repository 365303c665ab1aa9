"""The pages of a tif."""

from __future__ import annotations

import struct

_NEW_SUBFILE_TYPE = 254
# Bits of that tag: a smaller version of another page, a mask of one
_NO_PICTURE = 0b101


def tiff_pages(content: bytes) -> list[int] | None:
    r"""Walk the directories of a tif (revision 6.0, section 2) or BigTIFF, one per page.

    Args:
        content: The whole file, of at least its signature.

    Returns:
        The numbers of the pages that are pictures, thumbnails and masks not counted; None if the
        bytes end within a directory.

    Example:
        >>> tiff_pages(b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 256, 3, 1, 9, 0, 0))
        [0]
    """
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]
    count, offset, entry_size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    head, tail = struct.Struct(order + count), struct.Struct(order + offset)
    pages: list[int] = []
    seen: set[int] = set()
    try:
        position = tail.unpack_from(content, 8 if is_big else 4)[0]
        while position and position not in seen:
            entries = position + head.size
            end = entries + entry_size * head.unpack_from(content, position)[0]
            if not _kind(content[entries:end], entry_size, order) & _NO_PICTURE:
                pages.append(len(seen))
            seen.add(position)
            position = tail.unpack_from(content, end)[0]
    except (struct.error, OverflowError):
        return None
    return pages or [0]


def _kind(entries: bytes, entry_size: int, order: str) -> int:
    """The value of the tag that says what kind of page it is; 0 without it."""
    for start in range(0, len(entries), entry_size):
        tag, kind = struct.unpack_from(order + "HH", entries, start)
        if tag >= _NEW_SUBFILE_TYPE:
            value = order + ("H" if kind == 3 else "I")
            at = start + entry_size - (8 if entry_size == 20 else 4)
            return struct.unpack_from(value, entries, at)[0] if tag == _NEW_SUBFILE_TYPE else 0
    return 0
