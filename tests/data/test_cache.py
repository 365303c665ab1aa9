"""The cache of decoded clips: contents, invalidation, failures, several processes."""

import errno
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from numpy.lib import format as npy

from video_diffusion_pytorch.data import cache as cache_module
from video_diffusion_pytorch.data.cache import ClipCache, source_state
from video_diffusion_pytorch.data.errors import UnreadableVideoError


def write_source(path, seed, shape=(4, 3, 5, 3)):
    np.save(path, np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


class Decoder:
    """np.load, which remembers what it was called for."""

    def __init__(self):
        self.calls = []

    def __call__(self, path):
        self.calls.append(path.name)
        return np.load(path)


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = [folder / f"{i}.npy" for i in range(5)]
    for i, path in enumerate(paths):
        write_source(path, seed=i, shape=(4 + i, 3, 5, 3))
    return paths


def build(folder, paths, settings=None, decode=None):
    """A cache that is complete, and the names of the files that were decoded for it."""
    decoder = Decoder() if decode is None else decode
    cache = ClipCache(folder, {"size": 8} if settings is None else settings)
    cache.build(paths, decoder)
    return cache, getattr(decoder, "calls", None)


def all_of(cache, path):
    return cache[path].frames(range(cache[path].num_frames))


def assert_holds(cache, paths):
    for path in paths:
        np.testing.assert_array_equal(all_of(cache, path), np.load(path))


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]


# What is served


@pytest.mark.parametrize("dtype", ["uint8", "<f4", ">f4", "bool", "<i2", "float64"])
def test_a_clip_comes_back_as_it_was_decoded(tmp_path, dtype):
    for i, shape in enumerate([(3, 2, 2, 1), (7,), (0, 4), (2, 3)]):
        np.save(tmp_path / f"{i}.npy", (np.random.rand(*shape) * 9).astype(dtype))
    paths = sorted(tmp_path.glob("*.npy"))
    cache, _ = build(tmp_path / "cache", paths)
    for path in paths:
        assert all_of(cache, path).dtype == np.dtype(dtype)
    assert_holds(pickle.loads(pickle.dumps(cache)), paths)
    assert_holds(build(tmp_path / "cache", paths)[0], paths)


@pytest.mark.parametrize(
    "positions", [range(3), range(2, 4), range(2, 9), range(5, 6), [3, 0, 0], [2], range(0, 4, 2)]
)
def test_frames_are_those_of_the_array(tmp_path, sources, positions):
    cache, _ = build(tmp_path / "cache", sources)
    frames = cache[sources[0]].frames(positions)
    clip = np.load(sources[0])
    expected = clip[[position for position in positions if position < len(clip)]]
    np.testing.assert_array_equal(frames, expected)
    frames[:] = 0  # of no effect on the cache
    assert_holds(cache, sources)


def test_a_source_that_was_never_built(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources[:2])
    with pytest.raises(KeyError, match=r"4.npy"):
        cache[sources[4]]


def test_sources_are_named_relative_to_the_working_folder_or_not(tmp_path, sources, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache, _ = build("cache", [Path("videos", "0.npy")])
    assert_holds(cache, [Path("videos/0.npy"), sources[0]])


def test_a_clip_that_was_removed_or_damaged_since(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources)
    cache[sources[0]].file.unlink()
    cache[sources[1]].file.write_bytes(cache[sources[1]].file.read_bytes()[:-1])
    with pytest.raises(UnreadableVideoError, match="got FileNotFoundError"):
        all_of(cache, sources[0])
    text = "expected a decoded clip, got a truncated file; build the cache again"
    with pytest.raises(UnreadableVideoError, match=text):
        all_of(cache, sources[1])
    cache, calls = build(tmp_path / "cache", sources)
    assert calls == ["0.npy", "1.npy"]
    assert_holds(cache, sources)


# What is decoded anew


def test_nothing_is_decoded_twice(tmp_path, sources):
    assert build(tmp_path / "cache", sources)[1] == [path.name for path in sources]
    cache, calls = build(tmp_path / "cache", sources)
    assert calls == []
    assert_holds(cache, sources)


def test_a_changed_file_alone_is_decoded_again_and_its_clip_replaced(tmp_path, sources):
    build(tmp_path / "cache", sources)
    for seed in range(3):
        write_source(sources[2], seed=77 + seed, shape=(6, 3, 5, 3))  # the size stays
        os.utime(sources[2], ns=(seed, seed))
        cache, calls = build(tmp_path / "cache", sources)
        assert calls == ["2.npy"]
        assert_holds(cache, sources)
    assert len(files(tmp_path / "cache")) == len(sources)


def test_other_settings_are_kept_apart(tmp_path, sources):
    first, _ = build(tmp_path / "cache", sources, {"size": 8, "fit": [1, 2]})
    halves = lambda path: np.load(path)[::2]  # noqa: E731
    second, _ = build(tmp_path / "cache", sources, {"size": 4}, halves)
    assert_holds(first, sources)
    np.testing.assert_array_equal(all_of(second, sources[4]), np.load(sources[4])[::2])
    # the order of the settings is none of them
    assert build(tmp_path / "cache", sources, {"fit": [1, 2], "size": 8})[1] == []


def test_a_folder_of_frames_is_a_source(tmp_path):
    folder = tmp_path / "frames"
    folder.mkdir()
    for i in range(3):
        write_source(folder / f"{i}.npy", seed=i, shape=(2, 2, 1))
    calls = []

    def decode(path):
        calls.append(path)
        return np.stack([np.load(frame) for frame in sorted(path.glob("[0-9].npy"))])

    for _ in range(2):
        cache, _ = build(tmp_path / "cache", [folder], decode=decode)
    assert cache[folder].shape == (3, 2, 2, 1)
    (folder / ".DS_Store").write_bytes(b"not a frame")
    build(tmp_path / "cache", [folder], decode=decode)
    assert len(calls) == 1
    write_source(folder / "3.npy", seed=3, shape=(2, 2, 1))
    cache, _ = build(tmp_path / "cache", [folder], decode=decode)
    assert cache[folder].shape == (4, 2, 2, 1)


def test_the_state_of_a_source(tmp_path):
    file = tmp_path / "clip.npy"
    file.write_bytes(b"one")
    before = source_state(file), source_state(tmp_path)
    assert (source_state(file), source_state(tmp_path)) == before
    file.write_bytes(b"three")
    assert source_state(file) != before[0]
    assert source_state(tmp_path) != before[1]


# Files that cannot be decoded


def test_a_failure_is_tried_again_at_each_build(tmp_path, sources, caplog):
    damaged = {"1.npy", "3.npy"}

    def decode(path):
        if path.name in damaged:
            raise UnreadableVideoError(f"cannot read {path}")
        return np.load(path)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache, _ = build(tmp_path / "cache", sources, decode=decode)
    assert caplog.text.count("left out of the cache: cannot read") == 4
    with pytest.raises(UnreadableVideoError, match=r"cannot read .*1.npy"):
        cache[sources[1]]
    damaged.remove("1.npy")
    cache, _ = build(tmp_path / "cache", sources, decode=decode)
    assert cache.failures.keys() == {str(sources[3])}
    with pytest.raises(UnreadableVideoError, match=r"cannot read .*3.npy"):
        pickle.loads(pickle.dumps(cache))[sources[3]]
    assert_holds(cache, sources[:3])


@pytest.mark.parametrize("error", [ValueError("fps cannot be had"), KeyboardInterrupt()])
def test_other_errors_end_the_build_and_keep_what_was_done(tmp_path, sources, error):
    def decode(path):
        if path.name == "3.npy":
            raise error
        return np.load(path)

    with pytest.raises(type(error)):
        build(tmp_path / "cache", sources, decode=decode)
    assert build(tmp_path / "cache", sources)[1] == ["3.npy", "4.npy"]


def test_a_file_that_changes_while_it_is_read_is_not_served(tmp_path, sources):
    def decode(path):
        clip = np.load(path)
        write_source(path, seed=50, shape=(9, 3, 5, 3))
        return clip

    cache, _ = build(tmp_path / "cache", sources[:1], decode=decode)
    text = (
        r"0.npy: expected a file that stays as it is, got one that changed meanwhile; build again"
    )
    with pytest.raises(UnreadableVideoError, match=text):
        cache[sources[0]]
    assert_holds(build(tmp_path / "cache", sources)[0], sources)


def test_a_missing_source(tmp_path, sources):
    gone = tmp_path / "gone.npy"
    cache, calls = build(tmp_path / "cache", [*sources, gone])
    assert len(calls) == len(sources)
    for name in (gone, os.path.relpath(gone)):
        with pytest.raises(
            UnreadableVideoError, match=r"cannot read .*gone.npy: .* got FileNotFoundError"
        ):
            cache[name]


# Folders and disks that cannot be written to


def test_a_complete_cache_is_read_where_nothing_can_be_written(tmp_path, sources, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    def decode(path):
        if path.name == "1.npy":
            raise UnreadableVideoError("damaged")
        return np.load(path)

    build(tmp_path / "cache", sources, decode=decode)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(npy, "write_array_header_1_0", refuse)
    cache, _ = build(tmp_path / "cache", sources, decode=decode)
    with pytest.raises(UnreadableVideoError, match="damaged"):
        cache[sources[1]]
    assert_holds(cache, [sources[0], *sources[2:]])
    text = "Permission denied"
    with pytest.raises(PermissionError, match=text):
        build(tmp_path / "cache", sources)


def test_a_full_disk(tmp_path, sources, monkeypatch):
    def full(file, header):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    build(tmp_path / "cache", sources[:2])
    with monkeypatch.context() as patch:
        patch.setattr(npy, "write_array_header_1_0", full)
        with pytest.raises(OSError, match="No space left on device"):
            build(tmp_path / "cache", sources)
    assert len(files(tmp_path / "cache")) == 2
    assert build(tmp_path / "cache", sources)[1] == ["2.npy", "3.npy", "4.npy"]


def test_a_folder_that_cannot_be_made(tmp_path, sources):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        build(tmp_path / "file" / "cache", sources)


# Several processes, and kills

RIVAL = """
import os, signal, sys, time
from pathlib import Path
import numpy as np
from numpy.lib import format as npy
from video_diffusion_pytorch.data.cache import ClipCache

write_header = npy.write_array_header_1_0
root, calls = Path(sys.argv[1]), []
sources = sorted((root / "videos").iterdir())


def decode(path):
    calls.append(path)
    time.sleep(0.05)
    return np.load(path)


def half(file, header):
    if len(calls) < 3:
        return write_header(file, header)
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if len(sys.argv) > 2:
    npy.write_array_header_1_0 = half
print("ready", flush=True)
sys.stdin.readline()
cache = ClipCache(root / "cache", {"size": 8})
cache.build(sources, decode)
print(len(calls), all((cache[p].frames(range(99)) == np.load(p)).all() for p in sources))
"""


def start(*arguments):
    command = [sys.executable, "-c", RIVAL, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path, sources):
    rivals = [start(tmp_path) for _ in range(2)]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    assert sorted(r.communicate(timeout=60)[0] for r in rivals) == ["0 True\n", "5 True\n"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by a signal")
def test_a_build_that_is_killed_goes_on_with_the_clip_it_was_writing(tmp_path, sources):
    killed = start(tmp_path, "die")
    killed.communicate("go\n", timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cache, calls = build(tmp_path / "cache", sources)
    assert calls == ["2.npy", "3.npy", "4.npy"]
    assert_holds(cache, sources)


def test_the_log_says_that_another_process_is_waited_for(tmp_path, sources, monkeypatch, caplog):
    monkeypatch.setattr(cache_module, "_PATIENCE", 0.1)
    folder = build(tmp_path / "cache", sources[:1])[0].folder
    is_held = threading.Event()

    def hold():
        with FileLock(folder / ".lock"):
            is_held.set()
            time.sleep(0.4)

    threading.Thread(target=hold).start()
    is_held.wait()
    with caplog.at_level(logging.WARNING):
        assert build(tmp_path / "cache", sources)[1] == [path.name for path in sources[1:]]
    assert "waiting for another process that decodes clips into" in caplog.text
