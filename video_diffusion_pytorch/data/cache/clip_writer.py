"""Under the clip cache: clips get onto a disk that may be full, by a process that may be killed."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from video_diffusion_pytorch.data.cache.clip_record import Record, to_line

ALIGNMENT = 64
"""Clips begin at multiples of this many bytes."""

# What a kill may lose; to wait for the disk more often would slow a build down
_BATCH_BYTES = 64 * 2**20
_BATCH_SECONDS = 5.0


class Writer:
    """Adds records to opened files, a batch at a time.

    Args:
        folder: Where the files are, for messages.
        data: The data file, opened to append without a buffer.
        index: The index, likewise.
        records: Gets each record as soon as it is on the disk.

    Attributes:
        num_lines: Number of records that were written.
    """

    def __init__(
        self, folder: Path, data: BinaryIO, index: BinaryIO, records: dict[str, Record]
    ) -> None:
        self.num_lines = 0
        self._folder, self._data, self._index = folder, data, index
        self._records, self._pending = records, list[Record]()
        self._batch_start, self._batch_time = data.seek(0, os.SEEK_END), time.monotonic()

    def add(self, record: Record, clip: np.ndarray | None = None) -> Record:
        """Take a record, and its clip if that is not in the data file already.

        Args:
            record: With a clip, its place, shape and dtype are filled in.
            clip: An array of numbers.

        Returns:
            The record as it will be in the index.

        Raises:
            OSError: The disk is full; what came before this batch stays.
        """
        if clip is not None:
            with disk_errors(self._folder):
                offset = self._write_clip(clip)
            record = record._replace(offset=offset, shape=clip.shape, dtype=clip.dtype.str)
        self._pending.append(record)
        size, seconds = self._data.tell() - self._batch_start, time.monotonic() - self._batch_time
        if size >= _BATCH_BYTES or seconds >= _BATCH_SECONDS:
            self.commit()
        return record

    def commit(self) -> None:
        """Wait until the clips are on the disk, then write their records.

        Raises:
            OSError: The disk is full; the batch is lost.
        """
        batch, self._pending = self._pending, []
        if batch:
            with disk_errors(self._folder):
                os.fsync(self._data.fileno())
                # A line of its own for the first, whatever a killed process left before it
                write_all(self._index, b"\n" + b"".join(map(to_line, batch)))
                os.fsync(self._index.fileno())
            self._records.update((record.path, record) for record in batch)
            self.num_lines += len(batch)
        self._batch_start, self._batch_time = self._data.tell(), time.monotonic()

    def _write_clip(self, clip: np.ndarray) -> int:
        try:
            return write_aligned(self._data, clip)
        except OSError:
            # Without the batch there is room again, perhaps for the index of another one
            self._pending.clear()
            with suppress(OSError):
                self._data.truncate(self._batch_start)
            raise


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write to a file without a buffer, which may take less than all at a time."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[file.write(rest) :]


def write_aligned(file: BinaryIO, clip: np.ndarray) -> int:
    """Write a clip to a file without a buffer.

    Args:
        file: At its end.
        clip: An array of numbers.

    Returns:
        Where the clip begins: a place that suits every dtype.
    """
    offset = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    write_all(file, bytes(offset - file.tell()))
    write_all(file, np.ascontiguousarray(clip).reshape(-1).view(np.uint8).data)
    return offset


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Let an `OSError` say which folder could not be written into."""
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"expected to write decoded clips into {folder}, got {error.strerror or error}; make "
            "room there, allow writing, or choose another folder for the cache",
        ) from error
