"""What the commands `train` and `sample` do, from checked options to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch import text
from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.write_video import PICTURE_ENDINGS
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.presets import preset as find_preset
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.sample_conditions import OPTIONS, class_names, pick, read_conditions
from video_diffusion_pytorch.training.checkpoint import checkpoint_at, newest
from video_diffusion_pytorch.training.samples import write_sample_grid
from video_diffusion_pytorch.training.trainer import Trainer


def run_training(
    folder: str,
    *,
    unet: dict[str, Any],
    diffusion: dict[str, Any],
    data: dict[str, Any],
    trainer: dict[str, Any],
    preset: str | None = None,
    text_encoder: str | None,
    resume_from: str,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Trains on a folder of clips.

    Args:
        folder: Where the clips are.
        unet: Keywords of `Unet3D`; `cond_dim` is the number of columns in a list as `cond`,
            unless given.
        diffusion: Keywords of `GaussianDiffusion`.
        data: Keywords of `data.dataset.Dataset`.
        trainer: Keywords of `Trainer`.
        preset: The model of the paper that these are from, to be named in the report.
        text_encoder: As in `text.set_text_encoder`; None for BERT.
        resume_from: `"auto"` for the last checkpoint in the results folder, if there is one;
            `"never"`; or a checkpoint's path.
        seed: Of the first weights and the training.
        say: Called with each line of the report.

    Raises:
        ValueError: If a keyword is out of range, the clips are not what the network takes, or the
            checkpoint is of another model.
        FileNotFoundError: If there are no clips, or no such checkpoint.
        FileExistsError: If a new run would replace an old one's checkpoints.
    """
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)
    kinds, _, columns = split_conditions(data.get("conditions"))
    has_numbers = isinstance(columns.get("cond"), list)
    if has_numbers and not unet.get("use_bert_text_cond"):
        unet = {**unet, "cond_dim": unet.get("cond_dim") or len(columns["cond"])}
    torch.manual_seed(seed)
    model = GaussianDiffusion(Unet3D(**unet), **diffusion)
    loop = Trainer(model, folder, **trainer, **data, resume=resume_from, seed=seed)
    tell = say if loop.is_main else _nothing
    if loop.step:
        tell(f"goes on from {loop.resumed_from}, step {loop.step}")
    if loop.step >= loop.train_num_steps:
        tell(f"nothing left to train: for more, raise --trainer.train_num_steps above {loop.step}")
        return

    loop.train()
    last = newest(loop.results_folder)
    assert last is not None
    tell(f"trained to step {loop.step}: {last}")
    names = [*model.condition_names, *["first_frames"] * bool(model.given_frames)]
    options = {**OPTIONS, "cond": "--cond"} if has_numbers or "vector" in kinds else OPTIONS
    told = "".join(f" {options[name]} ..." for name in names)
    if text_encoder is not None and "cond" in names:
        told += f" --text_encoder {quote(text_encoder)}"
    told += f" --preset {preset}" if preset is not None else ""
    samples = quote(str(loop.results_folder / "samples.gif"))
    tell(f"samples: video-diffusion sample {quote(str(last))}{told} -o {samples}")


def _nothing(line: str) -> None:
    """Says nothing: what one process says, the others need not."""


def run_sampling(
    checkpoint: str,
    *,
    count: int,
    output: str,
    cond_scale: float,
    image_size: int | tuple[int, int] | None,
    num_frames: int | None,
    seed: int,
    device: str | None,
    text_encoder: str | None,
    sampler: str | None,
    steps: int | None,
    preset: str | None,
    negative_text: list[str] | None,
    guidance_rescale: float,
    max_batch: int,
    extend_to: int | None,
    ema_decay: float | None,
    say: Callable[[str], None],
    **told: Any,
) -> None:
    """Draws videos from a checkpoint and writes them to one file.

    Args:
        checkpoint: A training file, or a results folder for its newest one.
        count: Number of videos, for each condition.
        output: A `.npy`, the values as they are, `(b, c, f, h, w)`; or one of the formats of
            `write_video`, the videos side by side and those of each condition in a row.
        cond_scale: Strength of the guidance; 1 is without.
        image_size: As in `load_diffusion`.
        num_frames: As in `load_diffusion`.
        seed: The same seed gives the same videos.
        device: As in `load_diffusion`.
        text_encoder: As in `text.set_text_encoder`; None for BERT.
        sampler: As in `diffusion.sample`, and so `steps`, `guidance_rescale` and `max_batch`.
        steps: Number of steps.
        preset: A model of the paper, whose sampler and steps are taken where none are given.
        negative_text: Captions to guide away from; one for all, or one for each condition.
        guidance_rescale: How far guided videos are brought back to their unguided spread.
        max_batch: The most videos to draw at a time.
        extend_to: To continue the videos to so many frames; None to leave them as they are.
        ema_decay: Which of several averages draws, by its decay; None for the first.
        say: Called with each line of the report.
        **told: What the videos should show, as in `read_conditions`.

    Raises:
        ValueError: If an option is out of range, or conditions are missing or unexpected.
        FileNotFoundError: If a file, or the folder to write into, is missing.
    """
    target = Path(output)
    _check_output(target, count)
    how, encoder = _as_in_paper(preset, sampler, steps, text_encoder)
    averaged = True if ema_decay is None else ema_decay
    sizes: dict[str, Any] = {"image_size": image_size, "num_frames": num_frames}
    file = checkpoint_at(checkpoint)
    diffusion = load_diffusion(file, **sizes, device=device, averaged=averaged)
    if encoder is not None:
        text.set_text_encoder(encoder)
    conditions = read_conditions(diffusion, class_names(file), **told)

    if cond_scale != 1 and not conditions:
        raise ValueError(
            f"sample: --cond_scale must be 1 for a model without conditions, got {cond_scale}; "
            "leave it out"
        )

    torch.manual_seed(seed)
    kinds = max(map(len, conditions.values()), default=1)
    rows = [row // count for row in range(kinds * count)]
    how |= {name: pick(values, rows) for name, values in conditions.items()}
    how |= {"max_batch": max_batch, "cond_scale": cond_scale}
    how |= _guiding(negative_text, guidance_rescale, kinds, rows)
    videos = diffusion.sample(**how, batch_size=len(rows))
    if extend_to is not None:
        # the windows know their own first frames
        how.pop("first_frames", None)
        videos = diffusion.extend(videos, extend_to, **how)
    _write(videos.cpu(), target, kinds if kinds > 1 else _rows(count), diffusion)
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
