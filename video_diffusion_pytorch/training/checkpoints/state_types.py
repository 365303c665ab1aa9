"""The types of the values in a checkpoint: one table, by which a file is checked as it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch


class _Of(NamedTuple):
    """Values of one kind: how a message calls them, and which they are."""

    what: str
    fits: Callable[[Any], bool]


class _Maybe(NamedTuple):
    """What need not be there, and perhaps may be None."""

    schema: Any
    or_none: bool = False


# In a dict of the table: the keys, and all values that are not named
_KEY, _REST = "<key>", "<rest>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: Any, least: float = -math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**63


def _is_setting(value: Any) -> bool:
    """Whether it is a finite number, or a tensor of one."""
    return value.numel() == 1 if torch.is_tensor(value) else _is_finite(value)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < math.inf


def _is_scaler(value: Any) -> bool:
    names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
    if not isinstance(value, dict) or value.keys() not in (set(), names):
        return False
    return all(map(_is_finite, value.values()))


def _is_state_of_python(value: Any) -> bool:
    is_one = isinstance(value, (tuple, list)) and len(value) == 3 and value[0] == 3
    numbers = value[1] if is_one and isinstance(value[1], (tuple, list)) else ()
    return len(numbers) == 625 and all(_is_whole(number, 0) for number in numbers)


def _is_state_of_numpy(value: Any) -> bool:
    is_one = isinstance(value, (tuple, list)) and len(value) == 4
    return (
        is_one
        and torch.is_tensor(value[0])
        and value[0].shape == (624,)
        and not value[0].is_floating_point()
        and all(map(_is_number, value[1:]))
    )


def _is_bytes(value: Any) -> bool:
    return torch.is_tensor(value) and value.dtype == torch.uint8 and value.is_contiguous()


_ANYTHING = _Of("anything", lambda value: True)
_TEXT = _Of("a text", lambda value: isinstance(value, str))
_COUNT = _Of("a whole number of at least 0", lambda value: _is_whole(value, 0))
_NUMBER = _Of("a number", _is_number)
_SETTING = _Of("a finite number", _is_setting)
_TENSOR = _Of("a tensor", torch.is_tensor)
_BYTES = _Of("a tensor of bytes", _is_bytes)
_WEIGHTS = {_KEY: _TEXT, _REST: _TENSOR}
_BETAS = _Of(
    "two finite numbers",
    lambda value: (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_setting, value))
    ),
)
_RANDOM = {
    "python": _Maybe(_Of("a state of the module random", _is_state_of_python)),
    "numpy": _Maybe(_Of("a state of numpy.random", _is_state_of_numpy)),
    "torch": _Maybe(_BYTES),
    "cuda": _Maybe([_BYTES]),
}

_STATE: dict[str, Any] = {
    "step": _Maybe(_COUNT),
    "model": _Maybe(_WEIGHTS),
    "ema": _Maybe(_WEIGHTS),
    "emas": _Maybe({_KEY: _TEXT, _REST: _WEIGHTS}),
    "ema_decays": _Maybe([_SETTING]),
    "optimizer": _Maybe(
        {
            "state": _Maybe(
                {
                    _REST: {
                        "step": _Maybe(_SETTING),
                        "exp_avg": _Maybe(_TENSOR),
                        "exp_avg_sq": _Maybe(_TENSOR),
                        "max_exp_avg_sq": _Maybe(_TENSOR),
                        "momentum_buffer": _Maybe(_TENSOR, or_none=True),
                        "square_avg": _Maybe(_TENSOR),
                        _REST: _ANYTHING,
                    }
                }
            ),
            "param_groups": [
                {
                    "params": _Maybe([_ANYTHING]),
                    "betas": _Maybe(_BETAS),
                    **{
                        name: _Maybe(_SETTING)
                        for name in ("lr", "initial_lr", "eps", "weight_decay", "momentum")
                    },
                    _REST: _ANYTHING,
                }
            ],
        }
    ),
    "optimizer_settings": _Maybe({"class": _TEXT, _KEY: _TEXT, _REST: _ANYTHING}),
    "scheduler": _Maybe(
        {"last_epoch": _Maybe(_COUNT), "base_lrs": _Maybe([_SETTING]), _REST: _ANYTHING}
    ),
    "scaler": _Maybe(_Of("empty or the state of a GradScaler", _is_scaler), or_none=True),
    "config": _Maybe(
        {
            "unet": _Maybe({_KEY: _TEXT, _REST: _ANYTHING}, or_none=True),
            "diffusion": _Maybe({_KEY: _TEXT, _REST: _ANYTHING}, or_none=True),
            "class_names": _Maybe([_TEXT], or_none=True),
            _REST: _ANYTHING,
        },
        or_none=True,
    ),
    "losses": _Maybe({_KEY: _TEXT, _REST: _Maybe(_NUMBER, or_none=True)}),
    "skipped_steps": _Maybe(_COUNT),
    "random_states": _Maybe(_RANDOM, or_none=True),
    "data": _Maybe(
        {
            "seed": _Of("a whole number", _is_whole),
            "position": _COUNT,
            "clips": _Maybe(_COUNT, or_none=True),
            "files": _Maybe({_KEY: _TEXT, _REST: [_COUNT]}, or_none=True),
            _REST: _ANYTHING,
        }
    ),
    # of a folder's run.pt
    "sharded_files": _Maybe({_KEY: _TEXT, _REST: _COUNT}),
    # a subclass of Trainer may have entries of its own
    _REST: _ANYTHING,
}


def check_types(state: Mapping[str, Any], path: Path) -> None:
    """Checks that all entries of a checkpoint that this library knows are what they should be.

    Args:
        state: As `read_checkpoint` or `glance` gives it.
        path: The file, for the message.

    Raises:
        ValueError: If one is not; the message names it.
    """
    schema = _STATE
    if isinstance(state.get("random_states"), list):  # of each process
        schema = {**_STATE, "random_states": [_RANDOM]}
    for name, what, value in _wrong(state, schema, "", set()):
        raise ValueError(
            f"expected a checkpoint whose {name} is {what} in {path}, got {_shown(value)}; use "
            "the checkpoint before it"
        )


def _wrong(
    value: Any, schema: Any, name: str, seen: set[tuple[int, int]]
) -> Iterator[tuple[str, str, Any]]:
    """The values that are not as in the table: their names, what was expected, what they are."""
    # a file may name one large dict many times
    if (id(value), id(schema)) in seen:
        return
    if isinstance(value, (Mapping, list, tuple)):
        seen.add((id(value), id(schema)))
    if isinstance(schema, _Maybe):
        if value is not ... and not (schema.or_none and value is None):
            yield from _wrong(value, schema.schema, name, seen)
    elif isinstance(schema, _Of):
        # a module may keep what it likes in its extra state
        if not schema.fits(value) and not name.endswith("_extra_state"):
            yield name, schema.what, value
    elif isinstance(schema, list):
        if not isinstance(value, (list, tuple)):
            yield name, "a list", value
            return
        for number, item in enumerate(value):
            yield from _wrong(item, schema[0], f"{name}.{number}", seen)
    elif not isinstance(value, Mapping):
        yield name, "a dict", value
    else:
        for key in value if _KEY in schema else ():
            yield from _wrong(key, schema[_KEY], f"key of {name}", seen)
        for key in dict.fromkeys([*schema, *value]):
            if key not in (_KEY, _REST):
                part = schema.get(key, schema.get(_REST, _ANYTHING))
                yield from _wrong(value.get(key, ...), part, f"{name}.{key}".lstrip("."), seen)


def _shown(value: Any) -> str:
    if value is ...:
        return "none"
    if torch.is_tensor(value):
        return f"a tensor of {value.dtype} and the shape {tuple(value.shape)}"
    if value is None or isinstance(value, (str, int, float)):
        return f"{value!r:.60} ({type(value).__name__})"
    return f"a {type(value).__name__}"
