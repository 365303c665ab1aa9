"""Arguments of a Trainer that contradict each other or count nothing."""

import re

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.training.checks import check_arguments, check_model, share_of_batch

GOOD = {
    "train_batch_size": 1,
    "gradient_accumulate_every": 1,
    "update_ema_every": 1,
    "save_and_sample_every": 1,
    "num_sample_rows": 1,
    "validate_every": 1,
    "validation_clips": 1,
    "log_every": 1,
    "max_skipped_steps": 1,
    "train_num_steps": 0,
    "keep_best": 0,
    "image_frames": 0,
    "max_grad_norm": None,
    "num_workers": None,
    "save_every": None,
    "evaluate_every": None,
    "keep_last": None,
    "image_folder": None,
    "validation_folder": None,
    "validation_split": None,
    "validation_manifest": None,
    "validation_dataset": None,
}


def check(log_with=None, **changed):
    check_arguments({**GOOD, **changed}, log_with)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_workers": 0, "save_every": 1, "keep_last": 1},
        {"keep_best": 2, "validation_split": 0.1},
        {"keep_best": 2, "validation_folder": "held-out"},
        {"image_folder": "pictures", "image_frames": 2},
        {"log_with": "tensorboard"},
        {"max_grad_norm": 0.5},
    ],
)
def test_what_goes_together(changed):
    check(**changed)


@pytest.mark.parametrize(
    "name",
    [
        "train_batch_size",
        "gradient_accumulate_every",
        "update_ema_every",
        "save_and_sample_every",
        "num_sample_rows",
        "validate_every",
        "validation_clips",
        "log_every",
        "max_skipped_steps",
        "save_every",
        "keep_last",
    ],
)
@pytest.mark.parametrize("value", [0, -1, 1.0, "2"])
def test_numbers_below_one(name, value):
    message = f"Trainer: {name} must be at least 1, got {value!r}; give a positive number"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(**{name: value})


@pytest.mark.parametrize("name", ["train_num_steps", "keep_best", "image_frames", "num_workers"])
@pytest.mark.parametrize("value", [-1, 0.5])
def test_numbers_below_none(name, value):
    message = f"Trainer: {name} must be at least 0, got {value}; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(**{name: value})


@pytest.mark.parametrize("norm", [0, -1.0, float("nan")])
def test_a_norm_of_gradients_that_is_none(norm):
    message = f"Trainer: max_grad_norm must be above 0, got {norm}; leave it out to clip nothing"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(max_grad_norm=norm)


def test_a_network_alone_is_not_trained():
    check_model(GaussianDiffusion(torch.nn.Identity(), image_size=4, num_frames=2, channels=1))
    message = (
        "Trainer: the model must be a GaussianDiffusion, got Identity; wrap the network in one: "
        "GaussianDiffusion(unet, image_size=64, num_frames=16)"
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_model(torch.nn.Identity())


@pytest.mark.parametrize(
    "given",
    [
        {"validation_folder": "clips", "validation_split": 0.1},
        {"validation_manifest": "clips.csv", "validation_split": 0.1},
        {"validation_dataset": [], "validation_split": "val"},
        {"validation_dataset": [], "validation_folder": "clips"},
    ],
)
def test_one_place_to_validate(given):
    names = " and ".join(given)
    message = f"Trainer: the clips to validate on must come from one place, got {names}; choose one"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check(**given)
    check(validation_folder="clips", validation_manifest="clips.csv", validation_split="val")


def test_the_best_are_known_by_validation():
    message = (
        "Trainer: keep_best must go with clips to validate on, got none; pass validation_folder, "
        "validation_dataset or validation_split"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(keep_best=1)


def test_trackers_are_checked():
    with pytest.raises(ValueError, match=r"log_with must name trackers .* got 'tensorbored'"):
        check(log_with="tensorbored")


def test_a_folder_of_which_nothing_is_asked():
    message = (
        "Trainer: with image_folder, image_frames must be at least 1, got 0; say how many images "
        "go with each clip, or leave image_folder out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check(image_folder="pictures")


def test_a_batch_is_shared_by_processes():
    assert share_of_batch(12, 3) == 4
    message = (
        "Trainer: with split_batches, train_batch_size must be a multiple of the number of "
        "processes, 3, got 8; change one of them"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        share_of_batch(8, 3)
