"""Convolutions, norms, residual blocks, and views of frames and pixels."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from video_diffusion_pytorch.model import blocks
from video_diffusion_pytorch.model.blocks import (
    Block,
    Downsample,
    FramewiseConv,
    FramewiseConvTranspose,
    LayerNorm,
    ResnetBlock,
    RMSNorm,
    Upsample,
)

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ("Block", "ResnetBlock", "LayerNorm", "RMSNorm", "Upsample", "Downsample")
RECORDED = {
    (name, version): case
    for version in ("0.7.0", "0.6.3")
    for name, case in torch.load(GOLDEN / f"blocks_{version}.pt", weights_only=True)[
        "cases"
    ].items()
    if name.split("_")[0] in NAMES
}


def randomise(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module


@torch.no_grad()
@pytest.mark.parametrize("key", RECORDED, ids="-".join)
def test_same_numbers_as_the_reference(key):
    case = RECORDED[key]
    layer = getattr(blocks, key[0].split("_")[0])(**case["kwargs"])
    layer.load_state_dict(case["state_dict"])
    expected = case["output"]
    torch.testing.assert_close(
        layer(*case["args"], **case["call"]),
        expected,
        rtol=0,
        atol=1e-5 * expected.abs().max().item(),
    )


def test_every_kind_of_block_is_recorded():
    assert {name.split("_")[0] for name, _ in RECORDED} == set(NAMES)


# Convolutions


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("mine", "plain"),
    [(FramewiseConv, nn.Conv3d), (FramewiseConvTranspose, nn.ConvTranspose3d)],
)
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [((1, 3, 3), 1, (0, 1, 1)), ((1, 4, 4), (1, 2, 2), (0, 1, 1)), (1, 1, 0), ((1, 5, 3), 1, 0)],
)
def test_framewise_convolution_is_a_3d_convolution(
    mine, plain, kernel, stride, padding, channels_last
):
    torch.manual_seed(0)
    layer = mine(6, 4, kernel, stride, padding)
    x = torch.randn(2, 6, 3, 8, 12)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    output, expected = layer(x), plain.forward(layer, x)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    inputs = [x, layer.weight, layer.bias]
    for gradient, of_plain in zip(
        torch.autograd.grad(output.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, of_plain, rtol=1e-4, atol=1e-3)


def test_downsample_and_upsample_change_height_and_width_by_two():
    x = torch.randn(1, 6, 5, 8, 4)
    assert Downsample(6)(x).shape == (1, 6, 5, 4, 2)
    assert Upsample(6)(x).shape == (1, 6, 5, 16, 8)


# Norms


@torch.no_grad()
def test_rms_norm_is_its_definition():
    norm = randomise(RMSNorm(10))
    x = torch.randn(2, 10, 3, 4, 4, dtype=torch.float64)
    expected = x / x.square().mean(dim=1, keepdim=True).sqrt() * norm.gamma.double()
    torch.testing.assert_close(norm.double()(x), expected)


@torch.no_grad()
def test_layer_norm_is_its_definition():
    norm = randomise(LayerNorm(10))
    x = torch.randn(2, 10, 3, 4, 4, dtype=torch.float64)
    centred = x - x.mean(dim=1, keepdim=True)
    variance = centred.square().mean(dim=1, keepdim=True)
    expected = centred / (variance + 1e-5).sqrt() * norm.gamma.double()
    torch.testing.assert_close(norm.double()(x), expected)
    last = norm(x.movedim(1, -1), dim=-1).movedim(-1, 1)
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_a_frame_of_zeros_stays_zero_and_has_a_finite_gradient(norm):
    x = torch.zeros(1, 4, 2, 3, 3, requires_grad=True)
    output = norm(4)(x)
    assert (output == 0).all()
    output.sum().backward()
    assert x.grad.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
def test_norms_do_not_see_the_scale_of_their_input(norm):
    x = torch.randn(1, 8, 2, 3, 3)
    layer = randomise(norm(8))
    torch.testing.assert_close(layer(x * 1000), layer(x), rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("norm", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_norms_in_half_precision_keep_its_type_and_their_kernel(norm, dtype):
    # torch warns, which fails a test, where it has to leave the fused kernel
    layer = norm(8)
    x = torch.randn(1, 8, 2, 3, 3)
    output = layer(x.to(dtype))
    assert output.dtype == dtype
    assert (output.float() - layer(x)).abs().max() < 0.05


# Blocks


@torch.no_grad()
def test_a_block_is_convolution_norm_modulation_and_silu():
    block = randomise(Block(4, 6))
    x = torch.randn(2, 4, 3, 5, 5)
    scale, shift = torch.randn(2, 2, 6, 1, 1, 1)
    normed = block.norm(block.proj(x))
    torch.testing.assert_close(block(x), normed * normed.sigmoid())
    modulated = normed * (scale + 1) + shift
    torch.testing.assert_close(
        block(x, scale_shift=(scale, shift)), modulated * modulated.sigmoid()
    )


@torch.no_grad()
@pytest.mark.parametrize(("groups", "frames_see_each_other"), [(None, False), (2, True)])
def test_only_group_norm_lets_frames_see_each_other(groups, frames_see_each_other):
    block = Block(4, 6, groups=groups)
    x = torch.randn(1, 4, 3, 5, 5)
    before = block(x)
    x[:, :, 2] += 1
    assert torch.equal(block(x)[:, :, :2], before[:, :, :2]) is not frames_see_each_other


@torch.no_grad()
def test_a_residual_block_adds_its_input():
    block = randomise(ResnetBlock(4, 4))
    x = torch.randn(2, 4, 3, 5, 5)
    torch.testing.assert_close(block(x), block.block2(block.block1(x)) + x)
    wider = randomise(ResnetBlock(4, 6))
    torch.testing.assert_close(wider(x), wider.block2(wider.block1(x)) + wider.res_conv(x))


@torch.no_grad()
def test_the_embedding_scales_and_shifts_the_first_block():
    block = randomise(ResnetBlock(4, 6, time_emb_dim=5))
    x, emb = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 5)
    linear = block.mlp[1]
    vector = F.silu(emb) @ linear.weight.T + linear.bias
    scale, shift = (part[:, :, None, None, None] for part in vector.chunk(2, dim=1))
    hidden = block.block2(block.block1(x, (scale, shift)))
    torch.testing.assert_close(block(x, emb), hidden + block.res_conv(x))


@torch.no_grad()
def test_an_embedding_per_frame_scales_and_shifts_its_frame():
    block = randomise(ResnetBlock(4, 6, time_emb_dim=5))
    x, emb = torch.randn(2, 4, 3, 5, 5), torch.randn(2, 3, 5)
    frames = [block(x[:, :, i : i + 1], emb[:, i]) for i in range(3)]
    torch.testing.assert_close(block(x, emb), torch.cat(frames, dim=2), rtol=1e-5, atol=1e-4)


# Views of frames and pixels, against einops


@pytest.mark.parametrize(
    ("name", "back"),
    [
        ("frames_as_images", "images_as_frames"),
        ("frames_as_rows", "rows_as_frames"),
        ("pixels_as_rows", "rows_as_pixels"),
    ],
)
def test_they_follow_their_patterns_and_lead_back(name, back):
    x = torch.randn(2, 6, 3, 4, 5)
    fold, unfold = getattr(blocks, name), getattr(blocks, back)
    [pattern] = [words for words in fold.__doc__.split("`") if "->" in words]
    assert torch.equal(fold(x), rearrange(x, pattern))
    [pattern] = [words for words in unfold.__doc__.split("`") if "->" in words]
    sizes = {"b": 2} if back == "images_as_frames" else {"b": 2, "h": 4}
    assert torch.equal(unfold(fold(x), **sizes), x)
    assert torch.equal(unfold(fold(x), **sizes), rearrange(fold(x), pattern, **sizes))


def test_channels_last_videos_are_not_copied():
    x = torch.randn(2, 6, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d)
    for fold in (blocks.frames_as_images, blocks.frames_as_rows):
        assert fold(x).data_ptr() == x.data_ptr()
