"""Layers that are compiled on their own: how many graphs, and the same numbers."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.attention import SpatialAttention, TemporalAttention
from video_diffusion_pytorch.model.blocks import ResnetBlock
from video_diffusion_pytorch.model.embeddings import rotary_tables
from video_diffusion_pytorch.model.unet3d import Unet3D, compile_layer

# torch hides this one of its own, but not where warnings are errors
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")

EVERY = {"cond_dim": 3, "num_classes": 4, "frame_cond_dim": 2, "cond_channels": 1}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tiny_unet(**config):
    torch.manual_seed(0)
    layers = {"dim_mults": (1,), "blocks_per_level": 1, "temporal_attn_levels": ()}
    return Unet3D(**{"dim": 8, "attn_heads": 2, "attn_dim_head": 8} | layers | config)


def layers_of(network):
    kinds = (ResnetBlock, SpatialAttention, TemporalAttention)
    return [module for module in network.modules() if isinstance(module, kinds)]


def is_compiled(layer):
    return layer._compiled_call_impl is not None


class Counter:
    """A backend that notes its graphs, and has another one run them."""

    def __init__(self, backend="eager"):
        self.run, self.inputs = lookup_backend(backend), []

    def __call__(self, graph, inputs):
        self.inputs.append(inputs)
        return self.run(graph, inputs)

    def take(self):
        """How many graphs there were since the last time."""
        count, self.inputs = len(self.inputs), []
        return count


def call_of_everything(b=2):
    told = {
        "cond": torch.randn(b, 3),
        "labels": torch.arange(b) % 4,
        "frame_cond": torch.randn(b, 4, 2),
        "cond_video": torch.randn(b, 1, 4, 8, 8),
        "image_frames": 1,
        "focus_present_mask": torch.arange(b) % 2 == 0,
    }
    return torch.randn(b, 3, 5, 8, 8), torch.arange(b), told


def gradients_of(unet, call):
    x, time, told = call
    output = unet(x, time, **told)
    wanted = [p for p in unet.parameters() if p.requires_grad]
    return [output.detach(), *torch.autograd.grad(output.square().sum(), wanted)]


# The same numbers


def test_training_gives_the_same():
    call, unet = call_of_everything(), tiny_unet(**EVERY)
    expected = gradients_of(unet, call)
    counter = Counter("aot_eager")
    unet.compile_blocks(backend=counter, fullgraph=True)
    for checkpointing in (False, True):
        unet.gradient_checkpointing = checkpointing
        actual = gradients_of(unet, call)
        assert len(actual) == len(expected) > 50
        for pair in zip(actual, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-3, atol=1e-4)
    # a layer that is called again by its checkpoint is the same graph
    assert counter.take() == len(layers_of(unet))


def test_guided_sampling_gives_the_same():
    diffusion = GaussianDiffusion(tiny_unet(cond_dim=3), image_size=8, num_frames=3, timesteps=2)
    how = {"cond": torch.randn(2, 3), "cond_scale": 2.0, "seed": 1, "progress": False}
    expected = diffusion.sample(**how)
    counter = Counter()
    diffusion.denoise_fn.compile_blocks(backend=counter, fullgraph=True)
    torch.testing.assert_close(diffusion.sample(**how), expected, rtol=1e-3, atol=1e-3)
    assert counter.take() == len(layers_of(diffusion))


@pytest.mark.parametrize("groups", [None, 2])
def test_half_precision_gives_nearly_the_same(groups):
    block, x = ResnetBlock(4, 8, groups=groups), torch.randn(2, 4, 3, 5, 5)
    expected = block(x)
    compile_layer(block, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = block(x)
    actual.float().sum().backward()
    assert block.block1.proj.weight.grad.norm() > 0
    assert 0 < (actual - expected).norm() < 0.05 * expected.norm()


# How many graphs


def test_each_layer_is_one_graph_however_many_there_are():
    count, counter = 3, Counter()
    blocks = nn.ModuleList(ResnetBlock(i + 2, i + 3) for i in range(count))
    # fewer graphs than there are layers, all of other sizes, but as many as one of them needs
    for block in blocks:
        compile_layer(block, backend=counter, fullgraph=True, recompile_limit=2)

    def train(b):
        x = torch.randn(b, 2, 3, 17, 19)
        for block in blocks:
            x = block(x)[..., :-1]
        x.sum().backward()

    train(23)
    # no layer takes another one's channels or width for a size that varies
    sizes = [s for given in counter.inputs for tensor in given for s in tensor.shape]
    assert not any(isinstance(size, torch.SymInt) for size in sizes)
    assert counter.take() == count
    train(23)
    assert counter.take() == 0
    # another batch makes the batch a size that varies, and then any will do
    train(29)
    assert counter.take() == count
    for b in (31, 37):
        train(b)
    assert counter.take() == 0


def test_many_kinds_of_calls_fit_one_layer():
    # fullgraph=True would raise where the layer ran uncompiled
    layer, counter = TemporalAttention(8, 2, 4), Counter()
    compile_layer(layer, backend=counter, fullgraph=True)

    def call(b, half, grad):
        bias, rotary = torch.randn(2, 5, 5), rotary_tables(torch.ones(2), 5)
        x, mask = torch.randn(b, 8, 7, 3, 3), torch.ones(b, dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16, enabled=half), torch.set_grad_enabled(grad):
            layer(x, bias, rotary, mask, 2)

    kinds = list(itertools.product((4, 3, 1), (False, True), (False, True)))
    for kind in kinds:
        call(*kind)
    assert counter.take() > torch._dynamo.config.recompile_limit
    for kind in kinds:
        call(*kind)
    assert counter.take() == 0


# What else is as before


def test_the_layers_keep_their_names_and_hooks():
    unet = tiny_unet()
    names, seen = list(unet.state_dict()), []
    unet.compile_blocks(backend="eager")
    assert all(map(is_compiled, layers_of(unet)))
    assert list(unet.state_dict()) == names
    unet.load_state_dict(tiny_unet().state_dict())
    unet.mid_block1.register_forward_hook(lambda *_: seen.append(True))
    unet.mid_block1(torch.randn(1, 8, 2, 8, 8), torch.randn(1, 32))
    assert seen == [True]


@torch.no_grad()
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda network: pickle.loads(pickle.dumps(network))]
)
def test_a_copy_is_not_compiled_and_lives_on_its_own(duplicate):
    network, counter = SpatialAttention(2, 2, linear=True), Counter()
    compile_layer(network, backend=counter)
    x = torch.randn(1, 2, 3, 8, 8)
    expected = network(x)
    twin = duplicate(network)
    assert is_compiled(network)
    assert not is_compiled(twin)
    assert counter.take() == 1
    for parameter in network.parameters():
        parameter.zero_()
    torch.testing.assert_close(twin(x), expected)
    assert counter.take() == 0
    compile_layer(twin, backend=counter)
    torch.testing.assert_close(twin(x), expected)
    assert counter.take() == 1


# Mistakes


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="bakend"):
        tiny_unet().compile_blocks(bakend="eager")
