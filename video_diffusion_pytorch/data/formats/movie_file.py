"""First step of the path: frames of an mp4, webm, mkv, mov or avi."""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion_pytorch.data.errors import UnreadableVideoError, unreadable
from video_diffusion_pytorch.data.formats.movie_format import missing_bytes
from video_diffusion_pytorch.data.formats.movie_index import (
    EXPECTED,
    Movie,
    MovieIndex,
    is_before,
    is_shown,
    movie_index,
    open_movie,
    packets_of,
    time_of,
    undecodable,
)
from video_diffusion_pytorch.data.formats.movie_picture import channels_of_format, picture_of
from video_diffusion_pytorch.data.formats.video_reader import (
    VideoReader,
    check_indices,
    closed_reader,
    mode_of,
)

if TYPE_CHECKING:
    from PIL.Image import Image

# Frames decoded and thrown away rather than looking up where the next keyframe is
_WORTH_AN_INDEX = 32


class MovieReader(VideoReader):
    """Frames of a movie, decoded by FFmpeg.

    A frame is found by going to the last keyframe before it and decoding from there; it is the same
    frame, bit for bit, as when all are decoded in order.

    Args:
        path: The file; it stays open until `close`.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the file stores.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is cut short, damaged, or holds no video.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        if channels is not None:
            mode_of(channels)
        if missing := missing_bytes(path):
            raise unreadable(path, EXPECTED, f"a file cut short by at least {missing} bytes")
        self._open_file = contextlib.ExitStack()
        # Where decoding stands: what gives the next frame, and that frame's number
        self._movie: Movie
        self._frames: Iterator[Any]
        self._next: int
        self._began_midway: bool
        self._is_closed = False
        self.path = path
        self._restart()
        super().__init__(path, channels or channels_of_format(self._movie.decoder.format))

    @property
    def num_frames(self) -> int:
        """How many frames the movie shows, those that an edit list cuts off not counted."""
        return self._index.num_frames

    @property
    def fps(self) -> float | None:
        """Average frames per second."""
        stream = self._movie.stream
        rate = stream.average_rate or stream.guessed_rate
        return float(rate) if rate else None

    @property
    def times(self) -> Sequence[float] | None:
        """When each frame is shown, in seconds after the first."""
        index = self._index
        if index.pts:
            first, (numerator, denominator) = index.pts[0], index.time_base.as_integer_ratio()
            return [(time - first) * numerator / denominator for time in index.pts]
        return [number / self.fps for number in range(index.num_frames)] if self.fps else None

    @property
    def _index(self) -> MovieIndex:
        return movie_index(self.path)

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode frames, as `VideoReader.pictures` says."""
        return self._pictures(check_indices(indices))

    def _pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        for number in indices:
            frame = self._frame(number)
            if frame is None:
                return
            yield picture_of(frame, self.channels, self.path, reformatter)

    def close(self) -> None:
        """Close the file."""
        self._is_closed = True
        self._open_file.close()

    def _frame(self, number: int) -> Any:
        """Decode one frame; None behind the last one."""
        if self._is_closed:
            raise closed_reader(self.path)
        if not self._next <= number <= self._next + _WORTH_AN_INDEX:
            if number >= self.num_frames:
                return None
            self._approach(number)
        began_midway = self._began_midway
        try:
            return self._advance(number)
        except UnreadableVideoError:
            if not began_midway:
                raise
        # Some files call a frame a keyframe from which decoding needs a while to become right
        return self._advance(number)

    def _advance(self, number: int) -> Any:
        """Decode up to a frame; after an error, decoding stands at the beginning again."""
        try:
            for frame in self._frames:
                self._next += 1
                if self._next > number:
                    return frame
        except UnreadableVideoError:
            self._restart()
            raise
        return None

    def _approach(self, number: int) -> None:
        """Go to the last keyframe before a frame, unless decoding already stands behind it."""
        import av

        index = self._index
        if not index.pts:  # a file that does not say what is shown when is decoded in order
            if number < self._next:
                self._restart()
            return
        keyframe = index.keyframes[bisect.bisect_right(index.keyframes, index.pts[number]) - 1]
        if self._next <= number and bisect.bisect_left(index.pts, keyframe) <= self._next:
            return
        try:
            self._movie.container.seek(keyframe, stream=self._movie.stream)
        except av.FFmpegError as error:
            raise undecodable(self.path, error) from error
        self._movie.decoder.flush_buffers()
        packets = packets_of(self.path, self._movie)
        first = next(packets, None)
        if first is None or first.pts is None or first.pts > keyframe:
            self._restart()
        else:
            self._frames = _decode(self.path, self._movie, itertools.chain([first], packets))
            self._next = bisect.bisect_left(index.pts, first.pts)
            self._began_midway = True

    def _restart(self) -> None:
        self._open_file.close()
        self._movie = self._open_file.enter_context(open_movie(self.path))
        self._frames = _decode(self.path, self._movie, packets_of(self.path, self._movie))
        self._next = 0
        self._began_midway = False


def _decode(path: Path, movie: Movie, packets: Iterable[Any]) -> Iterator[Any]:
    """Decode packets from a keyframe on, and see that each gives its frame in its turn."""
    first: int | None = None
    due: list[int] = []  # a heap: the times of the frames that have yet to come
    is_dated = True
    for packet in itertools.chain(packets, [None]):
        if packet is not None:
            time = time_of(packet)
            first = time if first is None else first
            is_dated = is_dated and time is not None
            if is_shown(packet) and not is_before(time, first):
                heapq.heappush(due, time or 0)  # undated ones are only counted
        for frame in _frames_of(path, movie, packet):
            if is_dated and is_before(frame.pts, first):
                continue  # refers to frames before the keyframe, and cannot be right
            if frame.is_corrupt:
                raise unreadable(path, EXPECTED, f"a damaged frame at {frame.time} s")
            if not due or (heapq.heappop(due) != frame.pts and is_dated):
                raise unreadable(path, EXPECTED, f"damaged frames before {frame.time} s")
            yield frame
    if due:
        raise unreadable(path, EXPECTED, f"{len(due)} frames that cannot be decoded")


def _frames_of(path: Path, movie: Movie, packet: Any) -> list[Any]:
    import av

    try:
        return movie.decoder.decode(packet)
    except av.EOFError:
        return []
    except av.FFmpegError as error:
        raise undecodable(path, error) from error
