"""The data side of the loop: where batches come from, and what is told of each clip."""

from __future__ import annotations

import difflib
import inspect
import logging
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.dataset_options import as_value_range
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import (
    Draw,
    Endless,
    EndlessShuffle,
    SeededItems,
    collate,
    unpack_batch,
)
from video_diffusion_pytorch.training.captions import CaptionVectors

logger = logging.getLogger("video_diffusion_pytorch")

_NO_TEXT = type(None)
# Conditions that sampling takes, too
_FOR_SAMPLES = ("cond", "labels", "frame_cond", "cond_video")
# What a Trainer gives its Dataset by itself
_OWN = {"folder", "image_size", "channels", "num_frames", "exclude", "as_uint8"}


def dataset_options(trainer_class: type) -> dict[str, Any]:
    """Keywords of `Dataset` that a Trainer passes on, and their defaults."""
    own = inspect.signature(trainer_class).parameters
    parameters = inspect.signature(Dataset).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in own and p.name not in _OWN}
    # a Trainer takes whatever can be read
    return {**options, "exts": None}


def choose_workers(dataset: Any) -> int:
    """Number of processes that read clips: as many as cores, at most 8.

    None with a single core, where clips need no decoding, and where a new process would run the
    user's script again (Windows, macOS).
    """
    # asking for the method in use would settle it, and a script may yet want to
    method = multiprocessing.get_start_method(allow_none=True)
    can_fork = (method or multiprocessing.get_all_start_methods()[0]) == "fork"
    is_cached = getattr(dataset, "is_cached", False)
    if not can_fork or is_cached or isinstance(dataset, IterableDataset):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if cores in (None, 1) else min(8, cores)


def hold_out(dataset: Any, count: int) -> tuple[list[int], list[int]]:
    """Indices to train on, and of clips of `count` files kept apart, spread over the dataset.

    Args:
        dataset: Has a length, and perhaps `paths`, the file of each clip.
        count: Number of files; of each the first clip is given.
    """
    paths = getattr(dataset, "paths", None) or range(len(dataset))
    files = list(dict.fromkeys(paths))
    places = torch.linspace(0, len(files) - 1, count).round().long().tolist() if count else []
    kept = {files[place] for place in places}
    first = {path: index for index, path in reversed(list(enumerate(paths)))}
    return [i for i, path in enumerate(paths) if path not in kept], sorted(first[p] for p in kept)


class TrainingData:
    """The part of a Trainer that makes batches; `Trainer` documents the attributes."""

    ds: Any
    dl: Endless
    order: EndlessShuffle
    model: GaussianDiffusion
    device: torch.device
    batch_size: int
    num_workers: int | None
    results_folder: Path
    data_options: dict[str, Any]
    captions: CaptionVectors
    waited: float
    _sample_conditions: dict[str, Any] | None

    # what a subclass may make differently

    def make_dataset(self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion) -> Any:
        """The clips: a dataset whose items `unpack_batch` understands once they are collated."""
        return Dataset(
            folder,
            diffusion.image_size,
            channels=diffusion.channels,
            num_frames=diffusion.num_frames,
            exclude=(self.results_folder,),
            # a quarter of the bytes to the device, which makes floats of them faster
            as_uint8=True,
            **{"exts": None, **self.data_options},
        )

    def make_dataloader(self, dataset: Any) -> Any:
        """The batches: shuffled, without end, from where training stopped before."""
        is_stream = isinstance(dataset, IterableDataset)
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=None if is_stream else self.order,
            num_workers=self.num_workers or 0,
            persistent_workers=bool(self.num_workers),
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            # its own generator: making the loader draws, and a resumed run makes it once more
            generator=torch.Generator().manual_seed(self.order.seed),
        )

    def unpack_batch(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """The videos of a batch, and keywords of the diffusion's forward, such as `cond`."""
        return unpack_batch(batch)

    # what the loop asks for

    def next_batch(self) -> tuple[Tensor, dict[str, Any]]:
        """The next videos and their conditions, on the training device.

        The seconds it took to get them are added to `waited`.
        """
        start = time.perf_counter()
        videos, conditions = self.unpack_batch(next(self.dl))
        self.waited += time.perf_counter() - start
        self.order.position += len(videos)
        if self._sample_conditions is None:
            self._sample_conditions = self._conditions_of(videos, conditions)
        return videos.to(self.device, non_blocking=True), self._to_device(conditions)

    def _prepare_data(self, given: Mapping[str, Any], held_out: int | None, count: int) -> None:
        """Sets up the batches.

        Args:
            given: `folder`, `dataset` and `dataloader`, of which one is not None.
            held_out: As in `Trainer`.
            count: Number of a milestone's samples.
        """
        sources = [name for name, value in given.items() if value is not None]
        if len(sources) != 1:
            raise ValueError(
                "Trainer: one of folder, dataset and dataloader must be given, got "
                f"{' and '.join(sources) or 'none'}; choose where the clips come from"
            )
        self._check_options(sources[0])
        self.waited = 0.0
        self._sample_conditions = None
        seed = int(torch.randint(2**31, ()))
        if given["dataloader"] is not None:
            # the loader has an order of its own: here clips are only counted
            self.ds, self.order = None, EndlessShuffle((), seed)
            self.dl = Endless(given["dataloader"])
        else:
            self.ds = given["dataset"]
            if given["folder"] is not None:
                self._check_folders(Path(given["folder"]))
                self.ds = self.make_dataset(given["folder"], self.model)
            self._take_value_range()
            if self.num_workers is None:
                self.num_workers = choose_workers(self.ds)
            self._make_loader(seed, held_out, count)
        folder = self.data_options.get("cache") or given["folder"]
        beside = None if folder is None else Path(folder)
        self.captions = CaptionVectors(self.model.text_use_bert_cls, beside)

    def _check_folders(self, folder: Path) -> None:
        if folder.resolve() == self.results_folder.resolve():
            raise ValueError(
                f"Trainer: results_folder must not be the folder of the clips, got {folder} for "
                "both, where samples would be trained on; choose another results_folder"
            )

    def _check_options(self, source: str) -> None:
        known = dataset_options(type(self))
        unknown = [name for name in self.data_options if name not in known]
        if unknown:
            names = [*known, *inspect.signature(type(self)).parameters]
            close = difflib.get_close_matches(unknown[0], names, n=1)
            raise TypeError(
                f"Trainer: keywords must be the Trainer's or those of data.dataset.Dataset, got "
                f"{unknown[0]!r}; {f'is {close[0]!r} meant?' if close else 'leave it out'}"
            )
        if self.data_options and source != "folder":
            raise TypeError(
                f"Trainer: {', '.join(self.data_options)} must go with a folder of clips, got a "
                f"{source}; leave them out"
            )

    def _make_loader(self, seed: int, held_out: int | None, count: int) -> None:
        if isinstance(self.ds, IterableDataset):
            self.order = EndlessShuffle((), seed)
            self.dl = Endless(self.make_dataloader(self.ds))
            return
        items = SeededItems(self.ds)
        first = items[Draw(0, seed)]
        videos, conditions = self.unpack_batch(collate([first]))
        self._check_first(videos, conditions)
        if held_out is None:
            held_out = min(count, len(self.ds) // 20) if conditions else 0
        indices, apart = hold_out(self.ds, held_out)
        if not indices:
            raise ValueError(
                f"Trainer: held_out must leave clips to train on, got {held_out} of "
                f"{len(self.ds)}; hold out fewer"
            )
        self.order = EndlessShuffle(indices, seed)
        self.dl = Endless(self.make_dataloader(items))
        if conditions or self.model.given_frames:
            apart = apart or indices[:count]
            batch = collate([items[Draw(index, seed)] for index in apart[:count]])
            self._sample_conditions = self._conditions_of(*self.unpack_batch(batch))

    def _check_first(self, videos: Tensor, conditions: dict[str, Any]) -> None:
        """Finds out before the first step whether the clips are what the model takes."""
        self.model.check_clips(videos)
        config = self.model.config
        has_units = not config["auto_normalize"] or config["value_range"] is not None
        if isinstance(self.ds, Dataset) and videos.is_floating_point() and not has_units:
            low, high = (value.item() for value in videos.aminmax())
            if low < 0 or high > 1:
                raise ValueError(
                    f"Trainer: clips must be in [0, 1], got values from {low:.3g} to {high:.3g} "
                    f"in {self.ds.paths[0]}; pass value_range='fit', or (low, high) in the clips' "
                    "units, or build GaussianDiffusion with auto_normalize=False"
                )
        names = self.model.condition_names
        missing = [name for name in names if name not in conditions]
        if missing:
            raise ValueError(
                f"Trainer: the network takes {', '.join(names)}, so the data must give them, got "
                f"none for {', '.join(missing)}; say in conditions where they come from, give "
                "them in the dataset's items, or build the network without"
            )

    def _take_value_range(self) -> None:
        """Tells the model the units of the clips, where the dataset knows them."""
        found = getattr(self.ds, "value_range", None)
        if found is None:
            return
        own = self.model.config["value_range"]
        if own is None:
            self.model.set_value_range(found)
        elif as_value_range(own, self.model.channels) != found:
            raise ValueError(
                f"Trainer: the clips must be in the model's value_range, {own}, got {found}; give "
                "one of them only"
            )

    # conditions

    def _conditions_of(self, videos: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """What a sample needs to be told to resemble these clips."""
        kept = {name: value for name, value in conditions.items() if name in _FOR_SAMPLES}
        if self.model.given_frames:
            kept["first_frames"] = videos[:, :, : self.model.given_frames]
        return kept

    def _to_device(self, conditions: dict[str, Any]) -> dict[str, Any]:
        """Tensors on the training device, and vectors in the place of captions."""
        ready = {
            name: value.to(self.device, non_blocking=True) if torch.is_tensor(value) else value
            for name, value in conditions.items()
        }
        cond = ready.get("cond")
        if isinstance(cond, (list, tuple)) and all(isinstance(c, (str, _NO_TEXT)) for c in cond):
            ready["cond"], mask = self.captions(cond, self.device)
            if mask is not None:
                ready["null_cond_mask"] = mask
        return ready
