"""The pages of a tif."""

from io import BytesIO

import pytest
from PIL import Image

from video_diffusion_pytorch.data.formats.pictures import tiff_pages


def tif(kinds, **options):
    """One page for each kind of page, None for one that does not say."""
    pages = []
    for kind in kinds:
        page = Image.new("L", (4, 4))
        page.encoderinfo = {"tiffinfo": {} if kind is None else {254: kind}}
        pages.append(page)
    file = BytesIO()
    pages[0].save(
        file,
        "TIFF",
        save_all=True,
        append_images=pages[1:],
        tiffinfo={254: kinds[0] or 0},
        **options,
    )
    return file.getvalue()


@pytest.mark.parametrize("is_big", [False, True])
def test_thumbnails_and_masks_are_no_pages(is_big):
    for kinds, pages in [
        ([None], [0]),
        ([None, None, None], [0, 1, 2]),
        ([0, 1, 2, 4, 3, 0], [0, 2, 5]),
        ([1, 1], [0]),
    ]:
        assert tiff_pages(tif(kinds, big_tiff=is_big)) == pages


def test_every_cut_within_the_directories_is_noticed():
    content = tif([None] * 3)
    # a directory begins with its number of entries and that of the width, tag 256
    last = max(
        content.rindex(bytes([count, 0, 0, 1]))
        for count in range(8, 12)
        if bytes([count, 0, 0, 1]) in content
    )
    assert tiff_pages(content[: last + 20]) is None
    assert tiff_pages(content[:9]) is None


def test_directories_in_a_circle_end():
    content = bytearray(tif([None]))
    count = int.from_bytes(content[8:10], "little")
    content[10 + 12 * count : 14 + 12 * count] = (8).to_bytes(4, "little")
    assert tiff_pages(bytes(content)) == [0]
