"""The noise schedules against their definitions."""

import math
import re

import pytest
import torch

from video_diffusion_pytorch.diffusion.noise_schedule import (
    SCHEDULES,
    ForwardProcess,
    continuous_beta_schedule,
    continuous_log_snr,
    continuous_time_of,
    cosine_beta_schedule,
    draw_noise,
    extract,
    linear_beta_schedule,
    make_betas,
    sigmoid_beta_schedule,
)

SHAPE = (4, 2, 3, 5, 5)

# The schedule


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_variances_are_positive_and_below_one(steps, name):
    betas = make_betas(name, steps)
    assert betas.shape == (steps,)
    assert betas.dtype == torch.float64
    assert (betas > 0).all()
    # the continuous schedule's is the log-SNR's own limit
    assert (betas < 1).all() if name == "continuous_cosine" else (betas <= 0.9999).all()
    # many steps too many for a linear schedule are all at the limit
    assert (betas.diff() >= 0).all()
    assert name == "linear" or (betas.diff() > 0).all()


def test_the_clips_share_falls_as_a_cosine():
    steps, s = 100, 0.008
    kept = (1 - cosine_beta_schedule(steps, s)).cumprod(0)

    def cosine(progress):
        return math.cos((progress + s) / (1 + s) * math.pi / 2) ** 2

    for step in (0, 10, 50, 98):
        expected = cosine((step + 1) / steps) / cosine(0)
        assert kept[step] == pytest.approx(expected, rel=1e-9)


def test_the_linear_schedule_is_that_of_ho_et_al():
    betas = linear_beta_schedule(1000)
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    fewer = (1 - linear_beta_schedule(250)).log().sum()
    assert fewer.item() == pytest.approx((1 - betas).log().sum().item(), rel=0.03)


def test_the_sigmoid_schedule_is_that_of_jabri_et_al():
    kept = (1 - sigmoid_beta_schedule(50)).cumprod(0)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    for step in (0, 10, 25, 40):
        expected = (sigmoid(3) - sigmoid(-3 + 6 * (step + 1) / 50)) / (sigmoid(3) - sigmoid(-3))
        assert kept[step].item() == pytest.approx(expected, rel=1e-9)


def test_the_continuous_schedule_is_a_cosine_between_its_limits():
    u = torch.tensor([0, 0.01, 0.25, 0.5, 0.75, 0.99, 1], dtype=torch.float64)
    log_snr = continuous_log_snr(u)
    assert log_snr[0].item() == pytest.approx(20, abs=1e-9)
    assert log_snr[-1].item() == pytest.approx(-20, abs=1e-9)
    alpha = torch.sigmoid(log_snr[1:-1]).sqrt()
    torch.testing.assert_close(alpha, torch.cos(torch.pi / 2 * u[1:-1]), rtol=0, atol=1e-4)
    for time, value in zip(u.tolist(), log_snr.tolist(), strict=True):
        assert continuous_time_of(value) == pytest.approx(time, abs=1e-9)
    # also in the numbers that networks compute with
    torch.testing.assert_close(continuous_log_snr(u.float()), log_snr.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 256, 1000])
def test_the_continuous_schedule_in_steps(steps):
    ends = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:]
    expected = continuous_log_snr(ends)
    kept = (1 - continuous_beta_schedule(steps)).cumprod(0)
    torch.testing.assert_close(torch.logit(kept), expected, rtol=0, atol=1e-6)
    # also what models compute with
    process = ForwardProcess(continuous_beta_schedule(steps), is_continuous=True)
    assert all(bool(buffer.isfinite().all()) for buffer in process.buffers())
    log_snr = 2 * (process.sqrt_alphas_cumprod / process.sqrt_one_minus_alphas_cumprod).log()
    torch.testing.assert_close(log_snr, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.log_snr(torch.arange(steps)), log_snr, rtol=1e-5, atol=1e-4)


def test_a_schedule_of_ones_own():
    own = [0.1, 0.2, 0.5]
    for given in (own, torch.tensor(own)):
        assert make_betas(given, 3).tolist() == pytest.approx(own, rel=1e-6)


def test_unknown_schedules_are_named():
    with pytest.raises(ValueError, match=r"beta_schedule must be one of cosine, linear, sigm"):
        make_betas("cosin", 10)


@pytest.mark.parametrize(
    "betas",
    [
        [0.1, 0.2],
        [0.1, 0.2, 1.0],
        [0.0, 0.1, 0.2],
        [0.1, float("nan"), 0.2],
        [],
        [0.1] * 4,
        [[0.1], [0.2], [0.3]],
        0.1,
    ],
)
def test_variances_that_are_none(betas):
    with pytest.raises(ValueError, match=r"must hold timesteps = 3 variances above 0 and below"):
        make_betas(betas, 3)


@pytest.mark.parametrize("betas", [None, {"a": 0.1}, [0.1, "0.2", 0.3], [[0.1], [0.2, 0.3]]])
def test_what_is_no_schedule_at_all(betas):
    message = f"beta_schedule must be one of cosine, linear, .*, got {re.escape(repr(betas))}; cho"
    with pytest.raises(ValueError, match=message):
        make_betas(betas, 3)


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([0.9] * 50, "got 0.1 after the first step and 1e-50 after the last; give smaller varian"),
        ([0.99] * 1000, "got 0.01 after the first step and 0 after the last; give smaller varia"),
        ([1e-17] * 5, "got 1 after the first step and 1 after the last; give larger variances"),
    ],
)
def test_variances_that_leave_nothing_or_all(betas, message):
    text = (
        "GaussianDiffusion: beta_schedule must leave a share of the clip that float32 can tell "
        f"from all and from none, {message}"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        make_betas(betas, len(betas))


# Draws


def test_extract_gives_one_number_per_video():
    a = torch.arange(10.0)
    assert extract(a, torch.tensor([3, 7]), (2, 1, 4, 4)).shape == (2, 1, 1, 1)
    assert extract(a, torch.tensor([3, 7]), SHAPE).flatten().tolist() == [3, 7]


def test_noise_does_not_depend_on_the_format_in_memory():
    x = torch.zeros(SHAPE)
    torch.manual_seed(3)
    expected = torch.randn(SHAPE)
    for like in (x, x.contiguous(memory_format=torch.channels_last_3d), x.double()):
        torch.manual_seed(3)
        noise = draw_noise(like)
        assert noise.dtype == like.dtype
        assert noise.is_contiguous()
        if like.dtype == torch.float32:
            assert torch.equal(noise, expected)
