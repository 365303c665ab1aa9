"""Targets and weights of the loss, from their definitions."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

from video_diffusion_pytorch.diffusion.continuous_schedule import EDMSchedule
from video_diffusion_pytorch.diffusion.noise_schedule import (
    SCHEDULES,
    ForwardProcess,
    make_schedule,
)
from video_diffusion_pytorch.diffusion.objective import (
    LOSSES,
    OBJECTIVES,
    distance,
    min_snr_weight,
    network_input,
    target_of,
    x_start_of,
)

SHAPE = (4, 2, 3, 5, 5)


# objectives with each schedule that they may have
USUAL = ("pred_noise", "pred_v", "pred_x_start")
KINDS = [*product(USUAL, SCHEDULES)]
KINDS += [("flow", "flow"), ("edm", "edm")]
SIGMA_DATA = 0.7


def batch_of(process, t):
    torch.manual_seed(0)
    x_start, noise = torch.randn(2, *SHAPE, dtype=torch.float64)
    return x_start, noise, process.q_sample(x_start, t, noise)


@pytest.mark.parametrize(("objective", "schedule"), KINDS)
@pytest.mark.parametrize(
    "t",
    [
        torch.tensor([0, 5, 20, 35]),
        torch.tensor([0.25, 5.0, 20.5, 38.9]),
        torch.tensor([[0, 5, 20], [20, 5, 0], [1, 1, 1], [35, 2, 10]]),
        torch.tensor([[0.5, 5, 20], [20, 5, 0], [1, 1.5, 1], [35, 2, 10]]),
    ],
    ids=["whole", "real", "per frame", "real per frame"],
)
def test_predictions_are_each_others_inverse(objective, schedule, t):
    process = ForwardProcess(make_schedule(schedule, 40), 40).double()
    t = t.double() if t.is_floating_point() else t
    x_start, noise, x_t = batch_of(process, t)
    target = target_of(objective, process, x_start, t, noise, SIGMA_DATA)
    found = x_start_of(objective, process, target, x_t, t, SIGMA_DATA)
    # the buffers of whole steps were rounded to float32
    rounding = 1e-9 if t.is_floating_point() and process.is_continuous else 1e-3
    torch.testing.assert_close(found, x_start, rtol=rounding, atol=rounding)
    # one level for each frame is that of the whole clip, where they are the same
    if t.ndim == 2:
        same = t[:, :1].expand(-1, SHAPE[2])
        pairs = zip(batch_of(process, same), batch_of(process, t[:, 0]), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


def test_the_target_of_edm_is_what_its_preconditioning_leaves():
    # Karras et al. 2022, eq. 7 and 8, table 1
    process = ForwardProcess(EDMSchedule(), 40).double()
    t = torch.tensor([-0.5, 5, 20, 39], dtype=torch.float64)
    x_start, noise, x_t = batch_of(process, t)
    sigma = process.signal_and_noise(t, SHAPE)[1]
    assert (sigma[0].item(), sigma[-1].item()) == (pytest.approx(0.0027, rel=0.01), 80)
    c_skip = SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    c_in = 1 / (sigma**2 + SIGMA_DATA**2).sqrt()
    target = target_of("edm", process, x_start, t, noise, SIGMA_DATA)
    torch.testing.assert_close(target, (x_start - c_skip * x_t) / c_out, rtol=1e-9, atol=1e-9)
    seen = network_input("edm", process, x_t, t, SIGMA_DATA)
    torch.testing.assert_close(seen, c_in * x_t, rtol=1e-12, atol=0)
    # both have variance 1 for clips of this standard deviation
    wide = torch.randn(2, 10**6, dtype=torch.float64)
    clips, normal, levels = SIGMA_DATA * wide[0], wide[1], torch.tensor([20.0]).double()
    clips, normal = clips.view(1, 1, 1, 1, -1), normal.view(1, 1, 1, 1, -1)
    mixed = process.q_sample(clips, levels, normal)
    for values in (
        target_of("edm", process, clips, levels, normal, SIGMA_DATA),
        network_input("edm", process, mixed, levels, SIGMA_DATA),
    ):
        assert values.std().item() == pytest.approx(1, abs=0.01)


@pytest.fixture(params=[("cosine", name) for name in USUAL] + [("flow", "flow")], ids=str)
def kind(request):
    return request.param


def test_min_snr_weights_the_squared_error_of_the_clip(kind):
    schedule, objective = kind
    process = ForwardProcess(make_schedule(schedule, 40), 40)
    t = torch.tensor([0, 5, 20, 35])
    x_start, noise, x_t = (value.float() for value in batch_of(process, t))
    # for any objective, an error of x_start must cost the same: min(snr, gamma) of its square
    snr = process.log_snr(t).exp()
    off = x_start + 0.1 * torch.randn(SHAPE)
    off_noise = process.predict_noise_from_start(x_t, t, off)
    wrong = target_of(objective, process, off, t, off_noise)
    right = target_of(objective, process, x_start, t, noise)
    weight = min_snr_weight(objective, process.log_snr(t), gamma=5.0)
    cost = ((wrong - right) ** 2).flatten(1).mean(1) * weight
    in_clip = ((off - x_start) ** 2).flatten(1).mean(1)
    torch.testing.assert_close(cost, snr.clamp(max=5) * in_clip, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("objective", [name for name in OBJECTIVES if name != "edm"])
@pytest.mark.parametrize("log_snr", [-torch.inf, -200.0, -20.0, 0.0, 20.0, torch.inf])
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
