"""The network against the reference's numbers, and what must hold for any weights."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from video_diffusion_pytorch import Unet3D, to_reference_state_dict
from video_diffusion_pytorch.model.attention import SpatialAttention, TemporalAttention
from video_diffusion_pytorch.model.blocks import Downsample, ResnetBlock
from video_diffusion_pytorch.model.embeddings import rotary_tables
from video_diffusion_pytorch.model.unet3d import Level

GOLDEN = Path(__file__).parents[1] / "golden"
RECORDED = sorted(GOLDEN.glob("unet_*.pt"))


def tiny_unet(seed=0, **config):
    torch.manual_seed(seed)
    return Unet3D(**{"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config)


def videos(b=2, c=3, f=4, h=8, w=8):
    return torch.randn(b, c, f, h, w), torch.randint(0, 1000, (b,))


def assert_same_numbers(actual, expected):
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * largest)


# The reference's numbers


@pytest.fixture(params=RECORDED, ids=lambda path: path.stem)
def recorded(request):
    record = torch.load(request.param, weights_only=True)
    groups = 8 if record["reference_version"].startswith("0.6") else None
    unet = Unet3D(**record["config"], resnet_groups=groups)
    unet.load_state_dict(record["state_dict"])
    return unet, record


def test_there_are_records_of_both_normalisations():
    versions = {path.stem.rpartition("_")[2] for path in RECORDED}
    assert versions == {"0.6.3", "0.7.0"}


@torch.no_grad()
def test_output_is_the_references(recorded):
    unet, record = recorded
    x, time, cond = record["x"], record["time"], record["cond"]
    assert_same_numbers(unet(x, time, cond=cond), record["output"])
    if cond is not None:
        assert_same_numbers(unet(x, time, cond=cond, null_cond_prob=1.0), record["output_null"])
        guided = unet.forward_with_cond_scale(x, time, cond=cond, cond_scale=3.0)
        assert_same_numbers(guided, record["output_cond_scale_3"])


def test_gradients_are_the_references(recorded):
    unet, record = recorded
    output = unet(record["x"], record["time"], cond=record["cond"])
    loss = F.l1_loss(output, record["target"])
    loss.backward()
    torch.testing.assert_close(loss.detach(), record["l1_loss"], rtol=1e-5, atol=0)
    norms = {n: None if p.grad is None else p.grad.norm() for n, p in unet.named_parameters()}
    norms = {n: v for n, v in to_reference_state_dict(norms).items() if v is not None}
    expected = record["grads"]
    assert norms.keys() == expected.keys()
    # a gradient that is zero in exact arithmetic is rounding error of the larger ones
    rounding = 1e-6 * max(expected.values()).item()
    for name, norm in norms.items():
        torch.testing.assert_close(norm, expected[name], rtol=1e-5, atol=rounding, msg=name)


# Shapes


@pytest.mark.parametrize("frames", [1, 2, 9, 35])
def test_any_number_of_frames(frames):
    x, time = videos(b=1, f=frames)
    assert tiny_unet()(x, time).shape == x.shape


@pytest.mark.parametrize(
    ("config", "channels_out"),
    [
        ({}, 3),
        ({"out_dim": 5}, 5),
        ({"channels": 1}, 1),
        ({"init_dim": 12}, 3),
        ({"init_dim": 4, "use_sparse_linear_attn": False}, 3),
        ({"dim_mults": (3,)}, 3),
        ({"dim_mults": [1, 1, 2]}, 3),
        ({"init_kernel_size": 1}, 3),
        ({"resnet_groups": 4}, 3),
    ],
)
def test_every_configuration_runs_and_all_its_parameters_learn(config, channels_out):
    unet = tiny_unet(**config)
    x, time = videos(c=unet.channels, h=8, w=12)
    output = unet(x, time)
    assert output.shape == (2, channels_out, 4, 8, 12)
    output.square().mean().backward()
    without = [n for n, p in unet.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_all_parameters_have_a_gradient_with_a_condition_that_is_never_dropped():
    # DistributedDataParallel stops at a parameter without one
    unet = tiny_unet(cond_dim=5)
    unet(*videos(), cond=torch.randn(2, 5)).square().mean().backward()
    without = [n for n, p in unet.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert (unet.null_cond_emb.grad == 0).all()


def test_config_holds_the_arguments():
    given = {"dim": 8, "cond_dim": 3, "dim_mults": (1, 2), "attn_heads": 2, "init_dim": 4}
    config = Unet3D(**given).config
    assert given.items() <= config.items()
    assert Unet3D(**config).config == config


def test_numbers_of_numpy_do_not_reach_the_config():
    numbers = {"dim": np.int64(8), "attn_heads": np.int32(2), "use_bert_text_cond": np.bool_(False)}
    for mults in ([np.int64(1), np.int64(2)], np.array([1, 2]), [1, 2]):
        unet = tiny_unet(**numbers, dim_mults=mults, block_type=np.str_("resnet"))
        stored = io.BytesIO()
        torch.save({"config": unet.config, "weights": unet.state_dict()}, stored)
        stored.seek(0)
        state = torch.load(stored, weights_only=True)
        assert state["config"] == tiny_unet().config
        Unet3D(**state["config"]).load_state_dict(state["weights"])


def test_bert_conditions_have_its_width():
    assert tiny_unet(use_bert_text_cond=True).null_cond_emb.shape == (1, 768)
    assert tiny_unet().null_cond_emb is None


# Videos do not see each other, and frames only where they may


@torch.no_grad()
def test_a_video_does_not_depend_on_its_batch():
    unet = tiny_unet(cond_dim=3)
    x, time = videos(b=3)
    cond = torch.randn(3, 3)
    together = unet(x, time, cond)
    rows = zip(x.split(1), time.split(1), cond.split(1), strict=True)
    alone = torch.cat([unet(*row) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_time_and_condition_and_every_frame_matter():
    unet = tiny_unet(cond_dim=3)
    x, time = videos(b=1)
    cond = torch.randn(1, 3)
    output = unet(x, time, cond)
    later = x.clone()
    later[:, :, -1] += 1
    for changed in [(x, time + 100, cond), (x, time, cond + 1), (later, time, cond)]:
        assert (unet(*changed) - output)[:, :, 0].abs().max() > 1e-4


@pytest.mark.parametrize("how", ["mask", "probability"])
@torch.no_grad()
def test_focus_on_the_present_is_blind_to_other_frames(how):
    unet = tiny_unet()
    x, time = videos()
    focus = {
        "mask": {"focus_present_mask": torch.tensor([True, True])},
        "probability": {"prob_focus_present": 1.0},
    }[how]
    before = unet(x, time, **focus)
    x[:, :, 2] += torch.randn_like(x[:, :, 2])
    after = unet(x, time, **focus)
    assert torch.equal(after[:, :, [0, 1, 3]], before[:, :, [0, 1, 3]])
    assert not torch.equal(after[:, :, 2], before[:, :, 2])


def test_focus_on_the_present_has_no_gradient_from_other_frames():
    x, time = videos()
    x.requires_grad_()
    output = tiny_unet()(x, time, focus_present_mask=torch.tensor([True, True]))
    output[:, :, 0].square().sum().backward()
    assert (x.grad[:, :, 1:] == 0).all()
    assert (x.grad[:, :, 0] != 0).any()


@torch.no_grad()
def test_a_mixed_mask_holds_for_its_videos_only():
    unet = tiny_unet()
    x, time = videos()
    free, focused = unet(x, time), unet(x, time, prob_focus_present=1.0)
    mixed = unet(x, time, focus_present_mask=torch.tensor([False, True]))
    assert torch.equal(mixed[0], free[0])
    assert torch.equal(mixed[1], focused[1])
    assert not torch.equal(free[1], focused[1])


@torch.no_grad()
def test_the_probability_of_focus_is_that_of_each_video():
    unet = tiny_unet(dim_mults=(1,))
    x, time = (t.expand(600, *t.shape[1:]) for t in videos(b=1, f=2, h=1, w=1))
    drawn, focused = unet(x, time, prob_focus_present=0.3), unet(x, time, prob_focus_present=1.0)
    share = (drawn == focused).flatten(1).all(dim=1).float().mean()
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / 600) ** 0.5


# The condition


@torch.no_grad()
def test_null_cond_prob_is_the_frequency_of_the_null_embedding():
    unet = tiny_unet(cond_dim=3, dim_mults=(1,))
    x, time = (t.expand(600, *t.shape[1:]) for t in videos(b=1, f=1, h=1, w=1))
    cond = torch.randn(1, 3).expand(600, 3)
    null = unet(x, time, cond, null_cond_prob=1.0)
    drawn = unet(x, time, cond, null_cond_prob=0.25)
    is_null = (drawn == null).flatten(1).all(dim=1)
    assert abs(is_null.float().mean() - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5
    assert torch.equal(drawn[~is_null], unet(x, time, cond)[~is_null])


@torch.no_grad()
def test_without_conditions_the_null_embedding_stands_for_them():
    unet = tiny_unet(cond_dim=3)
    x, time = videos()
    null = unet(x, time, null_cond_prob=1.0)
    assert torch.equal(null, unet(x, time, torch.randn(2, 3), null_cond_prob=1))
    assert torch.equal(null, unet(x, time, unet.null_cond_emb.expand(2, 3)))


@torch.no_grad()
def test_guidance_is_the_combination_of_two_forwards_in_one():
    unet = tiny_unet(cond_dim=3)
    x, time = videos()
    cond = torch.randn(2, 3)
    mask = torch.tensor([True, False])
    conditional = unet(x, time, cond, focus_present_mask=mask)
    null = unet(x, time, null_cond_prob=1.0, focus_present_mask=mask)
    batches = []
    unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    for scale in (0.0, 0.5, 1.0, 2.0, 7.5):
        guided = unet.forward_with_cond_scale(
            x, time, cond=cond, cond_scale=scale, focus_present_mask=mask
        )
        expected = null + (conditional - null) * scale
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5 * expected.abs().max())
    assert batches == [2, 4, 2, 4, 4]
    torch.testing.assert_close(
        unet.forward_with_cond_scale(x, time, cond, focus_present_mask=mask),
        null + (conditional - null) * 2,
        rtol=0,
        atol=1e-5 * null.abs().max().item(),
    )


@torch.no_grad()
def test_both_halves_of_guidance_draw_the_same_focus():
    unet = tiny_unet(cond_dim=3)
    x, time = videos(b=8)
    x, time, cond = x[:1].expand_as(x), time[:1].expand(8), torch.randn(1, 3).expand(8, 3)

    def guided(**focus):
        return unet.forward_with_cond_scale(x, time, cond, cond_scale=3.0, **focus)

    drawn = guided(prob_focus_present=0.5)
    free, focused = guided()[0], guided(prob_focus_present=1.0)[0]
    for row in drawn:
        assert torch.equal(row, free) or torch.equal(row, focused)


@torch.no_grad()
def test_a_network_without_condition_ignores_the_scale_of_guidance():
    unet = tiny_unet()
    x, time = videos()
    assert torch.equal(unet.forward_with_cond_scale(x, time, cond_scale=5.0), unet(x, time))


@torch.no_grad()
def test_guidance_reaches_a_subclass_with_further_arguments():
    class Upscaler(Unet3D):
        def forward(self, x, time, cond=None, *, low_resolution, gain=1.0, **kwargs):
            return super().forward(x + gain * low_resolution, time, cond, **kwargs)

    torch.manual_seed(0)
    unet = Upscaler(8, cond_dim=3, dim_mults=(1, 2), attn_heads=2)
    x, time = videos()
    call = {"cond": torch.randn(2, 3), "low_resolution": torch.randn_like(x), "gain": 0.5}
    guided = unet.forward_with_cond_scale(x, time, cond_scale=3.0, **call)
    conditional, null = unet(x, time, **call), unet(x, time, null_cond_prob=1.0, **call)
    expected = null + (conditional - null) * 3
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5 * expected.abs().max())


def test_the_null_embedding_learns_from_dropped_conditions_only():
    unet = tiny_unet(cond_dim=3)
    x, time = videos()
    cond = torch.randn(2, 3, requires_grad=True)
    unet(x, time, cond, null_cond_prob=1.0).sum().backward()
    assert (cond.grad == 0).all()
    assert (unet.null_cond_emb.grad != 0).any()


def test_subclasses_may_replace_layers():
    unet = tiny_unet()
    unet.init_conv = nn.Conv3d(3, 8, (1, 7, 7), padding=(0, 3, 3))
    x, time = videos()
    assert unet(x, time).shape == x.shape


# One resolution


def make_level(stages, resample=None):
    """A level of residual blocks, with attention after those where `stages` says so."""
    layers = []
    for i, (spatial, temporal) in enumerate(stages):
        block = ResnetBlock(8 if i else 6, 8, time_emb_dim=5)
        over_pixels = SpatialAttention(8, 2, linear=True) if spatial else None
        layers.append((block, over_pixels, TemporalAttention(8, 2, 4) if temporal else None))
    return Level(layers, resample)


def level_inputs():
    temporal = (torch.randn(2, 4, 4), rotary_tables(torch.tensor([1.0, 0.1]), 4))
    return torch.randn(2, 6, 4, 4, 4), torch.randn(2, 5), None, temporal


@pytest.mark.parametrize(
    ("stages", "names"),
    [
        ([(True, True)], ["block1", "spatial_attn", "temporal_attn"]),
        ([(False, False), (False, True)], ["block1", "block2", "temporal_attn"]),
        (
            [(True, True), (True, True)],
            [
                "block1",
                "spatial_attn1",
                "temporal_attn1",
                "block2",
                "spatial_attn",
                "temporal_attn",
            ],
        ),
    ],
)
@torch.no_grad()
def test_a_level_is_its_layers_one_after_another(stages, names):
    level = make_level(stages, Downsample(8))
    assert [name for name, _ in level.named_children()] == [*names, "resample"]
    x, emb, text, temporal = level_inputs()
    features, resampled = level(x, emb, text, temporal)
    for name in names:
        arguments = (emb,) if "block" in name else temporal if "temporal" in name else ()
        x = getattr(level, name)(x, *arguments)
    assert torch.equal(features, x)
    assert torch.equal(resampled, level.resample(x))
    assert resampled.shape == (2, 8, 4, 2, 2)


@torch.no_grad()
def test_a_layer_of_a_level_can_be_replaced_by_its_name():
    level, inputs = make_level([(False, True)]), level_inputs()
    before, _ = level(*inputs)
    level.temporal_attn = TemporalAttention(8, 2, 4)
    assert not torch.equal(level(*inputs)[0], before)
    assert torch.equal(copy.deepcopy(level)(*inputs)[0], level(*inputs)[0])
