"""Compares three ways to continue a video from known frames: error, seams and seconds.

    python benchmarks/known_frames.py                          # videos whose distribution is known
    python benchmarks/known_frames.py --clips CLIPS MODEL ...  # trained models, on real clips

Replacement puts the known frames in with the noise of each step, reconstruction guidance also
follows the gradient of the error there (Ho et al. 2022, section 3.1), and a model trained with
`frame_noise` sees the known frames without noise, in windows (`extend`) or with a pace per frame
(`roll_out`).

Without models: Gaussian videos with the perfect denoiser, from 2 of 6 frames to 6 and then, in
windows, to 18. With models: each clip is continued from its first frames, to its own length and to
three times as many. A model trained with `frame_noise` is measured in all four ways, another one in
the first two. Models with classes get those of the manifest of the clips, without guidance by them,
and a classifier of frames says how many of the frames drawn show the class of the clip.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from video_diffusion_pytorch import GaussianDiffusion, load_diffusion
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.moving_digits import MANIFEST
from video_diffusion_pytorch.evaluation.frame_classifier import (
    ClassScores,
    LabelledClips,
    train_frame_classifier,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "diffusion"))
from gaussian_data import GaussianVideos, PerfectNetwork, relative_error

KNOWN, SIDE, LENGTH = 2, 8, 18
# the name of a way, and keywords of `extend`; None for `roll_out`
WAYS: dict[str, dict[str, float] | None] = {
    "replacement": {"weight": 0.0},
    "guidance, w_r = 2": {"weight": 2.0},
    "noise per frame": {},
    "noise per frame, pace per frame": None,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", type=Path, nargs="*", help="checkpoints or folders of models")
    parser.add_argument(
        "--clips", type=Path, help="a folder of clips that they were not trained on"
    )
    parser.add_argument("--count", type=int, default=96, help="videos")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--known", type=int, default=KNOWN, help="known frames of a clip")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.models:
        for path in options.models:
            compare_on_clips(path, options.clips, options.count, options.steps, options.known)
    else:
        compare_in_closed_form(options.count, options.steps)


def continued(
    model: GaussianDiffusion,
    way: dict[str, float] | None,
    video: Tensor,
    frames: int,
    steps: int,
    **conditions: Tensor,
) -> tuple[Tensor, float]:
    """Videos continued in one of `WAYS`, and the seconds that it took."""
    begin = time.perf_counter()
    if way is None:
        found = model.roll_out(video, frames, steps=steps, seed=0, progress=False, **conditions)
    else:
        options = {"sampler": "dpm++", "steps": steps, "seed": 0, "progress": False, **way}
        found = model.extend(video, frames, **options, **conditions)
    return found, time.perf_counter() - begin


def table(*head: str) -> Callable[..., None]:
    """Prints the head of a markdown table; gives what prints a row."""

    def row(*cells: str) -> None:
        print("|", " | ".join(cells), "|", flush=True)

    row(*head)
    row(*("---" for _ in head))
    return row


def compare_in_closed_form(count: int, steps: int) -> None:
    """Errors of the conditional distribution, and of the covariance at seams."""
    videos = GaussianVideos(mean=(0.0,) * 6)
    sizes = {"image_size": SIDE, "num_frames": 6, "auto_normalize": False, "channels": 1}
    model = GaussianDiffusion(
        torch.nn.Identity(), **sizes, objective="flow", frame_noise="independent"
    )
    model.denoise_fn = PerfectNetwork(videos, model, "flow")
    root = torch.linalg.cholesky(videos.covariance)
    noise = torch.randn(SIDE, SIDE, 6, generator=torch.Generator().manual_seed(0))
    real = (noise.double() @ root.T).float().movedim(-1, 0)[None, None, :KNOWN]
    mean, covariance = videos.given_first(real[0, 0].movedim(0, -1))
    start = real.expand(count, -1, -1, -1, -1)
    row = table(
        "known frames by",
        "rms error of the mean",
        "covariance",
        "correlation at seams / inside",
        "s",
    )
    for name, way in WAYS.items():
        first, _ = continued(model, way, start, 6, steps)
        free = first[:, 0, KNOWN:].movedim(1, -1).double()
        error = (free.mean(dim=0) - mean).square().mean().sqrt()
        apart = (free - free.mean(dim=0)).reshape(-1, 6 - KNOWN)
        found = apart.T @ apart / (len(apart) * (1 - 1 / count))
        # starts of their own, so that the frames have the covariance of the data
        begun = torch.randn(count, SIDE, SIDE, 6, generator=torch.Generator().manual_seed(1))
        begun = (begun.double() @ root.T).float().movedim(-1, 1)[:, None]
        longer, seconds = continued(model, way, begun, LENGTH, steps)
        inside, seams = correlations(longer[:, 0, 6:], 3)
        row(
            name,
            f"{error:.3f}",
            f"{100 * relative_error(found, covariance):.1f} %",
            f"{seams:.2f} / {inside:.2f}",
            f"{seconds:.1f}",
        )
    floor = (covariance.trace() / len(covariance) / count).sqrt()
    print(
        f"\nSamples without error have an error of the mean of {floor:.3f} by chance, and a "
        f"correlation of {videos.covariance[0, 1] / videos.covariance[0, 0]:.2f} everywhere."
    )


def correlations(frames: Tensor, window: int) -> tuple[float, float]:
    """Mean correlation of neighbouring frames `(b, f, h, w)` within windows and across seams."""
    a, b = frames[:, :-1].double(), frames[:, 1:].double()
    both = (a * b).mean(dim=(0, 2, 3)) / (
        a.square().mean(dim=(0, 2, 3)) * b.square().mean(dim=(0, 2, 3))
    ).sqrt()
    at_seam = torch.arange(len(both)) % window == window - 1
    return both[~at_seam].mean().item(), both[at_seam].mean().item()


def compare_on_clips(path: Path, folder: Path, count: int, steps: int, known: int) -> None:
    """Errors against the frames that really follow, and changes at the seams of long videos."""
    model = load_diffusion(path)
    c, f, *size = model.clip_shape
    has_labels = "labels" in model.condition_names
    table_of_labels = {"conditions": "label", "manifest": folder / MANIFEST} if has_labels else {}
    dataset = Dataset(folder, tuple(size), channels=c, num_frames=f, exts=None, **table_of_labels)
    items = [dataset[i] for i in range(len(dataset))]
    every = torch.stack([item["video"] if has_labels else item for item in items])
    every = every / 255 if every.dtype == torch.uint8 else every
    real, conditions, classifier = every[:count], {}, None
    if has_labels:
        labels = torch.tensor([item["labels"] for item in items])
        clips = LabelledClips(len(every))
        clips.add(every, labels, range(len(every)))
        conditions, classifier = {"labels": labels[:count]}, train_frame_classifier(clips)

    def keeps_class(frames: Tensor) -> str:
        """Share of the frames that show the class of their clip."""
        if classifier is None:
            return ""
        scores = ClassScores()
        scores.add(classifier, frames, conditions["labels"])
        return f"{scores.compute()['label_frames']:.0%}"

    print(f"\n{path}")
    row = table(
        "known frames by", "rms error", "frames of the class", "change at seams / inside", "s"
    )
    still = real[:, :, known - 1 : known].expand_as(real[:, :, known:])
    error = (still - real[:, :, known:]).square().mean().sqrt()
    row("repeating the last", f"{error:.4f}", keeps_class(still), "", "")
    for name, way in WAYS.items():
        if model.frame_noise is None and not (way or {}).get("weight", -1.0) >= 0:
            continue
        drawn, _ = continued(model, way, real[:, :, :known], f, steps, **conditions)
        error = (drawn - real)[:, :, known:].square().mean().sqrt()
        longer, seconds = continued(model, way, real, 3 * f, steps, **conditions)
        change = longer.diff(dim=2).abs().mean(dim=(0, 1, 3, 4))[f - 1 :]
        at_seam = torch.arange(len(change)) % (f // 2) == 0
        ratio = change[at_seam].mean() / change[~at_seam].mean()
        kept = f"{keeps_class(drawn[:, :, known:])}, {keeps_class(longer[:, :, f:])}".strip(", ")
        row(name, f"{error:.4f}", kept, f"{ratio:.3f}", f"{seconds:.1f}")


if __name__ == "__main__":
    main()
