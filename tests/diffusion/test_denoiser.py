"""What samplers ask: the prediction, clipped, corrected by what is known, and settled."""

import re

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.diffusion.guidance import (
    Denoiser,
    Guidance,
    times,
    without_weight_gradients,
)
from video_diffusion_pytorch.diffusion.noise_schedule import NoiseLevel

LEVEL = NoiseLevel(t=3, alpha=0.6, sigma=0.8)
SHAPE = (2, 1, 3, 4, 4)


class Linear(nn.Module):
    """Predicts a multiple of what it sees."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.told = []

    def forward(self, x_t, t):
        self.told.append((t, torch.is_grad_enabled()))
        return self.gain * x_t


class Near(Guidance):
    """Everything is known to be about 0.5."""

    def __init__(self, weight):
        self.weight = weight

    def squared_error(self, x_start):
        return self.weight * ((x_start - 0.5) ** 2).flatten(1).sum(1)


class Marks(Guidance):
    """Leaves a trace wherever it is asked."""

    def replace(self, x_t, level, noise):
        return x_t + noise(x_t)

    def settle(self, x_start):
        return x_start.index_fill(2, torch.tensor([0]), 9.0)


def clamp(x):
    return x.clamp(-1, 1)


def denoiser(network, clip=clamp, guidance=()):
    return Denoiser(network, clip, guidance, torch.ones_like, network)


def test_video_and_noise_add_up_to_what_was_seen():
    x_t = torch.randn(SHAPE)
    with torch.no_grad():
        found = denoiser(Linear(3.0))(x_t, LEVEL)
    torch.testing.assert_close(found.x_start, (3 * x_t).clamp(-1, 1))
    torch.testing.assert_close(0.6 * found.x_start + 0.8 * found.noise, x_t)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_reconstruction_guidance_is_equation_7(weight):
    x_t = torch.randn(SHAPE)
    network = Linear(1.5)
    with torch.no_grad():
        found = denoiser(network, clip=None, guidance=[Near(weight)])(x_t, LEVEL)
    # x_hat - (w alpha / 2) d/dz sum (x_hat - 0.5)^2, with d x_hat / d z = 1.5
    expected = 1.5 * x_t - weight * 0.6 / 2 * 2 * (1.5 * x_t - 0.5) * 1.5
    torch.testing.assert_close(found.x_start, expected)
    assert network.told[0][1]
    assert network.gain.requires_grad
    assert network.gain.grad is None
    assert not found.x_start.requires_grad


def test_several_corrections_add_up():
    x_t = torch.randn(SHAPE)
    with torch.no_grad():
        both = denoiser(Linear(1.5), None, [Near(0.5), Near(1.5)])(x_t, LEVEL)
        once = denoiser(Linear(1.5), None, [Near(2.0)])(x_t, LEVEL)
    torch.testing.assert_close(both.x_start, once.x_start)


def test_a_prediction_far_outside_its_range_is_corrected_all_the_same():
    # clipped it is 1, and the clip's own gradient would be nothing
    x_t = torch.full(SHAPE, 100.0)
    with torch.no_grad():
        found = denoiser(Linear(1.0), clamp, [Near(1.0)])(x_t, LEVEL)
    torch.testing.assert_close(found.x_start, torch.full(SHAPE, 1 - 0.6 * 0.5))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_inference_mode_changes_nothing(weight):
    denoise, found = denoiser(Linear(1.5), clamp, [Near(weight)]), []
    for is_on in (False, True):
        with torch.inference_mode(is_on), torch.no_grad():
            found.append(denoise(torch.linspace(-2, 2, 96).view(SHAPE), LEVEL))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert found[1].x_start.is_inference()


def test_without_a_weight_there_is_no_gradient():
    network = Linear(1.0)
    with torch.no_grad():
        found = denoiser(network, clamp, [Marks()])(torch.zeros(SHAPE), LEVEL)
    assert not network.told[0][1]
    # what was replaced, and then what was settled
    assert (found.x_start[:, :, 0] == 9).all()
    assert (found.x_start[:, :, 1:] == 1).all()
    torch.testing.assert_close(0.6 * found.x_start + 0.8 * found.noise, torch.ones(SHAPE))


def test_time_steps_are_whole_where_they_can_be():
    x = torch.zeros(SHAPE)
    assert times(LEVEL, x).tolist() == [3, 3]
    assert times(LEVEL, x).dtype == torch.long
    between = times(NoiseLevel(2.5, 0.6, 0.8), x)
    assert between.tolist() == [2.5, 2.5]
    assert between.dtype == x.dtype


def test_weights_get_their_gradients_back_even_after_an_error():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)

    def fails():
        with without_weight_gradients(network):
            assert not any(weight.requires_grad for weight in network.parameters())
            raise KeyError("of the network")

    with pytest.raises(KeyError):
        fails()
    assert network.weight.requires_grad
    assert not network.bias.requires_grad


# Mistakes


def exactly(message):
    return f"^{re.escape(message)}$"


class Own(Guidance):
    """A user's, who got it wrong."""

    weight = 1.0

    def __init__(self, squared_error):
        self.squared_error = squared_error


@pytest.mark.parametrize(
    ("squared_error", "got"),
    [
        (lambda x: 0.5, "float"),
        (lambda x: x.square().sum(), "torch.float32 of ()"),
        (lambda x: x.square(), f"torch.float32 of {SHAPE}"),
        (lambda x: x.flatten(1).sum(1) * 1j, "torch.complex64 of (2,)"),
    ],
)
def test_errors_that_are_none(squared_error, got):
    message = (
        "Own: squared_error must give a tensor of real numbers, one per video, of the shape (2,), "
        f"got {got}; sum over all axes but the first, as in error.flatten(1).sum(dim=1)"
    )
    with pytest.raises(TypeError, match=exactly(message)):
        denoiser(Linear(1.5), guidance=[Own(squared_error)])(torch.randn(SHAPE), LEVEL)


def test_errors_without_a_gradient():
    message = (
        "Own: squared_error must be differentiable, got a result that has no gradient in x_start; "
        "compute it from x_start with operations of torch, without rounding, detach or no_grad"
    )
    # beside one that has it, too
    guidance = [Near(1.0), Own(lambda x: x.detach().flatten(1).sum(1))]
    with pytest.raises(ValueError, match=exactly(message)):
        denoiser(Linear(1.5), guidance=guidance)(torch.randn(SHAPE), LEVEL)


def test_a_network_without_a_gradient():
    class Blind(Linear):
        def forward(self, x_t, t):
            return super().forward(x_t.detach(), t)

    message = (
        "sample: the network must be differentiable, as guidance by Near with a weight needs it, "
        "got an output that has no gradient in its input; compute it without detach or no_grad, or "
        "set weight to 0"
    )
    network = Blind(1.5)
    with pytest.raises(ValueError, match=exactly(message)):
        denoiser(network, guidance=[Near(1.0)])(torch.randn(SHAPE), LEVEL)
    assert network.gain.requires_grad
    # without a weight it will do
    denoiser(network, guidance=[Near(0.0)])(torch.randn(SHAPE), LEVEL)
