"""First step of the path: where in a movie file each frame is, found without decoding any."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    is_of_the_machine,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.file_signature import FAMILY_OF_ENDING
from video_diffusion_pytorch.data.formats.mpeg4_frames import in_frames, is_coded

EXPECTED = "a complete movie"
"""The part of an error's message that says what was expected."""

_REORDERING = ("h264", "hevc")
_MOST_LEADING = 32  # twice as many frames as these codecs reorder
_DEMUXERS = {"mp4": "mov", "mkv": "matroska", "avi": "avi"}


class Movie(NamedTuple):
    """An opened movie file: PyAV's objects for the file, the video stream in it, its decoder."""

    container: Any
    stream: Any
    decoder: Any


class MovieIndex(NamedTuple):
    """Which frames a movie shows.

    Attributes:
        pts: When each frame is shown, in units of `time_base`, in the order of showing, 8 bytes per
            frame; empty where the file does not say, or says the same of two frames.
        keyframes: Those of the times at which decoding can begin, in order.
            Empty where decoding has to begin with the file.
        num_frames: How many frames are shown.
        time_base: Seconds per unit of time.
        end: When the last frame stops being shown; None where the file does not say.
        palettes: The times from which on a palette holds, in order, and the palettes.
    """

    pts: array[int]
    keyframes: array[int]
    num_frames: int
    time_base: Fraction
    end: int | None = None
    palettes: tuple[list[int], list[Any]] = ([], [])


@contextlib.contextmanager
def open_movie(path: Path) -> Iterator[Movie]:
    """Open a movie file for demuxing.

    The file is handed to FFmpeg opened, and the kind of container is fixed by the name's ending:
    what the file says cannot make it reach for other files or addresses.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: It holds no video, or one with frames larger than Pillow's limit.
    """
    import av
    from PIL import Image as pillow

    demuxer = _DEMUXERS[FAMILY_OF_ENDING[path.suffix.lower().lstrip(".")]]
    limit = pillow.MAX_IMAGE_PIXELS or 2**31 - 1
    # Checksums are compared, and what breaks a codec's syntax is not overlooked
    options = {"max_pixels": str(limit), "err_detect": "crccheck+bitstream+buffer"}
    try:
        file = regular_file(path).open("rb", buffering=0)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        with decoding(path):
            container = stack.enter_context(
                av.open(file, format=demuxer, options=options, metadata_errors="replace")
            )
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        _check_streams(path, streams, limit)
        with decoding(path):
            decoder = _decoder(streams[0], options)
        yield Movie(container, streams[0], decoder)


def _check_streams(path: Path, streams: list[Any], limit: int) -> None:
    if not streams:
        raise unreadable(path, EXPECTED, "a file without video", "remove it")
    context = streams[0].codec_context
    if context is None:
        advice = "convert it, for example with ffmpeg"
        raise unreadable(path, EXPECTED, "a codec that PyAV has no decoder for", advice)
    if context.width * context.height > limit:
        got = f"frames of {context.width} x {context.height} pixels"
        raise unreadable(path, EXPECTED, got, "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS")
    if context.format is None:
        raise unreadable(path, EXPECTED, "a video whose kind of pixels cannot be found out")


def _decoder(stream: Any, options: dict[str, str]) -> Any:
    """Give what decodes a stream in one thread: the processes that load data are many already."""
    import av

    decoder: Any = stream.codec_context
    if _stores_opacity(stream):
        # FFmpeg's own decoders of VP8 and VP9 leave the second picture out that holds it
        decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[decoder.name], "r")
        decoder.pix_fmt = "yuva420p"
    is_raw = decoder.name == "rawvideo" and decoder.pix_fmt == "bgra"
    if is_raw and decoder.codec_tag == "\0\0\0\0":  # Windows leaves the fourth byte void
        decoder.pix_fmt = "bgr0"
    decoder.options = options
    decoder.thread_count = 1
    return decoder


def _stores_opacity(stream: Any) -> bool:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return stream.codec_context.name in ("vp8", "vp9") and tags.get("alpha_mode") == "1"


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever PyAV raises for a file into an error that names it.

    A disk that is lost, and too many open files, stay what they are: another file would fare no
    better.

    Raises:
        UnreadableVideoError: Something was raised.
    """
    import av

    try:
        yield
    except UnreadableVideoError:
        raise
    except Exception as error:
        if is_of_the_machine(error) and not isinstance(error, av.FFmpegError):
            raise
        raise unreadable(path, EXPECTED, f"{type(error).__name__}: {error}") from error


def packets_of(path: Path, movie: Movie, *, with_empty: bool = False) -> Iterator[Any]:
    """Go through the packets of a movie from where it stands to its end.

    Those that come before the first keyframe are left out: no decoder can show them.

    Args:
        path: The file, for the error's message.
        movie: The opened movie.
        with_empty: Give packets without a byte, too: the frame before is shown for longer.

    Raises:
        UnreadableVideoError: A packet is damaged or missing.
    """
    started = False
    with decoding(path):
        packets = movie.container.demux(movie.stream)
        if _counts_packets(movie.stream) and movie.decoder.name == "mpeg4":
            packets = in_frames(packets, movie.stream)
        for packet in packets:
            if not packet.size:
                if with_empty and started and packet.dts is not None:  # not the end
                    yield packet
                continue
            if packet.is_corrupt:
                raise unreadable(path, EXPECTED, f"a damaged packet at byte {packet.pos}")
            started = started or packet.is_keyframe
            if started:
                yield packet


def is_shown(packet: Any) -> bool:
    """Tell whether a packet's frame is shown, rather than only needed by others."""
    if packet.is_discard:  # cut off by an edit list
        return False
    name = packet.stream.codec_context.name
    if name == "mpeg4":
        return is_coded(packet)
    # VP8 keeps hidden reference frames in packets of their own, and says so in its first byte
    return name not in ("vp8", "libvpx") or bool(memoryview(packet)[0] & 0x10)


def time_of(packet: Any) -> int | None:
    """Give the time at which a packet's frame is shown; None where the file does not say."""
    stream = packet.stream
    # FFmpeg guesses wrongly where the codec reorders frames
    is_guess = _counts_packets(stream) and stream.codec_context.name in _REORDERING
    return None if is_guess else packet.pts


def _counts_packets(stream: Any) -> bool:
    """Tell whether the container knows no times but the numbers of the packets."""
    return bool(stream.container.format.name == "avi")


def is_before(time: int | None, first: int | None) -> bool:
    """Tell whether a frame is shown before the keyframe that decoding began with.

    Example:
        >>> is_before(3, 4), is_before(4, 4), is_before(None, 4)
        (True, False, False)
    """
    return time is not None and first is not None and time < first


def movie_index(path: Path) -> MovieIndex:
    """List the frames of a movie; remembered for as long as the file does not change.

    To list them, the whole file has to be gone through. The lists of the movies used last, of five
    million frames together (about 50 MB, or two days at 30 frames per second), stay in memory.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is damaged.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError as error:
        raise missing_file(path) from error
    key = path.absolute(), state.st_size, state.st_mtime_ns
    index = _REMEMBERED.get(key)
    if index is None:
        index = _read_index(key[0])
        _REMEMBERED.add(key, index)
    return index


class _Remembered:
    """The indices used last, as many as have so many frames together.

    Args:
        most: Number of frames; an index by itself counts for `_PER_FILE`.
    """

    _PER_FILE = 100

    def __init__(self, most: int) -> None:
        self._most, self._held = most, 0
        self._indices: dict[tuple[Path, int, int], MovieIndex] = {}  # the one used last at the end
        self._lock = threading.Lock()

    def get(self, key: tuple[Path, int, int]) -> MovieIndex | None:
        with self._lock:
            index = self._indices.pop(key, None)
            if index is not None:
                self._indices[key] = index
            return index

    def add(self, key: tuple[Path, int, int], index: MovieIndex) -> None:
        with self._lock:
            if key in self._indices:
                return  # another thread was faster
            self._indices[key] = index
            self._held += index.num_frames + self._PER_FILE
            while self._held > self._most and len(self._indices) > 1:
                oldest = self._indices.pop(next(iter(self._indices)))
                self._held -= oldest.num_frames + self._PER_FILE


_REMEMBERED = _Remembered(5_000_000)


def _read_index(path: Path) -> MovieIndex:
    times: list[int | None] = []
    decoded: list[int | None] = []
    keyframes: list[int | None] = []
    palettes: tuple[list[int], list[Any]] = ([], [])
    first: int | None = None
    last, extra = (-1, 0), 0
    with open_movie(path) as movie:
        for packet in packets_of(path, movie, with_empty=True):
            if not packet.size:
                extra += packet.duration or 0
                continue
            time = time_of(packet)
            first = time if first is None else first
            if packet.is_keyframe:
                keyframes.append(time)
            palette = packet.get_sidedata("palette") if packet.has_sidedata("palette") else None
            if palette and (not palettes[1] or bytes(palette) != bytes(palettes[1][-1])):
                palettes[0].append(time or 0)
                palettes[1].append(palette)
            if is_shown(packet) and not is_before(time, first):
                times.append(time)
                decoded.append(packet.dts)
                order = packet.dts if time is None else time
                last = max(last, (order or 0, packet.duration or 0))
            extra = 0
        time_base = movie.stream.time_base or Fraction(1)
        duration = movie.stream.duration
    if None in times and None not in decoded:
        times, keyframes = _times_of_decoding(path, decoded, last[1] or 1), []
    known = {time for time in times if time is not None}
    starts = {time for time in keyframes if time is not None}
    is_clear = len(known) == len(times) and len(starts) == len(keyframes)
    pts = array("q", sorted(known) if is_clear else [])
    end = pts[-1] + last[1] + extra if pts and last[1] else None
    if end and duration and pts[-1] < pts[0] + duration < end:  # an edit list cuts the last one
        end = pts[0] + duration
    starts = starts if pts else set()
    return MovieIndex(pts, array("q", sorted(starts)), len(times), time_base, end, palettes)


def _times_of_decoding(path: Path, decoded: list[Any], duration: int) -> list[int | None]:
    """Give the times of frames of which it is known only when each packet is decoded.

    A decoder holds as many frames back as it may have to put before them, and then shows one for
    each packet. The first packets are decoded to see how many these are, and how many frames
    behind the first keyframe refer to frames before it, as in a file cut out of a longer one: they
    are never shown.
    """
    shown: set[int] = set()
    with open_movie(path) as movie:
        packets = itertools.islice(packets_of(path, movie), _MOST_LEADING)
        with contextlib.suppress(UnreadableVideoError), decoding(path):
            for number, packet in enumerate(itertools.chain(packets, [None])):
                if packet is not None:
                    packet.pts = number
                shown.update(frame.pts for frame in movie.decoder.decode(packet))
        delay = movie.decoder.reorder_depth
    lost = min(shown - {0}, default=1) - 1
    later = [decoded[-1] + duration * number for number in range(1, delay + 1)]
    return [*decoded, *later][delay + lost :]


def _is_cover(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)
