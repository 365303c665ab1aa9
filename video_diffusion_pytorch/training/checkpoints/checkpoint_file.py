"""A checkpoint becomes one file, whole or not at all, and is read without running code from it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.data.formats.arrays import stored_entries
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import list_checkpoints
from video_diffusion_pytorch.training.checkpoints.state_types import check_types

logger = logging.getLogger("video_diffusion_pytorch")

FORMAT = 1
"""What a checkpoint's entry `format` says; a reader refuses those larger than its own."""

_FOLDER_BIT = 0x10  # of the external attributes of a zip's record
_TEMPORARY = re.compile(r"\.model-.*\.(\d+)\.tmp")


class NewerFormat(ValueError):
    """The checkpoint is whole, but of a later version of this library that writes it otherwise."""


class _Recorder:
    """A file that remembers what failed: torch's zip writer raises a RuntimeError in its place."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.flush = file.flush
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except BaseException as error:
            self.failure = error
            raise


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes `state` to `path`; whatever interrupts it, `path` holds the old file or the new one.

    Tensors of other devices come to the CPU one by one. What a killed process left half written
    in the folder is removed first.

    Args:
        state: Tensors and plain values, see `Resumable.checkpoint_state`.
        path: The file; its folder must be there.

    Raises:
        OSError: If it can't be written; the message names the file.
        TypeError: If it holds what could be read only by running code.
    """
    plain = _plain(state)
    temporary = path.with_name(f".{path.name[:50]}.{os.getpid()}.tmp")
    _remove_leftovers(path.parent)
    recorder: Any = None
    try:
        _check_readable(plain, path)
        with temporary.open("wb") as file:
            recorder = _Recorder(file)
            torch.save(plain, recorder)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        failure = recorder.failure if recorder and recorder.failure else error
        if not isinstance(failure, OSError):
            raise failure from None  # an interrupt while writing, or an error of the device
        raise OSError(
            f"the checkpoint {path} could not be written: {failure}; the checkpoints before it are "
            "untouched: make room or check the folder's permissions, and train on from the last"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _check_readable(state: dict[str, Any], path: Path) -> None:
    """Raises a TypeError for what `read_checkpoint` would refuse: it is too late to learn it then.

    It is written to memory, with tensors of no size.
    """
    content = io.BytesIO()
    torch.save(_without_values(state), content)
    content.seek(0)
    try:
        torch.load(content, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "an object of another class"
        raise TypeError(
            f"the checkpoint {path} must hold tensors and plain values only, so that reading it "
            f"runs no code, got {what}; turn it into tensors, numbers, texts, lists or dicts in "
            "checkpoint_state"
        ) from error


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".model-*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        # another process may write here too: one that gathers a sharded checkpoint
        if match is None or not path.is_file() or _runs_beside(int(match.group(1))):
            continue
        try:
            path.unlink()
        except OSError as error:
            logger.warning("%s is left over and could not be removed: %s", path, error)


def _runs_beside(process: int) -> bool:
    """Whether it is another process of this machine; where that can't be asked, it is not."""
    if os.name != "posix" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def sync_folder(folder: Path) -> None:
    """Without it a power failure may bring the old entry back; Windows has no such call."""
    if os.name != "posix":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("the newest file in %s may not outlast a power failure: %s", folder, error)


def _plain(value: Any) -> Any:
    """The same with Python's own numbers for numpy's, which a file can't hold without code."""
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    # tensors and what holds them in classes of its own stay as they are
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a training file of this library or of the reference, tensors and plain values only.

    One altered byte is found. Files that were written without checksums are the exception: those
    of torch before 1.6, and those written after `torch.serialization.set_crc32_options(False)`.

    Args:
        path: The file.
        map_location: As in `torch.load`.

    Returns:
        The state that was written, see `Resumable.checkpoint_state`; that of the reference has
        `step`, `model`, `ema` and `scaler`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a whole training file; `NewerFormat` if a later version of this
            library wrote it.
    """
    _check_file(path)
    if isinstance(map_location, (str, torch.device)):
        torch.empty(0, device=map_location)  # or torch says here, not of the file, what is wrong
    with _damage_named(path):
        _check_sums(path)
        state = torch.load(path, map_location=map_location, weights_only=True)
    return _checked(state, path, {"step", "model", "ema"})


def glance(path: Path) -> dict[str, Any]:
    """The state in a checkpoint without the values of its tensors, quickly however large it is.

    Args:
        path: A file `model-N.pt` or a folder `model-N.sharded`.

    Returns:
        The state as `read_checkpoint` gives it, but all tensors are on the device `meta`: they
        have shapes and dtypes only. That of a folder holds what its file `run.pt` does.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As in `read_checkpoint`, but altered bytes in tensors are not found.
    """
    is_folder = path.is_dir()
    file = path / "run.pt" if is_folder else path
    _check_file(file)
    with _damage_named(file):
        is_zip = _check_sums(file, only_values=True)
        # the mapping reads what is looked at; torch before 1.6 wrote no zip and can't be mapped
        state = _without_values(torch.load(file, "cpu", weights_only=True, mmap=is_zip))
    return _checked(state, file, {"step"} if is_folder else {"step", "model", "ema"})


def _without_values(value: Any, done: dict[int, Any] | None = None) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if not isinstance(value, dict) and type(value) not in (list, tuple):
        return value
    # a list that holds another one ten times, which holds another one ten times, has no end
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, dict):
            made = type(value)((key, _without_values(item, done)) for key, item in value.items())
        else:
            made = type(value)(_without_values(item, done) for item in value)
        done[id(value)] = made
    return done[id(value)]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found none; the folder holds "
            f"{[p.name for p in list_checkpoints(path.parent)] or 'no checkpoint'}"
        )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, torch.OutOfMemoryError):
        raise  # they say nothing about the file
    # altered bytes can bring up any exception: the old format is a program for the unpickler
    except Exception as error:
        # torch's own advice would be to read it without protection
        is_refused = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if is_refused else str(error).splitlines()[0]
        raise ValueError(
            f"expected a checkpoint in {path}, got a file that is cut off, altered or of another "
            f"kind ({reason}); use the checkpoint before it"
        ) from error


def _check_sums(path: Path, only_values: bool = False) -> bool:
    """Compares the zip's checksums, which `torch.load` doesn't; False for the format before 1.6."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        records = stored_entries(archive)
        folders = [record.filename for record in records if record.external_attr & _FOLDER_BIT]
        if folders:  # torch leaves the memory of such a tensor as it was
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        if not any(record.CRC for record in records):
            logger.warning("%s was written without checksums: altered bytes are not found", path)
            return True
        for record in records:
            if only_values and not record.filename.endswith("/data.pkl"):
                continue
            with archive.open(record) as content:
                while content.read(1 << 20):  # raises at the end if the sum is another
                    pass
    return True


def _checked(state: Any, path: Path, wanted: set[str]) -> dict[str, Any]:
    if not isinstance(state, dict) or not wanted <= state.keys():
        found = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        names = "step, model and ema" if len(wanted) > 1 else "step"
        raise ValueError(
            f"expected a training file with {names} in {path}, got {found}; load a "
            "bare state dict with load_state_dict"
        )
    number = state.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise NewerFormat(
            f"expected a checkpoint of format {FORMAT} or older in {path}, got format {number}, "
            f"written by version {state.get('version', 'unknown')}; upgrade "
            "video-diffusion-pytorch to that version or later"
        )
    check_types(state, path)
    return state
