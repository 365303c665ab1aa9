"""First step of the path: frames of an npy, npz or pt file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import unreadable
from video_diffusion_pytorch.data.formats.array_axes import check_axes, resolve_axes
from video_diffusion_pytorch.data.formats.array_storage import (
    FileArray,
    StoredArray,
    load_npy,
    load_npz,
    load_pt,
)
from video_diffusion_pytorch.data.formats.file_signature import FAMILY_OF_ENDING, check_signature
from video_diffusion_pytorch.data.formats.video_reader import (
    VideoReader,
    check_indices,
    closed_reader,
)

MAX_BYTES = 8 * 2**30
"""How large a video may become in memory, where nothing else is said."""


class ArrayReader(VideoReader):
    """Frames of an array file.

    Args:
        path: The file, ending in .npy, .npz or .pt.
        channels: How many there must be; None for any number.
        axes: The stored order, as `read_video` takes it; None for what the file says, or else what
            its shape allows.
        max_bytes: How large an array an npz file may inflate to.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is cut short or damaged, holds no array of real numbers, or
            one whose axes are not clear.
        ValueError: `axes` is no order of axes.
    """

    is_array = True

    def __init__(self, path: Path, channels: int | None, axes: str | None, max_bytes: int) -> None:
        check_axes(axes)
        stored = _load(path, max_bytes)
        self._data: np.ndarray | torch.Tensor | FileArray | None = stored.data
        try:
            if axes is None and stored.axes is not None:
                axes = stored.axes
                try:
                    check_axes(axes)
                except ValueError as error:
                    expected = "axes such as 'fhwc'"
                    raise unreadable(path, expected, repr(axes), "correct them") from error
            self._axes, stored_channels = resolve_axes(stored.data.shape, axes, channels, path)
        except ValueError:
            self.close()
            raise
        self._num_frames = dict(zip(self._axes, stored.data.shape, strict=True)).get("f", 1)
        self._fps = stored.fps
        super().__init__(path, stored_channels)

    @property
    def num_frames(self) -> int:
        """The length of the axis f, or 1."""
        return self._num_frames

    @property
    def fps(self) -> float | None:
        """What an npz or pt file states in its entry "fps"; else None."""
        return self._fps

    @property
    def times(self) -> Sequence[float] | None:
        """When each frame is shown, in seconds; None where there is no `fps`."""
        if self._fps is None:
            return None
        return [number / self._fps for number in range(self._num_frames)]

    def array(self, indices: Sequence[int] | range) -> torch.Tensor:
        """Read frames, as `VideoReader.array` says."""
        check_indices(indices)
        if self._data is None:
            raise closed_reader(self.path)
        wanted: range | list[int]
        if isinstance(indices, range):
            stop = min(indices.stop, self._num_frames)
            wanted = range(indices.start, max(stop, indices.start), indices.step)
        else:
            wanted = [index for index in indices if index < self._num_frames]
        order = self._axes
        if "f" in order:
            pixels = _to_tensor(self._data, order.index("f"), wanted)
        else:
            order, pixels = "f" + order, _to_tensor(self._data)[None][: len(wanted)]
        if "c" not in order:
            order, pixels = "c" + order, pixels[None]
        return pixels.permute([order.index(letter) for letter in "cfhw"]).contiguous()

    def close(self) -> None:
        """Let go of the array, and so of the file."""
        if isinstance(self._data, FileArray):
            self._data.close()
        self._data = None


def read_array(path: Path) -> torch.Tensor:
    """Read a whole array of any number of axes, as it is stored.

    Args:
        path: The file, ending in .npy, .npz or .pt.

    Returns:
        A tensor of the stored shape, uint8 where the file holds uint8, else float32.

    Raises:
        FileNotFoundError: There is no such file.
        UnreadableVideoError: The file is damaged, or holds no array of real numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/pose.npy", np.arange(3.0))
        ...     read_array(Path(folder, "pose.npy"))
        tensor([0., 1., 2.])
    """
    data = _load(path, MAX_BYTES).data
    try:
        return _to_tensor(data)
    finally:
        if isinstance(data, FileArray):
            data.close()


def _load(path: Path, max_bytes: int) -> StoredArray:
    ending = path.suffix.lower()
    check_signature(path, FAMILY_OF_ENDING[ending.lstrip(".")])
    if ending == ".npz":
        return load_npz(path, max_bytes)
    return load_npy(path) if ending == ".npy" else load_pt(path, max_bytes)


def _to_tensor(
    data: np.ndarray | torch.Tensor | FileArray,
    axis: int | None = None,
    wanted: range | list[int] = range(0),
) -> torch.Tensor:
    """The array, or of one axis the entries that are wanted, in memory of its own."""
    if isinstance(data, FileArray):
        part = data.read(axis, wanted)
    elif axis is None:
        part = data
    else:
        some: Any = wanted
        if isinstance(wanted, range):  # a slice copies nothing
            some = slice(wanted.start, wanted.stop, wanted.step)
        part = data[(slice(None),) * axis + (some,)]
    if isinstance(part, torch.Tensor):
        dtype = torch.uint8 if part.dtype == torch.uint8 else torch.float32
        return part.to(dtype, copy=not isinstance(data, FileArray))
    kind = np.uint8 if part.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
        return torch.from_numpy(np.require(part, kind, "W"))
