"""The chunks of a webp."""

from io import BytesIO

import pytest
from PIL import Image

from video_diffusion_pytorch.data.formats.animations import webp_durations


def webp(count, **options):
    first, *rest = [Image.new("RGB", (4, 4), (number, 0, 0)) for number in range(count)]
    file = BytesIO()
    first.save(file, "WEBP", save_all=count > 1, append_images=rest, lossless=True, **options)
    return file.getvalue()


def test_durations():
    assert webp_durations(webp(1)) == []
    assert webp_durations(webp(3, duration=[100, 250, 20])) == pytest.approx([0.1, 0.25, 0.02])


def test_every_cut_is_noticed():
    content = webp(3)
    assert [n for n in range(12, len(content)) if webp_durations(content[:n]) is not None] == []


def test_a_chunk_that_is_longer_than_the_file_says():
    content = bytearray(webp(3))
    last = content.rindex(b"ANMF")
    content[last + 4] += 2
    assert webp_durations(bytes(content)) is None


def test_what_follows_the_stated_end_does_not_matter():
    assert webp_durations(webp(1) + b"more") == []
