"""Kills training runs at random moments, resumes them, and compares the results bit by bit.

    python benchmarks/kill_and_resume.py --kills 20

A small model learns moving digits, with two workers, random crops, flips and windows, dropped
labels, two micro-batches per step, a learning-rate schedule, two averages, and a checkpoint every
three steps of which two are kept. One run is not interrupted. Each of the others is killed at a
random moment (SIGKILL to all of its processes at once), in turn while it writes a checkpoint, waits
for clips, samples and computes. The same command then resumes it to its last step. Its last
checkpoint must equal that of the uninterrupted run bit for bit: weights, averages, optimizer,
learning rate, random states and position in the clips. So must the loss of each step and the last
samples. No checkpoint may be lost: after a kill every checkpoint in the folder can be read, and
each that had been written completely is there.

A kill is not a power failure: data that the system has not yet written to the disk is not lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from killed_run import CLIPS, SAMPLE_EVERY, SAVE_EVERY, STEPS, TIMES, Mark

from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint

SCRIPT = Path(__file__).with_name("killed_run.py")
# Those that kills are aimed at, in turns, and the steps at which they can be met
AIMS = {
    "writing": range(SAVE_EVERY, STEPS, SAVE_EVERY),
    "reading": range(1, STEPS - 1),
    "sampling": range(SAMPLE_EVERY, STEPS, SAMPLE_EVERY),
    "computing": range(1, STEPS - 1),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table of the kills; gives 0 if all runs ended alike and nothing was lost, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-run", type=int, default=1, help="how often one run is killed")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        clips = Path(scratch, "clips")
        write_moving_digits(clips, num_clips=CLIPS)
        whole = Run(clips, Path(scratch, "whole"))
        whole.start()
        whole.finish()
        kills, ends = kill_runs(clips, Path(scratch), whole, options)
    lost, alike = sum(len(kill.lost) for kill in kills), ends.count([])
    hits = Counter(kill.phase for kill in kills)
    print("\nkilled while", ", ".join(f"{phase}: {count}" for phase, count in hits.items()))
    print(
        f"{len(kills)} kills, {alike} of {len(ends)} ends bit-identical, "
        f"{lost} checkpoints lost; {time.perf_counter() - start:.0f} s"
    )
    return 0 if alike == len(ends) and not lost else 1


# one run: a process with processes that read


class Run:
    """A training run that can be killed, started again and waited for.

    Args:
        clips: What it learns from.
        folder: Where its results go.
    """

    def __init__(self, clips: Path, folder: Path) -> None:
        self.clips, self.folder = clips, folder
        self._mark, self._out = folder.with_suffix(".mark"), folder.with_suffix(".out")
        self.mark = Mark(self._mark)

    def start(self) -> None:
        """Starts its processes, in a group of their own."""
        self.mark.note(phase="starting")
        command = [sys.executable, SCRIPT, self.clips, self.folder, self._mark]
        with self._out.open("w") as out:
            self.process = subprocess.Popen(
                [*map(str, command)],
                stdout=out,
                stderr=out,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def kill(self) -> None:
        """Ends all of its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> int:
        """Waits for its end; gives the step after which it had begun.

        Raises:
            RuntimeError: If it ended before its time.
        """
        if self.process.wait(timeout=600):
            raise RuntimeError(f"the run ended with an error:\n{self._out.read_text()}")
        return int(self._out.read_text().split("begins after step ")[1].split()[0])

    def times(self) -> dict[str, float]:
        """Usual seconds of each phase, from a run that was not killed."""
        return json.loads((self.folder / TIMES).read_text())


# kills


class Moment(NamedTuple):
    """What a run does when it is killed, after which steps at least, and how far it is with it."""

    aim: str
    step: int
    share: float


class Kill(NamedTuple):
    """Where a kill hit, and what it left."""

    step: int
    phase: str
    newest: int
    lost: list[str]
    half_written: int


def kill_runs(
    clips: Path, scratch: Path, whole: Run, options: argparse.Namespace
) -> tuple[list[Kill], list[list[str]]]:
    """Kills `options.kills` times; gives the kills, and what differs at the end of each run."""
    seconds = whole.times()
    moments = draw_moments(options.kills, random.Random(options.seed))
    kills: list[Kill] = []
    ends: list[list[str]] = []
    print("| run | killed after step | while | half-written | lost | went on from | end |")
    print("|---|---|---|---|---|---|---|")
    for number in itertools.count(1):
        if len(kills) == options.kills:
            break
        run, rows = Run(clips, scratch / f"run-{number}"), []
        run.start()
        for moment in moments[len(kills) :][: options.per_run]:
            kill = kill_once(run, moment, seconds)
            if kill is None:
                break  # it came too late: the run was at its end
            rows.append(kill)
            run.start()
        resumed = run.finish()
        if not rows:
            continue
        ends.append(differences(whole.folder, run.folder))
        if resumed != rows[-1].newest:
            ends[-1].append(f"began after step {resumed}, though {rows[-1].newest} was saved")
        kills += rows
        tell(number, rows, ends[-1])
    return kills, ends


def draw_moments(count: int, draws: random.Random) -> list[Moment]:
    """Moments spread over the phases in turns and evenly over the steps."""
    shares = [(i + draws.random()) / count for i in range(count)]
    draws.shuffle(shares)
    moments = []
    for share, (aim, steps) in zip(shares, itertools.cycle(AIMS.items()), strict=False):
        moments.append(Moment(aim, steps[int(share * len(steps))], draws.random()))
    return moments


def kill_once(run: Run, moment: Moment, seconds: dict[str, float]) -> Kill | None:
    """Kills a run while it does what is aimed at, or shortly after; None if it ended before.

    Args:
        run: Its processes have been started.
        moment: When.
        seconds: Usual seconds of each phase.
    """
    while run.process.poll() is None:
        step, phase, _ = run.mark.read()
        if phase == moment.aim and step >= moment.step:
            break
        time.sleep(0.0002)
    time.sleep(moment.share * seconds[moment.aim])
    if run.process.poll() is not None:
        return None
    run.kill()
    step, phase, saved = run.mark.read()
    newest, lost = look_after(run.folder, saved)
    return Kill(step, phase, newest, lost, len([*run.folder.glob(".*")]))


def tell(number: int, kills: list[Kill], differing: list[str]) -> None:
    """Prints a run's lines of the table."""
    for kill in kills:
        went_on = f"step {kill.newest}" if kill.newest else "the beginning"
        is_last = kill is kills[-1]
        end = ("identical" if not differing else "differs") if is_last else "killed again"
        lost = ", ".join(kill.lost) or "none"
        cells = number, kill.step, kill.phase, kill.half_written, lost, went_on, end
        print("|", " | ".join(map(str, cells)), "|", flush=True)
    if differing:
        print("differs:", ", ".join(differing))


def look_after(folder: Path, saved: int) -> tuple[int, list[str]]:
    """What a killed run left: the step of its newest whole checkpoint, and what is lost.

    Args:
        folder: Its results.
        saved: The newest step whose checkpoint had been written to the end; 0 for none.
    """
    newest, lost = 0, []
    for path in list_checkpoints(folder):
        try:
            newest = max(newest, read_checkpoint(path)["step"])
        except (ValueError, OSError):
            lost.append(path.name)
    if newest < saved:
        lost.append(f"that of step {saved}")
    return newest, lost


# comparing


def differences(whole: Path, other: Path) -> list[str]:
    """In what two runs' results differ: names of entries of the last checkpoint, and of files."""
    first, second = (read_checkpoint(list_checkpoints(folder)[-1]) for folder in (whole, other))
    # a random state has hundreds of numbers
    found = sorted({".".join(name.split(".")[:3]) for name in differing(first, second, "")})
    found += [
        f"loss of step {a['step']}"
        for a, b in zip(*map(measured, (whole, other)), strict=True)
        if a != b
    ]
    # the same checkpoints, and nothing half-written
    names = [
        {path.name for path in folder.iterdir() if path.name.startswith((".", "model-"))}
        for folder in (whole, other)
    ]
    found += sorted(names[0] ^ names[1])
    last = f"{STEPS // SAMPLE_EVERY}.npy"
    if not np.array_equal(*(np.load(folder / last) for folder in (whole, other))):
        found.append(last)
    return found


def measured(folder: Path) -> list[dict[str, Any]]:
    """What a run's `metrics.jsonl` says of each step, but for the speed."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    kept = ("step", "loss", "lr", "grad_norm", "loss_by_noise")
    return [{name: line[name] for name in kept} for line in lines]


def differing(first: Any, second: Any, name: str) -> Iterator[str]:
    """Names of the entries of two nested states that are not the same bit for bit."""
    if type(first) is not type(second):
        yield name
    elif isinstance(first, torch.Tensor):
        if first.dtype != second.dtype or not torch.equal(first, second):
            yield name
    elif isinstance(first, dict) and first.keys() == second.keys():
        for key, value in first.items():
            yield from differing(value, second[key], f"{name}.{key}".lstrip("."))
    elif isinstance(first, (list, tuple)) and len(first) == len(second):
        for i, pair in enumerate(zip(first, second, strict=True)):
            yield from differing(*pair, f"{name}.{i}")
    elif first != second:
        yield name


if __name__ == "__main__":
    sys.exit(main())
