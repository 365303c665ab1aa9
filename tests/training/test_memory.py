"""Out of memory: which errors mean it, and what the advice says."""

import pickle
import types

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training import memory
from video_diffusion_pytorch.training.activation_memory import activation_bytes
from video_diffusion_pytorch.training.memory import (
    TrainingOutOfMemory,
    advice,
    device_memory,
    out_of_memory,
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
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        OSError(),
    ],
)
def test_an_error_that_means_something_else(error):
    assert not out_of_memory(error)


def test_the_cpus_own_error_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)


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


def test_devices_tell_their_memory(monkeypatch):
    assert device_memory(torch.device("cpu")) > 2**28
    assert device_memory(torch.device("meta")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 80 * 2**30))
    assert device_memory(torch.device("cuda", 0)) == 80 * 2**30
    monkeypatch.setattr(torch, "mps", types.SimpleNamespace(recommended_max_memory=lambda: 7))
    assert device_memory(torch.device("mps")) == 7


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


# What to do


def say(diffusion, **changed):
    options = {
        "batch_size": 8,
        "accumulate": 2,
        "precision": "no",
        "checkpointing": False,
        "error": RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    }
    return advice(diffusion, **options | changed)


def gib(count):
    return f"{count / 2**30:.3g} GiB"


def test_the_advice_has_four_parts_with_numbers(monkeypatch):
    diffusion = tiny_diffusion()
    kept, rest = activation_bytes(diffusion, 8), state_bytes(diffusion)
    again = activation_bytes(diffusion, 8, checkpointing=True)
    half = activation_bytes(diffusion, 8, precision="bf16")
    # room for a good quarter of the batch
    monkeypatch.setattr(memory, "device_memory", lambda device: rest + int(kept * 0.3 / 0.8))
    assert say(diffusion) == (
        f"Trainer: a step must fit into the memory of cpu, {gib(rest + kept * 0.375)}, got a "
        f"micro-batch of 8 clips of 3 x 4 x 16 x 16, which keeps about {gib(kept)} of activations "
        f"beside about {gib(rest)} of weights, averages, gradients and optimizer state; use "
        f"gradient checkpointing, Unet3D(gradient_checkpointing=True) (about {gib(again)} of "
        f"activations), or half precision, amp=True (about {gib(half)} of activations), or "
        f"train_batch_size=2 with gradient_accumulate_every=8, which is the same step (about "
        f"{gib(kept // 4)} of activations), or smaller clips or a smaller network. The error was: "
        "CUDA out of memory. Tried to allocate 2 GiB"
    )


def test_what_is_turned_already_is_not_advised():
    diffusion = tiny_diffusion(gradient_checkpointing=True)
    text = say(diffusion, batch_size=1, precision="bf16", checkpointing=True, error=MemoryError())
    kept = activation_bytes(diffusion, precision="bf16", checkpointing=True)
    assert f"keeps about {gib(kept)} of activations" in text
    assert text.endswith("use smaller clips or a smaller network. The error was: MemoryError")
    assert "and 2 images, which keeps" in say(diffusion, image_frames=2)
    assert "amp=True" not in say(tiny_diffusion().bfloat16())
    assert "gradient checkpointing" not in say(
        GaussianDiffusion(Plain(), image_size=16, num_frames=4)
    )


@pytest.mark.parametrize(
    ("kept", "room", "expected"),
    [(None, 100, 6), (100, None, 6), (120, 100, 6), (240, 100, 4), (1200, 100, 1), (99999, 100, 1)],
)
def test_a_smaller_batch_divides_the_batch(kept, room, expected):
    assert memory._smaller_batch(12, kept, room) == expected


def test_without_an_estimate_the_advice_says_less(caplog):
    diffusion = GaussianDiffusion(Plain(looks=True), image_size=16, num_frames=4)
    text = say(diffusion)
    assert "keeps an unknown amount of activations" in text
    assert "train_batch_size=4 with gradient_accumulate_every=4, which is the same step," in text
    assert "no estimate" in caplog.text
