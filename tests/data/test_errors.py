"""Unreadable files: the errors, and the dataset that skips them."""

import errno
import logging
import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import (
    SkipUnreadable,
    UnreadableVideoError,
    file_errors,
    finite,
    missing_file,
    regular_file,
    unreadable,
)


def test_four_parts():
    error = unreadable("a.gif", "a gif", "none", "look again")
    assert str(error) == "cannot read a.gif: expected a gif, got none; look again"
    assert isinstance(error, ValueError)
    # As a worker process would hand it over
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))


def test_missing_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = str(missing_file("a.gif"))
    assert text.startswith("expected a video file at a.gif, found none; check the path")
    assert str(tmp_path.resolve()) in text


def failing(path, error):
    with file_errors(path):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        IsADirectoryError(errno.EISDIR, "Is a directory"),
        OSError(errno.ELOOP, "Too many levels"),
        OSError("Unable to open file (file signature not found)"),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path, error):
    text = r"cannot read .*a.gif: expected a file that can be opened, got .*Error: .*; allow"
    with pytest.raises(UnreadableVideoError, match=text):
        failing(tmp_path / "a.gif", error)


def test_a_missing_frame_is_named(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "frame_1.png"))
    text = r"got FileNotFoundError: \[Errno 2\] No such file: '.*frame_1.png'; allow reading it"
    with pytest.raises(UnreadableVideoError, match=text):
        failing(tmp_path, missing)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC])
def test_what_another_file_would_meet_too_stays_an_error(tmp_path, number):
    with pytest.raises(OSError, match="no") as error:
        failing(tmp_path / "a.gif", OSError(number, "no"))
    assert error.value.errno == number


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a socket", "a device"])
@pytest.mark.parametrize("is_link", [False, True])
def test_irregular_files_are_refused(tmp_path, monkeypatch, kind, is_link):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    path = tmp_path / "clip.gif"
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("clip.gif")
    else:
        path.symlink_to("/dev/zero")
    if is_link:
        (tmp_path / "link.gif").symlink_to(path)
        path = tmp_path / "link.gif"
    got = kind if kind == "a folder" else "a pipe, socket or device"
    text = f"cannot read {path}: expected a regular file, got {got}; store the content in a file"
    with pytest.raises(UnreadableVideoError, match=text):
        regular_file(path)
    (tmp_path / "a.gif").touch()
    assert regular_file(tmp_path / "a.gif") == tmp_path / "a.gif"
    with pytest.raises(FileNotFoundError):
        regular_file(tmp_path / "b.gif")


@pytest.mark.parametrize(
    "values",
    [torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([-1e38, 0.0]), torch.empty(0)],
)
def test_numbers_pass(values):
    assert finite(values, Path("a.npy")) is values


def test_others_are_counted():
    values = torch.tensor([[float("nan"), 1.0], [float("inf"), -float("inf")]])
    message = (
        r"cannot read a.npy: expected finite numbers in float32, got 3 NaN or infinite ones of 4; "
        r"replace them, as with numpy.nan_to_num, or remove the file"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        finite(values, Path("a.npy"))


GIFS = Path(__file__).parents[1] / "golden" / "gifs"


class Counting(torch.utils.data.Dataset):
    """Item `i` is the number `i`; some cannot be read."""

    def __init__(self, total, broken):
        self.total, self.broken, self.asked = total, broken, []

    def __len__(self):
        return self.total

    def __getitem__(self, index):
        self.asked.append(index)
        if index in self.broken:
            raise UnreadableVideoError(f"cannot read clip_{index}.gif")
        return index


def test_damaged_file_is_named_by_the_dataset(tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    with pytest.raises(UnreadableVideoError, match=r"broken\.gif"):
        Dataset(tmp_path, 8)[0]


def test_next_readable_item_is_given():
    dataset = SkipUnreadable(Counting(40, broken={3, 4, 39}))
    assert len(dataset) == 40
    expected = [5 if i in (3, 4) else 0 if i == 39 else i for i in range(40)]
    assert [dataset[i] for i in range(40)] == expected
    assert [dataset[i - 40] for i in range(40)] == expected
    assert dataset.unreadable == {i: f"cannot read clip_{i}.gif" for i in (3, 4, 39)}


def test_known_damage_is_neither_decoded_nor_logged_again(caplog):
    counting = Counting(20, broken={7})
    dataset = SkipUnreadable(counting)
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        assert [dataset[7] for _ in range(3)] == [8, 8, 8]
    assert counting.asked == [7, 8, 8, 8]
    assert [record.getMessage() for record in caplog.records] == [
        "left out item 7 of the dataset: cannot read clip_7.gif"
    ]
    assert caplog.records[0].name == "video_diffusion_pytorch"


def test_more_than_a_tenth_is_an_error():
    dataset = SkipUnreadable(Counting(20, broken={1, 2, 3}))
    text = (
        r"at most a tenth of the 20 files to be unreadable, got 3 so far; repair or remove them, "
        r"the first being:\n  cannot read clip_1.gif\n  cannot read clip_2.gif\n  .*clip_3.gif$"
    )
    for _ in range(2):  # it stays an error, also where the item asked for could be read
        with pytest.raises(UnreadableVideoError, match=text):
            dataset[1]
    with pytest.raises(UnreadableVideoError, match="got 3 so far"):
        dataset[10]


def test_a_tenth_is_not_yet_an_error():
    dataset = SkipUnreadable(Counting(20, broken={1, 2}))
    assert dataset[1] == 3
    assert len(dataset.unreadable) == 2


def test_at_most_five_files_are_named():
    dataset = SkipUnreadable(Counting(100, broken=set(range(100))))
    with pytest.raises(UnreadableVideoError, match="got 11 so far") as caught:
        dataset[0]
    assert str(caught.value).count("clip_") == 5


def test_single_damaged_file_is_an_error():
    dataset = SkipUnreadable(Counting(1, broken={0}))
    for _ in range(2):
        with pytest.raises(UnreadableVideoError, match="got 1 so far"):
            dataset[0]


def test_other_errors_pass_through():
    class Fails(Counting):
        def __getitem__(self, index):
            raise ValueError("something else")

    dataset = SkipUnreadable(Fails(10, set()))
    with pytest.raises(ValueError, match="something else"):
        dataset[0]
    assert not dataset.unreadable


def test_skipping_in_a_loader(tmp_path):
    for number in range(12):
        shutil.copy(GIFS / "rgb_10x24x24.gif", tmp_path / f"{number:02d}.gif")
    (tmp_path / "05.gif").write_bytes((GIFS / "rgb_10x24x24.gif").read_bytes()[:-1])
    dataset = SkipUnreadable(Dataset(tmp_path, 8, num_frames=2))
    batches = list(DataLoader(dataset, batch_size=4))
    assert [tuple(batch.shape) for batch in batches] == [(4, 3, 2, 8, 8)] * 3
    assert "05.gif" in dataset.unreadable[5]


@pytest.mark.parametrize("index", [5, -6])
def test_index_out_of_range(index):
    dataset = SkipUnreadable(Counting(5, broken=set()))
    with pytest.raises(IndexError, match="out of range"):
        dataset[index]
    assert list(dataset) == [0, 1, 2, 3, 4]


def test_items_may_be_read_in_another_way():
    dataset = SkipUnreadable(Counting(20, broken={3}))
    assert dataset.first_readable(3, lambda index: dataset.dataset[index] * 10) == 40
