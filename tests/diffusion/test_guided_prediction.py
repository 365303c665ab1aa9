"""Guidance of predictions: by a worse model, in an interval of noise levels, by condition."""

import math
import re

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, hub, load_diffusion
from video_diffusion_pytorch.diffusion.guidance import Guidance
from video_diffusion_pytorch.diffusion.noise_schedule import NoiseLevel
from video_diffusion_pytorch.diffusion.objective import OBJECTIVES, target_of
from video_diffusion_pytorch.diffusion.random_streams import make_streams
from video_diffusion_pytorch.diffusion.samplers import DDIM, SAMPLERS

SHAPE = (2, 1, 3, 4, 4)
SIZE = {"image_size": 4, "num_frames": 3}


class Normal(nn.Module):
    """The perfect denoiser of pixels that are independent and normal, with mean 0.

    A condition multiplies what it predicts, and so does `cond_scale`, each in its own way.

    Args:
        variance: Of the pixels.
    """

    channels = 1

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        self.unused = nn.Parameter(torch.zeros(()))
        self.calls = []

    def gain(self, alpha, sigma):
        """What takes noisy videos to the mean of the clean ones."""
        return alpha * self.variance / (alpha**2 * self.variance + sigma**2)

    def forward(self, x, t, cond=None):
        return self.forward_with_cond_scale(x, t, cond)

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0, **conditions):
        told = {"t": t, "cond": cond, "cond_scale": cond_scale, **conditions}
        self.calls.append({**told, "needs_grad": self.unused.requires_grad})
        alpha, sigma = self.diffusion.signal_and_noise(t, x.shape)
        if self.diffusion.objective == "edm":
            x = x * torch.hypot(sigma, self.diffusion.sigma_data)
        gain = self.gain(alpha, sigma)
        if cond is not None:
            # conditions multiply it by their sum, and their absence by 1
            by_condition = cond.sum(dim=1).view(-1, 1, 1, 1, 1)
            gain = gain * (1 + (by_condition - 1) * cond_scale)
        x_start = gain * x + 0 * self.unused
        noise = self.diffusion.predict_noise_from_start(x, t, x_start)
        settings = {"sigma_data": self.diffusion.sigma_data}
        return target_of(self.diffusion.objective, self.diffusion, x_start, t, noise, **settings)


def normal(variance=1.0, kind=GaussianDiffusion, **options):
    """A model of `Normal` that does not clamp."""
    config = {"timesteps": 40, "auto_normalize": False, **SIZE, **options}
    diffusion = kind(Normal(variance), **config)
    # not as a submodule, which would be a circle
    object.__setattr__(diffusion.denoise_fn, "diffusion", diffusion)
    return diffusion


def predict(diffusion, t=20, **options):
    """The model's prediction of clean videos at a time step, and the noisy videos."""
    x = make_streams(0, None, len(SHAPE), "cpu")[slice(0, 2)](torch.empty(SHAPE))
    x_start = diffusion.sample(
        **{"sampler": DDIM(), "steps": [t], "batch_size": 2, "seed": 0, "progress": False} | options
    )
    return x_start, x


def tiny(**options):
    """A model of a small `Unet3D` with several conditions."""
    torch.manual_seed(0)
    network = {"dim": 4, "dim_mults": (1,), "channels": 1, "attn_heads": 1, "blocks_per_level": 1}
    network |= {"cond_dim": 5, "num_classes": 3, "cond_channels": 2}
    unet = Unet3D(**network)
    return GaussianDiffusion(unet, **{"timesteps": 12, "given_frames": 1, **SIZE, **options})


def told():
    return {
        "cond": torch.randn(2, 5),
        "labels": torch.tensor([0, 2]),
        "first_frames": torch.rand(2, 1, 1, 4, 4),
    }


def exactly(message):
    return f"^{re.escape(message)}$"


# A worse model


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.5])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_prediction_is_led_away_from_that_of_the_guide(objective, scale):
    for other in OBJECTIVES:
        guide = normal(2.0, objective=other)
        model = normal(0.5, objective=objective)
        found, x = predict(model, guide=guide, guide_scale=scale)
        level = model.noise_level(20)
        x = level.scale * x
        alpha, sigma = level.alpha, level.sigma
        gains = [one.denoise_fn.gain(alpha, sigma) for one in (model, guide)]
        expected = (gains[1] + scale * (gains[0] - gains[1])) * x
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        # the score of the density of the model to the power of the scale, over that of the guide
        variances = [alpha**2 * variance + sigma**2 for variance in (0.5, 2.0)]
        precision = scale / variances[0] + (1 - scale) / variances[1]
        torch.testing.assert_close(
            (alpha * found - x) / sigma**2, -precision * x, rtol=1e-4, atol=1e-4
        )
        # the same combination in terms of the noise and of v
        for target in ("pred_noise", "pred_v"):
            own, theirs, both = (
                target_of(
                    target, model, x_start, torch.full((2,), 20), (x - alpha * x_start) / sigma
                )
                for x_start in (gains[0] * x, gains[1] * x, found)
            )
            torch.testing.assert_close(both, theirs + scale * (own - theirs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_model_itself_as_guide_changes_nothing(sampler, scale):
    model = tiny()
    options = {**told(), "sampler": sampler, "seed": 3, "cond_scale": 2.0, "progress": False}
    assert torch.equal(
        model.sample(**options, guide=model, guide_scale=scale), model.sample(**options)
    )


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # what diffusers does with numpy
def test_the_model_itself_as_guide_of_a_scheduler_that_rounds_time_steps():
    diffusers = pytest.importorskip("diffusers")
    model = tiny()
    scheduler = diffusers.UniPCMultistepScheduler()
    options = {**told(), "sampler": scheduler, "steps": 5, "seed": 3, "progress": False}
    assert torch.equal(model.sample(**options, guide=model), model.sample(**options))


def test_a_scale_of_1_is_without_the_guide():
    model, guide = normal(0.5), normal(2.0)
    for options in ({}, {"sampler": "ddim", "steps": 3}, {"seed": 1}):
        found = []
        for by in ({}, {"guide": guide, "guide_scale": 1}):
            torch.manual_seed(0)
            found.append(model.sample(batch_size=2, progress=False, **options, **by))
        assert torch.equal(*found)
    assert guide.denoise_fn.calls == []


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_guide_draws_no_noise(sampler):
    model, guide = normal(0.5), normal(2.0)
    states = []
    for by in ({}, {"guide": guide}):
        torch.manual_seed(0)
        steps = None if sampler == "ddpm" else 4
        options = {"sampler": sampler, "steps": steps, "batch_size": 2, "progress": False}
        # not of the reference's chain, which also draws noise in the last step, for nothing
        model.sample(**options, guidance=Guidance(), **by)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert len(guide.denoise_fn.calls) == (7 if sampler == "heun" else steps or 40)


@pytest.mark.parametrize("schedule", ["cosine", "continuous_cosine"])
@pytest.mark.parametrize("timesteps", [100, 40, 17])
def test_a_guide_sees_the_same_noise_in_a_schedule_of_its_own(schedule, timesteps):
    model = normal(0.5)
    guide = normal(2.0, timesteps=timesteps, beta_schedule=schedule)
    seen = []
    found, _ = predict(model, steps=[39, 30, 20.5, 10, 0], guide=guide, callback=seen.append)
    assert found.isfinite().all()
    times = [call["t"][0] for call in guide.denoise_fn.calls]
    own = [guide.log_snr(t).item() for t in times]
    levels = model.noise_levels([39, 30, 20.5, 10, 0])
    least, most = (guide.noise_level(t).log_snr for t in (timesteps - 1, 0))
    inside = [level.log_snr for level in levels if least <= level.log_snr <= most]
    assert len(inside) >= 3
    assert own == pytest.approx(inside, abs=1e-3)
    if (schedule, timesteps) == ("cosine", 40):
        assert [t.item() for t in times] == [39, 30, 20.5, 10, 0]
        assert [t.is_floating_point() for t in times] == [False, False, True, False, False]


class Exploding(GaussianDiffusion):
    """Its noisy videos are those of another model divided by alpha."""

    def noise_levels(self, times):
        return [
            NoiseLevel(level.t, 1.0, level.sigma / level.alpha)
            for level in super().noise_levels(times)
        ]

    def signal_and_noise(self, t, x_shape):
        alpha, sigma = super().signal_and_noise(t, x_shape)
        return torch.ones_like(alpha), sigma / alpha


@pytest.mark.parametrize("t", [0, 200, 399])
@pytest.mark.parametrize("kinds", [(GaussianDiffusion, Exploding), (Exploding, GaussianDiffusion)])
def test_a_guide_of_another_scale_of_the_noisy_videos(kinds, t):
    options = {"objective": "pred_x_start", "timesteps": 400}
    model, guide = (
        normal(variance, kind=kind, **options)
        for variance, kind in zip((0.5, 2.0), kinds, strict=True)
    )
    found, x = predict(model, t, guide=guide)
    level = model.noise_level(t)
    noise = (level.sigma / level.alpha) ** 2
    # for the clip divided by alpha
    own, theirs = (variance / (variance + noise) / level.alpha for variance in (0.5, 2.0))
    x = level.scale * x
    torch.testing.assert_close(found, (theirs + 2 * (own - theirs)) * x, rtol=1e-3, atol=0)


def test_levels_that_the_guide_lacks_are_without_it():
    model, guide = normal(0.5), normal(2.0, beta_schedule=[0.3] * 3, timesteps=3)
    ends = [guide.noise_level(t).log_snr for t in (2, 0)]
    steps = [39, 30, 25, 20, 15, 10, 0]
    inside = [t for t in steps if ends[0] <= model.noise_level(t).log_snr <= ends[1]]
    assert 0 < len(inside) < len(steps)
    predict(model, steps=steps, guide=guide)
    assert len(guide.denoise_fn.calls) == len(inside)
    outside = [t for t in steps if t not in inside]
    message = (
        f"sample: guide must have noise levels of the steps in its schedule, got none of the "
        f"{len(outside)}; give one with a schedule like the model's, or other steps"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        predict(model, steps=outside, guide=guide)


def test_a_sampler_that_stops_at_levels_of_its_own():
    class Between(DDIM):
        def run(self, x, levels, denoise, noise):
            for level in (levels[0], model.noise_level(12.5), model.noise_level(12.5)):
                x = level.alpha * denoise(x, level).x_start
            yield x

    model, guide = normal(0.5), normal(2.0, timesteps=80)
    predict(model, sampler=Between(), guide=guide)
    times = [call["t"][0].item() for call in guide.denoise_fn.calls]
    assert len(times) == 3
    assert times[1] == times[2] == pytest.approx(guide.time_of(model.noise_level(12.5).log_snr))


def test_a_guide_is_guided_by_the_same_conditions():
    model, guide = normal(0.5), normal(2.0)
    cond = torch.tensor([[1.5, 0.25], [0.5, 0.25]])
    found, x = predict(model, cond=cond, cond_scale=2.5, guide=guide, guide_scale=3.0, max_batch=1)
    level = model.noise_level(20)
    total = cond.sum(dim=1).view(-1, 1, 1, 1, 1)
    own, theirs = (
        one.denoise_fn.gain(level.alpha, level.sigma) * (1 + (total - 1) * 2.5)
        for one in (model, guide)
    )
    torch.testing.assert_close(found, (theirs + 3 * (own - theirs)) * x, rtol=1e-4, atol=1e-5)
    for call, row in zip(guide.denoise_fn.calls, cond, strict=True):
        assert torch.equal(call["cond"], row[None])
        assert call["cond_scale"] == 2.5


def test_all_options_of_guidance_reach_the_guide():
    model, guide = tiny(), tiny()
    seen = {}
    for name, one in (("model", model), ("guide", guide)):

        def record(*args, name=name, inner=one.denoise_fn.forward_with_cond_scale, **keywords):
            seen.setdefault(name, []).append(keywords)
            return inner(*args, **keywords)

        one.denoise_fn.forward_with_cond_scale = record
    how = {"cond_scale": {"cond": 3.0, "first_frames": 1.5}, "guidance_rescale": 0.7}
    how |= {"negative_cond": {"cond": torch.randn(1, 5)}, "guide": guide}
    options = {**told(), "null_cond_mask": torch.tensor([True, False]), "steps": 3, "seed": 0}
    assert model.sample(**options, **how, progress=False).isfinite().all()
    assert len(seen["model"]) == len(seen["guide"]) == 3
    for own, theirs in zip(seen["model"], seen["guide"], strict=True):
        assert own["cond_scale"] == theirs["cond_scale"] == {"cond": 3.0, "cond_video": 1.5}
        assert own["guidance_rescale"] == theirs["guidance_rescale"] == 0.7
        assert torch.equal(own["negative"]["cond"], theirs["negative"]["cond"])
        for name in ("cond", "labels", "cond_video", "null_cond_mask"):
            assert torch.equal(own[name], theirs[name])


class Near(Guidance):
    """Everything is known to be about 0.5."""

    weight = 2.0

    def squared_error(self, x_start):
        return self.weight * ((x_start - 0.5) ** 2).flatten(1).sum(1)


def test_the_gradient_of_known_values_passes_through_both_models():
    model, guide = normal(0.5), normal(2.0)
    found, x = predict(model, guide=guide, guide_scale=3.0, guidance=Near())
    level = model.noise_level(20)
    own, theirs = (one.denoise_fn.gain(level.alpha, level.sigma) for one in (model, guide))
    gain = theirs + 3 * (own - theirs)
    # eq. 7 of Ho et al. 2022 for this prediction
    expected = gain * x - level.alpha / 2 * 2 * 2 * (gain * x - 0.5) * gain
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for one in (model, guide):
        assert [call["needs_grad"] for call in one.denoise_fn.calls] == [False]
        assert one.denoise_fn.unused.requires_grad


def test_a_guide_stays_as_it_is_and_predicts_without_dropout():
    model = tiny()
    guide = GaussianDiffusion(
        Unet3D(8, dim_mults=(1,), channels=1, attn_heads=1, cond_dim=5, num_classes=3,
               cond_channels=2, dropout=0.9),
        timesteps=12, given_frames=1, **SIZE,
    ).train()  # fmt: skip
    options = {**told(), "steps": 3, "seed": 0, "progress": False}
    found = [model.sample(**options, guide=guide) for _ in range(2)]
    assert torch.equal(*found)
    assert guide.denoise_fn.training
    assert not torch.equal(found[0], model.sample(**options))


# A guide in a file


@pytest.fixture
def loads(monkeypatch):
    """Notes which paths are loaded."""
    seen, inner = [], hub.LOADERS["diffusion"]

    def load(path, *args, **keywords):
        seen.append(path)
        return inner(path, *args, **keywords)

    monkeypatch.setitem(hub.LOADERS, "diffusion", load)
    return seen


def test_a_guide_is_loaded_from_its_path(tmp_path, loads):
    model, guide = tiny(), tiny()
    for weight in guide.denoise_fn.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    guide.save_pretrained(tmp_path / "guide")
    options = {**told(), "steps": 3, "seed": 0, "progress": False, "cond_scale": 2.0}
    expected = model.sample(**options, guide=guide.eval())
    for path in (tmp_path / "guide", str(tmp_path / "guide")):
        assert torch.equal(model.sample(**options, guide=path), expected)
    assert torch.equal(model.sample(**options, guide=load_diffusion(tmp_path / "guide")), expected)
    # in the precision of the model
    wide = model.double().sample(**options, guide=tmp_path / "guide")
    assert torch.equal(wide, model.sample(**options, guide=guide.double()))
    with pytest.raises(FileNotFoundError, match="none"):
        model.sample(**options, guide=tmp_path / "none")


def test_a_guide_is_loaded_once_for_all_windows(tmp_path, loads):
    model, guide = tiny(), tiny()
    guide.save_pretrained(tmp_path)
    conditions = {name: value for name, value in told().items() if name != "first_frames"}
    how = {"steps": 2, "seed": 0, "progress": False, **conditions}
    how |= {"cond_scale": {"first_frames": 1.5, "cond": 2.0}, "guidance_interval": (0.1, 5)}
    how["negative_cond"] = {"cond": torch.randn(2, 5)}
    video = torch.rand(2, 1, 2, 4, 4)
    found = [model.extend(video, 7, guide=one, **how) for one in (tmp_path, guide.eval())]
    assert torch.equal(*found)
    assert loads == [tmp_path]
    assert not torch.equal(found[0], model.extend(video, 7, **how))
    for task in (
        lambda **how: model.predict(video, **how),
        lambda **how: model.inpaint(video, torch.tensor([True, False]), **how),
        lambda **how: model.interpolate_frames(video, 2, **how),
    ):
        assert not torch.equal(task(guide=guide, **how), task(**how))


# An interval of noise levels


def ratio(diffusion, t):
    level = diffusion.noise_level(t)
    return level.sigma / level.alpha


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_guidance_acts_in_its_interval_only(sampler):
    model, guide = normal(0.5), normal(2.0)
    steps = None if sampler == "ddpm" else [39, 30, 20, 10, 5]
    interval = ratio(model, 10), ratio(model, 30)
    cond = torch.ones(2, 2)
    options = {"sampler": sampler, "steps": steps, "seed": 0, "progress": False, "cond": cond}
    model.sample(**options, cond_scale=3.0, guide=guide, guidance_interval=interval)
    calls = {int(call["t"][0]): call["cond_scale"] for call in model.denoise_fn.calls}
    # above the lower end, and up to the upper one
    assert calls == {t: 3.0 if 10 < t <= 30 else 1.0 for t in (steps or range(40))}
    # Heun's calls the network twice at each level but the first
    twice = 2 if sampler == "heun" else 1
    inside = [int(call["t"][0]) for call in guide.denoise_fn.calls]
    assert inside == [t for t in calls if 10 < t <= 30 for _ in range(twice)]
    assert len(model.denoise_fn.calls) == twice * len(calls) - (twice - 1)


def test_no_row_is_computed_in_vain():
    model, guide = tiny(), tiny()
    rows = {}
    for name, one in (("model", model), ("guide", guide)):
        one.denoise_fn.register_forward_pre_hook(
            lambda _, args, name=name: rows.setdefault(name, []).append(len(args[0]))
        )
    interval = ratio(model, 4), ratio(model, 8)
    how = {"cond_scale": {"cond": 3.0, "labels": 2.0}, "guidance_rescale": 0.5, "guide": guide}
    model.sample(**told(), **how, guidance_interval=interval, seed=0, progress=False)
    assert rows == {"model": [2] * 3 + [6] * 4 + [2] * 5, "guide": [6] * 4}


@pytest.mark.parametrize(
    "options", [{"steps": 3}, {"steps": 3, "cond_scale": 2.0, "guidance_rescale": 0.5}, {}]
)
def test_an_interval_of_all_levels_or_of_none(options):
    model, conditions = tiny(), told()

    def sample(**more):
        return model.sample(**conditions, **{**options, **more}, seed=0, progress=False)

    assert torch.equal(sample(guidance_interval=(0, math.inf)), sample())
    assert torch.equal(sample(guidance_interval=None), sample())
    none = {"guidance_interval": (1e-9, 1e-8), "negative_cond": None}
    assert torch.equal(sample(**none), sample(cond_scale=1.0, guidance_rescale=0.0))


def test_without_guidance_an_interval_leaves_the_reference_chain():
    model = normal(0.5)
    found = []
    for interval in (None, (0.5, 2.0)):
        torch.manual_seed(0)
        found.append(model.sample(batch_size=2, guidance_interval=interval, progress=False))
    assert torch.equal(*found)


# Scales by condition


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_equal_scales_are_one_number(sampler):
    model, conditions = tiny(), told()
    found = []
    for scale in (2.5, dict.fromkeys(conditions, 2.5)):
        torch.manual_seed(0)
        found.append(model.sample(**conditions, sampler=sampler, cond_scale=scale, progress=False))
    assert torch.equal(*found)


def test_known_first_frames_are_the_field_of_the_network():
    model, conditions = tiny(), told()
    x, t = torch.randn(SHAPE), torch.tensor([3, 3])
    scale = {"first_frames": 3.0, "labels": 1.5}
    for call in (model.p_sample, model.p_mean_variance):
        more = {"clip_denoised": True} if call == model.p_mean_variance else {}
        found = []
        for name in scale, {"cond_video": 3.0, "labels": 1.5}, {"labels": 1.5, "cond_video": 3.0}:
            torch.manual_seed(0)
            one = call(x, t, cond_scale=name, **conditions, **more)
            found.append(one if torch.is_tensor(one) else one[0])
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])
    clips = torch.rand(2, *SHAPE)
    blend = model.interpolate(*clips, t=3, **conditions, cond_scale=scale, progress=False)
    assert blend.isfinite().all()


def test_a_wrapped_network_takes_scales_by_condition():
    model, conditions = tiny(), told()
    options = {"cond_scale": {"cond": 3.0, "labels": 1.5}, "steps": 3, "seed": 0}
    expected = model.sample(**conditions, **options, progress=False)
    model.denoise_fn = nn.DataParallel(model.denoise_fn)
    assert torch.equal(model.sample(**conditions, **options, progress=False), expected)


def test_a_negative_condition_with_scales_by_condition():
    model, conditions = tiny(), told()
    options = {"steps": 3, "seed": 0, "progress": False, **conditions}
    negative = {"cond": torch.randn(1, 5)}
    scale = {"labels": 2.0, "cond": 3.0}
    plain = model.sample(**options, cond_scale=scale)
    assert not torch.equal(model.sample(**options, cond_scale=scale, negative_cond=negative), plain)
    # away from the null values there is nothing new
    null = {"cond": model.denoise_fn.null_cond_emb.detach()}
    found = model.sample(**options, cond_scale=scale, negative_cond=null)
    torch.testing.assert_close(found, plain, rtol=0, atol=1e-4)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"guidance_interval": interval},
            "sample: guidance_interval must be two numbers (low, high) of sigma / alpha, with 0 <= "
            f"low < high, got {interval!r}; pass for example (0.2, 5), or math.inf as high",
        )
        for interval in ((1.0, 1.0), (-1, 2), (0.1,), 3, (5, 0.2), ("a", 2), (0, math.nan))
    ]
    + [
        (
            {"guide_scale": 3.0},
            "sample: guide_scale is that of guide, which must be given, got 3.0 and no guide; give "
            "a worse model, or leave it out",
        ),
        (
            {"guide_scale": math.inf},
            "sample: guide_scale must be a finite number, got inf; 1 is without guidance, 2 is "
            "common",
        ),
        (
            {"cond_scale": {"frame_cond": 2.0}},
            "sample: cond_scale must be a number, or a mapping to finite numbers from conditions "
            "that are given, cond, labels, first_frames, got {'frame_cond': 2.0}; correct it, or "
            "pass one number for all conditions",
        ),
        (
            {"cond_scale": {"cond_video": 2.0, "first_frames": 3.0}, "cond_video": True},
            "sample: cond_scale must be the same for cond_video and first_frames, which are one "
            "field for the network, got {'cond_video': 2.0, 'first_frames': 3.0}; name one of them",
        ),
        (
            {"cond_scale": {"labels": 1.0, "cond": 2.0}, "negative_cond": {"labels": [1]}},
            "sample: negative_cond must hold conditions that cond_scale guides by, got labels for "
            "{'labels': 1.0, 'cond': 2.0}; name them there, with a scale other than 1",
        ),
        (
            {"cond_scale": {"labels": 2.0}, "negative_cond": torch.ones(1, 5)},
            "sample: negative_cond must hold conditions that cond_scale guides by, got cond for "
            "{'labels': 2.0}; name them there, with a scale other than 1",
        ),
    ],
)
def test_mistakes_are_named(options, message):
    model = tiny()
    model.denoise_fn.forward = None
    with pytest.raises(ValueError, match=exactly(message)):
        model.sample(**told(), **options, progress=False)


TAKE = "take an earlier checkpoint of the model, or a smaller one for the same clips"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 4}, f"clip shape, (1, 3, 4, 4), got (1, 4, 4, 4); {TAKE}"),
        ({"channels": 2}, f"clip shape, (1, 3, 4, 4), got (2, 3, 4, 4); {TAKE}"),
        ({"auto_normalize": True}, f"auto_normalize, False, got True; {TAKE}"),
        ({"given_frames": 1}, f"given_frames, 0, got 1; {TAKE}"),
    ],
)
def test_guides_of_other_clips(options, message):
    model, guide = normal(), normal(**options)
    with pytest.raises(ValueError, match=exactly(f"sample: guide must have the model's {message}")):
        predict(model, guide=guide)


def test_guides_of_other_units_and_conditions():
    model, guide = tiny(), tiny(value_range=(0, 5))
    message = f"value_range, None, got (0.0, 5.0); {TAKE}"
    with pytest.raises(ValueError, match=exactly(f"sample: guide must have the model's {message}")):
        model.sample(**told(), guide=guide)
    unet = Unet3D(4, dim_mults=(1,), channels=1, attn_heads=1, cond_channels=2)
    guide = GaussianDiffusion(unet, timesteps=12, given_frames=1, **SIZE)
    message = f"condition_names, ('cond', 'labels'), got (); {TAKE}"
    with pytest.raises(ValueError, match=exactly(f"sample: guide must have the model's {message}")):
        model.sample(**told(), guide=guide)


def test_guides_elsewhere():
    move = "move it with guide.to(model.betas)"
    model, guide = tiny(), tiny()
    for moved, message in (
        (guide.double(), f"dtype, torch.float32, got torch.float64; {move}"),
        (tiny().to("meta"), f"device, cpu, got meta; {move}"),
    ):
        message = f"sample: guide must have the model's {message}"
        with pytest.raises(ValueError, match=exactly(message)):
            model.sample(**told(), guide=moved)
    assert model.sample(**told(), guide=guide.to(model.betas), steps=1).isfinite().all()


@pytest.mark.parametrize("guide", [5, nn.Linear(1, 1), [normal()]])
def test_guides_that_are_no_models(guide):
    message = (
        "sample: guide must be a GaussianDiffusion, or the path of a checkpoint or of a shared "
        "model, got "
    )
    with pytest.raises(TypeError, match=re.escape(message)):
        predict(normal(), guide=guide)
