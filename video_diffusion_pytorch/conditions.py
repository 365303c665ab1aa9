"""The kinds of conditions: shape, null value, axes of frames and images, and what to do with each.

Between the public calls, conditions travel as one mapping from keyword to tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.arguments import shown

Conditions = Mapping[str, Tensor]

# "n" stands for any length
Shape = tuple[int | str, ...]

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Condition:
    """One kind of condition.

    Attributes:
        axes: Of its tensor: `b` videos, `f` frames, `h` and `w` of the video, `n` states of text,
            `d` its own width.
        network: What a network that takes it has, for errors.
        built_with: The keywords of `Unet3D` that build such a network, for errors.
        hint: What to do about a wrong shape, for errors.
        width: The keyword of `Unet3D` that holds its width, or the number of its classes; empty for
            a mask.
        null: Its null value: a number, or the name of the network's parameter.
        dtype: That of its values: `"real"`, `"integer"` or `"boolean"`.
        mask_of: The condition that it is a mask of; None for one of its own.
        frames_optional: Whether one without the axis of frames holds for all frames.
        missing: What to do about a missing one, for errors.
    """

    axes: str
    network: str
    built_with: str
    hint: str
    width: str
    null: str | int
    dtype: str = "real"
    mask_of: str | None = None
    frames_optional: bool = False
    missing: str = "pass it"

    @property
    def frame_axis(self) -> int | None:
        """The axis of its frames; None for one of the whole video."""
        return self.axes.index("f") if "f" in self.axes else None

    @property
    def image_axis(self) -> int:
        """The axis of images, where there is a row per image: that of frames, or one behind `b`."""
        return 1 if self.frame_axis is None else self.frame_axis


CONDITIONS = {
    "cond": Condition(
        axes="bd",
        network="a condition",
        built_with="cond_dim or use_bert_text_cond",
        hint="check the encoder's width against the network's cond_dim",
        width="cond_dim",
        null="null_cond_emb",
        missing="pass it, with null_cond_mask true for each video without one",
    ),
    "labels": Condition(
        axes="b",
        network="classes",
        built_with="num_classes",
        hint="give one class per video",
        width="num_classes",
        null=-1,
        dtype="integer",
        missing="pass it, with -1 for each video without a class",
    ),
    "frame_cond": Condition(
        axes="bfd",
        network="a condition per frame",
        built_with="frame_cond_dim",
        hint="give one vector per frame, of the network's frame_cond_dim",
        width="frame_cond_dim",
        null="null_frame_cond",
    ),
    "cond_video": Condition(
        axes="bdfhw",
        network="a dense condition",
        built_with="cond_channels",
        hint="resize it to the video, and check its channels against the network's cond_channels",
        width="cond_channels",
        null="null_cond_video",
        frames_optional=True,
    ),
    "null_cond_mask": Condition(
        axes="b",
        network="cond",
        built_with="cond_dim or use_bert_text_cond",
        hint="use torch.tensor([True, False, ...])",
        width="",
        null=0,
        dtype="boolean",
        mask_of="cond",
    ),
    "cond_mask": Condition(
        axes="bn",
        network="a sequence of states",
        built_with="num_text_tokens or text_pooling='attention'",
        hint="make it true where there is a token, false where padding",
        width="",
        null=1,
        dtype="boolean",
        mask_of="cond",
    ),
}
# Conditions of their own, and the masks that go with one of them
VALUES = tuple(name for name, kind in CONDITIONS.items() if kind.mask_of is None)
MASKS = tuple(name for name, kind in CONDITIONS.items() if kind.mask_of is not None)


def given(conditions: Mapping[str, _Value | None]) -> dict[str, _Value]:
    """Those that are not None: a network or a subclass need not know the others."""
    return {name: value for name, value in conditions.items() if value is not None}


def masks_of(names: Sequence[str] | Mapping[str, Any]) -> tuple[str, ...]:
    """The masks that may go with conditions."""
    return tuple(name for name in MASKS if CONDITIONS[name].mask_of in names)


def expected_shape(
    name: str, sizes: Mapping[str, int], width: int | None, *, states: bool = False, images: int = 0
) -> Shape | None:
    """The shape that a condition must have.

    Args:
        name: Its keyword.
        sizes: Numbers `b`, `f`, `h` and `w` of the videos.
        width: Its width, or the number of classes; None or 0 where the network does not take it.
        states: Whether the network takes text as sequences of states.
        images: Number of images of a video, to get the shape with a row per image; 0 for that of
            videos.

    Returns:
        Lengths, of which `"n"` may be any; None for a condition that the network does not take.

    Example:
        >>> expected_shape("cond_video", {"b": 2, "f": 5, "h": 8, "w": 8}, 3)
        (2, 3, 5, 8, 8)
        >>> expected_shape("cond", {"b": 2, "f": 5, "h": 8, "w": 8}, 64, states=True, images=4)
        (2, 4, 'n', 64)
    """
    kind = CONDITIONS[name]
    if kind.mask_of is None and not width:
        return None
    axes = "bnd" if states and name == "cond" else kind.axes
    lengths: dict[str, int | str] = {"n": "n", **sizes, "d": width or 0}
    if images:
        lengths["f"] = images
    shape = tuple(lengths[axis] for axis in axes)
    return (shape[0], images, *shape[1:]) if images and kind.frame_axis is None else shape


def null_like(name: str, value: Tensor, null: Tensor | None) -> Tensor:
    """The null value of a condition in the shape of `value`.

    Args:
        name: Its keyword.
        value: A condition of this kind.
        null: The network's parameter, for those kinds whose null value is learned.
    """
    kind = CONDITIONS[name]
    if not isinstance(kind.null, str):
        # long, as a byte cannot be -1
        dtype = torch.long if kind.dtype == "integer" else value.dtype
        return torch.full_like(value, kind.null, dtype=dtype)
    assert null is not None
    if kind.frames_optional and value.ndim == len(kind.axes) - 1:
        null = null.squeeze(kind.image_axis)
    return null.expand_as(value)


def frames_of(name: str, value: Tensor, frames: slice) -> Tensor:
    """The part of a condition that belongs to some frames; all of it if it has no frames."""
    kind = CONDITIONS.get(name)
    if kind is None or kind.frame_axis is None or value.ndim < len(kind.axes):
        return value
    return value[(slice(None),) * kind.frame_axis + (frames,)]


def rows_of(conditions: Mapping[str, Any], rows: slice) -> dict[str, Any]:
    """The conditions of some of the videos of a batch."""
    return {name: value[rows] for name, value in conditions.items()}


def repeat_rows(value: Any, count: int) -> Any:
    """`count` rows of a tensor or items of a list, which begin again when they run out."""
    indices = [i % len(value) for i in range(count)]
    return value[indices] if isinstance(value, Tensor) else [value[i] for i in indices]


def to_device(conditions: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Conditions with those that are tensors on a device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in conditions.items()
    }


def stack_rows(values: Sequence[Tensor]) -> Tensor:
    """The rows of conditions of one kind below each other; each may lack the axis of frames."""
    full = max(values, key=lambda value: value.ndim)
    return torch.cat([v if v.ndim == full.ndim else v.unsqueeze(2).expand_as(full) for v in values])


def check_cond_scale(argument: str, cond_scale: Any, names: Iterable[str]) -> None:
    """Raises a ValueError for scales by condition that don't fit the conditions.

    Args:
        argument: The call and its argument, for the error.
        cond_scale: A number, which is not checked, or a mapping.
        names: The conditions that are given.
    """
    if not isinstance(cond_scale, Mapping):
        return
    known = [name for name in names if name not in MASKS]
    fits = cond_scale and all(
        name in known and isinstance(scale, Real) and math.isfinite(scale)
        for name, scale in cond_scale.items()
    )
    if not fits:
        raise ValueError(
            f"{argument} must be a number, or a mapping to finite numbers from conditions that are "
            f"given, {', '.join(known) or 'none'}, got {shown(cond_scale)}; correct it, or pass "
            "one number for all conditions"
        )


def guidance_groups(
    cond_scale: float | Mapping[str, float], names: Iterable[str]
) -> list[tuple[tuple[str, ...], float]]:
    """Conditions that are guided by one scale, in the order in which they are added.

    Args:
        cond_scale: One scale for all, or by condition. Conditions that it does not name come first,
            with scale 1.
        names: The conditions that are given, without masks.

    Returns:
        Names and scale of each group; neighbours of the same scale are in one.

    Example:
        >>> guidance_groups({"cond": 3.0, "labels": 1.5}, ["cond", "labels", "frame_cond"])
        [(('frame_cond',), 1.0), (('cond',), 3.0), (('labels',), 1.5)]
        >>> guidance_groups({"cond": 3.0, "labels": 3.0}, ["cond", "labels"])
        [(('cond', 'labels'), 3.0)]
    """
    if not isinstance(cond_scale, Mapping):
        return [(tuple(names), cond_scale)]
    groups: list[tuple[tuple[str, ...], float]] = []
    others = [(name, 1.0) for name in names if name not in cond_scale]
    for name, scale in (*others, *cond_scale.items()):
        if groups and groups[-1][1] == scale:
            groups[-1] = (*groups[-1][0], name), scale
        else:
            groups.append(((name,), scale))
    return groups


def join_images(name: str, images: Sequence[Tensor]) -> Tensor:
    """One condition with a row per image, from that of the first, second, ... image of each video.

    Args:
        name: Its keyword.
        images: Of each image a condition of `b` videos, of one frame where it has frames.
    """
    kind = CONDITIONS[name]
    join = torch.stack if kind.frame_axis is None else torch.cat
    return join(list(images), dim=kind.image_axis)


def rows_of_images(conditions: Conditions) -> dict[str, Tensor]:
    """Conditions of `k` images of each video as those of `b * k` videos of one frame."""
    rows = {}
    for name, value in conditions.items():
        axis = CONDITIONS[name].frame_axis
        each = value.movedim(CONDITIONS[name].image_axis, 1).flatten(0, 1)
        rows[name] = each if axis is None else each.unsqueeze(axis)
    return rows


def with_masks(conditions: Conditions) -> dict[str, Tensor]:
    """Conditions with both masks of states of text, if these are among them."""
    if "cond" not in conditions:
        return dict(conditions)
    states = conditions["cond"]
    all_seen = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
    return {"cond_mask": all_seen, "null_cond_mask": ~all_seen.any(dim=1), **conditions}


def to_one_length(several: Sequence[Conditions]) -> list[dict[str, Tensor]]:
    """Pads the states of text of several sets of conditions to the length of the longest.

    Args:
        several: Sets with `cond` `(b, n, d)` and `cond_mask` `(b, n)`; those without `cond` stay.
    """
    longest = max((one["cond"].shape[1] for one in several if "cond" in one), default=0)
    padded = []
    for one in several:
        if "cond" in one:
            more = longest - one["cond"].shape[1]
            cond = F.pad(one["cond"], (0, 0, 0, more))
            one = {**one, "cond": cond, "cond_mask": F.pad(one["cond_mask"], (0, more))}
        padded.append(dict(one))
    return padded
