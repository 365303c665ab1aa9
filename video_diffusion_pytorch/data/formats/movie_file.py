"""First step of the path: frames of an mp4, webm, mkv, mov or avi."""

from __future__ import annotations

import bisect
import contextlib
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError, unreadable
from video_diffusion_pytorch.data.formats.movie_format import missing_bytes
from video_diffusion_pytorch.data.formats.movie_index import (
    EXPECTED,
    Movie,
    MovieIndex,
    decoding,
    is_before,
    is_shown,
    movie_index,
    open_movie,
    packets_of,
    time_of,
)
from video_diffusion_pytorch.data.formats.movie_picture import (
    channels_of_format,
    is_measured,
    picture_of,
    square_width,
    values_of,
)
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
        square_pixels: Scale the width where the file says that its pixels are no squares.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is cut short, damaged, or holds no video.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(
        self, path: Path, channels: int | None = None, *, square_pixels: bool = True
    ) -> None:
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
        self._pixel_shape: Fraction | None
        self._is_closed = False
        self.path = path
        self._square_pixels = square_pixels
        self._restart()
        pixels = self._movie.decoder.format
        self.is_array = is_measured(pixels)
        super().__init__(path, channels or channels_of_format(pixels))

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
    def times(self) -> Sequence[float]:
        """When each frame is shown, in seconds after the first.

        Raises:
            UnreadableVideoError: The file does not say.
        """
        index = self._index
        if index.pts:
            return _seconds(index, index.pts)
        if not self.fps and index.num_frames != 1:
            expected = "a movie that says when its frames are shown"
            advice = "choose frames by number, or convert it, for example with ffmpeg"
            raise unreadable(self.path, expected, "one without times or rate", advice)
        return [number / (self.fps or 1) for number in range(index.num_frames)]

    @property
    def end(self) -> float | None:
        """When the last frame stops being shown, in seconds after the first is; None if unknown."""
        index = self._index
        if index.pts:
            return None if index.end is None else _seconds(index, [index.end])[0]
        return index.num_frames / self.fps if self.fps else None

    @property
    def _index(self) -> MovieIndex:
        return movie_index(self.path)

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode frames of 8-bit movies, and of all in YUV, as `VideoReader.pictures` says."""
        if self.is_array:
            return super().pictures(indices)
        return self._each(check_indices(indices), picture_of)

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """Decode frames of grey and RGB movies of more than 8 bits, as `VideoReader.array` says.

        The values are those that are stored.
        """
        if not self.is_array:
            return super().array(indices)
        frames = list(self._each(check_indices(indices), values_of))
        shapes = {frame.shape for frame in frames}
        if len(shapes) > 1:
            raise unreadable(self.path, "frames of one size", f"(c, h, w) {sorted(shapes)}")
        if not frames:
            return torch.empty(self.channels, 0, 0, 0)
        return torch.stack(frames, dim=1)

    def _each(self, indices: Sequence[int] | range, convert: Callable[..., Any]) -> Iterator[Any]:
        from av.video.reformatter import VideoReformatter

        reformatter = VideoReformatter()
        for number in indices:
            frame = self._frame(number)
            if frame is None:
                return
            with decoding(self.path):
                width = square_width(frame, self._pixel_shape, self.path)
                converted = convert(frame, self.channels, self.path, reformatter, width)
            yield converted

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
        index = self._index
        if not index.keyframes:  # a file that does not say what is shown when is decoded in order
            if number < self._next:
                self._restart()
            return
        keyframe = index.keyframes[bisect.bisect_right(index.keyframes, index.pts[number]) - 1]
        if self._next <= number and bisect.bisect_left(index.pts, keyframe) <= self._next:
            return
        with decoding(self.path):
            self._movie.container.seek(keyframe, stream=self._movie.stream)
            self._movie.decoder.flush_buffers()
        packets = packets_of(self.path, self._movie)
        first = next(packets, None)
        if first is None or first.pts is None or first.pts > keyframe:
            self._restart()
        else:
            since, palettes = index.palettes
            if palettes:  # said only where it changes
                first.set_sidedata(palettes[max(bisect.bisect_right(since, first.pts) - 1, 0)])
            self._frames = _decode(self.path, self._movie, itertools.chain([first], packets))
            self._next = bisect.bisect_left(index.pts, first.pts)
            self._began_midway = True

    def _restart(self) -> None:
        self._open_file.close()
        self._movie = self._open_file.enter_context(open_movie(self.path))
        self._frames = _decode(self.path, self._movie, packets_of(self.path, self._movie))
        self._next = 0
        self._began_midway = False
        self._pixel_shape = self._movie.stream.sample_aspect_ratio if self._square_pixels else None


def _seconds(index: MovieIndex, times: Iterable[int]) -> list[float]:
    first, (numerator, denominator) = index.pts[0], index.time_base.as_integer_ratio()
    return [(time - first) * numerator / denominator for time in times]


def _decode(path: Path, movie: Movie, packets: Iterable[Any]) -> Iterator[Any]:
    """Decode packets from a keyframe on, and see that each gives its frame in its turn."""
    first: int | None = None
    due: list[int] = []  # a heap: the times, or else the numbers, of the frames yet to come
    is_dated = True
    for number, packet in enumerate(itertools.chain(packets, [None])):
        if packet is not None:
            time = time_of(packet)
            is_dated = is_dated and time is not None
            if time is None or not is_dated:
                time = packet.pts = number
            first = time if first is None else first
            if is_shown(packet) and not (is_dated and is_before(time, first)):
                heapq.heappush(due, time)
        for frame in _frames_of(path, movie, packet):
            if is_dated and is_before(frame.pts, first):
                continue  # refers to frames before the keyframe, and cannot be right
            if frame.is_corrupt:
                raise unreadable(path, EXPECTED, f"a damaged frame at {frame.time} s")
            if not due or (is_dated and due[0] != frame.pts):
                raise unreadable(path, EXPECTED, f"damaged frames before {frame.time} s")
            if is_dated or frame.pts not in due:
                heapq.heappop(due)
            else:
                due.remove(frame.pts)
            yield frame
    # The first frames of a file cut out of a longer one may refer to what came before
    if due and (is_dated or sorted(due) != list(range(1, len(due) + 1))):
        raise unreadable(path, EXPECTED, f"{len(due)} frames that cannot be decoded")


def _frames_of(path: Path, movie: Movie, packet: Any) -> list[Any]:
    import av

    with decoding(path):
        try:
            return movie.decoder.decode(packet)
        except av.EOFError:
            return []
