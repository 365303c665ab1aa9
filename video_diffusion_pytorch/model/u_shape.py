"""The network's way down to the coarsest resolution and up again, without what it is told."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn

from video_diffusion_pytorch.model.attention_layers import (
    LinearAttentionLayer,
    SpatialAttention,
    TemporalAttention,
)
from video_diffusion_pytorch.model.blocks import (
    FramewiseConv,
    ResnetBlock,
    keep_kernels_channels_last,
)
from video_diffusion_pytorch.model.conditions import join_channels
from video_diffusion_pytorch.model.embeddings import RelativePositionBias
from video_diffusion_pytorch.model.levels import (
    LevelLayers,
    Temporal,
    call,
    call_again,
    make_levels,
)


class UShape(nn.Module):
    """The half of `Unet3D` that computes; `Unet3D` documents the options."""

    gradient_checkpointing: bool
    init_temporal_attn: nn.Module | None

    def _make_layers(self, config: Mapping[str, Any], emb_dim: int, token_dim: int | None) -> None:
        """Makes the layers.

        Args:
            config: Keywords of `Unet3D`.
            emb_dim: Width of the embedding of time and condition.
            token_dim: Width of the tokens of captions; None for a network without.
        """
        dim, channels = config["dim"], config["channels"]
        first = config["init_dim"] or dim
        dims = [first, *(dim * mult for mult in config["dim_mults"])]
        attentions = _Attentions(config, token_dim)
        self.rotary_emb = RotaryEmbedding(min(32, config["attn_dim_head"]))
        self.time_rel_pos_bias = RelativePositionBias(
            heads=max(attentions.temporal_heads(width) for width in dims), max_distance=32
        )

        # full resolution
        size, half = config["init_kernel_size"], config["init_kernel_size"] // 2
        self.init_conv = FramewiseConv(
            channels + config["cond_channels"], first, (1, size, size), padding=(0, half, half)
        )
        self.init_temporal_attn = attentions.temporal(first, 0)

        # down, through the coarsest resolution, and up
        plain_block = partial(
            ResnetBlock, groups=config["resnet_groups"], dropout=config["dropout"]
        )
        block = partial(plain_block, time_emb_dim=emb_dim)
        self.downs, self.ups = make_levels(
            dims,
            LevelLayers(
                block,
                attentions.spatial,
                attentions.temporal,
                config["blocks_per_level"],
                config["attn_after_each_block"],
            ),
        )
        self.mid_block1 = block(dims[-1], dims[-1])
        self.mid_spatial_attn = attentions.softmax(dims[-1])
        self.mid_temporal_attn = attentions.frames(dims[-1])
        self.mid_block2 = block(dims[-1], dims[-1])
        self.final_conv = nn.Sequential(
            plain_block(first * 2, dim), FramewiseConv(dim, config["out_dim"] or channels, 1)
        )
        keep_kernels_channels_last(self)

    def _through_levels(self, x: Tensor, emb: Tensor, temporal: Temporal) -> Tensor:
        """From the noisy video, conditions joined to it, to the output."""
        run = call_again if self.gradient_checkpointing and torch.is_grad_enabled() else call

        # full resolution
        x = self.init_conv(x.contiguous(memory_format=torch.channels_last_3d))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.init_temporal_attn is not None:
            x = run(self.init_temporal_attn, x, *temporal)
        full_resolution = x

        # down
        skips = []
        for level in self.downs:
            skip, x = level(x, emb, temporal, run)
            skips.append(skip)

        # the coarsest resolution
        x = run(self.mid_block1, x, emb)
        x = run(self.mid_spatial_attn, x, temporal.text)
        x = run(self.mid_temporal_attn, x, *temporal)
        x = run(self.mid_block2, x, emb)

        # up
        for level in self.ups:
            _, x = level(join_channels(x, skips.pop()), emb, temporal, run)
        return run(self.final_conv, join_channels(x, full_resolution))


class _Attentions:
    """Makes the attentions of a network, by the number of channels and the level."""

    def __init__(self, config: Mapping[str, Any], token_dim: int | None) -> None:
        self.config, self.token_dim = config, token_dim
        self.shift = config["token_shift"]

    def temporal_heads(self, width: int) -> int:
        return self._heads(width, self.config["attn_dim_head"])

    def _heads(self, width: int, dim_head: int) -> int:
        return self.config["attn_heads"] or max(1, width // dim_head)

    def frames(self, width: int) -> TemporalAttention:
        dim_head, shift = self.config["attn_dim_head"], self.shift in ("time", "both")
        heads = self.temporal_heads(width)
        return TemporalAttention(width, heads, dim_head, self.token_dim, shift)

    def temporal(self, width: int, level: int) -> TemporalAttention | None:
        levels = self.config["temporal_attn_levels"]
        return self.frames(width) if levels is None or level in levels else None

    def softmax(self, width: int) -> SpatialAttention:
        dim_head, shift = self.config["spatial_attn_dim_head"], self.shift in ("space", "both")
        heads = self._heads(width, dim_head)
        return SpatialAttention(width, heads, dim_head, self.token_dim, shift)

    def spatial(self, width: int, level: int) -> nn.Module | None:
        if level in self.config["full_attn_levels"]:
            return self.softmax(width)
        if not self.config["use_sparse_linear_attn"]:
            return None
        dim_head, shift = self.config["spatial_attn_dim_head"], self.shift in ("space", "both")
        return LinearAttentionLayer(width, self._heads(width, dim_head), dim_head, shift)
