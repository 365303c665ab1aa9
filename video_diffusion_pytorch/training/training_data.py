"""The data side of the loop: where batches come from, and what is told of each clip."""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.report import report_clips
from video_diffusion_pytorch.data.transforms import fit_value_range
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import check_type
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.training.clips.batch_stream import Endless, LongWaits
from video_diffusion_pytorch.training.clips.batches import (
    Draw,
    EndlessShuffle,
    SeededItems,
    check_items_of,
    collate,
    read_item,
    seeded,
)
from video_diffusion_pytorch.training.clips.captions import EncodedCaptions
from video_diffusion_pytorch.training.clips.clip_source import (
    check_first_clip,
    check_source,
    check_units,
    choose_workers,
    clips_behind,
    files_of,
    hold_out,
    name_hashes,
    name_of,
    take_value_range,
    warn_of_copies,
)
from video_diffusion_pytorch.training.clips.image_frames import (
    ClipAndImages,
    ClipsWithImages,
    join_images,
)
from video_diffusion_pytorch.training.clips.image_source import ImageSource
from video_diffusion_pytorch.training.engine import Processes
from video_diffusion_pytorch.training.validation import (
    Sides,
    Validation,
    split_by_position,
    split_of_rows,
    split_off,
)

logger = logging.getLogger("video_diffusion_pytorch")

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
    validation_split: float | str | None
    validation_manifest: str | os.PathLike[str] | None
    validation_dataset: Any
    validation_clips: int
    _evaluator: Any
    _sides: Sides | None
    _hold_out: Callable[..., tuple[list[int], list[int]]]
    _shown: int
    _unchecked: bool
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
        if self._unchecked:
            check_units(self.model, videos, "the first batch")
            self._unchecked = False
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
        self._sides: Sides | None = None
        self._validated = set()
        self._sample_conditions = self._chosen_conditions
        seed = self.from_main(int(torch.randint(2**31, ())) if seed is None else int(seed) % 2**31)
        self.order = EndlessShuffle((), seed)
        self.order.batch_size = self.batch_size
        self.order.process, self.order.num_processes = self.process, self.num_processes
        self.ds = given["dataset"]
        self._unchecked = source == "dataloader" or isinstance(self.ds, IterableDataset)
        if source == "dataset" and self.data_options.get("value_range") is not None:
            take_value_range(self.model, None, self._range_of_items())
        # caches and the like are made once, and found by the other processes
        with self.main_first():
            if source == "folder":
                self.ds = self.make_dataset(given["folder"], self.model)
            take_value_range(self.model, self.ds)
            held_back = self._make_validation(given)
        if self.num_workers is None:
            self.num_workers = choose_workers(self.ds)
        if source == "dataloader":
            # the loader has an order of its own: here clips are only counted
            self._images = self._make_images(None)
            loader = given["dataloader"]
            check_items_of(loader)
            warn_of_copies(getattr(loader, "dataset", None), getattr(loader, "num_workers", 0))
            self.dl = Endless(self.share_loader(loader))
        elif isinstance(self.ds, IterableDataset):
            self._images = self._make_images(None)
            warn_of_copies(self.ds, self.num_workers)
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

    def _range_of_items(self) -> Any:
        """The option `value_range` beside a `dataset`; with "fit" all items are read once."""
        given = self.data_options["value_range"]
        if not isinstance(given, str) or given != "fit":
            return given
        if not hasattr(self.ds, "__len__") or isinstance(self.ds, IterableDataset):
            raise ValueError(
                "Trainer: value_range='fit' must go with a dataset that has a length, got a "
                "stream; give (low, high)"
            )
        found: Any = None
        with self.main_first():
            if self.is_main:
                found = fit_value_range(range(len(self.ds)), self._values_of)
        return self.from_main(found)

    def _values_of(self, index: int) -> Tensor:
        video = self.unpack_batch(collate([read_item(self.ds, index, seed=0)]))[0][0]
        check_type("clips", video)
        if not video.isfinite().all():
            raise ValueError(
                f"Trainer: clips must be finite, got NaN or infinite values in item {index}; "
                "replace them, as with numpy.nan_to_num"
            )
        return video

    def _unpack_for_model(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """A batch without what a `compute_loss` of the subclass takes for itself, by its names."""
        videos, conditions = self.unpack_batch(batch)
        own = inspect.signature(self.compute_loss).parameters.keys()
        kept = {n: v for n, v in conditions.items() if n not in own or n in _FOR_SAMPLES}
        return videos, kept

    def _make_validation(self, given: Mapping[str, Any]) -> Sequence[int] | None:
        """Sets up what is validated on; gives the clips of `ds` that are left, None for all."""
        split, dataset = self.validation_split, self.validation_dataset
        if split is not None and not isinstance(split, str):
            left, indices = split_off(self.ds, split)
            self._validate_on(self.ds, indices)
            self._sides = Sides(name_hashes(self.ds, left), name_hashes(self.ds, indices))
            return left
        if dataset is None:
            if {split, self.validation_folder, self.validation_manifest} == {None}:
                return None
            dataset = self._make_validation_dataset(given["folder"])
        has_order = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
        self._validate_on(dataset, range(len(dataset)) if has_order else ())
        kept = self._never_validated(given["dataloader"])
        if isinstance(split, str) and hasattr(self.ds, "__len__"):
            among = range(len(self.ds)) if kept is None else kept
            self._sides = Sides(name_hashes(self.ds, among), set())
        return kept

    def _validate_on(self, dataset: Any, indices: Sequence[int]) -> None:
        self.validation = Validation(
            dataset,
            indices,
            at_most=self.validation_clips,
            batch_size=self.batch_size,
            share=(self.process, self.num_processes),
        )
        self._validated = files_of(dataset, indices).keys()
        clips = clips_behind(self.ds)
        trained = () if clips is None else clips.class_names
        self.validation.check(self.model, self._unpack_for_model, trained)

    def _make_validation_dataset(self, folder: Any) -> Any:
        """The clips of a folder or of a manifest's rows, in the units of those trained on."""
        table = self.validation_manifest
        table = self.data_options.get("manifest") if table is None else table
        if self.validation_folder is not None:
            folder = self.validation_folder
        if folder is None or (table is None and self.validation_split is not None):
            raise ValueError(
                "Trainer: a split by name must be of a folder's manifest, got "
                f"validation_split={self.validation_split!r} and no "
                f"{'folder' if folder is None else 'manifest'}; pass one, a validation_dataset, or "
                "a share of the files such as 0.05"
            )
        given, self.data_options = self.data_options, {**self.data_options}
        if table is not None:
            name = self.validation_split if isinstance(self.validation_split, str) else None
            columns = self.data_options.get("manifest_columns")
            split = split_of_rows(table, name, folder, columns)
            self.data_options |= {"manifest": table, "split": split}
        # which "fit" may have found
        units = self.model.config["value_range"]
        if units is not None:
            self.data_options["value_range"] = units
        try:
            return self.make_dataset(folder, self.model)
        finally:
            self.data_options = given

    def _never_validated(self, loader: Any) -> list[int] | None:
        """The clips of files that are not validated on; None for all.

        Raises:
            ValueError: If there are none, or a loader of the user's own has others.
        """
        trained = getattr(loader, "dataset", None) if self.ds is None else self.ds
        if not hasattr(trained, "__len__") or isinstance(trained, IterableDataset):
            return None
        files = files_of(trained)
        both = files.keys() & self._validated
        if not both:
            return None
        left = sorted(i for key, clips in files.items() if key not in both for i in clips)
        first = name_of(trained, min(files[key][0] for key in both))
        if not left or self.ds is None:
            raise ValueError(
                "Trainer: clips that are validated on must not be trained on, got "
                f"{len(both)} of {len(files)} files for both, such as {first}; pass another "
                "validation_folder or validation_dataset, or, for a share of the files, "
                "validation_split=0.05"
            )
        logger.warning(
            "%d of the %d files to train on are validated on, such as %s: they are not trained on",
            len(both),
            len(files),
            first,
        )
        return left

    def _recall_sides(self, path: Path, data: Mapping[str, Any]) -> None:
        """Leaves each file on its side in the run whose checkpoint this is."""
        split, found = self.validation_split, data.get("files")
        known = None if found is None else Sides(*({*found[name]} for name in Sides._fields))
        if isinstance(split, str):
            if known is not None and self.validation_folder is None:
                self._warn_of_trained(path, known)
        elif split is not None:
            if "files" not in data:
                known = self._sides_by_position(split, data.get("clips"))
            self._split_again(path, split, known)
        if known is not None:
            now = self._sides or Sides(name_hashes(self.ds, self.order.indices), set())
            self._sides = Sides(now.trained | known.trained, now.validated)

    def _sides_by_position(self, share: float, clips: int | None) -> Sides | None:
        """Those of versions up to 0.8, if so many clips are trained on by them."""
        left, apart = split_by_position(self.ds, share)
        if len(self._hold_out(left)[0]) != clips:
            return None
        return Sides(name_hashes(self.ds, left), name_hashes(self.ds, apart))

    def _split_again(self, path: Path, share: float, known: Sides | None) -> None:
        if known is None:
            logger.warning(
                "%s does not say which clips it was validated on: it may have been trained on "
                "some of those that are validated on now, whose loss is then too low",
                path,
            )
            return
        left, indices = split_off(self.ds, share, known)
        sides = Sides(name_hashes(self.ds, left), name_hashes(self.ds, indices))
        gone, new = known.validated - sides.validated, sides.validated - known.validated
        if gone or new:
            logger.warning(
                "of the files that %s was validated on %d are gone, and %d are new: losses before "
                "and after do not compare",
                path,
                len(gone),
                len(new),
            )
        if sides != self._sides:
            self._sides, self._evaluator = sides, None
            self._validate_on(self.ds, indices)
            self._deal(left)

    def _warn_of_trained(self, path: Path, known: Sides) -> None:
        assert self.validation is not None
        dataset = self.validation.dataset
        again = len(name_hashes(dataset, range(len(dataset))) & known.trained)
        if again:
            logger.warning(
                "%s was trained on %d of the files that are validated on now, whose loss is then "
                "too low",
                path,
                again,
            )

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
        waits = LongWaits()
        with waits:
            first = collate([self._items[Draw(0, self.order.seed)]])
        waits.stop()
        videos, conditions = self._unpack_for_model(first)
        check_first_clip(self.model, clips_behind(self.ds), videos, conditions)
        self._check_no_images(conditions)
        # as many files may be held out by default, and clips show their conditions in samples
        self._hold_out = partial(hold_out, self.ds, held_out, count if conditions else 0)
        self._shown = count if conditions or self.model.given_frames else 0
        self._deal(among)
        self.restart_data()

    def _deal(self, among: Sequence[int] | None) -> None:
        """Makes batches of these clips; None for all."""
        self.order.indices, apart = self._hold_out(among)
        self._images = self._make_images(self.order.indices)
        items: Any = self._items
        if self._images is not None:
            items = ClipsWithImages(self._items, self._images)
        self.dl = Endless(self.make_dataloader(items))
        if self._shown:
            # spread over the clips, which are sorted by folder
            step = max(1, len(self.order.indices) // self._shown)
            self._apart = (apart or self.order.indices[::step])[: self._shown]

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
