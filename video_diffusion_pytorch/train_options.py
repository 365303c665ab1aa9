"""The options of `video-diffusion train`: the keywords of the classes that it builds."""

from __future__ import annotations

import inspect
import math
import os
from argparse import SUPPRESS
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.presets import PRESETS, preset
from video_diffusion_pytorch.training.data_source import dataset_options
from video_diffusion_pytorch.training.trainer import Trainer

# What can only be said in Python, and what another group of options says
_NOT_OF_TRAINER = {
    "diffusion_model",
    "folder",
    "dataset",
    "dataloader",
    "data_options",
    "evaluation",
    "resume",
    "seed",
    "validation_dataset",
}
_DATA = dataset_options(Trainer)
_NOT_OF_DATA = {"read_fn", *(inspect.signature(Dataset).parameters.keys() - _DATA.keys())}

# Option groups of `train`: the class, what the command itself gives it, and defaults of its own
GROUPS: dict[str, tuple[type, set[str | int], dict[str, Any]]] = {
    "unet": (Unet3D, set(), {"dim": 64}),
    "diffusion": (GaussianDiffusion, {"denoise_fn"}, {"image_size": 64, "num_frames": 16}),
    "data": (Dataset, {*_NOT_OF_DATA}, {"exts": None}),
    "trainer": (Trainer, {*_NOT_OF_TRAINER}, {}),
}


def _defaults(preset_name: str | None) -> dict[str, dict[str, Any]]:
    """The defaults of each group of options."""
    defaults = {group: dict(own) for group, (_, _, own) in GROUPS.items()}
    if preset_name is None:
        return defaults
    chosen = preset(preset_name)
    defaults["unet"] |= chosen.unet
    defaults["diffusion"] |= chosen.diffusion
    for name, value in chosen.trainer.items():
        defaults["data" if name in option_names("data") else "trainer"][name] = value
    return defaults


def train_parser(preset_name: str | None) -> ArgumentParser:
    """The parser of `train`, whose defaults are a preset's, or None for the constructors' own."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion train [FOLDER] [options]",
        description="Trains a model on a folder of clips: gif, webp, mp4, webm and other films, "
        "folders of pictures, arrays. Where it is clear, the part of an option before the dot may "
        "be left out: --dim 32 is --unet.dim 32.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help=_CONFIG_HELP)
    parser.add_argument(
        "folder",
        nargs="?",
        type=str,
        # left out, it may still be in the file
        default=SUPPRESS,
        help="Where the clips are, at any depth. Either here or in the file.",
    )
    parser.add_argument("--preset", type=str | None, help=_PRESET_HELP)
    parser.add_argument(
        "--text_encoder",
        type=str | None,
        default=None if preset_name is None else preset(preset_name).text_encoder,
        help="Folder or Hugging Face name of the encoder of captions; null for BERT.",
    )
    parser.add_argument("--resume", type=str, default="auto", help=_RESUME_HELP)
    parser.add_argument(
        "--seed", type=int, default=0, help="Of the first weights and the training."
    )
    defaults = _defaults(preset_name)
    for group, (constructor, skip, _) in GROUPS.items():
        parser.add_class_arguments(constructor, group, skip=skip, default=defaults[group])
    for action in parser._actions:
        # required by the constructor, but not here, where it has a default
        action.required = False
    return parser


_CONFIG_HELP = (
    "A YAML file with any of these options, as --print_config writes it. What is given on the "
    "command line takes its place."
)
_PRESET_HELP = (
    f"A model of the paper, {', '.join(PRESETS)}: its settings take the place of the defaults."
)
_RESUME_HELP = (
    "auto goes on from the last checkpoint in the results folder, if there is one; never begins "
    "anew, in a results folder without checkpoints; a path goes on from that checkpoint."
)


def rewrite(argv: list[str]) -> list[str]:
    """Options as the parser knows them: underscores, full names, and the file before the rest."""
    if not argv or argv[0].startswith("-"):
        return argv
    short = short_names() if argv[0] == "train" else {}
    files: list[str] = []
    others: list[str] = []
    rest = iter(argv[1:])
    for argument in rest:
        if not argument.startswith("--"):
            others.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name, dot, key = name.replace("-", "_").partition(".")
        option = f"--{short.get(name, name)}{dot}{key}{equals}{value}"
        if name == "config" and argv[0] == "train":
            # the later of two wins, and that shall be the command line
            files += (
                [option] if equals else [option, *[path for path in [next(rest, None)] if path]]
            )
        else:
            others.append(option)
    return [argv[0], *files, *others]


def short_names() -> dict[str, str]:
    """Option names without their group; the first group that has a name gets it."""
    names = {name: f"{group}.{name}" for group in reversed(GROUPS) for name in option_names(group)}
    # of the clips, whose range may be found out ("fit"), and which the model takes over
    return {**names, "value_range": "data.value_range"}


def option_names(group: str) -> list[str]:
    """Names of a group's options, without the group."""
    constructor, skip, _ = GROUPS[group]
    return [name for name in inspect.signature(constructor).parameters if name not in skip]


def named_preset(argv: Sequence[str]) -> str | None:
    """The preset that arguments name, as `rewrite` gives them: themselves, or in a file of theirs.

    Its settings are defaults, so it must be known before the rest is read.
    """
    if not argv or argv[0] != "train":
        return None
    named: Any = None
    for argument, following in zip(argv, [*argv[1:], None], strict=True):
        option, equals, value = argument.partition("=")
        told = value if equals else following
        # files come before options, and the later of two wins
        if option == "--preset" and told is not None:
            named = None if told == "null" else told
        elif option == "--config" and told is not None:
            named = _of_file(told).get("preset", named)
    return None if named is None else str(named)


def _of_file(told: str) -> dict[str, Any]:
    """What a file of options says, or the options themselves, as the parser takes both."""
    try:
        is_file = os.path.isfile(told)
        # a pipe or device may be read for ever; what a shell writes <(...) for ends
        if os.path.exists(told) and not is_file and not told.startswith("/dev/fd/"):
            raise ValueError(
                f"train: --config must be a regular file of options, got {told}, which is none; "
                "store the options in a file"
            )
        size = os.path.getsize(told) if is_file else len(told)
        _check_size("bytes", size, _MOST_BYTES)
        text = Path(told).read_text() if is_file else told
        _check_expanded(text)
        found = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"train: --config must be text in UTF-8, got {told} ({error}); save it as UTF-8"
        ) from error
    # the parser says what is wrong with it
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


# Much more than all options need; what is larger, or nested more deeply, keeps the parser busy
# for ever, or ends it
_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 1 << 18, 20_000, 30


def _check_expanded(text: str) -> None:
    """Counts what a text in YAML comes to once its aliases stand for what they name."""
    sizes: dict[Any, float] = {}
    opened: list[tuple[Any, float]] = []
    count = 0.0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(anchor, math.inf)  # of what is not complete: it holds itself
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            sizes[anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            sizes.pop(anchor, None)
            opened.append((anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            sizes[anchor] = count - before
        _check_size("values (aliases written out)", count, _MOST_NODES)
        _check_size("levels of nesting", len(opened), _MOST_LEVELS)


def _check_size(what: str, count: float, most: int) -> None:
    if count > most:
        raise ValueError(
            f"train: --config must be a file of options with at most {most} {what}, got more; "
            "write the options that differ from the defaults, as --print_config shows them"
        )
