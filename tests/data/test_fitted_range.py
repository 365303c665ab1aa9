"""Between which values the clips of a dataset lie."""

from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.fitted_range import fit_value_range, join_parts
from video_diffusion_pytorch.data.manifest import Clip


def read(values):
    if values is None:
        raise UnreadableVideoError("damaged")
    return torch.tensor(values).view(2, 1, 1, -1)


def test_each_channel_has_its_range():
    parts = [[0.0, 1.0, 5.0, 6.0], None, [-2.0, 0.0, 5.5, 9.0]]
    assert fit_value_range(parts, read) == ((-2.0, 5.0), (1.0, 9.0))
    assert fit_value_range([[0, 1, 200, 255]], read) == ((0.0, 200.0), (1.0, 255.0))


def test_ranges_that_cannot_be_found():
    message = r"must find a file that can be read, got none; repair them, the first being: damaged"
    with pytest.raises(ValueError, match=message) as caught:
        fit_value_range([None], read)
    assert isinstance(caught.value.__cause__, UnreadableVideoError)
    message = r"must find values that differ in each channel, got \[0.0, 5.0\] to \[1.0, 5.0\]; gi"
    with pytest.raises(ValueError, match=message):
        fit_value_range([[0.0, 1.0, 5.0, 5.0]], read)


def test_parts_of_one_file_are_read_together():
    a, b = Path("a.gif"), Path("b.gif")
    clips = [
        (Clip(a), range(4)),
        (Clip(a), range(4, 8)),
        (Clip(b, "one"), None),
        (Clip(b, "another", "class"), None),
        (Clip(b, start=1.0), None),
    ]
    assert join_parts(clips) == [
        (Clip(a), range(8)),
        (Clip(b), None),
        (Clip(b, start=1.0), None),
    ]
