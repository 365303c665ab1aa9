"""One resolution of the U-Net: convolutions, then attention over pixels, then over frames."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from video_diffusion_pytorch.model.attention import (
    Attention,
    RotaryTables,
    SpatialLinearAttention,
)
from video_diffusion_pytorch.model.blocks import Downsample, LayerNorm, ResnetBlock, Upsample

# What every temporal attention is told: position bias, rotary tables, mask of focus on the present,
# and how many frames at the end are images.
Temporal = tuple[Tensor, RotaryTables, Tensor | None, int]

# Calls a layer with arguments: at once, or so that its features are computed again for a gradient.
Run = Callable[..., Any]


def call(layer: Callable[..., Any], *args: Any) -> Any:
    """Calls a layer, whose features are then kept for a gradient."""
    return layer(*args)


def call_again(layer: Callable[..., Any], *args: Any) -> Any:
    """Calls a layer, and for a gradient once more: until then nothing but `args` is kept."""
    return checkpoint(layer, *args, use_reentrant=False)


class TemporalAttention(nn.Module):
    """Adds to each pixel what it finds at the other frames of the same pixel.

    Args:
        dim: Number of channels.
        heads: Number of heads.
        dim_head: Width of a head.
    """

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, heads=heads, dim_head=dim_head)

    def forward(
        self,
        x: Tensor,
        pos_bias: Tensor,
        rotary: RotaryTables,
        focus_present_mask: Tensor | None = None,
        image_frames: int = 0,
    ) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same; the other arguments as in `Attention`."""
        b, h = x.shape[0], x.shape[3]
        pixels = rearrange(x, "b c f h w -> (b h w) f c")
        mask = focus_present_mask
        if mask is not None:
            mask = mask.repeat_interleave(pixels.shape[0] // b)
        out = self.attn(self.norm(pixels, dim=-1), pos_bias, mask, rotary, image_frames)
        return x + rearrange(out, "(b h w) f c -> b c f h w", b=b, h=h)


class SpatialAttention(nn.Module):
    """Adds to each pixel what it finds at the other pixels of its frame, by softmax attention.

    Args:
        dim: Number of channels.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = Attention(dim, heads=heads)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same."""
        frames = rearrange(self.norm(x), "b c f h w -> (b f) (h w) c")
        out = self.attn(frames)
        return x + rearrange(out, "(b f) (h w) c -> b c f h w", b=x.shape[0], h=x.shape[3])


class LinearAttentionLayer(nn.Module):
    """Adds to each pixel what it finds at the other pixels of its frame, at linear cost.

    Args:
        dim: Number of channels.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = LayerNorm(dim)
        self.attn = SpatialLinearAttention(dim, heads=heads)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(b, c, f, h, w)` to the same."""
        return x + self.attn(self.norm(x))


class Level(nn.Module):
    """One resolution of the U-Net, on its way down or up.

    Args:
        dim: Channels that come in.
        dim_out: Channels that go out.
        resample: The layer that leads to the next resolution; None at the last.
        block: Makes a `ResnetBlock` from `dim` and `dim_out`.
        heads: Number of attention heads.
        dim_head: Width of a head of the temporal attention.
        linear_attn: Whether pixels of a frame attend to each other.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int,
        resample: nn.Module | None,
        *,
        block: partial[ResnetBlock],
        heads: int,
        dim_head: int,
        linear_attn: bool,
    ) -> None:
        super().__init__()
        self.block1 = block(dim, dim_out)
        self.block2 = block(dim_out, dim_out)
        self.spatial_attn = LinearAttentionLayer(dim_out, heads) if linear_attn else nn.Identity()
        self.temporal_attn = TemporalAttention(dim_out, heads, dim_head)
        self.resample = nn.Identity() if resample is None else resample

    def forward(
        self, x: Tensor, emb: Tensor, temporal: Temporal, run: Run = call
    ) -> tuple[Tensor, Tensor]:
        """Gives the features before and after the change of resolution."""
        x = run(self.block1, x, emb)
        x = run(self.block2, x, emb)
        x = run(self.spatial_attn, x)
        x = run(self.temporal_attn, x, *temporal)
        return x, self.resample(x)


def make_levels(
    dims: list[int], block: partial[ResnetBlock], heads: int, dim_head: int, linear_attn: bool
) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The levels down, from the finest to the coarsest resolution, and those up again.

    Args:
        dims: Channels before the first level, and after each on the way down.
        block: As in `Level`.
        heads: As in `Level`.
        dim_head: As in `Level`.
        linear_attn: As in `Level`.
    """
    level = partial(Level, block=block, heads=heads, dim_head=dim_head, linear_attn=linear_attn)
    steps = list(pairwise(dims))
    last = len(steps) - 1
    downs = nn.ModuleList(
        level(dim_in, dim_out, Downsample(dim_out) if i < last else None)
        for i, (dim_in, dim_out) in enumerate(steps)
    )
    # on the way up the skip connection's channels come in as well
    ups = nn.ModuleList(
        level(dim_out * 2, dim_in, Upsample(dim_in) if i < last else None)
        for i, (dim_in, dim_out) in enumerate(reversed(steps))
    )
    return downs, ups
