"""What the scores of `evaluate` say of clips whose faults are known.

    python benchmarks/known_faults.py

Makes two sets of clips of moving digits, gives one of them faults of several strengths, and prints
the table of `docs/evaluation.md`: the random-feature distance, the scores of motion, and those of a
classifier of frames, each of the set with the fault against the other set.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.evaluation.feature_network import random_features
from video_diffusion_pytorch.evaluation.frame_classifier import (
    ClassScores,
    LabelledClips,
    train_frame_classifier,
)
from video_diffusion_pytorch.evaluation.temporal_scores import TemporalStatistics
from video_diffusion_pytorch.evaluation.video_scores import Networks, VideoStatistics, scores

SIZE, FRAMES = 16, 8
COLUMNS = ("random_feature_distance", "change_distance", "flicker_distance")
COLUMNS += ("persistence_distance", "constancy", "constant_clips", "sureness")


class Clips:
    """Clips of moving digits, and what their frames show with other digits on the same path.

    Args:
        count: Number of clips.
        seed: Of digits and paths.
    """

    def __init__(self, count: int, seed: int) -> None:
        images, digits = load_digits()
        self.draws = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(images), (count, FRAMES), generator=self.draws)
        # a digit of each frame, of which the first is that of the clip
        shown = torch.empty(count, FRAMES, 1, FRAMES, 32, 32, dtype=torch.uint8)
        for places, videos in zip(chosen, shown, strict=True):
            state = self.draws.get_state()
            for place, video in zip(places, videos, strict=True):
                self.draws.set_state(state)
                video[:] = moving_digit_clip(images[place], FRAMES, 2 * SIZE, self.draws)
        small = F.avg_pool2d(shown.flatten(0, 3)[:, None].float() / 255, 2)
        self.shown = small.view(count, FRAMES, 1, FRAMES, SIZE, SIZE)
        self.labels = digits[chosen[:, 0]]

    @property
    def videos(self) -> Tensor:
        """The clips, `(b, 1, f, h, w)`."""
        return self.shown[:, 0]

    def of_digits(self, numbers: list[int]) -> Tensor:
        """Clips that show in each frame the digit with this number."""
        return torch.stack([self.shown[:, n, :, f] for f, n in enumerate(numbers)], dim=2)


def in_some(clips: Tensor, faulty: Tensor, share: float) -> Tensor:
    """Clips of which the first ones have a fault."""
    number = round(share * len(clips))
    return torch.cat((faulty[:number], clips[number:]))


def shuffled(clips: Tensor, draws: torch.Generator) -> Tensor:
    return torch.stack([c[:, torch.randperm(FRAMES, generator=draws)] for c in clips])


def blurred(clips: Tensor, deviation: float) -> Tensor:
    """Frames convolved with a Gaussian of this standard deviation in pixels."""
    kernel = torch.exp(-(torch.arange(-3, 4) ** 2) / (2 * deviation**2))
    frames = clips.flatten(0, 2)[:, None]
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    return F.conv2d(F.pad(frames, [3] * 4, "replicate"), kernel[None, None]).view_as(clips)


def frozen(clips: Tensor, number: int) -> Tensor:
    """Clips whose last frames repeat the one before them."""
    last = FRAMES - number - 1
    return clips[:, :, [*range(last + 1), *[last] * number]]


def faults(clips: Clips) -> Iterator[tuple[str, Tensor]]:
    """Yields faults in words, and the clips with them."""
    videos = clips.videos
    yield "none", videos
    half, each = [0] * (FRAMES // 2) + [1] * (FRAMES // 2), [*range(FRAMES)]
    kinds: dict[str, Tensor] = {
        "another digit from the middle on": clips.of_digits(half),
        "another digit in every frame": clips.of_digits(each),
        "frames shuffled": shuffled(videos, clips.draws),
    }
    for name, faulty in kinds.items():
        for share in (0.1, 0.3, 1.0):
            yield f"{name}, {share:.0%} of clips", in_some(videos, faulty, share)
    for number in (1, 2, 4):
        yield f"last {number} frame{'s' * (number > 1)} frozen", frozen(videos, number)
    for deviation in (0.5, 0.65, 0.8):
        yield f"blur of {deviation} pixels", blurred(videos, deviation)
    noise = torch.randn(videos.shape, generator=clips.draws)
    for deviation in (0.02, 0.05, 0.1):
        yield f"noise of {deviation}", (videos + deviation * noise).clamp(0, 1)


def statistics(clips: Tensor) -> VideoStatistics:
    networks = Networks(random_features(1), "random_feature_distance")
    found = VideoStatistics(networks, TemporalStatistics(len(clips)))
    for start in range(0, len(clips), 50):
        part = clips[start : start + 50]
        found.add(part, range(start, start + len(part)))
    return found


def measure(real: Clips) -> Callable[[Tensor], dict[str, float]]:
    """Returns a function that computes all scores of clips against real ones."""
    labelled = LabelledClips(len(real.videos))
    labelled.add(real.videos, real.labels, range(len(real.videos)))
    classifier, of_real = train_frame_classifier(labelled), statistics(real.videos)
    accuracy = classifier.real["label_frames"]
    print(f"the classifier recognises {accuracy:.1%} of the frames of held-out real clips")

    def compute(clips: Tensor) -> dict[str, float]:
        classes = ClassScores()
        classes.add(classifier, clips)
        return scores(of_real, statistics(clips)) | classes.compute()

    return compute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=500, help="in each set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compute = measure(Clips(options.clips, seed=1))
    print("| fault |", " | ".join(f"`{column}`" for column in COLUMNS), "|")
    print("|---" * (1 + len(COLUMNS)) + "|")
    for name, clips in faults(Clips(options.clips, seed=2)):
        found = compute(clips)
        cells = (f"{found[column]:.{5 if i == 0 else 2}f}" for i, column in enumerate(COLUMNS))
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
