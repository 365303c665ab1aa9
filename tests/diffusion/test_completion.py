"""The calls that draw what is missing of videos."""

import re

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, KnownRegion
from video_diffusion_pytorch.diffusion.completion import shrink

UNITS = {
    "unit": {},
    "own": {"auto_normalize": False},
    "kelvin": {"value_range": (250.0, 310.0)},
    "channels": {"value_range": ((0.0, -1.0), (10.0, 1.0))},
}


class Smooth(nn.Module):
    """A denoiser that lets all frames look like each other; notes whether gradients are on."""

    def __init__(self):
        super().__init__()
        self.gradients = []

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        self.gradients.append(torch.is_grad_enabled())
        return x - 0.5 * x.mean(dim=2, keepdim=True) - 0.1 * x.roll(1, 2)


def model(**config):
    config = {"image_size": 4, "num_frames": 4, "timesteps": 3, "channels": 2} | config
    return GaussianDiffusion(Smooth(), **config)


def exactly(message):
    return f"^{re.escape(message)}$"


# Each gives its result, the part of it that was given, and what was given


def predict(diffusion, video, **options):
    result = diffusion.predict(video[:, :, :3], progress=False, **options)
    return result, result[:, :, :3], video[:, :, :3]


def extend(diffusion, video, **options):
    result = diffusion.extend(video, 11, progress=False, **options)
    return result, result[:, :, :5], video


def interpolate(diffusion, video, **options):
    result = diffusion.interpolate_frames(video, 2, progress=False, **options)
    return result, result[:, :, ::2], video


def inpaint(diffusion, video, **options):
    mask = torch.rand(video.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    result = diffusion.inpaint(video, mask, progress=False, **options)
    return result, result[mask], video[mask]


LENGTHS = {predict: 4, extend: 11, interpolate: 9, inpaint: 5}
NAMES = {predict: "predict", extend: "extend", interpolate: "interpolate_frames"}
NAMES[inpaint] = "inpaint"
every_call = pytest.mark.parametrize("call", LENGTHS)


# Known values


@pytest.mark.parametrize("units", UNITS)
@every_call
def test_known_values_are_returned(call, units):
    torch.manual_seed(0)
    diffusion = model(**UNITS[units])
    video = diffusion.to_data_range(torch.rand(2, 2, 5, 4, 4) * 2 - 1)
    result, given_back, given = call(diffusion, video)
    assert result.shape == (2, 2, LENGTHS[call], 4, 4)
    assert result.dtype == torch.float32
    assert torch.equal(given_back, given)
    # the rest is drawn, in the range of the model
    assert result.isfinite().all()
    if diffusion.auto_normalize:
        assert diffusion.to_model_range(result).abs().max() <= 1 + 1e-5
    assert not torch.equal(call(diffusion, video)[0], result)


@pytest.mark.parametrize("units", UNITS)
@every_call
def test_uint8_videos_are_read_as_training_clips(call, units):
    diffusion = model(**UNITS[units])
    diffusion._range_is_known = True  # bytes need not be in the range of the model
    video = torch.randint(0, 256, (2, 2, 5, 4, 4), dtype=torch.uint8)
    result, given_back, given = call(diffusion, video)
    assert result.dtype == torch.float32
    assert torch.equal(given_back, given / 255 if diffusion.value_low is None else given.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@every_call
def test_results_have_the_dtype_of_the_model(call, dtype):
    video = torch.rand(2, 2, 5, 4, 4).to(dtype).requires_grad_()
    result, given_back, given = call(model(), video)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert torch.equal(given_back, given.float())


@every_call
def test_the_given_video_is_not_changed(call):
    video = torch.rand(2, 2, 5, 4, 4)
    before = video.clone()
    call(model(), video)
    assert torch.equal(video, before)


@every_call
def test_gradients_are_taken_only_with_a_weight(call):
    for weight, expected in ((0, {False}), (1.5, {True})):
        diffusion = model()
        call(diffusion, torch.rand(2, 2, 5, 4, 4), weight=weight)
        assert set(diffusion.denoise_fn.gradients) == expected


@every_call
def test_a_seed_gives_the_same_result_in_any_batch(call):
    diffusion = model()
    video = torch.rand(3, 2, 5, 4, 4)
    # a mask that does not depend on the batch
    if call is inpaint:
        mask = torch.eye(4, dtype=torch.bool)

        def draw(video, **options):
            return diffusion.inpaint(video, mask, progress=False, **options)
    else:

        def draw(video, **options):
            return call(diffusion, video, **options)[0]

    whole = draw(video, seed=3)
    assert torch.equal(draw(video, seed=3), whole)
    torch.testing.assert_close(draw(video[:2], seed=3), whole[:2])
    torch.testing.assert_close(draw(video, seed=3, max_batch=2), whole)
    assert not torch.allclose(draw(video, seed=4), whole)


def test_any_frames_may_be_inpainted_and_unknown_ones_may_be_nan():
    video = torch.rand(1, 2, 6, 4, 4)
    mask = torch.tensor([True, False, False, True, False, True])
    spoilt = video.clone()
    spoilt[:, :, ~mask] = torch.nan
    diffusion = model()
    results = [diffusion.inpaint(one, mask, seed=0, progress=False) for one in (video, spoilt)]
    assert torch.equal(*results)
    assert torch.equal(results[0][:, :, mask], video[:, :, mask])
    assert results[0].isfinite().all()


def test_a_video_without_a_gap_is_returned():
    video, mask = torch.rand(1, 2, 6, 4, 4), torch.ones(6, dtype=torch.bool)
    diffusion = model()
    assert torch.equal(diffusion.inpaint(video, mask), video)
    assert diffusion.denoise_fn.gradients == []
    with pytest.raises(ValueError, match=r"^inpaint: weight must be a number, 0 or greater, got"):
        diffusion.inpaint(video, mask, weight=-1)


@every_call
def test_inference_mode_changes_nothing(call):
    diffusion = model(value_range=((0.0, -1.0), (10.0, 1.0)))
    results = []
    for is_on in (False, True):
        with torch.inference_mode(is_on):
            video = torch.linspace(0, 1, 320).view(2, 2, 5, 4, 4)
            results.append(call(diffusion, video, seed=0)[0])
    assert torch.equal(*results)


def test_upsampling_in_inference_mode():
    small = torch.rand(2, 2, 4, 2, 2)
    expected = model().upsample(small, frame_factor=2, seed=0, progress=False)
    with torch.inference_mode():
        result = model().upsample(small + 0, frame_factor=2, seed=0, progress=False)
    assert torch.equal(result, expected)


# Lengths and sizes


def test_predict_returns_the_requested_length():
    frames = torch.rand(1, 2, 1, 4, 4)
    assert model().predict(frames, progress=False).shape[2] == 4
    for num_frames in (2, 3, 9):
        result = model().predict(frames, num_frames, progress=False)
        assert result.shape[2] == num_frames
        assert torch.equal(result[:, :, :1], frames)


def test_another_image_size():
    video = torch.rand(1, 2, 5, 6, 8)
    for call in (predict, extend, interpolate):
        result, given_back, given = call(model(), video, image_size=(6, 8))
        assert result.shape == (1, 2, LENGTHS[call], 6, 8)
        assert torch.equal(given_back, given)
    small = torch.rand(1, 2, 4, 3, 4)
    assert model().upsample(small, (6, 8), progress=False).shape == (1, 2, 4, 6, 8)
    assert model().upsample(small[..., :2, :2], progress=False).shape == (1, 2, 4, 4, 4)


@pytest.mark.parametrize("frame_factor", [1, 2, 3])
def test_upsampling_in_time(frame_factor):
    result = model().upsample(
        torch.rand(2, 2, 5, 2, 4), frame_factor=frame_factor, progress=False, seed=0
    )
    assert result.shape == (2, 2, 4 * frame_factor + 1, 4, 4)
    assert result.isfinite().all()


# Low resolution


class Still(nn.Module):
    """The perfect denoiser of pixels that are independent, of mean 0 and variance 1."""

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0):
        # with such data the noisy videos are of variance 1, too, and x_start is alpha * x
        _, sigma = self.process.signal_and_noise(t, x.shape)
        return sigma * x


def independent_pixels(**config):
    config = {"image_size": 8, "num_frames": 4, "channels": 1, "timesteps": 200} | config
    diffusion = GaussianDiffusion(Still(), auto_normalize=False, **config)
    # not as a sub-module, which would be a cycle
    object.__setattr__(diffusion.denoise_fn, "process", diffusion)
    return diffusion


@pytest.mark.parametrize("size", [(4, 4), (2, 4), (8, 8)])
def test_the_result_shrinks_to_the_low_resolution(size):
    # the weight is per pixel of the result, so that no size is followed less than another
    diffusion = independent_pixels()
    small = shrink(torch.randn(8, 1, 12, 8, 8), size, step=2)
    with_it = {"frame_factor": 2, "seed": 0, "progress": False, "sampler": "ancestral"}
    result = diffusion.upsample(small, weight=3.0, steps=100, **with_it)
    assert result.shape == (8, 1, 11, 8, 8)
    error = (shrink(result, size, step=2) - small).square().mean() / small.square().mean()
    assert error < 0.05
    # what the low resolution leaves open has the variance of the data
    assert 0.8 < result[:, :, 1::2].var() < 1.2
    assert 0.8 < result.var() < 1.2


def test_extending_along_a_low_resolution():
    diffusion = independent_pixels()
    truth = torch.randn(8, 1, 11, 8, 8)
    small = shrink(truth, (4, 4), step=3)
    result = diffusion.extend(
        truth[:, :, :2],
        11,
        low_resolution=small,
        frame_factor=3,
        weight=3.0,
        sampler="ancestral",
        steps=100,
        seed=0,
        progress=False,
    )
    assert torch.equal(result[:, :, :2], truth[:, :, :2])
    error = (shrink(result, (4, 4), step=3) - small).square().mean(dim=(0, 1, 3, 4))
    assert error[0] < 1e-10
    assert (error < 0.05 * small.var()).all()


@pytest.mark.parametrize("value_range", [None, (-20, 20)])
def test_a_low_resolution_in_the_units_of_the_user(value_range):
    # bytes and numbers, and the scale of the error follows the range
    diffusion = model(value_range=value_range)
    small = torch.randint(0, 20, (1, 2, 4, 2, 2), dtype=torch.uint8)
    as_numbers = small / 255 if value_range is None else small.float()
    results = [diffusion.upsample(one, seed=0, progress=False) for one in (small, as_numbers)]
    assert torch.equal(*results)
    unit = model()
    in_unit_range = (as_numbers + 20) / 40 if value_range else as_numbers
    expected = unit.upsample(in_unit_range, seed=0, progress=False)
    expected = expected * 40 - 20 if value_range else expected
    torch.testing.assert_close(results[0], expected, rtol=1e-3, atol=1e-3)


# Progress


def test_a_bar_of_windows_and_those_of_their_steps(capsys):
    diffusion, video = model(), torch.rand(1, 2, 3, 4, 4)
    shown = []
    for num_frames, options in ((4, {}), (9, {}), (9, {"progress": False})):
        diffusion.extend(video, num_frames, **options)
        shown.append(capsys.readouterr().err)
    one, several, none = shown
    assert "windows" not in one
    assert one.split("\r")[-1].startswith("sampling: 100%")
    # the last of the bars for steps is overwritten by spaces
    bar, erased, last = several.split("\r")[-3:]
    assert bar.startswith("sampling")
    assert not erased.removesuffix("\x1b[A").strip()
    assert last.startswith("windows: 100%")
    assert none == ""


# Mistakes


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda model, video: model.predict(video), "predict: frames"),
        (lambda model, video: model.extend(video, 8), "extend: video"),
        (lambda model, video: model.interpolate_frames(video, 2), "interpolate_frames: video"),
        (
            lambda model, video: model.inpaint(video, torch.ones(4, 4, dtype=torch.bool)),
            "inpaint: video",
        ),
    ],
)
def test_videos_that_do_not_fit(call, name):
    for shape in ((1, 3, 2, 4, 4), (1, 2, 2, 4, 5), (1, 2, 0, 4, 4), (0, 2, 2, 4, 4), (2, 2, 4, 4)):
        message = (
            f"{name} must be a tensor of shape (b, 2, f, 4, 4), floating-point or uint8, got "
            f"{shape}; move its axes, cut or resize it"
        )
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call(model(), torch.rand(shape))


@pytest.mark.parametrize("call", ["predict", "extend"])
def test_no_frame_is_left_to_draw(call):
    for num_frames in (3, 4):
        message = f"{call}: num_frames must be more than the 4 given, got {num_frames}"
        with pytest.raises(ValueError, match=exactly(message)):
            getattr(model(), call)(torch.rand(1, 2, 4, 4, 4), num_frames)
    with pytest.raises(ValueError, match="num_frames must be more than the 5 given, got 4"):
        model().predict(torch.rand(1, 2, 5, 4, 4))


@pytest.mark.parametrize("number", [6.0, 2.5, "6", 0])
def test_numbers_that_are_not_whole(number):
    video = torch.rand(1, 2, 2, 4, 4)
    message = f" must be a whole number of at least 1, got {number!r}$"
    with pytest.raises(ValueError, match=f"^predict: num_frames{message}"):
        model().predict(video, number)
    with pytest.raises(ValueError, match=f"^extend: overlap{message}"):
        model().extend(video, 8, overlap=number)
    with pytest.raises(ValueError, match=f"^extend: frame_factor{message}"):
        model().extend(video, 8, low_resolution=video, frame_factor=number)
    with pytest.raises(ValueError, match=f"^upsample: frame_factor{message}"):
        model().upsample(video, frame_factor=number)
    with pytest.raises(ValueError, match=f"^interpolate_frames: factor{message}"):
        model().interpolate_frames(video, number)


def test_whole_numbers_of_any_kind():
    video = torch.rand(1, 2, 2, 4, 4)
    result = model().extend(video, np.int64(7), overlap=np.int32(1), progress=False)
    assert result.shape[2] == 7


@pytest.mark.parametrize(("factor", "frames"), [(1, 3), (4, 3), (2, 1)])
def test_frames_that_no_window_can_be_drawn_between(factor, frames):
    message = (
        "interpolate_frames: factor must be from 2 to 3, so that a clip of the model has two given "
        f"frames, and video have at least 2 frames, got {factor} and {frames}; interpolate twice, "
        "or with a model of longer clips"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        model().interpolate_frames(torch.rand(1, 2, frames, 4, 4), factor)


def test_a_mask_that_does_not_fit():
    video = torch.rand(1, 2, 6, 4, 4)
    message = (
        "inpaint: mask must have the shape (f,), (h, w), (f, h, w) or (b, c, f, h, w), or 1 for an "
        "axis along which it is the same, for videos of (1, 2, 6, 4, 4), got (5,); cut, resize or "
        "reshape it"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        model().inpaint(video, torch.ones(5, dtype=torch.bool))
    message = (
        "inpaint: mask must be a boolean tensor, true where the video is known, got torch.float32; "
        "compare it, as in mask > 0.5"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        model().inpaint(video, torch.ones(6))


@pytest.mark.parametrize("size", [(5, 4), (4, 5)])
def test_a_low_resolution_that_is_larger_than_the_result(size):
    message = f" must be at most 4 x 4, got {size[0]} x {size[1]}; shrink it, or pass another ima"
    small = torch.rand(1, 2, 4, *size)
    with pytest.raises(ValueError, match=f"^upsample: video{message}"):
        model().upsample(small)
    with pytest.raises(ValueError, match=f"^extend: low_resolution{message}"):
        model().extend(torch.rand(1, 2, 2, 4, 4), 4, low_resolution=small)


def test_a_low_resolution_of_another_kind():
    with pytest.raises(
        ValueError, match=r"upsample: video must be .* \(b, c, f, h, w\), .*, got list"
    ):
        model().upsample([1.0])
    with pytest.raises(ValueError, match=r"upsample: video must be .* \(b, 2, 4, h, w\), .*, got"):
        model().upsample(torch.rand(1, 3, 4, 2, 2))


@pytest.mark.parametrize(("frames", "factor"), [(4, 1), (1, 2)])
def test_nothing_to_upsample(frames, factor):
    message = (
        "upsample: video must be smaller than the result, 4 x 4, or have fewer frames, got as many "
        "of both; give a greater image_size or frame_factor"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        model().upsample(torch.rand(1, 2, frames, 4, 4), frame_factor=factor)


@pytest.mark.parametrize(("factor", "expected"), [(1, 10), (2, 5), (4, 3)])
def test_a_low_resolution_of_another_length(factor, expected):
    message = (
        f"extend: low_resolution must be a tensor of shape (b, 2, {expected}, h, w), "
        "floating-point or uint8, got (1, 2, 6, 2, 2); move"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        model().extend(
            torch.rand(1, 2, 2, 4, 4),
            10,
            low_resolution=torch.rand(1, 2, 6, 2, 2),
            frame_factor=factor,
        )


def test_a_low_resolution_without_weight():
    message = "upsample: video needs a weight above 0, by which it guides, got 0"
    with pytest.raises(ValueError, match=exactly(message)):
        model().upsample(torch.rand(1, 2, 4, 2, 2), weight=0)
    with pytest.raises(ValueError, match=r"^upsample: weight must be a number, 0 or greater"):
        model().upsample(torch.rand(1, 2, 4, 2, 2), weight=-1)


def test_guidance_for_another_number_of_videos():
    video = torch.rand(1, 2, 4, 4, 4)
    message = "must have one row per video, 1, or one for all, got 2"
    with pytest.raises(ValueError, match=message):
        model().extend(video, 8, low_resolution=torch.rand(2, 2, 8, 2, 2))
    known = KnownRegion(torch.rand(2, 2, 4, 4, 4), torch.tensor([True, False, False, False]))
    with pytest.raises(ValueError, match=message):
        model().inpaint(video, torch.zeros(4, 4, dtype=torch.bool), guidance=known)


def test_a_frame_factor_without_low_resolution():
    message = "extend: frame_factor is that of low_resolution, which must be given"
    with pytest.raises(ValueError, match=exactly(message)):
        model().extend(torch.rand(1, 2, 2, 4, 4), 8, frame_factor=2)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf")])
def test_weights_outside_their_range(weight):
    message = (
        f"extend: weight must be a number, 0 or greater, got {weight!r}; 0 is without correction, "
        "2 is common"
    )
    for low in (None, torch.rand(1, 2, 6, 2, 2)):
        with pytest.raises(ValueError, match=exactly(message)):
            model().extend(torch.rand(1, 2, 2, 4, 4), 6, weight=weight, low_resolution=low)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@every_call
def test_known_values_that_are_not_finite(call, value):
    # found before anything is drawn, be they in the last window
    message = (
        f"{NAMES[call]}: known values must be finite, got NaN or infinity; let inpaint draw what "
        "is lost, with a mask that is false there"
    )
    diffusion, video = model(), torch.rand(2, 2, 5, 4, 4)
    video[1, :, 2 if call is predict else 4] = value
    with pytest.raises(ValueError, match=exactly(message)):
        call(diffusion, video)
    assert diffusion.denoise_fn.gradients == []


def test_a_low_resolution_that_is_not_finite():
    small = torch.rand(1, 2, 8, 2, 2)
    small[:, :, 7] = torch.nan
    diffusion = model()
    with pytest.raises(ValueError, match=r"^upsample: known values must be finite, got NaN or"):
        diffusion.upsample(small)
    with pytest.raises(ValueError, match=r"^extend: known values must be finite, got NaN or i"):
        diffusion.extend(torch.rand(1, 2, 2, 4, 4), 8, low_resolution=small)
    assert diffusion.denoise_fn.gradients == []
