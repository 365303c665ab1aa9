"""`video-diffusion train`: the options of the classes that it builds, and the training."""

from __future__ import annotations

import argparse
import inspect
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from video_diffusion_pytorch import text
from video_diffusion_pytorch.cli.sample import OPTIONS
from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.presets import PRESETS, preset
from video_diffusion_pytorch.training.checkpoint import newest
from video_diffusion_pytorch.training.data_source import dataset_options
from video_diffusion_pytorch.training.trainer import Trainer

HELP = "train a model on a folder of clips"

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


def make_parser(preset_name: str | None = None) -> ArgumentParser:
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
        default=argparse.SUPPRESS,
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


def rewrite(argv: Sequence[str]) -> list[str]:
    """Options of `train` as the parser knows them: with their group, and files before the rest.

    The later of two options wins, and that must be the command line.
    """
    short = short_names()
    files: list[str] = []
    others: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, value = argument.removeprefix("--").partition("=")
        name, dot, key = name.partition(".")
        if not argument.startswith("--"):
            others.append(argument)
        elif name != "config":
            others.append(f"--{short.get(name, name)}{dot}{key}{equals}{value}")
        elif equals:
            files.append(argument)
        else:
            files += [argument, *[path for path in [next(rest, None)] if path]]
    return [*files, *others]


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
    """The preset that arguments of `train` name, themselves or in a file of theirs.

    Its settings are defaults, so it must be known before the rest is parsed.
    """
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--preset", nargs="?")
    finder.add_argument("--config", nargs="?", action="append", default=[])
    given, _ = finder.parse_known_args(argv)
    named: Any = None
    for config in filter(None, given.config):
        named = _read_options(config).get("preset", named)
    if given.preset is not None:
        named = None if given.preset == "null" else given.preset
    return None if named is None else str(named)


def _read_options(config: str) -> dict[str, Any]:
    """A file of options, or a text of them; empty where the parser will refuse it.

    Raises:
        ValueError: If it is a pipe or a device, not UTF-8, or would keep the parser busy for ever.
    """
    is_file = os.path.isfile(config)
    # what a shell writes <(...) for ends; other pipes may be read for ever
    if os.path.exists(config) and not is_file and not config.startswith("/dev/fd/"):
        raise ValueError(
            f"train: --config must be a regular file of options, got {config}, which is none; "
            "store the options in a file"
        )
    try:
        _check_size("bytes", os.path.getsize(config) if is_file else len(config), _MOST_BYTES)
        text = Path(config).read_text(encoding="utf-8") if is_file else config
        _check_expanded(text)
        found = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"train: --config must be text in UTF-8, got {config} ({error}); save it as UTF-8"
        ) from error
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


# Far more than all options need
_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 1 << 18, 20_000, 30


def _check_expanded(text: str) -> None:
    """Raises a ValueError if a text in YAML is too large once its aliases are written out."""
    sizes: dict[Any, float] = {}
    opened: list[tuple[Any, float]] = []
    count = 0.0
    for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            count += sizes.get(anchor, math.inf)  # an anchor still open contains itself
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
        _check_size("values (aliases written out)", count, _MOST_VALUES)
        _check_size("levels of nesting", len(opened), _MOST_LEVELS)


def _check_size(what: str, count: float, most: int) -> None:
    if count > most:
        raise ValueError(
            f"train: --config must be a file of options with at most {most} {what}, got more; "
            "write the options that differ from the defaults, as --print_config shows them"
        )


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Trains as options say, and reports by `say`.

    Raises:
        ValueError: If an option is out of range, the clips are not what the network takes, or the
            checkpoint is of another model.
        FileNotFoundError: If there are no clips, or no such checkpoint.
        FileExistsError: If a new run would replace an old one's checkpoints.
    """
    if options.get("folder") is None:
        raise ValueError(
            "train: expected a folder of clips, got none; give it after train, or as folder in the "
            "file of --config"
        )
    for group in GROUPS:
        if not isinstance(options[group], Namespace):
            raise ValueError(
                f"train: expected options in the group {group}, got {options[group]!r:.60}; write "
                "them as --print_config shows them"
            )
    run_training(
        options.folder,
        **{group: options[group].as_dict() for group in GROUPS},
        preset_name=options.preset,
        text_encoder=options.text_encoder,
        resume=options.resume,
        seed=options.seed,
        say=say,
    )


def run_training(
    folder: str,
    *,
    unet: dict[str, Any],
    diffusion: dict[str, Any],
    data: dict[str, Any],
    trainer: dict[str, Any],
    preset_name: str | None,
    text_encoder: str | None,
    resume: str,
    seed: int,
    say: Callable[[str], None],
) -> None:
    """Trains a model of these keywords of its classes on a folder of clips."""
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)
    kinds, _, columns = split_conditions(data.get("conditions"))
    has_numbers = isinstance(columns.get("cond"), list)
    if has_numbers and not unet.get("use_bert_text_cond"):
        unet = {**unet, "cond_dim": unet.get("cond_dim") or len(columns["cond"])}
    torch.manual_seed(seed)
    model = GaussianDiffusion(Unet3D(**unet), **diffusion)
    loop = Trainer(model, folder, **trainer, **data, resume=resume, seed=seed)
    tell = say if loop.is_main else lambda line: None
    if loop.step:
        tell(f"goes on from {loop.resumed_from}, step {loop.step}")
    if loop.step >= loop.train_num_steps:
        tell(f"nothing left to train: for more, raise --trainer.train_num_steps above {loop.step}")
        return

    loop.train()
    last = newest(loop.results_folder)
    assert last is not None
    tell(f"trained to step {loop.step}: {last}")
    names = [*model.condition_names, *["first_frames"] * bool(model.given_frames)]
    options = {**OPTIONS, "cond": "--cond"} if has_numbers or "vector" in kinds else OPTIONS
    told = "".join(f" {options[name]} ..." for name in names)
    if text_encoder is not None and "cond" in names:
        told += f" --text_encoder {quote(text_encoder)}"
    told += f" --preset {preset_name}" if preset_name is not None else ""
    samples = quote(str(loop.results_folder / "samples.gif"))
    tell(f"samples: video-diffusion sample {quote(str(last))}{told} -o {samples}")
