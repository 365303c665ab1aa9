"""Arrays: npy, npz and pt files, read frame by frame, and arrays from functions of the user."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import regular_file, unreadable
from video_diffusion_pytorch.data.formats.readers import (
    Clock,
    VideoReader,
    check_signature,
    decoding,
    family_of_name,
    open_file,
)

MAX_BYTES = 8 * 2**30
"""Default limit for the size of a video in memory."""

_COMMON_ORDERS = ("cfhw", "fchw", "fhwc")
_MAX_CHANNELS = 4


def check_axes(axes: str | None) -> None:
    """Rejects an order of axes that no array can have.

    Raises:
        ValueError: `axes` does not consist of `h`, `w` and perhaps `n`, `c`, `f`, each once.

    Example:
        >>> check_axes("fhwc"), check_axes("hw"), check_axes(None)
        (None, None, None)
    """
    if axes is not None and not _is_order(axes):
        raise ValueError(
            "axes must name the stored order in the letters n (simulations), c (channels), f "
            f"(frames), h, w, each at most once and h and w always, got {axes!r}; pass for example "
            "'fhwc' or 'fhw'"
        )


def _is_order(axes: str) -> bool:
    return {"h", "w"} <= set(axes) <= set("ncfhw") and len(set(axes)) == len(axes)


def resolve_axes(
    shape: Sequence[int], axes: str | None, channels: int | None, path: Path
) -> tuple[str, int]:
    """The order of an array's axes.

    Args:
        shape: Of the array.
        axes: The order, such as "fhwc" or, of one channel, "fhw". None for the one of the orders
            cfhw, fchw, fhwc that fits an array of four axes.
        channels: The required number of channels; None for any number, or 1 to 4 if the order
            must be found from the shape.
        path: The file, for the error.

    Returns:
        The order, and the number of channels.

    Raises:
        UnreadableVideoError: The shape does not fit, or fits more than one order.

    Example:
        >>> resolve_axes((10, 3, 64, 64), None, None, Path("a.npy"))
        ('fchw', 3)
    """
    axes = _axes_of_shape(shape, channels, path) if axes is None else axes
    if len(axes) != len(shape) or not _is_order(axes):
        expected = f"axes such as 'fhwc' for the shape {tuple(shape)}"
        raise unreadable(path, expected, repr(axes), "state the axes that it has")
    stored = dict(zip(axes, shape, strict=True)).get("c", 1)
    if channels not in (None, stored):
        got = f"{stored} in the shape {tuple(shape)} with the axes {axes!r}"
        raise unreadable(path, f"{channels} channels", got, "correct channels or axes")
    return axes, stored


def _axes_of_shape(shape: Sequence[int], channels: int | None, path: Path) -> str:
    allowed = range(1, _MAX_CHANNELS + 1) if channels is None else (channels,)
    fitting = [
        order
        for order in _COMMON_ORDERS
        if len(shape) == len(order) and shape[order.index("c")] in allowed
    ]
    if len(fitting) != 1:
        raise unreadable(
            path,
            f"an array of four axes that fits one of the orders {', '.join(_COMMON_ORDERS)} with "
            f"{'1 to 4' if channels is None else channels} channels",
            f"the shape {tuple(shape)}, which fits {' and '.join(fitting) or 'none'}",
            'state the order, for example axes="fhw" for frames, height and width',
        )
    return fitting[0]


# Bytes between two requested entries that are read and dropped rather than read around
_GAP = 1 << 15
# Bytes read at once
_BLOCK = 1 << 20


class LazyArray:
    """An array of which parts are read on demand.

    Attributes:
        shape: Its shape.
    """

    shape: tuple[int, ...]

    def read(self, axis: int | None = None, wanted: Sequence[int] = ()) -> Any:
        """Reads the array, or the requested entries of one axis, as an array or a tensor.

        Args:
            axis: The axis; None for the whole array.
            wanted: Indices along it, increasing.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Closes its file; harmless when repeated."""
        raise NotImplementedError


class FileArray(LazyArray):
    """An array in an open file, of which only the requested entries are read.

    It is not memory-mapped: if another program truncates a mapped file, the process is killed.

    Args:
        file: Opened without a buffer; closed by `close`.
        state: From `_state_of`, before anything was read.
        offset: Where the array begins, in bytes.
        dtype: NumPy's or torch's, as `read` returns.
        shape: The array's shape.
        order: Its axes from the slowest to the fastest in the file.
    """

    def __init__(
        self,
        file: FileIO,
        state: tuple[int, ...],
        offset: int,
        dtype: np.dtype[Any] | torch.dtype,
        shape: Sequence[int],
        order: Sequence[int],
    ) -> None:
        self.shape = tuple(shape)
        self._file, self._state, self._offset, self._dtype = file, state, offset, dtype
        self._order = list(order)

    def read(self, axis: int | None = None, wanted: Sequence[int] = ()) -> Any:
        """Reads the array, or the requested entries of one axis.

        Args:
            axis: The axis; None for the whole array.
            wanted: Indices along it, increasing.

        Returns:
            A copy: an array or a tensor.

        Raises:
            UnreadableVideoError: The file was changed since it was opened.
        """
        lengths = [self.shape[i] for i in self._order]
        if axis is None:
            pixels = self._entries(1, 1, math.prod(lengths) * self._dtype.itemsize, [0])
        else:
            place = self._order.index(axis)
            size = math.prod(lengths[place + 1 :]) * self._dtype.itemsize
            pixels = self._entries(math.prod(lengths[:place]), lengths[place], size, wanted)
            lengths[place] = len(wanted)
        back = [self._order.index(i) for i in range(len(lengths))]
        if isinstance(self._dtype, torch.dtype):
            return torch.from_numpy(pixels).view(-1).view(self._dtype).view(lengths).permute(back)
        return pixels.reshape(-1).view(self._dtype).reshape(lengths).transpose(back)

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        self._file.close()

    def entry(self, axis: int, number: int) -> LazyArray | Any:
        """Returns an entry of an axis: as an array in the file where it is in one piece there."""
        shape = (*self.shape[:axis], *self.shape[axis + 1 :])
        if self._order[0] != axis:
            found = self.read(axis, [number])
            self.close()
            return found.reshape(shape)
        offset = self._offset + number * math.prod(shape) * self._dtype.itemsize
        order = [i - (i > axis) for i in self._order[1:]]
        return FileArray(self._file, self._state, offset, self._dtype, shape, order)

    def _entries(self, outer: int, total: int, size: int, wanted: Sequence[int]) -> np.ndarray:
        """In each of `outer` rows of `total` entries of `size` bytes, the wanted entries."""
        out = np.empty((outer, len(wanted), size), np.uint8)
        if not len(wanted):
            return out
        numbers, row = np.asarray(wanted, dtype=np.int64), total * size
        # Entries that are close to each other form a run, which is read at once with its gaps
        is_apart = (np.diff(numbers) > 1 + _GAP // size) | (np.diff(numbers * size // _BLOCK) > 0)
        cuts = [0, *(np.flatnonzero(is_apart) + 1).tolist(), len(numbers)]
        # So are rows whose runs are close to each other
        between = row - int(numbers[-1] + 1 - numbers[0]) * size
        at_once = max(1, _BLOCK // row) if len(cuts) == 2 and between <= _GAP else 1
        block = np.empty(0, np.uint8)
        for start in range(0, outer, at_once):
            for i, j in itertools.pairwise(cuts):
                target = out[start : start + at_once, i:j]
                places = numbers[i:j] - numbers[i]
                span, offset = int(places[-1]) + 1, (start * total + int(numbers[i])) * size
                nbytes = ((len(target) - 1) * total + span) * size
                if nbytes == target.nbytes:  # without gaps
                    self._fill(target.data.cast("B"), offset)
                    continue
                block = block if block.nbytes >= nbytes else np.empty(nbytes, np.uint8)
                self._fill(block[:nbytes].data, offset)
                rows = np.ndarray((len(target), span, size), np.uint8, block, 0, (row, size, 1))
                target[:] = rows if span == j - i else rows[:, places]
        self.check_unchanged()
        return out

    def _fill(self, rest: memoryview, offset: int) -> None:
        offset += self._offset
        while rest:
            if hasattr(os, "preadv"):  # has no position that forked processes would share
                count = os.preadv(self._file.fileno(), [rest], offset)
            else:
                self._file.seek(offset)
                count = self._file.readinto(rest)
            if not count:
                self.check_unchanged()
                path = Path(self._file.name)
                raise unreadable(path, "a complete array", "a file that ends before")
            rest, offset = rest[count:], offset + count

    def check_unchanged(self, other: os.stat_result | None = None) -> None:
        """Rejects a file that was changed since it was opened.

        Args:
            other: The status of a file that must be the same one.

        Raises:
            UnreadableVideoError: It is another one, or was written to.
        """
        if _state_of(other or os.fstat(self._file.fileno())) != self._state:
            path = Path(self._file.name)
            expected, got = "a file that does not change while it is read", "one that did"
            raise unreadable(path, expected, got, "write clips before training, or replace whole")


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    """What tells whether a file was replaced or written to."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class StoredArray(NamedTuple):
    """An array and its description.

    Attributes:
        data: A `LazyArray`, to be closed after use, or an array in memory.
        axes: The order of its axes, if known.
        fps: Frames per second, if known.
    """

    data: np.ndarray | torch.Tensor | LazyArray
    axes: str | None = None
    fps: float | None = None


_VIDEO_KEY = "video"
_NOTES = ("axes", "fps")
# An array that inflates to more bytes, and to so many times those in the file, is a bomb
_LARGE, _MOST_TIMES = 1 << 30, 100


def load_npy(path: Path) -> StoredArray:
    """Opens an npy file.

    Raises:
        UnreadableVideoError: The file is damaged or truncated, or holds no array of numbers.
    """
    expected = "an npy file of numbers"
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_file(path))
        status = os.fstat(file.fileno())
        with decoding(path, expected):
            shape, order, dtype = _read_header(path, file)
        held, needed = status.st_size - file.tell(), math.prod(shape) * dtype.itemsize
        if held < needed:
            got = f"{held} bytes of the {needed} that the shape {shape} needs"
            raise unreadable(path, expected, got)
        axes = range(len(shape))[:: -1 if order == "F" else 1]
        array = FileArray(file, _state_of(status), file.tell(), dtype, shape, axes)
        opened.pop_all()
    return StoredArray(array)


def _read_header(path: Path, file: Any) -> tuple[tuple[int, ...], Any, np.dtype[Any]]:
    """Shape, order in memory ("C" or "F") and type of the array that begins here."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,  # later ones are for structured types
    }
    shape, is_fortran, dtype = readers[np.lib.format.read_magic(file)](file)
    if dtype.kind not in "biuf":
        advice = "store booleans, whole numbers or floats"
        raise unreadable(path, "an array of real numbers", f"the type {dtype}", advice)
    if min(shape, default=1) <= 0:
        raise unreadable(path, "an array that is not empty", f"the shape {shape}")
    return shape, "F" if is_fortran else "C", dtype


def load_npz(path: Path, max_bytes: int) -> StoredArray:
    """Reads the video from an npz file: its array "video", or its only one.

    Arrays "axes" (a string) and "fps" (a number) describe it.

    Args:
        path: The file.
        max_bytes: Limit for the size of the array.

    Raises:
        UnreadableVideoError: The file is damaged, holds no array of numbers, or a larger one.
    """
    expected = "an npz file of numbers"
    with open_file(path) as file, decoding(path, expected), np.load(file) as archive:
        key = _choose(path, archive.files)
        video = _read_member(path, archive.zip, f"{key}.npy", max_bytes)
        notes = {note: archive[note].item() for note in _NOTES if note in archive.files}
    return StoredArray(video, *_described(path, notes))


def _read_member(path: Path, archive: zipfile.ZipFile, name: str, max_bytes: int) -> np.ndarray:
    with archive.open(name) as file:
        shape, order, dtype = _read_header(path, file)
        needed, packed = math.prod(shape) * dtype.itemsize, archive.getinfo(name).compress_size
        limit = min(max_bytes, max(_LARGE, _MOST_TIMES * packed))
        if needed > limit:
            expected = f"an array of at most {limit} bytes"
            raise unreadable(
                path, expected, f"{packed} bytes that inflate to {needed}", "store it as .npy"
            )
        # One byte more than needed: a member's checksum is only compared at its end
        content = file.read(needed + 1)
    if len(content) != needed:
        got = f"other than the {needed} bytes that the shape {shape} needs"
        raise unreadable(path, f"a complete array in {name}", got)
    return np.frombuffer(content, dtype).reshape(shape, order=order)


def load_pt(path: Path, max_bytes: int = sys.maxsize) -> StoredArray:
    """Opens a tensor that `torch.save` wrote: alone, in a dict under "video", or its only tensor.

    Entries "axes" (a string) and "fps" (a number) of the dict describe it.

    Args:
        path: The file.
        max_bytes: Limit for the size of a tensor that repeats the numbers in the file, as one
            from `expand`.

    Raises:
        UnreadableVideoError: The file is damaged, or holds no such tensor.
    """
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(open_file(path))
        state = _state_of(os.fstat(file.fileno()))
        with decoding(path, "a pt file with a tensor", "write a tensor with torch.save"):
            content, offsets = _load_pt(path, file)
        found = content if isinstance(content, dict) else {_VIDEO_KEY: content}
        tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        tensor = tensors[_choose(path, tensors)].detach()
        _check_tensor(path, tensor, max_bytes)
        described = _described(path, found)
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        start = offsets.get(tensor.untyped_storage().data_ptr())
        if start is None or tensor.is_neg() or not tensor.permute(order).is_contiguous():
            return StoredArray(copy.deepcopy(tensor), *described)  # not mapped any more
        start += int(tensor.storage_offset()) * tensor.itemsize
        array = FileArray(file, state, start, tensor.dtype, tensor.shape, order)
        array.check_unchanged(os.stat(path))  # torch has opened it by its name
        opened.pop_all()
    return StoredArray(array, *described)


def _load_pt(path: Path, file: FileIO) -> tuple[Any, dict[int, int]]:
    """What `torch.save` wrote, mapped, and a dict: address of a storage -> offset in the file."""
    storages: list[torch.UntypedStorage] = []

    def note(storage: Any, location: str) -> Any:
        storages.extend([storage] * bool(storage.nbytes()))
        return storage

    with zipfile.ZipFile(file) as archive:
        entries = [entry for entry in stored_entries(archive) if "/data/" in entry.filename]
        offsets = sorted(_offset_of(file, entry) for entry in entries if entry.file_size)
        names = [name for name in archive.namelist() if name.endswith("/byteorder")]
        is_native = all(archive.read(name).decode() == sys.byteorder for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sparse tensors, which are refused later
        content = torch.load(path, map_location=note, weights_only=True, mmap=True)
    addresses = sorted(storage.data_ptr() for storage in storages)
    moved = {address - offset for address, offset in zip(addresses, offsets, strict=False)}
    if not is_native or len(addresses) != len(offsets) or len(moved) != 1:
        return content, {}
    return content, dict(zip(addresses, offsets, strict=True))


def stored_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries of a zip that `torch.save` wrote: not compressed, without overlap.

    Args:
        archive: The opened zip.

    Raises:
        ValueError: It is no such zip.
    """
    entries = archive.infolist()
    if any(entry.compress_type or entry.compress_size != entry.file_size for entry in entries):
        raise ValueError("compressed entries, which torch.save does not write")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two entries of one name")
    # A header of 30 bytes and the name precede the content
    places = sorted((e.header_offset, e.file_size + 30 + len(e.filename)) for e in entries)
    places.append((archive.start_dir, 0))
    if any(start + size > after for (start, size), (after, _) in itertools.pairwise(places)):
        raise ValueError("entries that overlap or reach beyond the file")
    # torch makes one of any size that a few bytes ask for; the unpickler knows no other spelling
    file = cast(BinaryIO, archive.fp)
    for entry in entries:
        if entry.filename.endswith("/data.pkl"):
            file.seek(_offset_of(file, entry))  # `archive.read` would compare the checksum
            if b"bytearray\n" in file.read(entry.file_size):
                raise ValueError("a bytearray, which torch.save does not write of tensors")
    return entries


def _offset_of(file: BinaryIO | FileIO, entry: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins, after its header and name."""
    file.seek(entry.header_offset + 26)
    return entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _check_tensor(path: Path, tensor: torch.Tensor, max_bytes: int) -> None:
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_complex() or not tensor.numel():
        got = f"{tensor.layout}, {tensor.dtype}, {tuple(tensor.shape)} on {tensor.device}"
        expected = "a dense tensor of real numbers that is not empty"
        raise unreadable(path, expected, got, "store one, as floats or uint8")
    held = tensor.untyped_storage().nbytes()
    if tensor.nbytes > max(held, max_bytes):
        expected = f"a tensor of at most {max_bytes} bytes where numbers are repeated"
        got = f"{tuple(tensor.shape)} made of {held} bytes"
        raise unreadable(path, expected, got, "store fewer frames")


def _choose(path: Path, names: Collection[str]) -> str:
    names = [name for name in names if name not in _NOTES]
    if _VIDEO_KEY in names:
        return _VIDEO_KEY
    if len(names) != 1:
        got = f"{len(names)} ({', '.join(map(str, names[:5])) or 'none'})"
        raise unreadable(path, f"one array, or one called {_VIDEO_KEY!r}", got, "name the video")
    return names[0]


def _described(path: Path, notes: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The axes and the frames per second that a file states."""
    axes = notes.get("axes")
    return None if axes is None else str(axes), _rate(path, notes.get("fps"))


def _rate(path: Path, fps: Any) -> float | None:
    if fps is None:
        return None
    try:
        rate = float(fps)
    except (TypeError, ValueError):
        rate = math.nan
    if not 0 < rate < math.inf:
        raise unreadable(path, "a number above 0 as fps", f"{fps!r:.60}", "correct it")
    return rate


class ArrayReader(VideoReader):
    """Frames of an array.

    Args:
        path: Its file.
        stored: The array; closed with the reader.
        channels: Required number of channels; None for any.

    Raises:
        UnreadableVideoError: The axes of the array are ambiguous, or do not fit.
    """

    is_array = True

    def __init__(self, path: Path, stored: StoredArray, channels: int | None = None) -> None:
        self._data = stored.data
        try:
            self._axes, channels = resolve_axes(stored.data.shape, stored.axes, channels, path)
        except ValueError:
            self.close()
            raise
        num_frames = dict(zip(self._axes, stored.data.shape, strict=True)).get("f", 1)
        super().__init__(path, channels, num_frames, Clock.of_rate(stored.fps, num_frames))

    def _array(self, indices: Sequence[int] | range) -> torch.Tensor:
        self._check_open()
        wanted = list(itertools.takewhile(lambda index: index < self.num_frames, indices))
        order = self._axes
        if "f" in order:
            pixels = _to_tensor(self._data, order.index("f"), wanted)
        else:
            order, pixels = "f" + order, _to_tensor(self._data)[None][: len(wanted)]
        if "c" not in order:
            order, pixels = "c" + order, pixels[None]
        return pixels.permute([order.index(letter) for letter in "cfhw"]).contiguous()

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        super().close()
        if isinstance(self._data, LazyArray):
            self._data.close()


def open_array(
    path: Path,
    channels: int | None,
    axes: str | None,
    max_bytes: int = MAX_BYTES,
    item: int | None = None,
) -> ArrayReader:
    """Opens an array file.

    Args:
        path: The file, ending in .npy, .npz or .pt.
        channels: Required number of channels; None for any.
        axes: The stored order, as for `read_video`; None for what the file states, or else what
            its shape allows.
        max_bytes: Limit for the size of an array in an npz file.
        item: Number of the simulation, of an array of several; None for the only one.

    Raises:
        FileNotFoundError: The file is missing.
        UnreadableVideoError: The file is truncated or damaged, holds no array of real numbers, or
            one whose axes are ambiguous.
        ValueError: `axes` is no order of axes.
    """
    check_axes(axes)
    stored = _load(path, max_bytes)
    if axes is not None:
        stored = stored._replace(axes=axes)
    return ArrayReader(path, _one_of(path, stored, item), channels)


def count_arrays(path: Path, axes: str) -> int:
    """Number of simulations in an array file with this order of axes."""
    data = _load(path, MAX_BYTES).data
    try:
        return dict(zip(axes, data.shape, strict=False)).get("n", 1)
    finally:
        if isinstance(data, LazyArray):
            data.close()


def _one_of(path: Path, stored: StoredArray, item: int | None) -> StoredArray:
    """An array without the axis of simulations."""
    axes, data = stored.axes, stored.data
    if axes is None or "n" not in axes or len(axes) != len(data.shape):
        return stored  # an order that does not fit is refused later
    axis = axes.index("n")
    if item is None and data.shape[axis] > 1:
        if isinstance(data, LazyArray):
            data.close()
        advice = "open it as a dataset, or choose one"
        raise unreadable(path, "one simulation", f"{data.shape[axis]} of them", advice)
    number = item or 0
    one: Any = data
    if isinstance(data, FileArray):
        one = data.entry(axis, number)
    else:
        one = one[(slice(None),) * axis + (number,)]
    return stored._replace(data=one, axes=axes.replace("n", ""))


ReadFn = Callable[[Path], Any]

_WHOLE = "read_fn to return a number for each pixel"


def call_reader(path: Path, read_fn: ReadFn, channels: int | None = None) -> ArrayReader:
    """Opens what a function of the user returns for a file.

    Args:
        path: The file.
        read_fn: Called with the path, returns an array or tensor `(c, f, h, w)`, or that and the
            frames per second.
        channels: Required number of channels; None for any.

    Raises:
        TypeError: The function returns something else.
        UnreadableVideoError: The function fails, other than for lack of memory, files or disk; its
            array has other axes or another number of channels, holds no real numbers, or has
            masked values; or the rate is no number above 0.
    """
    if path.exists() and not path.is_dir():
        regular_file(path)
    advice = "repair or remove the file, or correct read_fn"
    with decoding(path, "a file that read_fn can read", advice, damage=()):
        given = read_fn(path)
    has_rate = isinstance(given, tuple) and len(given) == 2
    values, fps = given if has_rate else (given, None)
    if not isinstance(values, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"read_fn must return an array or tensor (c, f, h, w), or (array, fps), got "
            f"{type(values).__name__} for {path}; convert it with numpy.asarray"
        )
    if isinstance(values, np.ndarray):
        if np.ma.is_masked(values):
            got = f"{np.ma.count_masked(values)} that are masked"
            raise unreadable(path, _WHOLE, got, "fill them in read_fn, as by values.filled(0)")
        values, is_real = np.asarray(values), values.dtype.kind in "biuf"
    else:
        is_real = not values.is_complex()
    is_clip = values.ndim == 4 and 0 not in values.shape
    if not is_clip or not is_real or channels not in (None, values.shape[0]):
        wanted = "any number of" if channels is None else channels
        raise unreadable(
            path,
            f"read_fn to return real numbers of shape (c, f, h, w) with {wanted} channels",
            f"{values.dtype} of shape {tuple(values.shape)}",
            "move the axes or convert the numbers in read_fn, or set channels",
        )
    return ArrayReader(path, StoredArray(values, "cfhw", _rate(path, fps)))


def read_array(path: Path) -> torch.Tensor:
    """Reads a whole array of any number of axes, as it is stored.

    Args:
        path: The file, ending in .npy, .npz or .pt.

    Returns:
        A tensor of the stored shape, uint8 if the file holds uint8, else float32.

    Raises:
        FileNotFoundError: The file is missing.
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
        if isinstance(data, LazyArray):
            data.close()


def _load(path: Path, max_bytes: int) -> StoredArray:
    check_signature(path)
    if family_of_name(path) == "npy":
        return load_npy(path)
    return load_npz(path, max_bytes) if path.suffix.lower() == ".npz" else load_pt(path, max_bytes)


def _to_tensor(
    data: np.ndarray | torch.Tensor | LazyArray, axis: int | None = None, wanted: Sequence[int] = ()
) -> torch.Tensor:
    """A copy of the array, or of the requested entries of one axis."""
    if isinstance(data, LazyArray):
        part = data.read(axis, wanted)
    else:
        part = data if axis is None else data[(slice(None),) * axis + (wanted,)]
    if isinstance(part, torch.Tensor):
        dtype = torch.uint8 if part.dtype == torch.uint8 else torch.float32
        return part.to(dtype, copy=part is data)
    kind = np.uint8 if part.dtype == np.uint8 else np.float32
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
        return torch.from_numpy(np.require(part, kind, "W"))
