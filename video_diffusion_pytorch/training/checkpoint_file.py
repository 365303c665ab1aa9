"""A checkpoint in one file: atomic writes, and reads that run no code and detect damage."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.data.formats.arrays import stored_entries
from video_diffusion_pytorch.files import replacing

logger = logging.getLogger("video_diffusion_pytorch")

FORMAT = 1
"""Version of the file format, the entry `format` of a checkpoint; newer ones are refused."""

_FOLDER_BIT = 0x10  # of the external attributes of a zip entry

# Types of the entries; a subclass of Trainer may add others
_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "model": dict,
    "ema": dict,
    "emas": dict,
    "ema_decays": (list, tuple),
    "ema_posthoc": bool,
    "ema_time": int,
    "optimizer": dict,
    "optimizer_settings": dict,
    "frozen": (list, tuple),
    "scheduler": dict,
    "scaler": (dict, type(None)),
    "config": (dict, type(None)),
    "losses": dict,
    "skipped_steps": int,
    "even_times": bool,
    "random_states": (list, dict, type(None)),
    "data": dict,
}


class NewerFormat(ValueError):
    """The checkpoint was written by a later version of this library, in a newer format."""


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes a checkpoint atomically: `path` is the old file or the complete new one.

    Args:
        state: Tensors of any device and plain values, see `Trainer.checkpoint_state`.
        path: The file, in an existing folder.

    Raises:
        OSError: If it can't be written.
        TypeError: If it holds values that can be read only by running code.
    """
    try:
        with replacing(path, sync=True) as unfinished:
            with unfinished.open("wb") as file:
                torch.save(_plain(state), file)
            # must be readable before it replaces the old file; no tensors are read
            torch.load(unfinished, "meta", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise TypeError(
            f"the checkpoint {path} must hold tensors and plain values only, so that reading it "
            f"runs no code, got {found[1] if found else 'an object of another class'}; convert it "
            "to tensors, numbers, strings, lists or dicts in checkpoint_state"
        ) from error
    except (OSError, RuntimeError) as error:
        # torch's writer raises a RuntimeError after an error of the file, or an interrupt
        cause = error.__context__ if isinstance(error, RuntimeError) else error
        if isinstance(cause, (KeyboardInterrupt, SystemExit)):
            raise cause from None
        raise not_written(path, cause if isinstance(cause, OSError) else error) from error


def not_written(path: Path, error: Exception) -> OSError:
    """The error for a checkpoint that can't be written."""
    return OSError(
        f"the checkpoint {path} could not be written: {error}; earlier checkpoints are unchanged: "
        "free disk space or check the folder's permissions, then resume from the last one"
    )


def _plain(value: Any) -> Any:
    """The same with Python's numbers for NumPy's, which can't be read without running code."""
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of this library or the reference; runs no code from it.

    A single altered byte is detected, except in files written without checksums: by torch before
    1.6, or after `torch.serialization.set_crc32_options(False)`.

    Args:
        path: The file.
        map_location: As in `torch.load`.

    Returns:
        The state that was written, see `Trainer.checkpoint_state`. The reference's files hold
        `step`, `model`, `ema` and `scaler`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or not a checkpoint; `NewerFormat` if a later version of this
            library wrote it.
    """
    return _read(path, map_location, ("step", "model", "ema"))


def glance(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without its tensors' values, quickly at any size.

    Args:
        path: A file `model-N.pt` or a folder `model-N.sharded`.

    Returns:
        The state, as from `read_checkpoint`, with its tensors on the device `meta`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `read_checkpoint`, but damage to tensors is not detected.
    """
    if path.is_dir():
        return _read(path / "run.pt", "meta", ("step",))
    return _read(path, "meta", ("step", "model", "ema"))


def _read(path: Path, map_location: Any, required: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("model-*"))
        found = f"; the folder holds {there}" if there else ": no such file or folder"
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found none{found}; check the path (working folder: "
            f"{Path.cwd()})"
        )
    with naming_damage(path):
        _check_sums(path, with_tensors=map_location != "meta")
        state = torch.load(path, map_location, weights_only=True)
    _check_entries(state, path, required)
    return state


@contextlib.contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Reports errors of the block as damage to the checkpoint `path`.

    Raises:
        ValueError: If the block raises; errors of permissions and GPU memory pass.
    """
    try:
        yield
    except (PermissionError, torch.OutOfMemoryError):
        raise
    # altered bytes can cause any exception
    except Exception as error:
        # torch's own advice would be to read it unprotected
        is_refused = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if is_refused else str(error).splitlines()[0]
        raise ValueError(
            f"expected a checkpoint in {path}, got one that is cut off, altered or of another kind "
            f"({reason}); use the checkpoint before it"
        ) from error


def _check_sums(path: Path, with_tensors: bool) -> None:
    """Compares the zip's checksums, which `torch.load` doesn't."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return  # the format of torch before 1.6 has none
    with zipfile.ZipFile(path) as archive:
        entries = stored_entries(archive)
        folders = [entry.filename for entry in entries if entry.external_attr & _FOLDER_BIT]
        if folders:  # torch leaves the memory of such a tensor uninitialized
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        if not any(entry.CRC for entry in entries):
            logger.warning("%s has no checksums: altered bytes are not detected", path)
            return
        for entry in entries:
            if with_tensors or entry.filename.endswith("/data.pkl"):
                with archive.open(entry) as content:
                    while content.read(1 << 20):  # raises at the end if the sum differs
                        pass


def _check_entries(state: Any, path: Path, required: tuple[str, ...]) -> None:
    if not isinstance(state, dict) or not state.keys() >= {*required}:
        found = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"expected a checkpoint with the entries {', '.join(required)} in {path}, got {found}; "
            "load a bare state dict with load_state_dict"
        )
    number = state.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise NewerFormat(
            f"expected a checkpoint of format {FORMAT} or older in {path}, got format {number}, "
            f"written by version {state.get('version', 'unknown')}; upgrade video-diffusion-pytorch"
        )
    step = state["step"]
    wrong = [n for n, types in _TYPES.items() if n in state and not isinstance(state[n], types)]
    if wrong or isinstance(step, bool) or step < 0:
        name = wrong[0] if wrong else "step"
        got = state[name] if isinstance(state[name], int) else type(state[name]).__name__
        raise ValueError(
            f"expected a checkpoint with a valid entry {name} in {path}, got {got}; use the "
            "checkpoint before it"
        )
