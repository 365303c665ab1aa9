"""Computes parameters and memory of the paper's models without building them.

    python benchmarks/preset_sizes.py

Weights are counted with their average and Adam's two moments, in float32. Activations are what one
clip, with its images, keeps between forward and backward pass in float32, by `activation_bytes`:
as it is, and with gradient checkpointing. Without a GPU autocast cannot be counted here.
"""

from __future__ import annotations

import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.presets import PRESETS
from video_diffusion_pytorch.training.memory import activation_bytes

GIB = 2**30


def main() -> None:
    """Prints a table."""
    print("| preset | parameters | weights, average, Adam | activations of a clip | checkpointed |")
    print("|---|---|---|---|---|")
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            unet = Unet3D(**preset.unet)
        diffusion = GaussianDiffusion(unet, **preset.diffusion)
        count = sum(w.numel() for w in unet.parameters() if w.requires_grad)
        kept = []
        for again in (False, True):
            images = preset.image_frames
            found = activation_bytes(diffusion, 1, image_frames=images, checkpointing=again)
            kept.append(f"{found / GIB:.1f} GiB")
        state = count * 4 * 4 / GIB
        print(
            f"| `{name}` | {count / 1e6:.0f} M | {state:.1f} GiB | {' | '.join(kept)} |", flush=True
        )


if __name__ == "__main__":
    main()
