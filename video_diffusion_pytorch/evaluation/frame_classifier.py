"""Scores by a classifier of frames that is trained on labelled real clips."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIZE, _STEPS = 32, 400
_BATCH, _RATE, _WIDTHS = 64, 3e-3, (16, 32, 64, 64)
PROTOCOL = {"classifier": "four convolutions of frames", "size": _SIZE, "steps": _STEPS}
"""Description of the classifier in a result; `size` is the largest height and width of frames."""
# 256 MiB
_MOST_VALUES = 2**26


def small_frames(videos: Tensor) -> Tensor:
    """Frames of videos as the classifier gets them.

    Args:
        videos: `(b, c, f, h, w)`.

    Returns:
        `(b, f, c, h, w)`, float32, of at most 32 x 32 pixels.
    """
    frames = videos.float().movedim(2, 1)
    h, w = (min(n, _SIZE) for n in frames.shape[-2:])
    return F.adaptive_avg_pool2d(frames.flatten(0, 1), (h, w)).unflatten(0, frames.shape[:2])


class LabelledClips:
    """Small frames and labels of real clips, accumulated over batches.

    At most 256 MiB of them are kept, of evenly spaced clips.

    Args:
        count: Number of clips.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._frames = torch.zeros(0, device="cpu")
        # one more than the label, 0 for none
        self._marks = torch.zeros(0, device="cpu")

    def add(
        self, videos: Tensor, labels: Tensor, numbers: Sequence[int], counted: int | None = None
    ) -> None:
        """Adds a batch.

        Args:
            videos: `(b, c, f, h, w)`, in the same units for all batches.
            labels: `(b,)`, integers; -1 for a clip without, which is not used.
            numbers: Numbers of the clips, from 0 to `count - 1`.
            counted: Number of clips that count, from the first on; None for all.
        """
        frames = small_frames(videos).cpu()
        if not len(self._marks):
            kept = max(1, min(self.count, _MOST_VALUES // max(1, frames[0].numel())))
            self._marks = torch.zeros(kept, dtype=torch.float64, device="cpu")
            self._frames = torch.zeros(kept, *frames.shape[1:], device="cpu")
        kept = len(self._marks)
        for clip, label, number in zip(frames, labels.tolist(), numbers[:counted], strict=False):
            place = number * kept // self.count
            # the first of the clips that fall on one place
            if place > (number - 1) * kept // self.count:
                self._frames[place], self._marks[place] = clip, label + 1

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> LabelledClips:
        """Returns the clips of all processes, each of which has its part."""
        joined = LabelledClips(self.count)
        joined._frames, joined._marks = total(self._frames), total(self._marks)
        return joined

    def parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Splits the clips into those to train on and those held out, a quarter of each class.

        Returns:
            For each part the frames, `(n, f, c, h, w)`, and the labels, `(n,)`.

        Raises:
            ValueError: If there are not at least two clips of each of two classes.
        """
        labels = self._marks.long() - 1
        apart = torch.zeros(len(labels), dtype=torch.bool, device="cpu")
        classes, counts = labels[labels >= 0].unique(return_counts=True)
        if int((counts > 1).sum()) < 2:
            found = dict(zip(classes.tolist(), counts.tolist(), strict=True))
            raise ValueError(
                "FrameClassifier: there must be at least two clips of each of two classes, got "
                f"clips by label {found}; give more labelled clips"
            )
        for label in classes:
            apart[(labels == label).nonzero().flatten()[1::4]] = True
        known = (labels >= 0) & ~apart
        return (self._frames[known], labels[known]), (self._frames[apart], labels[apart])


class FrameClassifier(nn.Module):
    """Classifies single frames: four convolutions, of which the largest responses count.

    Args:
        channels: Channels of the frames.
        classes: Number of classes.

    Attributes:
        real: Scores of the held-out real clips.

    Example:
        >>> FrameClassifier(3, 10)(torch.rand(2, 3, 5, 16, 16)).shape
        torch.Size([2, 5, 10])
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self._sizes = [channels, classes]
        layers: list[nn.Module] = []
        for place, (into, out) in enumerate(zip((channels, *_WIDTHS), _WIDTHS, strict=False)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            if place in (1, 2):
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.layers = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        self.head = nn.Linear(_WIDTHS[-1], classes)
        self.real: dict[str, float] = {}

    def forward(self, videos: Tensor) -> Tensor:
        """Computes the probabilities of the classes.

        Args:
            videos: `(b, c, f, h, w)`.

        Returns:
            `(b, f, classes)`.
        """
        frames = small_frames(videos)
        return self.logits(frames.flatten(0, 1)).softmax(dim=-1).unflatten(0, frames.shape[:2])

    def logits(self, frames: Tensor) -> Tensor:
        """Computes logits, `(b, classes)`, of small frames, `(b, c, h, w)`."""
        return self.head(self.layers(frames))

    def full_state(self) -> dict[str, Any]:
        """Returns weights, sizes and `real`, for `from_state`."""
        return {"weights": self.state_dict(), "sizes": self._sizes, "real": self.real}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> FrameClassifier:
        """Makes the classifier of a `full_state`."""
        with torch.device("cpu"):
            made = cls(*state["sizes"])
        made.load_state_dict(state["weights"])
        made.real = dict(state["real"])
        return made.eval()


def train_frame_classifier(clips: LabelledClips, seed: int = 0) -> FrameClassifier:
    """Trains a classifier of frames on the CPU; the global random state is unchanged.

    Args:
        clips: Labelled real clips, of which a quarter of each class is held out.
        seed: Seed of the weights and the order of the frames.

    Returns:
        The classifier in evaluation mode, with the scores of the held-out clips.

    Raises:
        ValueError: If there are not at least two clips of each of two classes.

    Warns:
        UserWarning: If it recognises less than half of the held-out frames that are not of the most
            frequent class, so that its scores say little.
    """
    (videos, labels), (apart, wanted) = clips.parts()
    frames, of_frames = videos.flatten(0, 1), labels.repeat_interleave(videos.shape[1])
    classes = int(torch.cat((labels, wanted)).max()) + 1
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.enable_grad():
        network = FrameClassifier(frames.shape[1], classes)
        for name, values in network.named_parameters():
            if values.ndim > 1:
                nn.init.kaiming_uniform_(values, a=5**0.5, generator=draws)
            elif name.endswith("bias"):
                nn.init.zeros_(values)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
        for _ in range(_STEPS):
            chosen = torch.randint(len(frames), (_BATCH,), generator=draws, device="cpu")
            loss = F.cross_entropy(network.logits(frames[chosen]), of_frames[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    found = ClassScores()
    for part, right in zip(apart.split(_BATCH), wanted.split(_BATCH), strict=True):
        found.add(network, part.movedim(2, 1), right)
    network.real = found.compute()
    usual = wanted.bincount().max().item() / len(wanted)
    accuracy = network.real["label_frames"]
    if accuracy < (1 + usual) / 2:
        warnings.warn(
            f"FrameClassifier: more than {(1 + usual) / 2:.0%} of held-out frames should be "
            f"recognised, got {accuracy:.0%}; its scores say little: give more labelled clips, or "
            "labels that single frames show",
            stacklevel=2,
        )
    return network


class ClassScores:
    """Scores of videos by a classifier of their frames, accumulated over batches.

    Example:
        >>> scores = ClassScores()
        >>> scores.add(FrameClassifier(1, 3).eval(), torch.rand(4, 1, 5, 8, 8))
        >>> [*scores.compute()]
        ['sureness', 'constancy', 'constant_clips']
    """

    def __init__(self) -> None:
        # sums and numbers of terms, by score
        names = ("sureness", "constancy", "constant_clips", "label_frames", "label_clips")
        self._names = names
        self._sums = torch.zeros(len(names), 2, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(
        self,
        classifier: FrameClassifier,
        videos: Tensor,
        wanted: Tensor | None = None,
        counted: int | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            classifier: The classifier, on the device of the videos.
            videos: `(b, c, f, h, w)`, in the units of the clips that it was trained on.
            wanted: Classes that the videos should show, `(b,)`; -1 or None for any.
            counted: Number of videos that count, from the first on; None for all.
        """
        found = classifier(videos)[:counted].double().cpu()
        seen = found.argmax(dim=2)
        terms = [
            found.amax(dim=2),
            (seen.diff(dim=1) == 0).double(),
            (seen == seen[:, :1]).all(dim=1).double(),
        ]
        if wanted is not None:
            labels = wanted[:counted].cpu()
            is_any = labels < 0
            terms += [
                (seen == labels[:, None])[~is_any].double(),
                (found.mean(dim=1).argmax(dim=1) == labels)[~is_any].double(),
            ]
        for place, values in enumerate(terms):
            self._sums[place, 0] += values.sum()
            self._sums[place, 1] += values.numel()

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> ClassScores:
        """Returns the scores of the videos of all processes."""
        joined = ClassScores()
        joined._sums = total(self._sums)
        return joined

    def compute(self) -> dict[str, float]:
        """Computes the scores, each from 0 to 1.

        Returns:
            `sureness`, the mean probability of the frames' most probable classes; `constancy`, the
            share of neighbouring frames with the same class; `constant_clips`, the share of videos
            with one class throughout; and for videos that should show a class, the shares of frames
            and of videos that do, `label_frames` and `label_clips`, of a video by the mean
            probabilities of its frames.
        """
        pairs = zip(self._names, self._sums.tolist(), strict=True)
        return {name: total / number for name, (total, number) in pairs if number}
