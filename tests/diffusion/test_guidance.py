"""Guidance by known values, and the denoiser that applies it."""

import copy
import re

import pytest
import torch
from torch import nn

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, relative_error
from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import (
    RECONSTRUCTION_WEIGHT,
    Denoiser,
    Guidance,
    KnownRegion,
    Measurement,
    expand_mask,
    switched_off,
    times,
)
from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    NoiseLevel,
    cosine_beta_schedule,
)

SHAPE = (4, 2, 3, 5, 6)
LEVEL = NoiseLevel(1.0, 0.8, 0.6)
UNITS = {
    "unit": {},
    "own": {"auto_normalize": False},
    "kelvin": {"value_range": (250.0, 310.0)},
    "channels": {"value_range": ((0.0, -1.0), (10.0, 1.0))},
}


def model(**config):
    config = {"image_size": (5, 6), "num_frames": 3, "timesteps": 4, "channels": 2} | config
    return GaussianDiffusion(nn.Identity(), **config)


class Blind(nn.Module):
    """Predicts a black video for any input."""

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        return torch.zeros_like(x)


def blind_model():
    config = {"image_size": (5, 6), "num_frames": 3, "timesteps": 4, "channels": 2}
    return GaussianDiffusion(Blind(), objective="pred_x_start", **config)


def in_units(diffusion, shape=SHAPE):
    """Clips anywhere in the range of the model."""
    return diffusion.to_data_range(torch.rand(shape) * 2 - 1)


def exactly(message):
    return f"^{re.escape(message)}$"


# Masks


@pytest.mark.parametrize(
    ("shape", "full"),
    [
        ((3,), (1, 1, 3, 1, 1)),
        ((5, 6), (1, 1, 1, 5, 6)),
        ((3, 5, 6), (1, 1, 3, 5, 6)),
        ((1, 5, 6), (1, 1, 1, 5, 6)),
        ((4, 1, 3, 1, 1), (4, 1, 3, 1, 1)),
        (SHAPE, SHAPE),
    ],
)
def test_forms_of_a_mask(shape, full):
    mask = torch.rand(shape) > 0.5
    expanded = expand_mask("mask", mask, SHAPE)
    assert expanded.shape == full
    assert torch.equal(expanded.flatten(), mask.flatten())


@pytest.mark.parametrize("shape", [(), (2,), (6, 5), (2, 5, 6), (2, 3, 5, 6), (4, 2, 3, 5, 5)])
def test_masks_that_do_not_fit(shape):
    message = (
        "KnownRegion: mask must have the shape (f,), (h, w), (f, h, w) or (b, c, f, h, w), or 1 "
        f"for an axis along which it is the same, for videos of {SHAPE}, got {shape}; cut, resize "
        "or reshape it"
    )
    known = KnownRegion(torch.rand(SHAPE), torch.ones(shape, dtype=torch.bool))
    with pytest.raises(ValueError, match=exactly(message)):
        known.prepare(model(), SHAPE)


def test_a_mask_of_too_many_axes():
    with pytest.raises(ValueError, match=r"got \(1, 1, 1, 1, 1, 1\); cut, resize"):
        expand_mask("mask", torch.ones(1, 1, 1, 1, 1, 1, dtype=torch.bool), SHAPE)


@pytest.mark.parametrize("mask", [torch.ones(5, 6), torch.ones(5, 6).byte(), [True], None])
def test_masks_that_are_not_boolean(mask):
    got = mask.dtype if torch.is_tensor(mask) else type(mask).__name__
    message = (
        "KnownRegion: mask must be a boolean tensor, true where the video is known, got "
        f"{got}; compare it, as in mask > 0.5"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        KnownRegion(torch.rand(SHAPE), mask)


# A known part


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("mask_shape", [(3,), (5, 6), (4, 1, 3, 5, 6)])
def test_known_values_are_inserted(units, rows, mask_shape):
    torch.manual_seed(0)
    diffusion = model(**UNITS[units])
    video, mask = in_units(diffusion, (rows, *SHAPE[1:])), torch.rand(mask_shape) > 0.5
    full = expand_mask("mask", mask, SHAPE).expand(SHAPE)
    known = KnownRegion(video, mask).prepare(diffusion, SHAPE)
    x, noise = torch.randn(2, *SHAPE)
    inside = diffusion.to_model_range(video).expand(SHAPE)
    # the prediction
    settled = known.settle(x)
    assert torch.equal(settled[full], inside[full])
    assert torch.equal(settled[~full], x[~full])
    # the noisy video
    noisy = known.replace(x, LEVEL, lambda like: noise)
    torch.testing.assert_close(noisy[full], (0.8 * inside + 0.6 * noise)[full])
    assert torch.equal(noisy[~full], x[~full])
    assert torch.equal(known.replace(x, CLEAN, torch.randn_like), settled)
    # the error
    error = torch.where(full, x - inside, 0.0).square().sum(dim=(1, 2, 3, 4))
    torch.testing.assert_close(known.squared_error(x), RECONSTRUCTION_WEIGHT * error)
    heavier = KnownRegion(video, mask, weight=7).prepare(diffusion, SHAPE)
    torch.testing.assert_close(heavier.squared_error(x), 7 * error)


@pytest.mark.parametrize("units", ["unit", "own", "kelvin", "channels"])
def test_uint8_videos_are_read_as_training_clips(units):
    diffusion = model(**UNITS[units])
    diffusion._range_is_known = True  # bytes need not be in the model's range
    video = torch.randint(0, 256, SHAPE, dtype=torch.uint8)
    known = KnownRegion(video, torch.ones(3, dtype=torch.bool)).prepare(diffusion, SHAPE)
    torch.testing.assert_close(known.settle(torch.zeros(SHAPE)), diffusion.to_model_range(video))


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_unknown_values_are_ignored(units, value):
    # nor does it look as if the clips were in another range, which would be a warning
    torch.manual_seed(0)
    diffusion = model(**UNITS[units])
    video, mask = in_units(diffusion), torch.rand(SHAPE) > 0.5
    spoilt = video.masked_fill(~mask, value)
    x = torch.randn(SHAPE, requires_grad=True)
    results = []
    for given in (video, spoilt):
        known = KnownRegion(given, mask).prepare(diffusion, SHAPE)
        noisy = known.replace(x, LEVEL, lambda like: torch.ones_like(like))
        loss = known.squared_error(x).sum() + known.settle(x).sum() + noisy.sum()
        results.append((known.settle(x), noisy, *torch.autograd.grad(loss, x)))
    for plain, other in zip(*results, strict=True):
        assert other.isfinite().all()
        assert torch.equal(plain, other)


def test_unknown_uint8_values_give_no_warning():
    video = torch.full(SHAPE, 255, dtype=torch.uint8)
    video[:, :, 0] = 10
    mask = torch.tensor([True, False, False])
    known = KnownRegion(video, mask).prepare(model(value_range=(0, 20)), SHAPE)
    assert (known.settle(torch.ones(SHAPE))[:, :, 0] == 0).all()


def test_noise_is_drawn_for_all_values():
    calls = []

    def noise(like):
        calls.append(like.shape)
        return torch.zeros_like(like)

    known = KnownRegion(torch.rand(SHAPE), torch.tensor([True, False, False]))
    known.prepare(model(), SHAPE).replace(torch.randn(SHAPE), LEVEL, noise)
    assert calls == [SHAPE]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("mask_shape", [(3,), (4, 1, 1, 5, 6)])
def test_rows_of_a_batch(rows, mask_shape):
    known = KnownRegion(torch.rand(rows, *SHAPE[1:]), torch.rand(mask_shape) > 0.5)
    known = known.prepare(model(), SHAPE)
    x = torch.randn(SHAPE)
    parts = [slice(0, 1), slice(1, 3), slice(3, 4)]
    for call in (known.squared_error, known.settle):
        name = call.__name__
        split = torch.cat([getattr(known.rows(part), name)(x[part]) for part in parts])
        assert torch.equal(split, call(x))


@pytest.mark.parametrize("units", UNITS)
def test_guidance_has_a_gradient_in_inference_mode(units):
    diffusion, x = model(**UNITS[units]), torch.randn(SHAPE)
    video = in_units(diffusion)
    gradients = []
    for is_on in (False, True):
        with torch.inference_mode(is_on):
            # what was made there, too, is no hindrance
            known = KnownRegion(video + 0, torch.arange(3) < 2).prepare(diffusion, SHAPE)
            part = known.rows(slice(1, 4))
            with torch.inference_mode(False):
                z = x[1:].clone().requires_grad_()
                gradients += torch.autograd.grad(part.squared_error(z).sum(), z)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_known_values_need_no_gradient():
    video = torch.rand(SHAPE, requires_grad=True)
    known = KnownRegion(video, torch.arange(3) < 2).prepare(model(), SHAPE)
    assert not known.settle(torch.zeros(SHAPE)).requires_grad


def test_it_can_be_used_again():
    # prepare() gives another object, in other units
    video = torch.rand(1, *SHAPE[1:])
    known = KnownRegion(video, torch.tensor([True, False, False]))
    before = copy.deepcopy(known.__dict__)
    for _ in range(2):
        ready = known.prepare(model(), SHAPE)
        assert ready is not known
        assert ready.rows(slice(0, 1)) is not ready
        torch.testing.assert_close(ready.video[:, :, 0], video[:, :, 0] * 2 - 1)
    assert before.keys() == known.__dict__.keys()
    assert known.video is video
    assert torch.equal(known.mask, before["mask"])


@pytest.mark.parametrize(
    ("rows", "mask_shape", "expected"),
    [(1, (3,), None), (4, (3,), 4), (1, (4, 1, 3, 1, 1), 4), (1, (1, 1, 3, 1, 1), None)],
)
def test_the_number_of_videos(rows, mask_shape, expected):
    mask = torch.ones(mask_shape, dtype=torch.bool)
    assert KnownRegion(torch.rand(rows, *SHAPE[1:]), mask).num_videos == expected


# Sampling, where all that is right is known

VIDEOS = GaussianVideos()
FIRST_TWO = torch.arange(6) < 2


def perfect():
    network = PerfectNetwork(VIDEOS, ForwardProcess(cosine_beta_schedule(1000)))
    return GaussianDiffusion(network, image_size=32, num_frames=6, auto_normalize=False)


def draw_given(guidance, **options):
    """4,096 samples of a pixel, `(n, f)`."""
    options = {"sampler": "ancestral", "steps": 64, "seed": 0, "progress": False} | options
    samples = perfect().sample(batch_size=4, guidance=guidance, **options)
    return samples.movedim(2, -1).reshape(-1, 6).double()


def deviating(deviations):
    """A video whose first pixels' frames differ so from their means."""
    frames = VIDEOS.mean.clone()
    frames[: len(deviations)] += torch.tensor(deviations)
    return frames.float().view(1, 1, 6, 1, 1).expand(1, 1, 6, 32, 32)


@pytest.mark.parametrize(
    ("weight", "error", "width"), [(0, 0.154, 1.1), (1, 0.104, 1.01), (2, 0.061, 0.93)]
)
def test_guidance_reduces_the_error_of_the_rest(weight, error, width):
    # the paper's criticism of replacement is that its error is not small, and stays so
    video = deviating([0.5, 0.5])
    samples = draw_given(KnownRegion(video, FIRST_TWO, weight))
    assert (samples[:, :2] == video[0, 0, :2, 0, 0]).all()
    mean, covariance = VIDEOS.given_first(video[0, 0, :2, 0, 0])
    found = (samples[:, 2:].mean(dim=0) - mean).square().mean().sqrt()
    assert found == pytest.approx(error, abs=0.015)
    found = torch.cov(samples[:, 2:].T)
    assert found.trace() / covariance.trace() == pytest.approx(width, abs=0.05)
    assert relative_error(found, covariance) < (0.1 if weight else 0.3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "dpm++sde"])
def test_every_sampler_is_guided(sampler):
    video = deviating([0.5, 0.5])
    mean, _ = VIDEOS.given_first(video[0, 0, :2, 0, 0])
    errors = []
    for weight in (0, 2):
        steps = {} if sampler == "ddpm" else {"steps": 40}
        known = KnownRegion(video[..., :8, :8], FIRST_TWO, weight)
        samples = draw_given(known, sampler=sampler, image_size=8, **(steps or {"steps": None}))
        errors.append((samples[:, 2:].mean(dim=0) - mean).square().mean().sqrt())
    assert errors[1] < 0.75 * errors[0]


def test_several_kinds_of_guidance_at_once():
    # the first frame, and the mean of the last two
    video = deviating([0.5])
    y = torch.tensor([0.8]).view(1, 1, 1, 1).expand(1, 1, 32, 32)
    first = KnownRegion(video, torch.arange(6) < 1, weight=2.0)
    last = Measurement(y, lambda videos: videos[:, :, 4:].mean(dim=2), weight=4.0)
    what = torch.zeros(2, 6, dtype=torch.float64)
    what[0, 0], what[1, 4:] = 1, 0.5
    known = torch.tensor([video[0, 0, 0, 0, 0], 0.8]).double() - what @ VIDEOS.mean
    covariance = VIDEOS.covariance
    gain = torch.linalg.solve(what @ covariance @ what.T, what @ covariance).T
    expected = VIDEOS.mean + gain @ known
    errors = []
    for guidance in (first, last, [first, last]):
        samples = draw_given(guidance)
        errors.append((samples.mean(dim=0) - expected).square().mean().sqrt().item())
    assert (samples[:, 0] == video[0, 0, 0, 0, 0]).all()
    assert errors[2] < 0.06
    assert errors[2] < 0.4 * min(errors[:2])


def test_splitting_the_batch_changes_nothing():
    torch.manual_seed(0)
    videos = torch.randn(4, 1, 6, 32, 32)
    first = KnownRegion(videos, torch.rand(4, 1, 6, 1, 1) > 0.5)
    last = Measurement(torch.randn(4, 1, 32, 32), lambda videos: videos[:, :, -1])
    options = {"steps": 4, "seed": 7, "guidance": [first, last], "progress": False}
    whole = perfect().sample(**options)
    torch.testing.assert_close(perfect().sample(max_batch=3, **options), whole)
    # as many videos as it is about
    assert len(whole) == 4


# One's own


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++", "dpm++sde"])
def test_samplers_continue_from_replaced_values(sampler):
    class Shifted(Guidance):
        def replace(self, x_t, level, noise):
            return x_t + 100 if level.t == 3 else x_t

    drawn = {}
    for guidance in ((), Shifted()):
        steps = drawn.setdefault(guidance, [])
        blind_model().sample(
            sampler=sampler,
            steps=[3, 2],
            batch_size=2,
            seed=0,
            progress=False,
            guidance=guidance,
            callback=lambda step, steps=steps: steps.append(step.x_t),
        )
    plain, shifted = (steps[0] for steps in drawn.values())
    # a network that sees nothing predicts the same, so that the rest is what is carried on
    assert (shifted - plain).min() > 0.5


def test_the_base_class_does_nothing():
    x, guidance = torch.randn(SHAPE), Guidance()
    assert guidance.prepare(model(), SHAPE) is guidance
    assert guidance.rows(slice(0, 1)) is guidance
    assert guidance.replace(x, LEVEL, torch.randn_like) is x
    assert guidance.settle(x) is x
    assert guidance.weight == 0
    assert guidance.num_videos is None


def test_a_weight_without_an_error():
    class Half(Guidance):
        weight = 2.0

    message = (
        "Half: squared_error must be defined where weight is not 0, got none and weight 2; define "
        "it, or set weight to 0"
    )
    with pytest.raises(NotImplementedError, match=exactly(message)):
        Half().squared_error(torch.randn(SHAPE))


# Mistakes


@pytest.mark.parametrize(
    ("video", "got"),
    [
        (torch.rand(SHAPE[1:]), "(2, 3, 5, 6); move its axes, cut or resize it"),
        (torch.rand(SHAPE).numpy(), "ndarray; move its axes, cut or resize it"),
        (torch.zeros(SHAPE, dtype=torch.long), "torch.int64; convert it with .float()"),
    ],
)
def test_videos_of_another_kind(video, got):
    message = (
        "KnownRegion: video must be a tensor of shape (b, c, f, h, w), floating-point or uint8, "
        f"got {got}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        KnownRegion(video, torch.ones(3, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(3, 2, 3, 5, 6), (4, 2, 2, 5, 6), (1, 2, 3, 6, 5)])
def test_videos_of_another_shape(shape):
    expected = (shape[0] if shape[0] == 1 else 4, *SHAPE[1:])
    message = f"tensor of shape {expected}, floating-point or uint8, got {shape}; move"
    known = KnownRegion(torch.rand(shape), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape(message)):
        known.prepare(model(), SHAPE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_known_values_that_are_not_finite(value):
    message = (
        "KnownRegion: known values must be finite, got NaN or infinity where the mask is true; "
        "take them out of the mask, or, if the model has drawn them, use weights from before it "
        "diverged or a smaller weight of the guidance"
    )
    video = torch.rand(SHAPE)
    video[2, 0, 0, 1, 1] = value
    known = KnownRegion(video, torch.tensor([True, False, False]))
    with pytest.raises(ValueError, match=exactly(message)):
        known.prepare(model(auto_normalize=False), SHAPE)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_negative_or_infinite(weight):
    message = (
        f"KnownRegion: weight must be a number, 0 or greater, got {weight!r}; 0 is without "
        f"correction, {RECONSTRUCTION_WEIGHT:g} is common"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        KnownRegion(torch.rand(SHAPE), torch.ones(3, dtype=torch.bool), weight)


NOISY = NoiseLevel(t=3, alpha=0.6, sigma=0.8)
SMALL = (2, 1, 3, 4, 4)


class Linear(nn.Module):
    """Predicts a multiple of what it sees."""

    def __init__(self, gain):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.received = []

    def forward(self, x_t, t):
        self.received.append((t, torch.is_grad_enabled()))
        return self.gain * x_t


class Near(Guidance):
    """Everything is known to be about 0.5."""

    def __init__(self, weight):
        self.weight = weight

    def squared_error(self, x_start):
        return self.weight * ((x_start - 0.5) ** 2).flatten(1).sum(1)


class Marks(Guidance):
    """Changes what each method gets."""

    def replace(self, x_t, level, noise):
        return x_t + noise(x_t)

    def settle(self, x_start):
        return x_start.index_fill(2, torch.tensor([0]), 9.0)


def clamp(x):
    return x.clamp(-1, 1)


def denoiser(network, clip=clamp, guidance=()):
    def predict(x_t, level):
        return network(x_t, times(level, x_t))

    return Denoiser(predict, clip, guidance, torch.ones_like, network)


def test_video_and_noise_add_up_to_the_noisy_video():
    x_t = torch.randn(SMALL)
    with torch.no_grad():
        found = denoiser(Linear(3.0))(x_t, NOISY)
    torch.testing.assert_close(found.x_start, (3 * x_t).clamp(-1, 1))
    torch.testing.assert_close(0.6 * found.x_start + 0.8 * found.noise, x_t)


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_reconstruction_guidance_is_equation_7(weight):
    x_t = torch.randn(SMALL)
    network = Linear(1.5)
    with torch.no_grad():
        found = denoiser(network, clip=None, guidance=[Near(weight)])(x_t, NOISY)
    # x_hat - (w alpha / 2) d/dz sum (x_hat - 0.5)^2, with d x_hat / d z = 1.5
    expected = 1.5 * x_t - weight * 0.6 / 2 * 2 * (1.5 * x_t - 0.5) * 1.5
    torch.testing.assert_close(found.x_start, expected)
    assert network.received[0][1]
    assert network.gain.requires_grad
    assert network.gain.grad is None
    assert not found.x_start.requires_grad


def test_several_corrections_add_up():
    x_t = torch.randn(SMALL)
    with torch.no_grad():
        both = denoiser(Linear(1.5), None, [Near(0.5), Near(1.5)])(x_t, NOISY)
        once = denoiser(Linear(1.5), None, [Near(2.0)])(x_t, NOISY)
    torch.testing.assert_close(both.x_start, once.x_start)


def test_a_prediction_far_outside_its_range_is_still_corrected():
    # clipped it is 1, and the clip's own gradient would be nothing
    x_t = torch.full(SMALL, 100.0)
    with torch.no_grad():
        found = denoiser(Linear(1.0), clamp, [Near(1.0)])(x_t, NOISY)
    torch.testing.assert_close(found.x_start, torch.full(SMALL, 1 - 0.6 * 0.5))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_inference_mode_changes_nothing(weight):
    denoise, found = denoiser(Linear(1.5), clamp, [Near(weight)]), []
    for is_on in (False, True):
        with torch.inference_mode(is_on), torch.no_grad():
            found.append(denoise(torch.linspace(-2, 2, 96).view(SMALL), NOISY))
    assert all(torch.equal(*both) for both in zip(*found, strict=True))
    assert found[1].x_start.is_inference()


def test_without_a_weight_there_is_no_gradient():
    network = Linear(1.0)
    with torch.no_grad():
        found = denoiser(network, clamp, [Marks()])(torch.zeros(SMALL), NOISY)
    assert not network.received[0][1]
    # what was replaced, and then what was settled
    assert (found.x_start[:, :, 0] == 9).all()
    assert (found.x_start[:, :, 1:] == 1).all()
    torch.testing.assert_close(0.6 * found.x_start + 0.8 * found.noise, torch.ones(SMALL))


def test_time_steps_are_whole_where_they_can_be():
    x = torch.zeros(SMALL)
    assert times(NOISY, x).tolist() == [3, 3]
    assert times(NOISY, x).dtype == torch.long
    between = times(NoiseLevel(2.5, 0.6, 0.8), x)
    assert between.tolist() == [2.5, 2.5]
    assert between.dtype == x.dtype


def test_flags_are_restored_after_an_error():
    network = nn.Linear(2, 2)
    network.bias.requires_grad_(False)

    def fails():
        with switched_off(network.parameters(), "requires_grad"):
            assert not any(weight.requires_grad for weight in network.parameters())
            raise KeyError("of the network")

    with pytest.raises(KeyError):
        fails()
    assert network.weight.requires_grad
    assert not network.bias.requires_grad


# Mistakes


class Own(Guidance):
    """Guidance with an error of a given form."""

    weight = 1.0

    def __init__(self, squared_error):
        self.squared_error = squared_error


@pytest.mark.parametrize(
    "squared_error",
    [
        lambda x: 0.5,
        lambda x: x.square().sum(),
        lambda x: x.square(),
        lambda x: x.flatten(1).sum(1) * 1j,
        lambda x: x.detach().flatten(1).sum(1),
    ],
)
def test_squared_errors_of_another_shape_or_without_gradient(squared_error):
    message = (
        "Own: squared_error must give one differentiable real number per video, shape (2,), got "
    )
    # also next to a correct one
    guidance = [Near(1.0), Own(squared_error)]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        denoiser(Linear(1.5), guidance=guidance)(torch.randn(SMALL), NOISY)


def test_a_network_without_a_gradient():
    class Blind(Linear):
        def forward(self, x_t, t):
            return super().forward(x_t.detach(), t)

    network = Blind(1.5)
    message = "and compute it, and the network's output, without detach or no_grad"
    with pytest.raises(ValueError, match=message):
        denoiser(network, guidance=[Near(1.0)])(torch.randn(SMALL), NOISY)
    assert network.gain.requires_grad
    # without a weight it works
    denoiser(network, guidance=[Near(0.0)])(torch.randn(SMALL), NOISY)
