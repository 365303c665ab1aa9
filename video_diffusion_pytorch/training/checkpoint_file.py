"""A checkpoint becomes one file, whole or not at all, and is read without running code from it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.training.checkpoint_folder import find_checkpoint, list_checkpoints

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
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _remove_leftovers(path.parent)
    recorder: Any = None
    try:
        with temporary.open("wb") as file:
            recorder = _Recorder(file)
            torch.save(_plain(state), recorder)
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


def _without_values(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if isinstance(value, dict):
        return type(value)((key, _without_values(item)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(map(_without_values, value))
    return value


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
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
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
        records = archive.infolist()
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
    return state


def read_newest(
    folder: Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint
) -> tuple[Path, dict[str, Any]]:
    """Reads the newest checkpoint of a folder that is whole.

    A warning names each newer one that is damaged.

    Args:
        folder: Where the checkpoints are.
        read: What reads one, given its path; it raises a ValueError or a FileNotFoundError for
            one that is not whole.

    Returns:
        The path of the checkpoint and its state.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If none is whole; `NewerFormat` if a later version of this library wrote one
            that is newer than those that can be read.
    """
    find_checkpoint(folder, -1)  # raises where there is none
    found = list_checkpoints(folder)[::-1]
    for path, before in zip(found, [*found[1:], None], strict=True):
        try:
            return path, read(path)
        except NewerFormat:
            raise  # it is whole, and training on from an older one would lose its steps
        except (ValueError, FileNotFoundError) as error:
            if before is not None:
                logger.warning(
                    "%s is cut off or altered: goes back to %s (%s)", path, before.name, error
                )
            failure = error
    raise ValueError(
        f"expected a whole checkpoint in {folder}, got {', '.join(path.name for path in found)}, "
        f"all cut off or altered ({failure}); move them away and begin anew, or restore one from "
        "a copy"
    ) from failure
