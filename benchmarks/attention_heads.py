"""Times a training step of the network with few and many attention heads, on short and long clips.

    python benchmarks/attention_heads.py --frames 16 64 --size 32 --dim 16

A step is a forward and a backward pass of one clip in float32, on one core. The settings take turns
in each round, so that other work on the machine meets all of them; their times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from torch import nn

from video_diffusion_pytorch import Unet3D

# heads, and the width of each, in temporal attention
HEADS = ((8, 32), (4, 32), (2, 32), (2, 16))


def step_time(unet: nn.Module, x: torch.Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    start = time.perf_counter()
    unet(x, torch.zeros(len(x))).square().mean().backward()
    return time.perf_counter() - start


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dim", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)

    print(
        "| frames | `attn_heads` x `attn_dim_head` | million parameters | step, s | of the first |"
    )
    print("|---|---|---|---|---|")
    for frames in options.frames:
        x = torch.randn(1, 3, frames, options.size, options.size)
        networks = {}
        for heads, width in HEADS:
            how = {"attn_heads": heads, "attn_dim_head": width}
            networks[heads, width] = Unet3D(options.dim, dim_mults=(1, 2, 4), **how)
        times: dict[tuple[int, int], list[float]] = {setting: [] for setting in HEADS}
        # the first round also sets up what later ones reuse
        for _ in range(options.rounds + 1):
            for setting, unet in networks.items():
                times[setting].append(step_time(unet, x))
        medians = {setting: statistics.median(times[setting][1:]) for setting in HEADS}
        for (heads, width), seconds in medians.items():
            millions = sum(p.numel() for p in networks[heads, width].parameters()) / 1e6
            share = seconds / medians[HEADS[0]]
            print(
                f"| {frames} | {heads} x {width} | {millions:.2f} | {seconds:.3f} | {share:.2f} |"
            )


if __name__ == "__main__":
    main()
