"""Recipes for a small model at equal processor time, judged by whether things stay what they are.

    python benchmarks/small_recipes.py --arms small "small, noise" --seeds 0 1 2
    python benchmarks/small_recipes.py --data balls --arms small "small, no labels"
    pip install --no-deps --target reference video-diffusion-pytorch==0.7.0
    python benchmarks/small_recipes.py --reference reference --arms "0.7.0" --seeds 0

Each arm trains on the same 500 clips (moving digits, or bouncing balls) for the same processor time
of one thread. Then samples are drawn, of each class as many, and judged: digits by a classifier of
single frames that is trained on other real clips, balls by counting them. An arm is `small`, the
preset of that name, or changes it; arms of 0.7.0 train with that package, and their weights are
sampled from as the others. Lines that are in the output file already are not run again; at the end
a table is printed, and each run leaves a grid of its samples beside the output file.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import bouncing_balls
import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.display import video_grid
from video_diffusion_pytorch.data.moving_digits import MANIFEST, write_moving_digits
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.evaluation.frame_classifier import (
    ClassScores,
    FrameClassifier,
    LabelledClips,
    train_frame_classifier,
)
from video_diffusion_pytorch.presets import preset

SMALL = preset("small")
SIZE, FRAMES = SMALL.diffusion["image_size"], SMALL.diffusion["num_frames"]
BALLS = (1, 2, 3)
OLD_NETWORK = {"dim": 16, "dim_mults": (1, 2, 4), "init_kernel_size": 7}
# what an arm changes, by class; `labels` false for a model without conditions
ARMS: dict[str, dict[str, Any]] = {
    "small": {},
    "small, time_shift 1.5": {"diffusion": {"time_shift": 1.5}},
    "small, time_shift 3": {"diffusion": {"time_shift": 3.0}},
    "small, noise": {"diffusion": {"objective": "pred_noise"}},
    "small, v": {"diffusion": {"objective": "pred_v"}},
    "small, EDM": {"diffusion": {"objective": "edm"}},
    "small, beta2 0.999": {"trainer": {"betas": (0.9, 0.999)}},
    "small, rate 2e-3": {"trainer": {"train_lr": 2e-3}},
    "small, linear decay": {"trainer": {"lr_schedule": "linear"}},
    "small, token_shift": {"unet": {"token_shift": "both"}},
    "small, full attention": {"unet": {"full_attn_levels": (0, 1)}},
    "small, batch 16": {"trainer": {"train_batch_size": 16}},
    "small, correlated noise": {"diffusion": {"noise_correlation": 0.5}},
    "small, deeper network": {"unet": OLD_NETWORK},
    "small, no labels": {"labels": False},
    "small, no guidance": {"cond_scale": 1.0},
    "small, guidance 1.5": {"cond_scale": 1.5},
    "before: deeper network, noise, no labels": {
        "unet": OLD_NETWORK,
        "diffusion": {"objective": "pred_noise", "timesteps": 200},
        "trainer": {"betas": (0.9, 0.999)},
        "labels": False,
    },
}
# arms of 0.7.0: keywords of its network, and the batch; else its own defaults of training are used.
# It does not drop conditions in training, so that it cannot be guided by them in sampling.
REFERENCE_ARMS: dict[str, tuple[dict[str, Any], int]] = {
    "0.7.0": ({"dim": 64}, 32),
    "0.7.0, small network": ({"dim": 32, "dim_mults": (1, 2)}, 32),
    "0.7.0, small network, batch 8": ({"dim": 32, "dim_mults": (1, 2)}, 8),
}
SCORES = ("constancy", "constant_clips", "label_frames")
HEAD = (
    "| arm | seeds | minutes | steps | clips seen | neighbouring frames agree "
    "| one class throughout | the wanted class |\n|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, judges, and prints the table."""
    options = parse(arguments)
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    data = DATA[options.data](options.output.parent / options.data, options.clips)
    for seed in options.seeds:
        for arm in options.arms:
            if not any(is_run(line, arm, seed, options) for line in lines(options.output)):
                line = run(arm, seed, data, options)
                with options.output.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(row([line]), flush=True)
    print("\n".join(table(lines(options.output), options.data, data)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", choices=("digits", "balls"), default="digits")
    arms = [*ARMS, *REFERENCE_ARMS]
    parser.add_argument(
        "--arms", nargs="+", default=["small"], choices=arms, metavar="ARM", help="; ".join(arms)
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="processor time of training")
    parser.add_argument("--count", type=int, default=60, help="samples of a run")
    parser.add_argument("--clips", type=int, default=500)
    parser.add_argument("--output", type=Path, default=Path("recipes/results.jsonl"))
    parser.add_argument("--reference", type=Path, help="folder of version 0.7.0")
    return parser.parse_args(arguments)


# Data


class Data:
    """Clips to train on, their labels, and a judge of samples.

    Attributes:
        folder: The clips, with a manifest of their labels.
        videos: The same, `(n, 1, f, h, w)` in [0, 1].
        labels: Their classes, `(n,)`.
        classes: Number of classes.
        real: Scores of other real clips, as by `judge`.
    """

    def __init__(self, folder: Path, classes: int) -> None:
        self.folder, self.classes = folder, classes
        self.videos, self.labels = read(folder)

    def judge(self, videos: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Shares of neighbouring frames of one class, of videos of one, and of the wanted one."""
        raise NotImplementedError


class Digits(Data):
    """Moving digits, judged by a classifier of frames."""

    def __init__(self, folder: Path, clips: int) -> None:
        for name, count, seed in (("train", clips, 0), ("judge", 2 * clips, 1)):
            if not (folder / name).exists():
                write_moving_digits(folder / name, count, 2 * SIZE, FRAMES, seed)
        super().__init__(folder / "train", 10)
        if not (folder / "judge.pt").exists():
            videos, labels = read(folder / "judge")
            clips_of_judge = LabelledClips(len(videos))
            clips_of_judge.add(videos, labels, range(len(videos)))
            judge = train_frame_classifier(clips_of_judge)
            torch.save(judge.full_state(), folder / "judge.pt")
        self.classifier = FrameClassifier.from_state(torch.load(folder / "judge.pt"))
        self.real = self.classifier.real

    def judge(self, videos: Tensor, labels: Tensor | None) -> dict[str, float]:
        """See `Data`."""
        scores = ClassScores()
        scores.add(self.classifier, videos, labels)
        return scores.compute()


class Balls(Data):
    """Bouncing balls, judged by their number."""

    def __init__(self, folder: Path, clips: int) -> None:
        if not folder.exists():
            bouncing_balls.write_clips(folder, *bouncing_balls.make_clips(clips, BALLS))
        super().__init__(folder, len(BALLS))
        videos, numbers = bouncing_balls.make_clips(clips, BALLS, seed=1)
        self.real = self.judge(videos, numbers - min(BALLS))

    def judge(self, videos: Tensor, labels: Tensor | None) -> dict[str, float]:
        """See `Data`."""
        seen = bouncing_balls.count_balls(videos) - min(BALLS)
        found = {
            "constancy": (seen.diff(dim=1) == 0).double().mean(),
            "constant_clips": (seen == seen[:, :1]).all(dim=1).double().mean(),
        }
        if labels is not None:
            found["label_frames"] = (seen == labels[:, None]).double().mean()
        return {name: float(value) for name, value in found.items()}


DATA: dict[str, Callable[[Path, int], Data]] = {"digits": Digits, "balls": Balls}


def read(folder: Path) -> tuple[Tensor, Tensor]:
    """Videos of a folder, `(n, 1, f, h, w)` in [0, 1], and their labels."""
    clips = Dataset(
        folder,
        SIZE,
        channels=1,
        num_frames=FRAMES,
        conditions="label",
        manifest=folder / MANIFEST,
    )
    items = [clips[i] for i in range(len(clips))]
    videos = torch.stack([item["video"] for item in items])
    return videos, torch.tensor([item["labels"] for item in items])


# Training


def run(arm: str, seed: int, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """Trains one model, and judges its samples."""
    print(f"{arm}, seed {seed} ...", flush=True)
    torch.manual_seed(seed)
    labels = torch.arange(options.count) % data.classes
    changes = {"cond_scale": 1.0} if arm in REFERENCE_ARMS else ARMS[arm]
    if arm in REFERENCE_ARMS:
        model, training = from_reference(arm, seed, data, options)
    else:
        model, training = train(changes, seed, data, options.seconds)
    has_labels = changes.get("labels", True)
    asked = labels if has_labels else None
    conditions: dict[str, Any] = {"labels": labels} if has_labels else {}
    if arm in REFERENCE_ARMS:
        conditions = {"cond": torch.eye(data.classes)[labels]}
    samples = model.sample(
        **conditions,
        batch_size=options.count,
        cond_scale=changes.get("cond_scale", SMALL.cond_scale) if conditions else 1.0,
        sampler=SMALL.sampler,
        steps=SMALL.sampling_steps,
        seed=seed,
        progress=False,
    )
    stem = f"{options.data}_{arm}_{seed}".replace(" ", "_").replace(",", "").replace(":", "")
    picture = options.output.parent / f"{stem}.gif"
    write_video(video_grid(samples, 10, zoom=3, frame=0.35), picture, fps=8)
    return {
        "data": options.data,
        "arm": arm,
        "seed": seed,
        "seconds": options.seconds,
        **training,
        **data.judge(samples, asked),
    }


def train(
    changes: dict[str, Any], seed: int, data: Data, seconds: float
) -> tuple[GaussianDiffusion, dict[str, int]]:
    """Trains an arm of this library for a processor time.

    Returns:
        The model with the averaged weights, and the numbers of `steps` and of `clips` seen.
    """
    has_labels = changes.get("labels", True)
    unet = {**SMALL.unet, **changes.get("unet", {}), "channels": 1}
    diffusion = {**SMALL.diffusion, **changes.get("diffusion", {})}
    conditions = {"conditions": "label", "manifest": data.folder / MANIFEST} if has_labels else {}
    network = Unet3D(**unet, num_classes=data.classes if has_labels else None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            GaussianDiffusion(network, **diffusion),
            data.folder,
            **{**SMALL.trainer, **changes.get("trainer", {})},
            **conditions,
            save_and_sample_every=10**9,
            num_workers=0,
            cache=data.folder.with_name(f"{data.folder.name}_cache"),
            results_folder=folder,
            device="cpu",
            seed=seed,
        )
        start = time.process_time()

        def after_step(log: dict[str, Any]) -> None:
            # the steps that fit, by those until now; the learning rate falls over as many
            fitting = round(log["step"] * seconds / (time.process_time() - start))
            trainer.train_num_steps = max(log["step"], fitting)

        trainer.train_num_steps = 10**6
        trainer.train(log_fn=after_step)
        steps = trainer.step
        return trainer.ema_model, {"steps": steps, "clips": steps * trainer.batch_size}


def from_reference(
    arm: str, seed: int, data: Data, options: argparse.Namespace
) -> tuple[GaussianDiffusion, dict[str, int]]:
    """Trains an arm of 0.7.0 in a process of its own; gives its weights in a model of ours."""
    if options.reference is None:
        raise SystemExit(f"--arms {arm!r} needs --reference, a folder with version 0.7.0")
    network, batch = REFERENCE_ARMS[arm]
    network = {**network, "channels": 1, "cond_dim": data.classes}
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "task.pt"
        wanted = {"network": network, "batch": batch, "seed": seed, "seconds": options.seconds}
        torch.save({**wanted, "videos": data.videos, "labels": data.labels}, task)
        script = Path(__file__).with_name("train_with_reference.py")
        environment = {**os.environ, "PYTHONPATH": str(options.reference.resolve())}
        subprocess.run([sys.executable, script, task], check=True, env=environment)
        found = torch.load(task.with_name("weights.pt"))
    model = GaussianDiffusion(Unet3D(**network), image_size=SIZE, num_frames=FRAMES)
    model.load_state_dict(found.pop("weights"))
    return model.eval(), found


# The table


def lines(path: Path) -> list[dict[str, Any]]:
    """What has been run so far."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_run(line: dict[str, Any], arm: str, seed: int, options: argparse.Namespace) -> bool:
    """Whether a line is that of an arm and a seed."""
    wanted = {"data": options.data, "arm": arm, "seed": seed, "seconds": options.seconds}
    return all(line[name] == value for name, value in wanted.items())


def row(of_arm: list[dict[str, Any]]) -> str:
    """A line of the table: means over the seeds, and the least and the largest of several."""

    def shown(name: str) -> str:
        values = [line[name] for line in of_arm if name in line]
        if not values:
            return ""
        spread = f" ({min(values):.0%} to {max(values):.0%})" if len(values) > 1 else ""
        return f"{statistics.mean(values):.0%}{spread}"

    counts = [round(statistics.mean(line[name] for line in of_arm)) for name in ("steps", "clips")]
    cells = [
        of_arm[0]["arm"],
        str(len(of_arm)),
        f"{of_arm[0]['seconds'] / 60:g}",
        *map(str, counts),
        *map(shown, SCORES),
    ]
    return f"| {' | '.join(cells)} |"


def table(found: list[dict[str, Any]], name: str, data: Data) -> list[str]:
    """The lines of the table of one data set."""
    ours = [line for line in found if line["data"] == name]
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for line in ours:
        groups.setdefault((line["arm"], line["seconds"]), []).append(line)
    real = [f"{data.real[name]:.0%}" for name in SCORES]
    return [HEAD, *map(row, groups.values()), f"| real clips | | | | | {' | '.join(real)} |"]


if __name__ == "__main__":
    main()
