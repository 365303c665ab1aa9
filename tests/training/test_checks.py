"""Numbers that a Trainer cannot be given."""

import re

import pytest

from video_diffusion_pytorch.training.checks import check_counts, check_image_folder


def test_numbers_that_count_something():
    check_counts({"train_batch_size": 1}, {"num_workers": 0, "image_frames": 3})
    check_counts({}, {"num_workers": None})
    check_image_folder(None, 0)
    check_image_folder("pictures", 2)


@pytest.mark.parametrize("value", [0, -1, 1.0, None, "2"])
def test_numbers_below_one(value):
    message = f"Trainer: num_sample_rows must be at least 1, got {value}; give a positive number"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_counts({"train_batch_size": 1, "num_sample_rows": value}, {})


@pytest.mark.parametrize("value", [-1, 0.5])
def test_numbers_below_none(value):
    message = f"Trainer: image_frames must be at least 0, got {value}; leave it out"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_counts({}, {"num_workers": None, "image_frames": value})


def test_a_folder_of_which_nothing_is_asked():
    message = (
        "Trainer: with image_folder, image_frames must be at least 1, got 0; say how many images "
        "go with each clip, or leave image_folder out"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_image_folder("pictures", 0)
