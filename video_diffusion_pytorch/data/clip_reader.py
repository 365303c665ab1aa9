"""Clip reader: decodes the frames of a file, or reads them from the cache, by their positions."""

from __future__ import annotations

import math
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion_pytorch.data.cache import ClipCache
from video_diffusion_pytorch.data.errors import file_errors, finite, unreadable
from video_diffusion_pytorch.data.formats.arrays import ArrayReader
from video_diffusion_pytorch.data.formats.frame_folder import FRAME_EXTS
from video_diffusion_pytorch.data.formats.pictures import PictureReader
from video_diffusion_pytorch.data.formats.readers import FunctionReader, ReadFn, VideoReader
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS, open_video

if TYPE_CHECKING:
    from PIL.Image import Image

# Tolerance for the rounding of timestamps, in seconds
_ROUNDING = 1e-4


class Timeline:
    """Every n-th frame of a file, or its frames resampled to a frame rate.

    Positions count from the beginning of the file, so that all clips of a file share frames.

    Args:
        frame_skip: Take every `frame_skip`-th frame.
        fps: Frames per second: at each instant the frame displayed then, which may repeat. None to
            use `frame_skip`.

    Raises:
        ValueError: An argument is out of range, or both are given.
    """

    def __init__(self, frame_skip: int = 1, fps: float | None = None) -> None:
        if frame_skip < 1 or (fps is not None and not (0 < fps < math.inf and frame_skip == 1)):
            raise ValueError(
                "frames must be chosen by a frame_skip of at least 1, or by fps, a positive number "
                f"of frames per second, got frame_skip={frame_skip} and fps={fps}; pass one of them"
            )
        self.frame_skip, self.fps = frame_skip, fps

    def length(self, file: VideoReader) -> int:
        """Number of positions."""
        if self.fps is None:
            return -(-file.num_frames // self.frame_skip)
        times = self._times(file, "fps")
        end = file.end
        if end is None:  # the last frame counts for as long as the one before it
            end = times[-1] + (times[-1] - times[-2] if len(times) > 1 else 1 / self.fps)
        return max(1, math.ceil((end - times[0] - _ROUNDING) * self.fps))

    def frames(self, file: VideoReader, positions: Sequence[int]) -> list[int]:
        """The file's frames at these positions; with `fps`, none past its end."""
        if self.fps is None:
            # without counting the frames: reading past the end gives fewer
            return [position * self.frame_skip for position in positions]
        times = self._times(file, "fps")
        length = self.length(file)
        instants = (times[0] + position / self.fps for position in positions if position < length)
        return [max(0, bisect_right(times, instant + _ROUNDING) - 1) for instant in instants]

    def between(self, file: VideoReader, start: float | None, end: float | None) -> range:
        """The positions from second `start` on and before second `end`.

        Raises:
            UnreadableVideoError: There is none.
            ValueError: The file has no timestamps.
        """
        length = self.length(file)
        if start is None and end is None:
            return range(length)
        times = self._times(file, "start and end")
        if self.fps is None:
            shown = [times[i] - times[0] for i in self.frames(file, range(length))]
        else:
            shown = [position / self.fps for position in range(length)]
        first = 0 if start is None else bisect_left(shown, start - _ROUNDING)
        stop = length if end is None else bisect_left(shown, end - _ROUNDING)
        if first >= stop:
            last = times[-1] if file.end is None else file.end
            expected = f"frames from second {start} to {end}"
            got = f"a file of {last - times[0]:.3f} seconds"
            raise unreadable(file.path, expected, got, "correct start and end")
        return range(first, stop)

    def _times(self, file: VideoReader, option: str) -> Sequence[float]:
        times = file.times
        if times is None and file.num_frames == 1:
            return [0.0]  # a still picture
        if times is None:
            raise ValueError(
                f"{option} must go with files that have timestamps, got {file.path}, a folder of "
                "pictures or an array without; choose frames by number, as with frame_skip"
            )
        return times


# Increase when the decoders give other pixels or read more files: it invalidates caches
_DECODER = 3

STILL_EXTS = tuple(ext for ext in FRAME_EXTS if ext not in VIDEO_EXTS)
"""Extensions of pictures that `open_video` does not take for clips."""
# Their names in Pillow
_STILL_FORMATS = ("JPEG", "BMP", "TIFF")

FrameTransform = Callable[["Image"], torch.Tensor]


class ClipReader:
    """Decodes frames of files at the size of the clips.

    Args:
        size: Scales and crops the frames.
        timeline: Maps positions to frames.
        channels: Number of channels of a clip.
        axes: Order of the axes in array files, as in `read_video`.
        read_fn: Reads files instead of `open_video`; None for none.
        square_pixels: As in `read_video`.

    Attributes:
        cache: Decoded files; None for none. `fill_cache` sets it.
    """

    def __init__(
        self,
        size: FrameSize,
        timeline: Timeline,
        channels: int,
        axes: str | None = None,
        read_fn: ReadFn | None = None,
        square_pixels: bool = True,
    ) -> None:
        self.size, self.timeline, self.channels = size, timeline, channels
        self.axes, self.read_fn, self.square_pixels = axes, read_fn, square_pixels
        self.cache: ClipCache | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How frames are chosen and scaled, as JSON values."""
        size, timeline = self.size, self.timeline
        chosen = {"frame_skip": timeline.frame_skip, "fps": timeline.fps}
        scaling = {"size": list(size.size), "fit": size.fit, "crop": size.crop}
        found = {"channels": self.channels, **chosen, **scaling, "filter": "bilinear, antialiased"}
        # only where it is used, so that settings of older versions compare equal
        return found if self.square_pixels else {**found, "square_pixels": False}

    @contextmanager
    def open(self, path: Path) -> Iterator[VideoReader]:
        """Opens a file or a folder of frames in a `with` statement.

        Raises:
            UnreadableVideoError: It is damaged or must not be read; also if that shows only within
                the statement.
        """
        is_still = path.suffix.lower().lstrip(".") in STILL_EXTS and not path.is_dir()
        with file_errors(path):
            if self.read_fn is not None:
                file: VideoReader = FunctionReader(path, self.read_fn, self.channels)
            elif is_still:
                file = PictureReader(path, self.channels, _STILL_FORMATS)
            else:
                options: dict[str, Any] = {"axes": self.axes, "square_pixels": self.square_pixels}
                file = open_video(path, channels=self.channels, **options)
            with file:
                yield file

    def span(self, clip: Clip) -> range:
        """The positions of a clip on its file's timeline.

        Raises:
            UnreadableVideoError: The file is damaged, or has no frame there.
        """
        if self.cache is not None and clip.is_whole:
            return range(self.cache[clip.path].num_frames)
        with self.open(clip.path) as file:
            return self.timeline.between(file, clip.start, clip.end)

    def frame_numbers(self, path: Path, positions: Sequence[int]) -> list[int]:
        """The frames of a file at these positions of its timeline."""
        if self.timeline.fps is None:
            return [position * self.timeline.frame_skip for position in positions]
        with self.open(path) as file:
            return self.timeline.frames(file, positions)

    def read(
        self,
        clip: Clip,
        span: range | None,
        choose: Callable[[range], Sequence[int]],
        transform: FrameTransform | None = None,
    ) -> tuple[torch.Tensor, Sequence[int]]:
        """Reads the frames of a clip.

        Args:
            clip: The file.
            span: Positions to choose from, which may exceed the file's end; None for those of the
                clip, which are looked up in the opened file.
            choose: Gives the positions to read, in ascending order; they may repeat.
            transform: As for `decode`.

        Returns:
            The frames, as from `decode`, and their positions.

        Raises:
            UnreadableVideoError: As `decode`.
            ValueError: Both a transform and a cache are used.
        """
        if self.cache is None:
            with self.open(clip.path) as file:
                if span is None:
                    span = self.timeline.between(file, clip.start, clip.end)
                positions = choose(span)
                video = self.decode(file, self.timeline.frames(file, positions), transform)
            return video, positions[: video.shape[1]]
        if transform is not None:
            raise ValueError(
                f"Dataset.transform must stay as it is with a cache, got {transform!r}; leave one "
                "of cache and transform out"
            )
        positions = choose(self.span(clip) if span is None else span)
        pixels = torch.from_numpy(self.cache[clip.path].frames(positions))
        return pixels.permute(3, 0, 1, 2), positions[: len(pixels)]

    def decode(
        self, file: VideoReader, frames: Sequence[int], transform: FrameTransform | None = None
    ) -> torch.Tensor:
        """Decodes frames of an opened file.

        Args:
            file: The file.
            frames: Their numbers in ascending order; they may repeat.
            transform: Converts a Pillow picture to a tensor; None for `size`.

        Returns:
            `(c, f, h, w)`, with fewer frames if the file ends before. Uint8 for 8-bit files. `h`
            and `w` are larger than the clip's before a random crop, smaller before padding.

        Raises:
            UnreadableVideoError: The file is damaged, has none of the frames, or holds NaN or
                infinite values.
        """
        once = sorted(set(frames))
        if isinstance(file, (ArrayReader, FunctionReader)):
            video = self.size.read_array(finite(file.array(once), file.path))
        elif file.is_array:
            # frame by frame, as they may differ in size
            there = [frame for frame in once if frame < file.num_frames]
            video = _stack([self._read_frame(file, frame) for frame in there], file.path)
        elif transform is not None:
            pictures = [transform(picture) for picture in file.pictures(once)]
            video = torch.stack(pictures, dim=1) if pictures else torch.empty(0, 0)
            finite(video, file.path)
        else:
            # map: a comprehension would keep a picture until the next is decoded
            video = _stack(list(map(self.size.read, file.pictures(once))), file.path)
        if not video.shape[1]:
            expected = f"a frame with the number {min(frames, default=0)}"
            raise unreadable(file.path, expected, "a file that ends before", "correct its start")
        if len(once) < len(frames):
            places = {frame: place for place, frame in enumerate(once[: video.shape[1]])}
            video = video[:, [places[frame] for frame in frames if frame in places]]
        return video

    def _read_frame(self, file: VideoReader, frame: int) -> np.ndarray:
        """Reads and scales one frame of numbers, `(h, w, c)`."""
        numbers = finite(file.array([frame]), file.path)
        return self.size.read_array(numbers)[:, 0].movedim(0, -1).numpy()

    def fill_cache(
        self, folder: str | os.PathLike[str], paths: Sequence[Path], limit: int | None
    ) -> None:
        """Decodes all files that the cache lacks.

        Args:
            folder: The cache; made if missing.
            paths: The files.
            limit: Number of positions to cache of each file; None for all.
        """
        settings = {**self.settings, "decoder": _DECODER, "axes": self.axes, "limit": limit}

        def decode(path: Path) -> np.ndarray:
            with self.open(path) as file:
                length = self.timeline.length(file) if limit is None else limit
                video = self.decode(file, self.timeline.frames(file, range(length)))
            return video.permute(1, 2, 3, 0).numpy()

        self.cache = ClipCache(folder, settings)
        self.cache.build(list(dict.fromkeys(paths)), decode)


def _stack(arrays: list[np.ndarray], path: Path) -> torch.Tensor:
    """Stacks frames `(h, w, c)` to `(c, f, h, w)`, channels last in memory."""
    if not arrays:
        return torch.empty(0, 0)
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({array.shape[:2] for array in arrays})
        advice = "use fit='stretch', or fit='cover' and crop='center', or remove the file"
        raise unreadable(path, "frames of one shape", f"(height, width) {shapes}", advice)
    return torch.from_numpy(np.stack(arrays)).permute(3, 0, 1, 2)
