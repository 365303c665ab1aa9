"""Sets of videos and how they compare."""

import pytest
import torch

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch import run_plot
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork, random_features
from video_diffusion_pytorch.evaluation.frechet import FeatureStatistics, frechet_distance
from video_diffusion_pytorch.evaluation.inception_score import InceptionScore
from video_diffusion_pytorch.evaluation.video_scores import Networks, VideoStatistics, scores


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
    # a picture of a run shows them all
    assert found.keys() - run_plot._SCORES.keys() == {"inception_score_std"}


def test_those_only_that_there_are_networks_for():
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


def test_processes_add_up_to_the_whole():
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


def test_networks_of_another_kind():
    clips = FeatureNetwork(of_videos, name="means")
    with pytest.raises(ValueError, match=r"frame_features must be a network of pictures, got one"):
        networks(frame_features=clips)
    with pytest.raises(ValueError, match=r"classes must be a network of videos, got one with the"):
        networks(classes=FeatureNetwork(of_pictures, name="means", layout="bchw"))
