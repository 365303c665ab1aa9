"""Frames become an H.264 movie."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.write_video import write_video


def smooth(channels, frames=7, height=33, width=46, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 3, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0]


def read_movie(path):
    """The frames `(3, f, h, w)` in [0, 1], and what the file says of itself."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        facts = {
            "rate": stream.average_rate,
            "times": [frame.pts * frame.time_base for frame in frames],
            "codec": stream.codec_context.name,
            "pixels": stream.codec_context.pix_fmt,
            "color": {int(frames[0].colorspace), int(frames[0].color_primaries)},
        }
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return torch.from_numpy(video).permute(3, 0, 1, 2) / 255, facts


def psnr(a, b):
    return -10 * torch.log10((a.double() - b.double()).square().mean()).item()


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_comes_close(tmp_path, channels):
    clip = smooth(channels)
    write_video(clip, tmp_path / "clip.mp4")
    again, facts = read_movie(tmp_path / "clip.mp4")
    assert facts["codec"] == "h264"
    assert facts["pixels"] == "yuv420p"
    assert facts["color"] == {1}, "said to be BT.709"
    assert again.shape == (3, 7, 34, 46)
    assert psnr(again[:, :, :33], clip.expand(3, -1, -1, -1)) > 33
    # nothing is lighter or darker, redder or bluer than it was
    assert (again[:, :, :33] - clip).mean(dim=(1, 2, 3)).abs().max() < 0.01
    # the odd row is followed by its copy
    assert (again[:, :, 33] - again[:, :, 32]).abs().mean() < 0.02


def test_mp4_of_pure_colours_keeps_them(tmp_path):
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    clip = colors.T.reshape(3, 5, 1, 1).expand(3, 5, 16, 16)
    write_video(clip, tmp_path / "clip.mp4", crf=4)
    assert (read_movie(tmp_path / "clip.mp4")[0] - clip).abs().max() < 0.04


def test_mp4_shows_transparent_pixels_on_black(tmp_path):
    clip = torch.ones(4, 2, 16, 16)
    clip[3, :, :, :8] = 0
    clip[3, :, 8:] = 0.5
    write_video(clip, tmp_path / "clip.mp4", crf=4)
    again = read_movie(tmp_path / "clip.mp4")[0]
    assert again[:, :, :7, :7].max() < 0.03
    assert again[:, :, :7, 9:].min() > 0.97
    assert (again[:, :, 10:] - 0.5).abs().max() < 0.03


def test_mp4_loses_more_with_a_higher_crf(tmp_path):
    clip = smooth(3, height=64, width=64)
    results = []
    for crf in (2, 40):
        write_video(clip, tmp_path / "clip.mp4", crf=crf)
        again = read_movie(tmp_path / "clip.mp4")[0]
        results.append((psnr(again, clip), (tmp_path / "clip.mp4").stat().st_size))
    assert results[0][0] > results[1][0] + 3
    assert results[0][1] > results[1][1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 17)])
def test_mp4_has_even_sides(tmp_path, size):
    write_video(torch.full((3, 2, *size), 0.5), tmp_path / "clip.mp4")
    video, _ = read_movie(tmp_path / "clip.mp4")
    assert video.shape == (3, 2, size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert (video - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("fps", [8, 0.5, 12.5, 24, 30000 / 1001, Fraction(24000, 1001), 60])
def test_mp4_has_exactly_that_many_frames_per_second(tmp_path, fps):
    write_video(smooth(1, frames=5), tmp_path / "clip.mp4", fps=fps)
    video, facts = read_movie(tmp_path / "clip.mp4")
    exact = Fraction(30000, 1001) if fps == 30000 / 1001 else Fraction(fps)
    assert video.shape[1] == 5
    assert facts["rate"] == exact
    assert facts["times"] == pytest.approx([float(i / exact) for i in range(5)], abs=1e-4)
