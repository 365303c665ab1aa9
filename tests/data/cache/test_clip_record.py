"""A line of the index says what it said, or nothing."""

import numpy as np
import pytest

from video_diffusion_pytorch.data.cache.clip_record import Record, from_line, to_line

RECORD = Record("/a/ä \udc80.gif", "12 34", "ab", 64, (2, 3), "<f4", None)


def test_a_line_gives_what_was_put_in():
    line = to_line(RECORD)
    assert line.isascii()
    assert line.count(b"\n") == 1
    for text in (line, line.rstrip(b"\n")):
        fields = from_line(text)
        assert Record(*fields)._replace(shape=tuple(fields[4])) == RECORD


@pytest.mark.parametrize("position", range(len(to_line(RECORD)) - 1))
def test_a_line_that_changed_gives_nothing(position):
    line = bytearray(to_line(RECORD))
    line[position] ^= 1
    assert from_line(bytes(line)) is None


@pytest.mark.parametrize("line", [b"", b"\n", b"00000000 ", to_line([1, 2])[:-3]])
def test_a_line_that_was_cut_gives_nothing(line):
    assert from_line(line) is None


def test_the_size_is_that_of_the_array():
    clip = np.zeros((2, 3), "<f4")
    assert Record("a", "", "", 0, clip.shape, clip.dtype.str).num_bytes == clip.nbytes
    assert Record("a", "", "", error="broken").num_bytes == 0
