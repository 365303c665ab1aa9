"""Counts the memory of a training step by part, for the README's model and those of the paper.

    python benchmarks/memory_parts.py
    python benchmarks/memory_parts.py --settings README bair

Nothing is built: the networks are on the meta device. Weights, one average, gradients and Adam's
two moments are in float32. Activations are what a clip, with its images, keeps between forward and
backward pass, by `activation_bytes`: in float32 and, as if the whole network computed in it, in
bfloat16, with and without gradient checkpointing. A step holds the state and the activations of all
clips of a micro-batch, here that of all processes; temporary buffers and fragmentation come on top.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.presets import PRESETS, Preset
from video_diffusion_pytorch.training.memory import activation_bytes, state_bytes

GIB = 2**30
KINDS = [(precision, again) for precision in ("no", "bf16") for again in (False, True)]
STATE_HEADS = "weights | an average | gradients | Adam's moments | all of them"
STEP_HEADS = "in float32 | checkpointed | in bfloat16 | both"

# keywords of Unet3D and of GaussianDiffusion, clips of a micro-batch, images of a clip
Setting = tuple[dict[str, Any], dict[str, Any], int, int]

SETTINGS: dict[str, Setting] = {
    "README": (
        {"dim": 64, "use_bert_text_cond": True, "dim_mults": (1, 2, 4, 8)},
        {"image_size": 64, "num_frames": 10},
        32,
        0,
    )
}
SETTINGS |= {
    name: (paper.unet, paper.diffusion, paper.batch, paper.image_frames)
    for name, paper in PRESETS.items()
    if isinstance(paper, Preset)
}


def count(setting: Setting) -> tuple[int, list[int], list[int]]:
    """The number of parameters, the bytes of the state by part, and those of a clip by kind."""
    network, clips, _, images = setting
    with torch.device("meta"):
        unet = Unet3D(**network)
    diffusion = GaussianDiffusion(unet, **clips)
    trained = [w for w in unet.parameters() if w.requires_grad]
    alone, averaged = (state_bytes(diffusion, averages=n) for n in (0, 1))
    weights, gradients = averaged - alone, sum(w.nbytes for w in trained)
    state = [weights, weights, gradients, alone - weights - gradients]
    kept = [
        activation_bytes(diffusion, image_frames=images, precision=precision, checkpointing=again)
        for precision, again in KINDS
    ]
    return sum(w.numel() for w in trained), state, kept


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = list(SETTINGS)
    parser.add_argument("--settings", nargs="+", choices=names, default=names)
    options = parser.parse_args(arguments)

    counts = {name: count(SETTINGS[name]) for name in options.settings}
    print("State, GiB:\n")
    print(f"| | million parameters | {STATE_HEADS} |\n|---|---|---|---|---|---|---|")
    for name, (parameters, state, _) in counts.items():
        cells = " | ".join(f"{part / GIB:.2f}" for part in (*state, sum(state)))
        print(f"| `{name}` | {parameters / 1e6:.1f} | {cells} |")
    print("\nActivations of a clip / state and activations of so many clips, GiB:\n")
    print(f"| | clips | {STEP_HEADS} |\n|---|---|---|---|---|---|")
    for name, (_, state, kept) in counts.items():
        clips = SETTINGS[name][2]
        pairs = [(one / GIB, (sum(state) + clips * one) / GIB) for one in kept]
        cells = " | ".join(f"{clip:.2f} / {step:.1f}" for clip, step in pairs)
        print(f"| `{name}` | {clips} | {cells} |")


if __name__ == "__main__":
    main()
