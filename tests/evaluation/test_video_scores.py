"""Sets of videos and how they compare."""

import pytest
import torch

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork, random_features
from video_diffusion_pytorch.evaluation.video_scores import (
    FeatureStatistics,
    InceptionScore,
    Networks,
    VideoStatistics,
    frechet_distance,
    scores,
)


def of_videos(videos):
    return videos.mean((2, 3, 4))


def of_pictures(pictures):
    return pictures.mean((2, 3))


def networks(**more):
    clips = FeatureNetwork(of_videos, name="means")
    frames = FeatureNetwork(of_pictures, name="means", layout="bchw")
    options = {"classes": clips, "frame_features": frames, "frame_classes": frames, "splits": 2}
    return Networks(clips, **{**options, **more})


def statistics(videos, sizes=None, **options):
    found, start = VideoStatistics(networks(**options)), 0
    for part in videos.split(sizes or [len(videos)]):
        found.add(part, range(start, start + len(part)))
        start += len(part)
    return found


def distance(first, second):
    sets = []
    for features in (first, second):
        sets.append(FeatureStatistics(features.shape[1]))
        sets[-1].add(features)
    return frechet_distance(*sets)


def test_all_scores():
    torch.manual_seed(0)
    real, drawn = torch.rand(9, 3, 4, 5, 5), torch.rand(11, 3, 4, 5, 5) / 2
    found = scores(statistics(real, [4, 5]), statistics(drawn, [10, 1]))
    assert found["fvd"] == pytest.approx(distance(of_videos(real), of_videos(drawn)))
    by_frame = [distance(real[:, :, i].mean((2, 3)), drawn[:, :, i].mean((2, 3))) for i in range(4)]
    assert found["fid_avg"] == pytest.approx(sum(by_frame) / 4)
    assert found["fid_first"] == pytest.approx(by_frame[0])
    score = InceptionScore(splits=2)
    score.add(of_videos(drawn), range(11))
    assert (found["inception_score"], found["inception_score_std"]) == score.compute()
    first = InceptionScore(splits=2)
    first.add(drawn[:, :, 0].mean((2, 3)), range(11))
    assert found["is_first"] == pytest.approx(first.compute()[0])
    assert found["is_avg"] > 1


def test_scores_without_a_network_are_left_out():
    options = {"classes": None, "frame_features": None, "frame_classes": None}
    videos = torch.rand(5, 3, 2, 4, 4)
    one = statistics(videos, **options)
    assert [*scores(one, one)] == ["fvd"]
    plain = Networks(random_features(1), "random_feature_distance")
    assert plain.to("cpu").protocol["classes"] is None
    assert "inception_score" not in plain.protocol
    assert networks().protocol["inception_score"] == {"splits": 2, "outputs": "logits"}


def test_videos_that_do_not_count():
    videos = torch.rand(6, 3, 2, 4, 4)
    found, counted = VideoStatistics(networks()), statistics(videos[:4])
    found.add(videos, range(6), 4)
    assert scores(counted, found) == pytest.approx(scores(counted, counted), abs=1e-9)


def test_processes_together_equal_one():
    videos = torch.rand(8, 3, 2, 4, 4)
    whole, parts = statistics(videos), [VideoStatistics(networks()) for _ in range(2)]
    parts[0].add(videos[:5], range(5))
    parts[1].add(videos[5:], range(5, 8))
    other = statistics(torch.rand(8, 3, 2, 4, 4))
    for joined in in_turns([part.over_processes for part in parts]):
        assert scores(other, joined) == pytest.approx(scores(other, whole))


def test_statistics_come_back_from_a_state():
    found, again = statistics(torch.rand(5, 3, 2, 4, 4)), VideoStatistics(networks())
    again.load_state_dict(found.state_dict())
    drawn = statistics(torch.rand(5, 3, 2, 4, 4))
    assert scores(again, drawn) == scores(found, drawn)


def test_networks_with_the_wrong_axes():
    with pytest.raises(TypeError, match=r"features must be a FeatureNetwork, got a str; wrap it"):
        Networks("i3d.pt")
    clips = FeatureNetwork(of_videos, name="means")
    with pytest.raises(
        ValueError, match=r"frame_features must have the axes bchw, got a network w"
    ):
        networks(frame_features=clips)
    with pytest.raises(
        ValueError, match=r"classes must have the axes bcfhw, got a network with the"
    ):
        networks(classes=FeatureNetwork(of_pictures, name="means", layout="bchw"))


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


def test_it_equals_the_score_of_torchmetrics():
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


def test_scores_of_processes_together_equal_one():
    logits = torch.randn(20, 4)
    whole = score_of(logits, splits=3)
    parts = [InceptionScore(splits=3) for _ in range(2)]
    parts[0].add(logits[:9], range(9))
    parts[1].add(logits[9:], range(9, 20))
    for joined in in_turns([part.over_processes for part in parts]):
        assert joined.compute() == pytest.approx(whole.compute())


def test_invalid_outputs_of_classifiers():
    with pytest.raises(ValueError, match=r"outputs must be one of logits, probabilities, got 'sc"):
        InceptionScore(outputs="scores")
    with pytest.raises(
        ValueError, match=r"must be logits, got probabilities.*; pass outputs='prob"
    ):
        score_of(torch.eye(3))
    with pytest.raises(ValueError, match=r"must be probabilities, got logits.*; pass outputs"):
        score_of(torch.randn(3, 3), outputs="probabilities")
    with pytest.raises(ValueError, match=r"each of 10 parts must have videos, got fewer videos"):
        score_of(torch.randn(4, 3)).compute()
