"""Memory: which errors mean that it ran out, what they say, and how much a step takes."""

import pickle

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model import attention, blocks, cpu_kernels
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.memory import (
    TrainingOutOfMemory,
    activation_bytes,
    explain_out_of_memory,
    is_out_of_memory,
    state_bytes,
)


def tiny_diffusion(**config):
    torch.manual_seed(0)
    unet = Unet3D(**{"dim": 8, "dim_mults": (1,), "attn_heads": 2, "attn_dim_head": 8} | config)
    return GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=10)


# Which errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 4 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 4 GB)"),
        RuntimeError("CUDA error: out of memory"),
        TrainingOutOfMemory("said before"),
    ],
)
def test_an_error_that_means_out_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        OSError(),
    ],
)
def test_an_error_that_means_something_else(error):
    assert not is_out_of_memory(error)


def test_the_cpus_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("known", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_our_error_is_caught_as_the_one_that_it_stands_for(known):
    with pytest.raises(known, match="words"):
        raise TrainingOutOfMemory("words")
    assert str(pickle.loads(pickle.dumps(TrainingOutOfMemory("words")))) == "words"


# How much


def test_the_state_of_training_is_counted():
    diffusion = tiny_diffusion()
    weights = sum(p.nbytes for p in diffusion.parameters())
    trained = sum(p.nbytes for p in diffusion.parameters() if p.requires_grad)
    buffers = sum(b.nbytes for b in diffusion.buffers())
    assert state_bytes(diffusion) == 2 * (weights + buffers) + 3 * trained
    assert state_bytes(diffusion, averages=3) == 4 * (weights + buffers) + 3 * trained
    plain = torch.optim.SGD(diffusion.parameters(), lr=0.1)
    assert state_bytes(diffusion, plain) == state_bytes(diffusion)
    momentum = torch.optim.SGD(diffusion.parameters(), lr=0.1, momentum=0.9)
    diffusion(torch.rand(1, *diffusion.clip_shape)).backward()
    momentum.step()
    assert state_bytes(diffusion, momentum) == state_bytes(diffusion) - trained


def test_the_error_names_the_batch_and_ways_to_reduce_memory():
    error = RuntimeError("CUDA out of memory.")
    assert str(explain_out_of_memory(tiny_diffusion(), 6, "no", error)) == (
        "Trainer: a step must fit into the memory of cpu, got a micro-batch of 6 clips of 3 x 4 x "
        "16 x 16 in precision 'no'; use amp=True, gradient_checkpointing=True in Unet3D, or a "
        "smaller train_batch_size with a larger gradient_accumulate_every. The error was: CUDA out "
        "of memory."
    )
    explained = explain_out_of_memory(tiny_diffusion(), 1, "bf16", MemoryError())
    assert str(explained).endswith("The error was: MemoryError")


# What a step keeps


def bytes_really_kept(diffusion, b, **told):
    """What autograd saves in a forward pass with numbers, each storage once."""
    unet, storages = diffusion.denoise_fn, {}
    weights = {p.untyped_storage().data_ptr() for p in [*unet.parameters(), *unet.buffers()]}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage
        return tensor

    x, t = torch.randn(b, *diffusion.clip_shape), torch.zeros(b, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        unet(x, t, **told)
    return sum(storage.nbytes() for storage in storages.values())


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers in the forms for a GPU, which the estimate is about; those for a CPU keep less."""
    for module in (attention, blocks, cpu_kernels):
        monkeypatch.setattr(module, "is_eager_on_cpu", lambda x: False)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_estimate_is_what_a_forward_pass_keeps(checkpointing):
    diffusion = tiny_diffusion(cond_dim=3, num_classes=4, gradient_checkpointing=checkpointing)
    told = {"cond": torch.randn(3, 3), "labels": torch.tensor([0, 1, 2])}
    real = bytes_really_kept(diffusion, 3, **told)
    estimate = activation_bytes(diffusion, 3)
    if checkpointing:
        # the largest block is computed again in full, which the count above does not see
        diffusion.denoise_fn.gradient_checkpointing = False
        in_full = bytes_really_kept(diffusion, 3, **told)
        assert 1.2 * real < estimate < 0.7 * in_full
    else:
        # on the meta device attention keeps its weights
        assert real <= estimate < 1.5 * real


def test_it_grows_with_the_batch_and_the_images_and_shrinks_with_half_precision():
    diffusion = tiny_diffusion()
    one = activation_bytes(diffusion)
    assert activation_bytes(diffusion, 8) == pytest.approx(8 * one, rel=0.05)
    assert activation_bytes(diffusion, image_frames=4) > 1.8 * one
    for precision in ("bf16", "fp16"):
        assert activation_bytes(diffusion, 8, precision=precision) < 0.85 * 8 * one


def test_a_network_on_the_meta_device_is_counted():
    with torch.device("meta"):
        unet = Unet3D(8, dim_mults=(1,), attn_heads=2, attn_dim_head=8, time_input="log_snr")
    counted = activation_bytes(GaussianDiffusion(unet, image_size=16, num_frames=4), 1)
    assert counted == pytest.approx(activation_bytes(tiny_diffusion(), 1), rel=0.05)


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


def test_compiled_blocks_are_counted_without_compiling():
    expected = activation_bytes(tiny_diffusion(), 2)
    diffusion = tiny_diffusion()
    diffusion.denoise_fn.compile_blocks(backend=lambda graph, inputs: pytest.fail("compiled"))
    assert activation_bytes(diffusion, 2) == expected
    torch._dynamo.reset()


class Plain(nn.Module):
    """A user's network, which knows no conditions and no checkpoints."""

    channels = 3

    def __init__(self, looks=False):
        super().__init__()
        self.conv, self.looks = nn.Conv3d(3, 3, 1), looks

    def forward(self, x, t, cond=None):
        if self.looks and x.sum().item() > 0:
            return x
        return self.conv(x) if cond is None else self.conv(x) * cond[:, :, None, None, None]


def test_a_network_of_the_user_is_counted(caplog):
    diffusion = GaussianDiffusion(Plain(), image_size=16, num_frames=4)
    one = 3 * 4 * 16 * 16 * 4
    assert activation_bytes(diffusion, 2) == 2 * one
    # the clips for the kernel's gradient, and their features for the condition's
    told = {"cond": torch.randn(2, 3, requires_grad=True)}
    assert activation_bytes(diffusion, 2, conditions=told) == pytest.approx(2 * 2 * one, rel=0.01)
    assert caplog.records == []


def test_a_network_that_reads_values_cannot_be_counted():
    diffusion = GaussianDiffusion(Plain(looks=True), image_size=16, num_frames=4)
    with pytest.raises(RuntimeError, match="meta tensors"):
        activation_bytes(diffusion)


def test_wrong_arguments_are_refused():
    with pytest.raises(KeyError, match="half"):
        activation_bytes(tiny_diffusion(), precision="half")
    diffusion = GaussianDiffusion(Plain(), image_size=16, num_frames=4)
    with pytest.raises(ValueError, match="attribute gradient_checkpointing, got Plain"):
        activation_bytes(diffusion, checkpointing=True)
