"""Times the default Trainer on a CPU whose cores other processes use as well.

    python benchmarks/busy_cores.py --steps 40

Each training is a process of its own. It runs alone, beside a program that computes all the time,
and with workers that decode large films; with the threads that the Trainer chooses, and with a
fixed number of them. The figures are of the last half of its steps, when it has chosen.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, write_video
from video_diffusion_pytorch.data.moving_digits import write_moving_digits

# what runs beside the training
SITUATIONS = ("alone", "a busy process", "decoding films")


def train(clips: str, results: str, steps: int) -> None:
    """Trains, and prints the seconds between steps and the number of threads at the end."""
    times: list[float] = []
    threads: list[int] = []

    def note(log: dict[str, object]) -> None:
        times.append(time.perf_counter())
        threads.append(torch.get_num_threads())

    unet = Unet3D(dim=16, dim_mults=(1, 2, 4), channels=1)
    trainer = Trainer(
        GaussianDiffusion(unet, image_size=16, num_frames=8, timesteps=100),
        clips,
        results_folder=results,
        train_batch_size=8,
        train_num_steps=steps,
        save_and_sample_every=10 * steps,
        device="cpu",
    )
    trainer.train(log_fn=note)
    seconds = [b - a for a, b in itertools.pairwise(times)]
    print(json.dumps({"seconds": seconds, "threads": threads[-1]}))


def make_films(folder: Path, count: int = 4) -> Path:
    """Films whose decoding takes longer than a training step of their clips."""
    folder.mkdir()
    for i in range(count):
        noise = torch.rand(1, 40, 45, 80, generator=torch.Generator().manual_seed(i))
        film = torch.nn.functional.interpolate(noise, size=(1080, 1920))
        write_video(film.expand(3, -1, -1, -1), folder / f"{i}.mp4")
    return folder


@contextmanager
def busy(is_busy: bool) -> Iterator[None]:
    """Another process that computes during the block."""
    program = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(program) if is_busy else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


def measure(situation: str, threads: int | None, folder: Path, steps: int) -> tuple[float, int]:
    """Median seconds per step, and threads at the end."""
    clips = folder / ("films" if situation == "decoding films" else "clips")
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as results, busy(situation == "a busy process"):
        command = [sys.executable, __file__, "--train", str(clips), results, "--steps", str(steps)]
        done = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=environment
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(found["seconds"][steps // 2 :]), found["threads"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--situations", nargs="+", choices=SITUATIONS, default=SITUATIONS)
    parser.add_argument("--train", nargs=2, metavar=("CLIPS", "RESULTS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train is not None:
        train(*options.train, options.steps)
        return
    cores = len(os.sched_getaffinity(0))
    print("| situation | threads | seconds per step | threads at the end |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_moving_digits(folder / "clips", 40, num_frames=8)
        make_films(folder / "films")
        for situation in options.situations:
            for threads in (None, cores, 1):
                runs = [
                    measure(situation, threads, folder, options.steps)
                    for _ in range(options.rounds)
                ]
                seconds = statistics.median(run[0] for run in runs)
                how = "chosen" if threads is None else f"{threads}, fixed"
                print(f"| {situation} | {how} | {seconds:.2f} | {runs[-1][1]} |", flush=True)


if __name__ == "__main__":
    main()
