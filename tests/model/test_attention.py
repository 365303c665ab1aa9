"""Attention: against its definition in float64, as residual layers, with shifted channels."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rotary_embedding_torch import RotaryEmbedding

from video_diffusion_pytorch.model import attention
from video_diffusion_pytorch.model.attention import (
    Attention,
    SpatialAttention,
    SpatialLinearAttention,
    TemporalAttention,
    shift_in_space,
    shift_in_time,
)
from video_diffusion_pytorch.model.conditioning import TextTokens
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


@torch.no_grad()
@pytest.mark.parametrize("dim", [12, 96])
def test_heads_of_odd_width(dim):
    layer = Attention(dim, heads=2, dim_head=17, rotary_emb=RotaryEmbedding(16)).double()
    x, bias = torch.randn(2, 5, 7, dim).double(), torch.randn(2, 7, 7).double()
    expected = plain_attention(layer, x, bias)
    torch.testing.assert_close(layer(x, bias), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dim", [12, 96])
@pytest.mark.parametrize("n", [7, 20])
@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("is_masked", [False, True])
def test_narrow_and_wide_inputs(dim, n, images, is_masked):
    """Fewer channels than values take another path on a CPU; both have the same gradients."""
    layer = Attention(dim, heads=2, dim_head=16, rotary_emb=RotaryEmbedding(16)).double()
    x = torch.randn(2, 5, n + images, dim, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, n, n, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False]) if is_masked else None
    inputs = (x, bias, layer.to_qkv.weight, layer.to_out.weight)
    expected = plain_attention(layer, x, bias, mask, images)
    found = layer(x, bias, mask, image_frames=images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)
    grad = torch.randn_like(found)
    gradients = (torch.autograd.grad(y, inputs, grad) for y in (found, expected))
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


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


# Residual layers


FRAMES = 4


def temporal(mask=None):
    frequencies = torch.tensor([1.0, 0.1])
    # by distance, as relative biases are
    distance = torch.arange(FRAMES)[:, None] - torch.arange(FRAMES)
    bias = torch.randn(2, 2 * FRAMES - 1)[:, distance + FRAMES - 1]
    return bias, rotary_tables(frequencies, FRAMES), mask


def where_it_changes(layer, *call):
    """Which frames and pixels of the output move with one pixel of one frame of the input."""
    x = torch.randn(1, 8, FRAMES, 3, 3)
    before = layer(x, *call)
    x[:, :, 1, 0, 0] = torch.randn(8)
    return (layer(x, *call) - before).abs().amax(dim=(0, 1)) > 0


@torch.no_grad()
def test_temporal_attention_sees_all_frames_of_its_pixel():
    changed = where_it_changes(TemporalAttention(8, 2, 4), *temporal())
    expected = torch.zeros(FRAMES, 3, 3, dtype=torch.bool)
    expected[:, 0, 0] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
@pytest.mark.parametrize("linear", [False, True])
def test_spatial_attention_sees_all_pixels_of_its_frame(linear):
    changed = where_it_changes(SpatialAttention(8, 2, linear=linear))
    expected = torch.zeros(FRAMES, 3, 3, dtype=torch.bool)
    expected[1] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_the_mask_of_focus_is_one_per_video():
    layer = TemporalAttention(8, 2, 4)
    x = torch.randn(3, 8, FRAMES, 3, 5)
    bias, rotary, _ = temporal()
    mask = torch.tensor([False, True, False])
    output = layer(x, bias, rotary, mask)
    free = layer(x, bias, rotary)
    # alone, a frame is all that there is to see
    single = rotary_tables(torch.tensor([1.0, 0.1]), 1)
    frames = [layer(frame, bias[:, :1, :1], single) for frame in x.split(1, dim=2)]
    focused = torch.cat(frames, dim=2)
    torch.testing.assert_close(output[1], focused[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(output[[0, 2]], free[[0, 2]])


@torch.no_grad()
@pytest.mark.parametrize(
    "layer",
    [TemporalAttention(8, 2, 4), SpatialAttention(8, 2), SpatialAttention(8, 2, linear=True)],
)
def test_attention_is_added_to_its_input(layer):
    for parameter in layer.attn.to_out.parameters():
        parameter.zero_()
    x = torch.randn(2, 8, FRAMES, 2, 3)
    call = temporal() if isinstance(layer, TemporalAttention) else ()
    assert torch.equal(layer(x, *call), x)


# shifted channels


@torch.no_grad()
@pytest.mark.parametrize("linear", [False, True])
def test_a_shift_in_space_keeps_to_its_frame(linear):
    layer = SpatialAttention(8, 2, shift=True, linear=linear)
    plain = SpatialAttention(8, 2, linear=linear)
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 8, FRAMES, 3, 3)
    assert not torch.equal(layer(x), plain(x))
    frames = torch.cat([layer(frame) for frame in x.split(1, dim=2)], dim=2)
    torch.testing.assert_close(layer(x), frames)


@torch.no_grad()
def test_a_shift_in_time_crosses_neither_images_nor_focused_frames():
    layer = TemporalAttention(8, 2, 4, shift=True)
    x = torch.randn(2, 8, FRAMES + 2, 3, 3)
    bias, rotary, _ = temporal()
    output = layer(x, bias, rotary, torch.tensor([False, True]), 2)
    alone, single = rotary_tables(torch.tensor([1.0, 0.1]), 1), bias[:, :1, :1]
    each = torch.cat([layer(frame, single, alone) for frame in x.split(1, dim=2)], dim=2)
    torch.testing.assert_close(output[1], each[1])
    torch.testing.assert_close(output[0, :, FRAMES:], each[0, :, FRAMES:])
    video = layer(x[:, :, :FRAMES], bias, rotary)
    torch.testing.assert_close(output[0, :, :FRAMES], video[0])


# tokens of captions


def tokens(images=None):
    shown = None if images is None else torch.randn(2, images, 3, 5)
    return TextTokens(torch.randn(2, 3, 5), shown)


@torch.no_grad()
def test_temporal_attention_sees_tokens_under_every_mask():
    layer = TemporalAttention(8, 2, 4, token_dim=5)
    x = torch.randn(2, 8, FRAMES + 2, 3, 3)
    bias, rotary, _ = temporal()
    mask, text = torch.tensor([False, True]), tokens(images=2)
    output = layer(x, bias, rotary, mask, 2, text)

    # frames and images alone, each with its tokens, give the same
    alone, single = rotary_tables(torch.tensor([1.0, 0.1]), 1), bias[:, :1, :1]
    frames = [
        layer(frame, single, alone, None, 0, TextTokens(text.videos))
        for frame in x[:, :, :FRAMES].split(1, dim=2)
    ]
    torch.testing.assert_close(output[1, :, :FRAMES], torch.cat(frames, dim=2)[1])
    for i in range(2):
        image = x[:, :, FRAMES + i : FRAMES + i + 1]
        told = TextTokens(text.images[:, i])
        expected = layer(image, single, alone, None, 0, told)
        torch.testing.assert_close(output[:, :, FRAMES + i], expected[:, :, 0])

    # and other tokens something else, everywhere
    changed = layer(x, bias, rotary, mask, 2, TextTokens(text.videos + 1, text.images + 1))
    assert ((changed - output).abs().amax(dim=1) > 0).all()


@torch.no_grad()
def test_tokens_are_keys_without_position():
    layer = TemporalAttention(8, 2, 4, token_dim=5)
    x = torch.randn(2, 8, FRAMES, 3, 3)
    bias, rotary, _ = temporal()
    text = tokens()
    turned = TextTokens(text.videos.flip(1))
    torch.testing.assert_close(
        layer(x, bias, rotary, None, 0, text), layer(x, bias, rotary, None, 0, turned)
    )
    # softmax over frames and tokens together, computed by hand for one pixel
    inner = layer.norm(x)[0, :, :, 1, 2].T
    q, k, v = (t.unflatten(-1, (2, 4)) for t in layer.attn.to_qkv(inner).chunk(3, dim=-1))
    cos, sin = (t.repeat_interleave(2, -1)[:, None] for t in rotary)

    def turn(t):
        swapped = torch.stack((-t[..., 1::2], t[..., ::2]), dim=-1).flatten(-2)
        return t * cos + swapped * sin

    own_k, own_v = (
        t.unflatten(-1, (2, 4)) for t in layer.attn.to_token_kv(text.videos[0]).chunk(2, -1)
    )
    logits = torch.cat(
        (
            torch.einsum("ihd,jhd->hij", turn(q), turn(k)) / 2 + bias,
            torch.einsum("ihd,jhd->hij", q, own_k) / 2,
        ),
        dim=-1,
    )
    found = torch.einsum("hij,jhd->ihd", logits.softmax(-1), torch.cat((v, own_v)))
    expected = x[0, :, :, 1, 2].T + layer.attn.to_out(found.flatten(1))
    output = layer(x, bias, rotary, None, 0, text)[0, :, :, 1, 2].T
    torch.testing.assert_close(output, expected)


@torch.no_grad()
def test_spatial_attention_sees_the_tokens_of_its_video_or_image():
    layer = SpatialAttention(8, 2, token_dim=5)
    x = torch.randn(2, 8, FRAMES + 1, 3, 3)
    text = tokens(images=1)
    output = layer(x, text)
    for frame in range(FRAMES + 1):
        told = text.videos if frame < FRAMES else text.images[:, 0]
        expected = layer(x[:, :, frame : frame + 1], TextTokens(told))
        torch.testing.assert_close(output[:, :, frame : frame + 1], expected)


@torch.no_grad()
def test_a_table_of_biases_may_have_more_heads():
    layer = TemporalAttention(8, 2, 4)
    x = torch.randn(1, 8, FRAMES, 3, 3)
    bias, rotary, _ = temporal()
    wide = torch.cat((bias, torch.randn(3, FRAMES, FRAMES)))
    assert torch.equal(layer(x, wide, rotary), layer(x, bias, rotary))


# Shifted channels


def test_quarters_of_the_channels_come_from_the_frames_beside():
    x = torch.randn(2, 5, 9)
    shifted = shift_in_time(x)
    assert torch.equal(shifted[:, 1:, :2], x[:, :-1, :2])
    assert torch.equal(shifted[:, :-1, 2:4], x[:, 1:, 2:4])
    assert torch.equal(shifted[:, :, 4:], x[:, :, 4:])
    assert not shifted[:, 0, :2].any()
    assert not shifted[:, -1, 2:4].any()


def test_eighths_of_the_channels_come_from_the_pixels_around():
    x = torch.randn(2, 17, 3, 4, 5)
    above, below, left, right, kept = shift_in_space(x).split((2, 2, 2, 2, 9), dim=1)
    assert torch.equal(above[..., 1:, :], x[:, :2, :, :-1])
    assert torch.equal(below[..., :-1, :], x[:, 2:4, :, 1:])
    assert torch.equal(left[..., 1:], x[:, 4:6, :, :, :-1])
    assert torch.equal(right[..., :-1], x[:, 6:8, :, :, 1:])
    assert torch.equal(kept, x[:, 8:])
    edges = (above[..., 0, :], below[..., -1, :], left[..., 0], right[..., -1])
    assert not any(edge.any() for edge in edges)


def test_nothing_comes_from_images_or_to_focused_frames():
    x = torch.randn(2, 6, 8)
    shifted = shift_in_time(x, torch.tensor([False, True]), image_frames=2)
    assert torch.equal(shifted[0, :4], shift_in_time(x[:1, :4])[0])
    alone = torch.cat([shift_in_time(frame) for frame in x.split(1, dim=1)], dim=1)
    assert torch.equal(shifted[0, 4:], alone[0, 4:])
    assert torch.equal(shifted[1], alone[1])


def test_a_single_frame_and_a_single_pixel_have_no_neighbours():
    assert not shift_in_time(torch.ones(1, 1, 8))[..., :4].any()
    assert not shift_in_space(torch.ones(1, 8, 1, 1, 1))[:, :4].any()


def test_few_channels_are_left_as_they_are():
    x = torch.randn(1, 4, 3)
    assert torch.equal(shift_in_time(x), x)
