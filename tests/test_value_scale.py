"""Standardised values: the numbers found, their inverse, and the way through training."""

import json
import math
import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, load_diffusion
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.clip_file import prepare_clip
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.value_scale import (
    TRANSFORM_CODES,
    TRANSFORMS,
    Standardization,
    padding_values,
    parse_scale,
)

PLAIN = {"mean": (280.0, 101325.0), "std": (10.0, 5.0), "transform": (None, None)}


def network(channels=2, **options):
    return Unet3D(8, dim_mults=(1,), channels=channels, attn_heads=1, attn_dim_head=8, **options)


def model(value_range, channels=2, **options):
    options = {"image_size": 8, "num_frames": 2, "timesteps": 4, **options}
    return GaussianDiffusion(network(channels), **options, value_range=value_range)


def numpy_transform(name, values):
    functions = {"log": np.log, "log1p": np.log1p, "sqrt": np.sqrt, "asinh": np.arcsinh}
    return values if name is None else functions[name](values)


@pytest.fixture
def rain(tmp_path):
    """A folder of clips with two channels, temperature and rain; and all of their values."""
    rng = np.random.default_rng(0)
    clips = []
    for i in range(5):
        temperature = 280 + 10 * rng.standard_normal((3, 8, 8))
        clips.append(np.stack((temperature, rng.exponential(2.0, (3, 8, 8)))).astype(np.float32))
        (tmp_path / "clips").mkdir(exist_ok=True)
        np.save(tmp_path / "clips" / f"{i}.npy", clips[-1])
    return tmp_path / "clips", np.stack(clips).astype(np.float64)


# The map


@pytest.mark.parametrize("name", TRANSFORM_CODES)
def test_transforms_have_inverses(name):
    x = torch.rand(3, 1, 5, dtype=torch.float64) * 100 + 0.01
    scale = Standardization((1.5,), (0.7,), (name,))
    there = scale.forward(x)
    np.testing.assert_allclose(there, (numpy_transform(name, x.numpy()) - 1.5) / 0.7, rtol=1e-12)
    torch.testing.assert_close(scale.inverse(there), x, rtol=1e-12, atol=0)


def test_each_channel_has_its_own():
    assert {None, *TRANSFORMS} == {*TRANSFORM_CODES}
    scale = Standardization((0.0, 1.0, 0.0), (1.0, 2.0, 1.0), (None, "log", "sqrt"))
    x = torch.tensor([[4.0, 4.0, 4.0]])
    assert scale.forward(x).tolist() == [pytest.approx([4.0, (math.log(4) - 1) / 2, 2.0])]
    assert scale.inverse(scale.forward(x)).tolist() == [pytest.approx([4.0, 4.0, 4.0])]


def test_what_pictures_and_padding_get():
    ends = torch.tensor([[250.0, 101310.0], [280.0, 101325.0], [310.0, 101340.0]])
    assert parse_scale(PLAIN, 2).to_unit_range(ends).tolist() == [[0, 0], [0.5, 0.5], [1, 1]]
    assert padding_values(PLAIN, 2) == (280.0, 101325.0)
    assert padding_values((1, 3), 2) == (1.0, 1.0)
    rain = {"mean": 1.0, "std": 0.5, "transform": "log1p"}
    assert padding_values(rain, 1) == pytest.approx((math.e - 1,))
    assert padding_values(None, 1) is None
    shown = parse_scale(rain, 1).to_unit_range(torch.tensor([[math.expm1(2.5)]]))
    assert shown.item() == pytest.approx(1)


def test_what_a_transform_does_not_give_becomes_the_nearest_of_its_values():
    """A square root is never below 0: its inverse must not turn small samples into large ones."""
    scale = Standardization((0.4,), (0.7,), ("sqrt",))
    z = torch.linspace(-3, 3, 25)[:, None]
    found = scale.inverse(z).flatten()
    assert (found.diff() >= 0).all()
    assert found[0] == 0


# Found from clips


@pytest.mark.parametrize("transform", [None, (None, "log1p"), "asinh", (None, "sqrt")])
def test_mean_and_deviation_are_those_of_all_values(rain, transform):
    folder, values = rain
    clips = Dataset(
        folder, 8, 2, 3, exts=None, value_range="standardize", value_transform=transform
    )
    names = transform if isinstance(transform, tuple) else (transform,) * 2
    for channel, name in enumerate(names):
        wanted = numpy_transform(name, values[:, channel])
        assert clips.value_range.mean[channel] == pytest.approx(wanted.mean(), rel=1e-9)
        assert clips.value_range.std[channel] == pytest.approx(wanted.std(), rel=1e-9)
    assert clips.value_deviation == 1
    diffusion = model(clips.value_range)
    standard = diffusion.to_model_range(torch.stack([clips[i] for i in range(5)])).double()
    assert standard.mean(dim=(0, 2, 3, 4)).abs().max() < 1e-5
    assert (standard.std(dim=(0, 2, 3, 4), correction=0) - 1).abs().max() < 1e-5


def test_a_number_of_clips_is_enough(rain):
    folder, values = rain
    clips = Dataset(folder, 8, 2, 3, exts=None, value_range="standardize", fit_clips=2)
    some = values[[0, 2]]
    np.testing.assert_allclose(clips.value_range.mean, some.mean(axis=(0, 2, 3, 4)), rtol=1e-9)
    limits = Dataset(folder, 8, 2, 3, exts=None, value_range="fit", fit_clips=2).value_range
    np.testing.assert_allclose(limits[0], some.min(axis=(0, 2, 3, 4)), rtol=1e-6)


def test_values_far_from_zero_keep_their_digits():
    diffusion = model(PLAIN)
    x = torch.tensor([280.5, 101325.001953125], dtype=torch.float64).view(1, 2, 1, 1, 1)
    standard = diffusion.to_model_range(x).flatten().tolist()
    assert standard == pytest.approx([0.05, 0.000390625], abs=1e-9)


# The way through a model


def test_samples_are_not_clamped():
    x_start = torch.full((1, 2, 2, 8, 8), 4.0)
    for scale, clamped in ((PLAIN, False), ((0, 1), True), (None, True)):
        diffusion = model(scale, objective="pred_x_start")
        assert diffusion.clamps is clamped
        diffusion.denoise_fn.forward = lambda x, *args, **options: x_start
        for sampler in (None, "ddim", "dpm++", "heun"):
            found = diffusion.sample(batch_size=1, sampler=sampler, steps=None, progress=False)
            standard = diffusion.to_model_range(found.double())
            assert standard.amax().item() == pytest.approx(1.0 if clamped else 4.0, abs=1e-2)
    with pytest.raises(ValueError, match="needs a model that clamps, got one"):
        model(PLAIN).sample(batch_size=1, dynamic_thres_percentile=0.9)


def test_weights_remember_it(tmp_path):
    scale = {"mean": (280.0, 1.0), "std": (10.0, 0.5), "transform": (None, "log1p")}
    trained = model(scale)
    trained.save_pretrained(tmp_path / "shared")
    config = json.loads((tmp_path / "shared" / "config.json").read_text())
    assert config["diffusion"]["value_range"]["transform"] == [None, "log1p"]
    again = GaussianDiffusion.from_pretrained(tmp_path / "shared")
    assert again.config["value_range"] == trained.config["value_range"] == scale
    x = torch.rand(1, 2, 2, 8, 8) + torch.tensor([280.0, 0]).view(1, 2, 1, 1, 1)
    torch.testing.assert_close(again.to_model_range(x), trained.to_model_range(x))
    torch.testing.assert_close(again.to_data_range(again.to_model_range(x)), x)
    for other in ({**scale, "transform": "log1p"}, {**scale, "std": (9.0, 0.5)}, (0, 300)):
        with pytest.raises(ValueError, match="must have the model's value_range"):
            model(other).load_state_dict(trained.state_dict())
    model(scale).load_state_dict(trained.state_dict())


@pytest.mark.filterwarnings("ignore:.*fewer videos than features.*:UserWarning")
def test_a_folder_trains_evaluates_and_samples_by_arguments(rain, tmp_path, monkeypatch, capsys):
    folder, values = rain
    monkeypatch.chdir(tmp_path)
    options = ["--unet.dim=8", "--dim_mults=[1]", "--channels=2", "--image_size=8"]
    options += ["--num_frames=3", "--timesteps=4", "--train_batch_size=2", "--train_num_steps=2"]
    options += ["--save_and_sample_every=2", "--num_sample_rows=1", "--num_workers=0"]
    options += ["--device=cpu", "--value_range=standardize", "--value_transform=[null,log1p]"]
    options += ["--validation_split=0.4", "--validate_every=2"]
    assert main(["train", str(folder), *options]) is None
    assert (tmp_path / "results/1.gif").is_file()
    diffusion = load_diffusion("results")
    assert diffusion.config["value_range"]["transform"] == (None, "log1p")
    wanted = np.log1p(values[:, 1]).mean()
    # of all clips of the folder, those to validate on included
    assert diffusion.config["value_range"]["mean"][1] == pytest.approx(wanted, rel=1e-4)
    capsys.readouterr()
    assert main(["info", "results"]) is None
    assert re.search(
        r"value_range \(mean 2\d\d\.?\d*, .*; std .*; transform none, log1p\)",
        capsys.readouterr().out,
    )
    assert main(["sample", "results", "-n", "2", "-o", "drawn.npy", "--steps=2"]) is None
    # the inverse of log1p
    assert np.load("drawn.npy")[:, 1].min() >= -1
    assert main(["sample", "results", "-n", "2", "-o", "drawn.gif", "--steps=2"]) is None
    assert main(["train", str(folder), *options, "--train_num_steps=3"]) is None


def test_items_of_a_dataset_are_standardised(tmp_path):
    draws = torch.Generator().manual_seed(0)
    clips = [5 + 3 * torch.randn(2, 2, 8, 8, generator=draws) for _ in range(4)]
    trainer = Trainer(
        model(None, objective="edm"),
        dataset=clips,
        value_range="standardize",
        train_batch_size=2,
        train_num_steps=1,
        results_folder=tmp_path,
        num_workers=0,
        device="cpu",
    )
    values = torch.stack(clips).double()
    found = trainer.model.config["value_range"]
    assert found["mean"] == pytest.approx(values.mean(dim=(0, 2, 3, 4)).tolist(), rel=1e-6)
    assert trainer.model.config["sigma_data"] == 1


# Errors


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (
            {"mean": 0},
            "value_range must be (low, high), or a mapping of mean, std and transform, got one of "
            "mean; give mean and std",
        ),
        ({"mean": 0, "std": 1, "low": 2}, "got one of mean, std, low; give mean and std"),
        (
            {"mean": 0, "std": (1, 0)},
            "value_range must have standard deviations above 0, got (1, 0); leave out channels",
        ),
        (
            {"mean": (0, 1, 2), "std": 1},
            "must have one finite mean and std, or 2, one per channel, got (0, 1, 2); correct it",
        ),
        ({"mean": math.nan, "std": 1}, "must have one finite mean and std, or 2"),
        ({"mean": "a", "std": 1}, "must have one finite mean and std, or 2"),
        ({"mean": None, "std": 1}, "must have one finite mean and std, or 2"),
        ({"mean": 0, "std": 1e-50}, "must have standard deviations above 0, got 1e-50"),
        ({"mean": 0, "std": 1, "transform": 3}, "for each of 2 channels, got 3; correct it"),
        (
            {"mean": 0, "std": 1, "transform": "exp"},
            "value_range must be one of log, log1p, sqrt, asinh, or one or None for each of 2 "
            "channels, got 'exp'; correct it",
        ),
        ({"mean": 0, "std": 1, "transform": ["log"]}, "for each of 2 channels, got ['log']"),
    ],
)
def test_scales_that_are_none(scale, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_scale(scale, 2)
    with pytest.raises(ValueError, match=re.escape(message)):
        model(scale)


def test_values_that_a_transform_does_not_take(rain, tmp_path):
    folder, _ = rain
    message = (
        "must be above 0 in channel 1, for its transform 'log', got values from 0; correct them, "
        "or choose asinh"
    )
    zero = np.zeros((2, 3, 8, 8), np.float32)
    np.save(folder / "zero.npy", zero)
    options = {"exts": None, "value_range": "standardize", "value_transform": (None, "log")}
    with pytest.raises(ValueError, match=re.escape(message)):
        Dataset(folder, 8, 2, 3, **options)
    diffusion = model({"mean": 0, "std": 1, "transform": (None, "log")})
    with pytest.raises(ValueError, match=f"GaussianDiffusion: clips {re.escape(message)}"):
        diffusion(torch.zeros(1, 2, 2, 8, 8))


def test_a_range_that_is_refused_leaves_the_model_as_it_was():
    diffusion = model((0, 50))
    for wrong in ((5, 1), {"mean": 0, "std": 0}):
        with pytest.raises(ValueError, match="GaussianDiffusion: value_range must"):
            diffusion.set_value_range(wrong)
    assert diffusion.to_data_range(torch.zeros(1, 2, 1, 1, 1)).unique().item() == 25


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_clips_in_other_units_are_noticed(value):
    clips = torch.full((1, 2, 2, 8, 8), value)
    message = "the mean of clips must be near that of value_range, got one .* deviations away; give"
    with pytest.warns(UserWarning, match=message):
        model(PLAIN)(clips)


def test_more_clips_do_not_keep_a_run_from_going_on(rain, tmp_path):
    folder, _ = rain

    def trainer():
        return Trainer(
            model(None, num_frames=3),
            folder,
            value_range="standardize",
            train_batch_size=2,
            train_num_steps=1,
            results_folder=tmp_path / "results",
            num_workers=0,
            device="cpu",
            resume="auto",
        )

    first = trainer()
    first.save(1)
    np.save(folder / "more.npy", 300 + np.random.default_rng(1).random((2, 3, 8, 8)))
    again = trainer()
    assert again.model.config["value_range"] == first.model.config["value_range"]
    assert torch.equal(again.model.value_mean, first.model.value_mean)
    assert torch.equal(again.ema_model.value_mean, first.model.value_mean)


def test_other_mistakes(rain, tmp_path):
    folder, _ = rain
    message = "fit_clips must go with value_range='fit' or 'standardize', got (0, 1); leave it out"
    with pytest.raises(ValueError, match=re.escape(message)):
        Dataset(folder, 8, 2, 3, exts=None, value_range=(0, 1), fit_clips=2)
    clips = [torch.zeros(2, 2, 8, 8)] * 2
    for options in ({"value_transform": "log"}, {"value_transform": "log", "value_range": (0, 1)}):
        with pytest.raises(ValueError, match="value_transform must go with value_range='standard"):
            Trainer(model(None), dataset=clips, results_folder=tmp_path, device="cpu", **options)
    message = "value_transform must go with value_range='standardize', got 'fit'; leave it out"
    with pytest.raises(ValueError, match=message):
        Dataset(folder, 8, 2, 3, exts=None, value_range="fit", value_transform="log")
    (tmp_path / "flat").mkdir()
    np.save(tmp_path / "flat" / "0.npy", np.full((1, 3, 8, 8), 0.1, np.float32))
    message = "value_range='standardize' must find values that differ in each channel, got"
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / "flat", 8, 1, 3, exts=None, value_range="standardize")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.npy").write_bytes(b"nothing")
    message = "value_range='standardize' must find a file that can be read, got none; repair"
    with pytest.raises(ValueError, match=message):
        Dataset(tmp_path / "broken", 8, 1, 3, exts=None, value_range="standardize")


# Everything that takes clips or gives samples


@pytest.fixture
def heated(tmp_path):
    """A trained model of temperatures, and a file of them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "heat"
    folder.mkdir()
    for number in range(3):
        np.save(folder / f"{number}.npy", rng.normal(300, 5, (1, 4, 8, 8)).astype(np.float32))
    network = {"dim_mults": (1,), "channels": 1, "attn_heads": 1, "attn_dim_head": 8}
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 3, "objective": "pred_x_start"}
    trainer = Trainer(
        GaussianDiffusion(Unet3D(8, **network), **sizes),
        folder,
        value_range="standardize",
        results_folder=tmp_path / "results",
        train_num_steps=1,
        save_and_sample_every=1,
        num_sample_rows=1,
        train_batch_size=2,
        num_workers=0,
    )
    trainer.train()
    return load_diffusion(tmp_path / "results"), folder


def test_clips_and_samples_are_in_their_units_everywhere(heated):
    model, folder = heated
    clip = prepare_clip(folder / "0.npy", model)
    torch.testing.assert_close(clip[0], torch.from_numpy(np.load(folder / "0.npy")))
    quiet = {"steps": 2, "progress": False}
    longer = model.extend(clip, 6, **quiet)
    torch.testing.assert_close(longer[:, :, :4], clip)
    kept = torch.ones(8, 8, dtype=torch.bool)
    kept[2:5] = False
    filled = model.inpaint(clip, kept, **quiet)
    torch.testing.assert_close(filled[..., 5:, :], clip[..., 5:, :])
    smooth = model.interpolate_frames(clip, 2, **quiet)
    torch.testing.assert_close(smooth[:, :, ::2], clip)
    for found in (longer[:, :, 4:], filled[..., 2:5, :], smooth[:, :, 1::2]):
        assert found.isfinite().all()
        assert 200 < found.mean() < 400
    many = [clip[0] for clip in (prepare_clip(folder / f"{n}.npy", model) for n in range(3))] * 22
    result = evaluate_diffusion(model, many, Evaluation(count=66), progress=False)
    assert result["scores"]["random_feature_distance"] >= 0
    assert result["protocol"]["clips"]["value_range"]["mean"] == list(
        model.config["value_range"]["mean"]
    )
