"""Times compilation of the network as a whole and layer by layer, and a step thereafter.

    python benchmarks/compile_blocks.py --device cuda --bf16 --dim 64 --frames 16 --size 64

Each variant runs in a new process with an empty cache, so that none reuses kernels of another. A
step is a forward and a backward pass; its time is the median. "Again" is the first step of a
second process, which finds the kernels of the first in the cache.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch
from torch import nn

from video_diffusion_pytorch import Unet3D

WAYS = ("eager", "blocks", "whole")


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bf16", action="store_true", help="in autocast")
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one-way", choices=WAYS, help="only print the seconds of this way")
    options = parser.parse_args(arguments)
    if options.one_way is not None:
        print(*measure(options.one_way, options))
        return

    print("| way | first step, s | first step again, s | step, ms |")
    print("|---|---|---|---|")
    given = sys.argv[1:] if arguments is None else list(arguments)
    for way in options.ways:
        with tempfile.TemporaryDirectory() as cache:
            first, step = in_a_process(way, given, cache)
            again, _ = in_a_process(way, given, cache)
        print(f"| {way} | {first:.1f} | {again:.1f} | {1000 * step:.1f} |", flush=True)


def in_a_process(way: str, arguments: Sequence[str], cache: str) -> tuple[float, float]:
    """What `measure` gives in a new process."""
    command = [sys.executable, __file__, *arguments, "--one-way", way]
    places = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": os.path.join(cache, "triton")}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **places}
    )
    first, step = done.stdout.split()[-2:]
    return float(first), float(step)


def measure(way: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the first step, compilation included, and of a later one."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    unet = Unet3D(dim=options.dim).to(options.device)
    if way == "blocks":
        unet.compile_blocks(fullgraph=True)
    elif way == "whole":
        unet.compile(fullgraph=True)
    times = [step_time(unet, options) for _ in range(options.steps + 2)]
    return times[0], statistics.median(times[2:])


def step_time(unet: nn.Module, options: argparse.Namespace) -> float:
    """Seconds of one step."""
    device = torch.device(options.device)
    shape = (options.batch, 3, options.frames, options.size, options.size)
    x, t = torch.randn(shape, device=device), torch.zeros(options.batch, device=device)
    wait(device)
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.bf16):
        loss = unet(x, t).square().mean()
    loss.backward()
    wait(device)
    return time.perf_counter() - start


def wait(device: torch.device) -> None:
    """Waits for all queued work of the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
