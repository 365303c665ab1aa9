"""The benchmark of known frames with trained models, at a size that takes seconds."""

from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.evaluation import frame_classifier

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs the benchmark on models with these options; gives the rows of each."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(frame_classifier, "_STEPS", 20)
    import known_frames

    monkeypatch.setattr(known_frames.torch, "set_num_threads", lambda number: None)
    write_moving_digits(tmp_path / "clips", 40, 24, 4)

    def run(*models):
        folders = []
        for number, (network, diffusion) in enumerate(models):
            unet = Unet3D(4, dim_mults=(1,), channels=1, **network)
            model = GaussianDiffusion(unet, image_size=12, num_frames=4, timesteps=8, **diffusion)
            folders.append(str(tmp_path / f"model_{number}"))
            model.save_pretrained(folders[-1])
        words = ["--clips", str(tmp_path / "clips"), "--count", "3", "--steps", "2"]
        known_frames.main([*folders, *words])
        tables = capsys.readouterr().out.strip().split("\n\n")
        rows = [[line.split("|")[1:-1] for line in table.splitlines()[3:]] for table in tables]
        return [[[cell.strip() for cell in row] for row in table] for table in rows]

    return run


@pytest.mark.filterwarnings("ignore:FrameClassifier. more than:UserWarning")
def test_ways_are_those_of_the_model(run):
    plain, framewise = run(({}, {}), ({"num_classes": 10}, {"frame_noise": "independent"}))
    assert [row[0] for row in plain] == ["repeating the last", "replacement", "guidance, w_r = 2"]
    assert [row[0] for row in framewise] == [
        *[row[0] for row in plain],
        "noise per frame",
        "noise per frame, pace per frame",
    ]
    assert plain[0][1] == framewise[0][1]
    assert 0 < float(plain[0][1]) < 1
    assert {row[2] for row in plain} == {""}
    assert all("%" in row[2] for row in framewise)
    assert torch.tensor([float(row[3]) for row in framewise[1:]]).isfinite().all()
