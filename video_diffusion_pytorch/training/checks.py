"""Before the loop: whether the numbers that a Trainer is given can be trained with."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any


def check_counts(counts: Mapping[str, Any], optional: Mapping[str, Any]) -> None:
    """Raises a ValueError for numbers that count nothing.

    Args:
        counts: By keyword of the Trainer, those that must be at least 1.
        optional: Those that must be at least 0, or None to have them chosen.
    """
    for least, group in ((1, counts), (0, optional)):
        for name, value in group.items():
            if value is None and group is optional:
                continue
            if not isinstance(value, Integral) or value < least:
                advice = "give a positive number" if least else "leave it out"
                raise ValueError(f"Trainer: {name} must be at least {least}, got {value}; {advice}")


def check_image_folder(image_folder: object, image_frames: int) -> None:
    """Raises a ValueError for a folder of images of which none is asked for."""
    if image_folder is not None and not image_frames:
        raise ValueError(
            "Trainer: with image_folder, image_frames must be at least 1, got 0; say how many "
            "images go with each clip, or leave image_folder out"
        )
