"""Before a clip is decoded: whether its file is still the one that was decoded before."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from video_diffusion_pytorch.data.errors import regular_file

_CHUNK = 1 << 20


def source_state(source: str | os.PathLike[str]) -> str:
    """Describe a file or folder without reading it: another description, another content perhaps.

    Args:
        source: A file, or a folder, which stands for the files in it and its subfolders. Those
            whose names start with a dot do not count.

    Returns:
        Size and time of the last change.

    Raises:
        FileNotFoundError: There is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "clip.npy")
        ...     _ = file.write_bytes(b"one")
        ...     before = source_state(file), source_state(folder)
        ...     _ = file.write_bytes(b"three")
        ...     [old == new for old, new in zip(before, (source_state(file), source_state(folder)))]
        [False, False]
    """
    try:
        status = os.stat(source)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"expected a video at {source}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        return f"{status.st_size} {status.st_mtime_ns}"
    listing = blake2b(digest_size=16)
    for name, file in _files_in(Path(source)):
        status = file.stat()
        listing.update(_framed(name, f"{status.st_size} {status.st_mtime_ns}"))
    return f"folder {listing.hexdigest()}"


def source_digest(source: str | os.PathLike[str]) -> str:
    """Read a file or folder, and reduce it to a number that no other content has.

    Args:
        source: As in `source_state`.

    Returns:
        32 hexadecimal digits. The file's ending is part of what they stand for, since it decides
        how the content is read; the rest of its path is not, so that a moved file keeps them.
    """
    source = Path(source)
    content = blake2b(digest_size=16)
    if not source.is_dir():
        content.update(_framed(source.suffix.lower(), ""))
        _add_content(content, source)
        return content.hexdigest()
    for name, file in _files_in(source):
        content.update(_framed(name, str(file.stat().st_size)))
        _add_content(content, file)
    return content.hexdigest()


def _files_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder that count, by their names relative to it, in an order of their own."""
    names = sorted(
        os.path.relpath(Path(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if not name.startswith(".")
    )
    for name in names:
        yield name, folder / name


def _framed(name: str, text: str) -> bytes:
    return os.fsencode(name) + b"\0" + text.encode() + b"\0"


def _add_content(content: blake2b, file: Path) -> None:
    with regular_file(file).open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            content.update(chunk)
