"""`video-diffusion plot`: the metrics of one or more runs as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.cli.plot_forecast import plot_forecast
from video_diffusion_pytorch.training.metrics import read_metrics

Lines = list[dict[str, Any]]

METRICS = "metrics.jsonl"
_VALIDATION = "validation_loss"
_SMOOTHED = 40  # longer curves are thin, under their running mean
_DRAWN = 2000  # most points per curve: more do not show
_RECENT = 0.2  # share of a run, at its end, whose losses by noise are averaged
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")

# Numbers of a line that have no axes of their own
_OTHERS = ("step", "time", "steps", "loss", "memory_mib", "skipped_steps", "inception_score_std")
_LOGARITHMIC = (
    *("grad_norm", "fvd", "random_feature_distance", "fid_avg", "fid_first"),
    *("change_distance", "flicker_distance", "persistence_distance"),
)
_OF_REAL_CLIPS = "_real"  # drawn with the score of the drawn videos


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `plot`."""
    parser = ArgumentParser(
        usage="video-diffusion plot FOLDER [FOLDER ...] [-o OUTPUT]",
        description="Plots losses, learning rate, gradient norm, speed and scores of runs, or the "
        "scores of forecasts.",
    )
    add = parser.add_argument
    folders = "Results folders, each with a metrics.jsonl; or the .json of evaluate --forecast."
    add("folders", type=str, nargs="+", help=folders)
    output = "A .png, .svg or .pdf; null for metrics.png, for one run in its results folder."
    add("-o", "--output", type=str | None, help=output)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Plots the metrics of runs, or the scores of forecasts."""
    if len(options.folders) == 1 and options.folders[0].endswith(".json"):
        output = None if options.output is None else Path(options.output)
        written = plot_forecast(Path(options.folders[0]), output)
        say(f"wrote {' and '.join(map(str, written))}")
        return
    say(f"wrote {plot_run(options.folders, options.output)}")


def plot_run(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Plots losses, learning rate, gradient norm, speed and scores of one or more runs.

    The validation losses of averaged weights are drawn for a single run only.

    Args:
        folder: A results folder with a `metrics.jsonl`, or the path of such a file; or several.
        output: A `.png`, `.svg` or `.pdf`; None for `metrics.png` in the folder, and for several
            runs in the working folder.

    Returns:
        The path of the picture.

    Raises:
        FileNotFoundError: If a folder has no such file, or the output's folder is missing.
        ValueError: If a line is damaged, or matplotlib does not know the format of the output.
    """
    given = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    files = [Path(one) if Path(one).is_file() else Path(one) / METRICS for one in given]
    usual = files[0].with_name("metrics.png") if len(files) == 1 else Path("metrics.png")
    target = usual if output is None else Path(output)
    _draw(dict(zip(_names(given), map(read_metrics, files), strict=True)), target)
    return target


def _names(given: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Names of runs for legends: their paths without the folder that holds all of them."""
    names = [str(one) for one in given]
    if len(names) < 2 or len({*names}) < len(names):
        return names
    top = os.path.commonpath([Path(name).absolute().parent for name in names])
    return [os.path.relpath(Path(name).absolute(), top) for name in names]


def _draw(runs: dict[str, Lines], target: Path) -> None:
    # a figure without pyplot needs no display and leaves no state behind
    from matplotlib.figure import Figure

    lines_of_all = [line for lines in runs.values() for line in lines]
    metrics = dict.fromkeys(n for line in lines_of_all for n, v in line.items() if _is_metric(n, v))
    figure = Figure(figsize=(12, 3.5 * (1 + -(-len(metrics) // 2))), layout="constrained")
    loss, noise, *others = figure.subplots(1 + -(-len(metrics) // 2), 2).flat
    for spare in others[len(metrics) :]:
        spare.remove()
    for number, (name, lines) in enumerate(runs.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        prefix = f"{name}: " if len(runs) > 1 else ""
        _draw_loss(loss, lines, colour, prefix)
        _draw_noise(noise, lines, colour, prefix)
        for axes, metric in zip(others, metrics, strict=False):
            label = "_" if number else "real clips"
            _curve(axes, lines, metric + _OF_REAL_CLIPS, "grey", label)
            _curve(axes, lines, metric, colour, name if len(runs) > 1 else "samples")
    for axes, title in zip(
        (loss, noise, *others), ("loss", "loss by noise", *metrics), strict=False
    ):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3, which="both")
        if axes.dataLim.y1 > 0 and (axes in (loss, noise) or title in _LOGARITHMIC):
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend(fontsize="small")
    noise.set(xlabel="time step t, % of the schedule (0: clean, 100: noise)", xlim=(0, 100))
    names = ", ".join(runs)
    figure.suptitle(names if len(names) < 100 else f"{len(runs)} runs")
    figure.savefig(target, dpi=110)


def _is_metric(name: str, value: Any) -> bool:
    is_other = name in _OTHERS or name.startswith(_VALIDATION) or name.endswith(_OF_REAL_CLIPS)
    return isinstance(value, (int, float)) and not is_other


def _draw_loss(axes: Any, lines: Lines, colour: str, prefix: str) -> None:
    is_alone = not prefix
    _curve(axes, lines, "loss", colour, f"{prefix}training")
    names = sorted({name for line in lines for name in line if name.startswith(_VALIDATION)})
    for number, name in enumerate(names if is_alone else names[:1], 1):
        kind = name.removeprefix(_VALIDATION).replace("_ema_", ", average of ")
        shade = _COLOURS[number % len(_COLOURS)] if is_alone else colour
        style = "o-" if is_alone else "o--"
        label = f"{prefix}validation{kind}"
        axes.plot(*_points(lines, name), style, color=shade, markersize=3, label=label)
    skipped = [line["step"] for line in lines if line.get("event") == "skipped step"]
    if skipped:
        # along the lower edge, whatever the losses are
        edge = axes.get_xaxis_transform()
        shade, label = ("black", "skipped steps") if is_alone else (colour, "_")
        heights = np.full(len(skipped), 0.02)
        axes.plot(skipped, heights, "|", markersize=10, color=shade, label=label, transform=edge)


def _draw_noise(axes: Any, lines: Lines, colour: str, prefix: str) -> None:
    """Draws losses by noise level at the end of the run, and of a single run also at its start."""
    last = max((line["step"] for line in lines), default=0)
    for what, style in (("training", "o-"), ("validation", "o--")):
        name = "loss_by_noise" if what == "training" else "validation_by_noise"
        rows = [line for line in lines if isinstance(line.get(name), list)]
        recent = [line for line in rows if line["step"] > last * (1 - _RECENT)] or rows[-1:]
        early = [line for line in rows if line["step"] <= last * _RECENT]
        parts = {"last": (recent, colour if prefix or what == "training" else _COLOURS[1])}
        if what == "training" and not prefix and early and early[-1] is not rows[-1]:
            parts = {"first": (early, "lightgrey"), **parts}
        for part, (chosen, shade) in parts.items():
            if chosen:
                means = _mean_of([line[name] for line in chosen])
                edges = np.linspace(0, 100, len(means) + 1)
                middles = (edges[1:] + edges[:-1]) / 2
                label = f"{prefix}{what}, {part} {_RECENT:.0%} of the steps"
                axes.plot(middles, means, style, color=shade, markersize=4, label=label)


def _mean_of(rows: list[list[float | None]]) -> np.ndarray:
    """Mean of each noise level over the lines that have it; NaN if none has."""
    values = np.array(rows, dtype=float)
    count = np.isfinite(values).sum(axis=0)
    return np.where(count, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _curve(axes: Any, lines: Lines, name: str, colour: str, label: str) -> None:
    """Draws a metric over the steps; many points thin, with their running mean over them."""
    steps, values = _points(lines, name)
    if not len(steps):
        return
    if len(steps) <= _SMOOTHED:
        axes.plot(steps, values, color=colour, label=label, marker=".")
        return
    every = -(-len(steps) // _DRAWN)
    window = max(2, len(steps) // _SMOOTHED)
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps[::every], values[::every], color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps[window - 1 :: every], means[::every], color=colour, label=label)


def _points(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [line for line in lines if isinstance(line.get(name), (int, float))]
    return np.array([line["step"] for line in found]), np.array([line[name] for line in found])
