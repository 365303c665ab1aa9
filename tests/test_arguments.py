"""Image sizes and value ranges, as users write them."""

import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.arguments import (
    as_count,
    as_image_size,
    as_value_range,
    nearest_name,
    plain_range,
)

OPTIONS = [
    *("timesteps", "train_num_steps", "warmup_steps", "train_batch_size", "image_size", "fps"),
    *("fsdp", "train_lr", "cond_scale", "num_workers"),
]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("timestep", "timesteps"),
        ("imagesize", "image_size"),
        ("batch_size", "train_batch_size"),
        ("train_steps", "train_num_steps"),
        ("lr", "train_lr"),
        ("workers", "num_workers"),
        # of several, or of none: no guess
        ("steps", None),
        ("size", None),
        ("train", None),
        ("scaling", None),
        ("epochs", None),
        ("", None),
    ],
)
def test_the_name_that_is_meant(given, meant):
    assert nearest_name(given, OPTIONS) == meant


@pytest.mark.parametrize("given", [3, np.int64(3), torch.tensor(3)])
def test_counts(given):
    assert as_count(given, "steps") == 3
    assert type(as_count(given, "steps")) is int


@pytest.mark.parametrize("given", [0, -1, 3.0, 2.5, float("inf"), float("nan"), "3", None, [3]])
def test_what_is_no_count(given):
    message = f"^steps must be a whole number of at least 1, got {re.escape(repr(given))}$"
    with pytest.raises(ValueError, match=message):
        as_count(given, "steps")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (8, (8, 8)),
        (np.int64(8), (8, 8)),
        ((8, 6), (8, 6)),
        (torch.Size([8, 6]), (8, 6)),
        (torch.tensor([8, 6]), (8, 6)),
        (np.array([8, 6]), (8, 6)),
    ],
)
def test_image_sizes(given, expected):
    assert as_image_size(given) == expected
    assert all(type(side) is int for side in as_image_size(given))


@pytest.mark.parametrize(
    "given", [0, -4, 8.0, (8.0, 8.0), True, (True, 8), "8", "88", (8,), (8, 0), (8, 8, 8), None]
)
def test_what_is_no_image_size(given):
    message = (
        "size must be a whole number of pixels of at least 1, or such a (height, width), got "
        f"{given!r}; pass for example 64 or (48, 64)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_image_size(given, "size")


@pytest.mark.parametrize(
    ("given", "plain", "expected"),
    [
        ((-5, 5), (-5.0, 5.0), ((-5.0, -5.0), (5.0, 5.0))),
        ([0, [1, 2]], (0.0, (1.0, 2.0)), ((0.0, 0.0), (1.0, 2.0))),
        (
            (np.array([1.5, 2]), torch.tensor([3.0, 4.0])),
            ((1.5, 2.0), (3.0, 4.0)),
            ((1.5, 2.0), (3.0, 4.0)),
        ),
    ],
)
def test_value_ranges(given, plain, expected):
    assert plain_range(given, 2) == plain
    assert as_value_range(given, 2) == expected


def test_no_value_range():
    assert as_value_range(None, 2) is None


def test_a_range_of_as_many_channels_as_it_has_values():
    assert plain_range((0, [1, 2, 3]), None) == (0.0, (1.0, 2.0, 3.0))
    with pytest.raises(ValueError, match="each a number or one for each channel, got"):
        plain_range(([0, 0], [1, 2, 3]), None)


@pytest.mark.parametrize(
    "given",
    [
        5,
        (1,),
        (1, 2, 3),
        "ab",
        "all",
        ("0", "1"),
        (None, 1),
        ([[0]], 1),
        ([0, 0, 0], 1),
        (5, -5),
        ([0, 5], [1, 4]),
        (0, 0),
        (0, float("inf")),
        (float("nan"), 1),
        # float32 cannot tell them apart, or hold them or their difference
        (2**24, 2**24 + 1),
        (0, 1e-50),
        (0, 1e39),
        (-3e38, 3e38),
    ],
)
def test_what_is_no_value_range(given):
    message = (
        "GaussianDiffusion: value_range must be 'fit' or (low, high) with low < high, each a "
        f"number or one for each of 2 channels, got {given!r}; pass for example (-5, 5), bounds "
        "that float32 tells apart, and leave out channels that are constant"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        as_value_range(given, 2, "GaussianDiffusion: value_range", "'fit' or ")
