"""The benchmark that shows how long models train, at a size that takes seconds."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from video_diffusion_pytorch.training import evaluate as validation

SMALL = ["--clips", "4", "--held-out", "4", "--count", "4"]


@pytest.fixture
def table(monkeypatch):
    """Runs the benchmark; gives the rows that it printed last, minutes left out."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    # each clip with one time step instead of a dozen
    monkeypatch.setattr(validation, "_LEAST", 1)
    import look_by_steps

    monkeypatch.setitem(look_by_steps.UNET, "dim_mults", (1,))
    monkeypatch.setattr(look_by_steps, "TIMESTEPS", 4)
    monkeypatch.setattr(look_by_steps, "SAMPLING_STEPS", 2)

    def run(folder, dims, steps):
        words = ["--dims", *map(str, dims), "--steps", *map(str, steps)]
        with redirect_stdout(io.StringIO()) as out:
            look_by_steps.main(["--folder", str(folder), *words, *SMALL])
        lines = out.getvalue().split(look_by_steps.HEAD)[-1].strip().splitlines()
        assert "\n".join(lines) in (folder / "table.md").read_text()
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        return [row[:3] + row[4:] for row in cells]

    return run


@pytest.mark.filterwarnings("ignore:frechet_distance. a covariance:UserWarning")
def test_models_are_measured_also_by_a_run_that_goes_on(table, tmp_path):
    whole = table(tmp_path / "whole", [4], [1, 3])
    assert table(tmp_path / "parts", [4], [1]) == [whole[0], whole[-1]]
    *rows, real = table(tmp_path / "parts", [4, 8], [1, 3])
    assert [*rows[:2], real] == whole
    assert [(row[0], row[2]) for row in rows] == [("4", "1"), ("4", "3"), ("8", "1"), ("8", "3")]
    assert float(rows[0][1]) < float(rows[2][1])
    for row in (*rows, real):
        assert all(re.fullmatch(r"\d+\.\d{4}", cell) for cell in row[3:] if cell)
    assert real[0] == "real clips"
    with Image.open(tmp_path / "parts" / "look_by_steps.png") as picture:
        assert picture.width > 500
        assert picture.height > 400
