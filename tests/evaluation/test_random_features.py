"""Random features: the same in every run, and different for different videos."""

import pytest
import torch

from video_diffusion_pytorch.data.moving_digits import load_digits, moving_digit_clip
from video_diffusion_pytorch.evaluation.frechet import frechet_distance
from video_diffusion_pytorch.evaluation.random_features import (
    RandomFeatures,
    random_feature_statistics,
)


def test_features_are_the_same_in_every_run_and_leave_the_random_state():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = (RandomFeatures(3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    videos = torch.rand(2, 3, 4, 16, 16)
    assert torch.equal(first(videos), again(videos))
    assert not torch.allclose(first(videos), other(videos))


def test_brightness_is_not_seen_and_contrast_is():
    network = RandomFeatures(1)
    videos = torch.rand(1, 1, 6, 24, 24)
    inner = torch.nn.functional.pad(videos, (8, 8, 8, 8))
    assert not torch.allclose(network(inner), network(inner * 0.5))
    assert network(torch.zeros(1, 1, 6, 24, 24)).abs().max() == 0


def test_frozen_and_shuffled_clips_are_further_away_than_other_clips():
    digits, _ = load_digits()
    generator = torch.Generator().manual_seed(0)

    def clips(start):
        made = [moving_digit_clip(d, 6, 32, generator) for d in digits[start : start + 200]]
        return torch.stack(made).float() / 255

    real, others = clips(0), clips(200)
    frozen = others[:, :, :1].expand_as(others)
    shuffled = others[:, :, [3, 0, 5, 1, 4, 2]]
    floor = frechet_distance(random_feature_statistics(real), random_feature_statistics(others))
    assert (
        frechet_distance(random_feature_statistics(real), random_feature_statistics(frozen))
        > 2 * floor
    )
    assert (
        frechet_distance(random_feature_statistics(real), random_feature_statistics(shuffled))
        > 2 * floor
    )


@pytest.mark.parametrize("width", [0, 6])
def test_widths_that_cannot_be(width):
    with pytest.raises(ValueError, match=rf"width must be a positive multiple of 4, got {width}"):
        RandomFeatures(1, width=width)
