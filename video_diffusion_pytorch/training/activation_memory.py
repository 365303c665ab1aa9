"""How much memory a training step wants: what the network keeps for its gradient, counted."""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.shown import shown

# What autocast computes in; matrix products of fp8 keep their inputs in bf16
_DTYPES = {
    "no": None,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.bfloat16,
}

_logger = logging.getLogger("video_diffusion_pytorch")


class _Kept:
    """Counts the bytes of the storages that a forward pass keeps for its backward pass.

    Args:
        excluded: Tensors that are there anyway, such as parameters.
    """

    def __init__(self, excluded: list[Tensor]) -> None:
        # a storage's address, which is also known of storages without memory
        self._excluded = {tensor.untyped_storage()._cdata for tensor in excluded}
        self._storages: dict[int, Any] = {}
        self._before: list[int] = []
        self.total = 0
        self.by_module: dict[nn.Module, int] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._excluded and storage._cdata not in self._storages:
            # held on to, or another storage might get the address
            self._storages[storage._cdata] = storage
            self.total += storage.nbytes()
        return tensor

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._before.append(self.total)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        added = self.total - self._before.pop()
        self.by_module[module] = max(added, self.by_module.get(module, 0))

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Within it, all that autograd saves is counted, in total and by module."""
        hooks = (
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave),
        )
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()


def activation_bytes(
    diffusion: Any,
    batch_size: int = 1,
    *,
    conditions: Mapping[str, Any] | None = None,
    image_frames: int = 0,
    precision: str = "no",
    checkpointing: bool | None = None,
) -> int | None:
    """Estimates what a micro-batch keeps in memory between forward and backward pass.

    The network runs on tensors without memory, on the diffusion's device as far as it can tell, so
    that the paths of that device are taken; nothing is allocated there. What autograd saves is
    counted, each storage once, parameters not. With checkpointing the largest layer's
    features are added, which are there while it is computed again. Left out are temporary
    buffers, workspaces of libraries, and the fragments that an allocator cannot use.

    Args:
        diffusion: A `GaussianDiffusion`; it is not changed.
        batch_size: Clips of the micro-batch.
        conditions: Keywords of the network, tensors as large as the micro-batch. They are used only
            if it does not take `null_cond_prob`: null values cost as much, and cannot be wrong.
        image_frames: Images behind each clip.
        precision: `"no"` for float32, or that of autocast, `"bf16"`, `"fp16"` or `"fp8"`.
        checkpointing: Whether to count with gradient checkpointing; None for as the network is set.

    Returns:
        Bytes, or None if that cannot be found out, which the log explains: the weights are sharded,
        or the network does not run on tensors without memory.

    Raises:
        ValueError: If `precision` is none of these, or the network has no `gradient_checkpointing`
            to be switched on.

    Example:
        >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4)
        >>> kept = activation_bytes(diffusion, 2)
        >>> kept > activation_bytes(diffusion, 2, checkpointing=True)
        True
    """
    if precision not in _DTYPES:
        raise ValueError(
            f"activation_bytes: precision must be one of {', '.join(_DTYPES)}, got "
            f"{shown(precision)}; "
            "give the precision that autocast computes in, and 'no' for float32"
        )
    network: Any = unwrap(diffusion.denoise_fn)
    has_switch = hasattr(network, "gradient_checkpointing")
    if checkpointing and not has_switch:
        raise ValueError(
            "activation_bytes: checkpointing must go with a network that has the attribute "
            f"gradient_checkpointing, as Unet3D has, got {type(network).__name__}; leave it out"
        )
    if any(hasattr(parameter, "device_mesh") for parameter in network.parameters()):
        # its hooks would wait for the other processes, which know nothing of this
        _logger.warning("activation_bytes: no estimate, because the weights are sharded")
        return None
    given = _network_arguments(diffusion, network, batch_size, conditions, image_frames)
    is_on = has_switch and network.gradient_checkpointing
    try:
        with _switched(network, False) if has_switch else contextlib.nullcontext():
            plain = _count(network, *given, precision)
        if not (is_on if checkpointing is None else checkpointing):
            return plain.total
        with _switched(network, True):
            again = _count(network, *given, precision)
    except Exception as error:  # a network of the user's own may fail in any way
        _logger.warning("activation_bytes: no estimate, because of %r", error)
        return None
    # what keeps nothing with checkpoints is inside of one, and is computed again as a whole
    inside = (kept for module, kept in plain.by_module.items() if not again.by_module[module])
    return again.total + max(inside, default=0)


@contextlib.contextmanager
def _switched(network: Any, checkpointing: bool) -> Iterator[None]:
    """Within it, the network has this `gradient_checkpointing`."""
    was, network.gradient_checkpointing = network.gradient_checkpointing, checkpointing
    try:
        yield
    finally:
        network.gradient_checkpointing = was


def _network_arguments(
    diffusion: Any,
    network: nn.Module,
    batch_size: int,
    conditions: Mapping[str, Any] | None,
    image_frames: int,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The shape of the noisy clips, and keywords of the network in training."""
    c, f, h, w = diffusion.clip_shape
    has_null = "null_cond_prob" in inspect.signature(network.forward).parameters
    keywords = {"null_cond_prob": 1.0} if has_null else dict(conditions or {})
    if image_frames:
        keywords["image_frames"] = image_frames
    return (batch_size, c, f + image_frames, h, w), keywords


def _count(
    network: nn.Module, shape: tuple[int, ...], keywords: dict[str, Any], precision: str
) -> _Kept:
    """Runs the network on tensors without memory, and counts what it keeps."""
    # Meta tensors know no autocast and take no device's own paths; these tensors, which
    # torch.compile works with, do both. They have no public name.
    from torch._subclasses.fake_tensor import FakeTensorMode

    device, dtype = next(network.parameters()).device, _DTYPES[precision]
    # compiled layers would be compiled again; before torch 2.6 that cannot be held off
    set_stance = getattr(torch.compiler, "set_stance", None)
    eager = contextlib.nullcontext() if set_stance is None else set_stance("force_eager")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.enable_grad(), eager:
        state = [*network.named_parameters(), *network.named_buffers()]
        weights: dict[str, Tensor] = {name: mode.from_tensor(value) for name, value in state}
        x = torch.empty(shape, device=device)
        is_real = getattr(network, "time_input", "step") == "log_snr"
        dtype_of_time = torch.float32 if is_real else torch.long
        steps = torch.zeros(shape[0], dtype=dtype_of_time, device=device)
        told = {
            name: mode.from_tensor(value) if torch.is_tensor(value) else value
            for name, value in keywords.items()
        }
        kept = _Kept(list(weights.values()))
        # on meta there is no autocast, nor one to be switched off
        is_plain = device.type == "meta" and dtype is None
        autocast: Any = contextlib.nullcontext()
        if not is_plain:
            autocast = torch.autocast(device.type, dtype, enabled=dtype is not None)
        with kept.counting(), autocast:
            torch.func.functional_call(network, weights, (x, steps), told)
    return kept
