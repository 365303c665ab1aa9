"""What a Dataset can be asked for."""

from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.condition_files import split_conditions
from video_diffusion_pytorch.data.dataset import Dataset, check_channels, check_choices
from video_diffusion_pytorch.sizes import as_value_range


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((-5, 5), ((-5.0, -5.0), (5.0, 5.0))),
        ([0, [1, 2]], ((0.0, 0.0), (1.0, 2.0))),
        ((np.array([1.5, 2]), torch.tensor([3.0, 4.0])), ((1.5, 2.0), (3.0, 4.0))),
        (None, None),
    ],
)
def test_value_ranges(given, expected):
    assert as_value_range(given, 2) == expected


@pytest.mark.parametrize(
    "given",
    [
        5,
        (1, 2, 3),
        (5, -5),
        (0, 0),
        (0, float("inf")),
        (float("nan"), 1),
        ((1, 2, 3), 4),
        "all",
        # float32 cannot tell them apart, or hold them or their difference
        (2**24, 2**24 + 1),
        (0, 1e-50),
        (0, 1e39),
        (-3e38, 3e38),
    ],
)
def test_no_value_range(given):
    message = r"value_range must be 'fit' or \(low, high\) .* got .*; pass for example \(-5, 5\)"
    with pytest.raises(ValueError, match=message):
        as_value_range(given, 2)


def test_channels():
    check_channels(80, [Path("a.npy"), Path("b.PT")], False)
    check_channels(2, [Path("a.nii.gz")], True)
    check_channels(4, [Path("a.gif")], False)
    message = r"channels must be one of \[1, 3, 4\], got 2; choose .* only arrays"
    with pytest.raises(ValueError, match=message):
        check_channels(2, [Path("a.npy"), Path("a.mp4")], False)
    with pytest.raises(ValueError, match=r"channels must be one of .* got 0; choose"):
        check_channels(0, [Path("a.npy")], False)


def test_choices():
    check_choices(True, clip_start="all", pad="repeat")
    with pytest.raises(ValueError, match=r"clip_start must be one of first, .* got 'last'; choose"):
        check_choices(True, clip_start="last", pad="black")
    with pytest.raises(ValueError, match=r"pad must be one of black, .* got 'white'; choose one"):
        check_choices(True, clip_start="first", pad="white")
    message = "clip_start must be 'first' where .* got 'random'; leave force_num_frames=False out"
    with pytest.raises(ValueError, match=message):
        check_choices(False, clip_start="random", pad="black")


@pytest.mark.parametrize(
    ("force_num_frames", "options", "message"),
    [
        (
            True,
            {"fit_frames": "long"},
            "one of None, short, all, got 'long'; choose",
        ),
        (
            True,
            {"pad_position": "start"},
            "must be one of end, center, got 'start'; choose",
        ),
        (False, {"fit_frames": "short"}, "fit_frames must be None where .* got 'short'; leave for"),
        (
            True,
            {"fit_frames": "all", "clip_start": "random"},
            "fit_frames='all' makes one clip of each file, .* got 'random'; leave it out, or pass",
        ),
        (
            True,
            {"fit_frames": "short", "pad": "mask"},
            "left out with fit_frames, .* got pad='mask' and pad_position='end'; choose whether",
        ),
        (
            True,
            {"fit_frames": "all", "pad_position": "center"},
            "left out with fit_frames, .* got pad='black' and pad_position='center'; choose whet",
        ),
    ],
)
def test_fitting_and_filling_up(tmp_path, force_num_frames, options, message):
    # before any file is looked for
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / "missing", 8, force_num_frames=force_num_frames, **options)


def test_names_and_a_function():
    function = str
    assert split_conditions(None) == ([], None, {})
    assert split_conditions("label") == (["label"], None, {})
    assert split_conditions(function) == ([], function, {})
    assert split_conditions(("label", function, "field")) == (["label", "field"], function, {})
    columns = {"cond": ["EF"], "labels": "Class"}
    assert split_conditions(columns) == ([], None, columns)
    assert split_conditions(["field", columns, function]) == (["field"], function, columns)
    for wrong in ([function, function], ["label", 3], [columns, columns]):
        with pytest.raises(TypeError, match=r"names of conditions, at most one .* got .*; let"):
            split_conditions(wrong)
    for key, value in {"labels": ["Class"], "cond": [], "frame_cond": "EF", "EF": "cond"}.items():
        with pytest.raises(
            ValueError, match=rf"must be 'cond', .* got '{key}': .*; write for exam"
        ):
            split_conditions({key: value})
