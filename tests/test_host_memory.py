"""Freed buffers stay in the process."""

import ctypes
import platform
import subprocess
import sys

import pytest

from video_diffusion_pytorch.host_memory import keep_freed_memory

COUNT_FAULTS = """
import resource, torch
from video_diffusion_pytorch.host_memory import keep_freed_memory

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.zeros(8 * 2**20 // 4)
        torch.zeros(16 * 2**20 // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults_of_a_step()
assert keep_freed_memory()
faults_of_a_step()
print(without, faults_of_a_step())
"""


@pytest.fixture
def _forgotten():
    keep_freed_memory.cache_clear()
    yield
    keep_freed_memory.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_buffers_are_not_fetched_from_the_system_again():
    command = [sys.executable, "-c", COUNT_FAULTS]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    without, kept = map(int, result.stdout.split())
    assert kept < without / 10


@pytest.mark.usefixtures("_forgotten")
def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("looked for a C library"))
    assert keep_freed_memory() is False


@pytest.mark.usefixtures("_forgotten")
def test_a_c_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    assert keep_freed_memory() is False


@pytest.mark.usefixtures("_forgotten")
def test_the_settings_are_made_once(monkeypatch):
    made = []

    class Library:
        @staticmethod
        def mallopt(name, value):
            made.append(name)
            return 1

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    assert keep_freed_memory()
    assert keep_freed_memory()
    assert len(made) == len(set(made)) == 3


@pytest.mark.usefixtures("_forgotten")
def test_a_refused_setting_is_told(monkeypatch):
    class Library:
        @staticmethod
        def mallopt(name, value):
            return 0

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: Library)
    assert keep_freed_memory() is False
