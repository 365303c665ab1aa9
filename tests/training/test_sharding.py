"""Sharded training; what needs two processes is in `work`, which runs in two of this file."""

import copy
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.sharding import (
    clip_gradients,
    gradient_sync,
    hidden_from_accelerate,
    is_sharded,
    shard,
    wanted_by_launcher,
)

PROCESSES = 2


def make(seed=0, dtype=torch.float64, **options):
    torch.manual_seed(seed)  # parameters are drawn in float32, whatever their type
    unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, channels=1, cond_dim=5, **options)
    return GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=4).to(dtype)


def batch(rows, dtype=torch.float64):
    """Four clips, of which a process takes some."""
    torch.manual_seed(1)
    x, noise = torch.randn(2, 4, 1, 3, 8, 8, dtype=torch.float64).to(dtype)
    cond, t = torch.randn(4, 5, dtype=torch.float64).to(dtype), torch.arange(4)
    return {"x_start": x[rows], "t": t[rows], "noise": noise[rows], "cond": cond[rows]}


def loss_of(diffusion, rows, dtype=torch.float64):
    return diffusion.p_losses(**batch(rows, dtype), null_cond_prob=0.0)


def whole(parameters):
    return [p.full_tensor() for p in parameters]


def check_training(mesh, rank, *, fused=None, reshard=True, checkpointing=False):
    """Three steps with accumulation, clipping and an average are those of one process."""
    alone, split = make(), make(gradient_checkpointing=checkpointing)
    alone_average = copy.deepcopy(alone)
    average = copy.deepcopy(split).requires_grad_(False)
    for model in (split, average):
        shard(model, mesh, reshard_after_forward=reshard)
    optimizers = [
        torch.optim.Adam(alone.parameters(), lr=1e-2),
        torch.optim.Adam(split.parameters(), lr=1e-2, fused=fused),
    ]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(alone, slice(0, 4)).backward()
        for i in range(2):
            gradient_sync(split, i == 1)
            row = rank * 2 + i
            (loss_of(split, slice(row, row + 1)) / 2).backward()
        norms = [clip_gradients(model.parameters(), 0.5) for model in (alone, split)]
        torch.testing.assert_close(norms[1], norms[0])
        assert type(norms[1]) is torch.Tensor
        assert norms[0] > 0.5
        after = clip_gradients(split.parameters(), None)
        torch.testing.assert_close(after, torch.full_like(after, 0.5), atol=1e-5, rtol=0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_([*alone_average.parameters()], [*alone.parameters()], 0.3)
            torch._foreach_lerp_([*average.parameters()], [*split.parameters()], 0.3)
    for ours, theirs in ((split, alone), (average, alone_average)):
        for p, q in zip(whole(ours.parameters()), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), atol=1e-9, rtol=1e-9)
        check_samples(ours, theirs)


def check_samples(split, alone):
    """Samples are those of an unsharded model, and parameters are parts again afterwards."""
    cond = batch(slice(0, 2))["cond"]
    region = KnownRegion(torch.zeros(1, 1, 3, 8, 8), torch.tensor([True, False, False]))
    for options in ({}, {"cond_scale": 2.0}, {"cond_scale": 2.0, "guidance": region}):
        videos = []
        for model in (split, alone):
            torch.manual_seed(5)
            videos.append(model.sample(cond=cond, batch_size=2, progress=False, **options))
        torch.testing.assert_close(*videos, atol=1e-9, rtol=1e-9)
        assert {type(p).__name__ for p in split.parameters()} == {"DTensor"}


def check_compiled_blocks(mesh, rank):
    """Blocks that are compiled in place give the same gradients."""
    alone, split = make(), make(gradient_checkpointing=True)
    shard(split, mesh)
    split.denoise_fn.ups[0].spatial_attn.compile(backend="eager")
    with warnings.catch_warnings():
        # of torch's compiler, about itself
        warnings.simplefilter("ignore")
        for _ in range(2):
            loss_of(split, slice(2 * rank, 2 * rank + 2)).backward()
    for _ in range(2):
        loss_of(alone, slice(0, 4)).backward()
    for p, q in zip(split.parameters(), alone.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad.full_tensor(), q.grad, atol=1e-9, rtol=1e-9)


def check_same_beginning(mesh, rank):
    """All processes begin with the weights of the first, which each has a part of."""
    split = make(seed=rank)
    count = sum(p.numel() for p in split.parameters())
    assert not is_sharded(split)
    shard(split, mesh)
    assert is_sharded(split)
    assert is_sharded(split.denoise_fn)
    units = [n for n, m in split.named_modules() if "reshard" in dir(m)]
    levels = [f"denoise_fn.{name}.{i}" for name in ("downs", "ups") for i in (0, 1)]
    assert sorted(units) == sorted(["denoise_fn", *levels])
    for p, q in zip(whole(split.parameters()), make(seed=0).parameters(), strict=True):
        assert torch.equal(p, q)
    local = sum(p.to_local().numel() for p in split.parameters())
    # rows that can't be divided evenly are on the first
    assert 0.3 < local / count < 0.7
    with pytest.raises(ValueError, match=r"must have whole weights, got some .* shard a model"):
        shard(split, mesh)


def check_half_precision(mesh, rank):
    """Weights gathered in bfloat16 give the gradients that autocast gives of whole ones."""
    gradients = []
    for mp_dtype in (None, torch.bfloat16):
        split = make(dtype=torch.float32)
        shard(split, mesh, mp_dtype=mp_dtype)
        seen = []

        def note(module, args, output, seen=seen, split=split):
            rotary = args[2][0]
            weights = (module.norm.gamma, split.denoise_fn.rotary_emb.freqs)
            seen.append((rotary.dtype, *(weight.dtype for weight in weights)))

        split.denoise_fn.downs[0].temporal_attn.register_forward_hook(note)
        for i in range(2):
            gradient_sync(split, i == 1)
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(split, slice(2 * rank, 2 * rank + 2), torch.float32)
            loss.backward()
        # what does not come out of a matrix product keeps its precision
        assert seen == [(torch.float32, mp_dtype or torch.float32, torch.float32)] * 2
        assert {p.dtype for p in split.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in split.parameters() if p.requires_grad} == {torch.float32}
        trained = [p for p in split.parameters() if p.requires_grad]
        gradients.append(torch.cat([p.grad.full_tensor().flatten() for p in trained]))
    alone = make()
    for _ in range(2):
        loss_of(alone, slice(0, 4)).backward()
    exact = torch.cat([p.grad.flatten() for p in alone.parameters() if p.requires_grad]).float()
    errors = [(some - exact).norm() / exact.norm() for some in gradients]
    assert not torch.equal(*gradients)
    # both are rounding, whose size differs with the processor's kernels
    assert errors[1] < 1.25 * errors[0] < 0.2, errors


def check_other_networks(mesh, rank):
    """Any network can be split: with lists in lists, or without any, and outputs in place."""

    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x).view(-1, 4)

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.ModuleList([nn.ModuleList([Doubled(), nn.Identity()])])
            self.rest = nn.Sequential(nn.ModuleDict({"a": Doubled()})["a"], Doubled())

        def forward(self, x):
            for one, other in self.rows:
                x = other(one(x))
                x += 1
            return self.rest(x)

    torch.manual_seed(0)
    diffusion = nn.Module()
    diffusion.denoise_fn = Network()
    whole_one = copy.deepcopy(diffusion)
    shard(diffusion, mesh)
    assert [n for n, m in diffusion.named_modules() if "reshard" in dir(m)] == [
        "denoise_fn",
        "denoise_fn.rows.0.0",
    ]
    x = torch.randn(3, 4)
    for one in (diffusion, whole_one):
        one.denoise_fn(x).square().sum().backward()
    for p, q in zip(diffusion.parameters(), whole_one.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad)
    # norms of whole and of split gradients together
    both = [*diffusion.parameters(), *whole_one.parameters()]
    expected = 2**0.5 * clip_gradients(whole_one.parameters(), None)
    torch.testing.assert_close(clip_gradients(both, 1e-3), expected)
    torch.testing.assert_close(clip_gradients(both, None), torch.tensor(1e-3), atol=1e-6, rtol=0)


def check_loss_scale(mesh, rank):
    """Infinite gradients on one process keep all from stepping."""
    split = make(dtype=torch.float32)
    shard(split, mesh)
    optimizer = torch.optim.Adam(split.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = whole(split.parameters())
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale(loss_of(split, slice(rank, rank + 1), torch.float32)).backward()
        if bad and rank == 1:
            next(p for p in split.parameters() if p.to_local().numel()).grad.to_local().fill_(
                torch.inf
            )
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(p, q) for p, q in zip(whole(split.parameters()), before, strict=True)]
        assert all(same) if bad else not all(same)
    assert scaler.get_scale() == 4.0


def work(rank, store):
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    check_same_beginning(mesh, rank)
    check_training(mesh, rank)
    check_training(mesh, rank, fused=True, reshard=False, checkpointing=True)
    check_compiled_blocks(mesh, rank)
    check_half_precision(mesh, rank)
    check_other_networks(mesh, rank)
    check_loss_scale(mesh, rank)
    dist.destroy_process_group()
    print("all checked", flush=True)
    # gloo's threads abort a process now and then whose Python is being taken down
    os._exit(0)


def test_in_two_processes(tmp_path):
    command = [sys.executable, __file__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=Path.cwd(),
        )
        for rank in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * PROCESSES, "\n".join(outputs)
    assert all(output.endswith("all checked\n") for output in outputs)


# in one process


def test_without_sharding_there_is_nothing_to_exchange():
    model = make()
    gradient_sync(model, False)
    assert not is_sharded(model)
    loss_of(model, slice(0, 4)).backward()
    assert all(p.grad is not None for p in model.denoise_fn.downs.parameters())


@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_clip_gradients_of_plain_parameters_as_torch_does(max_norm):
    model, other = make(), make()
    for one in (model, other):
        loss_of(one, slice(0, 4)).backward()
    model.denoise_fn.final_conv[1].bias.grad = None
    other.denoise_fn.final_conv[1].bias.grad = None
    expected = nn.utils.clip_grad_norm_(other.parameters(), max_norm or float("inf"))
    torch.testing.assert_close(clip_gradients(model.parameters(), max_norm), expected)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_clip_gradients_without_gradients():
    assert clip_gradients(make().parameters(), 1.0) == 0


def test_clip_gradients_tells_of_gradients_that_are_not_finite():
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.full((2, 2), torch.inf)
    assert clip_gradients(layer.parameters(), None).isinf()


def test_shard_refuses_a_wrapped_network():
    model = make()
    model.denoise_fn = torch.compile(model.denoise_fn, backend="eager")
    with pytest.raises(TypeError, match="must be the network itself, got one that is wrapped in O"):
        shard(model, SimpleNamespace(ndim=1))


def test_shard_refuses_a_mesh_of_two_axes():
    with pytest.raises(ValueError, match="mesh must have one axis, got 2; make it with"):
        shard(make(), SimpleNamespace(ndim=2))


def test_shard_says_which_torch_it_needs(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.distributed.fsdp", None)
    with pytest.raises(ImportError, match=r"needs torch 2\.6 or newer.*got .*; upgrade torch"):
        shard(make(), SimpleNamespace(ndim=1))


@pytest.mark.parametrize("value", [None, "false", "False"])
def test_nobody_wants_sharding(monkeypatch, value):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    assert not wanted_by_launcher()


def test_the_launcher_wants_sharding(monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "true")
    with caplog.at_level(logging.WARNING):
        assert wanted_by_launcher()
        assert not caplog.messages
        monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
        assert wanted_by_launcher()
    assert caplog.messages == ["FSDP_OFFLOAD_PARAMS=true of the launcher has no effect here"]


@pytest.mark.parametrize("version", [None, "1"])
def test_the_launcher_wants_another_version(monkeypatch, version):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    if version is not None:
        monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(ValueError, match="FSDP version 2, got version 1 from the launcher; add"):
        wanted_by_launcher()


@pytest.mark.parametrize("value", [None, "true"])
def test_accelerate_does_not_see_what_is_hidden(monkeypatch, value):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    with hidden_from_accelerate():
        assert "ACCELERATE_USE_FSDP" not in os.environ
    assert os.environ.get("ACCELERATE_USE_FSDP") == value


if __name__ == "__main__":
    work(int(sys.argv[1]), sys.argv[2])
