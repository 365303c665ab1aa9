"""Schedulers of diffusers as samplers."""

import copy
import re
from collections import deque

import diffusers
import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, moments, relative_error
from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    cosine_beta_schedule,
    make_betas,
)
from video_diffusion_pytorch.diffusion.random_streams import make_streams
from video_diffusion_pytorch.diffusion.samplers import (
    DDIM,
    Ancestral,
    DiffusersScheduler,
    DPMPlusPlus,
    make_sampler,
)

# what diffusers itself does with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


@pytest.fixture(scope="module")
def process():
    return ForwardProcess(cosine_beta_schedule(1000))


@pytest.fixture(scope="module")
def videos():
    return GaussianVideos()


def exactly(message):
    return f"^{re.escape(message)}$"


def result_of(sampler, levels, videos, seed=0, count=3):
    noise = make_streams(seed, None, count, "cpu")
    x = noise(torch.empty(count, 1, videos.num_frames, 4, 4))
    return deque(sampler.run(x, levels, videos.denoise, noise), maxlen=1).pop()


def assert_same_samples(scheduler, sampler, steps, process, videos, tolerance=1e-4):
    """Of the wrapped scheduler and of a sampler, which differ by single and double numbers."""
    wrapped = DiffusersScheduler(scheduler)
    found = result_of(wrapped, wrapped.levels(process, steps), videos)
    expected = result_of(sampler, sampler.levels(process, steps), videos)
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


# The same samples as by this package's samplers


@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 20), ("leading", 15)])
def test_ddim(process, videos, spacing, steps):
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    assert_same_samples(scheduler, DDIM(spacing=spacing), steps, process, videos)


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_plus_plus(process, videos, sde, order):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=order,
        timestep_spacing="trailing",
    )
    sampler = DPMPlusPlus(sde=sde, order=order, spacing="trailing")
    assert_same_samples(scheduler, sampler, 20, process, videos)


def test_karras_spacing(process, videos):
    """Levels of many noise ratios, several of which are the same whole step."""
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    sampler = DPMPlusPlus(spacing="karras")
    assert_same_samples(scheduler, sampler, 20, process, videos, tolerance=3e-3)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_euler_is_ddim(videos, schedule):
    """Though it works on x / alpha."""
    process = ForwardProcess(make_betas(schedule, 1000))
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")
    assert_same_samples(scheduler, DDIM(spacing="trailing"), 20, process, videos, 3e-4)


def test_intermediate_videos_have_the_noise_of_their_level(process, videos):
    wrapped = DiffusersScheduler(diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"))
    x = torch.randn(3, 1, videos.num_frames, 4, 4)
    sampler = DDIM(spacing="trailing")
    expected = sampler.run(x, sampler.levels(process, 10), videos.denoise, None)
    found = wrapped.run(x, wrapped.levels(process, 10), videos.denoise, torch.randn_like)
    for mine, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-3, atol=1e-3)


# Good samples


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("UniPCMultistepScheduler", 0.02),
        ("DEISMultistepScheduler", 0.02),
        ("HeunDiscreteScheduler", 0.02),
        ("KDPM2DiscreteScheduler", 0.02),
        ("PNDMScheduler", 0.1),
    ],
)
def test_other_schedulers(videos, name, error):
    """On a schedule whose last step has some signal, which some of them need."""
    process = ForwardProcess(make_betas("linear", 1000))
    wrapped = DiffusersScheduler(getattr(diffusers, name)(timestep_spacing="trailing"))
    levels = wrapped.levels(process, 40)
    mean, covariance = moments(wrapped, levels, videos, dtype=torch.float32)
    torch.testing.assert_close(mean, videos.mean, rtol=0, atol=0.03)
    assert relative_error(covariance, videos.covariance) < error


@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_schedulers_with_generators(process, videos, name):
    """Which are ancestral sampling, with draws of their own: videos of the same distribution."""
    wrapped = DiffusersScheduler(getattr(diffusers, name)(timestep_spacing="trailing"))
    noise = make_streams(0, None, 8, "cpu")
    x = noise(torch.empty(8, 1, videos.num_frames, 32, 32))
    *_, result = wrapped.run(x, wrapped.levels(process, 100), videos.denoise, noise)
    pixels = result.movedim(2, -1).reshape(-1, videos.num_frames).double()
    sampler = Ancestral()
    _, covariance = moments(sampler, sampler.levels(process, 100), videos)
    torch.testing.assert_close(pixels.mean(dim=0), videos.mean, rtol=0, atol=0.03)
    assert relative_error(pixels.T.cov(), covariance) < 0.03


# Seeds, and use more than once


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDPMScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("EulerAncestralDiscreteScheduler", {}),
    ],
)
def test_a_video_follows_its_own_stream(process, videos, name, options):
    sampler = DiffusersScheduler(getattr(diffusers, name)(**options))
    levels = sampler.levels(process, 5)
    before = torch.get_rng_state()
    whole = result_of(sampler, levels, videos, seed=4, count=3)
    torch.testing.assert_close(result_of(sampler, levels, videos, seed=4, count=1), whole[:1])
    assert not torch.allclose(result_of(sampler, levels, videos, seed=5, count=3), whole)
    assert not torch.allclose(whole[0], whole[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "EulerDiscreteScheduler"])
def test_schedulers_keep_no_state(process, videos, name):
    scheduler = getattr(diffusers, name)(timestep_spacing="trailing")
    before = copy.deepcopy(scheduler.__dict__)
    sampler = DiffusersScheduler(scheduler)
    levels = sampler.levels(process, 8)
    other = ForwardProcess(cosine_beta_schedule(50))
    half = sampler.run(torch.randn(1, 1, 6, 4, 4), levels, videos.denoise, torch.randn_like)
    next(half)
    first = result_of(sampler, levels, videos)
    elsewhere = result_of(sampler, sampler.levels(other, 8), videos)
    assert torch.equal(result_of(sampler, levels, videos), first)
    assert not torch.equal(elsewhere, first)
    assert scheduler.__dict__.keys() == before.keys()
    assert scheduler.config == before["_internal_dict"]
    assert scheduler.num_inference_steps is None


def test_schedulers_take_betas_and_prediction_type_of_the_model(process):
    scheduler = diffusers.DDIMScheduler(
        500, beta_schedule="linear", clip_sample=True, rescale_betas_zero_snr=True, steps_offset=1
    )
    levels = DiffusersScheduler(scheduler).levels(process, 20)
    config = levels.scheduler.config
    assert (config.prediction_type, config.clip_sample) == ("v_prediction", False)
    assert config.num_train_timesteps == 1000
    assert config.steps_offset == 1
    torch.testing.assert_close(levels.scheduler.alphas_cumprod, process.alphas_cumprod)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_levels(process, name):
    levels = DiffusersScheduler(getattr(diffusers, name)()).levels(process, 20)
    assert len(levels) == 21
    assert levels[-1] == CLEAN
    for level in levels[:-1]:
        assert level.log_snr == pytest.approx(process.noise_level(level.t).log_snr, abs=0.02)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1)


def test_sample_takes_a_scheduler(videos):
    process = ForwardProcess(cosine_beta_schedule(1000))
    diffusion = GaussianDiffusion(
        PerfectNetwork(videos, process), image_size=8, num_frames=6, auto_normalize=False
    )
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    options = {"batch_size": 3, "steps": 20, "seed": 1, "progress": False}
    found = diffusion.sample(sampler=scheduler, max_batch=2, **options)
    expected = diffusion.sample(sampler=DDIM(spacing="trailing"), **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# Errors


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("FlowMatchEulerDiscreteScheduler", "trained_betas and prediction_type"),
        ("EDMEulerScheduler", "trained_betas"),
        ("CogVideoXDPMScheduler", "such a step"),
    ],
)
def test_schedulers_of_other_processes(name, lacking):
    message = (
        "sample: a diffusers scheduler must have trained_betas and prediction_type in its config, "
        f"and a step(model_output, timestep, sample), got {name} without {lacking}; take e.g. "
        "DPMSolverMultistepScheduler or EulerDiscreteScheduler"
    )
    scheduler = getattr(diffusers, name)()
    with pytest.raises(TypeError, match=exactly(message)):
        make_sampler(scheduler)


@pytest.mark.parametrize("steps", [0, 1001, [999, 500]])
def test_number_of_steps(process, steps):
    message = f"sample: steps must be a whole number from 1 to the model's 1000, got {steps}"
    with pytest.raises(ValueError, match=exactly(message)):
        DiffusersScheduler(diffusers.DDIMScheduler()).levels(process, steps)
