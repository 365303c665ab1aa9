"""The progress bar says what is done between steps."""

import re

import pytest
import torch

from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.training import progress
from video_diffusion_pytorch.training.progress import Progress


def shown(err):
    """The texts of the bar, one after the other, without repetitions."""
    texts = [re.split(r": +\d+%", part)[0] for part in re.split(r"[\r\n]+", err) if "%" in part]
    return [text for i, text in enumerate(texts) if not i or texts[i - 1] != text]


@pytest.fixture
def always(monkeypatch):
    """Shows each change at once, not once a second."""
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:frechet_distance. a covariance")
def test_a_milestone_says_what_it_does(make_trainer, capsys):
    evaluation = Evaluation(clips=4, count=4, max_batch=2, steps=2)
    trainer = make_trainer(
        train_num_steps=2,
        num_sample_rows=2,
        validation_split=0.2,
        evaluate_every=2,
        evaluation=evaluation,
    )
    capsys.readouterr()
    trainer.train()
    err = capsys.readouterr().err
    # samples: two batches of two steps
    sampling = ["sampling", *(f"sampling {n}/4" for n in (1, 2, 3, 4))]
    validating = ["validating", *(f"validating {n}/64" for n in range(2, 65, 2))]
    evaluating = ["evaluating", "evaluating 2/4", "evaluating 4/4"]
    texts = [text for text in shown(err) if text != "training"]
    assert texts == [*validating, "saving", *evaluating, *sampling]
    assert shown(err)[-1] == "training"
    # one bar, which stays, with the loss of validation from then on
    assert err.count("\n") == 1
    last = err[err.rindex("\r") :]
    loss = trainer.losses["validation"]
    # a step counts before it is saved
    assert "2/2" in re.search(r"saving: [^\r]*", err)[0]
    assert re.search(rf"2/2 .*loss=.*data_wait=.*val_loss={loss:.4f}", last)
    assert f"val_loss={loss:.4f}" in err[err.index("saving") : err.index("sampling")]


@pytest.mark.usefixtures("always")
def test_the_samples_are_those_of_a_trainer_without_a_bar(make_trainer):
    trainer = make_trainer()
    before = trainer.sample()
    seen = []
    trainer.progress.advance = lambda done, total: seen.append((done, total))
    assert torch.equal(before, trainer.sample())
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_changes_within_a_second_are_left_out(capsys):
    bar = Progress()
    with bar.of_steps(0, 3, is_shown=True), bar.doing("sampling"):
        for done in range(1, 100):
            bar.advance(done, 99)
    assert shown(capsys.readouterr().err) == ["training", "sampling", "training"]


def test_without_a_bar_nothing_is_shown(capsys):
    bar = Progress()
    with bar.doing("saving"):
        bar.advance(1, 2)
        bar.note(loss="1")
    with bar.of_steps(0, 3, is_shown=False), bar.doing("saving"):
        bar.note(loss="1")
    assert capsys.readouterr().err == ""
