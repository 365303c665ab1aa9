"""The benchmark of evenly spread times: what it compares differs in the times alone."""

import importlib
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("even_times")


def test_draws_differ_in_their_times(benchmark):
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=2, timesteps=1000)
    seeds = range(64)
    even, independent = (
        draws(diffusion)(seeds, 2) for draws in (benchmark.ClipDraws, benchmark.IndependentDraws)
    )
    assert torch.equal(even["noise"], independent["noise"])
    assert not torch.equal(even["t"], independent["t"])

    def emptiest(t):
        return torch.histc(t.float(), bins=16, min=0, max=1000).min()

    # in each sixteenth of the time about 4 of 64
    assert emptiest(even["t"]) >= 3
    assert emptiest(independent["t"]) < 3


def test_it_prints_tables(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "HELD_OUT", 2)
    few = ["--steps", "1", "--batch", "1", "--clips", "2", "--batches", "2", "--seeds", "0"]
    benchmark.main(few)
    benchmark.main([*few, "--train"])
    out = capsys.readouterr().out
    assert out.count("\n| ") == 6
    assert "| 32 |" in out
