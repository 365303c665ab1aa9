"""Memory of a training step: estimates of weights and activations, and the out-of-memory error."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from video_diffusion_pytorch.diffusion.conditioning import unwrap

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Messages of allocators that raise a plain RuntimeError
_PHRASES = ("out of memory", "can't allocate memory", "not enough memory")


class TrainingOutOfMemory(torch.OutOfMemoryError, MemoryError):
    """A training step ran out of memory; the message says which options reduce its use.

    It is a torch.OutOfMemoryError (a RuntimeError) and a MemoryError.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means out of memory, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(p in str(error) for p in _PHRASES)


def explain_out_of_memory(
    diffusion: Any, batch_size: int, precision: str, error: BaseException
) -> TrainingOutOfMemory:
    """Makes the error of a training step that ran out of memory.

    Args:
        diffusion: The diffusion that is trained.
        batch_size: Clips per micro-batch of this process.
        precision: `"no"` for float32, or that of autocast.
        error: The original error, which is quoted.
    """
    c, f, h, w = diffusion.clip_shape
    return TrainingOutOfMemory(
        f"Trainer: a step must fit into the memory of {diffusion.betas.device}, got a micro-batch "
        f"of {batch_size} clips of {c} x {f} x {h} x {w} in precision {precision!r}; use amp=True, "
        "gradient_checkpointing=True in Unet3D, or a smaller train_batch_size with a larger "
        f"gradient_accumulate_every. The error was: {str(error) or type(error).__name__}"
    )


def state_bytes(
    diffusion: nn.Module, optimizer: torch.optim.Optimizer | None = None, averages: int = 1
) -> int:
    """Bytes of weights, their averages, gradients and optimizer state on one device.

    Args:
        diffusion: The diffusion that is trained.
        optimizer: Its optimizer; None, or one without steps, counts two values per weight, as of
            Adam.
        averages: Number of averages of the weights.
    """
    weights = sum(p.nbytes for p in [*diffusion.parameters(), *diffusion.buffers()])
    gradients = sum(p.nbytes for p in diffusion.parameters() if p.requires_grad)
    kept = {} if optimizer is None else optimizer.state
    moments = [v for state in kept.values() for v in state.values() if torch.is_tensor(v)]
    steps = sum(v.nbytes for v in moments) if moments else 2 * gradients
    return weights * (1 + averages) + gradients + steps


def activation_bytes(
    diffusion: Any,
    batch_size: int = 1,
    *,
    conditions: Mapping[str, Any] | None = None,
    image_frames: int = 0,
    precision: str = "no",
    checkpointing: bool | None = None,
) -> int:
    """Estimates the memory that a micro-batch keeps from the forward to the backward pass.

    The network runs on the meta device, which allocates nothing. Each storage that autograd saves
    is counted once, parameters excluded. With checkpointing the largest recomputed block is added.
    Half precision is counted as if the whole network computed in it; measured with autocast it was
    up to 35 % more (`Unet3D(64)` with checkpointing), and 7 to 10 % less for `Unet3D(256)`. Not
    counted are temporary buffers, workspaces of libraries and fragmentation; attention is counted
    as its device-independent implementation, and keeps less on a CPU. The weights must not be
    sharded.

    Args:
        diffusion: A `GaussianDiffusion`; it is not changed.
        batch_size: Clips of the micro-batch.
        conditions: Keywords of the network, tensors of `batch_size` rows; ignored if it takes
            `null_cond_prob`, as null conditions need the same memory. None for none.
        image_frames: Images per clip.
        precision: `"no"` for float32, or that of autocast, `"bf16"` or `"fp16"`.
        checkpointing: Whether to count with gradient checkpointing; None for as the network is set.

    Returns:
        Bytes.

    Raises:
        KeyError: If `precision` is unknown.
        ValueError: If the network has no attribute `gradient_checkpointing` to switch on.

    Example:
        >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4)
        >>> kept = activation_bytes(diffusion, 2)
        >>> kept > activation_bytes(diffusion, 2, checkpointing=True)
        True
    """
    dtype = _DTYPES[precision]
    network: Any = unwrap(diffusion.denoise_fn)
    was_on = getattr(network, "gradient_checkpointing", None)
    if checkpointing and was_on is None:
        raise ValueError(
            "activation_bytes: checkpointing must go with a network that has an attribute "
            f"gradient_checkpointing, got {type(network).__name__}; leave it out"
        )
    c, f, h, w = diffusion.clip_shape
    shape = (batch_size, c, f + image_frames, h, w)
    has_null = "null_cond_prob" in inspect.signature(network.forward).parameters
    keywords = {"null_cond_prob": 1.0} if has_null else dict(conditions or {})
    if image_frames:
        keywords["image_frames"] = image_frames
    try:
        if was_on is not None:
            network.gradient_checkpointing = False
        total, by_module = _count(network, shape, keywords, dtype)
        if not (was_on if checkpointing is None else checkpointing):
            return total
        network.gradient_checkpointing = True
        again, kept = _count(network, shape, keywords, dtype)
    finally:
        if was_on is not None:
            network.gradient_checkpointing = was_on
    # a module that saves nothing with checkpointing is in a recomputed block
    return again + max((size for m, size in by_module.items() if not kept[m]), default=0)


def _count(
    network: nn.Module, shape: tuple[int, ...], keywords: Mapping[str, Any], dtype: torch.dtype
) -> tuple[int, dict[nn.Module, int]]:
    """Bytes that a forward pass on the meta device saves: the total, and by module."""

    def on_meta(value: Any) -> Any:
        if not torch.is_tensor(value):
            return value
        like = torch.empty_like(value, device="meta", requires_grad=value.requires_grad)
        return like.to(dtype) if value.is_floating_point() else like

    state: list[tuple[str, Any]] = [*network.named_parameters(), *network.named_buffers()]
    weights: dict[str, Tensor] = {name: on_meta(value) for name, value in state}
    not_counted = {id(weight.untyped_storage()) for weight in weights.values()}
    # references, as the id of a freed storage may be reused
    storages: dict[int, torch.UntypedStorage] = {}
    before: list[int] = []
    by_module: dict[nn.Module, int] = {}

    def size() -> int:
        return sum(storage.nbytes() for storage in storages.values())

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in not_counted:
            storages[id(storage)] = storage
        return tensor

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        by_module[module] = max(size() - before.pop(), by_module.get(module, 0))

    is_real = getattr(network, "time_input", "step") == "log_snr"
    t = torch.zeros(shape[0], dtype=torch.float32 if is_real else torch.long, device="meta")
    x = torch.empty(shape, dtype=dtype, device="meta")
    inputs = {name: on_meta(value) for name, value in keywords.items()}
    # prevents a recompilation of compiled blocks, from torch 2.6
    set_stance = getattr(torch.compiler, "set_stance", contextlib.nullcontext)
    with (
        register_module_forward_pre_hook(lambda *_: before.append(size())),
        register_module_forward_hook(leave),
        set_stance("force_eager"),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept),
    ):
        torch.func.functional_call(network, weights, (x, t), inputs)
    return size(), by_module
