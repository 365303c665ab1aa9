"""What the commands `train` and `sample` do, from checked options to files."""

from __future__ import annotations

from collections.abc import Callable
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch import text
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.pretrained import load_diffusion, resume
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.samples import write_sample_grid
from video_diffusion_pytorch.training.trainer import Trainer

# how many videos are drawn at a time
_BATCH = 16


def run_training(
    folder: str,
    *,
    unet: dict[str, Any],
    diffusion: dict[str, Any],
    trainer: dict[str, Any],
    resume_from: str,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Trains on a folder of clips without conditions.

    Args:
        folder: Where the clips are.
        unet: Keywords of `Unet3D`.
        diffusion: Keywords of `GaussianDiffusion`.
        trainer: Keywords of `Trainer`.
        resume_from: `"auto"` for the last checkpoint in the results folder, if there is one;
            `"never"`; or a checkpoint's path.
        seed: Of the first weights and the training.
        say: Called with each line of the report.

    Raises:
        ValueError: If the network takes conditions, a keyword is out of range, or the checkpoint
            is of another model.
        FileNotFoundError: If there are no clips, or no such checkpoint.
        FileExistsError: If a new run would replace an old one's checkpoints.
    """
    if unet["cond_dim"] is not None or unet["use_bert_text_cond"]:
        raise ValueError(
            "train: the network must be without condition, got cond_dim or use_bert_text_cond; "
            "leave them out, or train in Python with a Trainer whose dataset gives conditions"
        )
    results = Path(trainer["results_folder"])
    existing = list_checkpoints(results)
    if resume_from == "never" and existing:
        raise FileExistsError(
            f"train: a new run must have a results folder without checkpoints, got {results} with "
            f"{existing[-1].name}; choose another --trainer.results_folder, or resume"
        )

    torch.manual_seed(seed)
    model = GaussianDiffusion(Unet3D(**unet), **diffusion)
    loop = Trainer(model, folder, **trainer)
    if resume_from == "auto":
        checkpoint = existing[-1] if existing else None
    else:
        checkpoint = None if resume_from == "never" else Path(resume_from)
    if checkpoint is not None:
        resume(loop, checkpoint)
        say(f"goes on from {checkpoint}, step {loop.step}")
    if loop.step >= loop.train_num_steps:
        say(f"nothing left to train: for more, raise --trainer.train_num_steps above {loop.step}")
        return

    loop.train()
    if loop.step % loop.save_and_sample_every:
        loop.save(round(loop.step / loop.save_and_sample_every, 4))
    last = list_checkpoints(results)[-1]
    say(f"trained to step {loop.step}: {last}")
    say(f"samples: video-diffusion sample {last} -o {results / 'samples.gif'}")


def run_sampling(
    checkpoint: str,
    *,
    captions: list[str] | None,
    cond_scale: float,
    count: int,
    output: str,
    image_size: int | tuple[int, int] | None,
    num_frames: int | None,
    seed: int,
    device: str | None,
    text_encoder: str | None,
    say: Callable[[str], None],
) -> None:
    """Draws videos from a checkpoint and writes them to one file.

    Args:
        checkpoint: A training file.
        captions: What the videos should show; None for a model without condition.
        cond_scale: Strength of the guidance; 1 is without.
        count: Number of videos, for each caption.
        output: A `.gif`, the videos side by side and each caption in a row of its own; or a
            `.npy`, the values as they are, `(b, c, f, h, w)`.
        image_size: As in `load_diffusion`.
        num_frames: As in `load_diffusion`.
        seed: The same seed gives the same videos.
        device: As in `load_diffusion`.
        text_encoder: As in `text.set_text_encoder`; None for BERT.
        say: Called with each line of the report.

    Raises:
        ValueError: If an option is out of range, or captions are missing or unexpected.
        FileNotFoundError: If the checkpoint or the folder to write into is missing.
    """
    target = Path(output)
    _check_output(target, count)
    diffusion = load_diffusion(
        checkpoint, image_size=image_size, num_frames=num_frames, device=device
    )
    _check_captions(diffusion, captions)
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)

    torch.manual_seed(seed)
    each = [caption for caption in captions or [] for _ in range(count)] or None
    total = count if each is None else len(each)
    parts = []
    for start in range(0, total, _BATCH):
        size = min(_BATCH, total - start)
        cond = None if each is None else each[start : start + size]
        parts.append(diffusion.sample(cond=cond, cond_scale=cond_scale, batch_size=size).cpu())
    videos = torch.cat(parts)

    if target.suffix.lower() == ".npy":
        np.save(target, videos.numpy())
    else:
        rows = len(captions) if captions else _rows(count)
        write_sample_grid(videos, target, rows, diffusion.auto_normalize)
    say(f"wrote {_size(videos)} to {target}")


def _rows(count: int) -> int:
    """The number of rows that makes the grid most like a square."""
    return next(rows for rows in range(isqrt(count), 0, -1) if count % rows == 0)


def _size(videos: Tensor) -> str:
    count, _, frames, height, width = videos.shape
    return f"{count} video{'s' * (count > 1)} of {frames} frames, {height} x {width} pixels,"


def _check_output(target: Path, count: int) -> None:
    if count < 1:
        raise ValueError(f"sample: -n must be at least 1, got {count}; give a positive number")
    if target.suffix.lower() not in (".gif", ".npy"):
        raise ValueError(
            f"sample: the output must end in .gif or .npy, got {target}; rename it, as in "
            f"{target.with_suffix('.gif')}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"sample: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )


def _check_captions(diffusion: GaussianDiffusion, captions: list[str] | None) -> None:
    has_cond = getattr(diffusion.denoise_fn, "has_cond", False)
    if captions and not has_cond:
        raise ValueError(
            "sample: the model must have been trained with captions to take --text, got one "
            "without condition; leave --text out"
        )
    if has_cond and not captions:
        raise ValueError(
            "sample: the model was trained with a condition and must be given one, got none; pass "
            "--text, or, if its condition is no caption, sample in Python with load_diffusion"
        )
