"""`video-diffusion sample`: its options, the conditions they give, and the videos."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch import text
from video_diffusion_pytorch.data.dataset import ClipReader
from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder
from video_diffusion_pytorch.data.manifest import Clip, find_clips
from video_diffusion_pytorch.data.transforms import FrameSize, Timeline
from video_diffusion_pytorch.data.write_video import PICTURE_ENDINGS
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.presets import preset as find_preset
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.training.batches import collate
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance
from video_diffusion_pytorch.training.samples import write_sample_grid

HELP = "draw videos from a checkpoint"

_FILES = {
    "cond": "A .npy of vectors, (n, d), or of states of captions of one length, (n, tokens, d)",
    "frame_cond": "A .npy of vectors for each frame, (n, f, d)",
    "cond_video": "A .npy of fields, (n, c, f, h, w) or (n, c, h, w)",
    "first_frames": "A clip of any format to go on from, or a folder of clips",
}


def make_parser() -> ArgumentParser:
    """The options of `sample`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Draws videos with the averaged weights of a checkpoint; the file is all it "
        "needs.",
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=str,
        help="A file model-N.pt of this library, or of version 0.6 or 0.7; or a results folder, "
        "for its newest one.",
    )
    add("--text", type=str, nargs="+", help="Captions, for a model that was trained with them.")
    add("--labels", type=str, nargs="+", help="Classes, by name or number.")
    for name, what in _FILES.items():
        add(f"--{name}", type=str | None, help=f"{what}, for a model that was trained with such.")
    add(
        "--cond_scale",
        type=float,
        default=1.0,
        help="Strength of the guidance by the conditions; 1 is without, more is nearer to them.",
    )
    _add_ways_to_sample(parser)
    add("-n", "--count", type=int, default=4, help="Number of videos, for each condition.")
    add(
        "-o",
        "--output",
        type=str,
        default="samples.gif",
        help="A .gif, .webp, .mp4 or .png that shows all videos, or a .npy of their values, "
        "(b, c, f, h, w).",
    )
    add(
        "--image_size",
        type=int | tuple[int, int],
        help="Height and width in pixels, 64 or [48,64]. Needed for files of version 0.6 or 0.7, "
        "which do not hold it; null for the training clips'.",
    )
    add("--num_frames", type=int | None, help="Frames of a video; as --image_size.")
    add("--seed", type=int, default=0, help="The same seed gives the same videos.")
    add("--device", type=str | None, help="Where to compute, such as cuda; null for the CPU.")
    add(
        "--text_encoder",
        type=str | None,
        help="Folder or Hugging Face name of the encoder the model was trained with; null for "
        "BERT.",
    )
    return parser


def _add_ways_to_sample(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--negative_text",
        type=str,
        nargs="+",
        help="Captions to guide away from, with a cond_scale above 1: one for all, or as many as "
        "there are conditions.",
    )
    add(
        "--guidance_rescale",
        type=float,
        default=0.0,
        help="Brings guided videos back to their unguided contrast, from 0 to 1.",
    )
    add(
        "--sampler",
        type=str | None,
        help="ddpm (all steps), ancestral, ddim, dpm++ or dpm++sde; null for ddpm, or with fewer "
        "steps ddim.",
    )
    add("--steps", type=int | None, help="Number of steps; null for what suits the sampler.")
    add("--preset", type=str | None, help="A model of the paper, for its sampler and steps.")
    add("--max_batch", type=int, default=16, help="The most videos to draw at a time.")
    add("--ema_decay", type=float | None, help="Which average draws; null for the first.")
    add(
        "--extend_to",
        type=int | None,
        help="Continues the videos to so many frames, window by window.",
    )


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Draws videos from a checkpoint as options say, and writes them to one file.

    Raises:
        ValueError: If an option is out of range, or conditions are missing or unexpected.
        FileNotFoundError: If a file, or the folder to write into, is missing.
    """
    target = Path(options.output)
    _check_output(target, options.count)
    how, encoder = _as_in_paper(
        options.preset, options.sampler, options.steps, options.text_encoder
    )
    file = checkpoint_at(options.checkpoint)
    diffusion = load_diffusion(
        file,
        image_size=options.image_size,
        num_frames=options.num_frames,
        device=options.device,
        averaged=True if options.ema_decay is None else options.ema_decay,
    )
    if encoder is not None:
        text.set_text_encoder(encoder)
    given = {name: options[name] for name in ("text", "labels", "first_frames", *_FILES)}
    conditions = read_conditions(diffusion, class_names(file), **given)

    if options.cond_scale != 1 and not conditions:
        raise ValueError(
            f"sample: --cond_scale must be 1 for a model without conditions, got "
            f"{options.cond_scale}; leave it out"
        )

    torch.manual_seed(options.seed)
    kinds = max(map(len, conditions.values()), default=1)
    rows = [row // options.count for row in range(kinds * options.count)]
    how |= {name: pick(values, rows) for name, values in conditions.items()}
    how |= {"max_batch": options.max_batch, "cond_scale": options.cond_scale}
    how |= _guiding(options.negative_text, options.guidance_rescale, kinds, rows)
    videos = diffusion.sample(**how, batch_size=len(rows))
    if options.extend_to is not None:
        # the windows know their own first frames
        how.pop("first_frames", None)
        videos = diffusion.extend(videos, options.extend_to, **how)
    _write(videos.cpu(), target, kinds if kinds > 1 else _rows(options.count), diffusion)
    say(f"wrote {_size(videos)} to {target}")


def _write(videos: Tensor, target: Path, rows: int, diffusion: GaussianDiffusion) -> None:
    if target.suffix.lower() == ".npy":
        np.save(target, videos.numpy())
        return
    units = diffusion.config["value_range"]
    write_sample_grid(videos, target, rows, diffusion.auto_normalize, value_range=units)


def _as_in_paper(
    preset: str | None, sampler: str | None, steps: int | None, text_encoder: str | None
) -> tuple[dict[str, Any], str | None]:
    """Sampler and steps, and the text encoder: those that are given, or else the preset's."""
    if preset is None:
        return {"sampler": sampler, "steps": steps}, text_encoder
    of_paper = find_preset(preset)
    how = {"sampler": sampler or of_paper.sampler, "steps": steps or of_paper.sampling_steps}
    return how, text_encoder or of_paper.text_encoder


def _guiding(
    negative_text: list[str] | None, guidance_rescale: float, kinds: int, rows: Sequence[int]
) -> dict[str, Any]:
    """Keywords of `diffusion.sample`, of those options that are used."""
    how: dict[str, Any] = {"guidance_rescale": guidance_rescale} if guidance_rescale else {}
    if negative_text is None:
        return how
    if len(negative_text) not in (1, kinds):
        raise ValueError(
            f"sample: --negative_text must be one, or one for each of {kinds} conditions, got "
            f"{len(negative_text)}; give as many"
        )
    is_one = len(negative_text) == 1
    return {**how, "negative_cond": negative_text if is_one else pick(negative_text, rows)}


def _rows(count: int) -> int:
    """The number of rows that makes the grid most like a square."""
    return next(rows for rows in range(isqrt(count), 0, -1) if count % rows == 0)


def _size(videos: Tensor) -> str:
    count, _, frames, height, width = videos.shape
    return f"{count} video{'s' * (count > 1)} of {frames} frames, {height} x {width} pixels,"


def _check_output(target: Path, count: int) -> None:
    if count < 1:
        raise ValueError(f"sample: -n must be at least 1, got {count}; give a positive number")
    if target.suffix.lower() not in (".npy", *PICTURE_ENDINGS):
        raise ValueError(
            f"sample: the output must end in .npy or {' or '.join(PICTURE_ENDINGS)}, got {target}; "
            f"rename it, as in {target.with_suffix('.gif')}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"sample: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )


# conditions


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
