"""Trains the same small network with each of its options, at equal steps and seeds.

    python benchmarks/network_options.py --seeds 0 1 --steps 800 --output options.jsonl

Each arm learns the same clips of moving digits, in the same order and with the same noise, and is
judged by the loss of its averaged weights on digits that it has not seen, at fixed time steps and
noise. Arms whose names begin with `captions` are conditioned on digit and direction in words. Lines
that are in the output file already are not run again; at the end a table is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from conditions_followed import train_model
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.data.moving_digits import (
    DIGIT_NAMES,
    DIRECTIONS,
    load_digits,
    moving_digit_clip,
)

FRAMES, SIZE, WIDTH = 8, 16, 32
UNET = {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 2, "attn_dim_head": 16}
HELD_OUT = 128
TIMES = 16  # time steps at which each held-out clip is judged
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "token_shift='time'": {"token_shift": "time"},
    "token_shift='space'": {"token_shift": "space"},
    "token_shift='both'": {"token_shift": "both"},
    "full_attn_levels=(1, 2)": {"full_attn_levels": (1, 2)},
    "temporal_attn_levels=(1, 2)": {"temporal_attn_levels": (1, 2)},
    "blocks_per_level=3": {"blocks_per_level": 3},
    "attn_after_each_block=True": {"attn_after_each_block": True},
    "dropout=0.1": {"dropout": 0.1},
    "emb_dim=256, emb_layers=4": {"emb_dim": 256, "emb_layers": 4},
    "attn_heads=None": {"attn_heads": None},
    "time_input='log_snr'": {"time_input": "log_snr"},
    "captions: mean of the states": {"cond_dim": WIDTH},
    "captions: text_pooling='attention'": {"cond_dim": WIDTH, "text_pooling": "attention"},
    "captions: num_text_tokens=4": {"cond_dim": WIDTH, "num_text_tokens": 4},
}


# the baseline of the arms with captions
_MEAN = "captions: mean of the states"


class Clips(torch.utils.data.Dataset):
    """Clips of moving digits, `(1, f, 16, 16)` in [0, 1], and what they show in words."""

    def __init__(
        self, digits: Tensor, labels: Tensor, count: int, seed: int, captioned: bool
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        names, self.captioned = list(DIRECTIONS), captioned
        self.clips, self.captions = [], []
        for _ in range(count):
            i = int(torch.randint(len(digits), (), generator=generator))
            way = names[int(torch.randint(len(names), (), generator=generator))]
            clip = moving_digit_clip(digits[i], FRAMES, 32, generator, direction=way)
            self.clips.append(F.avg_pool2d(clip.float() / 255, 2))
            self.captions.append(f"a {DIGIT_NAMES[int(labels[i])]} moving {way}")

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, i: int) -> dict[str, Any]:
        conditions = {"cond": self.captions[i]} if self.captioned else {}
        return {"video": self.clips[i], **conditions}


def states_of_words(captions: list[str]) -> Tensor:
    """A text encoder that needs no download: a random vector for each word, and for its place."""

    def vector(word: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        return torch.randn(WIDTH, generator=generator)

    # all captions here have four words
    return torch.stack(
        [
            torch.stack([vector(word) + vector(str(i)) for i, word in enumerate(caption.split())])
            for caption in captions
        ]
    )


def train(arm: str, seed: int, clips: Clips, options: argparse.Namespace) -> Trainer:
    """A trainer at its end."""
    torch.manual_seed(seed)
    unet = Unet3D(**{**UNET, **ARMS[arm]})
    diffusion = GaussianDiffusion(
        unet, image_size=SIZE, num_frames=FRAMES, timesteps=1000, loss_type="l2"
    )
    how = {"train_batch_size": options.batch, "num_workers": 0, "device": "cpu", "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        return train_model(diffusion, Path(folder), options.steps, dataset=clips, **how)


@torch.no_grad()
def validation_loss(diffusion: GaussianDiffusion, clips: Clips) -> float:
    """Mean loss at evenly spaced time steps; noise and steps are those of every other model."""
    generator = torch.Generator().manual_seed(3)
    x_start = torch.stack(clips.clips) * 2 - 1
    conditions = {}
    if clips.captioned:
        conditions = {"cond": clips.captions, "null_cond_prob": 0.0}
    diffusion.eval()
    losses = []
    for i in range(TIMES):
        t = torch.full((len(clips),), round((i + 0.5) / TIMES * diffusion.num_timesteps))
        noise = torch.randn(x_start.shape, generator=generator)
        losses.append(diffusion.p_losses(x_start, t, noise=noise, **conditions).item())
    return statistics.mean(losses)


def measure(arm: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """One line of the output file."""
    captioned = arm.startswith("captions")
    if captioned:
        network = Unet3D(**{**UNET, **ARMS[arm]})
        as_vector = not network.takes_text_states
        text.set_text_encoder(
            (lambda c: states_of_words(c).mean(dim=1)) if as_vector else states_of_words
        )
    # digits that are shown in training are not shown in validation
    images, labels = load_digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    new, old = order[:HELD_OUT], order[HELD_OUT:]
    clips = Clips(images[old], labels[old], options.clips, 2, captioned)
    validation = Clips(images[new], labels[new], HELD_OUT, 1, captioned)
    start, cpu = time.perf_counter(), time.process_time()
    trainer = train(arm, seed, clips, options)
    return {
        "arm": arm,
        "seed": seed,
        "steps": options.steps,
        "batch": options.batch,
        "parameters": sum(w.numel() for w in trainer.model.parameters() if w.requires_grad),
        "cpu_seconds_per_step": (time.process_time() - cpu) / options.steps,
        "seconds": time.perf_counter() - start,
        "validation_loss": validation_loss(trainer.ema_model, validation),
    }


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Losses of each arm by seed, and their sum next to that of plain over common seeds."""
    losses: dict[str, dict[int, float]] = {}
    for line in lines:
        losses.setdefault(line["arm"], {})[line["seed"]] = line["validation_loss"]
    rows = [
        "| option | parameters | CPU s per step | validation loss by seed | of plain |",
        "|---|---|---|---|---|",
    ]
    for arm in (arm for arm in ARMS if arm in losses):
        of_arm = [line for line in lines if line["arm"] == arm]
        plain = losses.get(_MEAN if arm.startswith("captions") else "plain", {})
        seeds = sorted(losses[arm])
        shared = [seed for seed in seeds if seed in plain]
        share = ""
        if shared:
            share = f"{sum(losses[arm][s] for s in shared) / sum(plain[s] for s in shared):.1%}"
        shown = ", ".join(f"{losses[arm][seed]:.4f}" for seed in seeds)
        seconds = statistics.median(line["cpu_seconds_per_step"] for line in of_arm)
        count = f"{of_arm[0]['parameters']:,}"
        rows.append(f"| `{arm}` | {count} | {seconds:.2f} | {shown} | {share} |")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains what is missing, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("options.jsonl"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)

    lines = []
    if options.output.is_file():
        lines = [json.loads(line) for line in options.output.read_text().splitlines()]
    done = {(line["arm"], line["seed"]) for line in lines}
    for seed in options.seeds:
        for arm in (arm for arm in options.arms if (arm, seed) not in done):
            lines.append(measure(arm, seed, options))
            with options.output.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
            print(lines[-1], flush=True)
    print("\n".join(table(lines)))


if __name__ == "__main__":
    main()
