"""Forecasts with a known distribution: the process, and the scores of ideal members."""

import importlib.util
import math
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def linear():
    spec = importlib.util.spec_from_file_location(
        "linear_forecasts", BENCHMARKS / "linear_forecasts.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_trajectories_are_stationary_and_drift(linear):
    process = linear.LinearFields()
    x = process.trajectories(400, 6, generator())
    assert x.var(dim=(0, 2, 3)).sub(1).abs().max() < 0.03
    # most like the next frame where the drift has brought it
    overlaps = [(x[:, 0] * x[:, 1].roll(-shift, -1)).mean().item() for shift in range(-2, 5)]
    assert overlaps.index(max(overlaps)) == 3


def test_the_mean_is_that_of_a_matrix(linear):
    """One step is a linear map: of a shift and a blur, of real fields."""
    process = linear.LinearFields(size=6)
    unit = torch.eye(36, dtype=torch.float64).view(36, 6, 6)
    matrix = process.mean(unit, 1).view(36, 36).T
    x = torch.randn(3, 6, 6, dtype=torch.float64, generator=generator())
    powers = torch.stack(
        [x.view(3, 36) @ torch.linalg.matrix_power(matrix.T, n) for n in (1, 2, 3)]
    )
    torch.testing.assert_close(process.mean(x, 3), powers.transpose(0, 1).reshape(3, 3, 6, 6))


def test_ideal_members_have_the_mean_and_deviation(linear):
    process = linear.LinearFields(size=8)
    start = process.trajectories(1, 1, generator())[:, 0]
    members = process.ideal(start, 6000, 4, generator(1))[0]
    mean, deviation = process.mean(start, 4)[0], process.deviation(4)
    # by chance at most five standard errors
    assert (members.mean(dim=0) - mean).abs().max() < 5 * deviation.max() / math.sqrt(6000)
    found = members.var(dim=0).mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(found, deviation, rtol=0.01, atol=0)


@pytest.mark.parametrize("members", [3, 8])
def test_scores_of_ideal_members_are_those_of_theory(linear, members):
    process, count, frames = linear.LinearFields(), 1500, 4
    clips = process.trajectories(count, 1 + frames, generator())
    found = linear.scores_of(
        process.ideal(clips[:, 0], members, frames, generator(1)), clips[:, 1:]
    )
    for name, wanted in linear.theory(process, frames, members).items():
        torch.testing.assert_close(found[name], wanted, rtol=0.015, atol=0, msg=name)


def test_the_benchmark_runs(linear, capsys, monkeypatch):
    monkeypatch.setattr(linear, "MEMBERS", 2)
    linear.main(["--steps", "2", "--count", "2", "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 steps in ")
    assert len(lines) == 4 + linear.LEAD
