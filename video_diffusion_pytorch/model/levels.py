"""One resolution of the U-Net: convolutions, then attention over pixels, then over frames."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from video_diffusion_pytorch.model.attention import RotaryTables
from video_diffusion_pytorch.model.blocks import Downsample, ResnetBlock, Upsample
from video_diffusion_pytorch.model.text_tokens import TextTokens


class Temporal(NamedTuple):
    """What every temporal attention is told, in the order of its arguments.

    Attributes:
        pos_bias: `(heads, f, f)`.
        rotary: Tables for `f` frames.
        focus_present_mask: Boolean `(b,)`; None for no focus.
        image_frames: How many frames at the end are images.
        text: Tokens of captions; None for none.
    """

    pos_bias: Tensor
    rotary: RotaryTables
    focus_present_mask: Tensor | None
    image_frames: int
    text: TextTokens | None = None


# Calls a layer with arguments: at once, or so that its features are computed again for a gradient.
Run = Callable[..., Any]


def call(layer: Callable[..., Any], *args: Any) -> Any:
    """Calls a layer, whose features are then kept for a gradient."""
    return layer(*args)


def call_again(layer: Callable[..., Any], *args: Any) -> Any:
    """Calls a layer, and for a gradient once more: until then nothing but `args` is kept."""
    return checkpoint(layer, *args, use_reentrant=False)


class LevelLayers(NamedTuple):
    """How the layers of a level are made.

    Attributes:
        block: Makes a `ResnetBlock` from channels in and out.
        spatial: Makes an attention over pixels from channels and the number of the level, 0 for the
            finest; None where there shall be none.
        temporal: The same over frames.
        blocks: Number of residual blocks.
        attn_after_each_block: Whether attention follows each block, or only the last.
    """

    block: Callable[[int, int], ResnetBlock]
    spatial: Callable[[int, int], nn.Module | None]
    temporal: Callable[[int, int], nn.Module | None]
    blocks: int
    attn_after_each_block: bool


class Level(nn.Module):
    """One resolution of the U-Net, on its way down or up.

    Its blocks are `block1`, `block2` and so on; the attentions after the last one are
    `spatial_attn` and `temporal_attn`, and after the others, where they have any, `spatial_attn1`
    and `temporal_attn1`, and so on.

    Args:
        dim: Channels that come in.
        dim_out: Channels that go out.
        resample: The layer that leads to the next resolution; None at the last.
        number: Number of the level, 0 for the finest.
        layers: How the other layers are made.
    """

    def __init__(
        self, dim: int, dim_out: int, resample: nn.Module | None, number: int, layers: LevelLayers
    ) -> None:
        super().__init__()
        self._stages: list[tuple[str, list[str]]] = []
        for i in range(1, layers.blocks + 1):
            block = f"block{i}"
            self.add_module(block, layers.block(dim if i == 1 else dim_out, dim_out))
            is_last = i == layers.blocks
            attentions = {}
            if is_last or layers.attn_after_each_block:
                suffix = "" if is_last else str(i)
                attentions[f"spatial_attn{suffix}"] = layers.spatial(dim_out, number)
                attentions[f"temporal_attn{suffix}"] = layers.temporal(dim_out, number)
            there = {name: layer for name, layer in attentions.items() if layer is not None}
            for name, layer in there.items():
                self.add_module(name, layer)
            self._stages.append((block, [*there]))
        self.resample = nn.Identity() if resample is None else resample

    def forward(
        self, x: Tensor, emb: Tensor, temporal: Temporal, run: Run = call
    ) -> tuple[Tensor, Tensor]:
        """Gives the features before and after the change of resolution."""
        for block, attentions in self._stages:
            x = run(getattr(self, block), x, emb)
            for name in attentions:
                told: tuple[Any, ...] = temporal
                if name.startswith("spatial"):
                    told = (temporal.text,)
                x = run(getattr(self, name), x, *told)
        return x, self.resample(x)


def make_levels(dims: list[int], layers: LevelLayers) -> tuple[nn.ModuleList, nn.ModuleList]:
    """The levels down, from the finest to the coarsest resolution, and those up again.

    Args:
        dims: Channels before the first level, and after each on the way down.
        layers: How the layers of a level are made.
    """
    steps = list(pairwise(dims))
    last = len(steps) - 1
    downs = nn.ModuleList(
        Level(dim_in, dim_out, Downsample(dim_out) if i < last else None, i, layers)
        for i, (dim_in, dim_out) in enumerate(steps)
    )
    # on the way up the skip connection's channels come in as well
    ups = nn.ModuleList(
        Level(dim_out * 2, dim_in, Upsample(dim_in) if i else None, i, layers)
        for i, (dim_in, dim_out) in reversed([*enumerate(steps)])
    )
    return downs, ups
