"""Scores of ensemble forecasts: against other libraries and closed forms."""

import math
import re

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.evaluation.forecast_scores import (
    ForecastScores,
    energy_spectrum,
    flow_derivatives,
    latitude_weights,
)


def gaussian(b=40, m=10, c=2, f=3, h=12, w=16, seed=0, spread=1.0, bias=0.0):
    """Members and truth, which are exchangeable if `spread` is 1 and `bias` is 0."""
    draws = torch.Generator().manual_seed(seed)
    known = torch.randn(b, 1, c, f, h, w, generator=draws, dtype=torch.float64)
    both = torch.randn(b, m + 1, c, f, h, w, generator=draws, dtype=torch.float64)
    return known + bias + spread * both[:, :m], known[:, 0] + both[:, m]


def scored(members, truth, mask=None, **options):
    scores = ForecastScores(**options)
    scores.add(members, truth, mask)
    return scores.compute()


# Oracles


def test_the_crps_is_that_of_scoringrules():
    scoringrules = pytest.importorskip("scoringrules")
    members, truth = gaussian(b=3, m=5)
    theirs = scoringrules.crps_ensemble(
        truth.numpy(), members.movedim(1, -1).numpy(), estimator="fair"
    )
    ours = scored(members, truth)["crps"]
    np.testing.assert_allclose(ours, theirs.mean(axis=(0, 3, 4)), rtol=1e-12)


def test_the_root_mean_square_error_is_that_of_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics")
    members, truth = gaussian(b=3, m=4)
    metric = torchmetrics.MeanSquaredError(squared=False).set_dtype(torch.float64)
    found = scored(members, truth)["rmse"]
    for channel in range(2):
        for frame in range(3):
            metric.reset()
            where = (slice(None), channel, frame)
            metric.update(members.mean(dim=1)[where].contiguous(), truth[where].contiguous())
            assert found[channel, frame].item() == pytest.approx(metric.compute().item(), rel=1e-9)


def test_definitions_in_numpy():
    """One forecast after the other, with weights and a climatology."""
    members, truth = gaussian(b=4, m=3)
    weights = latitude_weights(torch.linspace(-80, 80, 12))
    normal = torch.randn(2, 12, 16, dtype=torch.float64)
    found = scored(members, truth, weights=weights, climatology=normal)
    area = weights.expand(12, 16).numpy()
    x, y, usual = members.numpy(), truth.numpy(), normal.numpy()
    for c in range(2):
        for f in range(3):
            mse, vrmse, acc, crps, variance = [], [], [], [], []
            for b in range(4):
                mean, real = x[b, :, c, f].mean(axis=0), y[b, c, f]
                mse.append(np.average((mean - real) ** 2, weights=area))
                centre = np.average(real, weights=area)
                share = area / area.sum()
                var = np.average((real - centre) ** 2, weights=area) / (1 - (share**2).sum())
                vrmse.append(math.sqrt(mse[-1] / (var + 1e-7)))
                ours, theirs = mean - usual[c], real - usual[c]
                acc.append(
                    (area * ours * theirs).sum()
                    / math.sqrt((area * ours**2).sum() * (area * theirs**2).sum())
                )
                error = np.abs(x[b, :, c, f] - real).mean(axis=0)
                pairs = [np.abs(x[b, i, c, f] - x[b, j, c, f]) for i in range(3) for j in range(3)]
                crps.append(np.average(error - sum(pairs) / (2 * 3 * 2), weights=area))
                variance.append(np.average(x[b, :, c, f].var(axis=0, ddof=1), weights=area))
            wanted = {
                "rmse": math.sqrt(np.mean(mse)),
                "vrmse": np.mean(vrmse),
                "acc": np.mean(acc),
                "crps": np.mean(crps),
                "spread": math.sqrt(np.mean(variance)),
            }
            for name, value in wanted.items():
                assert found[name][c, f].item() == pytest.approx(value, rel=1e-10), name


def test_vrmse_of_one_frame_is_that_of_the_well():
    """Its code: the error's mean square over torch.std squared plus 1e-7, and the root."""
    members, truth = gaussian(b=1, m=1, c=1, f=1)
    mse = (members[:, 0] - truth).square().mean()
    wanted = (mse / (torch.std(truth) ** 2 + 1e-7)).sqrt()
    assert scored(members, truth)["vrmse"].item() == pytest.approx(wanted.item(), rel=1e-10)


# Closed forms


def test_members_that_are_exchangeable_with_the_truth():
    m = 10
    found = scored(*gaussian(m=m))
    assert (found["spread_skill"] - 1).abs().max() < 0.02
    assert (found["rank_histogram"] - 1 / (m + 1)).abs().max() < 0.01
    assert (found["coverage"] - found["nominal_coverage"]).abs().max() < 0.02
    # fair: the expected score of a Gaussian of deviation 1, whatever the number of members
    assert (found["crps"] - 1 / math.sqrt(math.pi)).abs().max() < 0.015
    few = scored(*gaussian(m=2))
    assert (few["crps"] - 1 / math.sqrt(math.pi)).abs().max() < 0.02
    # the mean of m members errs by the truth's own deviation and its own
    assert (found["rmse"] - math.sqrt(1 + 1 / m)).abs().max() < 0.02


def test_faults_of_an_ensemble_are_seen():
    right, narrow, wide, biased = (
        scored(*gaussian(**fault)) for fault in ({}, {"spread": 0.5}, {"spread": 2.0}, {"bias": 1})
    )
    assert narrow["spread_skill"].max() < 0.6
    assert wide["spread_skill"].min() > 1.5
    # too narrow: the truth is often outside of all members
    assert narrow["rank_histogram"][..., [0, -1]].min() > 2 / 11
    assert wide["rank_histogram"][..., [0, -1]].max() < 0.5 / 11
    assert (narrow["coverage"] < narrow["nominal_coverage"]).all()
    assert (wide["coverage"] > wide["nominal_coverage"]).all()
    assert (biased["rank_histogram"][..., 0] > 3 * biased["rank_histogram"][..., -1]).all()
    for fault in (narrow, wide, biased):
        assert (fault["crps"] > right["crps"]).all()


def test_a_perfect_forecast():
    _, truth = gaussian(b=2)
    found = scored(
        truth[:, None].expand(-1, 3, -1, -1, -1, -1),
        truth,
        climatology=torch.zeros(2, 12, 16),
        velocity=(0, 1),
    )
    for name in ("rmse", "vrmse", "crps", "spread"):
        assert found[name].abs().max() < 1e-12
    assert (found["acc"] - 1).abs().max() < 1e-12
    torch.testing.assert_close(found["members_spectrum"], found["truth_spectrum"])
    torch.testing.assert_close(found["members_enstrophy"], found["truth_enstrophy"])
    # all members tie with the truth
    torch.testing.assert_close(
        found["rank_histogram"], torch.full((2, 3, 4), 0.25, dtype=torch.float64)
    )


def test_one_member_is_a_deterministic_forecast():
    members, truth = gaussian(b=2, m=1)
    found = scored(members, truth)
    torch.testing.assert_close(found["crps"], (members[:, 0] - truth).abs().mean(dim=(0, 3, 4)))
    assert not {"spread", "spread_skill", "rank_histogram", "coverage"} & {*found}


# Masks, batches and processes


def test_masked_values_do_not_count():
    members, truth = gaussian(b=3, m=4)
    mask = torch.ones(12, 16, dtype=torch.bool)
    mask[:, 8:] = False
    whole = scored(members[..., :8], truth[..., :8], climatology=torch.zeros(2, 12, 8))
    broken = truth.clone()
    broken[..., 8:] = math.nan
    normal = torch.zeros(2, 12, 16)
    normal[..., 8:] = math.nan
    found = scored(members, broken, mask, climatology=normal)
    assert {*whole} - {*found} == {
        "members_spectrum",
        "truth_spectrum",
        *(f"spectral_error_{band}" for band in ("low", "middle", "high")),
    }
    for name, values in found.items():
        torch.testing.assert_close(values, whole[name])


def test_points_of_no_weight_do_not_count():
    members, truth = gaussian(b=3, m=4)
    weights = torch.ones(12, 16)
    weights[:, 8:] = 0
    whole = scored(members[..., :8], truth[..., :8])
    found = scored(members, truth, weights=weights)
    for name in ("rmse", "vrmse", "crps", "spread_skill", "rank_histogram", "coverage"):
        torch.testing.assert_close(found[name], whole[name])


def test_processes_with_and_without_a_mask_have_the_same_sums():
    members, truth = gaussian(b=3, m=4)
    mask = torch.ones(12, 16, dtype=torch.bool)
    mask[0] = False
    sides = [ForecastScores(velocity=(0, 1)) for _ in range(2)]
    sides[0].add(members, truth)
    sides[1].add(members, truth, mask)
    assert [*sides[0]._sums] == [*sides[1]._sums]


def test_batches_and_processes_add_up():
    members, truth = gaussian(b=7, m=4)
    options = {"climatology": torch.zeros(2, 12, 16), "velocity": (1, 0)}
    whole = scored(members, truth, **options)
    parts = [ForecastScores(**options) for _ in range(2)]
    parts[0].add(members[:3], truth[:3])
    parts[1].add(members[3:5], truth[3:5])
    parts[1].add(members[5:], truth[5:])

    def total(values):
        # of the other process the same entry, found by its place
        return values + next(others)

    others = iter(parts[1]._sums[name] for name in sorted(parts[1]._sums))
    joined = parts[0].over_processes(total).compute()
    assert {*joined} == {*whole}
    for name, values in joined.items():
        torch.testing.assert_close(values, whole[name])


def test_only_the_first_ones_count():
    members, truth = gaussian(b=3, m=2)
    scores = ForecastScores()
    scores.add(members, truth, counted=2)
    whole = scored(members[:2], truth[:2])
    for name, values in scores.compute().items():
        torch.testing.assert_close(values, whole[name])


# Spectra and derivatives


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 8)])
def test_the_spectrum_sums_to_half_of_the_mean_square(size):
    fields = torch.randn(3, 2, *size, dtype=torch.float64)
    total = energy_spectrum(fields).sum(dim=-1)
    torch.testing.assert_close(total, fields.square().mean(dim=(-2, -1)) / 2)


def test_a_wave_has_one_wavenumber_of_the_longer_side():
    x = torch.arange(64, dtype=torch.float64) * 0.5
    wave = torch.sin(2 * math.pi * 3 * x / 32).expand(16, 64)
    spectrum = energy_spectrum(wave, spacing=(2.0, 0.5))
    assert spectrum.argmax() == 3
    assert spectrum[3].item() == pytest.approx(0.25)
    assert spectrum.sum().item() == pytest.approx(0.25)


def test_the_spectral_error_of_a_smoothed_forecast_is_at_small_scales():
    _, truth = gaussian(b=4, c=1, f=1, h=32, w=32)
    modes = torch.fft.fft2(truth)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.fftfreq(32)) * 32
    smooth = torch.fft.ifft2(modes * (frequency < 12)).real
    found = scored(smooth[:, None], truth)
    assert abs(found["spectral_error_low"].item()) < 1e-9
    assert found["spectral_error_high"].item() < -0.6
    louder = scored(2 * truth[:, None], truth)
    for band in ("low", "middle", "high"):
        assert louder[f"spectral_error_{band}"].item() == pytest.approx(3)


@pytest.mark.parametrize("periodic", [(True, True), (False, False), (True, False)])
def test_derivatives_of_a_known_flow(periodic):
    """Solid rotation with a source, or on a periodic axis waves."""
    h, w, dy, dx = 64, 48, 0.1, 0.2
    y = torch.arange(h, dtype=torch.float64)[:, None] * dy
    x = torch.arange(w, dtype=torch.float64) * dx
    along_y = torch.sin(2 * math.pi * y / (h * dy)) if periodic[0] else 3 * y
    along_x = torch.sin(2 * math.pi * x / (w * dx)) if periodic[1] else 2 * x
    slope_y = 2 * math.pi / (h * dy) * torch.cos(2 * math.pi * y / (h * dy)) if periodic[0] else 3
    slope_x = 2 * math.pi / (w * dx) * torch.cos(2 * math.pi * x / (w * dx)) if periodic[1] else 2
    u, v = along_x - along_y, along_x + along_y
    divergence, vorticity = flow_derivatives(u, v, (dy, dx), periodic)
    size = torch.zeros(h, w, dtype=torch.float64)
    torch.testing.assert_close(divergence, size + slope_x + slope_y, rtol=0, atol=0.01)
    torch.testing.assert_close(vorticity, size + slope_x + slope_y, rtol=0, atol=0.01)


def test_flows_are_scored():
    members, truth = gaussian(b=2, m=3)
    found = scored(members, truth, velocity=(0, 1), periodic=(True, True))
    divergence, vorticity = flow_derivatives(truth[:, 0], truth[:, 1], (1, 1), (True, True))
    torch.testing.assert_close(
        found["truth_divergence"], divergence.square().mean(dim=(0, 2, 3)).sqrt()
    )
    torch.testing.assert_close(found["truth_enstrophy"], vorticity.square().mean(dim=(0, 2, 3)) / 2)
    assert found["members_divergence"].shape == (3,)


# Errors


def broken(members):
    members = members.clone()
    members[0, 0, 0, 0, 0, 0] = math.inf
    return members


@pytest.mark.parametrize(
    ("members", "truth", "message"),
    [
        (
            torch.zeros(2, 2, 3, 8, 8),
            torch.zeros(2, 2, 3, 8, 8),
            "ForecastScores: members must be (b, m, c, f, h, w) and truth (b, c, f, h, w), got "
            "(2, 2, 3, 8, 8) and (2, 2, 3, 8, 8); add or remove axes",
        ),
        (
            torch.zeros(2, 4, 2, 3, 8, 8),
            torch.zeros(2, 2, 4, 8, 8),
            "got (2, 4, 2, 3, 8, 8) and (2, 2, 4, 8, 8); add or remove axes",
        ),
        (
            broken(torch.zeros(2, 4, 2, 3, 8, 8)),
            torch.zeros(2, 2, 3, 8, 8),
            "ForecastScores: members and truth must be finite where the mask is true, got NaN or "
            "infinite values; mask missing values, or leave out forecasts that diverged",
        ),
    ],
)
def test_forecasts_that_cannot_be_scored(members, truth, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ForecastScores().add(members, truth)


def test_batches_of_other_sizes():
    scores = ForecastScores()
    scores.add(*gaussian(b=1, m=4))
    message = (
        "ForecastScores: batches must have (4, 2, 3) members, channels and frames, as the first "
        "one, got (5, 2, 3); score them apart"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        scores.add(*gaussian(b=1, m=5))


@pytest.mark.parametrize("shape", [(16,), (16, 1), (12, 16, 1)])
def test_weights_of_another_shape(shape):
    message = "weights must be (12, 16), (12, 1) or (1, 16), got " + str(shape)
    with pytest.raises(ValueError, match=re.escape(message)):
        scored(*gaussian(b=1, m=2), weights=torch.ones(shape))


def test_other_mistakes():
    with pytest.raises(ValueError, match="must be a forecast to score, got none; call add first"):
        ForecastScores().compute()
    message = "weights must be at least 0, and not all 0, got from -1 to 2; pass areas, such as"
    with pytest.raises(ValueError, match=message):
        ForecastScores(torch.tensor([[-1.0], [2.0]]))
    message = "climatology must be (2, 12, 16) or (2, 3, 12, 16), got (12, 16); average the"
    with pytest.raises(ValueError, match=re.escape(message)):
        scored(*gaussian(b=1, m=2), climatology=torch.zeros(12, 16))
    message = "latitudes must be a list of degrees from -90 to 90, got (2,) values from 0 to 91"
    with pytest.raises(ValueError, match=re.escape(message)):
        latitude_weights([0, 91])


def test_a_batch_of_which_none_counts_changes_nothing():
    """As a process has that has got fewer forecasts than others."""
    members, truth = torch.randn(3, 4, 2, 2, 8, 8), torch.randn(3, 2, 2, 8, 8)
    options = {"climatology": torch.zeros(2, 8, 8), "velocity": (0, 1)}
    for periodic in ((True, True), (False, False)):
        one, other = (ForecastScores(**options, periodic=periodic) for _ in range(2))
        one.add(members, truth)
        other.add(members, truth, counted=0)
        other.add(members, truth)
        for name, values in one.compute().items():
            torch.testing.assert_close(other.compute()[name], values, msg=name)


def test_spectra_and_flows_are_those_of_whole_frames_in_any_batch():
    torch.manual_seed(0)
    members, truth = torch.randn(3, 4, 2, 2, 8, 8), torch.randn(3, 2, 2, 8, 8)
    mask = torch.ones_like(truth, dtype=torch.bool)
    mask[1, 1, 0, 2, 3] = False
    together, apart = (ForecastScores(velocity=(0, 1)) for _ in range(2))
    together.add(members, truth, mask)
    for row in range(3):
        apart.add(members[row : row + 1], truth[row : row + 1], mask[row : row + 1])
    found = together.compute()
    for name, values in apart.compute().items():
        torch.testing.assert_close(found[name], values, msg=name)
    spectra = energy_spectrum(truth)
    # a gap in channel 1 says nothing of channel 0
    torch.testing.assert_close(found["truth_spectrum"][0], spectra[:, 0].mean(dim=0))
    torch.testing.assert_close(found["truth_spectrum"][1, 0], spectra[[0, 2], 1, 0].mean(dim=0))
    whole = ForecastScores(velocity=(0, 1))
    whole.add(members[[0, 2]], truth[[0, 2]])
    torch.testing.assert_close(found["truth_enstrophy"][0], whole.compute()["truth_enstrophy"][0])
