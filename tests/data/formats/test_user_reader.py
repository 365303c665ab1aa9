"""Formats that only the user can read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.user_reader import FunctionReader

FILE = Path("scan.nii")


def reader(given, channels=None):
    return FunctionReader(FILE, lambda path: given, channels)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.bool_, np.int16, np.uint16, ">i4", np.float16, np.float64, ">f8"]
)
def test_arrays_of_any_type(dtype):
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5) % 2
    with reader(values.astype(dtype)) as file:
        assert (file.num_frames, file.channels, file.is_array) == (3, 2, True)
        assert (file.fps, file.times) == (None, None)
        video = file.array(range(0, 9, 2))
    assert video.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert np.array_equal(video.numpy(), values[:, ::2])


def test_tensors_and_a_clock():
    with reader((torch.rand(1, 4, 2, 2, dtype=torch.float64), 8)) as file:
        assert file.fps == 8
        assert file.times == [0, 0.125, 0.25, 0.375]
        assert file.array([1, 3]).shape == (1, 2, 2, 2)
        assert file.array([7]).shape == (1, 0, 2, 2)


def test_the_function_gets_the_path():
    paths = []

    def read(path):
        paths.append(path)
        return torch.zeros(1, 1, 1, 1)

    FunctionReader(FILE, read)
    assert paths == [FILE]


def test_something_else():
    message = r"read_fn must give an array .* got list for scan.nii; convert it with numpy.asarray"
    with pytest.raises(TypeError, match=message):
        reader([[1, 2]])


def test_masked_values():
    values = np.ma.masked_less(np.arange(24.0).reshape(1, 2, 3, 4), 5)
    message = (
        r"cannot read scan.nii: expected read_fn to give a number for each pixel, got 5 that are "
        r"masked; fill them in read_fn, as by values.filled\(0\)"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        reader(values)
    # a mask that hides nothing does no harm
    with reader(np.ma.masked_less(values.filled(9), 0)) as file:
        assert file.array([0]).flatten().tolist() == [9] * 5 + list(range(5, 12))


@pytest.mark.parametrize(
    ("given", "channels"),
    [
        (np.zeros((3, 4, 5)), None),
        (np.zeros((3, 4, 5, 6), complex), None),
        (torch.zeros(3, 4, 5, 6, dtype=torch.complex64), None),
        (np.zeros((3, 4, 5, 6)), 2),
    ],
)
def test_wrong_shapes(given, channels):
    message = r"cannot read scan.nii: expected read_fn to give real .* got .*; move the axes"
    with pytest.raises(UnreadableVideoError, match=message):
        reader(given, channels)
