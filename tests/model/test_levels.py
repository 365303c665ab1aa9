"""The layers of one resolution: what they see, and how they are put together."""

from functools import partial

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.model.blocks import Downsample, ResnetBlock
from video_diffusion_pytorch.model.embeddings import rotary_tables
from video_diffusion_pytorch.model.levels import (
    Level,
    LinearAttentionLayer,
    SpatialAttention,
    TemporalAttention,
    call,
    call_again,
)

FRAMES = 4


def temporal(mask=None):
    frequencies = torch.tensor([1.0, 0.1])
    return torch.randn(2, FRAMES, FRAMES), rotary_tables(frequencies, FRAMES), mask


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
@pytest.mark.parametrize("kind", [SpatialAttention, LinearAttentionLayer])
def test_spatial_attention_sees_all_pixels_of_its_frame(kind):
    changed = where_it_changes(kind(8, 2))
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
    "layer", [TemporalAttention(8, 2, 4), SpatialAttention(8, 2), LinearAttentionLayer(8, 2)]
)
def test_attention_is_added_to_its_input(layer):
    for parameter in layer.attn.to_out.parameters():
        parameter.zero_()
    x = torch.randn(2, 8, FRAMES, 2, 3)
    call = temporal() if isinstance(layer, TemporalAttention) else ()
    assert torch.equal(layer(x, *call), x)


@torch.no_grad()
@pytest.mark.parametrize("linear_attn", [True, False])
@pytest.mark.parametrize("resample", [True, False])
def test_a_level_is_its_layers_one_after_another(linear_attn, resample):
    level = Level(
        6,
        8,
        Downsample(8) if resample else None,
        block=partial(ResnetBlock, time_emb_dim=5),
        heads=2,
        dim_head=4,
        linear_attn=linear_attn,
    )
    x, emb = torch.randn(2, 6, FRAMES, 4, 4), torch.randn(2, 5)
    told = temporal(torch.tensor([True, False]))
    features, resampled = level(x, emb, told)
    expected = level.block2(level.block1(x, emb), emb)
    assert isinstance(level.spatial_attn, nn.Identity) is not linear_attn
    expected = level.temporal_attn(level.spatial_attn(expected), *told)
    assert torch.equal(features, expected)
    assert torch.equal(resampled, level.resample(expected))
    assert resampled.shape == ((2, 8, FRAMES, 2, 2) if resample else (2, 8, FRAMES, 4, 4))


@pytest.mark.parametrize("way", [call, call_again])
def test_a_level_calls_its_layers_in_the_way_it_is_told(way):
    block = partial(ResnetBlock, time_emb_dim=5)
    level = Level(6, 8, None, block=block, heads=2, dim_head=4, linear_attn=True)
    x, emb = torch.randn(2, 6, FRAMES, 4, 4), torch.randn(2, 5)
    called = []

    def run(layer, *args):
        called.append(layer)
        return way(layer, *args)

    told = temporal()
    features, _ = level(x, emb, told, run)
    assert called == [level.block1, level.block2, level.spatial_attn, level.temporal_attn]
    expected, _ = level(x, emb, told)
    assert torch.equal(features, expected)
    wanted = list(level.parameters())
    pairs = zip(
        torch.autograd.grad(features.sum(), wanted),
        torch.autograd.grad(expected.sum(), wanted),
        strict=True,
    )
    assert all(torch.equal(*pair) for pair in pairs)
