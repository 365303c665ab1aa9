"""Guidance by measurements of videos."""

import copy
import re

import pytest
import torch
from torch import nn

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, relative_error
from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import RECONSTRUCTION_WEIGHT, Measurement
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, cosine_beta_schedule

SHAPE = (4, 2, 3, 5, 6)
PER_CHANNEL = {"value_range": ((0.0, -1.0), (10.0, 1.0))}


def model(**config):
    config = {"image_size": (5, 6), "num_frames": 3, "timesteps": 4, "channels": 2} | config
    return GaussianDiffusion(nn.Identity(), **config)


def mean_over_time(videos):
    return videos.mean(dim=2)


def exactly(message):
    return f"^{re.escape(message)}$"


# The error


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize(
    "config", [{}, {"auto_normalize": False}, {"value_range": (250, 310)}, PER_CHANNEL]
)
def test_the_error_is_as_if_in_the_range_of_the_model(config, rows):
    # the operator sees the user's units, and the mean over time is linear
    torch.manual_seed(0)
    diffusion = model(**config)
    x, target = torch.randn(2, *SHAPE)
    y = mean_over_time(diffusion.to_data_range(target))[:rows]
    measured = Measurement(y, mean_over_time).prepare(diffusion, SHAPE)
    error = mean_over_time(x) - mean_over_time(target)[:rows]
    expected = RECONSTRUCTION_WEIGHT * error.square().sum(dim=(1, 2, 3))
    torch.testing.assert_close(measured.squared_error(x), expected, rtol=1e-3, atol=1e-3)
    heavier = Measurement(y, mean_over_time, weight=6).prepare(diffusion, SHAPE)
    torch.testing.assert_close(heavier.squared_error(x), 3 * measured.squared_error(x))


def test_the_operator_sees_the_units_of_the_user():
    seen = []

    def brightness(videos):
        seen.append(videos)
        return videos.mean(dim=(1, 2, 3, 4))

    measured = Measurement(torch.zeros(1), brightness).prepare(model(value_range=(0, 8)), SHAPE)
    measured.squared_error(torch.full(SHAPE, -0.5))
    assert torch.equal(seen[0], torch.full(SHAPE, 2.0))


@pytest.mark.parametrize("scale", [0.1, torch.tensor([0.1, 2.0]), torch.rand(4, 2) + 0.1])
def test_a_custom_scale(scale):
    def level(videos):
        return videos.mean(dim=(2, 3, 4))

    torch.manual_seed(0)
    diffusion, y, x = model(**PER_CHANNEL), torch.rand(4, 2), torch.randn(SHAPE)
    measured = Measurement(y, level, weight=1, scale=scale).prepare(diffusion, SHAPE)
    error = (y - level(diffusion.to_data_range(x))) / scale
    expected = error.square().sum(dim=1)
    torch.testing.assert_close(measured.squared_error(x), expected)
    split = [measured.rows(part).squared_error(x[part]) for part in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(torch.cat(split), expected)


@pytest.mark.parametrize("rows", [1, 4])
def test_rows_of_a_batch(rows):
    torch.manual_seed(0)
    measured = Measurement(torch.rand(rows, 2, 5, 6), mean_over_time).prepare(model(), SHAPE)
    x = torch.randn(SHAPE)
    split = [measured.rows(part).squared_error(x[part]) for part in (slice(0, 3), slice(3, 4))]
    torch.testing.assert_close(torch.cat(split), measured.squared_error(x))


def test_guidance_has_a_gradient_in_inference_mode():
    y, x = torch.rand(4, 2, 5, 6), torch.randn(SHAPE)
    scale = torch.rand(4, 2, 5, 6) + 0.5
    gradients = []
    for is_on in (False, True):
        with torch.inference_mode(is_on):
            # what was made there, too, is no hindrance
            measured = Measurement(y + 0, mean_over_time, scale=scale + 0)
            ready = measured.prepare(model(**PER_CHANNEL), SHAPE)
            with torch.inference_mode(False):
                z = x.clone().requires_grad_()
                gradients += torch.autograd.grad(ready.squared_error(z).sum(), z)
    assert torch.equal(*gradients)


def test_measurements_may_be_integers():
    measured = Measurement(torch.tensor([3]), lambda videos: videos.sum(dim=(1, 2, 3, 4)), 1.0)
    error = measured.prepare(model(auto_normalize=False), SHAPE).squared_error(torch.zeros(SHAPE))
    assert error.tolist() == [9.0] * 4


def test_a_measurement_inserts_no_values():
    measured = Measurement(torch.rand(1, 2, 5, 6), mean_over_time).prepare(model(), SHAPE)
    x = torch.randn(SHAPE)
    assert measured.settle(x) is x


def test_it_can_be_used_again():
    y = torch.rand(4, 2, 5, 6)
    measured = Measurement(y, mean_over_time, scale=2.0)
    before = copy.copy(measured.__dict__)
    ready = measured.prepare(model(), SHAPE)
    assert ready is not measured
    assert ready.rows(slice(0, 1)) is not ready
    assert measured.__dict__ == before
    assert measured.num_videos == 4
    assert Measurement(y[:1], mean_over_time).num_videos is None


# Sampling, where all that is right is known


def test_samples_agree_with_the_measurement():
    # of frames of which the mean over time is known
    videos = GaussianVideos()
    network = PerfectNetwork(videos, ForwardProcess(cosine_beta_schedule(1000)))
    diffusion = GaussianDiffusion(network, image_size=32, num_frames=6, auto_normalize=False)
    y, what = torch.tensor(0.6), torch.full((6,), 1 / 6, dtype=torch.float64)
    gain = videos.covariance @ what / (what @ videos.covariance @ what)
    expected = videos.mean + gain * (y.double() - what @ videos.mean)
    left = videos.covariance - gain[:, None] * (videos.covariance @ what)
    errors = []
    # a mean of 6 is 6 times less noisy than one
    for weight in (6.0, 12.0):
        measured = Measurement(y.expand(1, 1, 32, 32), mean_over_time, weight)
        samples = diffusion.sample(
            batch_size=4,
            guidance=measured,
            sampler="ancestral",
            steps=64,
            seed=0,
            progress=False,
        )
        samples = samples.movedim(2, -1).reshape(-1, 6).double()
        errors.append((samples.mean(dim=0) - expected).abs().max().item())
        assert relative_error(torch.cov(samples.T), left) < 0.2
        assert (samples @ what).std() < 0.1
    assert errors[1] < errors[0] < 0.15


# Mistakes


@pytest.mark.parametrize(
    ("y", "got"),
    [
        ([1.0], "list"),
        (torch.tensor(1.0), "torch.float32 of shape ()"),
        (torch.ones(1, 2, dtype=torch.complex64), "torch.complex64 of shape (1, 2)"),
    ],
)
def test_measurements_of_another_kind(y, got):
    message = (
        "Measurement: y must be a tensor of real numbers with one row per video, or one for all, "
        f"got {got}; use torch.stack, or torch.view_as_real for complex numbers"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        Measurement(y, mean_over_time)


def test_complex_measurements_as_real_ones():
    x = torch.rand(SHAPE)
    spectrum = Measurement(
        torch.view_as_real(torch.fft.fft2(x)),
        lambda videos: torch.view_as_real(torch.fft.fft2(videos)),
    )
    ready = spectrum.prepare(model(auto_normalize=False), SHAPE)
    assert ready.squared_error(x).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), torch.tensor([1.0, 0.0])])
def test_scales_outside_their_range(scale):
    got = scale if isinstance(scale, float) else "torch.float32 of shape (2,)"
    message = (
        f"Measurement: scale must be positive and finite, got {got}; give the size of an error "
        "that counts as much as one of 1 in a video in [-1, 1]"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        Measurement(torch.rand(1, 2), mean_over_time, scale=scale)


@pytest.mark.parametrize("y", [torch.rand(4), torch.rand(1, 5)])
def test_a_scale_is_required_where_channels_differ(y):
    message = (
        "Measurement: scale is needed where the channels' ranges differ and axis 1 of y is not the "
        f"2 channels, got None and y of {tuple(y.shape)}; give the scale of an error in the units "
        "of y"
    )
    measured = Measurement(y, mean_over_time)
    with pytest.raises(ValueError, match=exactly(message)):
        measured.prepare(model(**PER_CHANNEL), SHAPE)


def test_values_that_were_not_measured():
    message = (
        "Measurement: y must be finite, got NaN or infinity; let the operator leave out what was "
        "not measured"
    )
    y = torch.full((1, 2, 5, 6), torch.nan)
    with pytest.raises(ValueError, match=exactly(message)):
        Measurement(y, mean_over_time).prepare(model(), SHAPE)


@pytest.mark.parametrize(
    ("operator", "got"),
    [
        (lambda videos: videos.mean(dim=3), "torch.float32 of shape (4, 2, 3, 6)"),
        (lambda videos: mean_over_time(videos) * 1j, "torch.complex64 of shape (4, 2, 5, 6)"),
        (lambda videos: None, "NoneType"),
        # mixes videos
        (lambda videos: videos.mean(dim=(0, 2))[None], "torch.float32 of shape (1, 2, 5, 6)"),
    ],
)
def test_an_operator_that_gives_something_else(operator, got):
    message = (
        "Measurement: operator must give what y is, real numbers of the shape (4, 2, 5, 6), got "
        f"{got} for videos of {SHAPE}; change it, or y"
    )
    ready = Measurement(torch.rand(1, 2, 5, 6), operator).prepare(model(), SHAPE)
    with pytest.raises(ValueError, match=exactly(message)):
        ready.squared_error(torch.rand(SHAPE))
