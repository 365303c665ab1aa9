"""The report before training: cropped pixels, padding and unseen frames."""

import logging

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.report import report_clips


def write(folder, *shapes, start=0):
    """Arrays with these numbers of frames, heights and widths."""
    folder.mkdir(exist_ok=True)
    for number, shape in enumerate(shapes, start):
        np.save(folder / f"{number:03}.npy", np.zeros((1, *shape), np.uint8))


@pytest.fixture
def warnings_of(caplog):
    """Gives the warnings of a folder's clips, by default 8 frames of 24 x 48."""

    def report(folder, size=(24, 48), **options):
        options = {"channels": 1, "num_frames": 8, "exts": None, **options}
        caplog.clear()
        report_clips(Dataset(folder, size, **options))
        assert {record.levelno for record in caplog.records} <= {logging.WARNING}
        return caplog.messages

    return report


def test_clips_that_fit_give_no_warning(tmp_path, warnings_of):
    write(tmp_path / "a", (8, 24, 48), (8, 48, 96), (9, 25, 48), (7, 24, 50))
    for options in ({}, {"clip_start": "random"}, {"pad": "mask"}, {"fit": "contain"}):
        assert warnings_of(tmp_path / "a", **options) == []


def test_height_and_width_in_the_wrong_order(tmp_path, warnings_of):
    write(tmp_path / "a", *[(8, 24, 48)] * 3, (8, 480, 960))
    # scaled to 48 x 96, of whose columns 24 of 96 are kept
    [message] = warnings_of(tmp_path / "a", (48, 24))
    size = "480x960" if "480x960" in message else "24x48"
    assert message == (
        f"75 % of each frame is cropped, such as frames of {size} (height x width) for an "
        "image_size of (48, 24), which is (height, width), too; choose one of their shape, such as "
        "image_size=(24, 48), or fit='contain', which pads instead (in a look at 4 of 4 files)"
    )
    # scaled to 12 x 24, in 48 x 24
    [message] = warnings_of(tmp_path / "a", (48, 24), fit="contain")
    assert message.startswith("75 % of each frame is padding, such as frames of")
    assert "such as image_size=(24, 48), or fit='cover', which crops instead (in" in message
    assert warnings_of(tmp_path / "a", (48, 24), fit="stretch") == []


def test_squares_of_wide_frames(tmp_path, warnings_of):
    write(tmp_path / "a", (8, 36, 64), (8, 36, 64), (8, 20, 20))
    # 16 of 28 columns are kept of two, all of the third: 2 / 3 of 12 / 28
    [message] = warnings_of(tmp_path / "a", 16)
    assert message.startswith("29 % of each frame is cropped, such as frames of 36x64 (height")
    write(tmp_path / "a", (8, 20, 20), start=3)
    assert warnings_of(tmp_path / "a", 16) == []


def test_sizes_after_rotation(tmp_path, warnings_of, write_movie):
    write_movie("a.mp4", num_frames=8, rotation=90)  # stored as 48 x 64
    assert warnings_of(tmp_path, (64, 48), channels=3) == []
    [message] = warnings_of(tmp_path, (48, 64), channels=3)
    assert "frames of 64x48 (height x width) for an image_size of (48, 64)" in message


def test_padding(tmp_path, warnings_of):
    write(tmp_path / "a", *[(2, 24, 48)] * 3, *[(8, 24, 48)] * 5)
    # 3 x 6 of 64 frames: 28 %
    for options in ({"pad_position": "center"}, {"pad": "mask", "clip_start": "all"}):
        assert warnings_of(tmp_path / "a", **options) == [
            "28 % of all frames of the clips are padding; pad='mask' leaves it out of the loss, "
            "and fit_frames='short' or a smaller num_frames avoids it (in a look at 8 of 8 files)"
        ]
    for options in ({"pad": "error"}, {"fit_frames": "short"}, {"force_num_frames": False}):
        assert warnings_of(tmp_path / "a", **options) == []
    write(tmp_path / "a", (8, 24, 48), (8, 24, 48), start=8)
    assert warnings_of(tmp_path / "a") == []


def test_frames_that_are_never_seen(tmp_path, warnings_of):
    write(tmp_path / "a", (15, 24, 48), (31, 24, 48), (8, 24, 48))
    # 24 of 54 frames are seen
    assert warnings_of(tmp_path / "a") == [
        "56 % of all frames of the files are never seen; clip_start='random' shows them (in a look "
        "at 3 of 3 files)"
    ]
    # 4 of 8, 14 and 4 positions of the timeline; 12 of 26
    [message] = warnings_of(tmp_path / "a", num_frames=4, frame_skip=2)
    assert message.startswith("57 % of all frames of the files are never seen")
    # 8 of 15, 24 of 31 and all of 8: 14 of 54 are not
    [message] = warnings_of(tmp_path / "a", clip_start="all")
    assert message.startswith("26 % of all frames of the files are never seen")
    long = {"num_frames": 24, "pad": "error"}
    for options in ({"clip_start": "random"}, {"fit_frames": "all"}, long):
        assert warnings_of(tmp_path / "a", **options) == []


def test_a_sample_of_many_files(tmp_path, warnings_of):
    write(tmp_path / "a", *[(8, 24, 48)] * 130)
    [message] = warnings_of(tmp_path / "a", (48, 24))
    assert "in a look at 100 of 130 files" in message


def test_damaged_files_are_left_to_training(tmp_path, warnings_of):
    write(tmp_path / "a", (8, 24, 48))
    (tmp_path / "a" / "b.npy").write_bytes(b"")
    [message] = warnings_of(tmp_path / "a", (48, 24))
    assert "in a look at 1 of 2 files" in message
    (tmp_path / "a" / "000.npy").write_bytes(b"")
    assert warnings_of(tmp_path / "a", (48, 24)) == []


def test_no_report_of_sizes_with_a_custom_transform(tmp_path, caplog):
    write(tmp_path / "a", (8, 24, 48))
    clips = Dataset(tmp_path / "a", (48, 24), 1, 8, exts=None)
    clips.transform = torch.as_tensor
    report_clips(clips)
    assert caplog.messages == []


def test_a_function_that_reads_is_called_a_few_times(tmp_path, warnings_of):
    write(tmp_path / "a", *[(2, 24, 48)] * 30)
    called = []
    [message] = warnings_of(
        tmp_path / "a", exts="npy", read_fn=lambda path: (called.append(path), np.load(path))[1]
    )
    assert "75 % of all frames of the clips are padding" in message
    assert "in a look at 8 of 30 files" in message
    assert len(set(called)) == len(called) == 8
