"""How large the distance between two sets of real clips is, by their number and their filter.

    python benchmarks/distance_floor.py --folder /tmp/digits

Makes two folders of clips of moving digits, reads them at half their size, and prints the tables of
`docs/evaluation.md`: the random-feature distance of sets of real clips, and of the same clips that
were scaled by another filter.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.evaluation.video_scores import (
    frechet_distance,
    random_feature_statistics,
)

SIZE, FRAMES = 32, 8
NUMBERS = (70, 128, 256, 500, 1000)
FILTERS = (
    ("bilinear with antialiasing", {"mode": "bilinear", "antialias": True}),
    ("bilinear without", {"mode": "bilinear"}),
    ("bicubic with antialiasing", {"mode": "bicubic", "antialias": True}),
    ("nearest", {"mode": "nearest"}),
)


def distance(first: Tensor, second: Tensor) -> float:
    """Between the random features of two sets of clips, `(b, 1, f, h, w)`."""
    return frechet_distance(*(random_feature_statistics(clips) for clips in (first, second)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the clips go")
    parser.add_argument("--clips", type=int, default=NUMBERS[-1], help="in each folder")
    options = parser.parse_args()
    folders = [options.folder / str(seed) for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        write_moving_digits(folder, options.clips, image_size=SIZE, num_frames=FRAMES, seed=seed)
    first, second = (torch.stack([*Dataset(f, SIZE // 2, 1, FRAMES)]) for f in folders)

    for number in (number for number in NUMBERS if number <= options.clips):
        starts = range(0, options.clips - number + 1, number)
        found = [distance(first[i : i + number], second[i : i + number]) for i in starts]
        mean, least, most = sum(found) / len(found), min(found), max(found)
        print(f"{number} clips, {len(found)} sets: {mean:.2g}, {least:.2g} to {most:.2g}")

    number = min(500, options.clips)
    large = torch.stack([*Dataset(folders[0], SIZE, 1, FRAMES)][:number])
    for name, how in FILTERS:
        frames = F.interpolate(large[:, 0].flatten(0, 1)[:, None], size=SIZE // 2, **how)
        small = frames.view(number, 1, FRAMES, SIZE // 2, SIZE // 2)
        print(f"{number} clips, {name}: {distance(first[:number], small):.2g}")


if __name__ == "__main__":
    main()
