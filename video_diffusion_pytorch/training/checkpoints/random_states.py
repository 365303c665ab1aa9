"""Beside the loop: the random generators of a process, as a checkpoint holds them."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The state of every random generator that this process draws from in training."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_available() else [],
    }


def restore_random_states(states: Mapping[str, Any]) -> None:
    """Puts every generator back where `random_states` found it.

    Raises:
        ValueError: If a generator does not take its state.
    """
    try:
        version, words, normal = states["python"]
        keys, position, has_gauss, gauss = states["numpy"]
        random.setstate((version, tuple(words), normal))
        np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(states["torch"].cpu())
        if states["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"][0].cpu())
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(
            "the checkpoint's random_states must be states of the generators of Python, NumPy and "
            f"torch, got others ({error}); use the checkpoint before it"
        ) from error
