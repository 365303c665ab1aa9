"""Trackers are told what a run tells."""

import logging
import math
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training.metrics import Trackers

LINE = {
    "step": 7,
    "time": 1.7e9,
    "loss": 0.5,
    "grad_norm": None,
    "clips_per_second": 3,
    "loss_by_noise": [0.25, None, 0.75],
}


class Notebook(GeneralTracker):
    """Keeps what it is told."""

    name = "notebook"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.lines, self.finished = None, [], 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.lines.append((step, values))

    def finish(self):
        self.finished += 1


@pytest.fixture
def gif(tmp_path):
    """Three frames of 16 x 8 pixels."""
    path = tmp_path / "3.gif"
    video_tensor_to_gif(torch.rand(1, 3, 8, 16), path)
    return path


def events_of(folder):
    """All that a TensorBoard would show of a folder, the settings apart."""
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    return events


def on(folder, *log_with):
    return Accelerator(cpu=True, log_with=list(log_with), project_dir=folder)


# TensorBoard


def test_tensorboard_files_hold_the_numbers(tmp_path):
    accelerator = on(tmp_path, "tensorboard")
    sent = Trackers(accelerator)
    sent.start("run", {"lr": 1e-4, "unet": {"dim": 8}})
    sent.log(LINE)
    sent.log({**LINE, "step": 9, "loss": 0.25})
    sent.end()
    events = events_of(tmp_path / "run")
    names = {"loss", "clips_per_second", "loss_by_noise/0", "loss_by_noise/2"}
    assert set(events.Tags()["scalars"]) == names
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(7, 0.5), (9, 0.25)]
    assert [event.value for event in events.Scalars("loss_by_noise/2")] == [0.75, 0.75]
    (settings,) = (tmp_path / "run").rglob("hparams.yml")
    assert "unet.dim: 8" in settings.read_text()


def test_tensorboard_gets_the_gif_as_it_is(tmp_path, gif):
    accelerator = on(tmp_path, "tensorboard")
    sent = Trackers(accelerator)
    sent.start("run", {})
    sent.log_video(gif, 20)
    sent.log_video(str(gif), 40)
    sent.end()
    shown = events_of(tmp_path / "run").Images("samples")
    assert [image.step for image in shown] == [20, 40]
    assert (shown[0].width, shown[0].height) == (16, 8)
    assert shown[0].encoded_image_string == gif.read_bytes()
    with Image.open(gif) as image:
        assert image.n_frames == 3


def test_tensorboard_forgets_the_steps_that_are_repeated(tmp_path):
    for done, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        accelerator = on(tmp_path, "tensorboard")
        sent = Trackers(accelerator)
        sent.start("run", {}, step=done)
        for step in steps:
            sent.log({"step": step, "loss": float(step + done)})
        sent.end()
        # files are read by the second in their name
        time.sleep(1.1)
    events = events_of(tmp_path / "run").Scalars("loss")
    assert [(event.step, event.value) for event in events] == [
        (10, 10.0),
        (20, 20.0),
        (30, 50.0),
        (40, 60.0),
    ]


# Others


def test_a_custom_tracker_gets_all_numbers(tmp_path, gif, caplog):
    notebook = Notebook()
    accelerator = on(tmp_path, notebook)
    config = {
        "lr": 1e-4,
        "amp": False,
        "name": "a",
        "unet": {"dim": 8, "dim_mults": (1, 2), "deeper": {"cond_dim": None}},
        "folder": Path("clips"),
    }
    sent = Trackers(accelerator)
    sent.start("run", config)
    assert notebook.config == {
        "lr": 1e-4,
        "amp": False,
        "name": "a",
        "unet.dim": 8,
        "unet.dim_mults": "(1, 2)",
        "unet.deeper.cond_dim": "None",
        "folder": "clips",
    }
    sent.log(LINE)
    expected = {
        "loss": 0.5,
        "clips_per_second": 3,
        "loss_by_noise/0": 0.25,
        "loss_by_noise/2": 0.75,
    }
    assert notebook.lines == [(7, expected)]
    sent.log({"step": 8, "time": 1.0, "event": "skipped step", "clips": [3, 4]})
    sent.log({"step": 8, "loss": math.nan, "note": "text", "flag": True})
    assert len(notebook.lines) == 1

    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        sent.log_video(gif, 7)
        sent.log_video(gif, 8)
    assert len(caplog.records) == 1
    assert f"notebook gets no samples such as {gif}" in caplog.text
    sent.end()
    assert (notebook.finished, accelerator.trackers) == (1, [])
    sent.end()
    assert notebook.finished == 1


def test_started_trackers_are_not_started_again(tmp_path):
    notebook = Notebook()
    accelerator = on(tmp_path, notebook)
    sent = Trackers(accelerator)
    sent.start("run", {"a": 1})
    sent = Trackers(accelerator)
    sent.start("run", {"a": 2})
    assert accelerator.trackers == [notebook]
    assert notebook.config == {"a": 1}
    sent.end()
    sent = Trackers(accelerator)
    sent.start("run", {"a": 3})
    assert notebook.config == {"a": 3}
    sent.end()


class FakeRun:
    """What `wandb.init` gives."""

    def __init__(self):
        self.logged = []

    def log(self, values, step=None):
        self.logged.append((step, values))

    def finish(self):
        pass


def test_wandb_plays_the_file(tmp_path, gif, monkeypatch, caplog):
    wandb, run = ModuleType("wandb"), FakeRun()
    wandb.Video = lambda path, format: ("video", path, format)
    monkeypatch.setitem(sys.modules, "wandb", wandb)

    class Wandb(Notebook):
        name = "wandb"

        def log(self, values, step=None, **kwargs):
            run.log(values, step=step)

    accelerator = on(tmp_path, Wandb())
    sent = Trackers(accelerator)
    sent.start("run", {})
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        sent.log_video(gif, 7)
        sent.log_video(tmp_path / "3.MP4", 8)
        assert not caplog.records
        sent.log_video(tmp_path / "3.npy", 9)
    assert run.logged == [
        (7, {"samples": ("video", str(gif), "gif")}),
        (8, {"samples": ("video", str(tmp_path / "3.MP4"), "mp4")}),
    ]
    assert "wandb gets no samples such as " in caplog.text
    sent.end()


def test_tensorboard_is_sent_no_films(tmp_path, caplog):
    accelerator = on(tmp_path, "tensorboard")
    sent = Trackers(accelerator)
    sent.start("run", {})
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        sent.log_video(tmp_path / "3.mp4", 9)
    assert "tensorboard gets no samples such as " in caplog.text
    sent.end()


def test_without_trackers_nothing_is_done(tmp_path, gif):
    accelerator = Accelerator(cpu=True)
    sent = Trackers(accelerator)
    sent.start("run", {"a": 1})
    sent.log(LINE)
    sent.log_video(gif, 7)
    sent.end()
    assert list(tmp_path.iterdir()) == [gif]
