"""Samples of a milestone: drawing, writing and describing them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.conditions import repeat_rows
from video_diffusion_pytorch.data.display import to_pictures, video_grid
from video_diffusion_pytorch.data.formats.readers import CHANNELS_TO_MODE
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.sampling_steps import SamplingStep
from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.value_scale import Standardization, parse_scale


@torch.no_grad()
def draw_samples(
    diffusion: GaussianDiffusion,
    count: int,
    max_batch: int,
    conditions: Mapping[str, Any],
    seed: int,
    cond_scale: float | Mapping[str, float] = 1.0,
    share: tuple[int, int] = (0, 1),
    advance: Callable[[int, int], Any] | None = None,
) -> Tensor:
    """Draws videos from a seed, leaving the global random state unchanged.

    Args:
        diffusion: The model.
        count: Number of videos.
        max_batch: Largest number of videos per batch.
        conditions: Keywords of `diffusion.sample`, such as `cond`: tensors or lists of rows, which
            are repeated to `count`. Empty for none.
        seed: The same seed gives the same noise.
        cond_scale: Guidance scale, if there are conditions; 1 disables guidance.
        share: Rank and world size; each process draws its part. Concatenated and truncated to
            `count`, the parts are the videos that one process draws.
        advance: Called after each sampling step with the numbers of those done and in all; None for
            not at all, as for a subclass with a chain of its own.

    Returns:
        `(ceil(count / processes), c, f, h, w)`.
    """
    process, processes = share
    own = ceil(count / processes)
    # equal parts, as processes that share a sharded model must take the same number of steps
    numbers = [min(process * own + i, count - 1) for i in range(own)]
    repeated = {name: repeat_rows(condition, count) for name, condition in conditions.items()}
    options: dict[str, Any] = {"cond_scale": cond_scale} if conditions else {}
    # subclasses written for the reference have neither progress nor seeds
    known = inspect.signature(diffusion.sample).parameters
    if "progress" in known:
        options["progress"] = False
    has_seeds = "seed" in known and not diffusion.replaced_methods
    device = diffusion.betas.device
    starts = range(0, own, max_batch)
    parts: list[Tensor] = []

    def follow(state: SamplingStep) -> None:
        assert advance is not None
        advance(len(parts) * state.steps + state.step, len(starts) * state.steps)

    if advance is not None and has_seeds and "callback" in known:
        options["callback"] = follow
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + process)
        for start in starts:
            chosen = numbers[start : start + max_batch]
            part = {name: _rows(condition, chosen) for name, condition in repeated.items()}
            if has_seeds:
                options["seed"] = [seed + number for number in chosen]
            parts.append(diffusion.sample(**part, **options, batch_size=len(chosen)))
    return torch.cat(parts)


def _rows(condition: Any, numbers: Sequence[int]) -> Any:
    if isinstance(condition, Tensor):
        return condition[numbers]
    return [condition[number] for number in numbers]


def write_samples(
    videos: Tensor,
    folder: Path,
    name: str,
    *,
    rows: int,
    value_range: Any,
    in_unit_range: bool,
    captions: Sequence[str] | None,
    fps: float = 8.0,
) -> Path:
    """Writes videos as values and as an animated grid, and their conditions as text.

    Args:
        videos: `(b, c, f, h, w)`, `b` a multiple of `rows`.
        folder: Gets `{name}.npy` (the values, float32), `{name}.gif` (the grid) and, with captions,
            `{name}.txt` (a line for each video).
        name: Stem of the file names.
        rows: Number of rows of the grid.
        value_range: As in `write_sample_grid`.
        in_unit_range: As in `write_sample_grid`.
        captions: A line for each video; None for none.
        fps: Frames per second.

    Returns:
        The path of the gif.
    """
    with replacing(folder / f"{name}.npy") as unfinished, unfinished.open("wb") as file:
        np.save(file, videos.detach().float().cpu().numpy())
    if captions is not None:
        columns = len(videos) // rows
        places = (f"row {i // columns + 1}, column {i % columns + 1}" for i in range(len(videos)))
        # one line per video, also for captions of several lines
        lines = [f"{p}: {' '.join(c.split())}\n" for p, c in zip(places, captions, strict=True)]
        # class names from file names may not be valid Unicode
        content = "".join(lines).encode("utf-8", "replace")
        (folder / f"{name}.txt").write_bytes(content)
    # last: if it exists, the others do
    grid = folder / f"{name}.gif"
    write_sample_grid(videos, grid, rows, in_unit_range, value_range=value_range, fps=fps)
    return grid


def is_of_others(videos: Tensor, folder: Path, name: str) -> bool:
    """Whether files of this name exist that hold other videos.

    Args:
        videos: `(b, c, f, h, w)`.
        folder: As in `write_samples`.
        name: As in `write_samples`.
    """
    values = folder / f"{name}.npy"
    if not values.is_file():
        return values.with_suffix(".gif").is_file()
    try:
        before = np.load(values)
    except (OSError, ValueError, EOFError):
        return True
    return not np.array_equal(before, videos.detach().float().cpu().numpy(), equal_nan=True)


def write_sample_grid(
    videos: Tensor,
    path: Path,
    rows: int,
    in_unit_range: bool = True,
    *,
    value_range: Any = None,
    fps: float = 8.0,
) -> None:
    """Writes a grid of `rows` rows of videos that play at once, with a black border around each.

    Args:
        videos: `(b, c, f, h, w)`, `b` a multiple of `rows`.
        path: The file, of a format that `write_video` knows.
        rows: Number of rows.
        in_unit_range: Whether values are in [0, 1], where `value_range` is None.
        value_range: That of the model, see `parse_scale`: of a range the low is black and the high
            white, of a standardisation three standard deviations below and above the mean. None
            for [0, 1], or, unless `in_unit_range`, the minimum and maximum of each channel.
        fps: Frames per second.
    """
    pictures = pictures_of_samples(videos, in_unit_range, value_range)
    write_video(video_grid(pictures, len(pictures) // rows), path, fps=fps)


def pictures_of_samples(videos: Tensor, in_unit_range: bool, value_range: Any) -> Tensor:
    """Converts videos to pictures that `write_video` takes.

    Videos of one channel are grey, and those of 3 or 4 in [0, 1] stay as they are; others get the
    false colours of `to_pictures`.

    Args:
        videos: `(b, c, f, h, w)`.
        in_unit_range: As in `write_sample_grid`.
        value_range: As in `write_sample_grid`.

    Returns:
        `(b, k, f, h, w)` in [0, 1], as from `to_pictures`.
    """
    is_grey = videos.shape[1] == 1
    if value_range is not None:
        scale = parse_scale(value_range, videos.shape[1])
        if isinstance(scale, Standardization):
            videos, value_range = scale.to_unit_range(videos), (0.0, 1.0)
        return to_pictures(videos, value_range, keep_pictures=is_grey)
    if not in_unit_range:
        return to_pictures(videos, "fit", keep_pictures=is_grey)
    if videos.shape[1] not in CHANNELS_TO_MODE:
        return to_pictures(videos, (0.0, 1.0))
    # a diverged model must not raise here, as training may recover
    return to_pictures(videos.clamp(0, 1).where(videos.isfinite(), videos))


def describe(
    conditions: Mapping[str, Any],
    class_names: tuple[str, ...],
    count: int,
    columns: Sequence[str] = (),
) -> list[str] | None:
    """The conditions of each of `count` samples in words; None without conditions.

    Args:
        conditions: Keywords of `diffusion.sample`.
        class_names: Names of the classes by label; empty if unknown.
        count: Number of samples, over which the conditions are repeated.
        columns: Names of the numbers in `cond`; empty if unknown.
    """
    lines = [_words(conditions, class_names, i, columns) for i in range(count)]
    return lines if any(lines) else None


def _words(
    conditions: Mapping[str, Any], class_names: tuple[str, ...], i: int, columns: Sequence[str]
) -> str:
    words = []
    for name, rows in conditions.items():
        if name == "cond_mask":
            continue
        row = rows[i % len(rows)]
        if row is None:
            words.append("(no caption)")
        elif isinstance(row, str):
            words.append(row)
        elif name == "labels":
            label = int(row)
            named = dict(enumerate(class_names)) | {-1: "(no class)"}
            words.append(named.get(label, f"class {label}"))
        elif name == "cond" and np.shape(row) == (len(columns),):
            words += [f"{n} {float(value):g}" for n, value in zip(columns, row, strict=True)]
        else:
            row = torch.as_tensor(row, device="cpu")
            numbers = ", ".join(f"{value:.4g}" for value in row.flatten()[:4].tolist())
            words.append(f"{name} {tuple(row.shape)}: {numbers}{', ...' * (row.numel() > 4)}")
    return "; ".join(words)
