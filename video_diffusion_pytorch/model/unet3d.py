"""The network: a noisy video, its time step and a condition in, the predicted noise out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn

from video_diffusion_pytorch.model.blocks import (
    FramewiseConv,
    ResnetBlock,
    keep_kernels_channels_last,
)
from video_diffusion_pytorch.model.checks import check_arguments, check_input
from video_diffusion_pytorch.model.embeddings import (
    RelativePositionBias,
    SinusoidalPosEmb,
    rotary_tables,
)
from video_diffusion_pytorch.model.host_memory import keep_freed_memory
from video_diffusion_pytorch.model.levels import SpatialAttention, TemporalAttention, make_levels
from video_diffusion_pytorch.model.masks import focus_mask, prob_mask_like
from video_diffusion_pytorch.reference.state_dict import (
    read_reference_state_dict,
    unet_config_from_state_dict,
)

# The width of BERT's states, which `use_bert_text_cond` stands for.
BERT_DIM = 768


class Unet3D(nn.Module):
    """The space-time factored U-Net of Ho et al. 2022, section 3.

    Convolutions and spatial attention work within a frame, temporal attention within a pixel.
    The network takes any number of frames, and frames whose height and width can be halved
    `len(dim_mults) - 1` times.

    Args:
        dim: Channels at full resolution; even. The embedding of time has four times as many.
        cond_dim: Width of the condition vector; None for a network without condition.
        out_dim: Channels of the output; None for `channels`.
        dim_mults: One factor of `dim` per resolution, from the finest to the coarsest.
        channels: Channels of the video.
        attn_heads: Heads of every attention.
        attn_dim_head: Width of a head of the temporal attention; spatial heads have 32.
        use_bert_text_cond: Whether conditions are BERT's vectors, so that `cond_dim` is 768.
        init_dim: Channels after the first convolution; None for `dim`.
        init_kernel_size: Height and width of the first convolution's kernel; odd.
        use_sparse_linear_attn: Whether pixels attend to each other, at linear cost, at every
            resolution. At the coarsest they do always, by softmax attention.
        block_type: Only `"resnet"` exists.
        resnet_groups: None for RMSNorm; a number of groups for the GroupNorm network of versions
            0.6.x, whose checkpoints have 8.

    Raises:
        ValueError: If an argument is outside its range.

    Differs from the reference: `init_dim` may differ from `dim`; guided sampling is one forward
    pass of twice the batch; `focus_present_mask` holds in the first temporal attention too.

    Example:
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> unet(torch.randn(1, 3, 5, 16, 24), torch.tensor([10])).shape
        torch.Size([1, 3, 5, 16, 24])
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        attn_heads: int = 8,
        attn_dim_head: int = 32,
        use_bert_text_cond: bool = False,
        init_dim: int | None = None,
        init_kernel_size: int = 7,
        use_sparse_linear_attn: bool = True,
        block_type: str = "resnet",
        *,
        resnet_groups: int | None = None,
    ) -> None:
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        super().__init__()
        check_arguments(config)
        self.config, self.channels = config, channels
        cond_dim = BERT_DIM if use_bert_text_cond else cond_dim
        self.has_cond = cond_dim is not None
        first = init_dim or dim

        # what all layers are told: time and condition, and the place of each frame
        time_dim = dim * 4
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(dim),
            nn.Linear(dim, time_dim),
            nn.GELU(),
            nn.Linear(time_dim, time_dim),
        )
        self.null_cond_emb = None if cond_dim is None else nn.Parameter(torch.randn(1, cond_dim))
        self.rotary_emb = RotaryEmbedding(min(32, attn_dim_head))
        self.time_rel_pos_bias = RelativePositionBias(heads=attn_heads, max_distance=32)

        # full resolution
        size = init_kernel_size
        self.init_conv = FramewiseConv(
            channels, first, (1, size, size), padding=(0, size // 2, size // 2)
        )
        self.init_temporal_attn = TemporalAttention(first, attn_heads, attn_dim_head)

        # down, through the coarsest resolution, and up
        plain_block = partial(ResnetBlock, groups=resnet_groups)
        block = partial(plain_block, time_emb_dim=time_dim + (cond_dim or 0))
        dims = [first, *(dim * mult for mult in dim_mults)]
        attention = (attn_heads, attn_dim_head)
        self.downs, self.ups = make_levels(dims, block, *attention, use_sparse_linear_attn)
        coarsest = dims[-1]
        self.mid_block1 = block(coarsest, coarsest)
        self.mid_spatial_attn = SpatialAttention(coarsest, attn_heads)
        self.mid_temporal_attn = TemporalAttention(coarsest, *attention)
        self.mid_block2 = block(coarsest, coarsest)
        self.final_conv = nn.Sequential(
            plain_block(first * 2, dim), FramewiseConv(dim, out_dim or channels, 1)
        )
        keep_kernels_channels_last(self)
        self.register_load_state_dict_pre_hook(read_reference_state_dict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], **overrides: Any) -> Unet3D:
        """Builds the network that a state dict belongs to, and loads it.

        Args:
            state_dict: Of a `Unet3D` or of a `GaussianDiffusion` that holds one, or a whole
                training file (of which the averaged weights are taken), written by this
                library or by a reference version from 0.6.0 on.
            **overrides: Keywords of `Unet3D` that tensors don't tell, such as `resnet_groups`
                where it is not 8.

        Raises:
            ValueError: If these are not the tensors of a `Unet3D`.
        """
        tensors, config = unet_config_from_state_dict(state_dict)
        unet = cls(**{**config, **overrides})
        unet.load_state_dict(tensors)
        return unet

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        *,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:
        """Classifier-free guidance (Ho et al. 2022, eq. 6), in one pass over both halves.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: Time steps, `(b,)`.
            cond: Conditions, `(b, cond_dim)`.
            cond_scale: 1 is without guidance, 0 without condition; the paper's w is
                `cond_scale - 1`.
            focus_present_mask: As in `forward`.
            prob_focus_present: As in `forward`.
            **kwargs: Further arguments of a subclass's `forward`; tensors have `b` rows.

        Returns:
            `null + (conditional - null) * cond_scale`, of the shape of `forward`'s output.
        """
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        if cond_scale == 1 or not self.has_cond:
            return self(x, time, cond=cond, focus_present_mask=focus, **kwargs)
        self._check(x, time, cond, null_cond_prob=0.0)
        assert cond is not None
        assert self.null_cond_emb is not None
        null = self.null_cond_emb.to(cond.dtype).expand_as(cond)
        twice = {k: torch.cat((v, v)) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        both = self(
            torch.cat((x, x)),
            torch.cat((time, time)),
            cond=torch.cat((cond, null)),
            focus_present_mask=None if focus is None else torch.cat((focus, focus)),
            **twice,
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + (conditional - unconditional) * cond_scale

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        null_cond_prob: float = 0.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
    ) -> Tensor:
        """Predicts the noise in `x`.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: Time steps, `(b,)`.
            cond: Conditions, `(b, cond_dim)`; only for a network with `cond_dim`.
            null_cond_prob: Probability of each condition to be replaced by the learned null
                embedding; 1 for all, and then `cond` may be None.
            focus_present_mask: Boolean `(b,)`: where true, no frame sees another. None to draw it.
            prob_focus_present: Probability of true in a drawn `focus_present_mask`.

        Returns:
            `(b, out_dim, f, h, w)`.

        Raises:
            ValueError: If shapes don't fit the network, or a condition is missing or unexpected.
        """
        self._check(x, time, cond, null_cond_prob)
        if x.is_cpu and not torch.compiler.is_compiling():
            keep_freed_memory()
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        emb = self._embed(time, cond, null_cond_prob)
        frames = x.shape[2]
        bias = self.time_rel_pos_bias(frames, device=x.device)
        temporal = (bias, rotary_tables(self.rotary_emb.freqs, frames), focus)

        # full resolution
        x = self.init_conv(x.contiguous(memory_format=torch.channels_last_3d))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        x = self.init_temporal_attn(x, *temporal)
        full_resolution = x

        # down
        skips = []
        for level in self.downs:
            skip, x = level(x, emb, temporal)
            skips.append(skip)

        # the coarsest resolution
        x = self.mid_block1(x, emb)
        x = self.mid_spatial_attn(x)
        x = self.mid_temporal_attn(x, *temporal)
        x = self.mid_block2(x, emb)

        # up
        for level in self.ups:
            _, x = level(_join(x, skips.pop()), emb, temporal)
        return self.final_conv(_join(x, full_resolution))

    def _check(self, x: Tensor, time: Tensor, cond: Tensor | None, null_cond_prob: float) -> None:
        cond_dim = None if self.null_cond_emb is None else self.null_cond_emb.shape[1]
        levels = len(self.downs)
        check_input(
            x, time, cond, null_cond_prob, channels=self.channels, levels=levels, cond_dim=cond_dim
        )

    def _embed(self, time: Tensor, cond: Tensor | None, null_cond_prob: float) -> Tensor:
        """The vector that every residual block gets: time, and the condition beside it."""
        sinusoids, *layers = self.time_mlp
        emb = sinusoids(time).to(layers[0].weight.dtype)
        for layer in layers:
            emb = layer(emb)
        if self.null_cond_emb is None:
            return emb
        if cond is None:
            cond = self.null_cond_emb.expand(time.shape[0], -1)
        # even if none is dropped, so that the null embedding has a gradient, as DDP demands
        dropped = prob_mask_like((time.shape[0],), null_cond_prob, cond.device)
        cond = torch.where(dropped[:, None], self.null_cond_emb, cond)
        return torch.cat((emb, cond.to(emb.dtype)), dim=-1)


def _join(x: Tensor, skip: Tensor) -> Tensor:
    """Puts the skip connection's channels behind those of `x`."""
    # in memory channels are the last axis, where torch.cat has its fast path
    return torch.cat((x.movedim(1, -1), skip.movedim(1, -1)), dim=-1).movedim(-1, 1)
