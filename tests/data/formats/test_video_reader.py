"""What the readers of all formats have in common."""

from pathlib import Path

import pytest

from video_diffusion_pytorch.data.formats.readers import (
    FrameTimes,
    VideoReader,
    check_indices,
    mode_of,
)


class Nothing(VideoReader):
    num_frames, fps, times = 0, None, None

    def __init__(self):
        super().__init__(Path("clip.any"), channels=3)
        self.closed = 0

    def close(self):
        self.closed += 1


def test_closed_at_the_end_of_the_with_statement():
    with pytest.raises(KeyError), Nothing() as reader:
        raise KeyError
    assert reader.closed == 1


def test_the_other_kind_of_frames_is_refused():
    with pytest.raises(TypeError, match=r"clip.any as pictures: expected .* call array\(\)"):
        Nothing().pictures(range(1))
    with pytest.raises(TypeError, match=r"clip.any as an array: expected .* call pictures\(\)"):
        Nothing().array(range(1))


@pytest.mark.parametrize(
    "indices", [[], [0], [0, 1, 5], range(0), range(3, 9), range(5, 6, -1), range(10**30)]
)
def test_good_indices(indices):
    assert check_indices(indices) is indices


@pytest.mark.parametrize(
    ("indices", "shown"),
    [
        ([1, 1], r"\[1, 1\]"),
        ([2, 1], r"\[2, 1\]"),
        ([-1], r"\[-1\]"),
        (range(9, 0, -1), r"range\(9, 0, -1\)"),
        (range(-3, 5), r"range\(-3, 5\)"),
        ([0, *range(20)], r"\[0, 0, 1, 2, 3, 4, 5, 6, 7, \.\.\.\]"),
    ],
)
def test_bad_indices(indices, shown):
    with pytest.raises(ValueError, match=f"at least 0 and increase .* got {shown}; sort them"):
        check_indices(indices)


def test_modes():
    assert [mode_of(channels) for channels in (1, 3, 4)] == ["L", "RGB", "RGBA"]
    with pytest.raises(ValueError, match=r"channels must be one of \[1, 3, 4\], got 2; choose"):
        mode_of(2)


@pytest.mark.parametrize("durations", [[], [0.0, 0.0]])
def test_no_clock(durations):
    clock = FrameTimes(durations)
    assert (clock.fps, clock.times, clock.end) == (None, None, None)
