import io
import random
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.training.checkpoint_file import write_checkpoint

STATE = {"step": 3, "model": {"w": torch.ones(2)}, "ema": {}, "random_states": [{"a": (1, [2])}]}


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import kill_and_resume

    return kill_and_resume


def test_a_run_that_is_killed_twice_ends_as_one_that_is_left_alone(benchmark):
    with redirect_stdout(io.StringIO()) as out:
        code = benchmark.main(["--kills", "2", "--per-run", "2", "--seed", "1"])
    assert code == 0, out.getvalue()
    assert "2 kills, 1 of 1 ends bit-identical, 0 checkpoints lost" in out.getvalue()
    rows = re.findall(r"^\| 1 \| (\d+) \| (\w+) \|", out.getvalue(), re.MULTILINE)
    assert len(rows) == 2
    # both fell into the training
    assert all(0 < int(step) < 12 for step, _ in rows)
    assert "starting" not in dict(rows).values()


def test_moments_are_spread_over_phases_and_steps(benchmark):
    moments = benchmark.draw_moments(20, random.Random(0))
    assert all(sum(m.aim == aim for m in moments) == 5 for aim in benchmark.AIMS)
    assert all(m.step in benchmark.AIMS[m.aim] for m in moments)
    assert len({m.step for m in moments}) > 7


def test_lost_checkpoints_are_found(benchmark, tmp_path):
    for number in (1, 2):
        write_checkpoint({**STATE, "step": 3 * number}, tmp_path / f"model-{number}.pt")
    assert benchmark.look_after(tmp_path, 6) == (6, [])
    assert benchmark.look_after(tmp_path, 9) == (6, ["that of step 9"])
    newest = tmp_path / "model-2.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert benchmark.look_after(tmp_path, 6) == (3, ["model-2.pt", "that of step 6"])


def test_the_smallest_difference_is_found(benchmark):
    def names(**changed):
        return [*benchmark.differing(STATE, {**STATE, **changed}, "")]

    assert names() == []
    assert names(step=4) == ["step"]
    assert names(step=3.0) == ["step"]
    ulp = torch.nextafter(torch.ones(2), torch.tensor(2.0))
    assert names(model={"w": ulp}) == ["model.w"]
    assert names(model={"w": torch.ones(2).double()}) == ["model.w"]
    assert names(model={"v": torch.ones(2)}) == ["model"]
    assert names(random_states=[{"a": (1, [3])}]) == ["random_states.0.a.1.0"]
    assert names(random_states=[]) == ["random_states"]
