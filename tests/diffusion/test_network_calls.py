"""How the diffusion calls its network: with the time it wants, and without dropout in samples."""

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 1, "attn_dim_head": 8, "channels": 1}


def make(unet, **options):
    settings = {"image_size": 8, "num_frames": 2, "timesteps": 10, "loss_type": "l2"}
    return GaussianDiffusion(unet, **{**settings, **options})


class Listening(Unet3D):
    """Remembers the times that it is told."""

    def forward(self, x, time, *args, **kwargs):
        self.heard = [*getattr(self, "heard", []), time.clone()]
        return super().forward(x, time, *args, **kwargs)


@pytest.mark.parametrize("schedule", ["cosine", "continuous_cosine"])
def test_a_network_is_told_the_log_snr_if_it_asks(schedule):
    unet = Listening(**SMALL, time_input="log_snr")
    diffusion = make(unet, beta_schedule=schedule)
    clips, t = torch.rand(2, 1, 2, 8, 8), torch.tensor([0, 7])
    diffusion(clips, t=t)
    torch.testing.assert_close(unet.heard[0], diffusion.log_snr(t))
    assert unet.heard[0][0] > 0 > unet.heard[0][1]
    unet.heard.clear()
    diffusion.sample(batch_size=1, progress=False)
    assert len(unet.heard) == 10
    expected = torch.stack([diffusion.log_snr(torch.tensor([i])) for i in range(9, -1, -1)])
    torch.testing.assert_close(torch.stack(unet.heard), expected)
    unet.heard.clear()
    diffusion.sample(batch_size=1, sampler="dpm++", steps=3, progress=False)
    assert all(time.is_floating_point() for time in unet.heard)


def test_a_network_is_told_the_step_if_not():
    unet = Listening(**SMALL)
    diffusion = make(unet)
    t = torch.tensor([0, 7])
    diffusion(torch.rand(2, 1, 2, 8, 8), t=t)
    assert torch.equal(unet.heard[0], t)


def test_samples_are_drawn_without_dropout():
    torch.manual_seed(0)
    unet = Unet3D(**SMALL, dropout=0.5)
    diffusion = make(unet)
    drawn = {}
    for mode in (True, False):
        unet.train(mode)
        for name, sampler in (("ddpm", None), ("ddim", "ddim")):
            torch.manual_seed(1)
            videos = diffusion.sample(batch_size=1, sampler=sampler, progress=False)
            drawn.setdefault(name, []).append(videos)
    for with_training, without in drawn.values():
        assert torch.equal(with_training, without)


def test_after_sampling_training_goes_on_as_it_was():
    unet = Unet3D(**SMALL, dropout=0.5)
    diffusion = make(unet).train()
    unet.mid_block1.eval()
    before = [module.training for module in diffusion.modules()]
    diffusion.sample(batch_size=1, progress=False)
    assert [module.training for module in diffusion.modules()] == before
    losses = {
        diffusion(
            torch.ones(1, 1, 2, 8, 8), t=torch.tensor([3]), noise=torch.ones(1, 1, 2, 8, 8)
        ).item()
        for _ in range(3)
    }
    assert len(losses) == 3
