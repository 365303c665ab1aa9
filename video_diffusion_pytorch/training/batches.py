"""Batches of clips: their order, their random draws, collation, and how a batch is unpacked."""

from __future__ import annotations

import logging
import random
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from video_diffusion_pytorch.data.errors import SkipUnreadable
from video_diffusion_pytorch.text import pad_states

logger = logging.getLogger("video_diffusion_pytorch")

# How often workers may die at one batch before the run ends
_TRIES = 3

# What is raised when a worker dies: by torch, or by the broken connection to it
_SIGNS_OF_DEATH = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)

# Seconds after which a wait for a batch is logged, and again each time it has doubled
_PATIENCE = 60.0


class Draw(NamedTuple):
    """Number of a clip to read, and the seed of what is random about it, such as its crop."""

    clip: int
    seed: int


class EndlessShuffle(Sampler[Draw]):
    """Shuffled epochs without end, which begin at `position`.

    Order and seeds are a function of `seed` and the position, so that a resumed run goes on with
    the clip at which the interrupted one stopped, whatever the number of workers. Of several
    processes each gets its own part of every batch; joined, they have the clips that one process
    has with a batch as large as all of theirs.

    Args:
        indices: Of the clips to train on.
        seed: Seed of the order.

    Attributes:
        position: Number of clips, over all epochs and processes, that training has had. The trainer
            counts.
        batch_size: Clips of a process's micro-batch.
        process: Number of this process, from 0.
        num_processes: How many there are.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices, self.seed, self.position = indices, seed, 0
        self.batch_size, self.process, self.num_processes = 1, 0, 1
        self._epochs: dict[int, Tensor] = {}

    def __iter__(self) -> Iterator[Draw]:
        """Yields clips."""
        position = self.position
        while self.indices:
            for place in self.places(position):
                yield Draw(self.clip_at(place), self.seed_at(place))
            position += self.batch_size * self.num_processes

    def places(self, position: int) -> range:
        """Positions of this process's clips in the micro-batch of all that begins at `position`."""
        first = position + self.process * self.batch_size
        return range(first, first + self.batch_size)

    def clip_at(self, position: int) -> int:
        """The clip at a position."""
        epoch, offset = divmod(position, len(self.indices))
        return self.indices[int(self._order_of(epoch)[offset])]

    def seed_at(self, position: int) -> int:
        """The seed of what is random about the clip at a position."""
        # seeds of neighbouring runs lie far apart
        return self.seed * 1_000_003 + position

    def _order_of(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # a batch may end one epoch and begin the next
            self._epochs = {e: order for e, order in self._epochs.items() if e == epoch - 1}
            seed = -1 - self.seed * 1_000_003 - epoch
            generator = torch.Generator().manual_seed(seed)
            self._epochs[epoch] = torch.randperm(len(self.indices), generator=generator)
        return self._epochs[epoch]


class SeededItems(Dataset[Any]):
    """Another dataset, whose random draws follow from the seed that comes with the index.

    One with a method `draw_clip(index, generator)`, as `data.dataset.Dataset` has, is given a
    generator. Any other one finds the global generators of torch, numpy and Python seeded, and they
    are put back afterwards.

    Args:
        dataset: Has a length. Items that cannot be decoded are replaced as in `SkipUnreadable`.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = SkipUnreadable(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: Draw) -> Any:
        """Gives the item of `draw.clip`."""
        # seeded anew for each item: one that cannot be read must not change the next one's draws
        read = partial(read_item, self.dataset.dataset, seed=draw.seed)
        return self.dataset.first_readable(draw.clip, read)


def read_item(dataset: Any, index: int, seed: int) -> Any:
    """Reads an item of any dataset, whose random draws follow from the seed as in `SeededItems`."""
    if _draws_clips(type(dataset)):
        return dataset.draw_clip(index, torch.Generator().manual_seed(seed))
    with seeded(seed):
        item = dataset[index]
    check_item(item, f"item {index}")
    return item


def check_item(item: Any, where: str) -> None:
    """Refuses what would be trained on otherwise than it is meant.

    Args:
        item: Of a dataset; what it holds is looked at, too.
        where: The place to name in an error.

    Raises:
        TypeError: It holds a picture, or an array of other things than numbers.
        ValueError: It holds masked values.
    """
    if isinstance(item, Mapping):
        for key, value in item.items():
            check_item(value, f"{where}, key {key!r}")
    elif isinstance(item, (tuple, list)):
        for value in item:
            check_item(value, where)
    elif np.ma.is_masked(item):
        raise ValueError(
            f"Trainer: the dataset must give a number for each value, got "
            f"{np.ma.count_masked(item)} masked ones of {item.size} in {where}; fill them, as by "
            "array.filled(0)"
        )
    elif isinstance(item, np.ndarray) and item.dtype.kind not in "biufc":
        raise TypeError(
            f"Trainer: the arrays of a dataset must hold numbers, got {item.dtype} of shape "
            f"{item.shape} in {where}; convert it, as by array.astype('float32')"
        )
    elif type(item).__module__.partition(".")[0] == "PIL":
        raise TypeError(
            f"Trainer: the clips of a dataset must be tensors or arrays (c, f, h, w), got a "
            f"{type(item).__name__} in {where}; convert pictures with numpy.asarray, stack them, "
            "and move the axes"
        )


def _draws_clips(kind: type) -> bool:
    """Whether `draw_clip` gives the items: a subclass may have replaced `__getitem__` only."""
    for owner in kind.__mro__:
        if "draw_clip" in owner.__dict__:
            return True
        if "__getitem__" in owner.__dict__:
            return False
    return False


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global generators of torch, numpy and Python, and puts them back afterwards."""
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


def collate(items: Sequence[Any]) -> Any:
    """Makes a batch of items, as torch does, but for four things.

    Arrays may have any byte order and strides, but no masked values. Texts may be missing (None),
    and stay a list. Clips of 8 bits and of floats in [0, 1] may be mixed, and become floats. States
    of captions, `cond` `(n, d)`, may differ in `n`: the shorter ones are filled up, and a
    `cond_mask` says where.

    Args:
        items: Tensors, tuples, dicts, numbers or texts, all of one kind.

    Raises:
        TypeError: Some are dicts and some are not.
    """
    first = items[0]
    if 0 < sum(isinstance(item, Mapping) for item in items) < len(items):
        raise TypeError(
            "Trainer: the items of a dataset must be all dicts or none, got both; where some have "
            "a frame_mask or a condition, give it to all"
        )
    if isinstance(first, (Tensor, np.ndarray)):
        return _stack([_as_tensor(item) for item in items])
    if isinstance(first, str) or any(item is None for item in items):
        return list(items)
    if isinstance(first, Mapping):
        _check_keys(items)
        padded = _padded_states(items)
        return {
            key: collate([i[key] for i in items]) for key in first if key not in padded
        } | padded
    if isinstance(first, list) and all(isinstance(value, (int, float)) for value in first):
        return torch.tensor(items)
    if isinstance(first, (tuple, list)):
        columns = map(collate, zip(*items, strict=True))
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    check_item(first, "an item")
    return default_collate(list(items))


def check_items_of(loader: Any) -> None:
    """Lets a loader with torch's own way to collate refuse masked arrays, as it drops the mask."""
    if isinstance(loader, DataLoader) and loader.collate_fn is default_collate:
        loader.collate_fn = _collate_as_torch


def _collate_as_torch(items: list[Any]) -> Any:
    for item in items:
        check_item(item, "an item")
    return default_collate(items)


def _as_tensor(item: Any) -> Tensor:
    if not isinstance(item, np.ndarray):
        return torch.as_tensor(item)
    check_item(item, "an item")
    # torch knows few unsigned types, and only the machine's byte order
    is_unsigned = item.dtype.kind == "u" and item.dtype.itemsize > 1
    kind = np.dtype(np.int64) if is_unsigned else item.dtype.newbyteorder("=")
    array = np.asarray(item).astype(kind, order="C", copy=not item.flags.writeable)
    return torch.from_numpy(array)


def _padded_states(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """`cond` and `cond_mask` of captions with states of several lengths; of others nothing."""
    found = [item.get("cond") for item in items]
    states = [one for one in found if isinstance(one, Tensor) and one.ndim == 2]
    if "cond_mask" in items[0] or len(states) < len(items):
        return {}
    if len({len(s) for s in states}) == 1 or len({s.shape[1] for s in states}) > 1:
        return {}
    padded, mask = pad_states(states)
    return {"cond": padded, "cond_mask": mask}


def alike(tensors: list[Tensor]) -> list[Tensor]:
    """Clips of one type: of bytes and floats in [0, 1] that are mixed, all become floats.

    Raises:
        ValueError: They are mixed with others, of which nobody knows what they mean.
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
    if len({tensor.shape for tensor in tensors}) > 1:
        shapes = sorted({tuple(tensor.shape) for tensor in tensors})
        raise ValueError(
            f"Trainer: the items of a batch must have one shape, got {shapes}; cut or fill them up "
            "in the dataset"
        )
    if tensors[0].ndim == 4 and all(t.movedim(0, -1).is_contiguous() for t in tensors):
        # decoded frames have their channels last, as the network wants them
        return torch.stack([tensor.movedim(0, -1) for tensor in tensors]).movedim(-1, 1)
    return torch.stack(tensors)


def _check_keys(items: Sequence[Mapping[str, Any]]) -> None:
    for item in items:
        if item.keys() != items[0].keys():
            raise ValueError(
                "Trainer: the items of a dataset must have the same keys, got "
                f"{sorted(items[0])} and {sorted(item)}; give None for a text that is missing"
            )


class Endless(Iterator[Any]):
    """The batches of a loader without end: it starts again when it is exhausted or interrupted.

    Dead workers of a torch loader are replaced.

    Args:
        loader: Any iterable that can be iterated more than once. After a worker's death it must
            continue with the batch that was not delivered yet, as `EndlessShuffle` does.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = None
        self._waits = LongWaits()

    def restart(self) -> None:
        """Makes the next batch the first of the loader, and ends its workers."""
        self._batches = None
        # the next epoch forks workers: no thread may be running then
        self._waits.stop()

    def __next__(self) -> Any:
        """Returns the next batch.

        Raises:
            ValueError: If the loader is empty.
            RuntimeError: If its workers died repeatedly.
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
                self._batches = _iterate(self.loader)
            try:
                with self._waits:
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


def _iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Starts an iteration without torch's handler of SIGCHLD.

    The handler raises in the main thread wherever it is when a worker dies, for instance in the
    middle of an optimizer step. Without it the death is noticed at the next batch.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # an earlier iteration elsewhere may have left torch's
    if not callable(handler) or "torch" in getattr(handler, "__module__", ""):
        handler = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, handler)
    return batches


class LongWaits:
    """Logs a warning when a wait takes one minute, and again after two, four, eight and so on.

    A context manager around each wait. One thread watches all of them, as starting one per batch
    takes as long as reading a cached clip. It ends by `stop`, or with this object.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self.since = time.monotonic()
        if self._thread is None:
            watched, self._ended = weakref.ref(self), threading.Event()
            self._thread = threading.Thread(target=_watch, args=(watched, self._ended), daemon=True)
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self.since = None

    def stop(self) -> None:
        """Ends the thread until the next wait."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None


def _watch(watched: weakref.ref[LongWaits], ended: threading.Event) -> None:
    last, until = None, _PATIENCE
    while not ended.wait(min(1.0, _PATIENCE / 10)):
        waits = watched()
        if waits is None:
            return
        since = waits.since
        del waits
        if since != last:
            last, until = since, _PATIENCE
        if since is not None and time.monotonic() - since >= until:
            logger.warning(
                "the training has waited %g s for clips: look for a disk that does not answer, or "
                "a reader or dataset that does not return; Ctrl+C twice ends the training",
                until,
            )
            until *= 2


# Names that other data sets have for a condition
_ALIASES = {
    "caption": "cond",
    "captions": "cond",
    "text": "cond",
    "label": "labels",
    "videos": "video",
}


def unpack_batch(batch: Any) -> tuple[Tensor, dict[str, Any]]:
    """Splits a batch into videos and the keywords that go with them to the diffusion.

    Args:
        batch: The videos `(b, c, f, h, w)`; or a tuple or list of videos and conditions; or a dict
            with the key `video`, whose other keys are keywords of `GaussianDiffusion.forward`
            (`cond`, `cond_mask`, `labels`, `frame_cond`, `cond_video`, `images`; `caption`, `text`
            and `label` count as `cond` and `labels`; keys that begin with two underscores are left
            out). In a tuple, integers are labels, and other tensors a `cond`, a `frame_cond` or a
            `cond_video` by their number of axes: 2, 3, or 4 and 5. States of text, which have 3
            axes as well, need a dict.

    Raises:
        TypeError: If it, or its video, is something else.
        ValueError: If a tuple has more than two items, or a dict no `video`.
    """
    if isinstance(batch, Tensor):
        return batch, {}
    if isinstance(batch, Mapping):
        named = {_ALIASES.get(str(key), str(key)): value for key, value in batch.items()}
        if len(named) < len(batch):
            raise ValueError(
                "Trainer: the keys of a batch must differ in what they stand for, got "
                f"{sorted(batch)}; leave out those that say the same"
            )
        if "video" not in named:
            raise ValueError(
                f"Trainer: a batch that is a dict must have the key 'video', got "
                f"{sorted(batch)}; rename the clips' key, or override Trainer.unpack_batch"
            )
        video = _checked(named.pop("video"))
        return video, {key: value for key, value in named.items() if not key.startswith("__")}
    if isinstance(batch, (tuple, list)):
        if len(batch) > 2:
            raise ValueError(
                f"Trainer: a batch that is a tuple must be (video,) or (video, cond), got "
                f"{len(batch)} items; use a dict with the keys 'video' and 'cond', or override "
                "Trainer.unpack_batch"
            )
        return _checked(batch[0]), {_keyword(batch[1]): batch[1]} if len(batch) == 2 else {}
    raise TypeError(
        f"Trainer: a batch must be a tensor, a tuple or a dict, got {type(batch).__name__}; "
        "change what the dataset returns, or override Trainer.unpack_batch"
    )


def _checked(videos: Any) -> Tensor:
    if not isinstance(videos, Tensor):
        raise TypeError(
            "Trainer: the clips of a batch must be a tensor (b, c, f, h, w), got "
            f"{type(videos).__name__}; give each clip as a tensor or an array (c, f, h, w)"
        )
    return videos


def _keyword(cond: Any) -> str:
    """The keyword of the diffusion for the second item of a tuple."""
    if not isinstance(cond, Tensor) or not cond.ndim:
        return "cond"
    if cond.ndim == 1 and not cond.is_floating_point():
        return "labels"
    return {3: "frame_cond", 4: "cond_video", 5: "cond_video"}.get(cond.ndim, "cond")
