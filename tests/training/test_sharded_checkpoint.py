"""Sharded checkpoints; what needs several processes is in `work`, run by several of this file."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from video_diffusion_pytorch.training.checkpoint_file import (
    glance,
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.sharded_checkpoint import (
    gather_checkpoint,
    load_tensors,
    read_gathered,
    read_index,
    read_sharded,
    write_sharded,
)
from video_diffusion_pytorch.training.sharding import gathered, scattered, warm_optimizer


class Diffusion(nn.Module):
    """The layout that `shard` expects, small, with names, sizes and types of all kinds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.denoise_fn = nn.Module()
        self.denoise_fn.levels = nn.ModuleList([nn.Linear(3, 5), nn.Linear(5, 1)])
        self.denoise_fn.gain = nn.Parameter(torch.randn(()).reshape(1))
        self.denoise_fn.frozen = nn.Parameter(torch.randn(7), requires_grad=False)
        self.register_buffer("betas", torch.linspace(0, 1, 4, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(3))


def train(diffusion, optimizer, steps=2):
    for step in range(steps):
        for i, p in enumerate(diffusion.parameters()):
            if p.requires_grad:
                p.grad = torch.zeros_like(p) + 0.1 * (i + 1) + step
        optimizer.step()
        optimizer.zero_grad()


def state_of(diffusion, optimizer, emas=("0.5",)):
    """A state like a Trainer's; random states are those of two processes."""
    return {
        "step": 7,
        "model": diffusion.state_dict(),
        "ema": diffusion.state_dict(),
        "emas": {name: diffusion.state_dict() for name in emas},
        "optimizer": optimizer.state_dict(),
        "scheduler": {"base_lrs": [0.1]},
        "config": {"unet": {"dim_mults": (1, 2)}, "class_names": ("a", "b")},
        "random_states": [{"torch": torch.arange(4, dtype=torch.uint8) + i} for i in range(2)],
        "ema_decays": [0.9, 0.5],
        "version": "1.0",
    }


def make(sharded_on=None, lr=0.1):
    from video_diffusion_pytorch.training.sharding import shard

    diffusion = Diffusion()
    if sharded_on is not None:
        shard(diffusion, sharded_on)
    return diffusion, torch.optim.AdamW(diffusion.parameters(), lr=lr)


def trained_state():
    diffusion, optimizer = make()
    train(diffusion, optimizer)
    return state_of(diffusion, optimizer)


def assert_same(one, other):
    """Of the same nesting, keys with their types, tensors bit for bit."""
    if torch.is_tensor(other):
        one = one.full_tensor() if hasattr(one, "full_tensor") else one
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


def is_split(tensor):
    return hasattr(tensor, "full_tensor")


# several processes


def check_writing(mesh, rank, folder):
    diffusion, optimizer = make(mesh)
    train(diffusion, optimizer)
    state = state_of(diffusion, optimizer)
    assert is_split(state["optimizer"]["state"][0]["exp_avg"])
    path = folder / "model-1.sharded"
    for _ in range(2):  # the second replaces the first
        write_sharded(state, path, rank == 0)
        assert os.listdir(folder) == ["model-1.sharded"]
        dist.barrier()
    assert {p.name for p in path.iterdir()} == {
        ".metadata",
        "run.pt",
        "__0_0.distcp",
        "__1_0.distcp",
    }
    everything = gathered(state, rank == 0)
    if rank == 0:
        assert_same(everything, trained_state())
    else:
        assert everything == {}

    # one that can't be written fails on all, and leaves what was there
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    real = torch.save
    if rank == 1:
        torch.save = lambda *args, **kwargs: fail(OSError(28, "No space left on device"))
    with pytest.raises(
        OSError, match=r"model-1\.sharded could not be written: .*No space.*make room"
    ):
        write_sharded(state, path, rank == 0)
    torch.save = real
    blocked = folder / "blocked"
    if rank == 0:
        blocked.write_text("a file")
    dist.barrier()
    with pytest.raises(OSError, match=r"could not be written: .*blocked"):
        write_sharded(state, blocked / "model-1.sharded", rank == 0)
    dist.barrier()
    if rank == 0:
        blocked.unlink()
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before
    dist.barrier()
    assert os.listdir(folder) == ["model-1.sharded"]


def fail(error):
    raise error


def check_reading(mesh, rank, folder):
    """By any number of processes, none of which reads or holds more than its part."""
    diffusion, optimizer = make(mesh)
    warm_optimizer(optimizer)
    like = state_of(diffusion, optimizer, emas=("0.7",))
    unchanged = copy.deepcopy({k: v.to_local() for k, v in like["model"].items() if is_split(v)})
    for read in (read_sharded, lambda path, like: scattered(read_gathered(path), like)):
        state = read(folder / "model-1.sharded", like)
        assert_same(state, trained_state())
        for key, tensor in state["model"].items():
            for other in (state["model"][key], state["ema"][key], state["emas"]["0.5"][key]):
                assert is_split(other) == is_split(tensor) == key.startswith("denoise_fn")
                if is_split(other):
                    assert other.placements == like["model"][key].placements
                    assert other.to_local().shape == like["model"][key].to_local().shape
                    ours, theirs = other.to_local(), like["model"][key].to_local()
                    assert not ours.numel() or ours.data_ptr() != theirs.data_ptr()
        assert is_split(state["optimizer"]["state"][0]["exp_avg"])
    for key, value in unchanged.items():
        assert torch.equal(like["model"][key].to_local(), value)

    # training goes on as if it had not stopped
    diffusion.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    train(diffusion, optimizer, 1)
    alone, its_optimizer = make()
    train(alone, its_optimizer)
    train(alone, its_optimizer, 1)
    # (the gradients of the third step are those of a first, in both)
    for p, q in zip(diffusion.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q)

    # damage to the part of one process is told to all
    damaged = folder / "damaged.sharded"
    if rank == 0:
        shutil.copytree(folder / "model-1.sharded", damaged)
        with (damaged / "__1_0.distcp").open("r+b") as file:
            file.truncate(100)
    dist.barrier()
    with pytest.raises(ValueError, match=r"damaged.*cut off, altered.*__1_0.*use the checkpoint"):
        read_sharded(damaged, like)
    dist.barrier()
    with pytest.raises(FileNotFoundError, match="no such folder; give the path"):
        read_sharded(folder / "none.sharded", like)
    if rank == 0:
        shutil.rmtree(damaged)


def check_warming(mesh, rank):
    """Zeros of the right places, and the weights, gradients and settings of before."""
    diffusion, optimizer = make(mesh)
    before = [p.to_local().clone() for p in diffusion.parameters()]
    warm_optimizer(optimizer)
    for p, q in zip(diffusion.parameters(), before, strict=True):
        assert torch.equal(p.to_local(), q)
        assert p.grad is None
        if p.requires_grad:
            assert optimizer.state[p]["exp_avg"].placements == p.placements
    alone, its_optimizer = make()
    train(diffusion, optimizer, 1)
    train(alone, its_optimizer, 1)
    for p, q in zip(diffusion.parameters(), alone.parameters(), strict=True):
        assert torch.equal(p.full_tensor(), q)


def work(rank, processes, folder, tasks):
    from torch.distributed.device_mesh import init_device_mesh

    warnings.simplefilter("error")
    torch.set_num_threads(1)
    folder = Path(folder)
    store = folder.parent / f"store of {processes}"
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    if "write" in tasks:
        check_writing(mesh, rank, folder)
        check_warming(mesh, rank)
    check_reading(mesh, rank, folder)
    dist.destroy_process_group()
    print("all checked", flush=True)
    # gloo's threads abort a process now and then whose Python is being taken down
    os._exit(0)


def run(processes, folder, tasks):
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(processes), str(folder), tasks],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * processes, "\n".join(outputs)
    assert all(output.endswith("all checked\n") for output in outputs)


def test_two_processes_write_and_three_read(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    run(2, folder, "write")
    run(3, folder, "read")
    path = folder / "model-1.sharded"
    assert_same(read_gathered(path), trained_state())
    seen = glance(path)
    assert seen["step"] == 7
    assert seen["model"]["denoise_fn.levels.0.weight"].shape == (5, 3)


# one process


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model-2.5.sharded"
    write_sharded(trained_state(), path, is_main=True)
    return path


def test_one_process_reads_what_it_wrote(folder):
    assert_same(read_gathered(folder), trained_state())
    assert_same(read_sharded(folder, trained_state()), trained_state())
    assert os.listdir(folder.parent) == [folder.name]


def test_gathered_to_one_file(folder):
    file = gather_checkpoint(folder)
    assert file == folder.parent / "model-2.5.pt"
    assert_same(read_checkpoint(file), trained_state())
    with pytest.raises(FileExistsError, match=r"must not exist, got .*model-2\.5\.pt; move it"):
        gather_checkpoint(folder)
    other = gather_checkpoint(folder, folder.parent / "other.pt")
    assert other.read_bytes()[:2] == b"PK"


def test_what_is_no_sharded_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model-1\.sharded, found no such folder; give"):
        read_gathered(tmp_path / "model-1.sharded")
    with pytest.raises(ValueError, match=r"got a folder without run\.pt, .* use the checkpoint be"):
        gather_checkpoint(tmp_path)
    write_checkpoint(trained_state(), tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"whose run\.pt has no sharded_files; load a checkpoint"):
        read_gathered(tmp_path)


def test_one_that_was_not_written_to_the_end_is_none(folder):
    (folder / "run.pt").unlink()
    with pytest.raises(ValueError, match=r"without run\.pt"):
        read_gathered(folder)


def test_what_a_killed_process_left_is_removed_or_brought_back(folder):
    before = folder.with_name(f".{folder.name}.before")
    folder.rename(before)
    temporary = folder.with_name(f".{folder.name}.tmp")
    temporary.mkdir()
    (temporary / "__0_0.distcp").write_bytes(b"half")
    write_sharded({**trained_state(), "step": 8}, folder, is_main=True)
    assert read_gathered(folder)["step"] == 8
    assert os.listdir(folder.parent) == [folder.name]


def test_a_failed_write_leaves_the_one_before(folder, monkeypatch):
    from video_diffusion_pytorch.training import sharded_checkpoint

    def fails(state, path):
        raise OSError("disk full")

    monkeypatch.setattr(sharded_checkpoint, "write_checkpoint", fails)
    with pytest.raises(
        OSError, match=r"2\.5\.sharded could not be written: disk full; .* make roo"
    ):
        write_sharded({**trained_state(), "step": 8}, folder, is_main=True)
    assert read_gathered(folder)["step"] == 7
    assert os.listdir(folder.parent) == [folder.name]


def test_two_tensors_of_one_name_are_refused(tmp_path):
    state = {"a": {"b/c": torch.zeros(1)}, "a/b": {"c": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"different names .* got two with 'a/b/c'; rename one"):
        write_sharded(state, tmp_path / "model-1.sharded", is_main=True)


def test_a_tensor_of_another_shape_comes_whole(folder):
    like = trained_state()
    like["model"]["denoise_fn.gain"] = torch.zeros(3)
    assert_same(read_sharded(folder, like), trained_state())


# damage


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
                assert_same(read_gathered(folder), trained_state())
            continue
        with pytest.raises(ValueError, match=r"cut off, altered or of another kind \(.*\); use"):
            read_gathered(folder)


def test_a_missing_file_is_found(folder):
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(ValueError, match=r"\(__0_0\.distcp is missing\); use the checkpoint bef"):
        read_gathered(folder)


# files of an enemy, who knows how to make the sums right


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (self.mark,))


def reseal(folder):
    """Makes the sums in run.pt those of the files as they are now."""
    from video_diffusion_pytorch.training.sharded_checkpoint import sum_of

    run = read_checkpoint(folder / "run.pt")
    run["sharded_files"] = {p.name: sum_of(p) for p in folder.iterdir() if p.name != "run.pt"}
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
    with pytest.raises(ValueError, match=r"posix\.mkdir is no part of an index|nt\.mkdir is no"):
        read_gathered(folder)
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
    with pytest.raises(ValueError, match="model/betas is not a tensor, but BytesStorageMetadata"):
        read_gathered(folder)
    assert not os.path.exists(mark)


def test_a_part_that_is_no_tensor_is_not_loaded(folder, tmp_path):
    mark = str(tmp_path / "ran")
    torch.save(Evil(mark), folder / "__9_0.distcp")
    index = index_of(folder)
    for info in index.storage_data.values():
        info.relative_path, info.offset = "__9_0.distcp", 0
        info.length = (folder / "__9_0.distcp").stat().st_size
    put_index(folder, index)
    with pytest.raises(ValueError, match="cut off, altered or of another kind"):
        read_gathered(folder)
    assert not os.path.exists(mark)


@pytest.mark.parametrize("outside", ["../secret.pt", "/etc/hostname", "__7_0.distcp"])
def test_an_index_points_to_no_other_files(folder, outside):
    index = index_of(folder)
    next(iter(index.storage_data.values())).relative_path = outside
    put_index(folder, index)
    with pytest.raises(ValueError, match=f"{outside} does not belong to it"):
        read_gathered(folder)


def test_what_is_no_index(folder):
    for value in ([1], "text"):
        put_index(folder, value)
        with pytest.raises(ValueError, match="is not an index of tensors"):
            read_index(folder / ".metadata", ())


def test_a_tensor_that_is_not_in_the_files(folder):
    files = [p.name for p in folder.iterdir()]
    for name, shape in (("none", (1,)), ("model/betas", (5,))):
        with pytest.raises(ValueError, match=f"{name} is not in it, or of another shape"):
            load_tensors({name: torch.zeros(shape)}, folder, files)


# a fresh optimizer


@pytest.mark.parametrize(
    "kind",
    [
        torch.optim.Adam,
        lambda p: torch.optim.Adam(p, weight_decay=0.1, amsgrad=True, fused=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, momentum=0.5),
    ],
)
def test_a_warmed_optimizer_steps_as_a_fresh_one(kind):
    ours, theirs = Diffusion(), Diffusion()
    warm, fresh = kind(ours.parameters()), kind(theirs.parameters())
    gain = ours.denoise_fn.gain
    gain.grad = torch.ones(1)
    settings = [{k: v for k, v in g.items() if k != "params"} for g in warm.param_groups]
    warm_optimizer(warm)
    assert gain.grad == 1
    assert settings == [{k: v for k, v in g.items() if k != "params"} for g in warm.param_groups]
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert warm.state[gain]
    for model, optimizer in ((ours, warm), (theirs, fresh)):
        train(model, optimizer, 3)
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


def test_warming_keeps_a_state():
    diffusion, optimizer = make()
    train(diffusion, optimizer)
    before = copy.deepcopy(optimizer.state_dict())
    warm_optimizer(optimizer)
    assert_same(optimizer.state_dict(), before)


def test_warming_what_accelerate_wraps():
    from accelerate import Accelerator

    diffusion, optimizer = make()
    wrapped = Accelerator(cpu=True).prepare(optimizer)
    warm_optimizer(wrapped)
    assert optimizer.state[diffusion.denoise_fn.gain]["step"] == 0


if __name__ == "__main__":
    work(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])


def test_tensors_larger_than_the_files_take_no_memory(folder):
    run = read_checkpoint(folder / "run.pt")
    name = next(iter(run["model"]))
    run["model"][name] = torch.empty(10**6, 10**6, device="meta")
    write_checkpoint(run, folder / "run.pt")
    with pytest.raises(ValueError, match=r"\(its tensors need more than the \d+ bytes of its f"):
        read_gathered(folder)


def test_a_value_of_another_type_is_named(folder):
    run = read_checkpoint(folder / "run.pt")
    torch.save({**run, "step": "seven"}, folder / "run.pt")
    with pytest.raises(ValueError, match=r"whose step is a whole number of at least 0 in .*run.pt"):
        read_gathered(folder)
