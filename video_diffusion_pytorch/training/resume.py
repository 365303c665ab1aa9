"""Resuming: the state of a checkpoint goes into model, averages, optimizer and generators."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.ema import Averages
from video_diffusion_pytorch.training.fsdp import read_sharded
from video_diffusion_pytorch.training.optimizer import (
    Schedule,
    check_shapes,
    optimizer_settings,
    resume_schedule,
    take_new_settings,
)
from video_diffusion_pytorch.training.processes import Processes

logger = logging.getLogger("video_diffusion_pytorch")

# Settings of a network that its weights don't determine, as checkpoints that lack them have them
_WITHOUT_WEIGHTS = {
    "token_shift": None,
    "resnet_groups": None,
    "padding_mode": "zeros",
}
# Settings of a network that its weights don't depend on
_NOT_IN_WEIGHTS = ("dropout", "gradient_checkpointing")
# Those of a diffusion that weights depend on
_IN_WEIGHTS = {"timesteps", "objective", "beta_schedule", "value_range", "cond_value_range"}
_IN_WEIGHTS |= {"channels", "given_frames", "cond_standardization"}
# Share of the base learning rate below which a run is near its end
_DECAYED = 0.01


def checkpoint_to_resume(resume: str | os.PathLike[str] | None, folder: Path) -> Any:
    """What to load at the start of a run, as of `Trainer.load`; None for nothing.

    Args:
        resume: As of `Trainer`.
        folder: The results folder.

    Raises:
        ValueError: If `resume` is none of its values.
        FileExistsError: If it is `"never"` and the folder has checkpoints.
    """
    if not (resume is None or isinstance(resume, (str, os.PathLike))):
        raise ValueError(
            f"Trainer: resume must be 'auto', 'never', a path or None, got {shown(resume)}; 'auto' "
            "resumes from the last checkpoint"
        )
    existing = list_checkpoints(folder)
    if resume == "never" and existing:
        raise FileExistsError(
            "Trainer: with resume='never' the results folder must be without checkpoints, got "
            f"{folder} with {existing[-1].name}; choose another results_folder, or resume='auto'"
        )
    if resume == "auto":
        return -1 if existing else None
    return None if resume == "never" else resume


def read_state(
    path: Path, map_location: Any, model: nn.Module, optimizer: Any, processes: Processes
) -> dict[str, Any]:
    """Reads a checkpoint; from a folder into a sharded model, only the shards of this process.

    Args:
        path: The file, or the folder of a sharded model.
        map_location: As in `torch.load`, for a file.
        model: That of this run.
        optimizer: Its optimizer.
        processes: Of this run.
    """
    if not path.is_dir():
        return read_checkpoint(path, map_location)
    if not processes.fsdp:
        return read_sharded(path)
    return read_sharded(path, model, optimizer, processes.share)


def resume_sigma_data(models: Sequence[Any], state: Mapping[str, Any]) -> None:
    """Sets the `sigma_data` of models to that of a checkpoint, which its run measured.

    Args:
        models: The diffusion and its averages.
        state: Of the checkpoint.
    """
    config = (state.get("config") or {}).get("diffusion") or {}
    for model in models:
        model.set_sigma_data(config.get("sigma_data", model.config["sigma_data"]))


def resume_value_range(models: Sequence[Any], state: Mapping[str, Any]) -> None:
    """Sets the `value_range` of models to that of a checkpoint, whose run measured it.

    One of another kind, limits instead of a mean and standard deviation, is left to `load_model`.

    Args:
        models: The diffusion and its averages.
        state: Of the checkpoint.
    """
    config = (state.get("config") or {}).get("diffusion") or {}
    found = config.get("value_range")
    for model in models:
        is_same_kind = isinstance(found, Mapping) == isinstance(
            model.config["value_range"], Mapping
        )
        if found is not None and is_same_kind:
            model.set_value_range(found)


def resume_condition_scales(models: Sequence[Any], state: Mapping[str, Any]) -> None:
    """Sets the `cond_standardization` of models to that of a checkpoint, whose run measured it.

    Args:
        models: The diffusion and its averages.
        state: Of the checkpoint.
    """
    config = (state.get("config") or {}).get("diffusion") or {}
    found = config.get("cond_standardization")
    for model in models:
        if found is not None:
            model.set_cond_standardization(found)


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
    theirs = state.get("config") or {}
    hidden = hidden_changes(theirs, model)
    if hidden:
        raise _other_model(path, hidden)
    try:
        model.load_state_dict(state["model"], **kwargs)
        _load_averages(averages, path, state, **kwargs)
    except RuntimeError as error:
        if not str(error).startswith("Error(s) in loading state_dict"):
            raise  # an error of the device
        unet, diffusion = (theirs.get(name) or {} for name in ("unet", "diffusion"))
        unet = {n: value for n, value in unet.items() if n not in _NOT_IN_WEIGHTS}
        diffusion = {n: value for n, value in diffusion.items() if n in _IN_WEIGHTS}
        ours = getattr(unwrap(model.denoise_fn), "config", None) or {}
        changed = changed_settings(unet, ours) + changed_settings(diffusion, model.config)
        # torch's message has a line for each parameter
        message = " ".join(str(error).split())
        raise _other_model(path, changed or [message[:500]]) from error


def _load_averages(averages: Averages, path: Path, state: Mapping[str, Any], **kwargs: Any) -> None:
    theirs, ours = {**state.get("emas", {})}, averages.named()
    for decay in state.get("ema_decays", ())[:1]:
        theirs[repr(float(decay))] = state["ema"]
    if state.get("ema_posthoc", False) != averages.is_posthoc:
        logger.warning(
            "%s holds averages by %s: those of this run, by %s, start from the first of them",
            path,
            *(("decay", "width") if averages.is_posthoc else ("width", "decay")),
        )
        theirs = dict.fromkeys(ours, state["ema"])
    first = next(iter(ours))
    for name, average in ours.items():
        if name not in theirs and name != first:
            logger.warning(
                "%s holds no average with decay %s: it starts from that with decay %s",
                path,
                name,
                first,
            )
        average.load_state_dict(theirs.get(name, state["ema"]), **kwargs)
    # the first average may get another decay
    for name in theirs if first in theirs else state.get("emas", {}):
        if name not in ours:
            logger.warning("%s holds an average with decay %s, which is left out", path, name)


def load_optimizer(
    optimizer: Any,
    schedule: Any,
    scaler: Any,
    path: Path,
    state: Mapping[str, Any],
    frozen: Sequence[str] = (),
) -> None:
    """Loads optimizer, learning-rate schedule and loss scale; changed settings stay.

    Args:
        optimizer: That of this run.
        schedule: Its schedule; None for none.
        scaler: Its loss scaler; None for none.
        path: The checkpoint, for errors.
        state: Its state.
        frozen: Names of the parameters that this run's `freeze` leaves out.

    Raises:
        ValueError: If it is of another optimizer, or of one of other parameters.
    """
    if scaler is not None and state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    if "optimizer" not in state:
        logger.warning("%s holds no optimizer state: the optimizer starts anew", path)
        return
    theirs, ours = state.get("optimizer_settings", {}), optimizer_settings(optimizer)
    difference: Any = None
    if theirs.get("class", ours["class"]) != ours["class"]:
        difference = f"{ours['class']} instead of {theirs['class']}"
    elif [*state.get("frozen", ())] != [*frozen]:
        difference = "one of other parameters"
    else:
        check_shapes(optimizer, state["optimizer"], path)
        try:
            optimizer.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            difference = f"one with other groups of parameters ({error})"
    if difference is not None:
        raise ValueError(
            f"the optimizer must be that of {path} to resume from it, got {difference}; pass the "
            "same optimizer, weight_decay and freeze, or start a new run in another results folder"
        )
    take_new_settings(optimizer, theirs, ours)
    progress = state.get("scheduler", {})
    if theirs.get("lr", ours.get("lr")) != ours.get("lr"):
        # the base learning rates are this run's
        progress = {name: value for name, value in progress.items() if name != "base_lrs"}
    resume_schedule(schedule, optimizer, progress, state["step"])


def warn_of_decayed_rate(path: Path, state: Mapping[str, Any], schedule: Any, clips: int) -> None:
    """Warns if a run whose learning rate has decayed is resumed on other clips.

    Args:
        path: The checkpoint.
        state: Its state.
        schedule: This run's learning-rate schedule; None for none.
        clips: Number of clips to train on.
    """
    is_falling = isinstance(schedule, Schedule) and schedule.kind != "constant"
    if not is_falling or state["step"] <= schedule.warmup_steps:
        return
    groups = state.get("optimizer", {}).get("param_groups", ())
    rates = [(group["lr"], group.get("initial_lr", group["lr"])) for group in groups]
    has_decayed = any(lr <= _DECAYED * initial for lr, initial in rates)
    if has_decayed and state.get("data", {}).get("clips") not in (None, clips):
        logger.warning(
            "%s is of other clips, and its learning rate has decayed to %.1e, as at the end of a "
            "run: to train its weights on these clips, start a new run with init_from=%r",
            path,
            rates[0][0],
            str(path),
        )


def random_states() -> dict[str, Any]:
    """The state of every random generator that this process draws from in training."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def load_random_states(states: Any, processes: Processes, seed: int) -> None:
    """Restores the random states of a checkpoint.

    Args:
        states: Those of each process, from `random_states`; None in a file of the reference.
        processes: Of this run.
        seed: Seeds torch if they are of another number of processes.

    Raises:
        ValueError: If a generator does not accept its state.
    """
    if states is None:
        return
    of_processes = [states] if isinstance(states, dict) else states
    if len(of_processes) != processes.world_size:
        torch.manual_seed(seed + processes.rank)
        return
    own = of_processes[processes.rank]
    try:
        version, words, normal = own["python"]
        keys, position, has_gauss, gauss = own["numpy"]
        random.setstate((version, tuple(words), normal))
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(own["torch"].cpu())
        if own["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(own["cuda"][0].cpu())
    except (ValueError, TypeError, LookupError, RuntimeError, AttributeError) as error:
        raise ValueError(
            "the checkpoint's random_states must be states of the generators of Python, NumPy and "
            f"torch, got others ({error}); use the checkpoint before it"
        ) from error


def check_classes(path: Path, state: Mapping[str, Any], ours: Sequence[str]) -> None:
    """Refuses a checkpoint of other classes, whose labels have another meaning.

    Args:
        path: The checkpoint.
        state: Its state.
        ours: Names of this run's classes; empty if unknown.
    """
    theirs = clip_info_of(state).class_names
    if theirs and ours and tuple(theirs) != tuple(ours):
        raise ValueError(
            f"the clips must be of the classes of {path}, {', '.join(theirs)}, got "
            f"{', '.join(ours)}; train on the same classes, or start a new run in another results "
            "folder"
        )


def clip_info_of(state: Mapping[str, Any]) -> ClipInfo:
    """What a checkpoint says of the training clips.

    Raises:
        ValueError: If it is damaged.
    """
    config = state.get("config") or {}
    # versions up to 0.8 kept the names of classes alone
    return ClipInfo.from_config(config.get("clips", {"class_names": config.get("class_names", ())}))


def changed_settings(theirs: Mapping[str, Any] | None, ours: Mapping[str, Any]) -> list[str]:
    """What differs between the settings of a checkpoint and those of a model, in words.

    Args:
        theirs: Settings in the checkpoint; None if it holds none.
        ours: Those of the model; settings that only it has are not compared.
    """
    return [
        f"{name} {ours.get(name)} instead of {value}"
        for name, value in (theirs or {}).items()
        if _as_list(value) != _as_list(ours.get(name))
    ]


def hidden_changes(
    config: Mapping[str, Any] | None, model: Any, but: Sequence[str] = ()
) -> list[str]:
    """What differs of the settings of a network that its weights don't determine, in words.

    Args:
        config: Settings by part, of a checkpoint; None if it holds none.
        model: The diffusion.
        but: Settings that may differ.
    """
    unet = (config or {}).get("unet") or {}
    ours = getattr(unwrap(model.denoise_fn), "config", None) or {}
    usual = {name: value for name, value in _WITHOUT_WEIGHTS.items() if name not in but}
    theirs = {name: unet.get(name, value) for name, value in usual.items()}
    return changed_settings(theirs, ours) if unet else []


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _other_model(path: Path, changed: Sequence[str]) -> ValueError:
    return ValueError(
        f"the model must be that of the checkpoint {path} to resume from it, got "
        f"{', '.join(changed)}; pass the same settings, or start a new run in another results "
        "folder"
    )
