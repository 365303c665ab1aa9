import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from video_diffusion_pytorch.training import checkpoint
from video_diffusion_pytorch.training.checkpoint import (
    Checkpoints,
    FolderLock,
    check_folder,
    find_checkpoint,
    forget_old,
    glance_at_all,
    list_checkpoints,
    newest,
    read_newest,
    set_aside,
)
from video_diffusion_pytorch.training.checkpoint_file import glance, write_checkpoint


@pytest.fixture
def folder(tmp_path):
    for name in ("model-9.pt", "model-10.pt", "model-2.5.pt", "model-best.pt", "other.pt"):
        (tmp_path / name).touch()
    (tmp_path / ".model-11.pt.77.tmp").touch()
    (tmp_path / "model-9.5.sharded").mkdir()
    (tmp_path / "model-12.pt").mkdir()
    (tmp_path / "model-13.sharded").touch()
    return tmp_path


def test_checkpoints_are_listed_by_rising_number(folder):
    names = [path.name for path in list_checkpoints(folder)]
    assert names == ["model-2.5.pt", "model-9.pt", "model-9.5.sharded", "model-10.pt"]
    assert list_checkpoints(folder / "none") == []


def test_of_a_file_and_a_folder_of_one_number_the_later_counts(tmp_path):
    file, sharded = tmp_path / "model-3.pt", tmp_path / "model-3.sharded"
    file.touch()
    sharded.mkdir()
    for old, new in ((file, sharded), (sharded, file)):
        os.utime(old, (100, 100))
        os.utime(new, (200, 200))
        assert list_checkpoints(tmp_path) == [old, new]
        assert find_checkpoint(tmp_path, 3) == new


@pytest.mark.parametrize(
    ("milestone", "name"),
    [
        (9, "model-9.pt"),
        (9.0, "model-9.pt"),
        (9.5, "model-9.5.sharded"),
        (2.5, "model-2.5.pt"),
        (77, "model-77.pt"),
    ],
)
def test_a_milestone_is_found(folder, milestone, name):
    assert find_checkpoint(folder, milestone) == folder / name


def test_a_path_is_itself(folder):
    assert find_checkpoint(folder, "elsewhere/model-1.pt").parts == ("elsewhere", "model-1.pt")


def test_a_path_of_a_long_name(folder):
    path = folder / ("x" * 252 + ".pt")
    path.touch()
    assert find_checkpoint(folder, path) == path
    assert find_checkpoint(folder, path.name) == Path(path.name)


def test_the_newest_of_none_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt or model"):
            find_checkpoint(folder, -1)


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    for _ in range(2):
        check_folder(folder)
        assert folder.is_dir()
        assert not list(folder.iterdir())


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(OSError, match=r"(File exists|Not a directory): .*file"):
            check_folder(folder)


@pytest.mark.parametrize(
    ("number", "text"), [(28, "No space left on device"), (30, "Read-only file system")]
)
def test_a_disk_that_takes_no_file_is_named(tmp_path, monkeypatch, number, text):
    def refusing(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match=text):
        check_folder(tmp_path)
    assert not list(tmp_path.iterdir())


OWNER = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from video_diffusion_pytorch.training.checkpoint import FolderLock
lock = FolderLock(Path(sys.argv[1]))
reader = os.fork()
print(reader if reader else "", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="locks of POSIX")
def test_a_lock_ends_with_its_owner_and_not_with_its_readers(tmp_path, caplog):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    reader = None
    try:
        lines = [owner.stdout.readline().strip() for _ in range(2)]
        reader = int("".join(lines))
        with pytest.raises(BlockingIOError, match=rf"in which process {owner.pid} on .* trains"):
            FolderLock(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        os.kill(reader, 0)
        lock = FolderLock(tmp_path)
        with pytest.raises(BlockingIOError, match=rf"this process, {os.getpid()}, trains"):
            FolderLock(tmp_path)
        lock.release()
    finally:
        owner.kill()
        if reader is not None:
            os.kill(reader, signal.SIGKILL)
        owner.stdout.close()
    assert not list(tmp_path.iterdir())
    assert not caplog.records


def test_a_run_takes_its_folder(tmp_path):
    checkpoints = Checkpoints(tmp_path, SimpleNamespace(), keep_last=None, keep_best=0)
    # what killed processes have left is removed
    (tmp_path / ".model-7.pt.123.tmp").touch()
    (tmp_path / ".model-8.sharded.tmp").mkdir()
    (tmp_path / ".model-6.sharded.removed").mkdir()
    (tmp_path / "a.tmp").touch()
    checkpoints.take_folder(0)
    assert names(tmp_path) == [".lock", "a.tmp"]
    checkpoints.release_folder()
    assert names(tmp_path) == ["a.tmp"]


@pytest.fixture
def run_folder(tmp_path):
    """Checkpoints whose names are no order, as the distance of milestones was changed."""
    for name, step in (("4", 20), ("3.6", 36), ("1", 5)):
        state = {"step": step, "model": {"w": torch.ones(2)}, "ema": {}}
        write_checkpoint(state, tmp_path / f"model-{name}.pt")
    return tmp_path


def names_of(paths):
    return [path.name for path in paths]


def steps_in_order(folder):
    return names_of(one.path for one in glance_at_all(folder))


def test_the_step_is_the_order(run_folder):
    assert steps_in_order(run_folder) == ["model-1.pt", "model-4.pt", "model-3.6.pt"]
    assert newest(run_folder).name == "model-3.6.pt"
    path, state = read_newest(run_folder)
    assert (path.name, state["step"]) == ("model-3.6.pt", 36)


def test_what_cannot_be_read_comes_last_and_is_not_the_newest(run_folder):
    (run_folder / "model-2.pt").write_bytes(b"cut off")
    assert steps_in_order(run_folder)[-1] == "model-2.pt"
    assert newest(run_folder).name == "model-3.6.pt"
    assert read_newest(run_folder)[0].name == "model-3.6.pt"


def test_an_empty_folder_has_no_newest(tmp_path):
    assert glance_at_all(tmp_path) == []
    assert newest(tmp_path) is None


def test_later_steps_are_set_aside(run_folder, caplog):
    (run_folder / "model-9.pt").write_bytes(b"cut off")
    assert set_aside(run_folder, 36) == []
    assert "are moved to" not in caplog.text
    moved = set_aside(run_folder, 6)
    assert steps_in_order(run_folder) == ["model-1.pt", "model-9.pt"]
    assert sorted(names_of(moved)) == ["model-3.6.pt", "model-4.pt"]
    assert sorted(names_of(run_folder.glob("earlier-1/*"))) == ["model-3.6.pt", "model-4.pt"]
    assert "checkpoints of later steps than 6 are moved to" in caplog.text
    set_aside(run_folder, 0)
    assert names_of(run_folder.glob("earlier-2/*")) == ["model-1.pt"]


STATE = {"step": 3, "model": {"w": torch.arange(3)}, "ema": {}}


def write(folder, number, loss="none"):
    """A checkpoint with a validation loss, or without."""
    losses = {} if loss == "none" else {"losses": {"training": 1.0, "validation": loss}}
    write_checkpoint({**STATE, **losses}, folder / f"model-{number}.pt")


def write_sharded(folder, number, loss):
    path = folder / f"model-{number}.sharded"
    path.mkdir()
    (path / "shard").write_bytes(b"tensors")
    torch.save({"step": 3, "losses": {"validation": loss}}, path / "run.pt")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path):
    for number in (1, 2, 2.5, 9, 10):
        write(tmp_path, number)
    (tmp_path / "model-0.pt.bak").touch()
    (tmp_path / "0.gif").touch()
    (tmp_path / "model-best.pt").touch()
    others = ["0.gif", "model-0.pt.bak", "model-best.pt"]
    assert forget_old(tmp_path, None) == []
    assert len(names(tmp_path)) == 5 + len(others)
    removed = forget_old(tmp_path, 2)
    assert [path.name for path in removed] == ["model-1.pt", "model-2.pt", "model-2.5.pt"]
    assert names(tmp_path) == sorted([*others, "model-9.pt", "model-10.pt"])
    assert forget_old(tmp_path, 2) == []


def test_the_best_are_kept_besides(tmp_path):
    losses = [0.3, float("nan"), 0.1, "none", None, 0.2, 0.5, 0.4]
    for number, loss in enumerate(losses):
        write(tmp_path, number, loss)
    forget_old(tmp_path, 2, 2)
    assert names(tmp_path) == ["model-2.pt", "model-5.pt", "model-6.pt", "model-7.pt"]
    # those without a loss are never best, however many are wanted
    write(tmp_path, 1, float("nan"))
    write(tmp_path, 3)
    forget_old(tmp_path, 1, 5)
    assert names(tmp_path) == ["model-2.pt", "model-5.pt", "model-6.pt", "model-7.pt"]


def test_one_that_cannot_be_read_is_left_and_takes_no_place(tmp_path, caplog):
    for number in range(5):
        write(tmp_path, number)
    (tmp_path / "model-0.pt").write_bytes(b"cut off")
    (tmp_path / "model-4.pt").write_bytes(b"cut off")
    assert [path.name for path in forget_old(tmp_path, 2)] == ["model-1.pt"]
    assert names(tmp_path) == ["model-0.pt", "model-2.pt", "model-3.pt", "model-4.pt"]
    assert "model-4.pt is neither used, counted nor removed" in caplog.text


def test_that_just_written_is_kept_after_going_back(tmp_path):
    for number in (1, 8, 9):
        write(tmp_path, number)
    assert forget_old(tmp_path, 2, written=tmp_path / "model-1.pt") == []
    write(tmp_path, 2)
    removed = forget_old(tmp_path, 2, written=tmp_path / "model-2.pt")
    assert [path.name for path in removed] == ["model-1.pt"]


def test_folders_are_removed_whole(tmp_path):
    for number, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
        write_sharded(tmp_path, number, loss)
    removed = forget_old(tmp_path, 1, 1)
    assert [path.name for path in removed] == ["model-1.sharded"]
    assert names(tmp_path) == ["model-2.sharded", "model-3.sharded"]


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch, caplog):
    write_sharded(tmp_path, 1, 0.5)
    write(tmp_path, 2)

    def refusing(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refusing)
    assert forget_old(tmp_path, 1) == []
    assert "could not be removed: [Errno 13]" in caplog.text


def test_the_best_is_that_of_the_lowest_loss(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"with a validation loss in .*, found none that"):
        find_checkpoint(tmp_path, "best")
    for number, loss in ((2, 0.5), (3, 0.25), (5, 0.75)):
        write(tmp_path, number, loss)
    assert find_checkpoint(tmp_path, "best").name == "model-3.pt"
    write_sharded(tmp_path, 4, 0.25)
    assert find_checkpoint(tmp_path, "best").name == "model-4.sharded"


def test_a_checkpoint_is_read_once_and_its_own_never(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(checkpoint, "glance", lambda path: read.append(path.name) or glance(path))
    write(tmp_path, 1)
    processes = SimpleNamespace(fsdp=False, is_main=True, main_first=contextlib.nullcontext)
    checkpoints = Checkpoints(tmp_path, processes, keep_last=1, keep_best=1)
    for step in (4, 5, 6):
        checkpoints.write({**STATE, "step": step, "losses": {"validation": step}}, step)
        checkpoints.forget_old()
    assert names(tmp_path) == ["model-4.pt", "model-6.pt"]
    assert read == ["model-1.pt"]
    # of another process
    write(tmp_path, 6, 0.5)
    assert find_checkpoint(tmp_path, "best").name == "model-6.pt"
    assert read == ["model-1.pt", "model-6.pt"]
