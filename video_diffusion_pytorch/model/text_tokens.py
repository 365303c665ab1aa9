"""A caption on its way to the attentions: the encoder's states become a few tokens, or one."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TEXT_POOLINGS = ("mean", "attention")


class TextTokens(NamedTuple):
    """What the attentions of a network see of captions, besides frames and pixels.

    Attributes:
        videos: Of each video, `(b, t, c)`.
        images: Of each image behind a video, `(b, k, t, c)`; None where there are none.
    """

    videos: Tensor
    images: Tensor | None = None

    def of_each_frame(self, frames: int) -> Tensor:
        """The tokens of each frame of videos of `frames` frames, images included.

        Returns:
            `(b * frames, t, c)`; of a video's own frames all alike.
        """
        images = self.images
        own = frames if images is None else frames - images.shape[1]
        tokens = self.videos[:, None].expand(-1, own, -1, -1)
        if images is not None:
            tokens = torch.cat((tokens, images), dim=1)
        return tokens.flatten(0, 1)


class TextPooling(nn.Module):
    """Learned queries that gather a sequence of states into a few tokens, by attention.

    Args:
        dim: Width of the states.
        dim_out: Width of the tokens.
        tokens: Number of queries, and so of tokens.
        dim_head: Width of a head; there is one head if it does not divide `dim_out`.

    Example:
        >>> pool = TextPooling(768, 64, tokens=4)
        >>> pool(torch.randn(2, 12, 768)).shape
        torch.Size([2, 4, 64])
    """

    def __init__(self, dim: int, dim_out: int, tokens: int, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = 1 if dim_out % dim_head else dim_out // dim_head
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(tokens, dim_out))
        self.to_kv = nn.Linear(dim, dim_out * 2, bias=False)
        self.to_out = nn.Linear(dim_out, dim_out, bias=False)
        self.norm_out = nn.LayerNorm(dim_out)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gathers states into tokens.

        Args:
            states: `(b, n, dim)`.
            mask: Boolean `(b, n)`: where false, a state is not looked at. At least one of each row
                must be true. None for all.

        Returns:
            `(b, tokens, dim_out)`.
        """
        keys_and_values = self.to_kv(self.norm(states)).unflatten(-1, (2, self.heads, -1))
        k, v = keys_and_values.permute(2, 0, 3, 1, 4)
        q = self.queries.to(k.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        seen = None if mask is None else mask[:, None, None, :]
        found = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=seen)
        return self.norm_out(self.to_out(found.transpose(1, 2).flatten(2)) + self.queries)


def mean_state(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of those states that a mask lets be seen.

    Args:
        states: `(b, n, d)`.
        mask: Boolean `(b, n)`, true at least once in each row; None for all.

    Returns:
        `(b, d)`.
    """
    if mask is None:
        return states.mean(dim=1)
    weights = mask[..., None].to(torch.promote_types(states.dtype, torch.float32))
    return ((states * weights).sum(dim=1) / weights.sum(dim=1)).to(states.dtype)
