"""Conditions of the network: inputs, null values, drawn masks, tokens of captions."""

import pytest
import torch

from video_diffusion_pytorch import Unet3D
from video_diffusion_pytorch.model.blocks import join_channels
from video_diffusion_pytorch.model.conditioning import (
    TextPooling,
    TextTokens,
    focus_mask,
    mask_of_videos,
    mean_state,
    prob_mask_like,
)

EVERY = {"cond_dim": 5, "num_classes": 4, "frame_cond_dim": 6, "cond_channels": 2}


def tiny_unet(seed=0, **config):
    torch.manual_seed(seed)
    return Unet3D(**{"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config)


def videos(b=2, c=3, f=4, h=8, w=8):
    return torch.randn(b, c, f, h, w), torch.randint(0, 1000, (b,))


def conditions(b=2, f=4, h=8, w=8, names=("cond", "labels", "frame_cond", "cond_video")):
    every = {
        "cond": torch.randn(b, 5),
        "labels": torch.arange(b) % 4,
        "frame_cond": torch.randn(b, f, 6),
        "cond_video": torch.randn(b, 2, f, h, w),
    }
    return {name: every[name] for name in names}


def change(name, value):
    """Another condition of the same kind."""
    return (value + 1) % 4 if name == "labels" else value + 1


# Each of them, and all together


@pytest.mark.parametrize(
    ("config", "names"),
    [
        ({}, ()),
        ({"cond_dim": 5}, ("cond",)),
        ({"num_classes": 4}, ("labels",)),
        ({"frame_cond_dim": 6}, ("frame_cond",)),
        ({"cond_channels": 2}, ("cond_video",)),
        ({"cond_dim": 5, "num_classes": 4}, ("cond", "labels")),
        (EVERY, ("cond", "labels", "frame_cond", "cond_video")),
        ({**EVERY, "resnet_groups": 4}, ("cond", "labels", "frame_cond", "cond_video")),
    ],
)
def test_any_of_them_can_be_told_and_all_parameters_learn(config, names):
    unet = tiny_unet(**config)
    assert unet.condition_names == names
    assert unet.has_cond is bool(names)
    assert Unet3D(**unet.config).config == unet.config
    x, time = videos()
    output = unet(x, time, **conditions(names=names))
    assert output.shape == x.shape
    output.square().mean().backward()
    # also the null values, which no video needed: DistributedDataParallel stops without
    without = [n for n, p in unet.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_what_is_not_used_adds_no_parameter():
    plain = set(tiny_unet().state_dict())
    added = set(tiny_unet(**EVERY).state_dict()) - plain
    assert added == {
        "null_cond_emb",
        "label_emb.weight",
        "null_frame_cond",
        "frame_cond_proj.weight",
        "frame_cond_proj.bias",
        "null_cond_video",
    }


@torch.no_grad()
def test_each_of_them_matters():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    output = unet(x, time, **told)
    for name, value in told.items():
        changed = unet(x, time, **{**told, name: change(name, value)})
        assert (changed - output).flatten(1).abs().max(dim=1).values.min() > 1e-4, name


@torch.no_grad()
def test_a_videos_conditions_do_not_reach_other_videos():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    output = unet(x, time, **told)
    for name, value in told.items():
        changed = value.clone()
        changed[1] = change(name, value[1])
        rows = unet(x, time, **{**told, name: changed})
        assert torch.equal(rows[0], output[0]), name
        assert not torch.equal(rows[1], output[1]), name


@pytest.mark.parametrize("name", ["frame_cond", "cond_video"])
@torch.no_grad()
def test_a_frames_condition_is_that_of_its_frame(name):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    focus = {"focus_present_mask": torch.tensor([True, True])}
    before, seen = unet(x, time, **told, **focus), unet(x, time, **told)
    frames = told[name].clone()
    frames.select(1 if name == "frame_cond" else 2, 2).add_(1)
    after = unet(x, time, **{**told, name: frames}, **focus)
    assert torch.equal(after[:, :, [0, 1, 3]], before[:, :, [0, 1, 3]])
    assert not torch.equal(after[:, :, 2], before[:, :, 2])
    # without focus on the present the other frames hear of it
    assert not torch.equal(unet(x, time, **{**told, name: frames})[:, :, 0], seen[:, :, 0])


@torch.no_grad()
def test_a_field_without_frames_is_that_of_all_frames():
    unet = tiny_unet(cond_channels=2)
    x, time = videos()
    field = torch.randn(2, 2, 8, 8)
    each = field[:, :, None].expand(-1, -1, 4, -1, -1)
    assert torch.equal(unet(x, time, cond_video=field), unet(x, time, cond_video=each))
    guided = [
        unet.forward_with_cond_scale(x, time, cond_video=cond_video, cond_scale=3.0)
        for cond_video in (field, each)
    ]
    assert torch.equal(*guided)


def test_blocks_get_a_vector_per_frame_only_where_frames_have_one():
    for config, shape in (({"cond_dim": 5}, (2, 37)), (EVERY, (2, 4, 37))):
        unet = tiny_unet(**config)
        shapes = []
        unet.mid_block1.register_forward_pre_hook(lambda _, args, s=shapes: s.append(args[1].shape))
        unet(*videos(), **conditions(names=unet.condition_names))
        assert shapes == [shape]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@torch.no_grad()
def test_classes_are_any_integers(dtype):
    unet = tiny_unet(num_classes=4)
    x, time = videos()
    labels = torch.tensor([3, 0])
    assert torch.equal(unet(x, time, labels=labels.to(dtype)), unet(x, time, labels=labels))
    guided = unet.forward_with_cond_scale(x, time, labels=labels, cond_scale=3.0)
    again = unet.forward_with_cond_scale(x, time, labels=labels.to(dtype), cond_scale=3.0)
    assert torch.equal(again, guided)


@torch.no_grad()
def test_the_largest_byte_is_a_class_too():
    unet = tiny_unet(num_classes=256)
    x, time = videos()
    labels = torch.tensor([255, 255])
    told = unet(x, time, labels=labels.byte())
    assert torch.equal(told, unet(x, time, labels=labels))
    assert not torch.equal(told, unet(x, time, labels=-torch.ones_like(labels)))


# Their absence


@torch.no_grad()
def test_learned_values_stand_for_what_is_missing():
    unet = tiny_unet(**EVERY)
    unet.null_cond_video.normal_()
    x, time = videos()
    null = unet(x, time, null_cond_prob=1.0)
    dropped = unet(x, time, **conditions(), null_cond_prob=1)
    torch.testing.assert_close(dropped, null, rtol=1e-5, atol=1e-6)
    told = {
        "cond": unet.null_cond_emb.expand(2, -1),
        "labels": torch.tensor([-1, -1]),
        "frame_cond": unet.null_frame_cond.expand(2, 4, -1),
        "cond_video": unet.null_cond_video.expand(2, -1, 4, 8, 8),
    }
    torch.testing.assert_close(unet(x, time, **told), null, rtol=1e-5, atol=1e-6)
    assert not torch.equal(unet(x, time, **conditions()), null)


@torch.no_grad()
def test_a_video_loses_all_its_conditions_or_none():
    unet = tiny_unet(**EVERY, dim_mults=(1,))
    x, time = (t.expand(200, *t.shape[1:]) for t in videos(b=1, f=1, h=1, w=1))
    told = conditions(b=1, f=1, h=1, w=1)
    told = {name: value.expand(200, *value.shape[1:]) for name, value in told.items()}
    kept, null = unet(x, time, **told), unet(x, time, null_cond_prob=1.0)
    drawn = unet(x, time, **told, null_cond_prob=0.4)
    is_kept = (drawn == kept).flatten(1).all(dim=1)
    is_null = (drawn == null).flatten(1).all(dim=1)
    assert (is_kept ^ is_null).all()
    assert abs(is_null.float().mean() - 0.4) < 4 * (0.4 * 0.6 / 200) ** 0.5


@torch.no_grad()
def test_a_mask_says_which_videos_lose_theirs():
    unet = tiny_unet(**EVERY)
    unet.null_cond_video.normal_()
    (x, time), told = videos(b=3), conditions(b=3)
    mask = torch.tensor([True, False, True])
    kept, null = unet(x, time, **told), unet(x, time, null_cond_prob=1.0)
    some = unet(x, time, **told, drop_mask=mask)
    rows = mask.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(some, torch.where(rows, null, kept), rtol=1e-5, atol=1e-6)
    # in the place of a draw
    state = torch.get_rng_state()
    assert torch.equal(unet(x, time, **told, drop_mask=mask, null_cond_prob=0.5), some)
    assert torch.equal(torch.get_rng_state(), state)
    # guided: both halves of such a video are without conditions
    guided = unet.forward_with_cond_scale(x, time, **told, cond_scale=3.0, drop_mask=mask)
    expected = null + (some - null) * 3.0
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-4)
    assert not torch.isclose(kept, null, rtol=1e-3).all()


@torch.no_grad()
def test_without_conditions_a_mask_changes_nothing():
    unet = tiny_unet()
    x, time = videos()
    assert torch.equal(unet(x, time, drop_mask=torch.tensor([True, False])), unet(x, time))


@torch.no_grad()
def test_a_missing_caption_leaves_the_other_conditions():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    mask = torch.tensor([True, False])
    output = unet(x, time, **told, null_cond_mask=mask)
    null_first = torch.cat((unet.null_cond_emb, told["cond"][1:]))
    assert torch.equal(output, unet(x, time, **{**told, "cond": null_first}))
    assert not torch.equal(output[0], unet(x, time, null_cond_prob=1.0)[0])


def test_null_values_learn_from_what_is_dropped_only():
    unet = tiny_unet(**EVERY)
    nulls = (unet.null_cond_emb, unet.null_frame_cond, unet.null_cond_video)
    for prob, learns in ((0.0, False), (1.0, True)):
        unet.zero_grad()
        unet(*videos(), **conditions(), null_cond_prob=prob).sum().backward()
        grads = [null.grad for null in nulls] + [unet.label_emb.weight.grad[-1]]
        assert [bool((grad != 0).any()) for grad in grads] == [learns] * 4
        assert bool((unet.label_emb.weight.grad[:2] != 0).any()) is not learns


# How it runs


def test_the_host_never_waits_for_the_device():
    # there are no numbers on the meta device that it could wait for
    with torch.device("meta"):
        unet = tiny_unet(**EVERY)
        x, time = torch.randn(2, 3, 4, 8, 8), torch.zeros(2, dtype=torch.long)
        told = {**conditions(), "null_cond_mask": torch.zeros(2, dtype=torch.bool)}
    assert unet(x, time, **told, null_cond_prob=0.5).is_meta
    assert unet.forward_with_cond_scale(x, time, **told, cond_scale=2.0).is_meta


@torch.no_grad()
def test_conditions_come_in_any_number_type():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    expected = unet(x, time, **told)
    doubled = {n: v if n == "labels" else v.double() for n, v in told.items()}
    assert torch.equal(unet(x, time, **doubled), expected)
    guided = unet.forward_with_cond_scale(x, time, **doubled, cond_scale=2.0)
    assert guided.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(x, time, **told)
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_joined_channels_stay_last_in_memory():
    first, second = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 2, 4, 8, 8)
    joined = join_channels(first, second)
    assert torch.equal(joined, torch.cat((first, second), dim=1))
    assert joined.is_contiguous(memory_format=torch.channels_last_3d)


# Drawn masks


@pytest.mark.parametrize("prob", [0, 1, 0.0, 1.0])
def test_certainty_draws_no_random_number(prob):
    before = torch.get_rng_state()
    mask = prob_mask_like((3, 2), prob, "cpu")
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[bool(prob)] * 2] * 3
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("prob", [0.1, 0.8])
def test_the_share_is_the_probability(prob):
    torch.manual_seed(0)
    mask = prob_mask_like((20_000,), prob, None)
    assert mask.dtype == torch.bool
    assert mask.float().mean().item() == pytest.approx(
        prob, abs=4 * (prob * (1 - prob) / 2e4) ** 0.5
    )


def test_masks_are_made_on_their_device():
    for prob in (0, 0.5, 1):
        assert prob_mask_like((2,), prob, "meta").is_meta


def test_no_focus_needs_no_mask():
    x = torch.zeros(3, 1, 2, 4, 4)
    assert focus_mask(None, 0.0, x) is None
    assert focus_mask(None, 1.0, x).tolist() == [True] * 3
    given = torch.tensor([True, False, True])
    assert focus_mask(given, 0.0, x) is given


def test_a_given_mask_is_taken_and_no_other_drawn():
    x, given = torch.zeros(3, 1, 2, 4, 4), torch.tensor([True, False, True])
    before = torch.get_rng_state()
    assert mask_of_videos("drop_mask", given, 0.5, x) is given
    assert torch.equal(torch.get_rng_state(), before)
    assert mask_of_videos("drop_mask", None, 0.5, x).shape == (3,)
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_network_without_conditions_draws_none_to_drop():
    before = torch.get_rng_state()
    unet = tiny_unet()
    x, time = videos()
    before = torch.get_rng_state()
    unet(x, time, null_cond_prob=0.5)
    assert torch.equal(torch.get_rng_state(), before)


# Tokens of captions


@torch.no_grad()
@pytest.mark.parametrize("pool", [TextPooling(6, 64, tokens=3), TextPooling(6, 7, 2), mean_state])
def test_padding_is_not_looked_at(pool):
    states = torch.randn(2, 5, 6)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    pooled = pool(states, mask)
    torch.testing.assert_close(pooled[0], pool(states[:1])[0])
    torch.testing.assert_close(pooled[1], pool(states[1:, :2])[0])
    states[1, 2:] = 1e4
    torch.testing.assert_close(pool(states, mask)[1], pooled[1])


def test_queries_gather_different_things():
    pool = TextPooling(6, 64, tokens=3)
    tokens = pool(torch.randn(2, 5, 6))
    assert tokens.shape == (2, 3, 64)
    assert pool.heads == 2
    assert (tokens[:, 0] - tokens[:, 1]).abs().max() > 0.1
    tokens.square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in pool.parameters())


def test_frames_have_their_videos_tokens_and_images_their_own():
    videos, images = torch.randn(2, 3, 4), torch.randn(2, 2, 3, 4)
    each = TextTokens(videos, images).of_each_frame(5).view(2, 5, 3, 4)
    assert torch.equal(each[:, :3], videos[:, None].expand(-1, 3, -1, -1))
    assert torch.equal(each[:, 3:], images)
