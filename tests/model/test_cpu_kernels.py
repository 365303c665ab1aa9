"""The forms of layers for a CPU: equal to their definitions, with all derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from video_diffusion_pytorch.model.cpu_kernels import (
    attention_weights,
    is_slow_when_fused,
    project,
    rotate_heads_first,
    unit_rms,
)
from video_diffusion_pytorch.model.embeddings import rotary_tables


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 34, 48])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_projection_is_a_linear_layer(rows, with_bias):
    x, weight = torch.randn(rows, 5, 6, requires_grad=True), torch.randn(7, 6, requires_grad=True)
    inputs = (x, weight, torch.randn(7, requires_grad=True)) if with_bias else (x, weight)
    grad = torch.randn(rows, 5, 7)
    found, expected = project(*inputs), F.linear(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()
    for a, b in zip(
        torch.autograd.grad(found, inputs, grad),
        torch.autograd.grad(expected, inputs, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)


def rotated(x, cos, sin):
    """Turns the first pairs of features of (..., n, heads, d) by their position's angle."""
    first, second = x[..., : 2 * cos.shape[-1]].unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.flatten(-2), x[..., 2 * cos.shape[-1] :]), dim=-1)


@pytest.mark.parametrize("pairs", [2, 4])
def test_rotation_heads_first(pairs):
    tables = rotary_tables(torch.rand(pairs, dtype=torch.float64), 5)
    x = double(3, 5, 2, 8)
    torch.testing.assert_close(rotate_heads_first(x, *tables), rotated(x, *tables).transpose(1, 2))
    assert gradcheck(lambda x: rotate_heads_first(x, *tables), x)
    assert gradgradcheck(lambda x: rotate_heads_first(x, *tables), x)


def test_rotation_in_half_precision_is_rounded_once():
    tables = rotary_tables(torch.rand(4), 5)
    x = torch.randn(3, 5, 2, 8).bfloat16()
    found = rotate_heads_first(x, *tables)
    assert found.dtype == torch.bfloat16
    exact = rotated(x.float(), *tables).transpose(1, 2)
    torch.testing.assert_close(found, exact.bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("keys", [1, 6, 16, 19])
@pytest.mark.parametrize("with_bias", [False, True])
def test_attention_weights_are_a_softmax(keys, with_bias):
    q, k = double(3, 2, 4, 5), double(3, 2, keys, 5)
    bias = double(2, 4, keys) if with_bias else None
    expected = (q @ k.transpose(2, 3) + (bias if with_bias else 0)).softmax(dim=-1)
    torch.testing.assert_close(attention_weights(q, k, bias), expected)
    inputs = (q, k, bias) if with_bias else (q, k)

    def weights(q, k, bias=None):
        return attention_weights(q, k, bias)

    assert gradcheck(weights, inputs)
    assert gradgradcheck(weights, inputs)


@pytest.mark.parametrize("keys", [6, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_weights_of_large_logits_are_finite(keys, dtype):
    q, k = torch.full((2, 1, 3, 4), 60.0, dtype=dtype), torch.randn(2, 1, keys, 4, dtype=dtype)
    weights = attention_weights(q, k, torch.zeros(1, 3, keys))
    assert weights.dtype == dtype
    assert weights.isfinite().all()
    torch.testing.assert_close(weights.float().sum(-1), torch.ones(2, 1, 3), rtol=0, atol=1e-2)


def test_which_attention_is_slow_when_fused():
    q = torch.randn(2, 3, 8, 4)
    bias = torch.zeros(3, 8, 8)
    assert is_slow_when_fused(q, bias)
    assert not is_slow_when_fused(q, None)
    assert is_slow_when_fused(q.bfloat16(), None)
    assert not is_slow_when_fused(torch.randn(1, 1, 300, 4).bfloat16(), None)
    assert not is_slow_when_fused(q.to("meta"), bias)


def test_unit_rms():
    x = double(2, 3, 6)
    torch.testing.assert_close(unit_rms(x, 1e-24), F.rms_norm(x, (6,), eps=1e-24))
    assert gradcheck(lambda x: unit_rms(x, 1e-24), x)
    assert gradgradcheck(lambda x: unit_rms(x, 1e-24), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_rms_of_zeros_is_zero(dtype):
    x = torch.zeros(2, 4, dtype=dtype, requires_grad=True)
    unit = unit_rms(x, 1e-24)
    assert (unit == 0).all()
    unit.sum().backward()
    assert x.grad.isfinite().all()
