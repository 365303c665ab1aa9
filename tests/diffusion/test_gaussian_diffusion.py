"""GaussianDiffusion around its network: built, wrapped, called with time and mode."""

import copy
import io

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D


class Toy(nn.Module):
    """The denoiser of the reference's records."""

    def forward(self, x, t, cond=None):
        return torch.tanh(0.3 * x + t.view(-1, 1, 1, 1, 1) * 1e-3)


class Recorder(nn.Module):
    """Records its arguments; predicts noise of zero."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))
        self.calls = []

    def forward(self, x, t, cond=None, null_cond_prob=0.0, **kwargs):
        self.calls.append(
            {"x": x, "t": t, "cond": cond, "null_cond_prob": null_cond_prob, **kwargs}
        )
        return x * self.gain


def diffusion_with(denoiser, **config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(denoiser, **config)


# Around the network


def test_channels_are_those_of_the_network():
    unet = Unet3D(8, dim_mults=(1,), channels=5, attn_heads=1)
    diffusion = diffusion_with(unet)
    assert diffusion.channels == 5
    assert diffusion(torch.rand(1, 5, 4, 8, 8)).ndim == 0
    assert diffusion_with(nn.DataParallel(unet)).channels == 5
    assert diffusion_with(Toy()).channels == 3
    assert diffusion_with(Toy(), channels=2).channels == 2


def test_clips_need_not_be_square():
    diffusion = diffusion_with(Toy(), image_size=(6, 10))
    assert diffusion(torch.rand(2, 3, 4, 6, 10)).ndim == 0
    with pytest.raises(ValueError, match=r"shape \(b, 3, 4, 6, 10\), .*, got \(2, 3, 4, 10, 6\)"):
        diffusion(torch.rand(2, 3, 4, 10, 6))


def test_config_rebuilds_the_diffusion():
    diffusion = diffusion_with(
        Toy(), image_size=(6, 10), channels=2, loss_type="l2", cond_drop_prob=0.3
    )
    again = GaussianDiffusion(Toy(), **diffusion.config)
    assert again.config == diffusion.config
    assert again.clip_shape == diffusion.clip_shape == (2, 4, 6, 10)


def test_the_network_may_be_replaced_later():
    diffusion = diffusion_with(Recorder())
    diffusion.denoise_fn = Toy()
    clips = torch.rand(2, 3, 4, 8, 8)
    torch.manual_seed(1)
    replaced = diffusion(clips)
    torch.manual_seed(1)
    assert torch.equal(replaced, diffusion_with(Toy())(clips))


@pytest.fixture
def _one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_one_process", "_fresh_compiler")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        lambda unet: torch.compile(unet, backend="eager"),
    ],
    ids=["data_parallel", "distributed", "compiled"],
)
def test_the_network_may_be_wrapped(wrap):
    torch.manual_seed(0)
    unet = Unet3D(8, cond_dim=3, dim_mults=(1,), attn_heads=1, use_sparse_linear_attn=False)
    plain = diffusion_with(copy.deepcopy(unet), timesteps=2)
    wrapped = diffusion_with(wrap(unet), timesteps=2)
    clips, cond = torch.rand(2, 3, 4, 8, 8), torch.randn(2, 3)
    results = []
    for diffusion in (plain, wrapped):
        torch.manual_seed(1)
        loss = diffusion(clips, cond)
        loss.backward()
        videos = diffusion.sample(cond=cond, cond_scale=2.0, progress=False)
        results.append((loss.detach(), videos))
    (loss, videos), (wrapped_loss, wrapped_videos) = results
    torch.testing.assert_close(wrapped_loss, loss, rtol=1e-4, atol=1e-5)
    # the first step divides by an alpha of 0.007, and multiplies rounding as much
    torch.testing.assert_close(wrapped_videos, videos, rtol=0, atol=1e-3)
    for expected, parameter in zip(plain.denoise_fn.parameters(), unet.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-5)


# Numbers of other libraries


def test_config_holds_no_numpy_numbers():
    given = {
        "image_size": (np.int64(6), np.int32(10)),
        "num_frames": np.int64(4),
        "channels": np.int64(2),
        "timesteps": np.int64(8),
        "given_frames": np.int8(1),
        "sampling_timesteps": np.int64(3),
        "min_snr_gamma": np.float64(5),
        "cond_drop_prob": np.float32(0.25),
        "dynamic_thres_percentile": torch.tensor(0.5),
        "ddim_sampling_eta": np.float64(0.5),
        "use_dynamic_thres": np.bool_(True),
        "loss_type": np.str_("l2"),
        "beta_schedule": np.linspace(0.1, 0.9, 8),
        "value_range": (np.float64(0), np.array([1, 2])),
    }
    diffusion = GaussianDiffusion(Toy(), **given)
    stored = io.BytesIO()
    torch.save({"config": diffusion.config, "weights": diffusion.state_dict()}, stored)
    stored.seek(0)
    state = torch.load(stored, weights_only=True)
    again = GaussianDiffusion(Toy(), **state["config"])
    again.load_state_dict(state["weights"])
    assert again.config == diffusion.config
    assert again.clip_shape == (2, 4, 6, 10)
    assert torch.equal(again.betas, torch.linspace(0.1, 0.9, 8, dtype=torch.float64).float())
    kinds = {"timesteps": int, "min_snr_gamma": float, "use_dynamic_thres": bool}
    assert {name: type(diffusion.config[name]) for name in kinds} == kinds


def test_the_channels_of_a_network_may_be_numpy_numbers():
    network = Toy()
    network.channels = np.int64(2)
    assert type(diffusion_with(network).config["channels"]) is int


SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 1, "attn_dim_head": 8, "channels": 1}


def make(unet, **options):
    settings = {"image_size": 8, "num_frames": 2, "timesteps": 10, "loss_type": "l2"}
    return GaussianDiffusion(unet, **{**settings, **options})


class Listening(Unet3D):
    """Records its times."""

    def forward(self, x, time, *args, **kwargs):
        self.heard = [*getattr(self, "heard", []), time.clone()]
        return super().forward(x, time, *args, **kwargs)


@pytest.mark.parametrize("schedule", ["cosine", "continuous_cosine"])
def test_a_network_gets_the_log_snr_if_it_takes_it(schedule):
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


def test_other_networks_get_the_step():
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


def test_sampling_restores_the_training_mode():
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
