"""FSDP: sharding a model, clipping its gradients, and gathering and splitting its state."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.conditioning import unwrap

logger = logging.getLogger("video_diffusion_pytorch")

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


# The methods of a denoiser by which a diffusion reaches its weights, besides its call
ENTRIES = ("forward_with_cond_scale",)

# What `accelerate launch` tells of FSDP and we don't follow, and the values that ask for nothing
_IGNORED = {
    "FSDP_RESHARD_AFTER_FORWARD": ("true", "full_shard"),
    "FSDP_OFFLOAD_PARAMS": ("false",),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false",),
}


def shard(
    diffusion: nn.Module,
    mesh: DeviceMesh,
    *,
    mp_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> None:
    """Splits the weights of a diffusion's network over the processes of a mesh, in place.

    It is FSDP2: each process keeps a part of each weight, its gradient and its optimizer state,
    and a layer's weights are whole only while it computes. The layers that are gathered together
    are the resolutions: whatever a `ModuleList` of the network holds, and what is left. All
    processes begin with the weights of the first one. The diffusion's schedule stays whole.

    Copies of the diffusion are made before, as a sharded module can't be copied, and sharded in
    the same way; the optimizer is made after, of the new parameters. Nothing need be moved to the
    device before: here it is, one layer after another.

    Args:
        diffusion: Its `denoise_fn` is split.
        mesh: The processes, with one axis; gradients are averaged over them.
        mp_dtype: The type in which weights are gathered, for a model that computes under
            `torch.autocast` of that type, always: then they are not cast any more, and half as
            much is sent. Gradients are summed in float32 all the same, and the weights that are
            kept have the type they had. It does not hold for what is left besides the resolutions
            if that has weights that are not trained (frequencies). None for a model that also runs
            without autocast, as an average does when it samples.
        reshard_after_forward: Whether weights are given back between the forward and the backward
            pass, and gathered anew. Without, a step is faster and needs memory for all of them.

    Raises:
        ImportError: If this torch is too old.
        TypeError: If `denoise_fn` is wrapped.
        ValueError: If it is sharded already, or the mesh has more than one axis.
    """
    fully_shard, policy, register_entry = _fsdp()
    network: Any = diffusion.denoise_fn
    _check(network, mesh)
    device = torch.device(mesh.device_type)
    if device.type != "cpu":
        device = torch.device(device.type, torch.get_device_module(device).current_device())

    parts = [*_resolutions(network), network]
    for part in parts:
        _same_everywhere(part, mesh, device)
        part.register_forward_hook(_own_memory, prepend=True)
        dtype = mp_dtype if _all_trained(part) else None
        # Inputs keep their types: a time step, a position or a condition in bfloat16 is another
        # one. Autocast makes the types of activations and weights meet.
        precision = policy(
            param_dtype=dtype,
            reduce_dtype=None if dtype is None else torch.float32,
            cast_forward_inputs=False,
        )
        fully_shard(
            part, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=precision
        )
    for name in ENTRIES:
        if hasattr(network, name):
            register_entry(network, name)
    if not reshard_after_forward:
        # with no backward pass to come, nothing else would make parameters() the parts again
        network.register_forward_hook(lambda *_: _reshard_after_sampling(parts))

    # what is around the network
    for buffer in diffusion.buffers():
        buffer.data = buffer.data.to(device)


def _fsdp() -> tuple[Any, Any, Any]:
    try:
        from torch.distributed.fsdp import (
            MixedPrecisionPolicy,
            fully_shard,
            register_fsdp_forward_method,
        )
    except ImportError as error:
        raise ImportError(
            "shard: sharded training needs torch 2.6 or newer, built with torch.distributed, got "
            f"{torch.__version__}; upgrade torch, or train without sharding"
        ) from error
    return fully_shard, MixedPrecisionPolicy, register_fsdp_forward_method


def _check(network: nn.Module, mesh: DeviceMesh) -> None:
    if unwrap(network) is not network:
        raise TypeError(
            "shard: denoise_fn must be the network itself, got one that is wrapped in "
            f"{type(network).__name__}; shard first, and compile its blocks in place "
            "(module.compile()) afterwards"
        )
    if is_sharded(network):
        raise ValueError(
            "shard: denoise_fn must have whole weights, got some that are sharded already; shard "
            "a model once"
        )
    if mesh.ndim != 1:
        raise ValueError(
            f"shard: mesh must have one axis, got {mesh.ndim}; make it with "
            "init_device_mesh(device_type, (num_processes,))"
        )


def _resolutions(network: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules with weights that lists of modules hold, and that can be called."""
    for child in network.children():
        if not isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            # a list deeper inside is found through what holds it
            yield from _resolutions(child)
            continue
        for item in child.children():
            if isinstance(item, (nn.ModuleList, nn.ModuleDict)):
                yield from _resolutions(nn.ModuleList([item]))
            elif next(item.parameters(), None) is not None:
                yield item


def _all_trained(part: nn.Module) -> bool:
    """Whether no weight of a part is fixed, as frequencies are, which must not be rounded."""
    return all(p.requires_grad for p in part.parameters())


def _same_everywhere(part: nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Gives a part, on its device, the values that the first process has."""
    from torch.distributed import broadcast, get_process_group_ranks
    from torch.distributed.tensor import DTensor

    group = mesh.get_group()
    first = get_process_group_ranks(group)[0]
    for tensor in [*part.parameters(), *part.buffers()]:
        if not isinstance(tensor, DTensor):
            # FSDP splits contiguous weights only, and ours are channels-last
            tensor.data = tensor.data.to(device).contiguous()
            broadcast(tensor.data, first, group)


def _own_memory(module: nn.Module, args: Any, output: Any) -> Any:
    """Makes of an output that is a view one that is not, if there is a backward pass to come.

    A view that is changed in place would lose the hook that gathers the weights for the backward
    pass; torch warns of all views. Here they are those of convolutions' outputs, which nobody else
    keeps.
    """
    if type(output) in (tuple, list):
        return type(output)([_own_memory(module, args, item) for item in output])
    is_view = torch.is_tensor(output) and output.requires_grad and output._is_view()
    return output.clone() if is_view else output


def _reshard_after_sampling(parts: Iterable[Any]) -> None:
    if not torch.is_grad_enabled():
        for part in parts:
            part.reshard()


def _sharded_parts(module: nn.Module) -> Iterator[Any]:
    # known by what they can do: to import their class takes a second, which all runs would pay
    return (part for part in module.modules() if hasattr(part, "set_requires_gradient_sync"))


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` has been here.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return next(_sharded_parts(module), None) is not None


def gradient_sync(module: nn.Module, on: bool) -> None:
    """Says whether the next backward passes exchange gradients between processes.

    Without, they are summed whole on each process, and the first pass with exchange takes them
    along. On a module that is not sharded this has no effect.

    Args:
        module: The sharded diffusion, or a part of it.
        on: False for all micro-batches of a step but the last.
    """
    for part in _sharded_parts(module):
        part.set_requires_gradient_sync(on, recurse=False)


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float | None) -> Tensor:
    """Measures the norm of all gradients, seen as one vector, and shortens them to `max_norm`.

    Args:
        parameters: Whole or sharded, or some of both; those without gradient count for nothing.
        max_norm: The norm that gradients have at most afterwards; None to measure only.

    Returns:
        The norm before, an ordinary tensor `()`, the same on all processes if gradients are.
    """
    gradients: list[Any] = [p.grad for p in parameters if p.grad is not None]
    plain = [g for g in gradients if not hasattr(g, "full_tensor")]
    split = [g for g in gradients if hasattr(g, "full_tensor")]
    norms = []
    if plain:
        norms.append(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(plain))))
    if split:
        # a sum over processes, which full_tensor makes
        norm: Any = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(split)))
        norms.append(norm.full_tensor())
    if not norms:
        return torch.zeros(())
    total = torch.linalg.vector_norm(torch.stack(norms))
    if max_norm is not None:
        scale = (max_norm / (total + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([*plain, *(g.to_local() for g in split)], scale)
    return total


def wanted_by_launcher() -> bool:
    """Whether the script was started by `accelerate launch --use_fsdp --fsdp_version 2`.

    Raises:
        ValueError: If it is version 1.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(
            f"Trainer: sharded training must be that of FSDP version 2, got version {version} "
            "from the launcher; add --fsdp_version 2 to accelerate launch, or fsdp_version: 2 to "
            "the fsdp_config of its configuration"
        )
    for name, usual in _IGNORED.items():
        value = os.environ.get(name, usual[0]).lower()
        if value not in usual:
            logger.warning("%s=%s of the launcher has no effect here", name, value)
    return True


@contextmanager
def hidden_from_accelerate() -> Iterator[None]:
    """Within it an `Accelerator` is made that does not shard: `shard` does.

    Accelerate would otherwise want to wrap the model together with its optimizer, and would
    clip gradients and save in ways of its own.
    """
    wanted = os.environ.pop("ACCELERATE_USE_FSDP", None)
    try:
        yield
    finally:
        if wanted is not None:
            os.environ["ACCELERATE_USE_FSDP"] = wanted


Place = tuple[Any, ...]
"""The keys that lead to a tensor in a state."""

# What each process has of its own, and another number of processes can't use: small tensors, which
# are left where they are
_OF_PROCESSES = "random_states"


def gathered(state: Mapping[str, Any], is_main: bool) -> dict[str, Any]:
    """Makes all tensors of a state whole, on the CPU of the main process; all processes call it.

    Args:
        state: As in `write_sharded`.
        is_main: Whether this process is to have them.

    Returns:
        The state, in which tensors that were whole and on the CPU are the same as before; on other
        processes nothing.
    """

    def whole(place: Place, tensor: Any) -> Any:
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        return full.detach().cpu() if is_main else None

    everything = map_tensors(state, whole)
    return everything if is_main else {}


def scattered(state: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """Splits the tensors of a state, which each process holds whole, as those of `like` are.

    All processes call it.

    Args:
        state: As `read_checkpoint` gives it.
        like: As in `read_sharded`.

    Returns:
        The state; tensors for which `like` has no sharded counterpart are as they were.
    """
    counterpart = counterparts_in(like)

    def part(place: Place, tensor: Tensor) -> Tensor:
        target = counterpart(place, tensor)
        if not hasattr(target, "full_tensor"):
            return tensor
        from torch.distributed.tensor import distribute_tensor

        whole = tensor.to(target.device, target.dtype)
        return distribute_tensor(whole, target.device_mesh, target.placements)

    return map_tensors(state, part)


def warm_optimizer(optimizer: Any) -> None:
    """Makes the state that an optimizer has after its first step, all zeros, and no step.

    A state to be read needs one that says how it is split. Neither weights nor gradients change,
    and an optimizer that has a state keeps it.

    Args:
        optimizer: Of torch's kind, or wrapped by accelerate.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if optimizer.state:
        return
    weights = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    before = [(p.grad, p.detach().clone()) for p in weights]
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    for p in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    with torch.no_grad():
        for p, (gradient, weight) in zip(weights, before, strict=True):
            p.copy_(weight)
            p.grad = gradient
        for state in optimizer.state.values():
            for name, value in state.items():
                if torch.is_tensor(value):
                    value.zero_()
                elif name == "step":
                    state[name] = 0
    for group, setting in zip(optimizer.param_groups, settings, strict=True):
        group.update(setting)


# tensors by their places


def map_tensors(state: Mapping[str, Any], change: Callable[[Place, Any], Any]) -> dict[str, Any]:
    """A state with something else in the place of each tensor, but for the random states'.

    Args:
        state: Dicts, lists and tuples, of tensors and other values.
        change: Gets the keys that lead to a tensor, and the tensor; what it gives takes its place.
    """

    def walk(place: Place, value: Any) -> Any:
        if torch.is_tensor(value):
            return change(place, value)
        if isinstance(value, Mapping):
            return {key: walk((*place, key), item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(walk((*place, i), item) for i, item in enumerate(value))
        return value

    return {k: v if k == _OF_PROCESSES else walk((k,), v) for k, v in state.items()}


def _tensors(state: Mapping[str, Any]) -> Iterator[tuple[Place, Any]]:
    found: list[tuple[Place, Any]] = []
    map_tensors(state, lambda place, tensor: found.append((place, tensor)))
    return iter(found)


def _name(place: Place) -> str:
    return "/".join(map(str, place))


def by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a state by the names that they have in files.

    Raises:
        ValueError: If two have the same.
    """
    tensors: dict[str, Any] = {}
    for place, tensor in _tensors(state):
        if _name(place) in tensors:
            raise ValueError(
                "write_sharded: tensors must have different names once their keys are joined by "
                f"'/', got two with {_name(place)!r}; rename one"
            )
        tensors[_name(place)] = tensor.detach()
    return tensors


def counterparts_in(like: Mapping[str, Any]) -> Callable[[Place, Tensor], Any]:
    """Gives what finds the tensor of `like` that says how another one is to be split.

    Args:
        like: A state of this run.

    Returns:
        A function of the keys that lead to a tensor, and a tensor of its shape; it gives None
        where there is no counterpart.
    """
    ours = dict(_tensors(like))

    def find(place: Place, tensor: Tensor) -> Any:
        # a further average may have no counterpart, but is split as the weights are
        for candidate in (ours.get(place), ours.get(("model", place[-1]))):
            if candidate is not None and candidate.shape == tensor.shape:
                return candidate
        return None

    return find
