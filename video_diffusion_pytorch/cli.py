"""The `video-diffusion` command: options in, files out, one clear line for a mistake."""

from __future__ import annotations

import difflib
import inspect
import re
import sys
from argparse import SUPPRESS, ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.trainer import Trainer
from video_diffusion_pytorch.version import __version__

PROG = "video-diffusion"
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it

# Option groups of `train`: the class, what the command itself gives it, and defaults of its own
_GROUPS: dict[str, tuple[type, set[str | int], dict[str, Any]]] = {
    "unet": (Unet3D, set(), {"dim": 64}),
    "diffusion": (GaussianDiffusion, {"denoise_fn"}, {"image_size": 64, "num_frames": 16}),
    "trainer": (Trainer, {"diffusion_model", "folder"}, {}),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command.

    Args:
        argv: Arguments, without the program's name; None for those of the process.

    Returns:
        The exit code: None for success, 2 for a mistake in the options or files, which one line on
        stderr names, and 130 after Ctrl+C.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    parser, options = _build_parser(), None
    try:
        options = parser.parse_args(_rewrite(given))
        _run(options)
    except KeyboardInterrupt:
        _say(_interruption(options), file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        _say(f"{PROG}: error: {_explain(error, given)}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError) as error:
        _say(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return None


# options


def _build_parser() -> ArgumentParser:
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
        metavar="{demo,train,sample}",
        description="For a command's options, add --help to it.",
    )
    commands.add_subcommand(
        "demo", _demo_parser(), help="train a small model on moving digits, with nothing to fetch"
    )
    commands.add_subcommand("train", _train_parser(), help="train a model on a folder of gifs")
    commands.add_subcommand("sample", _sample_parser(), help="draw videos from a checkpoint")
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
        description="Trains a model without conditions on a folder of gifs. Where it is clear, the "
        "part of an option before the dot may be left out: --dim 32 is --unet.dim 32.",
    )
    parser.add_argument("--config", action=ActionConfigFile, help=_CONFIG_HELP)
    parser.add_argument(
        "folder",
        nargs="?",
        type=str,
        # left out, it may still be in the file
        default=SUPPRESS,
        help="Where the clips are; gifs, at any depth. Either here or in the file.",
    )
    parser.add_argument("--resume", type=str, default="auto", help=_RESUME_HELP)
    parser.add_argument(
        "--seed", type=int, default=0, help="Of the first weights and the training."
    )
    for group, (constructor, skip, defaults) in _GROUPS.items():
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
    add(
        "--cond_scale",
        type=float,
        default=1.0,
        help="Strength of the guidance by the captions; 1 is without, more is nearer to them.",
    )
    add("-n", "--count", type=int, default=4, help="Number of videos, for each caption.")
    add(
        "-o",
        "--output",
        type=str,
        default="samples.gif",
        help="A .gif that shows all videos, or a .npy of their values, (b, c, f, h, w).",
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


def _intro(function: Any) -> str:
    """The part of a docstring before its arguments, as one paragraph."""
    return " ".join((inspect.getdoc(function) or "").split("\n\nArgs:")[0].split())


def _rewrite(argv: list[str]) -> list[str]:
    """Options as the parser knows them: underscores, full names, and the file before the rest."""
    if not argv or argv[0].startswith("-"):
        return argv
    short = _short_names() if argv[0] == "train" else {}
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


def _short_names() -> dict[str, str]:
    """Option names without their group; the first group that has a name gets it."""
    return {
        name: f"{group}.{name}"
        for group, (constructor, skip, _) in reversed(_GROUPS.items())
        for name in inspect.signature(constructor).parameters
        if name not in skip
    }


# commands


def _run(options: Namespace) -> None:
    chosen = options[options.command]
    if options.command == "demo":
        from video_diffusion_pytorch.demo import run_demo

        run_demo(**chosen.as_dict(), say=_say)
        return

    from video_diffusion_pytorch import commands

    if options.command == "sample":
        settings = chosen.as_dict()
        settings["captions"] = settings.pop("text")
        commands.run_sampling(**settings, say=_say)
        return
    if chosen.get("folder") is None:
        raise ValueError(
            "train: expected a folder of clips, got none; give it after train, or as folder in the "
            "file of --config"
        )
    groups = {group: chosen[group].as_dict() for group in _GROUPS}
    commands.run_training(
        chosen.folder, **groups, resume_from=chosen.resume, seed=chosen.seed, say=_say
    )


# lines


def _say(line: str, file: Any = None) -> None:
    print(line, file=file, flush=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _explain(error: ArgumentError, argv: Sequence[str]) -> str:
    """The parser's complaint in one sentence, and where to look."""
    message = _one_line(error)
    wrong = re.match(r'Parser key "([^"]+)".* (?:Got value|Given value): (.*)$', message)
    if wrong:
        message = f"{wrong[1]} does not take the value {wrong[2]!r}"
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    unknown = re.match(r"[Uu]nrecognized arguments: --([\w.]+)", message)
    if unknown:
        known = [f"{group}.{name}" for group in _GROUPS for name in _parameters(group)]
        close = difflib.get_close_matches(unknown[1], [*known, *_short_names()], n=1)
        message += f" (is --{close[0]} meant?)" if close else ""
    command = [argv[0]] if argv and argv[0] in ("demo", "train", "sample") else []
    return f"{message}; see {' '.join([PROG, *command])} --help"


def _parameters(group: str) -> list[str]:
    constructor, skip, _ = _GROUPS[group]
    return [name for name in inspect.signature(constructor).parameters if name not in skip]


def _interruption(options: Namespace | None) -> str:
    """What is left after Ctrl+C."""
    from video_diffusion_pytorch.training.checkpoint import list_checkpoints

    folder = None
    if options is not None and options.command == "demo":
        folder = Path(options.demo.folder) / "checkpoints"
    elif options is not None and options.command == "train":
        folder = Path(options.train.trainer.results_folder)
    if folder is None:
        return f"{PROG}: interrupted"
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        return f"{PROG}: interrupted before the first checkpoint"
    return (
        f"{PROG}: interrupted; the last checkpoint is {checkpoints[-1]}, and the same command "
        "goes on from there"
    )
