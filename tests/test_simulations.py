"""The simulations of the benchmarks, against solutions that are known."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SIZE = 32


@pytest.fixture
def simulations(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import simulations

    yield simulations
    sys.modules.pop("simulations")


def grid():
    axis = torch.arange(SIZE, dtype=torch.float64) * 2 * math.pi / SIZE
    return axis.expand(SIZE, SIZE), axis[:, None].expand(SIZE, SIZE)


# Turbulence


def test_a_taylor_green_vortex_only_decays(simulations):
    """An exact solution: the advection of these vortices by themselves is zero."""
    x, y = grid()
    start = (2 * torch.cos(2 * x) * torch.cos(2 * y))[None, None]
    flow = simulations.Turbulence(viscosity=0.02, drag=0.05, forcing=0.0)
    found = flow.advance(start, 0.5)
    decay = math.exp(-(0.02 * 8 + 0.05) * 0.5)
    torch.testing.assert_close(found, start * decay, rtol=0, atol=1e-10)


def test_the_laminar_flow_is_a_steady_state(simulations):
    """Without other waves, forcing and friction balance."""
    _, y = grid()
    flow = simulations.Turbulence(viscosity=0.02, drag=0.05, wavenumber=3)
    laminar = (-3 * torch.cos(3 * y) / (0.02 * 9 + 0.05))[None, None]
    torch.testing.assert_close(flow.advance(laminar, 1.0), laminar, rtol=0, atol=1e-9)


def test_without_friction_energy_and_enstrophy_are_kept(simulations):
    flow = simulations.Turbulence(viscosity=0.0, drag=0.0, forcing=0.0, step=0.005)
    start = flow.advance(flow.start(0, [0, 1]), 0.005)
    later = flow.advance(start, 1.0)
    assert (later - start).abs().max() > 1

    def invariants(w):
        kx, ky = simulations._wavenumbers(SIZE)
        squared = (kx**2 + ky**2).clamp(min=1)
        power = torch.fft.fft2(w[:, 0]).abs() ** 2
        return torch.stack(((power / squared).sum(dim=(1, 2)), power.sum(dim=(1, 2))))

    torch.testing.assert_close(invariants(later), invariants(start), rtol=1e-4, atol=0)


def test_the_flow_converges_with_its_step(simulations):
    """Of fourth order: half of the step, a sixteenth of the error."""
    start = simulations.Turbulence().start(0, [0])
    fine, middle, coarse = (
        simulations.Turbulence(step=step).advance(start, 0.4) for step in (0.0025, 0.02, 0.04)
    )
    ratio = (coarse - fine).abs().max() / (middle - fine).abs().max()
    assert 8 < ratio < 32


def test_translation_of_the_start_along_the_waves_is_one_of_the_flow(simulations):
    flow = simulations.Turbulence()
    start = flow.start(0, [0])
    moved = flow.advance(start.roll(5, -1), 1.0)
    torch.testing.assert_close(moved, flow.advance(start, 1.0).roll(5, -1), rtol=0, atol=1e-8)


# Gray-Scott


def test_without_the_second_substance_nothing_reacts(simulations):
    state = torch.zeros(1, 2, SIZE, SIZE, dtype=torch.float64)
    state[:, 0] = 1
    found = simulations.GrayScott().advance(state, 50.0)
    torch.testing.assert_close(found, state)


def test_a_uniform_state_follows_the_rates(simulations):
    """Against an integration with tiny steps of the two ordinary equations."""
    model = simulations.GrayScott(step=0.25)
    state = torch.full((1, 2, SIZE, SIZE), 0.4, dtype=torch.float64)
    found = model.advance(state, 20.0)
    u = v = 0.4
    for _ in range(200_000):
        made, h = u * v * v, 1e-4
        u, v = (
            u + h * (-made + model.feed * (1 - u)),
            v + h * (made - (model.feed + model.kill) * v),
        )
    assert (found[0, 0] - found[0, 0, 0, 0]).abs().max() < 1e-12
    assert found[0, :, 0, 0].tolist() == pytest.approx([u, v], abs=1e-4)


def test_a_wave_diffuses_at_its_rate(simulations):
    """Without reactions: a wave of one substance decays by D k^2."""
    x, _ = grid()
    model = simulations.GrayScott(feed=0.0, kill=0.0)
    state = torch.stack((1 + 0.5 * torch.cos(3 * x), torch.zeros_like(x)))[None]
    found = model.advance(state, 30.0)
    k = 3 * 2 * math.pi / SIZE
    wanted = 1 + 0.5 * torch.cos(3 * x) * math.exp(-0.16 * k**2 * 30)
    torch.testing.assert_close(found[0, 0], wanted, rtol=0, atol=1e-10)


# Trajectories


@pytest.mark.parametrize("name", ["turbulence", "gray_scott"])
def test_trajectories_depend_on_seed_and_number_only(simulations, name, tmp_path, capsys):
    model = simulations.SIMULATIONS[name](size=16)._replace(spin_up=2.0, interval=1.0)
    both = simulations.trajectories(model, 0, [3, 4], 3)
    alone = simulations.trajectories(model, 0, [4], 3)
    torch.testing.assert_close(both[1:], alone, rtol=0, atol=1e-9)
    assert both.isfinite().all()
    assert (both[0] - both[1]).abs().max() > 0.01


def test_files_are_written_once(simulations, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(simulations, "BATCH", 2)
    usual = simulations.GrayScott
    monkeypatch.setitem(
        simulations.SIMULATIONS, "gray_scott", lambda size: usual(size=size, spin_up=4.0)
    )
    words = ["gray_scott", str(tmp_path), "--frames", "2", "--size", "16"]
    simulations.main([*words, "--count", "3"])
    stamp = (tmp_path / "00001.npy").stat().st_mtime_ns
    simulations.main([*words, "--count", "4"])
    assert "1 trajectories written" in capsys.readouterr().out
    assert (tmp_path / "00001.npy").stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit):
        simulations.main([*words, "--count", "4", "--seed", "1"])
    assert "has trajectories of other settings; choose another folder" in capsys.readouterr().err
    values = np.load(tmp_path / "00003.npy")
    assert values.shape == (2, 2, 16, 16)
    assert values.dtype == np.float32
