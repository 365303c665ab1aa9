"""One resolution: how its layers are put together."""

from functools import partial

import pytest
import torch

from video_diffusion_pytorch.model.attention import LinearAttentionLayer, TemporalAttention
from video_diffusion_pytorch.model.blocks import Downsample, ResnetBlock
from video_diffusion_pytorch.model.embeddings import rotary_tables
from video_diffusion_pytorch.model.levels import Level, LevelLayers, Temporal, call, call_again

FRAMES = 4


def temporal(mask=None):
    rotary = rotary_tables(torch.tensor([1.0, 0.1]), FRAMES)
    return Temporal(torch.randn(2, FRAMES, FRAMES), rotary, mask, 0)


def layers(spatial=True, blocks=2, after_each=False):
    return LevelLayers(
        partial(ResnetBlock, time_emb_dim=5),
        lambda width, level: LinearAttentionLayer(width, 2) if spatial else None,
        lambda width, level: TemporalAttention(width, 2, 4),
        blocks,
        after_each,
    )


@torch.no_grad()
@pytest.mark.parametrize("spatial", [True, False])
@pytest.mark.parametrize("resample", [True, False])
def test_a_level_is_its_layers_one_after_another(spatial, resample):
    level = Level(6, 8, Downsample(8) if resample else None, 0, layers(spatial))
    x, emb = torch.randn(2, 6, FRAMES, 4, 4), torch.randn(2, 5)
    told = temporal(torch.tensor([True, False]))
    features, resampled = level(x, emb, told)
    expected = level.block2(level.block1(x, emb), emb)
    assert hasattr(level, "spatial_attn") is spatial
    expected = level.spatial_attn(expected) if spatial else expected
    expected = level.temporal_attn(expected, *told)
    assert torch.equal(features, expected)
    assert torch.equal(resampled, level.resample(expected))
    assert resampled.shape == ((2, 8, FRAMES, 2, 2) if resample else (2, 8, FRAMES, 4, 4))


def test_a_level_has_as_many_blocks_as_asked_for_and_attention_where_asked_for():
    def names(blocks, after_each):
        level = Level(6, 8, None, 0, layers(True, blocks, after_each))
        called = []

        def run(layer, *args):
            called.append(next(name for name, child in level.named_children() if child is layer))
            return layer(*args)

        with torch.no_grad():
            level(torch.randn(1, 6, FRAMES, 4, 4), torch.randn(1, 5), temporal(), run)
        return called

    assert names(1, False) == ["block1", "spatial_attn", "temporal_attn"]
    assert names(3, False) == ["block1", "block2", "block3", "spatial_attn", "temporal_attn"]
    assert names(2, True) == [
        "block1", "spatial_attn1", "temporal_attn1", "block2", "spatial_attn", "temporal_attn",
    ]  # fmt: skip


@pytest.mark.parametrize("way", [call, call_again])
def test_a_level_calls_its_layers_in_the_way_it_is_told(way):
    level = Level(6, 8, None, 0, layers())
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
