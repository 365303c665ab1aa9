"""Draws of which videos of a batch lose something; the network's tests hold what they lose."""

import pytest
import torch

from video_diffusion_pytorch.model.masks import dropped_videos, focus_mask, prob_mask_like


@pytest.mark.parametrize("prob", [0, 1, 0.0, 1.0])
def test_certainty_draws_no_random_number(prob):
    before = torch.get_rng_state()
    mask = prob_mask_like((3, 2), prob, "cpu")
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[bool(prob)] * 2] * 3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prob", [0.1, 0.8])
def test_the_share_is_the_probability(prob):
    torch.manual_seed(0)
    mask = prob_mask_like((20_000,), prob, None)
    assert mask.dtype == torch.bool
    assert mask.float().mean().item() == pytest.approx(
        prob, abs=4 * (prob * (1 - prob) / 2e4) ** 0.5
    )


def test_masks_are_made_on_their_device():
    for prob in (0, 0.5, 1):
        assert prob_mask_like((2,), prob, "meta").is_meta


def test_no_focus_needs_no_mask():
    x = torch.zeros(3, 1, 2, 4, 4)
    assert focus_mask(None, 0.0, x) is None
    assert focus_mask(None, 1.0, x).tolist() == [True] * 3
    given = torch.tensor([True, False, True])
    assert focus_mask(given, 0.0, x) is given


def test_a_network_without_conditions_draws_none_to_drop():
    x, given = torch.zeros(3, 1, 2, 4, 4), torch.tensor([True, False, True])
    before = torch.get_rng_state()
    assert dropped_videos(None, 0.5, x, has_cond=False) is None
    assert dropped_videos(given, 0.5, x, has_cond=False) is None
    assert dropped_videos(given, 0.5, x, has_cond=True) is given
    assert torch.equal(torch.get_rng_state(), before)
    assert dropped_videos(None, 0.5, x, has_cond=True).shape == (3,)
    assert not torch.equal(torch.get_rng_state(), before)
