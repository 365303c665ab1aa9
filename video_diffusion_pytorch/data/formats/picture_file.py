"""First step of the path: frames of a gif, webp or png."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats import animation
from video_diffusion_pytorch.data.formats.animation import (
    check_pixels,
    composed,
    scale_transparency,
)
from video_diffusion_pytorch.data.formats.gif_format import (
    gif_durations,
    gif_patches,
    is_opaque_gif,
)
from video_diffusion_pytorch.data.formats.picture_mode import (
    ToTensor,
    is_deep,
    stored_channels,
    stored_numbers,
    to_mode,
    upright,
)
from video_diffusion_pytorch.data.formats.png_format import png_durations, png_patches
from video_diffusion_pytorch.data.formats.tiff_format import tiff_pages
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
        An iterator over the frames, each converted to that many channels; with 1 or 3, what is
        transparent is black.

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
            yield to_mode(img, mode)
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

    Differs from the reference: a file that was cut short is an error, not a shorter clip; what is
    transparent is black where `channels` is 1 or 3.
    """
    with PictureReader(Path(path), channels, formats=None) as reader:
        if reader.is_array:
            got = "numbers of more than 8 bits"
            raise unreadable(path, "pictures of 8 bits", got, "read them with read_video")
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
_SIGNATURES: tuple[tuple[bytes, Callable[[bytes], list[float] | None], str], ...] = (
    (b"GIF87a", gif_durations, "gif"),
    (b"GIF89a", gif_durations, "gif"),
    (b"\x89PNG\r\n\x1a\n", png_durations, "png"),
    (b"RIFF", webp_durations, "webp"),
)
_AS_NPY = "store its numbers as .npy"
_Frame = TypeVar("_Frame")
# Seconds that browsers and FFmpeg show a frame for that states no time, and what counts as none
_DEFAULT_SECONDS = 0.1
_LEAST_SECONDS = {"gif": 0.02}


class PictureReader(VideoReader):
    """Frames of one picture file, decoded by Pillow.

    They are turned as EXIF data say. Without opacity what is transparent is black. Pictures of more
    than 8 bits are given by `array`, as the numbers that they store.

    Args:
        path: The file; it is read once, and not kept open.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the file stores.
        formats: Pillow's names of the formats that the file may have; None for all.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, cut short, damaged, not a picture, or of more
            pixels than `animation.MAX_PIXELS` or Pillow's limit against decompression bombs.
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
        self._content = _read_all(path)
        durations = _durations(path, self._content)
        self._open = functools.partial(_open, path, self._content, formats)
        self._image = self._open()
        self._is_closed = False
        super().__init__(path, stored_channels(self._image) if channels is None else channels)
        self.is_array = is_deep(self._image, self._content)
        if durations and self.is_array:
            got = "an animation of more than 8 bits"
            raise unreadable(path, _EXPECTED, got, "store it as numbered stills, or as .npy")
        self._clock = FrameTimes(durations or [])
        self._pages = self._find_pages(durations)
        self._page_read = -1
        # A gif or an animated png is composed of patches, from the first to the one that is wanted
        patches_of = {"GIF": gif_patches, "PNG": png_patches}.get(self._image.format or "")
        is_simple = self._image.format == "GIF" and is_opaque_gif(self._content)
        self._patches_of = patches_of if durations and not is_simple else None
        self._frames: Iterator[Image] = iter(())
        self._next = 0

    def _find_pages(self, durations: list[float] | None) -> Sequence[int]:
        """Where Pillow has the frames."""
        if durations is not None:
            return range(len(durations) or 1)
        if self._image.format == "TIFF":
            pages = tiff_pages(self._content)
            if pages is None:
                got = f"a tif cut short after {len(self._content)} bytes"
                raise unreadable(self.path, _EXPECTED, got)
            return pages
        if self._image.format == "MPO":  # the others are previews, depths or gains
            return range(1)
        try:
            with _pillows_warnings():
                return range(getattr(self._image, "n_frames", 1))
        except Exception as error:
            raise _undecodable(self.path, error) from error

    @property
    def num_frames(self) -> int:
        """How many frames the file has."""
        return len(self._pages)

    @property
    def fps(self) -> float | None:
        """Average frames per second; None for a still picture."""
        return self._clock.fps

    @property
    def times(self) -> Sequence[float] | None:
        """When each frame is shown, in seconds; None for a still picture."""
        return self._clock.times

    @property
    def end(self) -> float | None:
        """When the last frame stops being shown, in seconds; None for a still picture."""
        return self._clock.end

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode frames, as `VideoReader.pictures` says."""
        if self.is_array:
            return super().pictures(indices)
        return self._decode(check_indices(indices), self._picture)

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """Decode frames of more than 8 bits, as `VideoReader.array` says."""
        if not self.is_array:
            return super().array(indices)
        frames = list(self._decode(check_indices(indices), self._numbers))
        return stack_frames(frames, self.channels, self.path)

    def _decode(
        self, indices: Sequence[int] | range, decode: Callable[[int], _Frame]
    ) -> Iterator[_Frame]:
        # It takes as long as decoding a small frame, and of a gif Pillow warns of nothing
        quiet = contextlib.nullcontext if self._image.format == "GIF" else _pillows_warnings
        for index in indices[: self.num_frames]:
            if index >= self.num_frames:
                return
            if self._is_closed:
                raise closed_reader(self.path)
            try:
                with quiet():
                    frame = decode(index)
            except Exception as error:  # Pillow's decoders raise almost every kind of error
                raise _undecodable(self.path, error) from error
            yield frame
            del frame  # large ones may not fit into memory twice

    def _picture(self, index: int) -> Image:
        if self._patches_of is not None:
            if index < self._next:
                self._next = 0
            if not self._next:
                patches = self._patches_of(self._content)
                self._frames = composed(self._content, patches, self._image.size)
            behind, self._next = index - self._next, 0  # from the beginning again after an error
            image = next(itertools.islice(self._frames, behind, None))
            self._next = index + 1
            if "exif" in self._image.info:
                image = upright(image, self._image)
        else:
            image = self._page(index)
            if image.format != "GIF":  # which has no EXIF data
                image.load()
                image = upright(image)
        return to_mode(image, CHANNELS_TO_MODE[self.channels])

    def _numbers(self, index: int) -> torch.Tensor:
        return stored_numbers(self._page(index), self._content, self.channels)

    def _page(self, index: int) -> Image:
        page = self._pages[index]
        if page <= self._page_read:  # Pillow does not rewind every kind of file
            self._image = self._open()
        self._image.seek(page)
        self._page_read = page
        check_pixels(self._image.size)
        if is_deep(self._image, self._content) != self.is_array:
            got = f"pages of 8 bits and of more, such as page {index + 1}"
            raise unreadable(self.path, "pages of one kind", got, "store them as two files")
        return self._image

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
            if len(durations) < 2:
                return durations  # a picture that does not move
            least = _LEAST_SECONDS.get(name, 1e-9)
            return [_DEFAULT_SECONDS if seconds < least else seconds for seconds in durations]
    return None


def _open(path: Path, content: bytes, formats: tuple[str, ...] | None) -> Image:
    from PIL import Image as pillow

    try:
        with _pillows_warnings():
            image = pillow.open(BytesIO(content), formats=formats)
            check_pixels(image.size)
            scale_transparency(image, content)
            return image
    except Exception as error:
        is_tif = content[:2] in (b"II", b"MM") and "TIFF" in (formats or ("TIFF",))
        if is_tif and isinstance(error, pillow.UnidentifiedImageError):
            got = "one of another kind, or a damaged one"
            raise unreadable(path, "a tif of a kind that Pillow knows", got, _AS_NPY) from error
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

    if isinstance(error, UnreadableVideoError):
        return error
    if isinstance(error, pillow.UnidentifiedImageError):
        return unreadable(path, _EXPECTED, "bytes that Pillow does not take for a picture")
    if isinstance(error, (pillow.DecompressionBombError, pillow.DecompressionBombWarning)):
        got = f"a possible decompression bomb ({error})"
        advice = "make it smaller, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS and "
        return unreadable(path, _EXPECTED, got, f"{advice}{animation.__name__}.MAX_PIXELS")
    return unreadable(path, _EXPECTED, f"{type(error).__name__}: {error}")


def stack_frames(frames: Sequence[torch.Tensor], channels: int, path: Path) -> torch.Tensor:
    """Make one tensor `(c, f, h, w)` of frames `(c, h, w)`.

    Raises:
        UnreadableVideoError: They have different sizes.
    """
    if not frames:
        return torch.empty(channels, 0, 0, 0)
    shapes = sorted({tuple(frame.shape) for frame in frames})
    if len(shapes) > 1:
        got = f"(channels, height, width) {shapes}"
        raise unreadable(path, "frames of one size", got, "bring them to one size first")
    # of a large one no copy
    return frames[0][:, None] if len(frames) == 1 else torch.stack(list(frames), dim=1)
