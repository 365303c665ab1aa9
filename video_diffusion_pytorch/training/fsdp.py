"""FSDP: sharding a model, and the checkpoints of sharded models, folders `model-N.sharded`.

A folder holds the tensors in files of `torch.distributed.checkpoint`, and `run.pt`, a checkpoint
whose tensors have no values. Reading runs no code from the files.
"""

from __future__ import annotations

import math
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.files import sync_folder
from video_diffusion_pytorch.training.checkpoint_file import (
    naming_damage,
    not_written,
    read_checkpoint,
    write_checkpoint,
)

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from video_diffusion_pytorch.training.processes import Processes

# Methods of a denoiser, besides its forward, by which a diffusion uses its weights
_ENTRIES = ("forward_with_cond_scale",)


def requested_by_launcher() -> bool:
    """Whether the script was started by `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        ValueError: If it is version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ValueError(
            "Trainer: sharded training needs FSDP version 2, got version 1 from the launcher; add "
            "--fsdp_version 2 to accelerate launch, or fsdp_version: 2 to its fsdp_config"
        )
    return True


def shard(diffusion: nn.Module, mesh: DeviceMesh, *, mp_dtype: torch.dtype | None = None) -> None:
    """Shards the weights of a diffusion's network over all processes, in place (FSDP2).

    The weights of a resolution (each item of a `ModuleList` of the network) are gathered while it
    computes. All processes start with the weights of rank 0. Make the optimizer afterwards.

    Args:
        diffusion: Its `denoise_fn`, on the device of the mesh, is sharded.
        mesh: All processes, on one axis.
        mp_dtype: Type in which weights are gathered, for a model that always computes under
            `torch.autocast` of that type; gradients are summed in float32. Modules with frozen
            weights (frequencies) keep their type. None to gather them as they are.

    Raises:
        TypeError: If `denoise_fn` is wrapped.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    network: Any = diffusion.denoise_fn
    if unwrap(network) is not network:
        raise TypeError(
            "shard: denoise_fn must be the network itself, got one wrapped in "
            f"{type(network).__name__}; shard first, then compile its blocks in place"
        )
    for tensor in [*network.parameters(), *network.buffers()]:
        # fully_shard needs contiguous weights, and ours are channels-last
        tensor.data = tensor.data.contiguous()
        torch.distributed.broadcast(tensor.data, 0)
    for part in [*_resolutions(network), network]:
        part.register_forward_hook(_without_views, prepend=True)
        dtype = mp_dtype if all(p.requires_grad for p in part.parameters()) else None
        # inputs keep their types: time steps, positions and conditions must not be rounded
        policy = MixedPrecisionPolicy(
            param_dtype=dtype,
            reduce_dtype=None if dtype is None else torch.float32,
            cast_forward_inputs=False,
        )
        fully_shard(part, mesh=mesh, mp_policy=policy)
    for name in _ENTRIES:
        if hasattr(network, name):
            register_fsdp_forward_method(network, name)


def _resolutions(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with weights that are items of lists of modules."""
    for child in network.children():
        if not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _resolutions(child)
            continue
        for item in child.children():
            if isinstance(item, (nn.ModuleList, nn.ModuleDict)):
                yield from _resolutions(nn.ModuleList([item]))
            elif next(item.parameters(), None) is not None:
                yield item


def _without_views(module: nn.Module, args: Any, output: Any) -> Any:
    """Copies outputs that are views, which would lose FSDP's backward hook if changed in place."""
    if type(output) in (tuple, list):
        return type(output)([_without_views(module, args, item) for item in output])
    is_view = torch.is_tensor(output) and output.requires_grad and output._is_view()
    return output.clone() if is_view else output


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Clips the global norm of the gradients.

    Args:
        parameters: The parameters, all sharded or none.
        max_norm: Largest norm of all gradients together; None to measure only.

    Returns:
        The norm before clipping, a tensor `()`.
    """
    limit = math.inf if max_norm is None else max_norm
    norm: Any = nn.utils.clip_grad_norm_(parameters, limit)
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm


# checkpoints

INDEX = ".metadata"
# The entry of run.pt with the CRC-32 of each other file
_SUMS = "sharded_files"
# The classes of an index; making or filling one runs no code
_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}

Place = tuple[Any, ...]
"""The keys that lead to a tensor in a state."""


def write_sharded(state: dict[str, Any], path: Path, processes: Processes) -> None:
    """Writes a checkpoint to the folder `path`, completely or not at all; every process calls it.

    Args:
        state: Tensors, sharded or equal on all processes, and plain values, see
            `Trainer.checkpoint_state`.
        path: The folder, `model-N.sharded`, on a disk of all processes; an old one is replaced.
        processes: Of the run.

    Raises:
        OSError: On all processes, if one can't write.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    is_main, rank = processes.is_main, processes.rank
    try:
        processes.together(lambda: _make_empty(temporary) if is_main else None)
        _save_tensors(_by_name(state), temporary)
        own = [*temporary.glob(f"__{rank}_*"), *([temporary / INDEX] if is_main else [])]
        sums = processes.together(lambda: {file.name: _sum_of(file) for file in own})
        all_sums = {name: crc for part in processes.from_all(sums) for name, crc in part.items()}
        run = {**_map_tensors(state, _without_values), _SUMS: all_sums}
        processes.together(lambda: _finish(run, temporary, path) if is_main else None)
    except OSError as error:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise not_written(path, error) from error


def read_sharded(
    path: Path, model: nn.Module | None = None, optimizer: Any = None, share: Any = (0, 1)
) -> dict[str, Any]:
    """Reads a sharded checkpoint, written by any number of processes.

    Args:
        path: The folder, `model-N.sharded`.
        model: The sharded model of this run; its tensors, averages of it and the optimizer's
            moments are read as shards of this process. None to read all tensors whole, on the CPU.
        optimizer: The optimizer of `model`.
        share: Rank and world size of the processes that read together: each checks its share of
            the files for damage.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it is damaged, or no sharded checkpoint.
    """
    run = read_checkpoint(path / "run.pt")
    sums = run.pop(_SUMS, None)
    target = _targets(model, optimizer)

    def empty(place: Place, tensor: Tensor) -> Any:
        like = target(place, tensor)
        if like is None:
            return torch.empty_like(tensor, device="cpu")
        return torch.empty_like(like.detach(), requires_grad=False)

    with naming_damage(path):
        if not isinstance(sums, dict):
            raise ValueError(f"its run.pt has no {_SUMS}")
        rank, world_size = share
        for name in sorted(sums)[rank::world_size]:
            if _sum_of(path / name) != sums[name]:
                raise ValueError(f"{name} has other bytes than were written")
        state = _map_tensors(run, empty)
        _load_tensors(_by_name(state), path, sums)
    return state


def sharded_like(state: Mapping[str, Any], model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """Shards the whole tensors of a checkpoint as a model and its optimizer are.

    Every process calls it, with the same state.

    Args:
        state: As from `read_checkpoint` or `read_sharded`.
        model: The sharded model.
        optimizer: Its optimizer.
    """
    target = _targets(model, optimizer)

    def shard_of(place: Place, tensor: Any) -> Any:
        like = target(place, tensor)
        if like is None or hasattr(tensor, "full_tensor"):
            return tensor
        from torch.distributed.tensor import distribute_tensor

        whole = tensor.to(like.device, like.dtype)
        return distribute_tensor(whole, like.device_mesh, like.placements)

    return _map_tensors(state, shard_of)


def whole_tensors(state: Mapping[str, Any], *, is_kept: bool) -> dict[str, Any]:
    """A state with whole tensors on the CPU; every process calls it.

    Args:
        state: Has sharded tensors.
        is_kept: Whether this process keeps them; otherwise they are None.
    """

    def gathered(place: Place, tensor: Any) -> Any:
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return whole.detach().cpu() if is_kept else None

    return _map_tensors(state, gathered)


def gather_checkpoint(folder: Path, file: Path | None = None) -> Path:
    """Writes a sharded checkpoint as one file.

    Args:
        folder: The folder, `model-N.sharded`.
        file: The file to write; None for `model-N.pt` next to the folder.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: If there is no such folder.
        FileExistsError: If the file exists.
        ValueError: If the folder is damaged, or no sharded checkpoint.
        OSError: If the file can't be written.
    """
    file = folder.with_suffix(".pt") if file is None else file
    if file.exists():
        raise FileExistsError(
            f"gather_checkpoint: the file to write must not exist, got {file}; move it away, or "
            "give another name"
        )
    write_checkpoint(read_sharded(folder), file)
    return file


def _targets(model: nn.Module | None, optimizer: Any) -> Callable[[Place, Tensor], Any]:
    """A function that finds the sharded weight after which a tensor of a checkpoint is sharded."""
    weights: dict[str, Any] = {} if model is None else model.state_dict()
    groups = [] if model is None else optimizer.param_groups
    trained = dict(enumerate(weight for group in groups for weight in group["params"]))

    def target(place: Place, tensor: Tensor) -> Any:
        is_moment = place[:2] == ("optimizer", "state")
        weight: Any = trained.get(place[2]) if is_moment else weights.get(place[-1])
        is_right = hasattr(weight, "full_tensor") and weight.shape == tensor.shape
        return weight if is_right else None

    return target


def _map_tensors(state: Mapping[str, Any], change: Callable[[Place, Any], Any]) -> dict[str, Any]:
    """A state with `change(place, tensor)` for each tensor."""

    def walk(place: Place, value: Any) -> Any:
        if torch.is_tensor(value):
            return change(place, value)
        if isinstance(value, Mapping):
            return {key: walk((*place, key), item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk((*place, i), item) for i, item in enumerate(value))
        return value

    # random states differ between processes, and stay in run.pt
    return {k: v if k == "random_states" else walk((k,), v) for k, v in state.items()}


def _by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a state by their names in the files."""
    tensors: dict[str, Any] = {}
    _map_tensors(state, lambda place, t: tensors.update({"/".join(map(str, place)): t.detach()}))
    return tensors


def _without_values(place: Place, tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _finish(run: dict[str, Any], temporary: Path, path: Path) -> None:
    """Completes a folder and moves it to its place."""
    write_checkpoint(run, temporary / "run.pt")
    old = path.with_name(f".{path.name}.removed")
    if path.exists():
        path.rename(old)
    temporary.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sum_of(file: Path) -> int:
    total = 0
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def _save_tensors(tensors: dict[str, Any], folder: Path) -> None:
    """Writes tensors; every process writes its shards, and one of them what is not sharded."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.api import CheckpointException

    class Writer(checkpoint.FileSystemWriter):
        def storage_meta(self) -> None:
            """Nothing: it would be the path of the temporary folder."""

    try:
        checkpoint.save(
            tensors,
            storage_writer=Writer(folder),
            planner=checkpoint.DefaultSavePlanner(flatten_state_dict=False),
        )
    except CheckpointException as error:  # not an Exception
        reasons = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
        raise OSError("; ".join(sorted(reasons))) from error


def _load_tensors(tensors: dict[str, Any], folder: Path, files: Iterable[str]) -> None:
    """Reads the values of tensors, sharded or not, from the parts of `files` that they need."""
    from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader

    index = _read_index(folder / INDEX, files)
    # as checkpoint.load does, but with our reading of the index, and without collectives
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(tensors, index, is_coordinator=True)
    reader = FileSystemReader(folder)
    reader.set_up_storage_reader(index, True)
    plan = planner.finish_plan(planner.create_local_plan())
    reader.read_data(plan, planner).wait()


def _read_index(path: Path, files: Iterable[str]) -> Any:
    """Reads the index, which may only refer to `files`."""
    with path.open("rb") as file:
        index = _Unpickler(file).load()
    strange = {part.relative_path for part in index.storage_data.values()} - set(files)
    if strange:
        raise ValueError(f"{min(strange)} does not belong to it")
    return index


class _Unpickler(pickle.Unpickler):
    """Unpickles an index of tensors, and no entries of other kinds, whose values are code."""

    def find_class(self, module: str, name: str) -> Any:
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        if name in _CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise ValueError(f"{module}.{name} is not part of an index of tensors")
