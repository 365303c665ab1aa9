"""A file's first bytes and its name have to fit."""

import pytest

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.readers import (
    FAMILY_OF_ENDING,
    check_signature,
    family_of_bytes,
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


def test_each_family_is_known():
    assert set(FAMILY_OF_ENDING.values()) == set(HEADS)
    assert {family: family_of_bytes(head) for family, head in HEADS.items()} == {
        family: family for family in HEADS
    }
    assert [family_of_bytes(head) for head in (b"", b"RIFF", b"text")] == [None] * 3


@pytest.mark.parametrize("family", HEADS)
def test_only_the_right_family_passes(tmp_path, family):
    path = tmp_path / "clip"
    for other, head in HEADS.items():
        path.write_bytes(head)
        if other == family:
            check_signature(path, family)
            continue
        text = rf"expected the {family} file that its name .* look like {other}; rename it to \."
        with pytest.raises(UnreadableVideoError, match=text):
            check_signature(path, family)


def test_no_family(tmp_path):
    (tmp_path / "clip.gif").write_bytes(b"<!DOCTYPE html><html></html>")
    with pytest.raises(UnreadableVideoError, match=r"no known kind of video \(b'<!DOCTYPE html>"):
        check_signature(tmp_path / "clip.gif", "gif")
    (tmp_path / "clip.gif").write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match="got an empty file"):
        check_signature(tmp_path / "clip.gif", "gif")
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.gif, found none"):
        check_signature(tmp_path / "gone.gif", "gif")
