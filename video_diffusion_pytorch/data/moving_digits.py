"""Moving digits: short synthetic videos of handwritten digits, to try training without data."""

from __future__ import annotations

import csv
import functools
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The word for each label in the clips' file names."""

DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Initial direction of a digit -> its (vertical, horizontal) unit step; rows count downwards."""

DIGIT_SIZE = 16
"""Height and width, in pixels, of a digit in a clip."""

MANIFEST = "manifest.csv"
"""Name of the table of the clips' labels and captions."""

_SPEEDS = (1, 3)  # odd, see `_bounce`

_Choice = TypeVar("_Choice")


@functools.cache
def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The handwritten digits included in the package (source and licence: DIGITS.md).

    Returns:
        Images `(1797, 8, 8)` uint8 from 0 (paper) to 16 (ink), and labels `(1797,)` int64 from 0 to
        9. They are cached: clone them before you change them.

    Example:
        >>> images, labels = load_digits()
        >>> images.shape, int(images.max()), int(labels[3])
        (torch.Size([1797, 8, 8]), 16, 3)
    """
    file = resources.files(__package__).joinpath("digits_8x8.npz")
    with file.open("rb") as opened, np.load(opened) as arrays:
        return torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["labels"]).long()


def moving_digit_clip(
    digit_image: torch.Tensor,
    num_frames: int,
    image_size: int = 32,
    generator: torch.Generator | None = None,
    *,
    direction: str | None = None,
) -> torch.Tensor:
    """A digit that moves at constant speed in a black square and bounces off its borders.

    It starts in `direction` at 1 or 3 pixels per frame, from the opposite half of the square, and
    drifts sideways by up to half a pixel per frame. Consecutive frames differ.

    Args:
        digit_image: `(8, 8)` from 0 to 16, one of `load_digits()`.
        num_frames: The clip's length.
        image_size: The square's side in pixels, at least 24: the digit is 16 pixels large.
        generator: For start and speed; None for torch's global generator.
        direction: "left", "right", "up" or "down"; None draws one.

    Returns:
        `(1, f, h, w)` uint8, white ink (255) on black (0).

    Raises:
        ValueError: A size, the length, the digit's shape or `direction` is invalid.

    Example:
        >>> digit = load_digits()[0][3]
        >>> moving_digit_clip(digit, num_frames=10, direction="left").shape
        torch.Size([1, 10, 32, 32])
    """
    num_frames = as_count(num_frames, "num_frames")
    least = DIGIT_SIZE + 8
    if digit_image.shape != (8, 8) or as_count(image_size, "image_size") < least:
        raise ValueError(
            f"a clip of a moving digit must have a digit_image (8, 8) and an image_size of at "
            f"least {least}, got {tuple(digit_image.shape)} and {image_size}; take a digit of "
            "load_digits(), or enlarge the clip"
        )
    if direction is None:
        direction = _draw(list(DIRECTIONS), generator)
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    step_down, step_right = DIRECTIONS[direction]

    # The digit
    ink = digit_image.float()[None, None] * (255 / 16)
    ink = F.interpolate(ink, size=(DIGIT_SIZE, DIGIT_SIZE), mode="bilinear")
    ink = ink[0, 0].round().clamp(0, 255).to(torch.uint8)

    # Its path
    room = image_size - DIGIT_SIZE
    speed = _draw(_SPEEDS, generator)
    start = _draw(range(room // 2 + 1), generator)
    side_start = _draw(range(room + 1), generator)
    drift = float(torch.rand((), generator=generator, device="cpu")) - 0.5
    along = [_bounce(start + speed * frame, room) for frame in range(num_frames)]
    if step_down + step_right < 0:
        along = [room - position for position in along]
    across = [_bounce(round(side_start + drift * frame), room) for frame in range(num_frames)]
    tops, lefts = (along, across) if step_down else (across, along)

    # The clip
    clip = torch.zeros(1, num_frames, image_size, image_size, dtype=torch.uint8, device="cpu")
    for frame, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        clip[0, frame, top : top + DIGIT_SIZE, left : left + DIGIT_SIZE] = ink
    return clip


def write_moving_digits(
    folder: str | os.PathLike[str],
    num_clips: int = 500,
    image_size: int = 32,
    num_frames: int = 10,
    seed: int = 0,
) -> list[Path]:
    """Writes clips of moving digits, as training data for a first try.

    File names describe the clips: `0007_three_left.gif` is the eighth clip, a three that starts to
    the left. A clip depends on the seed and its number only, not on `num_clips`. `manifest.csv`
    lists the clips, their digits as `label`, and what they show as `caption`.

    Args:
        folder: Made if missing; files of the same names are replaced.
        num_clips: Number of clips.
        image_size: Height and width in pixels, at least 24.
        num_frames: The length of each clip.
        seed: Of the random generator.

    Returns:
        The files of the clips, in order.

    Raises:
        ValueError: `image_size` or `num_frames` is too small.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in write_moving_digits(folder, num_clips=2)]
        ['0000_..._....gif', '0001_..._....gif']
    """
    images, labels = load_digits()
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    paths, rows = [], []
    for number in range(as_count(num_clips, "num_clips")):
        chosen = _draw(range(len(images)), generator)
        direction = _draw(list(DIRECTIONS), generator)
        image, word = images[chosen], DIGIT_NAMES[int(labels[chosen])]
        clip = moving_digit_clip(image, num_frames, image_size, generator, direction=direction)
        paths.append(target / f"{number:04d}_{word}_{direction}.gif")
        video_tensor_to_gif(clip, paths[-1])
        caption = f"a {word} that moves {direction}"
        rows.append((paths[-1].name, int(labels[chosen]), caption))
    with (target / MANIFEST).open("w", newline="", encoding="utf-8") as table:
        csv.writer(table).writerows([("path", "label", "caption"), *rows])
    return paths


def _bounce(position: int, room: int) -> int:
    """Folds a straight path into 0..room.

    An odd step from a whole position never lands on the mirror image of where it started, so the
    folded positions of two successive frames always differ.
    """
    folded = position % (2 * room)
    return min(folded, 2 * room - folded)


def _draw(choices: Sequence[_Choice], generator: torch.Generator | None) -> _Choice:
    return choices[int(torch.randint(len(choices), (), generator=generator, device="cpu"))]
