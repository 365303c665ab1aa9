"""Where training computes, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def half_precision(device_type: str) -> str:
    """The 16-bit format a device trains in: `"bf16"` where the hardware has it, else `"fp16"`."""
    if device_type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp16"
    return "bf16"


def _fastest_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def make_accelerator(amp: bool, device: str | None) -> Accelerator:
    """The engine that knows the device, the precision and the loss scale.

    Args:
        amp: Whether to compute in half precision where that is safe.
        device: `"cpu"`, `"cuda"` or `"mps"`; None for the fastest there is. Which of several
            GPUs is `CUDA_VISIBLE_DEVICES`'s to say.

    Raises:
        ValueError: If the machine has no such device.
    """
    # imported on first use, as not everybody trains
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = device or _fastest_device()
    if wanted not in ("cpu", _fastest_device()):
        raise ValueError(
            f"Trainer: device must be 'cpu' or this machine's accelerator, "
            f"{_fastest_device()!r}, got {device!r}; leave it out to use the fastest"
        )
    precision = half_precision(wanted) if amp else "no"
    # accelerate keeps one state per process, but a notebook may make a second, different Trainer
    if AcceleratorState._shared_state:
        state = AcceleratorState()
        if (state.mixed_precision, state.device.type) != (precision, wanted):
            AcceleratorState._reset_state(
                reset_partial_state=not torch.distributed.is_initialized()
            )
    return Accelerator(cpu=wanted == "cpu", mixed_precision=precision)
