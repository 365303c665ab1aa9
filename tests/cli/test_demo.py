"""The demo, at a size that takes seconds."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.cli import demo, main
from video_diffusion_pytorch.data.video_file import gif_to_tensor
from video_diffusion_pytorch.training.checkpoint import list_checkpoints


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setitem(demo.UNET, "dim", 4)
    monkeypatch.setitem(demo.UNET, "dim_mults", (1,))
    monkeypatch.setitem(demo.DIFFUSION, "timesteps", 2)
    monkeypatch.setattr(demo, "CHECKPOINT_EVERY", 3)


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the demo in a folder of the test; gives what it printed."""

    def run(*options):
        folder = str(tmp_path / "demo")
        assert (
            main(["demo", "--folder", folder, "--clips", "5", "--device", "cpu", *options]) is None
        )
        return capsys.readouterr().out

    return run


def names(folder):
    return [path.name for path in list_checkpoints(folder / "demo" / "checkpoints")]


def test_the_demo_writes_what_it_says(run, tmp_path):
    out = run("--steps", "4")
    home = tmp_path / "demo"
    assert len(list((home / "clips").glob("*.gif"))) == 5
    assert names(tmp_path) == ["model-3.pt", "model-4.pt"]
    for name in ("clips", "checkpoints/model-4.pt", "loss.png", "samples.gif"):
        assert str(home / name) in out
        assert (home / name).exists()
    assert re.search(r"loss at step 1: \d\.\d+\nloss at step 4: \d\.\d+\n", out)
    with Image.open(home / "loss.png") as image:
        assert min(image.size) > 800


def test_the_left_half_of_the_picture_is_the_training_clips(run, tmp_path):
    run("--steps", "1")
    picture = gif_to_tensor(tmp_path / "demo" / "samples.gif", channels=1)
    first = sorted((tmp_path / "demo" / "clips").glob("*.gif"))[0]
    clip = gif_to_tensor(first, channels=1)
    side = demo.DIFFUSION["image_size"] * demo.ZOOM
    assert picture.shape[1] == demo.CLIP["num_frames"] == clip.shape[1]
    # both have the digit in the same place, twice as large
    shown = picture[:, :, 22 : 22 + side, 2 : 2 + side]
    large = clip.repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert (shown - large).abs().mean() < 0.06
    # and a white gap stands between the halves
    middle = picture.shape[-1] // 2
    assert (picture[..., middle - demo.ZOOM : middle + demo.ZOOM] == 1).all()


def test_a_longer_run_resumes_from_the_last_checkpoint(run, tmp_path):
    run("--steps", "2")
    clip = next((tmp_path / "demo" / "clips").glob("*.gif"))
    stamp = clip.stat().st_mtime_ns
    out = run("--steps", "4", "--clips", "7")
    assert "resumes from" in out
    assert "model-2.pt, step 2" in out
    assert names(tmp_path) == ["model-2.pt", "model-3.pt", "model-4.pt"]
    assert clip.stat().st_mtime_ns == stamp
    assert len(list(clip.parent.glob("*.gif"))) == 5


def test_an_interrupted_run_equals_an_uninterrupted_one(run, tmp_path):
    run("--steps", "5")
    home = tmp_path / "demo"
    whole = torch.load(home / "checkpoints" / "model-5.pt", weights_only=True)
    (home / "checkpoints" / "model-5.pt").unlink()
    assert "model-3.pt, step 3" in run("--steps", "5")
    again = torch.load(home / "checkpoints" / "model-5.pt", weights_only=True)
    for name, value in whole["ema"].items():
        assert torch.equal(value, again["ema"][name]), name


@pytest.fixture
def rates(monkeypatch):
    """Learning rates of the steps, divided by the base learning rate."""
    found = []
    step = demo.Trainer.train_step

    def recorded(self, **kwargs):
        found.append(self.opt.param_groups[0]["lr"] / demo.TRAINER["train_lr"])
        return step(self, **kwargs)

    monkeypatch.setattr(demo.Trainer, "train_step", recorded)
    return found


def test_the_learning_rate_falls_over_all_steps(run, rates):
    run("--steps", "5")
    # half of a cosine
    assert rates == pytest.approx([1, 0.905, 0.655, 0.345, 0.095], abs=1e-3)


def test_the_learning_rate_falls_over_the_steps_that_fit(run, rates, monkeypatch):
    # a clock by which a step takes a second
    monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: float(len(rates))))
    monkeypatch.setattr(demo, "TIME_LIMIT", 6.0)
    monkeypatch.setitem(demo.TRAINER, "warmup_steps", 1)
    assert "time is up at step 6 of 1000; run again to continue" in run()
    falling = [round(rate, 2) for rate in rates]
    assert len(falling) == 6
    assert falling == sorted(falling, reverse=True)
    assert falling[-1] < 0.15


def test_a_finished_run_says_so_and_shows_samples(run, tmp_path):
    run("--steps", "2")
    (tmp_path / "demo" / "samples.gif").unlink()
    out = run("--steps", "2")
    assert "training is complete: to continue, pass --steps above 2" in out
    assert (tmp_path / "demo" / "samples.gif").is_file()
    assert names(tmp_path) == ["model-2.pt"]


def test_without_a_number_of_steps_time_ends_the_training(run, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "TIME_LIMIT", 1e-9)
    out = run()
    assert "time is up at step 1 of 1000; run again to continue" in out
    assert names(tmp_path) == ["model-1.pt"]
    assert "resumes from" in run("--steps", "2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "demo: steps must be a whole number of at least 1, got 0"),
        (["--clips", "0"], "num_clips must be a whole number of at least 1, got 0"),
        (
            ["--steps", "many"],
            "does not take the value 'many', only a whole number or null; se",
        ),
        (["--device", "abacus"], "device must be"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, capsys):
    assert main(["demo", "--folder", str(tmp_path / "demo"), "--steps", "1", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_folder_of_another_model_is_left_alone(run, tmp_path, monkeypatch, capsys):
    run("--steps", "1")
    monkeypatch.setitem(demo.UNET, "dim", 8)
    assert main(["demo", "--folder", str(tmp_path / "demo"), "--steps", "2"]) == 2
    assert "got dim 8 instead of 4; pass the same settings" in capsys.readouterr().err
    assert names(tmp_path) == ["model-1.pt"]


def test_an_interrupt_names_the_last_checkpoint(tmp_path, monkeypatch, caplog):
    train_step = demo.Trainer.train_step

    def interrupted(self, **kwargs):
        if self.step == 4:
            raise KeyboardInterrupt
        return train_step(self, **kwargs)

    monkeypatch.setattr(demo.Trainer, "train_step", interrupted)
    options = ["demo", "--folder", str(tmp_path / "demo"), "--clips", "4", "--steps", "9"]
    assert main(options) == 130
    last = tmp_path / "demo" / "checkpoints" / "model-3.pt"
    assert f"stopped at step 4: the last checkpoint is {last}" in caplog.text
