"""The benchmark of memory by part: its tables hold what the library counts."""

import importlib.util
from pathlib import Path

import pytest

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.training.memory import activation_bytes, state_bytes

PATH = Path(__file__).parents[1] / "benchmarks" / "memory_parts.py"
NETWORK = {"dim": 8, "dim_mults": (1,), "attn_heads": 1, "cond_dim": 3}
CLIPS = {"image_size": 8, "num_frames": 2}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_its_tables(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("memory_parts", PATH)
    memory_parts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(memory_parts)
    assert {"README", "ucf101", "sr_9x128"} <= memory_parts.SETTINGS.keys()
    monkeypatch.setitem(memory_parts.SETTINGS, "tiny", (NETWORK, CLIPS, 5, 2))
    monkeypatch.setattr(memory_parts, "GIB", 2**10)
    memory_parts.main(["--settings", "tiny"])
    lines = [cells(line) for line in capsys.readouterr().out.splitlines() if "`tiny`" in line]
    state, activations = lines

    unet = Unet3D(**NETWORK)
    diffusion = GaussianDiffusion(unet, **CLIPS)
    trained = sum(w.numel() for w in unet.parameters() if w.requires_grad)
    parts = [float(cell) for cell in state[2:]]
    assert float(state[1]) == pytest.approx(trained / 1e6, abs=0.05)
    assert parts[2:4] == pytest.approx([trained / 2**8, trained / 2**7], abs=0.01)
    assert parts[0] == parts[1] >= parts[2]
    assert sum(parts[:4]) == pytest.approx(parts[4], abs=0.03)
    assert parts[4] == pytest.approx(state_bytes(diffusion) / 2**10, abs=0.01)

    pairs = [[float(number) for number in cell.split(" / ")] for cell in activations[2:]]
    assert activations[1] == "5"
    for clip, step in pairs:
        assert step == pytest.approx(parts[4] + 5 * clip, abs=0.1)
    plain, checkpointed, half, both = (clip for clip, _ in pairs)
    assert plain == pytest.approx(activation_bytes(diffusion, image_frames=2) / 2**10, abs=0.01)
    assert plain > max(half, checkpointed) > min(half, checkpointed) > both
