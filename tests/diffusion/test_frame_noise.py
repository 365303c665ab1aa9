"""A noise level for each frame: in the network, in training, for known frames and in rollouts."""

import re

import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, relative_error
from video_diffusion_pytorch import GaussianDiffusion, KnownFrames, KnownRegion, Unet3D
from video_diffusion_pytorch.diffusion.rollout import ticks

SIZE = {"image_size": 8, "num_frames": 4, "timesteps": 20}
SHAPE = (2, 1, 4, 8, 8)


def model_with(network=None, **options):
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2, **(network or {}))
    return GaussianDiffusion(unet, **{**SIZE, "frame_noise": "independent", **options})


# The network


@pytest.mark.parametrize(
    "conditions",
    [
        {},
        {"num_classes": 3},
        {"cond_dim": 5},
        {"frame_cond_dim": 2},
        {"num_classes": 3, "cond_dim": 5, "frame_cond_dim": 2, "time_input": "log_snr"},
    ],
    ids=str,
)
@pytest.mark.parametrize("images", [0, 2])
def test_one_time_for_each_frame_is_one_for_all_where_they_are_equal(conditions, images):
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2, **conditions).eval()
    x, t = torch.randn(2, 1, 4 + images, 8, 8), torch.tensor([3.0, 17.0])
    given = {"labels": torch.tensor([0, 2])} if "num_classes" in conditions else {}
    given |= {"cond": torch.randn(2, 5)} if "cond_dim" in conditions else {}
    given |= {"frame_cond": torch.randn(2, 4, 2)} if "frame_cond_dim" in conditions else {}
    expected = unet(x, t, **given, image_frames=images)
    each = t[:, None].expand(-1, 4 + images)
    torch.testing.assert_close(unet(x, each, **given, image_frames=images), expected)


def test_the_time_of_a_frame_is_its_own():
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2).eval()
    x, t = torch.randn(SHAPE), torch.randint(0, 20, (2, 4))
    focus = torch.ones(2, dtype=torch.bool)
    before = unet(x, t, focus_present_mask=focus)
    changed = t.clone()
    changed[0, 2] += 5
    after = unet(x, changed, focus_present_mask=focus)
    differs = (before != after).flatten(3).any(dim=3)[:, 0]
    assert differs.nonzero().tolist() == [[0, 2]]


def test_times_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"one per frame, \(2, 4\), got \(2, 3\)"):
        model_with().denoise_fn(torch.randn(SHAPE), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"one per clip, 2, or one per frame, got .*\(2, 3\)"):
        model_with()(torch.rand(SHAPE), t=torch.zeros(2, 3, dtype=torch.long))


# Training


@pytest.mark.parametrize("objective", ["pred_noise", "pred_v", "flow", "edm"])
def test_the_loss_has_a_noise_level_for_each_frame(objective):
    diffusion = model_with(objective=objective, loss_type="l2")
    seen = []
    network = diffusion.denoise_fn.forward
    diffusion.denoise_fn.forward = lambda x, t, **kwargs: seen.append(t) or network(x, t, **kwargs)
    clips = torch.rand(64, 1, 4, 8, 8)
    diffusion(clips).backward()
    diffusion(clips, images=torch.rand(64, 1, 2, 8, 8))
    assert [tuple(t.shape) for t in seen] == [(64, 4), (64, 6)]
    same = (seen[0] == seen[0][:, :1]).all(dim=1)
    assert 0 < same.sum() < 20
    shared = model_with(objective=objective, shared_noise_prob=1.0)._draw_levels(clips)
    assert (shared == shared[:, :1]).all()


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_the_loss_of_frames_is_the_mean_of_theirs(gamma):
    diffusion = model_with(loss_type="l2", min_snr_gamma=gamma)
    clips, noise = torch.rand(SHAPE), torch.randn(SHAPE)
    t = torch.tensor([[3, 9, 0, 19], [5, 5, 5, 5]])
    together = diffusion(clips, None, noise, t=t, reduction="none")
    apart = []
    for frame in range(4):
        only = torch.arange(4) == frame
        mask = only.expand(2, -1)
        apart.append(diffusion(clips, None, noise, t=t, reduction="none", frame_mask=mask))
    torch.testing.assert_close(together, torch.stack(apart).mean(dim=0))
    # a clip whose frames share a level has the loss of that level
    alone = diffusion(clips[1:], None, noise[1:], t=torch.tensor([5]), reduction="none")
    torch.testing.assert_close(together[1:], alone)


def test_a_model_with_one_level_per_clip_draws_as_before():
    torch.manual_seed(1)
    before, clips = model_with(frame_noise=None), torch.rand(SHAPE)
    torch.manual_seed(2)
    t = before._draw_levels(clips)
    torch.manual_seed(2)
    assert torch.equal(t, before.draw_times(2))


def test_unknown_frame_noise():
    message = "GaussianDiffusion: frame_noise must be independent, or None, got 'each'"
    with pytest.raises(ValueError, match=re.escape(message)):
        model_with(frame_noise="each")


# Known frames, on data whose perfect denoiser is known


def gaussian_model(videos, objective="pred_noise", **options):
    settings = {"image_size": 8, "num_frames": videos.num_frames, "auto_normalize": False}
    model = GaussianDiffusion(
        torch.nn.Identity(), **settings, channels=1, objective=objective, **options
    )
    model.denoise_fn = PerfectNetwork(videos, model, objective)
    return model


def free_moments(samples, known):
    free = samples[:, 0, known:].movedim(1, -1).double()
    mean = free.mean(dim=0)
    apart = (free - mean).reshape(-1, free.shape[-1])
    return mean, apart.T @ apart / (len(apart) * (1 - 1 / len(samples)))


@pytest.mark.parametrize("objective", ["pred_noise", "flow", "edm"])
def test_frames_are_drawn_from_their_conditional_distribution(objective):
    videos = GaussianVideos()
    model = gaussian_model(videos, objective, frame_noise="independent")
    root = torch.linalg.cholesky(videos.covariance)
    torch.manual_seed(0)
    real = (videos.mean + torch.randn(8, 8, 6, dtype=torch.float64) @ root.T).float()
    real = real.movedim(-1, 0)[None, None]
    mean, covariance = videos.given_first(real[0, 0, :2].movedim(0, -1))
    drawn = model.predict(
        real[:, :, :2].expand(96, -1, -1, -1, -1), seed=0, sampler="dpm++", steps=40, progress=False
    )
    assert torch.equal(drawn[:, :, :2], real[:, :, :2].expand(96, -1, -1, -1, -1))
    found, spread = free_moments(drawn, 2)
    by_chance = (covariance.trace() / 4 / 96).sqrt().item()
    assert (found - mean).square().mean().sqrt().item() < 1.3 * by_chance
    assert relative_error(spread, covariance) < 0.06
    # a weight asks for reconstruction guidance, which comes less close
    guided = model.predict(
        real[:, :, :2].expand(96, -1, -1, -1, -1),
        weight=2.0,
        seed=0,
        sampler="dpm++",
        steps=40,
        progress=False,
    )
    assert relative_error(free_moments(guided, 2)[1], covariance) > 0.1


def test_rollouts_have_the_covariance_of_the_data():
    videos = GaussianVideos(correlation=0.6, mean=(0.0,) * 6)
    model = gaussian_model(videos, "flow", frame_noise="independent")
    start = torch.zeros(300, 1, 1, 8, 8)
    drawn = model.roll_out(start, 14, steps=30, overlap=2, seed=0, progress=False)
    assert torch.equal(drawn[:, :, :1], start)
    last = drawn[:, 0, 8:].movedim(1, -1).reshape(-1, 6).double()
    # far from the first frame, which is the same in all
    found = last.T @ last / len(last)
    assert relative_error(found, videos.covariance) < 0.08


def test_a_model_fills_between_and_extends_without_gradients():
    diffusion = model_with()
    seen = []
    network = diffusion.denoise_fn.forward

    def forward(x, t, **kwargs):
        seen.append((t, torch.is_grad_enabled()))
        return network(x, t, **kwargs)

    diffusion.denoise_fn.forward = forward
    options = {"steps": 3, "progress": False, "seed": 0}
    ends = torch.rand(2, 1, 3, 8, 8)
    filled = diffusion.interpolate_frames(ends, 3, **options)
    torch.testing.assert_close(filled[:, :, ::3], ends)
    assert diffusion.extend(ends, 9, overlap=2, **options).shape == (2, 1, 9, 8, 8)
    mask = torch.tensor([True, False, True, True])
    video = torch.rand(SHAPE)
    painted = diffusion.inpaint(video, mask, **options)
    assert torch.equal(painted[:, :, mask], video[:, :, mask])
    for t, has_grad in seen:
        assert t.shape == (2, 4)
        assert t.min() == 0
        assert not has_grad
    # parts of frames are known by guidance
    seen.clear()
    diffusion.inpaint(video, torch.rand(8, 8) > 0.5, **options)
    assert all(t.ndim == 1 and has_grad for t, has_grad in seen)


def test_given_noise_is_the_noise_of_the_known_frames():
    diffusion = model_with(beta_schedule="continuous_cosine", timesteps=1000)
    seen = []
    network = diffusion.denoise_fn.forward
    diffusion.denoise_fn.forward = lambda x, t, **kwargs: (
        seen.append((x, t)) or network(x, t, **kwargs)
    )
    frames = torch.full((2, 1, 2, 8, 8), 0.5)
    diffusion.predict(frames, given_noise=0.1, steps=2, progress=False)
    x, t = seen[0]
    log_snr = diffusion.log_snr(t)[:, :2]
    torch.testing.assert_close(torch.exp(-log_snr / 2), torch.full((2, 2), 0.1), rtol=1e-3, atol=0)
    assert x[:, :, :2].std().item() == pytest.approx(0.1, rel=0.2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.predict(torch.rand(1, 1, 2, 8, 8), given_noise=-1),
            "predict: given_noise must be s",
        ),
        (
            lambda m: m.predict(torch.rand(1, 1, 2, 8, 8), given_noise=0.1, weight=1),
            "predict: given_noise needs a model trained with frame_noise and no weight, got 0.1",
        ),
        (
            lambda m: KnownFrames(torch.rand(SHAPE), torch.ones(8, 8) > 0),
            "KnownFrames: mask must be by",
        ),
        (
            lambda m: KnownFrames(torch.rand(SHAPE), torch.ones(4) > 0, -1),
            "KnownFrames: noise must be",
        ),
        (
            lambda m: m.roll_out(torch.rand(1, 1, 2, 8, 8), 2),
            "roll_out: num_frames must be more than",
        ),
        (
            lambda m: m.roll_out(torch.rand(1, 1, 2, 8, 8), 9, overlap=4),
            "roll_out: overlap must be",
        ),
        (
            lambda m: m.roll_out(torch.rand(1, 1, 2, 8, 8), 9, lag=2),
            "roll_out: lag must be at least 10",
        ),
        (
            lambda m: m.roll_out(torch.rand(1, 1, 2, 8, 8), 9, steps=0),
            "sample: steps must be a whole",
        ),
        (
            lambda m: m.roll_out(torch.full((1, 1, 2, 8, 8), torch.nan), 9),
            "roll_out: known values must be finite",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(model_with())


def test_models_of_one_level_per_clip():
    model, video = model_with(frame_noise=None), torch.rand(SHAPE)
    known = KnownFrames(video, torch.tensor([True, False, False, False]))
    with pytest.raises(
        ValueError, match="KnownFrames: the model must be trained with frame_noise="
    ):
        model.sample(guidance=known, progress=False)
    with pytest.raises(ValueError, match="roll_out: the model must be trained with frame_noise="):
        model.roll_out(video, 9, progress=False)
    with pytest.raises(ValueError, match="given_noise needs a model trained with frame_noise"):
        model.extend(video, 9, given_noise=0.1, progress=False)
    with pytest.raises(TypeError, match="roll_out: conditions must be among"):
        model_with().roll_out(video, 9, colour=3, progress=False)


# Rollouts


@pytest.mark.parametrize(
    ("known", "overlap", "lag", "steps"), [(1, 1, 2, 6), (3, 2, 3, 6), (5, 3, 6, 6)]
)
def test_every_frame_takes_all_of_its_steps_in_order(known, overlap, lag, steps):
    plan = ticks(known, 15, 5, steps, lag, overlap)
    done = [steps] * known + [0] * (15 - known)
    for tick in plan:
        seen = slice(tick.start, tick.stop)
        assert tick.stop - tick.start == 5
        assert list(tick.done) == done[seen]
        moved = [b - a for a, b in zip(tick.done, tick.after, strict=True)]
        assert set(moved) <= {0, 1}
        assert sum(moved) > 0
        # in front of those that move the network sees as many clean frames as it should
        clean = moved.index(1)
        assert clean >= min(overlap, known) or tick.start + 5 == 15
        done[seen] = tick.after
    assert done == [steps] * 15


def test_a_rollout_is_the_same_in_any_batch():
    model, video = model_with(), torch.rand(3, 1, 2, 8, 8)
    options = {"steps": 4, "given_noise": 0.05, "progress": False}
    together = model.roll_out(video, 9, seed=[1, 2, 3], **options)
    alone = model.roll_out(video[1:2], 9, seed=[2], **options)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
    assert (together >= 0).all()
    assert (together <= 1).all()


def test_conditions_of_a_rollout_are_those_of_its_frames():
    model = model_with({"frame_cond_dim": 1, "num_classes": 2})
    seen = []
    network = model.denoise_fn.forward
    model.denoise_fn.forward = lambda x, t, **kwargs: seen.append(kwargs) or network(x, t, **kwargs)
    vectors = torch.arange(9.0).view(1, 9, 1)
    model.roll_out(
        torch.rand(1, 1, 2, 8, 8), 9, steps=4, frame_cond=vectors, labels=[1], progress=False
    )
    starts = [int(kwargs["frame_cond"][0, 0, 0]) for kwargs in seen]
    assert starts == sorted(starts)
    assert starts[-1] == 5
    assert all(kwargs["labels"].tolist() == [1] for kwargs in seen)


def test_a_mask_of_one_element_is_for_all_frames():
    model, video = model_with(), torch.rand(SHAPE)
    options = {"guidance": KnownFrames(video, torch.tensor([True])), "steps": 2, "progress": False}
    torch.testing.assert_close(model.sample(**options), video)


def test_known_frames_are_a_region():
    known = KnownFrames(torch.rand(SHAPE), torch.tensor([True, False, False, False]))
    assert isinstance(known, KnownRegion)
    assert known.weight == 0
