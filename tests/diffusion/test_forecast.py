"""Ensemble forecasts: the same members in any batch, and the distribution of a known process."""

import math
import re
import warnings

import pytest
import torch

from tests.diffusion.gaussian_data import GaussianVideos, PerfectNetwork, relative_error
from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.diffusion.random_streams import stream_seed
from video_diffusion_pytorch.evaluation.forecast_scores import ForecastScores

QUIET = {"progress": False}


def model(unet=None, **options):
    torch.manual_seed(0)
    network = Unet3D(8, dim_mults=(1,), channels=2, attn_heads=1, attn_dim_head=8, **(unet or {}))
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 4, "loss_type": "l2"}
    return GaussianDiffusion(network, **sizes, **options).eval()


KINDS = {
    "guidance": ({}, {}),
    "noise per frame": ({}, {"frame_noise": "independent"}),
    "given frames": ({"cond_channels": 3}, {"given_frames": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_is_the_same_whatever_the_number_of_members_and_the_batch(kind):
    unet, options = KINDS[kind]
    diffusion = model(unet, **options)
    start = torch.rand(2, 2, 2, 8, 8)
    found = diffusion.forecast(start, 5, members=3, **QUIET)
    assert found.shape == (2, 3, 2, 5, 8, 8)
    fewer = diffusion.forecast(start, 5, members=2, max_batch=3, **QUIET)
    torch.testing.assert_close(fewer, found[:, :2], rtol=1e-4, atol=1e-4)
    alone = diffusion.forecast(start[:1], 5, members=1, **QUIET)
    torch.testing.assert_close(alone, found[:1, :1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, 0], found[:, 1], atol=0.05)
    other = diffusion.forecast(start, 5, members=1, seed=1, **QUIET)
    assert not torch.allclose(found[:, :1], other, atol=0.05)


def test_a_single_window_is_that_of_extend():
    diffusion = model()
    start = torch.rand(1, 2, 2, 8, 8)
    generator = torch.Generator().manual_seed(stream_seed(stream_seed(0, 0), 0))
    wanted = diffusion.extend(start, 4, generator=[generator], weight=0, **QUIET)
    found = diffusion.forecast(start, 2, members=1, weight=0, **QUIET)
    torch.testing.assert_close(found[:, 0], wanted[:, :, 2:])


def test_strides_cover_the_forecast(monkeypatch):
    diffusion, seen = model(), []
    extend = GaussianDiffusion.extend

    def watched(self, video, num_frames, **options):
        seen.append((video.shape[2], num_frames))
        return extend(self, video, num_frames, **options)

    monkeypatch.setattr(GaussianDiffusion, "extend", watched)
    start = torch.rand(1, 2, 2, 8, 8)
    for stride, windows in (
        (None, [(2, 4), (2, 4), (3, 4)]),
        (1, [(2, 4), (3, 4), (3, 4), (3, 4)]),
        (3, [(1, 4), (2, 4)]),
    ):
        seen.clear()
        found = diffusion.forecast(start, 5, members=1, stride=stride, **QUIET)
        assert found.isfinite().all()
        assert seen == windows


def test_a_model_that_is_given_frames_needs_no_gradient():
    diffusion = model({"cond_channels": 3}, given_frames=2)
    plain, calls = diffusion.denoise_fn.forward, []

    def watched(x, *args, **options):
        calls.append(torch.is_grad_enabled() and x.requires_grad)
        return plain(x, *args, **options)

    diffusion.denoise_fn.forward = watched
    start = torch.rand(1, 2, 2, 8, 8)
    diffusion.forecast(start, 4, members=1, **QUIET)
    assert calls
    assert not any(calls)
    diffusion.forecast(start, 4, members=1, weight=2.0, **QUIET)
    assert any(calls)


def test_what_is_known_of_the_future_is_given_per_window():
    """A network that draws its field: the forecast is the field of its own frames."""
    diffusion = model({"cond_channels": 2}, objective="pred_x_start", auto_normalize=False)

    def draw(x, time, cond_video=None, **rest):
        return cond_video

    diffusion.denoise_fn.forward = diffusion.denoise_fn.forward_with_cond_scale = draw
    field = torch.rand(2, 2, 8, 8, 8)
    start = field[:, :, :3]
    found = diffusion.forecast(start, 5, members=2, cond_video=field, weight=0, **QUIET)
    torch.testing.assert_close(found, field[:, None, :, 3:].expand_as(found), atol=1e-3, rtol=0)


@pytest.mark.parametrize("objective", ["flow", "pred_v"])
def test_members_have_the_distribution_of_the_process(objective):
    """A Gaussian process whose future, given its first frames, is known in closed form."""
    videos = GaussianVideos(mean=(0.0,) * 6)
    sizes = {"image_size": 8, "num_frames": 6, "auto_normalize": False, "channels": 1}
    diffusion = GaussianDiffusion(
        torch.nn.Identity(), **sizes, objective=objective, frame_noise="independent"
    )
    diffusion.denoise_fn = PerfectNetwork(videos, diffusion, objective)
    root = torch.linalg.cholesky(videos.covariance)
    noise = torch.randn(8, 8, 6, generator=torch.Generator().manual_seed(0)).double()
    real = (noise @ root.T).float().movedim(-1, 0)[None, None]
    found = diffusion.forecast(
        real[:, :, :2], 4, members=64, sampler="dpm++", steps=30, max_batch=40, **QUIET
    )
    mean, covariance = videos.given_first(real[0, 0, :2].movedim(0, -1))
    free = found[0, :, 0].movedim(1, -1).double()
    assert (free.mean(dim=0) - mean).square().mean().sqrt() < 0.08
    apart = (free - free.mean(dim=0)).reshape(-1, 4)
    assert relative_error(apart.T @ apart / (len(apart) * (1 - 1 / 64)), covariance) < 0.06
    scores = ForecastScores()
    scores.add(found, real[:, :, 2:])
    ranks = scores.compute()["rank_histogram"].mean(dim=(0, 1))
    # the truth is as one of the members
    assert ranks[:16].sum().item() == pytest.approx(16 / 65, abs=0.12)


# Members that diverge, and errors


def test_members_that_diverge_stop_and_the_others_go_on():
    diffusion = model(auto_normalize=False, objective="pred_x_start")
    calls = []

    def draw(x, time, **rest):
        # one of the videos explodes at the end of the second window
        calls.append(len(x))
        out = torch.zeros_like(x)
        if len(calls) == 8:
            out[1] = math.inf
        return out

    diffusion.denoise_fn.forward = draw
    start = torch.rand(1, 2, 2, 8, 8)
    message = (
        "forecast: 1 of 3 members have NaN or infinite values, the first from frame 2 on; train "
        "for longer, or with given_noise"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        found = diffusion.forecast(start, 6, members=3, weight=0, sampler="ddim", steps=4, **QUIET)
    assert found[0, [0, 2]].isfinite().all()
    assert found[0, 1, :, :2].isfinite().all()
    assert not found[0, 1, :, 2:].isfinite().any()
    assert calls[-1] == 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"members": 0}, ValueError, "forecast: members must be a whole number of at least 1"),
        ({"num_frames": 0}, ValueError, "num_frames must be a whole number of at least 1, got 0"),
        ({"max_batch": -1}, ValueError, "forecast: max_batch must be a whole number of at least"),
        (
            {"stride": 4},
            ValueError,
            "forecast: stride must be from 1 to 3, so that a window of 4 frames has known ones, "
            "got 4; leave it out",
        ),
        (
            {"overlap": 2},
            TypeError,
            "forecast: keywords must be those of extend without generator, guidance, negative_c",
        ),
        ({"step": 2}, TypeError, "step"),
        (
            {"cond": torch.rand(3, 4)},
            ValueError,
            "forecast: cond must have one row per forecast, 1, and, if it has frames, all 7 of the "
            "initial frames and the forecast, got (3, 4)",
        ),
    ],
)
def test_options_that_are_none(options, error, message):
    diffusion = model({"cond_dim": 4} if "cond" in options else None)
    arguments = {"num_frames": 5, "members": 1, **QUIET, **options}
    with pytest.raises(error, match=re.escape(message)):
        diffusion.forecast(torch.rand(1, 2, 2, 8, 8), **arguments)


def test_initial_frames_that_do_not_fit():
    with pytest.raises(ValueError, match="initial_frames must be finite, got NaN or infinite"):
        model().forecast(torch.full((1, 2, 2, 8, 8), math.nan), 5, **QUIET)
    with pytest.raises(ValueError, match=re.escape("initial_frames must be a tensor of shape (b,")):
        model().forecast(torch.rand(2, 2, 8, 8), 5, **QUIET)
    message = "initial_frames must be at least the 2 given_frames of the model, got 1; give more"
    with pytest.raises(ValueError, match=message):
        model({"cond_channels": 3}, given_frames=2).forecast(torch.rand(1, 2, 1, 8, 8), 5, **QUIET)


def test_values_that_have_no_place_in_the_range_are_a_divergence():
    """In float32 expm1 of a small number is exactly -1, of which there is no log1p."""
    scale = {"mean": 0.0, "std": 1.0, "transform": "log1p"}
    diffusion = model(objective="pred_x_start", value_range=scale)

    calls = []

    def draw(x, time, **rest):
        calls.append(len(x))
        out = torch.zeros_like(x)
        if len(calls) == 2:
            # the last frame of the first window
            out[0, :, -1] = -40.0
        return out

    diffusion.denoise_fn.forward = draw
    start = torch.zeros(1, 2, 2, 8, 8)
    with pytest.warns(UserWarning, match="forecast: 1 of 3 members have NaN or infinite va"):
        found = diffusion.forecast(start, 6, members=3, weight=0, sampler="ddim", steps=2, **QUIET)
    assert found[0, 1:].isfinite().all()
    assert found[0, 0, :, 2:].isnan().all()
    assert calls[-1] == 2


def test_bytes_are_pictures():
    diffusion = model()
    pixels = torch.randint(0, 256, (1, 2, 2, 8, 8), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = diffusion.forecast(pixels, 3, members=1, **QUIET)
    torch.testing.assert_close(found, diffusion.forecast(pixels / 255, 3, members=1, **QUIET))
