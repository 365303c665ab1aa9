"""Norms, linear layers, rotary embedding and attention in the forms that are fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# asked here and not in `project`, where torch.compile could not
HAS_ONEDNN = torch.backends.mkldnn.is_available()

# Keys from which on torch's own softmax over the last axis is faster than its parts
_MANY_KEYS = 16
# Keys up to which torch's fused attention in half precision is slower than its parts
_FEW_KEYS = 256


def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether computations with `x` run on a CPU and uncompiled."""
    return x.is_cpu and not torch.compiler.is_compiling()


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer over the last axis of `x` `(rows, n, c)`, by the faster of two libraries.

    On x86 CPUs oneDNN's 1×1 convolution is up to twice as fast as the BLAS behind `F.linear`.
    """
    if not (x.is_cpu and x.dtype == torch.float32 and HAS_ONEDNN):
        return F.linear(x, weight, bias)
    rows, n, c = x.shape
    count = 1 if torch.compiler.is_compiling() else _images_for_onednn(rows)
    images = x.reshape(count, -1, n, c).permute(0, 3, 1, 2)
    y = F.conv2d(images, weight[:, :, None, None], bias)
    return y.permute(0, 2, 3, 1).reshape(rows, n, -1)


def _images_for_onednn(rows: int) -> int:
    """The smallest divisor of `rows` from 16 on.

    In a single thread torch gives 1×1 convolutions of fewer images to a slow loop of its own.
    """
    return next((count for count in range(16, rows) if rows % count == 0), rows)


class _UnitRMS(torch.autograd.Function):
    """`x` over the root mean square of its last axis, and one over the latter.

    On a CPU torch's own rms_norm is no fused kernel, and its backward pass takes twice as long.
    """

    @staticmethod
    def forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_exact(x))
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        # zeros stay zeros in float16 as well
        inverse = inverse.clamp_(max=torch.finfo(x.dtype).max).to(x.dtype)
        return x * inverse, inverse

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, float], output: tuple[Tensor, Tensor]
    ) -> None:
        ctx.save_for_backward(*output)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, grad_inverse: Tensor | None
    ) -> tuple[Tensor | None, None]:
        unit, inverse = ctx.saved_tensors
        grad_x = None
        if grad is not None:
            along = (grad * unit).mean(dim=-1, keepdim=True)
            grad_x = torch.addcmul(grad, unit, along, value=-1) * inverse
        if grad_inverse is not None:
            # the derivative of a gradient
            own = grad_inverse * inverse.square() * unit / -unit.shape[-1]
            grad_x = own if grad_x is None else grad_x + own
        return grad_x, None


def unit_rms(x: Tensor, eps: float) -> Tensor:
    """`F.rms_norm` over the last axis, without a gain."""
    unit: Tensor = _UnitRMS.apply(x, eps)[0]
    return unit


class _Turn(torch.autograd.Function):
    """Multiplies pairs of features by complex numbers, and exchanges the axes 1 and 2.

    The features are `(a, b, c, d)`, the numbers `(b or 1, c or 1, d / 2)`. The product is taken in
    place, in single precision or better.
    """

    @staticmethod
    def forward(x: Tensor, turns: Tensor) -> Tensor:
        exact, layout = turns.real.dtype, torch.contiguous_format
        out = x.transpose(1, 2).to(exact, copy=True, memory_format=layout)
        torch.view_as_complex(out.unflatten(-1, (-1, 2))).mul_(turns.transpose(0, 1))
        return out.to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (turns,) = ctx.saved_tensors
        return _Turn.apply(grad, turns.conj().transpose(0, 1)), None


def rotate_heads_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`attention.rotate` of `(rows, n, heads, d)`, as contiguous `(rows, heads, n, d)`."""
    # features beyond the tables' stay as they are
    turns = F.pad(torch.complex(cos, sin), (0, x.shape[-1] // 2 - cos.shape[-1]), value=1.0)
    rotated: Tensor = _Turn.apply(x, turns[:, None])
    return rotated


class _AttentionWeights(torch.autograd.Function):
    """`softmax(q k^T + bias)` and its gradients, each laid out as the next product needs it."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
        logits = logits.unflatten(0, q.shape[:2]).to(_exact(q))
        if bias is not None:
            logits.add_(bias)
        if logits.shape[-1] >= _MANY_KEYS:
            return logits.softmax(dim=-1).to(q.dtype)
        weights = logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
        return weights.div_(weights.sum(dim=-1, keepdim=True)).to(q.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        q, k, weights = ctx.saved_tensors
        weights = weights.to(_exact(q))
        grad = weights * grad
        grad = torch.addcmul(grad, weights, grad.sum(dim=-1, keepdim=True), value=-1)
        of_each = grad.to(q.dtype).flatten(0, 1)
        grad_q = torch.bmm(of_each, k.flatten(0, 1)).view_as(q)
        grad_k = torch.bmm(of_each.transpose(1, 2), q.flatten(0, 1)).view_as(k)
        return grad_q, grad_k, grad.sum(dim=0) if ctx.needs_input_grad[2] else None


def _exact(x: Tensor) -> torch.dtype:
    """Single precision, or that of `x` if it is better."""
    return torch.promote_types(x.dtype, torch.float32)


def is_slow_when_fused(q: Tensor, pos_bias: Tensor | None) -> bool:
    """Whether torch's fused attention has no good kernel for queries `(rows, heads, n, d)`.

    On a CPU it has no gradient for its mask, spends most of its time between products that are
    small, and in half precision most of its backward pass.
    """
    is_half = q.dtype in (torch.bfloat16, torch.float16)
    return is_eager_on_cpu(q) and (pos_bias is not None or (is_half and q.shape[2] <= _FEW_KEYS))


def attention_weights(q: Tensor, k: Tensor, pos_bias: Tensor | None) -> Tensor:
    """Softmax attention's weights for very many short sequences.

    Args:
        q: Queries, scaled, `(rows, heads, n, d)`.
        k: Keys, `(rows, heads, m, d)`.
        pos_bias: `(heads, n, m)`, added to the logits; None for none.

    Returns:
        `(rows, heads, n, m)`.
    """
    weights: Tensor = _AttentionWeights.apply(q.contiguous(), k.contiguous(), pos_bias)
    return weights
