"""Beside the path: whether what a Dataset is asked for can be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.data.formats.video_reader import CHANNELS_TO_MODE

ValueRange = tuple[tuple[float, ...], tuple[float, ...]]

_ARRAYS = (".npy", ".npz", ".pt")
_CHOICES = {
    "clip_start": ("first", "random", "all"),
    "pad": ("black", "repeat", "mask", "error"),
    "pad_position": ("end", "center"),
    "fit_frames": (None, "short", "all"),
}


def check_image_size(image_size: object) -> tuple[int, int]:
    """Gives height and width, or raises a ValueError."""
    pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(pair) != 2 or not all(_is_positive_int(side) for side in pair):
        raise ValueError(
            "image_size must be a whole number of pixels of at least 1, or such a (height, width), "
            f"got {image_size!r}; pass for example 64 or (48, 64)"
        )
    return pair[0], pair[1]


def check_num_frames(num_frames: object) -> None:
    """Raises a ValueError unless it is a number of frames."""
    if not _is_positive_int(num_frames):
        raise ValueError(
            f"num_frames must be a whole number of at least 1, got {num_frames!r}; for clips "
            "of any length pass force_num_frames=False"
        )


def check_choices(force_num_frames: bool, **chosen: str | None) -> None:
    """Raises a ValueError for a word that an option does not know, or that goes with no other."""
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise ValueError(
                f"{name} must be one of {', '.join(map(str, _CHOICES[name]))}, got {value!r}; "
                "choose one of them"
            )
    if not force_num_frames and chosen["clip_start"] != "first":
        raise ValueError(
            "clip_start must be 'first' where clips are as long as their files, got "
            f"{chosen['clip_start']!r}; leave force_num_frames=False out to cut clips"
        )
    if chosen.get("fit_frames") is None:
        return
    if not force_num_frames:
        raise ValueError(
            "fit_frames must be None where clips are as long as their files, got "
            f"{chosen['fit_frames']!r}; leave force_num_frames=False out to resample them in time"
        )
    if chosen["fit_frames"] == "all" and chosen["clip_start"] != "first":
        raise ValueError(
            "fit_frames='all' makes one clip of each file, so clip_start must be 'first', got "
            f"{chosen['clip_start']!r}; leave it out, or pass fit_frames='short' to cut long files"
        )
    if (chosen["pad"], chosen["pad_position"]) != ("black", "end"):
        raise ValueError(
            "pad and pad_position must be left out with fit_frames, which leaves no clip too "
            f"short, got pad={chosen['pad']!r} and pad_position={chosen['pad_position']!r}; choose "
            "whether short files are filled up or stretched"
        )


def check_channels(channels: object, paths: Sequence[Path], has_read_fn: bool) -> None:
    """Raises a ValueError where pictures or films cannot have that many channels."""
    has_pictures = not has_read_fn and any(path.suffix.lower() not in _ARRAYS for path in paths)
    if not _is_positive_int(channels) or (has_pictures and channels not in CHANNELS_TO_MODE):
        raise ValueError(
            f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 "
            "for grey, 3 for colour, 4 for colour and opacity; only arrays (npy, npz, pt) have "
            "any number"
        )


def as_value_range(value_range: Any, channels: int) -> ValueRange | None:
    """Gives lows and highs, one per channel; None for None.

    Raises:
        ValueError: It is not such a pair.

    Example:
        >>> as_value_range((-5, 5), channels=2)
        ((-5.0, -5.0), (5.0, 5.0))
    """
    if value_range is None:
        return None
    try:
        low, high = (_per_channel(bound, channels) for bound in value_range)
    except (TypeError, ValueError):
        low = high = ()
    pairs = list(zip(low, high, strict=False))
    are_ordered = all(_have_width(*pair) for pair in pairs)
    if len(low) != channels or len(high) != channels or not are_ordered:
        raise ValueError(
            "value_range must be 'fit' or (low, high) with low < high, each a number or one for "
            f"each of {channels} channels, got {value_range!r:.500}; pass for example (-5, 5), two "
            "numbers that float32 tells apart"
        )
    return low, high


def split_conditions(
    conditions: Any,
) -> tuple[list[str], Callable[[Path], Any] | None, dict[str, Any]]:
    """Names of kinds, the function beside them, and columns of the manifest by keyword.

    Raises:
        TypeError: An item is none of these, or there are two functions.
        ValueError: A keyword has no column, or one that cannot be had from a manifest.
    """
    if conditions is None:
        return [], None, {}
    is_single = isinstance(conditions, (str, Mapping)) or callable(conditions)
    items = [conditions] if is_single else list(conditions)
    functions = [item for item in items if callable(item)]
    kinds = [item for item in items if isinstance(item, str)]
    mappings = [item for item in items if isinstance(item, Mapping)]
    if max(len(functions), len(mappings)) > 1 or len(items) > len([*functions, *kinds, *mappings]):
        raise TypeError(
            "conditions must be names of conditions, at most one function and one dict of columns, "
            f"got {conditions!r}; let one function give the conditions of both"
        )
    columns = dict(mappings[0]) if mappings else {}
    for name, column in columns.items():
        is_list = name == "cond" and isinstance(column, (list, tuple)) and len(column) > 0
        names = column if is_list else [column]
        if name not in ("cond", "labels") or not all(isinstance(n, str) for n in names):
            raise ValueError(
                "conditions from columns of the manifest must be 'cond', a list of columns of "
                "numbers or one column of texts, and 'labels', one column, got "
                f"{name!r}: {column!r}; write for example {{'cond': ['EF'], 'labels': 'Class'}}"
            )
    return kinds, functions[0] if functions else None, columns


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _have_width(low: float, high: float) -> bool:
    """Whether float32, in which clips are, tells two bounds apart, and holds their difference."""
    first, last = torch.tensor([low, high], dtype=torch.float32, device="cpu").tolist()
    limits = torch.finfo(torch.float32)
    return limits.tiny <= last - first <= limits.max


def _per_channel(bound: Any, channels: int) -> tuple[float, ...]:
    values = bound.tolist() if hasattr(bound, "tolist") else bound
    if isinstance(values, (list, tuple)):
        return tuple(float(value) for value in values)
    return (float(values),) * channels
