"""The options of `video-diffusion evaluate` and `compare`."""

from __future__ import annotations

import inspect
from typing import Any

from jsonargparse import ArgumentParser

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation_commands import NETWORKS

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
_FILES = {
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


def add_evaluation_commands(commands: Any) -> None:
    """Adds `evaluate` and `compare` to the commands of a parser.

    Args:
        commands: What jsonargparse's `add_subcommands` gives.
    """
    evaluate = "measure how near a checkpoint's videos are to real ones"
    commands.add_subcommand("evaluate", _evaluate_parser(), help=evaluate)
    commands.add_subcommand("compare", _compare_parser(), help="compare results of evaluate")


def _evaluate_parser() -> ArgumentParser:
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
    for network in NETWORKS:
        _add_network(parser, network)
    return parser


def _compare_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion compare RESULT RESULT [...] [--allow FIELD ...]",
        description="Prints the scores of several results side by side, if they were measured by "
        "one protocol.",
    )
    add = parser.add_argument
    add("results", type=str, nargs="+", help="Files that evaluate has written.")
    add(
        "--allow",
        type=str,
        nargs="+",
        default=[],
        help="Fields of the protocol that may differ, as they are what is compared, such as "
        "samples.steps.",
    )
    return parser


def split_options(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options of `evaluate`, as `run_evaluation` takes them.

    Args:
        chosen: By name, as the parser gives them; emptied.

    Raises:
        ValueError: If there are options of a network, and no file of it.
    """
    of_data = {n: chosen.pop(n) for n in _data_names()}
    evaluation = {n: chosen.pop(n) for n in _SAMPLING | _MEASURES}
    networks: dict[str, dict[str, Any]] = {}
    for network in NETWORKS:
        file, prefix = chosen.pop(network), _prefix(network)
        told = {n: chosen.pop(f"{prefix}_{n}") for n in _OF_NETWORKS}
        if file is not None:
            low, high = told.pop("range")
            networks[network] = {"network": file, "value_range": (low, high), **told}
        elif told != _defaults(network):
            raise ValueError(
                f"evaluate: --{prefix}_... must go with a file of the network, got none; give "
                f"--{network}"
            )
    return {"networks": networks, "evaluation": evaluation, "data_options": of_data, **chosen}


def _add_network(parser: ArgumentParser, network: str) -> None:
    group = parser.add_argument_group(f"Network of {network.replace('_', ' ')}")
    group.add_argument(f"--{network}", type=str | None, help=_FILES[network])
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
