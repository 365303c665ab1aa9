"""Restores real clips from a part of them, and compares with what was there.

    python benchmarks/known_parts.py CHECKPOINT --data CLIPS --picture known_parts.png

Clips that the model was not trained on are made half as large (`upsample`), lose the middle of each
frame (`inpaint`) or every second frame (`interpolate_frames`). The peak signal-to-noise ratio of
the result is printed for each weight, next to that of interpolation without a model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, load_diffusion
from video_diffusion_pytorch.data.dataset import Dataset

WEIGHTS = (0.0, 1.0, 2.0, 4.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, and writes a picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="a folder of clips in [0, 1]")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50, help="of ancestral sampling")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="a png of clips and results, a row each")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    diffusion = load_diffusion(options.checkpoint)
    c, f, *size = diffusion.clip_shape
    clips = Dataset(options.data, tuple(size), channels=c, num_frames=f, exts=None)
    real = torch.stack([clips[i] for i in range(min(options.count, len(clips)))])

    shown = {"real": real}
    print("| | upsample x 2 | inpaint the middle | interpolate_frames x 2 |\n|---|---|---|---|")
    small, known = halved(real), around_the_middle(*size)
    print(f"| without a model | {psnr(enlarged(small, size), real):.1f} | | {blended(real):.1f} |")
    for weight in WEIGHTS:
        how = {
            "weight": weight,
            "sampler": "ancestral",
            "steps": options.steps,
            "seed": options.seed,
            "progress": False,
        }
        cells = [""]
        if weight:
            shown[f"upsample {weight:g}"] = diffusion.upsample(small, **how)
            cells = [f"{psnr(shown[f'upsample {weight:g}'], real):.1f}"]
        filled = shown[f"inpaint {weight:g}"] = diffusion.inpaint(real, known, **how)
        # of what was missing only
        cells.append(f"{psnr(filled[..., ~known], real[..., ~known]):.1f}")
        cells.append(f"{between(diffusion, real, how):.1f}")
        print(f"| weight {weight:g} | {' | '.join(cells)} |", flush=True)
    if options.picture is not None:
        write_picture(shown, options.picture)


def psnr(videos: Tensor, real: Tensor) -> float:
    """Of values in [0, 1], in decibels."""
    return -10 * (videos - real).square().mean().log10().item()


def halved(videos: Tensor) -> Tensor:
    """Videos of half the height and width."""
    frames = rearrange(videos, "b c f h w -> (b f) c h w")
    small = F.interpolate(frames, scale_factor=0.5, mode="bilinear", antialias=True)
    return rearrange(small, "(b f) c h w -> b c f h w", b=len(videos))


def enlarged(videos: Tensor, size: Sequence[int]) -> Tensor:
    """What bilinear interpolation makes of small videos."""
    frames = rearrange(videos, "b c f h w -> (b f) c h w")
    large = F.interpolate(frames, size=tuple(size), mode="bilinear")
    return rearrange(large, "(b f) c h w -> b c f h w", b=len(videos))


def around_the_middle(h: int, w: int) -> Tensor:
    """True where a pixel is kept."""
    known = torch.ones(h, w, dtype=torch.bool)
    known[h // 4 : h - h // 4, w // 4 : w - w // 4] = False
    return known


def blended(real: Tensor) -> float:
    """Peak signal-to-noise ratio of the mean of the frames on both sides."""
    last = real.shape[2] - 1 - real.shape[2] % 2
    mean = (real[:, :, : last - 1 : 2] + real[:, :, 2 : last + 1 : 2]) / 2
    return psnr(mean, real[:, :, 1:last:2])


def between(diffusion: GaussianDiffusion, real: Tensor, how: dict[str, object]) -> float:
    """Peak signal-to-noise ratio of frames that the model puts between every second one."""
    given = real[:, :, ::2]
    videos = diffusion.interpolate_frames(given, 2, **how)
    return psnr(videos[:, :, 1::2], real[:, :, 1 : videos.shape[2] : 2])


def write_picture(shown: dict[str, Tensor], path: Path) -> None:
    """The first, the middle and the last frame of the first four clips, a row for each set."""
    rows = []
    for videos in shown.values():
        frames = videos[:4, :, :: max(1, (videos.shape[2] - 1) // 2)][:, :, :3]
        rows.append(rearrange(F.pad(frames, (0, 1, 0, 1), value=0.3), "b c f h w -> c h (f b w)"))
    picture = torch.cat(rows, dim=1).clamp(0, 1).mul(255).round().byte()
    picture = picture.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    Image.fromarray(picture.permute(1, 2, 0).squeeze(-1).numpy()).save(path)


if __name__ == "__main__":
    main()
