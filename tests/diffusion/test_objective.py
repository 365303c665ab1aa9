"""Targets and weights of the loss, from their definitions."""

import pytest
import torch
import torch.nn.functional as F

from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, cosine_beta_schedule
from video_diffusion_pytorch.diffusion.objective import (
    LOSSES,
    OBJECTIVES,
    distance,
    min_snr_weight,
    target_of,
    x_start_of,
)

SHAPE = (4, 2, 3, 5, 5)


@pytest.fixture(scope="module")
def process():
    return ForwardProcess(cosine_beta_schedule(40))


@pytest.fixture
def batch(process):
    torch.manual_seed(0)
    x_start, noise = torch.randn(2, *SHAPE)
    t = torch.tensor([0, 5, 20, 35])
    return x_start, t, noise, process.q_sample(x_start, t, noise)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_perfect_prediction_is_the_clip(process, batch, objective):
    x_start, t, noise, x_t = batch
    target = target_of(objective, process, x_start, t, noise)
    found = x_start_of(objective, process, target, x_t, t)
    torch.testing.assert_close(found, x_start, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_min_snr_weights_the_squared_error_of_the_clip(process, batch, objective):
    # for any objective, an error of x_start must cost the same: min(snr, gamma) of its square
    x_start, t, noise, x_t = batch
    snr = process.log_snr(t).exp()
    off = x_start + 0.1 * torch.randn(SHAPE)
    off_noise = process.predict_noise_from_start(x_t, t, off)
    wrong = target_of(objective, process, off, t, off_noise)
    right = target_of(objective, process, x_start, t, noise)
    weight = min_snr_weight(objective, process.log_snr(t), gamma=5.0)
    cost = ((wrong - right) ** 2).flatten(1).mean(1) * weight
    in_clip = ((off - x_start) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(cost, snr.clamp(max=5) * in_clip, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("log_snr", [-200.0, -20.0, 0.0, 20.0])
def test_weights_are_finite_at_any_noise_level(objective, log_snr):
    weight = min_snr_weight(objective, torch.tensor([log_snr]), gamma=5.0)
    assert weight.isfinite().all()
    assert (weight >= 0).all()


@pytest.mark.parametrize(
    ("loss_type", "expected"), [("l1", 2.0), ("l2", 4.0), ("huber", 1.5)], ids=lambda x: str(x)
)
def test_distances(loss_type, expected):
    output, target = torch.full(SHAPE, 2.0), torch.zeros(SHAPE)
    assert distance(loss_type, output, target).item() == expected
    weight = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert distance(loss_type, output, target, weight).item() == pytest.approx(1.5 * expected)


def test_huber_is_a_square_near_zero():
    small = torch.full(SHAPE, 0.2)
    assert distance("huber", small, torch.zeros(SHAPE)).item() == pytest.approx(0.02)
    assert LOSSES["huber"] is F.smooth_l1_loss
