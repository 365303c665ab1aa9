"""Which part of a file a clip is."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.clip_window import (
    View,
    fill_up,
    random_window,
    repeat_ends,
    stretched,
    windows,
)
from video_diffusion_pytorch.data.frame_size import FrameSize

FILE = Path("clip.gif")


@pytest.mark.parametrize("total", [1, 4, 5, 9, 10, 23])
def test_windows_share_no_frame_and_leave_less_than_one_out(total):
    parts = windows(range(3, 3 + total), 5)
    frames = [frame for part in parts for frame in part]
    assert frames == list(range(3, 3 + len(frames)))
    assert total - len(frames) < 5
    assert all(len(part) == min(5, total) for part in parts)


def test_random_windows_are_equally_likely():
    generator = torch.Generator().manual_seed(0)
    starts = Counter(random_window(range(2, 10), 5, generator).start for _ in range(4000))
    assert sorted(starts) == [2, 3, 4, 5]
    assert max(starts.values()) < 1.2 * min(starts.values())
    assert random_window(range(4), 5, generator) == range(4)


def test_filling_up():
    video = torch.arange(1.0, 4).view(1, 3, 1, 1).expand(2, 3, 2, 2)
    black = torch.tensor([-1.0, -2.0])
    assert fill_up(video, 3, "error", None, FILE) is video
    assert fill_up(video, 5, "black", None, FILE)[0, :, 0, 0].tolist() == [1, 2, 3, 0, 0]
    assert fill_up(video, 5, "black", black, FILE)[1, :, 0, 0].tolist() == [1, 2, 3, -2, -2]
    assert fill_up(video, 5, "repeat", black, FILE)[0, :, 0, 0].tolist() == [1, 2, 3, 3, 3]
    assert fill_up(video, 6, "black", black, FILE, "center")[1, :, 0, 0].tolist() == [
        -2, 1, 2, 3, -2, -2,
    ]  # fmt: skip
    assert fill_up(video, 7, "mask", None, FILE, "center")[0, :, 0, 0].tolist() == [
        1, 1, 1, 2, 3, 3, 3,
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"clip.gif must have 5 frames .* got 3; remove it, or"):
        fill_up(video, 5, "error", None, FILE)


def test_repeat_ends():
    values = torch.tensor([[1, 2], [3, 4]])
    assert repeat_ends(values, None, 0) is values
    assert repeat_ends(values, 2, 0) is values
    assert repeat_ends(values, 3, 0).tolist() == [[1, 2], [3, 4], [3, 4]]
    assert repeat_ends(values, 4, 1).tolist() == [[1, 2, 2, 2], [3, 4, 4, 4]]
    assert repeat_ends(values, 5, 1, "center").tolist() == [[1, 1, 2, 2, 2], [3, 3, 4, 4, 4]]


@pytest.mark.parametrize("length", [2, 3, 5, 16, 64])
@pytest.mark.parametrize("total", [1, 2, 3, 15, 16, 17, 100])
def test_stretched_positions_are_the_nearest_to_even_distances(total, length):
    found = stretched(range(7, 7 + total), length)
    assert (len(found), found[0], found[-1]) == (length, 7, 6 + total)
    exact = np.linspace(7, 6 + total, length)
    assert np.abs(np.asarray(found) - exact).max() <= 0.5 + 1e-9
    if length <= total:
        assert len(set(found)) == length
    if length == total:
        assert found == [*range(7, 7 + total)]
    assert list(stretched(range(3, 9), 1)) == [3]


def test_views():
    video = torch.arange(12.0).view(1, 1, 3, 4)
    size = FrameSize((3, 4))
    assert torch.equal(View().of(video, size), video)
    assert torch.equal(View(flips=(-1, -2)).of(video, size), video.flip(-1, -2))
    assert View(offset=(0.0, 1.0)).of(video, FrameSize((3, 2)))[0, 0, 0].tolist() == [2, 3]
    assert View(offset=(0.0, 1.0)).of(video, None) is video


def test_views_are_drawn_only_where_they_are_wanted():
    state = torch.get_rng_state()
    assert View.draw(False, False, False, None) == View()
    assert torch.equal(torch.get_rng_state(), state)
    generator = torch.Generator().manual_seed(0)
    drawn = [View.draw(True, True, True, generator) for _ in range(400)]
    assert 140 < sum(-1 in view.flips for view in drawn) < 260
    assert 140 < sum(-2 in view.flips for view in drawn) < 260
    assert {view.offset != (0.5, 0.5) for view in drawn} == {True}
