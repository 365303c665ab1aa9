"""`video-diffusion sample`: videos from a checkpoint, with conditions from options and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch import text
from video_diffusion_pytorch.arguments import as_count
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
from video_diffusion_pytorch.training.samples import write_sample_grid

OPTIONS = {
    "cond": "--text",
    "labels": "--labels",
    "frame_cond": "--frame_cond",
    "cond_video": "--cond_video",
    "first_frames": "--first_frames",
}
"""The option that gives each condition of a model."""


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `sample`."""
    parser = ArgumentParser(
        usage="video-diffusion sample CHECKPOINT [options]",
        description="Samples videos with the averaged weights of a checkpoint.",
    )
    add_checkpoint_options(parser)
    add = parser.add_argument
    add("-n", "--count", type=int, default=4, help="Number of videos for each condition.")
    output = "A .gif, .webp, .mp4 or .png with all videos, or a .npy, (b, c, f, h, w)."
    add("-o", "--output", type=str, default="samples.gif", help=output)
    add("--seed", type=int, default=0, help="The same seed gives the same videos.")

    conditions = parser.add_argument_group("Conditions that the model was trained with")
    add = conditions.add_argument
    add("--text", type=str, nargs="+", help="Captions.")
    add("--labels", type=str, nargs="+", help="Classes, by name or number.")
    vectors = "A .npy of vectors, (n, d), or of text states of one length, (n, tokens, d)."
    add("--cond", type=str | None, help=vectors)
    add("--frame_cond", type=str | None, help="A .npy of vectors for each frame, (n, f, d).")
    fields = "A .npy of fields, (n, c, f, h, w) or (n, c, h, w)."
    add("--cond_video", type=str | None, help=fields)
    add("--first_frames", type=str | None, help="A clip to continue, or a folder of clips.")
    scale = "Guidance scale; 1 disables guidance, larger values follow the conditions more closely."
    add("--cond_scale", type=float, default=1.0, help=scale)
    negative = "Captions to guide away from: one for all, or one for each condition."
    add("--negative_text", type=str, nargs="+", help=f"{negative} Needs a --cond_scale above 1.")
    rescale = "Restores the contrast that guidance increases, from 0 (off) to 1."
    add("--guidance_rescale", type=float, default=0.0, help=rescale)

    add = parser.add_argument_group("Sampling").add_argument
    sampler = "ddpm (all steps), ancestral, ddim, dpm++ or dpm++sde; null for ddpm, or with fewer "
    add("--sampler", type=str | None, help=f"{sampler}steps ddim.")
    add("--steps", type=int | None, help="Number of steps; null for the sampler's default.")
    add("--preset", type=str | None, help="A model of the paper, for its sampler and steps.")
    add("--max_batch", type=int, default=16, help="Largest number of videos per batch.")
    longer = "Number of frames to extend the videos to, window by window."
    add("--extend_to", type=int | None, help=longer)
    return parser


def add_checkpoint_options(parser: ArgumentParser) -> None:
    """Adds the options that choose a checkpoint and how it is loaded."""
    add = parser.add_argument
    checkpoint = "A file model-N.pt, also of version 0.6 or 0.7, or a results folder for its newest"
    add("checkpoint", type=str, help=f"{checkpoint} one.")
    add("--device", type=str | None, help="Device to compute on, such as cuda; null for the CPU.")
    add("--ema_decay", type=float | None, help="Decay of the average to use; null for the first.")
    size = "Height and width in pixels, as 64 or [48,64]; required for files of version 0.6 or 0.7."
    add("--image_size", type=int | tuple[int, int] | None, help=size)
    frames = "Frames of a video; required for files of version 0.6 or 0.7."
    add("--num_frames", type=int | None, help=frames)
    encoder = "Folder or Hugging Face name of the model's text encoder; null for BERT."
    add("--text_encoder", type=str | None, help=encoder)


def load_checkpoint(options: Namespace, file: Path, device: str | None) -> GaussianDiffusion:
    """Loads the model of a checkpoint as the options of `add_checkpoint_options` say."""
    diffusion = load_diffusion(
        file,
        image_size=options.image_size,
        num_frames=options.num_frames,
        device=device,
        averaged=True if options.ema_decay is None else options.ema_decay,
    )
    if options.text_encoder is not None:
        text.set_text_encoder(options.text_encoder)
    return diffusion


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Samples videos and writes them to one file.

    Raises:
        ValueError: If an option is out of range, or conditions are missing or unexpected.
        FileNotFoundError: If a file or the folder of the output is missing.
    """
    target = Path(options.output)
    check_output(target, "sample")
    if target.suffix.lower() not in (".npy", *PICTURE_ENDINGS):
        raise ValueError(
            f"sample: the output must end in .npy or {' or '.join(PICTURE_ENDINGS)}, got {target}; "
            f"rename it, as in {target.with_suffix('.gif')}"
        )
    count = as_count(options.count, "sample: --count")
    how = {"sampler": options.sampler, "steps": options.steps}
    if options.preset is not None:
        paper = find_preset(options.preset)
        how = {
            "sampler": options.sampler or paper.sampler,
            "steps": paper.sampling_steps if options.steps is None else options.steps,
        }
        options.text_encoder = options.text_encoder or paper.text_encoder
    file = checkpoint_at(options.checkpoint)
    diffusion = load_checkpoint(options, file, options.device)
    if options.extend_to is not None and options.extend_to <= diffusion.num_frames:
        raise ValueError(
            f"sample: --extend_to must be more than the model's {diffusion.num_frames} frames, got "
            f"{options.extend_to}"
        )
    given = {name: options[name] for name in ("text", *OPTIONS) if options[name] is not None}
    conditions = read_conditions(diffusion, given)
    if options.cond_scale != 1 and not conditions:
        raise ValueError(
            "sample: --cond_scale must be 1 for a model without conditions, got "
            f"{options.cond_scale}; leave it out"
        )

    torch.manual_seed(options.seed)
    kinds = max(map(len, conditions.values()), default=1)
    how |= {n: repeat(values, count, kinds) for n, values in conditions.items()}
    how |= {"max_batch": options.max_batch, "cond_scale": options.cond_scale}
    if options.guidance_rescale:
        how["guidance_rescale"] = options.guidance_rescale
    if options.negative_text is not None:
        how["negative_cond"] = repeat(options.negative_text, count, kinds)
    videos = diffusion.sample(**how, batch_size=kinds * count)
    if options.extend_to is not None:
        # each window gets the end of the one before
        how.pop("first_frames", None)
        videos = diffusion.extend(videos, options.extend_to, **how)
    if target.suffix.lower() == ".npy":
        np.save(target, videos.cpu().numpy())
    else:
        rows = kinds if kinds > 1 else _rows(count)
        units = diffusion.config["value_range"]
        in_unit_range = diffusion.auto_normalize
        write_sample_grid(videos.cpu(), target, rows, in_unit_range, value_range=units)
    number, _, frames, height, width = videos.shape
    many = f"{number} video{'s' * (number > 1)}"
    say(f"wrote {many} of {frames} frames, {height} x {width} pixels, to {target}")


def check_output(target: Path, command: str) -> None:
    """Raises an error if the folder of an output file is missing, or it is a folder itself."""
    if target.is_dir():
        raise IsADirectoryError(f"{command}: --output must be a file, got the folder {target}")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"{command}: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )


def _rows(count: int) -> int:
    """The number of rows that makes a grid of `count` videos most like a square."""
    return next(rows for rows in range(isqrt(count), 0, -1) if count % rows == 0)


# conditions


def read_conditions(diffusion: GaussianDiffusion, options: Mapping[str, Any]) -> dict[str, Any]:
    """Reads conditions from options and files, as keywords of `diffusion.sample`.

    Args:
        diffusion: The model.
        options: Values of the options that are given, by name: `text` and `labels`, lists of
            strings, and the files `cond`, `frame_cond`, `cond_video` and `first_frames`.

    Returns:
        The conditions that are given, with a row for each kind of video, or one for all.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file or a label is not valid, both `text` and `cond` are given, or the
            conditions are not those that the model was trained with.
    """
    if "text" in options and "cond" in options:
        raise ValueError("sample: only one of --text and --cond can be given, got both; remove one")
    found: dict[str, Any] = {}
    known = diffusion.clip_info.class_names
    for name, value in options.items():
        if name == "text":
            found["cond"] = value
        elif name == "labels":
            found[name] = torch.tensor([_label(label, known) for label in value])
        elif name == "first_frames":
            found[name] = _read_first_frames(diffusion, Path(value))
        else:
            found[name] = _read_rows(Path(value), name)
    names = (*diffusion.condition_names, *["first_frames"] * bool(diffusion.given_frames))
    # before a text encoder is loaded for captions that the model does not take
    if found.keys() != set(names):
        takes, got = (" and ".join(OPTIONS[n] for n in given) or "none" for given in (names, found))
        raise ValueError(
            "sample: the model must be given the conditions that it was trained with, "
            f"{takes.replace('--text', '--text or --cond')}, got {got}; correct the options"
        )
    return found


def repeat(values: Any, count: int, kinds: int) -> Any:
    """Repeats each row of a tensor or list `count` times; a single row is for all `kinds`."""
    times = count * kinds if len(values) == 1 else count
    if isinstance(values, Tensor):
        return values.repeat_interleave(times, dim=0)
    return [value for value in values for _ in range(times)]


def _label(name: str, class_names: Sequence[str]) -> int:
    if name in class_names:
        return list(class_names).index(name)
    if not name.isdecimal():
        known = ", ".join(class_names) or "numbers, as the checkpoint has no names of classes"
        raise ValueError(f"sample: --labels must be among {known}, got {name!r}; choose from them")
    return int(name)


def _read_rows(file: Path, name: str) -> Tensor:
    try:
        values = np.load(file, allow_pickle=False)
        if values.dtype.kind not in "biuf":
            raise TypeError(f"values of type {values.dtype}")
    except (ValueError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(
            f"sample: --{name} must be a .npy of numbers, got {file} ({error}); write it with "
            "numpy.save"
        ) from error
    is_bytes = name == "cond_video" and values.dtype == np.uint8
    return torch.from_numpy(values if is_bytes else values.astype(np.float32))


def _read_first_frames(diffusion: GaussianDiffusion, path: Path) -> Tensor:
    """The beginning of each clip, in the size of the model's videos."""
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
        # uint8 stands for [0, 1], unless the model has units of its own
        beginnings.append(frames if diffusion.config["value_range"] is None else frames.float())
    return collate(beginnings)
