"""The space-time U-Net: a noisy video, its time step and its conditions in, the noise out."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from rotary_embedding_torch import RotaryEmbedding
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from video_diffusion_pytorch.conditions import (
    CONDITIONS,
    VALUES,
    check_cond_scale,
    given,
    stack_rows,
)
from video_diffusion_pytorch.host_memory import keep_freed_memory
from video_diffusion_pytorch.hub import Shareable
from video_diffusion_pytorch.model import conditioning
from video_diffusion_pytorch.model.attention import SpatialAttention, TemporalAttention
from video_diffusion_pytorch.model.blocks import (
    PADDING_MODES,
    Downsample,
    FramewiseConv,
    Padding,
    ResnetBlock,
    Upsample,
    frames_as_images,
    images_as_frames,
    join_channels,
    keep_kernels_channels_last,
    pad_images,
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
    `len(dim_mults) - 1` times, or with `pad_to_multiple` any.

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
        padding_mode: How frames continue beyond their edges, for all convolutions, resampling and
            `token_shift`: `"zeros"`, `"circular"` for a periodic domain, `"replicate"` or
            `"reflect"`; or one in height and one in width, as `("replicate", "circular")` for
            latitude and longitude. It changes no weights.
        pad_to_multiple: Whether frames are enlarged inside, by `padding_mode` on both sides, to a
            height and width that can be halved `len(dim_mults) - 1` times, and cropped at the end.
            Of a periodic axis the repeated columns lie between its ends: choose a multiple where
            the network shall be exactly periodic.
        gradient_checkpointing: Whether the features within a layer are recomputed in the backward
            pass instead of being stored: less memory, more time, the same numbers. The attribute
            of this name may be set at any time.

    Attributes:
        config: The arguments, in plain numbers, texts and tuples, but for `gradient_checkpointing`.
        condition_names: The keywords of `forward` for the conditions that this network takes.
        has_cond: Whether it takes any.
        takes_text_states: Whether `cond` is a sequence of an encoder's states, and not one vector.

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
        padding_mode: tuple[str, str] | str = "zeros",
        pad_to_multiple: bool = False,
    ) -> None:
        config = {k: plain(v) for k, v in locals().items() if k not in _NOT_IN_CONFIG}
        super().__init__()
        _check_arguments(config)
        self.config, self.channels, self.time_input = config, channels, time_input
        self.gradient_checkpointing = gradient_checkpointing
        time_dim = emb_dim or dim * 4
        self.time_mlp = make_time_mlp(dim, time_dim, emb_layers)
        self._make_condition_parameters(config, time_dim)
        names = [name for name in VALUES if conditioning.condition_width(name, config)]
        self.condition_names, self.has_cond = tuple(names), bool(names)
        self.cond_channels = cond_channels
        self.padding_mode = as_padding(config["padding_mode"])
        self.multiple = 2 ** (len(config["dim_mults"]) - 1) if pad_to_multiple else 1
        self.takes_text_states = conditioning.takes_text_states(config)
        self._make_layers(config, time_dim)
        # settings that no shape shows
        log_snr = torch.ones((), dtype=torch.uint8)
        self.register_buffer(LOG_SNR_INPUT, log_snr if time_input == "log_snr" else None)
        widths = torch.tensor([attn_dim_head, spatial_attn_dim_head], dtype=torch.int32)
        self.register_buffer(HEAD_WIDTHS, widths if attn_heads is None else None)
        self.register_load_state_dict_pre_hook(read_reference_state_dict)

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], **overrides: Any) -> Unet3D:
        """Builds the network that a state dict belongs to, and loads it.

        Args:
            state_dict: Of a `Unet3D` or of a `GaussianDiffusion` that holds one, or a whole
                training file (of which the averaged weights are taken), written by this
                library or by a reference version from 0.6.0 on.
            **overrides: Keywords of `Unet3D` that tensors don't determine, such as `resnet_groups`
                where it is not 8, `token_shift`, `padding_mode`, `pad_to_multiple` and `dropout`.

        Raises:
            TypeError: If it is not a dict, but the name of a file, say.
            ValueError: If these are not the tensors of a `Unet3D`.
        """
        tensors, config = unet_config_from_state_dict(state_dict)
        unet = cls(**{**config, **overrides})
        unet.load_state_dict(tensors)
        return unet

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
        _check_input(x, time, self.config)
        _check_images(x, image_frames, image_conditions or {}, self.config)
        videos = x[:, :, : x.shape[2] - image_frames]
        conditioning.check_conditions(videos, conditions, self.config, required=null_cond_prob < 1)

    def compile_blocks(self, **options: Any) -> None:
        """Compiles each residual block and attention layer in place, when it is first called.

        Dozens of small graphs are compiled sooner than one large one, equal ones share their
        kernels in torch's cache, and a layer whose input has another shape is compiled again alone.
        Weights, names in the state dict and results stay as they are, up to rounding. A copy by
        `copy.deepcopy` or `pickle` is not compiled, and may be compiled itself.

        Args:
            **options: Keywords of `torch.compile`, such as `mode`, `dynamic`, `fullgraph` and
                `backend`.

        Example:
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> names = list(unet.state_dict())
            >>> unet.compile_blocks()
            >>> list(unet.state_dict()) == names
            True
        """
        for layer in self.modules():
            if isinstance(layer, _COMPILED_LAYERS):
                compile_layer(layer, **options)

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
            time: Time steps, `(b,)`, or one per frame and image, `(b, f)`; or their log-SNR, with
                `time_input="log_snr"`.
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
        conditions = conditioning.named_conditions(
            cond, labels, frame_cond, cond_video, null_cond_mask, cond_mask
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
        focus = conditioning.focus_mask(focus_present_mask, prob_focus_present, x)
        frames = x.shape[2] - image_frames
        emb, text = self._embed_time(time), None
        if self.has_cond:
            # one draw for all conditions of a video
            dropped = conditioning.mask_of_videos("drop_mask", drop_mask, null_cond_prob, x)
            of_pass = conditioning.ForwardConditions(
                conditions, images, dropped, frames, image_frames
            )
            emb = conditioning.embed_conditions(self, emb, of_pass)
            text = conditioning.tokens_of_captions(self, of_pass)
            x = conditioning.join_cond_video(self, x, of_pass)
        *_, height, width = x.shape
        x, top, left = pad_frames(x, self.multiple, self.padding_mode)
        bias = self.time_rel_pos_bias(frames, device=x.device)
        rotary = rotary_tables(self.rotary_emb.freqs, frames)
        temporal = (bias, rotary, focus, image_frames, text)
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        run = _call_checkpointed if recomputes else _call

        # full resolution
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
        x = run(self.final_conv, join_channels(x, full_resolution))
        return x[..., top : top + height, left : left + width]

    def _embed_time(self, time: Tensor) -> Tensor:
        """The time embedding `(..., time_dim)` of time steps or log-SNRs `(...)`."""
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
        cond_scale: float | Mapping[str, float] = 2.0,
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
        """Classifier-free guidance (Ho et al. 2022, eq. 6), in one pass over a stacked batch.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: As in `forward`.
            cond: As in `forward`, and so the other conditions.
            cond_scale: 1 is without guidance, 0 without any condition; the paper's w is
                `cond_scale - 1`. Or a scale by keyword of each of several conditions, which are
                added in this order, those that are not named first, with scale 1.
            focus_present_mask: As in `forward`.
            prob_focus_present: As in `forward`.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            null_cond_mask: As in `forward`.
            cond_mask: As in `forward`.
            negative: Conditions, by keyword, that guidance leads away from: in the unconditional
                half they take the places of null values. Those not named stay null there. Of each
                there must be a condition as well. Without effect on conditions with scale 1 that
                are added first.
            guidance_rescale: Share, from 0 to 1, by which each guided video gets back the standard
                deviation of the conditional one, which guidance raises (Lin et al. 2023, eq. 14
                to 16). Without effect if all scales are 1.
            **kwargs: Further arguments of a subclass's `forward`; tensors have `b` rows.

        Returns:
            `null + (conditional - null) * cond_scale`, of the shape of `forward`'s output. With
            scales by condition the sum of `null` and, for each condition, the change of the output
            when it is added to those before it, times its scale (Brooks et al. 2023, eq. 3, for any
            number of conditions). Of equal scales this is the one above.

        Raises:
            ValueError: As in `forward`, and if `cond_scale`, `negative` or `guidance_rescale` don't
                fit.
        """
        if not 0 <= guidance_rescale <= 1:
            raise ValueError(
                f"Unet3D: guidance_rescale must be from 0 to 1, got {guidance_rescale}; 0 leaves "
                "guidance as it is, 0.7 is usual"
            )
        focus = conditioning.focus_mask(focus_present_mask, prob_focus_present, x)
        # a subclass's forward need not know those that are not used
        conditions = conditioning.named_conditions(
            cond, labels, frame_cond, cond_video, null_cond_mask, cond_mask
        )
        instead: dict[str, Any] = given(negative or {})
        if instead:
            conditioning.check_negative(instead, conditions)
            self.check_inputs(x, time, 1.0, **instead)
        check_cond_scale("Unet3D: cond_scale", cond_scale, conditions)
        kept, scales = conditioning.guided_passes(
            cond_scale, conditions, whole=guidance_rescale > 0
        )
        if not self.has_cond or (not scales and kept[0].issuperset(conditions.keys() & VALUES)):
            return self(x, time, **{"cond": None} | conditions, focus_present_mask=focus, **kwargs)
        self.check_inputs(x, time, 0.0, **conditions)
        passes = conditioning.conditions_of_passes(self, conditions, instead, kept)
        if not scales:
            return self(x, time, **passes[0], focus_present_mask=focus, **kwargs)

        # all of them in one, the one with most conditions first
        n = len(passes)
        passes.reverse()
        repeated = {k: torch.cat([v] * n) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        stacked = self(
            torch.cat([x] * n),
            torch.cat([time] * n),
            **{name: stack_rows([one[name] for one in passes]) for name in passes[0]},
            focus_present_mask=None if focus is None else torch.cat([focus] * n),
            **repeated,
        )
        outputs = stacked.chunk(n)[::-1]
        guided = outputs[0]
        for scale, lower, upper in zip(scales, outputs[:-1], outputs[1:], strict=True):
            guided = guided + (upper - lower) * scale
        if not guidance_rescale:
            return guided
        return guided * conditioning.rescaling(guided, outputs[-1], guidance_rescale)

    def _make_condition_parameters(self, config: Mapping[str, Any], time_dim: int) -> None:
        """Makes the parameters of the conditions; None for those that the network doesn't take."""
        cond_dim, tokens = conditioning.condition_width("cond", config), config["num_text_tokens"]
        classes, frame_dim = config["num_classes"], config["frame_cond_dim"]
        channels = config["cond_channels"]
        self.null_cond_emb = nn.Parameter(torch.randn(1, cond_dim)) if cond_dim else None
        self.label_emb = nn.Embedding(classes + 1, time_dim) if classes else None
        self.null_frame_cond = nn.Parameter(torch.randn(1, 1, frame_dim)) if frame_dim else None
        self.frame_cond_proj = nn.Linear(frame_dim, time_dim) if frame_dim else None
        self.null_cond_video = nn.Parameter(torch.zeros(1, channels, 1, 1, 1)) if channels else None
        self.text_pooling = self.text_tokens = self.null_text_tokens = None
        if cond_dim and config["text_pooling"] == "attention":
            self.text_pooling = conditioning.TextPooling(cond_dim, cond_dim, tokens=1)
        if cond_dim and tokens:
            self.text_tokens = conditioning.TextPooling(cond_dim, time_dim, tokens)
            self.null_text_tokens = nn.Parameter(torch.randn(1, tokens, time_dim))

    def _make_layers(self, config: Mapping[str, Any], time_dim: int) -> None:
        """Makes the layers from the keywords of `Unet3D`."""
        dim, channels = config["dim"], config["channels"]
        first = config["init_dim"] or dim
        dims = [first, *(dim * mult for mult in config["dim_mults"])]
        make = _Layers(config, time_dim)
        self.rotary_emb = RotaryEmbedding(min(32, config["attn_dim_head"]))
        self.time_rel_pos_bias = RelativePositionBias(
            heads=max(make.heads(width, config["attn_dim_head"]) for width in dims), max_distance=32
        )

        # full resolution
        size, half = config["init_kernel_size"], config["init_kernel_size"] // 2
        mode = as_padding(config["padding_mode"])
        self.init_conv = FramewiseConv(
            channels + config["cond_channels"],
            first,
            (1, size, size),
            padding=(0, half, half),
            mode=mode,
        )
        self.init_temporal_attn = make.temporal_at(first, 0)

        # encoder and decoder, whose levels also take the channels of the skip connection
        levels = list(enumerate(itertools.pairwise(dims)))
        last = len(levels) - 1
        self.downs = nn.ModuleList(
            make.level(dim_in, dim_out, Downsample(dim_out, mode) if i < last else None, i)
            for i, (dim_in, dim_out) in levels
        )
        self.ups = nn.ModuleList(
            make.level(dim_out * 2, dim_in, Upsample(dim_in, mode) if i else None, i)
            for i, (dim_in, dim_out) in reversed(levels)
        )

        # bottleneck
        self.mid_block1 = make.block(dims[-1], dims[-1])
        self.mid_spatial_attn = make.spatial(dims[-1])
        self.mid_temporal_attn = make.temporal(dims[-1])
        self.mid_block2 = make.block(dims[-1], dims[-1])

        # output
        self.final_conv = nn.Sequential(
            make.block(first * 2, dim, time_emb_dim=None),
            FramewiseConv(dim, config["out_dim"] or channels, 1),
        )
        keep_kernels_channels_last(self)


def pad_frames(x: Tensor, multiple: int, mode: Padding) -> tuple[Tensor, int, int]:
    """Enlarges frames to a multiple in height and width, nearly evenly on both sides.

    Args:
        x: `(b, c, f, h, w)`.
        multiple: Of what height and width become multiples.
        mode: How frames continue beyond their edges.

    Returns:
        The enlarged frames, and the numbers of rows above and of columns on the left that were
        added.
    """
    tall, wide = (-n % multiple for n in x.shape[-2:])
    top, left = tall // 2, wide // 2
    if not (tall or wide):
        return x, 0, 0
    images = pad_images(frames_as_images(x), top, tall - top, left, wide - left, mode)
    return images_as_frames(images, x.shape[0]), top, left


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
        self.stages: list[tuple[str, str, str]] = []
        for i, layers in enumerate(stages, 1):
            after = "" if i == len(stages) else str(i)
            names = (f"block{i}", f"spatial_attn{after}", f"temporal_attn{after}")
            self.stages.append(names)
            for name, layer in zip(names, layers, strict=True):
                self.add_module(name, layer)
        self.resample = nn.Identity() if resample is None else resample

    def forward(
        self,
        x: Tensor,
        emb: Tensor,
        text: conditioning.TextTokens | None,
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
        for names in self.stages:
            block, spatial_attn, temporal_attn = (getattr(self, name) for name in names)
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
        self.padding = as_padding(config["padding_mode"])
        self.block = partial(
            ResnetBlock,
            time_emb_dim=time_dim + (conditioning.condition_width("cond", config) or 0),
            groups=config["resnet_groups"],
            dropout=config["dropout"],
            mode=self.padding,
        )
        self.token_dim = time_dim if config["num_text_tokens"] else None
        self.shifts_time = config["token_shift"] in ("time", "both")
        self.shifts_space = config["token_shift"] in ("space", "both")

    def heads(self, width: int, dim_head: int) -> int:
        return self.config["attn_heads"] or max(1, width // dim_head)

    def temporal(self, width: int) -> TemporalAttention:
        dim_head = self.config["attn_dim_head"]
        heads = self.heads(width, dim_head)
        return TemporalAttention(width, heads, dim_head, self.token_dim, self.shifts_time)

    def temporal_at(self, width: int, level: int) -> TemporalAttention | None:
        levels = self.config["temporal_attn_levels"]
        return self.temporal(width) if levels is None or level in levels else None

    def spatial(self, width: int, linear: bool = False) -> SpatialAttention:
        dim_head = self.config["spatial_attn_dim_head"]
        heads = self.heads(width, dim_head)
        shift = self.shifts_space
        return SpatialAttention(width, heads, dim_head, self.token_dim, shift, linear, self.padding)

    def spatial_at(self, width: int, level: int) -> SpatialAttention | None:
        if level in self.config["full_attn_levels"]:
            return self.spatial(width)
        return self.spatial(width, linear=True) if self.config["use_sparse_linear_attn"] else None

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


# The layers between which the network only adds, joins and resamples
_COMPILED_LAYERS = (ResnetBlock, SpatialAttention, TemporalAttention)
# Graphs of one layer: with and without gradient, autocast, mask and images, of one and more clips.
# torch's own limit is 8, after which a layer runs uncompiled.
_GRAPHS = 32
_numbers = itertools.count()


def compile_layer(layer: nn.Module, **options: Any) -> None:
    """Compiles a layer in place; its call gets a code object of its own.

    torch.compile counts its graphs, looks them up, and notes which sizes have varied, per
    code object. With the one that all modules share, all layers but the first eight would run
    uncompiled (`torch._dynamo.config.recompile_limit`), and channels, height and width would be
    taken for sizes that change from call to call.

    Args:
        layer: The layer.
        **options: Keywords of `torch.compile`.
    """
    # torch versions without this option have torch._dynamo.config.cache_size_limit for everybody
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options = {"recompile_limit": _GRAPHS, **options}
    name = f"call_{type(layer).__name__}_{next(_numbers)}"
    code = _call_uncompiled.__code__.replace(co_name=name)
    call = MethodType(FunctionType(code, _call_uncompiled.__globals__, name), layer)
    # torch.nn.Module.compile sets this attribute, too, which calls then prefer and which
    # copies, pickles and state dicts leave out; there is no public way to give it a function
    layer._compiled_call_impl = torch.compile(call, **options)


def _call_uncompiled(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return layer._call_impl(*args, **kwargs)


# Arguments


def as_padding(mode: Any) -> Padding:
    """The modes of height and width of a `padding_mode`."""
    tall, wide = (mode, mode) if isinstance(mode, str) else mode
    return tall, wide


def plain(value: Any) -> Any:
    """An argument in Python's own numbers and tuples, from NumPy's, torch's or its own."""
    value = value.tolist() if hasattr(value, "tolist") else value
    is_several = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(map(plain, value)) if is_several else value


def _padding_is_known(mode: Any) -> bool:
    """Whether a `padding_mode` is one of `PADDING_MODES` or two of them."""
    modes = (mode,) * 2 if isinstance(mode, str) else mode
    return isinstance(modes, tuple) and len(modes) == 2 and {*modes} <= {*PADDING_MODES}


def _check_arguments(config: Mapping[str, Any]) -> None:
    """Raises a ValueError for constructor arguments outside their range."""
    for name, parameter in inspect.signature(Unet3D).parameters.items():
        value, kind = config.get(name), parameter.annotation
        if value is None and kind.endswith("None"):
            continue
        least = 0 if name == "cond_channels" else 1
        if kind.startswith("int") and (type(value) is not int or value < least):
            raise ValueError(
                f"Unet3D: {name} must be a whole number of at least {least}, got {value!r:.100}"
            )
        is_list = isinstance(value, tuple) and all(type(number) is int for number in value)
        if kind.startswith("Sequence") and not is_list:
            raise ValueError(f"Unet3D: {name} must be a list of whole numbers, got {value!r:.100}")
    mults, groups = config["dim_mults"], config["resnet_groups"]
    dims = [config["init_dim"] or config["dim"], *(config["dim"] * mult for mult in (1, *mults))]
    levels = set(range(len(mults)))
    numbers = f"numbers of levels from 0, the finest, to {len(mults) - 1}"
    rules = {
        "block_type": (config["block_type"] == "resnet", "'resnet'"),
        "text_pooling": (config["text_pooling"] in ("mean", "attention"), "'mean' or 'attention'"),
        "token_shift": (
            config["token_shift"] in (None, "time", "space", "both"),
            "None, 'time', 'space' or 'both'",
        ),
        "time_input": (config["time_input"] in ("step", "log_snr"), "'step' or 'log_snr'"),
        "dim_mults": (mults and min(mults) >= 1, "positive factors, one for each resolution"),
        "init_kernel_size": (config["init_kernel_size"] % 2 == 1, "odd"),
        "resnet_groups": (
            groups is None or not any(dim % groups for dim in dims),
            f"a divisor of the channels of every level, {dims}, or None for RMSNorm",
        ),
        "full_attn_levels": (set(config["full_attn_levels"]) <= levels, numbers),
        "temporal_attn_levels": (set(config["temporal_attn_levels"] or ()) <= levels, numbers),
        "dropout": (0 <= config["dropout"] < 1, "from 0 to below 1"),
        "padding_mode": (
            _padding_is_known(config["padding_mode"]),
            f"one of {', '.join(PADDING_MODES)}, or two of them for height and width",
        ),
    }
    for name, (holds, expected) in rules.items():
        if not holds:
            raise ValueError(f"Unet3D: {name} must be {expected}, got {config[name]!r:.100}")
    if conditioning.takes_text_states(config) and not conditioning.condition_width("cond", config):
        raise ValueError(
            "Unet3D: num_text_tokens and text_pooling='attention' need the width of the encoder's "
            "states, got no cond_dim; pass cond_dim, or use_bert_text_cond"
        )


def _check_input(x: Tensor, time: Tensor, config: Mapping[str, Any]) -> None:
    """Raises a ValueError unless the shapes of videos and times fit a network and each other."""
    channels, levels = config["channels"], len(config["dim_mults"])
    if x.ndim != 5 or x.shape[1] != channels or 0 in x.shape:
        raise ValueError(
            f"Unet3D: x must have the shape (b, {channels}, f, h, w), got {tuple(x.shape)}; move "
            "the axes, or build the network with other channels"
        )
    multiple, (height, width) = 2 ** (levels - 1), x.shape[3:]
    if (height % multiple or width % multiple) and not config["pad_to_multiple"]:
        raise ValueError(
            f"Unet3D: height and width must be multiples of {multiple} for {levels} resolutions, "
            f"got {height} x {width}; resize, use fewer dim_mults, or pass pad_to_multiple=True"
        )
    for axis, size, mode in zip(
        ("height", "width"), (height, width), as_padding(config["padding_mode"]), strict=True
    ):
        if not _can_be_padded(size, mode, config):
            least = next(n for n in itertools.count(size) if _can_be_padded(n, mode, config))
            raise ValueError(
                f"Unet3D: with padding_mode {mode!r} the {axis} must be at least {least} pixels, "
                f"got {size}; take larger frames, fewer dim_mults or padding_mode='replicate'"
            )
    if not torch.is_tensor(time) or time.shape not in (x.shape[:1], (x.shape[0], x.shape[2])):
        got = tuple(time.shape) if torch.is_tensor(time) else type(time).__name__
        raise ValueError(
            f"Unet3D: time must have one step per video, shape ({x.shape[0]},), or one per frame, "
            f"({x.shape[0]}, {x.shape[2]}), got {got}; expand it to the batch"
        )
    if config["time_input"] == "log_snr" and not time.is_floating_point():
        raise ValueError(
            "Unet3D: time must be a log-SNR, a real number, as the network was built with "
            f"time_input='log_snr', got {time.dtype}; pass diffusion.log_snr(t)"
        )


def _can_be_padded(size: int, mode: str, config: Mapping[str, Any]) -> bool:
    """Whether every layer can pad a height or width of this size by a mode."""
    if mode not in ("circular", "reflect"):
        return True
    # a mirror image lacks the edge itself
    most = size - (mode == "reflect")
    multiple = 2 ** (len(config["dim_mults"]) - 1)
    added = -size % multiple if config["pad_to_multiple"] else 0
    # the frame itself, then by the first convolution, and by those of the coarsest resolution
    coarsest = (size + added) // multiple - (mode == "reflect")
    of_first = config["init_kernel_size"] // 2
    return -(-added // 2) <= most and of_first <= most + added and coarsest >= 1


def _check_images(
    x: Tensor, image_frames: int, conditions: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raises a ValueError unless the last frames of `x` can be images with these conditions."""
    most = x.shape[2] - 1
    if not 0 <= image_frames <= most:
        raise ValueError(
            f"Unet3D: image_frames must be from 0 to {most}, one less than the frames of x, got "
            f"{image_frames}; leave the frames of the video in front of the images"
        )
    if image_frames and config["resnet_groups"] is not None:
        raise ValueError(
            "Unet3D: image_frames must be 0 in a network with GroupNorm, whose statistics mix all "
            f"frames, got {image_frames}; build the network without resnet_groups"
        )
    known = CONDITIONS if image_frames else ()
    unknown = [name for name in conditions if name not in known]
    if unknown:
        raise ValueError(
            f"Unet3D: image_conditions must hold {', '.join(known) or 'nothing without images'}, "
            f"got {unknown[0]!r}; check its name, and image_frames, the number of images"
        )
    conditioning.check_conditions(x, conditions, config, images=image_frames)
