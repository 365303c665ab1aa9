"""Formats that only the user can read."""

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import SkipUnreadable, UnreadableVideoError
from video_diffusion_pytorch.data.formats.readers import FunctionReader

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


@pytest.mark.parametrize("kind", ["O", "U3", "datetime64[s]"])
def test_what_is_no_number(kind):
    with pytest.raises(
        UnreadableVideoError, match=r"to give real numbers .* got .* of shape \(1, 2"
    ):
        reader(np.ones((1, 2, 3, 4), "i8").astype(kind))


@pytest.mark.parametrize("rate", [0, -25, float("nan"), float("inf"), "25", b"25", True, [25], 1j])
def test_rates_that_are_none(rate):
    message = "cannot read scan.nii: expected read_fn to give the frames per second as a number abo"
    with pytest.raises(UnreadableVideoError, match=message):
        reader((np.zeros((1, 2, 3, 4)), rate))


@pytest.mark.parametrize("rate", [8, 8.0, np.float32(8), np.array(8), torch.tensor(8.0)])
def test_rates(rate):
    with reader((np.zeros((1, 2, 3, 4)), rate)) as file:
        assert file.fps == 8.0
        assert [*file.times] == [0, 0.125]
    with reader((np.zeros((1, 2, 3, 4)), None)) as file:
        assert file.fps is None


def test_a_function_that_fails():
    def read(path):
        if error:
            raise error

    for error in (EOFError("it ends"), NameError("name 'np' is not defined"), OSError("truncated")):
        message = (
            f"cannot read scan.nii: expected a file that read_fn can read, got .*: {error}; re"
        )
        with pytest.raises(UnreadableVideoError, match=message) as caught:
            FunctionReader(FILE, read)
        assert caught.value.__cause__ is error
    # of the machine, or by the user
    for error in (MemoryError("none"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught:
            FunctionReader(FILE, read)
        assert caught.value is error
    error = UnreadableVideoError("cannot read scan.nii: expected ten slices")
    with pytest.raises(UnreadableVideoError, match="expected ten slices"):
        FunctionReader(FILE, read)


def test_a_function_that_always_fails_says_why_at_once(tmp_path):
    """With the traceback of the first mistake."""

    def read(path):
        asked.append(path)
        return volume  # noqa: F821

    asked = []
    for i in range(50):
        (tmp_path / f"{i:02}.scan").touch()
    clips = SkipUnreadable(Dataset(tmp_path, 8, exts="scan", read_fn=read))
    message = r"got 6 so far; .*\n  cannot read .*00.scan: .* NameError: name 'volume' is not defin"
    with pytest.raises(UnreadableVideoError, match=message) as caught:
        clips[0]
    assert len(asked) == 6
    cause = caught.value.__cause__.__cause__
    assert isinstance(cause, NameError)
    assert cause.__traceback__.tb_next.tb_frame.f_code is read.__code__
