"""The spacing of steps, against diffusers and against what each is meant to be."""

import math
import re
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, moments, relative_error
from video_diffusion_pytorch.diffusion.noise_schedule import (
    ForwardProcess,
    cosine_beta_schedule,
    make_betas,
)
from video_diffusion_pytorch.diffusion.samplers import (
    DDIM,
    SPACINGS,
    SPREAD,
    DPMPlusPlus,
    spaced_times,
)

WHOLE = ("trailing", "leading", "linspace", "spectrum")
NUMBERS = (2, 3, 7, 10, 16, 20, 27, 48, 50, 64, 99, 256, 501, 1000)


@pytest.fixture(scope="module")
def process():
    return ForwardProcess(cosine_beta_schedule(1000))


def exactly(message):
    return f"^{re.escape(message)}$"


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


@pytest.mark.parametrize("schedule", ["cosine", "linear", "sigmoid", "continuous_cosine"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("total", [1, 2, 30, 1000])
def test_times_fall_from_the_noisiest_step(schedule, spacing, total):
    is_continuous = schedule == "continuous_cosine"
    process = ForwardProcess(make_betas(schedule, total), is_continuous)
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
    message = (
        f"sample: steps must be from 1 to the model's 1000, got {steps}; pass such a number, or a "
        "list of time steps"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        spaced_times(process, steps, spacing)


@pytest.mark.parametrize(
    "times", [[], [1000, 0], [5, -1], [5, 5], [3, 4], [math.nan], [5, math.nan]]
)
def test_times_out_of_range_or_order(process, times):
    message = (
        "sample: a list of steps must hold falling times from 999 to 0, got "
        f"{[float(t) for t in times]}; sort them, and leave out others"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        spaced_times(process, times)


@pytest.mark.parametrize("steps", [2.5, "few", None, [[1, 2]]])
def test_neither_a_number_nor_times(process, steps):
    message = (
        f"sample: steps must be a whole number of steps, or a list of time steps, got {steps!r}; "
        "pass e.g. steps=50"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        spaced_times(process, steps)


@pytest.mark.parametrize("steps", [5, [5, 4]])
def test_unknown_spacing(process, steps):
    message = (
        "sample: spacing must be one of trailing, leading, linspace, log_snr, karras, spectrum, "
        "got 'even'; choose one, or pass a list of time steps"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        spaced_times(process, steps, "even")
