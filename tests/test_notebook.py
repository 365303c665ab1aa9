"""Videos of any kind play in a notebook, and can be written outside of one."""

import base64
import builtins
import re
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import video_diffusion_pytorch
from video_diffusion_pytorch import read_video, show
from video_diffusion_pytorch.data.display import to_pictures

FRAME = 2


def played(shown):
    """The frames that a browser plays, `(f, h, w, c)` in [0, 1], and their milliseconds."""
    html = shown._repr_html_()
    data = re.fullmatch(r'<img src="data:image/webp;base64,(.*)" alt="[^"]*">', html)[1]
    with Image.open(BytesIO(base64.b64decode(data))) as image:
        assert image.info["loop"] == 0
        frames = [np.array(frame) for frame in ImageSequence.Iterator(image)]
        return torch.from_numpy(np.stack(frames)) / 255, image.info["duration"]


def inside(shown):
    """The video of a grid of one, `(c, f, h, w)`."""
    return shown.video[..., FRAME:-FRAME, FRAME:-FRAME]


# What is shown


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_are_shown_as_they_are(channels):
    videos = torch.rand(2, channels, 3, 8, 8)
    shown = show(videos, columns=2, zoom=1, fps=10)
    frames, milliseconds = played(shown)
    assert milliseconds == 100
    assert frames.shape[:3] == (3, 12, 24)
    for number, video in enumerate(videos):
        at = 12 * number + FRAME
        pixels = frames[:, FRAME : FRAME + 8, at : at + 8].permute(3, 0, 1, 2)
        expected = video.expand(3, -1, -1, -1) if channels == 1 else video
        torch.testing.assert_close(pixels, expected, rtol=0, atol=0.003)


@pytest.mark.parametrize("channels", [2, 5])
def test_other_channels_are_shown_in_false_colours(channels):
    videos = torch.randn(1, channels, 3, 8, 8)
    for value_range in (None, "fit", (-2.0, 2.0)):
        shown = show(videos, zoom=1, value_range=value_range)
        assert torch.equal(inside(shown), to_pictures(videos, value_range)[0])


def test_one_video_arrays_and_bytes():
    video = torch.rand(3, 4, 8, 8)
    expected = show(video[None]).video
    assert torch.equal(show(video).video, expected)
    assert torch.equal(show(video.numpy()).video, expected)
    assert torch.equal(show(video.tolist()).video, expected)
    assert torch.equal(show(video.clone().requires_grad_()).video, expected)
    as_bytes = (video * 255).byte()
    torch.testing.assert_close(show(as_bytes).video, expected, rtol=0, atol=0.004)


def test_one_channel_in_units_is_grey():
    video = torch.linspace(-1000, 3000, 2 * 8 * 8).view(1, 2, 8, 8)
    shown = inside(show(video, zoom=1))
    torch.testing.assert_close(shown, (video + 1000) / 4000)
    for options in ({"value_range": "fit"}, {"false_colour": True}):
        shown = inside(show(video, zoom=1, **options))
        assert torch.equal(shown, to_pictures(video[None], "fit")[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_range_is_from_black_to_white(channels):
    video = torch.linspace(-1000, 1000, channels * 2 * 8 * 8).view(channels, 2, 8, 8)
    shown = inside(show(video, zoom=1, value_range=(-1000, 1000)))
    torch.testing.assert_close(shown, (video + 1000) / 2000)
    cut = inside(show(video, zoom=1, value_range=(0, 500)))
    assert cut.min() == 0
    assert cut.max() == 1


def test_quantities_are_shown_in_false_colours_on_demand():
    video = torch.rand(3, 2, 8, 8)
    assert torch.equal(
        inside(show(video, zoom=1, false_colour=True)), to_pictures(video[None], "fit")[0]
    )
    ranged = show(video, zoom=1, false_colour=True, value_range=(0, 2))
    assert torch.equal(inside(ranged), to_pictures(video[None], (0, 2))[0])


def test_small_videos_are_enlarged():
    assert inside(show(torch.rand(1, 2, 16, 20))).shape == (1, 2, 80, 100)
    assert inside(show(torch.rand(1, 2, 16, 96))).shape == (1, 2, 16, 96)
    assert inside(show(torch.rand(1, 2, 16, 20), zoom=2)).shape == (1, 2, 32, 40)


@pytest.mark.parametrize(
    ("count", "given", "grid"),
    [
        (5, {}, (2, 3)),
        (16, {}, (4, 4)),
        (5, {"rows": 1}, (1, 5)),
        (5, {"columns": 2}, (3, 2)),
        (5, {"rows": 3}, (3, 2)),
        (5, {"rows": 2, "columns": 4}, (2, 4)),
    ],
)
def test_rows_and_columns(count, given, grid):
    shown = show(torch.rand(count, 1, 1, 8, 8), zoom=1, **given)
    assert tuple(side // 12 for side in shown.video.shape[-2:]) == grid
    assert f"in a grid of {grid[0]} x {grid[1]}" in repr(shown)


def test_captions_are_shown_and_read_by_screen_readers():
    videos = torch.zeros(2, 1, 1, 8, 96)
    shown = show(videos, captions=["a <b>", 'she said "no"'])
    plain = show(videos)
    assert shown.video.shape[-2] > plain.video.shape[-2]
    html = shown._repr_html_()
    assert "a &lt;b&gt;; she said &quot;no&quot;" in html
    assert html.count("<") == 1


# Outside of notebooks


def test_the_result_says_what_it_is_and_how_to_get_a_file(tmp_path):
    shown = show(torch.rand(2, 3, 5, 16, 16), fps=24)
    assert repr(shown).startswith("<2 videos of 5 frames, 3 x 16 x 16, at 24 frames per second")
    assert repr(show(torch.rand(3, 5, 16, 16))).startswith("<1 video of 5 frames")
    assert ".save('videos.gif')" in repr(shown)
    for name in ("videos.gif", "videos.mp4", "videos.webp"):
        shown.save(tmp_path / name)
        video, fps = read_video(tmp_path / name)
        assert video.shape == shown.video.shape
        assert fps == pytest.approx(24, rel=0.05)


def test_it_needs_no_ipython(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        assert not name.startswith("IPython"), "IPython was asked for"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert show(torch.rand(1, 2, 8, 8))._repr_html_()


def test_ipython_displays_it():
    formatters = pytest.importorskip("IPython.core.formatters")
    data, _ = formatters.DisplayFormatter().format(show(torch.rand(1, 2, 8, 8)))
    assert data["text/html"].startswith("<img ")
    assert data["text/plain"].startswith("<1 video of 2 frames")


def test_it_is_a_public_name():
    assert "show" in video_diffusion_pytorch.__all__


# Mistakes


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (1, 1, 1, 1, 8, 8), (0, 1, 2, 8, 8)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(
        ValueError, match=r"videos must be real numbers of shape .*got torch.float32 of"
    ):
        show(torch.zeros(shape))


def test_other_types_are_refused():
    with pytest.raises(TypeError, match=r"must be a tensor or an array .* got str; videos of one"):
        show("videos.mp4")
    with pytest.raises(TypeError, match=r"must be a tensor or an array .* got list; .*torch.stack"):
        show([torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 8, 8)])
    with pytest.raises(ValueError, match=r"must be real numbers .* got torch.complex64 of shape"):
        show(torch.zeros(1, 2, 8, 8, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["rows", "columns", "zoom"])
def test_numbers_below_one_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name} must be a whole number of at least 1, got "):
        show(torch.zeros(1, 2, 8, 8), **{name: 0})


def test_a_grid_with_too_few_places_is_refused():
    with pytest.raises(ValueError, match=r"each of 5 videos, got 2 x 2; leave one of them"):
        show(torch.zeros(5, 1, 2, 8, 8), rows=2, columns=2)


def test_other_numbers_are_refused_when_they_are_given():
    video = torch.zeros(1, 2, 8, 8)
    with pytest.raises(ValueError, match=r"fps must be 0.01 to 1000 .* got 0"):
        show(video, fps=0)
    with pytest.raises(ValueError, match=r"captions must be as many as there are videos, 1, got 2"):
        show(video, captions=["a", "b"])
    with pytest.raises(ValueError, match=r"value_range must be .* got \(1, 0\)"):
        show(video, value_range=(1, 0))
