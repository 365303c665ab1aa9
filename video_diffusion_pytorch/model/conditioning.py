"""Conditions in the network: parameters, text tokens, embeddings, null values, guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.conditions import (
    CONDITIONS,
    Conditions,
    masks_of,
    null_like,
    rows_of_images,
    to_one_length,
    with_masks,
)
from video_diffusion_pytorch.model.blocks import join_channels
from video_diffusion_pytorch.model.checks import check_mask, cond_dim_of

if TYPE_CHECKING:
    from video_diffusion_pytorch.model.unet3d import Unet3D


class TextTokens(NamedTuple):
    """Tokens of captions that attention sees as further keys and values.

    Attributes:
        videos: Of each video, `(b, t, c)`.
        images: Of each image behind a video, `(b, k, t, c)`; None where there are none.
    """

    videos: Tensor
    images: Tensor | None = None

    def of_each_frame(self, frames: int) -> Tensor:
        """The tokens of each frame of videos of `frames` frames, images included.

        Returns:
            `(b * frames, t, c)`; all frames of one video share the same tokens.
        """
        images = self.images
        own = frames if images is None else frames - images.shape[1]
        tokens = self.videos[:, None].expand(-1, own, -1, -1)
        if images is not None:
            tokens = torch.cat((tokens, images), dim=1)
        return tokens.flatten(0, 1)


class TextPooling(nn.Module):
    """Learned queries that gather a sequence of states into a few tokens by attention.

    Args:
        dim: Width of the states.
        dim_out: Width of the tokens.
        tokens: Number of queries, and so of tokens.
        dim_head: Width of a head; there is one head if it does not divide `dim_out`.

    Example:
        >>> pool = TextPooling(768, 64, tokens=4)
        >>> pool(torch.randn(2, 12, 768)).shape
        torch.Size([2, 4, 64])
    """

    def __init__(self, dim: int, dim_out: int, tokens: int, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = 1 if dim_out % dim_head else dim_out // dim_head
        self.norm = nn.LayerNorm(dim)
        self.queries = nn.Parameter(torch.randn(tokens, dim_out))
        self.to_kv = nn.Linear(dim, dim_out * 2, bias=False)
        self.to_out = nn.Linear(dim_out, dim_out, bias=False)
        self.norm_out = nn.LayerNorm(dim_out)

    def forward(self, states: Tensor, mask: Tensor | None = None) -> Tensor:
        """Gathers states into tokens.

        Args:
            states: `(b, n, dim)`.
            mask: Boolean `(b, n)`: where false, a state is ignored. At least one of each row must
                be true. None for all.

        Returns:
            `(b, tokens, dim_out)`.
        """
        keys_and_values = self.to_kv(self.norm(states)).unflatten(-1, (2, self.heads, -1))
        k, v = keys_and_values.permute(2, 0, 3, 1, 4)
        q = self.queries.to(k.dtype).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        seen = None if mask is None else mask[:, None, None, :]
        found = F.scaled_dot_product_attention(q.expand(len(k), -1, -1, -1), k, v, attn_mask=seen)
        return self.norm_out(self.to_out(found.transpose(1, 2).flatten(2)) + self.queries)


def mean_state(states: Tensor, mask: Tensor | None = None) -> Tensor:
    """The mean of the states that a mask leaves.

    Args:
        states: `(b, n, d)`.
        mask: Boolean `(b, n)`, true at least once in each row; None for all.

    Returns:
        `(b, d)`.
    """
    if mask is None:
        return states.mean(dim=1)
    weights = mask[..., None].to(torch.promote_types(states.dtype, torch.float32))
    return ((states * weights).sum(dim=1) / weights.sum(dim=1)).to(states.dtype)


# Masks of the videos of a batch


def prob_mask_like(
    shape: tuple[int, ...], prob: float, device: torch.device | str | None
) -> Tensor:
    """A boolean tensor whose elements are true with probability `prob`; 0 and 1 draw nothing."""
    if prob in (0, 1):
        return torch.full(shape, bool(prob), device=device)
    return torch.rand(shape, device=device) < prob


def focus_mask(mask: Tensor | None, prob: float, x: Tensor) -> Tensor | None:
    """The mask of videos whose frames see only themselves; None where all see all."""
    if mask is None:
        return None if prob == 0 else prob_mask_like(x.shape[:1], prob, x.device)
    check_mask("focus_present_mask", mask, tuple(x.shape[:1]))
    return mask


def dropped_videos(mask: Tensor | None, prob: float, x: Tensor, *, has_cond: bool) -> Tensor | None:
    """The mask of videos that lose their conditions; None in a network that takes none."""
    if mask is not None:
        check_mask("drop_mask", mask, tuple(x.shape[:1]))
    elif has_cond:
        mask = prob_mask_like(x.shape[:1], prob, x.device)
    return mask if has_cond else None


# Parameters of the network, and the embeddings and channels made with them


def add_condition_parameters(network: Unet3D, config: Mapping[str, Any], time_dim: int) -> None:
    """Adds the parameters of the conditions to a network, None for those that it does not take.

    Args:
        network: It gets `null_cond_emb`, `label_emb`, `null_frame_cond`, `frame_cond_proj`,
            `null_cond_video`, `text_pooling`, `text_tokens` and `null_text_tokens`.
        config: Keywords of `Unet3D`.
        time_dim: Width of the time embedding.
    """
    cond_dim = cond_dim_of(config)
    classes, frame_dim = config["num_classes"], config["frame_cond_dim"]
    channels, tokens = config["cond_channels"], config["num_text_tokens"]
    network.null_cond_emb = None if cond_dim is None else nn.Parameter(torch.randn(1, cond_dim))
    network.label_emb = None if classes is None else nn.Embedding(classes + 1, time_dim)
    network.null_frame_cond = network.frame_cond_proj = network.null_cond_video = None
    if frame_dim is not None:
        network.null_frame_cond = nn.Parameter(torch.randn(1, 1, frame_dim))
        network.frame_cond_proj = nn.Linear(frame_dim, time_dim)
    if channels:
        network.null_cond_video = nn.Parameter(torch.zeros(1, channels, 1, 1, 1))
    network.text_pooling = network.text_tokens = network.null_text_tokens = None
    if cond_dim is not None and config["text_pooling"] == "attention":
        network.text_pooling = TextPooling(cond_dim, cond_dim, tokens=1)
    if cond_dim is not None and tokens:
        network.text_tokens = TextPooling(cond_dim, time_dim, tokens)
        network.null_text_tokens = nn.Parameter(torch.randn(1, tokens, time_dim))


def embed_conditions(
    network: Unet3D,
    emb: Tensor,
    dropped: Tensor,
    conditions: Conditions,
    image_conditions: Conditions,
    frames: tuple[int, int],
) -> Tensor:
    """The input of every residual block: time and class, the frame's vector, the video's vector.

    Args:
        network: A network that takes conditions.
        emb: The time embedding, `(b, time_dim)`.
        dropped: Boolean `(b,)`, the videos that lose their conditions.
        conditions: Of the videos.
        image_conditions: Of their images, a row per image.
        frames: Numbers of frames `f` and of images `k` of a video.

    Returns:
        `(b, d)`, or `(b, f + k, d)` with a vector per frame or with conditions of images.
    """
    of_videos = _embed_rows(network, emb, dropped, conditions)
    f, k = frames
    if not k or of_videos is emb:
        return of_videos
    # an image is embedded as a video of one frame
    rows = rows_of_images(image_conditions)
    of_images = _embed_rows(
        network, emb.repeat_interleave(k, 0), dropped.repeat_interleave(k), rows
    )
    if of_videos.ndim == 2:
        of_videos = of_videos[:, None]
    of_images = of_images.view(-1, k, of_videos.shape[-1])
    return torch.cat((of_videos.expand(-1, f, -1), of_images), dim=1)


def _embed_rows(network: Unet3D, emb: Tensor, dropped: Tensor, conditions: Conditions) -> Tensor:
    """Adds conditions to the time embedding; all have one row per video."""
    if network.label_emb is not None:
        null = network.label_emb.num_embeddings - 1
        emb = emb + network.label_emb(_class_rows(conditions.get("labels"), dropped, null))
    if network.frame_cond_proj is not None:
        vectors = _or_null(conditions.get("frame_cond"), network.null_frame_cond, dropped)
        projection = network.frame_cond_proj
        emb = emb[:, None] + projection(vectors.to(projection.weight.dtype))
    if network.null_cond_emb is None:
        return emb
    cond = conditions.get("cond")
    if cond is not None and network.takes_text_states:
        states, mask = _states(conditions)
        pooling = network.text_pooling
        if pooling is None:
            cond = mean_state(states, mask)
        else:
            cond = pooling(states.to(pooling.queries.dtype), mask)[:, 0]
    cond = _or_null(cond, network.null_cond_emb, _without_cond(conditions, dropped)).to(emb.dtype)
    if emb.ndim == 3:
        cond = cond[:, None].expand(-1, emb.shape[1], -1)
    return torch.cat((emb, cond), dim=-1)


def tokens_of_captions(
    network: Unet3D,
    dropped: Tensor | None,
    conditions: Conditions,
    image_conditions: Conditions,
    image_frames: int,
) -> TextTokens | None:
    """The tokens that attention sees; None without `num_text_tokens`.

    Arguments as in `embed_conditions`.
    """
    if network.text_tokens is None or dropped is None:
        return None
    videos = _token_rows(network.text_tokens, network.null_text_tokens, dropped, conditions)
    if not image_frames:
        return TextTokens(videos)
    rows = dropped.repeat_interleave(image_frames), rows_of_images(image_conditions)
    images = _token_rows(network.text_tokens, network.null_text_tokens, *rows)
    return TextTokens(videos, images.unflatten(0, (-1, image_frames)))


def _token_rows(
    pooling: TextPooling, null: nn.Parameter | None, dropped: Tensor, conditions: Conditions
) -> Tensor:
    tokens = None
    if "cond" in conditions:
        states, mask = _states(conditions)
        tokens = pooling(states.to(pooling.queries.dtype), mask)
    return _or_null(tokens, null, _without_cond(conditions, dropped))


def join_cond_video(
    network: Unet3D,
    x: Tensor,
    dropped: Tensor | None,
    conditions: Conditions,
    image_conditions: Conditions,
    image_frames: int,
) -> Tensor:
    """Puts the channels of `cond_video` behind those of the noisy videos and images.

    Arguments as in `embed_conditions`.
    """
    null = network.null_cond_video
    if null is None or dropped is None:
        return x
    field = conditions.get("cond_video")
    if field is not None and field.ndim == 4:
        field = field.unsqueeze(2)
    field = _or_null(field, null, dropped).to(x.dtype)
    field = field.expand(-1, -1, x.shape[2] - image_frames, *x.shape[3:])
    if image_frames:
        of_images = _or_null(image_conditions.get("cond_video"), null, dropped).to(x.dtype)
        of_images = of_images.expand(-1, -1, image_frames, *x.shape[3:])
        field = torch.cat((field, of_images), dim=2)
    return join_channels(x, field)


def _class_rows(labels: Tensor | None, dropped: Tensor, null_row: int) -> Tensor:
    """Rows of the embedding of classes, whose last one, `null_row`, is for no class."""
    null = dropped.new_full((), null_row, dtype=torch.long)
    if labels is None:
        return null.expand_as(dropped)
    # long before the comparison: a byte of 255 equals -1
    labels = labels.long()
    return torch.where(dropped | (labels == -1), null, labels)


def _without_cond(conditions: Conditions, dropped: Tensor) -> Tensor:
    """The videos without `cond`: it is dropped, or masked, or a caption without any token."""
    missing, mask = conditions.get("null_cond_mask"), conditions.get("cond_mask")
    if missing is not None:
        dropped = dropped | missing
    return dropped if mask is None else dropped | ~mask.any(dim=1)


def _states(conditions: Conditions) -> tuple[Tensor, Tensor | None]:
    """The states of captions, with zeros for padding, and the mask of those that are not padding.

    The mask of a caption without any token is true everywhere, as softmax over none is undefined.
    """
    states, mask = conditions["cond"], conditions.get("cond_mask")
    if mask is None:
        return states, None
    # a NaN in the padding would pass through a weight of zero
    return states.masked_fill(~mask[..., None], 0), mask | ~mask.any(dim=1, keepdim=True)


def _or_null(value: Tensor | None, null: nn.Parameter | None, dropped: Tensor) -> Tensor:
    """A condition with `null` in the rows that are dropped; without a condition in all rows."""
    assert null is not None
    # even if none is dropped, so that the null value has a gradient, as DDP demands
    rows = dropped.view(-1, *[1] * (null.ndim - 1))
    return torch.where(rows, null, null if value is None else value)


# Classifier-free guidance


def check_negative(negative: Conditions, conditions: Conditions) -> None:
    """Raises a ValueError if there are negative conditions of kinds that the videos lack."""
    known = {*conditions, *masks_of(negative)}
    alone = [name for name in negative if name not in known]
    if alone:
        raise ValueError(
            "Unet3D: negative must hold conditions that the videos have as well, "
            f"{', '.join(conditions) or 'none'}, got {', '.join(alone)}; give the videos "
            "theirs, or leave these out"
        )


def guided_halves(
    network: Unet3D, conditions: Conditions, negative: Conditions
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The conditions of the conditional and the unconditional half, under the same names."""
    conditions, negative = dict(conditions), dict(negative)
    if network.takes_text_states:
        conditions, negative = with_masks(conditions), with_masks(negative)
        conditions, negative = to_one_length((conditions, negative))
    elif "null_cond_mask" in negative:
        nowhere = torch.zeros_like(negative["null_cond_mask"])
        conditions = {"null_cond_mask": nowhere, **conditions}
    null = {name: _null_condition(network, name, value) for name, value in conditions.items()}
    return conditions, null | negative


def _null_condition(network: Unet3D, name: str, value: Tensor) -> Tensor:
    """The null value of a condition in the shape of `value`."""
    if network.takes_text_states and name in ("cond", "cond_mask"):
        # no sequence of states is a null value: such videos are masked instead
        return value
    if network.takes_text_states and name == "null_cond_mask":
        return torch.ones_like(value)
    null = CONDITIONS[name].null
    return null_like(name, value, getattr(network, null) if isinstance(null, str) else None)


def rescaling(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """The factor `(b, 1, 1, 1, 1)` that restores a share of the conditional standard deviation.

    Lin et al. 2023, eq. 14 to 16.
    """
    wanted, got = (video.flatten(1).float().std(dim=1) for video in (conditional, guided))
    # a video without any contrast stays as it is
    ratio = wanted / got.clamp(min=torch.finfo(torch.float32).tiny)
    return (share * ratio + (1 - share)).to(guided.dtype).view(-1, 1, 1, 1, 1)
