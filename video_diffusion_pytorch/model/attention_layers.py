"""The attentions as the network has them: normalised, beside the path, added to it."""

from __future__ import annotations

from torch import Tensor, nn

from video_diffusion_pytorch.model.attention import (
    Attention,
    RotaryTables,
    SpatialLinearAttention,
)
from video_diffusion_pytorch.model.blocks import LayerNorm
from video_diffusion_pytorch.model.folds import (
    frames_as_rows,
    pixels_as_rows,
    rows_as_frames,
    rows_as_pixels,
)
from video_diffusion_pytorch.model.text_tokens import TextTokens
from video_diffusion_pytorch.model.token_shift import shift_in_space, shift_in_time


class TemporalAttention(nn.Module):
    """Adds to each pixel what it finds at the other frames of the same pixel.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
        token_dim: Width of the tokens of captions that are seen besides; None for none.
        shift: Whether channels are shifted between frames before.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        token_dim: int | None = None,
        shift: bool = False,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, heads=heads, dim_head=dim_head, token_dim=token_dim)
        self.shift = shift

    def forward(
        self,
        x: Tensor,
        pos_bias: Tensor,
        rotary: RotaryTables,
        focus_present_mask: Tensor | None = None,
        image_frames: int = 0,
        text: TextTokens | None = None,
    ) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; the other arguments as in `Attention`.

        `pos_bias` may be of more heads than this layer has, which takes the first.
        """
        b, h = x.shape[0], x.shape[3]
        pixels = pixels_as_rows(x)
        mask = focus_present_mask
        if mask is not None:
            mask = mask.repeat_interleave(pixels.shape[0] // b)
        inner = self.norm(pixels, dim=-1)
        if self.shift:
            inner = shift_in_time(inner, mask, image_frames)
        bias = pos_bias[: self.attn.heads]
        out = self.attn(inner, bias, mask, rotary, image_frames, text)
        return x + rows_as_pixels(out, b, h)


class SpatialAttention(nn.Module):
    """Adds to each pixel what it finds at the other pixels of its frame, by softmax attention.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
        token_dim: As in `TemporalAttention`.
        shift: Whether channels are shifted between pixels before.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int = 32,
        token_dim: int | None = None,
        shift: bool = False,
    ) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, heads=heads, dim_head=dim_head, token_dim=token_dim)
        self.shift = shift

    def forward(self, x: Tensor, text: TextTokens | None = None) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; `text` is what each frame is told."""
        inner = self.norm(x)
        if self.shift:
            inner = shift_in_space(inner)
        frames = frames_as_rows(inner)
        told = None if text is None else TextTokens(text.of_each_frame(x.shape[2]))
        out = self.attn(frames, text=told)
        return x + rows_as_frames(out, x.shape[0], x.shape[3])


class LinearAttentionLayer(nn.Module):
    """Adds to each pixel what it finds at the other pixels of its frame, at linear cost.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
        shift: As in `SpatialAttention`.
    """

    def __init__(self, dim: int, heads: int, dim_head: int = 32, shift: bool = False) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = SpatialLinearAttention(dim, heads=heads, dim_head=dim_head)
        self.shift = shift

    def forward(self, x: Tensor, text: TextTokens | None = None) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; `text` only softmax attention looks at."""
        inner = self.norm(x)
        if self.shift:
            inner = shift_in_space(inner)
        return x + self.attn(inner)
