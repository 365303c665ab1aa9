"""Compares samples of few steps with samples of all steps, in their looks and in their time.

    python benchmarks/few_steps.py demo/checkpoints/model-1600.pt --data demo/clips

Two sets of `ddpm` with all steps, drawn with different seeds, show how far apart two equally good
sets of this size are; each set of few steps is compared with the first of them. The distance is
Frechet's, of the features of fixed random convolutions.
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
from video_diffusion_pytorch.diffusion.samplers import make_sampler
from video_diffusion_pytorch.evaluation.video_scores import (
    FeatureStatistics,
    frechet_distance,
    random_feature_statistics,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, help="a folder of real clips, to compare with as well")
    parser.add_argument("--count", type=int, default=128, help="videos of a set")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--samplers",
        nargs="+",
        default=["dpm++:50", "dpm++:20", "dpm++:10", "dpm++:20:trailing", "ddim:50", "ddim:20"],
        help="name:steps or name:steps:spacing",
    )
    parser.add_argument("--keep", type=Path, help="a folder for sets, which are not drawn again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    diffusion = load_diffusion(options.checkpoint, device=options.device)
    size = {"count": options.count, "batch": options.batch}
    keep = options.keep

    all_steps = f"ddpm:{diffusion.num_timesteps}"
    reference, seconds = draw(diffusion, all_steps, seed=1, keep=keep, **size)
    again, _ = draw(diffusion, all_steps, seed=2, keep=keep, **size)
    real = (
        None
        if options.data is None
        else random_feature_statistics(real_clips(diffusion, options.data, **size))
    )

    print(f"{options.count} videos of {diffusion.clip_shape}, {seconds / options.count:.3f} s each")
    print("| set | to ddpm | to real clips | time of ddpm / its time |")
    print("|---|---|---|---|")

    def row(name: str, found: FeatureStatistics, ratio: float) -> None:
        to_real = "" if real is None else f"{frechet_distance(real, found):.4f}"
        to_ddpm = frechet_distance(random_feature_statistics(reference), found)
        print(f"| {name} | {to_ddpm:.4f} | {to_real} | {ratio:.1f} |", flush=True)

    row(f"{all_steps}, another seed", random_feature_statistics(again), 1.0)
    for name in options.samplers:
        videos, its_seconds = draw(diffusion, name, seed=3, keep=None, **size)
        row(name, random_feature_statistics(videos), seconds / its_seconds)


def draw(
    diffusion: GaussianDiffusion,
    name: str,
    *,
    seed: int,
    count: int,
    batch: int,
    keep: Path | None,
) -> tuple[Tensor, float]:
    """Videos, and the seconds they took; `name` is `sampler:steps` or `sampler:steps:spacing`."""
    file = None if keep is None else keep / f"{name.replace(':', '_')}_{seed}_{count}.pt"
    if file is not None and file.is_file():
        kept = torch.load(file, weights_only=True)
        return kept["videos"], kept["seconds"]
    sampler, steps, *spacing = name.split(":")
    chosen = make_sampler(sampler)
    if spacing:
        chosen.spacing = spacing[0]
    start = time.perf_counter()
    videos = diffusion.sample(
        batch_size=count,
        sampler=chosen,
        steps=int(steps),
        seed=seed,
        max_batch=batch,
        progress=False,
    ).cpu()
    seconds = time.perf_counter() - start
    if file is not None:
        torch.save({"videos": videos, "seconds": seconds}, file)
    return videos, seconds


def real_clips(diffusion: GaussianDiffusion, folder: Path, count: int, batch: int) -> Tensor:
    """The first clips of a folder, as many as there are samples."""
    c, f, *size = diffusion.clip_shape
    clips = Dataset(folder, tuple(size), channels=c, num_frames=f, exts=None)
    return torch.stack([clips[i] for i in range(min(count, len(clips)))])


if __name__ == "__main__":
    main()
