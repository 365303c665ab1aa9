"""What the steps of a run measured: summed on the device, written a line at a time, read back."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.data.write_video import replacing

logger = logging.getLogger("video_diffusion_pytorch")

BINS = 10
"""Ranges of the noise schedule whose losses are told apart."""


class StepMetrics:
    """What the steps since the last line measured.

    Sums of tensors stay on the device until the line is made, so that no step waits for the GPU.

    Args:
        device: Where the losses are.
        num_timesteps: Of the diffusion: its time steps go from 0 to `num_timesteps - 1`, and where
            time is continuous down to -1, which is without noise.
    """

    def __init__(self, device: str | torch.device, num_timesteps: int) -> None:
        self.device = torch.device(device)
        # Apple's GPUs have no float64
        self._dtype = torch.float32 if self.device.type == "mps" else torch.float64
        # the highest time of each range but the last: compared, not divided, for a division on a
        # GPU may round a whole step into the next range
        ends = [num_timesteps * i / BINS - 1 for i in range(1, BINS)]
        self._ends = torch.tensor(ends, dtype=self._dtype, device=self.device)
        self._ranges = torch.arange(BINS, device=self.device)
        self._begin()

    def _begin(self) -> None:
        self._by_noise = torch.zeros(2, BINS, dtype=self._dtype, device=self.device)
        self._losses, self._steps, self._norms, self._num_norms = 0.0, 0, 0.0, 0
        self._clips, self._seconds, self._waited = 0, 0.0, 0.0

    def add_losses(self, losses: Tensor, t: Tensor) -> None:
        """Counts the loss of each clip towards its range of the schedule.

        Args:
            losses: `(b,)`.
            t: Time steps, whole or real, `(b,)`.

        Raises:
            ValueError: If the two are not of one shape `(b,)`.
        """
        if losses.ndim != 1 or losses.shape != t.shape:
            raise ValueError(
                "StepMetrics: losses and t must have one number for each clip, (b,), got shapes "
                f"{tuple(losses.shape)} and {tuple(t.shape)}; give the loss with reduction 'none', "
                "averaged over all axes but the first"
            )
        losses = losses.detach().to(self.device, self._dtype)
        range_of = (t.detach().to(self.device, self._dtype)[:, None] > self._ends).sum(dim=1)
        is_in = range_of[:, None] == self._ranges
        # not a product: the not-a-number of one range must not reach the others
        self._by_noise[0] += losses[:, None].where(is_in, losses.new_zeros(())).sum(dim=0)
        self._by_noise[1] += is_in.sum(dim=0)

    def add_step(
        self, *, loss: float, grad_norm: float | None, clips: int, seconds: float, waited: float
    ) -> None:
        """Counts a step of this process.

        Args:
            loss: Mean over the step's clips.
            grad_norm: Norm of all gradients before they are cut; None if it was not measured.
            clips: Number of clips the step was made from.
            seconds: What the step took, waiting for clips included.
            waited: Seconds of them that were spent waiting for clips.
        """
        self._losses += loss
        self._steps += 1
        # a loss scale that was too high gives infinite gradients, which are not used
        if grad_norm is not None and math.isfinite(grad_norm):
            self._norms += grad_norm
            self._num_norms += 1
        self._clips += clips
        self._seconds += seconds
        self._waited += waited

    def take(self, step: int, lr: float, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The line of `metrics.jsonl` for the steps since the last one; begins anew.

        Args:
            step: Steps done so far.
            lr: Learning rate of the last step.
            reduce: Sums a tensor over the processes; called once.

        Returns:
            `step`; `time`, seconds since 1970; `loss`, mean over the steps; `lr`; `grad_norm`, mean
            of the finite ones; `clips_per_second`, of all processes together; `data_wait`, share of
            the time in [0, 1]; `memory_mib`, the peak of this process, on its GPU if it has one;
            `loss_by_noise`, `BINS` means, the first of the least noise; `steps`, how many the line
            covers. None where nothing was measured or the number is not finite.
        """
        own = [self._losses, self._steps, self._norms, self._num_norms]
        own += [self._clips, self._seconds, self._waited, 1]
        sums = torch.cat((self._by_noise.flatten(), self._by_noise.new_tensor(own)))
        total = reduce(sums).tolist()
        by_noise, counts, rest = total[:BINS], total[BINS : 2 * BINS], total[2 * BINS :]
        losses, steps, norms, num_norms, clips, seconds, waited, processes = rest
        line = {
            "step": step,
            "time": time.time(),
            "loss": _mean(losses, steps),
            "lr": lr,
            "grad_norm": _mean(norms, num_norms),
            "clips_per_second": _mean(clips * processes, seconds),
            "data_wait": _mean(waited, seconds),
            "memory_mib": peak_memory(self.device),
            "loss_by_noise": [_mean(*pair) for pair in zip(by_noise, counts, strict=True)],
            "steps": self._steps,
        }
        self._begin()
        return _finite(line)


def peak_memory(device: torch.device) -> float | None:
    """The most memory this process has had, in MiB; None where the system does not tell.

    Args:
        device: A CUDA device, for what torch has allocated there; any other, for the process's
            own memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration, ValueError):
        # of this program only: getrusage counts what its parent had when it was forked, too
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """The lines of a run, JSON each, in a file that an interrupted run leaves behind readable.

    Lines of steps after `step` are dropped, for those steps are repeated, and so is the last line
    if it was cut off. The file of another run, where this one begins at step 0, is renamed to
    `metrics-1.jsonl`, or the next number that is free.

    Args:
        path: The file.
        step: Steps done so far.

    Raises:
        OSError: If the file can't be read, renamed or written.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        self.path = Path(path)
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        if step == 0:
            old = self._free_name()
            self.path.rename(old)
            logger.info("%s is of another run: it is now %s", self.path, old.name)
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        found = [(line, _parse(line)) for line in lines]
        damaged = [n for n, (line, read) in enumerate(found, 1) if not read and _is_whole(line)]
        if damaged:
            logger.warning(
                "%s: lines that are no numbers of a run are dropped: %s", self.path, damaged
            )
        kept = [line for line, read in found if read and read["step"] <= step]
        whole = b"".join(line.rstrip(b"\r\n") + b"\n" for line in kept)
        if whole != b"".join(lines):
            with replacing(self.path) as unfinished:
                unfinished.write_bytes(whole)

    def _free_name(self) -> Path:
        number = 1
        while (name := self.path.with_stem(f"{self.path.stem}-{number}")).exists():
            number += 1
        return name

    def write(self, line: dict[str, Any]) -> None:
        """Adds a line; numbers that are not finite become null.

        Raises:
            OSError: If it can't be written; the file then ends with the line before.
        """
        text = json.dumps(_finite(line), allow_nan=False) + "\n"
        size = None
        try:
            with self.path.open("ab") as file:
                size = file.tell()
                file.write(text.encode())
        except OSError as error:
            if size is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, size)
            raise OSError(
                f"the numbers of a run must be written to {self.path}, got {error}; make room or "
                "check the folder and its permissions, and train on from the last checkpoint"
            ) from error


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run, without the last one if it was cut off.

    Args:
        path: A `metrics.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is no JSON object with a step.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the numbers of a run at {path}, found no file; give the results folder of "
            "a run that has begun"
        )
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
        read = _parse(line)
        if read:
            found.append(read)
        elif _is_whole(line):
            raise ValueError(
                f"expected a JSON object with a step in each line of {path}, got {line[:40]!r} in "
                f"line {number}; remove that line"
            )
    return found


def _is_whole(line: bytes) -> bool:
    """Whether a line was written to its end: a killed process leaves half of its last one."""
    return line.endswith(b"\n")


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(parsed, dict) and isinstance(parsed.get("step"), int)
    return parsed if is_line else None
