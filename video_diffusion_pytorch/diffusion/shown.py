"""Values in error messages."""

from __future__ import annotations

from typing import Any

_MOST = 100


def shown(value: Any) -> str:
    """A value on a part of a line: where it is longer, a tensor's type and shape, or the beginning.

    Example:
        >>> import torch
        >>> shown("ddim"), shown(torch.rand(9, 9)), shown(torch.ones(2))
        ("'ddim'", 'torch.float32 of shape (9, 9)', 'tensor([1., 1.])')
    """
    text = repr(value)
    if len(text) <= _MOST:
        return text
    shape = getattr(value, "shape", None)
    return f"{text[:_MOST]}..." if shape is None else f"{value.dtype} of shape {tuple(shape)}"
