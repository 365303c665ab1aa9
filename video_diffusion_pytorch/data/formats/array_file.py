"""First step of the path: frames of an npy, npz or pt file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import unreadable
from video_diffusion_pytorch.data.formats.array_axes import check_axes, resolve_axes
from video_diffusion_pytorch.data.formats.array_storage import (
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
        if axes is None and stored.axes is not None:
            axes = stored.axes
            try:
                check_axes(axes)
            except ValueError as error:
                raise unreadable(path, "axes such as 'fhwc'", repr(axes), "correct them") from error
        self._data: np.ndarray | torch.Tensor | None = stored.data
        self._axes, stored_channels = resolve_axes(stored.data.shape, axes, channels, path)
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
        wanted: slice | list[int]
        if isinstance(indices, range):  # a slice of what is mapped reads nothing in between
            stop = min(indices.stop, self._num_frames)
            wanted = slice(indices.start, max(stop, indices.start), indices.step)
        else:
            wanted = [index for index in indices if index < self._num_frames]
        order = self._axes
        if "f" in order:
            part = self._data[(slice(None),) * order.index("f") + (wanted,)]
        else:
            order, part = "f" + order, self._data[None][wanted]
        if "c" not in order:
            order, part = "c" + order, part[None]
        pixels = _to_tensor(part)
        return pixels.permute([order.index(letter) for letter in "cfhw"]).contiguous()

    def close(self) -> None:
        """Let go of the array, and so of the file."""
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
    return _to_tensor(_load(path, MAX_BYTES).data)


def _load(path: Path, max_bytes: int) -> StoredArray:
    ending = path.suffix.lower()
    check_signature(path, FAMILY_OF_ENDING[ending.lstrip(".")])
    if ending == ".npz":
        return load_npz(path, max_bytes)
    return load_npy(path) if ending == ".npy" else load_pt(path)


def _to_tensor(part: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Copy, so that nothing refers to the mapped file any more."""
    if isinstance(part, torch.Tensor):
        dtype = torch.uint8 if part.dtype == torch.uint8 else torch.float32
        return part.to(dtype, copy=True)
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
        return torch.from_numpy(
            np.array(part, dtype=np.uint8 if part.dtype == np.uint8 else np.float32)
        )
