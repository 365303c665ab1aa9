"""A folder of numbered stills is one video."""

import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.frame_folder import (
    FrameFolderReader,
    is_frame_folder,
    stills_among,
)


def write_stills(folder, names):
    for number, name in enumerate(names):
        Image.new("L", (6, 4), 10 * number).save(folder / name)


def numbers(pictures):
    return [int(np.asarray(picture).flat[0]) // 10 for picture in pictures]


def test_frames_come_in_the_order_of_their_numbers(tmp_path):
    names = [f"frame{number}.png" for number in (0, 2, 9, 10, 11, 100)]
    write_stills(tmp_path, names)
    (tmp_path / ".DS_Store").write_bytes(b"hidden files do not count")
    (tmp_path / "Thumbs.db").write_bytes(b"nor do those of file managers")
    (tmp_path / "labels.csv").write_bytes(b"nor notes")
    with FrameFolderReader(tmp_path) as reader:
        assert (reader.num_frames, reader.channels, reader.fps, reader.times) == (6, 1, None, None)
        assert numbers(reader.pictures(range(100))) == [0, 1, 2, 3, 4, 5]
        assert numbers(reader.pictures([1, 4])) == [1, 4]
    with FrameFolderReader(tmp_path, channels=3) as reader:
        assert {picture.mode for picture in reader.pictures(range(2))} == {"RGB"}


@pytest.mark.parametrize(
    ("names", "is_one_video"),
    [
        (["a1.png", "a2.png"], True),
        (["a1.png"], True),
        (["001.PNG", "002.PNG"], True),
        (["run7_000_left.jpg", "run7_001_left.jpg"], True),
        ([], False),
        ([".hidden1.png"], False),
        (["a1.png", "b2.png"], False),
        (["a1_left.png", "a2_right.png"], False),
        (["a1.png", "a2.jpg"], False),
        (["a1.png", "a01.png"], False),
        (["a1.png", "a2.png", "notes.txt", "Thumbs.db", "desktop.ini", "x.JSON"], True),
        (["a1.png", "a2.png", "a.csv", "README.md", "a1.xml"], True),
        (["a1.png", "a1.txt", "a2.png"], False),  # a caption for each picture
        (["notes.txt"], False),
        (["a1.png", "notes.doc"], False),
        (["a1.gif", "a2.gif"], False),
        (["a1.mp4"], False),
        (["a.png"], False),
    ],
)
def test_which_folders_are_videos(tmp_path, names, is_one_video):
    for name in names:
        (tmp_path / name).touch()
    assert is_frame_folder(tmp_path, names) is is_one_video


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animations_are_videos_by_themselves(tmp_path, ending):
    first, second = Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4), "red")
    names = [f"clip{number}.{ending}" for number in range(2)]
    for name in names:
        first.save(tmp_path / name, save_all=True, append_images=[second])
    assert not is_frame_folder(tmp_path, names)


@pytest.mark.parametrize("names", [["1.png", "2.png", "map.png"], ["1.png", "2.png", "1.txt"]])
def test_stills_that_are_no_video_because_of_other_files(tmp_path, names):
    write_stills(tmp_path, ["1.png", "2.png"])
    assert not is_frame_folder(tmp_path, names)
    assert stills_among(tmp_path, names) == ["1.png", "2.png"]


@pytest.mark.parametrize(
    "names", [["1.mp4", "1.png", "2.mp4", "2.png"], ["1.png", "a.png"], ["a.mp4"], []]
)
def test_thumbnails_and_single_pictures_are_no_series(tmp_path, names):
    assert stills_among(tmp_path, names) == []


def test_a_first_still_that_cannot_be_looked_into(tmp_path, monkeypatch):
    def closed(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", closed)
    assert is_frame_folder(tmp_path, ["1.png", "2.png"])


def test_other_folders(tmp_path):
    with pytest.raises(UnreadableVideoError, match=r"numbered stills, got an empty folder; put"):
        FrameFolderReader(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UnreadableVideoError, match=r"numbered stills, got notes.txt; put"):
        FrameFolderReader(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone, found none"):
        FrameFolderReader(tmp_path / "gone")
    with pytest.raises(ValueError, match=r"channels must be one of .* got 2"):
        FrameFolderReader(tmp_path, channels=2)


def test_a_damaged_still_is_named(tmp_path):
    write_stills(tmp_path, ["f0.png", "f1.png", "f2.png"])
    (tmp_path / "f1.png").write_bytes((tmp_path / "f1.png").read_bytes()[:-1])
    with FrameFolderReader(tmp_path) as reader:
        frames = reader.pictures(range(3))
        next(frames)
        with pytest.raises(UnreadableVideoError, match=r"f1.png: .* got a png cut short after"):
            next(frames)
