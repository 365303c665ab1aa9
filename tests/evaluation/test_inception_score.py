"""The inception score against closed forms, and against torchmetrics."""

import pytest
import torch

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.evaluation.inception_score import InceptionScore


def score_of(rows, sizes=None, **options):
    score, start = InceptionScore(**options), 0
    for part in rows.split(sizes or [len(rows)]):
        score.add(part, range(start, start + len(part)))
        start += len(part)
    return score


def test_from_one_to_the_number_of_classes():
    sure = torch.eye(5).repeat(4, 1)
    found = score_of(sure, splits=1, outputs="probabilities")
    assert found.compute() == pytest.approx((5, 0))
    unsure = torch.full((20, 5), 0.2)
    assert score_of(unsure, splits=1, outputs="probabilities").compute()[0] == pytest.approx(1)
    alike = torch.eye(5)[:1].repeat(20, 1)
    assert score_of(alike, splits=1, outputs="probabilities").compute()[0] == pytest.approx(1)


def test_parts_have_a_score_each():
    # even numbers are of class 0 only, odd ones of classes 0 and 1
    rows = torch.eye(2)[[0, 0, 0, 1]].repeat(3, 1)
    mean, deviation = score_of(rows, [5, 7], splits=2, outputs="probabilities").compute()
    assert (mean, deviation) == pytest.approx((1.5, 0.5))


def test_it_is_the_score_of_torchmetrics():
    metrics = pytest.importorskip("torchmetrics.image.inception")

    class Rows(torch.nn.Module):
        num_features = 6

        def forward(self, pictures):
            return pictures.flatten(1)

    torch.manual_seed(0)
    logits = torch.randn(40, 6) * 2
    with pytest.warns(UserWarning, match="will save all extracted features"):
        theirs = metrics.InceptionScore(Rows(), splits=1)
    theirs.update(logits.view(-1, 1, 2, 3))
    with pytest.warns(UserWarning, match="degrees of freedom"):
        expected = theirs.compute()[0].item()
    assert score_of(logits, [13, 27], splits=1).compute()[0] == pytest.approx(expected, rel=1e-5)


def test_processes_add_up_to_the_whole():
    logits = torch.randn(20, 4)
    whole = score_of(logits, splits=3)
    parts = [InceptionScore(splits=3) for _ in range(2)]
    parts[0].add(logits[:9], range(9))
    parts[1].add(logits[9:], range(9, 20))
    for joined in in_turns([part.over_processes for part in parts]):
        assert joined.compute() == pytest.approx(whole.compute())


def test_what_is_no_output_of_a_classifier():
    with pytest.raises(ValueError, match=r"splits must be at least 1, got 0; 10 is usual"):
        InceptionScore(0)
    with pytest.raises(ValueError, match=r"outputs must be one of logits, probabilities, got 'sc"):
        InceptionScore(outputs="scores")
    with pytest.raises(ValueError, match=r"must be logits.*got rows of them; pass outputs='prob"):
        score_of(torch.eye(3))
    with pytest.raises(ValueError, match=r"must be probabilities.*got other numbers; pass outputs"):
        score_of(torch.randn(3, 3), outputs="probabilities")
    with pytest.raises(ValueError, match=r"outputs must be finite, got some that are not; look"):
        score_of(torch.full((2, 3), torch.nan))
    with pytest.raises(ValueError, match=r"each of 10 parts must have videos, got fewer videos"):
        score_of(torch.randn(4, 3)).compute()
