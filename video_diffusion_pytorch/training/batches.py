"""Batches of clips: sampling order, random draws, images, collation, loading and unpacking."""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    default_collate,
)

from video_diffusion_pytorch.conditions import CONDITIONS, to_one_length
from video_diffusion_pytorch.conditions import join_images as conditions_of_images
from video_diffusion_pytorch.data.dataset import Dataset as Clips
from video_diffusion_pytorch.data.dataset import SingleFrames
from video_diffusion_pytorch.data.errors import SkipUnreadable, UnreadableVideoError
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess
from video_diffusion_pytorch.text import pad_states
from video_diffusion_pytorch.training.splits import clips_behind, file_key, files_of

logger = logging.getLogger("video_diffusion_pytorch")

Unpack = Callable[[Any], tuple[Tensor, dict[str, Any]]]
"""Splits a batch into videos and conditions."""

# Attempts to load a batch whose workers die
_TRIES = 3

# Errors after the death of a worker, from torch or from the broken connection
_SIGNS_OF_DEATH = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)

# Seconds after which a wait for a batch is logged, and again each time it has doubled
_PATIENCE = 60.0


# The fractional part of the golden ratio times 2**64: multiples of it fill an interval evenly
_GOLDEN = 0x9E3779B97F4A7C15


class Draw(NamedTuple):
    """Index of a clip to read, and the seed of its random draws, such as its crop."""

    clip: int
    seed: int


class EndlessShuffle(Sampler[Draw]):
    """A sampler of endless shuffled epochs, starting at `position`.

    Order and seeds are functions of `seed` and position, so that a resumed run continues with the
    clip at which the interrupted one stopped, for any number of workers. Each process gets its
    own part of every batch; together they draw the clips that one process would draw with a batch
    as large as all of theirs.

    Args:
        indices: Indices of the clips to train on.
        seed: Seed of the order.

    Attributes:
        position: Number of clips trained on so far, over all epochs and processes; counted by the
            caller.
        batch_size: Clips per micro-batch of a process.
        process: Rank of this process, from 0.
        num_processes: World size.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.position = indices, seed, 0
        self.batch_size, self.process, self.num_processes = 1, 0, 1
        self._epochs: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Draw]:
        """Yields clips and seeds."""
        position = self.position
        while self.indices:
            for place in self.places(position):
                yield Draw(self.clip_at(place), self.seed_at(place))
            position += self.batch_size * self.num_processes

    def places(self, position: int) -> range:
        """Positions of this process's clips in the global micro-batch that starts at `position`."""
        first = position + self.process * self.batch_size
        return range(first, first + self.batch_size)

    def clip_at(self, position: int) -> int:
        """The index of the clip at a position."""
        epoch, offset = divmod(position, len(self.indices))
        return self.indices[int(self._order_of(epoch)[offset])]

    def seed_at(self, position: int) -> int:
        """The seed of the random draws of the clip at a position."""
        # runs with neighbouring seeds share no clip's seed
        return self.seed * 1_000_003 + position

    def _order_of(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # a batch may span two epochs
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            seed = -1 - self.seed * 1_000_003 - epoch
            generator = torch.Generator().manual_seed(seed)
            self._epochs[epoch] = torch.randperm(
                len(self.indices), generator=generator, device="cpu"
            )
        return self._epochs[epoch]


class SeededItems(Dataset[Any]):
    """Wraps a dataset so that the random draws of an item depend only on the seed in its `Draw`.

    A dataset with a method `draw_clip(index, generator)`, such as `data.dataset.Dataset`, gets a
    generator. For any other one the global generators of torch, NumPy and Python are seeded, and
    restored afterwards.

    Args:
        dataset: Has a length. Items that cannot be decoded are replaced as in `SkipUnreadable`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = SkipUnreadable(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        """Returns the item `draw.clip`."""
        # seeded for each item: an unreadable one must not change the draws of its replacement
        read = partial(read_item, self.dataset.dataset, seed=draw.seed)
        return self.dataset.first_readable(draw.clip, read)


def read_item(dataset: Any, index: int, seed: int) -> Any:
    """Reads an item of any dataset with random draws from a seed, as in `SeededItems`."""
    if _draws_clips(type(dataset)):
        return dataset.draw_clip(index, torch.Generator().manual_seed(seed))
    with seeded(seed):
        item = dataset[index]
    _check_masks(item, f"item {index}")
    return item


def _check_masks(item: Any, where: str) -> None:
    """Raises a ValueError if an item, or a value in it, is masked: torch would drop the mask."""
    if isinstance(item, Mapping):
        item = [*item.values()]
    if isinstance(item, (tuple, list)):
        for value in item:
            _check_masks(value, where)
    elif np.ma.is_masked(item):
        raise ValueError(
            f"Trainer: the dataset must give a number for each value, got "
            f"{np.ma.count_masked(item)} masked ones of {item.size} in {where}; fill them, as by "
            "array.filled(0)"
        )


def _draws_clips(kind: type) -> bool:
    """Whether items come from `draw_clip`: a subclass may override `__getitem__` only."""
    names = ("draw_clip", "__getitem__")
    owner = next((o for o in kind.__mro__ if any(name in vars(o) for name in names)), object)
    return "draw_clip" in vars(owner)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, NumPy and Python, and restores them afterwards."""
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])


class ClipDraws:
    """Draws time steps, noise, and which clips drop their conditions or focus on the present.

    A clip's draws depend on its seed only: not on the batch, the number of processes or earlier
    draws. So runs on one and on eight devices train on the same noisy clips, and a resumed run
    repeats them. The time steps of clips with successive seeds, as those of a run are, are a
    low-discrepancy sequence: every batch covers the noise levels evenly, whatever its size.

    Args:
        diffusion: The model. If its class overrides `draw_times`, or has a `forward` or `p_losses`
            with an older signature, it draws itself, from the global generators.

    Attributes:
        is_even: Whether the time steps are spread evenly; False for independent ones, with which a
            run of a version up to 0.8 goes on.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        own = inspect.signature(type(diffusion).forward).parameters
        loss = inspect.signature(type(diffusion).p_losses).parameters
        network = inspect.signature(unwrap(diffusion.denoise_fn).forward).parameters
        self.is_supported = (
            "t" in own
            and {"reduction", "drop_mask"} <= own.keys() & loss.keys()
            and type(diffusion).draw_times is ForwardProcess.draw_times
        )
        self.diffusion = diffusion
        self.is_even = True
        self._can_drop = "drop_mask" in network and bool(diffusion.condition_names)
        self._can_focus = "focus_present_mask" in network

    def __call__(
        self, seeds: Sequence[int], num_frames: int, prob_focus_present: float = 0.0
    ) -> dict[str, Any]:
        """Keywords of the diffusion's `forward` for clips with these seeds.

        Args:
            seeds: One per clip.
            num_frames: Frames of a clip plus its images.
            prob_focus_present: Probability that the frames of a clip do not attend to each other.

        Returns:
            `t` `(b,)`, or `(b, num_frames)` for a model with `frame_noise`, `noise`
            `(b, c, num_frames, h, w)`, `reduction="none"`, and the boolean masks `(b,)` that the
            network takes; empty for a model that draws itself.
        """
        if not self.is_supported:
            return {}
        has_levels = self.diffusion.frame_noise is not None
        numbers = torch.empty(
            len(seeds), 3 + num_frames * has_levels, dtype=torch.float64, device="cpu"
        )
        generator = torch.Generator()
        for row, seed in zip(numbers, seeds, strict=True):
            row.uniform_(generator=generator.manual_seed(_mixed(seed, 0)))
        fractions = _spread(seeds) if self.is_even else numbers[:, 0]
        if has_levels:
            is_shared = numbers[:, :1] < self.diffusion.shared_noise_prob
            fractions = torch.where(is_shared, fractions[:, None], numbers[:, 3:])
        drawn = self._given(fractions, seeds, num_frames)
        device = self.diffusion.betas.device
        if self._can_drop:
            dropped = numbers[:, 1] < self.diffusion.cond_drop_prob
            drawn["drop_mask"] = dropped.to(device, non_blocking=True)
        if self._can_focus and prob_focus_present:
            focused = numbers[:, 2] < prob_focus_present
            drawn["focus_present_mask"] = focused.to(device, non_blocking=True)
        return drawn

    def fixed(self, numbers: Sequence[int], num_frames: int) -> dict[str, Any]:
        """Draws for validation: nothing is dropped, and time steps are spread evenly.

        Args:
            numbers: Numbers of the draws, from 0; each has the same time step and noise in every
                run.
            num_frames: Frames of a clip.

        Returns:
            As `__call__`; empty for a model that draws itself.
        """
        if not self.is_supported:
            return {}
        drawn = self._given(_spread(numbers), numbers, num_frames)
        if self._can_drop:
            drawn["drop_mask"] = torch.zeros_like(drawn["t"], dtype=torch.bool)
        return drawn

    def _given(self, fractions: Tensor, seeds: Sequence[int], num_frames: int) -> dict[str, Any]:
        """Time steps at fractions of the schedule in [0, 1), and noise."""
        betas, t = self.diffusion.betas, self.diffusion.times_at(fractions)
        if t.is_floating_point():
            t = t.to(betas.dtype)
        c, _, h, w = self.diffusion.clip_shape
        noise = torch.empty(len(seeds), c, num_frames, h, w, device=betas.device, dtype=betas.dtype)
        generator = torch.Generator(betas.device)
        for clip, seed in zip(noise, seeds, strict=True):
            clip.normal_(generator=generator.manual_seed(_mixed(seed, 1)))
        noise = self.diffusion.correlated(noise, self.diffusion.num_frames)
        return {"t": t.to(betas.device, non_blocking=True), "noise": noise, "reduction": "none"}


def _spread(seeds: Sequence[int]) -> Tensor:
    """Numbers in [0, 1) that successive seeds spread evenly, float64 `(b,)`.

    They are the fractional parts of the seeds times the golden ratio, from 0.5 on, an additive
    recurrence of low discrepancy: any run of `n` of them has about one in each `n`-th of the
    interval.
    """
    # in whole numbers, exact for seeds of any size
    fractions = [(seed * _GOLDEN + 2**63) % 2**64 / 2**64 for seed in seeds]
    # the division of the largest would round to 1
    return torch.tensor(fractions, dtype=torch.float64, device="cpu").clamp(max=1 - 2**-53)


def _mixed(seed: int, stream: int) -> int:
    """Mixes a seed and a stream into a well-distributed seed (splitmix64, Steele et al. 2014).

    CPU generators use the lower 32 bits only, and similar seeds give similar first numbers.
    """
    z = (seed * 2 + stream + 1) * _GOLDEN % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1


class ClipAndImages(NamedTuple):
    """An item, or a batch of items: a clip and its images.

    Attributes:
        clip: The item of the dataset.
        images: One dict per image: `video` `(c, 1, h, w)`, and its conditions by keyword.
    """

    clip: Any
    images: list[dict[str, Any]]


@dataclass
class ImageDraws:
    """Draws images for clips: random single frames of a dataset, each from another file.

    Files and frames depend on the seed only.

    Attributes:
        dataset: Has a length; its items are read as those of `SeededItems`.
        files: The indices of the items of each file.
        own: The file of each clip, by the clip's index; empty if the images are not of clips.
        count: Number of images per clip; with fewer files, files repeat.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If no file is left for the images of a clip.
    """

    dataset: Any
    files: Sequence[Sequence[int]]
    own: Mapping[int, int]
    count: int
    unpack: Unpack
    _unreadable: set[int] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        if len(self.files) < (2 if self.own else 1):
            raise ValueError(
                "Trainer: image_frames must be frames of other clips, got clips of "
                f"{len(self.files)} files to train on; give more, or pass image_folder"
            )

    def draw(self, clip: int | None, seed: int) -> list[dict[str, Any]]:
        """Draws the images of a clip.

        Args:
            clip: Index of the clip, whose file is excluded; None to exclude none.
            seed: Seed of the draws.

        Raises:
            UnreadableVideoError: If more than a tenth of the files were found unreadable.
        """
        own = None if clip is None else self.own.get(clip)
        images: list[dict[str, Any]] = []
        # a string as the seed, so that these draws are independent of the clip's
        for file in _endless_shuffle(len(self.files), random.Random(f"files {seed}")):
            if len(images) == self.count:
                break
            if file == own or file in self._unreadable:
                continue
            # one generator per image: an unreadable file must not change the next image's draws
            rng = random.Random(f"image {len(images)} of {seed}")
            try:
                images.append(self._read(rng.choice(self.files[file]), rng))
            except UnreadableVideoError as error:
                self._exclude(file, error)
        return images

    def _read(self, index: int, rng: random.Random) -> dict[str, Any]:
        batch = collate([read_item(self.dataset, index, rng.randrange(2**48))])
        videos, conditions = self.unpack(batch)
        # padding frames are not used as images
        mask = conditions.get("frame_mask")
        real = None if mask is None else mask[0].nonzero().flatten().tolist()
        frame = rng.choice(real) if real else rng.randrange(videos.shape[2])
        names = [name for name in CONDITIONS if name in conditions]
        of_frame = {name: _of_frame(name, conditions[name], frame) for name in names}
        return {"video": videos[0, :, frame : frame + 1], **of_frame}

    def _exclude(self, file: int, error: UnreadableVideoError) -> None:
        self._unreadable.add(file)
        count, total = len(self._unreadable), len(self.files)
        if count > total / 10:
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files of images to be unreadable, got "
                f"{count}; repair or remove them, the last being: {error}"
            ) from error
        logger.warning("left out for images: %s", error)


class ClipsWithImages(Dataset[Any]):
    """A dataset of clips with their images.

    Args:
        clips: The clips.
        images: Draws their images.
    """

    def __init__(self, clips: SeededItems, images: ImageDraws) -> None:
        self.clips, self.images = clips, images

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> ClipAndImages:
        """Returns the item `draw.clip` and its images."""
        return ClipAndImages(self.clips[draw], self.images.draw(draw.clip, draw.seed))


def draws_from_clips(
    dataset: Any, indices: Sequence[int], count: int, unpack: Unpack
) -> ImageDraws:
    """Draws images from the training clips themselves.

    Args:
        dataset: The clips. A folder's `Dataset` decodes single frames, any other one whole items.
        indices: Indices of the training clips.
        count: Number of images per clip.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If they are of fewer than two files.
    """
    files = [*files_of(dataset, indices).values()]
    own = {index: number for number, file in enumerate(files) for index in file}
    while type(dataset) is Subset:
        files = [[int(dataset.indices[index]) for index in file] for file in files]
        dataset = dataset.dataset
    # a subclass may return other items
    source = SingleFrames(dataset) if type(dataset) is Clips else dataset
    return ImageDraws(source, files, own, count, unpack)


def draws_from_pictures(pictures: Any, apart: Set[Any], count: int, unpack: Unpack) -> ImageDraws:
    """Draws images from a dataset of pictures or clips.

    Args:
        pictures: The dataset; `paths`, if it has this attribute, are the files of its items.
        apart: Keys (`splits.file_key`) of files to exclude.
        count: Number of images per clip.
        unpack: Splits a batch into videos and conditions.
    """
    paths = getattr(pictures, "paths", None)
    items = range(len(pictures))
    files = [[i] for i in items if paths is None or file_key(paths[i]) not in apart]
    return ImageDraws(pictures, files, {}, count, unpack)


def join_images(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins images to keywords of the diffusion's forward.

    Args:
        batches: `k` dicts, one for each image of a clip: `video` `(b, c, 1, h, w)`, and conditions
            as for `b` clips of one frame.

    Returns:
        `images` `(b, c, k, h, w)` and `image_conditions`, with a row per image.
    """
    videos = [batch["video"] for batch in batches]
    conditions_of_each = [{n: v for n, v in one.items() if n != "video"} for one in batches]
    if any("null_cond_mask" in one for one in conditions_of_each):
        all_false = torch.zeros(len(videos[0]), dtype=torch.bool, device=videos[0].device)
        conditions_of_each = [{"null_cond_mask": all_false, **one} for one in conditions_of_each]
    if "cond_mask" in conditions_of_each[0]:
        conditions_of_each = to_one_length(conditions_of_each)
    conditions = {
        name: conditions_of_images(name, alike([one[name] for one in conditions_of_each]))
        for name in conditions_of_each[0]
    }
    return {"images": torch.cat(alike(videos), dim=2), "image_conditions": conditions}


def _of_frame(name: str, rows: Any, frame: int) -> Any:
    """The condition of one frame, from a batch of one clip."""
    value = rows[0]
    if name == "frame_cond":
        return value[frame : frame + 1]
    if name == "cond_video":
        return value[:, None] if value.ndim == 3 else value[:, frame : frame + 1]
    return value


def _endless_shuffle(length: int, rng: random.Random) -> Iterator[int]:
    """Endless random permutations of the numbers below `length`, at constant cost per number."""
    while True:
        moved: dict[int, int] = {}
        for place in range(length):
            other = rng.randrange(place, length)
            yield moved.get(other, other)
            moved[other] = moved.get(place, place)


def collate(items: Sequence[Any]) -> Any:
    """Collates items as torch does, with four differences.

    Arrays may have any byte order and strides, but no masked values. Strings may be missing (None),
    and stay a list. Clips of uint8 and of floats in [0, 1] may be mixed, and become floats. States
    of captions, `cond` `(n, d)`, may differ in `n`: shorter ones are padded, and `cond_mask` is
    false there.

    Args:
        items: Tensors, tuples, dicts, numbers or strings, all of one kind.

    Raises:
        ValueError: If keys, shapes or types differ.
    """
    first = items[0]
    keys = [sorted(item) if isinstance(item, Mapping) else "no dict" for item in items]
    other = next((found for found in keys if found != keys[0]), None)
    if other is not None:
        raise ValueError(
            "Trainer: the items of a dataset must be all dicts with the same keys, or none, got "
            f"{keys[0]} and {other}; give each all keys, with None for a text that is missing"
        )
    if isinstance(first, (Tensor, np.ndarray)):
        return _stack([_as_tensor(item) for item in items])
    if isinstance(first, str) or any(item is None for item in items):
        return list(items)
    if isinstance(first, Mapping):
        padded = _padded_states(items)
        return {
            key: collate([i[key] for i in items]) for key in first if key not in padded
        } | padded
    if isinstance(first, list) and all(isinstance(value, (int, float)) for value in first):
        return torch.tensor(items, device="cpu")
    if isinstance(first, (tuple, list)):
        columns = map(collate, zip(*items, strict=True))
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    # which makes tensors on torch's default device
    with torch.device("cpu"):
        return default_collate(list(items))


def check_items_of(loader: Any) -> None:
    """Makes a loader with torch's `default_collate`, which drops masks, refuse masked arrays."""
    if isinstance(loader, DataLoader) and loader.collate_fn is default_collate:
        loader.collate_fn = _collate_as_torch


def _collate_as_torch(items: list[Any]) -> Any:
    for item in items:
        _check_masks(item, "an item")
    return default_collate(items)


def _as_tensor(item: Any) -> Tensor:
    if not isinstance(item, np.ndarray):
        return item if torch.is_tensor(item) else torch.as_tensor(item, device="cpu")
    _check_masks(item, "an item")
    # torch has few unsigned types, and only the native byte order
    is_unsigned = item.dtype.kind == "u" and item.dtype.itemsize > 1
    kind = np.dtype(np.int64) if is_unsigned else item.dtype.newbyteorder("=")
    array = np.asarray(item).astype(kind, order="C", copy=not item.flags.writeable)
    return torch.from_numpy(array)


def _padded_states(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """`cond` and `cond_mask` of states of different lengths; empty for anything else."""
    found = [item.get("cond") for item in items]
    states = [one for one in found if isinstance(one, Tensor) and one.ndim == 2]
    if "cond_mask" in items[0] or len(states) < len(items):
        return {}
    if len({len(s) for s in states}) == 1 or len({s.shape[1] for s in states}) > 1:
        return {}
    padded, mask = pad_states(states)
    return {"cond": padded, "cond_mask": mask}


def alike(tensors: list[Tensor]) -> list[Tensor]:
    """Converts tensors to one type: mixed uint8 and floats in [0, 1] become floats.

    Raises:
        ValueError: If they are mixed with other types, whose units are unknown.
    """
    kinds = {tensor.dtype for tensor in tensors}
    if len(kinds) > 1:
        if any(kind != torch.uint8 and not kind.is_floating_point for kind in kinds):
            raise ValueError(
                "Trainer: the items of a batch must have one type of numbers, got "
                f"{', '.join(sorted(map(str, kinds)))}; convert them in the dataset"
            )
        return [t.float() / 255 if t.dtype == torch.uint8 else t.float() for t in tensors]
    return tensors


def _stack(tensors: list[Tensor]) -> Tensor:
    tensors = alike(tensors)
    if all(t.ndim == 4 and t.movedim(0, -1).is_contiguous() for t in tensors):
        # decoded frames are channels-last in memory, as the network needs them
        return torch.stack([tensor.movedim(0, -1) for tensor in tensors]).movedim(-1, 1)
    return torch.stack(tensors)


def choose_workers(dataset: Any) -> int:
    """Number of workers: this process's share of the cores, at most 8.

    0 with a single core, for cached clips and streams, and where a new process would import the
    user's script again (Windows, macOS).
    """
    # without allow_none the call would fix the method, which the script may still set
    method = multiprocessing.get_start_method(allow_none=True)
    can_fork = (method or multiprocessing.get_all_start_methods()[0]) == "fork"
    clips = clips_behind(dataset)
    is_cached = clips is not None and clips.is_cached
    if not can_fork or is_cached or isinstance(dataset, IterableDataset):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    # set by launchers
    own = (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if own <= 1 else min(8, own)


class Endless(Iterator[Any]):
    """Endless batches of a loader, which restarts when it is exhausted or interrupted.

    Dead workers of a torch loader are replaced.

    Args:
        loader: Any iterable that can be iterated more than once. After a worker's death it must
            continue with the batch that was not delivered yet, as `EndlessShuffle` does.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = None

    def restart(self) -> None:
        """Ends the workers; the next batch is the first of the loader."""
        self._batches = None

    def __next__(self) -> Any:
        """Returns the next batch.

        Raises:
            ValueError: If the loader is empty.
            RuntimeError: If its workers die repeatedly.
        """
        for _ in range(_TRIES):
            try:
                return self._next()
            except _SIGNS_OF_DEATH as error:
                if not self._is_death_of_worker(error):
                    raise
                death = error
                logger.warning("a worker that reads clips died (%s): it is replaced", error)
        raise RuntimeError(
            f"Trainer: the workers that read clips must stay alive, got {_TRIES} deaths at one "
            f"batch ({death}); look for a lack of memory or a file that crashes its reader, or "
            "read in the main process with num_workers=0"
        ) from death

    def _next(self) -> Any:
        for _ in range(2):
            if self._batches is None:
                self._batches = iterate(self.loader)
            try:
                with logging_long_waits():
                    return next(self._batches)
            except StopIteration:
                self.restart()
            except BaseException:
                # an interrupted iterator is exhausted
                self.restart()
                raise
        raise ValueError(
            "Trainer: the data loader must give at least one batch, got none; check that the "
            "dataset is not empty, and not smaller than a batch with drop_last"
        )

    def _is_death_of_worker(self, error: Exception) -> bool:
        text = str(error)
        if isinstance(error, RuntimeError):
            return text.startswith("DataLoader worker") and ("exited" in text or "killed" in text)
        # an error of the dataset itself names the worker in its first line
        has_workers = getattr(self.loader, "num_workers", 0) > 0
        return has_workers and "in DataLoader worker process" not in text.partition("\n")[0]


def iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Starts an iteration with the CPU as torch's default device, and without its SIGCHLD handler.

    With another default device a loader's generator, and tensors of its workers, would be on the
    wrong one. The handler raises anywhere in the main thread when a worker dies, for example during
    an optimizer step. Without it the death is noticed at the next batch.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        with torch.device("cpu"):
            return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    with torch.device("cpu"):
        batches = iter(loader)
    # torch's handler may be left from another loader
    if not callable(handler) or "torch" in getattr(handler, "__module__", ""):
        handler = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, handler)
    return batches


@contextmanager
def logging_long_waits() -> Iterator[None]:
    """Logs a warning if the block takes one minute, and after two, four, eight and so on."""
    ended = threading.Event()
    watcher = threading.Thread(target=_log_until, args=(ended,), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        # no thread may be left, as workers are forked
        ended.set()
        watcher.join()


def _log_until(ended: threading.Event) -> None:
    waited, next_wait = _PATIENCE, _PATIENCE
    while not ended.wait(next_wait):
        logger.warning(
            "the training has waited %g s for clips: look for a disk that does not answer, or "
            "a reader or dataset that does not return; Ctrl+C twice ends the training",
            waited,
        )
        waited, next_wait = 2 * waited, waited


# Other usual keys for clips and conditions
_ALIASES = {
    "caption": "cond",
    "captions": "cond",
    "text": "cond",
    "label": "labels",
    "videos": "video",
}


def unpack_batch(batch: Any) -> tuple[Tensor, dict[str, Any]]:
    """Splits a batch into videos and keywords of the diffusion's forward.

    Args:
        batch: The videos `(b, c, f, h, w)`; or a tuple or list of videos and conditions; or a dict
            with the key `video`, whose other keys are keywords of `GaussianDiffusion.forward`
            (`cond`, `cond_mask`, `labels`, `frame_cond`, `cond_video`, `images`; `caption`, `text`
            and `label` are aliases of `cond` and `labels`; keys that start with two underscores
            are ignored). In a tuple, integers are labels, and other tensors `cond`, `frame_cond`
            or `cond_video` by their number of axes: 2, 3, or 4 and 5. States of text, which also
            have 3 axes, need a dict.

    Raises:
        TypeError: If the videos are not a tensor.
        ValueError: If a dict has no `video`, or two keys for one condition.
    """
    video, conditions = batch, {}
    if isinstance(batch, Mapping):
        named = {_ALIASES.get(str(key), str(key)): value for key, value in batch.items()}
        if len(named) < len(batch) or "video" not in named:
            raise ValueError(
                "Trainer: a batch that is a dict must have the key 'video', and one key per "
                f"condition, got {sorted(batch)}; rename them, or override Trainer.unpack_batch"
            )
        video = named.pop("video")
        conditions = {key: value for key, value in named.items() if not key.startswith("__")}
    elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        video, *cond = batch
        conditions = {_keyword(value): value for value in cond}
    if not isinstance(video, Tensor):
        raise TypeError(
            "Trainer: a batch must be a tensor of clips (b, c, f, h, w), (clips, cond), or a dict "
            f"with 'video' and conditions, got {type(video).__name__} for the clips; change the "
            "dataset, or override Trainer.unpack_batch"
        )
    return video, conditions


def _keyword(cond: Any) -> str:
    """The keyword of the diffusion for the second item of a tuple."""
    if not isinstance(cond, Tensor) or not cond.ndim:
        return "cond"
    if cond.ndim == 1 and not cond.is_floating_point():
        return "labels"
    return {3: "frame_cond", 4: "cond_video", 5: "cond_video"}.get(cond.ndim, "cond")
