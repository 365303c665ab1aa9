"""The plan by which a long video is drawn in windows."""

from itertools import product

import pytest
import torch

from video_diffusion_pytorch.diffusion.completion import (
    Window,
    checked_overlap,
    cut_condition,
    windows,
)


def every(factor, num_frames):
    return [frame % factor == 0 for frame in range(num_frames)]


def first(count, num_frames):
    return [frame < count for frame in range(num_frames)]


def spans(plan):
    return [(window.start, window.stop) for window in plan]


def test_a_short_video_is_one_window():
    for known in (first(2, 8), first(0, 8), every(3, 8)):
        assert spans(windows(known, known, length=8, overlap=4)) == [(0, 8)]
        assert spans(windows(known, known, length=16, overlap=4)) == [(0, 8)]


def test_windows_go_on_from_what_is_there():
    known = first(20, 40)
    plan = windows(known, known, length=16, overlap=4)
    assert spans(plan) == [(16, 32), (24, 40)]  # the last overlaps more
    assert [window.ready for window in plan] == [4, 8]
    assert [window.keep for window in plan] == [32, 40]
    # a beginning shorter than the overlap is all there is
    assert windows(first(2, 40), first(2, 40), 16, 8)[0] == Window(0, 16, 2, 16)


def test_known_frames_are_passed_over():
    known = [True] * 40
    assert windows(known, known, length=8, overlap=4) == []
    known[3] = known[30] = False
    assert spans(windows(known, known, length=8, overlap=4)) == [(0, 8), (26, 34)]
    assert windows([], [], length=8, overlap=4) == []


def test_frames_between_known_ones_are_drawn_with_both():
    # the first window ends three frames behind a known one, which the next draws again
    plan = windows(every(4, 41), every(4, 41), length=16, overlap=8)
    assert plan[:3] == [Window(0, 16, 1, 13), Window(5, 21, 8, 21), Window(13, 29, 8, 29)]
    assert plan[-1].keep == 41
    # where the next window does not get as far, nothing is drawn twice
    assert windows(every(12, 49), every(12, 49), length=16, overlap=8)[0].keep == 16
    # nor where a frame is partly known and partly drawn
    assert windows(first(0, 40), [True] * 40, length=16, overlap=8)[0].keep == 16


@pytest.mark.parametrize("length", [2, 5, 16])
def test_all_frames_are_drawn_in_order(length):
    cases = [
        (list(known), list(partly), overlap)
        for num_frames in (1, 4, 7, 33)
        for known, partly, overlap in product(
            (every(2, num_frames), every(5, num_frames), first(3, num_frames)),
            (every(3, num_frames), [True] * num_frames, [False] * num_frames),
            range(1, length),
        )
    ]
    for known, partly, overlap in cases:
        partly = [a or b for a, b in zip(known, partly, strict=True)]
        there = list(known)
        for window in windows(known, partly, length, overlap):
            # goes on from all before it, is full if it can be, and draws something
            assert all(there[: window.start + window.ready])
            assert not there[window.start + window.ready]
            assert window.stop - window.start == min(length, len(known))
            assert window.ready >= min(overlap, there.index(False))
            assert window.start + window.ready < window.keep <= window.stop
            there[window.start : window.keep] = [True] * (window.keep - window.start)
        assert all(there)


def test_half_a_window_is_the_usual_overlap():
    assert checked_overlap("extend", None, num_frames=40, length=16) == 8
    assert checked_overlap("extend", 3, num_frames=40, length=16) == 3
    # a single window has none, unless it is asked for
    assert checked_overlap("extend", None, num_frames=16, length=16) == 0
    assert checked_overlap("extend", 3, num_frames=16, length=16) == 3


def test_conditions_are_cut_along_their_frames():
    frames = slice(2, 5)
    field, vectors, picture = torch.rand(2, 1, 8, 4, 4), torch.rand(2, 8, 3), torch.rand(2, 1, 8, 4)
    assert torch.equal(cut_condition("cond_video", field, frames), field[:, :, 2:5])
    assert torch.equal(cut_condition("frame_cond", vectors, frames), vectors[:, 2:5])
    # others have none, and so has a field that is the same for all
    assert cut_condition("cond_video", picture, frames) is picture
    assert cut_condition("cond", vectors, frames) is vectors
    both = cut_condition("negative_cond", {"frame_cond": vectors, "cond": picture}, frames)
    assert torch.equal(both["frame_cond"], vectors[:, 2:5])
    assert both["cond"] is picture
