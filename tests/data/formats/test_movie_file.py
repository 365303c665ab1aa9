"""Any frame of a movie is the one that decoding from the beginning gives."""

import gc
import os

import av
import numpy as np
import pytest

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import movie_file
from video_diffusion_pytorch.data.formats.movie_file import MovieReader
from video_diffusion_pytorch.data.formats.movie_index import movie_index

OPEN_GOP = {"x264-params": "open-gop=1:bframes=3:b-adapt=0:scenecut=0"}
KINDS = {
    "b_frames.mp4": {"options": {"bf": "3"}},
    "open_gop.mp4": {"options": OPEN_GOP},
    "open_gop.mkv": {"options": OPEN_GOP},
    "refresh.mov": {"options": {"x264-params": "intra-refresh=1:scenecut=0"}},
    "undated.avi": {"options": {"bf": "2"}},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none:bframes=3"}},
    "packed.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "vp8.webm": {"codec": "libvpx", "options": {"deadline": "realtime"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
    "stills.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
}
DAMAGE_IS_NOTICED = ["b_frames.mp4", "packed.avi", "undated.avi"]


def arrays(pictures):
    return [np.asarray(picture) for picture in pictures]


def decoded(path, pixel_format="rgb24"):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=pixel_format) for frame in container.decode(video=0)]


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact(write_movie, name):
    path = write_movie(name, **KINDS[name])
    expected = decoded(path)
    assert len(expected) == 40
    with MovieReader(path) as reader:
        assert same(arrays(reader.pictures(range(100))), expected)
    with MovieReader(path) as reader:
        assert reader.num_frames == 40
        assert reader.fps == pytest.approx(10, rel=0.03)
        assert reader.times == pytest.approx([number / 10 for number in range(40)])
        assert same(arrays(reader.pictures([35, 37])), [expected[35], expected[37]])
        assert same(arrays(reader.pictures(range(12, 33, 7))), expected[12:33:7])
        backwards = [arrays(reader.pictures([number]))[0] for number in range(39, -1, -1)]
        assert same(backwards[::-1], expected)
        assert arrays(reader.pictures(range(40, 50))) == []


def test_grey_is_what_pyav_gives(write_movie):
    path = write_movie("clip.mp4", num_frames=5)
    with MovieReader(path, channels=1) as reader:
        assert same(arrays(reader.pictures(range(5))), decoded(path, "gray"))


def count_decoded(monkeypatch):
    calls = []
    inner = movie_file._frames_of

    def frames_of(*arguments):
        frames = inner(*arguments)
        calls.extend(frames)
        return frames

    monkeypatch.setattr(movie_file, "_frames_of", frames_of)
    return calls


def test_a_clip_in_the_middle_is_not_reached_from_the_beginning(write_movie, monkeypatch):
    path = write_movie("long.mp4", num_frames=200)
    calls = count_decoded(monkeypatch)
    with MovieReader(path) as reader:
        list(reader.pictures(range(150, 155)))
        assert len(calls) <= 10
        list(reader.pictures(range(155, 158)))  # goes on where decoding stands
        assert len(calls) <= 14
        list(reader.pictures([20]))
        assert len(calls) <= 30


def test_a_clip_at_the_beginning_needs_no_index(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    monkeypatch.setattr(movie_file, "movie_index", None)
    calls = count_decoded(monkeypatch)
    with MovieReader(path) as reader:
        assert len(list(reader.pictures(range(5)))) == 5
        assert len(calls) == 5


def test_two_passes_at_once(write_movie):
    path = write_movie("clip.mp4")
    expected = decoded(path)
    with MovieReader(path) as reader:
        first, second = reader.pictures(range(8)), reader.pictures(range(30, 38))
        pairs = [arrays(pair) for pair in zip(first, second, strict=True)]
    assert all(same(pair, [expected[n], expected[n + 30]]) for n, pair in enumerate(pairs))


def test_variable_frame_rate(write_movie):
    times = [500 + 100 * number + 30 * (number % 3) for number in range(20)]
    with MovieReader(write_movie("vfr.mkv", rate=1000, num_frames=20, times=times)) as reader:
        assert reader.times == pytest.approx([(time - 500) / 1000 for time in times], abs=1e-3)
        assert len(list(reader.pictures(range(30)))) == 20


def test_frames_cut_off_by_an_edit_list(write_movie):
    """Frames before the time 0 are stored, since others need them, and are not shown."""
    path = write_movie("cut.mp4", times=[100 * (number - 13) for number in range(40)], rate=10)
    expected = decoded(path)
    assert len(expected) == 27
    with MovieReader(path) as reader:
        assert reader.num_frames == 27
        assert same(arrays(reader.pictures(range(50))), expected)
    with MovieReader(path) as reader:
        assert reader.times == pytest.approx([number / 10 for number in range(27)])
        for number in (26, 3, 14, 0):
            assert same(arrays(reader.pictures([number])), [expected[number]])


def test_broken_indices_and_channels(write_movie):
    path = write_movie("clip.mp4", num_frames=2)
    with MovieReader(path) as reader, pytest.raises(ValueError, match="increase from each to the"):
        reader.pictures([1, 0])
    with pytest.raises(ValueError, match=r"channels must be one of \[1, 3, 4\], got 2"):
        MovieReader(path, channels=2)


# Damage


@pytest.mark.parametrize("name", DAMAGE_IS_NOTICED)
def test_a_damaged_frame_is_an_error_and_the_frames_before_are_not(write_movie, name):
    path = write_movie(name, **KINDS[name])
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        position, size = packets[30].pos, packets[30].size
    content = bytearray(path.read_bytes())
    content[position + size // 3 : position + size // 2] = bytes(size // 2 - size // 3)
    path.write_bytes(content)
    with MovieReader(path) as reader:
        assert len(list(reader.pictures(range(20)))) == 20
        with pytest.raises(UnreadableVideoError, match=rf"{name}: expected a complete movie, got"):
            list(reader.pictures(range(20, 40)))


def test_a_missing_packet_is_an_error(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    inner = movie_file._frames_of
    frames = iter(range(1000))

    def loses_one(*arguments):
        return [frame for frame in inner(*arguments) if next(frames) != 7]

    monkeypatch.setattr(movie_file, "_frames_of", loses_one)
    with MovieReader(path) as reader:
        assert len(list(reader.pictures(range(7)))) == 7
        with pytest.raises(UnreadableVideoError, match=r"damaged frames before 0.8 s"):
            next(reader.pictures([7]))


def test_frames_missing_at_the_end(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    inner = movie_file._frames_of
    monkeypatch.setattr(
        movie_file,
        "_frames_of",
        lambda path, movie, packet: inner(path, movie, packet) if packet is not None else [],
    )
    with (
        MovieReader(path) as reader,
        pytest.raises(UnreadableVideoError, match=r"got \d frames that cannot be decoded"),
    ):
        list(reader.pictures(range(40)))


def test_corrupt_frames_are_refused(write_movie, monkeypatch):
    class Corrupt:
        is_corrupt, pts, time = True, 0, 0.0

    path = write_movie("clip.mp4")
    monkeypatch.setattr(movie_file, "_frames_of", lambda *arguments: [Corrupt()])
    with (
        MovieReader(path) as reader,
        pytest.raises(UnreadableVideoError, match=r"got a damaged frame at 0.0 s"),
    ):
        next(reader.pictures([0]))


def test_when_decoding_from_a_keyframe_fails_it_begins_anew(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    expected = decoded(path)
    inner, calls = movie_file._frames_of, []

    def fails_once(path, movie, packet):
        calls.append(packet)
        if len(calls) == 1:
            raise UnreadableVideoError
        return inner(path, movie, packet)

    monkeypatch.setattr(movie_file, "_frames_of", fails_once)
    with MovieReader(path) as reader:
        assert same(arrays(reader.pictures([37])), [expected[37]])
        assert len(calls) > 37


def test_a_second_attempt_meets_the_damage_again(write_movie):
    path = write_movie("clip.mp4")
    with av.open(str(path)) as container:
        packet = [p for p in container.demux(video=0) if p.size][15]
        position, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[position : position + size] = bytes(size)
    path.write_bytes(content)
    with MovieReader(path) as reader:
        for _ in range(2):
            with pytest.raises(UnreadableVideoError, match=r"clip.mp4: expected a complete"):
                list(reader.pictures(range(40)))
        assert len(list(reader.pictures(range(10)))) == 10


def test_a_seek_that_fails(write_movie):
    class Container:
        def seek(self, *arguments, **options):
            raise av.FFmpegError(5, "input/output error")

    with MovieReader(write_movie("clip.mp4")) as reader:
        reader._movie = reader._movie._replace(container=Container())
        with pytest.raises(UnreadableVideoError, match=r"got FFmpegError: .*input/output error"):
            list(reader.pictures([35]))


def test_a_closed_reader(write_movie):
    with MovieReader(write_movie("clip.mp4")) as reader:
        frames = reader.pictures(range(5))
        next(frames)
    for more in (frames, reader.pictures([0]), reader.pictures([35])):
        with pytest.raises(ValueError, match=r"clip.mp4: expected an open reader, got a closed"):
            next(more)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_cut_short(write_movie, name):
    path = write_movie(name)
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) // 2, len(content) // 4):
        path.write_bytes(content[:length])
        with pytest.raises(UnreadableVideoError, match=rf"{name}: .* cut short by at least \d+ by"):
            MovieReader(path)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_files_are_closed(write_movie):
    path = write_movie("clip.mp4")
    damaged = path.with_name("damaged.mp4")
    damaged.write_bytes(path.read_bytes()[:40] + bytes(2000))
    movie_index(path)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with MovieReader(path) as reader:
            frames = reader.pictures(range(40))
            next(frames)
            next(reader.pictures([35]))
        MovieReader(path)  # dropped without having been closed
        half_way = MovieReader(path).pictures(range(9))
        next(half_way)
        del half_way
        with pytest.raises(UnreadableVideoError):
            MovieReader(damaged)
    gc.collect()
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_ffmpeg_keeps_quiet(write_movie, capfd):
    path = write_movie("clip.mp4")
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(2000)
    path.write_bytes(content)
    capfd.readouterr()
    with pytest.raises(UnreadableVideoError), MovieReader(path) as reader:
        list(reader.pictures(range(40)))
    assert capfd.readouterr() == ("", "")
    assert av.logging.get_level() is None
