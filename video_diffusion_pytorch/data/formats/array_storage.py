"""First step of the path, for arrays: what is inside an npy, npz or pt file, nothing unpickled."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import torch

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    is_of_the_machine,
    unreadable,
)

_VIDEO_KEY = "video"
_NOTES = ("axes", "fps")


class StoredArray(NamedTuple):
    """An array as the file holds it.

    Attributes:
        data: Mapped into memory where possible, so that only what is used is read.
        axes: The order of its axes, where the file states it.
        fps: Frames per second, where the file states them.
    """

    data: np.ndarray | torch.Tensor
    axes: str | None = None
    fps: float | None = None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    order: Any
    dtype: np.dtype[Any]
    nbytes: int


def load_npy(path: Path) -> StoredArray:
    """Map an npy file.

    Raises:
        UnreadableVideoError: The file is damaged or cut short, or holds no array of numbers.
    """
    expected = "an npy file of numbers"
    try:
        with path.open("rb") as file:
            header = _read_header(file)
            offset = file.tell()
    except Exception as error:  # what numpy raises for a damaged header is not documented
        if is_of_the_machine(error):
            raise
        raise unreadable(path, expected, f"{type(error).__name__}: {error}") from error
    _check_numbers(path, header)
    held = os.path.getsize(path) - offset
    if held < header.nbytes:
        got = f"{held} bytes of the {header.nbytes} that the shape {header.shape} needs"
        raise unreadable(path, expected, got)
    return StoredArray(np.memmap(path, header.dtype, "r", offset, header.shape, order=header.order))


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
        with zipfile.ZipFile(path) as archive:
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


def load_pt(path: Path) -> StoredArray:
    """Map a tensor that `torch.save` wrote: alone, in a dict under "video", or as its only tensor.

    Entries "axes" (a string) and "fps" (a number) of the dict say more about it.

    Raises:
        UnreadableVideoError: The file is damaged, or holds no such tensor.
    """
    expected = "a pt file with a tensor"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("compressed entries, which torch.save does not write")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sparse tensors, which are refused below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler raises almost every kind of error
        if is_of_the_machine(error):
            raise
        reason = str(error).partition("\n")[0]
        raise unreadable(path, expected, f"{type(error).__name__}: {reason}") from error
    found = content if isinstance(content, dict) else {_VIDEO_KEY: content}
    tensors = {key: value for key, value in found.items() if isinstance(value, torch.Tensor)}
    tensor = tensors[_choose(path, tensors)].detach()
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    if not is_plain or tensor.is_quantized or tensor.is_complex():
        got = f"one of {tensor.layout}, {tensor.dtype}, on {tensor.device}"
        raise unreadable(path, expected, got, "store a plain one, as floats or uint8")
    if not tensor.numel():
        raise unreadable(path, expected, f"the empty shape {tuple(tensor.shape)}")
    notes = {key: found[key] for key in _NOTES if key in found}
    return StoredArray(tensor, *_check_notes(path, notes))


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
