"""`video-diffusion info`: a description of a checkpoint or a shared model."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.hub import read_config
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.pretrained import is_shared
from video_diffusion_pytorch.reference.state_dict import unet_config_from_state_dict
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance
from video_diffusion_pytorch.training.posthoc_ema import list_snapshots
from video_diffusion_pytorch.training.resume import clip_info_of
from video_diffusion_pytorch.value_scale import Standardization


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `info`."""
    parser = ArgumentParser(
        usage="video-diffusion info CHECKPOINT",
        description="Describes a checkpoint: the model, its data and how far it is trained.",
    )
    checkpoint = "A file model-N.pt of this library, or of version 0.6 or 0.7; a folder "
    checkpoint += "model-N.sharded; a results folder, for its newest checkpoint; or a shared "
    checkpoint += "model: its folder, or its name on the Hugging Face Hub, user/model."
    parser.add_argument("checkpoint", type=str, help=checkpoint)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Prints a description of a checkpoint or a shared model."""
    for line in describe_checkpoint(options.checkpoint):
        say(line)


def describe_checkpoint(path: str | os.PathLike[str]) -> list[str]:
    """Describes a checkpoint or a shared model, whose tensors are not read.

    Args:
        path: A training file of this library or of the reference, a folder `model-N.sharded`, a
            results folder, for its newest checkpoint, a folder of `save_pretrained`, or the name of
            a repository on the Hugging Face Hub.

    Returns:
        The lines of the description: a title, and one for each property.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is neither a training file nor a shared model.
    """
    if is_shared(path):
        return _describe_shared(path)
    path = checkpoint_at(path)
    state = glance(path)
    config = state.get("config")
    if config is None:
        unet = unet_config_from_state_dict(state["model"])[1]
        writer = f"the reference, version {'0.6.x' if unet and unet['resnet_groups'] else '0.7.0'}"
        diffusion = f"timesteps {len(state['model']['betas'])}"
    else:
        unet = config["unet"]
        writer = f"video-diffusion-pytorch {state.get('version', 'unknown')}"
        diffusion = ", ".join(_settings(GaussianDiffusion, config["diffusion"]))
    about = {
        "step": state["step"],
        "network": _describe_network(state.get("model") or {}, unet),
        "diffusion": diffusion,
        **clip_info_of(state).in_words(),
        "progress": ", ".join(_describe_data(state.get("data") or {})),
        "averages": _describe_averages(state),
        "snapshots": _describe_snapshots(path.parent),
        # a snapshot of averages has none, and is not resumed from
        "optimizer": ""
        if "ema_time" in state
        else _describe_optimizer(state.get("optimizer") or {}),
        "losses": ", ".join(
            f"{n} {v:.4g}" for n, v in (state.get("losses") or {}).items() if v is not None
        ),
        "processes": _count_processes(state.get("random_states")),
    }
    return [f"{path}: checkpoint of {writer}, {_size(path)}", *_lines(about)]


def _describe_shared(path: str | os.PathLike[str]) -> list[str]:
    config, here = read_config(path, Unet3D), Path(path)
    part = "model" if "diffusion" in config else "network without its diffusion"
    about = {
        "network": _describe_network({}, config["unet"]),
        "diffusion": ", ".join(_settings(GaussianDiffusion, config.get("diffusion", {}))),
        **ClipInfo.from_config(config.get("clips")).in_words(),
    }
    size = f", {_size(here)}" if here.is_dir() else ", on the Hugging Face Hub"
    writer = f"video-diffusion-pytorch {config.get('version', 'unknown')}"
    return [f"{path}: shared {part} of {writer}{size}", *_lines(about)]


def _lines(about: Mapping[str, Any]) -> list[str]:
    return [f"  {name:20}{text}" for name, text in about.items() if text != ""]


def _size(path: Path) -> str:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:.1f} MB"


def _describe_network(weights: Mapping[str, Any], unet: Mapping[str, Any] | None) -> str:
    if unet is None:
        tensors = [t for n, t in weights.items() if n.startswith("denoise_fn.") and t is not None]
        count = sum(tensor.numel() for tensor in tensors)
        return f"not a Unet3D{f', {count:,} parameters' if count else ''}"
    # counted without memory; the state dict of the reference has shared parameters twice
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Unet3D(**unet).parameters())
    return ", ".join([f"Unet3D, {count:,} parameters", *_settings(Unet3D, unet)])


def _settings(constructor: type, config: Mapping[str, Any]) -> list[str]:
    """The settings that differ from the constructor's defaults."""
    defaults = {n: p.default for n, p in inspect.signature(constructor).parameters.items()}
    # JSON has lists for tuples
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in config.items()}
    changed = {n: value for n, value in plain.items() if value != defaults.get(n)}
    scale: Any = changed.pop("value_range", None)
    words = [f"{n} {shown(value)}" for n, value in changed.items()]
    if isinstance(scale, Mapping):
        words.append(f"value_range ({Standardization(**scale).in_words()})")
    elif scale is not None:
        words.append(f"value_range {shown(scale)}")
    return words


def _describe_data(data: Mapping[str, Any]) -> Iterator[str]:
    clips, position = data.get("clips"), data.get("position")
    if clips:
        yield f"{clips} clips"
    if clips and position is not None:
        yield f"{position / clips:.3g} epochs done ({position} clips seen)"
    if "seed" in data:
        yield f"seed {data['seed']}"


def _describe_averages(state: Mapping[str, Any]) -> str:
    numbers = ", ".join(f"{decay:g}" for decay in state.get("ema_decays") or ())
    return f"post-hoc, of widths {numbers}" if state.get("ema_posthoc") else numbers


def _describe_snapshots(folder: Path) -> str:
    steps = [*list_snapshots(folder)]
    if not steps:
        return ""
    return f"{len(steps)} of averages, steps {steps[0]} to {steps[-1]}: for video-diffusion ema"


def _describe_optimizer(optimizer: Mapping[str, Any]) -> str:
    groups = optimizer.get("param_groups")
    if not groups:
        return "not in the file: resuming starts a new one"
    # weights and biases are in groups that differ only in this
    decay = max(group.get("weight_decay") or 0 for group in groups)
    settings = {**groups[0], "weight_decay": decay}
    names = ("lr", "betas", "momentum", "weight_decay")
    return ", ".join(f"{name} {settings[name]}" for name in names if settings.get(name) is not None)


def _count_processes(random_states: Any) -> int | str:
    if not random_states:
        return ""
    return len(random_states) if isinstance(random_states, list) else 1
