"""What the readers of all formats have in common, and the formats by name and first bytes."""

from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.readers import (
    FAMILY_OF_ENDING,
    Clock,
    VideoReader,
    check_indices,
    check_signature,
    family_of_bytes,
    mode_of,
)

HEADS = {
    "gif": b"GIF87a" + bytes(10),
    "webp": b"RIFF\x10\x00\x00\x00WEBPVP8 ",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(8),
    "mp4": b"\x00\x00\x00\x20ftypisom" + bytes(4),
    "mkv": b"\x1a\x45\xdf\xa3" + bytes(12),
    "avi": b"RIFF\x10\x00\x00\x00AVI LIST",
    "npy": b"\x93NUMPY\x01\x00" + bytes(8),
    "zip": b"PK\x03\x04" + bytes(12),
}


class FiveFrames(VideoReader):
    """Frames `(1, 1, 1)` of their number; the last is larger."""

    def __init__(self, is_array=True):
        super().__init__(Path("clip.any"), 1, 5)
        self.is_array = is_array

    def _frame(self, index):
        return torch.full((1, 1, 1 + (index == 4)), index) if index < 5 else None


def test_the_other_kind_of_frames_is_refused():
    with pytest.raises(TypeError, match=r"clip.any as pictures: expected .* call array\(\)"):
        FiveFrames().pictures(range(1))
    with pytest.raises(TypeError, match=r"clip.any as an array: expected .* call pictures\(\)"):
        FiveFrames(is_array=False).array(range(1))


def test_frames_past_the_end_are_missing():
    with FiveFrames() as reader:
        assert reader.array([1, 3]).flatten().tolist() == [1, 3]
        assert reader.array([4, 6, 9]).flatten().tolist() == [4, 4]
        assert reader.array(range(7, 10**30)).shape[:2] == (1, 0)
    with FiveFrames(is_array=False) as reader:
        assert len(list(reader.pictures(range(3, 10**30)))) == 2


def test_frames_of_different_sizes():
    text = r"clip.any: expected frames of one size, got \[\(1, 1, 1\), \(1, 1, 2\)\]; bring them"
    with FiveFrames() as reader, pytest.raises(UnreadableVideoError, match=text):
        reader.array(range(5))


def test_closed_at_the_end_of_the_with_statement():
    with pytest.raises(KeyError), FiveFrames() as reader:
        raise KeyError
    with pytest.raises(
        ValueError, match=r"clip.any: expected an open reader, got a closed one; re"
    ):
        reader.array([0])


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
        ([0, *range(20)], r"\[0, 0, 1, 2, 3, 4, \.\.\.\]"),
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
    assert Clock.of_durations(durations) == Clock.of_rate(None, 3) == (None, None, None)


# Names and first bytes


def test_each_format_is_recognised():
    assert set(FAMILY_OF_ENDING.values()) == set(HEADS)
    assert [family_of_bytes(head) for head in HEADS.values()] == list(HEADS)
    assert [family_of_bytes(head) for head in (b"", b"RIFF", b"text")] == [None] * 3


@pytest.mark.parametrize("ending", FAMILY_OF_ENDING)
def test_only_the_format_that_the_name_promises_passes(tmp_path, ending):
    path, family = tmp_path / f"clip.{ending}", FAMILY_OF_ENDING[ending]
    for other, head in HEADS.items():
        path.write_bytes(head)
        if other == family:
            check_signature(path)
            continue
        text = rf"expected the {family} file that its name .* look like {other}; rename it to \."
        with pytest.raises(UnreadableVideoError, match=text):
            check_signature(path)


def test_unknown_content(tmp_path):
    path = tmp_path / "clip.gif"
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*clip.gif, found none"):
        check_signature(path)
    path.write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(UnreadableVideoError, match=r"no known kind of video \(b'<!DOCTYPE html>"):
        check_signature(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match="got an empty file"):
        check_signature(path)
