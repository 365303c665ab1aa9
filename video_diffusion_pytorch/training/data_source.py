"""The data of a run: clips, their split, order and batches, images, captions, sample conditions."""

from __future__ import annotations

import difflib
import inspect
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from video_diffusion_pytorch.conditions import to_device
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.report import report_clips
from video_diffusion_pytorch.data.transforms import fit_value_range
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import check_type
from video_diffusion_pytorch.training.batches import (
    Draw,
    Endless,
    EndlessShuffle,
    LongWaits,
    SeededItems,
    check_items_of,
    collate,
    read_item,
    seeded,
)
from video_diffusion_pytorch.training.captions import EncodedCaptions
from video_diffusion_pytorch.training.checks import (
    check_first_clip,
    check_network_for_images,
    check_units,
    take_value_range,
)
from video_diffusion_pytorch.training.images import (
    ClipAndImages,
    ClipsWithImages,
    ImageDraws,
    draws_from_clips,
    draws_from_pictures,
    join_images,
)
from video_diffusion_pytorch.training.processes import Processes
from video_diffusion_pytorch.training.splits import (
    Sides,
    clips_behind,
    files_of,
    hold_out,
    name_hashes,
    name_of,
    split_by_position,
    split_of_rows,
    split_off,
)
from video_diffusion_pytorch.training.validation import Validation

logger = logging.getLogger("video_diffusion_pytorch")

# Conditions that sampling takes, too
_FOR_SAMPLES = ("cond", "cond_mask", "labels", "frame_cond", "cond_video")

# Packages whose streams share their clips between processes that read
_SHARING = {"webdataset", "datasets", "torchdata", "streaming", "litdata"}


# What a Trainer gives its Dataset by itself
_OWN = {"folder", "image_size", "channels", "num_frames", "exclude", "as_uint8"}


class Batch(NamedTuple):
    """A micro-batch of this process, on the training device.

    Attributes:
        videos: `(b, c, f, h, w)`.
        conditions: Keywords of the diffusion's forward, images included.
        positions: Positions of the clips in the run, from which their draws follow.
    """

    videos: Tensor
    conditions: dict[str, Any]
    positions: range


class DataHooks(NamedTuple):
    """What a subclass of Trainer may replace about its data.

    Attributes:
        make_dataset: Makes a dataset from a folder and the options of `Dataset`.
        make_image_dataset: Makes the dataset of the image folder.
        make_dataloader: Makes the loader of a dataset.
        unpack: Splits a batch into videos and conditions.
    """

    make_dataset: Callable[[Any, dict[str, Any]], Any]
    make_image_dataset: Callable[[Any], Any]
    make_dataloader: Callable[[Any], Any]
    unpack: Callable[[Any], tuple[Tensor, dict[str, Any]]]


class DataSource:
    """Gives batches to train on and conditions to sample with.

    `open` reads the first clip and starts the loader; all arguments are as of `Trainer`.

    Args:
        diffusion: The model.
        processes: Of the run.
        hooks: What makes datasets and loaders.
        sources: `folder`, `dataset` and `dataloader`, of which one is not None.
        options: Keywords of `Dataset`.
        batch_size: Clips of a micro-batch of this process.
        seed: Seed of order and draws; None to draw it.
        num_workers: Workers that read clips; None to choose.
        held_out: Number of files that are not trained on.
        num_samples: Number of a milestone's samples.
        sample_conditions: Conditions of the samples; None for those of clips.
        own_conditions: Names of conditions that only `compute_loss` of a subclass understands.
        image_frames: Images beside each clip.
        image_folder: Where they are from; None for other clips.
        validation: `folder`, `split`, `manifest`, `dataset` and `clips`, as `validation_folder`
            and so on of `Trainer`.

    Attributes:
        dataset: The clips.
        order: The order of the clips that are trained on.
        loader: The batches without end.
        images: Draws the images beside clips; None for none.
        validation: The clips to validate on; None for none.
        captions: Encodes captions.
        num_workers: Workers that read clips.
        waited: Seconds spent waiting for batches so far.
    """

    loader: Endless

    def __init__(
        self,
        diffusion: GaussianDiffusion,
        processes: Processes,
        hooks: DataHooks,
        *,
        sources: Mapping[str, Any],
        options: Mapping[str, Any],
        batch_size: int,
        seed: int | None,
        num_workers: int | None,
        held_out: int | None,
        num_samples: int,
        sample_conditions: dict[str, Any] | None,
        own_conditions: Set[str],
        image_frames: int,
        image_folder: str | os.PathLike[str] | None,
        validation: Mapping[str, Any],
    ) -> None:
        self.diffusion, self.processes, self.hooks = diffusion, processes, hooks
        self.sources, self.options = sources, {**options}
        self.batch_size, self.num_workers = batch_size, num_workers
        self.image_frames, self.image_folder = image_frames, image_folder
        self.dataset = sources["dataset"]
        self.validation: Validation | None = None
        self.images: ImageDraws | None = None
        self.waited = 0.0
        seed = int(torch.randint(2**31, ())) if seed is None else int(seed) % 2**31
        self.order = EndlessShuffle((), processes.from_main(seed))
        self.order.batch_size = batch_size
        self.order.process, self.order.num_processes = processes.share
        self._held_out, self._num_samples = held_out, num_samples
        self._chosen = self._sample_conditions = sample_conditions
        self._own_conditions, self._validation = own_conditions, validation
        self._sides: Sides | None = None
        self._validated: Set[Any] = set()
        self._shown: Sequence[int] = ()
        self._is_unchecked = False

    def open(self, source: str) -> None:
        """Makes datasets and the loader, and checks the first clip against the model.

        Args:
            source: Which of the sources is given.

        Raises:
            ValueError: If the clips do not fit the model or each other's splits.
        """
        if source == "dataset" and self.options.get("value_range") is not None:
            take_value_range(self.diffusion, None, self._range_of_items())
        # caches and the like are made once, and found by the other processes
        with self.processes.main_first():
            if source == "folder":
                self.dataset = self.hooks.make_dataset(self.sources["folder"], self.options)
            take_value_range(self.diffusion, self.dataset)
            kept = self._open_validation()
        if self.num_workers is None:
            self.num_workers = choose_workers(self.dataset)
        if self.image_frames:
            check_network_for_images(self.diffusion, self.image_frames)
        is_stream = isinstance(self.dataset, IterableDataset)
        if source == "dataloader" or is_stream:
            # they have an order of their own: here clips are only counted
            self._is_unchecked = True
            self.images = self._draw_from(None)
            loader = self.sources["dataloader"]
            if is_stream:
                loader = self.hooks.make_dataloader(self.dataset)
            check_items_of(loader)
            warn_of_copies(getattr(loader, "dataset", None), getattr(loader, "num_workers", 0))
            self.loader = Endless(self.processes.share_loader(loader))
        else:
            self._check_first_clip()
            self._deal(kept)
            self.restart()
        clips = clips_behind(self.dataset)
        if source == "folder" and clips is not None and self.processes.is_main:
            with seeded(0):
                report_clips(clips)
        beside = self.options.get("cache") or self.sources["folder"]
        self.captions = EncodedCaptions(
            self.diffusion.text_use_bert_cls,
            None if beside is None else Path(beside),
            states=self.diffusion.takes_text_states,
        )

    # batches

    def next_batch(self) -> Batch:
        """The next micro-batch; `waited` grows by the seconds it took."""
        start = time.perf_counter()
        batch = next(self.loader)
        clips, images = batch if isinstance(batch, ClipAndImages) else (batch, [])
        videos, conditions = self.hooks.unpack(clips)
        self._check_no_images(conditions)
        if self._is_unchecked:
            check_units(self.diffusion, videos, "the first batch")
            self._is_unchecked = False
        order = self.order
        if self.images is not None and not images:
            # beside clips of a stream
            seeds = (order.seed_at(order.position + i) for i in range(len(videos)))
            images = collate([self.images.draw(None, seed) for seed in seeds])
        self.waited += time.perf_counter() - start
        # a loader of the user's own may give batches of any size
        first = order.position + order.process * len(videos)
        order.position += len(videos) * order.num_processes
        if self._sample_conditions is None:
            self._sample_conditions = self._conditions_of(videos, conditions)
        ready = self.to_device(conditions)
        if images:
            ready |= join_images([self.to_device(image) for image in images])
        device = self.processes.device
        positions = range(first, first + len(videos))
        return Batch(videos.to(device, non_blocking=True), ready, positions)

    def restart(self) -> None:
        """Makes the next batch the one at `order.position`; `order.seed` draws the samples' clips.

        It ends the workers.
        """
        self.loader.restart()
        if self._shown and self._chosen is None:
            clips = [self._items[Draw(clip, self.order.seed)] for clip in self._shown]
            self._sample_conditions = self._conditions_of(*self.hooks.unpack(collate(clips)))

    def end_workers(self) -> None:
        """Ends the workers, if the order is ours: a loader of the user's own would start again."""
        # left to the garbage collector, each would be waited for
        if self.order.indices:
            self.loader.restart()

    def names(self, positions: Iterable[int]) -> list[str]:
        """What a person finds the clips at these positions by: their files, where there are any."""
        if not self.order.indices:
            return [f"clip number {position} of the stream" for position in positions]
        return [name_of(self.dataset, self.order.clip_at(position)) for position in positions]

    # conditions

    def to_device(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Conditions with tensors on the training device and captions encoded for the network."""
        ready = to_device(conditions, self.processes.device)
        for name, value in conditions.items():
            if isinstance(value, Mapping):
                ready[name] = self.to_device(value)
        cond = ready.get("cond")
        if isinstance(cond, (list, tuple)) and all(c is None or isinstance(c, str) for c in cond):
            ready |= self.captions(cond, self.processes.device)
        return ready

    @property
    def known_captions(self) -> list[str]:
        """Captions that training will meet, as far as they are known beforehand."""
        known = [clips_behind(self.dataset), None if self.images is None else self.images.dataset]
        if self.validation is not None:
            known.append(clips_behind(self.validation.dataset))
        return [caption for clips in known for caption in getattr(clips, "captions", ())]

    @property
    def sample_conditions(self) -> dict[str, Any] | None:
        """Conditions of a milestone's samples as they come from the data; None if not known yet."""
        if self._sample_conditions is None and not self.diffusion.condition_names:
            return {}
        return self._sample_conditions

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that labels stand for, where the clips' folder tells them."""
        clips = clips_behind(self.dataset)
        return () if clips is None else clips.class_names

    def unpack_for_model(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """A batch without the conditions that only `compute_loss` of a subclass understands."""
        videos, conditions = self.hooks.unpack(batch)
        own = self._own_conditions - {*_FOR_SAMPLES}
        return videos, {name: value for name, value in conditions.items() if name not in own}

    def _conditions_of(self, videos: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """What a sample is conditioned on to resemble these clips."""
        kept = {name: value for name, value in conditions.items() if name in _FOR_SAMPLES}
        if self.diffusion.given_frames:
            kept["first_frames"] = videos[:, :, : self.diffusion.given_frames]
        return kept

    def _check_no_images(self, conditions: Mapping[str, Any]) -> None:
        if self.image_frames and "images" in conditions:
            raise ValueError(
                "Trainer: image_frames must be 0 where the items bring images of their own, got "
                f"{self.image_frames}; leave one of them out"
            )

    # which clips are trained on

    def _check_first_clip(self) -> None:
        """Checks the first clip against the model, and whether samples can show clips."""
        if not len(self.dataset):
            raise ValueError(
                "Trainer: the dataset must hold clips, got none; check where it looks for them"
            )
        self._items = SeededItems(self.dataset)
        waits = LongWaits()
        with waits:
            first = collate([self._items[Draw(0, self.order.seed)]])
        waits.stop()
        videos, conditions = self.unpack_for_model(first)
        check_first_clip(self.diffusion, clips_behind(self.dataset), videos, conditions)
        self._check_no_images(conditions)
        # as many files as there are samples are held out by default
        at_most = self._num_samples if conditions else 0
        self._hold_out = partial(hold_out, self.dataset, self._held_out, at_most)
        self._shows_clips = bool(conditions or self.diffusion.given_frames)

    def _deal(self, among: Sequence[int] | None) -> None:
        """Makes batches of the clips with these indices; None for all."""
        self.order.indices, apart = self._hold_out(among)
        self.images = self._draw_from(self.order.indices)
        items: Any = self._items
        if self.images is not None:
            items = ClipsWithImages(self._items, self.images)
        self.loader = Endless(self.hooks.make_dataloader(items))
        if self._shows_clips:
            # spread over the clips, which are sorted by folder
            step = max(1, len(self.order.indices) // self._num_samples)
            self._shown = (apart or self.order.indices[::step])[: self._num_samples]

    def _draw_from(self, indices: Sequence[int] | None) -> ImageDraws | None:
        """What draws images beside the clips with these indices; None for clips of a stream."""
        if not self.image_frames:
            return None
        if self.image_folder is not None:
            apart = {*self._validated}
            if indices is not None:
                held_out = files_of(self.dataset).keys() - files_of(self.dataset, indices).keys()
                apart |= held_out
            pictures = self.hooks.make_image_dataset(self.image_folder)
            return draws_from_pictures(pictures, apart, self.image_frames, self.hooks.unpack)
        if indices is None:
            raise ValueError(
                "Trainer: image_frames must come from clips that can be read in any order, got a "
                "stream or a loader; pass image_folder, or give each item its own 'images' "
                "(c, k, h, w) and leave image_frames out"
            )
        return draws_from_clips(self.dataset, indices, self.image_frames, self.hooks.unpack)

    # which clips are validated on

    def _open_validation(self) -> Sequence[int] | None:
        """Sets up validation; returns the clips of `dataset` that are left, None for all."""
        split, dataset = self._validation["split"], self._validation["dataset"]
        if split is not None and not isinstance(split, str):
            left, indices = split_off(self.dataset, split)
            self._validate_on(self.dataset, indices)
            self._sides = self._hashes(left, indices)
            return left
        if dataset is None:
            if {split, self._validation["folder"], self._validation["manifest"]} == {None}:
                return None
            dataset = self._make_validation_dataset()
        has_order = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
        self._validate_on(dataset, range(len(dataset)) if has_order else ())
        kept = self._never_validated()
        if isinstance(split, str) and hasattr(self.dataset, "__len__"):
            among = range(len(self.dataset)) if kept is None else kept
            self._sides = self._hashes(among, ())
        return kept

    def _hashes(self, trained: Sequence[int], validated: Sequence[int]) -> Sides:
        return Sides(name_hashes(self.dataset, trained), name_hashes(self.dataset, validated))

    def _validate_on(self, dataset: Any, indices: Sequence[int]) -> None:
        self.validation = Validation(
            dataset,
            indices,
            at_most=self._validation["clips"],
            batch_size=self.batch_size,
            share=self.processes.share,
        )
        self._validated = files_of(dataset, indices).keys()
        self.validation.check(self.diffusion, self.unpack_for_model, self.class_names)

    def _make_validation_dataset(self) -> Any:
        """The clips of a folder or of a manifest's rows, in the units of those trained on."""
        chosen = self._validation
        table = chosen["manifest"] or self.options.get("manifest")
        folder = chosen["folder"] or self.sources["folder"]
        if folder is None or (table is None and chosen["split"] is not None):
            raise ValueError(
                "Trainer: a split by name must be of a folder's manifest, got "
                f"validation_split={chosen['split']!r} and no "
                f"{'folder' if folder is None else 'manifest'}; pass one, a validation_dataset, or "
                "a share of the files such as 0.05"
            )
        options = {**self.options}
        if table is not None:
            columns = self.options.get("manifest_columns")
            split = split_of_rows(table, chosen["split"], folder, columns)
            options |= {"manifest": table, "split": split}
        # which "fit" may have found
        units = self.diffusion.config["value_range"]
        if units is not None:
            options["value_range"] = units
        return self.hooks.make_dataset(folder, options)

    def _never_validated(self) -> list[int] | None:
        """The clips of files that are not validated on; None for all.

        Raises:
            ValueError: If there are none, or a loader of the user's own has others.
        """
        trained = self.dataset
        if trained is None:
            trained = getattr(self.sources["dataloader"], "dataset", None)
        if not hasattr(trained, "__len__") or isinstance(trained, IterableDataset):
            return None
        files = files_of(trained)
        both = files.keys() & self._validated
        if not both:
            return None
        left = sorted(i for key, clips in files.items() if key not in both for i in clips)
        first = name_of(trained, min(files[key][0] for key in both))
        if not left or self.dataset is None:
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

    # in a checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Seed, position and number of clips, and the files on each side of validation."""
        sides = self._sides
        return {
            "seed": self.order.seed,
            "position": self.order.position,
            "clips": len(self.order.indices),
            "files": sides and {name: sorted(found) for name, found in sides._asdict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Continues at the clip after a checkpoint's last; each file stays on its side.

        Args:
            state: As of `state_dict`; empty for a file of the reference.
            path: The checkpoint, for warnings.
        """
        self._recall_sides(path, state)
        if state:
            self.order.seed, self.order.position = state["seed"], state["position"]
            theirs, ours = state.get("clips"), len(self.order.indices)
            if theirs not in (None, ours):
                logger.warning(
                    "%s was trained on %d clips, and now there are %d (held_out not counted): "
                    "their order is another one",
                    path,
                    theirs,
                    ours,
                )
        self.restart()

    def _recall_sides(self, path: Path, state: Mapping[str, Any]) -> None:
        """Keeps each file on its side in the run whose checkpoint this is."""
        split, found = self._validation["split"], state.get("files")
        known = None if found is None else Sides(*({*found[name]} for name in Sides._fields))
        if isinstance(split, str):
            if known is not None and self._validation["folder"] is None:
                self._warn_of_trained(path, known)
        elif split is not None:
            if "files" not in state:
                known = self._sides_by_position(split, state.get("clips"))
            self._split_again(path, split, known)
        if known is not None:
            now = self._sides or self._hashes(self.order.indices, ())
            self._sides = Sides(now.trained | known.trained, now.validated)

    def _sides_by_position(self, share: float, clips: int | None) -> Sides | None:
        """The sides of versions up to 0.8, if so many clips are trained on by them."""
        left, apart = split_by_position(self.dataset, share)
        if len(self._hold_out(left)[0]) != clips:
            return None
        return self._hashes(left, apart)

    def _split_again(self, path: Path, share: float, known: Sides | None) -> None:
        if known is None:
            logger.warning(
                "%s does not say which clips it was validated on: it may have been trained on "
                "some of those that are validated on now, whose loss is then too low",
                path,
            )
            return
        left, indices = split_off(self.dataset, share, known)
        sides = self._hashes(left, indices)
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
            self._sides = sides
            self._validate_on(self.dataset, indices)
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

    # units

    def _range_of_items(self) -> Any:
        """The option `value_range` beside a `dataset`; with "fit" all items are read once."""
        given = self.options["value_range"]
        if not isinstance(given, str) or given != "fit":
            return given
        if not hasattr(self.dataset, "__len__") or isinstance(self.dataset, IterableDataset):
            raise ValueError(
                "Trainer: value_range='fit' must go with a dataset that has a length, got a "
                "stream; give (low, high)"
            )
        found: Any = None
        with self.processes.main_first():
            if self.processes.is_main:
                found = fit_value_range(range(len(self.dataset)), self._values_of)
        return self.processes.from_main(found)

    def _values_of(self, index: int) -> Tensor:
        video = self.hooks.unpack(collate([read_item(self.dataset, index, seed=0)]))[0][0]
        check_type("clips", video)
        if not video.isfinite().all():
            raise ValueError(
                f"Trainer: clips must be finite, got NaN or infinite values in item {index}; "
                "replace them, as with numpy.nan_to_num"
            )
        return video


def dataset_options(trainer_class: type) -> dict[str, Any]:
    """Keywords of `Dataset` that a Trainer passes on, and their defaults."""
    own = inspect.signature(trainer_class).parameters
    parameters = inspect.signature(Dataset).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in own and p.name not in _OWN}
    # a Trainer takes whatever can be read
    return {**options, "exts": None}


def check_source(
    given: Mapping[str, Any], options: Mapping[str, Any], trainer_class: type, results: Path
) -> str:
    """Finds out where the clips come from.

    Args:
        given: `folder`, `dataset` and `dataloader`.
        options: What else was given, for the Dataset.
        trainer_class: Whose keywords there are besides.
        results: The results folder.

    Returns:
        The name of the one that is given.

    Raises:
        TypeError: If a keyword is unknown, or does not go with the source.
        ValueError: If there is not one source, or it is the results folder.
    """
    known = dataset_options(trainer_class)
    for name in options:
        if name not in known:
            names = [*known, *inspect.signature(trainer_class).parameters]
            close = difflib.get_close_matches(name, names, n=1)
            raise TypeError(
                "Trainer: keywords must be the Trainer's or those of data.dataset.Dataset, got "
                f"{name!r}; {f'is {close[0]!r} meant?' if close else 'leave it out'}"
            )
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) != 1:
        raise ValueError(
            "Trainer: one of folder, dataset and dataloader must be given, got "
            f"{' and '.join(sources) or 'none'}; choose where the clips come from"
        )
    [source] = sources
    alone = [name for name in options if (name, source) != ("value_range", "dataset")]
    if alone and source != "folder":
        raise TypeError(
            f"Trainer: {', '.join(alone)} must go with a folder of clips, got a {source}; leave "
            "them out"
        )
    if source == "folder":
        _check_folder(given["folder"], results)
    return source


def _check_folder(folder: Any, results: Path) -> None:
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(
            f"Trainer: folder must be a path, got {type(folder).__name__}; pass a dataset as "
            "dataset=..., and a loader as dataloader=..."
        )
    if Path(folder).resolve() == results.resolve():
        raise ValueError(
            f"Trainer: results_folder must not be the folder of the clips, got {folder} for "
            "both, where samples would be trained on; choose another results_folder"
        )


def choose_workers(dataset: Any) -> int:
    """Number of processes that read clips: as many as this process's share of cores, at most 8.

    None with a single core, where clips need no decoding, and where a new process would run the
    user's script again (Windows, macOS).
    """
    # asking for the method in use would settle it, and a script may yet want to
    method = multiprocessing.get_start_method(allow_none=True)
    can_fork = (method or multiprocessing.get_all_start_methods()[0]) == "fork"
    clips = clips_behind(dataset)
    is_cached = clips is not None and clips.is_cached
    if not can_fork or is_cached or isinstance(dataset, IterableDataset):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # launchers say how many processes train on this machine
    own = (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if own <= 1 else min(8, own)


def warn_of_copies(dataset: Any, num_workers: int) -> None:
    """Says that each of several processes goes through the whole stream, unless it is shared."""
    kind = type(dataset)
    if not isinstance(dataset, IterableDataset) or num_workers < 2:
        return
    known = {owner.__module__.partition(".")[0] for owner in kind.__mro__} & _SHARING
    code = getattr(kind.__iter__, "__code__", None)
    if known or "get_worker_info" in getattr(code, "co_names", ()):
        return
    logger.warning(
        "num_workers=%d: each process goes through the whole %s, so that each clip comes %d times, "
        "unless its clips are drawn at random or its __iter__ takes a part by "
        "torch.utils.data.get_worker_info()",
        num_workers,
        kind.__name__,
        num_workers,
    )
