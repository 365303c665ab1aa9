"""Clips in units of their own: into [-1, 1] and back, kept with the weights."""

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion
from video_diffusion_pytorch.diffusion.value_range import check_videos, to_unit_range


class Recorder(nn.Module):
    """Records its arguments; predicts noise of zero."""

    def __init__(self, cond_channels=2):
        super().__init__()
        self.cond_channels = cond_channels
        self.calls = []

    def forward(self, x, t, cond=None, cond_video=None):
        self.calls.append({"x": x, "t": t, "cond_video": cond_video})
        return torch.zeros_like(x)

    def forward_with_cond_scale(self, x, t, cond=None, cond_scale=1.0, cond_video=None):
        return self(x, t, cond, cond_video)


def diffusion_with(denoiser=None, **config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 10, "channels": 2} | config
    return GaussianDiffusion(denoiser or Recorder(), **config)


def noisy_of(diffusion, x_start):
    """What the denoiser got, if the noise was zero."""
    call = diffusion.denoise_fn.calls[-1]
    kept = diffusion.sqrt_alphas_cumprod[call["t"]].view(-1, 1, 1, 1, 1)
    return call["x"], kept * x_start


def exactly(message):
    return f"^{re.escape(message)}$"


# There and back


@pytest.mark.parametrize("value_range", [(-40, 60), ([-40, -40], [60.0, 60.0]), (-40, [60, 60])])
def test_the_denoiser_gets_clips_of_any_units_in_the_range_of_the_model(value_range):
    diffusion = diffusion_with(value_range=value_range)
    clips = torch.rand(2, 2, 4, 8, 8) * 100 - 40
    diffusion(clips, noise=torch.zeros_like(clips))
    torch.testing.assert_close(*noisy_of(diffusion, (clips + 40) / 50 - 1), rtol=1e-5, atol=1e-6)


def test_each_channel_has_its_own_range():
    diffusion = diffusion_with(value_range=([0, -1e5], (10, 1e5)))
    unit = torch.rand(2, 2, 4, 8, 8)
    clips = torch.stack((unit[:, 0] * 10, unit[:, 1] * 2e5 - 1e5), dim=1)
    diffusion(clips, noise=torch.zeros_like(clips))
    torch.testing.assert_close(*noisy_of(diffusion, unit * 2 - 1), rtol=1e-4, atol=1e-5)


def test_uint8_clips_are_in_the_value_range():
    clips = torch.randint(0, 256, (2, 2, 4, 8, 8), dtype=torch.uint8)
    diffusion = diffusion_with(value_range=(0, 510))
    diffusion(clips, noise=torch.zeros(clips.shape))
    torch.testing.assert_close(*noisy_of(diffusion, clips / 255 - 1), rtol=1e-5, atol=1e-6)


def test_far_from_zero_float64_clips_keep_their_digits():
    x = torch.linspace(0, 1, 9, dtype=torch.float64).view(1, 1, 9)
    low = torch.tensor([1e6])
    mapped = to_unit_range(x + 1e6, low, low + 1)
    assert mapped.dtype == torch.float32
    torch.testing.assert_close(mapped, x.float() * 2 - 1, rtol=0, atol=1e-6)


def test_samples_are_in_the_units_of_the_clips():
    low, high = torch.tensor([-40.0, 0.0]), torch.tensor([60.0, 1e-3])
    diffusion = diffusion_with(value_range=(low, high))
    plain = diffusion_with()
    sampled = []
    for model in (diffusion, plain):
        torch.manual_seed(0)
        sampled.append(model.sample(batch_size=2, progress=False))
    low, high = (bound.view(1, 2, 1, 1, 1) for bound in (low, high))
    torch.testing.assert_close(sampled[0], low + sampled[1] * (high - low), rtol=1e-5, atol=1e-6)
    assert (sampled[0] >= low).all()
    assert (sampled[0] <= high).all()


def test_interpolation_is_in_the_units_of_the_clips():
    x1, x2 = torch.rand(2, 2, 2, 4, 8, 8)
    videos = []
    for model, scale in ((diffusion_with(value_range=(0, 50)), 50), (diffusion_with(), 1)):
        torch.manual_seed(0)
        videos.append(model.interpolate(x1 * scale, x2 * scale, progress=False) / scale)
    torch.testing.assert_close(*videos, rtol=1e-5, atol=1e-6)


def test_a_range_may_be_set_later():
    diffusion = diffusion_with()
    diffusion.set_value_range((0, 50))
    clips = torch.rand(2, 2, 4, 8, 8) * 50
    diffusion(clips, noise=torch.zeros_like(clips))
    torch.testing.assert_close(*noisy_of(diffusion, clips / 25 - 1), rtol=1e-5, atol=1e-6)
    assert diffusion.config["value_range"] == (0.0, 50.0)
    diffusion.set_value_range(([1, 2], [3, 4]))
    assert diffusion.value_low.tolist() == [1.0, 2.0]
    assert diffusion.config["value_range"] == ((1.0, 2.0), (3.0, 4.0))


# Fields


@pytest.mark.parametrize("shape", [(2, 2, 4, 8, 8), (2, 2, 8, 8)])
def test_a_field_has_a_range_of_its_own(shape):
    diffusion = diffusion_with(cond_value_range=([0, -5], [20, 5]))
    unit = torch.rand(shape)
    field = torch.stack((unit[:, 0] * 20, unit[:, 1] * 10 - 5), dim=1)
    diffusion(torch.rand(2, 2, 4, 8, 8), cond_video=field)
    seen = diffusion.denoise_fn.calls[0]["cond_video"]
    torch.testing.assert_close(seen, unit * 2 - 1, rtol=1e-5, atol=1e-6)
    diffusion.sample(cond_video=field, progress=False)
    assert torch.equal(diffusion.denoise_fn.calls[-1]["cond_video"], seen)


@pytest.mark.parametrize(
    ("field", "seen"),
    [
        (torch.tensor([0, 51, 255], dtype=torch.uint8), [-1.0, -0.6, 1.0]),
        (torch.tensor([-3.0, 0.5, 7.0]), [-3.0, 0.5, 7.0]),
    ],
)
def test_without_a_range_only_uint8_fields_are_converted(field, seen):
    diffusion = diffusion_with()
    diffusion(torch.rand(3, 2, 4, 8, 8), cond_video=field.view(3, 1, 1, 1).expand(-1, 2, 8, 8))
    received = diffusion.denoise_fn.calls[0]["cond_video"][:, 0, 0, 0]
    torch.testing.assert_close(received, torch.tensor(seen))


def test_one_range_for_a_field_of_unknown_channels():
    class Silent(Recorder):
        def __init__(self):
            super().__init__()
            del self.cond_channels

    diffusion = diffusion_with(Silent(), cond_value_range=(0, 4))
    assert diffusion.cond_value_low.shape == (1,)
    mask = torch.ones(2, 3, 8, 8, dtype=torch.bool)
    diffusion(torch.rand(2, 2, 4, 8, 8), cond_video=mask)
    assert (diffusion.denoise_fn.calls[0]["cond_video"] == -0.5).all()


# Where it is kept


def test_config_and_state_dict_hold_the_ranges():
    config = {"value_range": ([0, 1], np.array([10, 11])), "cond_value_range": (0, 255)}
    diffusion = diffusion_with(**config)
    assert diffusion.config["value_range"] == ((0.0, 1.0), (10.0, 11.0))
    assert diffusion.config["cond_value_range"] == (0.0, 255.0)
    again = GaussianDiffusion(Recorder(), **json.loads(json.dumps(diffusion.config)))
    assert again.config == diffusion.config
    state = diffusion.state_dict()
    assert state["value_high"].tolist() == [10.0, 11.0]
    assert state["cond_value_low"].tolist() == [0.0, 0.0]
    again.load_state_dict(state)
    copy.deepcopy(diffusion).load_state_dict(state)


def test_without_a_range_nothing_is_added():
    assert not [name for name in diffusion_with().state_dict() if "value" in name]


def test_a_file_comes_back_without_running_code(tmp_path):
    diffusion = diffusion_with(value_range=([0.1, 1], [10, 11]))
    torch.save({"config": diffusion.config}, tmp_path / "file.pt")
    config = torch.load(tmp_path / "file.pt", weights_only=True)["config"]
    assert config == diffusion.config


def test_a_partial_state_dict_leaves_the_range_unchecked():
    missing, _ = diffusion_with(value_range=(0, 1)).load_state_dict({}, strict=False)
    assert "value_low" in missing


# Mistakes


def test_clips_outside_their_range_give_one_warning():
    diffusion = diffusion_with(value_range=([0, 0], [100, 10]))
    clips = torch.rand(1, 2, 4, 8, 8) * 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diffusion(clips)
    message = (
        "GaussianDiffusion: clips must be in [0, 100], got values from 0 to 50; give the "
        "value_range of all clips"
    )
    clips[0, 1, 0, 0] = torch.linspace(0, 50, 8)
    clips.clamp_(min=0)[0, 0, 0, 0, 0] = 0
    with pytest.warns(UserWarning, match=exactly(message)):
        diffusion(clips)
    diffusion(clips)
    # another range is looked at anew
    diffusion.set_value_range((0, 5))
    with pytest.warns(UserWarning, match=r"in \[0, 5\], got values from 0 to 50"):
        diffusion(clips)


def test_uint8_clips_outside_their_range_give_a_warning():
    clips = torch.full((1, 2, 4, 8, 8), 200, dtype=torch.uint8)
    with pytest.warns(UserWarning, match=r"in \[0, 1\], got values from 200 to 200; give the"):
        diffusion_with(value_range=(0, 1))(clips)


def test_a_warning_points_at_the_users_line():
    clips = torch.rand(1, 2, 4, 8, 8) * 9
    calls = [
        lambda: diffusion_with(timesteps=2)(clips),
        lambda: diffusion_with(timesteps=2).interpolate(clips, clips, progress=False),
        lambda: diffusion_with(timesteps=2).to_model_range(clips),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="got values from") as received:
            call()
        assert received[0].filename == __file__
        assert received[0].lineno == call.__code__.co_firstlineno


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_types_without_a_range(dtype):
    message = (
        "x1 must be a tensor of shape (c, f), floating-point or uint8, got "
        f"{dtype}; convert it with .float()"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        check_videos("x1", torch.ones(2, 3, dtype=dtype), ("c", "f"))
    check_videos("x1", torch.ones(2, 3, dtype=torch.uint8), ("c", "f"))
    check_videos("x1", torch.ones(2, 3, dtype=torch.float64), ("c", "f"))


@pytest.mark.parametrize("given", [5, (1, 1), ([0, 0, 0], 1), ([0, 5], [1, 4])])
def test_value_ranges_of_another_kind(given):
    message = (
        "GaussianDiffusion: value_range must be (low, high) with low < high, each a number or one "
        f"for each of 2 channels, got {given!r}; pass for example"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        diffusion_with(value_range=given)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        diffusion_with().set_value_range(given)


def test_a_range_without_auto_normalize():
    message = "GaussianDiffusion: value_range needs auto_normalize=True, got False"
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(auto_normalize=False, value_range=(0, 1))
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(auto_normalize=False).set_value_range((0, 1))


def test_a_field_without_the_channels_of_its_range():
    message = (
        "GaussianDiffusion: cond_video must have the 2 channels of cond_value_range, shape "
        "(b, 2, f, h, w) or (b, 2, h, w), got (2, 3, 8, 8); move its axes, or change "
        "cond_value_range"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(cond_value_range=(0, 1))(
            torch.rand(2, 2, 4, 8, 8), cond_video=torch.rand(2, 3, 8, 8)
        )
