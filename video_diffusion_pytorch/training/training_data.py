"""The data side of the loop: where batches come from, and what is told of each clip."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.data.clip_report import report_clips
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.training.clips.batch_stream import Endless
from video_diffusion_pytorch.training.clips.batches import (
    Draw,
    EndlessShuffle,
    SeededItems,
    collate,
    seeded,
)
from video_diffusion_pytorch.training.clips.captions import EncodedCaptions
from video_diffusion_pytorch.training.clips.clip_source import (
    check_first_clip,
    check_source,
    choose_workers,
    clips_behind,
    hold_out,
    name_of,
    take_value_range,
)
from video_diffusion_pytorch.training.clips.image_frames import (
    ClipAndImages,
    ClipsWithImages,
    join_images,
)
from video_diffusion_pytorch.training.clips.image_source import ImageSource
from video_diffusion_pytorch.training.engine import Processes
from video_diffusion_pytorch.training.validation import Validation, split_off

_NO_TEXT = type(None)
# Conditions that sampling takes, too
_FOR_SAMPLES = ("cond", "cond_mask", "labels", "frame_cond", "cond_video")


class TrainingData(ImageSource, Processes):
    """The part of a Trainer that makes batches; `Trainer` documents the attributes."""

    dl: Endless
    device: torch.device
    batch_size: int
    num_workers: int | None
    captions: EncodedCaptions
    waited: float
    compute_loss: Callable[..., Tensor]
    validation: Validation | None
    validation_folder: str | os.PathLike[str] | None
    validation_split: float | None
    validation_clips: int
    _sample_conditions: dict[str, Any] | None
    _chosen_conditions: dict[str, Any] | None

    # what a subclass may make differently

    def make_dataset(self, folder: str | os.PathLike[str], diffusion: GaussianDiffusion) -> Any:
        """The clips: a dataset whose items `unpack_batch` understands once they are collated."""
        apart = (self.results_folder, self.image_folder, self.validation_folder)
        return Dataset(
            folder,
            diffusion.image_size,
            channels=diffusion.channels,
            num_frames=diffusion.num_frames,
            exclude=[p for p in apart if p is not None],
            # a quarter of the bytes to the device, which makes floats of them faster
            as_uint8=True,
            **{"exts": None, **self.data_options},
        )

    def make_dataloader(self, dataset: Any) -> Any:
        """The batches: shuffled, without end, from where training stopped before."""
        is_stream = isinstance(dataset, IterableDataset)
        if not self.num_workers:
            # the batches' memory is the same from step to step
            keep_freed_memory()
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            sampler=None if is_stream else self.order,
            num_workers=self.num_workers or 0,
            # a stream ends with each epoch, and begins anew
            persistent_workers=bool(self.num_workers and is_stream),
            collate_fn=collate,
            pin_memory=self.device.type == "cuda",
            # its own generator: making the loader draws, and a resumed run makes it once more
            generator=torch.Generator().manual_seed(self.order.seed),
        )

    # what the loop asks for

    def next_batch(self) -> tuple[Tensor, dict[str, Any]]:
        """The next videos and their conditions, on the training device.

        The seconds it took to get them are added to `waited`.
        """
        start = time.perf_counter()
        batch = next(self.dl)
        clips, images = batch if isinstance(batch, ClipAndImages) else (batch, [])
        videos, conditions = self.unpack_batch(clips)
        self._check_no_images(conditions)
        if self._images is not None and not images:
            images = self._draw_images(len(videos))
        self.waited += time.perf_counter() - start
        # a loader of the user's own may give batches of any size
        first = self.order.position + self.process * len(videos)
        self.places = range(first, first + len(videos))
        self.order.position += len(videos) * self.num_processes
        if self._sample_conditions is None:
            self._sample_conditions = self._conditions_of(videos, conditions)
        told = self._to_device(conditions)
        if images:
            told |= join_images([self._to_device(image) for image in images])
        return videos.to(self.device, non_blocking=True), told

    def sample_conditions(self) -> dict[str, Any]:
        """What a milestone's samples are told, on the training device.

        Raises:
            ValueError: If the model takes conditions, and no batch has told them yet.
        """
        if self._sample_conditions is None and self.model.condition_names:
            raise ValueError(
                "Trainer.sample: the samples must be told "
                f"{', '.join(self.model.condition_names)}, got none, as no batch has come from the "
                "loader yet; train first, or pass sample_conditions"
            )
        return self._to_device(self._sample_conditions or {})

    def clip_names(self, places: Iterable[int]) -> list[str]:
        """What a person finds the clips at these positions by: their files, where there are any."""
        if not self.order.indices:
            return [f"clip number {place} of the stream" for place in places]
        return [name_of(self.ds, self.order.clip_at(place)) for place in places]

    @property
    def known_captions(self) -> list[str]:
        """Captions that training will meet, as far as they are known beforehand."""
        datasets = [clips_behind(self.ds), None if self._images is None else self._images.dataset]
        if self.validation is not None:
            datasets.append(clips_behind(self.validation.dataset))
        return [caption for clips in datasets for caption in getattr(clips, "captions", ())]

    def _prepare_data(
        self, given: Mapping[str, Any], held_out: int | None, count: int, seed: int | None
    ) -> None:
        """Sets up the batches.

        Args:
            given: `folder`, `dataset` and `dataloader`, of which one is not None.
            held_out: As in `Trainer`.
            count: Number of a milestone's samples.
            seed: As in `Trainer`.
        """
        source = check_source(given, self.data_options, type(self), self.results_folder)
        self.waited, self.places, self.validation = 0.0, range(0), None
        self._apart: Sequence[int] = ()
        self._sample_conditions = self._chosen_conditions
        seed = self.from_main(int(torch.randint(2**31, ())) if seed is None else int(seed) % 2**31)
        self.order = EndlessShuffle((), seed)
        self.order.batch_size = self.batch_size
        self.order.process, self.order.num_processes = self.process, self.num_processes
        self.ds = given["dataset"]
        # caches and the like are made once, and found by the other processes
        with self.main_first():
            if source == "folder":
                self.ds = self.make_dataset(given["folder"], self.model)
            take_value_range(self.model, self.ds)
            held_back = self._make_validation()
        if self.num_workers is None:
            self.num_workers = choose_workers(self.ds)
        if source == "dataloader":
            # the loader has an order of its own: here clips are only counted
            self._images = self._make_images(None)
            self.dl = Endless(self.share_loader(given["dataloader"]))
        elif isinstance(self.ds, IterableDataset):
            self._images = self._make_images(None)
            self.dl = Endless(self.share_loader(self.make_dataloader(self.ds)))
        else:
            self._shuffle(held_out, count, held_back)
        clips = clips_behind(self.ds)
        if source == "folder" and clips is not None and self.is_main:
            with seeded(0):
                report_clips(clips)
        folder = self.data_options.get("cache") or given["folder"]
        beside = None if folder is None else Path(folder)
        kind = {"states": self.model.takes_text_states}
        self.captions = EncodedCaptions(self.model.text_use_bert_cls, beside, **kind)

    def _unpack_for_model(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """A batch without what a `compute_loss` of the subclass takes for itself, by its names."""
        videos, conditions = self.unpack_batch(batch)
        own = inspect.signature(self.compute_loss).parameters.keys()
        kept = {n: v for n, v in conditions.items() if n not in own or n in _FOR_SAMPLES}
        return videos, kept

    def _make_validation(self) -> Sequence[int] | None:
        """Sets up what is validated on; gives the clips of `ds` that are left, None for all."""
        left: list[int] | None = None
        if self.validation_folder is not None:
            # in the units of the clips that are trained on, which "fit" may have found
            units = self.model.config["value_range"]
            given, self.data_options = self.data_options, {**self.data_options}
            if units is not None:
                self.data_options["value_range"] = units
            dataset = self.make_dataset(self.validation_folder, self.model)
            self.data_options = given
            indices = [*range(len(dataset))]
        elif self.validation_split is not None:
            dataset = self.ds
            left, indices = split_off(dataset, self.validation_split)
        else:
            return None
        self.validation = Validation(
            dataset,
            indices,
            at_most=self.validation_clips,
            batch_size=self.batch_size,
            share=(self.process, self.num_processes),
        )
        clips = clips_behind(self.ds)
        trained = () if clips is None else clips.class_names
        self.validation.check(self.model, self._unpack_for_model, trained)
        return left

    def _shuffle(
        self, held_out: int | None, count: int, among: Sequence[int] | None = None
    ) -> None:
        """Sets up the batches of a dataset with a length.

        Args:
            held_out: As in `Trainer`.
            count: Number of a milestone's samples.
            among: Indices of the clips that there are; None for all.
        """
        if not len(self.ds):
            raise ValueError(
                "Trainer: the dataset must hold clips, got none; check where it looks for them"
            )
        self._items = SeededItems(self.ds)
        first = collate([self._items[Draw(0, self.order.seed)]])
        videos, conditions = self._unpack_for_model(first)
        check_first_clip(self.model, clips_behind(self.ds), videos, conditions)
        self._check_no_images(conditions)
        at_most = count if conditions else 0
        self.order.indices, apart = hold_out(self.ds, held_out, at_most, among)
        self._images = self._make_images(self.order.indices)
        items: Any = self._items
        if self._images is not None:
            items = ClipsWithImages(self._items, self._images)
        self.dl = Endless(self.make_dataloader(items))
        if conditions or self.model.given_frames:
            # spread over the clips, which are sorted by folder
            shown = apart or self.order.indices[:: max(1, len(self.order.indices) // count)]
            self._apart = shown[:count]
        self.restart_data()

    def restart_data(self) -> None:
        """Lets the next batch be the one at `order.position`, and `order.seed` draw the samples'.

        `load` calls it.
        """
        self.dl.restart()
        if self._apart and self._chosen_conditions is None:
            batch = collate([self._items[Draw(clip, self.order.seed)] for clip in self._apart])
            self._sample_conditions = self._conditions_of(*self.unpack_batch(batch))

    # conditions

    def _conditions_of(self, videos: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """What a sample needs to be told to resemble these clips."""
        kept = {name: value for name, value in conditions.items() if name in _FOR_SAMPLES}
        if self.model.given_frames:
            kept["first_frames"] = videos[:, :, : self.model.given_frames]
        return kept

    def _to_device(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Tensors on the training device, and captions as the network wants them."""
        ready = {
            name: self._to_device(value)
            if isinstance(value, Mapping)
            else value.to(self.device, non_blocking=True)
            if torch.is_tensor(value)
            else value
            for name, value in conditions.items()
        }
        cond = ready.get("cond")
        if isinstance(cond, (list, tuple)) and all(isinstance(c, (str, _NO_TEXT)) for c in cond):
            ready |= self.captions(cond, self.device)
        return ready
