"""Before the loop: what a dataset is, which of its clips are trained on, and whether they fit."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import logging
import multiprocessing
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, Subset

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.value_range import RANGE_TOLERANCE
from video_diffusion_pytorch.sizes import as_value_range

logger = logging.getLogger("video_diffusion_pytorch")

# Packages whose streams share their clips between processes that read
_SHARING = {"webdataset", "datasets", "torchdata", "streaming", "litdata"}

# What a network that takes a condition is built with
_NETWORK_OPTIONS = {
    "cond": "cond_dim",
    "labels": "num_classes",
    "frame_cond": "frame_cond_dim",
    "cond_video": "cond_channels",
}
# What a Trainer gives its Dataset by itself
_OWN = {"folder", "image_size", "channels", "num_frames", "exclude", "as_uint8"}


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


def clips_behind(dataset: Any) -> Dataset | None:
    """The `Dataset` of this library that another one is, or is a part of; None for others'."""
    whole = _whole(dataset)
    return whole if isinstance(whole, Dataset) else None


def _whole(dataset: Any) -> Any:
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


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


def hold_out(
    dataset: Any, count: int | None, at_most: int = 0, among: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on, and of clips of `count` files kept apart, spread over the dataset.

    Args:
        dataset: Has a length. Of a `Dataset`, all clips of a file are kept apart.
        count: Number of files; of each the first clip is given. None for a twentieth of them.
        at_most: The largest number that None stands for.
        among: Indices of the clips that there are; None for all.

    Raises:
        ValueError: If there are not more files than that.
    """
    if not count and not (count is None and at_most):
        # no look at the files, which may be many and on a slow disk
        return list(range(len(dataset)) if among is None else among), []
    clips_of = files_of(dataset, among)
    files = list(clips_of)
    if count is None:
        count = min(at_most, len(files) // 20)
    if not 0 <= count < len(files):
        raise ValueError(
            f"Trainer: held_out must leave clips to train on, got {count} of {len(files)}; hold "
            "out fewer, or give more clips"
        )
    places = torch.linspace(0, len(files) - 1, count).round().long().tolist() if count else []
    kept = {files[place] for place in places}
    trained = sorted(i for file, clips in clips_of.items() if file not in kept for i in clips)
    return trained, sorted(clips_of[file][0] for file in kept)


def files_of(dataset: Any, among: Sequence[int] | None = None) -> dict[Any, list[int]]:
    """The clips of each file, by index; of any other dataset each item is a file of its own.

    The keys tell files apart across datasets, whatever paths and links lead to them.

    Args:
        dataset: Has a length; a `Dataset`, a part of one, or any other.
        among: Indices of the clips that count; None for all.
    """
    whole = _whole(dataset)
    everything = range(len(dataset.paths if isinstance(dataset, Dataset) else dataset))
    keys: dict[Path, Any] = {}
    found: dict[Any, list[int]] = {}
    for index in everything if among is None else among:
        path, number = _file_of(dataset, index)
        if path is not None and path not in keys:
            keys[path] = file_key(path)
        key = (id(whole), number) if path is None else keys[path]
        found.setdefault(key, []).append(index)
    return found


def file_key(path: Path) -> Any:
    """What all paths to a file have in common, through symbolic and hard links."""
    try:
        status = path.stat()
    except OSError:  # reading it will say what is wrong
        return str(path)
    is_linked = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
    return (status.st_dev, status.st_ino) if is_linked else os.path.realpath(path)


def name_hashes(dataset: Any, indices: Sequence[int]) -> set[int]:
    """56 bits for the name of each clip's file in its folder; of other datasets for its number."""
    folder = getattr(_whole(dataset), "folder", None)
    files = (_file_of(dataset, index) for index in indices)
    # the windows of a file have one name
    names = {
        os.fsencode(_name_in(folder, path))
        for path in {str(number) if path is None else path for path, number in files}
    }
    return {int.from_bytes(hashlib.blake2b(name, digest_size=7).digest(), "big") for name in names}


def _name_in(folder: Any, path: Path | str) -> str:
    """The same on all systems, wherever the folder is."""
    if isinstance(path, str):
        return path
    # macOS writes accents as characters of their own
    return unicodedata.normalize("NFC", Path(os.path.relpath(path, folder)).as_posix())


def name_of(dataset: Any, index: int) -> str:
    """What a person finds the clip of an index by: its file, or else its number."""
    path, number = _file_of(dataset, index)
    return f"item {number}" if path is None else str(path)


def _file_of(dataset: Any, index: int) -> tuple[Path | None, int]:
    """The file of a clip, None if it is of none, and its number in the whole dataset."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return (dataset.paths[index] if isinstance(dataset, Dataset) else None), index


def take_value_range(diffusion: GaussianDiffusion, dataset: Any, given: Any = None) -> None:
    """Tells the model the units of the clips.

    Args:
        diffusion: The model.
        dataset: Its attribute `value_range`, if it has one, says the units.
        given: Or this does.

    Raises:
        ValueError: If the model has other units.
    """
    given = getattr(_whole(dataset), "value_range", None) if given is None else given
    found = as_value_range(given, diffusion.channels)
    if found is None:
        return
    own = diffusion.config["value_range"]
    if own is None:
        diffusion.set_value_range(found)
    elif as_value_range(own, diffusion.channels) != found:
        raise ValueError(
            f"Trainer: the clips must be in the model's value_range, {own}, got {found}; give "
            "one of them only"
        )


def check_first_clip(
    diffusion: GaussianDiffusion,
    clips: Dataset | None,
    videos: Tensor,
    conditions: Mapping[str, Any],
) -> None:
    """Finds out before the first step whether a batch is what the model takes.

    Args:
        diffusion: The model.
        clips: Where the batch is from, if it is a folder.
        videos: The clips of the batch.
        conditions: Its conditions.

    Raises:
        ValueError: If it is not.
    """
    names = diffusion.condition_names
    missing = [name for name in names if name not in conditions]
    if missing:
        raise ValueError(
            f"Trainer: the network takes {', '.join(names)}, so the data must give them, got "
            f"none for {', '.join(missing)}; say in conditions where they come from, give "
            "them in the dataset's items, or build the network without"
        )
    _check_names(diffusion, conditions)
    if "cond_mask" in conditions and not torch.is_tensor(conditions.get("cond")):
        raise ValueError(
            "Trainer: with captions, the data must give no cond_mask, which the encoder tells, "
            "got one; leave it out, or give states as cond"
        )
    # captions are checked where they are encoded
    given = {name: conditions.get(name) for name in (*names, "cond_mask")}
    tensors = {name: value for name, value in given.items() if torch.is_tensor(value)}
    diffusion.check_batch(videos, **tensors)
    if conditions.get("frame_mask") is not None:
        diffusion.check_frame_mask(conditions["frame_mask"], videos)
    check_units(diffusion, videos, "the first item" if clips is None else str(clips.paths[0]))
    if clips is None:
        return
    classes = getattr(unwrap(diffusion.denoise_fn), "config", {}).get("num_classes")
    if classes is not None and len(clips.class_names) > classes:
        raise ValueError(
            f"Trainer: the clips must be of at most {classes} classes, the network's num_classes, "
            f"got {len(clips.class_names)}; build it with num_classes={len(clips.class_names)}"
        )


def _check_names(diffusion: GaussianDiffusion, conditions: Mapping[str, Any]) -> None:
    """Raises a ValueError for a condition that the network does not take."""
    network = inspect.signature(unwrap(diffusion.denoise_fn).forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in network.values()):
        return
    own = inspect.signature(diffusion.forward).parameters
    used = {*diffusion.condition_names, *["cond_mask"] * diffusion.takes_text_states}
    unused = {"cond", "cond_mask", "labels", "frame_cond", "cond_video"} - used
    is_told = hasattr(unwrap(diffusion.denoise_fn), "condition_names")
    for name in conditions:
        if name not in {*own, *network, "cond"} or (is_told and name in unused):
            known = ", ".join(diffusion.condition_names) or "no condition"
            option = _NETWORK_OPTIONS.get(name, "it")
            raise ValueError(
                f"Trainer: the network takes {known}, got {name!r} from the data; leave it out, "
                f"rename it, or build the network with {option}"
            )


def check_units(diffusion: GaussianDiffusion, videos: Tensor, where: str) -> None:
    """Raises a ValueError for floats outside [0, 1] where no range says what they mean."""
    config = diffusion.config
    has_units = not config["auto_normalize"] or config["value_range"] is not None
    if has_units or not videos.is_floating_point():
        return
    low, high = (value.item() for value in videos.aminmax())
    if low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE:
        raise ValueError(
            f"Trainer: clips must be in [0, 1], got values from {low:.3g} to {high:.3g} "
            f"in {where}; pass value_range='fit', or (low, high) in the clips' units, or build "
            "GaussianDiffusion with value_range=(low, high) or auto_normalize=False"
        )


def check_sample_conditions(diffusion: GaussianDiffusion, given: Mapping[str, Any]) -> None:
    """Raises a ValueError for conditions of samples that the model does not take."""
    names = [*diffusion.condition_names, *["first_frames"] * bool(diffusion.given_frames)]
    allowed = [*names, *["cond_mask"] * diffusion.takes_text_states]
    for name, value in given.items():
        if name not in allowed or isinstance(value, str) or not hasattr(value, "__len__"):
            raise ValueError(
                "Trainer: sample_conditions must hold rows of "
                f"{', '.join(names) or 'no condition'}, got {name}="
                f"{shown(value)}; give for example "
                "{'cond': ['a whale']}"
            )
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"Trainer: sample_conditions must hold {', '.join(names)}, got none for "
            f"{', '.join(missing)}; add them, or leave sample_conditions out"
        )
