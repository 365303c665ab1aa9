"""The network: a noisy video, its time step and its conditions in, the predicted noise out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.conditions import given
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.hub import Shareable
from video_diffusion_pytorch.model.arguments import check_arguments, plain
from video_diffusion_pytorch.model.compile_blocks import compile_blocks
from video_diffusion_pytorch.model.embeddings import make_time_mlp, rotary_tables
from video_diffusion_pytorch.model.guided import Guided
from video_diffusion_pytorch.model.levels import Temporal
from video_diffusion_pytorch.model.masks import dropped_videos, focus_mask
from video_diffusion_pytorch.model.u_shape import UShape
from video_diffusion_pytorch.reference.state_dict import (
    HEAD_WIDTHS,
    LOG_SNR_INPUT,
    read_reference_state_dict,
    unet_config_from_state_dict,
)

# How a network runs is no part of what it is
_NOT_OF_THE_NETWORK = ("self", "__class__", "gradient_checkpointing")


class Unet3D(UShape, Guided, Shareable, part="unet"):
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
        attn_heads: Heads of every attention; None for as many as its channels hold.
        attn_dim_head: Width of a head of the temporal attention.
        use_bert_text_cond: Whether conditions are BERT's vectors, so that `cond_dim` is 768.
        init_dim: Channels after the first convolution; None for `dim`.
        init_kernel_size: Height and width of the first convolution's kernel; odd.
        use_sparse_linear_attn: Whether pixels attend to each other, at linear cost, at every
            resolution. Between the ways down and up they do always, by softmax attention.
        block_type: Only `"resnet"` exists.
        resnet_groups: None for RMSNorm; a number of groups for the GroupNorm network of versions
            0.6.x, whose checkpoints have 8.
        num_classes: Number of classes of videos; None for a network without classes. Each has a
            learned vector, added to the embedding of time.
        frame_cond_dim: Width of a vector that is given for each frame (a position, an action,
            a pose); None for none. It scales and shifts the features of its own frame.
        cond_channels: Channels of a field that is given for each pixel (a mask, a coarse video,
            known frames), joined to the noisy video before the first convolution; 0 for none.
        num_text_tokens: As how many tokens the attentions see a caption, 4 to 8, say; None for not
            at all. `cond` is then a sequence of the encoder's states, which learned queries gather
            into tokens: more keys and values of each softmax attention.
        text_pooling: What of such a sequence joins the embedding of time: the `"mean"` state, or
            what a learned query gathers by `"attention"` (Ho et al. 2022, section 4.1), with or
            without tokens.
        token_shift: Whether part of the channels comes from neighbours before an attention: from
            the frames before and after in the temporal ones (`"time"`), from the four pixels around
            in the spatial ones (`"space"`), or `"both"`. It has no weights.
        blocks_per_level: Residual blocks of each resolution, on each of both ways.
        attn_after_each_block: Whether attention follows each of them, as in the paper, or the last.
        full_attn_levels: Resolutions, 0 for the finest, whose pixels attend to each other by
            softmax attention. The paper has it at 8, 16 and 32 pixels.
        temporal_attn_levels: Resolutions whose frames attend to each other; None for all. The
            attention before the first block is that of 0.
        spatial_attn_dim_head: Width of a head of the spatial attentions.
        dropout: Share of the features within a residual block that training sets to zero.
        emb_dim: Width of the embedding of time; None for `4 * dim`.
        emb_layers: Layers that make it.
        time_input: What `time` is: the `"step"`, or, as in the paper, the `"log_snr"`.
        gradient_checkpointing: Whether the features within a layer are computed again for a
            gradient instead of being kept: less memory, more time, the same numbers. The attribute
            of this name may be set at any time.

    Raises:
        ValueError: If an argument is outside its range.

    Differs from the reference: `init_dim` may differ from `dim`; guided sampling is one forward
    pass of twice the batch; `focus_present_mask` holds in the first temporal attention too.

    Differs from the paper, with all of its options: one skip connection per resolution; a bias by
    relative position instead of embeddings; condition and time side by side.

    Example:
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> unet(torch.randn(1, 3, 5, 16, 24), torch.tensor([10])).shape
        torch.Size([1, 3, 5, 16, 24])

        A class for each video and a vector for each frame:

        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, num_classes=10, frame_cond_dim=6)
        >>> unet.condition_names
        ('labels', 'frame_cond')
        >>> x, t = torch.randn(2, 3, 5, 16, 24), torch.tensor([10, 20])
        >>> unet(x, t, labels=torch.tensor([7, -1]), frame_cond=torch.randn(2, 5, 6)).shape
        torch.Size([2, 3, 5, 16, 24])
    """

    def __init__(
        self,
        dim: int,
        cond_dim: int | None = None,
        out_dim: int | None = None,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        attn_heads: int | None = 8,
        attn_dim_head: int = 32,
        use_bert_text_cond: bool = False,
        init_dim: int | None = None,
        init_kernel_size: int = 7,
        use_sparse_linear_attn: bool = True,
        block_type: str = "resnet",
        *,
        resnet_groups: int | None = None,
        num_classes: int | None = None,
        frame_cond_dim: int | None = None,
        cond_channels: int = 0,
        num_text_tokens: int | None = None,
        text_pooling: str = "mean",
        token_shift: str | None = None,
        blocks_per_level: int = 2,
        attn_after_each_block: bool = False,
        full_attn_levels: Sequence[int] = (),
        temporal_attn_levels: Sequence[int] | None = None,
        spatial_attn_dim_head: int = 32,
        dropout: float = 0.0,
        emb_dim: int | None = None,
        emb_layers: int = 2,
        time_input: str = "step",
        gradient_checkpointing: bool = False,
    ) -> None:
        config = {k: plain(v) for k, v in locals().items() if k not in _NOT_OF_THE_NETWORK}
        super().__init__()
        check_arguments(config)
        self.config, self.channels, self.time_input = config, channels, time_input
        self.gradient_checkpointing = gradient_checkpointing
        time_dim = emb_dim or dim * 4
        self.time_mlp = make_time_mlp(dim, time_dim, emb_layers)
        block_emb_dim = self._make_conditions(config, time_dim)
        self._make_layers(config, block_emb_dim, time_dim if num_text_tokens else None)
        self._remember_what_shapes_do_not_tell()
        self.register_load_state_dict_pre_hook(read_reference_state_dict)

    def _remember_what_shapes_do_not_tell(self) -> None:
        """Puts into the state dict what is unusual; others have the reference's keys."""
        log_snr, widths = None, None
        if self.time_input == "log_snr":
            log_snr = torch.ones((), dtype=torch.uint8)
        if self.config["attn_heads"] is None:
            names = ("attn_dim_head", "spatial_attn_dim_head")
            widths = torch.tensor([self.config[name] for name in names], dtype=torch.int32)
        self.register_buffer(LOG_SNR_INPUT, log_snr)
        self.register_buffer(HEAD_WIDTHS, widths)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], **overrides: Any) -> Unet3D:
        """Builds the network that a state dict belongs to, and loads it.

        Args:
            state_dict: Of a `Unet3D` or of a `GaussianDiffusion` that holds one, or a whole
                training file (of which the averaged weights are taken), written by this
                library or by a reference version from 0.6.0 on.
            **overrides: Keywords of `Unet3D` that tensors don't tell, such as `resnet_groups`
                where it is not 8, `token_shift` and `dropout`.

        Raises:
            ValueError: If these are not the tensors of a `Unet3D`.
        """
        tensors, config = unet_config_from_state_dict(state_dict)
        unet = cls(**{**config, **overrides})
        unet.load_state_dict(tensors)
        return unet

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each residual block and attention in place, as `model.compile_blocks` says.

        Args:
            **options: Keywords of `torch.compile`.
        """
        compile_blocks(self, **options)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        null_cond_prob: float = 0.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
        *,
        labels: Tensor | None = None,
        frame_cond: Tensor | None = None,
        cond_video: Tensor | None = None,
        null_cond_mask: Tensor | None = None,
        image_frames: int = 0,
        image_conditions: Mapping[str, Tensor] | None = None,
        drop_mask: Tensor | None = None,
        cond_mask: Tensor | None = None,
    ) -> Tensor:
        """Predicts the noise in `x`.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`, with images behind them where there are
                `image_frames`.
            time: Time steps, `(b,)`; or their log-SNR, with `time_input="log_snr"`.
            cond: A vector per video, `(b, cond_dim)`; only for a network with `cond_dim`. With
                `num_text_tokens` or `text_pooling="attention"` a sequence, `(b, n, cond_dim)`.
            null_cond_prob: Probability of each video to lose its conditions, which learned null
                values then replace: it loses all of them, or keeps all. With 1 all videos do, and
                no condition need be given.
            focus_present_mask: Boolean `(b,)`: where true, no frame sees another. None to draw it.
            prob_focus_present: Probability of true in a drawn `focus_present_mask`.
            labels: Classes, integers `(b,)` from 0 to `num_classes - 1`, or -1 for none; only for
                a network with `num_classes`. On a GPU their range is not checked.
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`; only for a network with
                `frame_cond_dim`.
            cond_video: A value per pixel and channel, `(b, cond_channels, f, h, w)`, or
                `(b, cond_channels, h, w)` for all frames alike; only for a network with
                `cond_channels`. Best in [-1, 1], as the videos.
            null_cond_mask: Boolean `(b,)`: where true, `cond` alone is replaced by its null
                embedding, for videos without a caption. None for nowhere.
            image_frames: How many frames at the end of `x` are images of their own (Ho et al. 2022,
                section 4.3.1), `k`: they see only themselves, and no frame of the video, of which
                `f` are left, sees them. The conditions above are those of the `f` frames.
            image_conditions: What images are told, by the names above, with one row per image:
                `cond` `(b, k, cond_dim)`, `labels` `(b, k)`, `frame_cond`
                `(b, k, frame_cond_dim)`, `cond_video` `(b, cond_channels, k, h, w)`,
                `null_cond_mask` `(b, k)` and `cond_mask` `(b, k, n)`. Null values replace those
                that are missing, and those of videos that lose theirs.
            drop_mask: Boolean `(b,)`: where true, a video loses its conditions, instead of by
                `null_cond_prob`. None to draw it. Without effect if the network takes none.
            cond_mask: Boolean `(b, n)`: where false, a state of a sequence `cond` is padding, and
                where a whole row is, there is no caption. None for true everywhere.

        Returns:
            `(b, out_dim, f, h, w)`, images behind as in `x`.

        Raises:
            ValueError: If shapes don't fit the network, or a condition is missing or unexpected.
        """
        conditions: dict[str, Any] = {
            "cond": cond,
            "labels": labels,
            "frame_cond": frame_cond,
            "cond_video": cond_video,
            "null_cond_mask": null_cond_mask,
            "cond_mask": cond_mask,
        }
        images = given(image_conditions or {})
        self.check_inputs(
            x,
            time,
            null_cond_prob,
            image_frames=image_frames,
            image_conditions=images,
            **conditions,
        )
        if x.is_cpu and not torch.compiler.is_compiling():
            keep_freed_memory()
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        # one draw for all conditions of a video
        dropped = dropped_videos(drop_mask, null_cond_prob, x, has_cond=self.has_cond)
        frames = x.shape[2] - image_frames
        told = given(conditions)
        emb = self._embed(time, dropped, told, images, (frames, image_frames))
        fields = (cond_video, images.get("cond_video"))
        x = self._join_field(x, *fields, dropped, image_frames)
        text = self._tokens(dropped, told, images, image_frames)
        bias = self.time_rel_pos_bias(frames, device=x.device)
        rotary = rotary_tables(self.rotary_emb.freqs, frames)
        return self._through_levels(x, emb, Temporal(bias, rotary, focus, image_frames, text))
