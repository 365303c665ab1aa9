"""The files in a sharded checkpoint's folder: tensors, each in parts, and an index of the parts.

They are those of `torch.distributed.checkpoint`, which would run whatever code an index asks for:
here the index is read by the names of the few classes it is made of, and checksums are compared.
"""

from __future__ import annotations

import pickle
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

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
