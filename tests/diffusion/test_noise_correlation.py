"""Noise that is correlated over frames, in training and sampling."""

import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, relative_error
from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.diffusion.noise_schedule import correlate_frames
from video_diffusion_pytorch.training.batches import ClipDraws

SIZE = {"image_size": 8, "num_frames": 4, "timesteps": 20}


def model_with(**options):
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2)
    return GaussianDiffusion(unet, **{**SIZE, "noise_correlation": 0.4, **options})


def covariance(noise):
    rows = noise.movedim(2, -1).reshape(-1, noise.shape[2]).double()
    return rows.T @ rows / len(rows)


def expected(frames, correlation):
    return correlation + (1 - correlation) * torch.eye(frames, dtype=torch.float64)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 0.95])
@pytest.mark.parametrize("frames", [1, 4, 7])
def test_each_two_frames_are_correlated(correlation, frames):
    noise = torch.randn(8, 1, frames, 64, 64, generator=torch.Generator().manual_seed(0))
    found = covariance(correlate_frames(noise, correlation))
    torch.testing.assert_close(found, expected(frames, correlation), rtol=0, atol=0.03)
    # of frames that another window has as well, they have the same
    part = correlate_frames(noise, correlation)[:, :, :3]
    size = part.shape[2]
    torch.testing.assert_close(covariance(part), expected(size, correlation), rtol=0, atol=0.03)


def test_without_correlation_nothing_changes():
    noise = torch.randn(2, 1, 4, 8, 8)
    assert correlate_frames(noise, 0.0) is noise
    assert model_with(noise_correlation=0.0).correlated(noise) is noise


def test_the_noise_of_training_is_correlated():
    diffusion, seen = model_with(), []
    network = diffusion.denoise_fn.forward
    diffusion.denoise_fn.forward = lambda x, t, **kwargs: seen.append(x) or network(x, t, **kwargs)
    clips, t = torch.full((64, 1, 4, 8, 8), 0.5), torch.full((64,), 19)
    images = torch.full((64, 1, 2, 8, 8), 0.5)
    diffusion(clips, t=t, images=images)
    # images are of other videos
    wanted = torch.eye(6, dtype=torch.float64)
    wanted[:4, :4] = expected(4, 0.4)
    torch.testing.assert_close(covariance(seen[0]), wanted, rtol=0, atol=0.08)
    drawn = ClipDraws(diffusion)(range(64), 6)["noise"]
    torch.testing.assert_close(covariance(drawn), wanted, rtol=0, atol=0.08)


def test_samples_begin_with_correlated_noise():
    diffusion, seen = model_with(), []
    for options in ({"sampler": "ddim", "steps": 2, "seed": 0}, {"sampler": "ddpm"}):
        diffusion.denoise_fn.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        diffusion.sample(batch_size=64, progress=False, **options)
        found = covariance(seen[0])
        torch.testing.assert_close(found, expected(4, 0.4), rtol=0, atol=0.08)
        seen.clear()


@pytest.mark.parametrize("sampler", ["ancestral", "dpm++sde", "heun"])
def test_samplers_reach_the_covariance_of_the_data(sampler):
    # the perfect denoiser for this noise
    videos = GaussianVideos(mean=(0.0,) * 4)
    sizes = {**SIZE, "timesteps": 400, "auto_normalize": False, "channels": 1}
    noisy = expected(4, 0.4)

    class Perfect(torch.nn.Module):
        channels = 1

        def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
            alpha, sigma = model.signal_and_noise(t, x.shape)
            alpha, sigma = alpha[0].item(), sigma[0].item()
            mixed = alpha**2 * videos.covariance + sigma**2 * noisy
            gain = alpha * torch.linalg.solve(mixed, videos.covariance).T
            return torch.einsum("fg,bcghw->bcfhw", gain.to(x), x)

    model = GaussianDiffusion(Perfect(), **sizes, objective="pred_x_start", noise_correlation=0.4)
    drawn = model.sample(batch_size=200, sampler=sampler, steps=60, seed=0, progress=False)
    assert relative_error(covariance(drawn), videos.covariance) < 0.12


def test_weights_of_another_correlation_are_refused():
    state = model_with().state_dict()
    model_with().load_state_dict(state)
    message = "must have the model's noise_correlation, 0.0, got 0.4; build"
    with pytest.raises(ValueError, match=message):
        model_with(noise_correlation=0.0).load_state_dict(state)
    with pytest.raises(
        ValueError, match="noise_correlation must be a number from 0 to less than 1"
    ):
        model_with(noise_correlation=1.0)
