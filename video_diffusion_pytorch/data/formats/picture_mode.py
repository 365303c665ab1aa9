"""First step of the path: a picture of any mode becomes one of 1, 3 or 4 channels, or numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from video_diffusion_pytorch.data.formats.video_reader import CHANNELS_TO_MODE

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

# Numbers of EXIF's and tif's tags, and of a signed sample format
_ORIENTATION, _BITS, _COMPRESSION, _SAMPLE_FORMAT, _SIGNED = 274, 258, 259, 339, 2
# Value of EXIF's orientation -> name of the member of Pillow's Transpose
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
_AS_NPY = "which are read only if they are stored as .npy"


def stored_channels(image: Image) -> int:
    """Give the number of channels that a picture's pixels have: 1, 3, or 4 with opacity.

    A transparent colour of a palette does not count: most gifs use it for what stays unchanged.

    Example:
        >>> from PIL import Image
        >>> [stored_channels(Image.new(mode, (1, 1))) for mode in ("I;16", "P", "LA")]
        [1, 3, 4]
    """
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        return 4
    return 1 if image.mode in ("1", "L", "F") or image.mode.startswith("I") else 3


def to_mode(image: Image, mode: str) -> Image:
    """Convert a picture of 8 bits; what is transparent becomes black where the mode has no opacity.

    Args:
        image: A picture of 8 bits or less per channel.
        mode: L, RGB or RGBA.

    Returns:
        A new picture, also where nothing is to be converted.

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
    """Turn a decoded picture as EXIF data say that it is to be shown; damaged ones say nothing.

    Pillow turns a tif by itself, and takes the note off.

    Args:
        image: The picture.
        source: The opened file that has the EXIF data; None for the picture itself.
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
    """Tell whether a picture's channels have more than 8 bits, or signs.

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
    """Give the numbers of a picture that `is_deep`.

    Args:
        image: The opened picture, at its page.
        content: The whole file.
        channels: 1 (grey, of colours 0.299 red + 0.587 green + 0.114 blue), 3 (colour) or 4 (colour
            and opacity, 65535 for all that is opaque). Without opacity colours are multiplied by
            it, so that what is transparent becomes 0.

    Returns:
        `(channels, h, w)` float32.

    Raises:
        ValueError: The picture is of a kind that is not decoded exactly, or opacity is asked of
            numbers that have none.
    """
    tags = getattr(image, "tag_v2", {})
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    is_packed = tags.get(_COMPRESSION, 1) != 1
    if image.mode in ("I", "F") and content[:2] == b"MM" and is_packed:
        # Pillow 12 mixes up their bytes
        raise ValueError(f"compressed big-endian numbers of mode {image.mode!r}, {_AS_NPY}")
    turn, page = _turn(image), image.tell()
    image.load()  # Pillow looks for damage, also where it does not give all bits
    if image.mode in ("RGB", "RGBA"):
        stored = _sixteen_bit_colours(image, content, page, turn)
    elif image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        raise ValueError(f"numbers of more than 8 bits of mode {image.mode!r}, {_AS_NPY}")
    else:
        # Pillow has turned a tif already
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
    colours, opacity = (values[:-1], values[-1:]) if len(values) in (2, 4) else (values, None)
    if channels == 4:
        if opacity is None and not has_most:
            raise ValueError(f"numbers of mode {image.mode!r} without opacity; set channels=1")
        opacity = torch.full_like(values[:1], _OPAQUE) if opacity is None else opacity
        return torch.cat((colours.expand(3, -1, -1), opacity))
    if opacity is not None:
        colours = colours * (opacity / _OPAQUE)
    if channels == 1 and len(colours) == 3:
        colours = (colours * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)
    return colours.expand(channels, -1, -1)


def _sixteen_bit_colours(
    image: Image, content: bytes, page: int, turn: Transpose | None
) -> np.ndarray:
    """Let FFmpeg decode what Pillow has decoded to 8 bits: `(c, h, w)` uint16."""
    import av
    from PIL import Image as pillow

    decoder = av.CodecContext.create("png" if image.format == "PNG" else "tiff", "r")
    if image.format == "TIFF":
        decoder.options = {"page": str(page + 1)}
    try:
        (frame,) = decoder.decode(av.Packet(content))
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"16-bit colours that FFmpeg cannot decode, {_AS_NPY}") from error
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
            raise ValueError(f"{got}, {_AS_NPY}")
        values[number] = np.asarray(plane)
        has_band = number < len(bands.getbands())  # but for the opacity of one transparent colour
        if has_band and ((values[number] >> 8) != np.asarray(bands.getchannel(number))).any():
            raise ValueError(f"16-bit colours that its decoders disagree on, {_AS_NPY}")
    return values


class ToTensor:
    """Turn a Pillow picture into a tensor, each pixel value divided by 255.

    Example:
        >>> from PIL import Image
        >>> ToTensor()(Image.new("RGB", (4, 2), "white")).shape
        torch.Size([3, 2, 4])
    """

    def __call__(self, image: Image) -> torch.Tensor:
        """Convert one picture.

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
