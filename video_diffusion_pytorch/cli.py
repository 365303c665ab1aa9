"""The `video-diffusion` command: options in, files out, one clear line for a mistake."""

from __future__ import annotations

import difflib
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from video_diffusion_pytorch.cli_options import COMMANDS, PROG, build_parser
from video_diffusion_pytorch.train_options import (
    GROUPS,
    named_preset,
    option_names,
    rewrite,
    short_names,
)

INTERRUPTED = 130  # 128 and the number of SIGINT, as shells have it


def main(argv: Sequence[str] | None = None) -> int | None:
    """Runs the command.

    Args:
        argv: Arguments, without the program's name; None for those of the process.

    Returns:
        The exit code: None for success, 1 for a training that could not go on, 2 for a mistake in
        the options or files, each of which one line on stderr names, and 130 after Ctrl+C.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    options = None
    try:
        argv = rewrite(given)
        preset = named_preset(argv)
        options = build_parser(preset).parse_args(argv)
        if options.command == "train" and options.train.preset != preset:
            raise ValueError(
                f"train: the preset must be known before other options, got {preset} and then "
                f"{options.train.preset}; give it as --preset on the command line"
            )
        _run(options)
    except KeyboardInterrupt:
        _say(_interruption(options), file=sys.stderr)
        return INTERRUPTED
    except ArgumentError as error:
        _say(f"{PROG}: error: {_explain(error, given)}", file=sys.stderr)
        return 2
    except (FloatingPointError, MemoryError) as error:
        # of a training that began
        _say(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError) as error:
        _say(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return None


# commands


def _run(options: Namespace) -> None:
    chosen = options[options.command]
    if options.command == "demo":
        from video_diffusion_pytorch.demo import run_demo

        run_demo(**chosen.as_dict(), say=_say)
        return

    if options.command in _REPORTS:
        _REPORTS[options.command](**chosen.as_dict())
        return

    from video_diffusion_pytorch import commands

    if options.command == "sample":
        commands.run_sampling(**chosen.as_dict(), say=_say)
        return
    if options.command in ("evaluate", "compare"):
        _evaluate(options.command, chosen.as_dict())
        return
    if chosen.get("folder") is None:
        raise ValueError(
            "train: expected a folder of clips, got none; give it after train, or as folder in the "
            "file of --config"
        )
    for group in GROUPS:
        if not isinstance(chosen[group], Namespace):
            raise ValueError(
                f"train: expected options in the group {group}, got {chosen[group]!r:.60}; write "
                "them as --print_config shows them"
            )
    groups = {group: chosen[group].as_dict() for group in GROUPS}
    commands.run_training(
        chosen.folder,
        **groups,
        preset=chosen.preset,
        text_encoder=chosen.text_encoder,
        resume_from=chosen.resume,
        seed=chosen.seed,
        say=_say,
    )


def _evaluate(command: str, chosen: dict[str, Any]) -> None:
    from video_diffusion_pytorch.evaluate_options import split_options
    from video_diffusion_pytorch.evaluation_commands import run_comparison, run_evaluation

    if command == "compare":
        run_comparison(**chosen, say=_say)
    else:
        run_evaluation(**split_options(chosen), say=_say)


def _info(checkpoint: str) -> None:
    from video_diffusion_pytorch.run_report import describe_checkpoint

    for line in describe_checkpoint(checkpoint):
        _say(line)


def _plot(folders: list[str], output: str | None) -> None:
    from video_diffusion_pytorch.run_plot import plot_run

    _say(f"wrote {plot_run(folders, output)}")


def _gather(folder: str, output: str | None) -> None:
    from video_diffusion_pytorch.training.sharded_checkpoint import gather_checkpoint

    written = gather_checkpoint(Path(folder), None if output is None else Path(output))
    _say(f"wrote {written}: the checkpoint {folder} as one file")


_REPORTS: dict[str, Callable[..., None]] = {"info": _info, "plot": _plot, "gather": _gather}


# lines


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
    message = re.sub(r'^Parser key "([^"]+)":', r"--\1:", message)
    unknown = re.match(r"[Uu]nrecognized arguments: --([\w.]+)", message)
    if unknown:
        known = [f"{group}.{name}" for group in GROUPS for name in option_names(group)]
        close = difflib.get_close_matches(unknown[1], [*known, *short_names()], n=1)
        message += f" (is --{close[0]} meant?)" if close else ""
    command = [argv[0]] if argv and argv[0] in COMMANDS else []
    return f"{message}; see {' '.join([PROG, *command])} --help"


def _interruption(options: Namespace | None) -> str:
    """What is left after Ctrl+C."""
    from video_diffusion_pytorch.training.checkpoint import newest

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
