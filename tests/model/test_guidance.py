"""Two passes in one: with the conditions, and without them or with those to keep away from."""

import re

import pytest
import torch

from video_diffusion_pytorch import Unet3D

EVERY = {"cond_dim": 5, "num_classes": 4, "frame_cond_dim": 6, "cond_channels": 2}


def tiny_unet(**config):
    torch.manual_seed(0)
    unet = Unet3D(8, **{"dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config)
    if unet.null_cond_video is not None:
        torch.nn.init.normal_(unet.null_cond_video)
    return unet


def videos(b=2, c=3, f=4, h=8, w=8):
    return torch.randn(b, c, f, h, w), torch.randint(0, 1000, (b,))


def conditions(b=2, f=4, h=8, w=8):
    return {
        "cond": torch.randn(b, 5),
        "labels": torch.randint(0, 4, (b,)),
        "frame_cond": torch.randn(b, f, 6),
        "cond_video": torch.randn(b, 2, f, h, w),
    }


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("mask", [None, torch.tensor([True, False])])
@torch.no_grad()
def test_guidance_is_the_combination_of_two_forwards_in_one(mask):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = {**conditions(), "null_cond_mask": mask}
    conditional, null = unet(x, time, **told), unet(x, time, null_cond_prob=1.0)
    batches = []
    unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    for scale in (0.0, 1.0, 4.0):
        guided = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale)
        expected = null + (conditional - null) * scale
        torch.testing.assert_close(guided, expected, rtol=0, atol=1e-5 * expected.abs().max())
    # with none of the two halves in vain
    assert batches == [2, 2, 4]


@torch.no_grad()
def test_guidance_asks_a_subclass_for_no_more_than_it_knows():
    class Older(Unet3D):
        def forward(self, x, time, cond=None, null_cond_prob=0.0, focus_present_mask=None):
            return super().forward(x, time, cond, null_cond_prob, focus_present_mask)

    torch.manual_seed(0)
    unet = Older(8, cond_dim=5, dim_mults=(1, 2), attn_heads=2)
    x, time = videos()
    cond = torch.randn(2, 5)
    for scale in (1.0, 2.0, {"cond": 2.0}):
        guided = unet.forward_with_cond_scale(x, time, cond, cond_scale=scale)
        assert guided.shape == x.shape


# A scale for each condition


def passes_of(unet, x, time, told, kept, negative=None):
    """The network's output with some conditions, and null or negative values for the others."""
    null = {"labels": torch.tensor([-1, -1])}
    if not unet.takes_text_states and unet.null_cond_emb is not None:
        null["cond"] = unet.null_cond_emb.expand(2, -1)
    if unet.null_frame_cond is not None:
        null["frame_cond"] = unet.null_frame_cond.expand(2, 4, -1)
        null["cond_video"] = unet.null_cond_video.expand(2, -1, 4, 8, 8)
    below = null | (negative or {})
    mixed = {name: told[name] if name in kept else below.get(name) for name in told}
    if mixed.get("cond") is None and "cond" in told:
        mixed |= {"cond": told["cond"], "null_cond_mask": torch.tensor([True, True])}
    return unet(x, time, **mixed)


def expected_of(unet, x, time, told, scale, negative=None):
    """Eq. 3 of Brooks et al. 2023, pass by pass."""
    order = [*(name for name in told if name not in scale), *scale]
    lower = passes_of(unet, x, time, told, (), negative)
    total = lower
    for count, name in enumerate(order, start=1):
        upper = passes_of(unet, x, time, told, order[:count], negative)
        total = total + scale.get(name, 1.0) * (upper - lower)
        lower = upper
    return total


def rows_of_calls(unet):
    rows = []
    unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    return rows


@pytest.mark.parametrize(
    ("scale", "number"),
    [
        ({"cond": 3.0, "labels": 1.5, "frame_cond": 0.5, "cond_video": 2.0}, 5),
        ({"cond_video": 2.0, "labels": 1.5, "frame_cond": 0.5, "cond": 3.0}, 5),
        # those that are not named stay in every pass
        ({"cond": 3.0, "labels": 1.5}, 3),
        ({"labels": 2.0}, 2),
        # a scale of 1 that comes first, one of 0 that comes last, and equal neighbours
        ({"cond": 1.0, "labels": 1.5, "frame_cond": 4.0, "cond_video": 4.0}, 3),
        ({"cond": 3.0, "labels": 1.5, "frame_cond": 0.0, "cond_video": 0.0}, 3),
        ({"labels": 3.0, "cond": 0.0}, 2),
        ({"labels": 0.0}, 1),
        ({"cond": 1.0, "labels": 1.0}, 1),
        # in between they are passes like others
        ({"cond": 3.0, "labels": 1.0, "frame_cond": 2.0, "cond_video": 0.0}, 4),
    ],
)
@torch.no_grad()
def test_scales_by_condition_add_each_to_those_before_it(scale, number):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = conditions()
    expected = expected_of(unet, x, time, told, scale)
    rows = rows_of_calls(unet)
    assert_close(unet.forward_with_cond_scale(x, time, **told, cond_scale=scale), expected)
    assert rows == [2 * number]


@torch.no_grad()
def test_the_order_of_the_scales_counts():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told, scale = conditions(), {"cond": 4.0, "frame_cond": 0.5}
    guided = [
        unet.forward_with_cond_scale(x, time, **told, cond_scale=dict(order))
        for order in (scale.items(), reversed(scale.items()))
    ]
    assert not torch.allclose(*guided, rtol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@torch.no_grad()
def test_equal_scales_are_one_number(scale):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told = {**conditions(), "null_cond_mask": torch.tensor([True, False])}
    expected = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale)
    each = dict.fromkeys(conditions(), scale)
    assert torch.equal(unet.forward_with_cond_scale(x, time, **told, cond_scale=each), expected)


@pytest.mark.parametrize("negative", [None, {"labels": torch.tensor([1, 1])}])
@pytest.mark.parametrize("scale", [{"cond": 3.0, "labels": 1.5}, {"labels": 1.5, "cond": 3.0}])
@torch.no_grad()
def test_scales_of_states_of_text(scale, negative):
    unet = tiny_unet(cond_dim=5, num_classes=4, num_text_tokens=2)
    x, time = videos()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    told = {"cond": torch.randn(2, 3, 5), "labels": torch.tensor([0, 3]), "cond_mask": mask}
    # the mask belongs to the states
    order = list(scale)
    values = [
        passes_of(unet, x, time, told, ("cond_mask", *order[:count]), negative)
        for count in range(3)
    ]
    expected = values[0]
    for name, lower, upper in zip(order, values[:-1], values[1:], strict=True):
        expected = expected + scale[name] * (upper - lower)
    guided = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale, negative=negative)
    assert_close(guided, expected)


@torch.no_grad()
def test_negative_conditions_take_the_places_of_null_values_in_every_pass():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told, other = conditions(), conditions()
    negative = {name: other[name] for name in ("cond", "cond_video")}
    scale = {"cond": 3.0, "labels": 1.5, "cond_video": 2.0}
    expected = expected_of(unet, x, time, told, scale, negative)
    guided = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale, negative=negative)
    assert_close(guided, expected)


@pytest.mark.parametrize("last", [0.0, 2.0])
@torch.no_grad()
def test_scales_by_condition_are_rescaled_to_all_conditions(last):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told, scale = conditions(), {"labels": 5.0, "cond": last}
    guided = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale)
    rescaled = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale, guidance_rescale=1.0)
    conditional = unet(x, time, **told)
    for row in range(2):
        assert_close(rescaled[row], guided[row] * conditional[row].std() / guided[row].std())


@torch.no_grad()
def test_further_arguments_and_a_field_for_all_frames_are_repeated():
    unet = tiny_unet(cond_dim=5, cond_channels=2)
    x, time = videos()
    field = torch.randn(2, 2, 8, 8)
    told = {"cond": torch.randn(2, 5), "cond_video": field}
    scale, only = {"cond": 3.0, "cond_video": 1.5}, torch.tensor([True, False])
    guided = [
        unet.forward_with_cond_scale(
            x, time, **{**told, "cond_video": one}, cond_scale=scale, focus_present_mask=only
        )
        for one in (field, field[:, :, None].expand(-1, -1, 4, -1, -1))
    ]
    assert_close(guided[0], guided[1])
    free = unet.forward_with_cond_scale(x, time, **told, cond_scale=scale)
    assert not torch.allclose(guided[0][0], free[0])
    torch.testing.assert_close(guided[0][1], free[1])


@pytest.mark.parametrize(
    "scale", [{}, {"labels": 2.0}, {"cond": "3"}, {"cond": float("nan")}, {"null_cond_mask": 2.0}]
)
def test_scales_that_do_not_fit(scale):
    unet = tiny_unet(cond_dim=5)
    message = (
        "Unet3D: cond_scale must be a number, or a mapping to finite numbers from conditions that "
        f"are given, cond, got {scale}; correct it, or pass one number for all conditions"
    )
    cond, mask = torch.randn(2, 5), torch.tensor([True, False])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unet.forward_with_cond_scale(*videos(), cond, null_cond_mask=mask, cond_scale=scale)


# Negative conditions


@pytest.mark.parametrize("names", [("cond",), ("labels", "frame_cond"), tuple(conditions())])
@torch.no_grad()
def test_negative_conditions_take_the_places_of_null_values(names):
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told, other = conditions(), conditions()
    negative = {name: other[name] for name in names}
    null = {
        "cond": unet.null_cond_emb.expand(2, -1),
        "labels": torch.tensor([-1, -1]),
        "frame_cond": unet.null_frame_cond.expand(2, 4, -1),
        "cond_video": unet.null_cond_video.expand(2, -1, 4, 8, 8),
    }
    conditional, below = unet(x, time, **told), unet(x, time, **{**null, **negative})
    batches = []
    unet.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    for scale in (0.0, 1.0, 4.0):
        guided = unet.forward_with_cond_scale(
            x, time, **told, cond_scale=scale, negative={"null_cond_mask": None, **negative}
        )
        assert_close(guided, below + (conditional - below) * scale)
    assert batches == [2, 2, 4]


@torch.no_grad()
def test_captions_may_be_missing_on_either_side():
    unet = tiny_unet(**EVERY)
    x, time = videos()
    told, bad = conditions(), torch.randn(2, 5)
    first, second = torch.tensor([True, False]), torch.tensor([False, True])
    null = {"null_cond_prob": 1.0}
    for mask, without in ((first, second), (first, None), (None, second)):
        guided = unet.forward_with_cond_scale(
            x,
            time,
            **told,
            cond_scale=3.0,
            null_cond_mask=mask,
            negative={"cond": bad, "null_cond_mask": without},
        )
        conditional = unet(x, time, **told, null_cond_mask=mask)
        vectors = bad if without is None else torch.where(without[:, None], unet.null_cond_emb, bad)
        below = unet.forward_with_cond_scale(
            x, time, **told, cond_scale=0.0, negative={"cond": vectors}
        )
        assert_close(guided, below + (conditional - below) * 3)
        assert not torch.equal(below, unet(x, time, **null))


@torch.no_grad()
def test_fields_on_either_side_may_be_for_all_frames_alike():
    unet = tiny_unet(cond_channels=2)
    x, time = videos()
    here, there = torch.randn(2, 2, 8, 8), torch.randn(2, 2, 8, 8)
    each = [field[:, :, None].expand(-1, -1, 4, -1, -1) for field in (here, there)]
    expected = unet.forward_with_cond_scale(
        x, time, cond_video=each[0], negative={"cond_video": each[1]}
    )
    for pair in ((here, there), (here, each[1]), (each[0], there)):
        guided = unet.forward_with_cond_scale(
            x, time, cond_video=pair[0], negative={"cond_video": pair[1]}
        )
        assert torch.equal(guided, expected)


@pytest.mark.parametrize(
    ("negative", "message"),
    [
        (
            {"labels": torch.tensor([0, 1]), "null_cond_mask": torch.tensor([True, False])},
            "Unet3D: negative must hold conditions that the videos have as well, cond, got labels, "
            "null_cond_mask; give the videos theirs, or leave these out",
        ),
        (
            {"con": torch.randn(2, 5)},
            "Unet3D: negative must hold conditions that the videos have as well, cond, got con; "
            "give the videos theirs, or leave these out",
        ),
        (
            {"cond": torch.randn(1, 5)},
            "Unet3D: cond must have the shape (2, 5), got (1, 5); check the encoder's width "
            "against the network's cond_dim",
        ),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_negative_conditions_that_do_not_fit(negative, message, scale):
    unet = tiny_unet(cond_dim=5)
    x, time = videos()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unet.forward_with_cond_scale(
            x, time, torch.randn(2, 5), cond_scale=scale, negative=negative
        )


# Rescaled guidance


@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("scale", [0.0, 5.0])
@torch.no_grad()
def test_rescaling_gives_back_the_deviation_of_the_conditional_video(share, scale):
    unet = tiny_unet(cond_dim=5)
    x, time = videos()
    x[1] *= 3
    cond = 4 * torch.randn(2, 5)
    conditional = unet(x, time, cond)
    guided = unet.forward_with_cond_scale(x, time, cond, cond_scale=scale)
    rescaled = unet.forward_with_cond_scale(x, time, cond, cond_scale=scale, guidance_rescale=share)
    for row in range(2):
        factor = share * conditional[row].std() / guided[row].std() + (1 - share)
        assert_close(rescaled[row], guided[row] * factor)
        if share == 1:
            assert rescaled[row].std().item() == pytest.approx(conditional[row].std().item(), 1e-4)
    assert not torch.equal(rescaled, guided)


@torch.no_grad()
def test_without_guidance_there_is_nothing_to_rescale():
    unet = tiny_unet(cond_dim=5)
    x, time = videos()
    cond = torch.randn(2, 5)
    plain = unet(x, time, cond)
    for call in ({"guidance_rescale": 0.7}, {"negative": {"cond": torch.randn(2, 5)}}):
        assert torch.equal(
            unet.forward_with_cond_scale(x, time, cond, cond_scale=1.0, **call), plain
        )


@torch.no_grad()
def test_a_network_that_says_nothing_is_rescaled_to_nothing():
    unet = tiny_unet(cond_dim=5)
    for parameter in unet.final_conv.parameters():
        parameter.zero_()
    x, time = videos()
    output = unet.forward_with_cond_scale(x, time, torch.randn(2, 5), guidance_rescale=1.0)
    assert torch.equal(output, torch.zeros_like(x))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none(share):
    message = (
        f"Unet3D: guidance_rescale must be from 0 to 1, got {share}; 0 leaves guidance as it is, "
        "0.7 is usual"
    )
    unet = tiny_unet()
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        unet.forward_with_cond_scale(*videos(), cond_scale=1.0, guidance_rescale=share)


# How it runs


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("scale", [3.0, {"cond": 3.0, "labels": 1.5}])
@torch.no_grad()
def test_all_of_it_compiles_as_one_graph(scale):
    unet = tiny_unet(**EVERY, dim_mults=(1,), blocks_per_level=1)
    x, time = videos()
    # of the others null values are taken
    negative = {name: conditions()[name] for name in ("cond", "labels")}
    call = {**conditions(), "negative": negative, "guidance_rescale": 0.7, "cond_scale": scale}
    expected = unet.forward_with_cond_scale(x, time, **call)
    compiled = torch.compile(unet.forward_with_cond_scale, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, time, **call), expected, rtol=1e-4, atol=1e-5)


def test_the_host_never_waits_for_the_device():
    # there are no numbers on the meta device that it could wait for
    with torch.device("meta"):
        unet = Unet3D(8, dim_mults=(1, 2), attn_heads=2, **EVERY)
        x, time = torch.randn(2, 3, 4, 8, 8), torch.zeros(2, dtype=torch.long)
        told, negative = conditions(), conditions()
    for scale in (2.0, {"cond": 2.0, "labels": 0.5}):
        output = unet.forward_with_cond_scale(
            x, time, **told, negative=negative, guidance_rescale=0.5, cond_scale=scale
        )
        assert output.is_meta
