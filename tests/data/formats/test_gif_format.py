"""The bytes of a gif."""

import contextlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.formats.animations import gif_durations, gif_is_complete
from video_diffusion_pytorch.data.video_file import (
    UnreadableVideoError,
    gif_to_tensor,
    seek_all_images,
    video_tensor_to_gif,
)

GIFS = sorted((Path(__file__).parents[2] / "golden" / "gifs").glob("*.gif"))


def smooth_clip(channels, frames=6, height=20, width=17, seed=0):
    """A clip with many more colours than a palette holds, which repeats some frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 3, 4, 4, generator=generator)
    clip = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0]
    clip[:, 2] = clip[:, 1]
    clip[:, -1] = clip[:, -2]
    return clip


def test_palette_error_stays_small_with_more_colours_than_a_palette(tmp_path):
    clip = smooth_clip(3, height=64, width=64)
    assert len(torch.unique((clip[:, 0] * 255).round().flatten(1), dim=1).T) > 1000
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    error = (gif_to_tensor(tmp_path / "clip.gif") - clip).abs()
    assert error.mean() < 0.02


def test_opacity_is_on_or_off(tmp_path):
    clip = smooth_clip(4)
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    again = gif_to_tensor(tmp_path / "clip.gif", channels=4)
    opaque = (clip[3] * 255).round() >= 128
    assert 0 < opaque.float().mean() < 1
    assert torch.equal(again[3], opaque.float())
    assert ((again - clip)[:3] * opaque).abs().max() < 0.1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equal_frames_are_all_kept(tmp_path, channels):
    clip = torch.full((channels, 7, 8, 8), 0.25)
    clip[-1:] = 1  # the last channel is opacity where there are four
    frames = video_tensor_to_gif(clip, tmp_path / "still.gif")
    again = gif_to_tensor(tmp_path / "still.gif", channels=channels)
    assert len(frames) == again.shape[1] == 7
    assert torch.equal(again, (clip * 255).round() / 255)


@pytest.mark.parametrize("loop", [0, 3, None])
def test_duration_and_loop_are_stored(tmp_path, loop):
    video_tensor_to_gif(smooth_clip(3), tmp_path / "clip.gif", duration=250, loop=loop)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info.get("loop") == loop
        for frame in range(image.n_frames):
            image.seek(frame)
            assert image.info["duration"] == 250


def test_optimized_file_is_smaller(tmp_path):
    clip = smooth_clip(3)
    video_tensor_to_gif(clip, tmp_path / "small.gif")
    video_tensor_to_gif(clip, tmp_path / "large.gif", optimize=False)
    assert (tmp_path / "small.gif").stat().st_size < (tmp_path / "large.gif").stat().st_size


@pytest.mark.parametrize("path", GIFS, ids=lambda path: path.stem)
def test_no_part_of_a_gif_passes_for_the_whole(path):
    content = path.read_bytes()
    assert gif_is_complete(content)
    assert gif_is_complete(content + b"\0\0")
    assert not [end for end in range(6, len(content)) if gif_is_complete(content[:end])]


def test_truncated_gif_is_an_error_where_frames_would_decode(tmp_path):
    content = GIFS[0].read_bytes()
    target = tmp_path / "cut.gif"
    whole = gif_to_tensor(GIFS[0]).shape[1]
    silently_shorter = 0
    for end in [*range(0, len(content), 97), len(content) - 1]:
        target.write_bytes(content[:end])
        # What Pillow notices by itself, with one error or another, is not counted
        with contextlib.suppress(Exception), Image.open(target) as image:
            silently_shorter += len(list(seek_all_images(image))) <= whole
        got = "an empty file" if not end else ".*"
        with pytest.raises(UnreadableVideoError, match=f"cannot read .*cut.gif: .*got {got}"):
            gif_to_tensor(target)
    assert silently_shorter  # otherwise there would be nothing to guard against


def test_durations(tmp_path):
    frames = [Image.new("L", (4, 4), 60 * number) for number in range(3)]
    frames[0].save(
        tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[100, 2560, 0]
    )
    content = (tmp_path / "a.gif").read_bytes()
    assert gif_durations(content) == [0.1, 2.56, 0]
    assert gif_durations(content[:-1]) is None
