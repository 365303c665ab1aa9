"""First step of the path: a decoded frame of a movie becomes a picture the right way up."""

from __future__ import annotations

import functools
import struct
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import unreadable

if TYPE_CHECKING:
    from PIL.Image import Image

_FORMAT_OF_CHANNELS = {1: "gray", 3: "rgb24", 4: "rgba"}

# Of FFmpeg's AVColorTransferCharacteristic and AVColorPrimaries
_BT2020, _PQ, _HLG = 9, 16, 18
_WHITE = 203.0  # cd/m2
_BT2020_TO_BT709 = (  # ITU-R BT.2087
    (1.660491, -0.587641, -0.072850),
    (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)


def channels_of_format(pixel_format: Any) -> int:
    """Give the number of channels that a movie's pixels have: 1, 3, or 4 with opacity.

    Args:
        pixel_format: PyAV's `VideoFormat`.

    Example:
        >>> import av
        >>> [channels_of_format(av.VideoFormat(name)) for name in ("gray10le", "yuva420p")]
        [1, 4]
    """
    if pixel_format.name.startswith(("gray", "mono")):
        return 1
    return 4 if any(part.is_alpha for part in pixel_format.components) else 3


def is_measured(pixel_format: Any) -> bool:
    """Tell whether pixels are grey or RGB values of more than 8 bits, as of a microscope.

    Args:
        pixel_format: PyAV's `VideoFormat`.

    Example:
        >>> import av
        >>> [is_measured(av.VideoFormat(name)) for name in ("gray10le", "gbrp16le", "yuv420p10le")]
        [True, True, False]
    """
    from av.video.frame import supported_np_pix_fmts

    is_grey = pixel_format.name.startswith("gray")
    is_deep = max(part.bits for part in pixel_format.components) > 8
    is_known = pixel_format.name in supported_np_pix_fmts and not pixel_format.is_bayer
    return is_known and is_deep and (is_grey or pixel_format.is_rgb)


@functools.cache
def _may_be_transparent(name: str) -> bool:
    from av import VideoFormat

    pixel_format = VideoFormat(name)
    return pixel_format.has_palette or channels_of_format(pixel_format) == 4


def square_width(frame: Any, shape: Fraction | None, path: Path) -> int:
    """Give the width of a frame once its pixels are squares, at the same height.

    Args:
        frame: PyAV's `VideoFrame`.
        shape: Width of a pixel by its height; None or 0 if unknown.
        path: The file, for the error's message.

    Raises:
        UnreadableVideoError: The frame would be larger than Pillow's limit.
    """
    from PIL import Image as pillow

    if shape is None or shape == 1 or shape <= 0:
        return int(frame.width)
    width = max(1, round(frame.width * shape))
    if width * frame.height > max(pillow.MAX_IMAGE_PIXELS or 2**31 - 1, frame.width * frame.height):
        raise unreadable(
            path,
            "pixels that are squares or nearly so",
            f"pixels {shape} times as wide as high, for frames of {frame.width} x {frame.height}",
            "pass square_pixels=False if that is not meant",
        )
    return width


def picture_of(
    frame: Any, channels: int, path: Path, reformatter: Any, width: int | None = None
) -> Image:
    """Convert a frame to 8 bit, and turn it as the file says that it is to be shown.

    HDR (PQ or HLG) and BT.2020 colours are converted to BT.709: luminance up to the reference
    white of 203 cd/m2 is kept, and highlights above it are clipped (ITU-R BT.2408).

    Args:
        frame: PyAV's `VideoFrame`.
        channels: 1, 3 or 4. Into 1 and 3 a frame with opacity is put on black.
        path: The file, for the error's message.
        reformatter: PyAV's `VideoReformatter`, the same for all frames of a movie: a new one costs
            more than to convert a small frame.
        width: To scale to, before it is turned; None for that of the frame.

    Raises:
        UnreadableVideoError: The file asks for another turn than a quarter's.
    """
    from PIL import Image as pillow

    name = _FORMAT_OF_CHANNELS[channels]
    is_hdr = frame.color_trc in (_PQ, _HLG) or frame.color_primaries == _BT2020
    if channels != 4 and _may_be_transparent(frame.format.name):
        name = "rgba"
    elif is_hdr and channels == 1:
        name = "rgb24"
    deep = {"rgb24": "gbrp10le", "rgba": "gbrap10le"}[name] if is_hdr else name
    pixels = reformatter.reformat(frame, width=width, format=deep).to_ndarray()
    if is_hdr:
        pixels = _standard_range(pixels, frame.color_trc, frame.color_primaries)
    picture = pillow.fromarray(_upright(pixels, frame, path))
    if name != _FORMAT_OF_CHANNELS[channels]:
        if picture.mode == "RGBA":
            black = pillow.new("RGB", picture.size)
            black.paste(picture, mask=picture)
            picture = black
        picture = picture.convert("L" if channels == 1 else "RGB")
    return picture


def values_of(
    frame: Any, channels: int, path: Path, reformatter: Any, width: int | None = None
) -> torch.Tensor:
    """Give the values that a frame stores, `(c, h, w)` float32, the right way up.

    Args:
        frame: PyAV's `VideoFrame`, of which `is_measured` is true.
        channels: As for `picture_of`.
        path: As for `picture_of`.
        reformatter: As for `picture_of`.
        width: As for `picture_of`.

    Raises:
        UnreadableVideoError: As `picture_of`.
    """
    if not is_measured(frame.format):
        got = f"frames of {frame.format.name} between others"
        raise unreadable(path, "frames of one kind of pixels", got)
    pixels = reformatter.reformat(frame, width=width).to_ndarray().astype(np.float32)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    most = 1.0 if "f" in frame.format.name else 2.0 ** frame.format.components[0].bits - 1
    colours, opacity = pixels[..., :3], pixels[..., 3:]
    if frame.format.name.startswith("bgr"):
        colours = colours[..., ::-1]
    if opacity.size and channels != 4:
        colours = colours * (opacity / most)
    if channels == 1 and colours.shape[2] == 3:  # the weights of ITU-R BT.601
        colours = colours @ np.array([[0.299], [0.587], [0.114]], np.float32)
    elif channels != 1 and colours.shape[2] == 1:
        colours = colours.repeat(3, axis=2)
    if channels == 4:
        opaque = np.full_like(colours[..., :1], most)
        colours = np.concatenate([colours, opacity if opacity.size else opaque], axis=2)
    colours = _upright(colours, frame, path)
    return torch.from_numpy(np.ascontiguousarray(colours.transpose(2, 0, 1)))


def _standard_range(pixels: np.ndarray, curve: int, primaries: int) -> np.ndarray:
    """Convert pixels `(h, w, 3 or 4)` of 10 bit to BT.709, 8 bit."""
    light = _light(curve)[pixels[..., :3]]
    if curve == _HLG:  # a display of 1000 cd/m2, to which the curve of a scene belongs
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], np.float32)
        light *= luminance[..., None] ** np.float32(0.2) * np.float32(1000 / _WHITE)
    if primaries == _BT2020:
        light = light @ np.array(_BT2020_TO_BT709, np.float32).T
    colours = 255 * np.clip(light, 0, 1, out=light) ** np.float32(1 / 2.4)
    opacity = pixels[..., 3:] * np.float32(255 / 1023)
    return np.concatenate([colours, opacity], axis=2).round().astype(np.uint8)


@functools.cache
def _light(curve: int) -> np.ndarray:
    """Give the light of each 10-bit code, `(1024,)`, in units of the reference white.

    That of the scene, from 0 to 1, for HLG (ITU-R BT.2100); BT.1886 where the range is standard.
    """
    code = np.minimum(np.arange(1024) / 1020, 1)  # FFmpeg makes 1020 of the white of YUV
    if curve == _PQ:
        power = code ** (32 / 2523)
        above, below = np.maximum(power - 3424 / 4096, 0), 2413 / 128 - 2392 / 128 * power
        light = (above / below) ** (16384 / 2610) * (10000 / _WHITE)
    elif curve == _HLG:
        bright = (np.exp((code - 0.55991073) / 0.17883277) + 0.28466892) / 12
        light = np.where(code <= 0.5, code**2 / 3, bright)
    else:
        light = code**2.4
    return light.astype(np.float32)


def _upright(pixels: np.ndarray, frame: Any, path: Path) -> np.ndarray:
    """Turn pixels `(h, w, ...)` by a frame's display matrix.

    By it a pixel at (x, y) is shown at (a x + c y, b x + d y), y downwards.
    """
    matrix = _side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if [a == 0, b == 0, c == 0, d == 0] not in ([0, 1, 1, 0], [1, 0, 0, 1]):
        raise unreadable(
            path,
            "frames turned by quarters of a circle",
            f"a display matrix of {a}, {b}, {c}, {d} in units of 1/65536",
            "turn the frames themselves, with a video editor",
        )
    if b:
        pixels = pixels.swapaxes(0, 1)
    if min(a, c) < 0:
        pixels = pixels[:, ::-1]
    return pixels[::-1] if min(b, d) < 0 else pixels


def _side_data(frame: Any) -> Any:
    """Give what comes with a frame, but for kinds that PyAV does not know, such as EXIF."""
    from av.filter import Graph

    try:
        return frame.side_data
    except ValueError as error:  # "31 is not a valid Type"
        graph, kind = Graph(), int(str(error).split()[0])
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25)
    )
    remove = graph.add("sidedata", f"mode=delete:type={kind}")
    graph.link_nodes(source, remove, graph.add("buffersink")).configure()
    graph.push(frame)
    return _side_data(graph.pull())
