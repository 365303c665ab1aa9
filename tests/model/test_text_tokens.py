"""States of a caption become tokens, whatever padding is behind them."""

import pytest
import torch

from video_diffusion_pytorch.model.text_tokens import TextPooling, TextTokens, mean_state


@torch.no_grad()
@pytest.mark.parametrize("pool", [TextPooling(6, 64, tokens=3), TextPooling(6, 7, 2), mean_state])
def test_padding_is_not_looked_at(pool):
    states = torch.randn(2, 5, 6)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    pooled = pool(states, mask)
    torch.testing.assert_close(pooled[0], pool(states[:1])[0])
    torch.testing.assert_close(pooled[1], pool(states[1:, :2])[0])
    states[1, 2:] = 1e4
    torch.testing.assert_close(pool(states, mask)[1], pooled[1])


def test_queries_gather_different_things():
    pool = TextPooling(6, 64, tokens=3)
    tokens = pool(torch.randn(2, 5, 6))
    assert tokens.shape == (2, 3, 64)
    assert pool.heads == 2
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1
    tokens.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in pool.parameters())


def test_frames_have_their_videos_tokens_and_images_their_own():
    videos, images = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 4)
    each = TextTokens(videos, images).of_each_frame(5).view(2, 5, 3, 4)
    assert torch.equal(each[:, :3], videos[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(each[:, 3:], images)
