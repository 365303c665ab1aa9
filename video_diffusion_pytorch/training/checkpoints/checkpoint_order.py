"""The checkpoints of a folder in the order of the run, whatever their names say."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import (
    NewerFormat,
    glance,
    read_checkpoint,
)
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import (
    find_checkpoint,
    list_checkpoints,
)

logger = logging.getLogger("video_diffusion_pytorch")

# What is passed over is named once, not at every look
_named: set[Path] = set()

_SAMPLES = re.compile(r"\d+(-step\d+)?")


def in_order(folder: Path) -> list[Path]:
    """The checkpoints by rising step; those that can't be read come last.

    Their names are no order: N counts milestones, whose distance may have changed.
    """
    return sorted(list_checkpoints(folder), key=step_of)


def newest(folder: Path) -> Path | None:
    """The checkpoint of the highest step among those that can be read; None without any.

    A warning names what is passed over, once.
    """
    name_strangers(folder)
    found = in_order(folder)
    readable = [path for path in found if step_of(path) < math.inf]
    for path in found[len(readable) :]:
        _name(path, "it can't be read, or is no checkpoint of this library")
    return readable[-1] if readable else None


def checkpoint_at(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint, which may itself be a folder; of a results folder, its newest.

    Raises:
        FileNotFoundError: If a results folder holds none that can be read.
    """
    given = Path(path)
    if not given.is_dir() or given.suffix == ".sharded" or (given / "run.pt").exists():
        return given
    found = newest(given)
    if found is None:
        raise FileNotFoundError(
            f"expected a checkpoint model-N.pt or model-N.sharded in the results folder {given}, "
            "found none that can be read; give the folder of a run that has saved one, or a file"
        )
    return found


def set_aside(folder: Path, step: int) -> list[Path]:
    """Moves the checkpoints of later steps, which a run that begins at `step` leaves behind.

    Their samples go with them, and where `step` is 0 all samples there are. They go to a folder
    `earlier-1` in the same folder, or the next number that is free, as they would else be taken
    for the run's own.

    Args:
        folder: Where the checkpoints are.
        step: Steps done.

    Returns:
        Where the checkpoints are now.

    Raises:
        OSError: If one can't be moved.
    """
    later = [path for path in list_checkpoints(folder) if step < step_of(path) < math.inf]
    numbers = {path.stem.removeprefix("model-") for path in later}
    if step == 0:
        # a user's own pictures have no values beside them
        arrays = [path for path in folder.glob("*.npy") if _SAMPLES.fullmatch(path.stem)]
        numbers |= {path.stem for path in arrays if path.with_suffix(".gif").is_file()}
    samples = [folder / f"{n}{end}" for n in sorted(numbers) for end in (".gif", ".npy", ".txt")]
    samples = [path for path in samples if path.is_file()]
    if not later and not samples:
        return []
    number = 1
    while (place := folder / f"earlier-{number}").exists():
        number += 1
    place.mkdir()
    if later:
        logger.warning(
            "%s of later steps than %d, at which this run begins, now in %s: %s",
            "a checkpoint is" if len(later) == 1 else "checkpoints are",
            step,
            place,
            ", ".join(path.name for path in later),
        )
    for path in samples:
        path.rename(place / path.name)
    return [path.rename(place / path.name) for path in later]


def step_of(path: Path) -> float:
    """The steps that a checkpoint has done; infinity if it can't be read."""
    try:
        return glance(path)["step"]
    except (ValueError, OSError):
        return math.inf


def name_strangers(folder: Path) -> None:
    """Warns of what is named like a checkpoint and is none, once for each."""
    named = {*folder.glob("model-*.pt"), *folder.glob("model-*.sharded")}
    for path in sorted(named - {*list_checkpoints(folder)}):
        # one that `save` was given a name for is whole, and found by that name
        if path not in _named and step_of(path) == math.inf:
            _name(path, "it is no checkpoint model-N.pt or model-N.sharded of this library")


def _name(path: Path, reason: str) -> None:
    if path not in _named:
        _named.add(path)
        logger.warning("%s is passed over: %s", path, reason)


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
    name_strangers(folder)
    found = in_order(folder)[::-1]
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
