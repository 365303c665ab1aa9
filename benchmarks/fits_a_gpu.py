"""Computes the largest batch of volumes that fits GPUs of several sizes; needs no GPU.

    python benchmarks/fits_a_gpu.py
    python benchmarks/fits_a_gpu.py --channels 3 --clips 64,16,64,8 --gpus 8 12 48

COMPUTED, not measured on a GPU: the network runs on the meta device, which allocates nothing.
Weights, one average, gradients and the two moments of AdamW are in float32, by `state_bytes`;
activations are what a clip keeps for the backward pass, by `activation_bytes`. Head-room for what
is not counted, such as temporary buffers, workspaces of libraries, the CUDA context and
fragmentation: `HEADROOM` of the GPU is left free, and activations in bfloat16 are taken to be
`AUTOCAST` times as large, the most that was measured with autocast. GB are 10^9 bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.training.memory import activation_bytes, state_bytes

GB = 10**9
HEADROOM = 0.2
AUTOCAST = 1.35
# image size, frames, dim, attention heads
CLIPS = [
    (64, 16, 64, 8), (64, 32, 64, 8), (64, 64, 64, 8), (64, 64, 64, 2),
    (128, 16, 64, 8), (128, 32, 64, 8), (128, 64, 64, 8), (128, 64, 64, 2), (128, 64, 32, 2),
    (256, 32, 32, 2), (256, 64, 32, 2),
]  # fmt: skip


def count(size: int, frames: int, dim: int, heads: int, channels: int) -> tuple[float, ...]:
    """Bytes of the state, of a clip in float32, and of one in bfloat16 with checkpointing."""
    with torch.device("meta"):
        unet = Unet3D(dim=dim, channels=channels, attn_heads=heads)
    diffusion = GaussianDiffusion(unet, image_size=size, num_frames=frames)
    small = activation_bytes(diffusion, precision="bf16", checkpointing=True)
    return state_bytes(diffusion), activation_bytes(diffusion), AUTOCAST * small


def largest_batch(gpu: float, state: float, clip: float) -> int:
    """The number of clips that fit a GPU of so many bytes, with head-room; at least 0."""
    return max(0, int(((1 - HEADROOM) * gpu - state) // clip))


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--gpus", type=float, nargs="+", default=[8, 16, 24, 80], help="GB")
    parser.add_argument("--clips", nargs="+", help="size, frames, dim and heads: 64,16,64,8")
    options = parser.parse_args(arguments)
    clips = CLIPS
    if options.clips is not None:
        clips = [tuple(map(int, clip.split(","))) for clip in options.clips]

    print(f"COMPUTED, not measured on a GPU; {HEADROOM:.0%} of each GPU is left free.")
    print("Largest batch in float32 / in bfloat16 with gradient checkpointing:\n")
    gpus = " | ".join(f"{gpu:g} GB" for gpu in options.gpus)
    print(f"| image size | frames | `dim` | `attn_heads` | state, GB | a clip, GB | {gpus} |")
    print("|---" * (6 + len(options.gpus)) + "|")
    for size, *rest in clips:
        state, *kinds = count(size, *rest, options.channels)
        cells = [f"{size} x {size}", *map(str, rest), f"{state / GB:.2f}"]
        cells.append(" / ".join(f"{clip / GB:.2f}" for clip in kinds))
        for gpu in options.gpus:
            cells.append(" / ".join(str(largest_batch(gpu * GB, state, clip)) for clip in kinds))
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
