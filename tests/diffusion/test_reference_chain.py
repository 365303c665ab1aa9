"""Sampling: from noise to videos."""

from pathlib import Path

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text
from video_diffusion_pytorch.diffusion.conditioning import is_list_str, unwrap
from video_diffusion_pytorch.diffusion.noise_schedule import cosine_beta_schedule
from video_diffusion_pytorch.diffusion.value_range import normalize_img, unnormalize_img

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("diffusion_*.pt"))


class Toy(nn.Module):
    """The denoiser of the reference's records; notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, cond=None):
        return torch.tanh(0.3 * x + t.view(-1, 1, 1, 1, 1) * 1e-3)

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        self.calls.append({"t": t, "cond": cond, "cond_scale": cond_scale})
        return self(x, t) * cond_scale


def toy_diffusion(**config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10} | config
    return GaussianDiffusion(Toy(), **config)


# The reference's numbers


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_same_samples_as_the_reference(path):
    record = torch.load(path, weights_only=True)
    diffusion = GaussianDiffusion(Toy(), **record["config"])
    close = {"rtol": 1e-6, "atol": 1e-6}
    x_t, t = record["q_sample"], record["t"]
    step = diffusion.p_mean_variance(x_t, t, clip_denoised=True)
    torch.testing.assert_close(step, record["p_mean_variance"], **close)
    guided = diffusion.p_mean_variance(x_t, t, clip_denoised=False, cond_scale=2.0)
    torch.testing.assert_close(guided, record["p_mean_variance_unclipped_scale2"], **close)
    torch.manual_seed(12)
    torch.testing.assert_close(diffusion.p_sample(x_t, t), record["p_sample_seed_12"], **close)
    torch.manual_seed(13)
    videos = diffusion.sample(batch_size=2, progress=False)
    torch.testing.assert_close(videos, record["sample_seed_13_batch_2"], rtol=1e-5, atol=1e-5)


# A distribution whose perfect denoiser is known


class PerfectDenoiser(nn.Module):
    """Expects the noise in a mixture with pixels that are normal, N(mean, deviation²)."""

    def __init__(self, kept, mean, deviation):
        super().__init__()
        self.kept, self.mean, self.deviation = kept, mean, deviation

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        kept = self.kept[t].view(-1, 1, 1, 1, 1).float()
        variance = kept * self.deviation**2 + 1 - kept
        return (1 - kept).sqrt() * (x - kept.sqrt() * self.mean) / variance


def moments_of_ancestral_sampling(betas, mean, deviation):
    """Mean and variance of the samples, step by step in float64 (Ho et al. 2020, eq. 6, 7)."""
    kept = (1 - betas).cumprod(0)
    before = torch.cat((torch.ones(1, dtype=torch.float64), kept[:-1]))
    m, v = 0.0, 1.0
    for beta, now, earlier in reversed(list(zip(betas, kept, before, strict=True))):
        # the expected clip is share * x + rest
        share = now.sqrt() * deviation**2 / (now * deviation**2 + 1 - now)
        rest = mean * (1 - now) / (now * deviation**2 + 1 - now)
        of_clip = earlier.sqrt() * beta / (1 - now)
        of_x = (1 - beta).sqrt() * (1 - earlier) / (1 - now)
        m = (of_clip * share + of_x) * m + of_clip * rest
        v = (of_clip * share + of_x) ** 2 * v + beta * (1 - earlier) / (1 - now)
    return float(m), float(v)


def test_samples_of_a_perfect_denoiser_have_the_right_mean_and_variance():
    steps, mean, deviation = 150, 1.5, 0.6
    betas = cosine_beta_schedule(steps)
    denoiser = PerfectDenoiser((1 - betas).cumprod(0), mean, deviation)
    diffusion = GaussianDiffusion(
        denoiser, image_size=8, num_frames=2, channels=1, timesteps=steps, auto_normalize=False
    )
    torch.manual_seed(0)
    pixels = diffusion.sample(batch_size=400, progress=False).flatten().double()
    m, v = moments_of_ancestral_sampling(betas, mean, deviation)
    assert pixels.mean().item() == pytest.approx(m, abs=4 * (v / len(pixels)) ** 0.5)
    assert pixels.var().item() == pytest.approx(v, rel=4 * (2 / len(pixels)) ** 0.5)
    # and with so many steps these are nearly the data's own
    assert m == pytest.approx(mean, rel=0.01)
    assert v == pytest.approx(deviation**2, rel=0.05)


def test_a_denoiser_that_knows_the_clip_finds_it():
    clip = torch.rand(1, 3, 4, 8, 8)
    kept = (1 - cosine_beta_schedule(10)).cumprod(0)
    denoiser = PerfectDenoiser(kept, mean=clip * 2 - 1, deviation=0.0)
    diffusion = GaussianDiffusion(denoiser, image_size=8, num_frames=4, timesteps=10)
    videos = diffusion.sample(batch_size=2, progress=False)
    torch.testing.assert_close(videos, clip.expand_as(videos), rtol=0, atol=1e-4)


# Range


def test_samples_are_clips():
    diffusion = toy_diffusion(image_size=(6, 10), channels=2)
    videos = diffusion.sample(batch_size=3, progress=False)
    assert videos.shape == (3, 2, 4, 6, 10)
    assert videos.min() >= 0
    assert videos.max() <= 1
    assert diffusion.p_sample_loop((1, 2, 7, 4, 4), progress=False).shape == (1, 2, 7, 4, 4)


def test_samples_in_a_range_of_their_own_are_not_clamped():
    diffusion = toy_diffusion(auto_normalize=False)
    torch.manual_seed(0)
    videos = diffusion.sample(batch_size=2, progress=False)
    assert videos.abs().max() > 1.5
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 8, 8)
    for step in reversed(range(10)):
        x = diffusion.p_sample(x, torch.full((2,), step), clip_denoised=False)
    assert torch.equal(videos, x)


def predicted_start(diffusion, x):
    """At the first step the mean is the predicted clip itself."""
    return diffusion.p_mean_variance(x, torch.zeros(len(x)).long(), clip_denoised=True)[0]


@pytest.mark.parametrize("percentile", [0.5, 0.9])
def test_the_dynamic_threshold_is_a_percentile_of_each_video(percentile):
    diffusion = toy_diffusion(use_dynamic_thres=True, dynamic_thres_percentile=percentile)
    x = torch.randn(3, 3, 4, 8, 8) * torch.tensor([0.01, 2.0, 20.0]).view(3, 1, 1, 1, 1)
    t = torch.zeros(3).long()
    start = diffusion.predict_start_from_noise(x, t, Toy()(x, t))
    found = predicted_start(diffusion, x)
    torch.testing.assert_close(found[0], start[0], rtol=1e-5, atol=1e-6)
    for video, raw in zip(found[1:], start[1:], strict=True):
        limit = raw.abs().flatten().sort().values[round(percentile * (raw.numel() - 1))]
        assert limit > 1
        torch.testing.assert_close(video, (raw / limit).clamp(-1, 1), rtol=1e-2, atol=1e-2)
        assert (video.abs() == 1).float().mean() == pytest.approx(1 - percentile, abs=0.01)


def test_the_plain_threshold_is_one():
    diffusion = toy_diffusion()
    x = torch.randn(3, 3, 4, 8, 8) * 5
    t = torch.zeros(3).long()
    start = diffusion.predict_start_from_noise(x, t, Toy()(x, t))
    torch.testing.assert_close(predicted_start(diffusion, x), start.clamp(-1, 1))


# Steps


def test_the_last_step_is_without_noise():
    diffusion = toy_diffusion()
    x, t = torch.randn(2, 3, 4, 8, 8), torch.tensor([0, 5])
    x[0] = 0  # a mean of zero, to which the least noise would show
    mean, variance, _ = diffusion.p_mean_variance(x, t, clip_denoised=True)
    torch.manual_seed(2)
    drawn = diffusion.p_sample(x, t)
    torch.manual_seed(2)
    noise = torch.randn(2, 3, 4, 8, 8)
    assert torch.equal(drawn[0], torch.zeros(3, 4, 8, 8))
    torch.testing.assert_close(drawn[1], (mean + variance.sqrt() * noise)[1])


def test_every_step_is_taken_once_from_the_last_to_the_first():
    diffusion = toy_diffusion()
    diffusion.sample(batch_size=2, progress=False)
    steps = [call["t"].tolist() for call in diffusion.denoise_fn.calls]
    assert steps == [[t, t] for t in reversed(range(10))]


def test_samples_do_not_depend_on_the_memory_format():
    class ChannelsLast(Toy):
        def forward(self, x, t, cond=None):
            return super().forward(x, t).contiguous(memory_format=torch.channels_last_3d)

    diffusion = toy_diffusion()
    videos = []
    for denoiser in (Toy(), Toy(), ChannelsLast()):
        diffusion.denoise_fn = denoiser
        torch.manual_seed(4)
        videos.append(diffusion.sample(batch_size=2, progress=False))
    assert torch.equal(videos[0], videos[1])
    torch.testing.assert_close(videos[0], videos[2], rtol=1e-5, atol=1e-6)
    assert not torch.equal(videos[0], diffusion.sample(batch_size=2, progress=False))


def test_samples_are_ordinary_tensors():
    unet = Unet3D(8, dim_mults=(1,), attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=4, num_frames=2, timesteps=2)
    x = torch.rand(1, 3, 2, 4, 4)
    for videos in (
        diffusion.sample(batch_size=1, progress=False),
        diffusion.interpolate(x, x, progress=False),
        diffusion.p_sample(x, torch.tensor([1])),
    ):
        assert not videos.is_inference()
        assert not videos.requires_grad
    # one can train on them, and in the same process
    diffusion(diffusion.sample(batch_size=1, progress=False)).backward()
    assert unet.init_conv.weight.grad.abs().sum() > 0


def test_a_steps_mean_has_a_gradient():
    diffusion = toy_diffusion()
    x = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
    mean, _, _ = diffusion.p_mean_variance(x, torch.tensor([3, 5]), clip_denoised=False)
    mean.sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_can_be_left_out(progress, capsys):
    diffusion = toy_diffusion(timesteps=2)
    x = torch.rand(1, 3, 4, 8, 8)
    diffusion.sample(batch_size=1, progress=progress)
    diffusion.interpolate(x, x, progress=progress)
    assert ("sampling" in capsys.readouterr().err) is progress


# Conditions


def test_conditions_and_their_scale_reach_the_denoiser_at_each_step():
    diffusion = toy_diffusion()
    cond = torch.randn(5, 7)
    assert len(diffusion.sample(cond=cond, cond_scale=3.0, progress=False)) == 5
    assert all(torch.equal(call["cond"], cond) for call in diffusion.denoise_fn.calls)
    assert {call["cond_scale"] for call in diffusion.denoise_fn.calls} == {3.0}


@pytest.mark.parametrize("use_cls", [False, True])
def test_captions_become_vectors(use_cls):
    text.set_text_encoder(GOLDEN / "tiny_bert")
    try:
        diffusion = toy_diffusion(text_use_bert_cls=use_cls, timesteps=2)
        captions = ["fireworks", "a whale breaching from afar"]
        videos = diffusion.sample(cond=captions, progress=False)
        x = torch.rand(2, 3, 4, 8, 8)
        diffusion.interpolate(x, x, cond=tuple(captions), progress=False)
        expected = text.bert_embed(text.tokenize(captions), return_cls_repr=use_cls)
    finally:
        text.set_text_encoder()
    assert len(videos) == 2
    for call in diffusion.denoise_fn.calls:
        assert torch.equal(call["cond"], expected)


# Interpolation


@pytest.mark.parametrize("t", [None, 4])
def test_interpolation_without_a_share_of_the_second_denoises_the_first(t):
    diffusion = toy_diffusion()
    x1, x2 = torch.rand(2, 2, 3, 4, 8, 8)
    torch.manual_seed(6)
    videos = diffusion.interpolate(x1, x2, t=t, lam=0.0, progress=False)
    torch.manual_seed(6)
    start = 9 if t is None else t
    x = diffusion.q_sample(x1 * 2 - 1, torch.full((2,), start))
    torch.randn(2, 3, 4, 8, 8)  # the second's noise
    for step in reversed(range(start)):
        x = diffusion.p_sample(x, torch.full((2,), step))
    torch.testing.assert_close(videos, (x + 1) / 2)


def test_interpolation_blends_by_its_share():
    diffusion = toy_diffusion()
    x1, x2 = torch.rand(2, 2, 3, 4, 8, 8)
    blends = []
    for lam in (0.0, 0.25, 1.0):
        torch.manual_seed(6)
        # nothing is denoised, so that only the blend is left
        blends.append(diffusion.interpolate(x1, x2, t=0, lam=lam, progress=False))
    torch.testing.assert_close(blends[1], 0.75 * blends[0] + 0.25 * blends[2])


def test_interpolation_takes_conditions_and_gives_clips():
    diffusion = toy_diffusion()
    x1, x2 = torch.rand(2, 2, 3, 4, 8, 8)
    cond = torch.randn(2, 7)
    videos = diffusion.interpolate(x1, x2, cond=cond, cond_scale=3.0, progress=False)
    assert videos.shape == x1.shape
    assert videos.min() >= 0
    assert videos.max() <= 1
    assert len(diffusion.denoise_fn.calls) == 9
    for call in diffusion.denoise_fn.calls:
        assert call["cond"] is cond
        assert call["cond_scale"] == 3.0


def test_clips_that_cannot_be_interpolated():
    diffusion = toy_diffusion()
    x = torch.rand(2, 3, 4, 8, 8)
    for other in (x[:1], x.long()):
        message = r"^interpolate: x2 must be .* tensor of shape \(2, 3, 4, 8, 8\), .*, got "
        with pytest.raises(ValueError, match=message):
            diffusion.interpolate(x, other)
    message = r"interpolate: lam, the share of x2, must be in \[0, 1\], got 2"
    with pytest.raises(ValueError, match=message):
        diffusion.interpolate(x, x, lam=2)
    for t in (-1, diffusion.num_timesteps):
        with pytest.raises(ValueError, match=rf"t must be a step from 0 to .*, got {t}"):
            diffusion.interpolate(x, x, t)


# Small ones


def test_ranges_are_each_others_inverse():
    x = torch.tensor([0.0, 0.25, 1.0])
    assert normalize_img(x).tolist() == [-1.0, -0.5, 1.0]
    assert torch.equal(unnormalize_img(normalize_img(x)), x)


@pytest.mark.parametrize(
    ("x", "expected"),
    [(["a"], True), (("a", "b"), True), ("a", False), (["a", 1], False), (torch.ones(1), False)],
)
def test_only_lists_of_strings_are_captions(x, expected):
    assert is_list_str(x) is expected


def test_unwrap_gives_the_network_inside():
    toy = Toy()
    assert unwrap(toy) is toy
    assert unwrap(nn.DataParallel(torch.compile(toy))) is toy

    class HasModule(nn.Module):
        """Not a wrapper, though it has a part of that name."""

        def __init__(self):
            super().__init__()
            self.module = toy

    other = HasModule()
    assert unwrap(other) is other


@pytest.mark.parametrize("call", ["p_mean_variance", "p_sample", "p_sample_loop", "interpolate"])
def test_conditions_of_unknown_names(call):
    diffusion = GaussianDiffusion(Toy(), image_size=8, num_frames=2, timesteps=2)
    x, t = torch.zeros(1, 3, 2, 8, 8), torch.tensor([1])
    arguments = {
        "p_mean_variance": (x, t, True),
        "p_sample": (x, t),
        "p_sample_loop": (x.shape,),
        "interpolate": (x, x),
    }
    text = "conditions must be among cond, labels, .*, first_frames, got label; correct the name"
    with pytest.raises(TypeError, match=text):
        getattr(diffusion, call)(*arguments[call], label=torch.tensor([1]))
