"""The Trainer evaluates now and then, and training does not notice."""

import json

import pytest
import torch

from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.results import read_result
from video_diffusion_pytorch.training.metrics import read_metrics


def means(videos):
    return videos.mean((2, 3, 4))


MEANS = FeatureNetwork(means, name="means", channels=None)
FEW = {"evaluate_every": 2, "evaluation": Evaluation(features=MEANS, count=5, clips=4)}


def weights(trainer):
    models = (trainer.model, *trainer.averages.models.values())
    return torch.cat([p.detach().flatten() for model in models for p in model.parameters()])


def lines(folder):
    return [line for line in read_metrics(folder / "metrics.jsonl") if "fvd" in line]


def test_it_is_off_and_costs_nothing_by_default(make_trainer):
    trainer = make_trainer()
    assert trainer.evaluate_every is None
    assert trainer._evaluator is None
    trainer.train()
    assert not lines(trainer.results_folder)


def test_training_does_not_notice_and_a_resumed_run_measures_the_same(make_trainer, tmp_path):
    def run(name, **options):
        trainer = make_trainer(results_folder=tmp_path / name, seed=0, **options)
        logs = []
        trainer.train(log_fn=logs.append)
        return trainer, logs

    plain, _ = run("plain")
    whole, logs = run("whole", **FEW)
    assert torch.equal(weights(whole), weights(plain))
    measured = lines(tmp_path / "whole")
    assert [line["step"] for line in measured] == [2, 4]
    assert [log["fvd"] for log in logs if "fvd" in log] == [line["fvd"] for line in measured]

    run("cut", **FEW, train_num_steps=2)
    resumed, _ = run("cut", **FEW, resume="auto")
    assert torch.equal(weights(resumed), weights(whole))
    assert [line["fvd"] for line in lines(tmp_path / "cut")] == [line["fvd"] for line in measured]

    files = [read_result(tmp_path / "whole" / f"evaluation-{step}.json") for step in (2, 4)]
    assert [file["scores"]["fvd"] for file in files] == [line["fvd"] for line in measured]
    assert files[0]["protocol"] == files[1]["protocol"]
    assert files[1]["model"] == {"step": 4, "ema_decay": 0.995}


def test_on_the_clips_that_are_validated_on(make_trainer):
    trainer = make_trainer(**FEW, validation_split=0.25)
    assert trainer._evaluator.clips.indices == trainer.data.validation.indices
    trainer = make_trainer(**FEW, held_out=2)
    assert set(trainer._evaluator.clips.indices) <= set(trainer.order.indices)


def test_it_can_be_called_by_hand(make_trainer):
    trainer = make_trainer(evaluation=FEW["evaluation"])
    found = trainer.evaluate()
    assert found == trainer.evaluate()
    assert json.loads((trainer.results_folder / "evaluation-0.json").read_text())["scores"] == found


def test_a_signal_is_not_kept_waiting(make_trainer, monkeypatch):
    trainer = make_trainer(**FEW)
    draw = type(trainer._evaluator)._draw

    def draw_and_stop(evaluator, *args):
        trainer.signals.caught = 15
        return draw(evaluator, *args)

    monkeypatch.setattr(type(trainer._evaluator), "_draw", draw_and_stop)
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.step == 2
    assert not lines(trainer.results_folder)
    assert not (trainer.results_folder / "evaluation-2.json").exists()


def test_an_average_that_has_diverged_does_not_end_training(make_trainer, caplog):
    trainer = make_trainer(**FEW)
    with torch.no_grad():
        next(trainer.averages.first.parameters()).fill_(torch.nan)
    assert trainer.evaluate() == {}
    assert "step 0 is not evaluated: Evaluation: drawn videos must be finite, got 5 of 5" in (
        caplog.text
    )


def test_mistakes_come_before_the_first_step(make_trainer, clips):
    with pytest.raises(ValueError, match=r"Trainer: evaluate_every must be at least 1, got 0"):
        make_trainer(evaluate_every=0)
    with pytest.raises(
        ValueError, match=r"must leave some of 3 frames to predict, got 5; give few"
    ):
        make_trainer(evaluate_every=1, evaluation=Evaluation(given_frames=5))
