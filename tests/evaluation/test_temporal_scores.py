"""Scores of motion: made videos with known values, faults of growing strength, distances."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from tests.evaluation.exchange import in_turns
from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.evaluation.temporal_scores import (
    TemporalStatistics,
    temporal_scores,
    temporal_statistics,
    wasserstein_distance,
)

COUNT = 40


def digits(seed, count=COUNT, frames=8, changed=0.0):
    """Clips of moving digits, of which a share takes another digit in the middle: floats."""
    images = load_digits()[0]
    clips = []
    for number in range(count):
        draws = torch.Generator().manual_seed(seed * 1000 + number)
        chosen = torch.randint(len(images), (2,), generator=draws)
        state = draws.get_state()
        one, other = (
            moving_digit_clip(images[i], frames, 32, draws.set_state(state)) for i in chosen
        )
        if number < changed * count:
            one[:, frames // 2 :] = other[:, frames // 2 :]
        clips.append(one)
    small = F.avg_pool2d(torch.stack(clips).flatten(0, 2)[:, None].float() / 255, 2)
    return small.view(count, 1, frames, 16, 16)


def statistics(videos, sizes=None):
    found, start = TemporalStatistics(len(videos)), 0
    for part in videos.split(sizes or [len(videos)]):
        found.add(part, range(start, start + len(part)))
        start += len(part)
    return found


def distances(real, drawn):
    found = temporal_scores(statistics(real), statistics(drawn))
    return {name.removesuffix("_distance"): value for name, value in found.items()}


# Made videos


def moving_blob(frames=8, step=1):
    """A pattern without mean, in a frame that it never leaves."""
    clip = torch.zeros(1, 1, frames, 24, 24)
    for frame in range(frames):
        clip[0, 0, frame, 8:11, 4 + step * frame] = torch.tensor([1.0, 2.0, 1.0])
        clip[0, 0, frame, 8:11, 5 + step * frame] = -torch.tensor([1.0, 2.0, 1.0])
    return clip


@pytest.mark.parametrize("step", [0, 1, 2])
def test_content_that_only_moves_persists(step):
    found = temporal_statistics(moving_blob(step=step))
    assert [name for name in found if "persistence" in name] == [
        "persistence_1", "persistence_2", "persistence_4",
    ]  # fmt: skip
    for lag in (1, 2, 4):
        assert found[f"persistence_{lag}"].shape == (1, 8 - lag)
        torch.testing.assert_close(
            found[f"persistence_{lag}"], torch.ones(1, 8 - lag).double(), rtol=0, atol=1e-5
        )


def test_content_that_moves_too_fast_does_not():
    # 24 pixels: up to 3 in one frame
    assert temporal_statistics(moving_blob(frames=3, step=3))["persistence_1"].min() > 0.999
    assert temporal_statistics(moving_blob(frames=3, step=6))["persistence_1"].max() < 0.1


def test_noise_does_not_persist_and_flickers_by_a_known_amount():
    noise = torch.randn(4, 2, 8, 64, 64)
    found = temporal_statistics(noise)
    for lag in (1, 2, 4):
        assert found[f"persistence_{lag}"].max() < 0.2
    torch.testing.assert_close(found["change"].mean().item(), math.sqrt(2), rtol=0.02, atol=0)
    torch.testing.assert_close(found["flicker"].mean().item(), math.sqrt(3) / 2, rtol=0.02, atol=0)


def test_a_steady_change_does_not_flicker_and_a_return_does():
    picture = torch.rand(1, 3, 1, 8, 8)
    fading = picture * torch.arange(1, 6).view(1, 1, -1, 1, 1)
    found = temporal_statistics(fading)
    torch.testing.assert_close(found["flicker"], torch.zeros(1, 3).double(), atol=1e-6, rtol=0)
    size = picture.square().mean().sqrt().double()
    torch.testing.assert_close(found["change"], size.expand(1, 4), rtol=1e-5, atol=0)
    there_and_back = picture * torch.tensor([1.0, 0, 1, 0, 1]).view(1, 1, -1, 1, 1)
    found = temporal_statistics(there_and_back)
    torch.testing.assert_close(found["flicker"], torch.ones(1, 3).double())


def test_clips_without_content_or_motion_have_numbers():
    for videos in (torch.zeros(2, 1, 4, 8, 8), torch.full((2, 3, 4, 8, 8), 1e4)):
        found = temporal_statistics(videos)
        assert all(bool((found[name] == 0).all()) for name in ("change", "flicker"))
        assert all(bool((found[f"persistence_{lag}"] == 1).all()) for lag in (1, 2))
        assert set(distances(videos, videos).values()) == {0}
    # a frame of content and one without
    videos[:, :, ::2, 2:4, 2:4] = 0
    assert temporal_statistics(videos)["persistence_1"].max() < 0.01
    still = torch.rand(4, 1, 1, 8, 8).expand(-1, -1, 4, -1, -1)
    scores = distances(still, torch.rand(4, 1, 4, 8, 8))
    assert scores["change"] == math.inf
    assert distances(still, still)["change"] == 0
    assert not any(map(math.isnan, scores.values()))


def test_what_nobody_sees_hardly_counts():
    still = torch.rand(4, 1, 1, 16, 16).expand(-1, -1, 6, -1, -1)
    found = temporal_statistics(still + 1e-4 * torch.randn(4, 1, 6, 16, 16))
    assert found["flicker"].max() < 0.05
    assert found["persistence_4"].min() > 0.999


@pytest.mark.parametrize("shape", [(1, 1, 3, 1, 1), (2, 5, 4, 2, 9), (1, 1, 17, 3, 5)])
def test_small_and_oblong_frames(shape):
    found = temporal_statistics(torch.rand(shape))
    lags = [lag for lag in (1, 2, 4, 8, 16) if lag < shape[2]]
    assert [*found] == ["change", "flicker", *(f"persistence_{lag}" for lag in lags)]
    assert all(bool((values <= 1 + 1e-6).all()) for values in found.values())


def test_bytes_and_other_units():
    videos = (digits(3, 6) * 255).to(torch.uint8)
    ours, bytes_ = temporal_statistics(videos / 255), temporal_statistics(videos)
    kelvin = temporal_statistics(videos.double() * 3 + 250)
    for name, values in ours.items():
        scale = (255, 765) if name == "change" else (1, 1)
        torch.testing.assert_close(bytes_[name], values * scale[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(kelvin[name], values * scale[1], rtol=1e-4, atol=1e-5)


# Sets of clips


def test_equal_sets_have_no_distance_in_any_order():
    real, drawn = digits(0), digits(1)
    scores = distances(real, drawn)
    again = distances(real, drawn[torch.randperm(COUNT)])
    for name in ("change", "flicker", "persistence"):
        assert scores[name] > 0
        assert again[name] == pytest.approx(scores[name], rel=1e-9)
        assert distances(real, real.flip(0))[name] == 0
        # real clips lie as near to each other
        assert scores[name] < 2 * scores[f"{name}_distance_real"]


def shuffled(videos, strength):
    draws = torch.Generator().manual_seed(0)
    orders = [torch.randperm(videos.shape[2], generator=draws) for _ in videos]
    number = round(strength * len(videos))
    pairs = zip(videos[:number], orders, strict=False)
    return torch.cat((torch.stack([video[:, order] for video, order in pairs]), videos[number:]))


def noisy(videos, strength):
    draws = torch.Generator().manual_seed(0)
    return videos + 0.2 * strength * torch.randn(videos.shape, generator=draws)


def frozen(videos, strength):
    last = videos.shape[2] - round(4 * strength)
    return torch.cat((videos[:, :, :last], videos[:, :, [last - 1] * round(4 * strength)]), dim=2)


def blurred(videos, strength):
    softer = F.avg_pool3d(videos, (1, 3, 3), stride=1, padding=(0, 1, 1))
    return torch.lerp(videos, softer, strength)


def with_changed_digits(_, strength):
    return digits(1, changed=strength)


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        (shuffled, {"change", "flicker", "persistence"}),
        (with_changed_digits, {"persistence"}),
        (noisy, {"change", "flicker", "persistence"}),
        (frozen, {"change", "flicker", "persistence"}),
        (blurred, {"change"}),
    ],
)
def test_scores_grow_with_the_strength_of_a_fault(fault, seen_by):
    real, sound = digits(0), digits(1)
    scores = [distances(real, sound)]
    scores += [distances(real, fault(sound, strength)) for strength in (0.25, 0.5, 1)]
    for name in seen_by:
        values = [one[name] for one in scores]
        assert values == sorted(values), name
        assert values[-1] > 2 * values[0], name


def test_a_change_of_content_is_worse_than_noise_or_blur():
    real, sound = digits(0), digits(1)
    changed = distances(real, digits(1, changed=1))["persistence"]
    # noise as in an old film
    for fault in (noisy(sound, 0.25), blurred(sound, 1), frozen(sound, 0.5)):
        assert distances(real, fault)["persistence"] < changed / 2


def test_batches_and_processes_give_the_same():
    real, drawn = statistics(digits(0)), digits(1)
    whole = temporal_scores(real, statistics(drawn))
    assert temporal_scores(real, statistics(drawn, [1, 7, 32])) == whole
    parts = [TemporalStatistics(COUNT) for _ in range(2)]
    parts[0].add(drawn[:20], range(20))
    # the last ones fill up the batch
    parts[1].add(drawn[[*range(20, 40), 0, 0]], [*range(20, 40), 40, 41], 20)
    for joined in in_turns([part.over_processes for part in parts]):
        assert temporal_scores(real, joined) == whole
    again = TemporalStatistics.from_state(real.state_dict())
    assert temporal_scores(again, statistics(drawn)) == whole


def test_sets_of_other_sizes():
    real = digits(0)
    twice = torch.cat((real, real))
    scores = distances(real, twice)
    assert [scores[name] for name in ("change", "flicker", "persistence")] == [0, 0, 0]


@pytest.mark.parametrize("sizes", [(5, 5), (7, 3), (12, 8), (1, 6)])
def test_the_wasserstein_distance_equals_scipys(sizes):
    first, second = (torch.randn(n, 4, dtype=torch.float64) for n in sizes)
    second[0] = first[0]
    found = wasserstein_distance(first, second)
    for column in range(4):
        pair = (values[:, column].numpy() for values in (first, second))
        assert found[column].item() == pytest.approx(stats.wasserstein_distance(*pair), rel=1e-9)


def test_a_shift_of_all_clips_is_measured_in_their_spread():
    # two normal distributions of one width, apart by that width
    first = torch.from_numpy(np.linspace(-1, 1, 101))[:, None]
    assert wasserstein_distance(first, first + 0.5).item() == pytest.approx(0.5)
    brightness = torch.linspace(1, 2, 40).view(-1, 1, 1, 1, 1)
    fading = torch.arange(4).view(1, 1, -1, 1, 1) * torch.ones(1, 1, 1, 4, 4)
    spread = brightness.std(correction=0).item()
    found = distances(fading * brightness, fading * (brightness + spread))
    assert found["change"] == pytest.approx(1, rel=1e-5)


def test_mistakes():
    for shape in ((2, 1, 2, 8, 8), (1, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"of at least 3 frames, got the shape .*; give long"):
            temporal_statistics(torch.zeros(shape))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match=r"videos must be finite, got NaN or infinite values"):
            temporal_statistics(torch.full((1, 1, 3, 4, 4), value))
    some = TemporalStatistics(3)
    some.add(torch.zeros(2, 1, 3, 4, 4), range(2))
    with pytest.raises(ValueError, match=r"must have each of 3 videos once, got 2; add the others"):
        temporal_scores(some, some)
