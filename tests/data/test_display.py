"""Clips of any channels and units become pictures."""

import math

import pytest
import torch

from video_diffusion_pytorch.data.display import (
    FRAME,
    NOT_FINITE,
    text_picture,
    to_pictures,
    video_grid,
)

DARK = torch.tensor([0.267, 0.005, 0.329])
BRIGHT = torch.tensor([0.993, 0.906, 0.144])
RED = torch.tensor(NOT_FINITE)


def colors(videos, value_range=None):
    """The colours of the pixels of one row `(1, c, 1, 1, w)`, `(pixels, 3)`."""
    return to_pictures(torch.as_tensor(videos), value_range)[0, :, 0, 0].T


def assert_color(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.001)


# Pictures


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_stay_as_they_are(channels):
    videos = torch.rand(2, channels, 3, 4, 5)
    assert torch.equal(to_pictures(videos), videos)
    assert torch.equal(to_pictures(videos + 5e-4).clamp(max=1), (videos + 5e-4).clamp(max=1))
    as_bytes = (videos * 255).byte()
    torch.testing.assert_close(to_pictures(as_bytes), as_bytes / 255)


def test_pixels_of_pictures_that_are_not_finite_have_a_colour_of_their_own():
    for channels in (1, 3, 4):
        videos = torch.full((1, channels, 1, 1, 4), 0.5)
        videos[0, 0, 0, 0, 1:] = torch.tensor([math.nan, math.inf, -math.inf])
        pictures = to_pictures(videos)
        assert pictures.shape[1] == max(channels, 3)
        assert_color(pictures[0, :3, 0, 0, 0], torch.full((3,), 0.5))
        assert_color(pictures[0, :3, 0, 0, 1:], RED[:, None].expand(3, 3))
        if channels == 4:
            assert pictures[0, 3, 0, 0].tolist() == [0.5, 1, 1, 1]


# Others


def test_channels_are_side_by_side_with_a_line_between():
    videos = torch.randn(2, 5, 3, 4, 6)
    pictures = to_pictures(videos)
    assert pictures.shape == (2, 3, 3, 4, 34)
    for channel in range(5):
        if channel:
            assert (pictures[..., 7 * channel - 1] == 1).all()
        alone = to_pictures(videos[:, channel : channel + 1], "fit")
        assert torch.equal(pictures[..., 7 * channel : 7 * channel + 6], alone)


def test_many_channels_make_several_rows():
    videos = torch.randn(1, 19, 2, 4, 6)
    pictures = to_pictures(videos)
    assert pictures.shape == (1, 3, 2, 3 * 5 - 1, 8 * 7 - 1)
    for channel in range(24):
        row, column = divmod(channel, 8)
        cell = pictures[..., 5 * row : 5 * row + 4, 7 * column : 7 * column + 6]
        if channel < 19:
            assert torch.equal(cell, to_pictures(videos[:, channel : channel + 1], "fit"))
        else:
            assert (cell == 1).all()
    assert (pictures[..., [4, 9], :] == 1).all()


def test_a_channel_spans_its_least_and_its_largest_value_in_the_batch():
    videos = torch.zeros(2, 2, 1, 1, 3)
    videos[0, 0], videos[1, 0] = torch.tensor([-300.0, 0, 20]), torch.tensor([100.0, 500, 20])
    videos[:, 1] = torch.tensor([-0.1, 0.5, 1e-3])
    pictures = to_pictures(videos)
    assert_color(pictures[0, :, 0, 0, 0], DARK)
    assert_color(pictures[1, :, 0, 0, 1], BRIGHT)
    assert_color(pictures[1, :, 0, 0, 4], DARK)
    assert_color(pictures[1, :, 0, 0, 5], BRIGHT)
    assert torch.equal(pictures[0, :, 0, 0, 2], pictures[1, :, 0, 0, 2])


def test_colours_rise_in_lightness():
    row = colors(torch.linspace(-7, 9, 256).view(1, 1, 1, 1, 256))
    lightness = row @ torch.tensor([0.2126, 0.7152, 0.0722])
    assert (lightness.diff() > 0).all()
    assert len(row.unique(dim=0)) == 256


def test_a_range_makes_batches_comparable():
    one = colors([[[[[0.0, 5, 9]]]]], (0, 10))
    other = colors([[[[[5.0, 50, -7]]]]], (0, 10))
    assert torch.equal(one[1], other[0])
    assert_color(other[1], BRIGHT)
    assert_color(other[2], DARK)


def test_a_range_may_be_one_for_each_channel():
    videos = torch.tensor([0.0, 100.0]).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 2)
    row = colors(videos, ([0, 50], (10.0, 100)))
    assert_color(row[0], DARK)
    assert_color(row[4], BRIGHT)
    assert torch.equal(colors(videos, (torch.tensor([0, 50]), 100))[0], row[0])


def test_pictures_are_fields_where_a_range_says_so():
    videos = torch.rand(1, 3, 2, 4, 4)
    assert to_pictures(videos, (0.0, 1.0)).shape == (1, 3, 2, 4, 14)
    assert to_pictures(videos, "fit").shape == (1, 3, 2, 4, 14)


@pytest.mark.parametrize("value_range", [None, (-5.0, 5.0)])
def test_what_is_not_finite_has_a_colour_of_its_own(value_range):
    row = colors([[[[[-5.0, math.nan, math.inf, -math.inf, 5]]]]], value_range)
    assert_color(row[0], DARK)
    assert_color(row[1:4], RED.expand(3, 3))
    assert_color(row[4], BRIGHT)


def test_channels_without_a_range():
    assert_color(colors([[[[[7.0, 7]]]]]), DARK.expand(2, 3))
    assert_color(colors(torch.full((1, 2, 1, 1, 1), math.nan), None)[0], RED)


def test_extremes_so_far_apart_that_their_difference_is_no_float():
    row = colors([[[[[-3e38, 3e38]]]]])
    assert_color(row[0], DARK)
    assert_color(row[1], BRIGHT)


@pytest.mark.parametrize("dtype", [torch.int16, torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    pictures = to_pictures(torch.tensor([-9, 9], dtype=dtype).view(1, 1, 1, 1, 2))
    assert pictures.dtype == torch.float32
    assert_color(pictures[0, :, 0, 0, 1], BRIGHT)


# What cannot be shown


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (0, 3, 4, 5, 6)])
def test_wrong_shapes(shape):
    text = r"shape must be \(videos, channels, frames, .*, got \([03], .*; pass a batch"
    with pytest.raises(ValueError, match=text):
        to_pictures(torch.zeros(shape))


@pytest.mark.parametrize(
    "value_range",
    [(1, 1), (2, 1), (0, math.inf), (math.nan, 1), ([0, 0], 1), (0, [1, 2, -1]), (1,), (1, 2, 3)],
)
def test_wrong_ranges(value_range):
    text = r"value_range must be 'fit' or \(low, high\) .* each of 3 channels, got [\[\(].*; pass"
    with pytest.raises(ValueError, match=text):
        to_pictures(torch.zeros(1, 3, 1, 2, 2), value_range)


# Grids


def cells(grid, rows, columns):
    """What is in each place, row by row."""
    return [cell for row in grid.chunk(rows, dim=-2) for cell in row.chunk(columns, dim=-1)]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("zoom", [1, 3])
def test_each_clip_is_in_its_place(channels, zoom):
    videos = torch.rand(5, channels, 2, 4, 6)
    grid = video_grid(videos, 3, zoom=zoom, frame=0.5)
    height, width = (zoom * side + 2 * FRAME for side in (4, 6))
    assert grid.shape == (channels, 2, 2 * height, 3 * width)
    *shown, left_over = cells(grid, 2, 3)
    for cell, video in zip(shown, videos, strict=True):
        inside = cell[..., FRAME:-FRAME, FRAME:-FRAME]
        assert torch.equal(inside[..., ::zoom, ::zoom], video)
        assert torch.equal(inside[..., zoom - 1 :: zoom, zoom - 1 :: zoom], video)
        assert (cell[..., :FRAME, :] == 0.5).all()
    assert (left_over == 0).all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_captions_stand_under_their_clips(channels):
    captions = ["one", "", "three words that take more than a line"]
    grid = video_grid(torch.zeros(3, channels, 2, 8, 96), 3, captions=captions)
    inked = [cell[:3, 0, 8 + 2 * FRAME :].amax(dim=0) > 0.5 for cell in cells(grid, 1, 3)]
    lines = [cell.any(dim=1).nonzero().flatten() for cell in inked]
    assert len(lines[0])
    assert not len(lines[1])
    assert lines[2].max() > lines[0].max() + 8
    # the same in all frames, and not see-through
    assert torch.equal(grid[:, 0], grid[:, 1])
    if channels == 4:
        assert (grid[3, :, 8 + 2 * FRAME :] == 1).all()


def test_a_text_takes_as_many_lines_as_it_needs():
    short, long = (text_picture("word " * count, 80) for count in (1, 12))
    assert short.shape[1] == long.shape[1] == 80
    assert len(long) > 3 * len(short)
    assert short.min() < 0.5 < short[0, 0] == 1
    assert text_picture("word", 80, 30, ink=1.0, paper=0.0).shape == (30, 80)
    assert text_picture("word", 80, ink=1.0, paper=0.0)[0, 0] == 0


@pytest.mark.parametrize(("columns", "zoom"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(columns, zoom):
    with pytest.raises(
        ValueError, match=r"(columns|zoom) must be a whole number of at least 1, got 0"
    ):
        video_grid(torch.zeros(1, 1, 1, 2, 2), columns, zoom=zoom)


def test_captions_must_be_as_many_as_the_clips():
    with pytest.raises(ValueError, match=r"captions must be .* 2, got 1; give one for each"):
        video_grid(torch.zeros(2, 1, 1, 2, 2), 1, captions=["one"])
