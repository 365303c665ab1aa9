"""The options of the `video-diffusion` command: what may be given, and in which forms."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from jsonargparse import ArgumentParser

from video_diffusion_pytorch.evaluate_options import add_evaluation_commands
from video_diffusion_pytorch.train_options import train_parser
from video_diffusion_pytorch.version import __version__

PROG = "video-diffusion"
COMMANDS = ("demo", "train", "sample", "evaluate", "compare", "info", "plot", "gather")


@functools.cache
def build_parser(preset_name: str | None = None) -> ArgumentParser:
    """The parser of the whole command; of equal settings the same one.

    Args:
        preset_name: The model of the paper whose settings are the defaults of `train`; None for the
            constructors' own.

    Raises:
        ValueError: If there is no such model.
    """
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
    commands.add_subcommand(
        "train", train_parser(preset_name), help="train a model on a folder of clips"
    )
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


_FILES = {
    "cond": "A .npy of vectors, (n, d), or of states of captions of one length, (n, tokens, d)",
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
    add(
        "checkpoint",
        type=str,
        help="A file model-N.pt of this library, or of version 0.6 or 0.7; or a results folder, "
        "for its newest one.",
    )
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
    add("--preset", type=str | None, help="A model of the paper, for its sampler and steps.")
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
