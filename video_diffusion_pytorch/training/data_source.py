"""The data of a run: clips, splits, order, batches, images, captions and sample conditions."""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from video_diffusion_pytorch.arguments import nearest_name
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.conditions import to_device
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.report import report_clips
from video_diffusion_pytorch.data.transforms import fit_scale
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import check_videos
from video_diffusion_pytorch.text import encoder_to_save, use_encoder
from video_diffusion_pytorch.training.batches import (
    ClipAndImages,
    ClipsWithImages,
    Draw,
    Endless,
    EndlessShuffle,
    ImageDraws,
    SeededItems,
    Unpack,
    check_items_of,
    choose_workers,
    collate,
    draws_from_clips,
    draws_from_pictures,
    join_images,
    logging_long_waits,
    read_item,
    seeded,
)
from video_diffusion_pytorch.training.captions import EncodedCaptions
from video_diffusion_pytorch.training.checks import (
    check_caption_width,
    check_first_clip,
    check_units,
    take_condition_scales,
    take_sigma_data,
    take_value_range,
)
from video_diffusion_pytorch.training.evaluate import Validation
from video_diffusion_pytorch.training.processes import Processes
from video_diffusion_pytorch.training.splits import (
    Sides,
    clips_behind,
    clips_to_show,
    files_of,
    hold_out,
    name_hashes,
    name_of,
    split_by_position,
    split_of_rows,
    split_off,
    whole_dataset,
)

logger = logging.getLogger("video_diffusion_pytorch")

# Conditions that sampling takes, too
_FOR_SAMPLES = ("cond", "cond_mask", "labels", "frame_cond", "cond_video")

# Arguments of Dataset that Trainer sets itself
# Options that also go with a dataset
_OF_ITEMS = ("value_range", "value_transform", "fit_clips")
_OWN = {"folder", "image_size", "channels", "num_frames", "exclude", "as_uint8"}


class Batch(NamedTuple):
    """A micro-batch of this process, on the training device.

    Attributes:
        videos: `(b, c, f, h, w)`.
        conditions: Keywords of the diffusion's forward, images included.
        positions: Positions of the clips in the run, which determine their random draws.
    """

    videos: Tensor
    conditions: dict[str, Any]
    positions: range


@dataclass
class DataSource:
    """Provides training batches, validation clips and sample conditions.

    `open` reads the first clip and starts the loader.

    Attributes:
        diffusion: The model.
        processes: Processes of the run.
        make_dataset: Makes a dataset from a folder and, optionally, options of `Dataset`.
        make_image_dataset: Makes the dataset of the image folder.
        make_dataloader: Makes the loader of a dataset.
        unpack: Splits a batch into videos and conditions.
        source: Which of `folder`, `dataset` and `dataloader` the clips come from.
        sources: These three; the others are None.
        options: Keywords of `Dataset`.
        batch_size: Clips per micro-batch of this process.
        seed: Seed of order and draws; None to draw one.
        num_workers: Number of worker processes that read clips; None to choose it.
        held_out: Number of files that are not trained on, as in `Trainer`.
        num_samples: Number of samples of a milestone.
        chosen_conditions: Conditions of the samples; None for those of clips.
        own_conditions: Names of conditions that only `compute_loss` of a subclass understands.
        image_frames: Images per clip.
        image_folder: Folder of the images; None to take them from other clips.
        validate_on: `folder`, `split`, `manifest`, `dataset` and `clips`, as `validation_folder`
            and so on in `Trainer`.
        dataset: The clips.
        order: The order of the training clips.
        loader: The endless iterator of batches.
        images: Draws the images of clips; None for none.
        validation: The validation clips; None for none.
        captions: Encodes captions.
        waited: Seconds spent waiting for batches so far.
    """

    diffusion: GaussianDiffusion
    processes: Processes
    make_dataset: Callable[..., Any]
    make_image_dataset: Callable[[Any], Any]
    make_dataloader: Callable[[Any], Any]
    unpack: Unpack
    source: str
    sources: Mapping[str, Any]
    options: Mapping[str, Any]
    batch_size: int
    seed: int | None
    num_workers: int | None
    held_out: int | None
    num_samples: int
    chosen_conditions: dict[str, Any] | None
    own_conditions: Set[str]
    image_frames: int
    image_folder: str | os.PathLike[str] | None
    validate_on: Mapping[str, Any]
    loader: Endless = field(init=False)
    captions: EncodedCaptions = field(init=False)
    images: ImageDraws | None = field(init=False, default=None)
    validation: Validation | None = field(init=False, default=None)
    waited: float = field(init=False, default=0.0)
    sigma_data_is_fitted: bool = field(init=False, default=False)
    range_is_fitted: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.dataset = self.sources["dataset"]
        seed = torch.randint(2**31, (), device="cpu") if self.seed is None else self.seed
        self.order = EndlessShuffle((), self.processes.from_main(int(seed) % 2**31))
        self.order.batch_size = self.batch_size
        self.order.process, self.order.num_processes = self.processes.share
        self._sample_conditions = self.chosen_conditions
        self._sides: Sides | None = None
        self._validated: Set[Any] = set()
        self._sample_clips: Sequence[int] = ()
        self._is_unchecked = False
        # the first batch of a stream that several workers read
        self._first_videos: Tensor | None = None

    def open(self) -> None:
        """Makes datasets and the loader, and checks the first clip against the model.

        Raises:
            ValueError: If the clips do not fit the model or each other's splits.
        """
        # more clips may have another range, but the weights of a checkpoint are for its own
        self.range_is_fitted = isinstance(self.options.get("value_range"), str)
        if self.source == "dataset" and not {*_OF_ITEMS}.isdisjoint(self.options):
            found, deviation = self._range_of_items()
            take_value_range(self.diffusion, None, found)
            self.sigma_data_is_fitted = take_sigma_data(self.diffusion, deviation)
        # the main process builds caches, the others find them
        with self.processes.main_first():
            if self.source == "folder":
                self.dataset = self.make_dataset(self.sources["folder"])
            take_value_range(self.diffusion, self.dataset)
            take_condition_scales(self.diffusion, self.dataset)
            deviation = getattr(whole_dataset(self.dataset), "value_deviation", None)
            self.sigma_data_is_fitted |= take_sigma_data(self.diffusion, deviation)
            kept = self._open_validation()
        if self.num_workers is None:
            self.num_workers = choose_workers(self.dataset)
        if self.source == "dataloader" or isinstance(self.dataset, IterableDataset):
            self._open_stream()
        else:
            self._check_first_clip()
            self._train_on(kept)
            self.restart()
        clips = clips_behind(self.dataset)
        if self.source == "folder" and clips is not None and self.processes.is_main:
            with seeded(0):
                report_clips(clips)
        if self._takes_captions:
            # of a model that was loaded
            use_encoder(self.diffusion.clip_info.text_encoder)
        cache_folder = self.options.get("cache") or self.sources["folder"]
        self.captions = EncodedCaptions(
            self.diffusion.text_use_bert_cls,
            None if cache_folder is None else Path(cache_folder),
            states=self.diffusion.takes_text_states,
        )

    def _open_stream(self) -> None:
        """Makes the loader of a stream or of the user, whose clips are only counted."""
        self._is_unchecked = True
        self.images = self._draw_from(None)
        loader = self.sources["dataloader"]
        if loader is None:
            loader = self.make_dataloader(self.dataset)
        check_items_of(loader)
        self.loader = Endless(self.processes.share_loader(loader))

    # batches

    def next_batch(self) -> Batch:
        """Returns the next micro-batch, and adds the seconds it took to `waited`."""
        start = time.perf_counter()
        batch = next(self.loader)
        clips, images = batch if isinstance(batch, ClipAndImages) else (batch, [])
        videos, conditions = self.unpack(clips)
        if self._is_unchecked:
            self._check_stream(videos)
        order = self.order
        if self.images is not None and not images:
            # a stream's items have no images
            seeds = (order.seed_at(order.position + i) for i in range(len(videos)))
            images = collate([self.images.draw(None, seed) for seed in seeds])
        self.waited += time.perf_counter() - start
        # a user's loader may return batches of any size
        first = order.position + order.process * len(videos)
        order.position += len(videos) * order.num_processes
        if self._sample_conditions is None:
            self._sample_conditions = self._conditions_of(videos, conditions)
        ready = self.to_device(conditions)
        if images and "images" in ready:
            raise ValueError(
                "Trainer: image_frames must be 0 if the items have images of their own, got "
                f"{self.image_frames}; leave it out"
            )
        if images:
            ready |= join_images([self.to_device(image) for image in images])
        device = self.processes.device
        positions = range(first, first + len(videos))
        return Batch(videos.to(device, non_blocking=True), ready, positions)

    def _check_stream(self, videos: Tensor) -> None:
        """Checks a stream's first batch, and whether the second one, of another worker, differs."""
        if self._first_videos is None:
            check_units(self.diffusion, videos, "the first batch")
            loader = self.loader.loader
            is_stream = isinstance(getattr(loader, "dataset", None), IterableDataset)
            self._is_unchecked = is_stream and getattr(loader, "num_workers", 0) > 1
            self._first_videos = videos if self._is_unchecked else None
            return
        if torch.equal(self._first_videos, videos):
            logger.warning(
                "the first two batches are equal: each worker reads the whole stream, so that each "
                "clip comes once per worker; divide it in __iter__ by "
                "torch.utils.data.get_worker_info(), or pass num_workers=0"
            )
        self._is_unchecked, self._first_videos = False, None

    def restart(self) -> None:
        """Restarts the loader at `order.position` and redraws the sample conditions.

        It ends the workers.
        """
        self.loader.restart()
        if self._sample_clips and self.chosen_conditions is None:
            clips = [self._items[Draw(clip, self.order.seed)] for clip in self._sample_clips]
            self._sample_conditions = self._conditions_of(*self.unpack(collate(clips)))

    def end_workers(self) -> None:
        """Ends the workers, unless the loader is the user's, which would start over."""
        # the garbage collector would wait for each
        if self.order.indices:
            self.loader.restart()

    def names(self, positions: Iterable[int]) -> list[str]:
        """Names of the clips at these positions for messages: their files, if they have any."""
        if not self.order.indices:
            return [f"clip number {position} of the stream" for position in positions]
        return [name_of(self.dataset, self.order.clip_at(position)) for position in positions]

    # conditions

    def to_device(self, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """Moves conditions to the training device and encodes captions."""
        ready = to_device(conditions, self.processes.device)
        for name, value in conditions.items():
            if isinstance(value, Mapping):
                ready[name] = self.to_device(value)
        cond = ready.get("cond")
        if isinstance(cond, (list, tuple)) and all(c is None or isinstance(c, str) for c in cond):
            if ready.get("cond_mask") is not None:
                raise ValueError(
                    "Trainer: cond_mask must be left out with captions, whose encoder gives it, "
                    f"got one of shape {tuple(ready['cond_mask'].shape)}"
                )
            ready |= self.captions(cond, self.processes.device)
        return ready

    def prepare_captions(self) -> None:
        """Encodes the known captions.

        Raises:
            ValueError: If their width is not the network's.
        """
        self.captions.prepare(self.known_captions, self.processes.device)
        check_caption_width(self.diffusion, self.captions.width)

    @property
    def known_captions(self) -> list[str]:
        """All captions of the datasets that list theirs."""
        known = [clips_behind(self.dataset), None if self.images is None else self.images.dataset]
        if self.validation is not None:
            known.append(clips_behind(self.validation.dataset))
        return [caption for clips in known for caption in getattr(clips, "captions", ())]

    @property
    def sample_conditions(self) -> dict[str, Any] | None:
        """Conditions of a milestone's samples, captions as text; None before the first batch."""
        if self._sample_conditions is None and not self.diffusion.condition_names:
            return {}
        return self._sample_conditions

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes by label, if the clips' folder has classes."""
        clips = clips_behind(self.dataset)
        return () if clips is None else clips.class_names

    @property
    def clip_info(self) -> ClipInfo:
        """What is known of the clips; where they say nothing, what the model knew before."""
        found: dict[str, Any] = {}
        clips = clips_behind(self.dataset)
        if clips is not None:
            found = {"fps": clips.frame_rate, "settings": clips.recorded_options}
            found |= {"class_names": clips.class_names, "cond_ranges": clips.cond_ranges}
        if self._takes_captions:
            found["text_encoder"] = encoder_to_save()
        return ClipInfo(**found).completed_by(self.diffusion.clip_info)

    @property
    def _takes_captions(self) -> bool:
        network = getattr(unwrap(self.diffusion.denoise_fn), "config", None) or {}
        is_for_text = network.get("use_bert_text_cond") or self.diffusion.takes_text_states
        return bool(is_for_text or self.known_captions)

    def unpack_for_model(self, batch: Any) -> tuple[Tensor, dict[str, Any]]:
        """Unpacks a batch without the conditions that only an overridden `compute_loss` takes."""
        videos, conditions = self.unpack(batch)
        own = self.own_conditions - {*_FOR_SAMPLES}
        return videos, {name: value for name, value in conditions.items() if name not in own}

    def _conditions_of(self, videos: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """The conditions, given frames included, to sample videos like these clips."""
        kept = {name: value for name, value in conditions.items() if name in _FOR_SAMPLES}
        if self.diffusion.given_frames:
            kept["first_frames"] = videos[:, :, : self.diffusion.given_frames]
        return kept

    # training clips

    def _check_first_clip(self) -> None:
        """Checks the first clip, and decides whether clips provide the sample conditions."""
        if not len(self.dataset):
            raise ValueError(
                "Trainer: the dataset must hold clips, got none; check where it looks for them"
            )
        self._items = SeededItems(self.dataset)
        with logging_long_waits():
            first = collate([self._items[Draw(0, self.order.seed)]])
        videos, conditions = self.unpack_for_model(first)
        check_first_clip(self.diffusion, clips_behind(self.dataset), videos, conditions)
        self._has_conditions = bool(conditions)

    def _hold_out(self, among: Sequence[int] | None) -> tuple[list[int], list[int]]:
        # without conditions, held-out clips would be of no use to the samples
        at_most = self.num_samples if self._has_conditions else 0
        return hold_out(self.dataset, self.held_out, at_most, among)

    def _train_on(self, among: Sequence[int] | None) -> None:
        """Holds out files of the clips with these indices, None for all, and makes the loader."""
        self.order.indices, apart = self._hold_out(among)
        self.images = self._draw_from(self.order.indices)
        items: Any = self._items
        if self.images is not None:
            items = ClipsWithImages(self._items, self.images)
        self.loader = Endless(self.make_dataloader(items))
        if self._has_conditions or self.diffusion.given_frames:
            self._sample_clips = clips_to_show(
                self.dataset, apart, self.order.indices, self.num_samples
            )

    def _draw_from(self, indices: Sequence[int] | None) -> ImageDraws | None:
        """Makes the drawing of images for the clips with these indices, None for a stream."""
        if not self.image_frames:
            return None
        if self.image_folder is not None:
            apart = {*self._validated}
            if indices is not None:
                apart |= files_of(self.dataset).keys() - files_of(self.dataset, indices).keys()
            pictures = self.make_image_dataset(self.image_folder)
            return draws_from_pictures(pictures, apart, self.image_frames, self.unpack)
        if indices is None:
            raise ValueError(
                "Trainer: image_frames must come from clips that can be read in any order, got a "
                "stream or a loader; pass image_folder"
            )
        return draws_from_clips(self.dataset, indices, self.image_frames, self.unpack)

    # validation clips

    def _open_validation(self) -> Sequence[int] | None:
        """Opens the validation clips; returns indices left to train on, None for all."""
        split, dataset = self.validate_on["split"], self.validate_on["dataset"]
        if split is not None and not isinstance(split, str):
            left, indices = split_off(self.dataset, split)
            self._validate_on(self.dataset, indices)
            self._sides = self._hashes(left, indices)
            return left
        if dataset is None:
            if {split, self.validate_on["folder"], self.validate_on["manifest"]} == {None}:
                return None
            dataset = self._make_validation_dataset()
        self._validate_on(dataset, None)
        kept = self._never_validated()
        if isinstance(split, str) and hasattr(self.dataset, "__len__"):
            among = range(len(self.dataset)) if kept is None else kept
            self._sides = self._hashes(among, ())
        return kept

    def _hashes(self, trained: Sequence[int], validated: Sequence[int]) -> Sides:
        return Sides(name_hashes(self.dataset, trained), name_hashes(self.dataset, validated))

    def _validate_on(self, dataset: Any, indices: Sequence[int] | None) -> None:
        self.validation = Validation(
            dataset,
            indices,
            at_most=self.validate_on["clips"],
            batch_size=self.batch_size,
            share=self.processes.share,
        )
        self._validated = files_of(dataset, indices).keys()
        self.validation.check(self.diffusion, self.unpack_for_model, self.class_names)

    def _make_validation_dataset(self) -> Any:
        """Opens a validation folder or split, in the units of the training clips."""
        split = self.validate_on["split"]
        table = self.validate_on["manifest"] or self.options.get("manifest")
        folder = self.validate_on["folder"] or self.sources["folder"]
        if folder is None or (table is None and split is not None):
            raise ValueError(
                "Trainer: a split by name must be of a folder's manifest, got "
                f"validation_split={split!r} and no {'folder' if folder is None else 'manifest'}; "
                "pass one, or a share of the files such as 0.05"
            )
        options = {**self.options}
        if table is not None:
            columns = self.options.get("manifest_columns")
            options["manifest"] = table
            options["split"] = split_of_rows(table, split, folder, columns)
        # those of the training clips
        options["cond_standardize"] = False
        # value_range="fit" may have found them
        units = self.diffusion.config["value_range"]
        if units is not None:
            options["value_range"] = units
            for name in ("value_transform", "fit_clips"):
                options.pop(name, None)
        return self.make_dataset(folder, options)

    def _never_validated(self) -> list[int] | None:
        """Indices of the clips whose files are not validated on; None for all.

        Raises:
            ValueError: If there are none, or a user's loader has clips that are validated on.
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
        count = f"{len(both)} of the {len(files)} files to train on"
        if not left or self.dataset is None:
            raise ValueError(
                "Trainer: clips that are validated on must not be trained on, got "
                f"{count}, such as {first}; pass another validation_folder or validation_dataset, "
                "or, for a share of the files, validation_split=0.05"
            )
        logger.warning("%s are validated on, such as %s: they are not trained on", count, first)
        return left

    # checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Seed, position, number of clips, and hashes of the files trained and validated on."""
        sides = self._sides
        return {
            "seed": self.order.seed,
            "position": self.order.position,
            "clips": len(self.order.indices),
            "files": sides and {name: sorted(found) for name, found in sides._asdict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], path: Path) -> None:
        """Continues after the last clip of a checkpoint; each file stays on its side of a split.

        Args:
            state: As from `state_dict`; empty for a file of the reference.
            path: The checkpoint, for warnings.
        """
        self._recall_sides(path, state)
        if state:
            self.order.seed, self.order.position = state["seed"], state["position"]
            clips, now = state.get("clips"), len(self.order.indices)
            if clips not in (None, now):
                text = "%s was trained on %d clips, and now there are %d: their order changes"
                logger.warning(text, path, clips, now)
        self.restart()

    def _recall_sides(self, path: Path, state: Mapping[str, Any]) -> None:
        """Keeps each file on the side it has in the checkpoint."""
        split, found = self.validate_on["split"], state.get("files")
        known = None if found is None else Sides(*({*found[name]} for name in Sides._fields))
        is_fraction = split is not None and not isinstance(split, str)
        if is_fraction and "files" not in state:
            # versions up to 0.8 split by position
            left, apart = split_by_position(self.dataset, split)
            if len(self._hold_out(left)[0]) == state.get("clips"):
                known = self._hashes(left, apart)
        if is_fraction and known is None:
            logger.warning("%s may have been trained on files that are validated on now", path)
        if known is None:
            return
        if is_fraction:
            self._split_again(path, split, known)
        elif split is not None and self.validate_on["folder"] is None:
            assert self.validation is not None
            dataset = self.validation.dataset
            again = len(name_hashes(dataset, range(len(dataset))) & known.trained)
            if again:
                logger.warning("%s was trained on %d files that are validated on now", path, again)
        now = self._sides or self._hashes(self.order.indices, ())
        self._sides = Sides(now.trained | known.trained, now.validated)

    def _split_again(self, path: Path, share: float, known: Sides) -> None:
        left, indices = split_off(self.dataset, share, known)
        sides = self._hashes(left, indices)
        if sides.validated != known.validated:
            text = "other files than by %s are validated on: losses before and after do not compare"
            logger.warning(text, path)
        if sides != self._sides:
            self._sides = sides
            self._validate_on(self.dataset, indices)
            self._train_on(left)

    # units

    def _range_of_items(self) -> tuple[Any, float | None]:
        """The option `value_range` of a `dataset`, and the standard deviation in it if known.

        With "fit" and "standardize" it reads items once.
        """
        given, *how = (self.options.get(name) for name in _OF_ITEMS)
        channels = self.diffusion.channels
        if not isinstance(given, str):
            return fit_scale(given, channels, (), self._values_of, *how)
        if not hasattr(self.dataset, "__len__"):
            raise ValueError(
                f"Trainer: value_range={given!r} must go with a dataset that has a length, got a "
                f"{type(self.dataset).__name__}; give the range, as (low, high)"
            )
        found: Any = None
        with self.processes.main_first():
            if self.processes.is_main:
                items = range(len(self.dataset))
                found = fit_scale(given, channels, items, self._values_of, *how)
        return self.processes.from_main(found)

    def _values_of(self, index: int) -> list[Tensor]:
        video = self.unpack(collate([read_item(self.dataset, index, seed=0)]))[0][0]
        check_videos("Trainer: clips", video, ("c", "f", "h", "w"))
        if not video.isfinite().all():
            raise ValueError(
                f"Trainer: clips must be finite, got NaN or infinite values in item {index}; "
                "replace them, as with numpy.nan_to_num"
            )
        return [video]


def dataset_options(trainer_class: type) -> dict[str, Any]:
    """Keywords of `Dataset` that `Trainer` passes on, and their defaults."""
    own = inspect.signature(trainer_class).parameters
    parameters = inspect.signature(Dataset).parameters.values()
    options = {p.name: p.default for p in parameters if p.name not in own and p.name not in _OWN}
    # Trainer reads files of every format
    return {**options, "exts": None}


def check_source(
    given: Mapping[str, Any], options: Mapping[str, Any], trainer_class: type, results: Path
) -> str:
    """Checks the source of the clips.

    Args:
        given: `folder`, `dataset` and `dataloader`.
        options: Keywords for `Dataset`.
        trainer_class: `Trainer` or a subclass, whose keywords are suggested as well.
        results: The results folder.

    Returns:
        The name of the source that is not None.

    Raises:
        TypeError: If a keyword is unknown or does not go with the source, or a folder is no path.
        ValueError: If there is not exactly one source, or it is the results folder.
    """
    known = dataset_options(trainer_class)
    for name in options.keys() - known:
        names = [*known, *inspect.signature(trainer_class).parameters]
        meant = nearest_name(name, names)
        raise TypeError(
            "Trainer: keywords must be the Trainer's or those of data.dataset.Dataset, got "
            f"{name!r}; {f'is {meant!r} meant?' if meant else 'leave it out'}"
        )
    sources = [name for name, value in given.items() if value is not None]
    if len(sources) != 1:
        raise ValueError(
            "Trainer: one of folder, dataset and dataloader must be given, got "
            f"{' and '.join(sources) or 'none'}; choose where the clips come from"
        )
    [source] = sources
    alone = [name for name in options if source != "dataset" or name not in _OF_ITEMS]
    if alone and source != "folder":
        raise TypeError(
            f"Trainer: {', '.join(alone)} must go with a folder of clips, got a {source}; leave "
            "them out"
        )
    if source == "folder" and not isinstance(given["folder"], (str, os.PathLike)):
        raise TypeError(
            f"Trainer: folder must be the path of a folder, got a {type(given['folder']).__name__};"
            " pass clips as dataset= or dataloader="
        )
    if source == "folder" and Path(given["folder"]).resolve() == results.resolve():
        raise ValueError(
            f"Trainer: results_folder must not be the folder of the clips, got {results} for "
            "both; choose another results_folder"
        )
    return source
