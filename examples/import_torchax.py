"""Imports torchax with a version of torch that is newer than it supports."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax.numpy as jnp
import torch


class _RemovedOperator:
    """Stands in torchax's tables for an operator that this torch no longer has."""

    def __getattr__(self, overload: str) -> _RemovedOperator:
        if overload.startswith("__"):
            raise AttributeError(overload)
        return _RemovedOperator()


@contextmanager
def removed_operators_have_names() -> Iterator[None]:
    """Lets `torch.ops.aten` give a name to every operator that is asked for.

    torchax 0.0.13 lists operators that torch 2.13 and 2.14 removed (google/torchax#101, #108), so
    that its import fails; none of them is ever called. A torchax that knows the torch at hand
    asks for none of them, and then this does nothing.
    """

    def with_removed(find: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
        def find_or_stand_in(owner: Any, name: str) -> Any:
            try:
                return find(owner, name)
            except AttributeError:
                if name.startswith("__"):
                    raise
                return _RemovedOperator()

        return find_or_stand_in

    operators = type(torch.ops.aten), type(torch.ops.aten.add)
    with ExitStack() as stack:
        for owner in operators:
            find = with_removed(owner.__getattr__)
            stack.enter_context(mock.patch.object(owner, "__getattr__", find))
        yield


with removed_operators_have_names():
    import torchax
    from torchax import interop

    # its tables are filled here, and not by the import
    environment = torchax.default_env()


def _promote_types(*dtypes: torch.dtype) -> torch.dtype:
    return interop.torch_view(jnp.promote_types(*interop.jax_view(dtypes)))


# what the network calls and torchax 0.0.13 lacks
environment.override_op_definition(torch.ops.aten.promote_types.default, _promote_types)

# JAX counts in 32 bits by default, which is enough for time steps and classes
warnings.filterwarnings("ignore", "Explicitly requested dtype int64", UserWarning)
