"""Beside the loop: the loss on clips that are not trained on, so measured that runs compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.clips.batch_stream import Endless
from video_diffusion_pytorch.training.clips.batches import Draw, SeededItems, collate
from video_diffusion_pytorch.training.clips.clip_source import (
    check_first_clip,
    clips_behind,
    files_of,
    take_value_range,
)

Unpack = Callable[[Any], tuple[Tensor, dict[str, Any]]]

# So many noisy clips at least make a loss: with fewer, a few time steps would stand for all
_LEAST = 64


class Part(NamedTuple):
    """A batch to validate on: clips as collated, the numbers of their draws, how many count."""

    batch: Any
    numbers: list[int]
    counted: int


class Validation:
    """Clips that are not trained on, each with time steps and noise that never change.

    A clip is used with as many time steps as make 64 draws together; draw `n` of clip `n % clips`
    has the same time step and noise in every run.

    Args:
        dataset: Has a length.
        indices: Of the clips in it that are meant.
        at_most: How many of them are used, spread over all.
        batch_size: Clips of a batch.
        share: Number of this process, and how many there are; each does its part, in as many
            batches as the others.

    Raises:
        ValueError: If there are no clips.
    """

    def __init__(
        self,
        dataset: Any,
        indices: Sequence[int],
        *,
        at_most: int,
        batch_size: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if isinstance(dataset, IterableDataset) or not len(indices):
            raise ValueError(
                "Trainer: validation must have clips that can be read in any order, got "
                f"{'a stream' if isinstance(dataset, IterableDataset) else 'none'}; pass a "
                "validation_folder with clips"
            )
        count = min(at_most, len(indices))
        places = torch.linspace(0, len(indices) - 1, count).round().long().tolist()
        self.dataset, self.indices = dataset, [indices[place] for place in places]
        self.batch_size, self.share = batch_size, share
        self._labels: list[int] | None = None

    def check(self, diffusion: GaussianDiffusion, unpack: Unpack, trained: Sequence[str]) -> None:
        """Finds out before the first step whether the clips can be validated on.

        Args:
            diffusion: The model.
            unpack: Splits a batch into videos and conditions.
            trained: Names of the classes that are trained on, where they are known.

        Raises:
            ValueError: If the first clip does not fit the model, its units are not the model's, or
                its folder has a class that is not trained on.
        """
        clips = clips_behind(self.dataset)
        take_value_range(diffusion, self.dataset)
        first = collate([SeededItems(self.dataset)[Draw(self.indices[0], 0)]])
        check_first_clip(diffusion, clips, *unpack(first))
        own = () if clips is None else clips.class_names
        unknown = [name for name in own if trained and name not in trained]
        if unknown:
            raise ValueError(
                "Trainer: the clips to validate on must be of the classes that are trained on, "
                f"{', '.join(trained)}, got {', '.join(unknown)}; remove them, or add such clips "
                "to the folder that is trained on"
            )
        if trained and own != tuple(trained):
            # a folder numbers its classes by itself
            self._labels = [list(trained).index(name) for name in own]

    def with_trained_labels(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions with the labels that the classes have in training."""
        if self._labels is None or "labels" not in told:
            return dict(told)
        labels = torch.as_tensor(told["labels"])
        # -1 stands for no class, here as there
        numbers = torch.tensor([*self._labels, -1], device=labels.device)
        return {**told, "labels": numbers[labels]}

    @property
    def draws(self) -> int:
        """How many noisy clips make the loss."""
        return len(self.indices) * math.ceil(_LEAST / len(self.indices))

    def parts(self, num_workers: int, draws: int | None = None) -> Iterator[Part]:
        """The batches of this process; where it has fewer clips than others, some do not count.

        Args:
            num_workers: Processes that read.
            draws: How many clips, beginning again when they run out; None for `self.draws`.
        """
        process, processes = self.share
        draws = self.draws if draws is None else draws
        own = math.ceil(draws / processes)
        numbers = range(process * own, (process + 1) * own)
        batches = [numbers[i : i + self.batch_size] for i in range(0, own, self.batch_size)]
        # a crop or a flip is the same each time, too
        wanted = [[Draw(self.indices[n % len(self.indices)], n) for n in b] for b in batches]
        left = _Left(wanted)
        loader: DataLoader[Any] = DataLoader(
            SeededItems(self.dataset),
            batch_sampler=left,
            num_workers=num_workers,
            collate_fn=collate,
            # its own: a loader draws from torch's when it begins, which training must not notice
            generator=torch.Generator(),
        )
        stream = Endless(loader)
        for part in batches:
            batch = next(stream)
            left.done += 1
            yield Part(batch, list(part), len([n for n in part if n < draws]))


class _Left(Sampler[list[Draw]]):
    """The batches that are left to read, also after the death of a process that reads."""

    def __init__(self, batches: list[list[Draw]]) -> None:
        self.batches, self.done = batches, 0

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches[self.done :])


def split_off(dataset: Any, fraction: float) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on; which ones depends on the number of files only.

    Args:
        dataset: Has a length. Of a folder's clips, all those of a file are on one side.
        fraction: Share of the files to validate on, between 0 and 1; at least one of them.

    Raises:
        ValueError: If the fraction is not in that range, or there are not two files.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"Trainer: validation_split must be between 0 and 1, got {fraction}; give the share "
            "of the files to validate on, such as 0.05"
        )
    if isinstance(dataset, IterableDataset) or dataset is None:
        raise ValueError(
            "Trainer: validation_split must go with clips that can be read in any order, got a "
            "stream or a loader; pass a validation_folder"
        )
    files = list(files_of(dataset).values())
    if len(files) < 2:
        raise ValueError(
            f"Trainer: validation_split must leave files to train on, got {len(files)} in all; "
            "give more clips"
        )
    count = min(max(1, round(len(files) * fraction)), len(files) - 1)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    sides = order[count:], order[:count]
    left, apart = (sorted(i for place in side for i in files[place]) for side in sides)
    return left, apart
