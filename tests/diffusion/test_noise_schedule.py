"""The forward process against its definition, and against the reference's numbers."""

import math
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.diffusion.noise_schedule import (
    ForwardProcess,
    cosine_beta_schedule,
    draw_noise,
    extract,
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


# The schedule


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_variances_are_positive_and_below_one(steps):
    betas = cosine_beta_schedule(steps)
    assert betas.shape == (steps,)
    assert betas.dtype == torch.float64
    assert (betas > 0).all()
    assert (betas <= 0.9999).all()
    assert (betas.diff() > 0).all()


def test_the_clips_share_falls_as_a_cosine():
    steps, s = 100, 0.008
    kept = (1 - cosine_beta_schedule(steps, s)).cumprod(0)

    def cosine(progress):
        return math.cos((progress + s) / (1 + s) * math.pi / 2) ** 2

    for step in (0, 10, 50, 98):
        expected = cosine((step + 1) / steps) / cosine(0)
        assert kept[step] == pytest.approx(expected, rel=1e-9)


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
