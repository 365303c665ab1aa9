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
    assert frame_size.read(picture).shape == (*size, 1)
    video = torch.full((2, 3, *shape), 200, dtype=torch.uint8)
    assert frame_size.read_array(video).shape == (2, 3, *size)


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
    video = torch.ones(2, 1, 15, 30)
    filled = FrameSize((20, 20), "contain").finish_array(
        torch.ones(2, 1, 10, 20), black=torch.tensor([-5.0, 3.0])
    )
    assert FrameSize((20, 20), "contain").read_array(video)[:, :, :5].max() == 0
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
