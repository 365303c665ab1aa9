"""The `video-diffusion` command line: one module per command."""

from __future__ import annotations

import functools
import re
import sys
import warnings
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.arguments import nearest_name
from video_diffusion_pytorch.cli import (
    demo,
    ema,
    evaluate,
    forecast,
    gather,
    info,
    plot,
    sample,
    train,
)
from video_diffusion_pytorch.cli.help import HelpFormatter
from video_diffusion_pytorch.startup import INTERRUPTED, raise_on_interrupt
from video_diffusion_pytorch.training.checkpoint import newest
from video_diffusion_pytorch.training.signals import TrainingInterrupted
from video_diffusion_pytorch.version import __version__

PROG = "video-diffusion"
# Formats of other libraries, which Python reads in two lines
_FOREIGN = re.compile(r"\.(dcm|mha|mhd|nrrd|mat|grib2?|grb2?|fits)\b")
_IN_PYTHON = (
    ". A read_fn is a function and needs Python: "
    "read = lambda path: nrrd.read(path)[0].T[None]  # (c, f, h, w); "
)
_TRAIN = "Trainer(diffusion, FOLDER, exts='nrrd', read_fn=read).train()"
_PREPARE = (
    "prepare_clip(path, diffusion, read_fn=read); or save the array as .npy and give that file"
)
# Types in the parser's messages, and what they are called
_TYPE = r"Expected a <class '(\w+)'>"
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}
_LONGEST_MESSAGE = 2000  # the parser repeats a wrong value, however long


class Command(NamedTuple):
    """One command: its line in the help text, its parser and its function."""

    help: str
    make_parser: Callable[..., ArgumentParser]
    run: Callable[[Namespace, Callable[[str], None]], None]


COMMANDS = {
    "demo": Command("train a small model on generated clips", demo.make_parser, demo.run),
    "train": Command("train a model on a folder of clips", train.make_parser, train.run),
    "sample": Command("sample videos from a checkpoint", sample.make_parser, sample.run),
    "forecast": Command("continue a file as an ensemble", forecast.make_parser, forecast.run),
    "evaluate": Command("compare samples with real clips", evaluate.make_parser, evaluate.run),
    "compare": Command("compare results", evaluate.make_compare_parser, evaluate.run_compare),
    "ema": Command("average the weights of a training anew", ema.make_parser, ema.run),
    "info": Command("describe a checkpoint", info.make_parser, info.run),
    "plot": Command("plot the metrics of one or more runs", plot.make_parser, plot.run),
    "gather": Command("make one file of a sharded checkpoint", gather.make_parser, gather.run),
}


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command.

    Args:
        argv: Arguments without the program's name; None for those of the process.

    Returns:
        The exit code: None for success, 1 if a training diverged or ran out of memory, 2 for a
        mistake in the options or files, described by one line on stderr, and 130 after Ctrl+C.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    options, usual_format = None, warnings.formatwarning
    try:
        raise_on_interrupt()
        warnings.formatwarning = _format_warning
        options = parse(argv)
        COMMANDS[options.command].run(options[options.command], _say)
    except TrainingInterrupted:
        # the trainer has logged where the run can resume from
        return INTERRUPTED
    except KeyboardInterrupt:
        _say(_interruption(options), file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        _say(f"{PROG}: error: {_explain(error, argv)}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError, ValueError, TypeError, OSError, Warning) as error:
        _say(f"{PROG}: error: {_one_line(error, argv)}", file=sys.stderr)
        return 1 if isinstance(error, (FloatingPointError, MemoryError)) else 2
    finally:
        warnings.formatwarning = usual_format
    return None


def parse(argv: Sequence[str]) -> Namespace:
    """Parses a command line; the options are in the attribute named as the command.

    Raises:
        ArgumentError: If an option is unknown or its value is not of its type.
        FileNotFoundError: If a file of options or the model to start from is missing.
        ValueError: If the preset is unknown, or a file of options is not valid.
    """
    argv, base = [_with_underscores(argument) for argument in argv], train.NO_BASE
    if argv[:1] == ["train"]:
        rest, base = train.rewrite(argv[1:])
        argv = ["train", *rest]
    # a checkpoint may be another one by the next call
    build = build_parser if base.init_from is None else build_parser.__wrapped__
    return build(base).parse_args(argv)


def _with_underscores(argument: str) -> str:
    """An option as the parser names it: `--train-lr=1e-3` as `--train_lr=1e-3`."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


@functools.cache
def build_parser(base: train.Base = train.NO_BASE) -> ArgumentParser:
    """Builds the parser of all commands.

    Args:
        base: Where the defaults of `train` come from.

    Raises:
        FileNotFoundError: As `train.make_parser`.
        ValueError: Likewise.
    """
    parser = ArgumentParser(
        prog=PROG,
        description="Train your own video diffusion models (Ho et al. 2022, arXiv 2204.03458).",
        formatter_class=HelpFormatter,
        version=__version__,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(
        dest="command",
        title="commands",
        metavar=f"{{{','.join(COMMANDS)}}}",
        description="Add --help to a command to list its options.",
    )
    for name, command in COMMANDS.items():
        made = command.make_parser(*[base] if name == "train" else [])
        made.exit_on_error = made.allow_abbrev = False
        made.formatter_class = HelpFormatter
        commands.add_subcommand(name, made, help=command.help)
    return parser


def _format_warning(message: Warning | str, *_: Any, **__: Any) -> str:
    return f"{PROG}: warning: {message}\n"


def _say(line: str, file: Any = None) -> None:
    """Prints a line; characters that the terminal's encoding lacks are escaped."""
    file = sys.stdout if file is None else file
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=file, flush=True)


def _one_line(error: BaseException, argv: Sequence[str]) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "a read_fn for" in text and _FOREIGN.search(text):
        text += _IN_PYTHON + (_TRAIN if argv[0] == "train" else _PREPARE)
    text = text.replace('axes="fhw"', "--axes fhw")
    half = _LONGEST_MESSAGE // 2
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def _explain(error: ArgumentError, argv: Sequence[str]) -> str:
    """The parser's message as one sentence, with the nearest option and where to read more."""
    message = _one_line(error, argv)
    # the parser lists all types that were tried
    wrong = re.match(r'Parser key "([^"]+)".* (?:Got value|Given value): (.*)$', message)
    if wrong:
        # of a list or tuple it names the type of one item
        kinds = [] if re.search(r"Sequence|tuple|dict", message) else re.findall(_TYPE, message)
        words = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds if kind in _WORDS))
        only = f", only {words}" if words else ""
        message = f"{wrong[1]} does not take the value {wrong[2]!r}{only}"
    if "are required: " in message:
        message = message.replace(f"{argv[0]}.", "")
    command = [argv[0]] if argv and argv[0] in COMMANDS else []
    unknown = re.search(r"nrecognized arguments: --([\w.]+)", message)
    if unknown and command:
        message += _suggest(unknown[1], argv[0])
    option = "--help_all" if command == ["train"] else "--help"
    return f"{message}; see {' '.join([PROG, *command, option])}"


def _suggest(option: str, command: str) -> str:
    """The option of a command that is meant by an unknown one; empty if there is none."""
    if command == "train":
        return train.suggest(option)
    actions = COMMANDS[command].make_parser()._actions
    meant = nearest_name(option, [action.dest for action in actions if action.option_strings])
    return "" if meant is None else f" (is --{meant} meant?)"


def _interruption(options: Namespace | None) -> str:
    """What is left after Ctrl+C."""
    if options is None or options.command not in ("demo", "train"):
        return f"{PROG}: interrupted"
    if options.command == "demo":
        last = newest(Path(options.demo.folder) / "checkpoints")
    else:
        last = newest(Path(options.train.trainer.results_folder))
    if last is None:
        return f"{PROG}: interrupted before the first checkpoint; the same command starts again"
    resume = "the same command"
    if options.command == "train" and options.train.resume != "auto":
        resume = "the command with --resume auto"
    return f"{PROG}: interrupted; the last checkpoint is {last}, from which {resume} resumes"
