"""`video-diffusion forecast`: an ensemble of continuations of a file of fields, or of any clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.cli.sample import (
    OPTIONS,
    add_checkpoint_options,
    add_condition_options,
    check_output,
    files_of,
    load_checkpoint,
    read_conditions,
)
from video_diffusion_pytorch.clip_file import frame_numbers, prepare_clip, write_like
from video_diffusion_pytorch.data.formats.field_files import FIELD_EXTS, kind_of_fields
from video_diffusion_pytorch.data.write_video import PICTURE_ENDINGS
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.random_streams import stream_seed
from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.training.evaluate import sampling_options
from video_diffusion_pytorch.training.samples import write_sample_grid

_GIF_FPS = 50.0


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `forecast`."""
    parser = ArgumentParser(
        usage="video-diffusion forecast CHECKPOINT --initial FILE [options]",
        description="Draws an ensemble of continuations of a file, window by window.",
    )
    add_checkpoint_options(parser)
    add = parser.add_argument
    initial = "The file that is continued after its last frame, or a folder of such files."
    add("--initial", type=str, required=True, metavar="FILE", help=initial)
    first = "Number of frames to take of the file, from the first on; null for all."
    add("--initial_frames", type=int | None, metavar="N", help=first)
    item = "Number of the simulation in a file of several, from 0 on."
    add("--item", type=int | None, metavar="N", help=item)
    add("--frames", type=int, default=16, help="Number of frames to forecast.")
    add("--members", type=int, default=8, help="Members of the ensemble.")
    output = "A file of the kind of FILE, with its names, units and coordinates, and a dimension "
    output += "member; a .npy, (m, c, f, h, w); or a .gif, .webp, .mp4 or .png with all members "
    output += "side by side. For a folder of files a folder, with --format."
    add("-o", "--output", type=str, default="forecast.gif", help=output)
    ending = "Ending of the files in a folder, such as nc; null for that of FILE."
    add("--format", type=str | None, help=ending)
    seed = "Member j of a forecast is the same for the same seed, whatever the number of members."
    add("--seed", type=int, default=0, help=seed)
    stride = "New frames per window; null for as many as the model draws at once given its "
    add("--stride", type=int | None, help=f"{stride}given_frames, or half of a clip.")
    weight = "Weight of the guidance by known frames, for a model that was trained without any; 0 "
    add("--weight", type=float | None, help=f"{weight}for replacement alone; null for 2.")
    noise = "Noise of the known frames, sigma / alpha, for a model trained with frame_noise."
    add("--given_noise", type=float, default=0.0, help=noise)
    sampler = "ddpm, ancestral, ddim, euler, heun, dpm++ or dpm++sde."
    add("--sampler", type=str, default="dpm++sde", help=sampler)
    steps = "Number of steps; null for the model's sampling_timesteps, or the sampler's default."
    add("--steps", type=int | None, help=steps)
    add("--max_batch", type=int, default=16, help="Largest number of members drawn at once.")
    axes = "Order of the axes in arrays, such as fhw; null for that of the training."
    add("--axes", type=str | None, help=axes)
    add_condition_options(parser, of_samples=False)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Draws forecasts and writes them.

    Raises:
        FileNotFoundError: If a file or the folder of the output is missing.
        ValueError: If an option is out of range, or conditions are missing or unexpected.
    """
    for name in ("frames", "members", "max_batch"):
        as_count(options[name], f"forecast: --{name}")
    files = files_of(options.initial)
    targets = _targets(options, files)
    diffusion = load_checkpoint(options)
    given = {name: options[name] for name in ("text", *OPTIONS) if options.get(name) is not None}
    conditions = read_conditions(diffusion, given, has_clips=True, axes=options.axes)
    scale = 1.0 if options.cond_scale is None else options.cond_scale
    how = sampling_options(diffusion, options.sampler, options.steps, scale)
    for number, (file, target) in enumerate(zip(files, targets, strict=True)):
        start, count = _initial_frames(options, file, diffusion)
        rows = {
            name: values if len(values) == 1 else values[number : number + 1]
            for name, values in conditions.items()
        }
        members = diffusion.forecast(
            start,
            options.frames,
            members=options.members,
            seed=[stream_seed(options.seed, number)],
            stride=options.stride,
            weight=options.weight,
            given_noise=options.given_noise,
            max_batch=options.max_batch,
            **how,
            **rows,
        )[0].cpu()
        _write(members, target, file, count, diffusion)
        m, _, frames, height, width = members.shape
        say(
            f"wrote {m} members of {frames} frames, {height} x {width} pixels, after frame {count} "
            f"of {file}, to {target}"
        )


def _initial_frames(
    options: Namespace, file: Path, diffusion: GaussianDiffusion
) -> tuple[Tensor, int]:
    """The last known frames of a file, as many as a window can have, and how many are known."""
    count = options.initial_frames
    if count is None:
        count = len(frame_numbers(file, diffusion, None, options.axes, options.item)[0])
    else:
        as_count(count, "forecast: --initial_frames")
    has_frames = bool({"frame_cond", "cond_video"} & {*diffusion.condition_names})
    is_resampled = diffusion.clip_info.settings.get("fit_frames") is not None
    # conditions by frame are those of all frames
    first = 0 if has_frames or is_resampled else max(0, count - diffusion.num_frames)
    how: dict[str, Any] = {"axes": options.axes, "item": options.item, "first_frame": first}
    return prepare_clip(file, diffusion, num_frames=count - first, **how), count


def _targets(options: Namespace, files: list[Path]) -> list[Path]:
    """The files to write, checked before anything is drawn."""
    output, kinds = Path(options.output), (".npy", *PICTURE_ENDINGS)
    if len(files) == 1 and (output.suffix or options.format is None):
        targets = [output]
        if kind_of_fields(output) != "zarr":
            check_output(output, "forecast")
    else:
        if output.suffix or output.is_file():
            raise ValueError(
                f"forecast: --output must be a folder for {len(files)} files, got {output}; give a "
                "name without ending"
            )
        output.mkdir(parents=True, exist_ok=True)
        targets = [
            _in_folder(output, file, Path(options.initial), options.format) for file in files
        ]
    places = [target.resolve() for target in targets]
    if len({*places}) < len(places) or {*places} & {file.resolve() for file in files}:
        raise ValueError(
            f"forecast: each file must get one of its own, got {output} for {options.initial}; "
            "choose another folder, or another --format"
        )
    for target, file in zip(targets, files, strict=True):
        kind = kind_of_fields(target)
        if kind is not None and kind != kind_of_fields(file):
            raise ValueError(
                f"forecast: a {kind} file must continue one of its kind, got {file}; choose "
                "another output, such as a .npy"
            )
        if kind == "nifti":
            raise ValueError(
                f"forecast: --output must have a place for members, got {target}; choose a .npy"
            )
        if kind is None and target.suffix.lower() not in kinds:
            raise ValueError(
                f"forecast: the output must end in {', '.join(kinds)}, .nc, .h5 or .zarr, got "
                f"{target}; rename it"
            )
    return targets


def _in_folder(folder: Path, file: Path, source: Path, ending: str | None) -> Path:
    """The forecast of a file of a folder, at its place there, with its own ending by default."""
    name = file.name
    if ending is not None:
        known = [one for one in FIELD_EXTS if name.lower().endswith(f".{one}")]
        own = max(known, key=len, default=file.suffix.removeprefix("."))
        name = f"{name.removesuffix(name[len(name) - len(own) :]).removesuffix('.')}.{ending}"
    target = folder / (file.parent.relative_to(source) if source.is_dir() else "") / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write(
    members: Tensor, target: Path, like: Path, known: int, diffusion: GaussianDiffusion
) -> None:
    """Writes the members of a forecast, `(m, c, f, h, w)`."""
    if kind_of_fields(target) is not None:
        write_like(members, target, like, diffusion, first_frame=known, several="member")
    elif target.suffix.lower() == ".npy":
        with replacing(target) as unfinished, unfinished.open("wb") as file:
            np.save(file, members.numpy())
    else:
        wanted = diffusion.clip_info.fps or 8.0
        is_gif = target.suffix.lower() == ".gif"
        write_sample_grid(
            torch.nan_to_num(members),
            target,
            1,
            diffusion.auto_normalize,
            value_range=diffusion.config["value_range"],
            fps=min(wanted, _GIF_FPS) if is_gif else wanted,
        )
