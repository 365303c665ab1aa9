"""A training file, written whole or not at all, and read without running code from it."""

import contextlib
import os
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

_NAME = re.compile(r"model-(\d+(?:\.\d+)?)\.pt")


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes `state` to `path`; whatever interrupts it, `path` holds the old file or the new one.

    Raises:
        OSError: If it can't be written; the message names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError
        raise OSError(
            f"the checkpoint {path} could not be written: {error}; the checkpoints before it are "
            "untouched: make room or check the folder's permissions, and train on from the last"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a training file of this library or of the reference, tensors and plain values only.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a whole training file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found none; the folder holds "
            f"{[p.name for p in list_checkpoints(path.parent)] or 'no checkpoint'}"
        )
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected a checkpoint in {path}, got a file that is cut off, altered or of another "
            f"kind ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "use the checkpoint before it"
        ) from error
    if not isinstance(state, dict) or not {"step", "model", "ema"} <= state.keys():
        found = sorted(state)[:5] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"expected a training file with step, model and ema in {path}, got {found}; load a "
            "bare state dict with load_state_dict"
        )
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """The files `model-N.pt` of a folder, by rising N."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("model-*.pt")]
    found = [(float(match.group(1)), path) for match, path in named if match]
    return [path for _, path in sorted(found)]


def find_checkpoint(folder: Path, milestone: int | float | str | os.PathLike[str]) -> Path:
    """The file of a milestone: its number, -1 for the last one, or a path.

    Raises:
        FileNotFoundError: If -1 is asked for and there is no checkpoint.
    """
    if isinstance(milestone, (str, os.PathLike)):
        return Path(milestone)
    if milestone != -1:
        return folder / f"model-{milestone}.pt"
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise FileNotFoundError(
            f"expected a checkpoint model-N.pt in {folder.resolve()}, found none; train first, or "
            "give the path of a checkpoint"
        )
    return checkpoints[-1]


def random_states() -> dict[str, Any]:
    """The state of every random generator that a training run draws from."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts every generator back where `random_states` found it."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
