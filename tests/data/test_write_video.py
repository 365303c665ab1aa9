"""A clip becomes a file that plays, in each of the formats."""

import numpy as np
import pytest
import torch
from PIL import Image

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
        ("a.gif", {"crf": 9}, ValueError, r"crf must be None for other files than .mp4, got 9"),
        ("a.mp4", {"columns": 2}, ValueError, r"columns must be None .* .png, got 2 for .mp4; le"),
        ("a.mp4", {"crf": 52}, ValueError, r"crf must be 0 to 51, got 52; 18 is good"),
        ("a.png", {"columns": 0}, ValueError, r"columns must be at least 1, got 0; pass None"),
    ],
)
def test_wrong_targets_and_options(tmp_path, name, options, error, text):
    with pytest.raises(error, match=text):
        write_video(torch.zeros(3, 2, 4, 4), tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_arrays_are_refused(tmp_path):
    with pytest.raises(TypeError, match=r"clip must be a tensor, got ndarray; convert it, for"):
        write_video(np.zeros((3, 2, 4, 4)), tmp_path / "a.mp4")


@pytest.mark.parametrize(("ending", "side"), [(".gif", 65535), (".webp", 16383)])
def test_sides_that_the_format_cannot_store(tmp_path, ending, side):
    write_video(torch.zeros(1, 1, 1, side), tmp_path / f"a{ending}")
    text = rf"sides of a {ending} must be at most {side} pixels, got 1 x {side + 1}; make the clip"
    with pytest.raises(ValueError, match=text):
        write_video(torch.zeros(1, 1, 1, side + 1), tmp_path / f"b{ending}")


@pytest.mark.parametrize(
    ("name", "options", "error", "text"),
    [
        ("clip.mp4", {}, ValueError, r"path must end in '.gif', got .*clip.mp4; rename it"),
        ("no/clip.gif", {}, FileNotFoundError, r"expected a folder at .*no to write clip.gif"),
        ("clip.gif", {"duration": -1}, ValueError, r"duration must be 0 to 655350 .* got -1;"),
        ("clip.gif", {"loop": 65536}, ValueError, r"loop must be None or 0 to 65535.* got 65536"),
    ],
)
def test_wrong_targets_and_options_of_a_gif(tmp_path, name, options, error, text):
    with pytest.raises(error, match=text):
        video_tensor_to_gif(torch.zeros(1, 2, 4, 4), tmp_path / name, **options)


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png", ".npy", ".mp4"])
@pytest.mark.parametrize("letter", ["x", "ü"])
def test_a_name_as_long_as_file_systems_allow(tmp_path, ending, letter):
    stem = letter * ((255 - len(ending)) // len(letter.encode()))
    path = tmp_path / f"{stem}{ending}"
    write_video(torch.rand(3, 2, 16, 16), path)
    assert list(tmp_path.iterdir()) == [path]
