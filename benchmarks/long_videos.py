"""Extends samples to four times their length, by replacement and by reconstruction guidance.

    python benchmarks/long_videos.py demo/checkpoints/model-1600.pt --data demo/clips --gifs samples

For each weight w_r (0 is replacement alone) the same samples are continued window by window (Ho
et al. 2022, section 3.1 and table 6), and what happens at the seams, between the last known and the
first new frame of a window, is compared with what happens inside windows and in real clips:

- change: mean absolute difference of the two frames;
- jolt: root mean square change of the velocity of what is bright, in pixels per frame;
- distance: Frechet distance, of fixed random features, between the frames around the seams, as many
  as a clip has, and real clips.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, load_diffusion
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.samplers import Ancestral, make_sampler
from video_diffusion_pytorch.diffusion.sampling_steps import Sampler
from video_diffusion_pytorch.evaluation.video_scores import (
    frechet_distance,
    random_feature_statistics,
)
from video_diffusion_pytorch.training.samples import write_sample_grid


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and writes a gif for each weight."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a folder of real clips")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 1.0, 2.0, 4.0])
    parser.add_argument("--count", type=int, default=32, help="videos of a set")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--times", type=int, default=4, help="how many times the clips' length")
    parser.add_argument("--sampler", default="ancestral")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--langevin", type=float, default=0.0, help="delta of a corrector step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gifs", type=Path, help="a folder for the gifs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    diffusion = load_diffusion(options.checkpoint)
    frames = diffusion.num_frames
    how = {
        "sampler": chosen_sampler(options.sampler, options.langevin),
        "steps": options.steps,
        "max_batch": options.batch,
        "progress": False,
    }

    real = real_clips(diffusion, options.data, 8 * options.count)
    start = diffusion.sample(batch_size=options.count, seed=options.seed, **how)
    print("| video | change at seams / inside | jolt at seams | jolt inside | distance | s |")
    print("|---|---|---|---|---|---|")
    change, jolt = changes(real), jolts(real)
    print(f"| real clips ({change.mean():.4f} change) | 1 | | {rms(jolt):.2f} | 0 | |", flush=True)
    for weight in options.weights:
        begin = time.perf_counter()
        videos = diffusion.extend(
            start, options.times * frames, weight=weight, seed=options.seed + 1, **how
        )
        seconds = time.perf_counter() - begin
        name = "replacement" if weight == 0 else f"w_r = {weight:g}"
        print(row(name, videos, real, frames, seconds), flush=True)
        if options.gifs is not None:
            file = "replacement" if weight == 0 else f"guidance_{weight:g}"
            large = videos[:16].repeat_interleave(3, dim=-1).repeat_interleave(3, dim=-2)
            write_sample_grid(large, options.gifs / f"extended_by_{file}.gif", rows=4)


def chosen_sampler(name: str, langevin: float) -> Sampler:
    """The sampler, with a corrector if one is asked for."""
    return Ancestral(langevin_delta=langevin) if langevin else make_sampler(name)


def real_clips(diffusion: GaussianDiffusion, folder: Path, count: int) -> Tensor:
    """Clips of a folder, in [0, 1]."""
    c, f, *size = diffusion.clip_shape
    clips = Dataset(folder, tuple(size), channels=c, num_frames=f, exts=None)
    return torch.stack([clips[i] for i in range(min(count, len(clips)))])


def row(name: str, videos: Tensor, real: Tensor, frames: int, seconds: float) -> str:
    """A line of the table."""
    total = videos.shape[2]
    seams = torch.arange(frames, total, frames // 2)  # the first new frame of each window
    at_seam = torch.zeros(total, dtype=torch.bool)
    at_seam[seams] = True
    change, jolt = changes(videos), jolts(videos)
    # a jolt at frame i is between the motion to it and the motion from it
    near = at_seam[1:-1] | at_seam[2:]
    around = [videos[:, :, s - frames // 2 : s + frames // 2] for s in seams.tolist()]
    distance = frechet_distance(
        random_feature_statistics(torch.cat(around)), random_feature_statistics(real)
    )
    ratio = change[:, at_seam[1:]].mean() / change[:, ~at_seam[1:]].mean()
    return (
        f"| {name} | {ratio:.3f} | {rms(jolt[:, near]):.2f} | {rms(jolt[:, ~near]):.2f} | "
        f"{distance:.4f} | {seconds:.0f} |"
    )


def changes(videos: Tensor) -> Tensor:
    """Mean absolute difference of each frame to the one before, `(b, f - 1)`."""
    return videos.diff(dim=2).abs().mean(dim=(1, 3, 4))


def jolts(videos: Tensor) -> Tensor:
    """Change of the velocity of the brightness' centre, in pixels per frame, `(b, f - 2)`."""
    light = videos.clamp(0, 1).mean(dim=1)
    total = light.sum(dim=(2, 3)).clamp(min=1e-6)
    axes = [torch.arange(n, dtype=light.dtype) for n in light.shape[2:]]
    row_of = (light.sum(dim=3) * axes[0]).sum(dim=2) / total
    column_of = (light.sum(dim=2) * axes[1]).sum(dim=2) / total
    centre = torch.stack((row_of, column_of), dim=-1)
    return centre.diff(n=2, dim=1).norm(dim=-1)


def rms(values: Tensor) -> float:
    """Root mean square."""
    return values.square().mean().sqrt().item()


if __name__ == "__main__":
    main()
