"""Attention against its plain definition, written out in float64."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding

from video_diffusion_pytorch.model import attention
from video_diffusion_pytorch.model.attention import Attention, SpatialLinearAttention
from video_diffusion_pytorch.model.embeddings import rotary_tables

GOLDEN = Path(__file__).parents[1] / "golden"
BLOCKS = torch.load(GOLDEN / "blocks_0.7.0.pt", weights_only=True)["cases"]


def plain_rotation(x, frequencies):
    """Turns each pair of neighbouring features of (..., n, d) as a complex number."""
    angles = torch.arange(x.shape[-2], dtype=torch.float64)[:, None] * frequencies.double()
    pairs = x[..., : 2 * len(frequencies)].unflatten(-1, (-1, 2)).contiguous()
    turned = torch.view_as_complex(pairs) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat(
        (torch.view_as_real(turned).flatten(-2), x[..., 2 * len(frequencies) :]), dim=-1
    )


def plain_attention(layer, x, pos_bias=None, focus_present_mask=None, image_frames=0):
    w_qkv, w_out = layer.to_qkv.weight.double(), layer.to_out.weight.double()
    q, k, v = (
        (x.double() @ w.T).unflatten(-1, (layer.heads, -1)).transpose(-2, -3)
        for w in w_qkv.chunk(3)
    )
    if layer.rotary_emb is not None:
        frequencies = layer.rotary_emb.freqs
        q, k = plain_rotation(q, frequencies), plain_rotation(k, frequencies)
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if pos_bias is not None:
        # images have no position, and see but themselves
        logits = logits + F.pad(pos_bias.double(), (0, image_frames, 0, image_frames))
    is_alone = torch.arange(x.shape[-2]) >= x.shape[-2] - image_frames
    apart = (is_alone[:, None] | is_alone) & ~torch.eye(x.shape[-2], dtype=torch.bool)
    logits = logits.masked_fill(apart, float("-inf"))
    if focus_present_mask is not None:
        others = ~torch.eye(x.shape[-2], dtype=torch.bool)
        mask = focus_present_mask.view(-1, *[1] * (logits.ndim - 1)) & others
        logits = logits.masked_fill(mask, float("-inf"))
    out = (logits.softmax(dim=-1) @ v).transpose(-2, -3).flatten(-2)
    return out @ w_out.T


def assert_close(actual, expected):
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=1e-5 * largest)


# Softmax attention


@pytest.mark.parametrize("image_frames", [0, 2])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("shape", "heads", "dim_head", "rotary_dim"),
    [
        ((2, 7, 12), 3, 8, None),
        ((2, 5, 6, 12), 2, 16, 16),
        ((2, 3, 2, 10, 8), 1, 48, 32),  # features beyond the rotated ones
        ((2, 2, 1, 8), 5, 6, 6),
        ((3, 40, 8), 2, 64, 32),
    ],
)
def test_attention_is_softmax_attention(
    shape, heads, dim_head, rotary_dim, biased, masked, image_frames
):
    torch.manual_seed(0)
    rotary = None if rotary_dim is None else RotaryEmbedding(rotary_dim)
    layer = Attention(shape[-1], heads=heads, dim_head=dim_head, rotary_emb=rotary)
    n = shape[-2]
    shape = (*shape[:-2], n + image_frames, shape[-1])
    x = torch.randn(shape, requires_grad=True)
    call = {"image_frames": image_frames}
    if biased:
        call["pos_bias"] = torch.randn(heads, n, n, requires_grad=True)
    if masked:
        call["focus_present_mask"] = torch.arange(shape[0]) % 2 == 1
    output, expected = layer(x, **call), plain_attention(layer, x, **call)
    assert_close(output, expected)
    # the gradients too
    direction = torch.randn(shape)
    inputs = [x, *layer.parameters(), *([call["pos_bias"]] if biased else [])]
    inputs = [tensor for tensor in inputs if tensor.requires_grad]
    for mine, plain in zip(
        torch.autograd.grad((output * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        # with one position the logits have no gradient but rounding error
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_tables_made_once_are_the_tables_of_each_layer():
    rotary = RotaryEmbedding(8)
    layer = Attention(12, heads=2, dim_head=8, rotary_emb=rotary)
    x = torch.randn(2, 5, 12)
    given = layer(x, rotary=rotary_tables(rotary.freqs, 5))
    assert torch.equal(layer(x), given)
    layer.rotary_emb = None
    assert torch.equal(layer(x, rotary=rotary_tables(rotary.freqs, 5)), given)
    assert not torch.allclose(layer(x), given)


@torch.no_grad()
def test_the_position_enters_by_differences_only():
    # rotation and a bias of the difference: a video that repeats its frames gives repeats
    layer = Attention(12, heads=2, dim_head=8, rotary_emb=RotaryEmbedding(8))
    q = k = torch.randn(1, 6, 1, 8)
    tables = rotary_tables(layer.rotary_emb.freqs, 6)
    constant = torch.ones_like(q) * q[:, :1]
    turned_q, turned_k = (attention.rotate(t, tables)[0, :, 0] for t in (constant, constant))
    logits = turned_q @ turned_k.T
    for distance in range(6):
        diagonal = logits.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    # and turning keeps lengths
    turned = attention.rotate(k, tables)
    torch.testing.assert_close(turned.norm(dim=-1), k.norm(dim=-1))


@torch.no_grad()
def test_rotation_is_that_of_the_rotary_library():
    rotary = RotaryEmbedding(8)
    x = torch.randn(3, 4, 10, 20)  # rows, heads, positions, features
    tables = rotary_tables(rotary.freqs, 10)
    mine = attention.rotate(x.transpose(1, 2), tables).transpose(1, 2)
    torch.testing.assert_close(mine, rotary.rotate_queries_or_keys(x), rtol=1e-5, atol=1e-5)


def _run(layer, x, **call):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    output = layer(x, **call)
    output.square().sum().backward()
    return [output.detach(), x.grad, layer.to_qkv.weight.grad]


@pytest.mark.parametrize("n", [1, 4, 33])
def test_the_fused_kernel_and_the_short_way_on_cpus_agree(n, monkeypatch):
    layer = Attention(12, heads=2, dim_head=16, rotary_emb=RotaryEmbedding(16))
    x = torch.randn(2, 5, n, 12)
    call = {"pos_bias": torch.randn(2, n, n), "focus_present_mask": torch.tensor([True, False])}
    eager = _run(layer, x, **call)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for mine, other in zip(eager, _run(layer, x, **call), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_no_bias_and_a_bias_of_zero_agree():
    layer = Attention(12, heads=2, dim_head=16)
    x = torch.randn(2, 5, 7, 12)
    for mine, other in zip(
        _run(layer, x), _run(layer, x, pos_bias=torch.zeros(2, 7, 7)), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_more_rows_than_a_kernel_takes_go_through_in_slices(monkeypatch):
    layer = Attention(12, heads=2, dim_head=16)
    x = torch.randn(2, 5, 7, 12)
    whole = _run(layer, x)
    monkeypatch.setattr(attention, "MAX_ROWS", 3)
    for mine, other in zip(_run(layer, x), whole, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_number_types(dtype):
    layer = Attention(12, heads=2, dim_head=16, rotary_emb=RotaryEmbedding(16)).to(dtype)
    x = torch.randn(2, 5, 7, 12, dtype=dtype)
    bias = torch.randn(2, 7, 7, dtype=dtype)
    output = layer(x, pos_bias=bias)
    assert output.dtype == dtype
    expected = plain_attention(layer, x, pos_bias=bias)
    tolerance = {torch.float64: 1e-6, torch.bfloat16: 3e-2, torch.float16: 5e-3}[dtype]
    assert (output - expected).abs().max() < tolerance * expected.abs().max()


# Linear attention


def plain_linear_attention(layer, x):
    w_qkv = layer.to_qkv.weight.double().flatten(1)
    w_out, bias = layer.to_out.weight.double().flatten(1), layer.to_out.bias.double()
    pixels = x.double().permute(0, 2, 3, 4, 1).flatten(2, 3)  # b f n c
    q, k, v = (
        (pixels @ w.T).unflatten(-1, (layer.heads, -1)).transpose(2, 3) for w in w_qkv.chunk(3)
    )
    q, k = q.softmax(dim=-1) / q.shape[-1] ** 0.5, k.softmax(dim=-2)
    out = (q @ (k.transpose(-1, -2) @ v)).transpose(2, 3).flatten(-2)
    out = out @ w_out.T + bias
    return out.unflatten(2, x.shape[3:]).permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize(
    ("shape", "heads", "dim_head"),
    [((2, 12, 3, 4, 6), 2, 8), ((1, 40, 1, 8, 2), 3, 32), ((2, 4, 2, 1, 1), 4, 4)],
)
def test_linear_attention_is_its_definition(shape, heads, dim_head):
    torch.manual_seed(0)
    layer = SpatialLinearAttention(shape[1], heads=heads, dim_head=dim_head)
    x = torch.randn(shape, requires_grad=True)
    output, expected = layer(x), plain_linear_attention(layer, x)
    assert_close(output, expected)
    direction = torch.randn(shape)
    inputs = [x, *layer.parameters()]
    for mine, plain in zip(
        torch.autograd.grad((output * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_linear_attention_stays_within_a_frame_and_sees_all_of_it():
    layer = SpatialLinearAttention(12, heads=2, dim_head=8)
    x = torch.randn(1, 12, 3, 4, 4)
    before = layer(x)
    x[:, :, 1, 0, 0] += 1
    changed = (layer(x) - before).abs().amax(dim=(0, 1))
    assert (changed[[0, 2]] == 0).all()
    assert (changed[1] > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_linear_attention_in_other_number_types(dtype):
    layer = SpatialLinearAttention(12, heads=2, dim_head=8).to(dtype)
    x = torch.randn(2, 12, 3, 4, 4, dtype=dtype)
    output, expected = layer(x), plain_linear_attention(layer, x)
    assert output.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 3e-2}[dtype]
    assert (output - expected).abs().max() < tolerance * expected.abs().max()


# The reference's numbers


@torch.no_grad()
@pytest.mark.parametrize("name", [n for n in BLOCKS if "Attention" in n])
def test_same_numbers_as_the_reference(name):
    case = BLOCKS[name]
    kwargs = dict(case["kwargs"])
    if kwargs.pop("rotary", None):
        kwargs["rotary_emb"] = RotaryEmbedding(8)
    layer = getattr(attention, name.split("_")[0])(**kwargs)
    layer.load_state_dict(case["state_dict"])
    assert_close(layer(*case["args"], **case["call"]), case["output"])
