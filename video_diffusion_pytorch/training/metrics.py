"""Metrics of a run: sums on the device, `metrics.jsonl`, and experiment trackers."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.files import free_name, replacing

logger = logging.getLogger("video_diffusion_pytorch")

BINS = 10
"""Number of equal ranges of the noise schedule whose losses are averaged separately."""

# Formats that browsers display as images, and that Weights & Biases plays
_PICTURES = (".gif", ".png", ".webp", ".jpg", ".jpeg")
_FILMS = (".gif", ".mp4", ".webm")


class StepMetrics:
    """Accumulates measurements of the steps between two lines of `metrics.jsonl`.

    Sums of tensors stay on the device until the line is made, so that no step waits for the GPU.

    Args:
        device: Device of the losses.
        num_timesteps: Number of time steps of the diffusion: they are 0 to `num_timesteps - 1`, or,
            with continuous time, -1 (no noise) to `num_timesteps - 1`.
    """

    def __init__(self, device: str | torch.device, num_timesteps: int) -> None:
        self.device = torch.device(device)
        # Apple's GPUs have no float64
        self._dtype = torch.float32 if self.device.type == "mps" else torch.float64
        # the last time step of each range but the last; comparison is exact, while a division on a
        # GPU may round into the next range
        ends = [num_timesteps * i / BINS - 1 for i in range(1, BINS)]
        self._ends = torch.tensor(ends, dtype=self._dtype, device=self.device)
        self._ranges = torch.arange(BINS, device=self.device)
        self._reset()

    def _reset(self) -> None:
        self._by_noise = torch.zeros(2, BINS, dtype=self._dtype, device=self.device)
        # loss, steps, norm of the gradients, steps with a finite norm, clips, seconds, waited
        self._sums = torch.zeros(7, dtype=torch.float64, device="cpu")

    def add_losses(self, losses: Tensor, t: Tensor) -> None:
        """Adds the loss of each clip to its range of the schedule.

        Args:
            losses: `(b,)`.
            t: Time steps, integer or real, `(b,)`; or one per frame, `(b, f)`, whose mean is taken.

        Raises:
            ValueError: If there is not one loss for each row of `t`.
        """
        t = t.double().mean(dim=1) if t.ndim == 2 else t
        if losses.ndim != 1 or losses.shape != t.shape:
            raise ValueError(
                "losses must have the shape of t, (b,), one for each clip, got "
                f"{tuple(losses.shape)} and {tuple(t.shape)}; average all axes but the first"
            )
        losses = losses.detach().to(self.device, self._dtype)
        range_of = (t.detach().to(self.device, self._dtype)[:, None] > self._ends).sum(dim=1)
        is_in = range_of[:, None] == self._ranges
        # `where`, not a product: a NaN in one range must not spread to the others
        self._by_noise[0] += losses[:, None].where(is_in, losses.new_zeros(())).sum(dim=0)
        self._by_noise[1] += is_in.sum(dim=0)

    def add_step(
        self, *, loss: float, grad_norm: float | None, clips: int, seconds: float, waited: float
    ) -> None:
        """Adds a step of this process.

        Args:
            loss: Mean over the step's clips.
            grad_norm: Norm of all gradients before gradient clipping; None if not measured.
            clips: Number of clips in the step.
            seconds: Duration of the step, including the wait for clips.
            waited: Seconds spent waiting for clips.
        """
        # a loss scale that is too high gives infinite gradients, which are not used
        has_norm = grad_norm is not None and math.isfinite(grad_norm)
        norm = (grad_norm, 1) if has_norm else (0, 0)
        step = [loss, 1, *norm, clips, seconds, waited]
        self._sums += torch.tensor(step, dtype=torch.float64, device="cpu")

    def take(self, step: int, lr: float, reduce: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Returns the line of `metrics.jsonl` of the steps since the last call, and resets.

        Args:
            step: Steps done so far.
            lr: Learning rate of the last step.
            reduce: Sums a tensor over the processes; called once.

        Returns:
            `step`; `time`, seconds since 1970; `loss`, mean over the steps; `lr`; `grad_norm`, mean
            of the finite ones; `clips_per_second`, of all processes together; `data_wait`, share of
            the time, in [0, 1]; `memory_mib`, peak of this process, on its GPU if it has one;
            `loss_by_noise`, `BINS` means, starting with the least noise; `steps`, the number of
            steps covered. Values that are NaN, infinite or not measured are None.
        """
        own = [*self._sums.tolist(), 1]
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
            "steps": int(own[1]),
        }
        self._reset()
        return _finite(line)


def peak_memory(device: torch.device) -> float | None:
    """Peak memory of this process, in MiB; None if the system does not report it.

    Args:
        device: A CUDA device, for memory that torch allocated there; any other, for the resident
            memory of the process, which Linux reports.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError, StopIteration):
        # of this program only: getrusage includes the memory of the parent before the fork
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**10
    return None


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


def _finite(value: Any) -> Any:
    """Replaces NaN and infinity, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsFile:
    """A file of JSON lines, which stays readable when a run is interrupted.

    Lines of steps after `step`, which are repeated, and lines that are damaged or incomplete are
    dropped. If `step` is 0, an existing file is of another run, and is renamed to
    `metrics-1.jsonl`, or to the next free number.

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
            old = free_name(self.path, 1)
            self.path.rename(old)
            logger.info("%s is of another run: it is now %s", self.path, old.name)
            return
        before = self.path.read_bytes()
        found = [(line, _parse(line)) for line in before.splitlines()]
        kept = b"".join(line + b"\n" for line, read in found if read and read["step"] <= step)
        if kept != before:
            with replacing(self.path) as unfinished:
                unfinished.write_bytes(kept)

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line; NaN and infinity become null.

        Raises:
            OSError: If it can't be written; the file then ends with the previous line.
        """
        content = (json.dumps(_finite(line), allow_nan=False) + "\n").encode()
        with self.path.open("ab", buffering=0) as file:
            size = file.tell()
            if file.write(content) != len(content):
                file.truncate(size)
                raise OSError(f"no space is left on the disk of {self.path}; make room")


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the lines of a run, except an incomplete last one.

    Args:
        path: A `metrics.jsonl`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a JSON object with a step.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"expected the numbers of a run at {path}, found no file; give its results folder"
        )
    found = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), 1):
        read = _parse(line)
        if read:
            found.append(read)
        # a killed process may leave half a line
        elif line.endswith(b"\n"):
            raise ValueError(
                f"expected a JSON object with a step in each line of {path}, got {line[:40]!r} in "
                f"line {number}; remove that line"
            )
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        return None
    is_line = isinstance(parsed, dict) and isinstance(parsed.get("step"), int)
    return parsed if is_line else None


class Trackers:
    """The experiment trackers of a run, through accelerate.

    Args:
        accelerator: An `accelerate.Accelerator` made with `log_with` and, for trackers that write
            files, `project_dir`.
    """

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._without_videos: set[str] = set()

    def start(self, project: str, config: Mapping[str, Any], *, step: int = 0) -> None:
        """Starts the trackers, unless they run already.

        Args:
            project: Name of the project, for TensorBoard that of a folder.
            config: Settings of the run, nested: in trackers `{"unet": {"dim": 8}}` is `unet.dim`.
                Values other than numbers, strings and booleans are converted to strings.
            step: Steps done so far: TensorBoard hides what an interrupted run logged of later ones.
        """
        if self.accelerator.trackers or not self.accelerator.log_with:
            return
        options = {"tensorboard": {"purge_step": step + 1}} if step else {}
        self.accelerator.init_trackers(project, config=_flat(config), init_kwargs=options)

    def log(self, line: Mapping[str, Any]) -> None:
        """Logs the numbers of a line of `metrics.jsonl`.

        Args:
            line: Numbers by name. Items of a list are named `loss_by_noise/0` and so on. None,
                strings and lines of events are skipped.
        """
        if not self.accelerator.trackers or "event" in line:
            return
        numbers: dict[str, int | float] = {}
        for name, value in line.items():
            # trackers have their own clock
            if name in ("step", "time"):
                continue
            if _is_number(value):
                numbers[name] = value
            elif isinstance(value, Sequence) and not isinstance(value, str):
                numbers |= {f"{name}/{i}": item for i, item in enumerate(value) if _is_number(item)}
        if numbers:
            self.accelerator.log(numbers, step=line["step"])

    def log_video(self, path: str | os.PathLike[str], step: int) -> None:
        """Logs a milestone's samples to the trackers that display them.

        TensorBoard plays a gif among its images, Weights & Biases gif, mp4 and webm. For other
        trackers and formats a warning says once that the samples are in the file only.

        Args:
            path: The file.
            step: Steps done so far.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard" and suffix in _PICTURES:
                _show_in_tensorboard(tracker.tracker, path, step)
            elif tracker.name == "wandb" and suffix in _FILMS:
                import wandb

                tracker.log({"samples": wandb.Video(str(path), format=suffix[1:])}, step=step)
            elif tracker.name not in self._without_videos:
                self._without_videos.add(tracker.name)
                logger.warning("%s gets no samples such as %s", tracker.name, path)

    def end(self) -> None:
        """Ends the trackers, which writes all that was logged; they can be started again."""
        for tracker in self.accelerator.trackers:
            try:
                tracker.finish()
            except Exception as error:
                logger.warning("%s did not end well: %s", tracker.name, error)
        # accelerate's end_training would also destroy the process group
        self.accelerator.trackers.clear()


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            is_plain = isinstance(value, (bool, int, float, str))
            flat[f"{prefix}{key}"] = value if is_plain else str(value)
    return flat


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _show_in_tensorboard(writer: Any, path: Path, step: int) -> None:
    """Adds the file unchanged, as `SummaryWriter.add_image` would add one frame only."""
    from PIL import Image
    from tensorboard.compat.proto.summary_pb2 import Summary

    with Image.open(path) as image:
        width, height = image.size
    # 3 channels, as colours have
    content = {"height": height, "width": width, "colorspace": 3}
    picture = Summary.Image(**content, encoded_image_string=path.read_bytes())
    summary = Summary(value=[Summary.Value(tag="samples", image=picture)])
    writer.file_writer.add_summary(summary, step)
    writer.flush()
