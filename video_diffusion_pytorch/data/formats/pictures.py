"""Pictures: stills and animations, decoded by Pillow."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError, unreadable
from video_diffusion_pytorch.data.formats import animations
from video_diffusion_pytorch.data.formats.readers import (
    CHANNELS_TO_MODE,
    Clock,
    VideoReader,
    check_sizes,
    family_of_bytes,
    mode_of,
    open_file,
)

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose


_NEW_SUBFILE_TYPE = 254
# Bits of that tag: a reduced version of another page, a mask
_NO_PICTURE = 0b101


def tiff_pages(content: bytes) -> list[int] | None:
    r"""Walks the directories of a tif (revision 6.0, section 2) or BigTIFF, one per page.

    Args:
        content: The whole file, of at least its signature.

    Returns:
        The numbers of the pages that are no thumbnails or masks; None if the bytes end within a
        directory.

    Example:
        >>> tiff_pages(b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 256, 3, 1, 9, 0, 0))
        [0]
    """
    order = "<" if content[:2] == b"II" else ">"
    is_big = 43 in content[2:4]
    count, offset, entry_size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    head, tail = struct.Struct(order + count), struct.Struct(order + offset)
    pages: list[int] = []
    seen: set[int] = set()
    try:
        position = tail.unpack_from(content, 8 if is_big else 4)[0]
        while position and position not in seen:
            entries = position + head.size
            end = entries + entry_size * head.unpack_from(content, position)[0]
            if not _kind(content[entries:end], entry_size, order) & _NO_PICTURE:
                pages.append(len(seen))
            seen.add(position)
            position = tail.unpack_from(content, end)[0]
    except (struct.error, OverflowError):
        return None
    return pages or [0]


def _kind(entries: bytes, entry_size: int, order: str) -> int:
    """The value of the tag NewSubfileType; 0 without it."""
    for start in range(0, len(entries), entry_size):
        tag, kind = struct.unpack_from(order + "HH", entries, start)
        if tag >= _NEW_SUBFILE_TYPE:
            value = order + ("H" if kind == 3 else "I")
            at = start + entry_size - (8 if entry_size == 20 else 4)
            return struct.unpack_from(value, entries, at)[0] if tag == _NEW_SUBFILE_TYPE else 0
    return 0


# Tags of EXIF and tif, and the sample format of signed integers
_ORIENTATION, _BITS, _COMPRESSION, _SAMPLE_FORMAT, _SIGNED = 274, 258, 259, 339, 2
# Orientation in EXIF -> member of Pillow's Transpose
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_OPAQUE = 65535.0
_LUMA = (0.299, 0.587, 0.114)
_ONLY_AS_NPY = "which are read only if they are stored as .npy"


def stored_channels(image: Image) -> int:
    """Number of channels of a picture's pixels: 1, 3, or 4 with opacity.

    A transparent colour of a palette does not count: most gifs use it for unchanged pixels.

    Example:
        >>> from PIL import Image
        >>> [stored_channels(Image.new(mode, (1, 1))) for mode in ("I;16", "P", "LA")]
        [1, 3, 4]
    """
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return 4
    return 1 if image.mode in ("1", "L", "F") or image.mode.startswith("I") else 3


def to_mode(image: Image, mode: str) -> Image:
    """Converts a picture of 8 bits; transparent pixels become black if the mode has no opacity.

    Args:
        image: A picture of 8 bits or less per channel.
        mode: L, RGB or RGBA.

    Returns:
        A new picture, even if nothing is to be converted.

    Raises:
        ValueError: The picture holds numbers of more bits.

    Example:
        >>> from PIL import Image
        >>> to_mode(Image.new("RGBA", (1, 1), (200, 100, 0, 127)), "RGB").getpixel((0, 0))
        (100, 50, 0)
    """
    if image.mode == "F" or image.mode.startswith("I"):
        raise ValueError(
            f"the picture's mode must be one of 8 bits per channel, got {image.mode!r}; read its "
            "numbers with read_video"
        )
    if not image.has_transparency_data:
        return image.convert(mode)
    image = image.convert("LA") if image.mode == "La" else image
    if mode == "RGBA":
        return image.convert(mode)
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    from PIL import Image as pillow

    black = pillow.new("RGB", image.size)
    black.paste(image, mask=image)
    return black if mode == "RGB" else black.convert(mode)


def upright(image: Image, source: Image | None = None) -> Image:
    """Rotates a decoded picture according to its EXIF data; damaged data are ignored.

    Pillow rotates a tif by itself, and removes the tag.

    Args:
        image: The picture.
        source: The opened file with the EXIF data; None for the picture itself.
    """
    turn = _turn(image if source is None else source)
    return image if turn is None else image.transpose(turn)


def _turn(image: Image) -> Transpose | None:
    try:
        name = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parser raises almost every kind of error
        return None
    if name is None:
        return None
    from PIL.Image import Transpose

    return Transpose[name]


def is_deep(image: Image, content: bytes) -> bool:
    """Whether a picture's channels have more than 8 bits, or signs.

    Args:
        image: The opened picture, at its page.
        content: The whole file: Pillow opens 16-bit colours as 8-bit ones.
    """
    if image.format == "PNG":
        return content[24] > 8
    tags = getattr(image, "tag_v2", {})
    has_signs = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    return max(tags.get(_BITS, (1,))) > 8 or has_signs or image.mode[0] in "IF"


def stored_numbers(image: Image, content: bytes, channels: int) -> torch.Tensor:
    """The numbers of a picture of more than 8 bits.

    Args:
        image: The opened picture, at its page.
        content: The whole file.
        channels: 1, 3 or 4, as for `with_channels`; opaque is 65535.

    Returns:
        `(channels, h, w)` float32.

    Raises:
        ValueError: The picture is of a kind that is not decoded exactly, or `channels` is 4, and
            its numbers have no opacity.
    """
    tags = getattr(image, "tag_v2", {})
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    is_packed = tags.get(_COMPRESSION, 1) != 1
    if image.mode in ("I", "F") and content[:2] == b"MM" and is_packed:
        # Pillow 12 swaps their bytes
        raise ValueError(f"compressed big-endian numbers of mode {image.mode!r}, {_ONLY_AS_NPY}")
    turn, page = _turn(image), image.tell()
    image.load()  # Pillow checks for damage, even if it does not keep all bits
    if image.mode in ("RGB", "RGBA"):
        stored = _sixteen_bit_colours(image, content, page, turn)
    elif image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise ValueError(f"numbers of more than 8 bits of mode {image.mode!r}, {_ONLY_AS_NPY}")
    else:
        # Pillow has rotated a tif already
        stored = np.asarray(image if image.format == "TIFF" else upright(image))[None]
        if image.mode == "L":
            stored = stored.view(np.int8)
        elif image.mode == "I" and tags and not signed:
            stored = stored.view(np.uint32)
    has_most = image.format == "PNG" or stored.dtype in (">u2", "<u2")
    values = torch.from_numpy(stored.astype(np.float32))
    if image.mode.startswith("I;16") and "transparency" in image.info:
        opaque = values != float(image.info["transparency"])
        values = torch.cat((values, opaque * _OPAQUE))
    if channels == 4 and not has_most:
        raise ValueError(f"numbers of mode {image.mode!r} without opacity; set channels=1")
    return with_channels(values, channels, _OPAQUE)


def with_channels(values: torch.Tensor, channels: int, most: float) -> torch.Tensor:
    """Converts values of more than 8 bits to another number of channels.

    Args:
        values: `(c, h, w)` floats with 1 to 4 channels: grey or RGB, perhaps followed by opacity.
        channels: 1 (grey, of colours 0.299 red + 0.587 green + 0.114 blue), 3 (colour) or 4 (colour
            and opacity). Without opacity the colours are multiplied by it, so that transparent
            pixels become 0.
        most: The value that means opaque.

    Returns:
        `(channels, h, w)`.
    """
    has_opacity = len(values) in (2, 4)
    colours = values[:-1] if has_opacity else values
    if channels == 4:
        opacity = values[-1:] if has_opacity else torch.full_like(values[:1], most)
        return torch.cat((colours.expand(3, -1, -1), opacity))
    if has_opacity:
        colours = colours * (values[-1:] / most)
    if channels == 1 and len(colours) == 3:
        colours = (colours * torch.tensor(_LUMA, device="cpu").view(3, 1, 1)).sum(0, keepdim=True)
    return colours.expand(channels, -1, -1)


def _sixteen_bit_colours(
    image: Image, content: bytes, page: int, turn: Transpose | None
) -> np.ndarray:
    """Decodes by FFmpeg what Pillow reduces to 8 bits: `(c, h, w)` uint16."""
    import av
    from PIL import Image as pillow

    decoder = av.CodecContext.create("png" if image.format == "PNG" else "tiff", "r")
    if image.format == "TIFF":
        decoder.options = {"page": str(page + 1)}
    try:
        (frame,) = decoder.decode(av.Packet(content))
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"16-bit colours that FFmpeg cannot decode, {_ONLY_AS_NPY}") from error
    name, order = frame.format.name[:-2], ">u2" if frame.format.is_big_endian else "<u2"
    channels = {"ya16": 2, "rgb48": 3, "rgba64": 4}.get(name, 1)
    rows = np.frombuffer(memoryview(frame.planes[0]), order).reshape(frame.height, -1)
    bands, places = upright(image), (0, 0, 0, 1) if channels == 2 else range(channels)
    values = np.empty((len(places), bands.height, bands.width), np.uint16)
    for number, place in enumerate(places):  # one by one: large ones take much memory
        plane = pillow.fromarray(rows[:, place : frame.width * channels : channels].astype("u2"))
        plane = plane if turn is None else plane.transpose(turn)
        if plane.size != bands.size or channels == 1:
            got = f"16-bit colours that FFmpeg decodes to {frame.format.name}"
            raise ValueError(f"{got}, {_ONLY_AS_NPY}")
        values[number] = np.asarray(plane)
        has_band = number < len(bands.getbands())  # except for one transparent colour
        if has_band and ((values[number] >> 8) != np.asarray(bands.getchannel(number))).any():
            raise ValueError(f"16-bit colours that its decoders disagree on, {_ONLY_AS_NPY}")
    return values


class ToTensor:
    """Converts a Pillow picture to a tensor, each value divided by 255.

    Example:
        >>> from PIL import Image
        >>> ToTensor()(Image.new("RGB", (4, 2), "white")).shape
        torch.Size([3, 2, 4])
    """

    def __call__(self, image: Image) -> torch.Tensor:
        """Converts one picture.

        Args:
            image: A picture of mode L, RGB or RGBA.

        Returns:
            `(c, h, w)` float32 in [0, 1].

        Raises:
            ValueError: The picture has another mode.
        """
        if image.mode not in CHANNELS_TO_MODE.values():
            raise ValueError(
                f"the picture's mode must be one of {list(CHANNELS_TO_MODE.values())}, "
                f"got {image.mode!r}; convert it first, for example image.convert('RGB')"
            )
        # np.array copies: a view of Pillow's memory would be read-only, which torch warns about
        pixels = torch.from_numpy(np.array(image))
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        return pixels.permute(2, 0, 1).contiguous().float().div(255)

    def __repr__(self) -> str:
        return "ToTensor()"


_TO_TENSOR = ToTensor()


def seek_all_images(img: Image, channels: int = 3) -> Iterator[Image]:
    """Iterates over all frames of an opened picture file.

    Args:
        img: An opened Pillow image; its read position moves along.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).

    Returns:
        An iterator over the frames, converted to this number of channels; with 1 or 3, transparent
        pixels are black.

    Raises:
        ValueError: `channels` is none of 1, 3, 4.
    """
    from PIL import ImageSequence

    mode = mode_of(channels)
    return (to_mode(frame, mode) for frame in ImageSequence.Iterator(img))


def gif_to_tensor(
    path: str | os.PathLike[str],
    channels: int = 3,
    transform: Callable[[Image], torch.Tensor] = _TO_TENSOR,
) -> torch.Tensor:
    """Reads a gif (or any animation that Pillow knows: webp, apng) into a clip.

    Args:
        path: The file.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).
        transform: Called with each frame, returns its `(c, h, w)` tensor.

    Returns:
        `(c, f, h, w)`; with the default `transform` float32 in [0, 1].

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is empty, truncated, damaged, not a picture, or larger than
            Pillow's limit against decompression bombs.
        ValueError: `channels` is none of 1, 3, 4.

    Differs from the reference: a truncated file is an error, not a shorter clip; transparent pixels
    are black if `channels` is 1 or 3.
    """
    with PictureReader(Path(path), channels, formats=None) as reader:
        if reader.is_array:
            got = "numbers of more than 8 bits"
            raise unreadable(path, "pictures of 8 bits", got, "read them with read_video")
        frames = [transform(frame) for frame in reader.pictures(range(reader.num_frames))]
    check_sizes(Path(path), frames)
    return torch.stack(frames, dim=1)


PICTURE_FORMATS = ("GIF", "PNG", "WEBP")
"""Formats that Pillow may detect in a file that is opened by its extension."""

_EXPECTED = "a complete picture or animation"
_MAX_FILE_BYTES = 2**31
_DURATIONS = {
    "gif": animations.gif_durations,
    "png": animations.png_durations,
    "webp": animations.webp_durations,
}
# Browsers and FFmpeg show a frame without a duration for this long
_DEFAULT_SECONDS = 0.1


class PictureReader(VideoReader):
    """Frames of one picture file, decoded by Pillow.

    They are rotated according to their EXIF data. Without opacity transparent pixels are black.
    Pictures of more than 8 bits are returned by `array`, with the numbers that they store.

    Args:
        path: The file; it is read once, and not kept open.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the file stores.
        formats: Pillow's names of the formats that the file may have; None for all.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: The file is empty, truncated, damaged, not a picture, or of more
            pixels than `animations.MAX_PIXELS` or Pillow's limit against decompression bombs.
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
        durations = frame_durations(path, self._content)
        self._open = functools.partial(_open, path, self._content, formats)
        self._image = self._open()
        self.is_array = is_deep(self._image, self._content)
        if durations and self.is_array:
            got = "an animation of more than 8 bits"
            raise unreadable(path, _EXPECTED, got, "store it as numbered stills, or as .npy")
        self._pages = _pages(path, self._content, self._image, durations)
        self._page_read = -1
        # A gif or an animated png is composed of patches, in order
        patches_of = {"GIF": animations.gif_patches, "PNG": animations.png_patches}
        kind = self._image.format or ""
        is_simple = kind == "GIF" and animations.is_opaque_gif(self._content)
        self._patches_of = patches_of.get(kind) if durations and not is_simple else None
        self._frames: Iterator[Image] = iter(())
        self._next = 0
        channels = stored_channels(self._image) if channels is None else channels
        super().__init__(path, channels, len(self._pages), Clock.of_durations(durations or []))

    def _frame(self, index: int) -> Any:
        if index >= self.num_frames:
            return None
        with _decoding(self.path, warns=self._image.format != "GIF"):
            if self.is_array:
                return stored_numbers(self._page(index), self._content, self.channels)
            if self._patches_of is not None:
                image = self._composed(index)
            else:
                image = self._page(index)
                if image.format != "GIF":  # which has no EXIF data
                    image.load()
                    image = upright(image)
            return to_mode(image, CHANNELS_TO_MODE[self.channels])

    def _composed(self, index: int) -> Image:
        assert self._patches_of is not None
        if not 0 < self._next <= index:
            self._next = 0
            patches = self._patches_of(self._content)
            self._frames = animations.composed(self._content, patches, self._image.size)
        ahead, self._next = index - self._next, 0  # start over after an error
        image = next(itertools.islice(self._frames, ahead, None))
        self._next = index + 1
        return upright(image, self._image) if "exif" in self._image.info else image

    def _page(self, index: int) -> Image:
        page = self._pages[index]
        if page <= self._page_read:  # Pillow does not rewind every kind of file
            self._image = self._open()
        self._image.seek(page)
        self._page_read = page
        animations.check_pixels(self._image.size)
        if is_deep(self._image, self._content) != self.is_array:
            got = f"pages of 8 bits and of more, such as page {index + 1}"
            raise unreadable(self.path, "pages of one kind", got, "store them as two files")
        return self._image

    def close(self) -> None:
        """Closes the picture; harmless when repeated."""
        super().close()
        self._image.close()


def _read_all(path: Path) -> bytes:
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MAX_FILE_BYTES:
            advice = "store so long a video as mp4, or as a folder of numbered frames"
            expected = f"a file of at most {_MAX_FILE_BYTES} bytes"
            raise unreadable(path, expected, f"a file of {size} bytes", advice)
        content = file.read()
    if not content:
        raise unreadable(path, _EXPECTED, "an empty file")
    return content


def frame_durations(path: Path, content: bytes) -> list[float] | None:
    """How long each frame of an animation is displayed, in seconds.

    Args:
        path: The file, for the error.
        content: All of it.

    Returns:
        One number per frame, none for a still gif, png or webp; None for other formats.

    Raises:
        UnreadableVideoError: The file is truncated.
    """
    family = family_of_bytes(content[:16])
    if family not in _DURATIONS:
        return None
    durations = _DURATIONS[family](content) if len(content) >= 12 else None
    if durations is None:
        raise unreadable(path, _EXPECTED, f"a {family} cut short after {len(content)} bytes")
    if len(durations) < 2:
        return durations  # a picture that does not move
    least = 0.02 if family == "gif" else 1e-9
    return [_DEFAULT_SECONDS if seconds < least else seconds for seconds in durations]


def _pages(
    path: Path, content: bytes, image: Image, durations: list[float] | None
) -> Sequence[int]:
    """Where Pillow has the frames."""
    if durations is not None:
        return range(len(durations) or 1)
    if image.format == "TIFF":
        pages = tiff_pages(content)
        if pages is None:
            raise unreadable(path, _EXPECTED, f"a tif cut short after {len(content)} bytes")
        return pages
    if image.format == "MPO":  # the others are previews, depths or gains
        return range(1)
    with _decoding(path):
        return range(getattr(image, "n_frames", 1))


def _open(path: Path, content: bytes, formats: tuple[str, ...] | None) -> Image:
    from PIL import Image as pillow

    with _decoding(path):
        image = pillow.open(BytesIO(content), formats=formats)
        animations.check_pixels(image.size)
        animations.scale_transparency(image, content)
        return image


@contextlib.contextmanager
def _decoding(path: Path, *, warns: bool = True) -> Iterator[None]:
    """Converts exceptions, and Pillow's warning of a large picture, to errors of the file.

    Catching warnings takes as long as decoding a small frame, so it is optional.
    """
    from PIL import Image as pillow

    try:
        with warnings.catch_warnings() if warns else contextlib.nullcontext():
            if warns:
                warnings.simplefilter("ignore", UserWarning)  # of damaged metadata
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
            yield
    except UnreadableVideoError:
        raise
    except pillow.UnidentifiedImageError as error:
        got = "bytes that Pillow does not take for a picture"
        advice = "fetch or write the file again, convert it, or store its numbers as .npy"
        raise unreadable(path, _EXPECTED, got, advice) from error
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        advice = "make it smaller, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS and "
        advice += f"{animations.__name__}.MAX_PIXELS"
        got = f"a possible decompression bomb ({error})"
        raise unreadable(path, _EXPECTED, got, advice) from error
    except Exception as error:  # Pillow's decoders raise almost every kind of error
        raise unreadable(path, _EXPECTED, f"{type(error).__name__}: {error}") from error
