"""Conditions: converted to tensors, captions encoded, and passed to the denoiser."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text
from video_diffusion_pytorch.conditions import given
from video_diffusion_pytorch.diffusion.conditioning import (
    encode_condition,
    is_captions,
    show_first_frames,
)

TINY_BERT = Path(__file__).parents[1] / "golden" / "tiny_bert"


class Recorder(nn.Module):
    """Records its arguments; predicts noise of zero."""

    def __init__(self, cond_channels=None):
        super().__init__()
        if cond_channels is not None:
            self.cond_channels = cond_channels
        self.calls = []

    def forward(self, x, t, null_cond_prob=0.0, **conditions):
        self.calls.append({"null_cond_prob": null_cond_prob, **conditions})
        return torch.zeros_like(x)

    def forward_with_cond_scale(self, x, t, cond_scale=1.0, **conditions):
        self.calls.append({"cond_scale": cond_scale, **conditions})
        return torch.zeros_like(x)


def diffusion_with(denoiser, **config):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 3, "channels": 3} | config
    return GaussianDiffusion(denoiser, **config)


def every_call(diffusion, clips, **conditions):
    """Calls all that takes conditions; gives what the denoiser was called with."""
    t = torch.zeros(len(clips), dtype=torch.long)
    diffusion.denoise_fn.calls.clear()
    diffusion(clips, **conditions)
    diffusion.p_losses(clips * 2 - 1, t, **conditions)
    diffusion.p_mean_variance(clips, t, clip_denoised=True, **conditions)
    diffusion.p_sample(clips, t, **conditions)
    diffusion.p_sample_loop(clips.shape, progress=False, **conditions)
    diffusion.interpolate(clips, clips, progress=False, **conditions)
    if conditions:
        assert len(diffusion.sample(progress=False, **conditions)) == len(clips)
    return diffusion.denoise_fn.calls


def exactly(message):
    return f"^{re.escape(message)}$"


CLIPS = torch.rand(2, 3, 4, 8, 8)
CONDITIONS = {
    "cond": torch.randn(2, 5),
    "labels": torch.tensor([3, -1]),
    "frame_cond": torch.randn(2, 4, 6),
    "cond_video": torch.randn(2, 2, 8, 8),
    "null_cond_mask": torch.tensor([True, False]),
    "cond_mask": torch.tensor([[True, False, False], [True, True, True]]),
}


# Passing on


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_call_takes_every_condition(name):
    calls = every_call(diffusion_with(Recorder()), CLIPS, **{name: CONDITIONS[name]})
    assert len(calls) == 4 + 3 + 2 + 3
    for call in calls:
        assert torch.equal(call[name], CONDITIONS[name])
        assert call.keys() - {"null_cond_prob", "cond_scale"} == {"cond", name}
    # dropped in training as a vector is, and in sampling not
    assert [call.get("null_cond_prob") for call in calls] == [0.1, 0.1] + [None] * 10


def test_missing_conditions_are_not_passed_on():
    for call in every_call(diffusion_with(Recorder()), CLIPS):
        assert call.keys() - {"null_cond_prob", "cond_scale"} == {"cond"}
        assert call["cond"] is None
        assert call.get("null_cond_prob", 0.0) == 0.0
    assert given({"a": None, "b": 0}) == {"b": 0}


@pytest.mark.parametrize("convert", [torch.Tensor.numpy, torch.Tensor.tolist])
@pytest.mark.parametrize("name", CONDITIONS)
def test_arrays_and_lists_become_tensors(name, convert):
    diffusion = diffusion_with(Recorder())
    diffusion(CLIPS, **{name: convert(CONDITIONS[name])})
    diffusion.sample(progress=False, **{name: convert(CONDITIONS[name])})
    for call in diffusion.denoise_fn.calls:
        assert torch.equal(call[name], CONDITIONS[name])


def test_arrays_take_the_precision_of_the_model():
    diffusion = diffusion_with(Recorder())
    diffusion(CLIPS, cond=np.random.default_rng(0).random((2, 5))[::-1])
    assert diffusion.denoise_fn.calls[0]["cond"].dtype == torch.float32


def test_a_conditional_network_trains_and_samples():
    torch.manual_seed(0)
    unet = Unet3D(
        8,
        cond_dim=5,
        num_classes=4,
        frame_cond_dim=6,
        cond_channels=2,
        dim_mults=(1,),
        attn_heads=1,
    )
    diffusion = diffusion_with(unet)
    received = {name: value for name, value in CONDITIONS.items() if name != "cond_mask"}
    diffusion(CLIPS, **received).backward()
    assert all(p.grad is not None for p in unet.parameters() if p.requires_grad)
    videos = diffusion.sample(**received, cond_scale=2.0, progress=False)
    assert videos.shape == (2, 3, 4, 8, 8)
    assert videos.isfinite().all()


def test_the_advice_for_a_missing_condition_holds_for_every_call():
    null = {
        "labels": ({"num_classes": 2}, {"labels": [-1, -1]}),
        "cond": ({"cond_dim": 3}, {"cond": torch.zeros(2, 3), "null_cond_mask": [True, True]}),
    }
    for name, (options, none) in null.items():
        diffusion = diffusion_with(Unet3D(8, dim_mults=(1,), attn_heads=1, **options))
        for call in (partial(diffusion.sample, progress=False), partial(diffusion, CLIPS)):
            with pytest.raises(ValueError, match=f"{name} .* pass it, with .* for each video with"):
                call()
            assert call(**none).isfinite().all()


def test_a_misspelt_condition_is_refused():
    diffusion = diffusion_with(Unet3D(8, num_classes=4, dim_mults=(1,), attn_heads=1))
    labels = torch.tensor([0, 1])
    calls = (diffusion, diffusion.sample, diffusion.p_sample_loop)
    for call, args in zip(calls, [(CLIPS,), (), ((2, 3, 4, 8, 8),)], strict=True):
        with pytest.raises(TypeError, match="label"):
            call(*args, label=labels)


# Captions


@pytest.fixture
def encoded():
    """An encoder of captions by their lengths, which notes its calls."""
    calls = []

    def encode(captions):
        calls.append(captions)
        return torch.tensor([[float(len(caption)), 1.0] for caption in captions])

    text.set_text_encoder(encode)
    yield calls
    text.set_text_encoder()


def test_captions_go_through_the_encoder_once_per_call(encoded):
    diffusion = diffusion_with(Recorder())
    diffusion.sample(cond=["a", "whale"], progress=False)
    diffusion(CLIPS, ("a", "whale"))
    assert encoded == [["a", "whale"]] * 2
    for call in diffusion.denoise_fn.calls:
        assert call["cond"].tolist() == [[1.0, 1.0], [5.0, 1.0]]
        assert "null_cond_mask" not in call


@pytest.mark.parametrize("mask", [None, [False, True], torch.tensor([False, True])])
def test_a_missing_caption_is_masked(encoded, mask):
    diffusion = diffusion_with(Recorder())
    for call in every_call(diffusion, CLIPS, cond=[None, "whale"], null_cond_mask=mask):
        assert call["cond"].shape == (2, 2)
        assert call["cond"][1].tolist() == [5.0, 1.0]
        assert call["null_cond_mask"].tolist() == [True, mask is not None]


def test_all_captions_may_be_missing(encoded):
    diffusion = diffusion_with(Recorder())
    diffusion(CLIPS, cond=[None, None])
    assert diffusion.denoise_fn.calls[0]["null_cond_mask"].tolist() == [True, True]


def test_missing_captions_sample_as_the_null_condition():
    text.set_text_encoder(TINY_BERT)
    try:
        torch.manual_seed(0)
        unet = Unet3D(8, cond_dim=32, dim_mults=(1,), attn_heads=1)
        diffusion = diffusion_with(unet)
        videos = []
        for call in ({"cond": [None, None]}, {"cond": ["a", "b"], "cond_scale": 0.0}):
            torch.manual_seed(1)
            videos.append(diffusion.sample(progress=False, **call))
    finally:
        text.set_text_encoder()
    torch.testing.assert_close(*videos, rtol=1e-4, atol=1e-5)


# Known frames


def test_known_frames_become_channels_with_a_mask():
    frames = torch.randn(2, 3, 2, 8, 8)
    shown = show_first_frames(frames, 5)
    assert shown.shape == (2, 4, 5, 8, 8)
    assert torch.equal(shown[:, :3, :2], frames)
    assert (shown[:, 3, :2] == 1).all()
    assert (shown[:, :, 2:] == 0).all()


@pytest.mark.parametrize("field", [None, torch.randn(2, 2, 8, 8), torch.randn(2, 2, 4, 8, 8)])
@pytest.mark.parametrize("cond_channels", [None, 4])
def test_the_network_gets_the_first_frames(field, cond_channels):
    if field is not None and cond_channels is not None:
        cond_channels += 2
    diffusion = diffusion_with(Recorder(cond_channels), given_frames=2, value_range=(0, 10))
    frames = CLIPS[:, :, :2]
    expected = show_first_frames(frames * 2 - 1, 4)
    if field is not None:
        each = field if field.ndim == 5 else field[:, :, None].expand(-1, -1, 4, -1, -1)
        expected = torch.cat((each, expected), dim=1)
    diffusion(CLIPS * 10, cond_video=field)  # its own
    diffusion(torch.zeros(2, 3, 4, 8, 8), cond_video=field, first_frames=frames * 10)
    diffusion.sample(cond_video=field, first_frames=frames * 10, progress=False)
    assert len(diffusion.denoise_fn.calls) == 5
    for call in diffusion.denoise_fn.calls:
        torch.testing.assert_close(call["cond_video"], expected, rtol=1e-5, atol=1e-6)
        assert "first_frames" not in call


def test_every_call_takes_first_frames_in_uint8():
    diffusion = diffusion_with(Recorder(4), given_frames=1)
    frames = torch.randint(0, 256, (2, 3, 1, 8, 8), dtype=torch.uint8)
    calls = every_call(diffusion, CLIPS, first_frames=frames)
    assert len(calls) == 12
    for call in calls:
        torch.testing.assert_close(
            call["cond_video"], show_first_frames(frames / 255 * 2 - 1, 4), rtol=1e-5, atol=1e-6
        )


def test_a_network_learns_to_continue_a_frame():
    # clips that stand still: the first frame determines all
    torch.manual_seed(0)
    unet = Unet3D(16, channels=1, cond_channels=2, dim_mults=(1,), attn_heads=2, attn_dim_head=16)
    config = {"channels": 1, "image_size": 2, "num_frames": 3, "timesteps": 20, "loss_type": "l2"}
    diffusion = diffusion_with(unet, given_frames=1, cond_drop_prob=0.0, **config)
    opt = torch.optim.Adam(unet.parameters(), lr=3e-3)
    for _ in range(200):
        clips = torch.randint(0, 2, (32, 1, 1, 1, 1)).float().expand(-1, -1, 3, 2, 2)
        opt.zero_grad()
        diffusion(clips).backward()
        opt.step()
    first = torch.tensor([0.0, 1.0] * 8).view(16, 1, 1, 1, 1).expand(-1, -1, 1, 2, 2)
    videos = diffusion.sample(first_frames=first, progress=False)
    dark, bright = videos[:, :, 1:].mean(dim=(1, 2, 3, 4)).view(8, 2).unbind(dim=1)
    assert dark.mean() < 0.3
    assert bright.mean() > 0.7


def test_config_rebuilds_it():
    diffusion = diffusion_with(Recorder(4), given_frames=1)
    assert diffusion.config["given_frames"] == 1
    assert GaussianDiffusion(Recorder(4), **diffusion.config).given_frames == 1


# Mistakes


@pytest.mark.parametrize("given_frames", [-1, 4])
def test_some_frames_must_be_left_to_predict(given_frames):
    message = (
        "GaussianDiffusion: given_frames must be a whole number from 0 to less than num_frames = 4,"
        f" got {given_frames}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Recorder(), given_frames=given_frames)


@pytest.mark.parametrize("cond_channels", [0, 3])
def test_a_network_without_room_for_known_frames(cond_channels):
    message = (
        "GaussianDiffusion: with given_frames the network must have at least 4 cond_channels, "
        f"those of a frame and one, got {cond_channels}; build it with cond_channels=4, and more "
        "for a cond_video of your own"
    )
    unet = Unet3D(8, cond_channels=cond_channels, dim_mults=(1,), attn_heads=1)
    for network in (unet, nn.DataParallel(unet)):
        with pytest.raises(ValueError, match=exactly(message)):
            diffusion_with(network, given_frames=1)


def test_first_frames_that_do_not_fit():
    diffusion = diffusion_with(Recorder(4), given_frames=2)
    message = (
        "GaussianDiffusion: this model was built with given_frames, so first_frames of 2 frames "
        "must be given; pass the beginning of each video"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion.sample(batch_size=2, progress=False)
    message = "GaussianDiffusion: first_frames must be a tensor of shape "
    for wrong in (CLIPS[:, :, :1], CLIPS[:, :, :2].long()):
        with pytest.raises(ValueError, match=re.escape(message + "(2, 3, 2, 8, 8), floating")):
            diffusion.sample(first_frames=wrong, progress=False)
    # a model without given_frames takes none
    message = "GaussianDiffusion: first_frames .*; this model was built with given_frames=0"
    with pytest.raises(ValueError, match=message):
        diffusion_with(Recorder(4)).sample(first_frames=CLIPS[:, :, :2], progress=False)


@pytest.mark.parametrize("field", [None, torch.randn(2, 3, 8, 8), torch.randn(2, 2, 4, 4)])
def test_a_field_that_does_not_fit_next_to_known_frames(field):
    got = None if field is None else (*field.shape[:2], 4, *field.shape[2:])
    message = (
        "GaussianDiffusion: cond_video must have the shape (2, 2, 4, 8, 8), what the network's "
        f"cond_channels leave for it, got {got}; reshape it, or build the network "
        "with other cond_channels"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Recorder(6), given_frames=1)(CLIPS, cond_video=field)


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("cond", "a whale", "str 'a whale'"),
        ("cond", {"a": 1}, "dict \"{'a': 1}\""),
        ("cond", ["a", 1], "list \"['a', 1]\""),
        ("cond", [[1.0], [1.0, 2.0]], "list '[[1.0], [1.0, 2.0]]'"),
        ("labels", 3, "int '3'"),
        ("labels", torch.tensor(3), "Tensor 'tensor(3)'"),
    ],
)
def test_conditions_that_are_not_numbers_per_video(name, value, got):
    captions = ", or a list of captions" if name == "cond" else ""
    message = (
        f"GaussianDiffusion: {name} must be a tensor, an array or a list of numbers{captions}, "
        f"with one row per video, got {got}"
    )
    diffusion = diffusion_with(Recorder())
    with pytest.raises(TypeError, match=exactly(message)):
        diffusion(CLIPS, **{name: value})
    with pytest.raises(TypeError, match=exactly(message)):
        diffusion.sample(**{name: value})


def test_conditions_that_differ_in_number():
    message = (
        "sample: all conditions and guidance must have one row per video, got 2 of cond, 3 of "
        "labels; give as many of each"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        diffusion_with(Recorder()).sample(cond=torch.randn(2, 5), labels=[1, 2, 3])


CPU = torch.device("cpu")


class Reader(nn.Module):
    """Takes states of text; predicts their mean, 0 without, and records its arguments."""

    takes_text_states = True
    condition_names = ("cond",)

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(
        self,
        x,
        t,
        cond=None,
        *,
        cond_mask=None,
        null_cond_mask=None,
        image_frames=0,
        image_conditions=None,
    ):
        self.calls.append({"cond": cond, "cond_mask": cond_mask, "of_images": image_conditions})
        if cond is None:
            return torch.zeros_like(x)
        weights = torch.ones(cond.shape[:2]) if cond_mask is None else cond_mask.float()
        if null_cond_mask is not None:
            weights = weights * ~null_cond_mask[:, None]
        means = (cond.mean(dim=2) * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        assert len(means) == len(x)
        return (means / 100).view(-1, 1, 1, 1, 1) + 0 * x

    def forward_with_cond_scale(
        self, x, t, cond=None, *, cond_scale=1.0, negative=None, **conditions
    ):
        received = self(x, t, cond, **conditions)
        if cond_scale == 1:
            return received
        instead = self(x, t, **negative) if negative else torch.zeros_like(received)
        return instead + (received - instead) * cond_scale


@pytest.fixture(autouse=True)
def spelt():
    """An encoder whose states are the letters' codes, padded with NaN."""
    calls = []

    def encode(captions):
        calls.append(captions)
        longest = max(map(len, captions), default=0)
        states = torch.full((len(captions), longest, 2), float("nan"))
        for row, caption in enumerate(captions):
            states[row, : len(caption), 0] = torch.tensor([float(ord(c)) for c in caption])
            states[row, : len(caption), 1] = torch.arange(float(len(caption)))
        return states, states[..., 0].isfinite()

    text.set_text_encoder(encode)
    yield calls
    text.set_text_encoder()


def reading(network):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 3, "channels": 3}
    return GaussianDiffusion(network, objective="pred_x_start", **config)


@pytest.fixture
def diffusion():
    return reading(Reader())


@pytest.fixture(params=["a plain network", "tokens", "attention"])
def any_diffusion(request):
    if request.param == "a plain network":
        return reading(Reader())
    how = {"tokens": {"num_text_tokens": 2}, "attention": {"text_pooling": "attention"}}
    torch.manual_seed(0)
    unet = Unet3D(8, cond_dim=2, dim_mults=(1,), attn_heads=1, **how[request.param])
    return reading(unet)


def test_captions_for_a_network_without_condition():
    diffusion = diffusion_with(Unet3D(8, dim_mults=(1,), attn_heads=1, num_classes=2))
    with pytest.raises(ValueError, match="the network must take captions, got one built without"):
        diffusion.sample(["a whale"], progress=False)


def test_captions_are_lists_of_strings_and_none():
    assert is_captions(["a", None])
    assert is_captions((None,))
    assert not is_captions("a")
    assert not is_captions([1.0])
    assert not is_captions(torch.ones(2))


def test_captions_become_states_and_their_mask():
    received = encode_condition({"cond": ["ab", None, "c"]}, states=True, use_cls=True, device=CPU)
    assert received["cond"].shape == (3, 2, 2)
    assert received["cond_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert received["null_cond_mask"].tolist() == [False, True, False]
    assert received["cond"][2].tolist() == [[99.0, 0.0], [0.0, 0.0]]


def test_a_wrapped_network_takes_states(diffusion):
    assert diffusion.takes_text_states
    diffusion.denoise_fn = nn.DataParallel(diffusion.denoise_fn)
    assert diffusion.takes_text_states
    diffusion.denoise_fn = nn.Identity()
    assert not diffusion.takes_text_states


def test_captions_reach_every_call_as_states(diffusion, spelt):
    t = torch.zeros(2, dtype=torch.long)
    received = {"cond": ["ab", "abc"]}
    diffusion(CLIPS, **received)
    diffusion(CLIPS, ["ab", "abc"])
    diffusion.p_losses(CLIPS * 2 - 1, t, **received)
    diffusion.p_mean_variance(CLIPS, t, clip_denoised=True, **received)
    diffusion.p_sample(CLIPS, t, **received)
    options = {"progress": False, **received}
    diffusion.p_sample_loop(CLIPS.shape, **options)
    diffusion.interpolate(CLIPS, CLIPS, **options)
    diffusion.sample(**options)
    diffusion.sample(**options, seed=0, sampler="ddim", steps=2)
    diffusion.predict(CLIPS[:, :, :1], **options)
    diffusion.extend(CLIPS, 8, **options)
    diffusion.inpaint(CLIPS, torch.ones(2, 1, 4, 8, 8).bool().tril(), **options)
    assert len(spelt) == 12
    for call in diffusion.denoise_fn.calls:
        assert call["cond"].shape == (2, 3, 2)
        assert call["cond_mask"].tolist() == [[True, True, False], [True, True, True]]


def test_given_states_reach_every_call(diffusion):
    states, mask = text.encode_captions(["ab", "abc"])
    t = torch.zeros(2, dtype=torch.long)
    for own in ({"cond": states, "cond_mask": mask}, {"cond": states.tolist(), "cond_mask": mask}):
        received = {**own, "progress": False}
        found = diffusion(CLIPS, **own, t=t, noise=CLIPS)
        assert torch.equal(found, diffusion(CLIPS, ["ab", "abc"], t=t, noise=CLIPS))
        drawn = diffusion.sample(**received, seed=3)
        assert torch.equal(drawn, diffusion.sample(["ab", "abc"], seed=3, progress=False))
    # without a mask all count
    diffusion.denoise_fn.calls.clear()
    diffusion.sample(cond=states, progress=False)
    assert all(call["cond_mask"] is None for call in diffusion.denoise_fn.calls)


def test_a_video_does_not_depend_on_the_other_captions(any_diffusion):
    diffusion = any_diffusion
    captions = ["ab", "a much longer caption", None]
    together = diffusion.sample(captions, seed=[0, 1, 2], progress=False)
    for seed, caption in enumerate(captions):
        alone = diffusion.sample([caption], seed=[seed], progress=False)
        torch.testing.assert_close(alone[0], together[seed])
    parts = diffusion.sample(captions, seed=[0, 1, 2], max_batch=2, progress=False)
    torch.testing.assert_close(parts, together)


@pytest.mark.parametrize("negative", [["some longer caption"], ["z", "y"], [None, "ab"]])
def test_negative_captions_of_another_length(any_diffusion, negative):
    diffusion = any_diffusion
    options = {"cond_scale": 2.0, "seed": 0, "progress": False}
    drawn = diffusion.sample(["ab", "abc"], negative_cond=negative, **options)
    states, mask = text.encode_captions([caption or "" for caption in negative])
    missing = torch.tensor([caption is None for caption in negative])
    named = {"cond": states, "cond_mask": mask, "null_cond_mask": missing}
    assert torch.equal(diffusion.sample(["ab", "abc"], negative_cond=named, **options), drawn)
    in_parts = diffusion.sample(["ab", "abc"], negative_cond=negative, max_batch=1, **options)
    torch.testing.assert_close(in_parts, drawn)
    longer = diffusion.extend(drawn, 6, cond=["ab", "abc"], negative_cond=negative, **options)
    assert longer.isfinite().all()


def test_captions_of_images_become_states(diffusion):
    images = torch.rand(2, 3, 2, 8, 8)
    captions = [["a", "bc"], [None, "d"]]
    diffusion(CLIPS, cond=["ab", "abc"], images=images, image_conditions={"cond": captions})
    [call] = diffusion.denoise_fn.calls
    received = call["of_images"]
    assert received["cond"].shape == (2, 2, 2, 2)
    counts = received["cond_mask"].sum(dim=2)
    assert counts.tolist() == [[1, 2], [0, 1]]
    assert received["null_cond_mask"].tolist() == [[False, False], [True, False]]
    own = {"cond": received["cond"], "cond_mask": received["cond_mask"]}
    diffusion(CLIPS, cond=["ab", "abc"], images=images, image_conditions=own)
    again = diffusion.denoise_fn.calls[-1]["of_images"]
    assert all(torch.equal(again[name], own[name]) for name in own)


def test_captions_exclude_a_mask_of_tokens(diffusion):
    message = "cond_mask must be None with captions, .*, got Tensor; leave it out, or give states"
    mask = torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match=message):
        diffusion(CLIPS, ["ab", "abc"], cond_mask=mask)
    with pytest.raises(ValueError, match=message):
        diffusion.sample(["ab", "abc"], cond_mask=mask)
    received = {"cond": [["a"], ["b"]], "cond_mask": mask[:, None]}
    with pytest.raises(ValueError, match=message):
        diffusion(CLIPS, ["ab", "abc"], images=CLIPS[:, :, :1], image_conditions=received)


def test_an_encoder_of_another_kind_is_refused(diffusion):
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 5))
    with pytest.raises(
        ValueError, match=r"states of shape \(1, n, d\).* a network takes states if"
    ):
        diffusion.sample(["ab"])
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 4, 5))
    diffusion.denoise_fn.takes_text_states = False
    with pytest.raises(ValueError, match=r"vectors .* got .*"):
        diffusion.sample(["ab"])
