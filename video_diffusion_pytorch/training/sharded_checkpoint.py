"""Sharded checkpoints: a folder `model-N.sharded` to which every process writes its shard.

The folder holds the tensors in files of `torch.distributed.checkpoint`, and `run.pt`, a checkpoint
whose tensors have shapes only. Reading runs no code from the files.
"""

from __future__ import annotations

import pickle
import shutil
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from video_diffusion_pytorch.files import sync_folder
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint, write_checkpoint
from video_diffusion_pytorch.training.sharding import Place, by_name, counterparts_in, map_tensors

INDEX = ".metadata"

# The classes of an index. Neither making one of these nor filling it with values does anything.
_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}


def save_tensors(tensors: Mapping[str, Any], folder: Path) -> None:
    """Writes tensors; of sharded ones each process its part, of others one process all.

    All processes call it, if there are several.

    Raises:
        OSError: On all processes, if one can't write.
    """
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    class Writer(checkpoint.FileSystemWriter):
        def storage_meta(self) -> None:
            """Nothing: it would be the path of a folder that is renamed in a moment."""

    try:
        with warnings.catch_warnings():
            if not dist.is_initialized():
                # it is the intent to write from a single process
                warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)
            checkpoint.save(
                dict(tensors),
                storage_writer=Writer(folder),
                planner=checkpoint.DefaultSavePlanner(flatten_state_dict=False),
            )
    # not an Exception, but thrown for any one of a process
    except CheckpointException as error:
        reasons = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from error


def load_tensors(tensors: dict[str, Any], folder: Path, files: Iterable[str]) -> None:
    """Reads values into tensors, sharded or not; of each file only the parts that they need.

    Args:
        tensors: By name; their values are replaced.
        folder: Where the files are.
        files: The names of the files that belong to the checkpoint: no others are read.

    Raises:
        ValueError: If the files are not those of these tensors.
        Exception: Of any other kind, if bytes are not what `save_tensors` writes.
    """
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    index = read_index(folder / INDEX, files)
    saved = index.state_dict_metadata
    wrong = [n for n, t in tensors.items() if n not in saved or saved[n].size != t.shape]
    if wrong:
        raise ValueError(f"{wrong[0]} is not in it, or of another shape")

    # each process knows what it needs, and so it need not be agreed on as checkpoint.load does
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(tensors, index, is_coordinator=True)
    reader = FileSystemReader(folder)
    reader.set_up_storage_reader(index, True)
    plan = reader.prepare_local_plan(planner.create_local_plan())
    [plan] = reader.prepare_global_plan(planner.create_global_plan([plan]))
    reader.read_data(planner.finish_plan(plan), planner).wait()


def read_index(path: Path, files: Iterable[str]) -> Any:
    """Reads the index of the parts, without running code from it.

    Args:
        path: The file.
        files: The names of the files that it may point to.

    Returns:
        A `torch.distributed.checkpoint.metadata.Metadata`.

    Raises:
        ValueError: If it holds anything else than tensors in these files.
        pickle.UnpicklingError: If it asks for anything else than values.
        Exception: Of any other kind, if it is damaged.
    """
    from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

    with path.open("rb") as file:
        index = _Unpickler(file).load()
    if type(index) is not Metadata or type(index.storage_data) is not dict:
        raise ValueError(f"{path.name} is not an index of tensors")
    # the values of other entries are code, or may be
    for name, entry in index.state_dict_metadata.items():
        if type(entry) is not TensorStorageMetadata:
            raise ValueError(f"{name} is not a tensor, but {type(entry).__name__}")
    strange = {part.relative_path for part in index.storage_data.values()} - set(files)
    if strange:
        raise ValueError(f"{min(strange)} does not belong to it")
    return index


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of an index of tensors")


def sum_of(file: Path) -> int:
    """The CRC-32 of a file's bytes."""
    total = 0
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


T = TypeVar("T")
# The entry of run.pt with the sum of each file's bytes
_SUMS = "sharded_files"


def write_sharded(state: dict[str, Any], path: Path, is_main: bool) -> None:
    """Writes a state to the folder `path`, whole or not at all; all processes call it.

    Args:
        state: Tensors, sharded or the same on all processes, and plain values, in dicts, lists
            and tuples, see `Saving.checkpoint_state`.
        path: The folder, `model-N.sharded`, on a disk that all processes see. What it held before
            is replaced once the new one is whole.
        is_main: Whether this is the process that writes what is not sharded; one is, of rank 0.

    Raises:
        OSError: On all processes, if one can't write; what was there before is untouched.
        ValueError: If two tensors would have the same name.
    """
    tensors = by_name(state)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        _together(lambda: _begin(temporary, path) if is_main else None)
        save_tensors(tensors, temporary)
        parts = _from_all(_together(lambda: _sums_of_mine(temporary)))
        sums = {name: value for part in parts for name, value in part.items()}
        run = {**map_tensors(state, _shape_only), _SUMS: sums}
        _together(lambda: write_checkpoint(run, temporary / "run.pt") if is_main else None)
        _together(lambda: _finish(temporary, path) if is_main else None)
    except OSError as error:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise OSError(
            f"the checkpoint {path} could not be written: {error}; the checkpoints before it are "
            "untouched: make room or check the folder's permissions, and train on from the last"
        ) from error


def read_sharded(path: Path, like: Mapping[str, Any]) -> dict[str, Any]:
    """Reads a state for these processes, however many wrote it; all processes call it.

    Args:
        path: The folder, `model-N.sharded`.
        like: A state of this run, whose tensors say how those of the same place and shape are to
            be split; they are not changed. An optimizer must have been warmed (`warm_optimizer`),
            or its state comes whole.

    Returns:
        The state that was written. A tensor without counterpart in `like` is split like the weight
        of its name in `like["model"]`; if there is none of its shape either it is whole, on the
        CPU.

    Raises:
        FileNotFoundError: On all processes, if there is no such folder.
        ValueError: On all processes, if it is not a whole sharded checkpoint.
    """
    run, sums = _together(lambda: _read_run(path))
    share = sorted(sums)[_rank() :: len(_from_all(None))]
    _together(lambda: _check_sums(path, sums, share))
    return _together(lambda: _filled(path, run, sums, like))


def read_gathered(path: Path) -> dict[str, Any]:
    """Reads a whole state in one process, every tensor on the CPU.

    Args:
        path: The folder, `model-N.sharded`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is not a whole sharded checkpoint.
    """
    run, sums = _read_run(path)
    _check_sums(path, sums, sums)
    return _filled(path, run, sums, {})


def gather_checkpoint(folder: Path, file: Path | None = None) -> Path:
    """Makes one file of a sharded checkpoint.

    Args:
        folder: The folder, `model-N.sharded`.
        file: The checkpoint to write; None for `model-N.pt` beside the folder.

    Returns:
        The file's path.

    Raises:
        FileNotFoundError: If there is no such folder.
        FileExistsError: If the file is there already.
        ValueError: If the folder is not a whole sharded checkpoint.
        OSError: If the file can't be written.
    """
    name = folder.name.removesuffix(".sharded") + ".pt"
    file = folder.with_name(name) if file is None else file
    if file.exists():
        raise FileExistsError(
            f"gather_checkpoint: the file to write must not exist, got {file}; move it away, or "
            "give another name"
        )
    write_checkpoint(read_gathered(folder), file)
    return file


# the folder


def _begin(temporary: Path, path: Path) -> None:
    """Makes room for the new folder; what a killed process left is put right."""
    before = _before(path)
    if before.exists() and not path.exists():
        before.rename(path)
    for leftover in (temporary, before):
        if leftover.exists():
            shutil.rmtree(leftover)
    temporary.mkdir()


def _finish(temporary: Path, path: Path) -> None:
    # a folder that is not empty can't be replaced: between the two calls there is none at all,
    # and the next write brings the old one back
    if path.exists():
        path.rename(_before(path))
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(_before(path), ignore_errors=True)


def _before(path: Path) -> Path:
    return path.with_name(f".{path.name}.before")


def _shape_only(place: Place, tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _sums_of_mine(folder: Path) -> dict[str, int]:
    """The sums of the files that this process wrote."""
    mine = [*folder.glob(f"__{_rank()}_*"), *([folder / INDEX] if _rank() == 0 else [])]
    return {file.name: sum_of(file) for file in mine}


def _read_run(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What `run.pt` holds, and the sums of the other files."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"expected a sharded checkpoint at {path}, found no such folder; give the path of a "
            "folder model-N.sharded"
        )
    if not (path / "run.pt").is_file():
        raise ValueError(
            f"expected a sharded checkpoint in {path}, got a folder without run.pt, which is no "
            "checkpoint or was not written to the end; use the checkpoint before it"
        )
    run = read_checkpoint(path / "run.pt")
    sums = run.pop(_SUMS, None)
    if not isinstance(sums, dict):
        raise ValueError(
            f"expected a sharded checkpoint in {path}, got one whose run.pt has no "
            f"{_SUMS}; load a checkpoint in one file by the path of the file"
        )
    return run, sums


def _check_sums(path: Path, sums: Mapping[str, int], names: Iterable[str]) -> None:
    for name in names:
        file = path / name
        if not file.is_file():
            raise _damage(path, f"{name} is missing")
        if sum_of(file) != sums[name]:
            raise _damage(path, f"{name} has other bytes than were written")


def _filled(
    path: Path, run: dict[str, Any], sums: Mapping[str, int], like: Mapping[str, Any]
) -> dict[str, Any]:
    """The state whose tensors have shapes only, with those that are in the files."""
    counterpart = counterparts_in(like)

    def empty(place: Place, tensor: Tensor) -> Any:
        target = counterpart(place, tensor)
        return torch.empty_like(tensor, device="cpu") if target is None else _empty(target)

    named = by_name(run).values()
    held = sum((path / name).stat().st_size for name in sums)
    if sum(tensor.nbytes for tensor in named) > held:  # before it takes the memory
        raise _damage(path, f"its tensors need more than the {held} bytes of its files")
    state = map_tensors(run, empty)
    try:
        load_tensors(by_name(state), path, sums)
    except (PermissionError, torch.OutOfMemoryError):
        raise  # they say nothing about the files
    # altered bytes can bring up any exception
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _damage(path, reason) from error
    return state


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like.detach(), requires_grad=False)


def _damage(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"expected a checkpoint in {path}, got a folder that is cut off, altered or of another "
        f"kind ({reason}); use the checkpoint before it"
    )


# all processes


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _from_all(value: T) -> list[T]:
    """What each process gave, in the order of ranks; all processes call it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def _together(act: Callable[[], T]) -> T:
    """Does something on each process; if it fails on one, all raise, and none waits for it."""
    failure, result = None, None
    try:
        result = act()
    except Exception as error:
        failure = error
    known = isinstance(failure, (OSError, ValueError)) or failure is None
    told = failure if known else RuntimeError(f"{type(failure).__name__}: {failure}")
    failures = [one for one in _from_all(told) if one is not None]
    if failure is not None:
        raise failure
    if failures:
        raise failures[0]
    return cast(T, result)
