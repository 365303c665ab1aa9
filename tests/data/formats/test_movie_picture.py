"""A decoded frame becomes a picture the right way up, in 1, 3 or 4 channels."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter
from PIL import Image

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.movies import (
    MovieReader,
    channels_of_format,
    picture_of,
    values_of,
)
from video_diffusion_pytorch.data.video_file import read_video


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


def test_grey(write_movie):
    path = write_movie("clip.mkv", codec="ffv1", pixels="gray", num_frames=2, make=quarters)
    with MovieReader(path) as reader:
        assert (reader.channels, reader.is_array) == (1, False)
        pictures = list(reader.pictures(range(2)))
        assert {picture.mode for picture in pictures} == {"L"}
        assert corners(pictures[0]) == [1, 2, 3, 4]


@pytest.mark.parametrize("place", [(10, 255), (30, 128), (55, 0)])
@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("clip.mov", "qtrle", "argb"),
        ("clip.mov", "prores_ks", "yuva444p10le"),
        ("clip.avi", "huffyuv", "bgra"),
        ("clip.mov", "png", "ya8"),
    ],
)
def test_frames_with_opacity_are_put_on_black(write_movie, name, codec, pixels, place):
    def make(number):
        opacity = np.zeros((48, 64), np.uint8)
        opacity[:, :20], opacity[:, 20:40] = 255, 128
        return np.dstack([np.full((48, 64, 3), 200, np.uint8), opacity])

    path = write_movie(name, codec=codec, pixels=pixels, num_frames=2, make=make, made_as="rgba")
    column, opacity = place
    for channels in (1, 3, 4):
        video, _ = read_video(path, channels=channels)
        shade = 200 if channels == 4 else 200 * opacity / 255
        expected = [shade] * min(channels, 3) + [opacity] * (channels == 4)
        assert video[:, 1, 20, column].tolist() == pytest.approx(expected, abs=2)


def bitmap_avi(frames, palette=b"", bits=32):
    """An avi of uncompressed bitmaps `(h, w, bytes)`, as Windows and ImageJ write them."""

    def chunk(name, body):
        return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)

    height, width = frames[0].shape[:2]
    size = frames[0].nbytes
    main = struct.pack("<14I", 40000, 0, 0, 16, len(frames), 0, 1, size, width, height, 0, 0, 0, 0)
    rates = struct.pack("<8I", 0, 1, 25, 0, len(frames), size, 0, 0)
    head = b"vids" + bytes(12) + rates + struct.pack("<4H", 0, 0, width, height)
    kind = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 0, size, 0, 0, len(palette) // 4, 0
    )
    stream = chunk(b"LIST", b"strl" + chunk(b"strh", head) + chunk(b"strf", kind + palette))
    body, index = b"movi", b""
    for frame in frames:
        index += struct.pack("<4sIII", b"00db", 16, len(body), size)
        body += chunk(b"00db", frame[::-1].tobytes())
    header = chunk(b"LIST", b"hdrl" + chunk(b"avih", main) + stream)
    return chunk(b"RIFF", b"AVI " + header + chunk(b"LIST", body) + chunk(b"idx1", index))


@pytest.mark.parametrize("last", [0, 255])
def test_the_fourth_byte_of_a_bitmap_is_no_opacity(tmp_path, last):
    frame = np.full((16, 32, 4), (10, 100, 200, last), np.uint8)
    (tmp_path / "clip.avi").write_bytes(bitmap_avi([frame] * 3))
    video, _ = read_video(tmp_path / "clip.avi")
    assert video[:, 2, 5, 5].tolist() == [200, 100, 10]


def test_palette_of_a_bitmap_film_far_from_the_start(tmp_path):
    palette = np.random.default_rng(0).integers(0, 256, (256, 4), dtype=np.uint8)
    frames = [np.full((16, 16), 4 * number, np.uint8) for number in range(60)]
    (tmp_path / "clip.avi").write_bytes(bitmap_avi(frames, palette.tobytes(), bits=8))
    with MovieReader(tmp_path / "clip.avi") as reader:
        for number in (50, 7):
            (picture,) = reader.pictures([number])
            assert picture.getpixel((3, 3)) == tuple(palette[4 * number, 2::-1])


# Values of more than 8 bits


DEEP = [
    ("gray10le", "ffv1", "clip.mkv"),
    ("gray16le", "ffv1", "clip.mkv"),
    ("gray12le", "ffv1", "clip.avi"),
    ("gbrp10le", "ffv1", "clip.mkv"),
    ("gbrap16le", "ffv1", "clip.mkv"),
    ("rgb48be", "png", "clip.mov"),
    ("gray16be", "png", "clip.mov"),
]


@pytest.mark.parametrize(("pixels", "codec", "name"), DEEP)
def test_measured_values_stay_as_they_are(write_movie, pixels, codec, name):
    depth = len(av.VideoFormat(pixels).components)
    most = 2 ** av.VideoFormat(pixels).components[0].bits
    shape = (12, 48, 64, depth) if depth > 1 else (12, 48, 64)
    stored = np.random.default_rng(0).integers(0, most, shape, dtype=np.uint16)
    path = write_movie(
        name, codec=codec, pixels=pixels, num_frames=12, make=lambda i: stored[i], made_as=pixels
    )
    expected = torch.from_numpy(stored.reshape(12, 48, 64, depth).astype(np.float32))
    expected = expected.permute(3, 0, 1, 2)
    with MovieReader(path) as reader:
        assert (reader.channels, reader.is_array) == (depth, True)
        for numbers in ([9, 11], [0, 5], range(10, 20)):
            known = [number for number in numbers if number < 12]
            assert torch.equal(reader.array(numbers), expected[:, known])
        assert reader.array([12]).shape[1] == 0
        with pytest.raises(TypeError, match=r"expected a picture file or a movie, got an array"):
            reader.pictures([0])
    assert read_video(path)[0].dtype == torch.float32
    grey, colour, opaque = (read_video(path, channels=count)[0] for count in (1, 3, 4))
    seen = expected[:3] * (expected[3:] / (most - 1)) if depth == 4 else expected
    assert torch.equal(colour, seen.expand(3, -1, -1, -1))
    weights = torch.tensor([0.299, 0.587, 0.114] if depth > 1 else [1.0])
    assert torch.allclose(grey, torch.einsum("cfhw,c->fhw", seen, weights)[None])
    assert torch.equal(opaque[:3], expected[:3].expand(3, -1, -1, -1))
    assert depth == 4 or (opaque[3] == most - 1).all()


def test_clips_of_measured_values_are_in_the_files_units(write_movie):
    path = write_movie(
        "clip.mkv",
        codec="ffv1",
        pixels="gray16le",
        num_frames=3,
        make=lambda number: np.full((48, 64), 40000 + number, np.uint16),
        made_as="gray16le",
    )
    options = {"exts": ["mkv"], "channels": 1, "num_frames": 3, "value_range": (0, 65535)}
    clip = Dataset(path.parent, 16, **options)[0]
    assert clip[0, :, 3, 3].tolist() == pytest.approx([40000, 40001, 40002], abs=0.01)


def test_pictures_are_no_arrays(write_movie):
    with (
        MovieReader(write_movie("clip.mp4", num_frames=1)) as reader,
        pytest.raises(TypeError, match=r"got a picture file or a movie; call pictures\(\)"),
    ):
        reader.array([0])


def test_frames_of_other_pixels_between_measured_ones(tmp_path):
    frame = av.VideoFrame.from_ndarray(quarters(0), format="rgb24")
    with pytest.raises(UnreadableVideoError, match=r"frames of one kind of pixels, got .* rgb24 b"):
        values_of(frame, 3, tmp_path, VideoReformatter())


# Pixels that are no squares


def disc(number):
    """Round where pixels are twice as wide as high."""
    y, x = np.mgrid[:48, :64]
    inside = (2 * (x - 31.5)) ** 2 + (y - 23.5) ** 2 < 20**2
    return np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_pixels_become_squares(write_movie, name):
    path = write_movie(name, num_frames=3, make=disc, shape=Fraction(2))
    video, _ = read_video(path)
    assert video.shape == (3, 3, 48, 128)
    clip = Dataset(path.parent, 32, num_frames=2, exts=[path.suffix[1:]])[0][0, 1] > 0.5
    high, wide = int(clip.any(1).sum()), int(clip.any(0).sum())
    assert abs(high - wide) <= 1
    assert abs(high - 40 * 32 / 48) <= 1
    stored = read_video(path, square_pixels=False)[0]
    assert stored.shape == (3, 3, 48, 64)
    options = {"num_frames": 2, "exts": [path.suffix[1:]], "square_pixels": False}
    clip = Dataset(path.parent, 32, **options)[0][0, 1] > 0.5
    assert 2 * int(clip.any(0).sum()) == pytest.approx(int(clip.any(1).sum()), abs=2)


def test_a_cache_knows_whether_pixels_are_squares(write_movie, tmp_path):
    path = write_movie("clip.mp4", num_frames=2, make=disc, shape=Fraction(2))
    widths = []
    for square in (True, False):
        options = {"exts": ["mp4"], "cache": tmp_path / "cache", "square_pixels": square}
        clip = Dataset(path.parent, 48, num_frames=2, **options)[0]
        widths.append(int((clip[0, 0] > 0.5).any(0).sum()))
    assert widths == [pytest.approx(40, abs=1), pytest.approx(20, abs=1)]


def test_squares_are_made_before_the_frame_is_turned(write_movie):
    path = write_movie("clip.mp4", num_frames=1, make=disc, shape=Fraction(2), rotation=90)
    assert read_video(path)[0].shape == (3, 1, 128, 48)


@pytest.mark.parametrize("shape", [None, Fraction(1)])
def test_squares_stay_bit_for_bit(write_movie, shape):
    path = write_movie("clip.mp4", num_frames=3, shape=shape)
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    video, _ = read_video(path)
    assert np.array_equal(video.permute(1, 2, 3, 0).numpy(), np.stack(frames))


def test_measured_values_on_pixels_that_are_no_squares(write_movie):
    path = write_movie(
        "clip.mov",
        codec="png",
        pixels="gray16be",
        num_frames=1,
        make=lambda number: np.full((48, 64), 1234, np.uint16),
        made_as="gray16be",
        shape=Fraction(1, 2),
    )
    video, _ = read_video(path)
    assert video.shape == (1, 1, 48, 32)
    assert torch.allclose(video, torch.tensor(1234.0), atol=1)


def test_pixels_too_wide_to_be_true(write_movie, monkeypatch):
    path = write_movie("clip.mp4", num_frames=1, shape=Fraction(2))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 48 + 1)
    text = r"got pixels 2 times as wide as high, for frames of 64 x 48; pass square_pixels=Fal"
    with pytest.raises(UnreadableVideoError, match=text):
        read_video(path)
    assert read_video(path, square_pixels=False)[0].shape == (3, 1, 48, 64)


# HDR


def light_to_pq(light):
    """SMPTE ST 2084 of candelas per square metre."""
    power = (light / 10000) ** (2610 / 16384)
    above, below = 3424 / 4096 + 2413 / 128 * power, 1 + 2392 / 128 * power
    return (above / below) ** (2523 / 32)


@pytest.mark.parametrize(
    ("curve", "code", "shade"),
    [
        ("smpte2084", light_to_pq(203), 255),
        ("smpte2084", light_to_pq(2000), 255),
        ("smpte2084", light_to_pq(20.3), 255 * 0.1 ** (1 / 2.4)),
        ("smpte2084", 0, 0),
        ("arib-std-b67", 0.75, 255),  # its reference white
        ("bt2020-10", 0.5, 255 * 0.5),
    ],
)
def test_hdr_is_as_bright_as_on_a_screen_without(write_movie, curve, code, shade):
    value = 64 + round(876 * code)
    colours = f"log-level=none:colorprim=bt2020:transfer={curve}:colormatrix=bt2020nc"
    planes = np.concatenate([np.full(64 * 48, value), np.full(64 * 48 // 2, 512)])
    path = write_movie(
        "clip.mkv",
        codec="libx265",
        pixels="yuv420p10le",
        options={"x265-params": colours},
        num_frames=1,
        make=lambda number: planes.astype(np.uint16).reshape(72, 64),
        made_as="yuv420p10le",
        size=(48, 64),
    )
    for channels in (1, 3, 4):
        pixel = read_video(path, channels=channels)[0][:, 0, 20, 20].tolist()
        opaque = [255] * (channels == 4)
        assert pixel == pytest.approx([shade] * min(channels, 3) + opaque, abs=2)


def test_hdr_colours(tmp_path):
    """Candelas per square metre in BT.2020 are those in BT.709, by their chromaticities."""

    def to_xyz(primaries):
        columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
        white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
        return columns * np.linalg.solve(columns, white)

    light = np.array([150.0, 60.0, 40.0])
    wide = to_xyz([(0.708, 0.292), (0.170, 0.797), (0.131, 0.046)])
    narrow = np.linalg.solve(to_xyz([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)]), wide @ light)
    expected = 255 * np.clip(narrow / 203, 0, 1) ** (1 / 2.4)
    codes = np.array([round(65280 * light_to_pq(value)) for value in light], np.uint16)
    frame = av.VideoFrame.from_ndarray(np.tile(codes, (4, 4, 1)), format="rgb48le")
    frame.color_trc, frame.color_primaries = 16, 9
    picture = picture_of(frame, 3, tmp_path, VideoReformatter())
    assert picture.getpixel((2, 2)) == pytest.approx(expected, abs=2)


# Side data


@pytest.mark.parametrize(
    ("orientation", "expected", "size"),
    [
        (1, [1, 2, 3, 4], (64, 48)),
        (2, [2, 1, 4, 3], (64, 48)),
        (3, [4, 3, 2, 1], (64, 48)),
        (6, [3, 1, 4, 2], (48, 64)),
        (8, [2, 4, 1, 3], (48, 64)),
    ],
)
@pytest.mark.parametrize("ending", ["avi", "mov"])
def test_jpegs_with_exif(write_movie, ending, orientation, expected, size):
    """Motion JPEG of cameras: PyAV does not know that side data, and the frames may be turned."""
    tags, jpeg = Image.Exif(), io.BytesIO()
    tags[0x010F], tags[0x0112] = "camera", orientation
    Image.fromarray(quarters(0)).save(jpeg, "JPEG", exif=tags, quality=95)
    path = write_movie(f"plain.{ending}", codec="mjpeg", pixels="yuvj420p", num_frames=1)
    joined = path.with_name(f"joined.{ending}")
    with av.open(str(path)) as source, av.open(str(joined), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number in range(4):
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.duration = 1
            packet.time_base, packet.is_keyframe = Fraction(1, 10), True
            target.mux(packet)
    with MovieReader(joined) as reader:
        pictures = list(reader.pictures(range(9)))
        assert [corners(picture) for picture in pictures] == [expected] * 4
        assert pictures[0].size == size


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
