"""A clip becomes a file that plays, in each of the formats."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch.data.formats.pictures import ToTensor, gif_to_tensor
from video_diffusion_pytorch.data.write_video import video_tensor_to_gif, write_video

ENDINGS = [".gif", ".webp", ".mp4", ".png", ".npy"]
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def noise(channels, frames=5, height=6, width=7, seed=0):
    """uint8 clip that repeats some of its frames."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randint(0, 256, (channels, frames, height, width), generator=generator)
    clip[:, 2] = clip[:, 1]
    clip[:, -1] = clip[:, -2]
    return clip.byte()


def read_picture(path, channels):
    """The frames as Pillow shows them `(c, f, h, w)` uint8, and their milliseconds."""
    frames, times = [], []
    with Image.open(path) as image:
        for index in range(image.n_frames):
            image.seek(index)
            frames.append(np.array(image.convert(MODES[channels])).reshape(*image.size[::-1], -1))
            times.append(image.info["duration"])
    return torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2), times


# What is written is what is read


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_webp_keeps_every_value_of_every_frame(tmp_path, channels):
    clip = noise(channels)
    write_video(clip, tmp_path / "clip.webp")
    assert torch.equal(read_picture(tmp_path / "clip.webp", channels)[0], clip)


def test_webp_keeps_frames_that_change_in_part_or_not_at_all(tmp_path):
    clip = torch.zeros(3, 40, 9, 11, dtype=torch.uint8)
    for frame in range(1, 40):
        clip[:, frame] = clip[:, frame - 1]
        clip[frame % 3, frame, frame % 9, frame % 11] = 6 * frame
    clip[:, 30:] = clip[:, 30:31]
    write_video(clip, tmp_path / "clip.webp")
    assert torch.equal(read_picture(tmp_path / "clip.webp", 3)[0], clip)


def test_gif_keeps_grey_exactly(tmp_path):
    clip = noise(1)
    write_video(clip, tmp_path / "clip.gif")
    assert torch.equal(read_picture(tmp_path / "clip.gif", 1)[0], clip)


@pytest.mark.parametrize("channels", [3, 4])
def test_gif_keeps_few_colours_exactly(tmp_path, channels):
    colors = torch.tensor([[255, 0, 0, 255], [0, 99, 7, 255], [3, 2, 250, 255], [0, 0, 0, 0]])
    chosen = colors[torch.randint(0, 3 if channels == 3 else 4, (5, 6, 7))]
    clip = chosen.permute(3, 0, 1, 2)[:channels].byte()
    write_video(clip, tmp_path / "clip.gif")
    again, _ = read_picture(tmp_path / "clip.gif", channels)
    if channels == 4:  # the colour of what is transparent is nobody's
        again = again * (again[3:] > 0)
    assert torch.equal(again, clip)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 17)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_small_and_odd_sizes(tmp_path, ending, size):
    target = tmp_path / f"clip{ending}"
    write_video(torch.full((3, 2, *size), 128, dtype=torch.uint8), target)
    assert target.stat().st_size > 0


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_sheet_holds_all_frames(tmp_path, channels):
    clip = noise(channels, frames=5)
    write_video(clip, tmp_path / "sheet.png", columns=3)
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.mode == MODES[channels]
        sheet = np.array(image).reshape(12, 21, channels)
    for frame in range(5):
        row, column = divmod(frame, 3)
        cell = sheet[row * 6 : row * 6 + 6, column * 7 : column * 7 + 7]
        assert torch.equal(torch.from_numpy(cell).permute(2, 0, 1), clip[:, frame])
    assert not sheet[6:, 14:].any()


@pytest.mark.parametrize(
    ("shape", "size"),
    [((9, 8, 8), (24, 24)), ((10, 8, 8), (24, 32)), ((6, 40, 10), (50, 80)), ((1, 3, 9), (9, 3))],
)
def test_a_sheet_is_like_a_square(tmp_path, shape, size):
    write_video(torch.zeros(1, *shape), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8])
def test_npy_holds_the_values_as_they_are(tmp_path, dtype):
    clip = (torch.randn(80, 2, 3, 4) * 100).to(dtype)
    write_video(clip, tmp_path / "clip.npy")
    again = np.load(tmp_path / "clip.npy")
    assert torch.equal(torch.from_numpy(again), clip)


def test_npy_holds_what_no_picture_could(tmp_path):
    clip = torch.full((2, 1, 1, 2), torch.nan, dtype=torch.bfloat16, requires_grad=True)
    write_video(clip, tmp_path / "clip.npy")
    assert np.load(tmp_path / "clip.npy").dtype == np.float32


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png"])
def test_floats_are_clamped_and_rounded(tmp_path, ending):
    row = torch.tensor([-3.0, 0.4 / 255, 0.6 / 255, 99.6 / 255, 7.0])
    write_video(row.view(1, 1, 1, 5).requires_grad_(), tmp_path / f"clip{ending}")
    with Image.open(tmp_path / f"clip{ending}") as image:
        assert list(image.convert("L").tobytes()) == [0, 0, 1, 100, 255]


# Time


@pytest.mark.parametrize(("fps", "total"), [(8, 5000), (24, 1667), (1000 / 3, 120), (7.5, 5333)])
def test_webp_lasts_as_long_as_its_frames_do(tmp_path, fps, total):
    write_video(noise(3, frames=40), tmp_path / "clip.webp", fps=fps)
    _, times = read_picture(tmp_path / "clip.webp", 3)
    assert len(times) == 40
    assert sum(times) == total
    assert max(times) - min(times) <= 1


@pytest.mark.parametrize(("fps", "time"), [(10, 100), (25, 40), (50, 20), (8, 120), (30, 30)])
def test_gif_times_are_the_nearest_that_it_can_store(tmp_path, fps, time):
    write_video(noise(1), tmp_path / "clip.gif", fps=fps)
    assert read_picture(tmp_path / "clip.gif", 1)[1] == [time] * 5


# All or nothing


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, ending):
    target = tmp_path / f"clip{ending}"
    write_video(noise(3), target)
    before = target.read_bytes()

    def full_disk(self, other):
        assert self.stat().st_size > 0
        raise OSError("no space left on device")

    monkeypatch.setattr(type(target), "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_video(noise(3, seed=1), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_replaced(tmp_path, ending):
    target = tmp_path / f"clip{ending.upper()}"
    target.write_bytes(b"old")
    write_video(noise(1), str(target))
    assert target.read_bytes() != b"old"
    assert len(list(tmp_path.iterdir())) == 1


# What cannot be written


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_batch_is_refused(tmp_path, ending):
    text = r"shape must be \(channels, frames, .* got \(1, 3, 2, 4, 4\); pass one clip, not a batch"
    with pytest.raises(ValueError, match=text):
        write_video(torch.zeros(1, 3, 2, 4, 4), tmp_path / f"clip{ending}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [".gif", ".webp", ".mp4", ".png"])
@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (torch.zeros(2, 4, 8, 8), r"with 1, 3 or 4 channels .* got \(2, 4, 8, 8\)"),
        (torch.zeros(3, 0, 8, 8), r"at least one frame, got \(3, 0, 8, 8\)"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.int64), r"floats in \[0, 1\] or uint8, got torch.i"),
        (torch.full((1, 1, 2, 2), torch.nan), r"must hold numbers, got NaN in 4 of 4 values"),
    ],
)
def test_a_clip_that_is_no_picture(tmp_path, ending, clip, text):
    with pytest.raises(ValueError, match=text):
        write_video(clip, tmp_path / f"clip{ending}")


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("a.avi", {}, ValueError, r"must end in '.gif' or .*'.npy', got .*a.avi; rename it"),
        ("clip", {}, ValueError, r"path must end in '.gif' or .*, got .*clip; rename it"),
        ("no/a.mp4", {}, FileNotFoundError, r"folder at .*no to write a.mp4 into, found none; cr"),
        ("a.mp4", {"fps": 0}, ValueError, r"fps must be 0.01 to 1000 .* for .mp4, got 0; choose"),
        ("a.mp4", {"fps": float("nan")}, ValueError, r"fps must be .*, got nan; choose one"),
        ("a.webp", {"fps": float("inf")}, ValueError, r"fps must be .*, got inf; choose one"),
        ("a.gif", {"fps": 60}, ValueError, r"fps must be 0.01 to 50 .* for .gif, got 60; choose"),
        (
            "a.gif",
            {"crf": 9},
            ValueError,
            r"crf must be 0 to 51 for .mp4, None for other files, got 9 for",
        ),
        (
            "a.mp4",
            {"columns": 2},
            ValueError,
            r"columns must be 1 to inf for .png, .* got 2 for .mp4; le",
        ),
        ("a.mp4", {"crf": 52}, ValueError, r"crf must be 0 to 51 .* got 52 for .mp4; leave"),
        ("a.png", {"columns": 0}, ValueError, r"columns must be 1 to inf .* got 0 for .png; leave"),
    ],
)
def test_wrong_targets_and_options(tmp_path, name, options, error, text):
    with pytest.raises(error, match=text):
        write_video(torch.zeros(3, 2, 4, 4), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_video_tensor_to_gif_writes_gifs_only(tmp_path):
    with pytest.raises(ValueError, match=r"path must end in '.gif', got .*clip.mp4; rename it"):
        video_tensor_to_gif(torch.zeros(1, 2, 4, 4), tmp_path / "clip.mp4")


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png", ".npy", ".mp4"])
@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_name_as_long_as_file_systems_allow(tmp_path, ending, letter):
    stem = letter * ((255 - len(ending)) // len(letter.encode()))
    path = tmp_path / f"{stem}{ending}"
    write_video(torch.rand(3, 2, 16, 16), path)
    assert list(tmp_path.iterdir()) == [path]


# gif


def smooth_clip(channels, frames=6, height=20, width=17, seed=0):
    """A clip with many more colours than a palette holds, which repeats some frames."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 3, 4, 4, generator=generator)
    clip = torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0]
    clip[:, 2] = clip[:, 1]
    clip[:, -1] = clip[:, -2]
    return clip


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


def test_palette_error_stays_small_with_more_colours_than_a_palette(tmp_path):
    clip = smooth_clip(3, height=64, width=64)
    assert len(torch.unique((clip[:, 0] * 255).round().flatten(1), dim=1).T) > 1000
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    error = (gif_to_tensor(tmp_path / "clip.gif") - clip).abs()
    assert error.mean() < 0.02


def test_opacity_is_on_or_off(tmp_path):
    clip = smooth_clip(4)
    video_tensor_to_gif(clip, tmp_path / "clip.gif")
    again = gif_to_tensor(tmp_path / "clip.gif", channels=4)
    opaque = (clip[3] * 255).round() >= 128
    assert 0 < opaque.float().mean() < 1
    assert torch.equal(again[3], opaque.float())
    assert ((again - clip)[:3] * opaque).abs().max() < 0.1


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equal_frames_are_all_kept(tmp_path, channels):
    clip = torch.full((channels, 7, 8, 8), 0.25)
    clip[-1:] = 1  # the last channel is opacity where there are four
    frames = video_tensor_to_gif(clip, tmp_path / "still.gif")
    again = gif_to_tensor(tmp_path / "still.gif", channels=channels)
    assert len(frames) == again.shape[1] == 7
    assert torch.equal(again, (clip * 255).round() / 255)


@pytest.mark.parametrize("loop", [0, 3, None])
def test_duration_and_loop_are_stored(tmp_path, loop):
    video_tensor_to_gif(smooth_clip(3), tmp_path / "clip.gif", duration=250, loop=loop)
    with Image.open(tmp_path / "clip.gif") as image:
        assert image.info.get("loop") == loop
        for frame in range(image.n_frames):
            image.seek(frame)
            assert image.info["duration"] == 250


def test_optimized_file_is_smaller(tmp_path):
    clip = smooth_clip(3)
    video_tensor_to_gif(clip, tmp_path / "small.gif")
    video_tensor_to_gif(clip, tmp_path / "large.gif", optimize=False)
    assert (tmp_path / "small.gif").stat().st_size < (tmp_path / "large.gif").stat().st_size


# mp4


def smooth(channels, frames=7, height=33, width=46, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, channels, 3, 3, 3, generator=generator)
    return torch.nn.functional.interpolate(coarse, (frames, height, width), mode="trilinear")[0]


def read_movie(path):
    """The frames `(3, f, h, w)` in [0, 1], and what the file says of itself."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        facts = {
            "rate": stream.average_rate,
            "times": [frame.pts * frame.time_base for frame in frames],
            "codec": stream.codec_context.name,
            "pixels": stream.codec_context.pix_fmt,
            "color": {int(frames[0].colorspace), int(frames[0].color_primaries)},
        }
        video = np.stack([frame.to_ndarray(format="rgb24") for frame in frames])
    return torch.from_numpy(video).permute(3, 0, 1, 2) / 255, facts


def psnr(a, b):
    return -10 * torch.log10((a.double() - b.double()).square().mean()).item()


@pytest.mark.parametrize("channels", [1, 3])
def test_mp4_comes_close(tmp_path, channels):
    clip = smooth(channels)
    write_video(clip, tmp_path / "clip.mp4")
    again, facts = read_movie(tmp_path / "clip.mp4")
    assert facts["codec"] == "h264"
    assert facts["pixels"] == "yuv420p"
    assert facts["color"] == {1}, "said to be BT.709"
    assert again.shape == (3, 7, 34, 46)
    assert psnr(again[:, :, :33], clip.expand(3, -1, -1, -1)) > 33
    # nothing is lighter or darker, redder or bluer than it was
    assert (again[:, :, :33] - clip).mean(dim=(1, 2, 3)).abs().max() < 0.01
    # the odd row is followed by its copy
    assert (again[:, :, 33] - again[:, :, 32]).abs().mean() < 0.02


def test_mp4_of_pure_colours_keeps_them(tmp_path):
    colors = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]])
    clip = colors.T.reshape(3, 5, 1, 1).expand(3, 5, 16, 16)
    write_video(clip, tmp_path / "clip.mp4", crf=4)
    assert (read_movie(tmp_path / "clip.mp4")[0] - clip).abs().max() < 0.04


def test_mp4_shows_transparent_pixels_on_black(tmp_path):
    clip = torch.ones(4, 2, 16, 16)
    clip[3, :, :, :8] = 0
    clip[3, :, 8:] = 0.5
    write_video(clip, tmp_path / "clip.mp4", crf=4)
    again = read_movie(tmp_path / "clip.mp4")[0]
    assert again[:, :, :7, :7].max() < 0.03
    assert again[:, :, :7, 9:].min() > 0.97
    assert (again[:, :, 10:] - 0.5).abs().max() < 0.03


def test_mp4_loses_more_with_a_higher_crf(tmp_path):
    clip = smooth(3, height=64, width=64)
    results = []
    for crf in (2, 40):
        write_video(clip, tmp_path / "clip.mp4", crf=crf)
        again = read_movie(tmp_path / "clip.mp4")[0]
        results.append((psnr(again, clip), (tmp_path / "clip.mp4").stat().st_size))
    assert results[0][0] > results[1][0] + 3
    assert results[0][1] > results[1][1]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2), (3, 17)])
def test_mp4_has_even_sides(tmp_path, size):
    write_video(torch.full((3, 2, *size), 0.5), tmp_path / "clip.mp4")
    video, _ = read_movie(tmp_path / "clip.mp4")
    assert video.shape == (3, 2, size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert (video - 0.5).abs().max() < 0.02


@pytest.mark.parametrize("fps", [8, 0.5, 12.5, 24, 30000 / 1001, Fraction(24000, 1001), 60])
def test_mp4_has_exactly_that_many_frames_per_second(tmp_path, fps):
    write_video(smooth(1, frames=5), tmp_path / "clip.mp4", fps=fps)
    video, facts = read_movie(tmp_path / "clip.mp4")
    exact = Fraction(30000, 1001) if fps == 30000 / 1001 else Fraction(fps)
    assert video.shape[1] == 5
    assert facts["rate"] == exact
    assert facts["times"] == pytest.approx([float(i / exact) for i in range(5)], abs=1e-4)


# webp


def test_the_file_is_as_long_as_it_says_and_repeats_for_ever(tmp_path):
    write_video(noise(3), tmp_path / "a.webp")
    content = (tmp_path / "a.webp").read_bytes()
    assert len(content) == 8 + int.from_bytes(content[4:8], "little")
    with Image.open(tmp_path / "a.webp") as image:
        assert image.info["loop"] == 0
        assert image.n_frames == 5
        assert image.mode == "RGB"


def test_the_colour_of_transparent_pixels_is_kept(tmp_path):
    clip = noise(4)
    clip[3] = 0
    write_video(clip, tmp_path / "a.webp")
    assert torch.equal(read_picture(tmp_path / "a.webp", 4)[0], clip)


def test_a_frame_costs_no_more_than_what_changed(tmp_path):
    moving = noise(3, 5, 64, 64)[:, :1].repeat(1, 20, 1, 1)
    moving[:, range(20), range(20), range(20)] = 7
    new = torch.randint(0, 256, moving.shape).byte()
    for name, clip in (("moving", moving), ("new", new)):
        write_video(clip, tmp_path / f"{name}.webp")
    sizes = [(tmp_path / f"{name}.webp").stat().st_size for name in ("moving", "new")]
    assert sizes[0] < 0.1 * sizes[1]


@pytest.mark.parametrize("size", [(1, 16383), (16383, 1)])
def test_the_largest_side_of_a_webp(tmp_path, size):
    clip = torch.zeros(1, 2, *size, dtype=torch.uint8)
    clip[:, 1, -1, -1] = 9
    write_video(clip, tmp_path / "a.webp")
    assert torch.equal(read_picture(tmp_path / "a.webp", 1)[0], clip)
