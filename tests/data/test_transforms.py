"""Transforms of clips: sizes, windows, padding, flips and fitted ranges."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.dataset import join_parts
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import (
    FITS,
    FrameSize,
    View,
    fit_value_range,
    pad_black,
    random_window,
    repeat_ends,
    stretched,
    windows,
)

SHAPES = [(20, 30), (30, 20), (24, 24), (3, 50), (50, 3), (1, 1), (16, 16)]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("shape", SHAPES)
def test_pictures_and_arrays_get_the_size(fit, size, shape):
    frame_size = FrameSize(size, fit)
    picture = Image.fromarray(np.full(shape, 200, np.uint8))
    assert frame_size(picture).shape == (1, *size)
    # filled up is at the end only
    kept = size if fit != "contain" else frame_size.scaled_size(*shape)
    assert frame_size.read(picture).shape == (*kept, 1)
    video = torch.full((2, 3, *shape), 200, dtype=torch.uint8)
    read = frame_size.read_array(video)
    assert read.shape == (2, 3, *kept)
    assert frame_size.finish_array(read).shape == (2, 3, *size)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_each_fit_keeps(shape):
    size = (16, 16)
    scaled = FrameSize(size, "cover").scaled_size(*shape)
    assert min(scaled) == 16
    scaled = FrameSize(size, "contain").scaled_size(*shape)
    assert max(scaled) == 16
    assert min(scaled) >= 1
    assert FrameSize(size, "stretch").scaled_size(*shape) == size


def test_contain_leaves_black_around():
    picture = Image.new("RGB", (30, 15), "white")
    frame = FrameSize((20, 20), "contain")(picture)
    assert frame[:, :5].max() == 0
    assert frame[:, 15:].max() == 0
    assert frame[:, 5:15].min() == 1
    filled = FrameSize((20, 20), "contain").finish_array(
        torch.ones(2, 1, 10, 20), black=torch.tensor([-5.0, 3.0])
    )
    assert filled[0, 0, :5].unique().tolist() == [-5]
    assert filled[1, 0, 15:].unique().tolist() == [3]
    assert filled[:, 0, 5:15].unique().tolist() == [1]


def test_a_random_crop_is_left_to_the_end():
    frame_size = FrameSize((16, 16), crop="random")
    picture = Image.fromarray(np.arange(16 * 32, dtype=np.uint16).reshape(16, 32).astype(np.uint8))
    assert frame_size.read(picture).shape == (16, 32, 1)
    video = torch.arange(32.0).expand(1, 1, 16, 32)
    assert frame_size.read_array(video).shape == (1, 1, 16, 32)
    assert frame_size.finish_array(video, (0.0, 0.0))[0, 0, 0, 0] == 0
    assert frame_size.finish_array(video, (0.0, 1.0))[0, 0, 0, 0] == 16
    assert frame_size.finish_array(video)[0, 0, 0, 0] == 8


@pytest.mark.parametrize("shape", [(3, 4000), (4000, 3), (3, 4001), (2, 100), (31, 700)])
@pytest.mark.parametrize("size", [(16, 16), (24, 8)])
def test_frames_that_are_all_length_are_cut_before_they_are_scaled(shape, size, monkeypatch):
    waves = np.sin(np.add.outer(np.arange(shape[0]), np.arange(shape[1])) / 10)
    pixels = (128 + 127 * waves).astype(np.uint8)
    sizes = []
    resize = Image.Image.resize

    def remember(frame, size, resample):
        sizes.append(size)
        return resize(frame, size, resample)

    monkeypatch.setattr(Image.Image, "resize", remember)
    cut = FrameSize(size).read(Image.fromarray(pixels))
    assert cut.shape == (*size, 1)
    assert max(sizes[0]) <= 4 * max(size)
    array = FrameSize(size).read_array(torch.from_numpy(pixels)[None, None])[0, 0]
    monkeypatch.setattr("video_diffusion_pytorch.data.transforms._EXTREME", 10**6)
    whole = FrameSize(size).read(Image.fromarray(pixels))
    # both take the middle, to half a pixel
    assert np.abs(cut.astype(int) - whole.astype(int)).max() <= 16
    assert np.abs(array.numpy().astype(int) - whole[..., 0].astype(int)).max() <= 16


def test_a_random_crop_of_a_frame_that_is_all_length_may_be_anywhere():
    video = torch.zeros(1, 1, 4, 400)
    assert FrameSize((8, 8), crop="random").read_array(video).shape == (1, 1, 8, 800)


def test_arrays_are_scaled_like_pictures():
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 6, 6, generator=generator), size=(40, 40), mode="bicubic"
    ).clamp(0, 1)
    pixels = (smooth[0, 0] * 255).round().to(torch.uint8)
    frame_size = FrameSize((16, 16))
    of_picture = frame_size.read(Image.fromarray(pixels.numpy()))[..., 0].astype(int)
    of_array = frame_size.read_array(pixels[None, None])[0, 0].numpy().astype(int)
    assert np.abs(of_picture - of_array).max() <= 1
    # floats keep what lies outside [0, 255]
    field = frame_size.read_array(pixels[None, None].float() * -1000)
    assert field.min() < -10_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fit": "fill"}, "^fit must be one of cover, contain, stretch, got 'fill'; choose one of"),
        ({"crop": "left"}, "^crop must be one of center, random, got 'left'; choose one of them$"),
    ],
)
def test_unknown_fit_or_crop(options, message):
    with pytest.raises(ValueError, match=message):
        FrameSize((8, 8), **options)


@pytest.mark.parametrize("total", [1, 4, 5, 9, 10, 23])
def test_windows_share_no_frame_and_leave_less_than_one_out(total):
    parts = windows(range(3, 3 + total), 5)
    frames = [frame for part in parts for frame in part]
    assert frames == list(range(3, 3 + len(frames)))
    assert total - len(frames) < 5
    assert all(len(part) == min(5, total) for part in parts)


def test_random_windows_are_equally_likely():
    generator = torch.Generator().manual_seed(0)
    starts = Counter(random_window(range(2, 10), 5, generator).start for _ in range(4000))
    assert sorted(starts) == [2, 3, 4, 5]
    assert max(starts.values()) < 1.2 * min(starts.values())
    assert random_window(range(4), 5, generator) == range(4)


def test_padding_with_black():
    video = torch.arange(1.0, 4).view(1, 3, 1, 1).expand(2, 3, 2, 2)
    black = torch.tensor([-1.0, -2.0])
    assert pad_black(video, 3, black) is video
    assert pad_black(video, 5, None)[0, :, 0, 0].tolist() == [1, 2, 3, 0, 0]
    assert pad_black(video, 5, black)[1, :, 0, 0].tolist() == [1, 2, 3, -2, -2]
    padded = pad_black(video, 6, black, "center")
    assert padded[1, :, 0, 0].tolist() == [-2, 1, 2, 3, -2, -2]


def test_repeat_ends():
    values = torch.tensor([[1, 2], [3, 4]])
    assert repeat_ends(values, None, 0) is values
    assert repeat_ends(values, 2, 0) is values
    assert repeat_ends(values, 3, 0).tolist() == [[1, 2], [3, 4], [3, 4]]
    assert repeat_ends(values, 4, 1).tolist() == [[1, 2, 2, 2], [3, 4, 4, 4]]
    assert repeat_ends(values, 5, 1, "center").tolist() == [[1, 1, 2, 2, 2], [3, 3, 4, 4, 4]]


@pytest.mark.parametrize("length", [2, 3, 5, 16, 64])
@pytest.mark.parametrize("total", [1, 2, 3, 15, 16, 17, 100])
def test_stretched_positions_are_the_nearest_to_even_distances(total, length):
    found = stretched(range(7, 7 + total), length)
    assert (len(found), found[0], found[-1]) == (length, 7, 6 + total)
    exact = np.linspace(7, 6 + total, length)
    assert np.abs(np.asarray(found) - exact).max() <= 0.5 + 1e-9
    if length <= total:
        assert len(set(found)) == length
    if length == total:
        assert found == [*range(7, 7 + total)]
    assert list(stretched(range(3, 9), 1)) == [3]


def test_views():
    video = torch.arange(12.0).view(1, 1, 3, 4)
    size = FrameSize((3, 4))
    assert torch.equal(View().of(video, size), video)
    assert torch.equal(View(flips=(-1, -2)).of(video, size), video.flip(-1, -2))
    assert View(offset=(0.0, 1.0)).of(video, FrameSize((3, 2)))[0, 0, 0].tolist() == [2, 3]
    assert View(offset=(0.0, 1.0)).of(video, None) is video


def test_views_are_drawn_only_where_they_are_wanted():
    state = torch.get_rng_state()
    assert View.draw(False, (False, False), None) == View()
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(0)
    drawn = [View.draw(True, (True, True), generator) for _ in range(400)]
    assert 140 < sum(-1 in view.flips for view in drawn) < 260
    assert 140 < sum(-2 in view.flips for view in drawn) < 260
    assert {view.offset != (0.5, 0.5) for view in drawn} == {True}


def read(values):
    if values is None:
        raise UnreadableVideoError("damaged")
    return [torch.tensor(values).view(2, 1, 1, -1)]


def test_each_channel_has_its_range():
    parts = [[0.0, 1.0, 5.0, 6.0], None, [-2.0, 0.0, 5.5, 9.0]]
    assert fit_value_range(parts, read)[0] == ((-2.0, 5.0), (1.0, 9.0))
    assert fit_value_range([[0, 1, 200, 255]], read)[0] == ((0.0, 200.0), (1.0, 255.0))


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_the_deviation_is_that_of_the_scaled_values(monkeypatch, offset):
    """Of parts of any size, also far from 0."""
    monkeypatch.setattr("video_diffusion_pytorch.data.transforms.Moments.PART", 7)
    generator = torch.Generator().manual_seed(0)
    sizes = (3, 20, 1)
    parts = [torch.randn(2, n, 1, 5, generator=generator, dtype=torch.float64) for n in sizes]
    parts = [part * torch.tensor([1.0, 30.0]).view(2, 1, 1, 1) + offset for part in parts]
    (low, high), deviation = fit_value_range(parts, lambda part: [part])
    low, high = (torch.tensor(bound, dtype=torch.float64).view(2, 1, 1, 1) for bound in (low, high))
    scaled = (torch.cat(parts, dim=1) - low) / (high - low) * 2 - 1
    assert deviation == pytest.approx(scaled.std(correction=0).item(), rel=1e-6)


def test_ranges_that_cannot_be_found():
    message = r"must find a file that can be read, got none; repair them: damaged"
    with pytest.raises(ValueError, match=message) as caught:
        fit_value_range([None], read)
    assert isinstance(caught.value.__cause__, UnreadableVideoError)
    message = r"must find values that differ in each channel, got \[0.0, 5.0\] to \[1.0, 5.0\]; gi"
    with pytest.raises(ValueError, match=message):
        fit_value_range([[0.0, 1.0, 5.0, 5.0]], read)


def test_parts_of_one_file_are_read_together():
    a, b = Path("a.gif"), Path("b.gif")
    clips = [
        (Clip(a), range(4)),
        (Clip(a), range(4, 8)),
        (Clip(b, "one"), None),
        (Clip(b, "another", "class"), None),
        (Clip(b, start=1.0), None),
    ]
    assert join_parts(clips) == [
        (Clip(a), range(8)),
        (Clip(b), None),
        (Clip(b, start=1.0), None),
    ]
