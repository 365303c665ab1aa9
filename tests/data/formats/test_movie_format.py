"""Whether all of a movie file is there."""

import struct

import pytest

from video_diffusion_pytorch.data.formats.movies import missing_bytes


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.webm", "clip.avi"])
def test_every_cut_is_noticed(write_movie, name):
    codec = "libvpx" if name.endswith("webm") else "mpeg4"
    path = write_movie(name, codec=codec, num_frames=3)
    content = path.read_bytes()
    assert missing_bytes(path) == 0
    for length in [*range(20, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        missing = missing_bytes(path)
        assert 0 < missing <= len(content) - length


def test_what_follows_an_mp4_does_not_matter(write_movie):
    path = write_movie("clip.mp4", codec="mpeg4", num_frames=3)
    content = path.read_bytes()
    for tail in (b"\0" * 50, b"\xff" * 50):
        path.write_bytes(content + tail)
        assert missing_bytes(path) == 0


def test_boxes_of_64_bit_and_of_open_length(tmp_path):
    path = tmp_path / "clip.mp4"
    index = struct.pack(">I4s", 8, b"moov")
    path.write_bytes(index + struct.pack(">I4sQ", 1, b"mdat", 1000))
    assert missing_bytes(path) == 984
    path.write_bytes(index + struct.pack(">I4sQ", 0, b"mdat", 1000))
    assert missing_bytes(path) == 0
    path.write_bytes(index + struct.pack(">I4s", 3, b"mdat") * 5)  # no box is that small
    assert missing_bytes(path) == 0


def test_an_mp4_without_its_index(tmp_path):
    path = tmp_path / "clip.mp4"
    for size in (16, 0):
        path.write_bytes(struct.pack(">I4sQ", size, b"mdat", 1000))
        assert missing_bytes(path) == 8


def test_a_live_recording_states_no_length(write_movie):
    path = write_movie("clip.mkv", codec="mpeg4", num_frames=3)
    content = path.read_bytes()
    segment = content.index(b"\x18\x53\x80\x67") + 4
    assert content[segment] == 1  # a length of eight bytes
    path.write_bytes(content[:segment] + b"\x01" + b"\xff" * 7 + content[segment + 8 :])
    assert missing_bytes(path) == 0


def test_an_avi_of_several_parts(tmp_path):
    path = tmp_path / "clip.avi"
    part = struct.pack("<4sI4s", b"RIFF", 5, b"AVI ") + bytes(2)
    path.write_bytes(part * 3 + b"more")
    assert missing_bytes(path) == 0
    path.write_bytes(part * 3 + part[:9])
    assert missing_bytes(path) == 5


def test_a_length_beyond_all_files(tmp_path):
    path = tmp_path / "clip.mkv"
    path.write_bytes(b"\x1a\x45\xdf\xa3\x01" + b"\xff" * 6 + b"\xfe" + bytes(10))
    assert missing_bytes(path) == 2**56 - 2 - 10
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\0\0\0\1moov" + b"\xff" * 8)
    assert missing_bytes(path) == 2**64 - 1 - 16
