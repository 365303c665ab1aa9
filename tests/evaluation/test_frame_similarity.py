"""PSNR, SSIM and LPIPS of predicted frames."""

import sys

import pytest
import torch

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.evaluation.frame_similarity import MOST_PSNR, FrameSimilarity

torchmetrics = pytest.importorskip("torchmetrics")


def similarity(measures=("psnr", "ssim"), size=(16, 16), channels=3, **options):
    return FrameSimilarity(measures, size=size, channels=channels, **options)


def test_known_errors():
    found = similarity()
    real = torch.rand(2, 3, 4, 16, 16)
    shifted = real.clone()
    shifted[0] += 0.1  # 20 dB
    shifted[1] += 0.01  # 40 dB
    found.add(shifted, real)
    assert found.compute()["psnr"] == pytest.approx(30, abs=1e-3)
    assert 0.9 < found.compute()["ssim"] < 1


def test_frames_that_are_predicted_exactly_have_a_finite_psnr():
    found = similarity()
    black = torch.zeros(1, 3, 2, 16, 16)
    found.add(black, black)
    assert found.compute() == {"psnr": MOST_PSNR, "ssim": pytest.approx(1)}


def test_each_frame_counts_as_in_torchmetrics():
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    torch.manual_seed(0)
    real, drawn = torch.rand(2, 3, 1, 4, 16, 16)
    found = similarity(channels=1)
    # in batches of different lengths
    found.add(drawn[:1], real[:1])
    found.add(drawn[1:], real[1:])
    ours, theirs = (v.reshape(12, 1, 16, 16) for v in (drawn, real))
    assert found.compute()["ssim"] == pytest.approx(ssim(ours, theirs, data_range=1.0).item())


def test_lpips_of_a_function():
    seen = []

    def distances(ours, theirs):
        seen.append((ours.shape, ours.min().item(), theirs.max().item()))
        return (ours - theirs).abs().mean((1, 2, 3))

    found = similarity((), channels=1, lpips=distances, name="mean difference")
    found.add(torch.zeros(2, 1, 3, 16, 16), torch.ones(2, 1, 3, 16, 16))
    assert found.compute() == {"lpips": pytest.approx(2)}
    assert seen == [((6, 3, 16, 16), -1, 1)]
    assert found.protocol["lpips"] == {"name": "mean difference"}


def test_lpips_of_torchmetrics(monkeypatch):
    # what torchvision would fetch
    from torchvision import models

    torch.manual_seed(0)
    weights = models.squeezenet1_1().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *a, **k: weights)
    found = similarity((), size=(64, 64), lpips="squeeze")
    assert found.protocol["lpips"] == "torchmetrics, squeeze"
    real = torch.rand(1, 3, 2, 64, 64)
    found.add(real, real)
    assert found.compute()["lpips"] == pytest.approx(0, abs=1e-6)
    found.add(1 - real, real)
    assert found.compute()["lpips"] > 1e-4


def test_processes_together_equal_one():
    real, drawn = torch.rand(2, 5, 1, 2, 16, 16)
    whole, parts = similarity(channels=1), [similarity(channels=1) for _ in range(3)]
    whole.add(drawn, real)
    for part, rows in zip(parts, (slice(3), slice(3, 5), slice(5, 5)), strict=True):
        part.add(drawn[rows], real[rows])
    for found in in_turns([part.over_processes for part in parts]):
        assert found == pytest.approx(whole.compute())


def test_invalid_measures_and_frames(monkeypatch):
    with pytest.raises(
        ValueError, match=r"measures must be among psnr, ssim, got 'lpips'; LPIPS has"
    ):
        similarity(("lpips",))
    with pytest.raises(ValueError, match=r"for SSIM frames must have at least 11 x 11 pixels, got"):
        similarity(size=(8, 16))
    with pytest.raises(ValueError, match=r"for LPIPS frames must have 1 or 3 channels, got 2"):
        similarity(channels=2, lpips="alex")
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(ValueError, match=r"must have torchmetrics, got none; install it, as in"):
        similarity()
