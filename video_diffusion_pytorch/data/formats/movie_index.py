"""First step of the path: where in a movie file each frame is, found without decoding any."""

from __future__ import annotations

import contextlib
import os
import threading
from array import array
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.file_signature import FAMILY_OF_ENDING

EXPECTED = "a complete movie"
"""The part of an error's message that says what was expected."""

_REORDERING = ("h264", "hevc")
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
        num_frames: How many frames are shown.
        time_base: Seconds per unit of time.
    """

    pts: array[int]
    keyframes: array[int]
    num_frames: int
    time_base: Fraction


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
        try:
            container = stack.enter_context(
                av.open(file, format=demuxer, options=options, metadata_errors="replace")
            )
        except (av.FFmpegError, ValueError) as error:
            raise undecodable(path, error) from error
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        _check_streams(path, streams, limit)
        yield Movie(container, streams[0], _decoder(streams[0], options))


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
    decoder.options = options
    decoder.thread_count = 1
    return decoder


def _stores_opacity(stream: Any) -> bool:
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return stream.codec_context.name in ("vp8", "vp9") and tags.get("alpha_mode") == "1"


def undecodable(path: Path, error: Exception) -> UnreadableVideoError:
    """Turn an error of FFmpeg into one that names the file."""
    return unreadable(path, EXPECTED, f"{type(error).__name__}: {error}")


def packets_of(path: Path, movie: Movie) -> Iterator[Any]:
    """Go through the packets of a movie from where it stands to its end.

    Those that come before the first keyframe are left out: no decoder can show them.

    Raises:
        UnreadableVideoError: A packet is damaged or missing.
    """
    import av

    started = False
    try:
        for packet in movie.container.demux(movie.stream):
            if not packet.size:
                continue  # the end, or a frame that repeats the one before
            if packet.is_corrupt:
                raise unreadable(path, EXPECTED, f"a damaged packet at byte {packet.pos}")
            started = started or packet.is_keyframe
            if started:
                yield packet
    except av.FFmpegError as error:
        raise undecodable(path, error) from error


def is_shown(packet: Any) -> bool:
    """Tell whether a packet's frame is shown, rather than only needed by others."""
    if packet.is_discard:  # cut off by an edit list
        return False
    # VP8 keeps hidden reference frames in packets of their own, and says so in its first byte
    is_vp8 = packet.stream.codec_context.name in ("vp8", "libvpx")
    return not is_vp8 or bool(memoryview(packet)[0] & 0x10)


def time_of(packet: Any) -> int | None:
    """Give the time at which a packet's frame is shown; None where the file does not say."""
    stream = packet.stream
    # An avi counts packets only, from which FFmpeg guesses wrongly where the codec reorders frames
    is_guess = stream.container.format.name == "avi" and stream.codec_context.name in _REORDERING
    return None if is_guess else packet.pts


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
    keyframes: list[int | None] = []
    first: int | None = None
    with open_movie(path) as movie:
        for packet in packets_of(path, movie):
            time = time_of(packet)
            first = time if first is None else first
            if packet.is_keyframe:
                keyframes.append(time)
            if is_shown(packet) and not is_before(time, first):
                times.append(time)
        time_base = movie.stream.time_base or Fraction(1)
    known = {time for time in times if time is not None}
    starts = {time for time in keyframes if time is not None}
    is_clear = len(known) == len(times) and len(starts) == len(keyframes)
    pts = array("q", sorted(known) if is_clear else [])
    return MovieIndex(pts, array("q", sorted(starts) if pts else []), len(times), time_base)


def _is_cover(stream: Any) -> bool:
    import av

    return bool(stream.disposition & av.stream.Disposition.attached_pic)
