"""How much a step keeps in memory: the estimate against what is kept in truth."""

import logging

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.compile_blocks import compile_blocks
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training import activation_memory
from video_diffusion_pytorch.training.activation_memory import activation_bytes


def tiny_diffusion(**config):
    torch.manual_seed(0)
    unet = Unet3D(**{"dim": 8, "dim_mults": (1,), "attn_heads": 2, "attn_dim_head": 8} | config)
    return GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=10)


def bytes_really_kept(diffusion, b, precision="no", **told):
    """As the estimate counts, but of a forward pass with numbers."""
    unet = diffusion.denoise_fn
    kept = activation_memory._Kept([*unet.parameters(), *unet.buffers()])
    x, t = torch.randn(b, *diffusion.clip_shape), torch.zeros(b, dtype=torch.long)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "no")
    with kept.counting(), half:
        unet(x, t, **told)
    return kept.total


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_forward_pass_keeps(precision, checkpointing):
    diffusion = tiny_diffusion(cond_dim=3, num_classes=4, gradient_checkpointing=checkpointing)
    told = {"cond": torch.randn(3, 3), "labels": torch.tensor([0, 1, 2])}
    real = bytes_really_kept(diffusion, 3, precision, **told)
    estimate = activation_bytes(diffusion, 3, precision=precision)
    if checkpointing:
        # the largest layer is computed again in full, which the count above does not see
        diffusion.denoise_fn.gradient_checkpointing = False
        in_full = bytes_really_kept(diffusion, 3, precision, **told)
        assert 1.2 * real < estimate < 0.5 * in_full
    else:
        assert estimate == pytest.approx(real, rel=0.02)


def test_the_estimate_is_what_memory_the_forward_pass_holds():
    diffusion = tiny_diffusion(dim=16)
    x, t = torch.randn(4, *diffusion.clip_shape), torch.zeros(4, dtype=torch.long)
    with torch.profiler.profile(profile_memory=True) as profile:
        output = diffusion.denoise_fn(x, t)
    assert output.requires_grad
    held = sum(event.self_cpu_memory_usage for event in profile.events())
    assert activation_bytes(diffusion, 4) == pytest.approx(held, rel=0.1)


def test_it_grows_with_the_batch_and_the_images_and_shrinks_with_half_precision():
    diffusion = tiny_diffusion()
    one = activation_bytes(diffusion)
    assert activation_bytes(diffusion, 8) == pytest.approx(8 * one, rel=0.05)
    assert activation_bytes(diffusion, image_frames=4) > 1.8 * one
    assert activation_bytes(diffusion, 8, precision="bf16") < 0.7 * 8 * one
    assert activation_bytes(diffusion, 8, precision="fp8") < 0.7 * 8 * one


def test_a_model_without_memory_is_counted_as_one_with():
    with torch.device("meta"):
        unet = Unet3D(8, dim_mults=(1, 2), attn_heads=2, time_input="log_snr")
    counted = activation_bytes(GaussianDiffusion(unet, image_size=16, num_frames=4), 1)
    # another device's attention keeps other things
    assert 0.5 < activation_bytes(tiny_diffusion(), 1) / counted < 2


def test_nothing_is_left_changed():
    diffusion = tiny_diffusion(cond_dim=3)
    weights = {name: value.clone() for name, value in diffusion.state_dict().items()}
    numbers = torch.get_rng_state()
    expected = activation_bytes(diffusion, 2, checkpointing=True)
    assert not diffusion.denoise_fn.gradient_checkpointing
    assert torch.equal(torch.get_rng_state(), numbers)
    assert all(p.grad is None and not p.is_meta for p in diffusion.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in diffusion.state_dict().items())
    diffusion.denoise_fn.gradient_checkpointing = True
    with torch.no_grad():
        assert activation_bytes(diffusion, 2) == expected
    assert diffusion.denoise_fn.gradient_checkpointing
    loss = diffusion(torch.rand(2, *diffusion.clip_shape), torch.randn(2, 3))
    loss.backward()


def test_compiled_layers_are_counted_without_compiling():
    expected = activation_bytes(tiny_diffusion(), 2)
    diffusion = tiny_diffusion()
    compile_blocks(diffusion, backend=lambda graph, inputs: pytest.fail("compiled"))
    assert activation_bytes(diffusion, 2) == expected
    torch._dynamo.reset()


def test_known_frames_and_fields_need_no_conditions():
    unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, cond_channels=4)
    diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, given_frames=1)
    assert activation_bytes(diffusion) > 0


class Plain(nn.Module):
    """A user's network, which knows no conditions and no checkpoints."""

    channels = 3

    def __init__(self, looks=False):
        super().__init__()
        self.conv, self.looks = nn.Conv3d(3, 3, 1), looks

    def forward(self, x, t, cond=None):
        if self.looks and x.sum().item() > 0:
            return x
        return self.conv(x)


class Told(Plain):
    """One that cannot do without its condition."""

    def forward(self, x, t, cond):
        return self.conv(x) * cond[:, :, None, None, None]


def test_a_network_of_ones_own_is_counted(caplog):
    diffusion = GaussianDiffusion(Plain(), image_size=16, num_frames=4)
    assert activation_bytes(diffusion, 2) == 2 * 3 * 4 * 16 * 16 * 4
    assert caplog.records == []


def test_a_network_that_cannot_do_without_conditions_is_given_them(caplog):
    diffusion = GaussianDiffusion(Told(), image_size=16, num_frames=4)
    one = 3 * 4 * 16 * 16 * 4
    # the clips for the kernel's gradient, and their features for the condition's
    told = {"cond": torch.randn(2, 3, requires_grad=True)}
    assert activation_bytes(diffusion, 2, conditions=told) == pytest.approx(2 * 2 * one, rel=0.01)
    assert caplog.records == []
    assert activation_bytes(diffusion, 2) is None
    assert "cond" in caplog.text


def test_a_network_that_looks_at_numbers_gives_no_estimate(caplog):
    diffusion = GaussianDiffusion(Plain(looks=True), image_size=16, num_frames=4)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        assert activation_bytes(diffusion) is None
    assert "no estimate, because of" in caplog.text


def test_sharded_weights_give_no_estimate(caplog):
    diffusion = tiny_diffusion()
    diffusion.denoise_fn.init_conv.bias.device_mesh = object()
    ran = []
    diffusion.denoise_fn.register_forward_pre_hook(lambda *_: ran.append(True))
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        assert activation_bytes(diffusion) is None
    assert "sharded" in caplog.text
    assert ran == []


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"precision must be one of no, .* got 'half'"):
        activation_bytes(tiny_diffusion(), precision="half")
    diffusion = GaussianDiffusion(Plain(), image_size=16, num_frames=4)
    with pytest.raises(ValueError, match=r"attribute gradient_checkpointing, .* got Plain"):
        activation_bytes(diffusion, checkpointing=True)
