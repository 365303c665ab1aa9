"""The weights of a checkpoint go into a module, or it is said which of them don't fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

_QUOTED = re.compile(r'"([^"]+)"')
_OTHER_SHAPE = re.compile(r"size mismatch for (\S+): .*?\[([^]]*)\].*?\[([^]]*)\]")
_SHOWN = 5


class MismatchedWeights(ValueError):
    """A checkpoint that is whole, but of a network with other parameters."""


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Any],
    path: Path,
    what: str,
    strict: bool = True,
) -> None:
    """Loads a state dict into a module.

    Args:
        module: Where the weights go. If they don't fit, it may be left with some of them.
        weights: Its state dict.
        path: The checkpoint that they are from, for the message.
        what: The checkpoint's entry that they are, such as "model" or "ema", for the message.
        strict: As in `load_state_dict`: whether missing and unexpected parameters are errors.

    Raises:
        MismatchedWeights: If they don't fit; it names the parameters. It is a ValueError.
        ValueError: What the module's own `load_state_dict` raises, such as that the weights were
            trained for another objective.
    """
    try:
        module.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise  # an error of the device
        raise MismatchedWeights(
            f"the entry {what!r} of the checkpoint {path} must have the parameters of the "
            f"{type(module).__name__} that it is loaded into, got {_differences(str(error))}; "
            "build the model with the settings that the checkpoint was made with, or begin anew "
            "in another results folder"
        ) from error


def _differences(message: str) -> str:
    """What torch's message says in a line per parameter of a network, of which there may be many.

    The message and not the keys is read, as hooks of the module may have renamed the keys.
    """
    missing, unexpected, shapes, others = [], [], [], []
    for line in message.splitlines()[1:]:
        other_shape = _OTHER_SHAPE.search(line)
        if "Missing key(s)" in line:
            missing = _QUOTED.findall(line)
        elif "Unexpected key(s)" in line:
            unexpected = _QUOTED.findall(line)
        elif other_shape:
            name, theirs, ours = other_shape.groups()
            shapes.append(f"{name} ({theirs}) instead of ({ours})")
        elif line.strip():
            others.append(line.strip())
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    said = [f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds.items() if names]
    if others:
        said.append(_first(others))
    return "; ".join(said) or message


def _first(names: list[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def changed_settings(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any] | None) -> list[str]:
    """What differs between the settings of a checkpoint and those of a model, in words.

    Args:
        theirs: Arguments that the checkpoint's model was built with; None if it holds none.
        ours: Those of the model; None for a network without.
    """
    theirs, ours = theirs or {}, ours or {}
    return [
        f"{name} {ours.get(name)} instead of {value}"
        for name, value in theirs.items()
        if _as_list(value) != _as_list(ours.get(name))
    ]


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
