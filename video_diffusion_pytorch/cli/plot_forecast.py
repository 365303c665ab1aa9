"""Plots of verified forecasts: scores by lead time, rank histogram, spectra, and a panel of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.evaluation.results import read_result
from video_diffusion_pytorch.training.verification import MODEL

_MEMBERS = 3  # members that are shown
_CHANNELS = 4  # channels that are drawn
_COLOURS = ("tab:blue", "tab:grey", "tab:olive", "tab:orange", "tab:purple")
_FPS = 4.0
_LEAST_ENERGY = 1e-9  # share of the largest energy that is drawn


def plot_forecast(path: Path, output: Path | None = None) -> list[Path]:
    """Plots a result of `evaluate --forecast`.

    Args:
        path: The result; the forecast that is shown is in the `.npz` of the same name, if there is
            one.
        output: The picture; None for a `.png` of the same name.

    Returns:
        The picture, and, beside it, the panel as a `.gif`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a result of a verification.
    """
    result = read_result(path)
    if "by_lead_time" not in result:
        raise ValueError(
            f"plot: {path} must be a result with scores by lead time, got one without; give one of "
            "evaluate --forecast, or a results folder"
        )
    target = path.with_suffix(".png") if output is None else output
    _draw(result, target)
    example = path.with_suffix(".npz")
    if not example.exists():
        return [target]
    with np.load(example) as arrays:
        frames = _panel({name: arrays[name] for name in arrays}, result["channels"])
    panel = target.with_suffix(".gif")
    write_video(torch.from_numpy(frames).permute(3, 0, 1, 2), panel, fps=_FPS)
    return [target, panel]


def _array(values: Any) -> np.ndarray:
    """Scores, NaN where there is none."""
    return np.array(values, dtype=float)


def _draw(result: Mapping[str, Any], target: Path) -> None:
    # a figure without pyplot needs no display and leaves no state behind
    from matplotlib.figure import Figure

    scores, names = result["by_lead_time"], result["channels"][:_CHANNELS]
    figure = Figure(figsize=(16, 3.6 * len(names)), layout="constrained")
    rows = figure.subplots(len(names), 4, squeeze=False)
    for channel, (name, row) in enumerate(zip(names, rows, strict=True)):
        own = {
            forecast: {n: _array(v[channel]) for n, v in found.items() if _has_channels(n)}
            for forecast, found in scores.items()
        }
        title = "" if len(result["channels"]) == 1 else f", channel {name}"
        _draw_errors(row[0], own, f"CRPS{title}")
        _draw_spread(row[1], own[MODEL], f"error and spread{title}")
        _draw_ranks(row[2], own[MODEL]["rank_histogram"], f"rank of the truth{title}")
        _draw_spectra(row[3], own[MODEL], f"energy by wavenumber, last frame{title}")
    figure.savefig(target, dpi=110)


def _has_channels(score: str) -> bool:
    return score != "nominal_coverage" and not score.endswith(("divergence", "enstrophy"))


def _draw_errors(axes: Any, scores: Mapping[str, Mapping[str, np.ndarray]], title: str) -> None:
    for (name, found), colour in zip(scores.items(), _COLOURS, strict=False):
        lead = np.arange(1, len(found["crps"]) + 1)
        axes.plot(lead, found["crps"], "o-", markersize=3, color=colour, label=name)
    axes.set(title=title, xlabel="lead time, frames", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_spread(axes: Any, found: Mapping[str, np.ndarray], title: str) -> None:
    lead, m = np.arange(1, len(found["rmse"]) + 1), found["rank_histogram"].shape[-1] - 1
    axes.plot(lead, found["rmse"], "o-", markersize=3, label="RMSE of the mean")
    # so that equal lines mean a right spread for this number of members
    spread = math.sqrt((m + 1) / m) * found["spread"]
    axes.plot(lead, spread, "o--", markersize=3, label="spread of the members")
    axes.set(title=title, xlabel="lead time, frames", ylim=(0, None))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _draw_ranks(axes: Any, ranks: np.ndarray, title: str) -> None:
    """Bars of the mean over lead times, and the share that each has if the members are right."""
    mean = ranks.mean(axis=0)
    axes.bar(np.arange(len(mean)), mean, width=0.9)
    axes.axhline(1 / len(mean), color="black", linewidth=1, label="exchangeable members")
    # room for the legend
    axes.set(title=title, xlabel="members below the truth", ylim=(0, 1.2 * mean.max()))
    axes.legend(fontsize="small")


def _draw_spectra(axes: Any, found: Mapping[str, np.ndarray], title: str) -> None:
    if "truth_spectrum" not in found:
        axes.set(title=f"{title}: values are missing")
        return
    most = 0.0
    for name, style in (("truth", "k-"), ("members", "-")):
        energy = found[f"{name}_spectrum"][-1][1:]
        axes.loglog(np.arange(1, len(energy) + 1), energy, style, label=name)
        most = max(most, np.nanmax(energy))
    axes.set(title=title, xlabel="waves per side")
    if most:
        axes.set_ylim(_LEAST_ENERGY * most, 3 * most)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize="small")


def _panel(arrays: Mapping[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Frames `(f, h, w, 3)` of the truth, some members, their mean and their spread."""
    truth, members = arrays["truth"], arrays["members"]
    shown = {"truth": truth, **{f"member {i + 1}": one for i, one in enumerate(members[:_MEMBERS])}}
    shown["mean"] = members.mean(axis=0)
    spread = members.std(axis=0, ddof=1)
    return np.stack([_frame(shown, spread, frame, names) for frame in range(truth.shape[1])])


def _frame(
    shown: Mapping[str, np.ndarray], spread: np.ndarray, frame: int, names: list[str]
) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = min(len(names), _CHANNELS)
    height, width = spread.shape[-2:]
    size = (2 * (len(shown) + 1), (2 * height / width + 0.35) * count + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(count, len(shown) + 1, squeeze=False)
    for channel, row in enumerate(rows):
        truth = shown["truth"][channel]
        limits = {"vmin": np.nanmin(truth), "vmax": np.nanmax(truth)}
        for axes, (title, video) in zip(row, shown.items(), strict=False):
            axes.imshow(video[channel, frame], cmap="viridis", **limits)
            axes.set(title=title, xticks=[], yticks=[])
        high = np.nanmax(spread[channel]) or 1.0
        row[-1].imshow(spread[channel, frame], cmap="magma", vmin=0, vmax=high)
        row[-1].set(title="spread", xticks=[], yticks=[])
        if len(names) > 1:
            row[0].set_ylabel(names[channel])
    figure.suptitle(f"frame {frame + 1}", fontsize="medium")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
