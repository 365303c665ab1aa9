"""The `video-diffusion` command: one module for each of its commands."""

from __future__ import annotations

import difflib
import functools
import re
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.cli import (
    compare,
    demo,
    evaluate,
    gather,
    info,
    plot,
    sample,
    train,
)
from video_diffusion_pytorch.training.checkpoint import newest
from video_diffusion_pytorch.version import __version__

PROG = "video-diffusion"
COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "compare": compare,
    "info": info,
    "plot": plot,
    "gather": gather,
}
INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command.

    Args:
        argv: Arguments, without the program's name; None for those of the process.

    Returns:
        The exit code: None for success, 1 for a training that could not go on, 2 for a mistake in
        the options or files, each of which one line on stderr names, and 130 after Ctrl+C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    options = None
    try:
        options = parse(argv)
        COMMANDS[options.command].run(options[options.command], _say)
    except KeyboardInterrupt:
        _say(_interruption(options), file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        _say(f"{PROG}: error: {_explain(error, argv)}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError) as error:
        # of a training that began
        _say(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError) as error:
        _say(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return None


def parse(argv: Sequence[str]) -> Namespace:
    """Options of a command line, under the name of the command.

    Raises:
        ArgumentError: If an option is unknown, or does not take its value.
        ValueError: If the preset is unknown, or named where it is found too late.
    """
    argv, preset = [_with_underscores(argument) for argument in argv], None
    if argv[:1] == ["train"]:
        argv = ["train", *train.rewrite(argv[1:])]
        preset = train.named_preset(argv[1:])
    options = build_parser(preset).parse_args(argv)
    if options.command == "train" and options.train.preset != preset:
        raise ValueError(
            f"train: the preset must be known before other options, got {preset} and then "
            f"{options.train.preset}; give it as --preset on the command line"
        )
    return options


def _with_underscores(argument: str) -> str:
    """An option as the parser names it: `--train-lr=1e-3` as `--train_lr=1e-3`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


@functools.cache
def build_parser(preset: str | None = None) -> ArgumentParser:
    """The parser of the whole command.

    Args:
        preset: The preset whose settings are the defaults of `train`; None for the constructors'.

    Raises:
        ValueError: If there is no such preset.
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
    for name, command in COMMANDS.items():
        parser_of_command = train.make_parser(preset) if command is train else command.make_parser()
        commands.add_subcommand(name, parser_of_command, help=command.HELP)
    return parser


def _say(line: str, file: Any = None) -> None:
    file = sys.stdout if file is None else file
    # half an emoji of a caption, or a terminal without Unicode
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    # the parser repeats what it was given, however long
    return text if len(text) <= 2000 else f"{text[:1500]} ... {text[-400:]}"


def _explain(error: ArgumentError, argv: Sequence[str]) -> str:
    """The parser's complaint in one sentence, and where to look."""
    message = _one_line(error)
    wrong = re.match(r'Parser key "([^"]+)".* (?:Got value|Given value): (.*)$', message)
    if wrong:
        message = f"{wrong[1]} does not take the value {wrong[2]!r}"
    if "nrecognized arguments" in message:
        known = [f"{group}.{name}" for group in train.GROUPS for name in train.option_names(group)]
        known += train.short_names()
        options = [_with_underscores(one)[2:].partition("=")[0] for one in argv if one[:2] == "--"]
        unknown = [option for option in options if option not in known]
        close = difflib.get_close_matches(unknown[0], known, n=1) if unknown else []
        message += f" (is --{close[0]} meant?)" if close else ""
    command = [argv[0]] if argv and argv[0] in COMMANDS else []
    return f"{message}; see {' '.join([PROG, *command])} --help"


def _interruption(options: Namespace | None) -> str:
    """What is left after Ctrl+C."""
    folder = None
    if options is not None and options.command == "demo":
        folder = Path(options.demo.folder) / "checkpoints"
    elif options is not None and options.command == "train":
        folder = Path(options.train.trainer.results_folder)
    if folder is None:
        return f"{PROG}: interrupted"
    last = newest(folder)
    if last is None:
        return f"{PROG}: interrupted before the first checkpoint"
    return (
        f"{PROG}: interrupted; the last checkpoint is {last}, and the same command "
        "goes on from there"
    )
