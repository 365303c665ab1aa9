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

# Keywords of a batch that validation ignores
_IMAGES = ("images", "image_conditions")

# Least number of noisy clips: fewer would cover too few time steps
_LEAST = 64


class Part(NamedTuple):
    """A validation batch: collated clips, the numbers of their draws, and how many count."""

    batch: Any
    numbers: list[int]
    counted: int


class Validation:
    """Validation clips, with fixed time steps and noise.

    Clips are repeated to at least 64 draws; draw `n`, of clip `n % clips`, has the same time step
    and noise in every run.

    Args:
        dataset: Has a length.
        indices: Indices of the clips that may be used.
        at_most: Largest number of clips used, evenly spaced.
        batch_size: Clips per batch.
        share: Rank and world size; each process does its part, in equally many batches.

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
        """Checks the first clip and the classes before training.

        Args:
            diffusion: The model.
            unpack: Splits a batch into videos and conditions.
            trained: Names of the classes that are trained on, if known.

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
            # a folder numbers its own classes
            self._labels = [list(trained).index(name) for name in own]

    def with_trained_labels(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions with the labels that were trained with."""
        if self._labels is None or "labels" not in conditions:
            return dict(conditions)
        labels = torch.as_tensor(conditions["labels"])
        # -1 stands for no class
        numbers = torch.tensor([*self._labels, -1], device=labels.device)
        return {**conditions, "labels": numbers[labels]}

    @property
    def draws(self) -> int:
        """Number of noisy clips that the loss is a mean of."""
        return len(self.indices) * math.ceil(_LEAST / len(self.indices))

    def parts(self, num_workers: int, draws: int | None = None) -> Iterator[Part]:
        """Yields the batches of this process; of the last ones some clips may not count.

        Args:
            num_workers: Number of worker processes.
            draws: Number of clips, which are repeated as needed; None for `self.draws`.
        """
        process, processes = self.share
        draws = self.draws if draws is None else draws
        own = math.ceil(draws / processes)
        numbers = range(process * own, (process + 1) * own)
        batches = [numbers[i : i + self.batch_size] for i in range(0, own, self.batch_size)]
        # fixed seeds, so that crops and flips are fixed too
        wanted = [[Draw(self.indices[n % len(self.indices)], n) for n in b] for b in batches]
        loader: DataLoader[Any] = DataLoader(
            SeededItems(self.dataset),
            batch_sampler=wanted,
            num_workers=num_workers,
            collate_fn=collate,
            # its own generator, as starting a loader draws from the global one
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
    """Computes the mean losses of several models over the validation clips.

    Args:
        validation: The clips.
        losses: `compute_loss` of each model, by the model's name.
        data: A `DataSource`, which unpacks batches and prepares conditions.
        draws: Draws time steps and noise.
        by_noise_of: Name of the model whose losses by noise are returned.

    Returns:
        The mean loss of each model by name, and `BINS` means of one, starting with the least noise.
    """
    processes, device = data.processes, data.processes.device
    metrics = StepMetrics(device, data.diffusion.num_timesteps)
    totals = torch.zeros(len(losses) + 1, device=device)
    for part in validation.parts(data.num_workers or 0):
        videos, conditions = data.hooks.unpack(part.batch)
        # without images, so that losses compare between runs with different image_frames
        conditions = data.to_device({n: v for n, v in conditions.items() if n not in _IMAGES})
        videos = videos.to(device, non_blocking=True)
        given = draws.fixed(part.numbers, videos.shape[2])
        given |= validation.with_trained_labels(conditions)
        for i, (name, compute_loss) in enumerate(losses.items()):
            # makes a model that draws itself draw the same each time
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
