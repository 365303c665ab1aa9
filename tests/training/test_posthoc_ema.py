"""Averages of any width from snapshots, against averages of all weights."""

import copy
import json
import logging
import math
import weakref

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import load_diffusion, posthoc_average
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.training import posthoc_ema
from video_diffusion_pytorch.training.checkpoint import Checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.ema import STDS, Averages, decay_at, gamma_of
from video_diffusion_pytorch.training.posthoc_ema import (
    inner_product,
    list_snapshots,
    plan_average,
    snapshot_weights,
)

LARGEST = 12**-0.5


def profile(std, end, count):
    """The shares of `count` equal parts of the time up to 1 in the average that ends at `end`."""
    borders = np.minimum(np.arange(count + 1) / count / end, 1) ** (gamma_of(std) + 1)
    return np.diff(borders)


# power functions


@pytest.mark.parametrize("std", [0.001, 0.01, 0.05, 0.1, 0.2, 0.28, LARGEST])
def test_the_power_function_of_a_width_has_that_width(std):
    gamma = gamma_of(std)
    assert gamma >= 0
    width = math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)))
    assert width == pytest.approx(std, rel=1e-9)
    # and so do the shares of small times
    shares, times = profile(std, 1.0, 200_000), (np.arange(200_000) + 0.5) / 200_000
    mean = shares @ times
    assert np.sqrt(shares @ (times - mean) ** 2) == pytest.approx(std, rel=1e-4)


def test_the_largest_width_is_that_of_the_mean():
    assert gamma_of(LARGEST) == pytest.approx(0, abs=1e-9)
    assert gamma_of(0.0001) > 9000


@pytest.mark.parametrize("std", [0, -0.1, 0.29, math.nan, math.inf])
def test_a_width_out_of_range_is_refused(std):
    with pytest.raises(ValueError, match=rf"std must be in \(0, 0.2886\], got {std}; 0.1 averages"):
        gamma_of(std)


@pytest.mark.parametrize("std", [0.03, 0.1, LARGEST])
def test_updates_weigh_weights_by_the_power_function(std):
    share = np.zeros(50)
    for update in range(1, 51):
        decay = decay_at("posthoc", std, update)
        share *= decay
        share[update - 1] += 1 - decay
    np.testing.assert_allclose(share, profile(std, 1.0, 50), atol=1e-13)


@pytest.mark.parametrize(
    ("one", "other"),
    [((0.1, 1.0), (0.05, 0.4)), ((0.05, 0.3), (0.2, 0.3)), ((LARGEST, 1), (0.1, 1))],
)
def test_the_inner_product_is_the_integral_of_the_product(one, other):
    exact = inner_product(gamma_of(one[0]), one[1], gamma_of(other[0]), other[1])
    assert exact == inner_product(gamma_of(other[0]), other[1], gamma_of(one[0]), one[1])
    count = 100_000
    shares = profile(*one, count) @ profile(*other, count) * count
    assert exact == pytest.approx(shares, rel=1e-4)


# weights of snapshots


def even(count, end=1.0):
    """Widths and times of evenly spaced snapshots."""
    return [*STDS] * count, np.repeat(np.arange(1, count + 1) * end / count, 2).tolist()


@pytest.mark.parametrize("count", [1, 7, 40])
def test_a_stored_average_is_made_of_itself(count):
    stds, times = even(count)
    for place in {0, len(stds) // 2, len(stds) - 1}:
        given = [time <= times[place] for time in times]
        kept = [
            [v for v, is_given in zip(of, given, strict=True) if is_given] for of in (stds, times)
        ]
        weights, error = snapshot_weights(*kept, stds[place], times[place])
        expected = np.eye(len(weights))[place]
        np.testing.assert_allclose(weights, expected, atol=1e-9)
        assert error < 1e-6


@pytest.mark.parametrize("std", [0.02, 0.035, 0.07, 0.15, 0.25])
def test_weights_make_the_profile_up_to_the_error_told(std):
    stds, times = even(25)
    weights, error = snapshot_weights(stds, times, std, 1.0)
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    count = 50_000
    made = sum(w * profile(s, t, count) for w, s, t in zip(weights, stds, times, strict=True))
    wanted = profile(std, 1.0, count)
    distance = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert error == pytest.approx(distance, rel=1e-3)
    # the least of all that sum to one
    rng = np.random.default_rng(0)
    products, scale = [profile(s, t, 500) for s, t in zip(stds, times, strict=True)], 1e-3
    coarse = profile(std, 1.0, 500)
    least = np.linalg.norm(np.array(weights) @ products - coarse)
    for _ in range(20):
        change = rng.normal(size=len(weights)) * scale
        other = np.array(weights) + change - change.mean()
        assert np.linalg.norm(other @ products - coarse) > least - 1e-4 * np.linalg.norm(coarse)


def test_more_snapshots_make_better_averages_of_any_unit_of_time():
    errors = [snapshot_weights(*even(count), 0.03, 1.0)[1] for count in (5, 10, 20, 40, 80)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 < errors[0]
    first, second = (snapshot_weights(*even(20, end), 0.03, end) for end in (1.0, 100_000.0))
    np.testing.assert_allclose(first[0], second[0], rtol=1e-6)


def test_an_average_that_is_given_twice_is_no_obstacle():
    stds, times = even(4)
    weights, error = snapshot_weights(stds * 2, times * 2, 0.07, 1.0)
    once, same_error = snapshot_weights(stds, times, 0.07, 1.0)
    halves = np.array(weights).reshape(2, -1)
    np.testing.assert_allclose(halves.sum(0), once, atol=1e-9)
    assert error == pytest.approx(same_error, rel=1e-6)


# averages of a training


def flat(model):
    """Weights, and buffers that change or stay, of a model in float64."""
    return torch.cat([t.double().flatten() for t in model.state_dict().values()])


def train(make_trainer, *, every=1, **options):
    """A trained trainer, and its weights at each update of the averages, `(updates, n)`."""
    settings = {"ema_decay": "posthoc", "update_ema_every": every, "train_num_steps": 24}
    settings |= {"save_and_sample_every": 24, "num_sample_rows": 1, "snapshot_every": 2}
    trainer, seen = make_trainer(**{**settings, **options}), []

    def note(log):
        if (log["step"] - 1) % every == 0:
            seen.append(flat(trainer.model))

    trainer.train(log_fn=note)
    return trainer, torch.stack(seen)


@pytest.fixture
def trained(make_trainer):
    return train(make_trainer)


@pytest.mark.parametrize("std", [0.03, 0.05, 0.07, 0.1, 0.15, 0.22])
def test_it_is_the_average_of_all_weights_up_to_the_error_told(trained, std):
    trainer, weights = trained
    folder, count = trainer.results_folder, len(weights)
    assert count == 24
    average = posthoc_average(folder, std)
    direct = torch.from_numpy(profile(std, 1.0, count)) @ weights
    found = (flat(average) - direct).abs()
    # Cauchy-Schwarz: both are integrals over the weights, up to the rounding of float32
    gamma, error = gamma_of(std), plan_average(folder, std).error
    norm = math.sqrt(inner_product(gamma, 1.0, gamma, 1.0))
    spread = (weights - weights.mean(0)).pow(2).mean(0).sqrt()
    assert (found <= error * norm * spread + 3e-6 * (1 + direct.abs())).all()
    moved = (weights[-1] - weights[0]).abs().max()
    assert moved > 0.1
    assert found.max() < 0.01 * moved
    # it is a model, and all that does not change is as it was
    assert not average.training
    given, buffers = average.state_dict(), dict(trainer.model.named_buffers())
    constant = given.keys() & buffers.keys()
    assert "betas" in constant
    assert all(torch.equal(given[name], buffers[name]) for name in constant)
    assert average.config == trainer.model.config


@pytest.mark.parametrize("std", STDS)
def test_a_stored_width_gives_the_stored_average(trained, std):
    trainer, _ = trained
    for step in (2, 14, 24):
        file = trainer.results_folder / f"averages-{step}.pt"
        stored = load_diffusion(file, averaged=std)
        made = posthoc_average(trainer.results_folder, std, step=step)
        torch.testing.assert_close(flat(made), flat(stored), rtol=0, atol=1e-7)
    assert torch.equal(flat(stored), flat(trainer.averages.choose(std)))
    assert torch.equal(flat(load_diffusion(file)), flat(trainer.ema_model))
    assert trainer.ema_model is trainer.averages.choose(0.1)


@pytest.mark.parametrize("every", [3, 5])
def test_averages_that_are_updated_now_and_then(make_trainer, every):
    # snapshots between updates, some of one time, and a last step that is no multiple
    options = {"every": every, "snapshot_every": 4, "train_num_steps": 22}
    trainer, weights = train(make_trainer, **options)
    assert [*list_snapshots(trainer.results_folder)] == [4, 8, 12, 16, 20, 22]
    average = posthoc_average(trainer.results_folder, 0.1)
    direct = torch.from_numpy(profile(0.1, 1.0, len(weights))) @ weights
    torch.testing.assert_close(flat(average), direct, rtol=0, atol=3e-6)
    told = plan_average(trainer.results_folder, 0.15).error
    wide = torch.from_numpy(profile(0.15, 1.0, len(weights))) @ weights
    error = (flat(posthoc_average(trainer.results_folder, 0.15)) - wide).abs().max()
    spread = (weights - weights.mean(0)).pow(2).mean(0).sqrt().max()
    assert error < 3 * told * spread + 1e-5


def test_few_snapshots_are_in_memory_at_a_time(trained, monkeypatch):
    trainer, _ = trained
    alive, most = [], []

    def read(path):
        state = read_checkpoint(path)
        alive.append(weakref.ref(state["ema"]["betas"]))
        most.append(sum(one() is not None for one in alive))
        return state

    monkeypatch.setattr(posthoc_ema, "read_checkpoint", read)
    posthoc_average(trainer.results_folder, 0.07)
    assert len(alive) == 12
    # the newest, which the others are compared with, and one of these
    assert max(most) == 2


def test_snapshots_come_with_milestones_by_default_and_at_the_end(make_trainer):
    trainer = make_trainer(ema_decay="posthoc", train_num_steps=5)
    trainer.train()
    assert [*list_snapshots(trainer.results_folder)] == [2, 4, 5]


def test_other_averages_have_no_snapshots(make_trainer):
    trainer = make_trainer(ema_decay=0.9, snapshot_every=1)
    trainer.train()
    assert not list_snapshots(trainer.results_folder)
    assert "ema_posthoc" not in read_checkpoint(trainer.results_folder / "model-1.pt")
    text = (
        "expected snapshots averages-N.pt of a training with ema_decay='posthoc' in .*, found none"
    )
    with pytest.raises(FileNotFoundError, match=text):
        posthoc_average(trainer.results_folder, 0.1)


def test_what_can_not_be_made_is_refused(trained):
    folder = trained[0].results_folder
    with pytest.raises(ValueError, match=r"step must be that of a snapshot, 2, 4, .*24, got 3;"):
        posthoc_average(folder, 0.1, step=3)
    with pytest.raises(ValueError, match=r"std must be in \(0, 0.2886\], got 0.5"):
        posthoc_average(folder, 0.5)
    for std in (0.005, 0.2886):
        with pytest.raises(
            ValueError, match=rf"can make, [\d.]+ to [\d.]+, got {std}, for"
        ) as info:
            posthoc_average(folder, std)
    low, high = str(info.value).split("can make, ")[1].split(", got")[0].split(" to ")
    assert 0.005 < float(low) < 0.05
    assert 0.1 < float(high) < 0.2886
    for width in (low, high):
        posthoc_average(folder, float(width))


def test_a_damaged_snapshot_is_named(trained):
    file = trained[0].results_folder / "averages-12.pt"
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(ValueError, match=r"averages-12.pt, got one that is cut off, altered"):
        posthoc_average(trained[0].results_folder, 0.1)
    # which those before it do without
    posthoc_average(trained[0].results_folder, 0.1, step=10)
    file.unlink()
    posthoc_average(trained[0].results_folder, 0.1)


@pytest.mark.parametrize("every", [0, -1, 2.5])
def test_a_wrong_number_of_steps_is_refused(make_trainer, every):
    with pytest.raises(ValueError, match=rf"snapshot_every must be .*at least 1, got {every}"):
        make_trainer(ema_decay="posthoc", snapshot_every=every)


def test_other_words_are_refused(make_trainer):
    with pytest.raises(
        ValueError, match=r"numbers in \[0, 1\) or 'posthoc', got 'post-hoc'; 0.995"
    ):
        make_trainer(ema_decay="post-hoc")


# resuming


def contents(folder):
    """All that is in the snapshots of a folder, by step."""
    states = {step: read_checkpoint(path) for step, path in list_snapshots(folder).items()}
    return {s: json.dumps(v, default=lambda value: value.tolist()) for s, v in states.items()}


def test_an_interrupted_run_writes_the_same_snapshots(make_trainer, tmp_path):
    options = {"ema_decay": "posthoc", "train_num_steps": 7, "snapshot_every": 2, "seed": 3}
    options |= {"update_ema_every": 2, "keep_last": 1}
    whole = make_trainer(results_folder=tmp_path / "whole", **options)
    whole.train()

    def stop(log):
        raise ZeroDivisionError

    for _ in range(6):
        with pytest.raises(ZeroDivisionError):
            make_trainer(resume="auto", save_every=1, **options).train(log_fn=stop)
    make_trainer(resume="auto", **options).train()
    expected = contents(tmp_path / "whole")
    assert [*expected] == [2, 4, 6, 7]
    assert contents(tmp_path / "results") == expected
    # old checkpoints are gone
    assert len([*(tmp_path / "results").glob("model-*.pt")]) == 1


def test_a_run_killed_between_snapshot_and_checkpoint(make_trainer, tmp_path, monkeypatch):
    options = {"ema_decay": "posthoc", "seed": 3, "num_sample_rows": 1}
    make_trainer(results_folder=tmp_path / "whole", **options).train()

    class Killed(BaseException):
        pass

    def kill(self, state, milestone):
        raise Killed

    make_trainer(train_num_steps=2, **options).train()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "write", kill)
        with pytest.raises(Killed):
            make_trainer(resume="auto", **options).train()
    folder = tmp_path / "results"
    assert [*list_snapshots(folder)] == [2, 4]
    assert [path.name for path in folder.glob("model-*")] == ["model-1.pt"]
    unfinished = folder / ".averages-4.pt.1.abcd.tmp"
    unfinished.write_bytes(b"half of one")
    make_trainer(resume="auto", **options).train()
    assert contents(folder) == contents(tmp_path / "whole")
    assert not unfinished.exists()
    assert not (folder / "earlier-1").exists()


def test_snapshots_of_another_run_are_set_aside(make_trainer, tmp_path):
    folder, options = tmp_path / "results", {"ema_decay": "posthoc", "num_sample_rows": 1}
    make_trainer(train_num_steps=6, **options).train()
    old = contents(folder)
    # from an earlier checkpoint, and anew
    make_trainer(train_num_steps=4, resume=folder / "model-1.pt", **options).train()
    assert [*contents(folder)] == [2, 4]
    assert contents(folder / "earlier-1") == {step: old[step] for step in (4, 6)}
    (folder / "model-1.pt").unlink()
    (folder / "model-2.pt").unlink()
    make_trainer(train_num_steps=0, **options).train()
    assert [*contents(folder / "earlier-2")] == [2, 4]
    assert not list_snapshots(folder)


def test_a_change_of_the_kind_of_averages(make_trainer, tmp_path, caplog):
    def resumed(ema_decay, path):
        trainer = make_trainer(ema_decay=ema_decay, results_folder=tmp_path / "other")
        with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
            caplog.clear()
            trainer.load(path)
        return trainer, [record.getMessage() for record in caplog.records]

    make_trainer(ema_decay=(0.9, 0.05), results_folder=tmp_path / "decay").train()
    make_trainer(ema_decay="posthoc", results_folder=tmp_path / "width").train()
    decay, width = (tmp_path / name / "model-2.pt" for name in ("decay", "width"))
    for ema_decay, path, words in (
        ("posthoc", decay, "by decay: those of this run, by width,"),
        ((0.99, 0.05), width, "by width: those of this run, by decay,"),
    ):
        trainer, messages = resumed(ema_decay, path)
        assert messages == [f"{path} holds averages {words} start from the first of them"]
        first = flat(load_diffusion(path))
        assert all(torch.equal(flat(model), first) for model in trainer.averages.models.values())
    trainer, messages = resumed("posthoc", width)
    assert messages == []
    narrow = load_diffusion(width, averaged=0.05)
    assert torch.equal(flat(trainer.averages.choose(0.05)), flat(narrow))
    assert not torch.equal(flat(narrow), flat(load_diffusion(width)))


def test_a_warm_up_has_no_effect(make_trainer, tmp_path):
    found = []
    for warmup in ("copy", "inverse_gamma"):
        options = {"ema_decay": "posthoc", "ema_warmup": warmup, "seed": 0, "num_sample_rows": 1}
        trainer = make_trainer(results_folder=tmp_path / warmup, **options)
        trainer.train()
        found.append(flat(trainer.ema_model))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="warm-up must be one of copy, power, inverse_gamma"):
        Averages(trainer.model, "posthoc", warmup="karras")


def test_the_width_is_in_the_results_of_evaluations(make_trainer, tmp_path):
    means = FeatureNetwork(lambda videos: videos.mean((2, 3, 4)), name="means", channels=None)
    few = Evaluation(features=means, count=5, clips=4)
    make_trainer(ema_decay="posthoc", evaluate_every=4, evaluation=few).train()
    result = json.loads((tmp_path / "results" / "evaluation-4.json").read_text())
    assert result["model"] == {"step": 4, "ema_std": 0.1}


def test_fine_tuning_starts_from_an_average_of_a_snapshot(trained, make_trainer, tmp_path):
    folder = trained[0].results_folder
    options = {"results_folder": tmp_path / "tuned", "init_from": folder / "averages-24.pt"}
    tuned = make_trainer(init_averaged=0.05, **options)
    assert torch.equal(flat(tuned.model), flat(trained[0].averages.choose(0.05)))


def test_the_weights_alone_need_no_unet3d(trained):
    trainer, _ = trained
    state = posthoc_ema.average_snapshots(plan_average(trainer.results_folder, 0.07))
    other = copy.deepcopy(trainer.model)
    other.load_state_dict(state["ema"])
    assert torch.equal(flat(other), flat(posthoc_average(trainer.results_folder, 0.07)))
