"""Splits of a dataset's files: training, held out and validation."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, Subset

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.manifest import read_splits


def clips_behind(dataset: Any) -> Dataset | None:
    """The underlying `Dataset` of this library; None for any other dataset."""
    whole = whole_dataset(dataset)
    return whole if isinstance(whole, Dataset) else None


def whole_dataset(dataset: Any) -> Any:
    """The dataset without its `Subset` wrappers."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _file_of(dataset: Any, index: int) -> tuple[Path | None, int]:
    """The file of a clip, None if there is none, and its index in the underlying dataset."""
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, int(dataset.indices[index])
    return (dataset.paths[index] if isinstance(dataset, Dataset) else None), index


def file_key(path: Path) -> Any:
    """A key of a file that is the same for all symbolic and hard links to it."""
    try:
        status = path.stat()
    except OSError:  # reading the clip will raise the error
        return str(path)
    is_linked = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
    return (status.st_dev, status.st_ino) if is_linked else os.path.realpath(path)


def files_of(dataset: Any, among: Sequence[int] | None = None) -> dict[Any, list[int]]:
    """Indices of the clips of each file; in any other dataset each item counts as a file.

    The keys are comparable across datasets, as by `file_key`.

    Args:
        dataset: Has a length; a `Dataset`, a `Subset` of one, or any other.
        among: Indices of the clips to include; None for all.
    """
    whole = whole_dataset(dataset)
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


def name_of(dataset: Any, index: int) -> str:
    """A clip's name in messages: its file, or else its index."""
    path, number = _file_of(dataset, index)
    return f"item {number}" if path is None else str(path)


def name_hashes(dataset: Any, indices: Sequence[int]) -> set[int]:
    """56-bit hashes of the clips' file names, relative to the folder; else of their indices."""
    folder = getattr(whole_dataset(dataset), "folder", None)
    files = (_file_of(dataset, index) for index in indices)
    # all windows of a file have one name
    names = {str(number) if path is None else path for path, number in files}
    return {_name_hash(folder, name) for name in names}


def _name_hash(folder: Any, name: Path | str) -> int:
    if isinstance(name, Path):
        # macOS decomposes accented characters
        name = unicodedata.normalize("NFC", Path(os.path.relpath(name, folder)).as_posix())
    digest = hashlib.blake2b(os.fsencode(name), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def hold_out(
    dataset: Any, count: int | None, at_most: int = 0, among: Sequence[int] | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on, and the first clip of each of `count` held-out files.

    Held-out files are spread evenly over the dataset; none of their clips is trained on.

    Args:
        dataset: Has a length.
        count: Number of files to hold out; None for 5 % of them.
        at_most: Upper limit of the number that None stands for.
        among: Indices of the clips to include; None for all.

    Raises:
        ValueError: If no file is left to train on.
    """
    if count == 0 or (count is None and not at_most):
        # avoids looking at files, which may be many and on a slow disk
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
    places = (
        torch.linspace(0, len(files) - 1, count, device="cpu").round().long().tolist()
        if count
        else []
    )
    kept = {files[place] for place in places}
    trained = sorted(i for file, clips in clips_of.items() if file not in kept for i in clips)
    return trained, sorted(clips_of[file][0] for file in kept)


def clips_to_show(
    dataset: Any, apart: Sequence[int], trained: Sequence[int], count: int
) -> list[int]:
    """Indices of `count` clips, or of all, whose conditions the samples of milestones get.

    Held-out clips come first. The rest are evenly spaced trained clips, preferably with captions,
    classes or numbers that no chosen clip has.

    Args:
        dataset: Has a length.
        apart: Indices of the held-out clips.
        trained: Indices of the others.
        count: Number of samples.
    """
    shown = [*apart[:count]]
    seen = {condition_key(dataset, index) for index in shown}
    first_with: dict[Any, int] = {}
    for index in trained if len(shown) < count else ():
        first_with.setdefault(condition_key(dataset, index), index)
    new = [index for key, index in first_with.items() if key not in seen]
    chosen = _evenly(new, count - len(shown))
    others = sorted({*trained} - {*chosen}) if len(shown) + len(chosen) < count else []
    return shown + sorted(chosen + _evenly(others, count - len(shown) - len(chosen)))


def condition_key(dataset: Any, index: int) -> Any:
    """What a clip is conditioned on, as far as it is listed; else something of its own."""
    clips, number = clips_behind(dataset), _file_of(dataset, index)[1]
    listed = None if clips is None else clips.listed_conditions(number)
    return number if listed is None else listed


def _evenly(indices: Sequence[int], count: int) -> list[int]:
    return [*indices[:: max(1, len(indices) // max(1, count))][:count]]


class Sides(NamedTuple):
    """Hashes of the names of the files trained on and validated on."""

    trained: set[int]
    validated: set[int]


def split_off(
    dataset: Any, fraction: float, known: Sides | None = None
) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on, with all clips of a file on one side.

    The files whose names have the smallest hashes are validated on. In a resumed run each file
    stays on its side, and a new file is validated on if its hash is below the fraction of the
    range of hashes: adding or removing files never moves others.

    Args:
        dataset: Has a length.
        fraction: Fraction of the files to validate on, in (0, 1).
        known: Sides of the files in the checkpoint; None for a new run.

    Raises:
        ValueError: If the fraction is out of range, or one side has no file.
    """
    if not 0 < fraction < 1:
        raise ValueError(
            f"Trainer: validation_split must be between 0 and 1, got {fraction}; give the share "
            "of the files to validate on, such as 0.05, or the name of a manifest's split"
        )
    if isinstance(dataset, IterableDataset) or dataset is None:
        raise ValueError(
            "Trainer: validation_split must go with clips that can be read in any order, got a "
            "stream or a loader; pass a validation_folder or a validation_dataset"
        )
    files = list(files_of(dataset).values())
    hashes = [name_hashes(dataset, clips) for clips in files]
    if known is None:
        # the largest hash of a file's names: one more name never moves it out of training
        by_hash = sorted(range(len(files)), key=lambda place: max(hashes[place]))
        chosen = {*by_hash[: _count(len(files), fraction)]}
    else:
        chosen = {
            place
            for place, names in enumerate(hashes)
            if not names & known.trained
            and (names & known.validated or max(names) < fraction * 2**56)
        }
    if not 0 < len(chosen) < len(files):
        raise ValueError(
            "Trainer: validation_split must leave files to train on, and others to validate on "
            f"that were not trained on before, got {len(chosen)} of {len(files)} to validate on; "
            "give more clips, or start in another results_folder"
        )
    sides: tuple[list[int], list[int]] = [], []
    for place, clips in enumerate(files):
        sides[place in chosen].extend(clips)
    return sorted(sides[0]), sorted(sides[1])


def split_by_position(dataset: Any, fraction: float) -> tuple[list[int], list[int]]:
    """The split of versions up to 0.8, which depended on the number of files only."""
    files = list(files_of(dataset).values())
    count = _count(len(files), fraction)
    order = torch.randperm(
        len(files), generator=torch.Generator().manual_seed(0), device="cpu"
    ).tolist()
    sides = order[count:], order[:count]
    left, apart = (sorted(i for place in side for i in files[place]) for side in sides)
    return left, apart


def _count(files: int, fraction: float) -> int:
    return min(max(1, round(files * fraction)), files - 1)


def split_of_rows(
    table: str | os.PathLike[str],
    name: str | None,
    folder: str | os.PathLike[str],
    columns: Mapping[str, str | None] | None = None,
) -> str | None:
    """The split of a manifest's rows to validate on; None for all rows.

    Args:
        table: The manifest.
        name: Name of the split; None for a usual name, or for all rows of a table without splits.
        folder: Folder of the clips.
        columns: `manifest_columns` of `Dataset`.

    Raises:
        ValueError: If there is no name, and no split of a usual name.
    """
    if name is not None:
        return name
    found = read_splits(table, Path(folder), columns)
    usual = [split for split in found if split.lower() in ("val", "valid", "validation")]
    if found and not usual:
        raise ValueError(
            "Trainer: validation_split must say which rows of the manifest to validate on, got "
            f"{table} with the splits {', '.join(map(repr, found))}; choose one of them"
        )
    return usual[0] if usual else None
