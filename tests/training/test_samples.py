import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.data.video_file import gif_to_tensor
from video_diffusion_pytorch.training.samples import draw_samples, write_sample_grid


def tiny(cond_dim=None):
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1, cond_dim=cond_dim)
    return GaussianDiffusion(unet, image_size=8, num_frames=2, timesteps=2)


def test_samples_depend_on_their_seed_alone_and_leave_the_callers_random_numbers_alone():
    diffusion = tiny()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = draw_samples(diffusion, 3, 2, None, seed=7)
    assert torch.equal(torch.rand(3), expected)
    assert first.shape == (3, 1, 2, 8, 8)
    assert torch.equal(first, draw_samples(diffusion, 3, 2, None, seed=7))
    assert not torch.equal(first, draw_samples(diffusion, 3, 2, None, seed=8))


def test_conditions_are_repeated_over_the_batches():
    diffusion = tiny(cond_dim=4)
    seen = []
    diffusion.sample = lambda cond, batch_size, progress: (
        seen.append(cond),
        torch.zeros(batch_size, 1, 2, 8, 8),
    )[1]
    cond = torch.arange(3.0)[:, None].expand(3, 4)
    draw_samples(diffusion, 5, 2, cond, seed=0)
    assert [part[:, 0].tolist() for part in seen] == [[0, 1], [2, 0], [1]]


def test_the_grid_holds_each_video_in_its_place(tmp_path):
    videos = torch.rand(6, 1, 2, 8, 8)
    write_sample_grid(videos, tmp_path / "grid.gif", rows=2)
    grid = gif_to_tensor(tmp_path / "grid.gif", channels=1)
    assert grid.shape == (1, 2, 24, 36)
    row, column = 1, 2
    inside = grid[:, :, row * 12 + 2 : row * 12 + 10, column * 12 + 2 : column * 12 + 10]
    torch.testing.assert_close(inside, videos[5], rtol=0, atol=0.003)


def test_other_ranges_are_shown_from_black_to_white_and_nan_as_black(tmp_path):
    videos = torch.linspace(-300, 500, 2 * 2 * 8 * 8).view(1, 2, 2, 8, 8)
    videos[0, 0, 0, 0, 1] = torch.nan
    write_sample_grid(videos, tmp_path / "field.gif", rows=1, in_unit_range=False)
    grid = gif_to_tensor(tmp_path / "field.gif", channels=1)[:, :, 2:-2, 2:-2]
    assert grid.shape == (1, 2, 8, 16)
    assert grid[0, 0, 0, 0] == 0
    assert grid[0, 1, -1, -1] == 1
