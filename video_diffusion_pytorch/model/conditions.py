"""What the network is told of the clip it shall predict: vectors, classes, frames and fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.model.checks import check_conditions, cond_dim_of
from video_diffusion_pytorch.model.masks import focus_mask


class Conditioned(nn.Module):
    """The half of `Unet3D` that knows its conditions; `Unet3D` documents them.

    Each condition has a learned value that stands for its absence, and that value may also
    be handed in as if it were a condition. Guidance rests on this.

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
        **kwargs: Any,
    ) -> Tensor:
        """Classifier-free guidance (Ho et al. 2022, eq. 6), in one pass over both halves.

        Args:
            x: Noisy videos, `(b, channels, f, h, w)`.
            time: Time steps, `(b,)`.
            cond: As in `forward`, and so the other conditions.
            cond_scale: 1 is without guidance, 0 without all conditions; the paper's w is
                `cond_scale - 1`.
            focus_present_mask: As in `forward`.
            prob_focus_present: As in `forward`.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            null_cond_mask: As in `forward`.
            **kwargs: Further arguments of a subclass's `forward`; tensors have `b` rows.

        Returns:
            `null + (conditional - null) * cond_scale`, of the shape of `forward`'s output.
        """
        focus = focus_mask(focus_present_mask, prob_focus_present, x)
        optional = {
            "labels": labels,
            "frame_cond": frame_cond,
            "cond_video": cond_video,
            "null_cond_mask": null_cond_mask,
        }
        # a subclass's forward need not know those that are not used
        conditions = {name: value for name, value in optional.items() if value is not None}
        if cond_scale == 1 or not self.has_cond:
            return self(x, time, cond=cond, focus_present_mask=focus, **conditions, **kwargs)
        self.check_inputs(x, time, 0.0, cond=cond, **conditions)
        if cond is not None:
            conditions["cond"] = cond
        twice = {k: torch.cat((v, v)) if torch.is_tensor(v) else v for k, v in kwargs.items()}
        both = self(
            torch.cat((x, x)),
            torch.cat((time, time)),
            focus_present_mask=None if focus is None else torch.cat((focus, focus)),
            **{name: self._and_null(name, value) for name, value in conditions.items()},
            **twice,
        )
        conditional, unconditional = both.chunk(2)
        return unconditional + (conditional - unconditional) * cond_scale

    def check_inputs(
        self, x: Tensor, time: Tensor, null_cond_prob: float, **conditions: Any
    ) -> None:
        """Raises a ValueError for what doesn't fit; `Unet3D` adds the videos."""
        check_conditions(x, conditions, null_cond_prob, self.config)

    def _and_null(self, name: str, value: Tensor) -> Tensor:
        """A condition, and under it as many rows that stand for its absence."""
        if name == "null_cond_mask":
            return torch.cat((value, value))
        if name == "labels":
            return torch.cat((value.long(), torch.full_like(value, -1, dtype=torch.long)))
        null: Tensor | None = {
            "cond": self.null_cond_emb,
            "frame_cond": self.null_frame_cond,
            "cond_video": self.null_cond_video,
        }[name]
        assert null is not None
        if name == "cond_video" and value.ndim == 4:
            null = null.squeeze(2)
        return torch.cat((value, null.expand_as(value)))

    def _embed(
        self, time: Tensor, dropped: Tensor | None, conditions: Mapping[str, Tensor | None]
    ) -> Tensor:
        """What every residual block gets: time and class, the frame's vector, the clip's vector.

        Returns:
            `(b, d)`, or, with a vector per frame, `(b, f, d)`.
        """
        sinusoids, *layers = self.time_mlp
        emb = sinusoids(time).to(layers[0].weight.dtype)
        for layer in layers:
            emb = layer(emb)
        if dropped is None:
            return emb
        if self.label_emb is not None:
            emb = emb + self.label_emb(self._rows_of_labels(conditions["labels"], dropped))
        if self.frame_cond_proj is not None:
            vectors = _or_null(conditions["frame_cond"], self.null_frame_cond, dropped)
            emb = emb[:, None] + self.frame_cond_proj(vectors.to(self.frame_cond_proj.weight.dtype))
        if self.null_cond_emb is None:
            return emb
        missing = conditions["null_cond_mask"]
        no_cond = dropped if missing is None else dropped | missing
        cond = _or_null(conditions["cond"], self.null_cond_emb, no_cond).to(emb.dtype)
        if emb.ndim == 3:
            cond = cond[:, None].expand(-1, emb.shape[1], -1)
        return torch.cat((emb, cond), dim=-1)

    def _rows_of_labels(self, labels: Tensor | None, dropped: Tensor) -> Tensor:
        """Rows of the table of classes, whose last one is for none."""
        assert self.label_emb is not None
        null = dropped.new_full((), self.label_emb.num_embeddings - 1, dtype=torch.long)
        if labels is None:
            return null.expand_as(dropped)
        # long before the comparison: a byte of 255 equals -1
        labels = labels.long()
        return torch.where(dropped | (labels == -1), null, labels)

    def _join_field(self, x: Tensor, field: Tensor | None, dropped: Tensor | None) -> Tensor:
        """Puts the channels of `cond_video` behind those of the noisy videos."""
        if self.null_cond_video is None or dropped is None:
            return x
        if field is not None and field.ndim == 4:
            field = field.unsqueeze(2)
        field = _or_null(field, self.null_cond_video, dropped).to(x.dtype)
        return join_channels(x, field.expand(-1, -1, *x.shape[2:]))


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
