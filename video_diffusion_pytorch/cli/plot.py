"""`video-diffusion plot`: the metrics of a run, or of several side by side, as a picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from video_diffusion_pytorch.training.metrics import read_metrics

HELP = "draw the numbers of a run, or of several"

Lines = list[dict[str, Any]]

METRICS = "metrics.jsonl"
_VALIDATION = "validation_loss"
_SMOOTHED = 40  # curves of more points are thin, under their running mean
_DRAWN = 2000  # points of a curve at the most: a picture has no room for more
_RECENT = 0.2  # share of a run, its end, over which losses by noise are averaged
# what an evaluation measures: title, unit and scale, drawn where it is recorded
_SCORES = {
    "fvd": ("Frechet video distance", "distance", "log"),
    "random_feature_distance": ("Distance by random features", "distance", "log"),
    "inception_score": ("Inception score", "score", "linear"),
    "fid_avg": ("FID of frames, mean", "distance", "log"),
    "fid_first": ("FID of first frames", "distance", "log"),
    "is_avg": ("Inception score of frames, mean", "score", "linear"),
    "is_first": ("Inception score of first frames", "score", "linear"),
    "psnr": ("PSNR of predicted frames", "dB", "linear"),
    "ssim": ("SSIM of predicted frames", "similarity", "linear"),
    "lpips": ("LPIPS of predicted frames", "distance", "linear"),
}
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")


def make_parser() -> ArgumentParser:
    """The options of `plot`."""
    parser = ArgumentParser(
        exit_on_error=False,
        allow_abbrev=False,
        usage="video-diffusion plot FOLDER [FOLDER ...] [-o OUTPUT]",
        description="Draws the losses, learning rate, gradient norm and speed of a run, or of "
        "several to compare.",
    )
    add = parser.add_argument
    add("folders", type=str, nargs="+", help="Results folders, each with a metrics.jsonl.")
    output = "A .png, .svg or .pdf; null for metrics.png, in the results folder if it is one run."
    add("-o", "--output", type=str | None, help=output)
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Draws the metrics of runs."""
    say(f"wrote {plot_run(options.folders, options.output)}")


def plot_run(
    folder: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None = None,
) -> Path:
    """Draws the losses, learning rate, gradient norm and speed of a run, or of several to compare.

    Scores of `evaluate_every` follow below them.

    Of several runs the validation losses of averaged weights are left out, where there are others.

    Args:
        folder: A results folder with a `metrics.jsonl`, or the path of such a file; or several.
        output: A `.png`, `.svg` or `.pdf`; None for `metrics.png` in the folder, and for several
            in the working folder.

    Returns:
        The picture's path.

    Raises:
        FileNotFoundError: If a folder has no such file, or the output's folder is missing.
        ValueError: If there is nothing to draw, a line is damaged, or the output is of another
            format.
    """
    given = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    if not given:
        raise ValueError("plot: expected at least one results folder, got none; name one")
    paths = [Path(one) for one in given]
    files = [path / METRICS if not path.is_file() else path for path in paths]
    target = Path(output) if output is not None else _usual_output(files)
    runs = {}
    for path, file in zip(paths, files, strict=True):
        lines = read_metrics(file)
        if not any(_is_drawn(line) for line in lines):
            raise ValueError(
                f"plot: expected a line with a loss in {file}, got {len(lines)} lines without; "
                "train until the first numbers are written"
            )
        runs[str(path)] = lines
    _check_output(target)
    _draw(runs, target)
    return target


def _usual_output(files: Sequence[Path]) -> Path:
    return files[0].with_name("metrics.png") if len(files) == 1 else Path("metrics.png")


def _check_output(target: Path) -> None:
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ValueError(
            f"plot: the output must end in .png, .svg or .pdf, got {target}; rename it, as in "
            f"{target.with_suffix('.png')}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"plot: expected a folder at {target.parent} to write {target.name} into, found none; "
            "create it first"
        )


def _is_drawn(line: dict[str, Any]) -> bool:
    return any(line.get(name) is not None for name in ("loss", _VALIDATION))


# the picture


def _draw(runs: dict[str, Lines], target: Path) -> None:
    # a figure without pyplot needs no display and leaves no state behind
    from matplotlib.figure import Figure

    recorded = {name for lines in runs.values() for line in lines for name in line}
    scores = [name for name in _SCORES if name in recorded]
    rows = 3 + -(-len(scores) // 2)
    figure = Figure(figsize=(12, 3.5 * rows), layout="constrained")
    loss, noise, rate, norm, speed, wait, *others = figure.subplots(rows, 2).flat
    of_score = dict(zip(scores, others, strict=False))
    for spare in others[len(scores) :]:
        spare.remove()
    for number, (name, lines) in enumerate(runs.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        begin = f"{name}: " if len(runs) > 1 else ""
        _draw_loss(loss, lines, colour, begin, alone=len(runs) == 1)
        _draw_noise(noise, lines, colour, begin, alone=len(runs) == 1)
        _curve(rate, lines, "lr", colour, name, smooth=False)
        _curve(norm, lines, "grad_norm", colour, name)
        _curve(speed, lines, "clips_per_second", colour, name)
        _curve(wait, lines, "data_wait", colour, name, scale=100.0)
        for score, axes in of_score.items():
            _curve(axes, lines, score, colour, name, smooth=False)
    told = {
        loss: ("Loss", "loss", "log"),
        noise: ("Loss by noise level", "loss", "log"),
        rate: ("Learning rate", "learning rate", "linear"),
        norm: ("Gradient norm, before clipping", "norm", "log"),
        speed: ("Speed, all processes", "clips per second", "linear"),
        wait: ("Time spent waiting for clips", "share of a step (%)", "linear"),
        **{axes: _SCORES[score] for score, axes in of_score.items()},
    }
    for axes, (title, unit, scale) in told.items():
        _finish(axes, title, unit, scale)
    noise.set(xlabel="time step t, % of the schedule (0: clean, 100: noise)", xlim=(0, 100))
    names = ", ".join(runs)
    figure.suptitle(names if len(names) < 100 else f"{len(runs)} runs")
    figure.savefig(target, dpi=110)


def _finish(axes: Any, title: str, unit: str, scale: str) -> None:
    """Titles, units and grid; the legend where there is more than one thing to tell apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.set(title=title, ylabel=unit, xlabel="step")
    axes.grid(alpha=0.3, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=(1, 2, 5, 10)))
    if not axes.get_lines():
        axes.text(0.5, 0.5, "not recorded", ha="center", va="center", transform=axes.transAxes)
        return
    highest = axes.dataLim.y1
    if scale == "log" and highest > 0:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        # within less than two decades powers of ten alone would tell too little
        is_narrow = high / low < 100
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 3, 5) if is_narrow else (2, 5)))
        axes.yaxis.set_minor_formatter(plain if is_narrow else NullFormatter())
    elif scale == "linear":
        axes.set_ylim(0, 1.1 * highest if highest > 0 else 1)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize="small")


def _draw_loss(axes: Any, lines: Lines, colour: str, begin: str, alone: bool) -> None:
    _curve(axes, lines, "loss", colour, f"{begin}training")
    names = sorted({name for line in lines for name in line if name.startswith(_VALIDATION)})
    if not alone:
        # the curves of the averages would bury the other runs
        names = names[:1]
    for number, name in enumerate(names):
        kind = name.removeprefix(_VALIDATION).strip("_").replace("ema_", "average of ")
        label = f"{begin}validation{f', {kind}' if kind else ''}"
        shade = _COLOURS[(number + 1) % len(_COLOURS)] if alone else colour
        style = "-" if alone else "--"
        steps, values = _points(lines, name)
        axes.plot(steps, values, style, color=shade, marker="o", markersize=3, label=label)
    skipped = [line["step"] for line in lines if line.get("event") == "skipped step"]
    if skipped:
        axes.plot(
            skipped,
            np.zeros(len(skipped)) + 0.02,
            linestyle="none",
            marker="|",
            markersize=10,
            color="black" if alone else colour,
            label="skipped steps" if alone else None,
            # along the lower edge, whatever the losses are
            transform=axes.get_xaxis_transform(),
        )


def _draw_noise(axes: Any, lines: Lines, colour: str, begin: str, alone: bool) -> None:
    """Losses at the end of the run, and of a run alone those at its start beside them."""
    last = max(line["step"] for line in lines)
    for name, style, what in (
        ("loss_by_noise", "-", "training"),
        ("validation_by_noise", "--", "validation"),
    ):
        rows = [line for line in lines if isinstance(line.get(name), list)]
        recent = [line for line in rows if line["step"] > last * (1 - _RECENT)] or rows[-1:]
        early = [line for line in rows if line["step"] <= last * _RECENT]
        if alone and name == "loss_by_noise" and early and early[-1] is not rows[-1]:
            label = f"{what}, first {_RECENT:.0%} of the steps"
            _bars(axes, _mean_of([line[name] for line in early]), "lightgrey", style, label)
        if recent:
            label = f"{begin}{what}, last {_RECENT:.0%} of the steps"
            shade = _COLOURS[1] if alone and name != "loss_by_noise" else colour
            _bars(axes, _mean_of([line[name] for line in recent]), shade, style, label)


def _bars(axes: Any, values: np.ndarray, colour: str, style: str, label: str) -> None:
    edges = np.linspace(0, 100, len(values) + 1)
    axes.plot(
        (edges[1:] + edges[:-1]) / 2, values, style, color=colour, marker="o", ms=4, label=label
    )


def _mean_of(rows: list[list[float | None]]) -> np.ndarray:
    """Mean of each range, over the lines in which it has a number; NaN where none has."""
    values = np.array(rows, dtype=float)
    count = np.isfinite(values).sum(axis=0)
    return np.where(count, np.nansum(values, axis=0) / np.maximum(count, 1), np.nan)


def _curve(
    axes: Any,
    lines: Lines,
    name: str,
    colour: str,
    label: str,
    *,
    scale: float = 1.0,
    smooth: bool = True,
) -> None:
    """A curve over the steps: of many points, thin, with their running mean over it."""
    steps, values = _points(lines, name)
    values = values * scale
    if not len(steps):
        return
    if len(steps) <= _SMOOTHED:
        axes.plot(steps, values, color=colour, label=label, marker=".")
        return
    every = -(-len(steps) // _DRAWN)
    if not smooth:
        axes.plot(steps[::every], values[::every], color=colour, label=label)
        return
    window = max(2, len(steps) // _SMOOTHED)
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    axes.plot(steps[::every], values[::every], color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps[window - 1 :: every], means[::every], color=colour, label=label)


def _points(lines: Lines, name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [
        (line["step"], line[name]) for line in lines if isinstance(line.get(name), (int, float))
    ]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps), np.array(values, dtype=float)
