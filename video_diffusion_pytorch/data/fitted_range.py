"""Beside the path: between which values the clips of a dataset lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.dataset_options import ValueRange
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.manifest import Clip

_Part = TypeVar("_Part")


def join_parts(clips: Sequence[tuple[Clip, range | None]]) -> list[tuple[Clip, range | None]]:
    """The parts of files that clips are cut from, each once.

    Args:
        clips: Each with its frames; None for all.

    Example:
        >>> from pathlib import Path
        >>> join_parts([(Clip(Path("a"), "a cat"), range(4)), (Clip(Path("a")), range(4, 8))])
        [(Clip(path=...('a'), ..., start=None, end=None, numbers=()), range(0, 8))]
    """
    parts: dict[Clip, range | None] = {}
    for clip, span in clips:
        part = replace(clip, caption=None, label=None, numbers=())
        before = parts.get(part, span)
        if span is not None and before is not None:
            span = range(min(before.start, span.start), max(before.stop, span.stop))
        parts[part] = span
    return list(parts.items())


def fit_value_range(parts: Sequence[_Part], read: Callable[[_Part], torch.Tensor]) -> ValueRange:
    """Finds the least and the largest value of each channel.

    Args:
        parts: What to read, one after the other.
        read: Gives the finite values of a part, `(c, f, h, w)`; a part for which it raises an
            `UnreadableVideoError` is left out.

    Returns:
        Lows and highs, one per channel each.

    Raises:
        ValueError: Nothing can be read, or a channel has one value everywhere.

    Example:
        >>> fit_value_range([1.0, 5.0], lambda top: torch.tensor([0.0, top]).view(1, 1, 1, 2))
        ((0.0,), (5.0,))
    """
    unread: UnreadableVideoError | None = None
    lows: list[torch.Tensor] = []
    highs: list[torch.Tensor] = []
    for part in tqdm(parts, desc="fitting the value range", leave=False):
        try:
            values = read(part).flatten(1)
        except UnreadableVideoError as error:
            unread = unread or error
            continue  # named and counted when training comes to it
        lows.append(values.amin(1).double())
        highs.append(values.amax(1).double())
    if not lows:
        raise ValueError(
            "value_range='fit' must find a file that can be read, got none; repair them, the first "
            f"being: {unread}"
        ) from unread
    least, most = torch.stack(lows).amin(0), torch.stack(highs).amax(0)
    if (least.float() >= most.float()).any():
        raise ValueError(
            f"value_range='fit' must find values that differ in each channel, got "
            f"{least.tolist()} to {most.tolist()}; give the range, or leave the channel out"
        )
    return tuple(least.tolist()), tuple(most.tolist())
