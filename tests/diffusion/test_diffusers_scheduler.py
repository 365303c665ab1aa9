"""Schedulers of diffusers as samplers."""

import copy
import re
from collections import deque
from itertools import pairwise

import diffusers
import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, moments, relative_error
from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.continuous_schedule import EDMSchedule, FlowSchedule
from video_diffusion_pytorch.diffusion.diffusers_scheduler import DiffusersScheduler
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
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
    DPMPlusPlus,
    Euler,
    Heun,
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
    x = levels[0].scale * noise(torch.empty(count, 1, videos.num_frames, 4, 4))
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


# The same on flow matching and EDM, at the scheduler's levels


def assert_same_at_its_levels(scheduler, sampler, process, videos, steps=12):
    wrapped = DiffusersScheduler(scheduler)
    levels = wrapped.levels(process, steps)
    once = [level for level, after in pairwise(levels) if level.t != after.t] + [CLEAN]
    assert len(once) == steps + 1
    found = result_of(wrapped, levels, videos)
    expected = result_of(sampler, once, videos)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


FLOW_STEPS = {"use_flow_sigmas": True, "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), Euler()),
        (diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), DDIM()),
        (diffusers.FlowMatchHeunDiscreteScheduler(), Heun()),
        (diffusers.DPMSolverMultistepScheduler(**FLOW_STEPS), DPMPlusPlus()),
        (diffusers.DPMSolverMultistepScheduler(**FLOW_STEPS, solver_order=1), Euler()),
    ],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_schedulers_of_flow_matching(videos, scheduler, sampler, shift):
    process = ForwardProcess(FlowSchedule(shift), 1000)
    assert_same_at_its_levels(scheduler, sampler, process, videos)


@pytest.mark.parametrize(
    ("scheduler", "sampler"),
    [
        (diffusers.EDMEulerScheduler(), Euler()),
        (diffusers.EDMEulerScheduler(prediction_type="v_prediction", sigma_data=1.0), DDIM()),
        (diffusers.EDMEulerScheduler(sigma_schedule="exponential"), Euler()),
        (diffusers.EDMDPMSolverMultistepScheduler(), DPMPlusPlus()),
        (diffusers.EDMDPMSolverMultistepScheduler(thresholding=True), DPMPlusPlus()),
    ],
)
def test_schedulers_of_edm(videos, scheduler, sampler):
    process = ForwardProcess(EDMSchedule(), 1000)
    assert_same_at_its_levels(scheduler, sampler, process, videos)


def test_levels_of_edm_are_the_schedulers():
    scheduler = diffusers.EDMEulerScheduler()
    levels = DiffusersScheduler(scheduler).levels(ForwardProcess(EDMSchedule(), 1000), 10)
    scheduler.set_timesteps(10)
    found = [level.sigma for level in levels]
    assert found == pytest.approx(scheduler.sigmas.tolist(), rel=1e-4)
    assert {level.alpha for level in levels} == {1.0}


PROCESSES = {
    "cosine": (cosine_beta_schedule(1000), "pred_noise"),
    "flow": (FlowSchedule(), "flow"),
    "flow, shifted": (FlowSchedule(3.0), "flow"),
    "edm": (EDMSchedule(), "edm"),
}


@pytest.fixture(params=PROCESSES, scope="module")
def any_process(request):
    return ForwardProcess(PROCESSES[request.param][0], 1000)


@pytest.mark.parametrize(
    ("scheduler", "steps", "error"),
    [
        (diffusers.FlowMatchEulerDiscreteScheduler(), 100, 0.04),
        (diffusers.FlowMatchHeunDiscreteScheduler(), 20, 0.02),
        (diffusers.UniPCMultistepScheduler(**FLOW_STEPS), 40, 0.02),
        (diffusers.EDMEulerScheduler(), 200, 0.04),
        (diffusers.EDMDPMSolverMultistepScheduler(), 40, 0.02),
        (diffusers.DDIMScheduler(timestep_spacing="trailing"), 100, 0.06),
        (diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing"), 40, 0.02),
        (diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"), 100, 0.06),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_kind_of_scheduler_fits_every_process(any_process, videos, scheduler, steps, error):
    wrapped = DiffusersScheduler(scheduler)
    levels = wrapped.levels(any_process, steps)
    mean, covariance = moments(wrapped, levels, videos, dtype=torch.float32)
    assert relative_error(mean, videos.mean) < 0.01
    assert relative_error(covariance, videos.covariance) < error


@pytest.mark.parametrize(("schedule", "objective"), PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0),
        diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.UniPCMultistepScheduler(timestep_spacing="trailing"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_of_any_objective_take_any_scheduler(videos, scheduler, schedule, objective):
    """And part of the videos may be known."""
    size = {"image_size": 4, "num_frames": 6, "channels": 1, "auto_normalize": False}
    model = GaussianDiffusion(torch.nn.Identity(), **size, objective=objective)
    model.denoise_fn = PerfectNetwork(videos, ForwardProcess(schedule, 1000), objective)
    options = {"batch_size": 2, "steps": 20, "seed": 0, "progress": False}
    seen = []
    found = model.sample(sampler=scheduler, callback=seen.append, **options)
    expected = model.sample(sampler="heun", **{**options, "steps": 25})
    # pure noise and the noisiest step of a chain are not quite the same
    assert (found - expected).square().mean().sqrt() < 0.08
    # in the model's own terms after each step
    for step in seen[:-1]:
        size = step.x_t.square().mean().sqrt().item()
        assert size == pytest.approx(step.level.scale, rel=1), step.level
    given = torch.full((2, 1, 6, 4, 4), 0.2)
    known = KnownRegion(given, torch.tensor([True] * 2 + [False] * 4))
    filled = model.sample(sampler=scheduler, guidance=known, **options)
    assert torch.equal(filled[:, :, :2], given[:, :, :2])
    mean, _ = videos.given_first(torch.full((2,), 0.2))
    torch.testing.assert_close(filled[:, :, 2:].mean((0, 1, 3, 4)).double(), mean, atol=0.3, rtol=0)


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
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
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
    "name", ["CogVideoXDPMScheduler", "MiniMaxH3Scheduler", "CMStochasticIterativeScheduler"]
)
def test_schedulers_of_other_processes(name):
    message = (
        "sample: a diffusers scheduler must have trained_betas and prediction_type in its config, "
        "or be one of flow matching or EDM, and have a step(model_output, timestep, sample), got "
        f"{name}; take e.g. DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler or "
        "EDMEulerScheduler"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        make_sampler(getattr(diffusers, name)())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (
            diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
            "use_dynamic_shifting of a diffusers scheduler must be False, got True; build it with "
            "the shift of one length, such as shift or flow_shift",
        ),
        (
            diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            "invert_sigmas of a diffusers scheduler must be False, got True; build it with steps "
            "from noise to the clip",
        ),
    ],
)
def test_settings_that_a_sampler_cannot_follow(scheduler, message):
    with pytest.raises(ValueError, match=exactly(f"sample: {message}")):
        make_sampler(scheduler)


def test_schedulers_that_add_noise(process):
    message = (
        "sample: the noise levels of a diffusers scheduler must fall, got a DDIMInverseScheduler, "
        "whose levels rise; take one that removes noise"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        DiffusersScheduler(diffusers.DDIMInverseScheduler()).levels(process, 10)


@pytest.mark.parametrize("steps", [0, 1001, [999, 500]])
def test_number_of_steps(process, steps):
    message = f"sample: steps must be a whole number from 1 to the model's 1000, got {steps}"
    with pytest.raises(ValueError, match=exactly(message)):
        DiffusersScheduler(diffusers.DDIMScheduler()).levels(process, steps)
