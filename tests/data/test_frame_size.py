"""A frame of any size becomes one of the size that training wants."""

import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.frame_size import FITS, FrameSize

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
    monkeypatch.setattr("video_diffusion_pytorch.data.frame_size._EXTREME", 10**6)
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


def test_words_it_does_not_know():
    with pytest.raises(ValueError, match=r"fit must be one of cover, .* got 'fill'; choose one"):
        FrameSize((8, 8), fit="fill")
    with pytest.raises(ValueError, match=r"crop must be one of center, .* got 'left'; choose one"):
        FrameSize((8, 8), crop="left")
