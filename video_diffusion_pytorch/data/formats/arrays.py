"""Arrays: npy, npz and pt files, read frame by frame."""

from __future__ import annotations

import contextlib
import math
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    is_of_the_machine,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.readers import (
    FAMILY_OF_ENDING,
    VideoReader,
    check_indices,
    check_signature,
    closed_reader,
)

_COMMON_ORDERS = ("cfhw", "fchw", "fhwc")
_MAX_CHANNELS = 4
_EXPECTED = "an array whose axes can be told"


def check_axes(axes: str | None) -> None:
    """Refuse a statement of axes that no array can have.

    Raises:
        ValueError: `axes` does not consist of `h`, `w` and perhaps `c`, `f`, each once.

    Example:
        >>> check_axes("fhwc"), check_axes("hw"), check_axes(None)
        (None, None, None)
    """
    if axes is None:
        return
    if not {"h", "w"} <= set(axes) <= set("cfhw") or len(set(axes)) < len(axes):
        raise ValueError(
            "axes must name the stored order in the letters c (channels), f (frames), h, w, each "
            f"at most once and h and w always, got {axes!r}; pass for example 'fhwc' or 'fhw'"
        )


def resolve_axes(
    shape: Sequence[int], axes: str | None, channels: int | None, path: Path
) -> tuple[str, int]:
    """Tell the order of an array's axes.

    Args:
        shape: Of the array.
        axes: The order as somebody has stated it, such as "fhwc" or, of one channel, "fhw". None:
            an array of four axes has the one of the orders cfhw, fchw, fhwc that fits.
        channels: How many channels there must be; None for any number, or 1 to 4 where the order
            has to be told from the shape.
        path: The file, for the error's message.

    Returns:
        The order, and the number of channels.

    Raises:
        UnreadableVideoError: The shape does not fit, or fits more than one order.

    Example:
        >>> resolve_axes((10, 3, 64, 64), None, None, Path("a.npy"))
        ('fchw', 3)
    """
    if axes is None:
        axes = _tell(shape, channels, path)
    stored = dict(zip(axes, shape, strict=False)).get("c", 1)
    if len(axes) != len(shape):
        got = f"the shape {tuple(shape)}"
        raise unreadable(path, f"the axes {axes!r}", got, "state the axes that it has")
    if channels is not None and stored != channels:
        got = f"{stored} in the shape {tuple(shape)} with the axes {axes!r}"
        raise unreadable(path, f"{channels} channels", got, "correct channels or axes")
    return axes, stored


def _tell(shape: Sequence[int], channels: int | None, path: Path) -> str:
    allowed = range(1, _MAX_CHANNELS + 1) if channels is None else (channels,)
    fitting = [
        order
        for order in _COMMON_ORDERS
        if len(shape) == len(order) and shape[order.index("c")] in allowed
    ]
    if len(fitting) == 1:
        return fitting[0]
    wanted = "1 to 4 channels" if channels is None else f"{channels} channels"
    fits = f"which fits {' and '.join(fitting)}" if fitting else f"with no axis for {wanted} in it"
    if len(shape) != 4:
        fits = f"of {len(shape)} axes rather than four"
    raise unreadable(
        path,
        f"{_EXPECTED}: one of {', '.join(_COMMON_ORDERS)} with {wanted}",
        f"the shape {tuple(shape)}, {fits}",
        'state the order, for example axes="fhw" for frames, height and width',
    )


_VIDEO_KEY = "video"
_NOTES = ("axes", "fps")
# Bytes between two wanted ones that are read and left out, which is faster than another call
_GAP = 1 << 15
# Bytes read at once where there are gaps, into a buffer that the processor's cache holds
_BLOCK = 1 << 20
# An array that inflates to more bytes, and to so many times those in the file, is a bomb
_LARGE, _MOST_TIMES = 1 << 30, 100


class FileArray:
    """An array in an open file, of which only what is asked for is read.

    It is not mapped into memory: a mapped file that another program cuts short ends the process.

    Args:
        file: Opened without a buffer; closed by `close`.
        state: What `_state_of` gave before anything was read.
        offset: Where the array begins, in bytes.
        dtype: NumPy's or torch's; so is what `read` gives.
        shape: The array's.
        strides: Distances along each axis, in numbers; 0 or more.
    """

    def __init__(
        self,
        file: FileIO,
        state: tuple[int, ...],
        offset: int,
        dtype: np.dtype[Any] | torch.dtype,
        shape: Sequence[int],
        strides: Sequence[int],
    ) -> None:
        self.shape, self.close = tuple(shape), file.close
        self._file, self._state, self._offset, self._dtype = file, state, offset, dtype
        self._strides = tuple(strides)
        # From the slowest axis to the fastest, as the numbers follow on each other in the file
        steps = [step if length > 1 else 0 for length, step in zip(shape, strides, strict=True)]
        self._order = sorted(range(len(steps)), key=lambda axis: -steps[axis])
        gapless = _c_strides([self.shape[axis] for axis in self._order])
        self._is_gapless = all(
            self.shape[axis] == 1 or strides[axis] == step
            for axis, step in zip(self._order, gapless, strict=True)
        )

    def read(self, axis: int | None = None, wanted: Sequence[int] = ()) -> Any:
        """Read the array, or of one axis the entries that are wanted.

        Args:
            axis: The axis; None for the whole array.
            wanted: Numbers along it, increasing.

        Returns:
            An array or a tensor in memory of its own.

        Raises:
            UnreadableVideoError: The file was changed since it was opened.
        """
        if not self._is_gapless:
            last = sum((n - 1) * step for n, step in zip(self.shape, self._strides, strict=True))
            flat = torch.from_numpy(self._rows(1, 1, (last + 1) * self._dtype.itemsize, [0]))
            # `clone` leaves the rest of the memory behind
            whole = flat.view(-1).view(cast(torch.dtype, self._dtype))
            seen = whole.as_strided(self.shape, self._strides)
            if axis is None:
                return seen.clone()
            return seen.index_select(axis, torch.tensor(list(wanted), dtype=torch.int64))
        lengths = [self.shape[i] for i in self._order]
        place = 0 if axis is None else self._order.index(axis)
        size = math.prod(lengths) * self._dtype.itemsize
        if axis is None or len(wanted) == lengths[place]:
            pixels = self._rows(1, 1, size, [0])
        else:
            outer, total = math.prod(lengths[:place]), lengths[place]
            pixels = self._rows(outer, total, size // outer // total, wanted)
            lengths[place] = len(wanted)
        back = [self._order.index(i) for i in range(len(lengths))]
        if isinstance(self._dtype, torch.dtype):
            return torch.from_numpy(pixels).view(-1).view(self._dtype).view(lengths).permute(back)
        return pixels.reshape(-1).view(self._dtype).reshape(lengths).transpose(back)

    def _rows(self, outer: int, total: int, size: int, wanted: Sequence[int]) -> np.ndarray:
        """Read of `outer` rows of `total` entries of `size` bytes the wanted entries."""
        out = np.empty((outer, len(wanted), size), np.uint8)
        if not wanted:
            return out
        target, row = out.reshape(-1).data, total * size
        numbers = np.asarray(wanted, dtype=np.int64)
        # In a run, what is between wanted entries is read with them
        is_apart = np.diff(numbers) > 1 + _GAP // size
        is_apart |= np.diff(numbers * size // _BLOCK) > 0
        runs = [
            (int(run[0]), int(run[-1]) + 1, int(numbers[run[0]]), numbers[run] - numbers[run[0]])
            for run in np.split(np.arange(len(numbers)), np.flatnonzero(is_apart) + 1)
        ]
        between = row - int(numbers[-1] + 1 - numbers[0]) * size
        at_once = max(1, _BLOCK // row) if len(runs) == 1 and between <= _GAP else 1
        block = np.empty(at_once * row if at_once > 1 else _BLOCK + size, np.uint8)
        for start in range(0, outer, at_once):
            count = min(at_once, outer - start)
            for i, j, first, places in runs:
                span, offset = int(places[-1]) + 1, (start * total + first) * size
                if count == 1 and span == j - i:
                    at = (start * len(wanted) + i) * size
                    self._fill(target[at : at + span * size], offset)
                    continue
                self._fill(block.data[: ((count - 1) * total + span) * size], offset)
                seen = np.ndarray((count, span, size), np.uint8, block, 0, (row, size, 1))
                out[start : start + count, i:j] = seen if span == j - i else seen[:, places]
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
        """Refuse a file that is not as it was when it was opened.

        Args:
            other: Of what must be that file, too.

        Raises:
            UnreadableVideoError: It is another one, or was written to.
        """
        if _state_of(other or os.fstat(self._file.fileno())) != self._state:
            path = Path(self._file.name)
            expected, got = "a file that does not change while it is read", "one that did"
            raise unreadable(path, expected, got, "write clips before training, or replace whole")


def _state_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _c_strides(shape: Sequence[int]) -> list[int]:
    """Distances along the axes of an array in C's order."""
    return [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


class StoredArray(NamedTuple):
    """An array as the file holds it.

    Attributes:
        data: In the file, where only what is used is read, or in memory.
        axes: The order of its axes, where the file states it.
        fps: Frames per second, where the file states them.
    """

    data: np.ndarray | torch.Tensor | FileArray
    axes: str | None = None
    fps: float | None = None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Any
    dtype: np.dtype[Any]
    nbytes: int


def load_npy(path: Path) -> StoredArray:
    """Open an npy file; its `data` is to be closed.

    Raises:
        UnreadableVideoError: The file is damaged or cut short, or holds no array of numbers.
    """
    expected = "an npy file of numbers"
    file = regular_file(path).open("rb", buffering=0)
    try:
        status = os.fstat(file.fileno())
        try:
            header = _read_header(cast(BinaryIO, file))
        except Exception as error:  # what numpy raises for a damaged header is not documented
            if is_of_the_machine(error):
                raise
            raise unreadable(path, expected, f"{type(error).__name__}: {error}") from error
        _check_numbers(path, header)
        offset = file.tell()
        held = status.st_size - offset
        if held < header.nbytes:
            got = f"{held} bytes of the {header.nbytes} that the shape {header.shape} needs"
            raise unreadable(path, expected, got)
        steps = _c_strides(header.shape)
        if header.order == "F":
            steps = _c_strides(header.shape[::-1])[::-1]
        array = FileArray(file, _state_of(status), offset, header.dtype, header.shape, steps)
    except BaseException:
        file.close()
        raise
    return StoredArray(array)


def load_npz(path: Path, max_bytes: int) -> StoredArray:
    """Read the video from an npz file: its array "video", or its only one.

    Arrays called "axes" (a string) and "fps" (a number) say more about it.

    Args:
        path: The file.
        max_bytes: How large the array may be in memory.

    Raises:
        UnreadableVideoError: The file is damaged, holds no array of numbers, or a larger one.
    """
    expected = "an npz file of numbers"
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            arrays = {
                key: _read_member(path, archive, members[key], max_bytes)
                for key in (_choose(path, members), *_NOTES)
                if key in members
            }
    except UnreadableVideoError:
        raise
    except Exception as error:  # zipfile and zlib raise almost every kind of error
        if is_of_the_machine(error):
            raise
        raise unreadable(path, expected, f"{type(error).__name__}: {error}") from error
    notes = {key: arrays[key].item() for key in _NOTES if key in arrays}
    video = arrays[next(key for key in arrays if key not in _NOTES)]
    return StoredArray(video, *_check_notes(path, notes))


def load_pt(path: Path, max_bytes: int = sys.maxsize) -> StoredArray:
    """Open a tensor that `torch.save` wrote: alone, in a dict under "video", or as its only tensor.

    Entries "axes" (a string) and "fps" (a number) of the dict say more about it. `data` is to be
    closed.

    Args:
        path: The file.
        max_bytes: How large a tensor may be that repeats the numbers in the file, as one from
            `expand`.

    Raises:
        UnreadableVideoError: The file is damaged, or holds no such tensor.
    """
    file = regular_file(path).open("rb", buffering=0)
    with contextlib.ExitStack() as opened:
        opened.callback(file.close)
        state = _state_of(os.fstat(file.fileno()))
        content, places = _load_pt(path, file)
        found = content if isinstance(content, dict) else {_VIDEO_KEY: content}
        tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
        tensor = tensors[_choose(path, tensors)].detach()
        _check_tensor(path, tensor, max_bytes)
        notes = {key: found[key] for key in _NOTES if key in found}
        told = _check_notes(path, notes)
        place = places.get(tensor.untyped_storage().data_ptr())
        if place is None or tensor.is_neg():  # not as it is in the file
            return StoredArray(tensor, *told)
        offset = place + int(tensor.storage_offset()) * tensor.itemsize
        array = FileArray(file, state, offset, tensor.dtype, tensor.shape, tensor.stride())
        array.check_unchanged(os.stat(path))  # torch has opened it by its name
        opened.pop_all()
    return StoredArray(array, *told)


def _load_pt(path: Path, file: FileIO) -> tuple[Any, dict[int, int]]:
    """What `torch.save` wrote, and by their addresses in memory where values are in the file.

    The values are mapped, and not looked at.
    """
    storages: list[torch.UntypedStorage] = []

    def note(storage: Any, location: str) -> Any:
        storages.extend([storage] * bool(storage.nbytes()))
        return storage

    try:
        with zipfile.ZipFile(file) as archive:
            offsets = [
                _offset_of(file, entry)
                for entry in stored_entries(archive)
                if "/data/" in entry.filename and entry.file_size
            ]
            orders = [name for name in archive.namelist() if name.endswith("/byteorder")]
            is_swapped = any(archive.read(name).decode() != sys.byteorder for name in orders)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused later
            content = torch.load(path, map_location=note, weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises almost every kind of error
        if is_of_the_machine(error):
            raise
        got = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise unreadable(path, "a pt file with a tensor", got) from error
    addresses = sorted(storage.data_ptr() for storage in storages)
    moved = {address - offset for address, offset in zip(addresses, sorted(offsets), strict=False)}
    is_known = len(addresses) == len(offsets) and len(moved) == 1
    return content, {} if is_swapped or not is_known else dict(
        zip(addresses, sorted(offsets), strict=True)
    )


def stored_entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The entries of a zip that `torch.save` wrote: none compressed, none over another.

    Args:
        archive: The opened zip.

    Raises:
        ValueError: It is no such zip.
    """
    entries = archive.infolist()
    if any(
        entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size
        for entry in entries
    ):
        raise ValueError("compressed entries, which torch.save does not write")
    if len({entry.filename for entry in entries}) < len(entries):
        raise ValueError("two entries of one name")
    # A header of 30 bytes and the name come before the content
    places = sorted((e.header_offset, e.file_size + 30 + len(e.filename)) for e in entries)
    places.append((archive.start_dir, 0))
    if any(start + size > after for (start, size), (after, _) in pairwise(places)):
        raise ValueError("entries that overlap or reach beyond the file")
    # torch makes one of any size that a few bytes ask for; the unpickler knows no other spelling
    file = cast(BinaryIO, archive.fp)
    for entry in entries:
        if entry.filename.endswith("/data.pkl"):
            file.seek(
                _offset_of(file, entry)
            )  # `archive.read` compares checksums, if there are any
            if b"bytearray\n" in file.read(entry.file_size):
                raise ValueError("a bytearray, which torch.save does not write of tensors")
    return entries


def _offset_of(file: BinaryIO | FileIO, entry: zipfile.ZipInfo) -> int:
    """Where the content of an entry begins; its name and more are in front of it."""
    file.seek(entry.header_offset + 26)
    return entry.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _check_tensor(path: Path, tensor: torch.Tensor, max_bytes: int) -> None:
    expected = "a pt file with a tensor"
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_complex():
        got = f"one of {tensor.layout}, {tensor.dtype}, on {tensor.device}"
        raise unreadable(path, expected, got, "store a plain one, as floats or uint8")
    if not tensor.numel():
        raise unreadable(path, expected, f"the empty shape {tuple(tensor.shape)}")
    held = tensor.untyped_storage().nbytes()
    if tensor.nbytes > max(held, max_bytes):
        expected = f"a tensor of at most {max_bytes} bytes where numbers are repeated"
        got = f"{tuple(tensor.shape)} made of {held} bytes"
        raise unreadable(path, expected, got, "store fewer frames")


def _choose(path: Path, entries: Mapping[str, object]) -> str:
    names = [key for key in entries if key not in _NOTES]
    if _VIDEO_KEY in names:
        return _VIDEO_KEY
    if len(names) != 1:
        expected = f"one array, or one called {_VIDEO_KEY!r}"
        listed = ", ".join(map(str, names[:5])) or "none"
        raise unreadable(path, expected, f"{len(names)} ({listed})", "name or separate them")
    return names[0]


def _read_header(file: BinaryIO) -> _Header:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format, which only structured arrays need")
    shape, is_fortran, dtype = readers[version](file)
    nbytes = math.prod(shape) * dtype.itemsize
    return _Header(shape, "F" if is_fortran else "C", dtype, nbytes)


def _check_numbers(path: Path, header: _Header) -> None:
    if header.dtype.kind not in "biuf":
        advice = "store booleans, whole numbers or floats"
        raise unreadable(path, "an array of real numbers", f"the type {header.dtype}", advice)
    if not all(type(length) is int and length > 0 for length in header.shape):
        raise unreadable(path, "an array that is not empty", f"the shape {header.shape}")


def _read_member(
    path: Path, archive: zipfile.ZipFile, name: str, max_bytes: int
) -> np.ndarray[Any, Any]:
    with archive.open(name) as file:
        header = _read_header(cast(BinaryIO, file))
        if name.removesuffix(".npy") not in _NOTES:
            _check_numbers(path, header)
        elif header.dtype.kind not in "Uiuf" or math.prod(header.shape) != 1:
            got = f"{header.dtype} of shape {header.shape}"
            raise unreadable(path, f"one string or number in {name}", got, "store such a one")
        if header.nbytes > max_bytes:
            got = f"an array of {header.nbytes} bytes"
            raise unreadable(path, f"at most {max_bytes} bytes", got, "store it as .npy")
        entry = archive.getinfo(name)
        if cast(BinaryIO, file).tell() + header.nbytes != entry.file_size:
            got = f"other than the {header.nbytes} bytes that the shape {header.shape} needs"
            raise unreadable(path, f"a complete array in {name}", got)
        if header.nbytes > max(_LARGE, _MOST_TIMES * entry.compress_size):
            got = f"{entry.compress_size} that inflate to {header.nbytes}"
            raise unreadable(path, "no decompression bomb", got, "store it as .npy")
        # One byte more than wanted: only at its end is a member's checksum compared
        content = file.read(header.nbytes + 1)
    if len(content) != header.nbytes:
        got = f"other than the {header.nbytes} bytes that the shape {header.shape} needs"
        raise unreadable(path, f"a complete array in {name}", got)
    flat = np.frombuffer(content, header.dtype)
    return flat.reshape(header.shape, order=header.order)


def _check_notes(path: Path, notes: Mapping[str, Any]) -> tuple[str | None, float | None]:
    axes, fps = notes.get("axes"), notes.get("fps")
    if axes is not None and not isinstance(axes, str):
        raise unreadable(path, "a string such as 'fhwc' as axes", repr(axes), "store such a one")
    is_number = isinstance(fps, (int, float)) and not isinstance(fps, bool)
    if fps is not None and not (is_number and 0 < fps < math.inf):
        raise unreadable(path, "a number above 0 as fps", repr(fps), "store such a one")
    return axes, None if fps is None else float(fps)


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
