"""Movies: any frame is the one that decoding from the beginning gives, the right way up."""

import errno
import gc
import io
import os
import struct
from array import array
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import movies
from video_diffusion_pytorch.data.formats.movies import (
    MovieReader,
    channels_of_format,
    is_coded,
    is_shown,
    missing_bytes,
    movie_index,
    open_movie,
    packets_of,
    picture_of,
    values_of,
)
from video_diffusion_pytorch.data.transforms import Timeline
from video_diffusion_pytorch.data.video_file import read_video

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
    inner = movies._frames_of

    def frames_of(*arguments):
        frames = inner(*arguments)
        calls.extend(frames)
        return frames

    monkeypatch.setattr(movies, "_frames_of", frames_of)
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
    monkeypatch.setattr(movies, "movie_index", None)
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


# What decoders and containers forget after a seek


def indexed(number, palette):
    """A frame of 8-bit indices that differ at each pixel, and its palette `(256, 3)`."""
    frame = av.VideoFrame(64, 48, "pal8")
    indices = np.add.outer(np.arange(48), np.arange(64) + 3 * number).astype(np.uint8)
    frame.planes[0].update(indices.tobytes())
    argb = np.hstack([palette[:, ::-1], np.full((256, 1), 255, np.uint8)])
    frame.planes[1].update(argb.tobytes())
    frame.pts = number
    return frame, palette[indices]


@pytest.mark.parametrize(
    ("codec", "name", "changes"),
    [
        ("rawvideo", "clip.avi", True),
        ("rawvideo", "clip.mov", False),
        ("msrle", "clip.avi", True),
        ("smc", "clip.mov", False),
        ("zmbv", "clip.avi", True),
    ],
)
def test_palettes_hold_after_a_seek(tmp_path, codec, name, changes):
    generator = np.random.default_rng(0)
    palettes = generator.integers(0, 256, (3, 1, 256, 3), dtype=np.uint8)
    expected = []
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        stream.codec_context.gop_size = 10
        for number in range(60):
            palette = palettes[number // 25 if changes else 0, 0]
            frame, pixels = indexed(number, palette)
            container.mux(stream.encode(frame))
            expected.append(pixels)
        container.mux(stream.encode())
    with MovieReader(tmp_path / name) as reader:
        for number in (55, 3, 44, 26, 24, 59, 0):
            (picture,) = reader.pictures([number])
            assert np.array_equal(np.asarray(picture), expected[number])
        assert same(arrays(reader.pictures(range(60))), expected)


def remux(source, target, change=lambda packets, stream: packets):
    """Copies packets into another file; `change` may leave some out, or give others."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        packets = [packet for packet in read.demux(stream) if packet.size]
        for packet in change(packets, stream):
            packet.stream, packet.time_base = copy, stream.time_base
            write.mux(packet)
    return target


def from_second_keyframe(packets, stream):
    """As `ffmpeg -c copy` cuts: what refers to frames before the keyframe is still there."""
    begin = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
    first = min(packet.dts for packet in packets[begin:])
    for packet in packets[begin:]:
        packet.dts -= first
        packet.pts -= first
    return packets[begin:]


OPEN_HEVC = {"x265-params": "log-level=none:open-gop=1:keyint=10:min-keyint=10:scenecut=0"}


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", OPEN_GOP),
        ("libx265", OPEN_HEVC),
        ("mpeg4", {"bf": "2"}),
        ("mpeg2video", {"bf": "2"}),
    ],
)
def test_cut_at_an_open_group_of_pictures(write_movie, codec, options, ending):
    if (codec, ending) == ("libx265", "avi"):
        pytest.skip("avi has no name for it")
    path = write_movie(f"whole.{ending}", codec=codec, options=options)
    path = remux(path, path.with_name(f"cut.{ending}"), from_second_keyframe)
    expected = decoded(path)
    assert 26 < len(expected) < 33
    with MovieReader(path) as reader:
        assert same(arrays(reader.pictures(range(50))), expected)
        assert reader.num_frames == len(expected)
        assert reader.times == pytest.approx([number / 10 for number in range(len(expected))])
        assert same(arrays(reader.pictures([7, 20])), [expected[7], expected[20]])


def test_an_edit_list_that_begins_within_an_open_group_of_pictures(write_movie):
    def before_zero(packets, stream):
        packets = from_second_keyframe(packets, stream)
        zero = sorted(packet.pts for packet in packets)[4]
        for packet in packets:
            packet.dts -= zero
            packet.pts -= zero
        return packets

    path = write_movie("whole.mp4", options=OPEN_GOP)
    path = remux(path, path.with_name("cut.mp4"), before_zero)
    expected = decoded(path)
    assert len(expected) < 30
    with MovieReader(path) as reader:
        assert reader.num_frames == len(expected)
        assert same(arrays(reader.pictures(range(50))), expected)


def packed(packets, stream):
    """Joins a frame with the B-frame behind it, and puts a placeholder after them, as XviD."""
    groups = []
    for packet in packets:
        data = bytes(packet)
        kind = data[data.index(b"\0\0\1\xb6") + 4] >> 6
        if kind == 2:
            groups[-1][1].append(data)
        else:
            groups.append((packet, [data]))
    joined = []
    for packet, (head, *tail) in groups:
        # a P-frame that is not coded: kind 1, no second has passed, the rest is as it may be
        parts = [head + tail[0], *tail[1:], b"\0\0\1\xb6\x50\x01"] if tail else [head]
        for data in parts:
            single = av.Packet(data)
            single.pts = single.dts = len(joined)
            single.is_keyframe = packet.is_keyframe and data is parts[0]
            joined.append(single)
    return joined


@pytest.mark.parametrize("b_frames", ["1", "2"])
def test_packed_b_frames(write_movie, b_frames):
    path = write_movie("plain.avi", codec="mpeg4", options={"bf": b_frames})
    expected = decoded(path)
    path = remux(path, path.with_name("packed.avi"), packed)
    with MovieReader(path) as reader:
        assert same(arrays(reader.pictures(range(50))), expected)
        assert reader.num_frames == 40
        assert reader.times == pytest.approx([number / 10 for number in range(40)])
        for number in (39, 12, 25, 0, 31):
            assert same(arrays(reader.pictures([number])), [expected[number]])


@pytest.mark.parametrize("ending", ["avi", "mp4", "mkv"])
def test_frames_that_are_not_coded_repeat_the_one_before(write_movie, ending):
    def repeat(packets, stream):
        for number, packet in enumerate(packets):
            if number in (5, 6, 25):
                # kind 1, no second has passed, a time of 4 bits between two 1, and a 0
                bits = "01" + "0" + "1" + "0101" + "1" + "0" + "011111"
                single = av.Packet(b"\0\0\1\xb6" + int(bits, 2).to_bytes(2, "big"))
                single.pts, single.dts = packet.pts, packet.dts
                single.duration = packet.duration
                yield single
            else:
                yield packet

    path = write_movie(f"plain.{ending}", codec="mpeg4")
    path = remux(path, path.with_name(f"repeats.{ending}"), repeat)
    expected = decoded(path)
    assert len(expected) == 37
    shown = [number / 10 for number in range(40) if number not in (5, 6, 25)]
    with MovieReader(path) as reader:
        assert reader.num_frames == 37
        assert reader.times == pytest.approx(shown)
        assert same(arrays(reader.pictures(range(50))), expected)
        assert same(arrays(reader.pictures([30])), [expected[30]])


# Clocks


@pytest.mark.parametrize("b_frames", ["0", "2"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "mpeg2video"])
def test_an_avi_with_gaps(write_movie, codec, b_frames):
    """Where nothing new is to be shown an avi has packets without a byte."""
    times = [*range(0, 400, 40), *range(800, 1200, 40)]
    options = {"codec": codec, "options": {"bf": b_frames}, "rate": 25}
    path = write_movie("gaps.avi", times=times, num_frames=20, **options)
    expected = decoded(path)
    with MovieReader(path) as reader:
        assert reader.times == pytest.approx([time / 1000 for time in times])
        assert reader.end == pytest.approx(1.2)
        assert reader.num_frames == len(expected) == 20
        assert same(arrays(reader.pictures(range(30))), expected)
        assert same(arrays(reader.pictures([3, 15])), [expected[3], expected[15]])


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.webm"])
@pytest.mark.parametrize("durations", [[100, 100, 1000], [1000, 100], [500]])
def test_the_last_frame_has_its_own_duration(write_movie, name, durations):
    times = [sum(durations[:number]) for number in range(len(durations))]
    options = {"codec": "libvpx"} if name.endswith("webm") else {"options": {"bf": "0"}}
    options |= {"times": times, "durations": durations}
    path = write_movie(name, num_frames=len(times), **options)
    with MovieReader(path) as reader:
        assert reader.times == pytest.approx([time / 1000 for time in times])
        assert reader.end == pytest.approx(sum(durations) / 1000)
        timeline = Timeline(fps=10)
        seen = timeline.frames(reader, range(99))
        assert seen == [i for i, time in enumerate(durations) for _ in range(time // 100)]


def test_an_edit_list_cuts_the_last_frame_short(write_movie):
    path = write_movie("clip.mp4", options={"bf": "0"})
    content = bytearray(path.read_bytes())
    place = content.index(b"elst") + 12
    assert struct.unpack_from(">I", content, place) == (4000,)
    struct.pack_into(">I", content, place, 2350)
    path.write_bytes(content)
    with MovieReader(path) as reader:
        assert (reader.num_frames, reader.times[-1]) == (24, pytest.approx(2.3))
        assert reader.end == pytest.approx(2.35)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_film_that_begins_late(write_movie, name):
    times = [5000 + 100 * number for number in range(20)]
    with MovieReader(write_movie(name, num_frames=20, times=times)) as reader:
        assert reader.times == pytest.approx([number / 10 for number in range(20)])
        assert reader.end == pytest.approx(2)


def test_a_film_without_a_clock_is_named(write_movie, monkeypatch):
    path = write_movie("clip.mp4", num_frames=3)
    unclear = movie_index(path)._replace(pts=array("q"), keyframes=array("q"))
    monkeypatch.setattr(movies, "movie_index", lambda path: unclear)
    with MovieReader(path) as reader:
        assert reader.times == pytest.approx([0, 0.1, 0.2])
        assert reader.end == pytest.approx(0.3)
        monkeypatch.setattr(MovieReader, "fps", None)
        text = r"clip.mp4: expected a movie that says when its frames are .*; choose frames by num"
        with pytest.raises(UnreadableVideoError, match=text):
            Timeline(fps=5).length(reader)
        assert reader.end is None
        assert len(list(reader.pictures(range(5)))) == 3


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
    inner = movies._frames_of
    frames = iter(range(1000))

    def loses_one(*arguments):
        return [frame for frame in inner(*arguments) if next(frames) != 7]

    monkeypatch.setattr(movies, "_frames_of", loses_one)
    with MovieReader(path) as reader:
        assert len(list(reader.pictures(range(7)))) == 7
        with pytest.raises(UnreadableVideoError, match=r"damaged frames before 0.8 s"):
            next(reader.pictures([7]))


def test_frames_missing_at_the_end(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    inner = movies._frames_of
    monkeypatch.setattr(
        movies,
        "_frames_of",
        lambda movie, packet: inner(movie, packet) if packet is not None else [],
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
    monkeypatch.setattr(movies, "_frames_of", lambda *arguments: [Corrupt()])
    with (
        MovieReader(path) as reader,
        pytest.raises(UnreadableVideoError, match=r"got a damaged frame at 0.0 s"),
    ):
        next(reader.pictures([0]))


def test_when_decoding_from_a_keyframe_fails_it_begins_anew(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    expected = decoded(path)
    inner, calls = movies._frames_of, []

    def fails_once(movie, packet):
        calls.append(packet)
        if len(calls) == 1:
            raise UnreadableVideoError
        return inner(movie, packet)

    monkeypatch.setattr(movies, "_frames_of", fails_once)
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


@pytest.mark.parametrize(
    "error", [KeyError("x"), MemoryError(), UnicodeDecodeError("a", b"", 0, 1, "b")]
)
@pytest.mark.parametrize("place", ["open", "demux", "decode", "convert"])
def test_whatever_pyav_raises_names_the_file(write_movie, monkeypatch, error, place):
    def fails(*arguments, **options):
        raise error

    class Failing:
        name, format = "h264", av.VideoFormat("yuv420p")
        demux = decode = fails

    path = write_movie("clip.mp4", num_frames=3)
    text = rf"clip.mp4: expected a complete movie, got {type(error).__name__}: .*; fetch or write"
    if place == "open":
        monkeypatch.setattr(av, "open", fails)
        with pytest.raises(UnreadableVideoError, match=text):
            MovieReader(path)
        return
    with MovieReader(path) as reader:
        if place == "demux":
            reader._movie = reader._movie._replace(container=Failing())
            reader._frames = movies._decode(reader._movie, packets_of(reader._movie))
        elif place == "decode":
            reader._movie = reader._movie._replace(decoder=Failing())
            reader._frames = movies._decode(reader._movie, packets_of(reader._movie))
        else:
            monkeypatch.setattr(movies, "picture_of", fails)
        with pytest.raises(UnreadableVideoError, match=text):
            list(reader.pictures([0]))


def test_a_machine_without_files_left_is_not_the_files_fault(write_movie, monkeypatch):
    def fails(*arguments, **options):
        raise OSError(errno.EMFILE, "too many open files")

    path = write_movie("clip.mp4", num_frames=3)
    monkeypatch.setattr(av, "open", fails)
    with pytest.raises(OSError, match="too many open files"):
        MovieReader(path)


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


# Truncated files


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov", "clip.mkv", "clip.webm", "clip.avi"])
def test_every_cut_is_noticed(write_movie, name):
    codec = "libvpx" if name.endswith("webm") else "mpeg4"
    path = write_movie(name, codec=codec, num_frames=3)
    content = path.read_bytes()
    assert missing_bytes(path) == 0
    for length in [*range(20, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        assert missing_bytes(path) <= len(content) - length
        with pytest.raises(UnreadableVideoError):
            MovieReader(path)


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


# The list of frames


def test_times_and_keyframes(write_movie):
    index = movie_index(write_movie("clip.mp4", options={"bf": "3"}, num_frames=25))
    step = int(1 / (10 * index.time_base))
    assert index.num_frames == 25
    assert list(index.pts) == [step * number for number in range(25)]
    assert list(index.keyframes) == [0, 10 * step, 20 * step]
    assert (index.pts.itemsize, index.keyframes.itemsize) == (8, 8)


def test_nothing_is_decoded(write_movie, monkeypatch):
    path = write_movie("clip.mp4")
    monkeypatch.setattr(movies, "_decoder", lambda stream, options: None)
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


def test_a_movie_is_gone_through_once_among_many(write_movie, monkeypatch):
    paths = [write_movie(f"{number}.mp4", num_frames=2) for number in range(40)]
    for path in paths:
        movie_index(path)
    monkeypatch.setattr(movies, "open_movie", None)
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
    monkeypatch.setattr(movies, "_check_streams", lambda *arguments: None)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 - 1)
    with open_movie(path) as movie, pytest.raises((ValueError, OSError)):
        [movie.decoder.decode(packet) for packet in packets_of(movie)]


@pytest.mark.parametrize(
    "context",
    [None, SimpleNamespace(width=4, height=4, format=None)],
)
def test_codecs_that_cannot_be_decoded(write_movie, monkeypatch, context):
    path = write_movie("clip.mp4", num_frames=2)
    inner = movies._check_streams
    streams = [SimpleNamespace(codec_context=context)]
    monkeypatch.setattr(
        movies, "_check_streams", lambda path, _, limit: inner(path, streams, limit)
    )
    with pytest.raises(UnreadableVideoError, match="a video that FFmpeg cannot decode; con"):
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
        next(packets_of(movie._replace(container=Container())))


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
        next(packets_of(movie._replace(container=Container())))


# Frames that are not coded


START = b"\0\0\1\xb6"


class Packet(bytes):
    """What is asked of PyAV's packet."""

    header = b""

    @property
    def size(self):
        return len(self)

    @property
    def stream(self):
        return SimpleNamespace(codec_context=SimpleNamespace(extradata=self.header))


def header(bits):
    return b"\0\0\1\x20" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(
        -(-len(bits) // 8), "big"
    )


@pytest.mark.parametrize("version", ["0", "1" + "0001" + "001"])
@pytest.mark.parametrize("shape", ["0001", "1111" + "00000001" * 2])
@pytest.mark.parametrize("control", ["0", "1" + "0110", "1" + "0101" + "1" * 79])
@pytest.mark.parametrize(("resolution", "length"), [(1, 1), (25, 5), (30000, 15)])
def test_frames_that_are_not_coded(version, shape, control, resolution, length):
    layer = "0" + "00000001" + version + shape + control + "00" + "1" + f"{resolution:016b}" + "1"
    for coded in (True, False):
        bits = "01" + "110" + "1" + "1" * length + "1" + str(int(coded))
        bits = bits.ljust(40, "0")
        packet = Packet(START + int(bits, 2).to_bytes(5, "big"))
        packet.header = header(layer)
        assert is_coded(packet) is coded


@pytest.mark.parametrize("data", [b"", START, b"\0" * 8, START + b"\xff" * 8, START + bytes(90)])
@pytest.mark.parametrize("extradata", [None, b"", b"\0\0\1\x20", b"\0\0\1\x20" + b"\xff" * 40])
def test_what_cannot_be_understood_counts_as_a_frame(data, extradata):
    packet = Packet(data)
    packet.header = extradata
    assert is_coded(packet)


def test_frames_of_an_encoder_are_coded(write_movie):
    with av.open(str(write_movie("clip.avi", codec="mpeg4", options={"bf": "2"}))) as container:
        assert all(is_coded(packet) for packet in container.demux(video=0) if packet.size)


# Pictures


def quarters(number):
    """Four shades: 40 top left, 80 top right, 120 bottom left, 160 bottom right."""
    shades = np.array([[40, 80], [120, 160]], np.uint8).repeat(24, 0).repeat(32, 1)
    return np.repeat(shades[..., None], 3, axis=2)


def corners(picture):
    """The shades of the four quarters, row by row."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    h, w = pixels.shape
    rows = [pixels[y, x] for y in (h // 4, h * 3 // 4) for x in (w // 4, w * 3 // 4)]
    return [round(shade / 40) for shade in rows]


@pytest.mark.parametrize(
    ("rotation", "expected", "size"),
    [
        (0, [1, 2, 3, 4], (64, 48)),
        (90, [2, 4, 1, 3], (48, 64)),  # counter-clockwise: what was on the right is on top
        (180, [4, 3, 2, 1], (64, 48)),
        (-90, [3, 1, 4, 2], (48, 64)),
    ],
)
def test_rotation(write_movie, rotation, expected, size):
    path = write_movie("clip.mp4", num_frames=3, rotation=rotation, make=quarters)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation in (rotation, -rotation)
    with MovieReader(path) as reader:
        for picture in reader.pictures(range(3)):
            assert corners(picture) == expected
            assert picture.size == size


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [1, 2, 3, 4]),
        ((-1, 0, 0, 1), [2, 1, 4, 3]),
        ((1, 0, 0, -1), [3, 4, 1, 2]),
        ((0, 1, 1, 0), [1, 3, 2, 4]),
        ((0, -1, -1, 0), [4, 2, 3, 1]),
    ],
)
def test_mirrored(write_movie, matrix, expected):
    """Patches the track's matrix, since PyAV writes rotations only."""
    path = write_movie("clip.mp4", num_frames=1, make=quarters)
    content = path.read_bytes()
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (65536 * value for value in matrix)
    track = content.index(plain, content.index(b"tkhd"))
    patched = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + patched + content[track + 36 :])
    with MovieReader(path) as reader:
        assert [corners(picture) for picture in reader.pictures([0])] == [expected]


def test_other_turns_are_refused(write_movie):
    path = write_movie("clip.mp4", num_frames=1, rotation=30)
    text = r"rotated by multiples of 90 degrees, got a display matrix of \d+, .*; rotate"
    with MovieReader(path) as reader, pytest.raises(UnreadableVideoError, match=text):
        next(reader.pictures([0]))


def rgba(number):
    opacity = np.full((48, 64), 6 * number, np.uint8)
    return np.dstack([quarters(number), opacity])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.mkv", {"codec": "ffv1", "pixels": "yuva420p"}),
        ("clip.mov", {"codec": "png", "pixels": "rgba"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "pixels": "yuva420p", "options": {"cpu-used": "8"}}),
        ("vp8.webm", {"codec": "libvpx", "pixels": "yuva420p"}),
    ],
)
def test_opacity(write_movie, name, options):
    options = {**options, "options": {**options.get("options", {})}}
    if name.endswith("webm"):
        options["options"]["auto-alt-ref"] = "0"
    path = write_movie(name, make=rgba, made_as="rgba", num_frames=24, **options)
    with MovieReader(path) as reader:
        assert reader.channels == 4
        for number in (0, 5, 20, 13):
            (picture,) = reader.pictures([number])
            assert picture.mode == "RGBA"
            assert abs(picture.getpixel((5, 5))[3] - 6 * number) <= 3
    with MovieReader(path, channels=3) as reader:
        assert next(reader.pictures([0])).mode == "RGB"


@pytest.mark.parametrize("width", [18, 36, 50, 64])
@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.mp4", "libx264", "yuv420p"),
        ("clip.mkv", "ffv1", "yuv422p"),
        ("clip.mkv", "ffv1", "yuva420p"),
        ("clip.mkv", "ffv1", "yuva422p"),
        ("clip.webm", "libvpx", "yuva420p"),
    ],
)
def test_opacity_of_the_last_columns(write_movie, name, codec, pixels, width):
    """FFmpeg's own conversion to RGBA leaves it undefined at some widths."""
    opacity = np.arange(48, dtype=np.uint8)[:, None].repeat(width, 1) * 5

    def make(number):
        return np.dstack([np.full((48, width, 3), 100, np.uint8), opacity])

    options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
    path = write_movie(
        name, codec, pixels, num_frames=2, options=options, make=make, made_as="rgba"
    )
    expected = opacity if pixels.startswith("yuva") else np.full_like(opacity, 255)
    four, _ = read_video(path, channels=4)
    assert abs(four[3].numpy().astype(int) - expected).max() <= (3 if codec == "libvpx" else 1)
    assert abs(four[:3].int() - 100).max() <= 3
    three, _ = read_video(path, channels=3)
    assert abs(three.numpy() - 100 * (expected / 255)).max() <= 3


def test_grey(write_movie):
    path = write_movie("clip.mkv", codec="ffv1", pixels="gray", num_frames=2, make=quarters)
    with MovieReader(path) as reader:
        assert (reader.channels, reader.is_array) == (1, False)
        pictures = list(reader.pictures(range(2)))
        assert {picture.mode for picture in pictures} == {"L"}
        assert corners(pictures[0]) == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [(10, 255), (30, 128), (55, 0)])
@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.mov", "qtrle", "argb"),
        ("clip.mov", "prores_ks", "yuva444p10le"),
        ("clip.avi", "huffyuv", "bgra"),
        ("clip.mov", "png", "ya8"),
    ],
)
def test_frames_with_opacity_are_put_on_black(write_movie, name, codec, pixels, place):
    def make(number):
        opacity = np.zeros((48, 64), np.uint8)
        opacity[:, :20], opacity[:, 20:40] = 255, 128
        return np.dstack([np.full((48, 64, 3), 200, np.uint8), opacity])

    path = write_movie(name, codec=codec, pixels=pixels, num_frames=2, make=make, made_as="rgba")
    column, opacity = place
    for channels in (1, 3, 4):
        video, _ = read_video(path, channels=channels)
        shade = 200 if channels == 4 else 200 * opacity / 255
        expected = [shade] * min(channels, 3) + [opacity] * (channels == 4)
        assert video[:, 1, 20, column].tolist() == pytest.approx(expected, abs=2)


def bitmap_avi(frames, palette=b"", bits=32):
    """An avi of uncompressed bitmaps `(h, w, bytes)`, as Windows and ImageJ write them."""

    def chunk(name, body):
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    height, width = frames[0].shape[:2]
    size = frames[0].nbytes
    main = struct.pack("<14I", 40000, 0, 0, 16, len(frames), 0, 1, size, width, height, 0, 0, 0, 0)
    rates = struct.pack("<8I", 0, 1, 25, 0, len(frames), size, 0, 0)
    head = b"vids" + bytes(12) + rates + struct.pack("<4H", 0, 0, width, height)
    kind = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 0, size, 0, 0, len(palette) // 4, 0
    )
    stream = chunk(b"LIST", b"strl" + chunk(b"strh", head) + chunk(b"strf", kind + palette))
    body, index = b"movi", b""
    for frame in frames:
        index += struct.pack("<4sIII", b"00db", 16, len(body), size)
        body += chunk(b"00db", frame[::-1].tobytes())
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + stream)
    return chunk(b"RIFF", b"AVI " + header + chunk(b"LIST", body) + chunk(b"idx1", index))


@pytest.mark.parametrize("last", [0, 255])
def test_the_fourth_byte_of_a_bitmap_is_no_opacity(tmp_path, last):
    frame = np.full((16, 32, 4), (10, 100, 200, last), np.uint8)
    (tmp_path / "clip.avi").write_bytes(bitmap_avi([frame] * 3))
    video, _ = read_video(tmp_path / "clip.avi")
    assert video[:, 2, 5, 5].tolist() == [200, 100, 10]


def test_palette_of_a_bitmap_film_far_from_the_start(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (256, 4), dtype=np.uint8)
    frames = [np.full((16, 16), 4 * number, np.uint8) for number in range(60)]
    (tmp_path / "clip.avi").write_bytes(bitmap_avi(frames, palette.tobytes(), bits=8))
    with MovieReader(tmp_path / "clip.avi") as reader:
        for number in (50, 7):
            (picture,) = reader.pictures([number])
            assert picture.getpixel((3, 3)) == tuple(palette[4 * number, 2::-1])


# Values of more than 8 bits


DEEP = [
    ("gray10le", "ffv1", "clip.mkv"),
    ("gray16le", "ffv1", "clip.mkv"),
    ("gray12le", "ffv1", "clip.avi"),
    ("gbrp10le", "ffv1", "clip.mkv"),
    ("gbrap16le", "ffv1", "clip.mkv"),
    ("rgb48be", "png", "clip.mov"),
    ("gray16be", "png", "clip.mov"),
]


@pytest.mark.parametrize(("pixels", "codec", "name"), DEEP)
def test_measured_values_stay_as_they_are(write_movie, pixels, codec, name):
    depth = len(av.VideoFormat(pixels).components)
    most = 2 ** av.VideoFormat(pixels).components[0].bits
    shape = (12, 48, 64, depth) if depth > 1 else (12, 48, 64)
    stored = np.random.default_rng(0).integers(0, most, shape, dtype=np.uint16)
    path = write_movie(
        name, codec=codec, pixels=pixels, num_frames=12, make=lambda i: stored[i], made_as=pixels
    )
    expected = torch.from_numpy(stored.reshape(12, 48, 64, depth).astype(np.float32))
    expected = expected.permute(3, 0, 1, 2)
    with MovieReader(path) as reader:
        assert (reader.channels, reader.is_array) == (depth, True)
        for numbers in ([9, 11], [0, 5], range(10, 20)):
            known = [number for number in numbers if number < 12]
            assert torch.equal(reader.array(numbers), expected[:, known])
        assert reader.array([12]).shape[1] == 0
        with pytest.raises(TypeError, match=r"expected a picture file or a movie, got an array"):
            reader.pictures([0])
    assert read_video(path)[0].dtype == torch.float32
    grey, colour, opaque = (read_video(path, channels=count)[0] for count in (1, 3, 4))
    seen = expected[:3] * (expected[3:] / (most - 1)) if depth == 4 else expected
    assert torch.equal(colour, seen.expand(3, -1, -1, -1))
    weights = torch.tensor([0.299, 0.587, 0.114] if depth > 1 else [1.0])
    assert torch.allclose(grey, torch.einsum("cfhw,c->fhw", seen, weights)[None])
    assert torch.equal(opaque[:3], expected[:3].expand(3, -1, -1, -1))
    assert depth == 4 or (opaque[3] == most - 1).all()


def test_clips_of_measured_values_are_in_the_files_units(write_movie):
    path = write_movie(
        "clip.mkv",
        codec="ffv1",
        pixels="gray16le",
        num_frames=3,
        make=lambda number: np.full((48, 64), 40000 + number, np.uint16),
        made_as="gray16le",
    )
    options = {"exts": ["mkv"], "channels": 1, "num_frames": 3, "value_range": (0, 65535)}
    clip = Dataset(path.parent, 16, **options)[0]
    assert clip[0, :, 3, 3].tolist() == pytest.approx([40000, 40001, 40002], abs=0.01)


def test_pictures_are_no_arrays(write_movie):
    with (
        MovieReader(write_movie("clip.mp4", num_frames=1)) as reader,
        pytest.raises(TypeError, match=r"got a picture file or a movie; call pictures\(\)"),
    ):
        reader.array([0])


def test_frames_of_other_pixels_between_measured_ones(tmp_path):
    frame = av.VideoFrame.from_ndarray(quarters(0), format="rgb24")
    with pytest.raises(UnreadableVideoError, match=r"frames of one kind of pixels, got .* rgb24 b"):
        values_of(frame, 3, tmp_path, VideoReformatter())


# Pixels that are no squares


def disc(number):
    """Round where pixels are twice as wide as high."""
    y, x = np.mgrid[:48, :64]
    inside = (2 * (x - 31.5)) ** 2 + (y - 23.5) ** 2 < 20**2
    return np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_pixels_become_squares(write_movie, name):
    path = write_movie(name, num_frames=3, make=disc, shape=Fraction(2))
    video, _ = read_video(path)
    assert video.shape == (3, 3, 48, 128)
    clip = Dataset(path.parent, 32, num_frames=2, exts=[path.suffix[1:]])[0][0, 1] > 0.5
    high, wide = int(clip.any(1).sum()), int(clip.any(0).sum())
    assert abs(high - wide) <= 1
    assert abs(high - 40 * 32 / 48) <= 1
    stored = read_video(path, square_pixels=False)[0]
    assert stored.shape == (3, 3, 48, 64)
    options = {"num_frames": 2, "exts": [path.suffix[1:]], "square_pixels": False}
    clip = Dataset(path.parent, 32, **options)[0][0, 1] > 0.5
    assert 2 * int(clip.any(0).sum()) == pytest.approx(int(clip.any(1).sum()), abs=2)


def test_a_cache_knows_whether_pixels_are_squares(write_movie, tmp_path):
    path = write_movie("clip.mp4", num_frames=2, make=disc, shape=Fraction(2))
    widths = []
    for square in (True, False):
        options = {"exts": ["mp4"], "cache": tmp_path / "cache", "square_pixels": square}
        clip = Dataset(path.parent, 48, num_frames=2, **options)[0]
        widths.append(int((clip[0, 0] > 0.5).any(0).sum()))
    assert widths == [pytest.approx(40, abs=1), pytest.approx(20, abs=1)]


def test_squares_are_made_before_the_frame_is_turned(write_movie):
    path = write_movie("clip.mp4", num_frames=1, make=disc, shape=Fraction(2), rotation=90)
    assert read_video(path)[0].shape == (3, 1, 128, 48)


@pytest.mark.parametrize("shape", [None, Fraction(1)])
def test_squares_stay_bit_for_bit(write_movie, shape):
    path = write_movie("clip.mp4", num_frames=3, shape=shape)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video, _ = read_video(path)
    assert np.array_equal(video.permute(1, 2, 3, 0).numpy(), np.stack(frames))


def test_measured_values_on_pixels_that_are_no_squares(write_movie):
    path = write_movie(
        "clip.mov",
        codec="png",
        pixels="gray16be",
        num_frames=1,
        make=lambda number: np.full((48, 64), 1234, np.uint16),
        made_as="gray16be",
        shape=Fraction(1, 2),
    )
    video, _ = read_video(path)
    assert video.shape == (1, 1, 48, 32)
    assert torch.allclose(video, torch.tensor(1234.0), atol=1)


def test_pixels_too_wide_to_be_true(write_movie, monkeypatch):
    path = write_movie("clip.mp4", num_frames=1, shape=Fraction(2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 + 1)
    text = r"got pixels 2 times as wide as high, for frames of 64 x 48; pass square_pixels=Fal"
    with pytest.raises(UnreadableVideoError, match=text):
        read_video(path)
    assert read_video(path, square_pixels=False)[0].shape == (3, 1, 48, 64)


# HDR


def light_to_pq(light):
    """SMPTE ST 2084 of candelas per square metre."""
    power = (light / 10000) ** (2610 / 16384)
    above, below = 3424 / 4096 + 2413 / 128 * power, 1 + 2392 / 128 * power
    return (above / below) ** (2523 / 32)


@pytest.mark.parametrize(
    ("curve", "code", "shade"),
    [
        ("smpte2084", light_to_pq(203), 255),
        ("smpte2084", light_to_pq(2000), 255),
        ("smpte2084", light_to_pq(20.3), 255 * 0.1 ** (1 / 2.4)),
        ("smpte2084", 0, 0),
        ("arib-std-b67", 0.75, 255),  # its reference white
        ("bt2020-10", 0.5, 255 * 0.5),
    ],
)
def test_hdr_is_as_bright_as_on_a_screen_without(write_movie, curve, code, shade):
    value = 64 + round(876 * code)
    # with frames to reorder, x265 now and then gives a single frame a time that no container takes
    quiet = "log-level=none:pools=none:frame-threads=1:bframes=0"
    colours = f"{quiet}:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc"
    planes = np.concatenate([np.full(64 * 48, value), np.full(64 * 48 // 2, 512)])
    path = write_movie(
        "clip.mkv",
        codec="libx265",
        pixels="yuv420p10le",
        options={"x265-params": colours},
        num_frames=1,
        make=lambda number: planes.astype(np.uint16).reshape(72, 64),
        made_as="yuv420p10le",
        size=(48, 64),
    )
    for channels in (1, 3, 4):
        pixel = read_video(path, channels=channels)[0][:, 0, 20, 20].tolist()
        opaque = [255] * (channels == 4)
        assert pixel == pytest.approx([shade] * min(channels, 3) + opaque, abs=2)


def test_hdr_colours(tmp_path):
    """Candelas per square metre in BT.2020 are those in BT.709, by their chromaticities."""

    def to_xyz(primaries):
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    light = np.array([150.0, 60.0, 40.0])
    wide = to_xyz([(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)])
    narrow = np.linalg.solve(to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]), wide @ light)
    expected = 255 * np.clip(narrow / 203, 0, 1) ** (1 / 2.4)
    codes = np.array([round(65280 * light_to_pq(value)) for value in light], np.uint16)
    frame = av.VideoFrame.from_ndarray(np.tile(codes, (4, 4, 1)), format="rgb48le")
    frame.color_trc, frame.color_primaries = 16, 9
    picture = picture_of(frame, 3, tmp_path, VideoReformatter())
    assert picture.getpixel((2, 2)) == pytest.approx(expected, abs=2)


# Side data


@pytest.mark.parametrize(
    ("orientation", "expected", "size"),
    [
        (1, [1, 2, 3, 4], (64, 48)),
        (2, [2, 1, 4, 3], (64, 48)),
        (3, [4, 3, 2, 1], (64, 48)),
        (6, [3, 1, 4, 2], (48, 64)),
        (8, [2, 4, 1, 3], (48, 64)),
    ],
)
@pytest.mark.parametrize("ending", ["avi", "mov"])
def test_jpegs_with_exif(write_movie, ending, orientation, expected, size):
    """Motion JPEG of cameras: PyAV does not know that side data, and the frames may be turned."""
    tags, jpeg = Image.Exif(), io.BytesIO()
    tags[0x010F], tags[0x0112] = "camera", orientation
    Image.fromarray(quarters(0)).save(jpeg, "JPEG", exif=tags, quality=95)
    path = write_movie(f"plain.{ending}", codec="mjpeg", pixels="yuvj420p", num_frames=1)
    joined = path.with_name(f"joined.{ending}")
    with av.open(str(path)) as source, av.open(str(joined), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number in range(4):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.duration = 1
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            target.mux(packet)
    with MovieReader(joined) as reader:
        pictures = list(reader.pictures(range(9)))
        assert [corners(picture) for picture in pictures] == [expected] * 4
        assert pictures[0].size == size


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ten_bit(write_movie, channels):
    path = write_movie("clip.mkv", codec="ffv1", pixels="yuv420p10le", num_frames=2, make=quarters)
    with MovieReader(path, channels) as reader:
        assert corners(next(reader.pictures([0]))) == [1, 2, 3, 4]
    with MovieReader(path) as reader:
        assert reader.channels == 3


def test_pixels_are_those_that_pyav_gives(tmp_path):
    frame = av.VideoFrame.from_ndarray(quarters(0), format="rgb24").reformat(format="yuv444p")
    for channels, name in ((1, "gray"), (3, "rgb24"), (4, "rgba")):
        pixels = np.asarray(picture_of(frame, channels, tmp_path, VideoReformatter()))
        assert np.array_equal(pixels, frame.to_ndarray(format=name))


def test_formats():
    names = ["gray", "gray12be", "monob", "yuv420p", "rgb24", "nv12", "yuva444p10le", "rgba"]
    channels = [channels_of_format(av.VideoFormat(name)) for name in names]
    assert channels == [1, 1, 1, 3, 3, 3, 4, 4]
