"""When a training step does not fit into memory: how that is told, and what to turn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.training.activation_memory import activation_bytes

# What the allocators say that raise a plain RuntimeError
_PHRASES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "MPS backend out of memory",
    "CUDA out of memory",
    "CUDA error: out of memory",
)

# Share of a device's memory that a smaller batch may fill: fragments and buffers want the rest
_FILLED = 0.8


class TrainingOutOfMemory(torch.OutOfMemoryError, MemoryError):
    """A training step did not fit into memory; the message says what to turn.

    What catches torch's own error, a RuntimeError, or Python's MemoryError, catches this one too.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error) for p in _PHRASES)


def state_bytes(
    diffusion: nn.Module, optimizer: torch.optim.Optimizer | None = None, averages: int = 1
) -> int:
    """What weights, averages of them, gradients and the optimizer take on one device.

    Args:
        diffusion: The diffusion that is trained.
        optimizer: Its optimizer; None, or one that has not stepped yet, for two numbers per
            weight, as Adam keeps.
        averages: How many averages of the weights there are.
    """
    weights = sum(p.nbytes for p in [*diffusion.parameters(), *diffusion.buffers()])
    gradients = sum(p.nbytes for p in diffusion.parameters() if p.requires_grad)
    kept = {} if optimizer is None else optimizer.state
    moments = [v for state in kept.values() for v in state.values() if torch.is_tensor(v)]
    steps = sum(v.nbytes for v in moments) if moments else 2 * gradients
    return weights * (1 + averages) + gradients + steps


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that a device has in all; None where it cannot be asked."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if device.type == "cpu" and hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def advice(
    diffusion: Any,
    *,
    batch_size: int,
    accumulate: int,
    precision: str,
    checkpointing: bool,
    error: BaseException,
    conditions: Mapping[str, Any] | None = None,
    image_frames: int = 0,
    averages: int = 1,
    optimizer: torch.optim.Optimizer | None = None,
) -> str:
    """What to say, and to try, when a training step ran out of memory.

    Args:
        diffusion: The diffusion that is trained.
        batch_size: Clips of a micro-batch of this process.
        accumulate: Micro-batches of a step.
        precision: As in `activation_bytes`.
        checkpointing: Whether the network has gradient checkpointing switched on.
        error: What was raised; its own words are the end of the message.
        conditions: As in `activation_bytes`.
        image_frames: As in `activation_bytes`.
        averages: As in `state_bytes`.
        optimizer: As in `state_bytes`.

    Returns:
        One message, for a `TrainingOutOfMemory`.
    """

    def estimate(precision: str, checkpointing: bool) -> int | None:
        return activation_bytes(
            diffusion,
            batch_size,
            conditions=conditions,
            image_frames=image_frames,
            precision=precision,
            checkpointing=checkpointing or None,
        )

    network: Any = unwrap(diffusion.denoise_fn)
    device = next(network.parameters()).device
    total, rest = device_memory(device), state_bytes(diffusion, optimizer, averages)
    kept = estimate(precision, checkpointing)

    # what is not turned yet
    choices = []
    if not checkpointing and hasattr(network, "gradient_checkpointing"):
        how = f"{type(network).__name__}(gradient_checkpointing=True)"
        choices.append(f"gradient checkpointing, {how}{_about(estimate(precision, True))}")
    if precision == "no" and any(p.dtype == torch.float32 for p in network.parameters()):
        choices.append(f"half precision, amp=True{_about(estimate('bf16', checkpointing))}")
    if batch_size > 1:
        smaller = _smaller_batch(batch_size, kept, None if total is None else total - rest)
        share = None if kept is None else kept * smaller // batch_size
        choices.append(
            f"train_batch_size={smaller} with gradient_accumulate_every="
            f"{accumulate * batch_size // smaller}, which is the same step{_about(share)}"
        )
    choices.append("smaller clips or a smaller network")

    c, f, h, w = diffusion.clip_shape
    images = f" and {image_frames} images" if image_frames else ""
    of_device = "" if total is None else f", {_gib(total)}"
    what = "an unknown amount" if kept is None else f"about {_gib(kept)}"
    return (
        f"Trainer: a step must fit into the memory of {device}{of_device}, got a micro-batch of "
        f"{batch_size} clips of {c} x {f} x {h} x {w}{images}, which keeps {what} of activations "
        f"beside about {_gib(rest)} of weights, averages, gradients and optimizer state; "
        f"use {', or '.join(choices)}. The error was: {str(error) or type(error).__name__}"
    )


def _smaller_batch(batch_size: int, kept: int | None, room: int | None) -> int:
    """The largest proper divisor of the batch that fits, or without an estimate the largest."""
    divisors = [n for n in range(batch_size - 1, 0, -1) if batch_size % n == 0]
    if kept is None or room is None:
        return divisors[0]
    fitting = [n for n in divisors if kept * n / batch_size <= _FILLED * room]
    return (fitting or [1])[0]


def _gib(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


def _about(count: int | None) -> str:
    return "" if count is None else f" (about {_gib(count)} of activations)"
