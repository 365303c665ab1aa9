"""The options of the `video-diffusion` command: what may be given, and in which forms."""

from __future__ import annotations

import inspect
from argparse import SUPPRESS
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.evaluate_options import add_evaluation_commands
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.clips.clip_source import dataset_options
from video_diffusion_pytorch.training.trainer import Trainer
from video_diffusion_pytorch.version import __version__

PROG = "video-diffusion"
COMMANDS = ("demo", "train", "sample", "evaluate", "compare", "info", "plot", "gather")

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


def build_parser() -> ArgumentParser:
    """The parser of the whole command."""
    parser = ArgumentParser(
        prog=PROG,
        description="Train your own video diffusion models (Ho et al. 2022, arXiv 2204.03458).",
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(
        dest="command",
        title="commands",
        metavar=f"{{{','.join(COMMANDS)}}}",
        description="For a command's options, add --help to it.",
    )
    commands.add_subcommand(
        "demo", _demo_parser(), help="train a small model on moving digits, with nothing to fetch"
    )
    commands.add_subcommand("train", _train_parser(), help="train a model on a folder of clips")
    commands.add_subcommand("sample", _sample_parser(), help="draw videos from a checkpoint")
    add_evaluation_commands(commands)
    commands.add_subcommand("info", _info_parser(), help="say what a checkpoint holds")
    commands.add_subcommand("plot", _plot_parser(), help="draw the numbers of a run, or of several")
    commands.add_subcommand(
        "gather", _gather_parser(), help="make one file of a checkpoint that is a folder"
    )
    return parser


def _demo_parser() -> ArgumentParser:
    from video_diffusion_pytorch.demo import run_demo

    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False, description=_intro(run_demo))
    parser.add_function_arguments(run_demo, as_group=False, skip={"say"})
    return parser


def _train_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage=f"{PROG} train [FOLDER] [options]",
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
    parser.add_argument(
        "--text_encoder",
        type=str | None,
        help="Folder or Hugging Face name of the encoder of captions; null for BERT.",
    )
    parser.add_argument("--resume", type=str, default="auto", help=_RESUME_HELP)
    parser.add_argument(
        "--seed", type=int, default=0, help="Of the first weights and the training."
    )
    for group, (constructor, skip, defaults) in GROUPS.items():
        parser.add_class_arguments(constructor, group, skip=skip, default=defaults)
    for action in parser._actions:
        # required by the constructor, but not here, where it has a default
        action.required = False
    return parser


_CONFIG_HELP = (
    "A YAML file with any of these options, as --print_config writes it. What is given on the "
    "command line takes its place."
)
_RESUME_HELP = (
    "auto goes on from the last checkpoint in the results folder, if there is one; never begins "
    "anew, in a results folder without checkpoints; a path goes on from that checkpoint."
)


_FILES = {
    "cond": "A .npy of vectors, (n, d)",
    "frame_cond": "A .npy of vectors for each frame, (n, f, d)",
    "cond_video": "A .npy of fields, (n, c, f, h, w) or (n, c, h, w)",
    "first_frames": "A clip of any format to go on from, or a folder of clips",
}


def _sample_parser() -> ArgumentParser:
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        description="Draws videos with the averaged weights of a checkpoint; the file is all it "
        "needs.",
    )
    add = parser.add_argument
    add("checkpoint", type=str, help="A file model-N.pt of this library, or of version 0.6 or 0.7.")
    add("--text", type=str, nargs="+", help="Captions, for a model that was trained with them.")
    add("--labels", type=str, nargs="+", help="Classes, by name or number.")
    for name, what in _FILES.items():
        add(f"--{name}", type=str | None, help=f"{what}, for a model that was trained with such.")
    add(
        "--cond_scale",
        type=float,
        default=1.0,
        help="Strength of the guidance by the conditions; 1 is without, more is nearer to them.",
    )
    _add_ways_to_sample(parser)
    add("-n", "--count", type=int, default=4, help="Number of videos, for each condition.")
    add(
        "-o",
        "--output",
        type=str,
        default="samples.gif",
        help="A .gif, .webp, .mp4 or .png that shows all videos, or a .npy of their values, "
        "(b, c, f, h, w).",
    )
    add(
        "--image_size",
        type=int | tuple[int, int],
        help="Height and width in pixels, 64 or [48,64]. Needed for files of version 0.6 or 0.7, "
        "which do not hold it; null for the training clips'.",
    )
    add("--num_frames", type=int | None, help="Frames of a video; as --image_size.")
    add("--seed", type=int, default=0, help="The same seed gives the same videos.")
    add("--device", type=str | None, help="Where to compute, such as cuda; null for the CPU.")
    add(
        "--text_encoder",
        type=str | None,
        help="Folder or Hugging Face name of the encoder the model was trained with; null for "
        "BERT.",
    )
    return parser


def _add_ways_to_sample(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--negative_text",
        type=str,
        nargs="+",
        help="Captions to guide away from, with a cond_scale above 1: one for all, or as many as "
        "there are conditions.",
    )
    add(
        "--guidance_rescale",
        type=float,
        default=0.0,
        help="Brings guided videos back to their unguided contrast, from 0 to 1.",
    )
    add(
        "--sampler",
        type=str | None,
        help="ddpm (all steps), ancestral, ddim, dpm++ or dpm++sde; null for ddpm, or with fewer "
        "steps ddim.",
    )
    add("--steps", type=int | None, help="Number of steps; null for what suits the sampler.")
    add("--max_batch", type=int, default=16, help="The most videos to draw at a time.")
    add("--ema_decay", type=float | None, help="Which average draws; null for the first.")
    add(
        "--extend_to",
        type=int | None,
        help="Continues the videos to so many frames, window by window.",
    )


def _report_parser(usage: str, description: str) -> ArgumentParser:
    return ArgumentParser(
        exit_on_error=False, allow_abbrev=False, usage=f"{PROG} {usage}", description=description
    )


def _info_parser() -> ArgumentParser:
    parser = _report_parser(
        "info CHECKPOINT",
        "Says what a checkpoint holds: the model, how far it is trained and on what.",
    )
    parser.add_argument(
        "checkpoint",
        type=str,
        help="A file model-N.pt of this library, or of version 0.6 or 0.7; a folder "
        "model-N.sharded; or a results folder, for its newest checkpoint.",
    )
    return parser


def _plot_parser() -> ArgumentParser:
    parser = _report_parser(
        "plot FOLDER [FOLDER ...] [-o OUTPUT]",
        "Draws the losses, learning rate, gradient norm and speed of a run, or of several to "
        "compare.",
    )
    add = parser.add_argument
    add("folders", type=str, nargs="+", help="Results folders, each with a metrics.jsonl.")
    output = "A .png, .svg or .pdf; null for metrics.png, in the results folder if it is one run."
    add("-o", "--output", type=str | None, help=output)
    return parser


def _gather_parser() -> ArgumentParser:
    parser = _report_parser(
        "gather FOLDER [-o OUTPUT]",
        "Makes one file of a checkpoint that several processes wrote in parts, to sample from or "
        "to train on.",
    )
    add = parser.add_argument
    add("folder", type=str, help="A folder model-N.sharded.")
    add("-o", "--output", type=str | None, help="The file; null for model-N.pt beside the folder.")
    return parser


def _intro(function: Any) -> str:
    """The part of a docstring before its arguments, as one paragraph."""
    return " ".join((inspect.getdoc(function) or "").split("\n\nArgs:")[0].split())


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
        name = name.replace("-", "_")
        option = f"--{short.get(name, name)}{equals}{value}"
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
