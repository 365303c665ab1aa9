"""Clips with missing values: they stay NaN, and neither the network nor the loss sees them."""

import math
import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError

LAND = (slice(None), slice(None), slice(0, 3), slice(0, 4))


def model(unet=None, **options):
    torch.manual_seed(0)
    network = Unet3D(8, dim_mults=(1,), channels=2, attn_heads=1, attn_dim_head=8, **(unet or {}))
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 4, "loss_type": "l2"}
    return GaussianDiffusion(network, **{**sizes, **options})


@pytest.fixture
def sea(tmp_path):
    """A folder of clips, NaN on land and at one more place each."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "sea"
    folder.mkdir()
    for i in range(4):
        clip = (15 + 3 * rng.standard_normal((2, 4, 8, 8))).astype(np.float32)
        clip[LAND] = math.nan
        clip[1, 2, 5, i] = math.nan
        np.save(folder / f"{i}.npy", clip)
    return folder


# The loss


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_what_is_missing_changes_nothing(reduction):
    """Whatever stands for it: the loss is the mean over the others."""
    diffusion = model(missing="mask")
    x = torch.rand(2, 2, 4, 8, 8)
    gaps = x.clone()
    gaps[LAND] = math.nan
    noise, t = torch.randn(x.shape), torch.tensor([1, 3])
    found = diffusion(gaps, noise=noise, t=t, reduction=reduction)
    filled = x.clone()
    filled[LAND] = 0.5  # the middle of the range
    seen = []
    forward = diffusion.denoise_fn.forward
    diffusion.denoise_fn.forward = lambda *args, **options: (
        seen.append(forward(*args, **options)) or seen[-1]
    )
    diffusion(filled, noise=noise, t=t)
    there = torch.ones_like(x, dtype=torch.bool)
    there[LAND] = False
    error = (seen[0] - noise).square()
    each = torch.stack([one[where].mean() for one, where in zip(error, there, strict=True)])
    wanted = each if reduction == "none" else each.mean()
    torch.testing.assert_close(found, wanted)


def test_gradients_do_not_come_from_what_is_missing():
    diffusion = model(missing="mask")
    x = torch.full((1, 2, 4, 8, 8), math.nan)
    loss = diffusion(x)
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in diffusion.parameters())


def test_frames_that_are_padding_are_left_out_too():
    diffusion = model(missing="mask")
    x = torch.rand(2, 2, 4, 8, 8)
    x[LAND] = math.nan
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    noise, t = torch.randn(x.shape), torch.tensor([1, 3])
    found = diffusion(x, noise=noise, t=t, frame_mask=mask, reduction="none")
    other = x.clone()
    other[0, :, 2:] = math.nan
    again = diffusion(other, noise=noise, t=t, reduction="none")
    # of the second clip; the network sees other padding in the first
    torch.testing.assert_close(found[1], again[1])
    assert found.isfinite().all()


def test_without_the_option_the_loss_says_so():
    x = torch.rand(1, 2, 4, 8, 8)
    x[LAND] = math.nan
    with pytest.warns(UserWarning, match="clips must be in"):
        assert model()(x).isnan()


# The data


def test_gaps_stay_gaps_at_any_size(sea):
    clips = Dataset(sea, 8, 2, 4, exts=None, missing="mask")
    raw = torch.from_numpy(np.load(clips.paths[1]))
    torch.testing.assert_close(clips[1], raw, equal_nan=True)
    small = Dataset(sea, 4, 2, 4, exts=None, missing="mask")[1]
    assert small[:, :, 0, 0].isnan().all()
    # a part of it is enough
    assert small[1, 2, 2, 0].isnan()
    assert small[0, 2, 2, 0].isfinite()
    assert 5 < small[small.isfinite()].mean() < 25


def test_by_default_gaps_are_errors(sea):
    with pytest.raises(UnreadableVideoError, match="finite numbers in float32, got 97 NaN or inf"):
        Dataset(sea, 8, 2, 4, exts=None)[0]


def test_infinite_values_are_no_gaps(tmp_path):
    clip = np.zeros((2, 4, 8, 8), np.float32)
    clip[0, 0, 0, 0], clip[0, 0, 0, 1] = math.nan, math.inf
    np.save(tmp_path / "a.npy", clip)
    with pytest.raises(UnreadableVideoError, match="got 1 NaN or infinite ones of 512"):
        Dataset(tmp_path, 8, 2, 4, exts=None, missing="mask")[0]


@pytest.mark.parametrize("kind", ["standardize", "fit"])
def test_ranges_are_those_of_the_values_that_are_there(sea, kind):
    clips = Dataset(sea, 8, 2, 4, exts=None, missing="mask", value_range=kind)
    values = np.stack([np.load(path) for path in clips.paths]).astype(np.float64)
    for channel in range(2):
        own = values[:, channel]
        if kind == "standardize":
            assert clips.value_range.mean[channel] == pytest.approx(np.nanmean(own), rel=1e-9)
            assert clips.value_range.std[channel] == pytest.approx(np.nanstd(own), rel=1e-9)
        else:
            assert clips.value_range[0][channel] == np.nanmin(own)
            assert clips.value_range[1][channel] == np.nanmax(own)


def test_the_mask_and_a_static_field_are_conditions(sea, tmp_path):
    depth = np.random.default_rng(1).random((8, 8)).astype(np.float32)
    np.save(tmp_path / "depth.npy", depth)
    clips = Dataset(
        sea, 8, 2, 4, exts=None, missing="mask", conditions="mask", horizontal_flip=True,
        static_field=tmp_path / "depth.npy",
    )  # fmt: skip
    seen = set()
    for i in range(8):
        torch.manual_seed(i)
        item = clips[0]
        field = item["cond_video"]
        assert field.shape == (2, 4, 8, 8)
        is_flipped = bool(item["video"][0, 0, 0, -1].isnan())
        seen.add(is_flipped)
        own = torch.from_numpy(depth)
        assert torch.equal(field[0, 3], own.flip(-1) if is_flipped else own)
        assert torch.equal(field[1], item["video"].isfinite().all(dim=0).float())
    assert seen == {False, True}
    plain = Dataset(sea, 8, 2, 4, exts=None, missing="mask", static_field=tmp_path / "depth.npy")
    assert plain[0]["cond_video"].shape == (1, 8, 8)


# A whole run


def test_a_folder_with_gaps_trains_by_arguments(sea, tmp_path):
    trainer = Trainer(
        model({"cond_channels": 1}, missing="mask", objective="pred_v"),
        sea,
        value_range="standardize",
        conditions="mask",
        train_batch_size=2,
        train_num_steps=2,
        save_and_sample_every=2,
        num_sample_rows=1,
        validation_split=0.5,
        validate_every=2,
        results_folder=tmp_path / "results",
        num_workers=0,
        device="cpu",
    )
    losses = []
    trainer.train(log_fn=lambda log: losses.append(log["loss"]))
    assert all(map(math.isfinite, losses))
    assert trainer.skipped_steps == 0
    assert (tmp_path / "results" / "1.gif").is_file()


def test_mistakes(sea, tmp_path):
    with pytest.raises(ValueError, match="missing must be one of error, mask, got 'zero'; choose"):
        Dataset(sea, 8, 2, 4, exts=None, missing="zero")
    with pytest.raises(ValueError, match="GaussianDiffusion: missing must be"):
        model(missing="zero")
    np.save(tmp_path / "two.npy", np.zeros((1, 2, 8, 8), np.float32))
    message = "expected an array (h, w) or (c, h, w), or a file of one frame, got the shape (1, 2,"
    with pytest.raises(UnreadableVideoError, match=re.escape(message)):
        Dataset(sea, 8, 2, 4, exts=None, missing="mask", static_field=tmp_path / "two.npy")
