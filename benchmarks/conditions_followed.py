"""Trains small models on conditions from files, and measures whether their samples follow them.

    python benchmarks/conditions_followed.py                       # every kind of condition
    python benchmarks/conditions_followed.py class --steps 1200

Clips of moving digits are written to a folder, each with a file of its condition. A classifier
trained on other real clips classifies the samples (class, text), or they are compared with the
condition: the brightness of the clip (vector), of each frame (frame_vectors), or the content of the
first frame (first_frame).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.data.write_video import write_video

DIGITS = {"zero": 0, "one": 1}
DIRECTIONS = ("left", "right")
FRAMES, SIZE = 8, 16
UNET = {"dim": 16, "dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 2, "attn_dim_head": 16}
# keywords of Unet3D, of GaussianDiffusion and of Trainer, and the number of steps
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "class": ({"num_classes": 2}, {}, {"conditions": "label"}, 800),
    "text": ({"cond_dim": 32}, {}, {"conditions": "caption"}, 3200),
    "vector": ({"cond_dim": 1}, {}, {"conditions": "vector"}, 800),
    "frame_vectors": ({"frame_cond_dim": 1}, {}, {"conditions": "frame_vectors"}, 800),
    "first_frame": ({"cond_channels": 2}, {"given_frames": 1}, {}, 800),
}


class Shown:
    """A clip and its content."""

    def __init__(self, generator: torch.Generator) -> None:
        def draw(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        images, labels = load_digits()
        self.digit = list(DIGITS)[draw(len(DIGITS))]
        self.direction = DIRECTIONS[draw(len(DIRECTIONS))]
        places = (labels == DIGITS[self.digit]).nonzero().flatten()
        self.clip = moving_digit_clip(
            images[places[draw(len(places))]], FRAMES, 32, generator, direction=self.direction
        )

        # brightness from 0.2 to 1, constant or from one value to another
        ends = 0.2 + 0.8 * torch.rand(2, generator=generator)
        self.fades = {
            "vector": ends[:1].expand(FRAMES),
            "frame_vectors": torch.lerp(ends[0], ends[1], torch.linspace(0, 1, FRAMES)),
        }

    @property
    def caption(self) -> str:
        """The content in words."""
        return f"a {self.digit} that moves {self.direction}"

    def condition(self, kind: str) -> Tensor:
        """Brightness as a condition, about 0 and of variance about 1: `(1,)` or `(f, 1)`."""
        values = (self.fades[kind] - 0.6) / 0.23
        return values[:1] if kind == "vector" else values[:, None]

    def shown(self, kind: str) -> Tensor:
        """The clip, as bright as its condition says."""
        if kind not in self.fades:
            return self.clip
        return (self.clip * self.fades[kind].view(1, -1, 1, 1)).round().to(torch.uint8)

    def write(self, folder: Path, number: int, kind: str) -> None:
        """Writes the clip and the file of its condition."""
        path = folder / self.digit / f"{number:04d}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(self.shown(kind), path)
        if kind == "text":
            path.with_suffix(".txt").write_text(self.caption)
        if kind in self.fades:
            np.save(path.with_suffix(".npy"), self.condition(kind).numpy())


def bag_of_words(captions: list[str]) -> Tensor:
    """A text encoder that needs no download: the sum of a random vector for each word."""
    vectors = []
    for caption in captions:
        words = [torch.Generator().manual_seed(zlib.crc32(w.encode())) for w in caption.split()]
        vectors.append(sum(torch.randn(32, generator=generator) for generator in words))
    return torch.stack(vectors)


def small(clip: Tensor) -> Tensor:
    """A clip at the size of the samples, in [0, 1]."""
    frames = clip.movedim(1, 0).float() / 255
    return F.interpolate(frames, size=(SIZE, SIZE), mode="area").movedim(0, 1)


def brightness(videos: Tensor) -> Tensor:
    """How bright the digit is in each frame, `(b, f)`: the mean of the ten brightest pixels."""
    return videos[:, 0].flatten(2).topk(10).values.mean(dim=2)


def train_model(model: GaussianDiffusion, results: Path, steps: int, **options: Any) -> Trainer:
    """Trains a model at a rate that falls in the second half; options are the Trainer's."""
    trainer = Trainer(
        model,
        gradient_accumulate_every=1,
        train_lr=2e-3,
        max_grad_norm=1.0,
        step_start_ema=100,
        update_ema_every=1,
        train_num_steps=steps,
        save_and_sample_every=steps + 1,
        results_folder=results,
        **options,
    )

    def fall(log: dict[str, Any]) -> None:
        for group in trainer.opt.param_groups:
            group["lr"] = 2e-3 * min(1.0, 2 * (1 - log["step"] / steps))

    trainer.train(log_fn=fall)
    return trainer


def train(kind: str, folder: Path, results: Path, steps: int, seed: int) -> Trainer:
    unet, diffusion, data, _ = KINDS[kind]
    torch.manual_seed(seed)
    model = GaussianDiffusion(
        Unet3D(**UNET, **unet),
        image_size=SIZE,
        num_frames=FRAMES,
        timesteps=100,
        loss_type="l2",
        **diffusion,
    )
    return train_model(model, results, steps, folder=folder, train_batch_size=4, **data)


def classifier(videos: Tensor, labels: Tensor) -> tuple[nn.Module, float]:
    """Trains a small classifier of clips; returns it and its accuracy on a held-out quarter."""
    network = nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten(),
        nn.Linear(64, int(labels.max()) + 1),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    known = len(videos) * 3 // 4
    for _ in range(300):
        batch = torch.randint(known, (32,))
        optimizer.zero_grad()
        F.cross_entropy(network(videos[batch]), labels[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        right = network(videos[known:]).argmax(dim=1) == labels[known:]
    return network.eval(), right.float().mean().item()


def measure(kind: str, trainer: Trainer, clips: list[Shown], count: int, scale: float) -> str:
    """Draws guided samples and measures how well they follow their conditions."""
    model = trainer.ema_model
    real = torch.stack([small(shown.clip) for shown in clips])
    options = {"cond_scale": scale, "progress": False}
    if kind in ("class", "text"):
        name = "digit" if kind == "class" else "caption"
        names = sorted({getattr(shown, name) for shown in clips})
        labels = torch.tensor([names.index(getattr(shown, name)) for shown in clips])
        judge, on_real = classifier(real, labels)
        wanted = torch.arange(count) % len(names)
        if kind == "class":
            # the Trainer's order of the sub-folders is the sorted one, too
            videos = model.sample(labels=wanted, **options)
        else:
            videos = model.sample(cond=[names[i] for i in wanted], **options)
        with torch.no_grad():
            seen = judge(videos).argmax(dim=1)
        parts = ""
        if kind == "text":
            for part in (("digit", 1), ("direction", -1)):
                right = [
                    names[a].split()[part[1]] == names[b].split()[part[1]]
                    for a, b in zip(seen, wanted, strict=True)
                ]
                parts += f", {part[0]} alone {sum(right) / count:.0%}"
        return (
            f"{(seen == wanted).float().mean():.0%} of samples show what was asked for (chance "
            f"{1 / len(names):.0%}, real clips {on_real:.0%}{parts})"
        )
    if kind == "first_frame":
        videos = model.sample(first_frames=real[:count, :, :1], **options)
        given, drawn = real[:count, :, 0].flatten(1), videos[:, :, 0].flatten(1)
        pairs = torch.corrcoef(torch.cat((given, drawn)))[:count, count:]
        found = (pairs.argmax(dim=1) == torch.arange(count)).float().mean()
        return (
            f"correlation of first frames with those given {pairs.diag().mean():.2f} (with others' "
            f"{(pairs.sum() - pairs.diag().sum()) / (count * (count - 1)):.2f}); {found:.0%} found "
            "by it"
        )
    conditions = torch.stack([shown.condition(kind) for shown in clips[:count]])
    bright = torch.stack([small(shown.shown(kind)) for shown in clips[:count]])
    name = {"vector": "cond", "frame_vectors": "frame_cond"}[kind]
    asked, drawn = brightness(bright), brightness(model.sample(**{name: conditions}, **options))
    if kind == "vector":
        asked, drawn = asked.mean(dim=1), drawn.mean(dim=1)
    together = torch.corrcoef(torch.stack((asked.flatten(), drawn.flatten())))[0, 1]
    return f"correlation of the brightness drawn with the one asked for {together:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("kinds", nargs="*", help=f"Any of {', '.join(KINDS)}; all if none.")
    parser.add_argument("--steps", type=int, help="Training steps; the kind's own if left out.")
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--cond_scale", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text.set_text_encoder(bag_of_words, name="bag of words")

    for kind in options.kinds or KINDS:
        steps = options.steps or KINDS[kind][3]
        generator = torch.Generator().manual_seed(options.seed)
        clips = [Shown(generator) for _ in range(options.clips)]
        others = [Shown(generator) for _ in range(400)]
        with tempfile.TemporaryDirectory() as name:
            for number, shown in enumerate(clips):
                shown.write(Path(name, "clips"), number, kind)
            start = time.perf_counter()
            folder, results = Path(name, "clips"), Path(name, "results")
            trainer = train(kind, folder, results, steps, options.seed)
            seconds = time.perf_counter() - start
            found = measure(kind, trainer, others, options.samples, options.cond_scale)
        print(f"{kind}: {steps} steps, {seconds:.0f} s: {found}", flush=True)


if __name__ == "__main__":
    main()
