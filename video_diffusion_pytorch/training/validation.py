"""Validation: the loss on clips that are not trained on, comparable between steps and runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import Draw, SeededItems, collate
from video_diffusion_pytorch.training.checks import check_first_clip, take_value_range
from video_diffusion_pytorch.training.draws import ClipDraws
from video_diffusion_pytorch.training.metrics import StepMetrics
from video_diffusion_pytorch.training.splits import clips_behind

Unpack = Callable[[Any], tuple[Tensor, dict[str, Any]]]

# What a batch may have beside its videos that validation leaves out
_IMAGES = ("images", "image_conditions")

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
        loader: DataLoader[Any] = DataLoader(
            SeededItems(self.dataset),
            batch_sampler=wanted,
            num_workers=num_workers,
            collate_fn=collate,
            # its own: a loader draws from torch's when it begins, which training must not notice
            generator=torch.Generator(),
        )
        for part, batch in zip(batches, loader, strict=True):
            yield Part(batch, list(part), len([n for n in part if n < draws]))


@torch.no_grad()
def validation_losses(
    validation: Validation,
    losses: Mapping[str, Callable[..., Tensor]],
    data: Any,
    draws: ClipDraws,
    *,
    by_noise_of: str,
) -> tuple[dict[str, float], list[float | None]]:
    """Mean losses over the clips to validate on, of several models.

    Args:
        validation: The clips.
        losses: By name of a model its `compute_loss`.
        data: A `DataSource`, which unpacks batches and makes conditions ready.
        draws: Draws time steps and noise.
        by_noise_of: Name of the model whose losses by noise are given.

    Returns:
        The mean loss of each model by name, and `BINS` means of one, the first of the least noise.
    """
    processes, device = data.processes, data.processes.device
    metrics = StepMetrics(device, data.diffusion.num_timesteps)
    totals = torch.zeros(len(losses) + 1, device=device)
    for part in validation.parts(data.num_workers or 0):
        videos, conditions = data.hooks.unpack(part.batch)
        # a loss of videos alone compares between runs with more and with fewer images
        told = data.to_device({n: v for n, v in conditions.items() if n not in _IMAGES})
        videos = videos.to(device, non_blocking=True)
        given = draws.fixed(part.numbers, videos.shape[2])
        given |= validation.with_trained_labels(told)
        for i, (name, compute_loss) in enumerate(losses.items()):
            # a model that draws for itself draws the same each time, at least
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(part.numbers[0])
                found = compute_loss(videos, **given).float()
            counted = found[: part.counted] if found.ndim else found.expand(part.counted)
            if name == by_noise_of and found.ndim and "t" in given and part.counted:
                metrics.add_losses(counted, given["t"][: part.counted])
            totals[i] += counted.sum()
        totals[-1] += part.counted
    *sums, count = processes.sum(totals).tolist()
    means = {name: total / count for name, total in zip(losses, sums, strict=True)}
    return means, metrics.take(0, 0.0, processes.sum)["loss_by_noise"]
