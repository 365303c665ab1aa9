"""Beside the loop: the loss on clips that are not trained on, so measured that runs compare."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from video_diffusion_pytorch.data.manifest import read_splits
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.training.clips.batch_stream import Endless
from video_diffusion_pytorch.training.clips.batches import Draw, SeededItems, collate
from video_diffusion_pytorch.training.clips.clip_source import (
    check_first_clip,
    clips_behind,
    files_of,
    name_hashes,
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
                "validation_folder or a validation_dataset with clips"
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


class Sides(NamedTuple):
    """Hashes of the names of files: those on the side of training, and those validated on."""

    trained: set[int]
    validated: set[int]


def split_off(
    dataset: Any, fraction: float, known: Sides | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, all clips of a file on one side.

    Those files are validated on whose names have the smallest hashes, as many as the share says.
    In a run that goes on, each file stays on its side, and a new one is validated on if its hash
    is below the share of all hashes: files that are added or removed never move others.

    Args:
        dataset: Has a length.
        fraction: Share of the files to validate on.
        known: Where files were before; None for nowhere.

    Raises:
        ValueError: If the fraction is not in that range, or one side has no file.
    """
    if isinstance(fraction, bool) or not isinstance(fraction, Real) or not 0 < fraction < 1:
        raise ValueError(
            "Trainer: validation_split must be between 0 and 1, got "
            f"{shown(fraction)}; give the share "
            "of the files to validate on, such as 0.05, or the name of a manifest's split"
        )
    if isinstance(dataset, IterableDataset) or dataset is None:
        raise ValueError(
            "Trainer: validation_split must go with clips that can be read in any order, got a "
            "stream or a loader; pass a validation_folder or a validation_dataset"
        )
    files = list(files_of(dataset).values())
    if len(files) < 2:
        raise ValueError(
            f"Trainer: validation_split must leave files to train on, got {len(files)} in all; "
            "give more clips"
        )
    hashes = [name_hashes(dataset, clips) for clips in files]
    if known is None:
        # of a file with several names the largest: a further name takes none out of training
        by_hash = sorted(range(len(files)), key=lambda place: max(hashes[place]))
        chosen = {*by_hash[: _count(len(files), fraction)]}
    else:
        chosen = {
            place
            for place, names in enumerate(hashes)
            if not names & known.trained
            and (names & known.validated or max(names) < fraction * 2**56)
        }
        if not 0 < len(chosen) < len(files):
            raise ValueError(
                "Trainer: validation_split must leave files to train on and to validate on that "
                f"were not trained on before, got {len(chosen)} of {len(files)} to validate on; "
                "begin in another results_folder, or pass a validation_folder"
            )
    sides: tuple[list[int], list[int]] = [], []
    for place, clips in enumerate(files):
        sides[place in chosen].extend(clips)
    return sorted(sides[0]), sorted(sides[1])


def split_by_position(dataset: Any, fraction: float) -> tuple[list[int], list[int]]:
    """The same as of versions up to 0.8, where it depended on the number of files only."""
    files = list(files_of(dataset).values())
    count = _count(len(files), fraction)
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    sides = order[count:], order[:count]
    left, apart = (sorted(i for place in side for i in files[place]) for side in sides)
    return left, apart


def _count(files: int, fraction: float) -> int:
    return min(max(1, round(files * fraction)), files - 1)


def split_of_rows(
    table: str | os.PathLike[str],
    name: str | None,
    folder: str | os.PathLike[str],
    columns: Mapping[str, str | None] | None = None,
) -> str | None:
    """The split of a manifest's rows to validate on; None for all rows.

    Args:
        table: The manifest.
        name: Its name; None for one that is usual, or all rows of a table without splits.
        folder: That of the clips.
        columns: `manifest_columns` of `Dataset`.

    Raises:
        ValueError: If the table has no splits, or none of a usual name.
    """
    found = read_splits(table, Path(folder), columns)
    usual = [split for split in found if split.lower() in ("val", "valid", "validation")]
    if name is not None and not found:
        raise ValueError(
            f"Trainer: validation_split={name!r} must be a split of the manifest, got {table} "
            "without a column split; add it, or give a share of the files such as 0.05"
        )
    if name is None and found and not usual:
        raise ValueError(
            "Trainer: validation_split must say which rows of the manifest to validate on, got "
            f"{table} with the splits {', '.join(map(repr, found))}; choose one of them"
        )
    return name or (usual[0] if usual else None)
