"""The chunks of a png."""

from io import BytesIO

import pytest
from PIL import Image

from video_diffusion_pytorch.data.formats.animations import png_durations


def png(count, **options):
    first, *rest = [Image.new("L", (4, 4), number) for number in range(count)]
    file = BytesIO()
    first.save(file, "PNG", save_all=count > 1, append_images=rest, **options)
    return file.getvalue()


def test_durations():
    assert png_durations(png(1)) == []
    assert png_durations(png(3, duration=[100, 250, 20])) == pytest.approx([0.1, 0.25, 0.02])
    assert png_durations(png(3, default_image=True, duration=50)) == pytest.approx([0.05] * 2)


def test_every_cut_is_noticed():
    content = png(3)
    assert [n for n in range(8, len(content)) if png_durations(content[:n]) is not None] == []


def test_frames_that_are_announced_and_missing():
    content = png(3)
    last = content.rindex(b"fcTL") - 4
    assert png_durations(content[:last] + png(1)[-12:]) is None
