"""Any frame of a movie is the one that decoding from the beginning gives."""

import errno
import gc
import os
import struct
from array import array

import av
import numpy as np
import pytest

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import movies as movie_file
from video_diffusion_pytorch.data.formats.movies import MovieReader, movie_index
from video_diffusion_pytorch.data.transforms import Timeline

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
    monkeypatch.setattr(movie_file, "movie_index", lambda path: unclear)
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
            reader._frames = movie_file._decode(
                path, reader._movie, movie_file.packets_of(path, reader._movie)
            )
        elif place == "decode":
            reader._movie = reader._movie._replace(decoder=Failing())
            packets = movie_file.packets_of(path, reader._movie)
            reader._frames = movie_file._decode(path, reader._movie, packets)
        else:
            monkeypatch.setattr(movie_file, "picture_of", fails)
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
