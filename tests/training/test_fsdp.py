"""FSDP and checkpoints of sharded models; `work` runs in two processes of this file."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.guidance import KnownRegion
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.checkpoint_file import (
    glance,
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.fsdp import (
    clip_gradients,
    gather_checkpoint,
    read_sharded,
    requested_by_launcher,
    shard,
    sharded_like,
    write_sharded,
)
from video_diffusion_pytorch.training.processes import Processes, make_accelerator

PROCESSES = 2
# one process writes, without a process group
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


# training


def make(seed=0, dtype=torch.float64, dim=4, **options):
    torch.manual_seed(seed)
    unet = Unet3D(dim, dim_mults=(1, 2), attn_heads=1, channels=1, cond_dim=5, **options)
    return GaussianDiffusion(unet, image_size=4, num_frames=2, timesteps=4).to(dtype)


def batch(rows, dtype=torch.float64):
    """Four clips, of which a process takes some."""
    torch.manual_seed(1)
    x, noise = torch.randn(2, 4, 1, 2, 4, 4, dtype=torch.float64).to(dtype)
    cond, t = torch.randn(4, 5, dtype=torch.float64).to(dtype), torch.arange(4)
    return {"x_start": x[rows], "t": t[rows], "noise": noise[rows], "cond": cond[rows]}


def loss_of(diffusion, rows, dtype=torch.float64):
    return diffusion.p_losses(**batch(rows, dtype), null_cond_prob=0.0)


def exchange(diffusion, on):
    diffusion.denoise_fn.set_requires_gradient_sync(on)


def whole(parameters):
    return [p.full_tensor() for p in parameters]


def check_training(mesh, rank):
    """Steps with accumulation, clipping and an average equal those of one process."""
    alone, split = make(), make(gradient_checkpointing=True)
    alone_average = copy.deepcopy(alone)
    average = copy.deepcopy(split).requires_grad_(False)
    for model in (split, average):
        shard(model, mesh)
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-2) for model in (alone, split)]
    for _ in range(2):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(alone, slice(0, 4)).backward()
        for i in range(2):
            exchange(split, i == 1)
            row = rank * 2 + i
            (loss_of(split, slice(row, row + 1)) / 2).backward()
        norms = [clip_gradients(model.parameters(), 0.1) for model in (alone, split)]
        torch.testing.assert_close(norms[1], norms[0])
        assert type(norms[1]) is torch.Tensor
        assert norms[0] > 0.1
        after = clip_gradients(split.parameters(), None)
        torch.testing.assert_close(after, torch.full_like(after, 0.1), atol=1e-5, rtol=0)
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_([*alone_average.parameters()], [*alone.parameters()], 0.3)
            torch._foreach_lerp_([*average.parameters()], [*split.parameters()], 0.3)
    for ours, theirs in ((split, alone), (average, alone_average)):
        for p, q in zip(whole(ours.parameters()), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q.detach(), atol=1e-9, rtol=1e-9)
    check_samples(average, alone_average)


def check_samples(split, alone):
    """Guided samples equal those of an unsharded model."""
    cond = batch(slice(0, 2))["cond"]
    region = KnownRegion(torch.zeros(1, 1, 2, 4, 4), torch.tensor([True, False]))
    options = {"cond_scale": 2.0, "guidance": region, "steps": 2, "progress": False}
    videos = []
    for model in (split, alone):
        torch.manual_seed(5)
        videos.append(model.sample(cond=cond, batch_size=2, **options))
    torch.testing.assert_close(*videos, atol=1e-9, rtol=1e-9)


def check_start(mesh, rank):
    """All processes start with shards of the weights of the first."""
    split = make(seed=rank)
    count = sum(p.numel() for p in split.parameters())
    shard(split, mesh)
    units = [n for n, m in split.named_modules() if "reshard" in dir(m)]
    levels = [f"denoise_fn.{name}.{i}" for name in ("downs", "ups") for i in (0, 1)]
    assert sorted(units) == sorted(["denoise_fn", *levels])
    for p, q in zip(whole(split.parameters()), make(seed=0).parameters(), strict=True):
        assert torch.equal(p, q)
    local = sum(p.to_local().numel() for p in split.parameters())
    # rows that can't be divided evenly are on the first
    assert 0.3 < local / count < 0.7


def check_half_precision(mesh, rank):
    """Weights gathered in bfloat16 give the gradients that autocast gives of whole ones."""
    gradients = []
    for mp_dtype in (None, torch.bfloat16):
        split = make(dtype=torch.float32, dim=8)
        shard(split, mesh, mp_dtype=mp_dtype)
        seen = []

        def note(module, args, output, seen=seen, split=split):
            rotary = args[2][0]
            weights = (module.norm.gamma, split.denoise_fn.rotary_emb.freqs)
            seen.append((rotary.dtype, *(weight.dtype for weight in weights)))

        split.denoise_fn.downs[0].temporal_attn.register_forward_hook(note)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(split, slice(2 * rank, 2 * rank + 2), torch.float32)
        loss.backward()
        # what does not come out of a matrix product keeps its precision
        assert seen == [(torch.float32, mp_dtype or torch.float32, torch.float32)]
        trained = [p for p in split.parameters() if p.requires_grad]
        assert {p.dtype for p in split.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in trained} == {torch.float32}
        gradients.append(torch.cat([p.grad.full_tensor().flatten() for p in trained]))
    alone = make(dim=8)
    loss_of(alone, slice(0, 4)).backward()
    exact = torch.cat([p.grad.flatten() for p in alone.parameters() if p.requires_grad]).float()
    errors = [(some - exact).norm() / exact.norm() for some in gradients]
    assert not torch.equal(*gradients)
    # both are rounding, whose size differs with the processor's kernels
    assert errors[1] < 1.5 * errors[0] < 0.3, errors


def check_other_networks(mesh, rank):
    """Lists in lists, outputs that are changed in place, and a module compiled in place."""

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
    unsharded = copy.deepcopy(diffusion)
    diffusion.denoise_fn.rest[1].compile(backend="eager")
    shard(diffusion, mesh)
    assert [n for n, m in diffusion.named_modules() if "reshard" in dir(m)] == [
        "denoise_fn",
        "denoise_fn.rows.0.0",
    ]
    x = torch.randn(3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's compiler
        for one in (diffusion, unsharded):
            one.denoise_fn(x).square().sum().backward()
    for p, q in zip(diffusion.parameters(), unsharded.parameters(), strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), q.grad)


def check_loss_scale(mesh, rank):
    """Infinite gradients on one process keep all from stepping."""
    diffusion = nn.Module()
    diffusion.denoise_fn = nn.Linear(4, 4)
    shard(diffusion, mesh)
    weights = [*diffusion.parameters()]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = whole(weights)
    for bad in (True, False):
        optimizer.zero_grad()
        scaler.scale(diffusion.denoise_fn(torch.ones(1, 4)).sum()).backward()
        if bad and rank == 1:
            weights[0].grad.to_local().fill_(torch.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        same = [torch.equal(p, q) for p, q in zip(whole(weights), before, strict=True)]
        assert all(same) if bad else not all(same)
    assert scaler.get_scale() == 4.0


# checkpoints


class Diffusion(nn.Module):
    """The layout that `shard` expects, with names, sizes and types of all kinds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.denoise_fn = nn.Module()
        self.denoise_fn.levels = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 1)])
        self.denoise_fn.gain = nn.Parameter(torch.randn(()).reshape(1))
        self.denoise_fn.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.register_buffer("betas", torch.linspace(0, 1, 4, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(3))


def make_small(mesh=None):
    diffusion = Diffusion()
    if mesh is not None:
        shard(diffusion, mesh)
    return diffusion, torch.optim.AdamW(diffusion.parameters(), lr=0.1)


def train(diffusion, optimizer, steps=2):
    for step in range(steps):
        for i, p in enumerate(diffusion.parameters()):
            if p.requires_grad:
                p.grad = torch.zeros_like(p) + 0.1 * (i + 1) + step
        optimizer.step()
        optimizer.zero_grad()


def state_of(diffusion, optimizer):
    """A state like a Trainer's; random states are those of two processes."""
    return {
        "step": 7,
        "model": diffusion.state_dict(),
        "ema": diffusion.state_dict(),
        "emas": {"0.5": diffusion.state_dict()},
        "optimizer": optimizer.state_dict(),
        "scheduler": {"base_lrs": [0.1]},
        "config": {"unet": {"dim_mults": (1, 2)}, "class_names": ("a", "b")},
        "random_states": [{"torch": torch.arange(4, dtype=torch.uint8) + i} for i in range(2)],
        "ema_decays": [0.9, 0.5],
        "version": "1.0",
    }


def trained_state():
    diffusion, optimizer = make_small()
    train(diffusion, optimizer)
    return state_of(diffusion, optimizer)


def assert_same(one, other):
    """Of the same nesting, keys with their types, tensors bit for bit."""
    if torch.is_tensor(other):
        one = one.full_tensor() if is_sharded(one) else one
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(other, dict):
        assert list(one) == list(other)
        for key in other:
            assert_same(one[key], other[key])
    elif isinstance(other, (list, tuple)):
        assert type(one) is type(other)
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


def is_sharded(tensor):
    return hasattr(tensor, "full_tensor")


def check_writing(mesh, processes, folder):
    diffusion, optimizer = make_small(mesh)
    train(diffusion, optimizer)
    state = state_of(diffusion, optimizer)
    assert is_sharded(state["optimizer"]["state"][0]["exp_avg"])
    path = folder / "model-1.sharded"
    for _ in range(2):  # the second replaces the first
        write_sharded(state, path, processes)
        dist.barrier()
        assert {p.name for p in path.iterdir()} == {
            ".metadata",
            "run.pt",
            "__0_0.distcp",
            "__1_0.distcp",
        }

    # an error of one process is raised by all, and leaves what was there
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    save = torch.save
    if processes.rank == 1:
        torch.save = fail
    with pytest.raises(OSError, match=r"1\.sharded could not be written: .*No space.*free disk"):
        write_sharded(state, path, processes)
    torch.save = save
    with pytest.raises(OSError, match=r"could not be written: .*missing"):
        write_sharded(state, folder / "missing" / "model-1.sharded", processes)
    dist.barrier()
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    assert not list(folder.glob(".*"))


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


def check_reading(mesh, processes, path):
    """A process reads its shards, whatever the number of processes that wrote."""
    diffusion, optimizer = make_small(mesh)
    weights = diffusion.state_dict()
    for state in (
        read_sharded(path, diffusion, optimizer, processes.share),
        sharded_like(read_sharded(path), diffusion, optimizer),
    ):
        assert_same(state, trained_state())
        for key in weights:
            for other in (state["model"][key], state["ema"][key], state["emas"]["0.5"][key]):
                assert is_sharded(other) == key.startswith("denoise_fn")
                if is_sharded(other):
                    assert other.placements == weights[key].placements
        assert is_sharded(state["optimizer"]["state"][0]["exp_avg"])

    # training continues as if it had not been interrupted
    diffusion.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(diffusion, optimizer, 1)
    alone, its_optimizer = make_small()
    train(alone, its_optimizer)
    train(alone, its_optimizer, 1)
    for p, q in zip(diffusion.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q)


def check_damage(mesh, processes, path):
    """Damage to the shard of one process is raised by all."""
    if processes.is_main:
        with (path / "__1_0.distcp").open("r+b") as file:
            file.truncate(100)
    dist.barrier()
    model = make_small(mesh)
    with pytest.raises(ValueError, match=r"model-1.*cut off, altered.*use the checkpoint"):
        processes.together(lambda: read_sharded(path, *model, processes.share))


def work(rank, folder):
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=PROCESSES)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    processes = Processes(make_accelerator(False, "cpu"), fsdp=True)
    assert processes.share == (rank, PROCESSES)
    check_start(mesh, rank)
    check_training(mesh, rank)
    check_half_precision(mesh, rank)
    check_other_networks(mesh, rank)
    check_loss_scale(mesh, rank)
    results = folder / "results"
    check_writing(mesh, processes, results)
    check_reading(mesh, processes, results / "model-1.sharded")
    check_reading(mesh, processes, folder / "of-one.sharded")
    if rank == 0:
        shutil.copytree(results, folder / "damaged")
    dist.barrier()
    check_damage(mesh, processes, folder / "damaged" / "model-1.sharded")
    print("all checked", flush=True)
    # gloo's threads abort a process now and then whose Python is shutting down
    os._exit(0)


def test_two_processes(tmp_path):
    (tmp_path / "results").mkdir()
    write(trained_state(), tmp_path / "of-one.sharded")
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(PROCESSES),
                "LOCAL_WORLD_SIZE": str(PROCESSES),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": "29400",
            },
        )
        for rank in range(PROCESSES)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * PROCESSES, "\n".join(outputs)
    assert all(output.endswith("all checked\n") for output in outputs)
    path = tmp_path / "results" / "model-1.sharded"
    assert_same(read_sharded(path), trained_state())
    seen = glance(path)
    assert seen["step"] == 7
    assert seen["model"]["denoise_fn.levels.0.weight"].shape == (5, 3)


# in one process

ALONE = SimpleNamespace(
    is_main=True, rank=0, together=lambda act: act(), from_all=lambda value: [value]
)


def write(state, path):
    write_sharded(state, path, ALONE)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model-2.5.sharded"
    write(trained_state(), path)
    return path


def test_one_process_reads_what_it_wrote(folder):
    assert_same(read_sharded(folder), trained_state())
    assert os.listdir(folder.parent) == [folder.name]


def test_gathered_to_one_file(folder):
    file = gather_checkpoint(folder)
    assert file == folder.parent / "model-2.5.pt"
    assert_same(read_checkpoint(file), trained_state())
    with pytest.raises(FileExistsError, match=r"must not exist, got .*model-2\.5\.pt; move it"):
        gather_checkpoint(folder)
    other = gather_checkpoint(folder, folder.parent / "other.pt")
    assert other.read_bytes()[:2] == b"PK"


def test_what_is_no_sharded_checkpoint(folder):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint at .*model-1\.sharded"):
        read_sharded(folder.with_name("model-1.sharded"))
    (folder / "run.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"run\.pt, found none"):
        gather_checkpoint(folder)
    write_checkpoint(trained_state(), folder / "run.pt")
    with pytest.raises(ValueError, match=r"its run\.pt has no sharded_files\); use"):
        read_sharded(folder)


def test_what_a_killed_process_left_is_replaced(folder):
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir()
    (temporary / "__0_0.distcp").write_bytes(b"half")
    write({**trained_state(), "step": 8}, folder)
    assert read_sharded(folder)["step"] == 8
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("name", [".metadata", "run.pt", "__0_0.distcp"])
@pytest.mark.parametrize("kind", ["cut", "altered", "empty"])
def test_damage_is_found(folder, name, kind):
    file = folder / name
    data = file.read_bytes()
    for seed in range(12 if kind == "altered" else 3):
        place = int(torch.randint(len(data), (), generator=torch.Generator().manual_seed(seed)))
        if kind == "altered":
            changed = data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :]
        else:
            changed = data[:place] if kind == "cut" else b""
        file.write_bytes(changed)
        if name == "run.pt" and kind == "altered":
            # some bytes between its records mean nothing
            with suppress(ValueError):
                assert_same(read_sharded(folder), trained_state())
            continue
        with pytest.raises(ValueError, match=r"cut off, altered or of another kind \(.*\); use"):
            read_sharded(folder)


def test_a_missing_file_is_found(folder):
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"__0_0\.distcp.*use the checkpoint before it"):
        read_sharded(folder)


# files of an attacker, who knows how to make the sums right


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def reseal(folder):
    """Makes the sums in run.pt those of the files as they are now."""
    from video_diffusion_pytorch.training.fsdp import _sum_of

    run = read_checkpoint(folder / "run.pt")
    run["sharded_files"] = {p.name: _sum_of(p) for p in folder.iterdir() if p.name != "run.pt"}
    write_checkpoint(run, folder / "run.pt")


def index_of(folder):
    with (folder / ".metadata").open("rb") as file:
        return pickle.load(file)


def put_index(folder, index):
    with (folder / ".metadata").open("wb") as file:
        pickle.dump(index, file)
    reseal(folder)


def test_an_index_runs_no_code(folder, tmp_path):
    mark = str(tmp_path / "ran")
    index = index_of(folder)
    index.planner_data = Evil(mark)
    put_index(folder, index)
    with pytest.raises(ValueError, match=r"(posix|nt)\.mkdir is not part of an index"):
        read_sharded(folder)
    assert not os.path.exists(mark)
    # the same file does run it where torch reads it
    index_of(folder)
    assert os.path.exists(mark)


def test_an_entry_that_is_no_tensor_is_not_loaded(folder, tmp_path):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata

    mark = str(tmp_path / "ran")
    evil = tmp_path / "evil"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        checkpoint.save(
            {"x": Evil(mark)},
            storage_writer=checkpoint.FileSystemWriter(evil),
            planner=checkpoint.DefaultSavePlanner(flatten_state_dict=False),
        )
    name = "model/betas"
    index, bad = index_of(folder), index_of(evil)
    shutil.copy(evil / "__0_0.distcp", folder / "__9_0.distcp")
    [info] = bad.storage_data.values()
    info.relative_path = "__9_0.distcp"
    index.state_dict_metadata[name] = BytesStorageMetadata()
    index.storage_data = {
        k if k.fqn != name else type(k)(name): v if k.fqn != name else info
        for k, v in index.storage_data.items()
    }
    put_index(folder, index)
    with pytest.raises(ValueError, match="BytesStorageMetadata is not part of an index"):
        read_sharded(folder)
    assert not os.path.exists(mark)


def test_a_shard_that_is_no_tensor_is_not_loaded(folder, tmp_path):
    mark = str(tmp_path / "ran")
    torch.save(Evil(mark), folder / "__9_0.distcp")
    index = index_of(folder)
    for info in index.storage_data.values():
        info.relative_path, info.offset = "__9_0.distcp", 0
        info.length = (folder / "__9_0.distcp").stat().st_size
    put_index(folder, index)
    with pytest.raises(ValueError, match="cut off, altered or of another kind"):
        read_sharded(folder)
    assert not os.path.exists(mark)


@pytest.mark.parametrize("outside", ["../secret.pt", "/etc/hostname", "__7_0.distcp"])
def test_an_index_refers_to_no_other_files(folder, outside):
    index = index_of(folder)
    next(iter(index.storage_data.values())).relative_path = outside
    put_index(folder, index)
    with pytest.raises(ValueError, match=f"{outside} does not belong to it"):
        read_sharded(folder)


@pytest.mark.parametrize("index", [[1], "text"])
def test_what_is_no_index(folder, index):
    put_index(folder, index)
    with pytest.raises(ValueError, match="cut off, altered or of another kind"):
        read_sharded(folder)


@pytest.mark.parametrize("shape", [(5,), (10**6, 10**6)])
def test_a_tensor_of_another_shape_than_in_the_files(folder, shape):
    run = read_checkpoint(folder / "run.pt")
    run["model"]["betas"] = torch.empty(shape, device="meta")
    write_checkpoint(run, folder / "run.pt")
    with pytest.raises(ValueError, match="cut off, altered or of another kind"):
        read_sharded(folder)


# in one process, without sharding


@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
def test_clip_gradients_as_torch_does(max_norm):
    model, other = make(), make()
    for one in (model, other):
        loss_of(one, slice(0, 4)).backward()
        one.denoise_fn.final_conv[1].bias.grad = None
    expected = nn.utils.clip_grad_norm_(other.parameters(), max_norm or float("inf"))
    torch.testing.assert_close(clip_gradients(model.parameters(), max_norm), expected)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        if q.grad is not None:
            torch.testing.assert_close(p.grad, q.grad)


def test_clip_gradients_without_gradients_and_with_infinite_ones():
    layer = nn.Linear(2, 2)
    assert clip_gradients(layer.parameters(), 1.0) == 0
    layer.weight.grad = torch.full((2, 2), torch.inf)
    assert clip_gradients(layer.parameters(), None).isinf()


def test_shard_refuses_a_wrapped_network():
    model = make()
    model.denoise_fn = torch.compile(model.denoise_fn, backend="eager")
    with pytest.raises(TypeError, match="must be the network itself, got one wrapped in Optimized"):
        shard(model, None)


@pytest.mark.parametrize("value", [None, "false", "False"])
def test_the_launcher_does_not_request_sharding(monkeypatch, value):
    monkeypatch.delenv("ACCELERATE_USE_FSDP", raising=False)
    if value is not None:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", value)
    assert not requested_by_launcher()


def test_the_launcher_requests_sharding_which_accelerate_does_not_see(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert requested_by_launcher()
    accelerator = make_accelerator(False, "cpu")
    assert accelerator.distributed_type == "NO"
    assert Processes(accelerator).fsdp
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


@pytest.mark.parametrize("version", [None, "1"])
def test_the_launcher_requests_another_version(monkeypatch, version):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    if version is not None:
        monkeypatch.setenv("FSDP_VERSION", version)
    with pytest.raises(ValueError, match="FSDP version 2, got version 1 from the launcher; add"):
        requested_by_launcher()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
