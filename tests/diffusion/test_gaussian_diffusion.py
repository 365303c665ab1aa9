"""Training: from clips to a loss."""

import copy
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("diffusion_*.pt"))


class Toy(nn.Module):
    """The denoiser of the reference's records."""

    def forward(self, x, t, cond=None):
        return torch.tanh(0.3 * x + t.view(-1, 1, 1, 1, 1) * 1e-3)


class Recorder(nn.Module):
    """Notes what it is called with; predicts noise of zero."""

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


def exactly(message):
    return f"^{re.escape(message)}$"


# The reference's numbers


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_same_losses_as_the_reference(path):
    record = torch.load(path, weights_only=True)
    diffusion = GaussianDiffusion(Toy(), **record["config"])
    loss = diffusion.p_losses(record["x_start"], record["t"], noise=record["noise"])
    torch.testing.assert_close(loss, record["p_losses"], rtol=1e-6, atol=0)
    torch.manual_seed(11)
    torch.testing.assert_close(
        diffusion(record["videos_01"]), record["loss_seed_11"], rtol=1e-6, atol=0
    )


# The loss


@pytest.mark.parametrize(("loss_type", "distance"), [("l1", F.l1_loss), ("l2", F.mse_loss)])
def test_the_loss_is_the_distance_of_the_noise_from_its_prediction(loss_type, distance):
    diffusion = diffusion_with(Toy(), loss_type=loss_type)
    x_start, t = torch.randn(2, 3, 4, 8, 8), torch.tensor([2, 7])
    noise = torch.randn_like(x_start)
    prediction = Toy()(diffusion.q_sample(x_start, t, noise), t)
    assert torch.equal(diffusion.p_losses(x_start, t, noise=noise), distance(prediction, noise))


def test_all_time_steps_are_trained():
    recorder = Recorder()
    diffusion_with(recorder)(torch.rand(300, 3, 4, 8, 8))
    assert set(recorder.calls[0]["t"].tolist()) == set(range(10))


def test_clips_come_to_the_denoiser_in_the_models_range():
    recorder = Recorder()
    diffusion = diffusion_with(recorder, timesteps=1000)
    clips = torch.rand(2, 3, 4, 8, 8)
    noise = torch.zeros_like(clips)
    diffusion(clips, None, noise)
    x, t = recorder.calls[0]["x"], recorder.calls[0]["t"]
    share = diffusion.sqrt_alphas_cumprod[t].view(2, 1, 1, 1, 1)
    torch.testing.assert_close(x, share * (clips * 2 - 1))


def test_clips_in_their_own_range_stay_in_it():
    recorder = Recorder()
    diffusion = diffusion_with(recorder, auto_normalize=False)
    clips = torch.randn(2, 3, 4, 8, 8) * 100
    diffusion(clips, noise=torch.zeros_like(clips))  # and no warning of their range
    x, t = recorder.calls[0]["x"], recorder.calls[0]["t"]
    share = diffusion.sqrt_alphas_cumprod[t].view(2, 1, 1, 1, 1)
    torch.testing.assert_close(x, share * clips)


@pytest.mark.parametrize("auto_normalize", [True, False])
def test_bytes_are_fractions_of_255(auto_normalize):
    diffusion = diffusion_with(Toy(), auto_normalize=auto_normalize)
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    losses = []
    for form in (clips, clips.float() / 255):
        torch.manual_seed(5)
        losses.append(diffusion(form))
    assert torch.equal(*losses)


def test_the_seed_settles_the_loss_whatever_the_format_in_memory():
    diffusion = diffusion_with(Toy())
    clips = torch.rand(2, 3, 4, 8, 8)
    losses = []
    for form in (clips, clips.contiguous(memory_format=torch.channels_last_3d)):
        torch.manual_seed(5)
        losses.append(diffusion(form))
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)


# A range that looks like a mistake


@pytest.mark.parametrize(
    ("clips", "got"), [(torch.linspace(-1, 1, 768), "-1 to 1"), (torch.arange(256.0), "0 to 255")]
)
def test_clips_outside_their_range_are_told_once(clips, got):
    diffusion = diffusion_with(Toy())
    clips = clips.repeat(768 // len(clips)).view(1, 3, 4, 8, 8)
    message = (
        f"GaussianDiffusion: clips must be in [0, 1], got values from {got}; rescale them "
        "((x + 1) / 2 if they are in [-1, 1]), build GaussianDiffusion with value_range=(low, "
        "high) in their units, or with auto_normalize=False to keep a range of their own"
    )
    with pytest.warns(UserWarning, match=exactly(message)):
        diffusion(clips)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion(clips)


def test_clips_within_their_range_are_not_warned_of():
    diffusion = diffusion_with(Toy())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion(torch.rand(1, 3, 4, 8, 8))
        diffusion(torch.rand(1, 3, 4, 8, 8) * 1.04)  # resizing overshoots a little
        diffusion(torch.randint(0, 256, (1, 3, 4, 8, 8), dtype=torch.uint8))
    with pytest.warns(UserWarning, match="got values from"):
        diffusion(torch.rand(1, 3, 4, 8, 8) * 2)


# Conditions


def test_conditions_are_dropped_in_one_of_ten_cases():
    torch.manual_seed(0)
    unet = Unet3D(8, cond_dim=3, dim_mults=(1,), attn_heads=1)
    embeddings = []
    unet.mid_block1.register_forward_pre_hook(lambda _, args: embeddings.append(args[1]))
    diffusion = diffusion_with(unet, image_size=1, num_frames=1)
    diffusion(torch.rand(2000, 3, 1, 1, 1), cond=torch.randn(2000, 3))
    is_null = (embeddings[0][:, -3:] == unet.null_cond_emb).all(dim=1)
    assert abs(is_null.float().mean() - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5


def test_the_frequency_of_dropping_can_be_set_and_overridden():
    recorder = Recorder()
    clips, cond = torch.rand(2, 3, 4, 8, 8), torch.randn(2, 5)
    diffusion = diffusion_with(recorder)
    diffusion(clips, cond)
    diffusion(clips, cond=cond, null_cond_prob=0.7)
    diffusion(clips)
    diffusion_with(recorder, cond_drop_prob=0.25)(clips, cond)
    assert [call["null_cond_prob"] for call in recorder.calls] == [0.1, 0.7, 0.0, 0.25]
    assert recorder.calls[0]["cond"] is cond
    assert recorder.calls[2]["cond"] is None


def test_a_denoiser_that_cannot_drop_conditions_is_not_asked_to():
    calls = []

    class Plain(nn.Module):
        def forward(self, x, t, cond=None):
            calls.append(cond)
            return x

    cond = torch.randn(2, 5)
    diffusion_with(Plain())(torch.rand(2, 3, 4, 8, 8), cond)
    assert calls[0] is cond


def test_further_keywords_reach_the_denoiser():
    recorder = Recorder()
    diffusion = diffusion_with(recorder)
    diffusion(torch.rand(2, 3, 4, 8, 8), prob_focus_present=0.5, mask="a mask")
    assert recorder.calls[0]["prob_focus_present"] == 0.5
    assert recorder.calls[0]["mask"] == "a mask"
    with pytest.raises(TypeError, match="prob_focus_presnt"):
        diffusion_with(Toy())(torch.rand(2, 3, 4, 8, 8), prob_focus_presnt=0.5)


@pytest.mark.parametrize("use_cls", [False, True])
def test_captions_become_vectors(use_cls):
    text.set_text_encoder(GOLDEN / "tiny_bert")
    try:
        recorder = Recorder()
        diffusion = diffusion_with(recorder, text_use_bert_cls=use_cls)
        captions = ["fireworks", "a whale breaching from afar"]
        diffusion(torch.rand(2, 3, 4, 8, 8), cond=captions)
        diffusion.p_losses(torch.rand(2, 3, 4, 8, 8), torch.zeros(2).long(), tuple(captions))
        expected = text.bert_embed(text.tokenize(captions), return_cls_repr=use_cls)
    finally:
        text.set_text_encoder()
    assert expected.shape == (2, 32)
    for call in recorder.calls:
        assert torch.equal(call["cond"], expected)
        assert call["null_cond_prob"] == 0.1


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
    with pytest.raises(ValueError, match=r"= \(b, 3, 4, 6, 10\), got \(2, 3, 4, 10, 6\)"):
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


# Mistakes


@pytest.mark.parametrize("shape", [(2, 1, 4, 8, 8), (2, 3, 5, 8, 8), (2, 4, 3, 8, 8), (3, 4, 8, 8)])
def test_clips_of_a_wrong_shape(shape):
    message = (
        "GaussianDiffusion: clips must have the shape (b, c, f, h, w) = (b, 3, 4, 8, 8), got "
        f"{shape}; resize or cut them, or build GaussianDiffusion with their image_size, "
        "num_frames and channels"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Toy())(torch.rand(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_clips_of_a_wrong_type(dtype):
    message = (
        f"GaussianDiffusion: clips must be floating-point or uint8, got {dtype}; convert them "
        "with .float(), in the range of the training clips"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Toy())(torch.ones(2, 3, 4, 8, 8, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 3, 4, 8, 8), (2, 3, 5, 8, 8)])
def test_noise_of_a_wrong_shape(shape):
    message = (
        "GaussianDiffusion: noise must have the shape of the clips, (2, 3, 4, 8, 8), got "
        f"{shape}; draw it with torch.randn_like, or leave it out"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Toy())(torch.rand(2, 3, 4, 8, 8), noise=torch.randn(shape))


# Numbers of other libraries


def test_numbers_of_numpy_do_not_reach_the_file():
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


def test_the_networks_channels_may_be_numpys():
    network = Toy()
    network.channels = np.int64(2)
    assert type(diffusion_with(network).config["channels"]) is int
