"""Noise schedules and the forward process: their definitions, and the reference's numbers."""

import math
import re
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.diffusion.continuous_schedule import CosineSchedule
from video_diffusion_pytorch.diffusion.noise_schedule import (
    BETA_SCHEDULES,
    CLEAN,
    ForwardProcess,
    cosine_beta_schedule,
    draw_noise,
    extract,
    linear_beta_schedule,
    make_betas,
    sigmoid_beta_schedule,
)

SHAPE = (4, 2, 3, 5, 5)

# The schedule


@pytest.mark.parametrize("name", BETA_SCHEDULES)
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
    log_snr = CosineSchedule().log_snr(u)
    assert log_snr[0].item() == pytest.approx(20, abs=1e-9)
    assert log_snr[-1].item() == pytest.approx(-20, abs=1e-9)
    alpha = torch.sigmoid(log_snr[1:-1]).sqrt()
    torch.testing.assert_close(alpha, torch.cos(torch.pi / 2 * u[1:-1]), rtol=0, atol=1e-4)
    torch.testing.assert_close(CosineSchedule().time_of(log_snr), u, rtol=0, atol=1e-9)
    # also in the numbers that networks compute with
    torch.testing.assert_close(
        CosineSchedule().log_snr(u.float()), log_snr.float(), rtol=0, atol=1e-3
    )


@pytest.mark.parametrize("steps", [1, 2, 10, 50, 256, 1000])
def test_the_continuous_schedule_in_steps(steps):
    ends = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:]
    expected = CosineSchedule().log_snr(ends)
    process = ForwardProcess(CosineSchedule(), steps)
    assert all(bool(buffer.isfinite().all()) for buffer in process.buffers())
    log_snr = 2 * (process.sqrt_alphas_cumprod / process.sqrt_one_minus_alphas_cumprod).log()
    torch.testing.assert_close(log_snr, expected.float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(process.log_snr(torch.arange(steps)), log_snr, rtol=1e-5, atol=1e-4)


def test_a_custom_schedule():
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
def test_variances_outside_their_range(betas):
    with pytest.raises(ValueError, match=r"must hold timesteps = 3 variances above 0 and below"):
        make_betas(betas, 3)


@pytest.mark.parametrize("betas", [None, {"a": 0.1}, [0.1, "0.2", 0.3], [[0.1], [0.2, 0.3]]])
def test_schedules_of_another_type(betas):
    message = f"beta_schedule must be one of cosine, linear, .*, got {re.escape(repr(betas))}; cho"
    with pytest.raises(ValueError, match=message):
        make_betas(betas, 3)


@pytest.mark.parametrize("betas", [[0.9] * 50, [0.99] * 1000, [1e-17] * 5])
def test_variances_that_leave_nothing_or_all_of_a_clip(betas):
    text = "that leave a share of the clip which float32 can tell from all and from none, got "
    with pytest.raises(ValueError, match=f"{text}.* in the shape .*; give one for each step"):
        make_betas(betas, len(betas))


# Draws


def test_extract_gives_one_number_per_video():
    a = torch.arange(10.0)
    assert extract(a, torch.tensor([3, 7]), (2, 1, 4, 4)).shape == (2, 1, 1, 1)
    assert extract(a, torch.tensor([3, 7]), SHAPE).flatten().tolist() == [3, 7]


def test_noise_does_not_depend_on_the_memory_format():
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


GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("diffusion_*.pt"))


@pytest.fixture(scope="module")
def process():
    return ForwardProcess(cosine_beta_schedule(40))


def clips(dtype=torch.float32):
    return torch.randn(SHAPE, dtype=dtype), torch.tensor([0, 1, 20, 39])


# The reference's numbers


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_same_numbers_as_the_reference(path):
    record = torch.load(path, weights_only=True)
    process = ForwardProcess(cosine_beta_schedule(record["config"]["timesteps"]))
    assert dict(process.named_buffers()).keys() == record["buffers"].keys()
    for name, expected in record["buffers"].items():
        torch.testing.assert_close(
            process.get_buffer(name), expected, rtol=1e-6, atol=1e-7, msg=name
        )
    x_start, t, noise = record["x_start"], record["t"], record["noise"]
    x_t = process.q_sample(x_start, t, noise)
    for actual, key in [
        (x_t, "q_sample"),
        (process.q_mean_variance(x_start, t), "q_mean_variance"),
        (process.q_posterior(x_start, x_t, t), "q_posterior"),
        (process.predict_start_from_noise(x_t, t, noise), "predict_start_from_noise"),
    ]:
        torch.testing.assert_close(actual, record[key], rtol=1e-6, atol=1e-6, msg=key)


def test_all_records_are_there():
    assert len(RECORDED) == 3


# The buffers


def test_buffers_are_float32_and_follow_the_network_to_its_device(process):
    assert all(buffer.dtype == torch.float32 for buffer in process.buffers())
    moved = ForwardProcess(cosine_beta_schedule(3)).to("meta")
    assert all(buffer.is_meta for buffer in moved.buffers())


def test_a_single_step_has_finite_numbers():
    for name, buffer in ForwardProcess(cosine_beta_schedule(1)).named_buffers():
        assert buffer.isfinite().all(), name


# q


def test_noise_and_clip_are_recovered_from_their_mixture(process):
    x_start, t = clips()
    noise = torch.randn(SHAPE)
    x_t = process.q_sample(x_start, t, noise)
    back = process.predict_start_from_noise(x_t, t, noise)
    # at the last step hardly anything of the clip is left to tell it from
    early = t < 39
    torch.testing.assert_close(back[early], x_start[early], rtol=1e-4, atol=1e-4)
    relative = 1 / process.sqrt_alphas_cumprod[39]
    torch.testing.assert_close(back[~early], x_start[~early], rtol=0, atol=1e-6 * relative.item())


def test_q_sample_draws_what_q_mean_variance_says(process):
    x_start = torch.full((20_000, 1), 0.7)
    for step in (0, 20, 39):
        t = torch.full((20_000,), step)
        drawn = process.q_sample(x_start, t)
        mean, variance, log_variance = process.q_mean_variance(x_start, t)
        assert drawn.mean() == pytest.approx(
            mean[0].item(), abs=4 * (variance[0].item() / 2e4) ** 0.5
        )
        assert drawn.var() == pytest.approx(variance[0].item(), rel=0.05)
        torch.testing.assert_close(log_variance, variance.log(), rtol=1e-4, atol=1e-4)


def test_steps_add_up_to_the_closed_form():
    betas = cosine_beta_schedule(40)
    process = ForwardProcess(betas).double()
    share, variance = 1.0, 0.0
    for step, beta in enumerate(betas.tolist()):
        share *= math.sqrt(1 - beta)
        variance = variance * (1 - beta) + beta
        mean, closed, _ = process.q_mean_variance(
            torch.ones(1, 1, dtype=torch.float64), torch.tensor([step])
        )
        assert mean.item() == pytest.approx(share, rel=1e-5)
        assert closed.item() == pytest.approx(variance, rel=1e-5, abs=1e-7)


def test_the_posterior_is_bayes_rule():
    # q(x_{t-1} | x_t, x_0) ∝ q(x_t | x_{t-1}) q(x_{t-1} | x_0), all of them normal
    betas = cosine_beta_schedule(40)
    process = ForwardProcess(betas)
    kept = (1 - betas).cumprod(0)
    x_start, x_t = torch.randn(2, 39, 6, dtype=torch.float64)
    t = torch.arange(1, 40)
    beta, before = betas[1:, None], kept[:-1, None]
    precision_of_step, precision_of_prior = (1 - beta) / beta, 1 / (1 - before)
    variance = 1 / (precision_of_step + precision_of_prior)
    mean = variance * (
        precision_of_step * x_t / (1 - beta).sqrt() + precision_of_prior * before.sqrt() * x_start
    )
    posterior = process.q_posterior(x_start, x_t, t)
    torch.testing.assert_close(posterior[0], mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(posterior[1].double(), variance, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(posterior[2].double(), variance.log(), rtol=1e-5, atol=1e-5)


def test_the_first_step_gives_the_clip_itself(process):
    x_start, x_t = torch.randn(2, 3, 6)
    mean, variance, log_variance = process.q_posterior(x_start, x_t, torch.zeros(3).long())
    torch.testing.assert_close(mean, x_start)
    assert (variance == 0).all()
    assert log_variance.isfinite().all()


# Noise levels, and time between two steps


@pytest.fixture(scope="module")
def continuous():
    return ForwardProcess(CosineSchedule(), 100)


def test_the_noise_level_of_a_step_is_that_of_its_buffers(process):
    for t in (0, 1, 20, 39):
        level = process.noise_level(t)
        assert level.t == t
        assert level.alpha == pytest.approx(process.sqrt_alphas_cumprod[t].item(), rel=1e-6)
        noise = process.sqrt_one_minus_alphas_cumprod[t].item()
        assert level.sigma == pytest.approx(noise, rel=1e-6)
        assert level.alpha**2 + level.sigma**2 == pytest.approx(1, abs=1e-14)
        log_snr = math.log(level.alpha**2 / level.sigma**2)
        assert level.log_snr == pytest.approx(log_snr, rel=1e-9)
        assert process.log_snr(torch.tensor([t])).item() == pytest.approx(log_snr, rel=1e-5)


def test_minus_one_is_the_clean_end(process, continuous):
    assert process.noise_level(-1) == continuous.noise_level(-1) == CLEAN
    assert CLEAN.log_snr == math.inf


def test_between_two_steps_the_log_snr_is_between_theirs(process):
    first, between, second = process.noise_levels([7, 7.25, 8])
    expected = 0.75 * first.log_snr + 0.25 * second.log_snr
    assert between.log_snr == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("t", [-0.5, 39.01, 40, -2, math.nan])
def test_time_steps_beyond_the_schedule_are_refused(process, t):
    with pytest.raises(ValueError, match=r"time steps must be from 0 to 39, or -1 for the end, go"):
        process.noise_level(t)


@pytest.mark.parametrize("name", ["process", "continuous"])
def test_time_and_log_snr_are_each_others_inverse(name, request):
    schedule = request.getfixturevalue(name)
    last = schedule.num_timesteps - 1
    for t in (0.0, 0.3, 5.0, 17.8, last - 0.5, float(last)):
        log_snr = schedule.noise_level(t).log_snr
        assert schedule.time_of(log_snr) == pytest.approx(t, abs=1e-6)
    assert schedule.time_of(100.0) == 0
    assert schedule.time_of(-100.0) == pytest.approx(last)


def test_a_whole_step_has_the_same_noise_level_for_any_type_of_t(process, continuous):
    t = torch.tensor([0, 20, 39])
    for schedule in (process, continuous):
        for whole, real in zip(
            schedule.signal_and_noise(t, SHAPE),
            schedule.signal_and_noise(t.float(), SHAPE),
            strict=True,
        ):
            assert whole.shape == (3, 1, 1, 1, 1)
            torch.testing.assert_close(whole, real, rtol=1e-5, atol=1e-7)


def test_continuous_time_is_drawn_between_the_steps(process, continuous):
    torch.manual_seed(0)
    assert process.draw_times(500).unique().tolist() == list(range(40))
    drawn = continuous.draw_times(20_000)
    assert -1 <= drawn.min() < -0.9
    assert 98.9 < drawn.max() <= 99
    assert drawn.mean().item() == pytest.approx(49, abs=0.8)
    assert continuous.log_snr(drawn).abs().max() <= 20.001


def test_times_can_be_drawn_from_a_generator(process, continuous):
    for chain in (process, continuous):
        state = torch.get_rng_state()
        first, again, other = (
            chain.draw_times(50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        torch.manual_seed(1)
        assert torch.equal(chain.draw_times(50), first)


# Predictions


@pytest.mark.parametrize("t", [torch.tensor([0, 1, 20, 30]), torch.tensor([0.5, 3.25, 20, 30.9])])
def test_clip_noise_and_v_follow_from_each_other(process, t):
    x_start, _ = clips()
    noise = torch.randn(SHAPE)
    x_t = process.q_sample(x_start, t, noise)
    v = process.predict_v(x_start, t, noise)
    alpha, sigma = process.signal_and_noise(t, SHAPE)
    torch.testing.assert_close(v, alpha * noise - sigma * x_start)
    for actual, expected in [
        (process.predict_start_from_v(x_t, t, v), x_start),
        (process.predict_start_from_noise(x_t, t, noise), x_start),
        (process.predict_noise_from_start(x_t, t, x_start), noise),
    ]:
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
