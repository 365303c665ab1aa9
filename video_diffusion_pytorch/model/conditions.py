"""What the network is told of the clip it shall predict: vectors, classes, frames and fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.conditions import Conditions, rows_of_images
from video_diffusion_pytorch.model.checks import (
    check_conditions,
    check_image_conditions,
    check_image_frames,
    check_input,
    cond_dim_of,
    takes_text_states,
)
from video_diffusion_pytorch.model.embeddings import time_of_log_snr
from video_diffusion_pytorch.model.text_tokens import TextPooling, TextTokens, mean_state


class Conditioned(nn.Module):
    """The half of `Unet3D` that knows its conditions; `Unet3D` documents them.

    Each condition has a learned value that stands for its absence, and that value may also
    be handed in as if it were a condition. Guidance rests on this. What is told of an image at
    the end of a video is told as of a video of one frame.

    Attributes:
        has_cond: Whether the network takes any condition.
        cond_channels: Channels of `cond_video`; 0 for a network without.
    """

    config: dict[str, Any]
    time_mlp: nn.Sequential
    has_cond: bool
    cond_channels: int
    null_cond_emb: nn.Parameter | None
    label_emb: nn.Embedding | None
    null_frame_cond: nn.Parameter | None
    frame_cond_proj: nn.Linear | None
    null_cond_video: nn.Parameter | None
    text_pooling: TextPooling | None
    text_tokens: TextPooling | None
    null_text_tokens: nn.Parameter | None

    def _make_conditions(self, config: Mapping[str, Any], time_dim: int) -> int:
        """Makes the parameters; gives the width of the embedding that residual blocks get."""
        cond_dim = cond_dim_of(config)
        classes, frame_dim = config["num_classes"], config["frame_cond_dim"]
        channels = config["cond_channels"]
        self.cond_channels = channels
        self.null_cond_emb = None if cond_dim is None else nn.Parameter(torch.randn(1, cond_dim))
        self.label_emb = None if classes is None else nn.Embedding(classes + 1, time_dim)
        self.null_frame_cond = self.frame_cond_proj = self.null_cond_video = None
        if frame_dim is not None:
            self.null_frame_cond = nn.Parameter(torch.randn(1, 1, frame_dim))
            self.frame_cond_proj = nn.Linear(frame_dim, time_dim)
        if channels:
            self.null_cond_video = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
        self.text_pooling = self.text_tokens = self.null_text_tokens = None
        if config["text_pooling"] == "attention":
            assert cond_dim is not None
            self.text_pooling = TextPooling(cond_dim, cond_dim, tokens=1)
        if config["num_text_tokens"]:
            assert cond_dim is not None
            count = config["num_text_tokens"]
            self.text_tokens = TextPooling(cond_dim, time_dim, count)
            self.null_text_tokens = nn.Parameter(torch.randn(1, count, time_dim))
        self.has_cond = bool(self.condition_names)
        return time_dim + (cond_dim or 0)

    @property
    def condition_names(self) -> tuple[str, ...]:
        """The keywords of `forward` that this network's conditions have."""
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
        check_input(
            x,
            time,
            channels=self.config["channels"],
            levels=len(self.config["dim_mults"]),
            time_input=self.config["time_input"],
        )
        check_image_frames(x, image_frames, self.config["resnet_groups"])
        videos = x[:, :, : x.shape[2] - image_frames]
        check_conditions(videos, conditions, null_cond_prob, self.config)
        check_image_conditions(x, image_frames, image_conditions or {}, self.config)

    def _embed(
        self,
        time: Tensor,
        dropped: Tensor | None,
        conditions: Conditions,
        image_conditions: Conditions,
        frames: tuple[int, int],
    ) -> Tensor:
        """What every residual block gets: time and class, the frame's vector, the clip's vector.

        Args:
            time: Time steps, `(b,)`.
            dropped: Boolean `(b,)`, the videos that lose their conditions; None for a network
                without.
            conditions: Of the videos.
            image_conditions: Of their images.
            frames: Numbers of frames `f` and of images `k` of a video.

        Returns:
            `(b, d)`, or, with a vector per frame, or images beside a condition, `(b, f + k, d)`.
        """
        sinusoids, *layers = self.time_mlp
        if self.config["time_input"] == "log_snr":
            time = time_of_log_snr(time)
        emb = sinusoids(time).to(layers[0].weight.dtype)
        for layer in layers:
            emb = layer(emb)
        if dropped is None:
            return emb
        of_videos = self._tell(emb, dropped, conditions)
        f, k = frames
        if not k or of_videos is emb:
            return of_videos
        rows = rows_of_images(image_conditions)
        of_images = self._tell(emb.repeat_interleave(k, 0), dropped.repeat_interleave(k), rows)
        if of_videos.ndim == 2:
            of_videos = of_videos[:, None]
        of_images = of_images.view(-1, k, of_videos.shape[-1])
        return torch.cat((of_videos.expand(-1, f, -1), of_images), dim=1)

    def _tell(self, emb: Tensor, dropped: Tensor, conditions: Conditions) -> Tensor:
        """Adds conditions to the embedding of time; all have one row per video."""
        if self.label_emb is not None:
            emb = emb + self.label_emb(self._rows_of_labels(conditions.get("labels"), dropped))
        if self.frame_cond_proj is not None:
            vectors = _or_null(conditions.get("frame_cond"), self.null_frame_cond, dropped)
            emb = emb[:, None] + self.frame_cond_proj(vectors.to(self.frame_cond_proj.weight.dtype))
        if self.null_cond_emb is None:
            return emb
        cond = conditions.get("cond")
        if cond is not None and self.takes_text_states:
            cond = self._pooled(*_states(conditions))
        cond = _or_null(cond, self.null_cond_emb, _without_cond(conditions, dropped)).to(emb.dtype)
        if emb.ndim == 3:
            cond = cond[:, None].expand(-1, emb.shape[1], -1)
        return torch.cat((emb, cond), dim=-1)

    def _pooled(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """The vector of captions, `(b, cond_dim)`, from states `(b, n, cond_dim)`."""
        if self.text_pooling is None:
            return mean_state(states, mask)
        return self.text_pooling(states.to(self.text_pooling.queries.dtype), mask)[:, 0]

    def _tokens(
        self,
        dropped: Tensor | None,
        conditions: Conditions,
        image_conditions: Conditions,
        image_frames: int,
    ) -> TextTokens | None:
        """What attentions see of captions; None in a network without. Arguments as in `_embed`."""
        if self.text_tokens is None or dropped is None:
            return None
        videos = self._tokens_of(dropped, conditions)
        if not image_frames:
            return TextTokens(videos)
        rows = dropped.repeat_interleave(image_frames), rows_of_images(image_conditions)
        return TextTokens(videos, self._tokens_of(*rows).unflatten(0, (-1, image_frames)))

    def _tokens_of(self, dropped: Tensor, conditions: Conditions) -> Tensor:
        assert self.text_tokens is not None
        tokens = None
        if "cond" in conditions:
            states, mask = _states(conditions)
            tokens = self.text_tokens(states.to(self.text_tokens.queries.dtype), mask)
        return _or_null(tokens, self.null_text_tokens, _without_cond(conditions, dropped))

    def _rows_of_labels(self, labels: Tensor | None, dropped: Tensor) -> Tensor:
        """Rows of the table of classes, whose last one is for none."""
        assert self.label_emb is not None
        null = dropped.new_full((), self.label_emb.num_embeddings - 1, dtype=torch.long)
        if labels is None:
            return null.expand_as(dropped)
        # long before the comparison: a byte of 255 equals -1
        labels = labels.long()
        return torch.where(dropped | (labels == -1), null, labels)

    def _join_field(
        self,
        x: Tensor,
        field: Tensor | None,
        image_field: Tensor | None,
        dropped: Tensor | None,
        image_frames: int,
    ) -> Tensor:
        """Puts the channels of `cond_video` behind those of the noisy videos and images."""
        if self.null_cond_video is None or dropped is None:
            return x
        if field is not None and field.ndim == 4:
            field = field.unsqueeze(2)
        field = _or_null(field, self.null_cond_video, dropped).to(x.dtype)
        field = field.expand(-1, -1, x.shape[2] - image_frames, *x.shape[3:])
        if image_frames:
            shown = _or_null(image_field, self.null_cond_video, dropped).to(x.dtype)
            shown = shown.expand(-1, -1, image_frames, *x.shape[3:])
            field = torch.cat((field, shown), dim=2)
        return join_channels(x, field)


def _without_cond(conditions: Conditions, dropped: Tensor) -> Tensor:
    """The videos that have no `cond`: it is dropped, or masked, or a caption of no token."""
    missing, mask = conditions.get("null_cond_mask"), conditions.get("cond_mask")
    if missing is not None:
        dropped = dropped | missing
    return dropped if mask is None else dropped | ~mask.any(dim=1)


def _states(conditions: Conditions) -> tuple[Tensor, Tensor | None]:
    """The states of captions, zero where they are padding, and the mask of those to be seen.

    Where a caption has none all are, as softmax over none is undefined.
    """
    states, mask = conditions["cond"], conditions.get("cond_mask")
    if mask is None:
        return states, None
    # whatever is in the padding, which not-a-number would leave through any weight of zero
    return states.masked_fill(~mask[..., None], 0), mask | ~mask.any(dim=1, keepdim=True)


def _or_null(value: Tensor | None, null: nn.Parameter | None, dropped: Tensor) -> Tensor:
    """A condition with `null` in the rows that are dropped; without a condition in all rows."""
    assert null is not None
    # even if none is dropped, so that the null value has a gradient, as DDP demands
    rows = dropped.view(-1, *[1] * (null.ndim - 1))
    return torch.where(rows, null, null if value is None else value)


def join_channels(x: Tensor, other: Tensor) -> Tensor:
    """Puts the channels of `other` behind those of `x`, both `(b, c, f, h, w)`."""
    # in memory channels are the last axis, where torch.cat has its fast path
    return torch.cat((x.movedim(1, -1), other.movedim(1, -1)), dim=-1).movedim(-1, 1)
