"""The files of the clip cache survive damage and full disks."""

import os
import zlib

import numpy as np
import pytest

from video_diffusion_pytorch.data.cache import clip_writer
from video_diffusion_pytorch.data.cache.clip_record import Record, from_line, to_line
from video_diffusion_pytorch.data.cache.packed_clips import PackedClips

CLIPS = {f"clip {i}": np.full((i + 2, 3, 5), i, np.uint8) for i in range(5)}


def pack(folder, clips=CLIPS, state="old"):
    packed = PackedClips(folder, "name", {"size": 8})
    with packed.writing() as writer:
        for path, clip in clips.items():
            writer.add(Record(path, state, ""), clip)
    return packed


def assert_packed(packed, names):
    assert set(packed.records) == set(names)
    for name in names:
        np.testing.assert_array_equal(packed.clip(name), CLIPS[name])


def only_file(folder, ending):
    (path,) = folder.glob(f"*{ending}")
    return path


# Damage


def test_bytes_behind_the_last_record_do_no_harm(tmp_path):
    pack(tmp_path)
    for ending, garbage in [(".clips", b"abc"), (".index", b"\n12345678 [\x00\xff half a li")]:
        with only_file(tmp_path, ending).open("ab") as file:
            file.write(garbage)
    assert_packed(PackedClips(tmp_path, "name", {}), CLIPS)
    again = pack(tmp_path, {"clip 1": CLIPS["clip 1"]}, state="new")
    assert_packed(again, CLIPS)
    assert_packed(PackedClips(tmp_path, "name", {}), CLIPS)
    assert b"half a li" not in only_file(tmp_path, ".index").read_bytes()


def test_a_line_that_was_cut_short_is_left_out(tmp_path):
    pack(tmp_path)
    index = only_file(tmp_path, ".index")
    index.write_bytes(index.read_bytes()[:-5])
    assert_packed(PackedClips(tmp_path, "name", {}), list(CLIPS)[:4])


@pytest.mark.parametrize("position", range(0, 380, 7))
def test_a_changed_byte_of_the_index_costs_no_more_than_its_line(tmp_path, position):
    pack(tmp_path)
    index = only_file(tmp_path, ".index")
    content = bytearray(index.read_bytes())
    is_header, is_end = position <= content.index(b"\n"), content[position] == ord("\n")
    content[position] ^= 0x10
    index.write_bytes(content)
    packed = PackedClips(tmp_path, "name", {})
    # without the end of a line, two become one
    assert len(packed.records) >= (0 if is_header else 3 if is_end else 4)
    assert_packed(packed, packed.records)
    assert_packed(pack(tmp_path), CLIPS)


def test_records_beyond_a_data_file_that_was_cut_short_are_left_out_for_good(tmp_path):
    packed = pack(tmp_path)
    offset = packed.records["clip 3"].offset
    os.truncate(only_file(tmp_path, ".clips"), offset + 7)
    assert_packed(PackedClips(tmp_path, "name", {}), list(CLIPS)[:3])
    # bytes that come to lie where the lost clips were must not be taken for them
    other = np.full(5000, 9, np.uint8)
    pack(tmp_path, {"other": other})
    packed = PackedClips(tmp_path, "name", {})
    np.testing.assert_array_equal(packed.clip("other"), other)
    del packed.records["other"]
    assert_packed(packed, list(CLIPS)[:3])


def test_without_its_data_the_index_is_nothing(tmp_path):
    packed = pack(tmp_path)
    only_file(tmp_path, ".clips").unlink()
    assert PackedClips(tmp_path, "name", {}).records == {}
    with pytest.raises(FileNotFoundError, match=r"expected decoded clips at .*name.index, found n"):
        packed.clip("clip 0")
    assert_packed(pack(tmp_path), CLIPS)


def test_other_versions_are_not_read(tmp_path, monkeypatch):
    pack(tmp_path)
    monkeypatch.setattr("video_diffusion_pytorch.data.cache.packed_clips.VERSION", 2)
    assert PackedClips(tmp_path, "name", {}).records == {}


# Compaction


def test_compaction_drops_what_is_dead_and_shares_what_is_shared(tmp_path):
    packed = pack(tmp_path)
    empty = Record("empty", "", "", offset=packed.records["clip 1"].offset, shape=(0, 3))
    failed = Record("failed", "", "", error="cannot read it")
    shared = packed.records["clip 1"]._replace(path="shared")
    before = only_file(tmp_path, ".clips")
    packed.compact([packed.records["clip 1"], shared, empty, failed])
    assert not before.exists()
    assert only_file(tmp_path, ".clips").stat().st_size < 2 * CLIPS["clip 1"].nbytes
    for again in (packed, PackedClips(tmp_path, "name", {})):
        assert again.records["failed"].error == "cannot read it"
        assert again.clip("empty").shape == (0, 3)
        for name in ("clip 1", "shared"):
            np.testing.assert_array_equal(again.clip(name), CLIPS["clip 1"])
    packed.compact(packed.records.values())
    assert only_file(tmp_path, ".clips").name == packed._data.name


def test_an_index_of_old_lines_alone_is_compacted_without_the_data(tmp_path):
    for state in range(5):
        packed = PackedClips(tmp_path, "name", {})
        if not state:
            packed = pack(tmp_path)
        with packed.writing() as writer:
            for record in list(packed.records.values()):
                writer.add(record._replace(state=str(state)))
    data = only_file(tmp_path, ".clips")
    packed.compact(packed.records.values())
    assert only_file(tmp_path, ".clips") == data
    assert len(only_file(tmp_path, ".index").read_bytes().splitlines()) == 1 + len(CLIPS)
    assert {record.state for record in packed.records.values()} == {"4"}
    assert_packed(PackedClips(tmp_path, "name", {}), CLIPS)


def test_clips_smaller_than_the_space_between_them_are_not_compacted_over_and_over(tmp_path):
    packed = pack(tmp_path, {str(i): np.zeros(1, np.uint8) for i in range(9)})
    before = only_file(tmp_path, ".clips")
    packed.compact(packed.records.values())
    assert only_file(tmp_path, ".clips") == before


def test_nothing_was_ever_packed(tmp_path):
    packed = PackedClips(tmp_path / "none", "name", {})
    packed.compact([])
    assert packed.records == {}
    assert not (tmp_path / "none").exists()


# Full disks


class FullDisk:
    """In place of `write_all`: takes a number of bytes, then no more."""

    def __init__(self, room):
        self.room = room
        self.write_all = clip_writer.write_all

    def __call__(self, file, content):
        part = bytes(content)[: self.room]
        self.room -= len(part)
        self.write_all(file, part)
        if len(part) < len(bytes(content)):
            raise OSError(28, "No space left on device")


@pytest.mark.parametrize("room", [0, 20, 64, 200, 330, 500, 700])
def test_a_full_disk_loses_the_batch_alone(tmp_path, monkeypatch, room):
    first = {"clip 0": CLIPS["clip 0"]}
    pack(tmp_path, first)
    size = only_file(tmp_path, ".clips").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(clip_writer, "write_all", FullDisk(room))
        text = r"expected to write decoded clips into .*, got No space left on device; make room"
        with pytest.raises(OSError, match=text):
            pack(tmp_path)
    if room < sum(clip.nbytes for clip in CLIPS.values()):
        assert only_file(tmp_path, ".clips").stat().st_size == size, "the room is given back"
        assert_packed(PackedClips(tmp_path, "name", {}), first)
    packed = PackedClips(tmp_path, "name", {})
    assert_packed(packed, packed.records)
    assert_packed(pack(tmp_path), CLIPS)


def test_a_full_disk_while_compacting_leaves_the_old_files(tmp_path, monkeypatch):
    packed = pack(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(clip_writer, "write_all", FullDisk(10))
        with pytest.raises(OSError, match=r"expected to write decoded clips into"):
            packed.compact([packed.records["clip 1"]])
    assert_packed(packed, CLIPS)
    assert_packed(PackedClips(tmp_path, "name", {}), CLIPS)
    packed.compact([packed.records["clip 1"]])
    assert_packed(packed, ["clip 1"])
    assert len(list(tmp_path.iterdir())) == 2


# An index by somebody else, whose checksums are right


def rewrite(index, change):
    header, *lines = index.read_bytes().splitlines()
    fields = [from_line(header), *[from_line(line) for line in lines if line]]
    index.write_bytes(b"".join(map(to_line, change(fields))))


@pytest.mark.parametrize(
    ("position", "value"),
    [
        (0, 3),
        (1, None),
        (3, -64),
        (3, 1.0),
        (3, "0"),
        (3, 2**64),
        (4, "abc"),
        (4, [-1, 3, 5]),
        (4, [True, 3, 5]),
        (4, [2**40, 3, 5]),
        (4, [1] * 33),
        (5, "|O"),
        (5, "object"),
        (5, "|V4"),
        (5, "<M8[s]"),
        (5, ["|u1"]),
        (6, 5),
    ],
)
def test_a_record_that_cannot_be_one_is_left_out(tmp_path, position, value):
    pack(tmp_path)
    index = only_file(tmp_path, ".index")

    def change(fields):
        fields[2][position] = value
        return fields

    rewrite(index, change)
    assert_packed(PackedClips(tmp_path, "name", {}), [name for name in CLIPS if name != "clip 1"])
    rewrite(index, lambda fields: [*fields[:2], "text", {"a": 1}, fields[3][:6], *fields[3:]])
    assert_packed(PackedClips(tmp_path, "name", {}), [name for name in CLIPS if name != "clip 1"])


def test_an_index_nested_too_deeply_is_left_out(tmp_path):
    pack(tmp_path)
    text = b"[" * 100_000
    with only_file(tmp_path, ".index").open("ab") as file:
        file.write(b"%08x %s\n" % (zlib.crc32(text), text))
    assert_packed(PackedClips(tmp_path, "name", {}), CLIPS)


@pytest.mark.parametrize("kind", ["elsewhere", "other name", "link", "number", "none", "folder"])
def test_only_a_data_file_of_its_own_is_written_to(tmp_path, kind):
    cache, mine = tmp_path / "cache", tmp_path / "mine.txt"
    cache.mkdir()
    mine.write_bytes(bytes(10_000))
    pack(cache)
    data = only_file(cache, ".clips")
    named = {"elsewhere": "../mine.txt", "other name": "mine.clips", "number": 3, "none": None}
    if kind == "other name":
        mine.rename(cache / "mine.clips")
        mine = cache / "mine.clips"
    elif kind in ("link", "folder"):
        data.unlink()
        data.symlink_to(mine) if kind == "link" else data.mkdir()

    def change(fields):
        return [{**fields[0], "data": named.get(kind, data.name)}, *fields[1:]]

    rewrite(only_file(cache, ".index"), change)
    assert PackedClips(cache, "name", {}).records == {}
    if kind != "folder":
        assert_packed(pack(cache), CLIPS)
    assert mine.read_bytes() == bytes(10_000)
