"""Trains small models on captioned digits in motion, and measures how well they follow captions.

    python benchmarks/text_tokens.py                               # every arm, three seeds
    python benchmarks/text_tokens.py --arms vector tokens --seeds 0 --steps 200

A caption such as "a three moving left" names a digit and its direction. All arms
get the same clips in the same order, the same noise and the same state of each word: a random
vector for the word plus one for its place. The arms differ in what the network makes of them:

- vector: their mean, one vector, which joins the embedding of time
- attention: a vector that a learned query gathers from them
- tokens: their mean, and four tokens that every attention sees
- clock: their mean, as with vector, and the position of each frame in the clip as `frame_cond`
- 8 tokens: as tokens, with eight

Two classifiers trained on real clips classify the samples.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from conditions_followed import classifier, train_model
from torch import Tensor, nn

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.data.moving_digits import DIGIT_NAMES, DIRECTIONS, load_digits

FRAMES, SIZE, DIGIT, WIDTH = 4, 8, 5, 32
WORDS = {"digit": DIGIT_NAMES[:4], "direction": tuple(DIRECTIONS)}
ARMS: dict[str, dict[str, Any]] = {
    "vector": {},
    "attention": {"text_pooling": "attention"},
    "tokens": {"num_text_tokens": 4},
    "clock": {"frame_cond_dim": 1},
    "8 tokens": {"num_text_tokens": 8},
}
UNET = {
    **{"dim": 16, "dim_mults": (1, 2), "channels": 1, "attn_heads": 2, "attn_dim_head": 16},
    **{"init_kernel_size": 3, "use_sparse_linear_attn": False, "cond_dim": WIDTH},
}


CLOCK = torch.linspace(-1, 1, FRAMES)[:, None]


class Clip(NamedTuple):
    """A clip `(1, f, h, w)` in [0, 1], and the words for what it shows."""

    video: Tensor
    digit: str
    direction: str

    @property
    def caption(self) -> str:
        """What is to be seen, in words."""
        return caption_of(self.digit, self.direction)


def caption_of(digit: str, direction: str) -> str:
    return f"a {digit} moving {direction}"


def draw_clip(generator: torch.Generator) -> Clip:
    """A digit that goes from one side to the other, by one pixel per frame."""

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    images, labels = load_digits()
    number, direction = draw(len(WORDS["digit"])), WORDS["direction"][draw(4)]
    places = (labels == number).nonzero().flatten()
    ink = images[places[draw(len(places))]][None, None].float() / 16
    ink = F.interpolate(ink, size=(DIGIT, DIGIT), mode="area")[0, 0]
    across = draw(SIZE - DIGIT + 1)
    vertical, horizontal = DIRECTIONS[direction]
    video = torch.zeros(1, FRAMES, SIZE, SIZE)
    for frame in range(FRAMES):
        along = frame if vertical + horizontal > 0 else SIZE - DIGIT - frame
        top, left = (along, across) if vertical else (across, along)
        video[0, frame, top : top + DIGIT, left : left + DIGIT] = ink
    return Clip(video, DIGIT_NAMES[number], direction)


def word_states(captions: list[str]) -> tuple[Tensor, Tensor]:
    """A text encoder that needs no download: a random vector for each word and for its place."""

    def vector(name: str) -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return torch.randn(WIDTH, generator=generator)

    rows = [
        [vector(word) + vector(f"place {place}") for place, word in enumerate(caption.split())]
        for caption in captions
    ]
    lengths = torch.tensor([len(row) for row in rows])
    states = torch.zeros(len(rows), max(1, int(lengths.max())), WIDTH)
    for row, own in zip(states, rows, strict=True):
        for place, state in enumerate(own):
            row[place] = state
    return states, torch.arange(states.shape[1]) < lengths[:, None]


def mean_vectors(captions: list[str]) -> Tensor:
    """The same as one vector per caption."""
    states, mask = word_states(captions)
    return states.sum(dim=1) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def train(arm: str, clips: list[Clip], steps: int, batch: int, seed: int) -> tuple[Trainer, float]:
    """Trains one arm; gives the trainer and the seconds of a step."""
    text.set_text_encoder(mean_vectors if arm in ("vector", "clock") else word_states)
    torch.manual_seed(seed)
    model = GaussianDiffusion(
        Unet3D(**UNET, **ARMS[arm]),
        image_size=SIZE,
        num_frames=FRAMES,
        timesteps=100,
        loss_type="l2",
        objective="pred_v",
    )
    items: list[dict[str, Any]] = [{"video": c.video, "caption": c.caption} for c in clips]
    if arm == "clock":
        items = [{**item, "frame_cond": CLOCK} for item in items]
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        options = {"train_batch_size": batch, "held_out": 0, "seed": seed, "dataset": items}
        # an average over 50 steps, as these runs are short
        options["ema_decay"] = 0.98
        trainer = train_model(model, Path(folder), steps, **options)
        return trainer, (time.process_time() - start) / steps


def follow(trainer: Trainer, judges: dict[str, nn.Module], count: int, scale: float) -> Tensor:
    """Of samples of every caption in turn, which of the two is right, `(count, 2)`."""
    digits, directions = WORDS["digit"], WORDS["direction"]
    asked = {
        "digit": torch.arange(count) % len(digits),
        "direction": torch.arange(count) // len(digits) % len(directions),
    }
    pairs = zip(asked["digit"].tolist(), asked["direction"].tolist(), strict=True)
    captions = [caption_of(digits[i], directions[j]) for i, j in pairs]
    options: dict[str, Any] = {"sampler": "dpm++", "steps": 12, "seed": 0, "progress": False}
    if "frame_cond" in trainer.model.condition_names:
        options["frame_cond"] = CLOCK.expand(count, -1, -1)
    videos = trainer.ema_model.sample(captions, cond_scale=scale, **options)
    with torch.no_grad():
        seen = {name: judge(videos).argmax(dim=1) for name, judge in judges.items()}
    return torch.stack([seen[name] == asked[name] for name in asked], dim=1)


def judges_of(clips: list[Clip]) -> dict[str, nn.Module]:
    """A classifier of digits and one of directions."""
    judges = {}
    videos = torch.stack([clip.video for clip in clips])
    for name, words in WORDS.items():
        labels = torch.tensor([words.index(getattr(clip, name)) for clip in clips])
        judges[name], on_real = classifier(videos, labels)
        print(f"classifier of the {name}: {on_real:.1%} of real clips left out", flush=True)
    return judges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arms", nargs="*", default=list(ARMS)[:4], choices=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--cond_scale", nargs="*", type=float, default=[1.0, 3.0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    judges = judges_of([draw_clip(generator) for _ in range(1200)])
    clips = [draw_clip(generator) for _ in range(options.clips)]

    print("arm | seed | parameters | CPU ms per step | cond_scale | digit | direction | both")
    for seed in options.seeds:
        for arm in options.arms:
            trainer, seconds = train(arm, clips, options.steps, options.batch, seed)
            size = sum(weight.numel() for weight in trainer.model.denoise_fn.parameters())
            for scale in options.cond_scale:
                right = follow(trainer, judges, options.samples, scale).float()
                shares = (*right.mean(dim=0).tolist(), right.prod(dim=1).mean().item())
                row = (arm, seed, size, f"{seconds * 1000:.0f}", scale)
                print(*row, *(f"{share:.0%}" for share in shares), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
