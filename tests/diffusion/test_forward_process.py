"""The forward process against its definition, and against the reference's numbers."""

import math
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    continuous_beta_schedule,
    cosine_beta_schedule,
)

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("diffusion_*.pt"))
SHAPE = (4, 2, 3, 5, 5)


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


def test_noise_and_clip_are_told_from_their_mixture(process):
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
    return ForwardProcess(continuous_beta_schedule(100), is_continuous=True)


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


def test_a_whole_step_has_one_noise_level_whatever_the_type_of_t(process, continuous):
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


def test_times_can_be_drawn_from_a_generator_of_ones_own(process, continuous):
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
def test_clip_noise_and_v_tell_each_other(process, t):
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
