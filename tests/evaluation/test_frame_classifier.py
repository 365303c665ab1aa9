"""A classifier of frames: what it learns, what its scores are, and what it refuses."""

import copy

import pytest
import torch
from torch import nn

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.evaluation import frame_classifier
from video_diffusion_pytorch.evaluation.frame_classifier import (
    ClassScores,
    FrameClassifier,
    LabelledClips,
    train_frame_classifier,
)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(frame_classifier, "_STEPS", 60)


def stripes(labels, frames=4, size=8):
    """Clips of noise with vertical (0), horizontal (1) or no stripes (2), `(n, 1, f, h, w)`."""
    draws = torch.Generator().manual_seed(0)
    clips = 0.3 * torch.rand(len(labels), 1, frames, size, size, generator=draws)
    for clip, label in zip(clips, labels.tolist(), strict=True):
        clip[..., ::2] += label == 0
        clip[..., ::2, :] += label == 1
    return clips


def collected(videos, labels, sizes=None):
    found, start = LabelledClips(len(videos)), 0
    for part in videos.split(sizes or [len(videos)]):
        stop = start + len(part)
        found.add(part, labels[start:stop], range(start, stop))
        start = stop
    return found


LABELS = torch.arange(48) % 3


@pytest.fixture
def trained():
    return train_frame_classifier(collected(stripes(LABELS), LABELS))


def score(classifier, videos, *rest):
    scores = ClassScores()
    scores.add(classifier, videos, *rest)
    return scores.compute()


def test_it_recognises_classes_and_their_changes(trained):
    assert trained.real["label_frames"] > 0.9
    videos = stripes(LABELS)
    right = score(trained, videos, LABELS)
    assert right.keys() == {
        "sureness", "constancy", "constant_clips", "label_frames", "label_clips",
    }  # fmt: skip
    assert min(right.values()) > 0.9
    # another class from the middle on
    changed = torch.cat((videos[:, :, :2], videos.roll(1, 0)[:, :, 2:]), dim=2)
    found = score(trained, changed, LABELS)
    assert found["constancy"] == pytest.approx(2 / 3, abs=0.05)
    assert found["constant_clips"] < 0.1
    assert found["label_frames"] == pytest.approx(0.5, abs=0.05)
    # what it has not seen
    unsure = score(trained, torch.lerp(videos, videos.roll(1, 0), 0.5), LABELS)
    assert unsure["sureness"] < right["sureness"] - 0.1


class Known(nn.Module):
    """Returns probabilities that the videos hold, in their first row of pixels."""

    def forward(self, videos):
        return videos[:, 0, :, 0]


def test_scores_by_hand():
    sure, other, unsure = [1.0, 0, 0], [0, 1.0, 0], [0.2, 0.2, 0.6]
    rows = torch.tensor([[sure, sure, sure], [sure, other, other], [unsure, unsure, sure]])
    found = score(Known(), rows[:, None, :, None])
    assert found == {
        "sureness": pytest.approx((7 + 2 * 0.6) / 9),
        "constancy": pytest.approx(4 / 6),
        "constant_clips": pytest.approx(1 / 3),
    }
    wanted = torch.tensor([0, 0, -1])
    found = score(Known(), rows[:, None, :, None], wanted)
    assert found["label_frames"] == pytest.approx(4 / 6)
    assert found["label_clips"] == pytest.approx(1 / 2)
    counted = score(Known(), rows[:, None, :, None], wanted, 1)
    assert set(counted.values()) == {1}
    assert score(Known(), rows[:, None, :1, None]).keys() == {"sureness", "constant_clips"}


def test_scores_of_processes_together_equal_one(trained):
    videos = stripes(LABELS)
    whole, parts = score(trained, videos, LABELS), [ClassScores() for _ in range(2)]
    parts[0].add(trained, videos[:20], LABELS[:20])
    parts[1].add(trained, videos[20:], LABELS[20:])
    for joined in in_turns([part.over_processes for part in parts]):
        assert joined.compute() == pytest.approx(whole)


def weights(classifier):
    return torch.cat([value.flatten().double() for value in classifier.state_dict().values()])


def test_training_is_reproducible_and_leaves_the_random_numbers(trained):
    state = torch.get_rng_state()
    videos = stripes(LABELS)
    with torch.no_grad():
        again = train_frame_classifier(collected(videos, LABELS, [5, 43]))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(again), weights(trained))
    assert again.real == trained.real
    assert not again.training
    other = train_frame_classifier(collected(videos, LABELS), seed=1)
    assert not torch.equal(weights(other), weights(trained))

    parts = [LabelledClips(48) for _ in range(2)]
    parts[0].add(videos[:24], LABELS[:24], range(24))
    # the last one fills up the batch
    parts[1].add(videos[[*range(24, 48), 0]], LABELS[[*range(24, 48), 0]], range(24, 49), 24)
    joined = in_turns([part.over_processes for part in parts])
    assert torch.equal(weights(train_frame_classifier(joined[1])), weights(trained))


def test_it_comes_back_from_a_state(trained):
    again = FrameClassifier.from_state(copy.deepcopy(trained.full_state()))
    assert torch.equal(weights(again), weights(trained))
    assert (again.real, again.training) == (trained.real, False)


def test_a_quarter_of_each_class_is_held_out():
    # a class in each fourth place, which a split by places would train on only or never
    labels = torch.tensor([0, 1, 2, 3] * 8 + [-1, 4])
    videos = torch.arange(34.0).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 4, 4)
    (known, ours), (apart, theirs) = collected(videos, labels).parts()
    assert ours.bincount().tolist() == [6, 6, 6, 6, 1]
    assert theirs.bincount().tolist() == [2, 2, 2, 2]
    numbers = [frames[:, 0, 0, 0, 0].long() for frames in (known, apart)]
    assert torch.equal(labels[numbers[0]], ours)
    assert torch.equal(labels[numbers[1]], theirs)
    assert sorted(torch.cat(numbers).tolist()) == [n for n in range(34) if n != 32]


def test_few_frames_are_kept_of_many_and_large_ones_are_made_small(monkeypatch):
    monkeypatch.setattr(frame_classifier, "_MOST_VALUES", 5 * 2 * 32 * 32)
    labels = torch.arange(14) % 2
    videos = torch.arange(14.0).view(-1, 1, 1, 1, 1).expand(-1, 1, 2, 64, 48)
    (known, _), (apart, _) = collected(videos, labels, [3, 11]).parts()
    kept = sorted([*known[:, 0, 0, 0, 0].tolist(), *apart[:, 0, 0, 0, 0].tolist()])
    # evenly spaced
    assert kept == [0, 3, 6, 9, 12]
    assert known.shape[1:] == (2, 1, 32, 32)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1, 1), (2, 5, 3, 2, 9)])
def test_small_frames(shape):
    found = FrameClassifier(shape[1], 4).eval()(torch.rand(shape))
    assert found.shape == (shape[0], shape[2], 4)
    torch.testing.assert_close(found.sum(dim=2), torch.ones(shape[0], shape[2]))


def test_too_few_labels():
    videos = torch.rand(5, 1, 2, 4, 4)
    for labels in ([0, 0, 0, 0, 0], [0, 0, 0, 0, 1], [0, 0, -1, -1, -1]):
        with pytest.raises(
            ValueError, match=r"two clips of each of two classes, got clips by label \{0: .*; give"
        ):
            train_frame_classifier(collected(videos, torch.tensor(labels)))


def test_labels_that_frames_do_not_show():
    videos = torch.rand(48, 1, 2, 4, 4)
    with pytest.warns(
        UserWarning, match=r"more than 67% of held-out frames should be recognised, got \d+%; its"
    ):
        train_frame_classifier(collected(videos, LABELS))
