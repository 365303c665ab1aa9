"""First step of the path, before a file is opened: do its first bytes fit its name."""

from __future__ import annotations

from pathlib import Path

from video_diffusion_pytorch.data.errors import missing_file, regular_file, unreadable

SIGNATURE_BYTES = 16
"""How much of a file `family_of_bytes` looks at."""

FAMILY_OF_ENDING = {
    "gif": "gif",
    "webp": "webp",
    "png": "png",
    "apng": "png",
    "mp4": "mp4",
    "m4v": "mp4",
    "mov": "mp4",
    "mkv": "mkv",
    "webm": "mkv",
    "avi": "avi",
    "npy": "npy",
    "npz": "zip",
    "pt": "zip",
}
"""Ending of a file's name -> the kind of bytes that belong in it."""

_ENDINGS_TO_SUGGEST = {"mp4": ".mp4 or .mov", "mkv": ".mkv or .webm", "zip": ".npz or .pt"}
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")


def family_of_bytes(head: bytes) -> str | None:
    """Tell from its first bytes what kind of video a file holds.

    Args:
        head: The first `SIGNATURE_BYTES` of the file, or all of a shorter one.

    Returns:
        One of the values of `FAMILY_OF_ENDING`; None for any other file.

    Example:
        >>> family_of_bytes(b"GIF89a"), family_of_bytes(b"<!DOCTYPE html>")
        ('gif', None)
    """
    if head[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if head[:4] == b"RIFF":
        return {b"WEBP": "webp", b"AVI ": "avi"}.get(head[8:12])
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    starts = {
        b"\x89PNG\r\n\x1a\n": "png",
        b"\x1a\x45\xdf\xa3": "mkv",
        b"\x93NUMPY": "npy",
        b"PK\x03\x04": "zip",
    }
    return next((family for start, family in starts.items() if head.startswith(start)), None)


def check_signature(path: Path, family: str) -> None:
    """Refuse a file whose bytes do not belong under its name.

    Args:
        path: The file.
        family: What its name promises: one of the values of `FAMILY_OF_ENDING`.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, or of another kind.
    """
    try:
        with regular_file(path).open("rb") as file:
            head = file.read(SIGNATURE_BYTES)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    found = family_of_bytes(head)
    if found == family:
        return
    expected = f"the {family} file that its name promises"
    if not head:
        raise unreadable(path, expected, "an empty file")
    if found is None:
        raise unreadable(path, expected, f"bytes of no known kind of video ({head!r})")
    ending = _ENDINGS_TO_SUGGEST.get(found, f".{found}")
    raise unreadable(path, expected, f"bytes that look like {found}", f"rename it to {ending}")
