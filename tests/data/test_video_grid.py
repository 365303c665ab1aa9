"""Clips are laid out in rows, each in its place."""

import pytest
import torch

from video_diffusion_pytorch.data.display import FRAME, text_picture, video_grid


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
    with pytest.raises(ValueError, match=r"(columns|zoom) must be at least 1, got 0; give a posi"):
        video_grid(torch.zeros(1, 1, 1, 2, 2), columns, zoom=zoom)


def test_captions_must_be_as_many_as_the_clips():
    with pytest.raises(ValueError, match=r"captions must be .* 2, got 1; give one for each"):
        video_grid(torch.zeros(2, 1, 1, 2, 2), 1, captions=["one"])
