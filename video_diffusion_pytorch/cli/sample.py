"""`video-diffusion sample`: videos from a checkpoint, with conditions from options and files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch import text
from video_diffusion_pytorch.arguments import as_count, as_image_size
from video_diffusion_pytorch.clip_file import (
    clip_reader,
    frame_numbers,
    frame_size,
    prepare_clip,
    write_like,
)
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.conditions import frames_of
from video_diffusion_pytorch.data.formats.field_files import FIELD_EXTS, kind_of_fields
from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder
from video_diffusion_pytorch.data.manifest import find_clips, parse_number, read_text
from video_diffusion_pytorch.data.transforms import FrameSize
from video_diffusion_pytorch.data.write_video import PICTURE_ENDINGS, write_video
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guided_prediction import GUIDE_SCALE
from video_diffusion_pytorch.diffusion.samplers import SAMPLERS
from video_diffusion_pytorch.model.conditioning import condition_width
from video_diffusion_pytorch.presets import preset as find_preset
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.processes import fastest_device
from video_diffusion_pytorch.training.samples import (
    describe,
    pictures_of_samples,
    write_sample_grid,
)

OPTIONS = {
    "cond": "--text",
    "labels": "--labels",
    "frame_cond": "--frame_cond",
    "cond_video": "--cond_video",
    "first_frames": "--first_frames",
}
"""The option that gives each condition of a model."""

FORMATS = ("mp4", "gif", "webp", "npy", "png", *FIELD_EXTS)
"""Formats of single files."""

# A sampler that is as good in so few steps as ddpm in all: docs/sampling.md, section 10
_SAMPLER, _STEPS = "dpm++sde", 50
_GIF_FPS = 50.0
_FIELDS = tuple(f".{ending}" for ending in FIELD_EXTS)
# Options that start from known videos
_TASKS = ("continue_from", "inpaint", "interpolate", "upsample")


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `sample`."""
    parser = ArgumentParser(
        usage="video-diffusion sample CHECKPOINT [options]",
        description="Samples videos with the averaged weights of a checkpoint.",
    )
    add_checkpoint_options(parser)
    add = parser.add_argument
    add("-n", "--count", type=int, default=4, help="Number of videos for each condition or clip.")
    output = "A .gif, .webp, .mp4 or .png with all videos in a grid; a .npy, (b, c, f, h, w); a "
    output += ".nc, .h5 or .zarr with --like; or a folder, existing or a name without ending, for "
    output += "a file of each video, a grid.gif, and a conditions.txt."
    add("-o", "--output", type=str, default="samples.gif", help=output)
    single = f"Format of the files in a folder: {', '.join(FORMATS)}; null for mp4, or for npy if "
    single += "videos have units of their own or are neither grey nor in colour."
    add("--format", type=str | None, help=single)
    like = (
        "A file whose names, units and coordinates those of fields get: a .nc, .h5, .zarr or, for "
    )
    like += "a folder with --format nii or nii.gz, a NIfTI volume. null for the CLIP."
    add("--like", type=str | None, metavar="FILE", help=like)
    rate = "Frames per second of the files; null for those of the training clips, or else 8; with "
    rate += "--interpolate N for N times as many, or as those of the CLIP."
    add("--fps", type=float | None, help=rate)
    add("--seed", type=int, default=0, help="The same seed gives the same videos.")
    add_condition_options(parser)
    _add_tasks(parser)

    add = parser.add_argument_group("Sampling").add_argument
    worse = "A worse version of the model to guide away from, such as an earlier checkpoint: as "
    add("--guide", type=str | None, metavar="CHECKPOINT", help=f"{worse}CHECKPOINT.")
    scale = "Scale of the guidance by --guide; 1 disables it."
    add("--guide_scale", type=float, default=GUIDE_SCALE, help=scale)
    interval = "Noise levels, sigma / alpha, above LOW and up to HIGH, at which --cond_scale and "
    interval += "--guide act; HIGH may be inf. null for all."
    names = ("LOW", "HIGH")
    add("--guidance_interval", type=str, nargs=2, metavar=names, help=interval)
    sampler = f"{', '.join(SAMPLERS)}; null for {_SAMPLER}, or with all steps ddpm, for "
    add("--sampler", type=str | None, help=f"{sampler}flow matching and EDM dpm++.")
    steps = "Number of steps; null for the model's sampling_timesteps, the sampler's default, or "
    add("--steps", type=int | None, help=f"{steps}without --sampler {_STEPS}.")
    chosen = "Name of a preset, for its sampler, steps and guidance scale."
    add("--preset", type=str | None, help=chosen)
    add("--max_batch", type=int, default=16, help="Largest number of videos per batch.")
    return parser


def add_checkpoint_options(parser: ArgumentParser) -> None:
    """Adds the options that choose a checkpoint and how it is loaded."""
    add = parser.add_argument
    checkpoint = "A file model-N.pt, also of version 0.6 or 0.7; a results folder for its newest "
    checkpoint += "one; or a shared model: its folder, or its name on the Hugging Face Hub, "
    add("checkpoint", type=str, help=f"{checkpoint}user/model.")
    device = "Device to compute on, such as cpu; null for the fastest."
    add("--device", type=str | None, help=device)
    add("--ema_decay", type=float | None, help="Decay of the average to use; null for the first.")
    size = "Height and width in pixels, as 64 or [48,64]; required for files of version 0.6 or 0.7."
    add("--image_size", type=int | tuple[int, int] | None, help=size)
    frames = "Frames of a video; required for files of version 0.6 or 0.7."
    add("--num_frames", type=int | None, help=frames)
    encoder = "Folder or Hugging Face name of the text encoder; null for that of the training."
    add("--text_encoder", type=str | None, help=encoder)


def add_condition_options(parser: ArgumentParser, *, of_samples: bool = True) -> None:
    """Adds the options of conditions; `of_samples` those for samples alone, too."""
    add = parser.add_argument_group("Conditions that the model was trained with").add_argument
    add("--text", type=str, nargs="+", help="Captions, or a .txt with one in each line.")
    add("--labels", type=str, nargs="+", help="Classes, by name or number; -1 for no class.")
    vectors = "Numbers: one for each condition, or as many as the model takes, one condition after "
    vectors += "the other; or a .npy of vectors, (n, d), or of text states of one length, "
    add("--cond", type=str, nargs="+", help=f"{vectors}(n, tokens, d).")
    add("--frame_cond", type=str | None, help="A .npy of vectors for each frame, (n, f, d).")
    fields = "A .npy of fields, (n, c, f, h, w) or (n, c, h, w)."
    add("--cond_video", type=str | None, help=fields)
    scale = "Guidance scale; 1 disables guidance, larger ones follow the conditions more closely; "
    scale += f"null for {'that of --preset, or else ' * of_samples}1. "
    scale += "Of several conditions also one each, in the order in which they are added, as "
    scale += "{cond: 3, labels: 1.5}; --text is cond."
    add("--cond_scale", type=float | dict[str, float] | None, help=scale)
    if not of_samples:
        return
    first = "A clip to continue, or a folder of clips, for a model with given_frames."
    add("--first_frames", type=str | None, help=first)
    negative = "Captions to guide away from: one for all, or one for each condition."
    add("--negative_text", type=str, nargs="+", help=f"{negative} Needs a --cond_scale above 1.")
    rescale = "Restores the contrast that guidance increases, from 0 (off) to 1."
    add("--guidance_rescale", type=float, default=0.0, help=rescale)


def _add_tasks(parser: ArgumentParser) -> None:
    group = "Longer, larger and completed videos; a CLIP is a file, or a folder of clips"
    add = parser.add_argument_group(group).add_argument
    longer = "Number of frames to extend the videos to, window by window."
    add("--extend_to", type=int | None, help=longer)
    more = "Draw what follows after this CLIP, to --extend_to frames in all, or by default to the "
    more += "length of a training clip; after a longer one, half of that length."
    add("--continue_from", type=str | None, metavar="CLIP", help=more)
    given = (
        "Noise of the known frames, sigma / alpha, for a model trained with frame_noise: a little, "
    )
    given += "such as 0.05, for long videos."
    add("--given_noise", type=float, default=0.0, help=given)
    inpaint = "Draw a part of this CLIP anew, that of --mask."
    add("--inpaint", type=str | None, metavar="CLIP", help=inpaint)
    mask = "What --inpaint draws: a picture, white where to draw, or a .npy, (h, w) or "
    mask += (
        "(f, h, w), nonzero where to draw, of the frames of the file or those taken of it. It is "
    )
    mask += "scaled and cropped as the clip is."
    add("--mask", type=str | None, help=mask)
    between = "Draw the frames between, so that there are N times as many per second."
    between += " The speed stays, unless --fps is given."
    add("--interpolate", type=int | None, metavar="N", help=between)
    larger = "Draw the videos at a higher resolution, in pixels, as 128 or [96,128]."
    add("--upsample", type=int | tuple[int, int] | None, metavar="SIZE", help=larger)
    own = "The CLIP that --interpolate, or at its own size --upsample, starts from, instead of "
    add("--clip", type=str | None, metavar="CLIP", help=f"{own}samples.")
    part = "Number of frames to take of the CLIP, from the first on; null for all."
    add("--clip_frames", type=int | None, metavar="N", help=part)
    axes = "Order of the axes in CLIPs that are arrays, such as fhw; null for that of the training."
    add("--axes", type=str | None, help=axes)


def load_checkpoint(options: Namespace) -> GaussianDiffusion:
    """Loads the model of a checkpoint as the options of `add_checkpoint_options` say."""
    diffusion = load_diffusion(
        options.checkpoint,
        image_size=options.image_size,
        num_frames=options.num_frames,
        device=fastest_device() if options.device is None else options.device,
        averaged=True if options.ema_decay is None else options.ema_decay,
    )
    if options.text_encoder is not None:
        text.set_text_encoder(options.text_encoder)
        # the model's own must not replace it
        diffusion.clip_info = replace(diffusion.clip_info, text_encoder=None)
    return diffusion


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Samples videos and writes them to one file, or each to a file of its own.

    Raises:
        ValueError: If an option is out of range, or conditions are missing or unexpected.
        FileNotFoundError: If a file or the folder of the output is missing.
    """
    target, task = _target_of(options), _task_of(options)
    count = as_count(options.count, "sample: --count")
    diffusion = load_checkpoint(options)
    clips = _known_clips(options, task, diffusion)
    _check_sizes(options, diffusion, clips)
    given = {name: options[name] for name in ("text", *OPTIONS) if options[name] is not None}
    conditions = read_conditions(diffusion, given, has_clips=clips is not None, axes=options.axes)
    if options.cond_scale not in (None, 1) and not conditions:
        raise ValueError(
            "sample: --cond_scale must be 1 for a model without conditions, got "
            f"{options.cond_scale}; leave it out"
        )
    for note in outside_of_training(diffusion.clip_info, conditions.get("cond")):
        say(note)

    kinds = max(map(len, [*conditions.values(), *([] if clips is None else [clips])]), default=1)
    how = _sampling_options(options, diffusion, bool({*conditions} - {"first_frames"}), say)
    if options.negative_text is not None:
        how["negative_cond"] = repeat(options.negative_text, count, kinds)
    rows = {name: repeat(values, count, kinds) for name, values in conditions.items()}
    torch.manual_seed(options.seed)
    if clips is None:
        beginning = slice(None if options.extend_to is None else diffusion.num_frames)
        first: Any = {name: frames_of(name, value, beginning) for name, value in rows.items()}
        videos = diffusion.sample(**first, **how, batch_size=kinds * count)
        # each window gets the end of the one before
        rows.pop("first_frames", None)
    else:
        videos = repeat(clips, count, kinds).to(diffusion.betas.device)
    videos = _complete(options, task, diffusion, videos, how | rows).cpu()
    number, _, frames, height, width = videos.shape
    words = describe(rows, diffusion.clip_info.class_names, number, _columns(diffusion))
    grid_rows = kinds if kinds > 1 else _rows(count)
    where = _write(videos, target, options, diffusion, grid_rows, words, say)
    many = f"{number} video{'s' * (number > 1)}"
    say(f"wrote {many} of {frames} frames, {height} x {width} pixels, to {where}")


def _sampling_options(
    options: Namespace,
    diffusion: GaussianDiffusion,
    has_conditions: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Keywords of `diffusion.sample` that are no conditions."""
    sampler, steps, most = options.sampler, options.steps, diffusion.num_timesteps
    cond_scale = 1.0 if options.cond_scale is None else options.cond_scale
    if options.preset is not None:
        chosen = find_preset(options.preset)
        sampler = sampler or chosen.sampler
        steps = min(chosen.sampling_steps, most) if steps is None else steps
        if options.cond_scale is None and has_conditions:
            cond_scale = chosen.cond_scale
        encoder, *others = (
            chosen.text_encoder,
            options.text_encoder,
            diffusion.clip_info.text_encoder,
        )
        if encoder is not None and others == [None, None]:
            text.set_text_encoder(encoder)
    elif sampler is None and steps is None:
        steps = diffusion.sampling_timesteps
        quality = f"the model's sampling_timesteps: for all {most}"
        if steps is None and most > _STEPS:
            steps, quality = _STEPS, f"almost as good as all {most}: for these"
        if steps is not None and steps < most:
            say(f"samples in {steps} steps of {_SAMPLER}, {quality} add --sampler ddpm")
    if sampler is None and steps is not None and steps < most:
        sampler = _SAMPLER
    how = {"sampler": sampler, "steps": steps, "cond_scale": cond_scale}
    if options.guidance_rescale:
        how["guidance_rescale"] = options.guidance_rescale
    if options.guidance_interval is not None:
        how["guidance_interval"] = tuple(map(parse_number, options.guidance_interval))
    if options.guide is not None or options.guide_scale != GUIDE_SCALE:
        how |= {"guide": _load_guide(options, diffusion), "guide_scale": options.guide_scale}
    return {**how, "max_batch": options.max_batch}


def _load_guide(options: Namespace, diffusion: GaussianDiffusion) -> GaussianDiffusion | None:
    """The model of `--guide`, on the device of the other; None without."""
    if options.guide is None:
        return None
    sizes = {name: options[name] for name in ("image_size", "num_frames")}
    return load_diffusion(options.guide, **sizes, device=diffusion.betas.device)


# videos of which a part is known


def _task_of(options: Namespace) -> str | None:
    """The one of `_TASKS` that options ask for; None for samples alone."""
    given = [name for name in _TASKS if options[name] is not None]
    task = given[0] if given else None
    starts = task in ("continue_from", "inpaint") or options.clip is not None
    rules = {
        f"only one of --{', --'.join(_TASKS)} can be given": len(given) < 2,
        "--clip must go with --interpolate or --upsample": (
            options.clip is None or task in ("interpolate", "upsample")
        ),
        "--inpaint and --mask must be given together": (task == "inpaint")
        == (options.mask is not None),
        "--given_noise must go with known frames": (
            not options.given_noise or task not in (None, "upsample") or bool(options.extend_to)
        ),
        "--extend_to must go with samples or --continue_from": (
            options.extend_to is None or task in (None, "continue_from")
        ),
        "--clip_frames must go with --continue_from, --inpaint or --clip": (
            options.clip_frames is None or starts
        ),
        "--first_frames must be left out with a clip, which has them": (
            options.first_frames is None or not starts
        ),
    }
    for rule, is_met in rules.items():
        if not is_met:
            names = (*_TASKS, "clip", "clip_frames", "mask", "extend_to", "first_frames")
            got = [f"--{name}" for name in names if options[name] is not None]
            got += ["--given_noise"] if options.given_noise else []
            raise ValueError(f"sample: {rule}, got {' and '.join(got)}; correct the options")
    return task


def _known_clips(
    options: Namespace, task: str | None, diffusion: GaussianDiffusion
) -> Tensor | None:
    """The clips that a task starts from, `(n, c, f, h, w)`; None for samples."""
    how = {"num_frames": options.clip_frames, "axes": options.axes}
    if options.clip_frames is not None:
        as_count(options.clip_frames, "sample: --clip_frames")
    if task in ("continue_from", "inpaint"):
        return _read_clips(diffusion, options[task], task, **how)
    if options.clip is None:
        return None
    if task == "interpolate":
        return _read_clips(diffusion, options.clip, "clip", keep_rate=True, **how)
    clips = _read_clips(diffusion, options.clip, "clip", image_size="own", **how)
    if frame_size(diffusion).fit != "cover":
        return clips
    # training crops clips to the shape of the model's, too
    (h, w), (height, width) = clips.shape[-2:], as_image_size(options.upsample, "--upsample")
    is_wide = w * height > h * width
    part = (h, round(h * width / height)) if is_wide else (round(w * height / width), w)
    return FrameSize((max(1, part[0]), max(1, part[1]))).finish_array(clips)


def _check_sizes(options: Namespace, diffusion: GaussianDiffusion, clips: Tensor | None) -> None:
    """Checks lengths and sizes before the first sample is drawn."""
    shape = diffusion.clip_shape if clips is None else clips.shape[1:]
    owner = "model" if clips is None else "clip"
    if options.extend_to is not None and options.extend_to <= shape[1]:
        fewer = "" if clips is None else ", or take fewer frames of the clip by --clip_frames"
        raise ValueError(
            f"sample: --extend_to must be more than the {owner}'s {shape[1]} frames, got "
            f"{options.extend_to}; give a greater number{fewer}"
        )
    most = diffusion.num_frames - 1
    if options.interpolate is not None and not 2 <= options.interpolate <= most:
        raise ValueError(
            f"sample: --interpolate must be from 2 to {most}, so that a clip of the model has two "
            f"known frames, got {options.interpolate}; interpolate twice"
        )
    if options.upsample is not None:
        size = as_image_size(options.upsample, "sample: --upsample")
        if not (size[0] >= shape[2] and size[1] >= shape[3] and size != tuple(shape[2:])):
            without = ", or leave out --clip, which is read at its own size, to upsample samples"
            raise ValueError(
                f"sample: --upsample must be more than the {owner}'s {shape[2]} x {shape[3]} "
                f"pixels, got {size[0]} x {size[1]}; give a greater size"
                f"{'' if clips is None else without}"
            )


def _complete(
    options: Namespace,
    task: str | None,
    diffusion: GaussianDiffusion,
    videos: Tensor,
    how: Mapping[str, Any],
) -> Tensor:
    """Extends, inpaints, interpolates or upsamples videos as the options say."""
    length, window = videos.shape[2], diffusion.num_frames
    if task != "upsample":
        how = {**how, "given_noise": options.given_noise}
    if task == "continue_from":
        further = window if length < window else length + -(-window // 2)
        return diffusion.extend(videos, options.extend_to or further, **how)
    if task == "inpaint":
        mask = _frames_of_mask(_read_mask(diffusion, Path(options.mask)), options, diffusion)
        return diffusion.inpaint(videos, ~mask.to(videos.device), **how)
    if task == "interpolate":
        return diffusion.interpolate_frames(videos, options.interpolate, **how)
    if task == "upsample":
        return diffusion.upsample(videos, options.upsample, **how)
    return (
        videos if options.extend_to is None else diffusion.extend(videos, options.extend_to, **how)
    )


def _read_mask(diffusion: GaussianDiffusion, path: Path) -> Tensor:
    """The mask of a file at the size of the clips, `(1, 1, f, h, w)`: true where to draw."""
    if path.suffix.lower() == ".npy":
        values = _read_rows(path, "mask")
    else:
        from PIL import Image

        with Image.open(path) as picture:
            grey = torch.from_numpy(np.array(picture.convert("L"))).float()
        # masks of 0 and 1 as well as of 0 and 255, and black with the noise of jpg
        values = grey > grey.max() / 2
    size = frame_size(diffusion)
    if values.ndim in (2, 3) and values.any():
        # also where a pixel is only in part to be drawn
        mask = (values != 0).float().view(1, -1, *values.shape[-2:])
        return size.finish_array(size.scale_array(mask))[None] > 0
    got = "a black one" if values.ndim in (2, 3) else f"the shape {tuple(values.shape)}"
    raise ValueError(
        "sample: --mask must be a picture that is white where to draw, or a .npy of the shape "
        f"(h, w) or (f, h, w), nonzero there, got {got} in {path}; correct it"
    )


def _frames_of_mask(mask: Tensor, options: Namespace, diffusion: GaussianDiffusion) -> Tensor:
    """Chooses frames of a mask that has all those of the file, as they are chosen of the clip."""
    if mask.shape[2] == 1:
        return mask
    for file in files_of(options.inpaint):
        frames, count = frame_numbers(file, diffusion, options.clip_frames, options.axes)
        if mask.shape[2] not in (count, len(frames)):
            raise ValueError(
                f"sample: --mask must have 1 frame, the {count} of {file}, or the {len(frames)} "
                f"that the model takes of it, got {mask.shape[2]}; correct it"
            )
    return mask if mask.shape[2] == len(frames) else mask[:, :, frames]


def files_of(path: str) -> list[Path]:
    """The clip that a path is, or the clips of a folder."""
    is_folder = os.path.isdir(path) and kind_of_fields(Path(path)) is None
    is_folder = is_folder and not is_frame_folder(Path(path), os.listdir(path))
    return find_clips(Path(path)) if is_folder else [Path(path)]


def _read_clips(diffusion: GaussianDiffusion, path: str, option: str, **how: Any) -> Tensor:
    """One clip, or the clips of a folder, prepared as in training, `(n, c, f, h, w)`."""
    files = files_of(path)
    clips = [prepare_clip(file, diffusion, **how) for file in files]
    shapes = {tuple(clip.shape[1:]): file for clip, file in zip(clips, files, strict=True)}
    if len(shapes) > 1:
        (one, first), (other, second), *_ = shapes.items()
        raise ValueError(
            f"sample: --{option} must be a clip, or clips of one shape, got {one} in {first} and "
            f"{other} in {second}; give one at a time"
        )
    return torch.cat(clips)


# files


def _target_of(options: Namespace) -> Path:
    """The file or folder to write, checked before anything is drawn."""
    target, kinds = Path(options.output), (".npy", *PICTURE_ENDINGS, *_FIELDS)
    _check_like(options, target)
    if options.fps is not None and not 0.01 <= options.fps <= 1000:
        raise ValueError(f"sample: --fps must be 0.01 to 1000 frames per second, got {options.fps}")
    if not _is_folder(options):
        if not target.name.lower().endswith(kinds):
            raise ValueError(
                f"sample: the output must end in {' or '.join(kinds)}, or be a folder, got "
                f"{target}; rename it, as in {target.with_suffix('.gif')}, or end a folder with /"
            )
        if options.format is not None:
            raise ValueError(
                "sample: --format must go with a folder, in which it is that of the files, got "
                f"the file {target}; leave it out"
            )
        if kind_of_fields(target) != "zarr":
            check_output(target, "sample")
    elif target.is_file() or list_checkpoints(target):
        raise ValueError(
            "sample: --output must be a file with an ending, or a folder without checkpoints, "
            f"whose samples it could replace, got {target}; give another name"
        )
    elif options.format not in (None, *FORMATS):
        raise ValueError(
            f"sample: --format must be one of {', '.join(FORMATS)}, got {options.format!r}"
        )
    return target


def _check_like(options: Namespace, target: Path) -> None:
    """Raises a ValueError unless there is a file that is followed, for files of fields alone."""
    ending = options.format or ("" if _is_folder(options) else target.name)
    has_fields = kind_of_fields(Path(f"x.{ending}")) is not None
    starts = (options.like, options.continue_from, options.inpaint, options.clip)
    if has_fields and not any(starts):
        raise ValueError(
            f"sample: --like must be a file whose names, units and coordinates {ending} gets, got "
            "none; give one, such as a training clip"
        )
    if options.like is not None and not has_fields:
        raise ValueError(
            f"sample: --like must go with a file of fields, got {options.output}; give a name such "
            "as samples.nc, or --format, or leave it out"
        )


def _like(options: Namespace) -> Path:
    """The file that fields get names, units and coordinates of."""
    if options.like is not None:
        return Path(options.like)
    return files_of(options.continue_from or options.inpaint or options.clip)[0]


def _is_folder(options: Namespace) -> bool:
    target = Path(options.output)
    if kind_of_fields(target) is not None and not options.output.endswith("/"):
        return False
    return target.is_dir() or not target.suffix or options.output.endswith("/")


def _write(
    videos: Tensor,
    target: Path,
    options: Namespace,
    diffusion: GaussianDiffusion,
    rows: int,
    words: Sequence[str] | None,
    say: Callable[[str], None],
) -> str:
    """Writes videos, and returns where to, in words."""
    units, in_unit_range = diffusion.config["value_range"], diffusion.auto_normalize
    is_film = units is None and in_unit_range and videos.shape[1] in (1, 3)
    ending = options.format or ("mp4" if is_film else "npy")
    if not _is_folder(options):
        ending = target.suffix.lower().removeprefix(".")
        ending = "npy" if kind_of_fields(target) is not None else ending
    wanted = _frame_rate(options, diffusion)
    fps = {kind: min(max(wanted, 0.01), _GIF_FPS if kind == "gif" else 1000) for kind in FORMATS}
    if fps[ending] != wanted and ending not in ("npy", "png", *FIELD_EXTS):
        say(f"note: a .{ending} plays {fps[ending]:g} frames per second, not {wanted:g}")

    if not _is_folder(options):
        if kind_of_fields(target) is not None:
            write_like(videos, target, _like(options), diffusion)
        elif ending == "npy":
            np.save(target, videos.numpy())
        elif len(videos) == 1 and ending != "png":
            [video] = pictures_of_samples(videos, in_unit_range, units)
            write_video(video, target, fps=fps[ending])
        else:
            write_sample_grid(
                videos, target, rows, in_unit_range, value_range=units, fps=fps[ending]
            )
        return str(target)
    target.mkdir(parents=True, exist_ok=True)
    is_whole = ending == "npy" or ending in FIELD_EXTS
    singles = videos if is_whole else pictures_of_samples(videos, in_unit_range, units)
    for number, video in enumerate(singles, 1):
        file = target / f"{number}.{ending}"
        if ending in FIELD_EXTS:
            write_like(video, file, _like(options), diffusion)
        else:
            write_video(video, file, fps=fps[ending])
    grid = target / "grid.gif"
    write_sample_grid(videos, grid, rows, in_unit_range, value_range=units, fps=fps["gif"])
    if words is not None:
        lines = [f"{number}: {' '.join(line.split())}\n" for number, line in enumerate(words, 1)]
        # class names from file names may not be valid Unicode
        (target / "conditions.txt").write_bytes("".join(lines).encode("utf-8", "replace"))
    names = f"{target / '1'}.{ending}{f' to {len(videos)}.{ending}' * (len(videos) > 1)}"
    also = " and conditions.txt" * (words is not None)
    return f"{names}, with grid.gif{also}"


def _frame_rate(options: Namespace, diffusion: GaussianDiffusion) -> float:
    """Frames per second of the files: as wanted, or those at which videos keep their speed."""
    if options.fps is not None:
        return options.fps
    rate = diffusion.clip_info.fps
    if options.interpolate is not None and options.clip is not None:
        # of which all frames were taken
        with clip_reader(diffusion, axes=options.axes).open(files_of(options.clip)[0]) as file:
            rate = file.fps or rate
    return (rate or 8.0) * (options.interpolate or 1)


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


def read_conditions(
    diffusion: GaussianDiffusion,
    options: Mapping[str, Any],
    *,
    has_clips: bool = False,
    axes: str | None = None,
) -> dict[str, Any]:
    """Reads conditions from options and files, as keywords of `diffusion.sample`.

    Args:
        diffusion: The model.
        options: Values of the options that are given, by name: `text`, `labels` and `cond`, lists
            of strings, and the files `frame_cond`, `cond_video` and `first_frames`.
        has_clips: Whether there are known clips, which have the first frames.
        axes: Order of the axes of first frames from arrays; None for that of the training clips.

    Returns:
        The conditions that are given, with a row for each kind of video, or one for all.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file, a number or a label is not valid, both `text` and `cond` are given,
            or the conditions are not those that the model was trained with.
    """
    if "text" in options and "cond" in options:
        raise ValueError("sample: only one of --text and --cond can be given, got both; remove one")
    keys = ["cond" if name == "text" else name for name in options]
    names = [*diffusion.condition_names]
    names += ["first_frames"] * bool(diffusion.given_frames and not has_clips)
    # before files are read, or a text encoder for captions that the model does not take
    if {*keys} != {*names}:
        cond = _option_of_cond(diffusion)
        takes = ", ".join(cond if n == "cond" else OPTIONS[n] for n in names) or "none"
        got = ", ".join(f"--{name}" for name in options) or "none"
        none = ", as --labels -1 for no class" if "labels" in {*names} - {*keys} else ""
        raise ValueError(
            "sample: the model must be given the conditions that it was trained with, "
            f"{takes}, got {got}; correct the options{none}"
        )
    found: dict[str, Any] = {}
    for key, (name, value) in zip(keys, options.items(), strict=True):
        if name == "text":
            found[key] = _captions(value)
        elif name == "labels":
            found[key] = _labels(diffusion, value)
        elif name == "cond":
            found[key] = _vectors(diffusion, value)
        elif name == "first_frames":
            found[key] = _first_frames(diffusion, value, axes)
        else:
            found[key] = _read_rows(Path(value), name)
    return found


def _option_of_cond(diffusion: GaussianDiffusion) -> str:
    """The option for `cond`, as far as is known whether these are numbers or captions."""
    config: Any = unwrap(diffusion.denoise_fn).config
    if diffusion.clip_info.text_encoder is not None or config["use_bert_text_cond"]:
        return "--text"
    return "--cond" if diffusion.clip_info.cond_ranges else "--text or --cond"


def _first_frames(diffusion: GaussianDiffusion, path: str, axes: str | None) -> Tensor:
    """The frames that a model continues, `(n, c, k, h, w)`."""
    count: int | None = diffusion.given_frames
    is_whole = diffusion.clip_info.settings.get("fit_frames") == "all"
    # as of the training clips, each of which was a whole file
    clips = _read_clips(
        diffusion, path, "first_frames", num_frames=None if is_whole else count, axes=axes
    )
    return clips[:, :, :count]


def repeat(values: Any, count: int, kinds: int) -> Any:
    """Repeats each row of a tensor or list `count` times; a single row is for all `kinds`."""
    times = count * kinds if len(values) == 1 else count
    if isinstance(values, Tensor):
        return values.repeat_interleave(times, dim=0)
    return [value for value in values for _ in range(times)]


def outside_of_training(info: ClipInfo, cond: Any) -> list[str]:
    """Notes on the numbers of `cond` that are outside of the range of the training clips.

    Args:
        info: What is known of the training clips.
        cond: Rows of numbers, `(n, d)`; others are not looked at.
    """
    if not isinstance(cond, Tensor) or cond.shape[1:] != (len(info.cond_ranges),):
        return []
    return [
        f"note: {name} {value:g} is outside of the training clips, {low:g} to {high:g}"
        for (name, (low, high)), column in zip(info.cond_ranges.items(), cond.T, strict=True)
        for value in column.unique().tolist()
        if not low <= value <= high
    ]


def _columns(diffusion: GaussianDiffusion) -> list[str]:
    """Names of the numbers that a model takes; empty if unknown."""
    names = list(diffusion.clip_info.cond_ranges)
    return names if len(names) == _width(diffusion, "cond") else []


def _width(diffusion: GaussianDiffusion, name: str) -> int:
    """Width of a condition, or the number of classes."""
    config: Any = unwrap(diffusion.denoise_fn).config
    return condition_width(name, config) or 0


def _captions(values: Sequence[str]) -> list[str]:
    if len(values) > 1 or not values[0].lower().endswith(".txt"):
        return list(values)
    path = Path(values[0])
    if not path.is_file():
        raise FileNotFoundError(f"sample: expected captions in {path}, found no such file")
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise ValueError(
            f"sample: --text must be a file with a caption in each line, got {path} without any"
        )
    return lines


def _labels(diffusion: GaussianDiffusion, values: Sequence[str]) -> Tensor:
    info, count = diffusion.clip_info, _width(diffusion, "labels")
    is_number = {name: name.removeprefix("-").isdecimal() for name in values}
    known = [int(n) if is_number[n] and n not in info.class_names else n for n in values]
    labels = torch.tensor(info.label_numbers(known), device="cpu")
    if labels.min() < -1 or labels.max() >= count:
        raise ValueError(
            f"sample: --labels must be from 0 to {count - 1}, or -1 for no class, got "
            f"{' '.join(values)}; correct them"
        )
    return labels


def _vectors(diffusion: GaussianDiffusion, values: Sequence[str]) -> Tensor:
    if len(values) == 1 and values[0].lower().endswith(".npy"):
        return _read_rows(Path(values[0]), "cond")
    if diffusion.takes_text_states:
        raise ValueError(
            "sample: --cond must be a .npy for a model of text states, got "
            f"{' '.join(values)}; give --text"
        )
    numbers = torch.tensor([parse_number(value) for value in values], device="cpu")
    if not numbers.isfinite().all():
        raise ValueError(
            f"sample: --cond must be numbers, or one .npy, got {' '.join(values)}; correct them"
        )
    width, columns = _width(diffusion, "cond"), _columns(diffusion)
    if len(numbers) % width:
        names = f", {', '.join(columns)}," * bool(columns)
        raise ValueError(
            f"sample: --cond must have {width} numbers for each condition{names or ','} one "
            f"condition after the other, got {len(numbers)}; correct them"
        )
    return numbers.view(-1, width)


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
