"""Files that cannot be opened, and options that files cannot fulfil."""

import errno
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

MODULE = "video_diffusion_pytorch.data.clip_reader.open_video"


@pytest.fixture
def folder(tmp_path):
    """Two gifs of eight frames."""
    for name in "ab":
        video_tensor_to_gif(torch.rand(1, 8, 8, 8), tmp_path / f"{name}.gif", duration=100)
    return tmp_path


def dataset_of(folder, **options):
    return Dataset(folder, 8, **{"channels": 1, "num_frames": 4, **options})


@pytest.mark.parametrize("clip_start", ["first", "random", "all"])
@pytest.mark.parametrize("is_cached", [True, False])
def test_a_link_to_nothing(folder, clip_start, is_cached):
    try:
        (folder / "c.gif").symlink_to(folder / "gone")
    except OSError:
        pytest.skip("the system does not let everybody make links")
    cache = folder / "cache" if is_cached else None
    dataset = dataset_of(folder, clip_start=clip_start, cache=cache)
    assert dataset[0].shape == (1, 4, 8, 8)
    with pytest.raises(UnreadableVideoError, match=r"read .*c.gif: .* got a link to nothing"):
        dataset[len(dataset) - 1]


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_frame_that_is_a_link_to_nothing(tmp_path, is_cached):
    (tmp_path / "clips" / "walk").mkdir(parents=True)
    for number in range(3):
        Image.new("L", (8, 8)).save(tmp_path / "clips" / "walk" / f"{number}.png")
    try:
        (tmp_path / "clips" / "walk" / "3.png").symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("the system does not let everybody make links")
    cache = tmp_path / "cache" if is_cached else None
    dataset = dataset_of(tmp_path / "clips", exts=None, cache=cache)
    with pytest.raises(UnreadableVideoError, match=r"cannot read .*walk"):
        dataset[0]


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE])
def test_files_that_may_not_be_read(folder, monkeypatch, is_cached, number):
    def closed(path, **options):
        raise OSError(number, "no")

    monkeypatch.setattr(MODULE, closed)
    is_of_the_file = number == errno.EACCES
    with pytest.raises(UnreadableVideoError if is_of_the_file else OSError, match="no") as error:
        dataset_of(folder, cache=folder / "cache" if is_cached else None)[0]
    assert isinstance(error.value, UnreadableVideoError) is is_of_the_file


def test_a_file_that_goes_away(folder):
    dataset = dataset_of(folder)
    (folder / "a.gif").unlink()
    with pytest.raises(UnreadableVideoError, match=r"a.gif: .* got none, or none any more; allow"):
        dataset[0]


def test_a_library_that_says_only_that_it_cannot_open_the_file(tmp_path):
    def read(path):
        raise OSError("Unable to open file (truncated file)")

    (tmp_path / "a.h5").touch()
    dataset = dataset_of(tmp_path, exts="h5", read_fn=read)
    with pytest.raises(UnreadableVideoError, match=r"a.h5: .* got OSError: Unable to open file"):
        dataset[0]


@pytest.mark.parametrize("is_cached", [True, False])
def test_a_rate_for_files_without_clock_is_no_damage(tmp_path, is_cached):
    np.save(tmp_path / "a.npy", np.zeros((1, 5, 8, 8)))
    cache = tmp_path / "cache" if is_cached else None
    with pytest.raises(ValueError, match=r"cannot cut .*a.npy by fps: .* without a clock") as error:
        dataset_of(tmp_path, exts=["npy"], fps=8, cache=cache)[0]
    assert not isinstance(error.value, UnreadableVideoError)


def test_a_failure_that_is_over_is_forgotten(folder, monkeypatch):
    def fails(path, **options):
        raise UnreadableVideoError("for now")

    with monkeypatch.context() as patch:
        patch.setattr(MODULE, fails)
        with pytest.raises(UnreadableVideoError, match="for now"):
            dataset_of(folder, cache=folder / "cache")[0]
    assert dataset_of(folder, cache=folder / "cache")[0].shape == (1, 4, 8, 8)


def test_arrays_that_no_condition_uses(folder, caplog):
    np.save(folder / "a.npy", np.zeros(3))
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        dataset_of(folder, exts=None, conditions=lambda path: {})
        assert caplog.text == ""
        dataset_of(folder, exts=None)
    assert "left out 1 arrays beside clips of the same name" in caplog.text


def test_splits_of_a_manifest_number_classes_alike(folder):
    table = folder / "clips.csv"
    table.write_text("path,label,split\na.gif,dog,train\nb.gif,cat,test\n")
    options = {"manifest": table, "conditions": "label"}
    train, test = (dataset_of(folder, split=split, **options) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (train[0]["labels"], test[0]["labels"]) == (1, 0)
