"""The space-time U-Net: a noisy video, its time step and its conditions in, the noise out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from video_diffusion_pytorch.conditions import given, stack_rows
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.hub import Shareable
from video_diffusion_pytorch.model.attention import (
    LinearAttentionLayer,
    SpatialAttention,
    TemporalAttention,
)
from video_diffusion_pytorch.model.blocks import (
    Downsample,
    FramewiseConv,
    ResnetBlock,
    Upsample,
    join_channels,
    keep_kernels_channels_last,
)
from video_diffusion_pytorch.model.checks import (
    check_arguments,
    check_conditions,
    check_images,
    check_input,
    cond_dim_of,
    plain,
    takes_text_states,
)
from video_diffusion_pytorch.model.compile_blocks import compile_blocks
from video_diffusion_pytorch.model.conditioning import (
    TextPooling,
    TextTokens,
    add_condition_parameters,
    check_negative,
    dropped_videos,
    embed_conditions,
    focus_mask,
    guided_halves,
    join_cond_video,
    rescaling,
    tokens_of_captions,
)
from video_diffusion_pytorch.model.embeddings import (
    RelativePositionBias,
    make_time_mlp,
    rotary_tables,
    time_of_log_snr,
)
from video_diffusion_pytorch.reference.state_dict import (
    HEAD_WIDTHS,
    LOG_SNR_INPUT,
    read_reference_state_dict,
    unet_config_from_state_dict,
)

# Local names of the constructor that are no settings of the network
_NOT_IN_CONFIG = ("self", "__class__", "gradient_checkpointing")


class Unet3D(Shareable, part="unet"):
    """The space-time factored U-Net of Ho et al. 2022, section 3.

    Convolutions and spatial attention work within a frame, temporal attention within a pixel.
    The network takes any number of frames, and frames whose height and width can be halved
    `len(dim_mults) - 1` times.

    Args:
        dim: Channels at full resolution; even. The time embedding has four times as many.
        cond_dim: Width of the condition vector; None for a network without it.
        out_dim: Channels of the output; None for `channels`.
        dim_mults: One factor of `dim` per resolution, from the finest to the coarsest.
        channels: Channels of the video.
        attn_heads: Heads of every attention; None for as many as its channels hold.
        attn_dim_head: Width of a head of the temporal attention.
        use_bert_text_cond: Whether conditions are BERT's vectors, so that `cond_dim` is 768.
        init_dim: Channels after the first convolution; None for `dim`.
        init_kernel_size: Height and width of the first convolution's kernel; odd.
        use_sparse_linear_attn: Whether pixels attend to each other, at linear cost, at every
            resolution. In the bottleneck they always do, by softmax attention.
        block_type: Only `"resnet"` exists.
        resnet_groups: None for RMSNorm; a number of groups for the GroupNorm network of versions
            0.6.x, whose checkpoints have 8.
        num_classes: Number of classes of videos; None for a network without classes. Each has a
            learned vector, added to the time embedding.
        frame_cond_dim: Width of a vector that is given for each frame (a position, an action,
            a pose); None for none. It scales and shifts the features of its own frame.
        cond_channels: Channels of a field that is given for each pixel (a mask, a coarse video,
            known frames), joined to the noisy video before the first convolution; 0 for none.
        num_text_tokens: Number of tokens, 4 to 8, say, as which attention sees a caption; None
            for none. `cond` is then a sequence of the encoder's states, which learned queries
            gather into tokens: more keys and values of each softmax attention.
        text_pooling: The vector of such a sequence that joins the time embedding: the `"mean"`
            state, or what a learned query gathers by `"attention"` (Ho et al. 2022, section 4.1),
            with or without tokens.
        token_shift: Whether part of the channels comes from neighbours before an attention: from
            the frames before and after in the temporal ones (`"time"`), from the four pixels around
            in the spatial ones (`"space"`), or `"both"`. It has no weights.
        blocks_per_level: Residual blocks per resolution, in the encoder and in the decoder.
        attn_after_each_block: Whether attention follows each of them, as in the paper, or the last.
        full_attn_levels: Resolutions, 0 for the finest, whose pixels attend to each other by
            softmax attention. The paper has it at 8, 16 and 32 pixels.
        temporal_attn_levels: Resolutions whose frames attend to each other; None for all. The
            attention before the first block is that of 0.
        spatial_attn_dim_head: Width of a head of the spatial attentions.
        dropout: Share of the features within a residual block that training sets to zero.
        emb_dim: Width of the time embedding; None for `4 * dim`.
        emb_layers: Linear layers of the time embedding.
        time_input: Meaning of `time`: the `"step"`, or, as in the paper, the `"log_snr"`.
        gradient_checkpointing: Whether the features within a layer are recomputed in the backward
            pass instead of being stored: less memory, more time, the same numbers. The attribute
            of this name may be set at any time.

    Raises:
        ValueError: If an argument is outside its range.

    Differs from the reference: `init_dim` may differ from `dim`; guided sampling is one forward
    pass of twice the batch; `focus_present_mask` holds in the first temporal attention too.

    Differs from the paper, with all of its options: one skip connection per resolution; a bias by
    relative position instead of embeddings; condition and time embedding concatenated.

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

    config: dict[str, Any]
    null_cond_emb: nn.Parameter | None
    label_emb: nn.Embedding | None
    null_frame_cond: nn.Parameter | None
    frame_cond_proj: nn.Linear | None
    null_cond_video: nn.Parameter | None
    text_pooling: TextPooling | None
    text_tokens: TextPooling | None
    null_text_tokens: nn.Parameter | None
    init_temporal_attn: nn.Module | None

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
        config = {k: plain(v) for k, v in locals().items() if k not in _NOT_IN_CONFIG}
        super().__init__()
        check_arguments(config)
        self.config, self.channels, self.time_input = config, channels, time_input
        self.gradient_checkpointing = gradient_checkpointing
        time_dim = emb_dim or dim * 4
        self.time_mlp = make_time_mlp(dim, time_dim, emb_layers)
        add_condition_parameters(self, config, time_dim)
        self.cond_channels = cond_channels
        self.has_cond = bool(self.condition_names)
        self._make_layers(config, time_dim)
        self._register_settings()
        self.register_load_state_dict_pre_hook(read_reference_state_dict)

    def _register_settings(self) -> None:
        """Puts settings that no shape shows into the state dict, if they aren't the default."""
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
            **overrides: Keywords of `Unet3D` that tensors don't determine, such as `resnet_groups`
                where it is not 8, `token_shift` and `dropout`.

        Raises:
            ValueError: If these are not the tensors of a `Unet3D`.
        """
        tensors, config = unet_config_from_state_dict(state_dict)
        unet = cls(**{**config, **overrides})
        unet.load_state_dict(tensors)
        return unet

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The keywords of `forward` for the conditions that this network takes."""
        parts = {
            "cond": self.null_cond_emb,
            "labels": self.label_emb,
            "frame_cond": self.null_frame_cond,
            "cond_video": self.null_cond_video,
        }
        return tuple(name for name, part in parts.items() if part is not None)

    @property
    def takes_text_states(self) -> bool:
        """Whether `cond` is a sequence of an encoder's states, and not one vector."""
        return takes_text_states(self.config)

    def check_inputs(
        self,
        x: Tensor,
        time: Tensor,
        null_cond_prob: float,
        *,
        image_frames: int = 0,
        image_conditions: Mapping[str, Any] | None = None,
        **conditions: Any,
    ) -> None:
        """Raises a ValueError for what `forward` would refuse; the arguments are its own."""
        check_input(x, time, self.config)
        check_images(x, image_frames, image_conditions or {}, self.config)
        videos = x[:, :, : x.shape[2] - image_frames]
        check_conditions(videos, conditions, self.config, required=null_cond_prob < 1)

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each residual block and attention in place; see `model.compile_blocks`.

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
            null_cond_prob: Probability that the conditions of a video, all of them together, are
                replaced by learned null values. With 1 no condition need be given.
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
            image_conditions: Conditions of the images, by the names above, with one row per image:
                `cond` `(b, k, cond_dim)`, `labels` `(b, k)`, `frame_cond`
                `(b, k, frame_cond_dim)`, `cond_video` `(b, cond_channels, k, h, w)`,
                `null_cond_mask` `(b, k)` and `cond_mask` `(b, k, n)`. Null values replace those
                that are missing, and those of videos that lose theirs.
            drop_mask: Boolean `(b,)`: where true, a video loses its conditions. None to draw it
                with `null_cond_prob`. Without effect if the network takes no condition.
            cond_mask: Boolean `(b, n)`: where false, a state of a sequence `cond` is padding, and
                where a whole row is, there is no caption. None for true everywhere.

        Returns:
            `(b, out_dim, f, h, w)`, images behind as in `x`.

        Raises:
            ValueError: If shapes don't fit the network, or a condition is missing or unexpected.
        """
        conditions: dict[str, Any] = given(
            {
                "cond": cond,
                "labels": labels,
                "frame_cond": frame_cond,
                "cond_video": cond_video,
                "null_cond_mask": null_cond_mask,
                "cond_mask": cond_mask,
            }
        )
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
        emb = self._embed_time(time)
        if dropped is not None:
            emb = embed_conditions(self, emb, dropped, conditions, images, (frames, image_frames))
        text = tokens_of_captions(self, dropped, conditions, images, image_frames)
        bias = self.time_rel_pos_bias(frames, device=x.device)
        rotary = rotary_tables(self.rotary_emb.freqs, frames)
        temporal = (bias, rotary, focus, image_frames, text)
        run = _call_checkpointed if self._recomputes() else _call

        # full resolution
        x = join_cond_video(self, x, dropped, conditions, images, image_frames)
        x = self.init_conv(x.contiguous(memory_format=torch.channels_last_3d))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        if self.init_temporal_attn is not None:
            x = run(self.init_temporal_attn, x, *temporal)
        full_resolution = x

        # encoder
        skips = []
        for level in self.downs:
            skip, x = level(x, emb, text, temporal, run)
            skips.append(skip)

        # bottleneck
        x = run(self.mid_block1, x, emb)
        x = run(self.mid_spatial_attn, x, text)
        x = run(self.mid_temporal_attn, x, *temporal)
        x = run(self.mid_block2, x, emb)

        # decoder
        for level in self.ups:
            _, x = level(join_channels(x, skips.pop()), emb, text, temporal, run)
        return run(self.final_conv, join_channels(x, full_resolution))

    def _recomputes(self) -> bool:
        return self.gradient_checkpointing and torch.is_grad_enabled()

    def _embed_time(self, time: Tensor) -> Tensor:
        """The time embedding `(b, time_dim)` of time steps or log-SNRs `(b,)`."""
        sinusoids, *layers = self.time_mlp
        if self.time_input == "log_snr":
            time = time_of_log_snr(time)
        emb = sinusoids(time).to(layers[0].weight.dtype)
        for layer in layers:
            emb = layer(emb)
        return emb

    def forward_with_cond_scale(
        self,
        x: Tensor,
        time: Tensor,
        cond: Tensor | None = None,
        *,
        cond_scale: float = 2.0,
        focus_present_mask: Tensor | None = None,
        prob_focus_present: float = 0.0,
        labels: Tensor | None = None,
        frame_cond: Tensor | None = None,
        cond_video: Tensor | None = None,
        null_cond_mask: Tensor | None = None,
        cond_mask: Tensor | None = None,
        negative: Mapping[str, Tensor] | None = None,
        guidance_rescale: float = 0.0,
        **kwargs: Any,
    ) -> Tensor:
        """Classifier-free guidance (Ho et al. 2022, eq. 6), in one pass over both halves.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: Time steps, `(b,)`.
            cond: As in `forward`, and so the other conditions.
            cond_scale: 1 is without guidance, 0 without any condition; the paper's w is
                `cond_scale - 1`.
            focus_present_mask: As in `forward`.
            prob_focus_present: As in `forward`.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            null_cond_mask: As in `forward`.
            cond_mask: As in `forward`.
            negative: Conditions, by keyword, that guidance leads away from: in the unconditional
                half they take the places of null values. Those not named stay null there. Of each
                there must be a condition as well. Without effect if `cond_scale` is 1.
            guidance_rescale: Share, from 0 to 1, by which each guided video gets back the standard
                deviation of the conditional one, which guidance raises (Lin et al. 2023, eq. 14
                to 16). Without effect if `cond_scale` is 1.
            **kwargs: Further arguments of a subclass's `forward`; tensors have `b` rows.

        Returns:
            `null + (conditional - null) * cond_scale`, of the shape of `forward`'s output.

        Raises:
            ValueError: As in `forward`, and if `negative` or `guidance_rescale` don't fit.
        """
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(
                f"Unet3D: guidance_rescale must be from 0 to 1, got {guidance_rescale}; 0 leaves "
                "guidance as it is, 0.7 is usual"
            )
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        # a subclass's forward need not know those that are not used
        conditions: dict[str, Any] = given(
            {
                "cond": cond,
                "labels": labels,
                "frame_cond": frame_cond,
                "cond_video": cond_video,
                "null_cond_mask": null_cond_mask,
                "cond_mask": cond_mask,
            }
        )
        instead: dict[str, Any] = given(negative or {})
        if instead:
            check_negative(instead, conditions)
            self.check_inputs(x, time, 1.0, **instead)
        if cond_scale == 1 or not self.has_cond:
            return self(x, time, **{"cond": None} | conditions, focus_present_mask=focus, **kwargs)
        self.check_inputs(x, time, 0.0, **conditions)
        conditions, null = guided_halves(self, conditions, instead)
        if cond_scale == 0 and not guidance_rescale:
            return self(x, time, **null, focus_present_mask=focus, **kwargs)

        # both halves in one pass
        twice = {k: torch.cat((v, v)) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        both = self(
            torch.cat((x, x)),
            torch.cat((time, time)),
            **{name: stack_rows(value, null[name]) for name, value in conditions.items()},
            focus_present_mask=None if focus is None else torch.cat((focus, focus)),
            **twice,
        )
        conditional, unconditional = both.chunk(2)
        guided = unconditional + (conditional - unconditional) * cond_scale
        if not guidance_rescale:
            return guided
        return guided * rescaling(guided, conditional, guidance_rescale)

    def _make_layers(self, config: Mapping[str, Any], time_dim: int) -> None:
        """Makes the layers from the keywords of `Unet3D`."""
        dim, channels = config["dim"], config["channels"]
        first = config["init_dim"] or dim
        dims = [first, *(dim * mult for mult in config["dim_mults"])]
        make = _Layers(config, time_dim)
        self.rotary_emb = RotaryEmbedding(min(32, config["attn_dim_head"]))
        self.time_rel_pos_bias = RelativePositionBias(
            heads=max(make.temporal_heads(width) for width in dims), max_distance=32
        )

        # full resolution
        size, half = config["init_kernel_size"], config["init_kernel_size"] // 2
        self.init_conv = FramewiseConv(
            channels + config["cond_channels"], first, (1, size, size), padding=(0, half, half)
        )
        self.init_temporal_attn = make.temporal_at(first, 0)

        # encoder and decoder, whose levels also take the channels of the skip connection
        levels = list(enumerate(pairwise(dims)))
        last = len(levels) - 1
        self.downs = nn.ModuleList(
            make.level(dim_in, dim_out, Downsample(dim_out) if i < last else None, i)
            for i, (dim_in, dim_out) in levels
        )
        self.ups = nn.ModuleList(
            make.level(dim_out * 2, dim_in, Upsample(dim_in) if i else None, i)
            for i, (dim_in, dim_out) in reversed(levels)
        )

        # bottleneck
        self.mid_block1 = make.block(dims[-1], dims[-1])
        self.mid_spatial_attn = make.spatial(dims[-1])
        self.mid_temporal_attn = make.temporal(dims[-1])
        self.mid_block2 = make.block(dims[-1], dims[-1])

        # output
        groups, dropout = config["resnet_groups"], config["dropout"]
        self.final_conv = nn.Sequential(
            ResnetBlock(first * 2, dim, groups=groups, dropout=dropout),
            FramewiseConv(dim, config["out_dim"] or channels, 1),
        )
        keep_kernels_channels_last(self)


def _call(layer: nn.Module, *args: Any) -> Any:
    return layer(*args)


def _call_checkpointed(layer: nn.Module, *args: Any) -> Any:
    """Calls a layer whose features are recomputed in the backward pass."""
    return checkpoint(layer, *args, use_reentrant=False)


# A residual block, and the attention over pixels and over frames after it, if any
Stage = tuple[ResnetBlock, nn.Module | None, nn.Module | None]


class Level(nn.Module):
    """One resolution of the encoder or the decoder.

    Its blocks are `block1`, `block2` and so on; the attention after the last one is
    `spatial_attn` and `temporal_attn`, that after another one `spatial_attn1`, `temporal_attn1`
    and so on.

    Args:
        stages: The blocks, each with the attention that follows it.
        resample: The layer to the next resolution; None at the last.
    """

    def __init__(self, stages: Sequence[Stage], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = len(stages)
        for i, (block, spatial, temporal) in enumerate(stages, 1):
            self.add_module(f"block{i}", block)
            self.add_module(f"spatial_attn{self._suffix(i)}", spatial)
            self.add_module(f"temporal_attn{self._suffix(i)}", temporal)
        self.resample = nn.Identity() if resample is None else resample

    def _suffix(self, i: int) -> str:
        return "" if i == self.blocks else str(i)

    @property
    def stages(self) -> list[tuple[nn.Module, nn.Module | None, nn.Module | None]]:
        """The blocks, each with the attention that follows it, by their present attributes."""
        return [
            (
                getattr(self, f"block{i}"),
                getattr(self, f"spatial_attn{self._suffix(i)}"),
                getattr(self, f"temporal_attn{self._suffix(i)}"),
            )
            for i in range(1, self.blocks + 1)
        ]

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        text: TextTokens | None,
        temporal: tuple[Any, ...],
        run: Callable[..., Tensor] = _call,
    ) -> tuple[Tensor, Tensor]:
        """Returns the features before and after the change of resolution.

        Args:
            x: The features, `(b, c, f, h, w)`.
            emb: The embedding of time and conditions, as in `ResnetBlock`.
            text: Tokens of captions; None for none.
            temporal: Arguments of `TemporalAttention` after the features.
            run: Calls a layer with its arguments.
        """
        for block, spatial_attn, temporal_attn in self.stages:
            x = run(block, x, emb)
            if spatial_attn is not None:
                x = run(spatial_attn, x, text)
            if temporal_attn is not None:
                x = run(temporal_attn, x, *temporal)
        return x, self.resample(x)


class _Layers:
    """Makes the layers of a network, by the number of channels and the number of the level.

    Args:
        config: Keywords of `Unet3D`.
        time_dim: Width of the time embedding, and of the tokens of captions.
    """

    def __init__(self, config: Mapping[str, Any], time_dim: int) -> None:
        self.config = config
        self.emb_dim = time_dim + (cond_dim_of(config) or 0)
        self.token_dim = time_dim if config["num_text_tokens"] else None
        self.shifts_time = config["token_shift"] in ("time", "both")
        self.shifts_space = config["token_shift"] in ("space", "both")

    def block(self, dim: int, dim_out: int) -> ResnetBlock:
        groups, dropout = self.config["resnet_groups"], self.config["dropout"]
        return ResnetBlock(dim, dim_out, time_emb_dim=self.emb_dim, groups=groups, dropout=dropout)

    def temporal_heads(self, width: int) -> int:
        return self._heads(width, self.config["attn_dim_head"])

    def _heads(self, width: int, dim_head: int) -> int:
        return self.config["attn_heads"] or max(1, width // dim_head)

    def temporal(self, width: int) -> TemporalAttention:
        heads, dim_head = self.temporal_heads(width), self.config["attn_dim_head"]
        return TemporalAttention(width, heads, dim_head, self.token_dim, self.shifts_time)

    def temporal_at(self, width: int, level: int) -> TemporalAttention | None:
        levels = self.config["temporal_attn_levels"]
        return self.temporal(width) if levels is None or level in levels else None

    def spatial(self, width: int) -> SpatialAttention:
        dim_head = self.config["spatial_attn_dim_head"]
        heads = self._heads(width, dim_head)
        return SpatialAttention(width, heads, dim_head, self.token_dim, self.shifts_space)

    def spatial_at(self, width: int, level: int) -> nn.Module | None:
        if level in self.config["full_attn_levels"]:
            return self.spatial(width)
        if not self.config["use_sparse_linear_attn"]:
            return None
        dim_head = self.config["spatial_attn_dim_head"]
        heads = self._heads(width, dim_head)
        return LinearAttentionLayer(width, heads, dim_head, self.shifts_space)

    def level(self, dim: int, dim_out: int, resample: nn.Module | None, number: int) -> Level:
        stages: list[Stage] = []
        blocks = self.config["blocks_per_level"]
        for i in range(blocks):
            block = self.block(dim if i == 0 else dim_out, dim_out)
            if i == blocks - 1 or self.config["attn_after_each_block"]:
                spatial = self.spatial_at(dim_out, number)
                stages.append((block, spatial, self.temporal_at(dim_out, number)))
            else:
                stages.append((block, None, None))
        return Level(stages, resample)
