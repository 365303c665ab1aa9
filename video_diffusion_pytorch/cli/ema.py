"""`video-diffusion ema`: averages of other widths, after the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.cli.evaluate import (
    add_evaluation_options,
    data_options_of,
    evaluation_of,
    in_cells,
    print_table,
    result_of,
)
from video_diffusion_pytorch.evaluation.results import compare_results, write_result
from video_diffusion_pytorch.pretrained import posthoc_average
from video_diffusion_pytorch.training.checkpoint import check_folder
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.training.posthoc_ema import plan_average
from video_diffusion_pytorch.training.processes import fastest_device


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `ema`."""
    parser = ArgumentParser(
        usage="video-diffusion ema RESULTS --std WIDTH [...] [options]",
        description="Averages the weights of a training with --ema_decay posthoc anew, after it, "
        "and writes the model of each width to a folder, for sample, evaluate and from_pretrained.",
    )
    add = parser.add_argument
    add("results", type=str, help="The results folder of the training.")
    std = "Widths, relative to the training, above 0 and at most 0.2886; 0.1 averages over about "
    add("--std", type=float, nargs="+", required=True, help=f"{std}its last tenth.")
    step = "Training step at which the averages end, that of a snapshot; null for the newest."
    add("--step", type=int | None, help=step)
    output = "Folder for the folders ema-WIDTH-stepN of the models; null for the results folder."
    add("-o", "--output", type=str | None, help=output)
    clips = "Folder of real clips, with which videos of each model are compared, as by evaluate, "
    add("--evaluate", type=str | None, help=f"{clips}whose options follow; null for none.")
    device = "Device to evaluate on, such as cpu; null for the fastest."
    add("--device", type=str | None, help=device)
    add_evaluation_options(parser)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Writes the average of each width, and with --evaluate prints a table of their scores.

    Raises:
        FileNotFoundError: If the folder has no snapshots, or a file or folder is missing.
        ValueError: If an option is out of range, or does not fit the snapshots.
    """
    # all that may be wrong, before minutes of reading
    plans = {std: plan_average(options.results, std, options.step) for std in options.std}
    evaluation = evaluation_of(options)
    folder = Path(options.results if options.output is None else options.output)
    check_folder(folder)
    results: list[dict[str, Any]] = []
    for std, plan in plans.items():
        diffusion = posthoc_average(options.results, std, step=plan.step)
        target = folder / f"ema-{std}-step{plan.step}"
        diffusion.save_pretrained(target)
        say(f"wrote {target}: width {std}, profile error {plan.error:.2%}")
        if options.evaluate is None:
            continue
        diffusion.to(fastest_device() if options.device is None else options.device)
        about = {"checkpoint": str(target), "step": plan.step, "ema_std": std}
        clips = data_options_of(options)
        result = evaluate_diffusion(diffusion, options.evaluate, evaluation, about=about, **clips)
        write_result(result, result_of(target))
        results.append(result)
    if results:
        widths = {"std": [*map(str, plans)]}
        print_table(widths | in_cells(compare_results(results)), say)
