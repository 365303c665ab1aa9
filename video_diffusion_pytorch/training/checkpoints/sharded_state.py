"""A run's state, nested as it is, between one process that has all of it and several with parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

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
