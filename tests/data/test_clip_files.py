"""The search for clips in a folder."""

import json
import logging
import os

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.manifest import beside, find_clips


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


def test_what_belongs_to_a_clip_has_its_whole_name(files):
    folder = files("run.v2/1.png", "run.v2/2.png", "run.v2.npy", "run.npy", "a.b.mp4", "a.b.npy")
    assert found(folder) == ["a.b.mp4", "run.npy", "run.v2"]
    assert beside(folder / "run.v2", (".npy",)) == folder / "run.v2.npy"
    assert beside(folder / "a.b.mp4", (".npy",)) == folder / "a.b.npy"


def test_two_endings_of_a_compressed_file(files):
    folder = files("scan.nii.gz", "scan.npy", "scan.txt", "other.npy")
    assert found(folder, ["nii.gz", "npy"]) == ["other.npy", "scan.nii.gz"]
    assert beside(folder / "scan.nii.gz", (".txt",)) == folder / "scan.txt"


def test_unused_arrays_are_left_out_with_a_warning(files, caplog):
    folder = files("a.gif", "a.npy", "b.gif", "b.pt", "c.npy", "d.gif", "d.cond.npy")
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        found(folder)
        assert caplog.text == ""
        assert found(folder, uses_arrays=False) == ["a.gif", "b.gif", "c.npy", "d.gif"]
    assert len(caplog.records) == 1
    assert "left out 2 files beside clips of the same name, such as " in caplog.text
    assert f"{folder / 'a.npy'}: rename those that are clips of their own, and" in caplog.text


def test_stills_that_are_taken_apart_are_named(files, caplog):
    folder = files(
        "a/1.png", "a/2.png", "a/notes.txt", "b/1.png", "b/2.png", "b/map.png", "c/1.jpg",
        "c/2.jpg", "c/x.gif", "d/1.png", "d/1.mp4", "d/2.png", "d/2.mp4",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        clips = found(folder)
    assert clips == ["a", "b/1.png", "b/2.png", "b/map.png", "c/x.gif", "d/1.mp4", "d/2.mp4"]
    assert "numbered pictures of 2 folders are not frames of one clip, such as" in caplog.text
    assert f"{folder / 'b'}: move other files, or the pictures," in caplog.text
    # who asks for pictures by their ending wants them apart
    caplog.clear()
    found(folder / "b", ["png"])
    assert caplog.text == ""


def test_one_ending_needs_no_list(files):
    assert found(files("a.gif", "b.mp4"), "mp4") == ["b.mp4"]


def test_thumbnails_are_left_out_with_a_warning(files, caplog):
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        assert found(files("a.mp4", "a.png", "b.png")) == ["a.mp4", "b.png"]
    assert "left out 1 files beside clips of the same name, such as " in caplog.text


def test_folders_that_are_not_searched(files):
    folder = files("a.gif", "results/1.gif", "b/results/2.gif")
    assert found(folder, exclude=[folder / "results"]) == ["a.gif", "b/results/2.gif"]
    assert found(folder, exclude=str(folder / "results")) == ["a.gif", "b/results/2.gif"]


def test_a_folder_to_exclude_that_is_not_found(files, caplog):
    folder = files("a.gif", "val/1.gif")
    with caplog.at_level(logging.WARNING, logger="video_diffusion_pytorch"):
        assert found(folder, exclude=["val", "other"]) == ["a.gif", "val/1.gif"]
    [record] = caplog.records
    assert "val is no path from the working folder" in record.getMessage()


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
    with pytest.raises(FileNotFoundError, match=r"ending in \.gif or .* got 1 × \.txt; pass"):
        find_clips(files("notes.txt"))
    with pytest.raises(FileNotFoundError, match=r"expected a folder of videos at .*gone, found"):
        find_clips(files() / "gone")
    with pytest.raises(NotADirectoryError, match=r"expected a folder of videos at"):
        find_clips(files() / "notes.txt")


def test_results_of_a_run_are_no_clips(files, caplog):
    folder = files(
        "a.gif", "run/1.gif", "run/sub/2.gif", "old/model-2.5.pt", "old/3.gif", "model-1.pt",
        "big/model-3.sharded/run.pt", "big/4.gif", "mine/model-7.pt", "mine/5.gif",
        "mine/model-best.pt", "log/metrics.jsonl", "log/6.gif", "model-4.sharded/run.pt",
    )  # fmt: skip
    line = {"step": 1, "time": 0.0, "loss": 0.5, "clips_per_second": 3.0}
    (folder / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    # of other programs
    (folder / "log" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    checkpoint = {"format": 1, "version": "1.0", "step": 2, "model": {"w": torch.ones(1)}}
    torch.save({**checkpoint, "ema": {}}, folder / "old" / "model-2.5.pt")
    torch.save({**checkpoint, "ema": {}}, folder / "model-1.pt")
    torch.save({"video": torch.ones(1, 2, 3, 4), "fps": 3}, folder / "mine" / "model-7.pt")
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        clips = found(folder)
    mine = ["a.gif", "log/6.gif", "mine/5.gif", "mine/model-7.pt", "mine/model-best.pt"]
    assert clips == mine
    messages = sorted(record.getMessage() for record in caplog.records)
    assert messages == [
        f"left out the results folder of a run, {folder / name}: samples are not clips"
        for name in ("big", "old", "run")
    ]
    # by itself it may be looked at, as to compare its samples with others
    assert found(folder / "run") == ["1.gif", "sub/2.gif"]
    assert found(folder / "old") == ["3.gif"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
def test_pipes_are_not_opened_by_the_search(files):
    folder = files("a/1.jpg", "a/2.jpg")
    for name in ("model-1.pt", "metrics.jsonl", "a/f3.png", "b.gif", "b.txt", "c/f1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        os.mkfifo(folder / name)
    assert found(folder) == ["a/f3.png", "b.gif", "c", "model-1.pt"]
    assert beside(folder / "b.gif", (".txt",)) is None


def test_names_as_long_as_file_systems_allow(files):
    name = "x" * 251 + ".mp4"
    folder = files(name, "x" * 251 + ".txt")
    assert found(folder) == [name]
    assert beside(folder / name, (".npy", ".txt")) == folder / ("x" * 251 + ".txt")
    assert beside(folder / name, (".cond.json",)) is None
