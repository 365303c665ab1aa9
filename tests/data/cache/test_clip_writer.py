"""Clips reach the disk before the records that speak of them."""

import io
import os

import numpy as np
import pytest

from video_diffusion_pytorch.data.cache import clip_writer
from video_diffusion_pytorch.data.cache.clip_record import Record, from_line
from video_diffusion_pytorch.data.cache.clip_writer import (
    Writer,
    disk_errors,
    write_aligned,
    write_all,
)


class Sips(io.BytesIO):
    """A file that takes at most five bytes at a time."""

    def write(self, content):
        return super().write(bytes(content)[:5])


def test_all_is_written_to_a_file_that_takes_less():
    file = Sips()
    write_all(file, bytes(range(23)))
    write_all(file, b"")
    assert file.getvalue() == bytes(range(23))


def test_clips_begin_where_any_dtype_may():
    file = Sips()
    first, second = np.arange(7, dtype=np.uint8), np.arange(6.0).reshape(2, 3).T
    assert [write_aligned(file, clip) for clip in (first, second)] == [0, 64]
    assert file.getvalue()[:7] == first.tobytes()
    assert file.getvalue()[64:] == second.tobytes()


@pytest.fixture
def opened(tmp_path):
    names = tmp_path / "data", tmp_path / "index"
    with open(names[0], "ab", buffering=0) as data, open(names[1], "ab", buffering=0) as index:
        yield data, index


def records_in(file):
    with open(file.name, "rb") as lines:
        return [fields[0] for fields in map(from_line, lines) if fields]


def test_a_batch_ends_by_its_size_or_its_time(tmp_path, opened, monkeypatch):
    data, index = opened
    known = {}
    monkeypatch.setattr(clip_writer, "_BATCH_BYTES", 300)
    writer = Writer(tmp_path, data, index, known)
    for name in "abc":
        record = writer.add(Record(name, "", ""), np.zeros(90, np.uint8))
        # two of them do not fill a batch, a third does
        assert records_in(index) == (["a", "b", "c"] if name == "c" else [])
    assert (record.offset, record.shape, record.dtype) == (256, (90,), "|u1")
    assert known["c"] == record
    monkeypatch.setattr(clip_writer, "_BATCH_SECONDS", 0.0)
    writer.add(Record("d", "", "", error="broken"))
    assert records_in(index) == list(known) == ["a", "b", "c", "d"]
    assert writer.num_lines == 4


def test_the_data_is_on_the_disk_before_its_record_is_written(tmp_path, opened, monkeypatch):
    data, index = opened
    synced = []

    def fsync(descriptor):
        synced.append((descriptor, os.fstat(index.fileno()).st_size > 0))

    monkeypatch.setattr(os, "fsync", fsync)
    writer = Writer(tmp_path, data, index, {})
    writer.add(Record("a", "", ""), np.zeros(9))
    writer.commit()
    assert synced == [(data.fileno(), False), (index.fileno(), True)]
    writer.commit()
    assert len(synced) == 2, "nothing to write, nothing to wait for"


def test_errors_of_the_disk_name_the_folder(tmp_path):
    text = r"expected to write decoded clips into .*, got Read-only file system; make room there"
    with pytest.raises(OSError, match=text) as caught, disk_errors(tmp_path):
        raise OSError(30, "Read-only file system")
    assert caught.value.errno == 30
    with pytest.raises(PermissionError, match="got it is not allowed; make"), disk_errors(tmp_path):
        raise PermissionError(13, "it is not allowed")
