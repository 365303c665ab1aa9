"""Resuming: the state of a checkpoint goes into model, averages, optimizer and generators."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.training.checkpoint import list_checkpoints, name_strangers
from video_diffusion_pytorch.training.checkpoint_file import (
    MismatchedWeights,
    changed_settings,
    load_weights,
    read_checkpoint,
    restore_random_states,
)
from video_diffusion_pytorch.training.ema import Averages
from video_diffusion_pytorch.training.optimizer import (
    check_shapes,
    optimizer_settings,
    resume_schedule,
    take_new_settings,
)
from video_diffusion_pytorch.training.processes import Processes
from video_diffusion_pytorch.training.sharded_checkpoint import read_gathered, read_sharded
from video_diffusion_pytorch.training.sharding import scattered, warm_optimizer

logger = logging.getLogger("video_diffusion_pytorch")

# Settings of a network that its weights do not tell, so that it would load others', and what they
# are in checkpoints from before they were settings
_WITHOUT_WEIGHTS = {"token_shift": None, "resnet_groups": None}


def checkpoint_to_resume(resume: str | os.PathLike[str] | None, folder: Path) -> Any:
    """What to load at the start of a run, as of `Trainer.load`; None to begin.

    Args:
        resume: As of `Trainer`.
        folder: The results folder.

    Raises:
        ValueError: If `resume` is none of its values.
        FileExistsError: If `"never"` meets a folder with checkpoints.
    """
    if not (resume is None or isinstance(resume, (str, os.PathLike))):
        raise ValueError(
            "Trainer: resume must be 'auto', 'never', a path or None, got "
            f"{shown(resume)}; 'auto' goes on from the last checkpoint"
        )
    existing = list_checkpoints(folder)
    if resume == "never" and existing:
        raise FileExistsError(
            "Trainer: with resume='never' the results folder must be without checkpoints, got "
            f"{folder} with {existing[-1].name}; choose another results_folder, or resume='auto'"
        )
    if resume == "auto" and not existing:
        name_strangers(folder)
        return None
    if resume == "auto":
        return -1
    return None if resume == "never" else resume


def read_state(
    path: Path,
    map_location: Any,
    fsdp: bool,
    optimizer: Any,
    own_state: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """A checkpoint's state; of a sharded model each process has its own shards.

    Args:
        path: The file or, of a sharded model, the folder.
        map_location: As in `torch.load`.
        fsdp: Whether this run's model is sharded.
        optimizer: That of this run.
        own_state: Gives this run's state, which says how its tensors are sharded.
    """
    is_folder = path.is_dir()
    if is_folder and not fsdp:
        return read_gathered(path)
    if is_folder:
        warm_optimizer(optimizer)
        return read_sharded(path, own_state())
    state = read_checkpoint(path, map_location)
    if not fsdp:
        return state
    if "optimizer" in state:
        warm_optimizer(optimizer)
    return scattered(state, own_state())


def load_model(
    model: Any, averages: Averages, path: Path, state: Mapping[str, Any], **kwargs: Any
) -> None:
    """Loads weights and averages.

    Args:
        model: The diffusion.
        averages: Its averages.
        path: The checkpoint, for errors.
        state: Its state.
        **kwargs: As of `load_state_dict`.

    Raises:
        ValueError: If it is of a model with other parameters or settings.
    """
    theirs, network = state.get("config") or {}, unwrap(model.denoise_fn)
    ours = getattr(network, "config", None) or {}
    told = theirs.get("unet") or {}
    silent = changed_settings({n: told.get(n, v) for n, v in _WITHOUT_WEIGHTS.items()}, ours)
    if silent and told:
        raise _other_model(path, silent)
    try:
        load_weights(model, state["model"], path, "model", **kwargs)
        _load_averages(averages, path, state, **kwargs)
    except MismatchedWeights as error:
        changed = changed_settings(told, ours)
        changed += changed_settings(theirs.get("diffusion"), model.config)
        if not changed:
            raise
        raise _other_model(path, changed) from error


def _load_averages(averages: Averages, path: Path, state: Mapping[str, Any], **kwargs: Any) -> None:
    theirs, ours = {**state.get("emas", {})}, averages.named()
    for name, decay in zip(("ema",), state.get("ema_decays", ()), strict=False):
        theirs[repr(float(decay))] = state[name]
    for name, average in ours.items():
        if name not in theirs and average is not averages.first:
            logger.warning(
                "%s holds no average with decay %s: it goes on from that with decay %s",
                path,
                name,
                next(iter(ours)),
            )
        load_weights(average, theirs.get(name, state["ema"]), path, "ema", **kwargs)
    # an only one, or the first, may go on with another decay
    is_other_decay = next(iter(ours)) not in theirs
    for name in state.get("emas", {}) if is_other_decay else theirs:
        if name not in ours:
            logger.warning("%s holds an average with decay %s, which is left out", path, name)


def load_optimizer(
    optimizer: Any, schedule: Any, scaler: Any, path: Path, state: Mapping[str, Any]
) -> None:
    """Loads optimizer, learning-rate schedule and loss scale; new settings stay.

    Args:
        optimizer: That of this run.
        schedule: Its schedule; None for none.
        scaler: Its loss scaler; None for none.
        path: The checkpoint, for errors.
        state: Its state.

    Raises:
        ValueError: If it is of another optimizer.
    """
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    if "optimizer" not in state:
        logger.warning("%s holds no optimizer state: Adam begins anew", path)
        return
    theirs = state.get("optimizer_settings", {})
    ours = optimizer_settings(optimizer)
    if theirs.get("class", ours["class"]) != ours["class"]:
        raise ValueError(
            f"the optimizer must be that of {path} to train on, {theirs['class']}, got "
            f"{ours['class']}; give the optimizer it was made with, or begin anew in another "
            "results folder"
        )
    check_shapes(optimizer, state["optimizer"], path)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"the optimizer must be that of {path} to train on, got one with other groups of "
            f"parameters ({error}); give the optimizer and weight_decay it was made with, or "
            "begin anew in another results folder"
        ) from error
    take_new_settings(optimizer, theirs, ours)
    progress = state.get("scheduler", {})
    if theirs.get("lr", ours.get("lr")) != ours.get("lr"):
        # the full learning rates are this run's
        progress = {name: value for name, value in progress.items() if name != "base_lrs"}
    resume_schedule(schedule, optimizer, progress, state["step"])


def load_random_states(states: Any, processes: Processes, seed: int) -> None:
    """Restores the random states of a checkpoint.

    Args:
        states: Of each process; None for a file of the reference, which has none.
        processes: Of this run.
        seed: For another number of processes, whose states go on as none of these.
    """
    if states is None:
        return
    of_processes = [states] if isinstance(states, dict) else states
    if len(of_processes) == processes.world_size:
        restore_random_states(of_processes[processes.rank])
    else:
        torch.manual_seed(seed + processes.rank)


def check_classes(path: Path, state: Mapping[str, Any], ours: Sequence[str]) -> None:
    """Refuses a checkpoint of other classes, whose labels would mean others.

    Args:
        path: The checkpoint.
        state: Its state.
        ours: Names of this run's classes; empty if they are not known.
    """
    theirs = (state.get("config") or {}).get("class_names")
    if theirs and ours and tuple(theirs) != tuple(ours):
        raise ValueError(
            f"the clips must be of the classes that {path} was trained on, "
            f"{', '.join(theirs)}, got {', '.join(ours)}; a label would mean another class: "
            "train on the same classes, or begin anew in another results folder"
        )


def _other_model(path: Path, changed: Sequence[str]) -> ValueError:
    return ValueError(
        f"the model must be that of the checkpoint {path} to train on, got {', '.join(changed)}; "
        "give the settings it was made with, or begin anew in another results folder"
    )
