"""Post-hoc averages: snapshots of power-function averages, from which other widths are made.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(arXiv 2312.02696), section 3 and appendix C.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from video_diffusion_pytorch.training.checkpoint_file import glance, read_checkpoint
from video_diffusion_pytorch.training.ema import gamma_of

_NAME = re.compile(r"averages-(\d+)\.pt")
# Largest error of a profile, relative to its norm
_WORST = 0.2
# Widths that are tried to tell which ones can be made
_TRIED = np.linspace(0.005, 0.285, 57)


class Plan(NamedTuple):
    """How an average is made from snapshots.

    Attributes:
        step: The training step at which it ends.
        shares: The weights of each snapshot's averages, the newest snapshot first.
        error: Distance of its profile, the share of each time in it, from the power function,
            relative to the norm of that.
    """

    step: int
    shares: dict[Path, list[float]]
    error: float


def snapshot_path(folder: Path, step: int) -> Path:
    """The path of the snapshot of a step in a results folder."""
    return folder / f"averages-{step}.pt"


def list_snapshots(folder: Path) -> dict[int, Path]:
    """The snapshots of a results folder by rising step."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob("averages-*.pt")]
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def inner_product(gamma: Any, time: Any, other_gamma: Any, other_time: Any) -> Any:
    """The inner product of two power functions (Karras et al. 2024, eq. 151).

    Args:
        gamma: Exponent of the first one, `(gamma + 1) t ** gamma / time ** (gamma + 1)` for `t` in
            [0, `time`]; a number or an array in float64, as the others.
        time: Time at which it ends, above 0.
        other_gamma: Exponent of the second one.
        other_time: Time at which that ends.

    Returns:
        The integral of their product.
    """
    first = np.minimum(time, other_time)
    factor = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    powers = (first / time) ** gamma * (first / other_time) ** other_gamma
    return factor * powers / np.maximum(time, other_time)


def snapshot_weights(
    stds: Sequence[float], times: Sequence[float], std: float, time: float
) -> tuple[list[float], float]:
    """The weights with which averages make the one of another width.

    Least squares of the profiles (Karras et al. 2024, algorithm 3).

    Differs from algorithm 3: the weights sum to 1, so that the result is an average.

    Args:
        stds: Widths of the given averages.
        times: The time at which each ends, of any unit, above 0 and at most `time`.
        std: Width of the wanted average.
        time: The time at which it ends.

    Returns:
        The weight of each given average, and the error of the resulting profile, as of `Plan`.

    Raises:
        ValueError: If a width is out of range.

    Example:
        >>> weights, error = snapshot_weights([0.1, 0.05, 0.1, 0.05], [50, 50, 100, 100], 0.08, 100)
        >>> [round(weight, 2) for weight in weights], round(error, 2)
        ([-0.02, 0.01, 0.73, 0.28], 0.04)
    """
    gamma, gammas = gamma_of(std), np.array([gamma_of(one) for one in stds])
    ends = np.asarray(times, dtype=np.float64) / time
    count = len(ends)
    products = inner_product(gammas[:, None], ends[:, None], gammas, ends)
    wanted, norm = inner_product(gammas, ends, gamma, 1.0), inner_product(gamma, 1.0, gamma, 1.0)
    # with a Lagrange multiplier for their sum, of profiles that are scaled to norm 1
    scale = np.diag(products) ** -0.5
    system = np.zeros((count + 1, count + 1))
    system[:count, :count] = products * scale * scale[:, None]
    system[count, :count] = system[:count, count] = scale
    # not solve: averages of the same time may be given twice
    solution = np.linalg.lstsq(system, np.append(wanted * scale, 1.0), rcond=None)[0]
    weights = solution[:count] * scale
    squared = norm - 2 * weights @ wanted + weights @ products @ weights
    return weights.tolist(), float(max(0.0, squared / norm) ** 0.5)


def plan_average(folder: str | os.PathLike[str], std: float, step: int | None = None) -> Plan:
    """Plans an average of any width; of the snapshots, no tensors are read.

    Args:
        folder: The results folder.
        std: Its width, relative to the training up to its end, as of `gamma_of`.
        step: The step at which it ends, that of a snapshot; None for the newest.

    Raises:
        FileNotFoundError: If the folder has no snapshots.
        ValueError: If there is no snapshot of the step, if the snapshots can't make the width, or
            if one is damaged.
    """
    found = list_snapshots(Path(folder))
    if not found:
        raise FileNotFoundError(
            "posthoc_average: expected snapshots averages-N.pt of a training with "
            f"ema_decay='posthoc' in {folder}, found none; train with it, or use the averages in "
            "the checkpoints"
        )
    step = max(found) if step is None else step
    if step not in found:
        raise ValueError(
            f"posthoc_average: step must be that of a snapshot, {', '.join(map(str, found))}, got "
            f"{step}; choose one of them, or leave it out for the newest"
        )
    paths = [path for number, path in reversed(found.items()) if number <= step]
    states = [glance(path) for path in paths]
    stds = [width for state in states for width in state["ema_decays"]]
    times = [state["ema_time"] for state in states for _ in state["ema_decays"]]
    weights, error = snapshot_weights(stds, times, std, times[0])
    if error > _WORST:
        errors = {s: snapshot_weights(stds, times, s, times[0])[1] for s in _TRIED.tolist()}
        reached = [f"{width:.3g}" for width, one in errors.items() if one <= _WORST]
        raise ValueError(
            f"posthoc_average: std must be a width that the snapshots in {folder} up to step "
            f"{step} can make, {reached[0]} to {reached[-1]}, got {std}, for which the profile's "
            f"error would be {error:.0%}; choose another, or train with a smaller snapshot_every"
        )
    each = len(states[0]["ema_decays"])
    parts = [weights[i : i + each] for i in range(0, len(weights), each)]
    return Plan(step, dict(zip(paths, parts, strict=True)), error)


def average_snapshots(plan: Plan) -> dict[str, Any]:
    """Averages snapshots, which are read one after the other, in float64.

    Args:
        plan: From `plan_average`.

    Returns:
        The state of the newest snapshot, whose entry `ema` is the average: a state dict in the data
        types of the snapshots.

    Raises:
        FileNotFoundError: If a snapshot is missing.
        ValueError: If one is damaged.
    """
    newest = next(iter(plan.shares))
    state = read_checkpoint(newest)
    base = state["ema"]
    # differences from one of them, so that what is constant stays exactly as it is
    totals = {name: value.double() for name, value in base.items() if value.is_floating_point()}
    for path, shares in plan.shares.items():
        _add(totals, base, shares, state if path == newest else read_checkpoint(path))
    average = {
        name: totals[name].to(value.dtype) if name in totals else value
        for name, value in base.items()
    }
    return {**state, "ema": average}


def _add(
    totals: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    shares: Sequence[float],
    snapshot: Mapping[str, Any],
) -> None:
    """Adds the differences of a snapshot's averages from the base to the totals."""
    averages = (snapshot["ema"], *snapshot["emas"].values())
    for share, weights in zip(shares, averages, strict=True):
        for name, total in totals.items():
            total.add_(weights[name].double() - base[name], alpha=share)
