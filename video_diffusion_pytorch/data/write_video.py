"""Writing of videos: gif, webp, mp4, npy and contact sheets."""

from __future__ import annotations

import math
import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from video_diffusion_pytorch.data.formats.animations import encode_gif
from video_diffusion_pytorch.data.formats.readers import CHANNELS_TO_MODE
from video_diffusion_pytorch.data.formats.writers import encode_mp4, encode_webp
from video_diffusion_pytorch.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURE_ENDINGS = (".gif", ".webp", ".mp4", ".png")
"""Of the files that `write_video` writes, those to look at."""

_MAX_SIDES = {".gif": 65535, ".webp": 16383}
_DEFAULT_CRF = 18.0


def write_video(
    video: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    fps: float | Fraction = 8.0,
    crf: float | None = None,
    columns: int | None = None,
) -> None:
    """Write a clip in the format that the file's name ends in; it appears complete or not at all.

    - `.gif`: grey exactly, else up to 256 colours per frame, opacity on or off; the time of a
      frame is rounded to 10 milliseconds.
    - `.webp`: all exactly.
    - `.mp4`: H.264, plays everywhere. Odd sides get one more row or column, a copy of the last one;
      what is transparent becomes black.
    - `.png`: all frames side by side in one picture, exactly.
    - `.npy`: the values as they are, `(c, f, h, w)`, for NumPy.

    Args:
        video: `(c, f, h, w)` with 1, 3 or 4 channels, any number for `.npy`: floats, clamped to
            [0, 1] and rounded to the nearest of 256 levels, or uint8.
        path: The file to write or replace.
        fps: Frames per second, 0.01 to 1000, to 50 for `.gif`. Floats next to a fraction such as
            30000/1001 are taken for it. `.png` and `.npy` have no clock.
        crf: How much `.mp4` may lose, 0 to 51: 0 is next to nothing, 23 a small file; None for 18.
        columns: Frames in a row of a `.png`; None for the number that makes it next to a square.

    Raises:
        FileNotFoundError: The folder to write into is missing.
        TypeError: `video` is no tensor.
        ValueError: The clip, the name or an option is not as described above.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(torch.rand(3, 5, 8, 8), f"{folder}/noise.mp4", fps=24)
        ...     os.listdir(folder)
        ['noise.mp4']
    """
    target = Path(path)
    ending = target.suffix.lower()
    _check_target(target, (*PICTURE_ENDINGS, ".npy"))
    if not isinstance(video, torch.Tensor):
        raise TypeError(
            f"the clip must be a tensor, got {type(video).__name__}; convert it, for example with "
            "torch.from_numpy"
        )
    _check_options(ending, fps, crf, columns)
    if ending == ".npy":
        _write_npy(video, target)
    elif ending == ".gif":
        video_tensor_to_gif(video, target, duration=10 * round(100 / fps))
    elif ending == ".webp":
        _write_webp(_to_pixels(video).numpy(), target, fps)
    elif ending == ".mp4":
        with replacing(target) as unfinished:
            pixels = _to_pixels(video).numpy()
            encode_mp4(pixels, unfinished, fps, _DEFAULT_CRF if crf is None else crf)
    else:
        _write_sheet(_to_pixels(video).numpy(), target, columns)


def video_tensor_to_gif(
    tensor: torch.Tensor,
    path: str | os.PathLike[str],
    duration: float = 120,
    loop: int | None = 0,
    optimize: bool = True,
) -> list[Image]:
    """Write a clip as a gif; the file appears complete or not at all.

    Grey clips are stored exactly, coloured ones in up to 256 colours per frame. A gif's opacity is
    on or off: from 0.5 up a pixel is opaque. Every frame of the clip is a frame of the file, also
    where nothing moves.

    Args:
        tensor: `(c, f, h, w)` with 1, 3 or 4 channels: floats, clamped to [0, 1] and rounded to the
            nearest of 256 levels, or uint8.
        path: The file to write or replace; its name ends in `.gif`.
        duration: Milliseconds per frame, stored in steps of 10.
        loop: How often viewers repeat the clip; 0 is for ever, None leaves it out (shown once).
        optimize: Store of each later frame only the rectangle that changed.

    Returns:
        The frames as Pillow pictures, before their colours were reduced.

    Raises:
        FileNotFoundError: The folder to write into is missing.
        ValueError: The tensor, the name, `duration` or `loop` is not as described above.

    Differs from the reference: returns a list, rounds rather than cuts off, keeps every frame.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     frames = video_tensor_to_gif(torch.rand(1, 5, 8, 6), f"{folder}/noise.gif")
        >>> len(frames), frames[0].size
        (5, (6, 8))
    """
    from PIL import Image as pillow

    target = Path(path)
    pixels = _to_pixels(tensor)
    _check_target(target, (".gif",))
    if not 0 <= duration <= 655350:
        raise ValueError(
            f"duration must be 0 to 655350 milliseconds per frame, got {duration}; a gif cannot "
            "store other times, choose one in this range"
        )
    if loop is not None and not 0 <= loop <= 65535:
        raise ValueError(
            f"loop must be None or 0 to 65535 repetitions, got {loop}; use 0 to repeat for ever"
        )
    _check_sides(".gif", pixels.numpy())

    frames = [pillow.fromarray(array) for array in _squeeze_grey(pixels.numpy())]
    content = encode_gif(frames, duration, loop, optimize)
    with replacing(target) as unfinished:
        unfinished.write_bytes(content)
    return frames


def _write_npy(video: torch.Tensor, target: Path) -> None:
    if video.ndim != 4:
        raise ValueError(
            "the clip's shape must be (channels, frames, height, width), got "
            f"{tuple(video.shape)}; pass one clip, not a batch"
        )
    values = video.detach().cpu()
    if values.dtype == torch.bfloat16:
        values = values.float()  # NumPy has no such type; float32 holds all its values
    with replacing(target) as unfinished, unfinished.open("wb") as file:
        np.save(file, values.numpy())


def _write_webp(pixels: np.ndarray, target: Path, fps: float | Fraction) -> None:
    f = len(pixels)
    _check_sides(".webp", pixels)
    # Whole milliseconds that do not add up to an error
    times = [round(index * 1000 / fps) for index in range(f + 1)]
    content = encode_webp(pixels, [end - start for start, end in pairwise(times)])
    with replacing(target) as unfinished:
        unfinished.write_bytes(content)


def _write_sheet(pixels: np.ndarray, target: Path, columns: int | None) -> None:
    from PIL import Image as pillow

    f, h, w, c = pixels.shape
    if columns is None:
        columns = min(f, max(1, round(math.sqrt(f * h / w))))
    rows = -(-f // columns)
    # No frame: black, or nothing where there is opacity
    cells = np.zeros((rows * columns, h, w, c), np.uint8)
    cells[:f] = pixels
    sheet = cells.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
    picture = pillow.fromarray(_squeeze_grey(sheet))
    with replacing(target) as unfinished:
        picture.save(unfinished, format="PNG")


def _squeeze_grey(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _check_target(target: Path, endings: tuple[str, ...]) -> None:
    if target.suffix.lower() not in endings:
        expected = " or ".join(map(repr, endings))
        raise ValueError(f"path must end in {expected}, got {target}; rename it")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {target.parent} to write {target.name} into, found none; create "
            "it first"
        )


def _check_sides(ending: str, pixels: np.ndarray) -> None:
    _, h, w, _ = pixels.shape
    if max(h, w) > _MAX_SIDES[ending]:
        raise ValueError(
            f"the sides of a {ending} must be at most {_MAX_SIDES[ending]} pixels, got {h} x {w}; "
            "make the clip smaller"
        )


def _check_options(
    ending: str, fps: float | Fraction, crf: float | None, columns: int | None
) -> None:
    most = 50 if ending == ".gif" else 1000
    if not 0.01 <= fps <= most:  # also where it is NaN
        raise ValueError(
            f"fps must be 0.01 to {most} frames per second for {ending}, got {fps}; choose one in "
            "this range, or leave out frames"
        )
    for name, value, owner in (("crf", crf, ".mp4"), ("columns", columns, ".png")):
        if value is not None and ending != owner:
            raise ValueError(
                f"{name} must be None for other files than {owner}, got {value} for {ending}; "
                "leave it out"
            )
    if crf is not None and not 0 <= crf <= 51:
        raise ValueError(f"crf must be 0 to 51, got {crf}; 18 is good, 23 makes smaller files")
    if columns is not None and columns < 1:
        raise ValueError(
            f"columns must be at least 1, got {columns}; pass None for a sheet like a square"
        )


def _to_pixels(tensor: torch.Tensor) -> torch.Tensor:
    """Check a clip and give it as `(f, h, w, c)` uint8 on the CPU."""
    if tensor.ndim != 4 or tensor.shape[0] not in CHANNELS_TO_MODE or not tensor.numel():
        raise ValueError(
            "the clip's shape must be (channels, frames, height, width) with 1, 3 or 4 channels "
            f"and at least one frame, got {tuple(tensor.shape)}; pass one clip, not a batch, and "
            "choose the channels to show"
        )
    pixels = tensor.detach().cpu()
    if pixels.dtype != torch.uint8:
        if not pixels.is_floating_point():
            raise ValueError(
                f"the clip must hold floats in [0, 1] or uint8, got {pixels.dtype}; convert it "
                "with .float() or .to(torch.uint8)"
            )
        pixels = pixels.float()
        if pixels.isnan().any():
            raise ValueError(
                "the clip must hold numbers, got NaN in "
                f"{int(pixels.isnan().sum())} of {pixels.numel()} values; look for the step that "
                "made them, or replace them with torch.nan_to_num"
            )
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).contiguous()
