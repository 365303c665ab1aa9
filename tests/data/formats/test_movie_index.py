"""Where each frame of a movie is, and what is refused before any is decoded."""

import os
from array import array
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import movies as module
from video_diffusion_pytorch.data.formats.movies import (
    is_shown,
    movie_index,
    open_movie,
    packets_of,
)


def test_times_and_keyframes(write_movie):
    index = movie_index(write_movie("clip.mp4", options={"bf": "3"}, num_frames=25))
    step = int(1 / (10 * index.time_base))
    assert index.num_frames == 25
    assert list(index.pts) == [step * number for number in range(25)]
    assert list(index.keyframes) == [0, 10 * step, 20 * step]
    assert (index.pts.itemsize, index.keyframes.itemsize) == (8, 8)


def test_nothing_is_decoded(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    monkeypatch.setattr(module, "_decoder", lambda stream, options: None)
    assert movie_index(path).num_frames == 40


@pytest.mark.parametrize(
    ("codec", "first_byte", "shown"),
    [("vp8", 0x10, True), ("vp8", 0x0D, False), ("libvpx", 0, False), ("h264", 0, True)],
)
def test_hidden_frames_of_vp8_do_not_count(codec, first_byte, shown):
    class Packet(bytes):
        is_discard = False
        stream = SimpleNamespace(codec_context=SimpleNamespace(name=codec))

    assert is_shown(Packet([first_byte, 0])) is shown
    Packet.is_discard = True
    assert not is_shown(Packet([0x10]))


def test_an_avi_does_not_say_where_reordered_frames_are(write_movie):
    index = movie_index(write_movie("clip.avi", options={"bf": "2"}))
    assert (len(index.pts), list(index.keyframes), index.num_frames) == (40, [], 40)


def test_remembered_until_the_file_changes(write_movie, monkeypatch):
    path = write_movie("clip.mp4", num_frames=5)
    first = movie_index(path)
    assert movie_index(path) is first
    write_movie("clip.mp4", num_frames=6)
    assert movie_index(path).num_frames == 6


def test_many_movies_are_remembered_and_the_oldest_forgotten():
    remembered = module._Remembered(1000)
    index = module.MovieIndex(array("q"), array("q"), 100, Fraction(1, 10))
    keys = [(Path(str(number)), 0, 0) for number in range(6)]
    for key in keys[:5]:
        remembered.add(key, index)
        remembered.add(key, index)  # as of another thread
    assert remembered.get(keys[0]) is index
    remembered.add(keys[5], index)
    known = [key for key in keys if remembered.get(key) is not None]
    assert known == [keys[0], *keys[2:]]
    # one that is longer than all may be stays as long as it is the last
    remembered.add((Path("long"), 0, 0), index._replace(num_frames=5000))
    assert [key for key in keys if remembered.get(key) is not None] == []
    assert remembered.get((Path("long"), 0, 0)) is not None


def test_a_movie_is_gone_through_once_among_many(write_movie, monkeypatch):
    paths = [write_movie(f"{number}.mp4", num_frames=2) for number in range(40)]
    for path in paths:
        movie_index(path)
    monkeypatch.setattr(module, "open_movie", None)
    assert [movie_index(path).num_frames for path in paths] == [2] * 40


def test_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mov"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(UnreadableVideoError, match="got a file without video; remove it"):
        movie_index(tmp_path / "sound.mov")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.mp4"):
        movie_index(tmp_path / "gone.mp4")
    with (
        pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.mp4"),
        open_movie(tmp_path / "gone.mp4"),
    ):
        pass


def test_huge_frames(write_movie, monkeypatch):
    path = write_movie("clip.mp4", num_frames=2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    text = "got frames of 64 x 48 pixels; if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS"
    with pytest.raises(UnreadableVideoError, match=text):
        movie_index(path)


def test_frames_that_are_larger_than_the_file_says(write_movie, monkeypatch):
    """The decoder itself is told of the limit."""
    path = write_movie("clip.mkv", codec="ffv1", num_frames=2)
    with open_movie(path) as movie:
        assert movie.decoder.options["max_pixels"] == str(Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(module, "_check_streams", lambda *arguments: None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with open_movie(path) as movie, pytest.raises((ValueError, OSError)):
        [movie.decoder.decode(packet) for packet in packets_of(path, movie)]


@pytest.mark.parametrize(
    ("context", "text"),
    [
        (None, "got a codec that PyAV has no decoder for; convert it, for example with ffmpeg"),
        (
            SimpleNamespace(width=4, height=4, format=None),
            "got a video whose kind of pixels cannot be found out; fetch",
        ),
    ],
)
def test_what_cannot_be_decoded(write_movie, monkeypatch, context, text):
    path = write_movie("clip.mp4", num_frames=2)
    inner = module._check_streams
    streams = [SimpleNamespace(codec_context=context)]
    monkeypatch.setattr(
        module, "_check_streams", lambda path, _, limit: inner(path, streams, limit)
    )
    with pytest.raises(UnreadableVideoError, match=text):
        movie_index(path)


def test_a_file_that_is_no_movie(tmp_path):
    (tmp_path / "clip.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(100))
    with pytest.raises(
        UnreadableVideoError, match=r"clip.mkv: expected a complete movie, got .*Er"
    ):
        movie_index(tmp_path / "clip.mkv")


def test_a_damaged_packet(write_movie):
    class Packet:
        size, is_corrupt, pos = 10, True, 123

    class Container:
        def demux(self, stream):
            return [Packet()]

    path = write_movie("clip.mp4", num_frames=2)
    with open_movie(path) as movie, pytest.raises(UnreadableVideoError, match="at byte 123; fetch"):
        next(packets_of(path, movie._replace(container=Container())))


def test_the_ending_alone_decides_how_a_file_is_read(tmp_path):
    """A playlist by another name must not make FFmpeg open what it lists."""
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile /etc/hosts\n")
    with pytest.raises(UnreadableVideoError):
        movie_index(tmp_path / "list.mp4")


@pytest.mark.skipif(os.name == "nt", reason="such names exist on other systems only")
def test_names_that_are_no_text_and_names_like_addresses(write_movie, tmp_path):
    path = write_movie("clip.mp4", num_frames=3)
    for name in (b"\xff\xfe.mp4", b"http:clip.mp4"):
        other = tmp_path / os.fsdecode(name)
        other.write_bytes(path.read_bytes())
        assert movie_index(other).num_frames == 3


def test_a_file_that_fails_while_it_is_read(write_movie):
    class Container:
        def demux(self, stream):
            raise av.FFmpegError(5, "input/output error")

    path = write_movie("clip.mp4", num_frames=2)
    text = r"clip.mp4: expected a complete movie, got FFmpegError: .*input/output error"
    with open_movie(path) as movie, pytest.raises(UnreadableVideoError, match=text):
        next(packets_of(path, movie._replace(container=Container())))
