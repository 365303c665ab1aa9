"""`video-diffusion evaluate` and `compare`: scores of sampled videos, and tables of results."""

from __future__ import annotations

import argparse
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.cli.sample import (
    add_checkpoint_options,
    check_output,
    load_checkpoint,
)
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.evaluation.evaluator import SIMILARITIES, Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.results import compare_results, read_result, write_result
from video_diffusion_pytorch.files import free_name
from video_diffusion_pytorch.pretrained import is_shared
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance
from video_diffusion_pytorch.training.evaluate import AS_IN_TRAINING, evaluate_diffusion
from video_diffusion_pytorch.training.processes import make_accelerator
from video_diffusion_pytorch.training.verification import (
    Verification,
    verify_forecasts,
    write_example,
)

# Keywords of Dataset that the model determines, or for Python only
_NOT_OF_DATA: set[str | int] = {
    "folder",
    "image_size",
    "channels",
    "num_frames",
    "force_num_frames",
    "horizontal_flip",
    "vertical_flip",
    "value_range",
    "value_transform",
    "fit_clips",
    "missing",
    "cond_standardize",
    "read_fn",
    "exclude",
    "as_uint8",
}
_OF_DATA = [name for name in inspect.signature(Dataset).parameters if name not in _NOT_OF_DATA]
# Networks given as TorchScript files: the prefix of their options, and the help text
_NETWORKS = {
    "features": ("feature", "Network that computes features of videos, such as I3D, for the FVD."),
    "classes": ("class", "Classifier of videos, for the inception score."),
    "frame_features": (
        "frame_feature",
        "Network that computes features of images, for FID-avg and FID-first.",
    ),
    "frame_classes": ("frame_class", "Classifier of images, for IS-avg and IS-first."),
}
# Options of each network: type, default (of the layout the axes) and help text
_OF_NETWORKS: dict[str, tuple[Any, Any, str]] = {
    "size": (int | tuple[int, int] | None, None, "Height and width of its input, 224 or [224,224]"),
    "range": (float | list[float], [0.0, 1.0], "Its black and white, numbers or a list each"),
    "resize": (str, "bilinear", "bilinear, bicubic or nearest"),
    "channels": (int | None, 3, "Channels of its input, to which grey clips are repeated"),
    "layout": (str, "bcfhw", "Order of the axes of its input"),
    "arguments": (dict[str, Any] | None, None, "Keywords of its call, as {name: value}"),
}
_NOT_OF_EVALUATION: set[str | int] = {*_NETWORKS, "lpips_name", "value_range"}
# Settings that a verification of forecasts has, too
_SHARED = ("clips", "seed", "sampler", "steps", "cond_scale", "max_batch")
_OF_EVALUATION = [n for n in Evaluation.__dataclass_fields__ if n not in _NOT_OF_EVALUATION]


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `evaluate`."""
    parser = ArgumentParser(
        usage="video-diffusion evaluate CHECKPOINT --data FOLDER [options]",
        description="Compares videos sampled from a checkpoint with real clips, and writes the "
        "scores with their protocol. The videos are conditioned on the conditions of the clips.",
    )
    add_checkpoint_options(parser)
    add = parser.add_argument
    add("--data", type=str, required=True, help="Folder of real clips.")
    output = "A .json; null for evaluation-model-N.json next to the checkpoint."
    add("-o", "--output", type=str | None, help=output)
    add_evaluation_options(parser)
    _add_forecast_options(parser)
    return parser


def _add_forecast_options(parser: ArgumentParser) -> None:
    """Adds the options of the verification of forecasts that an evaluation has not."""
    verify = "Forecast clips from their first frames, and score the forecasts against persistence "
    verify += "and, with --training_data, other baselines; the result is forecast-model-N.json, "
    verify += "with a first forecast in a .npz, both for plot."
    parser.add_argument("--forecast", action="store_true", help=verify)
    data = "Folder of the training clips, for the climatology, anomalies and --one_step."
    parser.add_argument("--training_data", type=str | None, help=data)
    parser.add_class_arguments(Verification, None, skip={*_SHARED})


def _forecast_options() -> dict[str, Any]:
    """Defaults of the options that only a verification of forecasts has."""
    fields = Verification.__dataclass_fields__.values()
    own = {field.name: field.default for field in fields if field.name not in _SHARED}
    return {"training_data": None, **own}


def add_evaluation_options(parser: ArgumentParser) -> None:
    """Adds the options that say what is measured, and on which clips of the folder."""
    add = parser.add_argument
    count = "Number of videos to sample; null for the number of real clips."
    add("-n", "--count", type=int | None, help=count)
    # it has the short option -n
    parser.add_class_arguments(Evaluation, None, skip={*_NOT_OF_EVALUATION, "count"})
    parser.add_class_arguments(Dataset, None, skip=_NOT_OF_DATA, default={"exts": None})
    for action in parser._actions:
        if action.dest in AS_IN_TRAINING:
            # left out, they are those of the training
            action.default = argparse.SUPPRESS
            action.help = f"{action.help} Left out: as in training."
    for network, (prefix, help_text) in _NETWORKS.items():
        group = parser.add_argument_group(f"Network of {network.replace('_', ' ')}")
        group.add_argument(f"--{network}", type=str | None, help=f"TorchScript file. {help_text}")
        for name, (kind, _, text) in _OF_NETWORKS.items():
            nargs = 2 if name == "range" else None
            default = _default(network, name)
            group.add_argument(
                f"--{prefix}_{name}", type=kind, nargs=nargs, default=default, help=f"{text}."
            )


def _default(network: str, option: str) -> Any:
    is_of_images = network.startswith("frame_")
    return "bchw" if option == "layout" and is_of_images else _OF_NETWORKS[option][1]


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Evaluates a checkpoint and writes the result.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an option is out of range, or does not fit the checkpoint.
    """
    is_model = is_shared(options.checkpoint)
    file = Path(options.checkpoint) if is_model else checkpoint_at(options.checkpoint)
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        accelerator = make_accelerator(False, options.device)
        options.device = str(accelerator.device)
    given = [n for n, usual in _forecast_options().items() if options[n] != usual]
    if given and not options.forecast:
        raise ValueError(f"evaluate: --{given[0]} must go with --forecast, got none; add it")
    if options.forecast:
        fields = Evaluation.__dataclass_fields__.values()
        own = [f for f in fields if f.name in options and f.name not in _SHARED]
        unused = [f.name for f in own if options[f.name] not in (f.default, list(SIMILARITIES))]
        if unused:
            raise ValueError(
                f"evaluate: --{unused[0]} must be left out with --forecast, got "
                f"{options[unused[0]]}; the two are separate evaluations"
            )
    diffusion = load_checkpoint(options)
    kind = "forecast" if options.forecast else "evaluation"
    target = result_of(file, kind) if options.output is None else Path(options.output)
    # before minutes of sampling
    check_output(target, "evaluate")
    about = {
        "checkpoint": str(file),
        "step": None if is_model else glance(file)["step"],
        "ema_decay": options.ema_decay,
    }
    how = {"about": about, "accelerator": accelerator, **data_options_of(options)}
    if options.forecast:
        _verify(diffusion, options, target, how, say)
        return
    evaluation = evaluation_of(options)
    result = evaluate_diffusion(diffusion, options.data, evaluation, **how)
    if accelerator is not None and not accelerator.is_main_process:
        return
    write_result(result, target)
    for name, score in result["scores"].items():
        say(f"{name}: {score:.4g}")
    clips, samples = (result["protocol"][part] for part in ("clips", "samples"))
    step = "" if is_model else f"step {result['model']['step']}, "
    say(
        f"{step}{samples['number']} videos against {clips['number']} clips, {samples['sampler']} "
        f"with {samples['steps']} steps, {result['seconds']:.0f} s"
    )
    say(f"wrote {target}: the scores and their protocol")


def _verify(
    diffusion: GaussianDiffusion,
    options: Namespace,
    target: Path,
    how: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Verifies forecasts, writes the result and the first forecast, and prints a table."""
    names = Verification.__dataclass_fields__
    settings = Verification(**{name: options[name] for name in names})
    training = options.training_data
    found = verify_forecasts(diffusion, options.data, settings, training_data=training, **how)
    accelerator = how["accelerator"]
    if accelerator is not None and not accelerator.is_main_process:
        return
    result, example = found
    write_result(result, target)
    write_example(example, target.with_suffix(".npz"))
    print_table(forecast_table(result), say)
    forecasts, clips = result["protocol"]["forecasts"], result["protocol"]["clips"]
    say(
        f"{clips['number']} forecasts of {forecasts['frames']} frames from "
        f"{forecasts['initial_frames']}, {forecasts['members']} members, {forecasts['sampler']} "
        f"with {forecasts['steps']} steps, {result['seconds']:.0f} s"
    )
    if result["scores"]["diverged_forecasts"]:
        say(f"left out {result['scores']['diverged_forecasts']:.0f} forecasts that diverged")
    say(
        f"wrote {target}: all scores by lead time and their protocol; video-diffusion plot {target}"
    )


def forecast_table(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """The scores of a verification as cells of `print_table`: a row for each forecast."""
    rows = {"model": result["scores"], **result["baselines"]}
    names = [name for name in result["scores"] if name != "diverged_forecasts"]
    cells = {n: [f"{row[n]:.4g}" if n in row else "-" for row in rows.values()] for n in names}
    return {"forecast": [*rows], **cells}


def evaluation_of(options: Namespace) -> Evaluation:
    """What is measured, as options of `add_evaluation_options` say.

    Raises:
        ValueError: If options of a network lack its file.
    """
    networks: dict[str, Any] = {name: _network(name, options) for name in _NETWORKS}
    return Evaluation(**networks, **{name: options[name] for name in _OF_EVALUATION})


def data_options_of(options: Namespace) -> dict[str, Any]:
    """Keywords of `Dataset` among options of `add_evaluation_options`."""
    return {name: options[name] for name in _OF_DATA if name in options}


def _network(network: str, options: Namespace) -> FeatureNetwork | None:
    """The network that options describe; None without its file."""
    prefix = _NETWORKS[network][0]
    given = {name: options[f"{prefix}_{name}"] for name in _OF_NETWORKS}
    if options[network] is not None:
        return FeatureNetwork(options[network], value_range=tuple(given.pop("range")), **given)
    if any(value != _default(network, name) for name, value in given.items()):
        raise ValueError(
            f"evaluate: --{prefix}_... must go with a file of the network, got none; give "
            f"--{network}"
        )
    return None


def result_of(checkpoint: Path, kind: str = "evaluation") -> Path:
    """`evaluation-model-3.json`, or with `-2`, `-3` and so on if that exists."""
    # the name of a shared model may have a dot
    name = checkpoint.stem if checkpoint.suffix in (".pt", ".sharded") else checkpoint.name
    # the name of a shared model on the Hub is no path
    folder = checkpoint.parent if checkpoint.exists() else Path()
    first = folder / f"{kind}-{name}.json"
    return free_name(first, 2) if first.exists() else first


def make_compare_parser() -> ArgumentParser:
    """Makes the parser of the options of `compare`."""
    parser = ArgumentParser(
        usage="video-diffusion compare RESULT RESULT [...] [--allow FIELD ...]",
        description="Prints the scores of several results as a table, if they have one protocol.",
    )
    add = parser.add_argument
    add("results", type=str, nargs="+", help="Files written by evaluate.")
    allow = "Fields of the protocol that may differ, such as samples.steps."
    add("--allow", type=str, nargs="+", default=[], help=allow)
    return parser


def run_compare(options: Namespace, say: Callable[[str], None]) -> None:
    """Prints the scores of several results as a table.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is not a result, or the protocols differ.
    """
    results = [read_result(file) for file in options.results]
    scores = compare_results(results, allow=options.allow)
    steps = [result.get("model", {}).get("step") for result in results]
    table = {
        "result": options.results,
        "step": ["-" if step is None else str(step) for step in steps],
        **in_cells(scores),
    }
    print_table(table, say)


def in_cells(scores: Mapping[str, Sequence[float | None]]) -> dict[str, list[str]]:
    """Scores of `compare_results` as cells of `print_table`."""
    return {n: ["-" if v is None else f"{v:.4g}" for v in found] for n, found in scores.items()}


def print_table(table: Mapping[str, Sequence[str]], say: Callable[[str], None]) -> None:
    """Prints a table, given the cells of each column by its title."""
    widths = [max(len(cell) for cell in (name, *cells)) for name, cells in table.items()]
    for row in (list(table), *map(list, zip(*table.values(), strict=True))):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
