"""A folder of decoded clips: one array file for each source, read without decoding."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.lib import format as npy
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.errors import UnreadableVideoError, file_errors, unreadable
from video_diffusion_pytorch.files import replacing

logger = logging.getLogger("video_diffusion_pytorch")

# Seconds after which a process that waits for another one's build says so
_PATIENCE = 5.0
# Header of an array file of up to 20 axes
_HEADER_BYTES = 128


Source = str | os.PathLike[str] | tuple[Path, int | None]
"""A file or a folder of frames, or a file and the number of one of its simulations, or None."""


class CachedClip(NamedTuple):
    """A decoded clip on the disk.

    Attributes:
        file: The array file.
        shape: Shape of the array, `(f, ...)`.
        dtype: Its type.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_frames(self) -> int:
        """Its number of frames, `f`."""
        return self.shape[0]

    def frames(self, positions: Sequence[int]) -> np.ndarray:
        """Reads frames into a new array.

        Args:
            positions: Indices of frames; those beyond the end are left out if they are contiguous.

        Raises:
            UnreadableVideoError: The file was removed or damaged since the build.
        """
        if not isinstance(positions, range) or positions.step != 1:
            first = min(positions)
            return self.frames(range(first, max(positions) + 1))[np.subtract(positions, first)]
        first, stop = positions.start, min(positions.stop, self.num_frames)
        count, size = max(stop - first, 0), int(np.prod(self.shape[1:]))
        offset = _HEADER_BYTES + first * size * self.dtype.itemsize
        with file_errors(self.file):
            values = np.fromfile(self.file, self.dtype, count * size, offset=offset)
        if len(values) < count * size:
            advice = "build the cache again"
            raise unreadable(self.file, "a decoded clip", "a truncated file", advice)
        return values.reshape(count, *self.shape[1:])


class ClipCache:
    """Decoded clips on the disk, shared by all processes and datasets that use the folder.

    The file of a clip is named by the path, size and time of change of its source, and lies in a
    sub-folder named by `settings`. It is written under another name and renamed, so that a build
    may be killed at any moment. Clips of changed sources are replaced, those of removed sources
    stay until the folder is removed.

    Args:
        folder: Where the clips are; made by `build` if need be. If it cannot be written to, the
            clips in it are used.
        settings: All that decides what `decode` makes of a source, as JSON values.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = Path(folder, "clip.npy")
        ...     np.save(source, np.arange(6, dtype=np.uint8).reshape(3, 2))
        ...     cache = ClipCache(f"{folder}/cache", {"channels": 1})
        ...     cache.build([source], np.load)
        ...     cache[source].num_frames, cache[source].frames([2, 0]).tolist()
        (3, [[4, 5], [0, 1]])
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.root = Path(folder)
        self.folder = self.root / _hash(json.dumps(settings, sort_keys=True))
        # the message of a source that could not be decoded
        self._clips: dict[tuple[str, int | None], CachedClip | str] = {}

    @property
    def failures(self) -> dict[str, str]:
        """Path -> message, for sources that the last build could not decode."""
        clips = self._clips.items()
        return {path: clip for (path, _), clip in clips if isinstance(clip, str)}

    def __getitem__(self, source: Source) -> CachedClip:
        """Returns the clip of a source.

        Raises:
            KeyError: The source was not part of a build.
            UnreadableVideoError: It could not be decoded.
        """
        clip = self._clips[_named(source)]
        if isinstance(clip, str):
            raise UnreadableVideoError(clip)
        return clip

    def build(self, sources: Sequence[Source], decode: Callable[[Any], np.ndarray]) -> None:
        """Decodes the sources whose clips are missing; of several processes one at a time.

        Args:
            sources: Files, folders of frames, or simulations in files.
            decode: Makes an array `(f, ...)` of a source. For a source that raises an
                `UnreadableVideoError`, a warning is logged, and the next build tries again.

        Raises:
            OSError: The folder cannot be written to, or the disk is full.
        """
        if not (missing := self._missing(sources)):
            return
        lock = self._acquire()
        try:
            missing = self._missing(missing)  # those that another process decoded meanwhile
            names = sorted(os.listdir(self.folder)) if missing else []
            old = {name.partition("-")[0]: name for name in names if name.endswith(".npy")}
            for source in tqdm(missing, desc="decoding clips", unit=""):
                self._add(source, decode, old)
        finally:
            lock.release()

    def _acquire(self) -> FileLock:
        """Keeps other processes from building."""
        lock = FileLock(self.folder / ".lock")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout:
            logger.warning("waiting for another process that decodes clips into %s", self.root)
            lock.acquire()
        except OSError as error:
            # clips of a read-only folder can be used: if one must be written, that fails
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        return lock

    def _missing(self, sources: Sequence[Source]) -> list[Source]:
        """Finds the clips of sources; returns the sources without."""
        missing = []
        for source in sources:
            try:
                with file_errors(Path(_named(source)[0])):
                    file = self._file(source)
            except UnreadableVideoError as error:
                self._refuse(source, error)
                continue
            try:
                array = np.load(file, mmap_mode="r")
            except (OSError, ValueError, EOFError):  # none, or truncated by a power failure
                missing.append(source)
            else:
                clip = CachedClip(file, array.shape, array.dtype)
                self._clips[_named(source)] = clip
        return missing

    def _add(
        self, source: Source, decode: Callable[[Any], np.ndarray], old: Mapping[str, str]
    ) -> None:
        """Writes the clip of a source, and removes that of an earlier state of it."""
        try:
            path = Path(_named(source)[0])
            with file_errors(path):
                file = self._file(source)
                array = np.ascontiguousarray(decode(source))
                if self._file(source) != file:
                    got, advice = "one that changed meanwhile", "build again"
                    raise unreadable(path, "a file that stays as it is", got, advice)
        except UnreadableVideoError as error:
            self._refuse(source, error)
            return
        with replacing(file) as unfinished, unfinished.open("wb") as opened:
            npy.write_array_header_1_0(opened, npy.header_data_from_array_1_0(array))
            opened.write(array.reshape(-1).view(np.uint8).data)
        replaced = old.get(file.name.partition("-")[0], file.name)
        if replaced != file.name:
            (self.folder / replaced).unlink(missing_ok=True)
        self._clips[_named(source)] = CachedClip(file, array.shape, array.dtype)

    def _file(self, source: Source) -> Path:
        path, item = _named(source)
        name = path if item is None else f"{path} {item}"
        return self.folder / f"{_hash(name)}-{_hash(source_state(path))}.npy"

    def _refuse(self, source: Source, error: UnreadableVideoError) -> None:
        logger.warning("left out of the cache: %s", error)
        self._clips[_named(source)] = str(error)


def _named(source: Source) -> tuple[str, int | None]:
    """The absolute path of a source, and the number of its simulation."""
    path, item = source if isinstance(source, tuple) else (source, None)
    return os.path.abspath(path), item


def source_state(source: str | os.PathLike[str]) -> str:
    """Size and time of change of a file; of a folder, those of all files in it.

    Args:
        source: A file, or a folder. Files whose names begin with a dot do not count.

    Returns:
        A short text, which changes with them.

    Raises:
        OSError: There is none, or it may not be looked at.
    """
    status = os.stat(source)
    if not stat.S_ISDIR(status.st_mode):
        return f"{status.st_size} {status.st_mtime_ns}"
    files = (file for file in Path(source).rglob("*") if not file.is_dir())
    names = sorted(str(file) for file in files if not file.name.startswith("."))
    states = [[os.path.relpath(name, source), source_state(name)] for name in names]
    return f"folder {_hash(json.dumps(states))}"


def _hash(text: str) -> str:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=10).hexdigest()
