"""A checkpoint in one file: atomic writes, reads that run no code, and its values' types."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from video_diffusion_pytorch.data.formats.arrays import stored_entries
from video_diffusion_pytorch.files import TEMPORARY, replacing

logger = logging.getLogger("video_diffusion_pytorch")

FORMAT = 1
"""What a checkpoint's entry `format` says; a reader refuses those larger than its own."""

_FOLDER_BIT = 0x10  # of the external attributes of a zip's record
_TEMPORARY = re.compile(TEMPORARY.format(start="model-"))


class NewerFormat(ValueError):
    """The checkpoint is whole, but of a later version of this library that writes it otherwise."""


class _Recorder:
    """A file that remembers what failed: torch's zip writer raises a RuntimeError in its place."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.flush = file.flush
        self.failure: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except BaseException as error:
            self.failure = error
            raise


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes `state` to `path`; whatever interrupts it, `path` holds the old file or the new one.

    Tensors of other devices come to the CPU one by one. What a killed process left half written
    in the folder is removed first.

    Args:
        state: Tensors and plain values, see `Resumable.checkpoint_state`.
        path: The file; its folder must be there.

    Raises:
        OSError: If it can't be written; the message names the file.
        TypeError: If it holds what could be read only by running code.
    """
    plain = _plain(state)
    _remove_leftovers(path.parent)
    recorder: Any = None
    try:
        _check_readable(plain, path)
        with replacing(path, sync=True) as unfinished, unfinished.open("wb") as file:
            recorder = _Recorder(file)
            torch.save(plain, recorder)
    except (OSError, RuntimeError) as error:
        failure = recorder.failure if recorder and recorder.failure else error
        if not isinstance(failure, OSError):
            raise failure from None  # an interrupt while writing, or an error of the device
        raise OSError(
            f"the checkpoint {path} could not be written: {failure}; the checkpoints before it are "
            "untouched: make room or check the folder's permissions, and train on from the last"
        ) from error


def _check_readable(state: dict[str, Any], path: Path) -> None:
    """Raises a TypeError for what `read_checkpoint` would refuse: it is too late to learn it then.

    It is written to memory, with tensors of no size.
    """
    content = io.BytesIO()
    torch.save(_without_values(state), content)
    content.seek(0)
    try:
        torch.load(content, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = found[1] if found else "an object of another class"
        raise TypeError(
            f"the checkpoint {path} must hold tensors and plain values only, so that reading it "
            f"runs no code, got {what}; turn it into tensors, numbers, texts, lists or dicts in "
            "checkpoint_state"
        ) from error


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".model-*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        # another process may write here too: one that gathers a sharded checkpoint
        if match is None or not path.is_file() or _runs_beside(int(match["process"])):
            continue
        try:
            path.unlink()
        except OSError as error:
            logger.warning("%s is left over and could not be removed: %s", path, error)


def _runs_beside(process: int) -> bool:
    """Whether it is another process of this machine; where that can't be asked, it is not."""
    if os.name != "posix" or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _plain(value: Any) -> Any:
    """The same with Python's own numbers for numpy's, which a file can't hold without code."""
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    # tensors and what holds them in classes of its own stay as they are
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a training file of this library or of the reference, tensors and plain values only.

    One altered byte is found. Files that were written without checksums are the exception: those
    of torch before 1.6, and those written after `torch.serialization.set_crc32_options(False)`.

    Args:
        path: The file.
        map_location: As in `torch.load`.

    Returns:
        The state that was written, see `Resumable.checkpoint_state`; that of the reference has
        `step`, `model`, `ema` and `scaler`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a whole training file; `NewerFormat` if a later version of this
            library wrote it.
    """
    _check_file(path)
    if isinstance(map_location, (str, torch.device)):
        torch.empty(0, device=map_location)  # or torch says here, not of the file, what is wrong
    with _damage_named(path):
        _check_sums(path)
        state = torch.load(path, map_location=map_location, weights_only=True)
    return _checked(state, path, {"step", "model", "ema"})


def glance(path: Path) -> dict[str, Any]:
    """The state in a checkpoint without the values of its tensors, quickly however large it is.

    Args:
        path: A file `model-N.pt` or a folder `model-N.sharded`.

    Returns:
        The state as `read_checkpoint` gives it, but all tensors are on the device `meta`: they
        have shapes and dtypes only. That of a folder holds what its file `run.pt` does.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: As in `read_checkpoint`, but altered bytes in tensors are not found.
    """
    is_folder = path.is_dir()
    file = path / "run.pt" if is_folder else path
    _check_file(file)
    with _damage_named(file):
        is_zip = _check_sums(file, only_values=True)
        # the mapping reads what is looked at; torch before 1.6 wrote no zip and can't be mapped
        state = _without_values(torch.load(file, "cpu", weights_only=True, mmap=is_zip))
    return _checked(state, file, {"step"} if is_folder else {"step", "model", "ema"})


def _without_values(value: Any, done: dict[int, Any] | None = None) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta")
    if not isinstance(value, dict) and type(value) not in (list, tuple):
        return value
    # a list that holds another one ten times, which holds another one ten times, has no end
    done = {} if done is None else done
    if id(value) not in done:
        if isinstance(value, dict):
            made = type(value)((key, _without_values(item, done)) for key, item in value.items())
        else:
            made = type(value)(_without_values(item, done) for item in value)
        done[id(value)] = made
    return done[id(value)]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found none; the folder holds "
            f"{sorted(p.name for p in path.parent.glob('model-*')) or 'no checkpoint'}"
        )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (PermissionError, torch.OutOfMemoryError):
        raise  # they say nothing about the file
    # altered bytes can bring up any exception: the old format is a program for the unpickler
    except Exception as error:
        # torch's own advice would be to read it without protection
        is_refused = isinstance(error, pickle.UnpicklingError) or not str(error)
        reason = type(error).__name__ if is_refused else str(error).splitlines()[0]
        raise ValueError(
            f"expected a checkpoint in {path}, got a file that is cut off, altered or of another "
            f"kind ({reason}); use the checkpoint before it"
        ) from error


def _check_sums(path: Path, only_values: bool = False) -> bool:
    """Compares the zip's checksums, which `torch.load` doesn't; False for the format before 1.6."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        records = stored_entries(archive)
        folders = [record.filename for record in records if record.external_attr & _FOLDER_BIT]
        if folders:  # torch leaves the memory of such a tensor as it was
            raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")
        if not any(record.CRC for record in records):
            logger.warning("%s was written without checksums: altered bytes are not found", path)
            return True
        for record in records:
            if only_values and not record.filename.endswith("/data.pkl"):
                continue
            with archive.open(record) as content:
                while content.read(1 << 20):  # raises at the end if the sum is another
                    pass
    return True


def _checked(state: Any, path: Path, wanted: set[str]) -> dict[str, Any]:
    if not isinstance(state, dict) or not wanted <= state.keys():
        found = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        names = "step, model and ema" if len(wanted) > 1 else "step"
        raise ValueError(
            f"expected a training file with {names} in {path}, got {found}; load a "
            "bare state dict with load_state_dict"
        )
    number = state.get("format", FORMAT)
    if not isinstance(number, int) or number > FORMAT:
        raise NewerFormat(
            f"expected a checkpoint of format {FORMAT} or older in {path}, got format {number}, "
            f"written by version {state.get('version', 'unknown')}; upgrade "
            "video-diffusion-pytorch to that version or later"
        )
    check_types(state, path)
    return state


class _Of(NamedTuple):
    """Values of one kind: how a message calls them, and which they are."""

    what: str
    fits: Callable[[Any], bool]


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
_LOSS = _Of("a number", lambda value: value is None or _is_number(value))
_SETTING = _Of("a finite number", _is_setting)
_TENSOR = _Of("a tensor", torch.is_tensor)
_BYTES = _Of("a tensor of bytes", _is_bytes)
_BETAS = _Of(
    "two finite numbers",
    lambda value: (
        isinstance(value, (tuple, list)) and len(value) == 2 and all(map(_is_setting, value))
    ),
)

# Types by path. `*` is each value of a dict with text keys, `**` of any dict, `#` each item of
# a list; a name with `?` may be None, one with `!` must be there. A subclass of Trainer may have
# entries of its own.
_TYPES = {
    "step": _COUNT,
    "model.*": _TENSOR,
    "ema.*": _TENSOR,
    "emas.*.*": _TENSOR,
    "ema_decays.#": _SETTING,
    "optimizer.state.**.step": _SETTING,
    "optimizer.state.**.exp_avg": _TENSOR,
    "optimizer.state.**.exp_avg_sq": _TENSOR,
    "optimizer.state.**.max_exp_avg_sq": _TENSOR,
    "optimizer.state.**.momentum_buffer?": _TENSOR,
    "optimizer.state.**.square_avg": _TENSOR,
    "optimizer.param_groups!.#.params.#": _ANYTHING,
    "optimizer.param_groups!.#.betas": _BETAS,
    "optimizer.param_groups!.#.lr": _SETTING,
    "optimizer.param_groups!.#.initial_lr": _SETTING,
    "optimizer.param_groups!.#.eps": _SETTING,
    "optimizer.param_groups!.#.weight_decay": _SETTING,
    "optimizer.param_groups!.#.momentum": _SETTING,
    "optimizer_settings.class!": _TEXT,
    "optimizer_settings.*": _ANYTHING,
    "scheduler.last_epoch": _COUNT,
    "scheduler.base_lrs.#": _SETTING,
    "scaler?": _Of("empty or the state of a GradScaler", _is_scaler),
    "config?.unet?.*": _ANYTHING,
    "config?.diffusion?.*": _ANYTHING,
    "config?.class_names?.#": _TEXT,
    "losses.*": _LOSS,
    "skipped_steps": _COUNT,
    "random_states?.python": _Of("a state of the module random", _is_state_of_python),
    "random_states?.numpy": _Of("a state of numpy.random", _is_state_of_numpy),
    "random_states?.torch": _BYTES,
    "random_states?.cuda.#": _BYTES,
    "data.seed!": _Of("a whole number", _is_whole),
    "data.position!": _COUNT,
    "data.clips?": _COUNT,
    "data.files?.*.#": _COUNT,
    "sharded_files.*": _COUNT,  # of a folder's run.pt
}


def check_types(state: Mapping[str, Any], path: Path) -> None:
    """Checks the types of a checkpoint's entries.

    Args:
        state: As `read_checkpoint` or `glance` returns it.
        path: The file, for the message.

    Raises:
        ValueError: If a value has the wrong type; the message names it.
    """
    seen: set[tuple[int, str]] = set()
    for entry, kind in _TYPES.items():
        if isinstance(state.get("random_states"), list):  # one per process
            entry = entry.replace("random_states?", "random_states.#")
        for name, what, value in _wrong(state, entry.split("."), kind, "", seen):
            raise ValueError(
                f"expected a checkpoint whose {name} is {what} in {path}, got {_shown(value)}; use "
                "the checkpoint before it"
            )


def _wrong(
    value: Any, parts: list[str], kind: _Of, name: str, seen: set[tuple[int, str]]
) -> Iterator[tuple[str, str, Any]]:
    """Yields name, expected type and value of what is wrong at a path of `_TYPES`."""
    if not parts:
        # a module may keep what it likes in its extra state
        if not kind.fits(value) and not name.endswith("_extra_state"):
            yield name, kind.what, value
        return
    part, *rest = parts
    if not isinstance(value, (list, tuple) if part == "#" else Mapping):
        yield name, "a list" if part == "#" else "a dict", value
        return
    # a file may hold one large dict many times
    if (mark := (id(value), f"{'.'.join(parts)} {id(kind)}")) in seen:
        return
    seen.add(mark)
    items: list[tuple[Any, Any]]
    container: Any = value
    if part == "*":
        yield from ((f"key of {name}", "a text", k) for k in value if not isinstance(k, str))
    if part == "#":
        items = list(enumerate(value))
    elif part in ("*", "**"):
        items = list(container.items())
    else:
        key = part.rstrip("?!")
        is_there = part[-1] == "!" or key in container
        is_none = part[-1] == "?" and container.get(key) is None
        items = [(key, container.get(key, ...))] if is_there and not is_none else []
    for key, item in items:
        yield from _wrong(item, rest, kind, f"{name}.{key}".lstrip("."), seen)


def _shown(value: Any) -> str:
    if value is ...:
        return "none"
    if torch.is_tensor(value):
        return f"a tensor of {value.dtype} and the shape {tuple(value.shape)}"
    if value is None or isinstance(value, (str, int, float)):
        return f"{value!r:.60} ({type(value).__name__})"
    return f"a {type(value).__name__}"


def random_states() -> dict[str, Any]:
    """The state of every random generator that this process draws from in training."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts every generator back where `random_states` found it.

    Raises:
        ValueError: If a generator does not take its state.
    """
    try:
        version, words, normal = states["python"]
        keys, position, has_gauss, gauss = states["numpy"]
        random.setstate((version, tuple(words), normal))
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"][0].cpu())
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            "the checkpoint's random_states must be states of the generators of Python, NumPy and "
            f"torch, got others ({error}); use the checkpoint before it"
        ) from error


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
