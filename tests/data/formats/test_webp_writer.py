"""The bytes of an animated webp."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from video_diffusion_pytorch.data.formats.writers import encode_webp


def test_the_file_is_as_long_as_it_says_and_repeats_for_ever():
    content = encode_webp(np.random.randint(0, 256, (3, 5, 4, 3), np.uint8), [10, 20, 30])
    assert len(content) == 8 + int.from_bytes(content[4:8], "little")
    with Image.open(BytesIO(content)) as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 3
        assert image.mode == "RGB"


def test_the_colour_of_transparent_pixels_is_kept():
    pixels = np.random.randint(0, 256, (3, 5, 4, 4), np.uint8)
    pixels[..., 3] = 0
    with Image.open(BytesIO(encode_webp(pixels, [10, 20, 30]))) as image:
        for index in range(3):
            image.seek(index)
            np.testing.assert_array_equal(np.array(image), pixels[index])


def test_a_frame_costs_no_more_than_what_changed():
    moving = np.random.randint(0, 256, (1, 64, 64, 3), np.uint8).repeat(20, axis=0)
    moving[range(20), range(20), range(20)] = 7
    still, all_new = encode_webp(moving, [10] * 20), np.random.randint(0, 256, moving.shape)
    assert len(still) < 0.1 * len(encode_webp(all_new.astype(np.uint8), [10] * 20))


@pytest.mark.parametrize("size", [(1, 16383), (16383, 1)])
def test_the_largest_side(size):
    pixels = np.zeros((2, *size, 1), np.uint8)
    pixels[1, -1, -1] = 9
    with Image.open(BytesIO(encode_webp(pixels, [10, 10]))) as image:
        image.seek(1)
        np.testing.assert_array_equal(np.array(image.convert("L")), pixels[1, ..., 0])


def test_a_time_for_each_frame():
    with pytest.raises(ValueError, match="shorter"):
        encode_webp(np.zeros((2, 4, 4, 1), np.uint8), [10])
