"""A gif, webp or png becomes frames or a clip."""

import os
import pickle
import struct
import zlib
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
)
from video_diffusion_pytorch.data.video_file import open_video, read_video
from video_diffusion_pytorch.data.write_video import video_tensor_to_gif

GOLDEN = Path(__file__).parents[2] / "golden"
GIFS = sorted((GOLDEN / "gifs").glob("*.gif"))
DAMAGED = GIFS[0].read_bytes()[:830] + b"\xff" * 100 + GIFS[0].read_bytes()[930:]
RECORDED = torch.load(GOLDEN / "data_0.7.0.pt", weights_only=True)["gif_to_tensor"]


def smooth_clip(channels, frames=6, height=20, width=17, seed=0):
    """A clip with many more colours than a palette holds, which repeats some frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 3, 4, 4, generator=generator)
    clip = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0]
    clip[:, 2] = clip[:, 1]
    clip[:, -1] = clip[:, -2]
    return clip


# Writing, then reading


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_written_clip_reads_back(tmp_path, channels, optimize):
    clip = smooth_clip(channels)
    video_tensor_to_gif(clip, tmp_path / "clip.gif", optimize=optimize)
    again = gif_to_tensor(tmp_path / "clip.gif", channels=channels)
    assert again.shape == clip.shape
    assert again.dtype == torch.float32
    if channels == 1:
        assert torch.equal(again, (clip * 255).round() / 255)
    assert (again - clip).abs().mean() < 0.01
    assert (again - clip).abs().max() < 0.1


def test_single_frame(tmp_path):
    video_tensor_to_gif(torch.ones(3, 1, 5, 4), tmp_path / "one.gif")
    assert torch.equal(gif_to_tensor(tmp_path / "one.gif"), torch.ones(3, 1, 5, 4))


def test_floats_are_clamped_and_rounded_to_the_nearest(tmp_path):
    values = torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 99.4 / 255, 99.6 / 255, 7.0])
    frames = video_tensor_to_gif(values.view(1, 1, 1, 6), tmp_path / "row.gif")
    assert list(frames[0].tobytes()) == [0, 0, 1, 99, 100, 255]
    written = gif_to_tensor(tmp_path / "row.gif", channels=1) * 255
    assert written.round().flatten().tolist() == [0, 0, 1, 99, 100, 255]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.bfloat16])
def test_other_dtypes(tmp_path, dtype):
    clip = torch.tensor([0, 1]).to(dtype).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    if dtype == torch.uint8:
        clip = clip * 255
    video_tensor_to_gif(clip.requires_grad_(dtype != torch.uint8), tmp_path / "clip.gif")
    again = gif_to_tensor(tmp_path / "clip.gif", channels=1)
    assert again[0, :, 0, 0].tolist() == [0, 1]


def test_returned_frames_can_be_read_more_than_once(tmp_path):
    clip = smooth_clip(3)
    frames = video_tensor_to_gif(clip, tmp_path / "clip.gif")
    for _ in range(2):
        again = torch.stack([ToTensor()(frame) for frame in frames], dim=1)
        assert torch.equal(again, (clip * 255).round() / 255)


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "clip.gif"
    video_tensor_to_gif(smooth_clip(1), target)
    before = target.read_bytes()

    def full_disk(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space left"):
        video_tensor_to_gif(smooth_clip(1, seed=1), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["clip.gif"]


# What cannot be written


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (torch.zeros(3, 8, 8), r"shape must be .* got \(3, 8, 8\); pass one clip, not a batch"),
        (torch.zeros(2, 4, 8, 8), r"with 1, 3 or 4 channels .* got \(2, 4, 8, 8\)"),
        (torch.zeros(3, 0, 8, 8), r"at least one frame, got \(3, 0, 8, 8\)"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.int64), r"floats in \[0, 1\] or uint8, got torch.i"),
        (torch.full((1, 1, 2, 2), torch.nan), r"must hold numbers, got NaN in 4 of 4 values"),
    ],
)
def test_wrong_clip(tmp_path, clip, text):
    with pytest.raises(ValueError, match=text):
        video_tensor_to_gif(clip, tmp_path / "clip.gif")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("clip.mp4", {}, ValueError, r"path must end in '.gif', got .*clip.mp4; rename it"),
        ("no/clip.gif", {}, FileNotFoundError, r"expected a folder at .*no to write clip.gif"),
        ("clip.gif", {"duration": -1}, ValueError, r"duration must be 0 to 655350 .* got -1;"),
        ("clip.gif", {"loop": 65536}, ValueError, r"loop must be None or 0 to 65535.* got 65536"),
    ],
)
def test_wrong_target(tmp_path, name, options, error, text):
    with pytest.raises(error, match=text):
        video_tensor_to_gif(torch.zeros(1, 2, 4, 4), tmp_path / name, **options)


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
    with pytest.raises(UnreadableVideoError, match=f"broken.gif: expected a complete gif.*{text}"):
        gif_to_tensor(target)


def test_unreadable_file_keeps_the_cause(tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"no picture at all")
    with pytest.raises(UnreadableVideoError) as caught:
        gif_to_tensor(tmp_path / "broken.gif")
    assert isinstance(caught.value.__cause__, Image.UnidentifiedImageError)
    # As a worker process would hand it over
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_other_animations(tmp_path):
    clip = smooth_clip(3)
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
    text = r"all frames must have one shape, got \[\(1, 4, 4\), \(1, 5, 4\)\]; give a transform"
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
