"""The training loss: its value, times, dropped conditions, reductions and padding."""

import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("diffusion_*.pt"))


class Toy(nn.Module):
    """The denoiser of the reference's records."""

    def forward(self, x, t, cond=None):
        return torch.tanh(0.3 * x + t.view(-1, 1, 1, 1, 1) * 1e-3)


class Silent(nn.Module):
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


def model_with(denoiser, **config):
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
    diffusion = model_with(Toy(), loss_type=loss_type)
    x_start, t = torch.randn(2, 3, 4, 8, 8), torch.tensor([2, 7])
    noise = torch.randn_like(x_start)
    prediction = Toy()(diffusion.q_sample(x_start, t, noise), t)
    assert torch.equal(diffusion.p_losses(x_start, t, noise=noise), distance(prediction, noise))


def test_all_time_steps_are_trained():
    recorder = Silent()
    model_with(recorder)(torch.rand(300, 3, 4, 8, 8))
    assert set(recorder.calls[0]["t"].tolist()) == set(range(10))


def test_the_denoiser_gets_clips_in_the_range_of_the_model():
    recorder = Silent()
    diffusion = model_with(recorder, timesteps=1000)
    clips = torch.rand(2, 3, 4, 8, 8)
    noise = torch.zeros_like(clips)
    diffusion(clips, None, noise)
    x, t = recorder.calls[0]["x"], recorder.calls[0]["t"]
    share = diffusion.sqrt_alphas_cumprod[t].view(2, 1, 1, 1, 1)
    torch.testing.assert_close(x, share * (clips * 2 - 1))


def test_clips_in_their_own_range_stay_in_it():
    recorder = Silent()
    diffusion = model_with(recorder, auto_normalize=False)
    clips = torch.randn(2, 3, 4, 8, 8) * 100
    diffusion(clips, noise=torch.zeros_like(clips))  # and no warning of their range
    x, t = recorder.calls[0]["x"], recorder.calls[0]["t"]
    share = diffusion.sqrt_alphas_cumprod[t].view(2, 1, 1, 1, 1)
    torch.testing.assert_close(x, share * clips)


@pytest.mark.parametrize("auto_normalize", [True, False])
def test_bytes_are_fractions_of_255(auto_normalize):
    diffusion = model_with(Toy(), auto_normalize=auto_normalize)
    clips = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    losses = []
    for form in (clips, clips.float() / 255):
        torch.manual_seed(5)
        losses.append(diffusion(form))
    assert torch.equal(*losses)


def test_the_loss_does_not_depend_on_the_memory_format():
    diffusion = model_with(Toy())
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
def test_clips_outside_their_range_give_one_warning(clips, got):
    diffusion = model_with(Toy())
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


def test_clips_within_their_range_give_no_warning():
    diffusion = model_with(Toy())
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
    diffusion = model_with(unet, image_size=1, num_frames=1)
    diffusion(torch.rand(2000, 3, 1, 1, 1), cond=torch.randn(2000, 3))
    is_null = (embeddings[0][:, -3:] == unet.null_cond_emb).all(dim=1)
    assert abs(is_null.float().mean() - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5


def test_the_frequency_of_dropping_can_be_set_and_overridden():
    recorder = Silent()
    clips, cond = torch.rand(2, 3, 4, 8, 8), torch.randn(2, 5)
    diffusion = model_with(recorder)
    diffusion(clips, cond)
    diffusion(clips, cond=cond, null_cond_prob=0.7)
    diffusion(clips)
    model_with(recorder, cond_drop_prob=0.25)(clips, cond)
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
    model_with(Plain())(torch.rand(2, 3, 4, 8, 8), cond)
    assert calls[0] is cond


def test_further_keywords_reach_the_denoiser():
    recorder = Silent()
    diffusion = model_with(recorder)
    diffusion(torch.rand(2, 3, 4, 8, 8), prob_focus_present=0.5, mask="a mask")
    assert recorder.calls[0]["prob_focus_present"] == 0.5
    assert recorder.calls[0]["mask"] == "a mask"
    with pytest.raises(TypeError, match="prob_focus_presnt"):
        model_with(Toy())(torch.rand(2, 3, 4, 8, 8), prob_focus_presnt=0.5)


@pytest.mark.parametrize("use_cls", [False, True])
def test_captions_become_vectors(use_cls):
    text.set_text_encoder(GOLDEN / "tiny_bert")
    try:
        recorder = Silent()
        diffusion = model_with(recorder, text_use_bert_cls=use_cls)
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


# Mistakes


@pytest.mark.parametrize("shape", [(2, 1, 4, 8, 8), (2, 3, 5, 8, 8), (2, 4, 3, 8, 8), (3, 4, 8, 8)])
def test_clips_of_a_wrong_shape(shape):
    message = (
        "GaussianDiffusion: clips must be a tensor of shape (b, 3, 4, 8, 8), floating-point or "
        f"uint8, got {shape}; cut or resize them, or build GaussianDiffusion for "
        "clips of this shape"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        model_with(Toy())(torch.rand(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_clips_of_a_wrong_type(dtype):
    with pytest.raises(ValueError, match=f"clips must be .*, got {dtype}; convert it with"):
        model_with(Toy())(torch.ones(2, 3, 4, 8, 8, dtype=dtype))


@pytest.mark.parametrize("shape", [(3, 4, 8, 8), (1, 3, 4, 8, 8), (2, 3, 5, 8, 8)])
def test_noise_of_a_wrong_shape(shape):
    with pytest.raises(
        ValueError, match=r"noise must be .* of shape \(2, 3, 4, 8, 8\), .*, got \("
    ):
        model_with(Toy())(torch.rand(2, 3, 4, 8, 8), noise=torch.randn(shape))


B = 4
CLIPS = (B, 3, 2, 8, 8)


class Recorder(nn.Module):
    """Records its arguments; its prediction depends on the clip."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, cond=None, null_cond_prob=0.0, **kwargs):
        self.calls.append({"t": t, "null_cond_prob": null_cond_prob, **kwargs})
        return 0.3 * x


def diffusion_with(denoiser, **config):
    config = {"image_size": 8, "num_frames": 2, "timesteps": 10} | config
    return GaussianDiffusion(denoiser, **config)


def loss_of(diffusion, seed=0, **received):
    torch.manual_seed(seed)
    return diffusion(torch.rand(CLIPS), **received)


# Times


@pytest.mark.parametrize("schedule", ["cosine", "continuous_cosine"])
def test_the_loss_takes_given_times(schedule):
    recorder = Recorder()
    diffusion = diffusion_with(recorder, beta_schedule=schedule)
    torch.manual_seed(0)
    clips = torch.rand(CLIPS)
    drawn = diffusion.draw_times(B)
    noise = torch.randn(CLIPS)
    expected = diffusion.p_losses(clips * 2 - 1, drawn, noise=noise)
    # the same numbers as if they were drawn, and no draw of theirs
    assert torch.equal(loss_of(diffusion), expected)
    assert torch.equal(diffusion(clips, t=drawn, noise=noise), expected)
    assert torch.equal(recorder.calls[-1]["t"], drawn)
    torch.manual_seed(1)
    diffusion(clips, t=drawn)
    after = torch.rand(3)
    torch.manual_seed(1)
    torch.randn(CLIPS)
    assert torch.equal(after, torch.rand(3))


def test_times_at_the_ends_are_right_and_any_integers_will_do():
    recorder = Recorder()
    t = torch.tensor([0, 9, 9, 0])
    losses = [
        loss_of(diffusion_with(recorder), t=t.to(dtype))
        for dtype in (torch.int64, torch.int32, torch.int8, torch.uint8)
    ]
    assert all(torch.equal(loss, losses[0]) for loss in losses)
    assert all(call["t"].dtype == torch.int64 for call in recorder.calls)
    continuous = diffusion_with(recorder, beta_schedule="continuous_cosine")
    assert loss_of(continuous, t=torch.tensor([-1.0, 9.0, 0.5, 3.25])).isfinite()
    assert recorder.calls[-1]["t"].tolist() == [-1.0, 9.0, 0.5, 3.25]


@pytest.mark.parametrize(
    ("t", "got"),
    [
        ([0, 1, 2, 10], "torch.int64 of shape (4,) from 0 to 10"),
        ([-1, 1, 2, 3], "torch.int64 of shape (4,) from -1 to 3"),
        ([1, 2], "torch.int64 of shape (2,) from 1 to 2"),
        ([[1], [2], [3], [4]], "torch.int64 of shape (4, 1) from 1 to 4"),
        (3, "tensor(3)"),
        ([0.0, 1.0, 2.0, 3.0], "torch.float32 of shape (4,) from 0.0 to 3.0"),
    ],
)
def test_times_outside_the_schedule(t, got):
    t = torch.tensor(t)
    message = (
        f"GaussianDiffusion: t must be whole numbers from 0 to 9, one per clip, 4, or one per "
        f"frame, got {got}; leave it out, or draw it with draw_times"
    )
    recorder = Recorder()
    with pytest.raises(ValueError, match=exactly(message)):
        loss_of(diffusion_with(recorder), t=t)
    assert recorder.calls == []


@pytest.mark.parametrize("wrong", [-1.5, 9.01, float("nan")])
def test_times_outside_a_continuous_schedule(wrong):
    message = "GaussianDiffusion: t must be real numbers from -1 to 9, one per clip, 4, or"
    diffusion = diffusion_with(Recorder(), beta_schedule="continuous_cosine")
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*; leave it out"):
        loss_of(diffusion, t=torch.tensor([0.0, 1.0, 2.0, wrong]))


# One loss per clip


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
def test_the_mean_of_the_losses_is_the_loss(loss_type, gamma):
    diffusion = diffusion_with(Recorder(), loss_type=loss_type, min_snr_gamma=gamma)
    mean = loss_of(diffusion)
    each = loss_of(diffusion, reduction="none")
    assert mean.shape == ()
    assert each.shape == (B,)
    torch.testing.assert_close(each.mean(), mean)
    assert torch.equal(loss_of(diffusion, reduction="mean"), mean)
    assert each.unique().numel() == B


def test_the_loss_of_a_clip_is_that_of_the_clip_alone():
    diffusion = diffusion_with(Recorder(), loss_type="l2", min_snr_gamma=5.0)
    torch.manual_seed(0)
    clips, noise, t = torch.rand(CLIPS), torch.randn(CLIPS), torch.tensor([0, 3, 6, 9])
    each = diffusion(clips, noise=noise, t=t, reduction="none")
    alone = [diffusion(clips[i : i + 1], noise=noise[i : i + 1], t=t[i : i + 1]) for i in range(B)]
    torch.testing.assert_close(each, torch.stack(alone))
    squares = F.mse_loss(0.3 * diffusion.q_sample(clips * 2 - 1, t, noise), noise, reduction="none")
    weight = (5 * torch.exp(-diffusion.log_snr(t))).clamp(max=1)
    torch.testing.assert_close(each, squares.mean(dim=(1, 2, 3, 4)) * weight)


@pytest.mark.parametrize("reduction", ["sum", None, "Mean"])
def test_another_reduction(reduction):
    message = (
        f"GaussianDiffusion: reduction must be one of mean, none, got {reduction!r}; choose mean "
        "for a scalar, or none for the loss of each clip"
    )
    recorder = Recorder()
    with pytest.raises(ValueError, match=exactly(message)):
        loss_of(diffusion_with(recorder), reduction=reduction)
    assert recorder.calls == []


# Which frames are padding

DISTANCES = {
    "l1": lambda a, b: (a - b).abs(),
    "l2": lambda a, b: (a - b) ** 2,
    "huber": lambda a, b: torch.where((a - b).abs() < 1, (a - b) ** 2 / 2, (a - b).abs() - 0.5),
}
# of clips of 5 frames: at the end, in the middle, all real, all padding
MASK = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool()


def padded(objective="pred_noise", **config):
    diffusion = diffusion_with(Recorder(), num_frames=5, objective=objective, **config)
    generator = torch.Generator().manual_seed(0)
    clips, noise = (torch.rand(B, 3, 5, 8, 8, generator=generator) for _ in range(2))
    return diffusion, clips, noise * 4 - 2, torch.tensor([0, 3, 6, 9])


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_v", "pred_x_start"])
def test_the_loss_is_that_of_the_real_frames(objective, loss_type, gamma):
    diffusion, clips, noise, t = padded(objective, loss_type=loss_type, min_snr_gamma=gamma)
    received = {"noise": noise, "t": t, "frame_mask": MASK}
    found = diffusion(clips, reduction="none", **received)
    x_start = clips * 2 - 1
    target = {
        "pred_noise": noise,
        "pred_v": diffusion.predict_v(x_start, t, noise),
        "pred_x_start": x_start,
    }[objective]
    prediction = 0.3 * diffusion.q_sample(x_start, t, noise)
    snr, weight = diffusion.log_snr(t).exp(), torch.ones(B)
    if gamma is not None:
        capped = snr.clamp(max=gamma)
        weight = {"pred_noise": capped / snr, "pred_v": capped / (snr + 1), "pred_x_start": capped}
        weight = weight[objective]
    # frame by frame, clip by clip
    expected = [
        torch.stack(
            [DISTANCES[loss_type](prediction[i, :, f], target[i, :, f]).mean() for f in frames]
        ).mean()
        for i, frames in enumerate(([0, 1, 2], [1, 2], range(5)))
    ]
    torch.testing.assert_close(found[:3], torch.stack(expected) * weight[:3])
    assert found[3] == 0
    torch.testing.assert_close(diffusion(clips, **received), found.mean())


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
def test_without_padding_a_mask_changes_no_bit(loss_type, gamma, reduction):
    diffusion, clips, noise, t = padded(loss_type=loss_type, min_snr_gamma=gamma)
    received = {"noise": noise, "t": t, "reduction": reduction}
    masked = diffusion(clips, frame_mask=torch.ones(B, 5, dtype=torch.bool), **received)
    assert torch.equal(masked, diffusion(clips, **received))


class Constant(nn.Module):
    """Predicts one number everywhere."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(0.25))

    def forward(self, x, t, cond=None):
        return self.value.expand(x.shape)


def loss_and_gradients(diffusion, *args, **received):
    diffusion.zero_grad()
    loss = diffusion(*args, **received)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in diffusion.parameters() if p.grad is not None)]


@pytest.mark.parametrize("loss_type", ["l1", "l2", "huber"])
def test_targets_in_padding_have_no_influence(loss_type):
    options = {"image_size": 8, "num_frames": 5, "loss_type": loss_type, "auto_normalize": False}
    diffusion = GaussianDiffusion(Constant(), objective="pred_x_start", **options)
    _, clips, noise, t = padded()
    results = []
    for value in (0.5, -1e9):
        clips[~MASK[:, None].expand(-1, 3, -1)] = value
        results.append(loss_and_gradients(diffusion, clips, noise=noise, t=t, frame_mask=MASK))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert results[0][1] != 0


def test_padding_that_no_frame_sees_has_no_influence():
    torch.manual_seed(0)
    unet = Unet3D(dim=4, dim_mults=(1,), attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=5, objective="pred_v")
    _, clips, noise, t = padded()
    received = {"focus_present_mask": torch.ones(B, dtype=torch.bool), "noise": noise, "t": t}
    results = []
    for value in (0, 1):
        clips[~MASK[:, None].expand(-1, 3, -1)] = value
        results.append(loss_and_gradients(diffusion, clips, frame_mask=MASK, **received))
    for before, after in zip(*results, strict=True):
        torch.testing.assert_close(before, after)
    assert len(results[0]) > 9
    # where frames see each other, it has one
    other = diffusion(clips, frame_mask=MASK, noise=noise, t=t)
    clips[~MASK[:, None].expand(-1, 3, -1)] = 0
    assert not torch.allclose(diffusion(clips, frame_mask=MASK, noise=noise, t=t), other)


def test_images_of_a_padded_clip_are_never_padding():
    diffusion, clips, noise, t = padded(loss_type="l2")
    images = torch.rand(B, 3, 2, 8, 8)
    noise = torch.cat((noise, torch.randn(B, 3, 2, 8, 8)), dim=2)
    recorder = diffusion.denoise_fn
    recorder.forward = lambda x, t, image_frames=0, image_conditions=None, **kwargs: 0.3 * x
    received = {"images": images, "noise": noise, "t": t, "reduction": "none"}
    found = diffusion(clips, frame_mask=MASK, **received)
    whole = torch.cat((clips, images), dim=2) * 2 - 1
    squares = (0.3 * diffusion.q_sample(whole, t, noise) - noise) ** 2
    real = [[0, 1, 2, 5, 6], [1, 2, 5, 6], [*range(7)], [5, 6]]
    expected = torch.stack([squares[i, :, frames].mean() for i, frames in enumerate(real)])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("mask", "got"),
    [
        (torch.ones(B, 5), "torch.float32 of shape (4, 5)"),
        (torch.ones(B, 4, dtype=torch.bool), "torch.bool of shape (4, 4)"),
        ([True] * 5, "torch.bool of shape (5,)"),
    ],
    ids=str,
)
def test_a_mask_of_another_kind(mask, got):
    diffusion, clips, _, _ = padded()
    message = (
        "GaussianDiffusion: frame_mask must be boolean with one element per frame, shape (b, f) = "
        f"(4, 5), got {got}; give True where a frame is real, and False where it is padding"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion(clips, frame_mask=mask)
    assert diffusion.denoise_fn.calls == []


# Which clips lose their conditions


def test_dropped_conditions_are_drawn_or_given():
    recorder = Recorder()
    diffusion = diffusion_with(recorder, cond_drop_prob=0.25)
    mask, cond = torch.tensor([True, False, False, True]), torch.randn(B, 5)
    loss_of(diffusion, cond=cond, drop_mask=mask)
    loss_of(diffusion, cond=cond, drop_mask=mask.tolist())
    loss_of(diffusion, cond=cond, drop_mask=None)
    received, listed, drawn = recorder.calls
    assert torch.equal(received["drop_mask"], mask)
    assert torch.equal(listed["drop_mask"], mask)
    assert received["null_cond_prob"] == listed["null_cond_prob"] == 0.0
    assert "drop_mask" not in drawn
    assert drawn["null_cond_prob"] == 0.25


def test_a_clip_with_dropped_conditions_has_the_unconditional_loss():
    torch.manual_seed(0)
    unet = Unet3D(8, dim_mults=(1,), attn_heads=1, cond_dim=5, num_classes=3).eval()
    diffusion = diffusion_with(unet)
    fixed = {"t": torch.tensor([1, 4, 7, 9]), "noise": torch.randn(CLIPS), "reduction": "none"}
    received = {"cond": torch.randn(B, 5), "labels": torch.tensor([0, 1, 2, 0])}
    mask = torch.tensor([True, False, False, True])
    with torch.no_grad():
        some = loss_of(diffusion, drop_mask=mask, **fixed, **received)
        full = loss_of(diffusion, drop_mask=torch.zeros_like(mask), **fixed, **received)
        none = loss_of(diffusion, null_cond_prob=1.0, **fixed)
    torch.testing.assert_close(some, torch.where(mask, none, full))
    assert not torch.isclose(none, full).any()


def test_denoiser_takes():
    diffusion = diffusion_with(Unet3D(8, dim_mults=(1,), attn_heads=1))
    assert diffusion.denoiser_takes("drop_mask")
    assert not diffusion.denoiser_takes("drop_maks")
    diffusion.denoise_fn = nn.DataParallel(diffusion.denoise_fn)
    assert diffusion.denoiser_takes("drop_mask")
    assert not diffusion_with(Recorder()).denoiser_takes("drop_mask")
