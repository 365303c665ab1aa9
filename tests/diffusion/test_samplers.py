"""Samplers and the spacing of their steps: closed forms, those of diffusers, and each other."""

import math
import re
from functools import partial
from itertools import count, pairwise

import diffusers
import numpy as np
import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, moments, relative_error
from video_diffusion_pytorch.diffusion.diffusers_scheduler import DiffusersScheduler
from video_diffusion_pytorch.diffusion.noise_schedule import (
    BETA_SCHEDULES,
    CLEAN,
    CONTINUOUS,
    ForwardProcess,
    cosine_beta_schedule,
    draw_noise,
    make_schedule,
)
from video_diffusion_pytorch.diffusion.samplers import (
    DDIM,
    DDPM,
    SAMPLERS,
    Ancestral,
    DPMPlusPlus,
    Euler,
    Heun,
    make_sampler,
)
from video_diffusion_pytorch.diffusion.sampling_steps import (
    SPACINGS,
    SPREAD,
    Prediction,
    Sampler,
    spaced_times,
)

# what diffusers itself does with numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SHAPE = (3, 2, 4, 5, 5)


@pytest.fixture(scope="module")
def process():
    return ForwardProcess(cosine_beta_schedule(1000))


@pytest.fixture(scope="module")
def videos():
    return GaussianVideos()


def exactly(message):
    return f"^{re.escape(message)}$"


def mixture(x, level):
    """The perfect denoiser of pixels that are -0.5 or 0.5, give or take 0.3: far from linear."""
    variance = (0.3 * level.alpha) ** 2 + level.sigma**2
    sides = 0.5 * torch.tanh(0.5 * level.alpha * x / variance)
    x_start = sides + level.alpha * 0.09 / variance * (x - level.alpha * sides)
    return Prediction(x_start, (x - level.alpha * x_start) / level.sigma, x)


class Recorded:
    """The same draws for two samplers: the n-th depends on n only."""

    def __init__(self):
        self.number = count()

    def __call__(self, like):
        generator = torch.Generator().manual_seed(next(self.number))
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)


def path(sampler, levels, x, denoise=mixture, noise=None):
    return list(sampler.run(x, levels, denoise, noise or Recorded()))


def start(dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(9), dtype=dtype)


def assert_same(found, expected, tolerance=1e-5):
    difference = ((found - expected).abs().max() / expected.abs().max()).item()
    assert difference <= tolerance


# Videos whose distribution is known


@pytest.mark.parametrize(
    ("sampler", "steps", "error"),
    [
        (Ancestral(), 1000, 0.0053),
        (Ancestral(), 256, 0.0201),
        (Ancestral(), 64, 0.0725),
        (Ancestral(langevin_delta=0.1), 256, 0.0084),
        (DDPM(), 1000, 0.0053),
        (DDIM(spacing="trailing"), 100, 0.0255),
        (DDIM(spacing="trailing"), 50, 0.0501),
        (DDIM(spacing="trailing"), 20, 0.1204),
        (DDIM(spacing="trailing"), 10, 0.2263),
        (DDIM(), 20, 0.1204),
        (DDIM(eta=1.0, spacing="trailing"), 64, 0.0725),
        (DDIM(eta=0.5, spacing="trailing", langevin_delta=0.1), 64, 0.0217),
        (DPMPlusPlus(spacing="trailing"), 50, 0.0019),
        (DPMPlusPlus(spacing="trailing"), 20, 0.0137),
        (DPMPlusPlus(spacing="trailing"), 10, 0.0610),
        (DPMPlusPlus(), 20, 0.0124),
        (DPMPlusPlus(), 10, 0.0336),
        (DPMPlusPlus(order=1, spacing="trailing"), 20, 0.1204),
        (DPMPlusPlus(sde=True), 20, 0.0475),
        (DPMPlusPlus(sde=True, order=1, spacing="trailing"), 64, 0.0725),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Sampler) else str(value),
)
def test_mean_and_covariance_of_samples(process, videos, sampler, steps, error):
    mean, covariance = moments(sampler, sampler.levels(process, steps), videos)
    torch.testing.assert_close(mean, videos.mean, rtol=0, atol=1e-4)
    assert relative_error(covariance, videos.covariance) == pytest.approx(error, abs=1e-4)


def test_ancestral_variance_is_that_of_the_paper(process, videos):
    """Of the chain's own covariance, step by step (eq. 3, 4)."""
    sampler = Ancestral(gamma=0.3)
    levels = sampler.levels(process, 40)
    expected = torch.eye(videos.num_frames).double()
    for t, s in pairwise(levels):
        remains = math.exp(t.log_snr - s.log_snr)
        slope = (1 - remains) * s.alpha * videos.gain(t.alpha, t.sigma)
        slope = slope + remains * s.alpha / t.alpha * torch.eye(videos.num_frames)
        low, high = ((1 - remains) * level.sigma**2 for level in (s, t))
        expected = slope @ expected @ slope.T + low**0.7 * high**0.3 * torch.eye(videos.num_frames)
    _, covariance = moments(sampler, levels, videos)
    torch.testing.assert_close(covariance, expected)


def test_gamma_widens_the_samples(process, videos):
    widths = []
    for gamma in (0.0, 0.5, 1.0):
        sampler = Ancestral(gamma=gamma)
        _, covariance = moments(sampler, sampler.levels(process, 64), videos)
        widths.append(covariance.trace())
    assert widths == sorted(widths)
    assert widths[0] < videos.covariance.trace() < widths[2]


@pytest.mark.parametrize("make", SAMPLERS.values(), ids=SAMPLERS)
def test_float32_is_as_good_as_float64(process, videos, make):
    sampler = make()
    levels = sampler.levels(process, sampler.default_steps or process.num_timesteps)
    single = moments(sampler, levels, videos, dtype=torch.float32)
    double = moments(sampler, levels, videos, dtype=torch.float64)
    torch.testing.assert_close(single, double, rtol=1e-4, atol=1e-4)


# Other implementations


def other_path(scheduler, levels, x):
    """The videos of a scheduler of diffusers that gets the clean video at each step."""
    noise = Recorded()
    videos = []
    for level, t in zip(levels, scheduler.timesteps, strict=False):
        x_start = mixture(x, level).x_start
        x = scheduler.step(x_start, t, x, return_dict=False, variance_noise=noise(x))[0]
        videos.append(x)
    return videos


def options_of(process):
    return {
        "trained_betas": process.betas.tolist(),
        "num_train_timesteps": process.num_timesteps,
        "prediction_type": "sample",
    }


# where theirs takes a step to where it stops next, which with linspace it does not
@pytest.mark.parametrize(("spacing", "steps"), [("trailing", 20), ("leading", 15)])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_that_of_diffusers(process, monkeypatch, spacing, steps, eta):
    scheduler = diffusers.DDIMScheduler(
        **options_of(process), timestep_spacing=spacing, clip_sample=False
    )
    scheduler.set_timesteps(steps)
    # else differences of nearly equal single numbers are what it takes roots of
    kept = [level.alpha**2 for level in process.noise_levels(range(1000))]
    scheduler.alphas_cumprod = torch.tensor(kept, dtype=torch.float64)
    monkeypatch.setattr(scheduler, "step", partial(scheduler.step, eta=eta))
    sampler = DDIM(eta=eta, spacing=spacing)
    levels = sampler.levels(process, steps)
    expected = other_path(scheduler, levels, start())
    found = path(sampler, levels, start())
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras"])
def test_dpm_plus_plus_is_that_of_diffusers(process, sde, order, spacing):
    sampler = DPMPlusPlus(sde=sde, order=order, spacing=spacing)
    levels = sampler.levels(process, 12)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **options_of(process),
        algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++",
        solver_order=order,
        use_karras_sigmas=spacing == "karras",
        # else steps of karras are rounded to whole numbers
        beta_schedule="squaredcos_cap_v2",
    )
    if spacing == "karras":
        scheduler.set_timesteps(12)
    else:
        scheduler.set_timesteps(timesteps=[int(level.t) for level in levels[:-1]])
    ratios = torch.tensor([level.sigma / level.alpha for level in levels], dtype=torch.float64)
    torch.testing.assert_close(scheduler.sigmas.double(), ratios, rtol=1e-3, atol=0)
    # else their logarithms, whose differences are the steps, are single numbers
    scheduler.sigmas = ratios
    # several of its first steps are the same whole number
    scheduler.set_begin_index(0)
    expected = other_path(scheduler, levels, start())
    found = path(sampler, levels, start())
    assert len(found) == len(expected) == 12
    for mine, theirs in zip(found, expected, strict=True):
        assert_same(mine, theirs)


def test_order_1_without_noise_is_ddim(process):
    levels = DDIM().levels(process, 12)
    expected = path(DDIM(), levels, start(torch.float64))
    found = path(DPMPlusPlus(order=1), levels, start(torch.float64))
    torch.testing.assert_close(found, expected)


def test_ddim_with_all_its_noise_is_ancestral(process):
    levels = Ancestral().levels(process, 40)
    expected = path(Ancestral(), levels, start(torch.float64))
    found = path(DDIM(eta=1.0), levels, start(torch.float64))
    torch.testing.assert_close(found, expected)


def test_ddpm_is_the_chain_of_the_forward_process(process):
    """With the posterior that `p_sample` uses."""
    x = expected = start()
    noise = Recorded()
    levels = DDPM().levels(process, 1000)
    for t in reversed(range(990, 1000)):
        x_start = mixture(expected, process.noise_level(t)).x_start
        steps = torch.full((len(x),), t)
        mean, _, log_variance = process.q_posterior(x_start, expected, steps)
        expected = mean + (log_variance / 2).exp() * noise(mean)
    found = path(DDPM(), levels[:11], x)
    assert_same(found[-1], expected, 2e-5)


def test_langevin_step_is_that_of_the_paper(process):
    level, after = (process.noise_level(t) for t in (500, 400))
    noise = Recorded()
    (found,) = path(DDIM(langevin_delta=0.1), [level, after], start())
    (z,) = path(DDIM(), [level, after], start())
    step = math.sqrt(0.1) * after.sigma * noise(z)
    expected = z - 0.05 * after.sigma * mixture(z, after).noise + step
    torch.testing.assert_close(found, expected)


# What every sampler does


def counting(calls):
    def denoise(x, level):
        calls.append(level)
        return mixture(x, level)

    return denoise


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_call_of_the_network_per_step(name):
    process = ForwardProcess(cosine_beta_schedule(20))
    sampler = make_sampler(name)
    levels = sampler.levels(process, 20 if name == "ddpm" else 7)
    calls = []
    found = path(sampler, levels, start(), counting(calls))
    # Heun's corrects each step but the last by a call at its end
    once = [levels[0], *(level for level in levels[1:-1] for _ in range(2))]
    assert calls == (once if name == "heun" else levels[:-1])
    assert len(found) == len(levels) - 1
    assert levels[-1] == CLEAN
    assert levels[0] == process.noise_level(19)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_last_step_is_the_prediction_itself(name):
    process = ForwardProcess(cosine_beta_schedule(20))
    sampler = make_sampler(name)
    found = path(sampler, sampler.levels(process, 20), start())
    expected = mixture(found[-2], process.noise_level(0)).x_start
    assert torch.equal(found[-1], expected)


@pytest.mark.parametrize("sampler", [Ancestral(langevin_delta=0.1), DDIM(langevin_delta=0.1)])
def test_a_langevin_step_follows_all_steps_but_the_last(process, sampler):
    levels = sampler.levels(process, 5)
    calls = []
    path(sampler, levels, start(), counting(calls))
    assert calls == [levels[0], *(level for level in levels[1:-1] for _ in range(2))]


@pytest.mark.parametrize("sampler", [DDIM(), DPMPlusPlus()])
def test_deterministic_samplers_draw_no_noise(process, sampler):
    def none(like):
        raise AssertionError

    assert torch.isfinite(path(sampler, sampler.levels(process, 5), start(), noise=none)[-1]).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_initial_noise_is_not_changed(name):
    process = ForwardProcess(cosine_beta_schedule(10))
    sampler, x = make_sampler(name), start()
    path(sampler, sampler.levels(process, 10), x, noise=draw_noise)
    assert torch.equal(x, start())


def test_given_time_steps_become_levels(process):
    levels = DDIM().levels(process, [800, 300.5, 20])
    assert [level.t for level in levels] == [800, 300.5, 20, -1]
    assert levels[1] == process.noise_level(300.5)


def test_a_custom_sampler_only_needs_run(process, videos):
    class Euler(Sampler):
        def run(self, x, levels, denoise, noise):
            for t, s in pairwise(levels):
                prediction = denoise(x, t)
                x = s.alpha * prediction.x_start + s.sigma * prediction.noise
                yield x

    levels = Euler().levels(process, 20)
    expected = moments(DDIM(), levels, videos)
    torch.testing.assert_close(moments(Euler(), levels, videos), expected)


# Names and errors


def test_samplers_by_name():
    kinds = {"ddpm": DDPM, "ancestral": Ancestral, "ddim": DDIM, "euler": Euler, "heun": Heun}
    assert {name: type(make_sampler(name)) for name in kinds} == kinds
    assert [make_sampler(name).sde for name in ("dpm++", "dpm++sde")] == [False, True]
    assert [make_sampler(name).default_steps for name in SAMPLERS] == [
        None,
        256,
        50,
        50,
        18,
        20,
        20,
    ]


def test_samplers_by_object():
    sampler = DDIM(eta=0.3)
    assert make_sampler(sampler) is sampler
    wrapped = make_sampler(diffusers.DDIMScheduler())
    assert isinstance(wrapped, DiffusersScheduler)


def test_unknown_name():
    message = (
        "sample: sampler must be one of ddpm, ancestral, ddim, euler, heun, dpm++, dpm++sde, got "
        "'rk4'; choose one"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        make_sampler("rk4")


@pytest.mark.parametrize("thing", [5, DDIM, diffusers.DDIMScheduler])
def test_samplers_of_another_type(thing):
    message = (
        "sample: sampler must be a name (ddpm, ancestral, ddim, euler, heun, dpm++, dpm++sde), a "
        f"Sampler or a scheduler of diffusers, got {thing!r}; pass e.g. sampler='ddim'"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        make_sampler(thing)


@pytest.mark.parametrize("steps", [50, [999, 0]])
def test_ddpm_takes_all_steps(process, steps):
    message = (
        f"DDPM: steps must be all 1000 of the model, got {steps}; for others pass "
        "sampler='ancestral', 'ddim' or 'dpm++'"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        DDPM().levels(process, steps)


@pytest.mark.parametrize("kind", [Ancestral, DDIM])
def test_options_are_in_range(kind):
    name = "gamma" if kind is Ancestral else "eta"
    for option, most, values in (
        (name, "1", (-0.1, 1.1, math.nan)),
        ("langevin_delta", "inf", (-1,)),
    ):
        for value in values:
            message = f"{kind.__name__}: {option} must be from 0 to {most}, got {value}"
            with pytest.raises(ValueError, match=exactly(message)):
                kind(**{option: value})


def test_order_of_dpm_plus_plus():
    message = "DPMPlusPlus: order must be 1 or 2, got 3; leave it out for 2"
    with pytest.raises(ValueError, match=exactly(message)):
        DPMPlusPlus(order=3)


@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
def test_levels_end_clean(spacing):
    process = ForwardProcess(cosine_beta_schedule(50))
    levels = Sampler(spacing=spacing).levels(process, 5)
    assert len(levels) == 6
    assert levels[0] == process.noise_level(49)
    assert levels[-1] == CLEAN
    log_snrs = [level.log_snr for level in levels]
    assert log_snrs == sorted(log_snrs)


def test_a_subclass_need_not_call_its_parent():
    class Own(Sampler):
        def __init__(self):
            self.strength = 1

    process = ForwardProcess(cosine_beta_schedule(50))
    assert Own().levels(process, 5) == Sampler().levels(process, 5)


WHOLE = ("trailing", "leading", "linspace", "spectrum")
NUMBERS = (2, 3, 7, 10, 16, 20, 27, 48, 50, 64, 99, 256, 501, 1000)


# Other implementations


@pytest.mark.parametrize("steps", NUMBERS)
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_whole_steps_are_those_of_diffusers(process, spacing, steps):
    scheduler = diffusers.DDIMScheduler(1000, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    # 48 steps are a case of its own: of 1000 - 3 * (1000 / 48) it computes 937.5, less a little
    expected = scheduler.timesteps.tolist()
    assert spaced_times(process, steps, spacing) == pytest.approx(expected, abs=steps == 48)


@pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")
@pytest.mark.parametrize("steps", [2, 7, 20])
def test_karras_is_that_of_diffusers(process, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, trained_betas=process.betas.tolist(), use_karras_sigmas=True
    )
    scheduler.set_timesteps(steps)
    levels = process.noise_levels(spaced_times(process, steps, "karras"))
    ratios = [level.sigma / level.alpha for level in levels]
    assert ratios == pytest.approx(scheduler.sigmas[:-1].tolist(), rel=1e-3)


# What each is meant to be


def test_trailing_is_the_papers_grid(process):
    """From 1 to 0 in even steps, of which time 1 is the last step of training."""
    assert [t + 1 for t in spaced_times(process, 8)] == [1000, 875, 750, 625, 500, 375, 250, 125]


def test_log_snr_falls_evenly(process):
    levels = process.noise_levels(spaced_times(process, 30, "log_snr"))
    steps = np.diff([level.log_snr for level in levels])
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)


@pytest.mark.parametrize("schedule", [*BETA_SCHEDULES, *CONTINUOUS])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1, 2, 30, 1000])
def test_times_fall_from_the_noisiest_step(schedule, spacing, total):
    process = ForwardProcess(make_schedule(schedule, total), total)
    for steps in {1, 2, total // 3, total - 1, total} - {0}:
        times = spaced_times(process, min(steps, total), spacing)
        assert len(times) == min(steps, total)
        assert all(t > s for t, s in pairwise(times))
        assert times[-1] >= 0
        assert times[0] <= total - 1
        if spacing != "leading":
            assert times[0] == total - 1
        if spacing in WHOLE:
            assert all(t == int(t) for t in times)
        if steps >= total and spacing in WHOLE:
            assert times == list(reversed(range(total)))


def test_spectrum_has_the_density_that_it_says(process):
    """Between the ends, and but for the rounding to whole steps."""
    low, high = 1 / SPREAD, SPREAD
    levels = process.noise_levels(spaced_times(process, 40, "spectrum"))
    ratios = np.array([level.sigma / level.alpha for level in levels])[3:-3]
    middle = np.sqrt(ratios[1:] * ratios[:-1])
    density = ((low + middle**2) * (high + middle**2)) ** -0.5
    shares = -np.diff(ratios) * density
    np.testing.assert_allclose(shares, shares.mean(), rtol=0.07)


@pytest.mark.parametrize("kind", [DDIM, DPMPlusPlus])
@pytest.mark.parametrize("steps", [10, 20])
def test_spectrum_serves_components_of_all_sizes(process, kind, steps):
    """The deviation of what is small or large is less wrong than with even steps."""

    def worst(spacing):
        sampler = kind(spacing=spacing)
        levels = sampler.levels(process, steps)
        errors = []
        for variance in (0.05, 0.25, 1.0, 5.0, 20.0):
            videos = GaussianVideos(variance, 0.0, mean=(0.0,))
            _, covariance = moments(sampler, levels, videos)
            errors.append(abs(math.log(covariance.item() / variance)))
        return max(errors)

    assert worst("spectrum") < 0.8 * worst("trailing")


@pytest.mark.parametrize(("variance", "correlation"), [(0.25, 0.8), (1.0, 0.95), (0.05, 0.8)])
@pytest.mark.parametrize("steps", [10, 20])
def test_spectrum_helps_dpm_plus_plus(process, variance, correlation, steps):
    videos = GaussianVideos(variance, correlation)
    errors = []
    for spacing in ("spectrum", "trailing"):
        sampler = DPMPlusPlus(spacing=spacing)
        _, covariance = moments(sampler, sampler.levels(process, steps), videos)
        errors.append(relative_error(covariance, videos.covariance))
    assert errors[0] < 0.95 * errors[1]


# The user's own


@pytest.mark.parametrize(
    "steps", [[999, 500.5, 0], (999, 500.5, 0), torch.tensor([999, 500.5, 0]), np.r_[999, 500.5, 0]]
)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_given_times(process, steps, spacing):
    assert spaced_times(process, steps, spacing) == [999, 500.5, 0]


def test_numbers_of_numpy(process):
    assert spaced_times(process, np.int64(4)) == spaced_times(process, 4)


# Errors


@pytest.mark.parametrize("steps", [0, -3, 1001])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_too_few_or_too_many_steps(process, steps, spacing):
    message = f"sample: steps must be a whole number from 1 to the model's 1000, got {steps}"
    with pytest.raises(ValueError, match=exactly(message)):
        spaced_times(process, steps, spacing)


@pytest.mark.parametrize(
    "times", [[], [1000, 0], [5, -1], [5, 5], [3, 4], [math.nan], [5, math.nan]]
)
def test_times_out_of_range_or_order(process, times):
    message = (
        "sample: steps must be a whole number, or a list of falling times from 999 to 0, got "
        f"{times}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        spaced_times(process, times)


@pytest.mark.parametrize("steps", [2.5, "20", None, [[1, 2]], torch.tensor(3), [9, "few"]])
def test_neither_a_number_nor_times(process, steps):
    message = f"a list of falling times from 999 to 0, got {steps!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        spaced_times(process, steps)


def test_unknown_spacing():
    message = (
        "sample: spacing must be one of trailing, leading, linspace, log_snr, karras, spectrum, "
        "got 'even'; choose one, or pass a list of time steps"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        DDIM(spacing="even")
