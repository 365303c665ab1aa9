"""`video-diffusion info`: what a checkpoint holds, in words."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.reference.state_dict import unet_config_from_state_dict
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance

HELP = "say what a checkpoint holds"

# What a network that takes a condition is told in each entry of its config
_CONDITIONS = {
    "cond_dim": "captions or vectors of {} numbers",
    "num_classes": "{} classes",
    "frame_cond_dim": "vectors of {} numbers for each frame",
    "cond_channels": "fields of {} channels",
}
_WIDTH = 12  # of the column of names


def make_parser() -> ArgumentParser:
    """The options of `info`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion info CHECKPOINT",
        description="Says what a checkpoint holds: the model, how far it is trained and on what.",
    )
    parser.add_argument(
        "checkpoint",
        type=str,
        help="A file model-N.pt of this library, or of version 0.6 or 0.7; a folder "
        "model-N.sharded; or a results folder, for its newest checkpoint.",
    )
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Prints what a checkpoint holds."""
    for line in describe_checkpoint(options.checkpoint):
        say(line)


def describe_checkpoint(path: str | os.PathLike[str]) -> list[str]:
    """What a checkpoint holds, in lines to print; its tensors are not read.

    Args:
        path: A training file of this library or of the reference, a folder `model-N.sharded`, or
            a results folder, for its newest checkpoint.

    Returns:
        A title, and a line for each thing that the file tells.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a training file.
    """
    path = checkpoint_at(path)
    state = glance(path)
    told: dict[str, str | None] = {"step": str(state["step"])}
    config = state.get("config")
    if config is None:
        unet = unet_config_from_state_dict(state["model"])[1]
        told |= _of_network(state, unet) | {"diffusion": _schedule_of(state["model"])}
    else:
        unet = config["unet"]
        told |= _of_network(state, unet) | _of_diffusion(config["diffusion"])
        told["classes"] = ", ".join(config.get("class_names") or ())
    told |= _of_run(state)
    lines = [f"  {name:{_WIDTH}}{text}" for name, text in told.items() if text]
    return [f"{path}: {_writer(state, unet)}, {_size(path)}", *lines]


def _writer(state: Mapping[str, Any], unet: Mapping[str, Any] | None) -> str:
    if "version" in state:
        return f"checkpoint of video-diffusion-pytorch {state['version']}"
    has_groups = unet is not None and unet["resnet_groups"] is not None
    return f"checkpoint of the reference, version {'0.6.x' if has_groups else '0.7.0'}"


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    count = sum(file.stat().st_size for file in files)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


# what a file tells


def _of_network(state: Mapping[str, Any], unet: Mapping[str, Any] | None) -> dict[str, str | None]:
    count = _parameters(state.get("model") or {}, unet)
    size = None if count is None else f"{count / 1e6:.3g} million parameters"
    if unet is None:
        return {"network": ", ".join(filter(None, ["not a Unet3D", size]))}
    kinds = [text.format(unet[name]) for name, text in _CONDITIONS.items() if unet.get(name)]
    if unet.get("use_bert_text_cond") and not unet.get("cond_dim"):
        kinds.insert(0, "captions, by BERT")
    parts = [
        "Unet3D",
        size,
        f"dim {unet['dim']}",
        f"dim_mults {tuple(unet['dim_mults'])}",
        _count(unet["channels"], "channel"),
        *_options(unet),
    ]
    return {"network": ", ".join(filter(None, parts)), "conditions": ", ".join(kinds) or "none"}


def _options(unet: Mapping[str, Any]) -> list[str]:
    """Options beyond the reference's, and its conditions, where they are not as usual."""
    parameters = inspect.signature(Unet3D).parameters
    beyond = list(parameters)[list(parameters).index("num_text_tokens") :]
    return [
        f"{name} {unet[name]}"
        for name in beyond
        if name in unet and _plain(unet[name]) != _plain(parameters[name].default)
    ]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _parameters(model: Mapping[str, Any], unet: Mapping[str, Any] | None) -> int | None:
    """How many numbers the network learns; None if nothing tells."""
    if unet is not None:
        # counted where they need no memory: the reference's names count shared ones twice
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in Unet3D(**unet).parameters())
    tensors = [
        tensor
        for name, tensor in model.items()
        if name.startswith("denoise_fn.") and isinstance(tensor, Tensor)
    ]
    return sum(tensor.numel() for tensor in tensors) or None


def _of_diffusion(config: Mapping[str, Any]) -> dict[str, str | None]:
    size = config["image_size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    clips = [f"{_count(config['num_frames'], 'frame')} of {height} x {width} pixels"]
    clips.append(_count(config["channels"], "channel"))
    given, schedule = config.get("given_frames"), config.get("beta_schedule", "cosine")
    if given:
        clips.append(f"the first {given} given")
    if config.get("value_range"):
        low, high = config["value_range"]
        clips.append(f"values from {_bound(low)} to {_bound(high)}")
    else:
        is_unit = config.get("auto_normalize", True)
        clips.append("values from 0 to 1" if is_unit else "values as they are")
    process = [
        _count(config["timesteps"], "time step"),
        f"schedule {schedule if isinstance(schedule, str) else 'of betas without a name'}",
        f"objective {config.get('objective', 'pred_noise')}",
        f"loss {config['loss_type']}",
    ]
    return {"clips": ", ".join(clips), "diffusion": ", ".join(process)}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _bound(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        few = ", ".join(f"{item:g}" for item in value[:4])
        return f"({few}{', ...' * (len(value) > 4)})"
    return f"{value:g}"


def _schedule_of(model: Mapping[str, Any]) -> str:
    return f"{_count(len(model['betas']), 'time step')}, schedule cosine, objective pred_noise"


def _of_run(state: Mapping[str, Any]) -> dict[str, str | None]:
    data, losses = state.get("data") or {}, state.get("losses") or {}
    told = [f"{name} {value:.4g}" for name, value in losses.items() if value is not None]
    decays, states = state.get("ema_decays"), state.get("random_states")
    optimizer = state.get("optimizer") or {}
    return {
        "data": ", ".join(_of_data(data)),
        "averages": ", ".join(f"{decay:g}" for decay in decays) if decays else None,
        "optimizer": ", ".join(_of_optimizer(optimizer)) or "not in the file: begins anew",
        "losses": ", ".join(told),
        "processes": str(len(states) if isinstance(states, list) else 1) if states else None,
    }


def _of_data(data: Mapping[str, Any]) -> Iterator[str]:
    clips, position = data.get("clips"), data.get("position")
    if clips:
        yield _count(clips, "clip")
    if clips and position is not None:
        yield f"{position / clips:.3g} epochs done ({position} clips seen)"
    if "seed" in data:
        yield f"seed {data['seed']}"


def _of_optimizer(optimizer: Mapping[str, Any]) -> Iterator[str]:
    groups = optimizer.get("param_groups") or [{}]
    names = {"lr": "learning rate", "betas": "betas", "momentum": "momentum"}
    for key, name in names.items():
        if groups[0].get(key) is not None:
            value = groups[0][key]
            yield f"{name} {f'{value:.4g}' if isinstance(value, float) else value}"
    decay = max((group.get("weight_decay") or 0 for group in groups), default=0)
    if decay:
        yield f"weight decay {decay:g}"
