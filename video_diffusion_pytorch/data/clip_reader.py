"""Second step of the path: the frames of one clip, out of a file or out of the cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion_pytorch.data.cache import CachedClip, ClipCache
from video_diffusion_pytorch.data.errors import UnreadableVideoError, file_errors
from video_diffusion_pytorch.data.finite import finite
from video_diffusion_pytorch.data.formats.array_file import ArrayReader
from video_diffusion_pytorch.data.formats.user_reader import FunctionReader, ReadFn
from video_diffusion_pytorch.data.formats.video_reader import VideoReader
from video_diffusion_pytorch.data.frame_size import FrameSize
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.timeline import Timeline
from video_diffusion_pytorch.data.video_file import open_video

if TYPE_CHECKING:
    from PIL.Image import Image

# To be raised when the decoders give other pixels than before, or read more files: caches of
# another number are not used
_DECODER = 3

FrameTransform = Callable[["Image"], torch.Tensor]


class ClipReader:
    """Decodes frames of files, at the size of the clips.

    Args:
        size: Scales the frames.
        timeline: Says which frames of a file are seen.
        channels: Of the clips.
        axes: Order of the axes in array files, as in `read_video`.
        read_fn: Reads files in the place of `open_video`; None for none.
        square_pixels: As in `read_video`.

    Attributes:
        cache: Where decoded files are; None for none. `fill_cache` sets it.
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
        self._limit: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How frames are chosen and scaled, in plain values."""
        size, timeline = self.size, self.timeline
        scaling: dict[str, Any] = {"size": list(size.size), "fit": size.fit, "crop": size.crop}
        chosen = {"frame_skip": timeline.frame_skip, "fps": timeline.fps}
        scaling["filter"] = "bilinear, antialiased"
        if not self.square_pixels:
            scaling["square_pixels"] = False
        return {"channels": self.channels, **chosen, **scaling}

    @contextmanager
    def open(self, path: Path) -> Iterator[VideoReader]:
        """Opens a file or a folder of frames, for as long as a `with` statement lasts.

        Raises:
            UnreadableVideoError: It is damaged, or the system lets nobody read it; also where that
                comes out within the statement.
        """
        with file_errors(path), self._open(path) as file:
            yield file

    def _open(self, path: Path) -> VideoReader:
        if self.read_fn is not None:
            return FunctionReader(path, self.read_fn, self.channels)
        return open_video(
            path, channels=self.channels, axes=self.axes, square_pixels=self.square_pixels
        )

    def span(self, clip: Clip) -> range | None:
        """The positions of the file's timeline that a clip may be cut from.

        None for a file that cannot be read: reading a clip of it will say what is wrong.
        """
        try:
            if self.cache is not None and clip.is_whole:
                return range(self.cache[clip.path].num_frames)
            with self.open(clip.path) as file:
                return self.timeline.between(file, clip.start, clip.end)
        except UnreadableVideoError:
            return None

    def frame_numbers(self, path: Path, positions: Sequence[int]) -> list[int]:
        """The frames of a file that are at these positions of its timeline."""
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
            span: Positions of the timeline to choose from, which may run past the file's end; None
                for those of the clip.
            choose: Gives those to read; one may follow on itself.
            transform: As in `decode`.

        Returns:
            As `decode`, and the positions.

        Raises:
            UnreadableVideoError: As `decode`.
            ValueError: There is a transform as well as a cache.
        """
        stored = None
        if self.cache is not None:
            if transform is not None:
                raise ValueError(
                    "a cache must hold what the dataset's own transform gives, got another one in "
                    f"Dataset.transform, {transform!r}; leave one of cache and transform out"
                )
            stored = self.cache[clip.path]
            if span is None and clip.is_whole:
                span = range(stored.num_frames)
        if stored is not None and span is not None:
            return _frames_of(stored, choose(span))
        with self.open(clip.path) as file:
            if span is None:
                span = self.timeline.between(file, clip.start, clip.end)
            positions = choose(span)
            if stored is not None:
                return _frames_of(stored, positions)
            video = self.decode(file, self.timeline.frames(file, positions), transform)
            return video, positions[: video.shape[1]]

    def decode(
        self, file: VideoReader, frames: Sequence[int], transform: FrameTransform | None = None
    ) -> torch.Tensor:
        """Decodes frames of an opened file.

        Args:
            file: The file.
            frames: Their numbers; a number may follow on itself.
            transform: What to make a frame's tensor with; None for the reader's own way.

        Returns:
            `(c, f, h, w)`, fewer frames where the file ends before. Uint8 for 8-bit files; `h` and
            `w` are those of the clip, but larger before a random crop, and smaller where they will
            be filled up.

        Raises:
            UnreadableVideoError: The file is damaged, has not one frame, or holds what is no finite
                number.
        """
        once = sorted(set(frames))
        if isinstance(file, (ArrayReader, FunctionReader)):
            video = self.size.read_array(finite(file.array(once), file.path))
        elif file.is_array:
            video = _stack(list(self._numbers(file, once)), file.path)
        elif transform is not None:
            pictures = [transform(picture) for picture in file.pictures(once)]
            video = torch.stack(pictures, dim=1) if pictures else torch.empty(0, 0)
            finite(video, file.path)
        else:
            # map: a comprehension keeps each picture until there is the next
            video = _stack(list(map(self.size.read, file.pictures(once))), file.path)
        if not video.shape[1]:
            raise UnreadableVideoError(
                f"cannot make a clip of {file.path}: expected a frame with the number "
                f"{frames[0] if len(frames) else 0}, got a file that ends before; correct the "
                "part that is asked for, or remove the file"
            )
        if len(once) < len(frames):
            places = {frame: place for place, frame in enumerate(once[: video.shape[1]])}
            kept = [places[frame] for frame in frames if frame in places]
            video = video[:, kept]
        return video

    def _numbers(self, file: VideoReader, frames: Sequence[int]) -> Iterator[np.ndarray]:
        for frame in frames:  # one by one: whole frames of floats take much memory
            numbers = finite(file.array([frame]), file.path)
            if not numbers.shape[1]:
                return
            yield self.size.read_array(numbers)[:, 0].permute(1, 2, 0).numpy()

    # the cache

    def fill_cache(
        self, folder: str | os.PathLike[str], paths: Iterable[Path], limit: int | None
    ) -> None:
        """Decodes all files into a cache, but for those that are there already.

        Args:
            folder: Where the cache is; made if missing.
            paths: The files.
            limit: Number of positions of the timeline, from the first on, that are wanted of each
                file; None for all.

        Raises:
            ValueError: The clips are read by a function, whose results a cache cannot know.
        """
        if self.read_fn is not None:
            raise ValueError(
                "a cache must know what makes a clip, got read_fn, whose code may change; leave "
                "one of cache and read_fn out, or write what read_fn gives into .npy files"
            )
        settings = {
            "decoder": _DECODER,
            "size": list(self.size.size),
            "fit": self.size.fit,
            "is_cropped": self.size.is_cut_at_once,
            "channels": self.channels,
            "axes": self.axes,
            "square_pixels": self.square_pixels,
            "frame_skip": self.timeline.frame_skip,
            "fps": self.timeline.fps,
            "limit": limit,
        }
        self._limit = limit
        cache = ClipCache(folder, settings)
        cache.build(list(dict.fromkeys(paths)), self._decode_for_cache)
        self.cache = cache

    def _decode_for_cache(self, path: Path) -> np.ndarray:
        with self.open(path) as file:
            limit = self.timeline.length(file) if self._limit is None else self._limit
            video = self.decode(file, self.timeline.frames(file, range(limit)))
        return np.ascontiguousarray(video.permute(1, 2, 3, 0).numpy())


def _frames_of(stored: CachedClip, positions: Sequence[int]) -> tuple[torch.Tensor, Sequence[int]]:
    pixels = torch.from_numpy(stored.frames(positions))
    return pixels.permute(3, 0, 1, 2), positions[: len(pixels)]


def _stack(arrays: list[np.ndarray], path: Path) -> torch.Tensor:
    """Frames `(h, w, c)` as `(c, f, h, w)`, channels last in memory."""
    if not arrays:
        return torch.empty(0, 0)
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({array.shape[:2] for array in arrays})
        raise UnreadableVideoError(
            f"cannot make a clip of {path}: all frames must have one shape to be cut or filled up "
            f"alike, got {shapes} (height, width); use fit='stretch', or fit='cover' and "
            "crop='center', or remove the file"
        )
    return torch.from_numpy(np.stack(arrays)).permute(3, 0, 1, 2)
