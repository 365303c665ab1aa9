import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import (
    FolderLock,
    check_folder,
    check_room,
    find_checkpoint,
    list_checkpoints,
    milestone_of,
)


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
    assert [milestone_of(path) for path in list_checkpoints(folder)] == [2.5, 9, 9.5, 10]
    assert list_checkpoints(folder / "none") == []


def test_another_name_has_no_number(tmp_path):
    with pytest.raises(ValueError, match=r"named model-N\.pt or .*, got 'model-best\.pt'; rename"):
        milestone_of(tmp_path / "model-best.pt")


def test_of_a_file_and_a_folder_of_one_number_the_later_counts(tmp_path):
    file, sharded = tmp_path / "model-3.pt", tmp_path / "model-3.sharded"
    file.touch()
    sharded.mkdir()
    for old, new in ((file, sharded), (sharded, file)):
        os.utime(old, (100, 100))
        os.utime(new, (200, 200))
        assert list_checkpoints(tmp_path) == [old, new]
        assert find_checkpoint(tmp_path, 3) == find_checkpoint(tmp_path, -1) == new


@pytest.mark.parametrize(
    ("milestone", "name"),
    [
        (-1, "model-10.pt"),
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
        with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt in"):
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
        with pytest.raises(OSError, match=r"the results folder .*file.* must be one that check"):
            check_folder(folder)


@pytest.mark.parametrize(
    ("number", "text"), [(28, "No space left on device"), (30, "Read-only file system")]
)
def test_a_disk_that_takes_no_file_is_named(tmp_path, monkeypatch, number, text):
    def refusing(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refusing)
    with pytest.raises(OSError, match=rf"can be written to, got {text}; make room"):
        check_folder(tmp_path)
    assert not list(tmp_path.iterdir())


OWNER = """
import os, sys, time
from pathlib import Path
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import FolderLock
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
        with pytest.raises(BlockingIOError, match=rf"to which process {owner.pid} on .* is train"):
            FolderLock(tmp_path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        os.kill(reader, 0)
        lock = FolderLock(tmp_path)
        with pytest.raises(BlockingIOError, match=rf"this process, {os.getpid()}, is"):
            FolderLock(tmp_path)
        lock.release()
    finally:
        owner.kill()
        if reader is not None:
            os.kill(reader, signal.SIGKILL)
        owner.stdout.close()
    assert not list(tmp_path.iterdir())
    assert not caplog.records
    (tmp_path / ".lock").write_text("process 7 on another-machine")
    FolderLock(tmp_path).release()
    assert "was left by process 7 on another-machine: if that still trains" in caplog.text


def test_too_little_room_is_said(tmp_path, monkeypatch, caplog):
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 3 * 10**6, 3 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    check_room(tmp_path, 3 * 10**6)
    assert not caplog.records
    check_room(tmp_path, 5 * 10**6)
    assert "takes about 5.0 MB, and the disk of" in caplog.text
    assert "has 3.0 MB free: make room" in caplog.text
