"""Trains a small model with version 0.7.0, in a process that imports it.

    PYTHONPATH=reference python benchmarks/train_with_reference.py task.pt

`small_recipes.py` writes the task (network, batch, seed, processor time, videos and labels) and
reads `weights.pt` beside it. Everything else is as the `Trainer` of 0.7.0 has it by default, which
itself cannot train without a GPU.
"""

import sys
import time
from pathlib import Path

import torch

import video_diffusion_pytorch as reference

LEARNING_RATE, ACCUMULATED = 1e-4, 2


def main(path: Path) -> None:
    """Trains as the task says."""
    torch.set_num_threads(1)
    task = torch.load(path)
    videos, labels = task["videos"], task["labels"]
    vectors = torch.eye(task["network"]["cond_dim"])
    torch.manual_seed(task["seed"])
    network = reference.Unet3D(**task["network"])
    _, channels, frames, _, size = videos.shape
    model = reference.GaussianDiffusion(
        network, image_size=size, num_frames=frames, channels=channels
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    start, steps = time.process_time(), 0
    while time.process_time() - start < task["seconds"]:
        for _ in range(ACCUMULATED):
            chosen = torch.randint(len(videos), (task["batch"],))
            loss = model(videos[chosen], cond=vectors[labels[chosen]])
            (loss / ACCUMULATED).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    # its average is a copy of the weights up to step 2000
    clips = steps * task["batch"] * ACCUMULATED
    found = {"weights": model.state_dict(), "steps": steps, "clips": clips}
    torch.save(found, path.with_name("weights.pt"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
