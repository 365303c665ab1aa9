"""Frames of an array file."""

import os

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.arrays import ArrayReader, read_array

LIMIT = 2**20
VIDEO = torch.arange(2 * 9 * 4 * 5).reshape(2, 9, 4, 5)  # (c, f, h, w)


def write(path, array):
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, array)
    else:
        torch.save(torch.from_numpy(np.ascontiguousarray(array)), path)
    return path


def reader_of(path, channels=None, axes=None):
    return ArrayReader(path, channels, axes, LIMIT)


@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
@pytest.mark.parametrize("axes", ["cfhw", "fchw", "fhwc", "whfc"])
def test_every_order_of_axes(tmp_path, ending, axes):
    stored = VIDEO.permute(["cfhw".index(letter) for letter in axes]).to(torch.uint8).numpy()
    path = write(tmp_path / f"a.{ending}", stored)
    with reader_of(path, axes=axes) as reader:
        assert (reader.num_frames, reader.channels, reader.is_array) == (9, 2, True)
        assert (reader.fps, reader.times) == (None, None)
        for indices in (
            range(9),
            range(2, 7, 2),
            range(7, 30),
            [0, 5, 6],
            [8, 9],
            range(9, 12),
            [],
        ):
            frames = reader.array(indices)
            assert torch.equal(frames, VIDEO[:, [i for i in indices if i < 9]].byte())
            assert frames.is_contiguous()


def test_axes_that_are_missing(tmp_path):
    array = VIDEO[0].numpy().astype(np.float32)
    with reader_of(write(tmp_path / "a.npy", array), axes="fhw") as reader:
        assert torch.equal(reader.array(range(1, 3)), VIDEO[:1, 1:3].float())
    with reader_of(write(tmp_path / "a.npy", array), axes="hwf") as reader:
        assert (reader.num_frames, reader.array([0]).shape) == (5, (1, 1, 9, 4))
    with reader_of(write(tmp_path / "a.npy", array[0]), axes="hw") as reader:
        assert reader.num_frames == 1
        assert torch.equal(reader.array(range(10)), VIDEO[:1, :1].float())
        assert reader.array(range(1, 10)).shape == (1, 0, 4, 5)


@pytest.mark.parametrize(
    "dtype", ["?", "i1", "<i8", ">i2", "u2", "f2", "<f4", ">f8", np.longdouble]
)
def test_all_but_bytes_become_float32(tmp_path, dtype):
    array = (VIDEO % 2).numpy().astype(dtype)
    with reader_of(write(tmp_path / "a.npy", array)) as reader:
        frames = reader.array(range(9))
    assert frames.dtype == torch.float32
    assert torch.equal(frames, (VIDEO % 2).float())


def test_bfloat16_and_shared_values(tmp_path):
    torch.save(torch.ones(1, 1, 1, 1, dtype=torch.bfloat16).expand(3, 9, 4, 5), tmp_path / "a.pt")
    with reader_of(tmp_path / "a.pt") as reader:
        frames = reader.array(range(2))
    assert torch.equal(frames, torch.ones(3, 2, 4, 5))
    frames[0, 0] = 0  # a copy
    assert frames[1].eq(1).all()


def test_values_beyond_float32_become_infinite(tmp_path):
    with reader_of(write(tmp_path / "a.npy", np.full((1, 9, 4, 5), 1e300))) as reader:
        assert reader.array([0]).isinf().all()


def test_what_the_file_says(tmp_path):
    np.savez(tmp_path / "a.npz", video=VIDEO.numpy(), axes="fchw", fps=4)
    with reader_of(tmp_path / "a.npz") as reader:
        assert (reader.num_frames, reader.channels, reader.fps) == (2, 9, 4)
        assert reader.times == [0, 0.25]
    with reader_of(tmp_path / "a.npz", axes="cfhw") as reader:  # the caller knows better
        assert (reader.num_frames, reader.channels) == (9, 2)
    np.savez(tmp_path / "a.npz", video=VIDEO.numpy(), axes="frames first")
    text = "expected axes such as 'fhwc', got 'frames first'; correct them"
    with pytest.raises(UnreadableVideoError, match=text):
        reader_of(tmp_path / "a.npz")


def test_what_is_asked_wrongly(tmp_path):
    path = write(tmp_path / "a.npy", VIDEO.numpy())
    with pytest.raises(ValueError, match=r"axes must name the stored order .* got 'xyz'"):
        reader_of(path, axes="xyz")
    with pytest.raises(
        UnreadableVideoError, match=r"a.npy: expected .* with 3 channels, got the sh"
    ):
        reader_of(path, channels=3)
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.npy, found none"):
        reader_of(tmp_path / "gone.npy")
    with reader_of(path) as reader:
        with pytest.raises(ValueError, match="at least 0 and increase"):
            reader.array([2, 1])
        with pytest.raises(TypeError, match=r"expected a picture file .* call array\(\) instead"):
            reader.pictures([0])
    with pytest.raises(ValueError, match="expected an open reader, got a closed one; read inside"):
        reader.array([0])


def test_whole_arrays_of_any_shape(tmp_path):
    for ending in ("npy", "npz", "pt"):
        path = write(tmp_path / f"a.{ending}", np.arange(6).reshape(2, 3))
        assert torch.equal(read_array(path), torch.arange(6.0).reshape(2, 3))
    (tmp_path / "a.npy").write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match="got an empty file"):
        read_array(tmp_path / "a.npy")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_files_are_closed(tmp_path):
    paths = [write(tmp_path / f"a.{ending}", VIDEO.numpy()) for ending in ("npy", "npz", "pt")]
    before = sorted(os.listdir("/proc/self/fd"))
    for path in paths:
        with reader_of(path) as reader:
            reader.array(range(3))
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(UnreadableVideoError):
            reader_of(path)
    assert sorted(os.listdir("/proc/self/fd")) == before
    with open("/proc/self/maps") as maps:
        assert not [line for line in maps if str(tmp_path) in line]
