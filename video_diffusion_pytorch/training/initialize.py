"""Fine-tuning: the weights of a file go into a new model, and some parameters are frozen."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.hub import CONFIG_FILE, read_shared
from video_diffusion_pytorch.reference.state_dict import unwrap_names
from video_diffusion_pytorch.training.checkpoint import checkpoint_at, list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.fsdp import read_sharded
from video_diffusion_pytorch.training.resume import (
    changed_settings,
    clip_info_of,
    hidden_changes,
)

logger = logging.getLogger("video_diffusion_pytorch")

_SHOWN = 5  # patterns of an error


@dataclass(frozen=True)
class SavedModel:
    """The weights in a training file, a sharded folder or a shared model.

    Attributes:
        place: The file or folder, or the name of the repository.
        weights: By name, as they were written.
        config: The settings by part, `unet` and `diffusion`; None in files of the reference.
        clip_info: What is known of the training clips.
        without: Patterns of names that `load_into` leaves out.
    """

    place: Path | str
    weights: Mapping[str, Tensor]
    config: Mapping[str, Any] | None
    clip_info: ClipInfo
    without: Sequence[str] = ()

    def load_into(self, model: GaussianDiffusion) -> None:
        """Copies the weights into a model that may have other parameters.

        Raises:
            ValueError: If the model has other parameters or shapes that `without` does not name,
                or another objective, noise schedule or value range; or if a pattern of `without`
                matches nothing.
        """
        weights = dict(self.weights)
        unwrap_names(model, weights, "")
        matching(self.without, {*weights, *model.state_dict()}, "init_without")
        steps = weights["betas"].shape[0] if "betas" in weights else model.num_timesteps
        # weights of one padding are a start for another one
        hidden = hidden_changes(self.config, model, but=("padding_mode",))
        if steps != model.num_timesteps:
            hidden.append(f"timesteps {model.num_timesteps} instead of {steps}")
        if hidden:
            raise ValueError(
                f"Trainer: the model must have the settings of {self.place} to start from its "
                f"weights, got {', '.join(hidden)}; build the model with the same"
            )
        self._leave_out(model, weights, "")
        # after the network's own hook, which knows the reference's names
        network = unwrap(model.denoise_fn)
        hook = network.register_load_state_dict_pre_hook(self._fit)
        try:
            model.load_state_dict(weights)
        except (ValueError, RuntimeError) as error:
            unit = re.search(r"the model's ((cond_)?value_|sigma_data)", str(error))
            hint = f"; or keep its own with init_without=('{unit[1]}*',)" if unit else ""
            raise ValueError(f"Trainer: init_from={str(self.place)!r}: {error}{hint}") from error
        finally:
            hook.remove()

    def _is_left_out(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.without)

    def _leave_out(self, module: nn.Module, state_dict: dict[str, Any], prefix: str) -> None:
        """Replaces the weights that are left out by those of the module, in place."""
        own = {prefix + name: value for name, value in module.state_dict().items()}
        for name in [name for name in {*state_dict, *own} if self._is_left_out(name)]:
            state_dict.pop(name, None)
            if name in own:
                state_dict[name] = own[name]

    def _fit(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Before a network loads its weights: leaves some out, and reports others that differ."""
        self._leave_out(module, state_dict, prefix)
        own = {prefix + name: value for name, value in module.state_dict().items()}
        theirs = {name: value for name, value in state_dict.items() if name.startswith(prefix)}
        both = own.keys() & theirs.keys()
        differences = {
            "lacks": own.keys() - both,
            "alone has": theirs.keys() - both,
            "has in another shape": {n for n in both if own[n].shape != theirs[n].shape},
        }
        found = {verb: _patterns(names, prefix) for verb, names in differences.items() if names}
        if not found:
            return
        unet = (self.config or {}).get("unet")
        changed = changed_settings(unet, getattr(module, "config", None) or {})
        words = [f"{verb} {', '.join(patterns[:_SHOWN])}" for verb, patterns in found.items()]
        all_patterns = [repr(one) for patterns in found.values() for one in patterns]
        raise ValueError(
            f"the file must have the parameters of the network, got one that {'; '.join(words)}"
            f"{f' ({len(all_patterns)} patterns in all)' if len(all_patterns) > _SHOWN else ''}"
            f"{f', as the network has {_list(changed)}' if changed else ''}; build the network "
            "with the same settings, or, to let these parameters start afresh, pass "
            f"init_without=({_list(all_patterns)},)"
        )


def _list(words: Sequence[str]) -> str:
    return ", ".join([*words[:_SHOWN], *["..."] * (len(words) > _SHOWN)])


def _patterns(names: Iterable[str], prefix: str) -> list[str]:
    """Patterns of names of tensors, one for the tensors of a layer."""
    found = set()
    for name in names:
        layer, _, tensor = name.removeprefix(prefix).rpartition(".")
        found.add(f"*.{layer}.*" if layer else f"*.{tensor}")
    return sorted(found)


def matching(patterns: Sequence[str], names: Iterable[str], argument: str) -> list[str]:
    """The names that match one of the patterns of an argument of `Trainer`, as in `fnmatch`.

    Raises:
        ValueError: If a pattern matches none.
    """
    names = sorted(names)
    found: set[str] = set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            near = difflib.get_close_matches(pattern.replace("*", ""), names, cutoff=0.3)
            raise ValueError(
                f"Trainer: each pattern of {argument} must match the name of a parameter, got "
                f"{pattern!r}; choose among those of model.named_parameters(), such as "
                f"{', '.join(near or names[:3])}"
            )
        found.update(matched)
    return [name for name in names if name in found]


def read_model(path: str | os.PathLike[str], averaged: bool | float, caller: str) -> SavedModel:
    """Reads the weights and settings of a model.

    Args:
        path: As in `load_diffusion`.
        averaged: As in `load_diffusion`.
        caller: The argument that the weights are chosen by, for errors.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or holds no such average.
    """
    if is_shared(path):
        check_shared(path, averaged, caller)
        _, config, _, weights = read_shared(path, GaussianDiffusion)
        return SavedModel(str(path), weights, config, ClipInfo.from_config(config.get("clips")))
    file = checkpoint_at(path)
    state = read_sharded(file) if file.is_dir() else read_checkpoint(file)
    weights = _choose_weights(state, averaged, file, caller)
    return SavedModel(file, weights, state.get("config"), clip_info_of(state))


def is_shared(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder of `save_pretrained`, or else the name of a repository."""
    here = Path(path)
    if here.exists():
        return (here / CONFIG_FILE).is_file() and not list_checkpoints(here)
    is_name = isinstance(path, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None
    return is_name and here.suffix not in (".pt", ".sharded") and not here.parent.exists()


def check_shared(path: str | os.PathLike[str], averaged: bool | float, caller: str) -> None:
    """Raises a ValueError if one of several averages is asked for of a shared model."""
    if averaged is not True:
        raise ValueError(
            f"{caller} must be left out for the shared model {path}, which holds one set of "
            f"weights, got {averaged}"
        )


def _choose_weights(
    state: Mapping[str, Any], averaged: bool | float, file: Path, caller: str
) -> Any:
    if isinstance(averaged, bool):
        return state["ema" if averaged else "model"]
    decays = [float(decay) for decay in state.get("ema_decays", ())]
    if averaged not in decays:
        held = ", ".join(map(str, decays)) or "one of unknown decay"
        raise ValueError(
            f"{caller} must be True, False or the decay of an average in {file}, which holds "
            f"{held}, got {averaged}; give one of them"
        )
    return state["ema"] if averaged == decays[0] else state["emas"][repr(float(averaged))]


def initial_model(
    arguments: Mapping[str, Any], model: GaussianDiffusion, processes: Any, resumes: bool
) -> SavedModel | None:
    """Reads the model that a run starts from, and completes the `clip_info` of its own.

    Args:
        arguments: Of `Trainer`.
        model: The model to train.
        processes: Of the run; the main one reads, as the others get its weights later.
        resumes: Whether the run resumes from a checkpoint instead.

    Returns:
        It, on the main process; None without `init_from`.

    Raises:
        ValueError: As `read_model`.
    """
    path, found = arguments["init_from"], None
    if path is not None and resumes:
        logger.info("the run resumes from a checkpoint: init_from=%r is not read", str(path))
    elif path is not None:
        with processes.main_first():
            if processes.is_main:
                found = read_model(path, arguments["init_averaged"], "Trainer: init_averaged")
                without = arguments["init_without"]
                without = [without] if isinstance(without, str) else without
                found = replace(found, without=tuple(without))
        info = processes.from_main(None if found is None else found.clip_info)
        model.clip_info = model.clip_info.completed_by(info)
    return found


def warn_of_other_classes(source: SavedModel, ours: Sequence[str]) -> None:
    """Warns if the clips are of other classes than those that the weights were trained on.

    Args:
        source: The weights.
        ours: Names of this run's classes; empty if unknown.
    """
    theirs = source.clip_info.class_names
    is_new = any("label_emb" in pattern for pattern in source.without)
    if theirs and ours and tuple(theirs) != tuple(ours) and not is_new:
        logger.warning(
            "%s was trained on the classes %s, and the clips are of %s: a label starts with the "
            "meaning that its number had; pass init_without=('*.label_emb.*',) to learn all anew",
            source.place,
            _list(theirs),
            _list(ours),
        )


def freeze_parameters(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    """Freezes parameters: they get no gradients.

    Args:
        model: The model.
        patterns: Of their names, as in `fnmatch`.

    Returns:
        Their names, in the model's order.

    Raises:
        ValueError: If a pattern matches no parameter, or no parameter is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen = {*matching(patterns, parameters, "freeze")}
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"Trainer: freeze must leave parameters to train, got {_list(list(patterns))}, which "
            "matches all of them; freeze fewer"
        )
    return [name for name in parameters if name in frozen]
