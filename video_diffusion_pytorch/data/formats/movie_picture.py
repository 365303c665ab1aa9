"""First step of the path: a decoded frame of a movie becomes a picture the right way up."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_diffusion_pytorch.data.errors import unreadable

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose

_FORMAT_OF_CHANNELS = {1: "gray", 3: "rgb24", 4: "rgba"}


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


def picture_of(frame: Any, channels: int, path: Path, reformatter: Any) -> Image:
    """Convert a frame to 8 bit, and turn it as the file says that it is to be shown.

    Args:
        frame: PyAV's `VideoFrame`.
        channels: 1, 3 or 4.
        path: The file, for the error's message.
        reformatter: PyAV's `VideoReformatter`, the same for all frames of a movie: a new one costs
            more than to convert a small frame.

    Raises:
        UnreadableVideoError: The file asks for another turn than a quarter's.
    """
    from PIL import Image as pillow

    converted = reformatter.reformat(frame, format=_FORMAT_OF_CHANNELS[channels])
    picture = pillow.fromarray(converted.to_ndarray())
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return picture
    turn = _turn(bytes(matrix), path)
    return picture if turn is None else picture.transpose(turn)


def _turn(matrix: bytes, path: Path) -> Transpose | None:
    """Read a display matrix: a pixel at (x, y) is shown at (a x + c y, b x + d y), y downwards."""
    from PIL.Image import Transpose

    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    signs = tuple((value > 0) - (value < 0) for value in (a, b, c, d))
    turns = {
        (1, 0, 0, 1): None,
        (-1, 0, 0, 1): Transpose.FLIP_LEFT_RIGHT,
        (1, 0, 0, -1): Transpose.FLIP_TOP_BOTTOM,
        (-1, 0, 0, -1): Transpose.ROTATE_180,
        (0, 1, 1, 0): Transpose.TRANSPOSE,
        (0, 1, -1, 0): Transpose.ROTATE_270,
        (0, -1, 1, 0): Transpose.ROTATE_90,
        (0, -1, -1, 0): Transpose.TRANSVERSE,
    }
    if signs not in turns:
        raise unreadable(
            path,
            "frames turned by quarters of a circle",
            f"a display matrix of {a}, {b}, {c}, {d} in units of 1/65536",
            "turn the frames themselves, with a video editor",
        )
    return turns[signs]
