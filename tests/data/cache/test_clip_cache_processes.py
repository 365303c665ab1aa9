"""The clip cache survives kills, and several processes at once."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from video_diffusion_pytorch.data.cache.clip_cache import ClipCache

needs_posix = pytest.mark.skipif(sys.platform == "win32", reason="kills forked processes")


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    paths = [folder / f"{i}.npy" for i in range(5)]
    for i, path in enumerate(paths):
        write_source(path, seed=i, shape=(4 + i, 3, 5, 3))
    return paths


def write_source(path, seed, shape):
    np.save(path, np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def build(folder, sources):
    """A cache that is complete, and what was decoded for it."""
    calls = []
    cache = ClipCache(folder, {"size": 8})
    cache.build(sources, lambda path: (calls.append(path), np.load(path))[1], progress=False)
    return cache, calls


def assert_holds(cache, paths):
    for path in paths:
        np.testing.assert_array_equal(cache[path], np.load(path))


NURSERY = """
import os, signal, sys
from pathlib import Path
import numpy as np
from video_diffusion_pytorch.data.cache import clip_writer
from video_diffusion_pytorch.data.cache.clip_cache import ClipCache

root = Path(sys.argv[1])
sources = sorted((root / "videos").iterdir())
clip_writer._BATCH_SECONDS = 0.0 if sys.argv[2] == "each" else 60.0


def die_at(module, name, nth):
    real, calls = getattr(module, name), []

    def counted(*args):
        calls.append(name)
        if len(calls) == nth:
            if name == "write_all":  # half of it gets there
                args[0].write(bytes(args[1])[: len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(module, name, counted)


points = [(m, n, k) for m, n in [(os, "fsync"), (np, "load"), (clip_writer, "write_all")]
          for k in range(1, 16)]
for index, point in enumerate(points):
    child = os.fork()
    if not child:
        die_at(*point)
        cache = ClipCache(root / f"cache{index}", {"size": 8})
        cache.build(sources, lambda path: np.load(path), progress=False)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(index, point[1], point[2], int(os.WIFSIGNALED(status)), flush=True)
"""


@needs_posix
@pytest.mark.parametrize("batches", ["each", "one"])
def test_a_build_that_is_killed_anywhere_can_be_finished(tmp_path, sources, batches):
    command = [sys.executable, "-c", NURSERY, str(tmp_path), batches]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    runs = [line.split() for line in result.stdout.splitlines()]
    killed = {name for _, name, _, was_killed in runs if was_killed == "1"}
    assert killed == {"fsync", "load", "write_all"}
    kept = []
    for index, *_ in runs:
        folder = tmp_path / f"cache{index}"
        half = ClipCache(folder, {"size": 8})
        ready = [path for path in sources if os.path.abspath(path) in half._clips.records]
        assert_holds(half, ready)
        cache, calls = build(folder, sources)
        assert len(calls) == len(sources) - len(ready)
        assert_holds(cache, sources)
        assert build(folder, sources)[1] == []
        assert len(list(folder.iterdir())) == 3, "leftovers are removed"
        kept.append(len(ready))
    # a batch that was finished before the kill is not lost
    assert set(kept) >= ({0, 1, 2, 3, 4, 5} if batches == "each" else {0, 5})


RIVAL = """
import sys, time
from pathlib import Path
import numpy as np
from video_diffusion_pytorch.data.cache.clip_cache import ClipCache

root, calls = Path(sys.argv[1]), []
sources = sorted((root / "videos").iterdir())


def decode(path):
    calls.append(path)
    time.sleep(0.2)
    return np.load(path)


print("ready", flush=True)
sys.stdin.readline()
cache = ClipCache(root / "cache", {"size": 8})
cache.build(sources, decode, progress=False)
print(len(calls), all((cache[path] == np.load(path)).all() for path in sources))
"""


def test_of_two_processes_one_builds_and_the_other_waits(tmp_path, sources):
    rivals = [
        subprocess.Popen(
            [sys.executable, "-c", RIVAL, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for rival in rivals:
            assert rival.stdout.readline() == "ready\n"
        for rival in rivals:
            rival.stdin.write("go\n")
            rival.stdin.flush()
        outputs = sorted(rival.communicate(timeout=60)[0] for rival in rivals)
    finally:
        for rival in rivals:
            rival.kill()
            rival.communicate()
    assert outputs == ["0 True\n", "5 True\n"]


@needs_posix
def test_a_reader_survives_that_another_process_compacts(tmp_path, sources):
    reader, _ = build(tmp_path / "cache", sources)
    late = pickle.loads(pickle.dumps(reader))
    reader[sources[1]]
    for seed in range(3):
        for i in (0, 3, 4):
            write_source(sources[i], seed=100 + seed, shape=(50, 3, 5, 3))
        build(tmp_path / "cache", sources)
    np.testing.assert_array_equal(reader[sources[1]], np.load(sources[1]))
    # its file is gone by the time that it opens it: the index tells of the new one
    assert not late._clips._data.exists()
    assert_holds(late, sources)
