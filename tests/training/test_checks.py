"""Arguments of a Trainer that are out of range or contradict each other."""

import inspect
import re

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer
from video_diffusion_pytorch.training.checks import check_arguments, check_model

DEFAULTS = {name: p.default for name, p in inspect.signature(Trainer.__init__).parameters.items()}


def check(**changed):
    check_arguments({**DEFAULTS, **changed})


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_workers": 0, "save_every": 1, "keep_last": 1},
        {"keep_best": 2, "validation_split": 0.1},
        {"keep_best": 2, "validation_folder": "held-out"},
        {"image_folder": "pictures", "image_frames": 2},
        {"max_grad_norm": 0.5},
        {"train_num_steps": 1e5},
        {"validation_folder": "a", "validation_manifest": "a.csv", "validation_split": "val"},
    ],
)
def test_valid_arguments(changed):
    check(**changed)


ONE_PLACE = "the clips to validate on must come from one place, got "


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_batch_size": 0}, "train_batch_size must be at least 1, got 0"),
        ({"save_every": -1}, "save_every must be at least 1, got -1"),
        ({"log_every": float("nan")}, "log_every must be a whole number of at least 1, got nan"),
        (
            {"train_num_steps": None},
            "train_num_steps must be a whole number of at least 0, got None",
        ),
        ({"train_num_steps": 2.5}, "train_num_steps must be a whole number of at least 0, got 2.5"),
        ({"held_out": 0.1}, "held_out must be a whole number of at least 0, got 0.1"),
        (
            {"train_batch_size": "2"},
            "train_batch_size must be a whole number of at least 1, got '2'",
        ),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"step_start_ema": -1}, "step_start_ema must be at least 0, got -1"),
        ({"max_grad_norm": 0}, "max_grad_norm must be above 0, got 0; leave it out to clip"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be above 0, got nan"),
        ({"image_folder": "a"}, "with image_folder, image_frames must be at least 1, got 0; give"),
        ({"keep_best": 1}, "keep_best must go with clips to validate on, got none; pass"),
        (
            {"validation_folder": "clips", "validation_split": 0.1},
            f"{ONE_PLACE}validation_folder and validation_split; choose one",
        ),
        (
            {"validation_manifest": "clips.csv", "validation_split": 0.1},
            f"{ONE_PLACE}validation_manifest and validation_split",
        ),
        (
            {"validation_dataset": [], "validation_split": "val"},
            f"{ONE_PLACE}validation_dataset and validation_split",
        ),
        (
            {"validation_dataset": [], "validation_folder": "clips"},
            f"{ONE_PLACE}validation_dataset and validation_folder",
        ),
    ],
    ids=str,
)
def test_contradictions_are_refused(changed, message):
    with pytest.raises(ValueError, match=f"^Trainer: {re.escape(message)}"):
        check(**changed)


def test_the_model_is_a_diffusion_in_full_precision():
    diffusion = GaussianDiffusion(torch.nn.Identity(), image_size=4, num_frames=2, channels=1)
    check_model(diffusion)
    with pytest.raises(TypeError, match="must be a GaussianDiffusion, got Identity; wrap the netw"):
        check_model(torch.nn.Identity())
    with pytest.raises(ValueError, match=r"in float32 or float64, got torch.float16; use .float"):
        check_model(diffusion.half())


def test_a_total_batch_size_is_divided_by_the_processes(make_trainer):
    assert make_trainer(train_batch_size=3, split_batches=True).batch_size == 3
