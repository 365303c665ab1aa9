"""Clips of balls that bounce off walls and each other, and a score that counts the balls.

    python benchmarks/bouncing_balls.py balls --clips 500
    video-diffusion sample CHECKPOINT -n 64 -o samples
    python benchmarks/bouncing_balls.py samples --score --balls 2 3

Equal balls move without friction in a square and collide elastically. The times of collisions are
computed exactly, whatever the frame rate. The balls that collide are a pixel larger than those that
are drawn: between two of them there are always dark pixels, so that the number of connected bright
regions is the number of balls. A model that has learned this draws the same number in all frames
of a video, and one that the data has. Gravity is absent: energy is kept in all collisions, momentum
in those of two balls.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.data.moving_digits import MANIFEST
from video_diffusion_pytorch.data.write_video import write_video

# of the side of a frame, the speed per frame
RADIUS, SPEEDS = 1 / 8, (1 / 32, 1 / 8)
GAP = 1.0  # pixels by which a ball that collides is larger than the one drawn
TRIES = 10_000  # to place balls at random without overlap


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes clips to a folder, or scores the videos of a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path, help="folder of the clips; or a .npy file to score")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--balls", type=int, nargs="+", default=[2, 3], help="numbers to draw from")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", type=int, default=16, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--score", action="store_true", help="count the balls in the file instead")
    options = parser.parse_args(arguments)
    if options.score:
        print(report(torch.from_numpy(np.load(options.path)), options.balls))
        return
    videos, counts = make_clips(
        options.clips, options.balls, options.frames, options.size, options.seed
    )
    write_clips(options.path, videos, counts)
    print(f"wrote {len(videos)} clips to {options.path}")


# Physics


def place_balls(
    balls: int, box: float, radius: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random positions without overlap, and velocities of random directions.

    Args:
        balls: Number of balls.
        box: Side of the square.
        radius: Of a ball.
        rng: Draws both.

    Returns:
        Positions and velocities, each `(balls, 2)`; the speed is in `SPEEDS` times `box`.

    Raises:
        ValueError: If the balls do not fit into the square.
    """
    for _ in range(TRIES):
        places = rng.uniform(radius, max(radius, box - radius), (balls, 2))
        apart = np.linalg.norm(places[:, None] - places, axis=-1) + 2 * radius * np.eye(balls)
        if 2 * radius < box and apart.min() >= 2 * radius:
            break
    else:
        raise ValueError(
            f"place_balls: the balls must fit into the square, got {balls} of radius {radius:g} in "
            f"a square of side {box:g}; take fewer, or a larger square"
        )
    speeds, angles = rng.uniform(*SPEEDS, balls) * box, rng.uniform(0, 2 * math.pi, balls)
    return places, speeds[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=-1)


def advance(
    places: np.ndarray, velocities: np.ndarray, time: float, box: float, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Moves balls of equal mass for a time, from one collision to the next.

    Args:
        places: Positions `(balls, 2)`, at least `radius` from the walls at 0 and `box`.
        velocities: Likewise.
        time: How long, at least 0.
        box: Side of the square.
        radius: Of a ball.

    Returns:
        Positions and velocities after that time.
    """
    while True:
        to_wall = times_to_walls(places, velocities, box, radius)
        to_ball = times_to_balls(places, velocities, radius)
        step = min(time, to_wall.min(), to_ball.min())
        places, time = places + velocities * step, time - step
        if time <= 0:
            return places, velocities
        velocities = velocities.copy()
        if to_wall.min() <= to_ball.min():
            velocities[np.unravel_index(to_wall.argmin(), to_wall.shape)] *= -1
        else:
            one, other = np.unravel_index(to_ball.argmin(), to_ball.shape)
            # equal masses exchange the part of their velocities along the line between them
            line = places[one] - places[other]
            line = line / np.linalg.norm(line)
            exchanged = line * ((velocities[one] - velocities[other]) @ line)
            velocities[one] -= exchanged
            velocities[other] += exchanged


def times_to_walls(
    places: np.ndarray, velocities: np.ndarray, box: float, radius: float
) -> np.ndarray:
    """When each coordinate of each ball is at the wall ahead, `(balls, 2)`; infinite if never."""
    ahead = np.where(velocities > 0, box - radius - places, places - radius)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = ahead / abs(velocities)
    # rounding may leave a ball behind the wall by a little
    return np.where(velocities == 0, np.inf, times).clip(min=0)


def times_to_balls(places: np.ndarray, velocities: np.ndarray, radius: float) -> np.ndarray:
    """When each two balls touch, `(balls, balls)`; infinite if never."""
    offset = places[:, None] - places
    speed = velocities[:, None] - velocities
    # |offset + speed t| = 2 radius
    a, b = (speed**2).sum(-1), (offset * speed).sum(-1)
    c = (offset**2).sum(-1) - 4 * radius**2
    root = b**2 - a * c
    meets = (b < 0) & (root >= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = (-b - np.sqrt(root.clip(min=0))) / a
    return np.where(meets, times.clip(min=0), np.inf)


# Clips


def make_clips(
    count: int,
    balls: Sequence[int] = (2, 3),
    frames: int = 8,
    size: int = 16,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Clips of bouncing balls; a clip depends on the seed and its number only, not on `count`.

    Args:
        count: Number of clips.
        balls: Numbers of balls that a clip's number is drawn from, each at least 1.
        frames: Frames of a clip.
        size: Height and width in pixels.
        seed: Draws the numbers, positions and velocities.

    Returns:
        Clips `(count, 1, f, h, w)`, uint8, white on black, and their numbers of balls `(count,)`.

    Raises:
        ValueError: If a number is less than 1, or the balls do not fit into a frame.
    """
    numbers = [as_count(number, "make_clips: balls") for number in balls]
    frames, size = as_count(frames, "make_clips: frames"), as_count(size, "make_clips: size")
    radius = RADIUS * size
    videos, drawn = [], []
    for i in range(as_count(count, "make_clips: count")):
        rng = np.random.default_rng((seed, i))
        drawn.append(int(rng.choice(numbers)))
        places, velocities = place_balls(drawn[-1], size, radius + GAP, rng)
        path = [places]
        for _ in range(frames - 1):
            places, velocities = advance(places, velocities, 1.0, size, radius + GAP)
            path.append(places)
        videos.append(draw_balls(np.stack(path), size, radius))
    return torch.stack(videos), torch.tensor(drawn)


def write_clips(folder: Path, videos: Tensor, counts: Tensor) -> None:
    """Writes clips as gifs, and `manifest.csv` with labels such as "2 balls".

    Args:
        folder: Made if missing.
        videos: As from `make_clips`.
        counts: Likewise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, object]] = [("path", "label")]
    for i, (video, count) in enumerate(zip(videos, counts.tolist(), strict=True)):
        rows.append((f"{i:04d}_{count}_balls.gif", f"{count} balls"))
        write_video(video, folder / rows[-1][0])
    with (folder / MANIFEST).open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows(rows)


def draw_balls(path: np.ndarray, size: int, radius: float) -> Tensor:
    """Draws balls with smooth edges.

    Args:
        path: Centres `(f, balls, 2)`, from the top and from the left in pixels.
        size: Height and width of a frame.
        radius: Of a ball; it is half as bright there.

    Returns:
        `(1, f, h, w)`, uint8.
    """
    centres = np.arange(size) + 0.5
    down = centres[:, None] - path[..., 0, None, None]
    right = centres - path[..., 1, None, None]
    # (f, balls, h, w)
    inside = (radius + 0.5 - np.hypot(down, right)).clip(0, 1)
    return torch.from_numpy((255 * inside.max(axis=1)).round().astype(np.uint8))[None]


# The score


def count_balls(videos: Tensor) -> Tensor:
    """Number of connected bright regions in each frame.

    Args:
        videos: `(b, 1, f, h, w)` in [0, 1], or uint8.

    Returns:
        `(b, f)`, integers.
    """
    from scipy.ndimage import label

    middle = 127 if videos.dtype == torch.uint8 else 0.5
    bright = (videos[:, 0] > middle).cpu().numpy()
    return torch.tensor([[label(frame)[1] for frame in video] for video in bright])


def report(videos: Tensor, balls: Sequence[int]) -> str:
    """Says how many videos keep their number of balls.

    Args:
        videos: As in `count_balls`.
        balls: The numbers that real clips have.

    Returns:
        Shares of videos with the same number in all frames, and with one of `balls` in all frames;
        of pairs of neighbouring frames that agree; and of frames by number.
    """
    counts = count_balls(videos)
    stays = (counts == counts[:, :1]).all(dim=1)
    is_real = stays & torch.isin(counts[:, 0], torch.tensor(balls))
    agree = (counts[:, 1:] == counts[:, :-1]).float()
    numbers, times = counts.unique(return_counts=True)
    shares = zip(numbers.tolist(), (times / counts.numel()).tolist(), strict=True)
    return (
        f"{len(videos)} videos: the number of balls stays in {stays.float().mean():.0%}, at one of "
        f"{', '.join(map(str, balls))} in {is_real.float().mean():.0%}; neighbouring frames agree "
        f"in {agree.mean():.0%}; frames by number of balls: "
        + ", ".join(f"{number}: {share:.0%}" for number, share in shares)
    )


if __name__ == "__main__":
    main()
