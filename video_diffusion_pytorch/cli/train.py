"""`video-diffusion train`: options from the constructors' signatures, and the training run."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from shlex import quote
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from video_diffusion_pytorch import text
from video_diffusion_pytorch.cli.help import HelpFormatter, ShowHelp, in_words
from video_diffusion_pytorch.cli.options_file import read_options, suggested, write_options
from video_diffusion_pytorch.cli.sample import OPTIONS
from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.presets import PRESETS, preset
from video_diffusion_pytorch.pretrained import read_settings
from video_diffusion_pytorch.training.checkpoint import newest
from video_diffusion_pytorch.training.data_source import dataset_options
from video_diffusion_pytorch.training.resume import changed_settings
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
    "init_from",
    "validation_dataset",
}
_DATA = dataset_options(Trainer)
# missing is as in the model
_NOT_OF_DATA = {
    "read_fn",
    "missing",
    *(inspect.signature(Dataset).parameters.keys() - _DATA.keys()),
}

# Option groups of `train`: the class, keywords that are no options, and defaults that differ
GROUPS: dict[str, tuple[type, set[str | int], dict[str, Any]]] = {
    "unet": (Unet3D, set(), {"dim": 64}),
    "diffusion": (GaussianDiffusion, {"denoise_fn"}, {"image_size": 64, "num_frames": 16}),
    "data": (Dataset, {*_NOT_OF_DATA}, {"exts": None}),
    "trainer": (Trainer, _NOT_OF_TRAINER, {}),
}

TITLES = {
    "unet": "Network (unet)",
    "diffusion": "Diffusion (diffusion)",
    "data": "Clips (data)",
    "trainer": "Training (trainer)",
}
# The value of --print_config without one
_SHORT = "short"
# Default of sampling_timesteps: with all steps, samples would take longer than training
_SAMPLING_STEPS = 50
# What stands for a value of each type in the help texts
_METAVARS = {"int": "N", "int | None": "N", "float": "X", "float | None": "X"}
_METAVARS |= {"int | tuple[int, int]": "N"}
_METAVARS |= dict.fromkeys(("str | os.PathLike[str]", "str | os.PathLike[str] | None"), "PATH")
# Options of the command itself, in the order of a printed file
_TOP = ("folder", "preset", "init_from", "text_encoder", "resume", "seed")
# Those that nearly everybody needs, in the order of the help text
_MAIN = (
    *("folder", "config", "diffusion.image_size", "diffusion.num_frames", "unet.channels"),
    *("data.conditions", "unet.dim", "trainer.train_batch_size", "trainer.train_num_steps"),
    *("trainer.results_folder", "preset", "init_from", "resume", "print_config", "help_all"),
)
# Set by other options, or of no use here; accepted, as older files have them
_HIDDEN = {
    *GROUPS,
    "unet.block_type",
    "unet.out_dim",
    "diffusion.channels",
    "diffusion.value_range",
    "diffusion.cond_standardization",
    "data.force_num_frames",
    "trainer.num_frames",
}
# Help texts of options whose docstrings are about Python
_HELP = {
    "unet.dim": "Channels of the network at full resolution, even; more are better and slower.",
    "trainer.train_batch_size": "Clips per micro-batch, on each process; fewer need less memory.",
    "unet.channels": "Channels of the clips: 3 for RGB, 1 for grayscale, more for fields.",
    "unet.gradient_checkpointing": "Recompute features in the backward pass instead of storing "
    "them: less memory, more time, the same numbers.",
    "diffusion.image_size": "Height and width of the clips in pixels, as 64 or [48, 64].",
    "diffusion.beta_schedule": "Noise schedule: cosine, linear, sigmoid, continuous_cosine (that "
    "of Ho et al. 2022, with real times), or a list of as many variances as timesteps; not "
    "for objective flow and edm.",
    "diffusion.sampling_timesteps": f"Steps of the samples of milestones, by default "
    f"{_SAMPLING_STEPS} or, if fewer, timesteps, or those of init_from; null for all timesteps.",
    "diffusion.given_frames": "Number of frames at the beginning of each clip that the network is "
    "conditioned on; without cond_channels, the network gets as many as these need.",
    "diffusion.text_use_bert_cls": "Use BERT's [CLS] state as the vector of a caption instead of "
    "the mean state.",
    "diffusion.cond_drop_prob": "Probability that the conditions of a clip are dropped in "
    "training, as guided sampling needs.",
    "diffusion.missing": "What to do with clips that have missing values, NaN or fill values: "
    "error; or mask, to leave them out of the loss.",
    "diffusion.cond_value_range": "Range of cond_video, as value_range; null for uint8, or for a "
    "field in [-1, 1].",
    "data.conditions": "What the model is conditioned on, one or a list of: caption (clip.txt or "
    "manifest), label (subfolder or manifest), vector, frame_vectors, field (clip.npy or clip.pt); "
    'or columns of the manifest, as `{"cond": ["EF", "ESV"]}` or `{"labels": "Class"}`.',
    "data.value_range": "Range of the clips in units of their own, as [low, high], each a number "
    "or a list of one per channel; fit for the minimum and maximum of the clips; standardize for "
    "their mean and standard deviation, or {mean: ..., std: ...}; null for pixels.",
    "data.pad": "How to pad a file that is too short: black frames; repeat its last frame; mask, "
    "which repeats it and excludes it from the loss; or error.",
    "data.manifest": "Table of the clips: .csv, .tsv, .txt or .jsonl with the columns path, and if "
    "wanted caption, label, start, end (seconds) and split. Paths are relative to the folder, or "
    "names of files below it.",
    "trainer.ema_warmup": "How averages start: as a copy of the weights, or with a decay that "
    "grows by power or inverse_gamma.",
    "trainer.sample_conditions": "Conditions of the samples, such as `{cond: [a whale]}`, repeated "
    "to the number of samples; null for those of clips.",
    "trainer.optimizer": "adam or adamw.",
    "trainer.lr_schedule": "constant; or cosine or linear, a decay to 0 at train_num_steps.",
    "trainer.init_averaged": "Which weights of init_from: true for the first average, the decay of "
    "an average, or false for the last weights.",
    "trainer.init_without": "Patterns of names of parameters that keep their initial values, "
    "such as *.label_emb.* for other classes.",
    "trainer.freeze": "Patterns of names of parameters that are not trained, such as *.downs.*.",
    "trainer.log_with": "Experiment tracker, such as tensorboard or wandb, or a list of several.",
}


class Base(NamedTuple):
    """Where the defaults of the options come from.

    Attributes:
        preset: Name of a preset; None for none.
        init_from: A checkpoint or shared model, whose settings come before those of the preset;
            None for none.
        timesteps: Those that are given, which `sampling_timesteps` must not exceed; None for none.
    """

    preset: str | None = None
    init_from: str | None = None
    timesteps: int | None = None

    def settings(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Settings by group, and the text encoder; those of neither are left out.

        Raises:
            FileNotFoundError: If `init_from` is missing.
            ValueError: If the preset is unknown, or `init_from` is damaged.
        """
        found: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
        text_encoder = None
        if self.preset is not None:
            chosen = preset(self.preset)
            text_encoder = chosen.text_encoder
            found["unet"] |= chosen.unet
            found["diffusion"] |= chosen.diffusion
            for name, value in chosen.trainer.items():
                found["data" if name in option_names("data") else "trainer"][name] = value
        if self.init_from is not None:
            unet, diffusion, clips = read_settings(self.init_from)
            found["unet"] |= unet
            found["diffusion"] |= diffusion
            found["data"] |= clips.settings
            # a function has no name that could be loaded
            is_named = clips.text_encoder and not clips.text_encoder.startswith("function:")
            text_encoder = clips.text_encoder if is_named else text_encoder
        steps = self.timesteps or found["diffusion"].get("timesteps", _SAMPLING_STEPS)
        found["diffusion"].setdefault("sampling_timesteps", min(_SAMPLING_STEPS, steps))
        known = {
            group: {name: value for name, value in own.items() if name in option_names(group)}
            for group, own in found.items()
        }
        return known, text_encoder


NO_BASE = Base()


def make_parser(base: Base = NO_BASE) -> ArgumentParser:
    """Makes the parser of the options of `train`.

    Args:
        base: Where the defaults come from; those of the constructors if it names nothing.

    Raises:
        FileNotFoundError: As `Base.settings`.
        ValueError: Likewise.
    """
    settings, text_encoder = base.settings()
    parser = ArgumentParser(
        usage="video-diffusion train FOLDER [options]",
        description="Trains a model on a folder of clips: videos, gifs, folders of pictures or "
        "arrays.",
        formatter_class=HelpFormatter,
        add_help=False,
        print_config=None,
    )
    add = parser.add_argument
    show = "Show the options that most runs need."
    add("-h", "--help", action=ShowHelp, nargs=0, const=_main_help, help=show)
    show = "Show all options."
    add("--help_all", action=ShowHelp, nargs=0, const=ArgumentParser.format_help, help=show)
    folder = "Folder of clips, also in subfolders. Required, here or in the file of options."
    # left out here, it may still be in the file
    add("folder", nargs="?", type=str, default=argparse.SUPPRESS, help=folder)
    config = "YAML file of options, as --print_config writes it; the command line overrides it."
    add("--config", metavar="FILE", action=ActionConfigFile, help=config)
    printed = "Print a YAML file of the main options and those that differ from their defaults, "
    printed += "with full of all options, and exit."
    add("--print_config", type=str | None, metavar="[full]", help=printed)
    models = f"Model whose settings become the defaults: {', '.join(PRESETS)}. All but small, "
    models += "which trains in minutes on a CPU, are the paper's."
    add("--preset", metavar="NAME", type=str | None, help=models)
    init = "Fine-tune: start from the weights of this checkpoint, results folder, shared folder or "
    init += "Hugging Face name, whose settings become the defaults."
    add("--init_from", metavar="MODEL", type=str | None, help=init)
    encoder = "Folder or Hugging Face name of the text encoder; null for BERT."
    add("--text_encoder", metavar="NAME", type=str | None, default=text_encoder, help=encoder)
    resume = "auto: continue from the last checkpoint in the results folder, if any; never: refuse "
    resume += "a folder that has one; or the path of a checkpoint."
    add("--resume", type=str, default="auto", help=resume)
    add("--seed", type=int, default=0, help="Seed of the initial weights and of the training.")
    for group, (constructor, skip, own) in GROUPS.items():
        defaults = own | settings[group]
        parser.add_class_arguments(constructor, group, skip=skip, default=defaults)
        (parser.groups or {})[group].title = TITLES[group]
    for action in parser._actions:
        # required by a constructor, but with a default here
        action.required = False
        hidden = argparse.SUPPRESS if action.dest in _HIDDEN else action.help
        action.help = _HELP.get(action.dest, hidden)
        action.metavar = _METAVARS.get(_annotation(action.dest), action.metavar)
    return parser


def _main_help(parser: ArgumentParser) -> str:
    """The help text of the options that most runs need."""
    short = ArgumentParser(
        usage=parser.usage,
        description=parser.description,
        epilog="--help_all lists the other options: network, noise schedule, how clips are read, "
        "optimizer, validation, checkpoints and samples.",
        formatter_class=HelpFormatter,
        add_help=False,
    )
    actions = {action.dest: action for action in parser._actions}
    group = short.add_argument_group("Main options")
    short._actions[:] = group._group_actions[:] = [actions[name] for name in _MAIN]
    return short.format_help()


def rewrite(argv: Sequence[str]) -> tuple[list[str], Base]:
    """Rewrites arguments of `train` for the parser.

    Options get their group. Files of options are replaced by their content and come first, so that
    the command line overrides them.

    Returns:
        The arguments, and what they or a file name as the base of the defaults.

    Raises:
        OSError: If a file of options cannot be read.
        ValueError: If it is not valid.
    """
    groups = short_names()
    files: list[dict[str, Any]] = []
    others: list[str] = []
    named: dict[str, Any] = {}
    rest = iter(argv)
    for argument in rest:
        option, equals, value = argument.partition("=")
        if option == "--print_config" and not equals:
            # its value is optional, and a folder may follow
            is_full = next(iter(argv[argv.index(argument) + 1 :]), "") == "full"
            value, equals = next(rest) if is_full else _SHORT, "="
        name, dot, key = option.removeprefix("--").partition(".")
        name = name if dot and name in GROUPS else groups.get(name, name)
        full = f"{name}{dot}{key}"
        takes_next = not equals and (full in _READ_HERE or _annotation(full) in _CONVERTED)
        if not argument.startswith("--"):
            others.append(argument)
            continue
        if takes_next:
            value = next(rest, "")
            equals = "=" * bool(value)
        if full == "config" and value:
            files.append(_read_file(value))
            continue
        if full in ("preset", "init_from") and equals:
            named[full] = None if value == "null" else value
        if full == "diffusion.timesteps":
            named["timesteps"] = _converted(full, value)
        others.append(f"--{full}{equals}{_on_line(_converted(full, value))}")
    found: dict[str, Any] = {}
    for file in files:
        inner = {**file, **file.get("diffusion", {})}
        found |= {name: inner[name] for name in Base._fields if name in inner}
    found |= named
    steps = str(found.pop("timesteps", ""))
    texts = {name: str(value) for name, value in found.items() if value is not None}
    base = Base(**texts, timesteps=int(steps) if steps.isdecimal() else None)
    return [*(f"--config={yaml.safe_dump(file)}" for file in files), *others], base


# Options whose values are looked at before the parser
_READ_HERE = ("config", "preset", "init_from")
_CONVERTED = ("int", "int | None", "int | tuple[int, int]", "Sequence[str]")


def _read_file(path: str) -> dict[str, Any]:
    """The options of a file, with values as the parser takes them."""
    found = read_options(path, _known(), short_names(), _TOP)
    for group in GROUPS.keys() & found.keys():
        own = found[group]
        found[group] = {name: _converted(f"{group}.{name}", own[name]) for name in own}
    return found


def _known() -> dict[str, list[str]]:
    return {group: option_names(group) for group in GROUPS}


def _annotation(option: str) -> str:
    """The annotation of an option in its constructor; empty for others."""
    group, _, name = option.partition(".")
    if group not in GROUPS or name not in option_names(group):
        return ""
    return str(inspect.signature(GROUPS[group][0]).parameters[name].annotation)


def _converted(option: str, value: Any) -> Any:
    """A whole number for one such as 1e5, and a list for one text."""
    kind = _annotation(option)
    if not isinstance(value, (str, float)) or kind not in _CONVERTED:
        return value
    if kind == "Sequence[str]":
        is_list = isinstance(value, str) and value.lstrip().startswith("[")
        return value if is_list else [value]
    try:
        number = float(value)
    except ValueError:
        return value
    is_written_out = isinstance(value, str) and value.lstrip("-").isdecimal()
    return int(number) if number.is_integer() and not is_written_out else value


def _on_line(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def suggest(option: str) -> str:
    """The option that is meant by an unknown one of the command line; empty if there is none."""
    return suggested(option, _known(), short_names(), _TOP).replace("(is ", "(is --")


def short_names() -> dict[str, str]:
    """Full option names by the names without their group; the first group that has one gets it."""
    names = {name: f"{group}.{name}" for group in reversed(GROUPS) for name in option_names(group)}
    # the range of the clips can be "fit", and the model adopts it
    return {**names, "value_range": "data.value_range"}


def option_names(group: str) -> list[str]:
    """Names of a group's options, without the group."""
    constructor, skip, _ = GROUPS[group]
    return [name for name in inspect.signature(constructor).parameters if name not in skip]


def _printed(options: Namespace) -> str:
    """The options as a file, see `--print_config`."""
    parser = make_parser(Base(options.preset, options.init_from, options.diffusion.timesteps))
    both = (options, parser.get_defaults())
    values, usual = (json.loads(json.dumps(one.as_dict(), default=str)) for one in both)
    is_full = options.print_config == "full"
    if not is_full and options.print_config != _SHORT:
        raise ValueError(
            "train: --print_config must be left without a value or be full, got "
            f"{options.print_config!r}; correct it"
        )

    def is_wanted(name: str, value: Any, default: Any) -> bool:
        return value != default or (name not in _HIDDEN and (is_full or name in _MAIN))

    top = {name: values.get(name) for name in _TOP}
    found = {n: v for n, v in top.items() if is_full or n == "folder" or v != usual.get(n)}
    for group in GROUPS:
        own = {
            name: value
            for name, value in values[group].items()
            if is_wanted(f"{group}.{name}", value, usual[group][name])
        }
        found |= {group: own} if own else {}
    helps = {action.dest: in_words(action.help or "") for action in parser._actions}
    helps |= dict.fromkeys(_HIDDEN, "") | TITLES
    return write_options(found, GROUPS, lambda name: helps.get(name, ""))


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
    if options.print_config is not None:
        say(_printed(options).rstrip())
        sys.exit(0)
    folder, text_encoder = options.get("folder"), options.text_encoder
    if folder is None:
        raise ValueError(
            "train: expected a folder of clips, got none; give it after train, or as folder in the "
            "file of --config"
        )
    unet, diffusion, data, trainer = (options[group].as_dict() for group in GROUPS)
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)
    _follow_clips(unet, diffusion, data["conditions"], data["static_field"])
    torch.manual_seed(options.seed)
    model = GaussianDiffusion(Unet3D(**unet), **diffusion)
    if options.init_from is not None:
        trainer["init_from"] = options.init_from
    loop = Trainer(model, folder, **trainer, **data, resume=options.resume, seed=options.seed)
    tell = say if loop.is_main else lambda line: None
    if loop.step:
        unused = f"; {options.init_from} is not read again" if options.init_from else ""
        tell(f"resumes from {loop.resumed_from}, step {loop.step}{unused}")
    elif options.init_from is not None:
        changed = _changes(options.init_from, {"unet": unet, "diffusion": diffusion})
        tell(f"starts from the weights of {options.init_from}{changed}")
    if loop.step >= loop.train_num_steps:
        tell(f"training is complete: to continue, raise --train_num_steps above {loop.step}")
        return

    loop.train()
    last = newest(loop.results_folder)
    assert last is not None
    tell(f"trained to step {loop.step}: {last}")
    tell(f"samples: video-diffusion sample {quote(str(last))} {_sample_options(loop, options)}")


def _follow_clips(
    unet: dict[str, Any],
    diffusion: Mapping[str, Any],
    conditions: Any,
    static_field: Any,
) -> None:
    """Sets the widths of the network that are left out, by the conditions of the clips."""
    kinds, _, columns = split_conditions(conditions)
    cond = columns.get("cond")
    if isinstance(cond, list) and not unet["use_bert_text_cond"]:
        unet["cond_dim"] = unet["cond_dim"] or len(cond)
    has_captions = "caption" in kinds or isinstance(cond, str)
    is_open = unet["use_bert_text_cond"] or unet["cond_dim"] is None
    is_default = text.encoder_name() == text.DEFAULT_ENCODER
    if has_captions and is_open and is_default:
        unet["use_bert_text_cond"] = True
    elif has_captions and is_open and (width := text.encoder_width()):
        unet |= {"use_bert_text_cond": False, "cond_dim": width}
    if "field" not in kinds and static_field is None:
        # those of a frame, and one that marks the given ones; and one where values are
        given = (unet["channels"] + 1) * bool(diffusion["given_frames"])
        unet["cond_channels"] = unet["cond_channels"] or given + ("mask" in kinds)


def _sample_options(loop: Trainer, options: Namespace) -> str:
    """Options of `sample` for the trained model, with conditions of the clips where possible."""
    model, info = loop.model, loop.model.clip_info
    kinds, _, columns = split_conditions(options.data.conditions)
    captions = loop.data.known_captions
    # rounded, without an exponent, which would look like an option if it is negative
    middles = [
        np.format_float_positional(float(f"{(low + high) / 2:.4g}"), trim="-")
        for low, high in info.cond_ranges.values()
    ]
    has_columns = isinstance(columns.get("cond"), list)
    has_numbers = has_columns or "vector" in kinds
    values: dict[str, Sequence[str]] = {"labels": info.class_names[:4], "cond": captions[:1]}
    values |= {"cond": middles} if has_columns else {}
    arguments = []
    for name in [*model.condition_names, *["first_frames"] * bool(model.given_frames)]:
        option = "--cond" if name == "cond" and has_numbers else OPTIONS[name]
        found = values.get(name)
        arguments += [option, *(map(quote, found) if found else ["..."])]
    if options.text_encoder is not None and "cond" in model.condition_names:
        arguments += ["--text_encoder", quote(options.text_encoder)]
    if options.preset is not None:
        arguments += ["--preset", options.preset]
    return " ".join([*arguments, "-o", quote(str(loop.results_folder / "samples.gif"))])


def _changes(init_from: str, ours: Mapping[str, Mapping[str, Any]]) -> str:
    """What settings change in the model of `init_from`, in words; empty for nothing."""
    theirs, _ = Base(init_from=init_from).settings()
    changed = [change for group in ours for change in changed_settings(theirs[group], ours[group])]
    return f", with {', '.join(changed)}" if changed else ""
