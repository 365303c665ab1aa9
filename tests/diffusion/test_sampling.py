"""`sample`: the choice of sampler and steps, streams of random numbers, and what guides it."""

import re
from itertools import product

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.diffusion.guidance import Guidance, KnownRegion, times
from video_diffusion_pytorch.diffusion.noise_schedule import CLEAN, SCHEDULES
from video_diffusion_pytorch.diffusion.objective import target_of
from video_diffusion_pytorch.diffusion.samplers import DDIM, Ancestral

SAMPLERS = ["ddpm", "ancestral", "ddim", "euler", "heun", "dpm++", "dpm++sde"]
SIZE = {"image_size": 8, "num_frames": 3, "timesteps": 12}


class Knows(nn.Module):
    """The perfect denoiser for a single clip, 0.3 everywhere."""

    channels = 1
    cond_scales: list

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, cond=None, **conditions):
        self.calls.append(
            {"t": t, "grad": torch.is_grad_enabled(), "frames": x.shape[2], "cond": cond}
            | conditions
        )
        diffusion, x_start = self.diffusion, torch.full_like(x, 0.3)
        if diffusion.objective == "edm":
            _, sigma = diffusion.signal_and_noise(t, x.shape)
            x = x * torch.hypot(sigma, diffusion.sigma_data)
        noise = diffusion.predict_noise_from_start(x, t, x_start)
        settings = {"sigma_data": diffusion.sigma_data}
        return target_of(diffusion.objective, diffusion, x_start, t, noise, **settings)

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0, **conditions):
        return self(x, t, cond, cond_scale=cond_scale, **conditions)


def knowing(**options):
    diffusion = GaussianDiffusion(Knows(), **{**SIZE, **options})
    # not as a submodule, which would be a circle
    object.__setattr__(diffusion.denoise_fn, "diffusion", diffusion)
    return diffusion


@pytest.fixture(scope="module")
def diffusion():
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2, cond_dim=5)
    return GaussianDiffusion(unet, **SIZE)


COND = torch.randn(3, 5)


def draw(diffusion, **options):
    return diffusion.sample(**{"cond": COND, "progress": False, **options})


# Samplers and objectives


KINDS = [*product(("pred_noise", "pred_v", "pred_x_start"), SCHEDULES)]
KINDS += [("flow", "flow"), ("edm", "edm")]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("objective", "beta_schedule"), KINDS)
def test_every_sampler_works_with_every_objective_and_schedule(sampler, objective, beta_schedule):
    diffusion = knowing(objective=objective, beta_schedule=beta_schedule)
    steps = None if sampler == "ddpm" else 4
    videos = diffusion.sample(batch_size=2, sampler=sampler, steps=steps, progress=False)
    assert videos.shape == (2, 1, 3, 8, 8)
    torch.testing.assert_close(videos, torch.full_like(videos, 0.65), rtol=0, atol=1e-4)
    calls = 7 if sampler == "heun" else steps or 12
    assert len(diffusion.denoise_fn.calls) == calls
    assert not any(call["grad"] for call in diffusion.denoise_fn.calls)


def test_without_a_sampler_it_is_the_reference_chain(diffusion):
    torch.manual_seed(1)
    expected = diffusion.p_sample_loop((3, 1, 3, 8, 8), COND, progress=False)
    for sampler in (None, "ddpm"):
        torch.manual_seed(1)
        assert torch.equal(draw(diffusion, sampler=sampler), expected)


def test_the_chain_with_seeds_is_the_same_up_to_rounding(diffusion):
    expected = draw(diffusion, sampler=Ancestral(), steps=12, seed=4)
    torch.testing.assert_close(draw(diffusion, seed=4), expected)


@pytest.mark.parametrize(
    ("built", "asked", "steps", "is_noisy"),
    [
        ({}, {}, 12, True),
        ({"sampling_timesteps": 12}, {}, 12, True),
        ({"sampling_timesteps": 5}, {}, 5, False),
        ({"sampling_timesteps": 5, "ddim_sampling_eta": 1.0}, {}, 5, True),
        ({"sampling_timesteps": 5}, {"steps": 3}, 3, False),
        ({"sampling_timesteps": 5}, {"sampler": "ddpm"}, 12, True),
        ({"sampling_timesteps": 5}, {"sampler": "ancestral"}, 5, True),
        ({}, {"steps": 4}, 4, False),
        ({}, {"steps": [11, 6, 2.5, 0]}, 4, False),
        ({}, {"sampler": "dpm++"}, 12, False),
        ({"timesteps": 30}, {"sampler": "dpm++"}, 20, False),
        ({"timesteps": 60}, {"sampler": DDIM()}, 50, False),
    ],
)
def test_number_of_steps(built, asked, steps, is_noisy, monkeypatch):
    diffusion = knowing(**built)
    drawn = []
    original = torch.randn

    def counting(*args, **kwargs):
        drawn.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch, "randn", counting)
    diffusion.sample(batch_size=1, progress=False, **asked)
    assert len(diffusion.denoise_fn.calls) == steps
    assert (len(drawn) > 1) == is_noisy


def test_given_time_steps_reach_the_denoiser():
    diffusion = knowing()
    diffusion.sample(batch_size=2, steps=[11, 6, 2.5], progress=False)
    received = [call["t"] for call in diffusion.denoise_fn.calls]
    assert [t.tolist() for t in received] == [[11, 11], [6, 6], [2.5, 2.5]]
    assert [t.dtype for t in received] == [torch.long, torch.long, torch.float32]
    assert times(CLEAN, torch.zeros(2, 1)).dtype == torch.long


# Streams of random numbers


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_video_does_not_depend_on_its_batch(diffusion, sampler):
    whole = draw(diffusion, sampler=sampler, seed=7)
    few = draw(diffusion, sampler=sampler, seed=7, cond=COND[:2])
    split = draw(diffusion, sampler=sampler, seed=7, max_batch=2)
    torch.testing.assert_close(few, whole[:2], rtol=0, atol=1e-3)
    torch.testing.assert_close(split, whole, rtol=0, atol=1e-3)
    assert not torch.allclose(whole[0], draw(diffusion, sampler=sampler, seed=8)[0], atol=1e-2)


def test_seeds_and_generators_leave_the_global_stream_alone(diffusion):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    seeds = draw(diffusion, sampler="ddim", steps=3, seed=[5, 6, 5], cond=COND[:1].expand(3, -1))
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    draw(diffusion, sampler="dpm++sde", steps=3, generator=generators)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(seeds[0], seeds[2], rtol=0, atol=1e-3)
    assert not torch.allclose(seeds[0], seeds[1], atol=1e-2)


# Size


def test_more_frames_and_other_sizes_than_in_training(diffusion):
    videos = draw(diffusion, num_frames=7, image_size=(16, 12), sampler="dpm++", steps=2)
    assert videos.shape == (3, 1, 7, 16, 12)
    assert draw(diffusion, image_size=4, steps=2).shape == (3, 1, 3, 4, 4)


# Guidance by conditions


def test_a_negative_condition_replaces_the_null_condition(diffusion):
    negative = torch.randn(1, 5)
    unet = diffusion.denoise_fn
    plain = draw(diffusion, cond_scale=3.0, seed=1, steps=4)
    against_null = draw(
        diffusion, cond_scale=3.0, seed=1, steps=4, negative_cond=unet.null_cond_emb.detach()
    )
    torch.testing.assert_close(against_null, plain, rtol=0, atol=1e-3)
    against = [
        draw(diffusion, cond_scale=3.0, seed=1, steps=4, negative_cond=given)
        for given in (negative, {"cond": negative.expand(3, -1)})
    ]
    torch.testing.assert_close(against[0], against[1], rtol=0, atol=1e-3)
    assert not torch.allclose(against[0], plain, atol=1e-3)
    # away from the condition itself there is no way to go
    itself = draw(diffusion, cond_scale=3.0, seed=1, steps=4, negative_cond=COND)
    unguided = draw(diffusion, seed=1, steps=4)
    torch.testing.assert_close(itself, unguided, rtol=0, atol=1e-3)


def test_rescaled_guidance_and_thresholds_change_the_samples(diffusion):
    plain = draw(diffusion, cond_scale=5.0, seed=1, steps=4)
    for option in ({"guidance_rescale": 0.7}, {"dynamic_thres_percentile": 0.5}):
        assert not torch.allclose(draw(diffusion, cond_scale=5.0, seed=1, steps=4, **option), plain)


def test_dynamic_thresholds_equal_the_option_of_the_model(diffusion):
    expected = draw(diffusion, seed=1, steps=4, dynamic_thres_percentile=0.8)
    diffusion.use_dynamic_thres, diffusion.dynamic_thres_percentile = True, 0.8
    try:
        assert torch.equal(draw(diffusion, seed=1, steps=4), expected)
    finally:
        diffusion.use_dynamic_thres = False


def test_conditions_follow_their_videos_when_the_batch_is_split():
    diffusion = knowing()
    labels = torch.arange(5)
    diffusion.sample(
        labels=labels, cond_scale=2.0, negative_cond={"labels": labels + 10}, steps=1, max_batch=2
    )
    received = [
        (c["labels"].tolist(), c["negative"]["labels"].tolist()) for c in calls_of(diffusion)
    ]
    assert received == [([0, 1], [10, 11]), ([2, 3], [12, 13]), ([4], [14])]


def calls_of(diffusion):
    return diffusion.denoise_fn.calls


# Following


def test_a_callback_sees_every_step(diffusion):
    for options in ({}, {"sampler": "dpm++", "steps": 5}):
        seen = []
        torch.manual_seed(2)
        videos = draw(diffusion, callback=seen.append, **options)
        steps = options.get("steps", 12)
        assert [(step.step, step.steps) for step in seen] == [
            (i, steps) for i in range(1, steps + 1)
        ]
        assert seen[-1].level == CLEAN
        sigmas = [step.level.sigma for step in seen]
        assert sigmas == sorted(sigmas, reverse=True)
        torch.testing.assert_close((seen[-1].x_t + 1) / 2, videos)


def test_a_compiled_network_samples_compiled(diffusion):
    unet = diffusion.denoise_fn
    expected = draw(diffusion, steps=2, seed=1, cond_scale=2.0)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    diffusion.denoise_fn = torch.compile(unet, backend=backend)
    try:
        for sampler in SAMPLERS:
            steps = None if sampler == "ddpm" else 2
            videos = draw(diffusion, sampler=sampler, steps=steps, seed=1, cond_scale=2.0)
            assert videos.isfinite().all()
        found = draw(diffusion, steps=2, seed=1, cond_scale=2.0)
        # also where a gradient passes through it
        first = KnownRegion(torch.full((1, 1, 3, 8, 8), 0.2), torch.tensor([True, False, False]))
        guided = draw(diffusion, steps=1, seed=1, guidance=first)
        assert torch.allclose(guided[:, :, 0], torch.tensor(0.2))
    finally:
        diffusion.denoise_fn = unet
        torch.compiler.reset()
    assert graphs
    # an untrained network multiplies rounding errors by its guidance
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


# Mistakes


class Nothing(Guidance):
    num_videos = 4


class Two(Guidance):
    num_videos = 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "ddpm", "steps": 5}, "DDPM: steps must be all 12 of the model, got 5"),
        ({"sampler": "rk4"}, "sampler must be one of ddpm, ancestral, ddim, euler, heun, dpm++"),
        (
            {"dynamic_thres_percentile": 99.5},
            "sample: dynamic_thres_percentile must be a fraction in [0, 1], got 99.5",
        ),
        ({"guidance_rescale": 1.5}, "guidance_rescale must be from 0 to 1, got 1.5"),
        (
            {"image_size": (8, 0)},
            "image_size must be a whole number of pixels of",
        ),
        (
            {"image_size": "8"},
            "image_size must be a whole number of pixels of",
        ),
        (
            {"image_size": (8, 8, 8)},
            "image_size must be a whole number of pixels of",
        ),
        (
            {"guidance": Two()},
            "guidance must have one row per video, got 3 of cond, 2 of Two",
        ),
        ({"negative_cond": COND}, "negative_cond needs a cond_scale other than 1, got 1, which"),
        (
            {"negative_cond": {"text": COND}, "cond_scale": 2.0},
            "negative_cond must hold conditions that the network takes, cond, got text; give capti",
        ),
    ],
)
def test_mistakes_are_named(diffusion, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        draw(diffusion, **options)


def test_a_denoiser_without_rescaling():
    class Plain(Knows):
        def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
            return self(x, t, cond)

    diffusion = GaussianDiffusion(Plain(), **SIZE)
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidance_rescale'"):
        diffusion.sample(batch_size=1, guidance_rescale=0.5, cond_scale=2.0)


def test_guidance_determines_the_number_of_videos():
    diffusion = knowing()
    assert len(diffusion.sample(guidance=Nothing(), steps=1, progress=False)) == 4
    assert len(diffusion.sample(guidance=[Guidance()], steps=1, batch_size=2, progress=False)) == 2


@pytest.mark.parametrize("guidance", [None, 5, ["much"], Guidance])
def test_objects_that_are_not_guidance(diffusion, guidance):
    with pytest.raises(TypeError, match=r"guidance must be a Guidance, such as KnownRegion or Mea"):
        draw(diffusion, guidance=guidance)


def test_a_model_without_clamping_has_no_threshold():
    diffusion = knowing(auto_normalize=False)
    with pytest.raises(ValueError, match=r"dynamic_thres_percentile needs a model that clamps"):
        diffusion.sample(batch_size=1, dynamic_thres_percentile=0.9)


def test_a_sampler_that_stops_too_early(diffusion):
    class Lazy(DDIM):
        def run(self, x, levels, denoise, noise):
            yield x

    with pytest.raises(ValueError, match=r"must yield the videos after each of its 4 steps, got 1"):
        draw(diffusion, sampler=Lazy(), steps=4)


# Other number types, and subclasses


def test_a_model_in_float64_samples_in_float64():
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2).double()
    diffusion = GaussianDiffusion(unet, **SIZE).double()
    for options in ({}, {"sampler": "dpm++", "steps": 3}):
        videos = diffusion.sample(batch_size=1, progress=False, **options)
        assert videos.dtype == torch.float64
        assert videos.isfinite().all()


def test_a_schedule_in_half_precision_is_refused():
    diffusion = knowing().bfloat16()
    with pytest.raises(
        ValueError, match=r"must be in float32 or float64, which the schedule needs, got torch.bf"
    ):
        diffusion.sample(batch_size=1, progress=False)


def test_steps_may_be_an_array(diffusion):
    expected = draw(diffusion, seed=1, steps=[11, 6, 2])
    for steps in (torch.tensor([11, 6, 2]), torch.tensor([11.0, 6.0, 2.0]).numpy()):
        assert torch.equal(draw(diffusion, seed=1, steps=steps), expected)


class AsInTheReference(GaussianDiffusion):
    """Methods with the signatures of version 0.7.0."""

    calls = 0

    def p_sample(self, x, t, cond=None, cond_scale=1.0, clip_denoised=True):
        self.calls += 1
        return super().p_sample(x, t, cond, cond_scale, clip_denoised)

    def p_sample_loop(self, shape, cond=None, cond_scale=1.0):
        return super().p_sample_loop(shape, cond, cond_scale, progress=False)


def test_methods_of_a_subclass_are_called_in_the_reference_chain(diffusion):
    changed = AsInTheReference(diffusion.denoise_fn, **SIZE)
    torch.manual_seed(1)
    expected = draw(diffusion)
    torch.manual_seed(1)
    assert torch.equal(changed.sample(COND, progress=False), expected)
    assert changed.calls == 12
    with pytest.warns(UserWarning, match=r"AsInTheReference has a p_sample and p_sample_loop of"):
        changed.sample(COND, seed=1, progress=False)
    assert changed.calls == 12
