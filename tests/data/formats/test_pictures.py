"""Picture files: stills and animations, their modes and depths, and the pages of a tif."""

import contextlib
import os
import pickle
import struct
import zlib
from io import BytesIO
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import animations
from video_diffusion_pytorch.data.formats import pictures as picture_file
from video_diffusion_pytorch.data.formats.pictures import (
    PictureReader,
    ToTensor,
    gif_to_tensor,
    seek_all_images,
    stored_channels,
    tiff_pages,
    to_mode,
)
from video_diffusion_pytorch.data.video_file import open_video, read_video
from video_diffusion_pytorch.data.write_video import video_tensor_to_gif

GOLDEN = Path(__file__).parents[2] / "golden"
GIFS = sorted((GOLDEN / "gifs").glob("*.gif"))
DAMAGED = GIFS[0].read_bytes()[:830] + b"\xff" * 100 + GIFS[0].read_bytes()[930:]
RECORDED = torch.load(GOLDEN / "data_0.7.0.pt", weights_only=True)["gif_to_tensor"]


# Reading


@pytest.mark.parametrize("key", sorted(RECORDED))
def test_same_pixels_as_the_reference(key):
    name, channels = key.split(":")
    clip = gif_to_tensor(GOLDEN / "gifs" / name, channels=int(channels))
    assert clip.is_contiguous()
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert torch.equal((clip * 255).round().to(torch.uint8), RECORDED[key])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "got an empty file; fetch"),
        (b"GIF89a", "got a gif cut short after 6 bytes"),
        (b"no picture at all", "got bytes that Pillow does not take for a picture"),
        (b"GIF89a" + bytes(7) + b";", "got bytes that Pillow does not take for a picture"),
        (DAMAGED, "got OSError: broken data stream .*; fetch or write the file again, or remove"),
    ],
)
def test_unreadable_file(tmp_path, content, text):
    target = tmp_path / "broken.gif"
    target.write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=f"expected a complete picture.*{text}"):
        gif_to_tensor(target)


def test_truncated_gif_is_an_error_where_frames_would_decode(tmp_path):
    content = GIFS[0].read_bytes()
    target = tmp_path / "cut.gif"
    whole = gif_to_tensor(GIFS[0]).shape[1]
    silently_shorter = 0
    for end in [*range(0, len(content), 97), len(content) - 1]:
        target.write_bytes(content[:end])
        # What Pillow notices by itself, with one error or another, is not counted
        with contextlib.suppress(Exception), Image.open(target) as image:
            silently_shorter += len(list(seek_all_images(image))) <= whole
        got = "an empty file" if not end else ".*"
        with pytest.raises(UnreadableVideoError, match=f"cannot read .*cut.gif: .*got {got}"):
            gif_to_tensor(target)
    assert silently_shorter  # otherwise there would be nothing to guard against


def test_unreadable_file_keeps_the_cause(tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"no picture at all")
    with pytest.raises(UnreadableVideoError) as caught:
        gif_to_tensor(tmp_path / "broken.gif")
    assert isinstance(caught.value.__cause__, Image.UnidentifiedImageError)
    # As a worker process would hand it over
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_other_animations(tmp_path):
    clip = torch.rand(3, 6, 20, 17)
    frames = video_tensor_to_gif(clip, tmp_path / "clip.gif")
    frames[0].save(tmp_path / "clip.png", save_all=True, append_images=frames[1:3])
    assert torch.equal(
        gif_to_tensor(tmp_path / "clip.png")[:, :2], (clip[:, :2] * 255).round() / 255
    )


def png_of_size(side):
    """A png that claims a size, without its pixels."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [11, 20])  # Pillow warns of the first and refuses the second
def test_decompression_bomb(tmp_path, monkeypatch, side):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (tmp_path / "bomb.gif").write_bytes(png_of_size(side))
    text = "bomb.gif: .*possible decompression bomb .*raise PIL.Image.MAX_IMAGE_PIXELS"
    with pytest.raises(UnreadableVideoError, match=text):
        gif_to_tensor(tmp_path / "bomb.gif")


def test_frames_of_different_shapes(tmp_path):
    sizes = iter([(1, 4, 4), (1, 5, 4)] * 9)
    text = r"expected frames of one size, got \[\(1, 4, 4\), \(1, 5, 4\)\]; bring"
    with pytest.raises(UnreadableVideoError, match=text):
        gif_to_tensor(GIFS[0], transform=lambda frame: torch.zeros(next(sizes)))


def test_errors_of_the_transform_are_its_own():
    def fails(frame):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        gif_to_tensor(GIFS[0], transform=fails)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a video file at .*gone.gif, found none"):
        gif_to_tensor(tmp_path / "gone.gif")


@pytest.mark.parametrize("channels", [0, 2, 5, "RGB"])
def test_wrong_channels(channels):
    text = r"channels must be one of \[1, 3, 4\], got .*; choose 1 for grey"
    with pytest.raises(ValueError, match=text):
        gif_to_tensor(GIFS[0], channels=channels)
    with Image.open(GIFS[0]) as image, pytest.raises(ValueError, match=text):
        seek_all_images(image, channels)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_files_are_closed(tmp_path):
    (tmp_path / "cut.gif").write_bytes(GIFS[0].read_bytes()[:-1])
    before = sorted(os.listdir("/proc/self/fd"))
    clips = [gif_to_tensor(path) for path in GIFS]
    with pytest.raises(UnreadableVideoError):
        gif_to_tensor(tmp_path / "cut.gif")
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert len(clips) == len(GIFS)


# Frames


def test_to_tensor():
    assert repr(ToTensor()) == "ToTensor()"
    picture = Image.new("RGBA", (3, 2), (255, 128, 0, 51))
    tensor = ToTensor()(picture)
    assert tensor.shape == (4, 2, 3)
    assert tensor.is_contiguous()
    assert torch.equal(tensor[:, 1, 2], torch.tensor([255, 128, 0, 51]) / 255)
    assert ToTensor()(Image.new("L", (3, 2))).shape == (1, 2, 3)


def test_to_tensor_refuses_other_modes():
    with pytest.raises(ValueError, match=r"mode must be one of \['L', 'RGB', 'RGBA'\], got 'CMYK'"):
        ToTensor()(Image.new("CMYK", (3, 2)))


def test_all_frames_are_visited_in_order():
    with Image.open(GIFS[0]) as image:
        frames = list(seek_all_images(image, channels=1))
        assert len(frames) == image.n_frames
        assert {frame.mode for frame in frames} == {"L"}
    key = f"{GIFS[0].name}:1"
    assert torch.equal(
        torch.stack([(ToTensor()(frame) * 255).round() for frame in frames], dim=1).byte(),
        RECORDED[key],
    )


# Some frames of a file


def shades(count, mode="L", size=(5, 4)):
    """Pictures of one colour each, which tells their number."""
    return [Image.new("L", size, 10 * number).convert(mode) for number in range(count)]


def numbers(pictures):
    return [round(int(np.asarray(picture).flat[0]) / 10) for picture in pictures]


@pytest.fixture(params=["gif", "webp", "png"])
def animation(tmp_path, request):
    """Ten frames, of which the first is shown for 0.2 seconds and the others for 0.1."""
    path = tmp_path / f"ten.{request.param}"
    first, *rest = shades(10, "RGB")
    first.save(path, save_all=True, append_images=rest, duration=[200] + [100] * 9, lossless=True)
    return path


def test_some_frames(animation):
    with PictureReader(animation) as reader:
        assert numbers(reader.pictures([3, 4, 8])) == [3, 4, 8]
        assert numbers(reader.pictures(range(1, 100, 4))) == [1, 5, 9]
        assert numbers(reader.pictures(range(10, 12))) == []
        assert {picture.mode for picture in reader.pictures(range(2))} == {"RGB"}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_each_frame_is_a_picture_of_its_own(animation, channels):
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    first, *rest = shades(4, mode)
    first.save(animation, save_all=True, append_images=rest, lossless=True)
    with PictureReader(animation, channels) as reader:
        frames = list(reader.pictures(range(4)))
    assert numbers(frames) == [0, 1, 2, 3]
    first.save(animation.with_suffix(".tif"), save_all=True, append_images=rest)
    with open_video(animation.with_suffix(".tif"), channels=channels) as reader:
        assert numbers(list(reader.pictures(range(4)))) == [0, 1, 2, 3]
    with Image.open(animation) as image:
        assert numbers(list(seek_all_images(image, channels))) == [0, 1, 2, 3]


def test_two_passes_at_once(animation):
    with PictureReader(animation, channels=1) as reader:
        pairs = list(zip(reader.pictures(range(3)), reader.pictures(range(5, 8)), strict=True))
        assert [numbers(pair) for pair in pairs] == [[0, 5], [1, 6], [2, 7]]


def test_what_is_known_without_decoding(animation, monkeypatch):
    with PictureReader(animation) as reader:
        monkeypatch.setattr(type(reader._image), "seek", None)
        assert reader.num_frames == 10
        assert reader.fps == pytest.approx(10 / 1.1)
        assert reader.times == pytest.approx([0, *(0.1 * number for number in range(2, 11))])
        assert reader.end == pytest.approx(1.1)
        assert not reader.is_array
        assert reader.path == animation


def test_frames_behind_the_wanted_ones_are_not_decoded(tmp_path, monkeypatch):
    first, *rest = shades(10, "RGB")
    first.save(tmp_path / "ten.gif", save_all=True, append_images=rest)
    with PictureReader(tmp_path / "ten.gif") as reader:
        opened = []
        whole = Image.open
        monkeypatch.setattr(
            Image, "open", lambda *given, **options: (opened.append(1), whole(*given, **options))[1]
        )
        assert numbers(reader.pictures(range(4))) == [0, 1, 2, 3]
        assert len(opened) == 4
        assert numbers(reader.pictures([5])) == [5]  # from where it stands
        assert len(opened) == 6


def test_a_still_picture_is_one_frame_without_a_clock(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "still.png")
    with PictureReader(tmp_path / "still.png") as reader:
        assert (reader.num_frames, reader.fps, reader.times, reader.end) == (1, None, None, None)
        assert [picture.size for picture in reader.pictures(range(5))] == [(3, 2)]


@pytest.mark.parametrize(
    ("ending", "stored", "shown"),
    [
        ("gif", [0, 0, 0], [100, 100, 100]),
        ("gif", [10, 20, 0], [100, 20, 100]),
        ("webp", [0, 1, 0], [100, 1, 100]),
        ("png", [0, 1, 300], [100, 1, 300]),
        ("gif", [500], [500]),
    ],
)
def test_frames_without_a_time_are_shown_as_players_show_them(tmp_path, ending, stored, shown):
    first, *rest = shades(len(stored), "RGB")
    path = tmp_path / f"a.{ending}"
    first.save(path, save_all=True, append_images=rest, duration=stored, lossless=True)
    with PictureReader(path) as reader:
        assert reader.end == pytest.approx(sum(shown) / 1000)
        assert reader.times == pytest.approx([sum(shown[:i]) / 1000 for i in range(len(shown))])


def test_a_gif_without_delays_as_ffmpeg_times_it(tmp_path):
    first, *rest = shades(4, "RGB")
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[0, 20, 0, 130])
    with av.open(str(tmp_path / "a.gif")) as file:
        times = [float(frame.time) for frame in file.decode(video=0)]
    with PictureReader(tmp_path / "a.gif") as reader:
        assert reader.times == pytest.approx(times)


def test_one_gif_frame_without_delay_has_no_clock(tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.gif")
    with PictureReader(tmp_path / "a.gif") as reader:
        assert (reader.num_frames, reader.times, reader.end) == (1, None, None)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_animations_stand_upright(tmp_path, ending):
    note = Image.Exif()
    note[274] = 6
    pictures = [Image.effect_noise((6, 4), 90).convert("RGB") for _ in range(3)]
    path = tmp_path / f"a.{ending}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], exif=note, lossless=True)
    with PictureReader(path) as reader:
        for got, stored in zip(reader.pictures(range(3)), pictures, strict=True):
            assert np.array_equal(np.asarray(got), np.rot90(np.asarray(stored), -1))


@pytest.mark.parametrize("ending", ["png", "gif", "webp"])
def test_limit_of_pixels(tmp_path, monkeypatch, ending):
    Image.new("RGB", (8, 5)).save(tmp_path / f"a.{ending}")
    monkeypatch.setattr(animations, "MAX_PIXELS", 40)
    with PictureReader(tmp_path / f"a.{ending}") as reader:
        assert reader.num_frames == 1
    monkeypatch.setattr(animations, "MAX_PIXELS", 39)
    text = (
        r"decompression bomb \(8 x 5 pixels, more than the limit of 39\); make it smaller, or, if"
    )
    with pytest.raises(UnreadableVideoError, match=text + r".*formats\.animations\.MAX_PIXELS"):
        PictureReader(tmp_path / f"a.{ending}")


def test_a_still_of_a_phone_is_within_the_limit(tmp_path):
    Image.new("1", (8064, 6048)).save(tmp_path / "a.png")
    with PictureReader(tmp_path / "a.png", 1) as reader:
        assert next(reader.pictures([0])).size == (8064, 6048)
    Image.new("1", (8064, 6201)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableVideoError, match="more than the limit of 50000000"):
        PictureReader(tmp_path / "a.png")


def test_the_second_picture_of_a_photo_is_no_frame(tmp_path):
    """Phones put previews, depths and gains of brightness there."""
    photo, gain = Image.new("RGB", (6, 4), "red"), Image.new("RGB", (6, 4), "blue")
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[gain])
    with PictureReader(tmp_path / "a.jpg", formats=("JPEG",)) as reader:
        assert reader.num_frames == 1
        assert next(reader.pictures([0])).getpixel((2, 2))[0] > 200


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_of_a_tif(tmp_path, dtype):
    pages = [np.full((4, 6), 10 * number, dtype) for number in range(5)]
    first, *rest = map(Image.fromarray, pages)
    first.save(tmp_path / "a.tif", save_all=True, append_images=rest)
    video, fps = read_video(tmp_path / "a.tif")
    assert fps is None
    assert video.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert video[0, :, 0, 0].tolist() == [0, 10, 20, 30, 40]
    with open_video(tmp_path / "a.tif") as reader:
        give = reader.array if reader.is_array else reader.pictures
        assert reader.num_frames == 5
        for order in ([1, 3], [0], [4], [4]):
            frames = give(order)[0] if reader.is_array else give(order)
            assert numbers(frames) == order
    content = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(content[:-300])
    with pytest.raises(UnreadableVideoError, match="a tif"):
        read_video(tmp_path / "a.tif")


def test_a_tif_of_pages_of_8_and_16_bits(tmp_path):
    first, second = Image.new("L", (4, 4)), Image.new("I;16", (4, 4))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(UnreadableVideoError, match=r"8 bits and of more, such as page 2; store th"):
        read_video(tmp_path / "a.tif")


def test_a_png_may_begin_with_a_picture_that_is_no_frame(tmp_path):
    first, *rest = shades(4, "RGB")
    first.save(tmp_path / "clip.png", save_all=True, append_images=rest, default_image=True)
    with PictureReader(tmp_path / "clip.png") as reader:
        assert reader.num_frames == 3
        assert numbers(reader.pictures(range(9))) == [1, 2, 3]


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("P", 3), ("LA", 4)])
def test_channels_are_those_of_the_file(tmp_path, mode, channels):
    Image.new(mode, (3, 2)).save(tmp_path / "still.png")
    with PictureReader(tmp_path / "still.png") as reader:
        assert reader.channels == channels
        assert next(iter(reader.pictures([0]))).mode == {1: "L", 3: "RGB", 4: "RGBA"}[channels]


def test_a_transparent_colour_is_given_when_asked_for(tmp_path):
    clip = torch.zeros(4, 2, 3, 3)
    clip[:, 1] = 1
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    with PictureReader(tmp_path / "clip.gif") as reader:
        assert reader.channels == 3
    with PictureReader(tmp_path / "clip.gif", channels=4) as reader:
        first, second = reader.pictures(range(2))
        assert first.getpixel((0, 0))[3] == 0
        assert second.getpixel((0, 0)) == (255, 255, 255, 255)


def test_other_formats_are_left_to_pillow_if_it_may(tmp_path):
    first, *rest = shades(3)
    first.save(tmp_path / "stack.tiff", save_all=True, append_images=rest)
    with PictureReader(tmp_path / "stack.tiff", formats=None) as reader:
        assert numbers(reader.pictures(range(reader.num_frames))) == [0, 1, 2]
    with pytest.raises(UnreadableVideoError, match="bytes that Pillow does not take"):
        PictureReader(tmp_path / "stack.tiff")


def test_cut_between_two_frames(animation):
    """Each is cut where a frame begins, so that what is left is a sequence of whole frames."""
    content = animation.read_bytes()
    start = {"gif": b"\x21\xf9\x04", "webp": b"ANMF", "png": b"fcTL"}[animation.suffix[1:]]
    position = content.rindex(start) - 4 * (start == b"fcTL")
    animation.write_bytes(content[:position])
    text = rf"got a {animation.suffix[1:]} cut short after {position} bytes; fetch or write"
    with pytest.raises(UnreadableVideoError, match=text):
        PictureReader(animation)


def test_a_file_too_large_to_be_read_at_once(animation, monkeypatch):
    monkeypatch.setattr(picture_file, "_MAX_FILE_BYTES", 10)
    with pytest.raises(UnreadableVideoError, match=r"got a file of \d+ bytes; store .* as mp4"):
        PictureReader(animation)


def test_a_later_frame_beyond_the_limit(tmp_path, monkeypatch):
    """A frame that reaches beyond a gif's canvas makes the canvas larger."""
    first, *rest = shades(3, "RGB")
    first.save(tmp_path / "grows.gif", save_all=True, append_images=rest)
    content = bytearray((tmp_path / "grows.gif").read_bytes())
    descriptor = content.rindex(b"\x2c\x00\x00\x00\x00\x05\x00\x04\x00")
    content[descriptor + 1 : descriptor + 3] = (25).to_bytes(2, "little")
    (tmp_path / "grows.gif").write_bytes(content)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with PictureReader(tmp_path / "grows.gif") as reader:
        frames = reader.pictures(range(3))
        assert numbers([next(frames), next(frames)]) == [0, 1]
        with pytest.raises(UnreadableVideoError, match=r"grows.gif: .*decompression bomb"):
            next(frames)


def test_a_closed_reader(animation):
    with PictureReader(animation) as reader:
        frames = reader.pictures(range(5))
        next(frames)
    with pytest.raises(ValueError, match=r"ten\..*: expected an open reader, got a closed one; r"):
        next(frames)


# Modes and depths


GREY, COLOUR, GREY_OPACITY, COLOUR_OPACITY = 0, 2, 4, 6


def write_png(path, pixels, kind, bits=16, chunks=b""):
    """A png of `(h, w, c)` numbers, whose rows are not filtered."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    h, w, _ = pixels.shape
    if bits == 16:
        rows = [row.astype(">u2").tobytes() for row in pixels]
    else:
        as_bits = [[f"{value:0{bits}b}" for value in row.ravel()] for row in pixels]
        rows = [int("".join(row), 2).to_bytes(w * bits // 8, "big") for row in as_bits]
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">2I5B", w, h, bits, kind, 0, 0, 0))
        + b"".join(chunk(name, body) for name, body in chunks or [])
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def write_tif(path, pixels, order="<", opacity=None, is_compressed=False):
    """A tif of `(h, w, c)` numbers, in one strip."""
    h, w, c = pixels.shape
    kinds = {"u": 1, "i": 2, "f": 3}
    bits = 8 * pixels.dtype.itemsize
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if is_compressed else data
    # Of more than two numbers an entry says only where they are
    tags = [
        (256, w),
        (257, h),
        (258, [bits] * c),
        (259, 8 if is_compressed else 1),
        (262, 2 if c > 2 else 1),
    ]
    tags += [(273, None), (277, c), (278, h), (279, len(data))]
    tags += [(338, opacity)] if opacity is not None else []
    tags += [(339, [kinds[pixels.dtype.kind]] * c)]
    extra = b""
    entries = b""
    start = 8 + 2 + 12 * len(tags) + 4
    for tag, value in tags:
        values = value if isinstance(value, list) else [value]
        if len(values) > 2:
            entries += struct.pack(order + "HHII", tag, 3, len(values), start + len(extra))
            extra += struct.pack(f"{order}{len(values)}H", *values)
        elif len(values) == 2:
            entries += struct.pack(order + "HHI2H", tag, 3, 2, *values)
        elif tag in (273, 279):
            place = start + 16 if tag == 273 else value
            entries += struct.pack(order + "HHII", tag, 4, 1, place)
        else:
            entries += struct.pack(order + "HHIHH", tag, 3, 1, values[0], 0)
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
    path.write_bytes(head + entries + bytes(4) + extra.ljust(16, b"\0") + data)


def random_numbers(dtype, channels, seed=0):
    """All of a type's range, `(6, 5, c)`."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, (6, 5, channels)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (6, 5, channels), dtype, endpoint=True)


def read_still(path, channels=None):
    video, fps = read_video(path, channels=channels)
    assert fps is None
    return video[:, 0].permute(1, 2, 0).numpy()


# More than 8 bits


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bit_grey_keeps_its_numbers(tmp_path, ending):
    levels = np.array([[0, 128, 129, 4095, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / f"deep.{ending}")
    with PictureReader(tmp_path / f"deep.{ending}", formats=None) as reader:
        assert (reader.channels, reader.is_array) == (1, True)
        assert reader.array(range(9)).dtype == torch.float32
        assert reader.array([0]).tolist() == [[levels.astype(float).tolist()]]
        assert reader.array([0]).shape == reader.array([0]).shape == (1, 1, 1, 6)  # twice, too
        assert reader.array([1]).shape[1] == 0
        with pytest.raises(TypeError, match=r"got an array; call array\(\) instead"):
            reader.pictures([0])
    with PictureReader(tmp_path / f"deep.{ending}", channels=3, formats=None) as reader:
        assert reader.array([0]).tolist() == [[levels.astype(float).tolist()]] * 3


@pytest.mark.parametrize("kind", [GREY, COLOUR, GREY_OPACITY, COLOUR_OPACITY])
def test_sixteen_bit_png(tmp_path, kind):
    stored = random_numbers(
        np.uint16, {GREY: 1, COLOUR: 3, GREY_OPACITY: 2, COLOUR_OPACITY: 4}[kind]
    )
    write_png(tmp_path / "a.png", stored, kind)
    has_opacity = kind in (GREY_OPACITY, COLOUR_OPACITY)
    colours = stored[..., :-1] if has_opacity else stored
    colours = np.broadcast_to(colours, (6, 5, 3)).astype(float)
    opacity = stored[..., -1:].astype(float) if has_opacity else np.full((6, 5, 1), 65535.0)
    assert read_still(tmp_path / "a.png").shape[2] == {0: 1, 2: 3, 4: 4, 6: 4}[kind]
    assert np.array_equal(read_still(tmp_path / "a.png", 4), np.concatenate([colours, opacity], 2))
    shown = colours * opacity / 65535
    np.testing.assert_allclose(read_still(tmp_path / "a.png", 3), shown, rtol=1e-6)
    grey = shown @ [[0.299], [0.587], [0.114]]
    np.testing.assert_allclose(read_still(tmp_path / "a.png", 1), grey, rtol=1e-6)


@pytest.mark.parametrize("kind", [GREY, COLOUR])
def test_a_transparent_colour_of_sixteen_bits(tmp_path, kind):
    stored = random_numbers(np.uint16, 1 if kind == GREY else 3)
    stored[1, 1] = stored[2, 3]
    clear = stored[2, 3].astype(">u2").tobytes()
    write_png(tmp_path / "a.png", stored, kind, chunks=[(b"tRNS", clear)])
    expected = stored.astype(float)
    expected[1, 1] = expected[2, 3] = 0
    assert np.array_equal(read_still(tmp_path / "a.png"), expected)
    opacity = read_still(tmp_path / "a.png", 4)[..., 3]
    assert opacity[1, 1] == opacity[2, 3] == 0
    assert np.count_nonzero(opacity == 65535) == 28


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("dtype", "channels"),
    [
        ("uint16", 1),
        ("uint16", 3),
        ("uint16", 4),
        ("int16", 1),
        ("int32", 1),
        ("float32", 1),
        ("int8", 1),
    ],
)
def test_tif_keeps_its_numbers(tmp_path, dtype, channels, order):
    stored = random_numbers(dtype, channels)
    write_tif(tmp_path / "a.tif", stored, order, opacity=2 if channels == 4 else None)
    got = read_still(tmp_path / "a.tif")
    assert got.dtype == np.float32
    assert np.array_equal(got, stored.astype(np.float32))


def test_numbers_of_32_bits_without_sign(tmp_path):
    stored = random_numbers("uint32", 1)
    write_tif(tmp_path / "a.tif", stored)
    assert np.array_equal(read_still(tmp_path / "a.tif"), stored.astype(np.float32))


@pytest.mark.parametrize(
    ("dtype", "channels", "opacity", "text"),
    [
        ("float64", 1, None, "got bytes that Pillow does not take for a picture; .* as .npy"),
        ("float32", 3, None, "store its numbers as .npy"),
        ("uint16", 2, 2, "store its numbers as .npy"),
        ("uint16", 4, 1, "16-bit colours that its decoders disagree on, .*stored as .npy"),
    ],
)
def test_tif_that_cannot_be_read_exactly(tmp_path, dtype, channels, opacity, text):
    write_tif(tmp_path / "a.tif", random_numbers(dtype, channels), opacity=opacity)
    with pytest.raises(UnreadableVideoError, match=rf"cannot read .*a\.tif: .*{text}"):
        read_still(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", ["float32", "int32", "int16"])
def test_compressed_big_endian_numbers(tmp_path, dtype):
    """Pillow gives them with their bytes exchanged."""
    stored = random_numbers(dtype, 1)
    write_tif(tmp_path / "a.tif", stored, is_compressed=True)
    assert np.array_equal(read_still(tmp_path / "a.tif"), stored.astype(np.float32))
    write_tif(tmp_path / "a.tif", stored, ">", is_compressed=True)
    with pytest.raises(UnreadableVideoError, match="compressed big-endian numbers of mode"):
        read_still(tmp_path / "a.tif")


def test_opacity_that_nobody_states(tmp_path):
    write_tif(tmp_path / "a.tif", random_numbers("float32", 1))
    with pytest.raises(UnreadableVideoError, match=r"mode 'F' without opacity; set channels=1"):
        read_still(tmp_path / "a.tif", 4)


def test_a_damaged_picture_of_sixteen_bits(tmp_path):
    write_png(tmp_path / "a.png", random_numbers("uint16", 3), COLOUR)
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60:70] = bytes(10)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"a\.png"):
        read_still(tmp_path / "a.png")


def test_numbers_are_no_pictures_for_the_gif_reader(tmp_path):
    Image.new("I;16", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(UnreadableVideoError, match=r"pictures of 8 bits, got numbers.*read_video"):
        gif_to_tensor(tmp_path / "a.png")


def test_an_animation_of_sixteen_bits(tmp_path):
    first = Image.new("I;16", (3, 2), 300)
    first.save(tmp_path / "a.png", save_all=True, append_images=[Image.new("I;16", (3, 2), 9)])
    with pytest.raises(
        UnreadableVideoError, match=r"an animation of more than 8 bits; store it as"
    ):
        read_still(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_numbers_do_not_become_8_bits(mode):
    text = f"mode must be one of 8 bits per channel, got '{mode}'; read its numbers with read_video"
    with pytest.raises(ValueError, match=text):
        to_mode(Image.new(mode, (1, 1)), "L")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_fewer_bits_are_full_scale(tmp_path, bits):
    stored = np.arange(64).reshape(8, 8, 1) % 2**bits
    write_png(tmp_path / "a.png", stored, GREY, bits)
    expected = stored * 255 // (2**bits - 1)
    got = read_still(tmp_path / "a.png")
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)
    # one of the greys is transparent
    clear = 2**bits - 1
    write_png(tmp_path / "a.png", stored, GREY, bits, [(b"tRNS", struct.pack(">H", clear))])
    assert np.array_equal(read_still(tmp_path / "a.png"), np.where(stored == clear, 0, expected))
    assert np.array_equal(read_still(tmp_path / "a.png", 4)[..., 3:], 255 * (stored != clear))


# What is transparent


def test_palette_with_opacities(tmp_path):
    """Pillow warns when such a picture is made RGB at once, and warnings are errors here."""
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    for channels, pixels in [
        (3, [[0, 0, 0], [0, 0, 128]]),
        (4, [[255, 0, 0, 0], [0, 0, 255, 128]]),
    ]:
        with PictureReader(tmp_path / "palette.png", channels) as reader:
            (frame,) = reader.pictures([0])
        assert np.asarray(frame)[0].tolist() == pixels


@pytest.mark.parametrize(
    ("mode", "colour", "channels", "rgb"),
    [
        ("1", 1, 1, (255, 255, 255)),
        ("L", 77, 1, (77, 77, 77)),
        ("LA", (77, 255), 4, (77, 77, 77)),
        ("LA", (77, 0), 4, (0, 0, 0)),
        ("LA", (200, 51), 4, (40, 40, 40)),
        ("RGBA", (1, 2, 3, 255), 4, (1, 2, 3)),
        ("RGBA", (100, 200, 50, 102), 4, (40, 80, 20)),
        ("RGBA", (1, 2, 3, 0), 4, (0, 0, 0)),
        ("RGBa", (40, 80, 20, 102), 4, (40, 80, 20)),
        ("La", (40, 51), 4, (40, 40, 40)),
        ("CMYK", (0, 255, 255, 0), 3, (255, 0, 0)),
    ],
)
def test_modes(mode, colour, channels, rgb):
    picture = Image.new(mode, (1, 1), colour)
    assert stored_channels(picture) == channels
    assert to_mode(picture, "RGB").getpixel((0, 0)) == rgb
    assert to_mode(picture, "L").getpixel((0, 0)) == round(np.dot(rgb, [0.299, 0.587, 0.114]))


@pytest.mark.parametrize(
    ("mode", "colours", "clear"), [("L", [9, 70], 70), ("RGB", [(9, 9, 9), (7, 8, 9)], (7, 8, 9))]
)
def test_one_transparent_colour(tmp_path, mode, colours, clear):
    picture = Image.new(mode, (2, 1), colours[0])
    picture.putpixel((1, 0), colours[1])
    picture.save(tmp_path / "a.png", transparency=clear)
    assert read_still(tmp_path / "a.png", 3)[0].tolist() == [[9, 9, 9], [0, 0, 0]]
    assert read_still(tmp_path / "a.png", 4)[0, :, 3].tolist() == [255, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_colours_do_not_show_after_scaling(tmp_path, channels):
    from video_diffusion_pytorch.data.transforms import FrameSize

    frames = []
    for hidden in ("white", "black"):
        picture = Image.new("RGB", (40, 40), hidden)
        picture.paste("red", (10, 10, 30, 30))
        opacity = Image.new("L", (40, 40))
        opacity.paste(255, (10, 10, 30, 30))
        picture.putalpha(opacity)
        picture.save(tmp_path / "a.png")
        with PictureReader(tmp_path / "a.png", channels) as reader:
            frames.append(FrameSize((9, 9))(next(reader.pictures([0]))))
        with PictureReader(tmp_path / "a.png", 4) as reader:
            four = FrameSize((9, 9))(next(reader.pictures([0])))
        assert four[1:3].max() == 0  # no white at the edges of the red
    assert torch.equal(*frames)
    assert frames[0].max() > 0.2


def test_the_reference_function_shows_no_hidden_colours():
    picture = Image.new("RGBA", (1, 1), (200, 100, 50, 51))
    (frame,) = seek_all_images(picture, 3)
    assert frame.getpixel((0, 0)) == (40, 20, 10)
    (frame,) = seek_all_images(picture, 4)
    assert frame.getpixel((0, 0)) == (200, 100, 50, 51)


# Pages of a tif


def tif(kinds, **options):
    """One page for each kind of page, None for one that does not say."""
    pages = []
    for kind in kinds:
        page = Image.new("L", (4, 4))
        page.encoderinfo = {"tiffinfo": {} if kind is None else {254: kind}}
        pages.append(page)
    file = BytesIO()
    pages[0].save(
        file,
        "TIFF",
        save_all=True,
        append_images=pages[1:],
        tiffinfo={254: kinds[0] or 0},
        **options,
    )
    return file.getvalue()


@pytest.mark.parametrize("is_big", [False, True])
def test_thumbnails_and_masks_are_no_pages(is_big):
    for kinds, pages in [
        ([None], [0]),
        ([None, None, None], [0, 1, 2]),
        ([0, 1, 2, 4, 3, 0], [0, 2, 5]),
        ([1, 1], [0]),
    ]:
        assert tiff_pages(tif(kinds, big_tiff=is_big)) == pages


def test_every_cut_within_the_directories_is_noticed():
    content = tif([None] * 3)
    # a directory begins with its number of entries and that of the width, tag 256
    last = max(
        content.rindex(bytes([count, 0, 0, 1]))
        for count in range(8, 12)
        if bytes([count, 0, 0, 1]) in content
    )
    assert tiff_pages(content[: last + 20]) is None
    assert tiff_pages(content[:9]) is None


def test_directories_in_a_circle_end():
    content = bytearray(tif([None]))
    count = int.from_bytes(content[8:10], "little")
    content[10 + 12 * count : 14 + 12 * count] = (8).to_bytes(4, "little")
    assert tiff_pages(bytes(content)) == [0]
