"""The timeline of a file, unreadable files, and options that do not fit the files."""

import errno
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.transforms import Timeline
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

# The timeline


@dataclass
class File:
    """A file of so many frames, shown at these seconds."""

    num_frames: int
    times: list[float] | None = None
    path: Path = Path("clip.mp4")
    end: float | None = None


def at_rate(num_frames, fps):
    return File(num_frames, [i / fps for i in range(num_frames)])


@pytest.mark.parametrize(("skip", "length"), [(1, 10), (2, 5), (3, 4), (10, 1), (99, 1)])
def test_every_nth_frame(skip, length):
    timeline = Timeline(skip)
    assert timeline.length(File(10)) == length
    assert timeline.frames(File(10), range(length)) == list(range(0, 10, skip))


def test_frames_by_number_may_run_past_the_end():
    assert Timeline(3).frames(File(4), range(1, 4)) == [3, 6, 9]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (10, 10, [0, 1, 2, 3, 4, 5]),
        (10, 5, [0, 2, 4]),
        (5, 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]),
        (30, 12, [0, 2, 5]),  # at 0, 83 and 167 ms are shown the frames of 0, 67 and 167 ms
        (30000 / 1001, 30000 / 1001, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_a_rate_takes_the_frame_that_is_shown(source, target, expected):
    timeline, file = Timeline(fps=target), at_rate(6, source)
    assert timeline.length(file) == len(expected)
    assert timeline.frames(file, range(len(expected))) == expected
    # beyond the end there is none
    assert timeline.frames(file, range(1, 99)) == expected[1:]


def test_a_rate_follows_the_files_own_clock():
    slow_then_fast = File(5, [0.0, 1.0, 2.0, 2.25, 2.5])
    assert Timeline(fps=2).frames(slow_then_fast, range(9)) == [0, 0, 1, 1, 2, 4]


def test_the_last_frame_is_seen_for_as_long_as_it_is_shown():
    timeline = Timeline(fps=10)
    for times, end, expected in [
        ([0.0, 0.1, 0.2], 1.2, [0, 1, *[2] * 10]),
        ([0.0, 1.0], 1.1, [*[0] * 10, 1]),
        ([0.0], 0.5, [0] * 5),
        ([2.0, 2.5], 2.51, [0] * 5 + [1]),
    ]:
        file = File(len(times), times, end=end)
        assert timeline.length(file) == len(expected)
        assert timeline.frames(file, range(99)) == expected
    with pytest.raises(UnreadableVideoError, match=r"got a file of 1.200 seconds; correct"):
        timeline.between(File(2, [0.0, 0.2], end=1.2), 2, None)


def test_a_single_frame_is_seen_once():
    assert Timeline(fps=7).length(File(1, [0.0])) == 1


@pytest.mark.parametrize("timeline", [Timeline(), Timeline(2), Timeline(fps=5)])
def test_parts_between_two_seconds(timeline):
    file = at_rate(20, 10)  # two seconds
    shown = 10 if timeline.frame_skip == 1 and timeline.fps is None else 5
    assert timeline.between(file, None, None) == range(2 * shown)
    assert timeline.between(file, 1.0, None) == range(shown, 2 * shown)
    assert timeline.between(file, None, 1.0) == range(shown)
    assert timeline.between(file, 0.4, 1.4).stop - timeline.between(file, 0.4, 1.4).start == shown


def test_a_part_beyond_the_end():
    message = (
        r"cannot read clip.mp4: expected frames from second 3 to None, got a file of 0.900 "
        r"seconds; correct start and end"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        Timeline().between(at_rate(10, 10), 3, None)


@pytest.mark.parametrize(
    "cut",
    [
        lambda: Timeline(fps=5).frames(File(9), range(3)),
        lambda: Timeline(fps=5).length(File(9)),
        lambda: Timeline().between(File(9), 1, 2),
    ],
)
def test_files_without_timestamps(cut):
    message = r"fps, start and end must go with files .*, got clip.mp4 without; choose frames"
    with pytest.raises(ValueError, match=message) as error:
        cut()
    # it concerns all files alike
    assert not isinstance(error.value, UnreadableVideoError)


def test_a_single_picture_needs_no_clock():
    assert Timeline(fps=5).frames(File(1), range(3)) == [0]
    assert Timeline().between(File(1), None, 2) == range(1)


@pytest.mark.parametrize(
    ("frame_skip", "fps"), [(1, 0), (1, -1.0), (1, float("nan")), (1, "8"), (2, 5)]
)
def test_wrong_choice_of_frames(frame_skip, fps):
    message = f"fps must be a positive .* got frame_skip={frame_skip} and fps={fps!r}; pass one"
    with pytest.raises(ValueError, match=message):
        Timeline(frame_skip, fps)


# Files

MODULE = "video_diffusion_pytorch.data.dataset.open_video"


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
    with pytest.raises(UnreadableVideoError, match=r"read .*c.gif: .* got FileNotFoundError"):
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
    with pytest.raises(UnreadableVideoError, match=r"a.gif: .* got FileNotFoundError: .*; allow"):
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
    with pytest.raises(ValueError, match=r"fps, start and end must .* got .*a.npy") as error:
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
    assert "left out 1 files beside clips of the same name" in caplog.text


def test_splits_of_a_manifest_number_classes_alike(folder):
    table = folder / "clips.csv"
    table.write_text("path,label,split\na.gif,dog,train\nb.gif,cat,test\n")
    options = {"manifest": table, "conditions": "label"}
    train, test = (dataset_of(folder, split=split, **options) for split in ("train", "test"))
    assert train.class_names == test.class_names == ("cat", "dog")
    assert (train[0]["labels"], test[0]["labels"]) == (1, 0)
