"""How the network runs: formats in memory, number types, compilation, copies."""

import copy
import pickle

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from video_diffusion_pytorch import Unet3D, to_reference_state_dict
from video_diffusion_pytorch.model import unet3d
from video_diffusion_pytorch.model.blocks import FramewiseConv, FramewiseConvTranspose

CHANNELS_LAST = torch.channels_last_3d


def tiny_unet(seed=0, **config):
    torch.manual_seed(seed)
    return Unet3D(**{"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8} | config)


def videos(b=2, c=3, f=4, h=8, w=8):
    return torch.randn(b, c, f, h, w), torch.randint(0, 1000, (b,))


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# Memory


@torch.no_grad()
def test_the_format_in_memory_makes_no_difference():
    unet = tiny_unet()
    x, time = videos()
    output = unet(x, time)
    assert torch.equal(unet(x.contiguous(memory_format=CHANNELS_LAST), time), output)
    frames_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(unet(frames_first, time), output)


@torch.no_grad()
def test_channels_stay_last_from_the_first_convolution_to_the_output():
    unet = tiny_unet(channels=2)
    strays = []

    def note(module, _, output):
        if not output.is_contiguous(memory_format=CHANNELS_LAST):
            strays.append(module)

    convolutions = [
        module
        for module in unet.modules()
        if isinstance(module, (FramewiseConv, FramewiseConvTranspose))
    ]
    assert len(convolutions) > 20
    for module in convolutions:
        assert module.weight.is_contiguous(memory_format=CHANNELS_LAST)
        module.register_forward_hook(note)
    output = unet(*videos(c=2))
    assert strays == []
    assert output.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("config", [{}, {"resnet_groups": 4}, {"out_dim": 1, "channels": 1}])
def test_gradients_lie_in_memory_as_their_parameters_do(config):
    # DistributedDataParallel copies, and warns, where they do not
    unet = tiny_unet(**config)
    unet(*videos(c=unet.channels)).square().mean().backward()
    for name, parameter in unet.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.stride() == parameter.stride(), name


def test_the_host_never_waits_for_the_device():
    # there are no numbers on the meta device that it could wait for
    with torch.device("meta"):
        unet = tiny_unet(cond_dim=3)
        x = torch.randn(2, 3, 4, 8, 8, requires_grad=True)
        cond, mask = torch.randn(2, 3), torch.zeros(2, dtype=torch.bool)
        time = torch.zeros(2, dtype=torch.long)
    unet(x, time, cond, 0.5, mask).sum().backward()
    assert x.grad.is_meta
    guided = unet.forward_with_cond_scale(x, time, cond, cond_scale=3.0, prob_focus_present=0.5)
    assert guided.shape == x.shape


def test_no_number_is_looked_at_on_the_cpu():
    with FakeTensorMode():
        unet = tiny_unet(cond_dim=3)
        x, time = torch.randn(2, 3, 4, 8, 8), torch.zeros(2, dtype=torch.long)
        mask = torch.zeros(2, dtype=torch.bool)
        output = unet(x, time, torch.randn(2, 3), 0.5, mask)
        assert output.shape == x.shape
        assert output.device.type == "cpu"


def test_only_on_a_cpu_is_the_hosts_memory_kept(monkeypatch):
    calls = []
    monkeypatch.setattr(unet3d, "keep_freed_memory", lambda: calls.append(True))
    with torch.device("meta"):
        tiny_unet()(torch.randn(1, 3, 2, 8, 8), torch.zeros(1))
    assert calls == []
    tiny_unet()(*videos())
    assert calls == [True]


# Number types


@torch.no_grad()
@pytest.mark.parametrize("groups", [None, 4])
def test_other_number_types_give_nearly_the_same(groups):
    unet = tiny_unet(cond_dim=3, resnet_groups=groups)
    x, time = videos()
    cond = torch.randn(2, 3)
    expected = unet(x, time, cond, focus_present_mask=torch.tensor([True, False]))
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        other = copy.deepcopy(unet).to(dtype)
        output = other(
            x.to(dtype), time, cond.to(dtype), focus_present_mask=torch.tensor([True, False])
        )
        assert output.dtype == dtype
        error = (output.float() - expected).abs().max() / expected.abs().max()
        assert error < tolerance


@pytest.mark.parametrize("groups", [None, 4])
def test_autocast_gives_nearly_the_same(groups):
    unet = tiny_unet(cond_dim=3, resnet_groups=groups)
    x, time = videos()
    cond = torch.randn(2, 3)
    expected = unet(x, time, cond)
    expected.square().mean().backward()
    exact = {name: p.grad for name, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = unet(x, time, cond)
        guided = unet.forward_with_cond_scale(x, time, cond, cond_scale=2.0)
    assert guided.isfinite().all()
    assert (output.float() - expected).abs().max() < 0.05 * expected.abs().max()
    output.float().square().mean().backward()
    size = torch.stack([grad.norm() for grad in exact.values()]).norm()
    error = torch.stack([(unet.get_parameter(n).grad - g).norm() for n, g in exact.items()]).norm()
    assert error < 0.1 * size


# Compilation


@pytest.mark.usefixtures("_fresh_compiler")
def test_training_compiles_as_one_graph():
    unet = tiny_unet(cond_dim=3, dim_mults=(1,), blocks_per_level=1)
    x, time = videos()
    told = {"cond": torch.randn(2, 3), "focus_present_mask": torch.tensor([True, False])}
    call = x.requires_grad_(), time, told
    expected = gradients_of(unet, call)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    for pair in zip(gradients_of(compiled, call), expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)


# Features computed again for the gradient


EVERY = {"cond_dim": 3, "num_classes": 4, "frame_cond_dim": 2, "cond_channels": 1}


def call_of_everything():
    x, time = videos(f=5)
    told = {
        "cond": torch.randn(2, 3),
        "labels": torch.tensor([1, 3]),
        "frame_cond": torch.randn(2, 4, 2),
        "cond_video": torch.randn(2, 1, 4, 8, 8),
        "image_frames": 1,
        "image_conditions": {"labels": torch.tensor([[0], [2]])},
        "focus_present_mask": torch.tensor([True, False]),
    }
    return x.requires_grad_(), time, told


def gradients_of(unet, call, dtype=torch.float32):
    x, time, told = call
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        output = unet(x, time, **told)
    wanted = [x, *(p for p in unet.parameters() if p.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), wanted)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_features_give_the_same_bits(dtype):
    unet, call = tiny_unet(**EVERY), call_of_everything()
    expected = gradients_of(unet, call, dtype)
    again = tiny_unet(**EVERY, gradient_checkpointing=True)
    passes = []
    block = again.ups[0].block1
    block.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    actual = gradients_of(again, call, dtype)
    assert passes == [True, True]
    assert len(actual) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    # where nobody asks for a gradient, nothing is computed twice
    with torch.no_grad():
        again(call[0], call[1], **call[2])
    assert passes == [True, True, False]


def test_layers_that_draw_draw_the_same_again():
    unet, call = tiny_unet(**EVERY), call_of_everything()
    for block in (unet.mid_block1, unet.downs[0].block2):
        block.block1.act = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5))
    torch.manual_seed(1)
    expected = gradients_of(unet, call)
    unet.gradient_checkpointing = True
    torch.manual_seed(1)
    assert all(torch.equal(*pair) for pair in zip(gradients_of(unet, call), expected, strict=True))


def bytes_kept_for_the_gradient(unet, x, time):
    with torch.profiler.profile(profile_memory=True) as profile:
        output = unet(x, time)
    assert output.requires_grad
    return sum(event.self_cpu_memory_usage for event in profile.events())


@pytest.mark.parametrize("of_input_only", [False, True])
def test_recomputed_features_need_less_memory(of_input_only):
    unet = tiny_unet(dim=16).requires_grad_(not of_input_only)
    x, time = torch.randn(1, 3, 4, 32, 32, requires_grad=True), torch.tensor([3])
    kept = bytes_kept_for_the_gradient(unet, x, time)
    unet.gradient_checkpointing = True
    assert bytes_kept_for_the_gradient(unet, x, time) < kept / 5


def test_how_a_network_runs_is_no_part_of_what_it_is():
    unet = tiny_unet(gradient_checkpointing=True)
    assert unet.gradient_checkpointing
    assert unet.config == tiny_unet().config
    assert copy.deepcopy(unet).gradient_checkpointing


@pytest.mark.usefixtures("_fresh_compiler")
def test_recomputed_features_compile_as_one_graph():
    layers = {"blocks_per_level": 1, "temporal_attn_levels": (), "use_sparse_linear_attn": False}
    unet = tiny_unet(dim_mults=(1,), **layers)
    x, time, told = call_of_everything()
    call = x, time, {"image_frames": told["image_frames"]}
    expected = gradients_of(unet, call)
    unet.gradient_checkpointing = True
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    actual = gradients_of(compiled, call)
    for pair in zip(actual, expected, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)


# Copies


@torch.no_grad()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))]
)
def test_a_copy_lives_on_its_own(duplicate):
    unet = tiny_unet(cond_dim=3)
    x, time = videos()
    cond = torch.randn(2, 3)
    expected = unet(x, time, cond)
    twin = duplicate(unet)
    assert twin.config == unet.config
    for parameter in unet.parameters():
        parameter.zero_()
    assert torch.equal(twin(x, time, cond), expected)
    # the hook that renames the reference's tensors goes with it
    theirs = to_reference_state_dict(twin.state_dict())
    del unet
    for parameter in twin.parameters():
        parameter.zero_()
    twin.load_state_dict(theirs)
