"""Beside the path: what the command line says a sample should show, as the model wants it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.data.clip_files import find_clips
from video_diffusion_pytorch.data.clip_reader import ClipReader, Timeline
from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import collate
from video_diffusion_pytorch.training.checkpoint_file import glance


def class_names(checkpoint: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the classes that a training file's labels stand for; empty if it has none."""
    config = glance(Path(checkpoint)).get("config") or {}
    return tuple(config.get("class_names") or ())


def read_conditions(
    diffusion: GaussianDiffusion,
    class_names: Sequence[str] = (),
    *,
    text: list[str] | None = None,
    labels: list[str] | None = None,
    cond: str | None = None,
    frame_cond: str | None = None,
    cond_video: str | None = None,
    first_frames: str | None = None,
) -> dict[str, Any]:
    """Conditions from the command line and from files, as keywords of `diffusion.sample`.

    Args:
        diffusion: The model.
        class_names: As in `class_names`.
        text: Captions.
        labels: Names of classes, or their numbers.
        cond: A `.npy` of vectors, or of states of text, if the network takes these.
        frame_cond: A `.npy` of vectors for each frame.
        cond_video: A `.npy` of fields.
        first_frames: A clip, or a folder of clips, whose first frames are given.

    Returns:
        Those that are given; all have one row per kind of video, or are alike for all.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a condition is unknown to the model, or one of the model's is missing.
    """
    if text and cond:
        raise ValueError(
            "sample: only one of --text and --cond can be the model's condition, got "
            "both; leave one of them out"
        )
    found: dict[str, Any] = {}
    if text:
        found["cond"] = list(text)
    if labels:
        found["labels"] = torch.tensor([_label(name, class_names) for name in labels])
    files = {"cond": cond, "frame_cond": frame_cond, "cond_video": cond_video}
    for name, file in files.items():
        if file is not None:
            found[name] = _read_rows(Path(file), name)
    if first_frames is not None:
        found["first_frames"] = _read_first_frames(diffusion, Path(first_frames))
    _check_names(diffusion, found)
    return _as_many_rows(found)


def pick(values: Any, rows: Sequence[int]) -> Any:
    """Rows of a tensor, or items of a list."""
    return values[list(rows)] if isinstance(values, Tensor) else [values[row] for row in rows]


def _label(name: str, class_names: Sequence[str]) -> int:
    if name in class_names:
        return list(class_names).index(name)
    if not name.isdecimal():
        known = ", ".join(class_names) or "only numbers, as the checkpoint holds no names"
        raise ValueError(f"sample: --labels must be among {known}, got {name!r}; choose from them")
    return int(name)


def _read_rows(file: Path, name: str) -> Tensor:
    if not file.is_file():
        raise FileNotFoundError(
            f"sample: expected a .npy at {file} for --{name}, found none; check the path"
        )
    try:
        values = np.load(file, allow_pickle=False)
    except ValueError as error:
        raise ValueError(
            f"sample: --{name} must be a .npy of numbers, got {file}, which is none ({error}); "
            "write it with numpy.save"
        ) from error
    if name == "cond_video" and values.dtype == np.uint8:
        return torch.from_numpy(values)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"sample: --{name} must be a .npy of numbers, got {values.dtype} in {file}; write it "
            "with numpy.save"
        )
    return torch.from_numpy(values.astype(np.float32))


def _read_first_frames(diffusion: GaussianDiffusion, path: Path) -> Tensor:
    """The beginning of each clip, at the size of the model's."""
    _, _, height, width = diffusion.clip_shape
    reader = ClipReader(FrameSize((height, width)), Timeline(), diffusion.channels)
    is_clip = path.is_file() or (path.is_dir() and is_frame_folder(path, os.listdir(path)))
    wanted = range(max(1, diffusion.given_frames))
    beginnings = []
    for file in [path] if is_clip else find_clips(path):
        frames, _ = reader.read(Clip(file), wanted, lambda span: span)
        if frames.shape[1] < len(wanted):
            raise ValueError(
                f"sample: --first_frames must have {len(wanted)} frames, got {frames.shape[1]} in "
                f"{file}; give a longer clip"
            )
        # in units of their own, bytes are their values
        beginnings.append(frames if diffusion.config["value_range"] is None else frames.float())
    return collate(beginnings)


def _check_names(diffusion: GaussianDiffusion, found: dict[str, Any]) -> None:
    names = (*diffusion.condition_names, *["first_frames"] * bool(diffusion.given_frames))
    unknown = [name for name in found if name not in names]
    missing = [name for name in names if name not in found]
    if unknown or missing:
        takes = " and ".join(_OPTIONS[name] for name in names) or "no condition"
        got = " and ".join(_OPTIONS[name] for name in found) or "none"
        raise ValueError(
            f"sample: the model was trained with {takes}, and must be given as much, got {got}; "
            "correct the options"
        )


OPTIONS = {
    "cond": "--text",
    "labels": "--labels",
    "frame_cond": "--frame_cond",
    "cond_video": "--cond_video",
    "first_frames": "--first_frames",
}
"""The option of `video-diffusion sample` that gives each condition."""

_OPTIONS = {
    "cond": "captions or vectors (--text or --cond)",
    "labels": "classes (--labels)",
    "frame_cond": "vectors for each frame (--frame_cond)",
    "cond_video": "fields (--cond_video)",
    "first_frames": "first frames (--first_frames)",
}


def _as_many_rows(found: dict[str, Any]) -> dict[str, Any]:
    """Repeats what is given once to the number of what is given several times."""
    most = max(map(len, found.values()), default=0)
    wrong = {name: len(values) for name, values in found.items() if len(values) not in (1, most)}
    if wrong:
        raise ValueError(
            f"sample: conditions must be given once or {most} times, got "
            f"{', '.join(f'{count} of {name}' for name, count in wrong.items())}; give as many of "
            "each"
        )
    return {
        name: values if len(values) == most else pick(values, [0] * most)
        for name, values in found.items()
    }
