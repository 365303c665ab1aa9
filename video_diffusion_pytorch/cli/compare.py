"""`video-diffusion compare`: scores of several results side by side."""

from __future__ import annotations

from collections.abc import Callable

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.evaluation.results import compare_results, read_result

HELP = "compare results of evaluate"


def make_parser() -> ArgumentParser:
    """The options of `compare`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion compare RESULT RESULT [...] [--allow FIELD ...]",
        description="Prints the scores of several results side by side, if they were measured by "
        "one protocol.",
    )
    add = parser.add_argument
    add("results", type=str, nargs="+", help="Files that evaluate has written.")
    add(
        "--allow",
        type=str,
        nargs="+",
        default=[],
        help="Fields of the protocol that may differ, as they are what is compared, such as "
        "samples.steps.",
    )
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Prints the scores of several results as a table.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If they must not be compared.
    """
    results = options.results
    columns = compare_results(results, allow=options.allow)
    steps = [read_result(file).get("model", {}).get("step") for file in results]
    shown = {name: [_number(score) for score in found] for name, found in columns.items()}
    table = {"result": results, "step": ["-" if s is None else str(s) for s in steps], **shown}
    widths = [max(len(cell) for cell in (name, *cells)) for name, cells in table.items()]
    for row in (list(table), *map(list, zip(*table.values(), strict=True))):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4g}"
