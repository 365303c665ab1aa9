"""Which files of a folder are clips."""

import logging

import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.clip_files import beside, find_clips


@pytest.fixture
def files(tmp_path):
    """Makes empty files, and pictures where a name ends so; gives their folder."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix in (".png", ".jpg"):
                Image.new("L", (4, 4)).save(path)
            else:
                path.touch()
        return tmp_path

    return make


def found(folder, *arguments, **options):
    clips = find_clips(folder, *arguments, **options)
    return [path.relative_to(folder).as_posix() for path in clips]


def test_all_formats_and_folders_of_frames(files):
    folder = files(
        "a.gif", "b.MP4", "c/d.webm", "c/e.npy", "f.mkv", "f/1.png", "f/2.png", "notes.txt",
        "g/frame_01.jpg", "g/frame_02.jpg", "h.pt", ".half.gif", ".git/x.gif", "i.avi",
    )  # fmt: skip
    everything = ["a.gif", "b.MP4", "c/d.webm", "c/e.npy", "f", "f.mkv", "g", "h.pt", "i.avi"]
    assert found(folder) == everything
    # asked for by their endings, folders of frames are none
    assert found(folder, ["npy", "mkv"]) == ["c/e.npy", "f.mkv"]


def test_what_belongs_to_a_clip_is_no_clip(files):
    folder = files(
        "a.mp4", "a.npy", "a.txt", "b.npy", "b.cond.npy", "c.gif", "c.cond.pt", "d.pt", "d.npy"
    )
    assert found(folder) == ["a.mp4", "b.npy", "c.gif", "d.npy", "d.pt"]


def test_arrays_beside_a_folder_of_frames_belong_to_it(files):
    assert found(files("a/1.png", "a/2.png", "a.npy", "b.npy")) == ["a", "b.npy"]


def test_thumbnails_are_left_out_with_a_warning(files, caplog):
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        assert found(files("a.mp4", "a.png", "b.png")) == ["a.mp4", "b.png"]
    assert "left out 1 pictures beside clips of the same name, such as " in caplog.text


def test_folders_that_are_not_searched(files):
    folder = files("a.gif", "results/1.gif", "b/results/2.gif")
    assert found(folder, exclude=[folder / "results"]) == ["a.gif", "b/results/2.gif"]


def test_beside(files):
    folder = files("a.gif", "a.txt", "b.npy", "b.cond.npy", "c.npy", "d/1.png", "d.npy", "e.gif")
    np.save(folder / "a.npy", np.zeros(1))
    assert beside(folder / "a.gif", (".txt",)) == folder / "a.txt"
    assert beside(folder / "a.gif", (".npy", ".pt")) == folder / "a.npy"
    assert beside(folder / "b.npy", (".npy",)) == folder / "b.cond.npy"
    assert beside(folder / "c.npy", (".npy",)) is None
    assert beside(folder / "d", (".npy",)) == folder / "d.npy"
    assert beside(folder / "e.gif", (".npy", ".txt")) is None


def test_nothing_to_be_found(files):
    with pytest.raises(FileNotFoundError, match=r"ending in \.gif or .* got 1 × \.txt; check the"):
        find_clips(files("notes.txt"))
    with pytest.raises(FileNotFoundError, match=r"expected a folder of videos at .*gone, found"):
        find_clips(files() / "gone")
    with pytest.raises(NotADirectoryError, match=r"got a file; pass the folder that holds it"):
        find_clips(files() / "notes.txt")
