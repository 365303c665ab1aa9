"""`video-diffusion info`: a description of a checkpoint."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.reference.state_dict import unet_config_from_state_dict
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance

# The condition that each setting of a network adds
_CONDITIONS = {
    "cond_dim": "captions or vectors of {} numbers",
    "num_classes": "{} classes",
    "frame_cond_dim": "vectors of {} numbers for each frame",
    "cond_channels": "fields of {} channels",
}


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `info`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion info CHECKPOINT",
        description="Describes a checkpoint: the model, its data and how far it is trained.",
    )
    checkpoint = "A file model-N.pt of this library, or of version 0.6 or 0.7; a folder "
    checkpoint += "model-N.sharded; or a results folder, for its newest checkpoint."
    parser.add_argument("checkpoint", type=str, help=checkpoint)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Prints a description of a checkpoint."""
    for line in describe_checkpoint(options.checkpoint):
        say(line)


def describe_checkpoint(path: str | os.PathLike[str]) -> list[str]:
    """Describes a checkpoint, whose tensors are not read.

    Args:
        path: A training file of this library or of the reference, a folder `model-N.sharded`, or
            a results folder, for its newest checkpoint.

    Returns:
        The lines of the description: a title, and one for each property.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a training file.
    """
    path = checkpoint_at(path)
    state = glance(path)
    config = state.get("config")
    if config is None:
        unet = unet_config_from_state_dict(state["model"])[1]
        steps = _count(len(state["model"]["betas"]), "time step")
        diffusion: dict[str, str] = {"diffusion": f"{steps}, schedule cosine, objective pred_noise"}
    else:
        unet = config["unet"]
        diffusion = _describe_diffusion(config["diffusion"])
        diffusion["classes"] = ", ".join(config.get("class_names") or ())
    if "version" in state:
        writer = f"video-diffusion-pytorch {state['version']}"
    else:
        has_groups = unet is not None and unet["resnet_groups"] is not None
        writer = f"the reference, version {'0.6.x' if has_groups else '0.7.0'}"
    about = {
        "step": str(state["step"]),
        **_describe_network(state, unet),
        **diffusion,
        **_describe_run(state),
    }
    lines = [f"  {name:12}{text}" for name, text in about.items() if text]
    return [f"{path}: checkpoint of {writer}, {_size(path)}", *lines]


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    count = sum(file.stat().st_size for file in files)
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _describe_network(state: Mapping[str, Any], unet: Mapping[str, Any] | None) -> dict[str, str]:
    if unet is None:
        tensors = [t for n, t in (state.get("model") or {}).items() if n.startswith("denoise_fn.")]
        count = sum(tensor.numel() for tensor in tensors if isinstance(tensor, Tensor))
        return {"network": f"not a Unet3D{_parameters(count) if count else ''}"}
    kinds = [text.format(unet[name]) for name, text in _CONDITIONS.items() if unet.get(name)]
    if unet.get("use_bert_text_cond") and not unet.get("cond_dim"):
        kinds.insert(0, "captions, by BERT")
    # counted without memory; the state dict of the reference has shared parameters twice
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Unet3D(**unet).parameters())
    parts = [
        f"Unet3D{_parameters(count)}",
        f"dim {unet['dim']}",
        f"dim_mults {tuple(unet['dim_mults'])}",
        _count(unet["channels"], "channel"),
        *_options(unet),
    ]
    return {"network": ", ".join(parts), "conditions": ", ".join(kinds) or "none"}


def _parameters(count: int) -> str:
    return f", {count / 1e6:.3g} million parameters"


def _options(unet: Mapping[str, Any]) -> list[str]:
    """Settings that the reference and the conditions lack, where they are not the defaults."""
    parameters = inspect.signature(Unet3D).parameters
    names = list(parameters)
    return [
        f"{name} {unet[name]}"
        for name in names[names.index("num_text_tokens") :]
        if name in unet and _plain(unet[name]) != _plain(parameters[name].default)
    ]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _describe_diffusion(config: Mapping[str, Any]) -> dict[str, str]:
    size = config["image_size"]
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    clips = [f"{_count(config['num_frames'], 'frame')} of {height} x {width} pixels"]
    clips.append(_count(config["channels"], "channel"))
    if config.get("given_frames"):
        clips.append(f"the first {config['given_frames']} given")
    if config.get("value_range"):
        low, high = config["value_range"]
        clips.append(f"values from {_bound(low)} to {_bound(high)}")
    else:
        is_unit = config.get("auto_normalize", True)
        clips.append("values from 0 to 1" if is_unit else "values as they are")
    schedule = config.get("beta_schedule", "cosine")
    process = [
        _count(config["timesteps"], "time step"),
        f"schedule {schedule if isinstance(schedule, str) else 'of given betas'}",
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


def _describe_run(state: Mapping[str, Any]) -> dict[str, str]:
    clips = state.get("data") or {}
    data = []
    if clips.get("clips"):
        data.append(_count(clips["clips"], "clip"))
        if clips.get("position") is not None:
            epochs = f"{clips['position'] / clips['clips']:.3g}"
            data.append(f"{epochs} epochs done ({clips['position']} clips seen)")
    if "seed" in clips:
        data.append(f"seed {clips['seed']}")
    losses = state.get("losses") or {}
    states = state.get("random_states")
    return {
        "data": ", ".join(data),
        "averages": ", ".join(f"{decay:g}" for decay in state.get("ema_decays") or ()),
        "optimizer": _describe_optimizer(state.get("optimizer") or {}),
        "losses": ", ".join(f"{n} {v:.4g}" for n, v in losses.items() if v is not None),
        "processes": str(len(states) if isinstance(states, list) else 1) if states else "",
    }


def _describe_optimizer(optimizer: Mapping[str, Any]) -> str:
    groups = optimizer.get("param_groups") or [{}]
    parts = []
    for key in ("lr", "betas", "momentum"):
        value = groups[0].get(key)
        if value is not None:
            name = "learning rate" if key == "lr" else key
            parts.append(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}")
    decay = max((group.get("weight_decay") or 0 for group in groups), default=0)
    if decay:
        parts.append(f"weight decay {decay:g}")
    return ", ".join(parts) or "not in the file: resuming starts a new one"
