"""Attentions as the network has them: what they see, and what they leave alone."""

import pytest
import torch

from video_diffusion_pytorch.model.attention import (
    LinearAttentionLayer,
    SpatialAttention,
    TemporalAttention,
)
from video_diffusion_pytorch.model.embeddings import rotary_tables
from video_diffusion_pytorch.model.text_tokens import TextTokens

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


# shifted channels


@torch.no_grad()
@pytest.mark.parametrize("kind", [SpatialAttention, LinearAttentionLayer])
def test_a_shift_in_space_keeps_to_its_frame(kind):
    layer = kind(8, 2, shift=True)
    plain = kind(8, 2)
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
