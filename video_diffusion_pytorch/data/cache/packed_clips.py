"""Under the clip cache: many clips in one file, with an index that is valid after any kill."""

from __future__ import annotations

import mmap
import os
import re
import secrets
import stat
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from video_diffusion_pytorch.data.cache.clip_record import (
    Record,
    from_line,
    to_line,
    to_record,
)
from video_diffusion_pytorch.data.cache.clip_writer import (
    ALIGNMENT,
    Writer,
    disk_errors,
    write_aligned,
    write_all,
)
from video_diffusion_pytorch.data.errors import regular_file

VERSION = 1
_FORMAT = "clips packed by video-diffusion-pytorch"


class PackedClips:
    """A data file, and an index that says what is where in it.

    The index holds a header and one line for each record, each with a checksum; of several for one
    source the last one counts. A line is written once the clip's bytes are on the disk. Both files
    only grow, until `compact` writes new ones and puts the new index in place of the old: whoever
    has opened the old ones keeps reading what was in them.

    Args:
        folder: Where the files are; need not exist before something is written.
        name: What their names begin with.
        settings: Written into the header, for people to read.

    Attributes:
        records: Path -> record, as of the last `load`, `writing` or `compact`.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        self.folder, self.name, self.settings = folder, name, settings
        self.index = folder / f"{name}.index"
        self.load()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}

    def load(self) -> None:
        """Read the index, leaving out what is damaged or reaches beyond the data file."""
        self.records: dict[str, Record] = {}
        self._data: Path | None = None
        self._map: mmap.mmap | bytes | None = None
        self._num_lines, self._is_damaged = 0, False
        with ExitStack() as files:
            try:
                index = files.enter_context(regular_file(self.index).open("rb"))
            except (FileNotFoundError, NotADirectoryError):
                return
            header = from_line(index.readline())
            if not isinstance(header, dict) or header.get("version") != VERSION:
                return
            # Of this cache only: the next build writes to the file
            name = str(header.get("data"))
            if not re.fullmatch(rf"{re.escape(self.name)}-[0-9a-f]+\.clips", name):
                return
            try:
                # Before the lines are read: another process may be adding to both
                status = (self.folder / name).lstat()
            except FileNotFoundError:
                return
            if stat.S_ISREG(status.st_mode):
                self._data = self.folder / name
                self._load_lines(index, status.st_size)

    def _load_lines(self, index: BinaryIO, size: int) -> None:
        shapes: dict[tuple[int, ...], tuple[int, ...]] = {}
        for line in index:
            if line == b"\n":
                continue
            self._num_lines += 1
            record = to_record(from_line(line))
            if record is None or record.offset + record.num_bytes > size:
                self._is_damaged = True
                continue
            # One object for all clips of a shape: there may be a hundred thousand of them
            shape = shapes.setdefault(record.shape, record.shape)
            record = record._replace(shape=shape, dtype=sys.intern(record.dtype))
            self.records[record.path] = record

    def clip(self, path: str) -> np.ndarray:
        """Give a clip without copying it.

        Args:
            path: One of `records` that has a clip.

        Returns:
            A read-only view of the data file.

        Raises:
            FileNotFoundError: The files were removed.
        """
        if self._map is None:
            self._map = self._open_map()
        record = self.records[path]
        return np.ndarray(record.shape, record.dtype, self._map, record.offset)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Open the files to add records; what was added is kept also where an error ends this.

        Only one process may do so at a time.

        Raises:
            OSError: The folder cannot be written into, or the disk is full.
        """
        with ExitStack() as files:
            with disk_errors(self.folder):
                data_file = self._prepare()
                data = files.enter_context(open(data_file, "ab", buffering=0))
                index = files.enter_context(open(self.index, "ab", buffering=0))
            writer = Writer(self.folder, data, index, self.records)
            try:
                yield writer
            finally:
                self._map = None
                writer.commit()
                self._num_lines += writer.num_lines

    def compact(self, live: Collection[Record]) -> None:
        """Write the files anew where less than half of the data, or of the index, is of use.

        Only one process may do so at a time.

        Args:
            live: The records to keep.

        Raises:
            OSError: The folder cannot be written into, or the disk is full; the old files stay.
        """
        if self._data is None:
            return
        places = {(record.offset, record.num_bytes) for record in live}
        useful = sum(-(-size // ALIGNMENT) * ALIGNMENT for _, size in places)
        move = 2 * useful < self._data.stat().st_size
        if not move and 2 * len(live) >= self._num_lines:
            return
        old = self._data
        with disk_errors(self.folder):
            new, moved = self._copy_data(old, live) if move else (old, live)
            self._write_index(new, moved)
        self.load()
        self.remove_leftovers()

    def remove_leftovers(self) -> None:
        """Delete data that no index names, such as a kill leaves; only while no one writes."""
        current = None if self._data is None else self._data.name
        for path in self.folder.glob(f"{self.name}-*"):
            if path.name != current:
                # Windows keeps a file that a process still reads, until the next time
                with suppress(PermissionError):
                    path.unlink(missing_ok=True)

    def _prepare(self) -> Path:
        """Bring the files into a state in which they can be appended to; gives the data file."""
        self.remove_leftovers()
        if self._data is None:
            self._data = self._new_file("clips")
            self._data.touch()
            self._write_index(self._data, [])
        elif self._is_damaged:
            # A record beyond the end would point to another clip once the file has grown
            self._write_index(self._data, self.records.values())
            self._num_lines, self._is_damaged = len(self.records), False
        return self._data

    def _new_file(self, ending: str) -> Path:
        # Never a name that was used before: another process may go by the old index still
        return self.folder / f"{self.name}-{secrets.token_hex(8)}.{ending}"

    def _write_index(self, data: Path, records: Collection[Record]) -> None:
        header = {
            "format": _FORMAT,
            "version": VERSION,
            "settings": self.settings,
            "data": data.name,
        }
        unfinished = self._new_file("tmp")
        try:
            with open(unfinished, "wb", buffering=0) as index:
                write_all(index, b"".join(map(to_line, [header, *records])))
                os.fsync(index.fileno())
            unfinished.replace(self.index)
        finally:
            unfinished.unlink(missing_ok=True)

    def _copy_data(self, old: Path, live: Collection[Record]) -> tuple[Path, list[Record]]:
        """Write the clips into a new file; gives it, and the records with their new places."""
        new = self._new_file("clips")
        places: dict[tuple[int, int], int] = {}
        with open(old, "rb") as source, open(new, "xb", buffering=0) as target:
            for record in sorted(live, key=lambda record: record.offset):
                place = record.offset, record.num_bytes
                if place not in places:
                    source.seek(record.offset)
                    clip = np.frombuffer(source.read(record.num_bytes), np.uint8)
                    places[place] = write_aligned(target, clip)
            os.fsync(target.fileno())
        return new, [
            record._replace(offset=places[record.offset, record.num_bytes]) for record in live
        ]

    def _open_map(self) -> mmap.mmap | bytes:
        for _ in range(2):
            with suppress(FileNotFoundError), ExitStack() as files:
                if self._data is None:
                    break
                data = files.enter_context(self._data.open("rb"))
                is_empty = not os.fstat(data.fileno()).st_size
                return b"" if is_empty else mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ)
            self.load()  # another process has compacted the files since
        raise FileNotFoundError(
            f"expected decoded clips at {self.index}, found none; they were removed, build the "
            "cache again"
        )
