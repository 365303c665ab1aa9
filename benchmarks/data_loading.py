"""Times the reading of clips: this library against version 0.7.0 of the PyPI package, in one run.

    python benchmarks/data_loading.py                   # installs the reference into a folder
    python benchmarks/data_loading.py --reference DIR   # DIR holds it already

Each measurement runs in a new process, which reads shuffled batches as the library's Trainer does.
The libraries alternate, and medians are compared. The reference reads gifs only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from against_reference import install_reference

REPOSITORY = Path(__file__).resolve().parent.parent
CLIP = {"image_size": 64, "num_frames": 10}
BATCH = 32


def write_clips(folder: Path, count: int, ending: str) -> None:
    """Moving digits of 64 x 64 pixels and 10 frames, in grey."""
    from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
    from video_diffusion_pytorch.data.write_video import write_video

    folder.mkdir(parents=True)
    images, _ = load_digits()
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        clip = moving_digit_clip(images[number % len(images)], generator=generator, **CLIP)
        video = clip if ending == ".gif" else clip.expand(3, -1, -1, -1)
        write_video(video, folder / f"{number:05d}{ending}")


# one process, one measurement


def measure(case: dict[str, Any]) -> dict[str, float]:
    """Seconds to the first batch, and clips per second from then on."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    batches = reference_batches(case) if case["side"] == "reference" else our_batches(case)
    next(batches)
    first = time.perf_counter() - start
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < case["seconds"]:
        count += len(next(batches))
    return {"first": first, "rate": count / (time.perf_counter() - start)}


def our_batches(case: dict[str, Any]) -> Any:
    """Batches as the Trainer gets them."""
    from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D

    unet = Unet3D(dim=4, dim_mults=(1, 2), attn_heads=1)
    diffusion = GaussianDiffusion(unet, timesteps=2, **CLIP)
    trainer = Trainer(
        diffusion,
        case["clips"],
        train_batch_size=BATCH,
        results_folder=f"{case['scratch']}/results",
        device="cpu",
        **case["options"],
    )
    while True:
        yield trainer.next_batch()[0]


def reference_batches(case: dict[str, Any]) -> Any:
    """The reference's dataset in the loader that its Trainer makes, less the pinned memory."""
    from torch.utils.data import DataLoader

    from video_diffusion_pytorch.video_diffusion_pytorch import Dataset

    dataset = Dataset(case["clips"], CLIP["image_size"], channels=3, num_frames=CLIP["num_frames"])
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    while True:
        yield from loader


def waiting(scratch: Path) -> float:
    """The share of its time that the demo's training waits for clips."""
    from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
    from video_diffusion_pytorch.cli.demo import CLIP, DIFFUSION, TRAINER, UNET
    from video_diffusion_pytorch.data.moving_digits import MANIFEST, write_moving_digits

    torch.set_num_threads(1)
    write_moving_digits(scratch / "demo", 200, **CLIP)
    trainer = Trainer(
        GaussianDiffusion(Unet3D(**UNET), **DIFFUSION),
        scratch / "demo",
        **{**TRAINER, "train_num_steps": 60},
        conditions="label",
        manifest=scratch / "demo" / MANIFEST,
        results_folder=scratch / "results",
        device="cpu",
    )
    shares: list[float] = []
    trainer.train(log_fn=lambda log: shares.append(log["data_wait"]))
    # the first step starts the workers
    return sum(shares[1:]) / len(shares[1:])


# all of them


def run(case: dict[str, Any], python_path: Path) -> dict[str, float]:
    """Measures a case in a process that finds its library at `python_path`."""
    command = [sys.executable, "-P", __file__, "--case", json.dumps(case)]
    path = f"{python_path}:{REPOSITORY / 'benchmarks'}"
    done = subprocess.run(
        command, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{case} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--reference", type=Path, help="A folder with the reference installed.")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(json.loads(options.case))))
        return

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        reference = options.reference or install_reference(scratch / "reference")
        for ending in (".gif", ".mp4"):
            write_clips(scratch / ending[1:], options.clips, ending)
        cases = {
            "gif, 0.7.0": ("reference", "gif", {}),
            "gif, no worker": ("ours", "gif", {"num_workers": 0}),
            "gif": ("ours", "gif", {}),
            "gif, cache": ("ours", "gif", {"cache": str(scratch / "cache")}),
            "mp4": ("ours", "mp4", {}),
            "mp4, cache": ("ours", "mp4", {"cache": str(scratch / "cache")}),
        }
        found: dict[str, list[dict[str, float]]] = {label: [] for label in cases}
        # the first round only warms up: files come into the page cache, clips into the clip cache
        for repeat in range(options.repeats + 1):
            for label, (side, clips, extra) in cases.items():
                case = {
                    "side": side,
                    "clips": str(scratch / clips),
                    "scratch": str(scratch),
                    "options": extra,
                    "seconds": options.seconds if repeat else 0.5,
                }
                python_path = reference if side == "reference" else REPOSITORY
                result = run(case, python_path)
                if repeat:
                    found[label].append(result)

        base = statistics.median(result["rate"] for result in found["gif, 0.7.0"])
        print("| clips of 64 x 64 x 10 | clips per second | ratio | first batch, s |")
        print("|---|---|---|---|")
        for label, results in found.items():
            rate = statistics.median(result["rate"] for result in results)
            first = statistics.median(result["first"] for result in results)
            print(f"| {label} | {rate:.0f} | {rate / base:.1f} | {first:.2f} |")
        print(f"\nthe demo's training waits for clips {waiting(scratch):.1%} of its time")


if __name__ == "__main__":
    main()
