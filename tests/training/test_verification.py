"""Verification of forecasts: baselines, what each clip gets, and what is left out."""

import math
import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Unet3D
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.evaluation.forecast_scores import ForecastScores
from video_diffusion_pytorch.evaluation.results import compare_results
from video_diffusion_pytorch.training.one_step import OneStepForecast, train_one_step
from video_diffusion_pytorch.training.verification import Verification, verify_forecasts

QUIET = {"progress": False, "num_workers": 0}
FRAMES = 6


def model(unet=None, **options):
    torch.manual_seed(0)
    network = {
        "dim_mults": (1,),
        "channels": 1,
        "attn_heads": 1,
        "attn_dim_head": 8,
        **(unet or {}),
    }
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 3, "objective": "pred_x_start"}
    return GaussianDiffusion(Unet3D(8, **network), **{**sizes, **options})


def waves(count, frames=FRAMES, seed=0):
    """Waves that travel one pixel per frame, at random phases, `(c, f, h, w)` in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x, t = torch.arange(8.0), torch.arange(float(frames))[:, None]
    clips = []
    for _ in range(count):
        phase = 8 * torch.rand((), generator=generator)
        clips.append((torch.sin(2 * math.pi * (x - t + phase) / 8) / 2 + 0.5)[None, :, None])
    return [clip.expand(1, frames, 8, 8) for clip in clips]


def verify(diffusion, data, training_data=None, exts=None, **settings):
    """The result, by default of two frames."""
    chosen = Verification(**{"frames": 2, "members": 2, "steps": 2, **settings})
    options = {**QUIET, **({} if exts is None else {"exts": exts})}
    return verify_forecasts(diffusion, data, chosen, training_data=training_data, **options)


def test_the_baselines_are_scored_as_forecasts():
    clips, trained = waves(5, 4), waves(6, 4, seed=1)
    result, example = verify(model(), clips, trained, initial_frames=2)
    truth = torch.stack(clips)[:, :, 2:]
    normal = torch.stack(trained).double().mean(dim=(0, 2))
    wanted = {
        "persistence": torch.stack(clips)[:, :, 1:2].expand_as(truth),
        "climatology": normal[None, :, None].expand_as(truth),
    }
    for name, forecast in wanted.items():
        scores = ForecastScores(climatology=normal)
        scores.add(forecast[:, None], truth)
        found, by_hand = result["by_lead_time"][name], scores.compute()
        assert found.keys() == by_hand.keys()
        for score, values in by_hand.items():
            np.testing.assert_allclose(found[score], values, atol=1e-12, err_msg=score)
        mean = by_hand["crps"].mean().item()
        assert result["baselines"][name]["crps"] == pytest.approx(mean)
    assert example.truth.shape == (1, 2, 8, 8)
    assert example.members.shape == (2, 1, 2, 8, 8)
    torch.testing.assert_close(example.initial, clips[0][:, :2])


def test_without_training_clips_there_is_no_climatology():
    result, _ = verify(model(), waves(3, 3))
    assert [*result["baselines"]] == ["persistence"]
    assert "acc" not in result["scores"]
    assert result["protocol"]["climatology"] is False


def test_a_forecast_of_a_clip_is_the_same_in_any_batch():
    diffusion, clips = model(given_frames=2, unet={"cond_channels": 2}), waves(5, 6)
    found = [
        verify(diffusion, clips, frames=4, max_batch=most)[0]["by_lead_time"]["model"]
        for most in (2, 6, 100)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other["crps"], found[0]["crps"], rtol=1e-5)
    seeds = verify(diffusion, clips, frames=4, seed=1)[0]["by_lead_time"]["model"]
    assert seeds["crps"] != found[0]["crps"]


def test_members_are_scored_in_the_units_of_the_clips(tmp_path):
    """The same forecasts, whatever the unit: scores scale with it."""
    for name, scale in (("m", 1.0), ("km", 1000.0)):
        (tmp_path / name).mkdir()
        for number, clip in enumerate(waves(3, 6)):
            np.save(tmp_path / name / f"{number}.npy", clip.numpy() * scale)
    found = {}
    for name in ("m", "km"):
        clips = Dataset(tmp_path / name, 8, 1, 6, exts="npy", value_range="standardize")
        diffusion = model(value_range=clips.value_range.plain())
        result, _ = verify(diffusion, tmp_path / name, exts="npy")
        found[name] = result
    ratio = found["km"]["scores"]["crps"] / found["m"]["scores"]["crps"]
    assert ratio == pytest.approx(1000, rel=1e-3)
    assert found["km"]["scores"]["vrmse"] == pytest.approx(found["m"]["scores"]["vrmse"], rel=1e-3)


def test_conditions_are_those_of_the_clips(monkeypatch):
    diffusion = model(unet={"num_classes": 3})
    seen = []
    forecast = diffusion.forecast

    def watched(start, frames, **options):
        seen.append(options["labels"])
        return forecast(start, frames, **options)

    monkeypatch.setattr(diffusion, "forecast", watched)
    clips = [{"video": clip, "labels": number} for number, clip in enumerate(waves(3, 3))]
    verify(diffusion, clips, max_batch=4)
    assert torch.cat(seen).tolist() == [0, 1, 2]


def test_forecasts_that_diverge_are_counted_and_left_out(monkeypatch):
    diffusion, clips = model(), waves(4, 3)
    truth = torch.stack(clips)[:, :, 1:]

    def forecast(start, frames, seed, **options):
        found = truth[:, None].repeat(1, 2, 1, 1, 1, 1)
        found[2, 1, :, 1] = math.nan
        return found

    monkeypatch.setattr(diffusion, "forecast", forecast)
    result, _ = verify(diffusion, clips)
    assert result["scores"]["diverged_forecasts"] == 1
    assert result["scores"]["crps"] == result["scores"]["rmse"] == 0
    # the baselines are scored on the same clips
    kept = torch.stack([*clips[:2], clips[3]])
    by_hand = ForecastScores()
    by_hand.add(kept[:, None, :, :1].expand(-1, -1, -1, 2, -1, -1), kept[:, :, 1:])
    found = result["by_lead_time"]["persistence"]["rmse"]
    np.testing.assert_allclose(found, by_hand.compute()["rmse"])


def test_if_all_diverge_there_is_no_result(monkeypatch):
    diffusion = model()
    lost = torch.full((1, 2, 1, 2, 8, 8), math.nan)
    monkeypatch.setattr(
        diffusion, "forecast", lambda start, *_, **__: lost.expand(len(start), -1, -1, -1, -1, -1)
    )
    with pytest.raises(FloatingPointError, match="NaN or infinite values in all 4; the model has"):
        verify(diffusion, waves(4, 3))


def test_missing_values_are_not_scored():
    clips = [clip.clone() for clip in waves(4, 3)]
    for clip in clips:
        clip[..., :3] = math.nan
    result, _ = verify(model(missing="mask"), clips)
    whole = [clip[..., 3:].contiguous() for clip in waves(4, 3)]
    by_hand = ForecastScores()
    by_hand.add(
        torch.stack(whole)[:, None, :, :1].expand(-1, -1, -1, 2, -1, -1),
        torch.stack(whole)[:, :, 1:],
    )
    found = result["by_lead_time"]["persistence"]
    np.testing.assert_allclose(found["rmse"], by_hand.compute()["rmse"], rtol=1e-6)
    # which those of a part of the frame would not be
    assert "truth_spectrum" not in found


def test_the_one_step_network_learns_what_moves():
    diffusion = model(unet={"padding_mode": "circular"})
    clips, trained = waves(6, 6), waves(24, 4, seed=1)
    result, _ = verify(diffusion, clips, trained, frames=4, initial_frames=2, one_step=100)
    errors = {name: found["rmse"] for name, found in result["baselines"].items()}
    assert errors["one-step network"] < errors["persistence"] / 3
    assert errors["one-step network"] < errors["climatology"] / 2


def test_the_one_step_network_has_the_size_of_the_models():
    sizes = {"cond_channels": 2, "num_classes": 3, "dim_mults": (1, 2)}
    diffusion = model(given_frames=1, unet=sizes)
    network = OneStepForecast(diffusion, 1).network
    own = diffusion.denoise_fn.config
    changed = {name for name, value in network.config.items() if own[name] != value}
    assert changed == {"cond_channels", "num_classes"}
    # and the model is not trained
    before = [p.clone() for p in diffusion.parameters()]
    train_one_step(diffusion, waves(3), 1, 2, progress=False)
    assert all(map(torch.equal, before, diffusion.parameters()))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"frames": 0}, "Verification: frames must be at least 1, got 0"),
        ({"members": 1}, "Verification: members must be at least 2, got 1"),
        ({"frames": 9}, "clips must have 10 frames, 1 known ones and 9 to forecast, got 3; change"),
        ({"velocity": (0, 1)}, "velocity must be two of the 1 channels, from 0 on, got (0, 1)"),
        ({"spacing": (0, 1)}, "spacing must be above 0, got (0, 1); correct it"),
        ({"latitudes": [0, 1]}, "latitudes must be those of the 8 rows, got [0, 1]; correct it"),
        ({"one_step": 5}, "one_step must go with the training clips, got none; pass training_data"),
    ],
)
def test_mistakes(settings, line):
    with pytest.raises(ValueError, match=re.escape(line)):
        verify(model(), waves(3, 3), **settings)


def test_keywords_of_a_folder_go_with_one():
    with pytest.raises(TypeError, match="exts must go with a folder of clips, got a list; leave"):
        verify_forecasts(model(), waves(3, 3), exts="npy")


def test_results_with_and_without_the_one_step_network_compare():
    found = [verify(model(), waves(3, 3), waves(3, 4), one_step=n)[0] for n in (0, 1)]
    assert [result["one_step"] for result in found] == [0, 1]
    assert compare_results([{"format": 1, **result} for result in found])["crps"][0] > 0


def test_the_one_step_network_needs_a_frame_to_predict():
    message = "initial_frames must be fewer than the 4 of a training clip for one_step, got 4"
    with pytest.raises(ValueError, match=message):
        verify(model(), waves(3, 6), waves(3, 6), initial_frames=4, one_step=2)


def test_clips_that_are_resampled_in_training_are_so_here(tmp_path):
    for number, clip in enumerate(waves(3, 9)):
        np.save(tmp_path / f"{number}.npy", clip.numpy())
    diffusion = model()
    diffusion.clip_info = ClipInfo(settings={"fit_frames": "all"})
    result, example = verify(diffusion, tmp_path, exts="npy")
    whole = np.load(tmp_path / "0.npy")
    np.testing.assert_allclose(example.truth, whole[:, [4, 8]])
    assert result["protocol"]["clips"]["fit_frames"] == "all"
