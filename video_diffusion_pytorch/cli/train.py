"""`video-diffusion train`: options from the constructors' signatures, and the training run."""

from __future__ import annotations

import argparse
import inspect
import itertools
from collections.abc import Callable, Sequence
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

# Keywords for Python only, and those set from other options
_NOT_OF_TRAINER: set[str | int] = {
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

# Option groups of `train`: the class, keywords that are no options, and defaults that differ
GROUPS: dict[str, tuple[type, set[str | int], dict[str, Any]]] = {
    "unet": (Unet3D, set(), {"dim": 64}),
    "diffusion": (GaussianDiffusion, {"denoise_fn"}, {"image_size": 64, "num_frames": 16}),
    "data": (Dataset, {*_NOT_OF_DATA}, {"exts": None}),
    "trainer": (Trainer, _NOT_OF_TRAINER, {}),
}

# Far more than all options need: aliases in a few lines can stand for billions of values
_MOST_CHARACTERS, _MOST_VALUES = 1 << 18, 20_000


def make_parser(preset_name: str | None = None) -> ArgumentParser:
    """Makes the parser of the options of `train`.

    Args:
        preset_name: Preset whose settings are the defaults; None for those of the constructors.
    """
    defaults = {group: dict(own) for group, (_, _, own) in GROUPS.items()}
    text_encoder = None
    if preset_name is not None:
        chosen = preset(preset_name)
        text_encoder = chosen.text_encoder
        defaults["unet"] |= chosen.unet
        defaults["diffusion"] |= chosen.diffusion
        for name, value in chosen.trainer.items():
            defaults["data" if name in option_names("data") else "trainer"][name] = value
    parser = ArgumentParser(
        usage="video-diffusion train [FOLDER] [options]",
        description="Trains a model on a folder of clips: videos, gifs, folders of pictures or "
        "arrays. The group of an option can be left out if the name is unambiguous: --dim 32 is "
        "--unet.dim 32.",
    )
    add = parser.add_argument
    config = "YAML file of options, as --print_config writes it; the command line overrides it."
    add("--config", action=ActionConfigFile, help=config)
    folder = "Folder of clips, also in subfolders. Required, here or in the file of options."
    # left out here, it may still be in the file
    add("folder", nargs="?", type=str, default=argparse.SUPPRESS, help=folder)
    models = f"Model of the paper whose settings become the defaults: {', '.join(PRESETS)}."
    add("--preset", type=str | None, help=models)
    encoder = "Folder or Hugging Face name of the text encoder; null for BERT."
    add("--text_encoder", type=str | None, default=text_encoder, help=encoder)
    resume = "auto resumes from the last checkpoint in the results folder, if any; never requires "
    resume += "a results folder without checkpoints; a path resumes from that checkpoint."
    add("--resume", type=str, default="auto", help=resume)
    add("--seed", type=int, default=0, help="Seed of the initial weights and of the training.")
    for group, (constructor, skip, _) in GROUPS.items():
        parser.add_class_arguments(constructor, group, skip=skip, default=defaults[group])
    for action in parser._actions:
        # required by a constructor, but with a default here
        action.required = False
    return parser


def rewrite(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """Rewrites arguments of `train` for the parser.

    Options get their group. Files of options are replaced by their text and come first, so that
    the command line overrides them.

    Returns:
        The arguments, and the preset that they or a file name: its settings are the parser's
        defaults.

    Raises:
        OSError: If a file of options cannot be read.
        ValueError: If it is not valid.
    """
    groups = short_names()
    files: list[tuple[str, dict[str, Any]]] = []
    others: list[str] = []
    rest = iter(argv)
    for argument in rest:
        option, equals, value = argument.partition("=")
        name, dot, key = option.removeprefix("--").partition(".")
        if option in ("--config", "--preset") and not equals:
            value = next(rest, "")
            equals = "=" * bool(value)
        if not argument.startswith("--"):
            others.append(argument)
        elif option == "--config" and value:
            files.append(_read_options(value))
        else:
            others.append(f"--{groups.get(name, name)}{dot}{key}{equals}{value}")
    named: Any = None
    for _, found in files:
        named = found.get("preset", named)
    for value in [other[9:] for other in others if other.startswith("--preset=")]:
        named = None if value == "null" else value
    arguments = [*(f"--config={content}" for content, _ in files), *others]
    return arguments, None if named is None else str(named)


def _read_options(path: str) -> tuple[str, dict[str, Any]]:
    """The text of a file of options, and the options in it."""
    try:
        # read once, as a pipe can be
        with open(path, encoding="utf-8") as file:
            content = file.read(_MOST_CHARACTERS + 1)
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        if len(content) > _MOST_CHARACTERS or _is_large(node):
            raise ValueError(
                f"train: --config must be a file of at most {_MOST_CHARACTERS} characters and "
                f"{_MOST_VALUES} values (aliases written out), got more in {path}; write only the "
                "options that differ from the defaults"
            )
        found = node and loader.construct_document(node)
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"train: --config must be a YAML file in UTF-8, got {path} ({error}); correct it"
        ) from error
    groups = [found.get(group, {}) for group in GROUPS] if isinstance(found, dict) else [found]
    if not all(isinstance(group, dict) for group in groups) or "config" in found:
        raise ValueError(
            f"train: --config must hold options by name, and those of {', '.join(GROUPS)} in a "
            f"mapping each, got others in {path}; write them as --print_config does"
        )
    return content, found


def _is_large(root: yaml.Node | None) -> bool:
    """Whether a document has more than `_MOST_VALUES` values with its aliases written out."""
    pending, count = [root], 0
    while pending and count + len(pending) <= _MOST_VALUES:
        node = pending.pop()
        count += 1
        if isinstance(node, yaml.MappingNode):
            pending += itertools.chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
    return bool(pending)


def short_names() -> dict[str, str]:
    """Full option names by the names without their group; the first group that has one gets it."""
    names = {name: f"{group}.{name}" for group in reversed(GROUPS) for name in option_names(group)}
    # the range of the clips can be "fit", and the model adopts it
    return {**names, "value_range": "data.value_range"}


def option_names(group: str) -> list[str]:
    """Names of a group's options, without the group."""
    constructor, skip, _ = GROUPS[group]
    return [name for name in inspect.signature(constructor).parameters if name not in skip]


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Trains a model.

    Args:
        options: The parsed options.
        say: Called with each line of the report.

    Raises:
        ValueError: If an option is out of range, the clips are not what the network takes, or the
            checkpoint is of another model.
        FileNotFoundError: If there are no clips, or no such checkpoint.
        FileExistsError: If a new run would replace an old one's checkpoints.
    """
    folder, text_encoder = options.get("folder"), options.text_encoder
    if folder is None:
        raise ValueError(
            "train: expected a folder of clips, got none; give it after train, or as folder in the "
            "file of --config"
        )
    unet, diffusion, data, trainer = (options[group].as_dict() for group in GROUPS)
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)
    kinds, _, columns = split_conditions(data.get("conditions"))
    has_numbers = isinstance(columns.get("cond"), list)
    if has_numbers and not unet["use_bert_text_cond"]:
        unet["cond_dim"] = unet["cond_dim"] or len(columns["cond"])
    torch.manual_seed(options.seed)
    model = GaussianDiffusion(Unet3D(**unet), **diffusion)
    loop = Trainer(model, folder, **trainer, **data, resume=options.resume, seed=options.seed)
    tell = say if loop.is_main else lambda line: None
    if loop.step:
        tell(f"resumes from {loop.resumed_from}, step {loop.step}")
    if loop.step >= loop.train_num_steps:
        tell(f"training is complete: to continue, raise --train_num_steps above {loop.step}")
        return

    loop.train()
    last = newest(loop.results_folder)
    assert last is not None
    tell(f"trained to step {loop.step}: {last}")
    names = [*model.condition_names, *["first_frames"] * bool(model.given_frames)]
    from_files = {"cond": "--cond"} if has_numbers or "vector" in kinds else {}
    arguments = [f"{(OPTIONS | from_files)[name]} ..." for name in names]
    if text_encoder is not None and "cond" in names:
        arguments.append(f"--text_encoder {quote(text_encoder)}")
    if options.preset is not None:
        arguments.append(f"--preset {options.preset}")
    arguments.append(f"-o {quote(str(loop.results_folder / 'samples.gif'))}")
    tell(f"samples: video-diffusion sample {quote(str(last))} {' '.join(arguments)}")
