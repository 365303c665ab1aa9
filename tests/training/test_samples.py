import numpy as np
import pytest
import torch
from PIL import Image

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.display import NOT_FINITE, to_pictures
from video_diffusion_pytorch.data.video_file import gif_to_tensor
from video_diffusion_pytorch.training.samples import (
    describe,
    draw_samples,
    write_sample_grid,
    write_samples,
)


def tiny(cond_dim=None):
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, cond_dim=cond_dim)
    return GaussianDiffusion(unet, image_size=8, num_frames=2, timesteps=2)


def recording(diffusion):
    """The keywords of each call of the diffusion's `sample`, which draws nothing from now on."""
    seen = []

    def sample(*, batch_size, progress, **keywords):
        assert progress is False
        seen.append({"batch_size": batch_size, **keywords})
        return torch.zeros(batch_size, 1, 2, 8, 8)

    diffusion.sample = sample
    return seen


# Drawing


def test_samples_depend_on_their_seed_alone_and_leave_the_callers_random_numbers_alone():
    diffusion = tiny()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = draw_samples(diffusion, 3, 2, {}, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert first.shape == (3, 1, 2, 8, 8)
    assert torch.equal(first, draw_samples(diffusion, 3, 2, {}, seed=7))
    assert not torch.equal(first, draw_samples(diffusion, 3, 2, {}, seed=8))


def test_conditions_are_repeated_over_the_batches():
    diffusion = tiny(cond_dim=4)
    seen = recording(diffusion)
    cond = torch.arange(3.0)[:, None].expand(3, 4)
    videos = draw_samples(diffusion, 5, 2, {"cond": cond, "names": list("ab")}, 0, cond_scale=3.0)
    assert videos.shape == (5, 1, 2, 8, 8)
    assert [call["cond"][:, 0].tolist() for call in seen] == [[0, 1], [2, 0], [1]]
    assert [call["names"] for call in seen] == [["a", "b"], ["a", "b"], ["a"]]
    assert [call["batch_size"] for call in seen] == [2, 2, 1]
    assert {call["cond_scale"] for call in seen} == {3.0}


def test_without_conditions_there_is_no_guidance():
    diffusion = tiny()
    seen = recording(diffusion)
    draw_samples(diffusion, 3, 8, {}, seed=0, cond_scale=3.0)
    assert seen == [{"batch_size": 3}]


def test_a_subclass_that_samples_as_the_reference_does():
    class Older(GaussianDiffusion):
        def sample(self, cond=None, cond_scale=1.0, batch_size=16):
            return super().sample(cond, cond_scale, batch_size, progress=False)

    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = Older(unet, image_size=8, num_frames=2, timesteps=2)
    assert draw_samples(diffusion, 3, 2, {}, seed=7).shape == (3, 1, 2, 8, 8)


def test_guidance_reaches_the_samples():
    diffusion, conditions = tiny(cond_dim=4), {"cond": torch.randn(2, 4)}
    plain, guided = (draw_samples(diffusion, 2, 2, conditions, 0, scale) for scale in (1.0, 9.0))
    assert not torch.equal(plain, guided)


# Writing the grid


def test_the_grid_holds_each_video_in_its_place(tmp_path):
    videos = torch.rand(6, 1, 2, 8, 8)
    write_sample_grid(videos, tmp_path / "grid.gif", rows=2)
    grid = gif_to_tensor(tmp_path / "grid.gif", channels=1)
    assert grid.shape == (1, 2, 24, 36)
    row, column = 1, 2
    inside = grid[:, :, row * 12 + 2 : row * 12 + 10, column * 12 + 2 : column * 12 + 10]
    torch.testing.assert_close(inside, videos[5], rtol=0, atol=0.003)


def read_webp(path):
    """The first frame of a one-row grid, without the frame around it, `(h, w, 3)`."""
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB")))[2:-2, 2:-2] / 255


def in_colours(videos, value_range):
    return to_pictures(videos, value_range)[0, :, 0].permute(1, 2, 0)


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("value_range", [None, (-500.0, 500.0)])
def test_other_ranges_are_shown_in_false_colours(tmp_path, channels, value_range):
    videos = torch.linspace(-300, 500, channels * 2 * 8 * 8).view(1, channels, 2, 8, 8)
    videos[0, 0, 0, 0, 1] = torch.nan
    path = tmp_path / "field.webp"
    # a range counts, also where the network's own is the unit one
    in_unit_range = value_range is not None
    write_sample_grid(videos, path, 1, in_unit_range, value_range=value_range)
    expected = in_colours(videos, value_range or "fit")
    torch.testing.assert_close(read_webp(path), expected, rtol=0, atol=0.003)


@pytest.mark.parametrize("value_range", [None, (-500.0, 500.0)])
def test_one_channel_is_grey_in_any_range(tmp_path, value_range):
    videos = torch.linspace(-300, 500, 2 * 8 * 8).view(1, 1, 2, 8, 8)
    videos[0, 0, 0, 0, 1] = torch.nan
    path = tmp_path / "field.webp"
    write_sample_grid(videos, path, 1, value_range is not None, value_range=value_range)
    low, high = value_range or (-300.0, 500.0)
    expected = ((videos[0, :, 0] - low) / (high - low)).expand(3, -1, -1).clone()
    expected[:, 0, 1] = torch.tensor(NOT_FINITE)
    torch.testing.assert_close(read_webp(path), expected.permute(1, 2, 0), rtol=0, atol=0.003)


def test_a_field_that_looks_like_a_picture_is_none(tmp_path):
    videos = torch.rand(1, 3, 2, 8, 8)
    write_sample_grid(videos, tmp_path / "field.webp", rows=1, in_unit_range=False)
    expected = in_colours(videos, "fit")
    torch.testing.assert_close(read_webp(tmp_path / "field.webp"), expected, rtol=0, atol=0.003)


def test_channels_that_make_no_picture_are_comparable_from_grid_to_grid(tmp_path):
    videos = torch.rand(1, 5, 2, 8, 8) * 0.5
    write_sample_grid(videos, tmp_path / "field.webp", rows=1)
    expected = in_colours(videos, (0.0, 1.0))
    torch.testing.assert_close(read_webp(tmp_path / "field.webp"), expected, rtol=0, atol=0.003)


def test_a_diverged_model_is_shown_as_one(tmp_path):
    videos = torch.full((1, 3, 2, 8, 8), torch.nan)
    videos[..., :2], videos[..., 2:4] = torch.inf, 700.0
    write_sample_grid(videos, tmp_path / "lost.webp", rows=1)
    picture = read_webp(tmp_path / "lost.webp")
    assert (picture[:, 2:4] == 1).all(), "finite ones are clamped"
    red = torch.tensor(NOT_FINITE).expand(8, 2, 3)
    torch.testing.assert_close(picture[:, :2], red, rtol=0, atol=0.003)
    torch.testing.assert_close(picture[:, 4:6], red, rtol=0, atol=0.003)


# Writing all of a milestone


def write(videos, folder, **options):
    options = {"rows": 2, "value_range": None, "in_unit_range": True, "captions": None} | options
    return write_samples(videos, folder, "12", **options)


def test_samples_are_written_to_look_at_and_to_compute_with(tmp_path):
    videos = torch.randn(6, 5, 2, 8, 8, dtype=torch.float64)
    videos[0, 0, 0, 0, 0] = torch.nan
    path = write(videos, tmp_path, in_unit_range=False, fps=25)
    assert path == tmp_path / "12.gif"
    assert gif_to_tensor(path).shape == (3, 2, 2 * 12, 3 * (5 * 8 + 4 + 4))
    with Image.open(path) as image:
        assert image.info["duration"] == 40
    values = np.load(tmp_path / "12.npy")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, videos.float().numpy())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["12.gif", "12.npy"]


def test_captions_say_what_is_where(tmp_path):
    captions = ["a cat", "two\nlines", "", "öl", "e", "f"]
    write(torch.rand(6, 3, 2, 8, 8), tmp_path, captions=captions)
    assert (tmp_path / "12.txt").read_text(encoding="utf-8").splitlines() == [
        "row 1, column 1: a cat",
        "row 1, column 2: two lines",
        "row 1, column 3: ",
        "row 2, column 1: öl",
        "row 2, column 2: e",
        "row 2, column 3: f",
    ]


def test_conditions_in_words():
    conditions = {
        "cond": ["a cat", None],
        "labels": torch.tensor([1, 5]),
        "frame_cond": torch.arange(6.0).view(1, 2, 3),
    }
    assert describe(conditions, ("x", "y"), 3) == [
        "a cat; y; frame_cond (2, 3): 0, 1, 2, 3, ...",
        "(no caption); class 5; frame_cond (2, 3): 0, 1, 2, 3, ...",
        "a cat; y; frame_cond (2, 3): 0, 1, 2, 3, ...",
    ]
    numbers = {"cond": torch.tensor([[30.0, 62.5]]), "labels": torch.tensor([-1])}
    assert describe(numbers, ("x",), 1, ("EF", "ESV")) == ["EF 30; ESV 62.5; (no class)"]
    assert describe({}, (), 2) is None
