"""Continuous schedules, and flow matching and EDM from training to samples."""

import math
from itertools import pairwise

import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, moments, relative_error
from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.diffusion.continuous_schedule import (
    CosineSchedule,
    EDMSchedule,
    FlowSchedule,
)
from video_diffusion_pytorch.diffusion.noise_schedule import CONTINUOUS, ForwardProcess
from video_diffusion_pytorch.diffusion.samplers import DDIM, Ancestral, DPMPlusPlus, Euler, Heun
from video_diffusion_pytorch.diffusion.sampling_steps import Prediction

SCHEDULES = {
    "cosine": CosineSchedule(),
    "cosine, shifted": CosineSchedule(2.5),
    "flow": FlowSchedule(),
    "flow, shifted": FlowSchedule(3.0),
    "edm": EDMSchedule(),
}
U = torch.linspace(0, 1, 101, dtype=torch.float64)


@pytest.fixture(params=SCHEDULES.values(), ids=SCHEDULES)
def schedule(request):
    return request.param


# Schedules


def test_log_snr_signal_and_noise_agree(schedule):
    alpha, sigma = schedule.signal_and_noise(U)
    torch.testing.assert_close(schedule.log_snr(U), 2 * (alpha.log() - sigma.log()))
    assert (schedule.log_snr(U).diff() < 0).all()
    assert alpha[0] > 0.99
    is_preserved = torch.allclose(alpha**2 + sigma**2, torch.ones_like(U))
    assert is_preserved == schedule.is_variance_preserving
    # float32 is what networks and losses compute in
    for exact, rounded in zip((alpha, sigma), schedule.signal_and_noise(U.float()), strict=True):
        torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-6)


def test_time_is_the_inverse_of_log_snr(schedule):
    torch.testing.assert_close(schedule.time_of(schedule.log_snr(U)), U, rtol=0, atol=1e-9)
    far = torch.tensor([1e3, -1e3], dtype=torch.float64)
    assert schedule.time_of(far).tolist() == pytest.approx([0, 1])


def test_flow_is_the_straight_path():
    alpha, sigma = FlowSchedule().signal_and_noise(U)
    torch.testing.assert_close(sigma, U)
    torch.testing.assert_close(alpha, 1 - U)


def test_a_shift_multiplies_the_noise_to_signal_ratio():
    for kind in (FlowSchedule, CosineSchedule):
        plain, shifted = (kind(shift).signal_and_noise(U[1:-1]) for shift in (1.0, 3.0))
        torch.testing.assert_close(shifted[1] / shifted[0], 3 * plain[1] / plain[0])
    # Esser et al. 2024, eq. 23
    sigma = FlowSchedule(3.0).signal_and_noise(U)[1]
    torch.testing.assert_close(sigma, 3 * U / (1 + 2 * U))


def test_times_of_edm_are_its_steps():
    # Karras et al. 2022, eq. 5
    sigma = EDMSchedule().signal_and_noise(U)[1]
    first, last = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = [(first + i / 100 * (last - first)) ** 7 for i in range(101)]
    torch.testing.assert_close(sigma.flip(0), torch.tensor(expected, dtype=torch.float64))


def test_the_chain_of_a_schedule(schedule):
    process = ForwardProcess(schedule, 20).double()
    alpha, sigma = process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod
    # the noise of each step added to what it keeps of the one before
    kept = alpha[1:] / alpha[:-1]
    added = kept**2 * sigma[:-1] ** 2 + process.betas[1:]
    torch.testing.assert_close(added, sigma[1:] ** 2, rtol=1e-5, atol=1e-7)


def test_the_posterior_is_that_of_bayes(schedule):
    process = ForwardProcess(schedule, 20).double()
    alpha, sigma = process.sqrt_alphas_cumprod, process.sqrt_one_minus_alphas_cumprod
    x_start, x_t = torch.randn(2, 19, 1, 1, 1, 1, dtype=torch.float64)
    t = torch.arange(1, 20)
    mean, variance, log_variance = process.q_posterior(x_start, x_t, t)
    # a normal prior of x_{t-1}, and x_t = kept * x_{t-1} + noise of variance beta
    kept, beta = (alpha[1:] / alpha[:-1]), process.betas[1:]
    precision = 1 / sigma[:-1] ** 2 + kept**2 / beta
    pull = alpha[:-1] * x_start.flatten() / sigma[:-1] ** 2 + kept * x_t.flatten() / beta
    torch.testing.assert_close(variance.flatten(), 1 / precision, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(mean.flatten(), pull / precision, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(log_variance.exp(), variance, rtol=1e-4, atol=1e-9)


# Times in training


@pytest.mark.parametrize("name", ["flow", "edm", "continuous_cosine"])
def test_normal_times(name):
    process = ForwardProcess(CONTINUOUS[name](), 50, time_distribution=(-0.5, 1.5))
    times = process.draw_times(40_000, torch.Generator().manual_seed(0))
    # log(sigma / alpha) is half of the negative log-SNR
    size = -process.log_snr(times.double()) / 2
    assert size.mean().item() == pytest.approx(-0.5, abs=0.03)
    assert size.std().item() == pytest.approx(1.5, abs=0.03)
    assert times.min() >= -1
    assert times.max() <= 49


def test_the_shift_applies_after_the_distribution():
    for shift in (1.0, 4.0):
        process = ForwardProcess(FlowSchedule(shift), 50, time_distribution=(0.0, 1.0))
        times = process.times_at(torch.tensor([0.5], dtype=torch.float64))
        assert process.log_snr(times).item() == pytest.approx(-2 * math.log(shift))


def test_fractions_give_times_as_they_are_drawn(schedule):
    for distribution in (None, (0.0, 1.0)):
        process = ForwardProcess(schedule, 30, distribution)
        even = process.times_at((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
        drawn = process.draw_times(4000, torch.Generator().manual_seed(0)).double().sort()[0]
        assert (drawn - even).abs().mean() < 0.5
        ends = process.times_at(torch.tensor([0.0, 1 - 1e-12], dtype=torch.float64))
        assert -1 <= ends[0] < ends[1] <= 29


# Options

SIZE = {"image_size": 8, "num_frames": 4, "timesteps": 20, "loss_type": "l2"}


def diffusion_with(**options):
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2)
    return GaussianDiffusion(unet, **{**SIZE, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "flow", "beta_schedule": "linear"}, "beta_schedule must be left out for "),
        ({"objective": "edm", "beta_schedule": [0.5] * 20}, "beta_schedule must be left out for "),
        ({"beta_schedule": "flow"}, "objective must be flow for beta_schedule='flow', got pred_n"),
        ({"time_shift": 2}, "time_shift needs objective='flow' or beta_schedule='continuous_co"),
        ({"objective": "edm", "time_shift": 2}, "time_shift needs objective='flow' or beta_sche"),
        ({"objective": "flow", "time_shift": 0}, "time_shift must be a number above 0, got 0"),
        ({"time_distribution": "uniform"}, "time_distribution needs a schedule of continuous ti"),
        (
            {"objective": "flow", "time_distribution": "normal"},
            "time_distribution must be uniform, logit_normal, two numbers",
        ),
        ({"objective": "flow", "time_distribution": (0, 0)}, "time_distribution must be uniform"),
        ({"objective": "edm", "sigma_data": 0}, "sigma_data must be a number above 0, got 0"),
        ({"objective": "edm", "min_snr_gamma": 5}, "min_snr_gamma must be None for objective='e"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=f"^GaussianDiffusion: {message}"):
        diffusion_with(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"objective": "flow"},
        {"objective": "flow", "time_shift": 3.0, "time_distribution": "logit_normal"},
        {"objective": "edm", "sigma_data": 0.3},
        {"objective": "edm", "time_distribution": (0.5, 2)},
    ],
)
def test_a_model_comes_back_from_a_folder(options, tmp_path):
    diffusion = diffusion_with(**options)
    diffusion.save_pretrained(tmp_path)
    again = GaussianDiffusion.from_pretrained(tmp_path)
    assert again.config == diffusion.config
    clips, t = torch.rand(2, 1, 4, 8, 8), torch.tensor([3.5, 18.0])
    noise = torch.randn(clips.shape)
    assert torch.equal(diffusion(clips, None, noise, t=t), again(clips, None, noise, t=t))
    draws = [
        one.sample(batch_size=1, seed=0, steps=3, progress=False) for one in (diffusion, again)
    ]
    assert torch.equal(*draws)


@pytest.mark.parametrize(
    ("own", "theirs", "message"),
    [
        ({"objective": "flow"}, {}, "objective, 'flow', got 'pred_noise'"),
        ({}, {"objective": "edm"}, "objective, 'pred_noise', got 'edm'"),
        (
            {"objective": "flow"},
            {"objective": "flow", "time_shift": 3},
            "time_shift, 1.0, got 3.0",
        ),
        (
            {"objective": "edm"},
            {"objective": "edm", "sigma_data": 0.3},
            "sigma_data, 0.5, got 0.3; build",
        ),
    ],
)
def test_weights_of_another_kind_are_refused(own, theirs, message):
    state = diffusion_with(**theirs).state_dict()
    with pytest.raises(ValueError, match=f"must have the model's {message}"):
        diffusion_with(**own).load_state_dict(state)


def test_sigma_data_can_be_set_later():
    diffusion = diffusion_with(objective="edm")
    diffusion.set_sigma_data(0.25)
    assert diffusion.config["sigma_data"] == 0.25
    other = diffusion_with(objective="edm", sigma_data=0.25)
    other.load_state_dict(diffusion.state_dict())
    with pytest.raises(ValueError, match="GaussianDiffusion: sigma_data must be a number above 0"):
        diffusion.set_sigma_data(0)
    with pytest.raises(ValueError, match="sigma_data needs objective='edm', got 'flow'; leave it"):
        diffusion_with(objective="flow").set_sigma_data(0.25)


# From a loss to samples


@pytest.mark.parametrize("objective", ["flow", "edm"])
@pytest.mark.parametrize("time_input", ["step", "log_snr"])
def test_losses_fall_and_chains_run(objective, time_input):
    torch.manual_seed(0)
    unet = Unet3D(dim=8, dim_mults=(1,), channels=1, attn_heads=2, time_input=time_input)
    diffusion = GaussianDiffusion(unet, **SIZE, objective=objective)
    clips = torch.full((8, 1, 4, 8, 8), 0.9)
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = diffusion(clips)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    options = {"batch_size": 2, "progress": False}
    for videos in (
        diffusion.sample(**options),
        diffusion.sample(sampler="ddpm", **options),
        diffusion.sample(sampler="ddpm", seed=1, **options),
        diffusion.interpolate(clips[:2], clips[:2], t=10, progress=False),
        diffusion.predict(clips[:2, :, :2], progress=False),
    ):
        assert videos.mean().item() == pytest.approx(0.9, abs=0.15)


@pytest.mark.parametrize("objective", ["pred_v", "pred_x_start", "flow", "edm"])
def test_the_loss_of_the_perfect_network_is_the_least(objective):
    videos = GaussianVideos(variance=0.25, mean=(-0.2, 0.0, 0.2))
    options = {"image_size": 4, "num_frames": 3, "timesteps": 40, "loss_type": "l2"}
    model = GaussianDiffusion(
        nothing := torch.nn.Identity(),
        **options,
        channels=1,
        objective=objective,
        auto_normalize=False,
    )
    model.denoise_fn = network = PerfectNetwork(videos, model, objective)
    root = torch.linalg.cholesky(videos.covariance)
    normal = torch.randn(512, 1, 4, 4, 3, dtype=torch.float64) @ root.T
    clips = (videos.mean + normal).movedim(-1, 2).float()
    noise, t = torch.randn(clips.shape), torch.full((len(clips),), 20)

    def loss(gain):
        network.forward = lambda x, t, cond=None: gain * PerfectNetwork.forward(network, x, t)
        return model.p_losses(clips, t, noise=noise).item()

    least = loss(1.0)
    assert least < loss(0.95)
    assert least < loss(1.05)
    assert nothing is not network


PROCESSES = [
    *(ForwardProcess(one, 1000) for one in (FlowSchedule(), FlowSchedule(3.0), EDMSchedule())),
]


@pytest.mark.parametrize("process", PROCESSES, ids=["flow", "flow, shifted", "edm"])
@pytest.mark.parametrize(
    ("sampler", "steps", "most"),
    [
        (Ancestral(), 1000, 0.02),
        (DDIM(), 500, 0.02),
        (Euler(), 500, 0.02),
        (Euler(churn=20), 500, 0.03),
        (Heun(), 18, 0.02),
        (Heun(churn=5, churn_range=(0.05, 5)), 100, 0.02),
        (DPMPlusPlus(), 20, 0.025),
        (DPMPlusPlus(sde=True), 100, 0.02),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samplers_reach_the_moments_of_the_data(process, sampler, steps, most):
    videos = GaussianVideos()
    mean, covariance = moments(sampler, sampler.levels(process, steps), videos)
    assert relative_error(mean, videos.mean) < most
    assert relative_error(covariance, videos.covariance) < most


def test_a_perfect_network_of_any_objective_gives_the_same_samples():
    videos = GaussianVideos()
    options = {"image_size": 4, "num_frames": 6, "auto_normalize": False, "channels": 1}
    found = {}
    for objective in ("pred_noise", "pred_v", "pred_x_start", "flow", "edm"):
        model = GaussianDiffusion(torch.nn.Identity(), **options, objective=objective)
        model.denoise_fn = PerfectNetwork(videos, model, objective)
        found[objective] = model.sample(
            batch_size=2, seed=0, sampler="heun", steps=25, progress=False
        )
    for objective, samples in found.items():
        # they begin at other noise levels, but end at the video of the same noise
        error = (samples - found["flow"]).square().mean().sqrt()
        assert error < 0.01, objective


def test_heun_in_the_coordinates_of_edm_is_algorithm_2():
    # Karras et al. 2022, algorithm 2, for one pixel of variance 0.25 and mean 0.1
    process, steps = ForwardProcess(EDMSchedule(), 1000), 12
    churn, least, most, size = 6.0, 0.05, 50.0, 1.007
    sampler = Heun(churn, (least, most), size, coordinates="edm", spacing="karras")
    levels = sampler.levels(process, steps)

    def denoised(x, sigma):
        return (0.25 * x + sigma**2 * 0.1) / (0.25 + sigma**2)

    def denoise(x, level):
        x_start = denoised(x, level.sigma)
        return Prediction(x_start, (x - x_start) / level.sigma, x)

    torch.manual_seed(0)
    x = start = 80 * torch.randn(2, 1, 1, 1, 1, dtype=torch.float64)
    draws = torch.randn(steps, *x.shape, dtype=torch.float64)
    sigmas = [level.sigma for level in levels]
    for i, (sigma, after) in enumerate(pairwise(sigmas)):
        gamma = min(churn / steps, math.sqrt(2) - 1) if least <= sigma <= most else 0
        raised = sigma * (1 + gamma)
        x = x + math.sqrt(raised**2 - sigma**2) * size * draws[i]
        slope = (x - denoised(x, raised)) / raised
        ahead = x + (after - raised) * slope
        if after:
            slope = (slope + (ahead - denoised(ahead, after)) / after) / 2
        x = x + (after - raised) * slope

    used = iter([i for i, sigma in enumerate(sigmas[:-1]) if least <= sigma <= most])
    *_, found = sampler.run(start, levels, denoise, lambda like: draws[next(used)])
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-9)
    assert next(used, None) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1}, "churn must be from 0 to inf, got -1"),
        (
            {"churn_range": (2, 1)},
            "churn_range must be two numbers of at least 0, the second",
        ),
        ({"churn_noise": -0.1}, "churn_noise must be from 0 to inf, got -0.1"),
    ],
)
@pytest.mark.parametrize("kind", [Euler, Heun])
def test_options_of_euler_and_heun(kind, options, message):
    with pytest.raises(ValueError, match=f"{kind.__name__}: {message}"):
        kind(**options)


def test_coordinates_of_heun():
    with pytest.raises(ValueError, match="Heun: coordinates must be flow or edm, got 'vp'; choose"):
        Heun(coordinates="vp")
    sampler = Heun(coordinates="edm", spacing="trailing")
    with pytest.raises(ValueError, match="Heun: coordinates='edm' needs some signal at the first"):
        sampler.levels(ForwardProcess(FlowSchedule(), 100), 10)
    sampler.levels(ForwardProcess(FlowSchedule(), 100), [98, 50, 10])
