"""`video-diffusion evaluate`: its options, and a checkpoint's videos measured against clips."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch import text
from video_diffusion_pytorch.cli.sample import class_names
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.results import write_result
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.training.processes import make_accelerator

HELP = "measure how near a checkpoint's videos are to real ones"

# What of a Dataset the model says, or only Python can
_NOT_OF_DATA = {
    "folder",
    "image_size",
    "channels",
    "num_frames",
    "force_num_frames",
    "horizontal_flip",
    "vertical_flip",
    "value_range",
    "read_fn",
    "exclude",
    "as_uint8",
}
# The networks that a user may give
_NETWORKS = {
    "features": "A TorchScript file of a network that gives features of videos, such as I3D, for "
    "the Frechet video distance; null for fixed random convolutions, which need no file.",
    "classes": "One that classifies videos, for the inception score.",
    "frame_features": "One that gives features of pictures, for FID-avg and FID-first.",
    "frame_classes": "One that classifies pictures, for IS-avg and IS-first.",
}
_OF_NETWORKS: dict[str, dict[str, Any]] = {
    "size": {
        "type": int | tuple[int, int] | None,
        "help": "Height and width it wants, 224 or [224,224]; null for the clips'.",
    },
    "range": {
        "type": float | list[float],
        "nargs": 2,
        "default": [0.0, 1.0],
        "help": "What it wants for black and white, each a number or a list of one per channel.",
    },
    "resize": {"type": str, "default": "bilinear", "help": "bilinear, bicubic or nearest."},
    "channels": {
        "type": int | None,
        "default": 3,
        "help": "Channels it wants; grey clips are repeated to as many. null for the clips'.",
    },
    "layout": {"type": str, "help": "Order of its axes."},
    "arguments": {
        "type": dict[str, Any] | None,
        "help": 'Further arguments of its call, such as {"return_features": true}.',
    },
}
_SAMPLING = {"clips", "count", "seed", "sampler", "steps", "cond_scale", "max_batch"}
_MEASURES = {"given_frames", "similarities", "lpips", "class_outputs", "splits", "statistics"}


def make_parser() -> ArgumentParser:
    """The options of `evaluate`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion evaluate CHECKPOINT --data FOLDER [options]",
        description="Measures how near the videos of a checkpoint are to real clips, and writes "
        "the result with its protocol. Clips tell the videos their own conditions.",
    )
    add = parser.add_argument
    add("checkpoint", type=str, help="A file model-N.pt, or a results folder for its newest.")
    add("--data", type=str, required=True, help="A folder of real clips.")
    output = "A .json; null for evaluation-model-N.json beside the checkpoint."
    add("-o", "--output", type=str | None, help=output)
    add("--device", type=str | None, help="Where to compute, such as cuda; null for the CPU.")
    add("--ema_decay", type=float | None, help="Which average draws; null for the first.")
    for name in ("image_size", "num_frames"):
        kind: Any = int | tuple[int, int] | None if name == "image_size" else int | None
        add(f"--{name}", type=kind, help="For files of version 0.6 or 0.7, which do not hold it.")
    encoder = "Folder or Hugging Face name of the encoder of captions; null for BERT."
    add("--text_encoder", type=str | None, help=encoder)
    count = "Number of videos to draw; null for as many as there are real clips."
    add("-n", "--count", type=int | None, help=count)
    parser.add_class_arguments(Evaluation, None, skip={*_not_of_evaluation(), "count"})
    parser.add_class_arguments(Dataset, None, skip={*_NOT_OF_DATA}, default={"exts": None})
    for network in _NETWORKS:
        _add_network(parser, network)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Measures a checkpoint's videos as options say, and writes the result.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an option is out of range, or does not fit the checkpoint.
    """
    file = checkpoint_at(options.checkpoint)
    accelerator, device = None, options.device
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        accelerator = make_accelerator(False, device)
        device = str(accelerator.device)
    diffusion = load_diffusion(
        file,
        image_size=options.image_size,
        num_frames=options.num_frames,
        device=device,
        averaged=True if options.ema_decay is None else options.ema_decay,
    )
    if options.text_encoder is not None:
        text.set_text_encoder(options.text_encoder)
    networks: dict[str, Any] = {name: _network(name, options) for name in _NETWORKS}
    evaluation = {name: options[name] for name in _SAMPLING | _MEASURES}
    target = _free_name(file) if options.output is None else Path(options.output)
    # found out now, not after minutes of drawing
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"evaluate: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )
    result = evaluate_diffusion(
        diffusion,
        options.data,
        Evaluation(**networks, **evaluation),
        class_names=class_names(file),
        about={
            "checkpoint": str(file),
            "step": glance(file)["step"],
            "ema_decay": options.ema_decay,
        },
        accelerator=accelerator,
        **{name: options[name] for name in _data_names()},
    )
    if accelerator is not None and not accelerator.is_main_process:
        return
    write_result(result, target)
    for name, score in result["scores"].items():
        say(f"{name}: {score:.4g}")
    clips, samples = (result["protocol"][part] for part in ("clips", "samples"))
    say(
        f"step {result['model']['step']}, {samples['number']} videos against {clips['number']} "
        f"clips, {samples['sampler']} with {samples['steps']} steps, {result['seconds']:.0f} s"
    )
    say(f"wrote {target}: the scores and their protocol")


def _network(name: str, options: Namespace) -> FeatureNetwork | None:
    """The network that options give; None without its file."""
    file, prefix = options[name], _prefix(name)
    given = {n: options[f"{prefix}_{n}"] for n in _OF_NETWORKS}
    if file is not None:
        return FeatureNetwork(file, value_range=tuple(given.pop("range")), **given)
    if given != _defaults(name):
        raise ValueError(
            f"evaluate: --{prefix}_... must go with a file of the network, got none; give --{name}"
        )
    return None


def _free_name(checkpoint: Path) -> Path:
    """`evaluation-model-3.json`, or the next that is free: results are not replaced unasked."""
    first = checkpoint.parent / f"evaluation-{checkpoint.stem}.json"
    number, name = 1, first
    while name.exists():
        number += 1
        name = first.with_stem(f"{first.stem}-{number}")
    return name


def _add_network(parser: ArgumentParser, network: str) -> None:
    group = parser.add_argument_group(f"Network of {network.replace('_', ' ')}")
    group.add_argument(f"--{network}", type=str | None, help=_NETWORKS[network])
    defaults = _defaults(network)
    for name, option in _OF_NETWORKS.items():
        told = {**option, "default": defaults[name]}
        group.add_argument(f"--{_prefix(network)}_{name}", **told)


def _defaults(network: str) -> dict[str, Any]:
    found = {name: option.get("default") for name, option in _OF_NETWORKS.items()}
    return {**found, "layout": "bchw" if network.startswith("frame_") else "bcfhw"}


def _prefix(network: str) -> str:
    return {"classes": "class", "frame_classes": "frame_class"}.get(network, network[:-1])


def _not_of_evaluation() -> set[str | int]:
    names = Evaluation.__dataclass_fields__
    return {name for name in names if name not in _SAMPLING | _MEASURES}


def _data_names() -> list[str]:
    return [n for n in inspect.signature(Dataset).parameters if n not in _NOT_OF_DATA]
