"""First step of the path: frames of a gif, webp or png."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.gif_format import gif_durations
from video_diffusion_pytorch.data.formats.picture_mode import (
    ToTensor,
    stored_channels,
    to_mode,
)
from video_diffusion_pytorch.data.formats.png_format import png_durations
from video_diffusion_pytorch.data.formats.video_reader import (
    CHANNELS_TO_MODE,
    FrameTimes,
    VideoReader,
    check_indices,
    closed_reader,
    mode_of,
)
from video_diffusion_pytorch.data.formats.webp_format import webp_durations

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CHANNELS_TO_MODE", "PictureReader", "ToTensor", "gif_to_tensor", "seek_all_images"]


_TO_TENSOR = ToTensor()


def seek_all_images(img: Image, channels: int = 3) -> Iterator[Image]:
    """Go through all frames of an opened picture file.

    Args:
        img: An opened Pillow image; its read position moves along.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).

    Returns:
        An iterator over the frames, each converted to that many channels.

    Raises:
        ValueError: `channels` is none of 1, 3, 4.
    """
    mode = mode_of(channels)

    def frames() -> Iterator[Image]:
        index = 0
        while True:
            try:
                img.seek(index)
            except EOFError:
                return
            yield img.convert(mode)
            index += 1

    return frames()


def gif_to_tensor(
    path: str | os.PathLike[str],
    channels: int = 3,
    transform: Callable[[Image], torch.Tensor] = _TO_TENSOR,
) -> torch.Tensor:
    """Read a gif (or any animation that Pillow knows: webp, apng) into a clip.

    Args:
        path: The file.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).
        transform: Called with each frame; gives its `(c, h, w)` tensor.

    Returns:
        `(c, f, h, w)`; with the default `transform` float32 in [0, 1].

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, cut short, damaged, not a picture, or larger than
            Pillow's limit against decompression bombs.
        ValueError: `channels` is none of 1, 3, 4.

    Differs from the reference: a file that was cut short is an error, not a shorter clip.
    """
    with PictureReader(Path(path), channels, formats=None) as reader:
        frames = [transform(frame) for frame in reader.pictures(range(reader.num_frames))]
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        raise UnreadableVideoError(
            f"cannot make a clip of {path}: all frames must have one shape, got {shapes}; "
            "give a transform that resizes them, or remove the file"
        )
    return torch.stack(frames, dim=1)


PICTURE_FORMATS = ("GIF", "PNG", "WEBP")
"""What Pillow may take a file for that is opened by the name of its ending."""

_EXPECTED = "a complete gif or other animation"
_MAX_FILE_BYTES = 2**31
# Frames that are decoded between two changes of the warnings' filters, which take a while
_AT_ONCE = 8
_SIGNATURES: tuple[tuple[bytes, Callable[[bytes], list[float] | None], str], ...] = (
    (b"GIF87a", gif_durations, "gif"),
    (b"GIF89a", gif_durations, "gif"),
    (b"\x89PNG\r\n\x1a\n", png_durations, "png"),
    (b"RIFF", webp_durations, "webp"),
)


class PictureReader(VideoReader):
    """Frames of one picture file, decoded by Pillow.

    Args:
        path: The file; it is read once, and not kept open.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the file stores.
        formats: Pillow's names of the formats that the file may have; None for all.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, cut short, damaged, not a picture, or larger than
            Pillow's limit against decompression bombs.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(
        self,
        path: Path,
        channels: int | None = None,
        formats: tuple[str, ...] | None = PICTURE_FORMATS,
    ) -> None:
        if channels is not None:
            mode_of(channels)
        content = _read_all(path)
        self._durations = _durations(path, content)
        self._open = functools.partial(_open, path, content, formats)
        self._image = self._open()
        self._is_closed = False
        super().__init__(path, stored_channels(self._image) if channels is None else channels)
        # A png may begin with a picture for viewers that know no animations
        self._first = 1 if getattr(self._image, "default_image", False) else 0
        self._clock = FrameTimes(self._durations or [])

    @property
    def num_frames(self) -> int:
        """How many frames the file has."""
        if self._durations is None:
            try:
                with _pillows_warnings():
                    return getattr(self._image, "n_frames", 1)
            except Exception as error:
                raise _undecodable(self.path, error) from error
        return len(self._durations) or 1

    @property
    def fps(self) -> float | None:
        """Average frames per second; None for a still picture."""
        return self._clock.fps

    @property
    def times(self) -> Sequence[float] | None:
        """When each frame is shown, in seconds; None for a still picture."""
        return self._clock.times

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode frames, as `VideoReader.pictures` says."""
        return self._decode(check_indices(indices))

    def _decode(self, indices: Sequence[int] | range) -> Iterator[Image]:
        total = self.num_frames
        within = [index for index in indices[:total] if index < total]
        for start in range(0, len(within), _AT_ONCE):
            frames, error = self._some_frames(within[start : start + _AT_ONCE])
            for frame in frames:
                yield frame
                if self._is_closed:
                    raise closed_reader(self.path)
            if error is not None:
                raise _undecodable(self.path, error) from error

    def _some_frames(self, indices: Sequence[int]) -> tuple[list[Image], Exception | None]:
        """Decode frames up to the first that cannot be, and give its error."""
        if self._is_closed:
            raise closed_reader(self.path)
        frames: list[Image] = []
        try:
            with _pillows_warnings():
                for index in indices:
                    frames.append(self._frame(index))
        except Exception as error:  # Pillow's decoders raise almost every kind of error
            return frames, error
        return frames, None

    def _frame(self, index: int) -> Image:
        position = self._first + index
        if self._image.tell() > position:  # Pillow does not rewind every kind of file
            self._image = self._open()
        self._image.seek(position)
        return to_mode(self._image, CHANNELS_TO_MODE[self.channels])

    def close(self) -> None:
        """Let go of the picture."""
        self._is_closed = True
        self._image.close()


def _read_all(path: Path) -> bytes:
    try:
        with regular_file(path).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read() if size <= _MAX_FILE_BYTES else b""
    except FileNotFoundError as error:
        raise missing_file(path) from error
    if size > _MAX_FILE_BYTES:
        raise unreadable(
            path,
            _EXPECTED,
            f"a file of {size} bytes",
            "store so long a video as mp4, or as a folder of numbered frames",
        )
    if not content:
        raise unreadable(path, _EXPECTED, "an empty file")
    return content


def _durations(path: Path, content: bytes) -> list[float] | None:
    """Check that the file is complete; give None for a format whose frames Pillow has to count."""
    for signature, durations_of, name in _SIGNATURES:
        if content.startswith(signature):
            durations = durations_of(content) if len(content) >= 12 else None
            if durations is None:
                raise unreadable(path, _EXPECTED, f"a {name} cut short after {len(content)} bytes")
            return durations
    return None


def _open(path: Path, content: bytes, formats: tuple[str, ...] | None) -> Image:
    from PIL import Image as pillow

    try:
        with _pillows_warnings():
            return pillow.open(BytesIO(content), formats=formats)
    except Exception as error:
        raise _undecodable(path, error) from error


@contextlib.contextmanager
def _pillows_warnings() -> Iterator[None]:
    """Make an error of what Pillow warns of only: a picture of one to two times its limit."""
    from PIL import Image as pillow

    with warnings.catch_warnings():
        # Notes on damaged metadata are nothing that a caller could do anything about
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", pillow.DecompressionBombWarning)
        yield


def _undecodable(path: Path, error: Exception) -> UnreadableVideoError:
    from PIL import Image as pillow

    if isinstance(error, pillow.UnidentifiedImageError):
        return unreadable(path, _EXPECTED, "bytes that Pillow does not take for a picture")
    if isinstance(error, (pillow.DecompressionBombError, pillow.DecompressionBombWarning)):
        got = f"a possible decompression bomb ({error})"
        return unreadable(path, _EXPECTED, got, "if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS")
    return unreadable(path, _EXPECTED, f"{type(error).__name__}: {error}")
