"""Video files: opening and reading any format."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.data.errors import UnreadableVideoError, missing_file, unreadable
from video_diffusion_pytorch.data.formats.arrays import MAX_BYTES, check_axes, open_array
from video_diffusion_pytorch.data.formats.field_files import FIELD_EXTS, kind_of_fields
from video_diffusion_pytorch.data.formats.fields import layout_of, open_fields
from video_diffusion_pytorch.data.formats.frame_folder import FRAME_EXTS, FrameFolderReader
from video_diffusion_pytorch.data.formats.movies import MovieReader
from video_diffusion_pytorch.data.formats.pictures import (
    PictureReader,
    ToTensor,
    gif_to_tensor,
    seek_all_images,
)
from video_diffusion_pytorch.data.formats.readers import (
    CHANNELS_TO_MODE,
    FAMILY_OF_ENDING,
    VideoReader,
    check_signature,
    check_sizes,
    family_of_name,
)
from video_diffusion_pytorch.data.write_video import video_tensor_to_gif

__all__ = [
    "CHANNELS_TO_MODE",
    "FRAME_EXTS",
    "VIDEO_EXTS",
    "ToTensor",
    "UnreadableVideoError",
    "VideoReader",
    "gif_to_tensor",
    "open_video",
    "read_video",
    "seek_all_images",
    "video_tensor_to_gif",
]

VIDEO_EXTS = (*FAMILY_OF_ENDING, *FIELD_EXTS)
"""Extensions of files that are clips; `open_video` also reads `tif` and `tiff`."""


def open_video(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    axes: str | None = None,
    square_pixels: bool = True,
    max_bytes: int = MAX_BYTES,
    variables: str | Sequence[str] | None = None,
    dims: Mapping[str, str] | str | None = None,
    item: int | None = None,
) -> VideoReader:
    """Opens a video of any format, to decode only the frames that are needed.

    Args:
        path: A file whose name ends in one of `VIDEO_EXTS`, a tif, whose pages are the frames, a
            folder of numbered stills, or a Zarr store.
        channels: Of pictures and movies: 1 (grey), 3 (colour), 4 (colour and opacity), to which
            frames are converted; without opacity transparent pixels are black. None is what the
            file stores: 4 only if each pixel has its own opacity, unlike the transparent colour of
            a gif. Of arrays: the required number; None for any.
        axes: Of arrays only: the stored order in the letters c, f, h, w, such as "fhwc", or "fhw"
            for one channel. None: what an npz or pt file states in its entry "axes", or else the
            order that the shape allows, if there is only one.
        square_pixels: Scale the width of a movie whose pixels are not square, as players do; False
            keeps frames as they are stored.
        max_bytes: Limit for the size of an array in an npz file, or of one in a pt file that
            repeats its numbers.
        variables: Of NetCDF, HDF5 and Zarr files: the variables that become channels, in this
            order; None if there is only one choice.
        dims: Of these and of NIfTI files: what their dimensions are, by name, in the letters n
            (simulations, each a clip of its own), c, f, h, w, such as `{"lev": "c"}`; or, for axes
            without names, the letters of all of them in order. None for what names and attributes
            tell.
        item: Of a file of several simulations: the number of the one to open.

    Returns:
        A reader, to be closed after use, as by `with`.

    Raises:
        FileNotFoundError: The file or folder is missing.
        UnreadableVideoError: The file is empty, truncated, damaged, or of another format than its
            name promises, or an array whose axes are ambiguous.
        ValueError: `channels` or `axes` is none of the above, or the extension is unknown.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/noise.npy", np.zeros((20, 3, 8, 8), np.uint8))
        ...     with open_video(f"{folder}/noise.npy") as video:
        ...         video.num_frames, video.channels, video.array(range(0, 20, 5)).shape
        (20, 3, torch.Size([3, 4, 8, 8]))
    """
    path = Path(path)
    check_axes(axes)
    if kind_of_fields(path) is not None:
        layout = layout_of(variables, dims or axes)
        return open_fields(path, channels, layout, item)
    if path.is_dir():
        return FrameFolderReader(path, channels)
    ending, family = path.suffix.lower().lstrip("."), family_of_name(path)
    if ending in ("tif", "tiff"):
        return PictureReader(path, channels, ("TIFF",))
    if family is None:
        if not path.exists():
            raise missing_file(path)
        raise ValueError(
            f"the name's ending must be one of {', '.join(VIDEO_EXTS)}, got {path}; give the "
            "dataset a read_fn for this format, or convert the file, for example with ffmpeg"
        )
    if family in ("npy", "zip"):
        order = dims if isinstance(dims, str) else axes
        return open_array(path, channels, order, max_bytes, item)
    check_signature(path)
    if family in ("gif", "webp", "png"):
        return PictureReader(path, channels)
    return MovieReader(path, channels, square_pixels=square_pixels)


def read_video(
    path: str | os.PathLike[str],
    *,
    channels: int | None = None,
    start: int = 0,
    num_frames: int | None = None,
    frame_skip: int = 1,
    axes: str | None = None,
    max_bytes: int = MAX_BYTES,
    square_pixels: bool = True,
) -> tuple[torch.Tensor, float | None]:
    """Reads a video of any format, or a part of it, into one tensor.

    Args:
        path: A file whose name ends in one of `VIDEO_EXTS`, a tif, whose pages are the frames, or a
            folder of numbered stills.
        channels: As for `open_video`.
        start: The first frame to read.
        num_frames: Number of frames to read; fewer if the video ends before. None reads up to its
            end.
        frame_skip: Read every `frame_skip`-th frame.
        axes: As for `open_video`.
        max_bytes: Limit for the size of the tensor.
        square_pixels: As for `open_video`.

    Returns:
        The video, `(c, f, h, w)`: uint8 for 8-bit pictures, movies and uint8 arrays; float32, the
        numbers as stored, for other arrays, and for grey and RGB pictures and movies of more than 8
        bits. And its frames per second, without those skipped by `frame_skip`; None if the file
        has no clock.

    Raises:
        FileNotFoundError: The file or folder is missing.
        UnreadableVideoError: The file is unreadable, as for `open_video`, has no frame from `start`
            on, has frames of different sizes, or needs more than `max_bytes`.
        ValueError: An argument is out of range.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = video_tensor_to_gif(torch.rand(3, 5, 20, 30), f"{folder}/noise.gif")
        ...     video, fps = read_video(f"{folder}/noise.gif", num_frames=4, frame_skip=2)
        >>> video.shape, video.dtype, round(fps, 2)
        (torch.Size([3, 3, 20, 30]), torch.uint8, 4.17)
    """
    if not isinstance(start, Integral) or start < 0:
        raise ValueError(f"start must be a frame's number, from 0 up, got {start!r}")
    frame_skip = as_count(frame_skip, "frame_skip")
    stop = sys.maxsize
    if num_frames is not None:
        stop = start + as_count(num_frames, "num_frames") * frame_skip
    indices = range(start, stop, frame_skip)
    options: dict[str, Any] = {"channels": channels, "axes": axes, "square_pixels": square_pixels}
    with open_video(path, max_bytes=max_bytes, **options) as reader:
        read = _read_array if reader.is_array else _read_pictures
        video, fps = read(reader, indices, max_bytes), reader.fps
        if not video.shape[1]:
            expected = f"a video with a frame number {start}"
            raise unreadable(path, expected, f"{reader.num_frames} frames", "begin earlier")
    return video, None if fps is None else fps / frame_skip


def _check_size(path: Path, nbytes: int, max_bytes: int) -> None:
    if nbytes > max_bytes:
        expected = f"a video of at most {max_bytes} bytes"
        advice = "read fewer frames at once, or raise max_bytes"
        raise unreadable(path, expected, f"{nbytes} bytes or more", advice)


def _read_array(reader: VideoReader, indices: range, max_bytes: int) -> torch.Tensor:
    count = len(range(indices.start, min(indices.stop, reader.num_frames), indices.step))
    _check_size(reader.path, count * reader.array(indices[:1]).nbytes, max_bytes)
    return reader.array(indices)


def _read_pictures(reader: VideoReader, indices: range, max_bytes: int) -> torch.Tensor:
    frames: list[torch.Tensor] = []
    for picture in reader.pictures(indices):
        pixels = torch.from_numpy(np.array(picture))
        frames.append(pixels if pixels.ndim == 3 else pixels[..., None])
        _check_size(reader.path, len(frames) * pixels.nbytes, max_bytes)
    if not frames:
        return torch.empty(reader.channels, 0, 0, 0, device="cpu")
    check_sizes(reader.path, frames)
    return torch.stack(frames).permute(3, 0, 1, 2).contiguous()
