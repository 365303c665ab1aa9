"""Of several that want a lock one has it."""

import logging
import os
import subprocess
import sys
import threading
from socket import gethostname

import pytest

from video_diffusion_pytorch.data.cache import file_lock
from video_diffusion_pytorch.data.cache.file_lock import exclusive_lock

HOLDER = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("file_lock", sys.argv[1])
file_lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(file_lock)
with file_lock.exclusive_lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_waited_for_and_its_death_is_enough(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(file_lock, "_PATIENCE", 0.1)
    command = [sys.executable, "-c", HOLDER, file_lock.__file__, str(tmp_path / "lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    entered = threading.Event()

    def enter():
        with exclusive_lock(tmp_path / "lock"):
            entered.set()

    try:
        assert holder.stdout.readline() == "held\n"
        with caplog.at_level(logging.INFO):
            waiting = threading.Thread(target=enter)
            waiting.start()
            assert not entered.wait(0.6)
        holder.kill()
        waiting.join(20)
        assert entered.is_set()
        told = f"waiting for {tmp_path / 'lock'}, held by process {holder.pid} on {gethostname()}"
        assert [record.getMessage() for record in caplog.records] == [told]
    finally:
        holder.kill()
        holder.communicate()


def test_two_threads_exclude_each_other(tmp_path):
    entered = threading.Event()

    def enter():
        with exclusive_lock(tmp_path / "lock"):
            entered.set()

    thread = threading.Thread(target=enter)
    with exclusive_lock(tmp_path / "lock"):
        thread.start()
        assert not entered.wait(0.2)
    thread.join(20)
    assert entered.is_set()


def test_it_can_be_taken_again_also_after_an_error(tmp_path):
    with pytest.raises(KeyError), exclusive_lock(tmp_path / "lock"):
        raise KeyError
    with exclusive_lock(tmp_path / "lock"):
        pass
    assert os.listdir(tmp_path) == ["lock"]


def test_a_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError), exclusive_lock(tmp_path / "none" / "lock"):
        raise AssertionError("not reached")
