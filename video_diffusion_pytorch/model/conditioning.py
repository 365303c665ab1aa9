"""Conditions in the network: checks, parameters, masks, embeddings, text tokens, guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.conditions import (
    CONDITIONS,
    Conditions,
    Shape,
    expected_shape,
    given,
    guidance_groups,
    masks_of,
    null_like,
    rows_of_images,
    to_one_length,
    with_masks,
)
from video_diffusion_pytorch.model.blocks import join_channels

if TYPE_CHECKING:
    from video_diffusion_pytorch.model.unet3d import Unet3D

# Width of BERT's states, the meaning of `use_bert_text_cond`
BERT_DIM = 768

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_VALUES = {"real": "real numbers", "integer": "integers", "boolean": "booleans"}


def condition_width(name: str, config: Mapping[str, Any]) -> int | None:
    """Width of a condition, or the number of classes; None or 0 if the network doesn't take it."""
    is_bert = name == "cond" and config["use_bert_text_cond"]
    return BERT_DIM if is_bert else config[CONDITIONS[name].width]


def takes_text_states(config: Mapping[str, Any]) -> bool:
    """Whether the network's `cond` is a sequence of states."""
    return bool(config["num_text_tokens"]) or config["text_pooling"] == "attention"


def named_conditions(*values: Tensor | None) -> dict[str, Any]:
    """Conditions by name, from values in the order of `CONDITIONS`, without those that are None."""
    return given(dict(zip(CONDITIONS, values, strict=True)))


class ForwardConditions(NamedTuple):
    """Conditions of one forward pass.

    Attributes:
        videos: Conditions of the videos.
        images: Conditions of the images behind the videos, with one row per image.
        dropped: Boolean `(b,)`, the videos that lose their conditions.
        frames: Number of frames of a video, `f`.
        image_frames: Number of images behind a video, `k`.
    """

    videos: Conditions
    images: Conditions
    dropped: Tensor
    frames: int
    image_frames: int

    def of_single_images(self) -> tuple[Conditions, Tensor]:
        """Conditions and `dropped` with `b * k` rows, as if each image were a video."""
        return rows_of_images(self.images), self.dropped.repeat_interleave(self.image_frames)


# Checks


def check_conditions(
    x: Tensor,
    conditions: Mapping[str, Any],
    config: Mapping[str, Any],
    *,
    images: int = 0,
    required: bool = False,
) -> None:
    """Raises a ValueError unless the conditions are those of the network, and fit the videos.

    Args:
        x: Noisy videos `(b, c, f, h, w)`.
        conditions: By keyword of `Unet3D.forward`; those that are None are not given.
        config: The network's.
        images: For conditions with a row per image, the number of images of a video; 0 for those
            of videos.
        required: Whether all conditions of the network must be given.
    """
    for name, kind in CONDITIONS.items():
        value, shape = conditions.get(name), _shape_of(name, x, conditions, config, images)
        if value is None:
            if required and kind.mask_of is None and shape is not None:
                raise ValueError(
                    f"Unet3D: this network was built with {kind.network}, so {name} of shape "
                    f"{_written(shape)} is expected, got None; {kind.missing}"
                )
            continue
        full = f"image_conditions[{name!r}]" if images else name
        if shape is None:
            raise ValueError(
                f"Unet3D: this network was built without {kind.network}, so {full} must be None, "
                f"got {type(value).__name__}; build it with {kind.built_with}"
            )
        check_tensor(full, value, kind.dtype, shape, _hint(name, value, shape, images))
        if name == "labels":
            _check_classes(value, config["num_classes"])


def _shape_of(
    name: str,
    x: Tensor,
    conditions: Mapping[str, Any],
    config: Mapping[str, Any],
    images: int,
) -> Shape | None:
    """The shape that a condition must have; None for one that the network doesn't take."""
    kind, states = CONDITIONS[name], takes_text_states(config)
    width = condition_width(kind.mask_of or name, config)
    if not width or (name == "cond_mask" and not states):
        return None
    if name == "cond_mask" and conditions.get("cond") is not None:
        return tuple(conditions["cond"].shape[:-1])
    sizes = {axis: x.shape[i] for axis, i in {"b": 0, "f": 2, "h": 3, "w": 4}.items()}
    shape = expected_shape(name, sizes, width, states=states, images=images)
    assert shape is not None
    if kind.frames_optional and not images and getattr(conditions.get(name), "ndim", 0) == 4:
        return shape[:2] + shape[3:]
    return shape


def _hint(name: str, value: Any, shape: Shape, images: int) -> str:
    """What to do about a condition of a wrong type or shape."""
    if name == "cond" and "n" in shape:
        return "give the encoder's states of each caption's tokens, of the network's cond_dim"
    if name == "cond" and getattr(value, "ndim", 0) == len(shape) + 1:
        return (
            "for sequences of states build the network with num_text_tokens or "
            "text_pooling='attention'"
        )
    return "give one condition per image" if images else CONDITIONS[name].hint


def check_tensor(name: str, value: Any, kind: str, shape: Shape, hint: str) -> None:
    """Raises a ValueError unless a tensor has a kind of values and a shape.

    Args:
        name: The argument, for the error.
        value: The argument's value.
        kind: `"real"`, `"integer"` or `"boolean"`. Vectors of real numbers may be integers, states
            of text may not: those would be the numbers of tokens.
        shape: The lengths, of which `"n"` may be any but 0.
        hint: What to do about a wrong type or shape, for the error.
    """
    is_kind = (
        torch.is_tensor(value)
        and {
            "real": "n" not in shape or value.is_floating_point(),
            "integer": value.dtype in _INTEGERS,
            "boolean": value.dtype == torch.bool,
        }[kind]
    )
    if not is_kind:
        got = value.dtype if torch.is_tensor(value) else type(value).__name__
        raise ValueError(
            f"Unet3D: {name} must be a tensor of {_VALUES[kind]} of shape {_written(shape)}, got "
            f"{got}; {hint}"
        )
    fits = value.ndim == len(shape) and all(
        got == wanted or (wanted == "n" and got > 0)
        for got, wanted in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"Unet3D: {name} must have the shape {_written(shape)}, got {tuple(value.shape)}; "
            f"{hint}"
        )


def _written(shape: Shape) -> str:
    return str(shape).replace("'", "")


def _check_classes(labels: Tensor, num_classes: int) -> None:
    # on a GPU the host would have to wait for the labels
    if not labels.is_cpu or not labels.numel() or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in labels.aminmax())
    if low < -1 or high >= num_classes:
        raise ValueError(
            f"Unet3D: labels must be from 0 to {num_classes - 1}, or -1 for no class, got {low} "
            f"to {high}; number the classes from 0, or build the network with more num_classes"
        )


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


def mask_of_videos(name: str, mask: Tensor | None, prob: float, x: Tensor) -> Tensor:
    """The argument `name`, a mask `(b,)` of the videos `x`; if None, one drawn with `prob`."""
    if mask is None:
        return prob_mask_like(x.shape[:1], prob, x.device)
    check_tensor(name, mask, "boolean", tuple(x.shape[:1]), CONDITIONS["null_cond_mask"].hint)
    return mask


def focus_mask(mask: Tensor | None, prob: float, x: Tensor) -> Tensor | None:
    """The mask of videos whose frames see only themselves; None where all see all."""
    if mask is None and prob == 0:
        return None
    return mask_of_videos("focus_present_mask", mask, prob, x)


# Embeddings, tokens and channels made of conditions


def embed_conditions(network: Unet3D, emb: Tensor, conditions: ForwardConditions) -> Tensor:
    """The input of every residual block: time and class, the frame's vector, the video's vector.

    Args:
        network: A network that takes conditions.
        emb: The time embedding, `(b, time_dim)`, or one per frame, `(b, f + k, time_dim)`.
        conditions: Those of the forward pass.

    Returns:
        `(b, d)`, or `(b, f + k, d)` with a vector or a time per frame or conditions of images.
    """
    f, k = conditions.frames, conditions.image_frames
    of_frames = emb[:, :f] if emb.ndim == 3 else emb
    of_videos = _embed_rows(network, of_frames, conditions.videos, conditions.dropped)
    if not k or of_videos is emb:
        return of_videos
    each = emb[:, f:].flatten(0, 1) if emb.ndim == 3 else emb.repeat_interleave(k, 0)
    of_images = _embed_rows(network, each, *conditions.of_single_images())
    if of_videos.ndim == 2:
        of_videos = of_videos[:, None]
    of_images = of_images.view(-1, k, of_videos.shape[-1])
    return torch.cat((of_videos.expand(-1, f, -1), of_images), dim=1)


def _embed_rows(network: Unet3D, emb: Tensor, conditions: Conditions, dropped: Tensor) -> Tensor:
    """Adds conditions to the time embedding; all have one row per video."""
    if network.label_emb is not None:
        null = network.label_emb.num_embeddings - 1
        classes = network.label_emb(_class_rows(conditions.get("labels"), dropped, null))
        emb = emb + (classes if emb.ndim == 2 else classes[:, None])
    if network.frame_cond_proj is not None:
        vectors = _or_null(conditions.get("frame_cond"), network.null_frame_cond, dropped)
        projection = network.frame_cond_proj
        each = emb if emb.ndim == 3 else emb[:, None]
        emb = each + projection(vectors.to(projection.weight.dtype))
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


def tokens_of_captions(network: Unet3D, conditions: ForwardConditions) -> TextTokens | None:
    """The tokens that attention sees; None without `num_text_tokens`."""
    pooling, null = network.text_tokens, network.null_text_tokens
    if pooling is None:
        return None
    videos = _token_rows(pooling, null, conditions.videos, conditions.dropped)
    if not conditions.image_frames:
        return TextTokens(videos)
    images = _token_rows(pooling, null, *conditions.of_single_images())
    return TextTokens(videos, images.unflatten(0, (-1, conditions.image_frames)))


def _token_rows(
    pooling: TextPooling, null: nn.Parameter | None, conditions: Conditions, dropped: Tensor
) -> Tensor:
    tokens = None
    if "cond" in conditions:
        states, mask = _states(conditions)
        tokens = pooling(states.to(pooling.queries.dtype), mask)
    return _or_null(tokens, null, _without_cond(conditions, dropped))


def join_cond_video(network: Unet3D, x: Tensor, conditions: ForwardConditions) -> Tensor:
    """Concatenates `cond_video` to the channels of the noisy videos and images."""
    null = network.null_cond_video
    if null is None:
        return x
    field = conditions.videos.get("cond_video")
    if field is not None and field.ndim == 4:
        field = field.unsqueeze(2)
    fields = [(field, conditions.frames)]
    if conditions.image_frames:
        fields.append((conditions.images.get("cond_video"), conditions.image_frames))
    filled = [
        _or_null(value, null, conditions.dropped).to(x.dtype).expand(-1, -1, n, *x.shape[3:])
        for value, n in fields
    ]
    return join_channels(x, torch.cat(filled, dim=2) if len(filled) > 1 else filled[0])


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


def guided_passes(
    cond_scale: float | Mapping[str, float], conditions: Conditions, *, whole: bool
) -> tuple[list[frozenset[str]], list[float]]:
    """What each pass of guided sampling is conditioned on, without passes of weight 0.

    Args:
        cond_scale: As in `Unet3D.forward_with_cond_scale`.
        conditions: Those that are given.
        whole: Whether the pass with all conditions is needed in any case.

    Returns:
        The names of the conditions, masks left out, that each pass has, in rising order; and the
        scale of the difference between each pass after the first and the one before it.
    """
    names = [name for name in conditions if CONDITIONS[name].mask_of is None]
    groups = guidance_groups(cond_scale, names)
    # a scale of 1 takes all of the lower pass away, and one of 0 all of the upper
    kept = [frozenset(groups.pop(0)[0] if groups[0][1] == 1 else ())]
    if groups and groups[-1][1] == 0 and not whole:
        groups.pop()
    for added, _ in groups:
        kept.append(kept[-1].union(added))
    return kept, [scale for _, scale in groups]


def conditions_of_passes(
    network: Unet3D,
    conditions: Conditions,
    negative: Conditions,
    kept: Sequence[frozenset[str]],
) -> list[dict[str, Tensor]]:
    """The conditions of each pass, under the same names; null or negative where it keeps none."""
    conditions, null = guided_halves(network, conditions, negative)
    owners = {name: CONDITIONS[name].mask_of or name for name in conditions}
    return [
        {name: (conditions if owners[name] in names else null)[name] for name in conditions}
        for names in kept
    ]


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
