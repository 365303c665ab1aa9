"""How errors print what they got."""

from __future__ import annotations

from typing import Any

_MOST = 100


def shown(value: Any) -> str:
    """A value in a few words: of a tensor or an array its type and shape, others cut to a line.

    Example:
        >>> import torch
        >>> shown(torch.rand(2, 3)), shown("ddim"), shown(0.5)
        ('torch.float32 of shape (2, 3)', "'ddim'", '0.5')
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"{value.dtype} of shape {tuple(shape)}"
    text = repr(value)
    return text if len(text) <= _MOST else f"{text[:_MOST]}..."
