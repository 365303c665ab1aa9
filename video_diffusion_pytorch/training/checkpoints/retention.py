"""Old checkpoints are removed after a new one was written whole, so that the disk doesn't fill."""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import glance
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import in_order

logger = logging.getLogger("video_diffusion_pytorch")

# Checkpoints that can't be read are told of once, not at every save
_told: set[Path] = set()


def forget_old(
    folder: Path,
    keep_last: int | None,
    keep_best: int = 0,
    *,
    written: Path | None = None,
) -> list[Path]:
    """Removes the checkpoints that are neither among the newest nor among the best.

    Checkpoints that can't be read are left, and count among neither.

    Args:
        folder: Where the checkpoints are.
        keep_last: How many of the newest are kept, those of the highest step, at least 1; None
            removes nothing.
        keep_best: How many are kept besides that have the lowest validation loss, 0 or more;
            those that have none are not among them. One may be both new and good.
        written: The checkpoint just written, which is kept in any case: a run that went back to
            an older checkpoint writes lower numbers than those already there.

    Returns:
        What was removed.

    Raises:
        ValueError: If `keep_last` is less than 1 or `keep_best` less than 0.
    """
    check_keep(keep_last, keep_best)
    if keep_last is None:
        return []
    for leftover in folder.glob(".model-*.sharded.removed"):
        _removed(leftover)
    # one that is damaged is no checkpoint to go back to, so it doesn't take the place of a whole
    # one; it stays because what can't be read here may be a later version's, or worth a rescue
    losses = {path: _validation_loss(path) for path in in_order(folder)}
    readable = [path for path, loss in losses.items() if loss is not None]
    kept = {*readable[-keep_last:], *_by_loss(losses)[:keep_best]}
    if written is not None:
        kept.add(written)
    return [path for path in readable if path not in kept and _removed(path)]


def check_keep(keep_last: int | None, keep_best: int = 0) -> None:
    """Checks how many checkpoints are to be kept, so that a run can do so when it begins.

    Raises:
        ValueError: If `keep_last` is less than 1 or `keep_best` less than 0.
    """
    if keep_last is not None and keep_last < 1:
        raise ValueError(
            f"keep_last must be at least 1, as a run resumes from its newest checkpoint, got "
            f"{keep_last}; give None to keep all"
        )
    if keep_best < 0:
        raise ValueError(
            f"keep_best must be 0 or more checkpoints, got {keep_best}; give 0 to keep none for "
            "its validation loss"
        )


def best_checkpoint(folder: Path) -> Path:
    """The checkpoint of the lowest validation loss; of equal ones the newest.

    Raises:
        FileNotFoundError: If none has a validation loss.
    """
    found = in_order(folder)
    best = _by_loss({path: _validation_loss(path) for path in found})
    if not best:
        raise FileNotFoundError(
            f"expected a checkpoint with a validation loss in {folder}, found "
            f"{', '.join(path.name for path in found) or 'no checkpoint'}; train with held-out "
            "clips, or give the path of a checkpoint"
        )
    return best[0]


def _by_loss(losses: dict[Path, float | None]) -> list[Path]:
    """Those with a validation loss, the lowest first, of equal ones the newest first."""
    rated = [
        (path, loss)
        for path, loss in reversed(losses.items())
        if loss is not None and math.isfinite(loss)
    ]
    return [path for path, _ in sorted(rated, key=lambda one: one[1])]


def _validation_loss(path: Path) -> float | None:
    """The validation loss in a checkpoint, nan if it has none; None if it can't be read."""
    try:
        losses: Any = glance(path).get("losses")
    except (ValueError, OSError) as error:
        if path not in _told:
            _told.add(path)
            logger.warning("%s is neither removed nor counted: %s", path, error)
        return None
    loss = losses.get("validation") if isinstance(losses, dict) else None
    return float(loss) if isinstance(loss, (int, float)) else math.nan


def _removed(path: Path) -> bool:
    try:
        if path.is_dir():
            # under another name, so that a process killed here leaves no half of a checkpoint
            if not path.name.startswith("."):
                path = path.rename(path.with_name(f".{path.name}.removed"))
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        logger.warning("%s is an old checkpoint that could not be removed: %s", path, error)
        return False
    return True
