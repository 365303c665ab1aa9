"""A decoded frame becomes a picture the right way up, in 1, 3 or 4 channels."""

import struct

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.movie_file import MovieReader
from video_diffusion_pytorch.data.formats.movie_picture import channels_of_format, picture_of


def quarters(number):
    """Four shades: 40 top left, 80 top right, 120 bottom left, 160 bottom right."""
    shades = np.array([[40, 80], [120, 160]], np.uint8).repeat(24, 0).repeat(32, 1)
    return np.repeat(shades[..., None], 3, axis=2)


def corners(picture):
    """The shades of the four quarters, row by row."""
    pixels = np.asarray(picture.convert("L")).astype(int)
    h, w = pixels.shape
    rows = [pixels[y, x] for y in (h // 4, h * 3 // 4) for x in (w // 4, w * 3 // 4)]
    return [round(shade / 40) for shade in rows]


@pytest.mark.parametrize(
    ("rotation", "expected", "size"),
    [
        (0, [1, 2, 3, 4], (64, 48)),
        (90, [2, 4, 1, 3], (48, 64)),  # counter-clockwise: what was on the right is on top
        (180, [4, 3, 2, 1], (64, 48)),
        (-90, [3, 1, 4, 2], (48, 64)),
    ],
)
def test_rotation(write_movie, rotation, expected, size):
    path = write_movie("clip.mp4", num_frames=3, rotation=rotation, make=quarters)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).rotation in (rotation, -rotation)
    with MovieReader(path) as reader:
        for picture in reader.pictures(range(3)):
            assert corners(picture) == expected
            assert picture.size == size


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), [1, 2, 3, 4]),
        ((-1, 0, 0, 1), [2, 1, 4, 3]),
        ((1, 0, 0, -1), [3, 4, 1, 2]),
        ((0, 1, 1, 0), [1, 3, 2, 4]),
        ((0, -1, -1, 0), [4, 2, 3, 1]),
    ],
)
def test_mirrored(write_movie, matrix, expected):
    """Patches the track's matrix, since PyAV writes rotations only."""
    path = write_movie("clip.mp4", num_frames=1, make=quarters)
    content = path.read_bytes()
    plain = struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    a, b, c, d = (65536 * value for value in matrix)
    track = content.index(plain, content.index(b"tkhd"))
    patched = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:track] + patched + content[track + 36 :])
    with MovieReader(path) as reader:
        assert [corners(picture) for picture in reader.pictures([0])] == [expected]


def test_other_turns_are_refused(write_movie):
    path = write_movie("clip.mp4", num_frames=1, rotation=30)
    text = r"turned by quarters of a circle, got a display matrix of \d+, .*; turn the frames"
    with MovieReader(path) as reader, pytest.raises(UnreadableVideoError, match=text):
        next(reader.pictures([0]))


def rgba(number):
    opacity = np.full((48, 64), 6 * number, np.uint8)
    return np.dstack([quarters(number), opacity])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.mkv", {"codec": "ffv1", "pixels": "yuva420p"}),
        ("clip.mov", {"codec": "png", "pixels": "rgba"}),
        ("vp9.webm", {"codec": "libvpx-vp9", "pixels": "yuva420p", "options": {"cpu-used": "8"}}),
        ("vp8.webm", {"codec": "libvpx", "pixels": "yuva420p"}),
    ],
)
def test_opacity(write_movie, name, options):
    options = {**options, "options": {**options.get("options", {})}}
    if name.endswith("webm"):
        options["options"]["auto-alt-ref"] = "0"
    path = write_movie(name, make=rgba, made_as="rgba", num_frames=24, **options)
    with MovieReader(path) as reader:
        assert reader.channels == 4
        for number in (0, 5, 20, 13):
            (picture,) = reader.pictures([number])
            assert picture.mode == "RGBA"
            assert abs(picture.getpixel((5, 5))[3] - 6 * number) <= 3
    with MovieReader(path, channels=3) as reader:
        assert next(reader.pictures([0])).mode == "RGB"


@pytest.mark.parametrize("pixels", ["gray", "gray10le", "gray16le"])
def test_grey(write_movie, pixels):
    path = write_movie("clip.mkv", codec="ffv1", pixels=pixels, num_frames=2, make=quarters)
    with MovieReader(path) as reader:
        assert reader.channels == 1
        pictures = list(reader.pictures(range(2)))
        assert {picture.mode for picture in pictures} == {"L"}
        assert corners(pictures[0]) == [1, 2, 3, 4]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_ten_bit(write_movie, channels):
    path = write_movie("clip.mkv", codec="ffv1", pixels="yuv420p10le", num_frames=2, make=quarters)
    with MovieReader(path, channels) as reader:
        assert corners(next(reader.pictures([0]))) == [1, 2, 3, 4]
    with MovieReader(path) as reader:
        assert reader.channels == 3


def test_pixels_are_those_that_pyav_gives(tmp_path):
    frame = av.VideoFrame.from_ndarray(quarters(0), format="rgb24").reformat(format="yuv444p")
    for channels, name in ((1, "gray"), (3, "rgb24"), (4, "rgba")):
        pixels = np.asarray(picture_of(frame, channels, tmp_path, VideoReformatter()))
        assert np.array_equal(pixels, frame.to_ndarray(format=name))


def test_formats():
    names = ["gray", "gray12be", "monob", "yuv420p", "rgb24", "nv12", "yuva444p10le", "rgba"]
    channels = [channels_of_format(av.VideoFormat(name)) for name in names]
    assert channels == [1, 1, 1, 3, 3, 3, 4, 4]
