"""Whatever is given as a condition becomes a tensor; captions become what the network takes."""

import pytest
import torch
from torch import nn

from video_diffusion_pytorch import GaussianDiffusion, Unet3D, text
from video_diffusion_pytorch.diffusion.conditioning import (
    common_length,
    encode_condition,
    is_captions,
)

CLIPS = torch.rand(2, 3, 4, 8, 8)
CPU = torch.device("cpu")


class Reader(nn.Module):
    """Takes states of text; predicts their mean, 0 without, and notes what it is told."""

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
        told = self(x, t, cond, **conditions)
        if cond_scale == 1:
            return told
        instead = self(x, t, **negative) if negative else torch.zeros_like(told)
        return instead + (told - instead) * cond_scale


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


def diffusion_with(network):
    config = {"image_size": 8, "num_frames": 4, "timesteps": 3, "channels": 3}
    return GaussianDiffusion(network, objective="pred_x_start", **config)


@pytest.fixture
def diffusion():
    return diffusion_with(Reader())


@pytest.fixture(params=["a plain network", "tokens", "attention"])
def any_diffusion(request):
    if request.param == "a plain network":
        return diffusion_with(Reader())
    how = {"tokens": {"num_text_tokens": 2}, "attention": {"text_pooling": "attention"}}
    torch.manual_seed(0)
    unet = Unet3D(8, cond_dim=2, dim_mults=(1,), attn_heads=1, **how[request.param])
    return diffusion_with(unet)


def test_what_captions_are():
    assert is_captions(["a", None])
    assert is_captions((None,))
    assert not is_captions("a")
    assert not is_captions([1.0])
    assert not is_captions(torch.ones(2))


def test_captions_become_states_and_their_mask():
    told = encode_condition({"cond": ["ab", None, "c"]}, states=True, use_cls=True, device=CPU)
    assert told["cond"].shape == (3, 2, 2)
    assert told["cond_mask"].tolist() == [[True, True], [False, False], [True, False]]
    assert told["null_cond_mask"].tolist() == [False, True, False]
    assert told["cond"][2].tolist() == [[99.0, 0.0], [0.0, 0.0]]


def test_rows_are_counted():
    assert common_length({}, 7) == 7
    assert common_length({"cond": torch.ones(2, 9, 3), "cond_mask": torch.ones(2, 9)}, 7) == 2


def test_a_wrapped_network_takes_states_too(diffusion):
    assert diffusion.takes_text_states
    diffusion.denoise_fn = nn.DataParallel(diffusion.denoise_fn)
    assert diffusion.takes_text_states
    diffusion.denoise_fn = nn.Identity()
    assert not diffusion.takes_text_states


def test_captions_reach_every_call_as_states(diffusion, spelt):
    t = torch.zeros(2, dtype=torch.long)
    told = {"cond": ["ab", "abc"]}
    diffusion(CLIPS, **told)
    diffusion(CLIPS, ["ab", "abc"])
    diffusion.p_losses(CLIPS * 2 - 1, t, **told)
    diffusion.p_mean_variance(CLIPS, t, clip_denoised=True, **told)
    diffusion.p_sample(CLIPS, t, **told)
    options = {"progress": False, **told}
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


def test_states_of_ones_own_reach_every_call(diffusion):
    states, mask = text.encode_captions(["ab", "abc"])
    t = torch.zeros(2, dtype=torch.long)
    for own in ({"cond": states, "cond_mask": mask}, {"cond": states.tolist(), "cond_mask": mask}):
        told = {**own, "progress": False}
        found = diffusion(CLIPS, **own, t=t, noise=CLIPS)
        assert torch.equal(found, diffusion(CLIPS, ["ab", "abc"], t=t, noise=CLIPS))
        drawn = diffusion.sample(**told, seed=3)
        assert torch.equal(drawn, diffusion.sample(["ab", "abc"], seed=3, progress=False))
    # without a mask all count
    diffusion.denoise_fn.calls.clear()
    diffusion.sample(cond=states, progress=False)
    assert all(call["cond_mask"] is None for call in diffusion.denoise_fn.calls)


def test_a_video_does_not_change_with_the_captions_beside_it(any_diffusion):
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
    told = call["of_images"]
    assert told["cond"].shape == (2, 2, 2, 2)
    counts = told["cond_mask"].sum(dim=2)
    assert counts.tolist() == [[1, 2], [0, 1]]
    assert told["null_cond_mask"].tolist() == [[False, False], [True, False]]
    own = {"cond": told["cond"], "cond_mask": told["cond_mask"]}
    diffusion(CLIPS, cond=["ab", "abc"], images=images, image_conditions=own)
    again = diffusion.denoise_fn.calls[-1]["of_images"]
    assert all(torch.equal(again[name], own[name]) for name in own)


def test_captions_bring_their_own_mask(diffusion):
    message = "cond_mask must be None with captions, .*, got Tensor; leave it out, or give states"
    mask = torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match=message):
        diffusion(CLIPS, ["ab", "abc"], cond_mask=mask)
    with pytest.raises(ValueError, match=message):
        diffusion.sample(["ab", "abc"], cond_mask=mask)
    told = {"cond": [["a"], ["b"]], "cond_mask": mask[:, None]}
    with pytest.raises(ValueError, match=message):
        diffusion(CLIPS, ["ab", "abc"], images=CLIPS[:, :, :1], image_conditions=told)


def test_an_encoder_of_the_other_kind_is_named(diffusion):
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 5))
    with pytest.raises(ValueError, match="build the network so that it takes vectors"):
        diffusion.sample(["ab"])
    text.set_text_encoder(lambda captions: torch.ones(len(captions), 4, 5))
    diffusion.denoise_fn.takes_text_states = False
    with pytest.raises(ValueError, match="build the network so that it takes sequences"):
        diffusion.sample(["ab"])
