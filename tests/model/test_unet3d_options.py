"""The network's options beyond the reference: tokens of captions, shifts, the paper's layers."""

import re

import pytest
import torch

from video_diffusion_pytorch import Unet3D, to_reference_state_dict
from video_diffusion_pytorch.model.embeddings import time_of_log_snr

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 4}
TEXT = {"cond_dim": 6, "num_text_tokens": 3}
PAPER = {
    "attn_heads": None,
    "spatial_attn_dim_head": 4,
    "full_attn_levels": (1,),
    "temporal_attn_levels": (1,),
    "use_sparse_linear_attn": False,
    "blocks_per_level": 3,
    "attn_after_each_block": True,
    "emb_dim": 24,
    "emb_layers": 4,
    "time_input": "log_snr",
}
OPTIONS = {
    "tokens": TEXT,
    "tokens, attention pooling": {**TEXT, "text_pooling": "attention"},
    "attention pooling": {"cond_dim": 6, "text_pooling": "attention"},
    "tokens and others": {**TEXT, "num_classes": 3, "frame_cond_dim": 2, "cond_channels": 1},
    "shift": {"token_shift": "both"},
    "paper": PAPER,
    "paper with tokens": {**PAPER, **TEXT, "dropout": 0.1},
    "one block": {"blocks_per_level": 1},
    "no attention over frames": {"temporal_attn_levels": (), "token_shift": "space"},
    "growing heads": {"attn_heads": None, "spatial_attn_dim_head": 8},
    "growing heads in few layers": {
        "attn_heads": None,
        "init_dim": 24,
        "dim_mults": (4, 1),
        "temporal_attn_levels": (),
    },
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
X, TIME = torch.randn(2, 3, 4, 8, 12), torch.tensor([3.0, 60.0])


def make(options, seed=0):
    torch.manual_seed(seed)
    unet = Unet3D(**{**SMALL, **options})
    with torch.no_grad():
        for weight in unet.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return unet.eval()


def told(unet, frames=4, seed=1):
    """A condition of each kind that the network takes."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    states = {"cond": draw(2, 5, 6), "cond_mask": torch.arange(5) < torch.tensor([[5], [2]])}
    of_kind = {
        "cond": states,
        "labels": {"labels": torch.tensor([0, 2])},
        "frame_cond": {"frame_cond": draw(2, frames, 2)},
        "cond_video": {"cond_video": draw(2, 1, frames, 8, 12)},
    }
    return {k: v for name in unet.condition_names for k, v in of_kind[name].items()}


@every_option
def test_every_weight_has_a_part_in_the_output(options):
    unet = make(options)
    drop = {"drop_mask": torch.tensor([True, False])} if unet.has_cond else {}
    output = unet(X, TIME, **told(unet), **drop)
    assert output.shape == X.shape
    output.square().mean().backward()
    without = [n for n, w in unet.named_parameters() if w.grad is None or not w.grad.any()]
    # the frequencies are not trained
    assert without == ["rotary_emb.freqs"] or without == []


@every_option
@torch.no_grad()
def test_tensors_tell_the_network(options):
    unet = make(options)
    # what has no tensors must be said
    hidden = {name: options[name] for name in ("token_shift", "dropout") if name in options}
    again = Unet3D.from_state_dict(unet.state_dict(), **hidden).eval()
    assert torch.equal(again(X, TIME, **told(unet)), unet(X, TIME, **told(unet)))
    kept = Unet3D.from_state_dict(to_reference_state_dict(unet.state_dict()), **hidden).eval()
    assert torch.equal(kept(X, TIME, **told(unet)), unet(X, TIME, **told(unet)))


# two networks that hold what all the others have
@pytest.mark.parametrize(
    "options",
    [
        {**PAPER, **TEXT, "dropout": 0.1, "blocks_per_level": 2},
        {
            **OPTIONS["tokens and others"],
            "text_pooling": "attention",
            "token_shift": "both",
            "dim_mults": (1,),
            "blocks_per_level": 1,
        },
    ],
    ids=["paper with tokens", "tokens and others"],
)
@torch.no_grad()
def test_one_graph_gives_the_same(options):
    # graphs of other networks count towards a limit of torch's
    torch._dynamo.reset()
    unet = make(options)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    expected = unet(X, TIME, **told(unet))
    torch.testing.assert_close(compiled(X, TIME, **told(unet)), expected, rtol=1e-4, atol=1e-5)


@every_option
def test_features_can_be_computed_again(options):
    grads = []
    for again in (False, True):
        unet = make(options)
        unet.gradient_checkpointing = again
        unet(X, TIME, **told(unet)).square().mean().backward()
        grads.append([w.grad for w in unet.parameters() if w.grad is not None])
    torch.testing.assert_close(grads[0], grads[1])


@every_option
@torch.no_grad()
def test_focused_frames_and_images_are_as_if_alone(options):
    unet = make(options)
    conditions = told(unet)
    single = {n: v for n, v in conditions.items() if n in ("cond", "cond_mask", "labels")}

    def alone(i):
        own = {"frame_cond": (slice(None), [i]), "cond_video": (slice(None), slice(None), [i])}
        more = {n: conditions[n][at] for n, at in own.items() if n in conditions}
        return unet(X[:, :, i : i + 1], TIME, **single, **more)

    frames = torch.cat([alone(i) for i in range(4)], dim=2)
    mask = torch.tensor([True, True])
    focused = unet(X, TIME, **conditions, focus_present_mask=mask)
    torch.testing.assert_close(focused, frames, rtol=1e-4, atol=1e-5)

    # the last frame as an image that is told the same
    of_video = {n: v[:, :3] for n, v in conditions.items() if n == "frame_cond"}
    of_video |= {n: v[:, :, :3] for n, v in conditions.items() if n == "cond_video"}
    of_image = {n: v[:, None] for n, v in single.items()}
    of_image |= {n: v[:, 3:] for n, v in conditions.items() if n == "frame_cond"}
    of_image |= {n: v[:, :, 3:] for n, v in conditions.items() if n == "cond_video"}
    both = unet(X, TIME, **{**conditions, **of_video}, image_frames=1, image_conditions=of_image)
    torch.testing.assert_close(both[:, :, 3:], frames[:, :, 3:], rtol=1e-4, atol=1e-5)
    video = unet(X[:, :, :3], TIME, **{**conditions, **of_video})
    torch.testing.assert_close(both[:, :, :3], video, rtol=1e-4, atol=1e-5)


# captions


TEXT_OPTIONS = [name for name in OPTIONS if "tokens" in name or "pooling" in name]
every_text = pytest.mark.parametrize("name", TEXT_OPTIONS)


@every_text
@torch.no_grad()
def test_padding_changes_nothing(name):
    unet = make(OPTIONS[name])
    conditions = told(unet)
    expected = unet(X, TIME, **conditions)
    padding = torch.tensor([50.0, float("nan"), float("inf")]).view(1, 3, 1).expand(2, 3, 6)
    conditions["cond"] = torch.cat((conditions["cond"], padding), dim=1)
    conditions["cond_mask"] = torch.cat((conditions["cond_mask"], torch.zeros(2, 3) > 0), dim=1)
    torch.testing.assert_close(unet(X, TIME, **conditions), expected, rtol=1e-4, atol=1e-5)


@every_text
@torch.no_grad()
def test_captions_can_be_missing_in_four_ways(name):
    unet = make(OPTIONS[name])
    conditions = told(unet)
    others = {n: v for n, v in conditions.items() if n not in ("cond", "cond_mask")}
    missing = unet(X, TIME, **conditions, null_cond_mask=torch.tensor([True, True]))
    assert (missing - unet(X, TIME, **conditions)).abs().max() > 1e-3
    unseen = {**conditions, "cond_mask": torch.zeros(2, 5, dtype=torch.bool)}
    torch.testing.assert_close(unet(X, TIME, **unseen), missing)
    if not others:
        dropped = torch.tensor([True, True])
        torch.testing.assert_close(unet(X, TIME, **conditions, drop_mask=dropped), missing)
        torch.testing.assert_close(unet(X, TIME, null_cond_prob=1.0), missing)


@every_text
@torch.no_grad()
def test_guidance_is_two_passes_in_one(name):
    unet = make(OPTIONS[name])
    conditions = told(unet)
    with_text, without = unet(X, TIME, **conditions), unet(X, TIME, **conditions, null_cond_prob=1)
    guided = unet.forward_with_cond_scale(X, TIME, **conditions, cond_scale=3.0)
    torch.testing.assert_close(guided, without + (with_text - without) * 3, rtol=1e-4, atol=1e-4)
    null = unet.forward_with_cond_scale(X, TIME, **conditions, cond_scale=0.0)
    torch.testing.assert_close(null, without, rtol=1e-4, atol=1e-5)


@every_text
@torch.no_grad()
@pytest.mark.parametrize("length", [2, 9])
def test_guidance_leads_away_from_captions_of_another_length(name, length):
    unet = make(OPTIONS[name])
    conditions = told(unet)
    negative = {**told(unet, seed=2), "cond": torch.randn(2, length, 6)}
    negative.pop("cond_mask")
    with_text, away = unet(X, TIME, **conditions), unet(X, TIME, **negative)
    guided = unet.forward_with_cond_scale(X, TIME, **conditions, cond_scale=2.0, negative=negative)
    torch.testing.assert_close(guided, away + (with_text - away) * 2, rtol=1e-4, atol=1e-4)


def test_a_shift_has_no_weights():
    plain, shifted = make({}), make({"token_shift": "both"})
    assert {*plain.state_dict()} == {*shifted.state_dict()}
    with torch.no_grad():
        assert not torch.equal(plain(X, TIME), shifted(X, TIME))


def test_tokens_do_not_change_a_network_without():
    assert make({"cond_dim": 6}).takes_text_states is False
    assert not any("token" in name for name in make({"cond_dim": 6}).state_dict())


def test_dropout_is_for_training():
    unet = make({"dropout": 0.5})
    with torch.no_grad():
        assert torch.equal(unet(X, TIME), unet(X, TIME))
        unet.train()
        assert not torch.equal(unet(X, TIME), unet(X, TIME))


def test_heads_grow_with_the_channels():
    unet = Unet3D(16, dim_mults=(1, 4), attn_heads=None, attn_dim_head=8, spatial_attn_dim_head=16)
    assert unet.downs[0].temporal_attn.attn.heads == 2
    assert unet.downs[1].temporal_attn.attn.heads == 8
    assert unet.mid_spatial_attn.attn.heads == 4
    assert unet.downs[0].spatial_attn.attn.heads == 1
    assert unet.time_rel_pos_bias.relative_attention_bias.weight.shape[1] == 8


@torch.no_grad()
def test_the_log_snr_is_told_as_the_time_of_a_cosine():
    unet, steps = make({"time_input": "log_snr"}), make({})
    message = "time must be a log-SNR, a real number, as the network was built with"
    with pytest.raises(ValueError, match=message):
        unet(X, TIME.long())
    steps.load_state_dict({k: v for k, v in unet.state_dict().items() if k != "log_snr_input"})
    log_snr = torch.tensor([-3.0, 8.0])
    torch.testing.assert_close(unet(X, log_snr), steps(X, time_of_log_snr(log_snr)))


@pytest.mark.parametrize(("ours", "theirs"), [("step", "log_snr"), ("log_snr", "step")])
def test_weights_that_were_told_something_else_of_time_are_refused(ours, theirs):
    state = make({"time_input": theirs}).state_dict()
    message = f"of a network with time_input='{ours}', got time_input='{theirs}'; build the ne"
    with pytest.raises(ValueError, match=message):
        make({"time_input": ours}).load_state_dict(state)


@pytest.mark.parametrize(("ours", "theirs"), [(None, 2), (2, None), (None, None)])
def test_weights_of_other_heads_are_refused(ours, theirs):
    def growing(heads, width):
        return make({"attn_heads": heads, "attn_dim_head": 4, "spatial_attn_dim_head": width})

    state = growing(theirs, 8 if ours == theirs else 4).state_dict()
    message = "of a network with attn_heads.*, got attn_heads.*; build the network with the same"
    with pytest.raises(ValueError, match=message):
        growing(ours, 4).load_state_dict(state)


def test_halves_of_states_do_not_overflow():
    unet = make(TEXT)
    states = torch.full((2, 5, 6), 20000.0, dtype=torch.float16)
    with torch.no_grad():
        output = unet(X, TIME, cond=states, cond_mask=torch.ones(2, 5) > 0)
    assert output.isfinite().all()


# errors


def states_refused(message, unet=None, **conditions):
    unet = make(TEXT) if unet is None else unet
    with pytest.raises(ValueError, match=re.escape(message)):
        unet(X, TIME, **conditions)


def test_states_that_do_not_fit_are_refused():
    states_refused("cond of shape (2, n, 6) is expected, got None")
    states_refused(
        "cond must have the shape (2, n, 6), got (2, 6); give the encoder's states of each",
        cond=torch.randn(2, 6),
    )
    states_refused("must have the shape (2, n, 6), got (2, 0, 6)", cond=torch.randn(2, 0, 6))
    states_refused(
        "cond must be a tensor of real numbers of shape (2, n, 6), got list; give the encoder's",
        cond=["a whale"],
    )
    states_refused(
        "cond must be a tensor of real numbers of shape (2, n, 6), got torch.int64; give the enco",
        cond=torch.ones(2, 5, 6, dtype=torch.long),
    )
    states_refused(
        "must have the shape (2, 6), got (2, 5, 6); for sequences of states build the network with",
        make({"cond_dim": 6}),
        cond=torch.randn(2, 5, 6),
    )
    states_refused(
        "image_conditions['cond'] must have the shape (2, 1, n, 6), got (2, 1, 6); give",
        cond=torch.randn(2, 5, 6),
        image_frames=1,
        image_conditions={"cond": torch.randn(2, 1, 6)},
    )


def test_masks_that_do_not_fit_are_refused():
    states = torch.randn(2, 5, 6)
    message = "cond_mask must be a tensor of booleans of shape (2, 5), got "
    states_refused(message + "torch.float32; make", cond=states, cond_mask=torch.ones(2, 5))
    states_refused(message + "list; make it true", cond=states, cond_mask=[True])
    states_refused(
        "cond_mask must have the shape (2, 5), got (2, 4); make it true where there is a token",
        cond=states,
        cond_mask=torch.ones(2, 4) > 0,
    )
    states_refused(
        "built without a sequence of states, so cond_mask must be None, got Tensor; build it with",
        make({"cond_dim": 6}),
        cond=torch.randn(2, 6),
        cond_mask=torch.ones(2, 6) > 0,
    )
