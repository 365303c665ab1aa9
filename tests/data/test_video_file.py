"""A video of any format becomes frames, or a whole clip."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data import video_file
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.field_files import FIELD_EXTS
from video_diffusion_pytorch.data.formats.readers import FAMILY_OF_ENDING
from video_diffusion_pytorch.data.video_file import (
    FRAME_EXTS,
    VIDEO_EXTS,
    VideoReader,
    open_video,
    read_video,
)

PICTURES = ["gif", "webp", "png", "apng"]
MOVIES = ["mp4", "m4v", "mov", "mkv", "webm", "avi"]
ARRAYS = ["npy", "npz", "pt"]
SHADES = [0, 20, 40, 60, 80, 100, 120, 140, 160, 180]


def shade(number):
    return np.full((48, 64, 3), SHADES[number], np.uint8)


@pytest.fixture
def write_ten(tmp_path, write_movie):
    """Writes ten frames, each of one shade, in any format; gives the path."""

    def write(ending):
        path = tmp_path / f"ten.{ending}"
        frames = np.stack([shade(number) for number in range(10)])
        if ending in MOVIES:
            codec = {"webm": "libvpx", "avi": "mpeg4"}.get(ending, "libx264")
            return write_movie(path.name, codec=codec, num_frames=10, make=shade)
        if ending == "npy":
            np.save(path, frames)
        elif ending == "npz":
            np.savez(path, video=frames, fps=10)
        elif ending == "pt":
            torch.save({"video": torch.from_numpy(frames), "fps": 10}, path)
        elif ending == "folder":
            path = tmp_path / "ten"
            path.mkdir()
            for number in range(10):
                Image.fromarray(frames[number]).save(path / f"{number}.png")
        else:
            first, *rest = map(Image.fromarray, frames)
            kind = {"apng": "PNG"}.get(ending, ending.upper())
            options = {"lossless": True} if ending == "webp" else {}
            first.save(path, kind, save_all=True, append_images=rest, duration=100, **options)
        return path

    return write


def shades(video):
    return [min(SHADES, key=lambda s: abs(s - float(frame.float().mean()))) for frame in video[0]]


def test_every_ending_is_tried_here():
    # those of fields have tests of their own
    assert set(VIDEO_EXTS) == {*PICTURES, *MOVIES, *ARRAYS, *FIELD_EXTS}
    assert "png" in FRAME_EXTS


@pytest.mark.parametrize("ending", [*PICTURES, *MOVIES, *ARRAYS, "folder"])
def test_read(write_ten, ending):
    path = write_ten(ending)
    video, fps = read_video(path)
    assert video.shape == (3, 10, 48, 64)
    assert (video.dtype, video.is_contiguous()) == (torch.uint8, True)
    assert shades(video) == SHADES
    assert fps == (None if ending in ("npy", "folder") else pytest.approx(10, rel=1e-3))
    part, fps = read_video(str(path), start=1, num_frames=3, frame_skip=4)
    assert torch.equal(part, video[:, 1:10:4])
    assert fps == (None if ending in ("npy", "folder") else pytest.approx(2.5, rel=1e-3))
    if ending not in ARRAYS:
        for channels in (1, 3, 4):
            one, _ = read_video(path, channels=channels, num_frames=1)
            assert one.shape == (channels, 1, 48, 64)
    with open_video(path) as reader:
        assert isinstance(reader, VideoReader)
        assert reader.num_frames == 10
        assert reader.is_array == (ending in ARRAYS)
        times = reader.times
    assert (times is None) == (ending in ("npy", "folder"))
    assert times is None or times == pytest.approx([number / 10 for number in range(10)], abs=1e-3)


def test_endings_in_upper_case(write_ten):
    path = write_ten("gif")
    path.rename(path.with_name("TEN.GIF"))
    assert read_video(path.with_name("TEN.GIF"))[0].shape[1] == 10


@pytest.mark.parametrize("ending", ["gif", "mp4", "npy", "folder"])
def test_beyond_the_end(write_ten, ending):
    path = write_ten(ending)
    assert shades(read_video(path, start=8, num_frames=5)[0]) == SHADES[8:]
    text = r"ten.*: expected a video with a frame number 10, got 10 frames; begin earlier"
    with pytest.raises(UnreadableVideoError, match=text):
        read_video(path, start=10)


@pytest.mark.parametrize("ending", ["gif", "mp4", "npy", "npz", "folder"])
def test_larger_than_allowed(write_ten, ending):
    path = write_ten(ending)
    size = read_video(path)[0].nbytes
    read_video(path, max_bytes=size)
    text = rf"expected .*at most {size - 1} bytes, got .*{size}.*; "
    with pytest.raises(UnreadableVideoError, match=text):
        read_video(path, max_bytes=size - 1)
    if ending != "npz":  # which is inflated as a whole
        read_video(path, max_bytes=size // 2, num_frames=5)


def test_axes(tmp_path):
    np.save(tmp_path / "scan.npy", np.zeros((20, 8, 9), np.float64))
    video, fps = read_video(tmp_path / "scan.npy", axes="fhw")
    assert (video.shape, video.dtype, fps) == ((1, 20, 8, 9), torch.float32, None)
    with pytest.raises(UnreadableVideoError, match="fits one of the orders"):
        open_video(tmp_path / "scan.npy")
    with pytest.raises(ValueError, match="axes must name the stored order"):
        open_video(tmp_path / "scan.gif", axes="thw")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"start": -1}, "start must be a frame's number, from 0 up, got -1"),
        ({"start": 1.0}, "start must be a frame's number, from 0 up, got 1.0"),
        ({"frame_skip": 0}, "frame_skip must be a whole number of at least 1, got 0"),
        ({"num_frames": 0}, "num_frames must be a whole number of at least 1, got 0"),
        ({"num_frames": "8"}, "num_frames must be a whole number of at least 1, got '8'"),
        ({"channels": 2}, r"channels must be one of \[1, 3, 4\], got 2"),
    ],
)
def test_arguments_out_of_range(write_ten, options, text):
    with pytest.raises(ValueError, match=text):
        read_video(write_ten("gif"), **options)


def test_frames_of_different_sizes(tmp_path):
    for number in range(3):
        Image.new("L", (5, 4 + number)).save(tmp_path / f"{number}.png")
    text = r"expected frames of one size, got \[\(4, 5, 1\), .*; bring"
    with pytest.raises(UnreadableVideoError, match=text):
        read_video(tmp_path)


@pytest.mark.parametrize("ending", [*VIDEO_EXTS, "txt", "folder"])
def test_missing_file(tmp_path, ending):
    with pytest.raises(FileNotFoundError, match=rf"expected a video file at .*gone\.{ending}, fo"):
        open_video(tmp_path / f"gone.{ending}")


def test_unknown_ending(tmp_path):
    (tmp_path / "notes.txt").write_text("text")
    text = (
        "ending must be one of gif, webp, .*, nii.gz, got .*notes.txt; give the dataset a read_fn"
    )
    with pytest.raises(ValueError, match=text):
        open_video(tmp_path / "notes.txt")


@pytest.mark.parametrize("ending", FAMILY_OF_ENDING)
def test_empty_and_mislabelled(tmp_path, write_ten, ending):
    path = tmp_path / f"clip.{ending}"
    path.write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match=rf"clip.{ending}: .* got an empty file"):
        open_video(path)
    other = write_ten("npy" if ending == "gif" else "gif")
    path.write_bytes(other.read_bytes())
    with pytest.raises(UnreadableVideoError, match=r"bytes that look like (gif|npy); rename it to"):
        open_video(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names exist on Unix only")
def test_a_pipe_does_not_make_it_wait(tmp_path):
    os.mkfifo(tmp_path / "clip.gif")
    with pytest.raises(UnreadableVideoError, match="expected a regular file, got a pipe, sock"):
        open_video(tmp_path / "clip.gif")


def test_names_of_before_stay():
    old = "ToTensor UnreadableVideoError gif_to_tensor seek_all_images video_tensor_to_gif"
    assert {*old.split(), "CHANNELS_TO_MODE"} <= set(video_file.__all__)
    assert all(hasattr(video_file, name) for name in video_file.__all__)


def test_a_damaged_file_leaves_no_warning_behind(write_ten):
    path = write_ten("png")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"ten.png"):
        read_video(path, num_frames=sys.maxsize)
