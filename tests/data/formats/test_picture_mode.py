"""A picture of any mode becomes one of 8 bit without loss of range."""

import numpy as np
import pytest
from PIL import Image

from video_diffusion_pytorch.data.formats.picture_file import PictureReader
from video_diffusion_pytorch.data.formats.picture_mode import stored_channels, to_mode


def test_sixteen_bit_grey_is_scaled(tmp_path):
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    with PictureReader(tmp_path / "deep.png") as reader:
        assert reader.channels == 1
        (picture,) = reader.pictures([0])
    assert np.asarray(picture).tolist() == [[0, 0, 1, 1, 128, 255]]
    with PictureReader(tmp_path / "deep.png", channels=3) as reader:
        (picture,) = reader.pictures([0])
    assert np.asarray(picture)[0, -2].tolist() == [128, 128, 128]


def test_older_pillow_opens_sixteen_bit_png_as_32_bit():
    picture = Image.new("I", (1, 1), 65535)
    picture.format = "PNG"
    assert to_mode(picture, "L").getpixel((0, 0)) == 255


@pytest.mark.parametrize("mode", ["F", "I"])
def test_numbers_of_unknown_range(mode):
    text = f"mode must be one that states its range, got '{mode}'; store such numbers as .npy"
    with pytest.raises(ValueError, match=text):
        to_mode(Image.new(mode, (1, 1)), "L")


def test_palette_with_opacities(tmp_path):
    """Pillow warns when such a picture is made RGB at once, and warnings are errors here."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    for channels, pixels in [
        (3, [[255, 0, 0], [0, 0, 255]]),
        (4, [[255, 0, 0, 0], [0, 0, 255, 128]]),
    ]:
        with PictureReader(tmp_path / "palette.png", channels) as reader:
            (frame,) = reader.pictures([0])
        assert np.asarray(frame)[0].tolist() == pixels


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "rgb"),
    [
        ("1", 1, 1, (255, 255, 255)),
        ("L", 77, 1, (77, 77, 77)),
        ("LA", (77, 3), 4, (77, 77, 77)),
        ("RGBA", (1, 2, 3, 4), 4, (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), 3, (255, 0, 0)),
    ],
)
def test_modes(mode, colour, channels, rgb):
    picture = Image.new(mode, (1, 1), colour)
    assert stored_channels(picture) == channels
    assert to_mode(picture, "RGB").getpixel((0, 0)) == rgb
