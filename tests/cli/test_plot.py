"""The numbers of runs as a picture."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.cli import plot
from video_diffusion_pytorch.cli.plot import plot_run

BY_NOISE = [2.0, 1.0, None, *[0.5] * 7]


def training(step, **others):
    return {
        "step": step, "time": 1.7e9, "loss": 1 / step, "lr": 1e-4, "grad_norm": 2.0,
        "clips_per_second": 30.0, "data_wait": 0.25, "memory_mib": 100.0, "steps": 1,
        "loss_by_noise": [None if x is None else x / step for x in BY_NOISE], **others,
    }  # fmt: skip


def validation(step):
    return {
        "step": step, "time": 1.7e9, "validation_loss": 2 / step,
        "validation_loss_ema_0.995": 3 / step, "validation_by_noise": BY_NOISE,
    }  # fmt: skip


@pytest.fixture
def run_with(tmp_path):
    """Makes a results folder with lines."""

    def make(*lines, name="results"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        return folder

    return make


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn."""
    from matplotlib.figure import Figure

    drawn, saving = [], Figure.savefig

    def remember(figure, *args, **kwargs):
        drawn.append(figure)
        saving(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", remember)
    return drawn


def curves(axes):
    """The named curves, as lists of points."""
    return {
        line.get_label(): np.stack(line.get_data(), axis=1).tolist()
        for line in axes.get_lines()
        if not line.get_label().startswith("_")
    }


def test_a_run_as_a_picture(run_with, figures):
    skipped = {"step": 3, "time": 1.0, "event": "skipped step", "clips": [1]}
    folder = run_with(*map(training, range(1, 11)), validation(5), validation(10), skipped)
    assert plot_run(folder) == folder / "metrics.png"
    with Image.open(folder / "metrics.png") as image:
        assert min(image.size) > 800
    (figure,) = figures
    loss, noise, rate, norm, speed, wait = figure.axes
    steps = range(1, 11)
    assert curves(loss) == {
        "training": [[step, 1 / step] for step in steps],
        "validation": [[5, 0.4], [10, 0.2]],
        "validation, average of 0.995": [[5, 0.6], [10, 0.3]],
        "skipped steps": [[3, 0.02]],
    }
    by_noise = curves(noise)
    assert by_noise.keys() == {
        "training, first 20% of the steps",
        "training, last 20% of the steps",
        "validation, last 20% of the steps",
    }
    middles, early = zip(*by_noise["training, first 20% of the steps"], strict=True)
    assert middles == tuple(range(5, 100, 10))
    expected = [math.nan if x is None else x * (1 + 1 / 2) / 2 for x in BY_NOISE]
    np.testing.assert_allclose(early, expected)
    late = [value for _, value in by_noise["training, last 20% of the steps"]]
    np.testing.assert_allclose(late[0], 2 * (1 / 9 + 1 / 10) / 2)
    for axes, value in ((rate, 1e-4), (norm, 2.0), (speed, 30.0), (wait, 0.25)):
        (line,) = axes.get_lines()
        assert set(line.get_ydata()) == {value}
        assert list(line.get_xdata()) == list(steps)
    for axes in figure.axes:
        assert axes.get_xlabel()
        assert axes.get_title()


def test_scores_follow_below(run_with, figures):
    scored = [
        {"step": step, "time": 1.7e9, "fvd": 9 / step, "psnr": 20.0 + step, "ssim": 0.5}
        for step in (2, 4)
    ]
    folders = run_with(training(1), *scored), run_with(training(1), scored[0], name="other")
    plot_run(folders[0])
    plot_run(folders, folders[0] / "both.png")
    for figure, runs in zip(figures, (1, 2), strict=True):
        axes = {one.get_title(): one for one in figure.axes}
        assert len(axes) == 6 + 3
        fvd = axes["fvd"]
        assert fvd.get_yscale() == "log"
        assert len(fvd.get_lines()) == runs
        assert fvd.get_lines()[0].get_xydata().tolist() == [[2, 4.5], [4, 2.25]]
        assert axes["psnr"].get_yscale() == "linear"


def test_scores_of_real_clips_are_drawn_with_those_of_videos(run_with, figures):
    scores = {"flicker_distance": 0.9, "flicker_distance_real": 0.1}
    lines = [{"step": step, "time": 1.7e9, **scores} for step in (2, 4)]
    folder = run_with(training(1), *lines)
    plot_run(folder)
    plot_run([folder, run_with(training(1), *lines, name="other")], folder / "both.png")
    for figure, runs in zip(figures, (1, 2), strict=True):
        axes = {one.get_title(): one for one in figure.axes}
        assert "flicker_distance_real" not in axes
        found = curves(axes["flicker_distance"])
        assert len(found) == runs + 1
        assert found.pop("real clips") == [[2, 0.1], [4, 0.1]]
        assert all(points == [[2, 0.9], [4, 0.9]] for points in found.values())
        assert axes["flicker_distance"].get_yscale() == "log"


def test_runs_are_compared(run_with, figures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [
        run_with(*[training(step, loss=number) for step in (1, 2)], validation(2), name=name)
        for number, name in enumerate(("one", "two"), 1)
    ]
    assert str(plot_run(folders)) == "metrics.png"
    assert (tmp_path / "metrics.png").is_file()
    loss, noise, rate, *_ = figures[0].axes
    one, two = "one", "two"
    assert curves(loss) == {
        f"{one}: training": [[1, 1], [2, 1]],
        f"{one}: validation": [[2, 1]],
        f"{two}: training": [[1, 2], [2, 2]],
        f"{two}: validation": [[2, 1]],
    }
    assert len(curves(noise)) == 4
    assert curves(rate).keys() == {one, two}
    colours = {line.get_color() for line in rate.get_lines()}
    assert len(colours) == 2


def test_a_long_run_is_smoothed_and_thinned(run_with, figures):
    steps = range(1, 10_001)
    lines = [{"step": step, "loss": 1 + (-1) ** step / 2, "lr": 1.0} for step in steps]
    plot_run(run_with(*lines))
    thin, smooth = figures[0].axes[0].get_lines()
    assert len(thin.get_xdata()) <= plot._DRAWN
    assert len(smooth.get_xdata()) <= plot._DRAWN
    np.testing.assert_allclose(smooth.get_ydata(), 1)
    assert smooth.get_xdata()[0] == 250
    assert smooth.get_xdata()[-1] > 9_990


def test_a_run_without_numbers_is_an_empty_picture(run_with, figures):
    plot_run(run_with())
    plot_run(run_with({"step": 1, "loss": 0.0, "grad_norm": None}))
    empty, zero = figures
    assert [len(axes.get_lines()) for axes in empty.axes] == [0, 0]
    assert curves(zero.axes[0]) == {"training": [[1, 0]]}
    assert zero.axes[0].get_yscale() == "linear"


def test_a_run_with_validation_only(run_with, figures):
    plot_run(run_with(validation(5)))
    assert len(curves(figures[0].axes[0])) == 2


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf", ".PNG"])
def test_output_is_of_the_format_of_its_name(run_with, tmp_path, ending):
    target = tmp_path / f"picture{ending}"
    path = run_with(training(1)) / "metrics.jsonl"
    assert plot_run(path, target) == target
    begin = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending.lower()]
    assert target.read_bytes().startswith(begin)


def test_mistakes_are_named(run_with, tmp_path):
    folder = run_with(training(1))
    with pytest.raises(ValueError, match="Format 'txt' is not supported"):
        plot_run(folder, tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError, match=r"gone/a\.png"):
        plot_run(folder, tmp_path / "gone" / "a.png")
    with pytest.raises(FileNotFoundError, match=r"numbers of a run at .*metrics\.jsonl, found no"):
        plot_run(tmp_path)
    (folder / "metrics.jsonl").write_text("none\n")
    with pytest.raises(ValueError, match="in line 1; remove that line"):
        plot_run(folder)
