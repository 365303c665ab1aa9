"""Clips are decoded once, and what is served is always what the file holds."""

import errno
import logging
import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.cache import clip_cache
from video_diffusion_pytorch.data.cache.clip_cache import ClipCache
from video_diffusion_pytorch.data.errors import UnreadableVideoError


def write_source(path, seed, shape=(4, 3, 5, 3)):
    clip = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    np.save(path, clip)
    return clip


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
    cache.build(paths, decoder, progress=False)
    return cache, getattr(decoder, "calls", None)


def assert_holds(cache, paths):
    for path in paths:
        np.testing.assert_array_equal(cache[path], np.load(path))


# What is served


@pytest.mark.parametrize("dtype", ["uint8", "<f4", ">f4", "bool", "<i2", "float64"])
def test_a_clip_comes_back_as_it_was_decoded(tmp_path, dtype):
    for i, shape in enumerate([(3, 2, 2, 1), (7,), (0, 4), (2, 3)]):
        np.save(tmp_path / f"{i}.npy", (np.random.rand(*shape) * 9).astype(dtype))
    paths = sorted(tmp_path.glob("*.npy"))
    cache, _ = build(tmp_path / "cache", paths)
    for path in paths:
        assert cache[path].dtype == np.dtype(dtype)
    assert_holds(cache, paths)
    assert_holds(ClipCache(tmp_path / "cache", {"size": 8}), paths)


def test_tensors_and_views_in_another_order_are_taken(tmp_path, sources):
    clip = torch.arange(24, dtype=torch.float32).view(2, 3, 4)
    cache, _ = build(tmp_path / "cache", sources[:1], decode=lambda path: clip.permute(2, 0, 1))
    np.testing.assert_array_equal(cache[sources[0]], clip.permute(2, 0, 1).numpy())
    assert cache[sources[0]].flags.c_contiguous


def test_clips_are_views_that_cannot_be_written_to(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources)
    clip = cache[sources[0]]
    assert not clip.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        clip[0] = 0
    assert np.shares_memory(clip, cache[sources[0]])


def test_a_clip_is_at_hand_within_microseconds(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(1000):
            cache[sources[0]]
        seconds.append(time.perf_counter() - start)
    assert min(seconds) / 1000 < 50e-6


def test_all_clips_are_in_one_file(tmp_path, sources):
    build(tmp_path / "cache", sources)
    endings = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert endings == [".clips", ".index", ".lock"]


def test_a_pickled_cache_reads_the_same_clips(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources)
    cache[sources[0]]  # opens the map, which does not travel
    assert_holds(pickle.loads(pickle.dumps(cache)), sources)


def test_a_source_that_was_never_built(tmp_path, sources):
    cache, _ = build(tmp_path / "cache", sources[:2])
    with pytest.raises(KeyError, match=r"expected a source .*cache, got .*4.npy; pass it to Clip"):
        cache[sources[4]]


def test_sources_are_named_relative_to_the_working_folder_or_not(tmp_path, sources, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache, _ = build("cache", [Path("videos", "0.npy")])
    assert np.shares_memory(cache["videos/0.npy"], cache[sources[0]])


# What is decoded anew


def test_nothing_is_decoded_twice(tmp_path, sources):
    assert build(tmp_path / "cache", sources)[1] == [path.name for path in sources]
    cache, calls = build(tmp_path / "cache", sources)
    assert calls == []
    assert_holds(cache, sources)


def test_a_changed_file_alone_is_decoded_again(tmp_path, sources):
    old = build(tmp_path / "cache", sources)[0]
    before = old[sources[2]].copy()
    write_source(sources[2], seed=77, shape=(6, 3, 5, 3))  # the size stays
    os.utime(sources[2], ns=(1, 1))
    cache, calls = build(tmp_path / "cache", sources)
    assert calls == ["2.npy"]
    assert_holds(cache, sources)
    # who has the cache open goes on reading what was there
    np.testing.assert_array_equal(old[sources[2]], before)


def test_moved_and_touched_files_are_not_decoded_again(tmp_path, sources):
    build(tmp_path / "cache", sources)
    os.utime(sources[0], ns=(1, 1))
    moved = sources[1].rename(tmp_path / "elsewhere.npy")
    now = [sources[0], moved, *sources[2:]]
    cache, calls = build(tmp_path / "cache", now)
    assert calls == []
    assert_holds(cache, now)
    # the new state is remembered: the content need not be read again
    assert not cache._stale({os.path.abspath(p): clip_cache.source_state(p) for p in now})


def test_the_same_content_under_another_ending_is_another_source(tmp_path, sources):
    copy = sources[0].with_suffix(".bin")
    copy.write_bytes(sources[0].read_bytes())
    twin = tmp_path / "twin.npy"
    twin.write_bytes(sources[0].read_bytes())
    assert build(tmp_path / "cache", [sources[0], copy, twin])[1] == ["0.npy", "0.bin"]


def test_other_settings_are_kept_apart(tmp_path, sources):
    first, _ = build(tmp_path / "cache", sources, {"size": 8, "fit": [1, 2]})
    halves = lambda path: np.load(path)[::2]  # noqa: E731
    second, _ = build(tmp_path / "cache", sources, {"size": 4}, halves)
    assert_holds(first, sources)
    np.testing.assert_array_equal(second[sources[4]], np.load(sources[4])[::2])
    # the order of the settings is none of them
    assert build(tmp_path / "cache", sources, {"fit": [1, 2], "size": 8})[1] == []
    assert len(list((tmp_path / "cache").glob("*.index"))) == 2


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


def test_replaced_clips_do_not_pile_up(tmp_path, sources):
    for seed in range(20):
        write_source(sources[0], seed=100 + seed, shape=(50, 3, 5, 3))
        os.utime(sources[0], ns=(seed, seed))
        cache, calls = build(tmp_path / "cache", sources)
        assert "0.npy" in calls
        assert_holds(cache, sources)
    (data,) = (tmp_path / "cache").glob("*.clips")
    (index,) = (tmp_path / "cache").glob("*.index")
    assert data.stat().st_size < 3 * sum(path.stat().st_size for path in sources)
    assert len(index.read_bytes().splitlines()) < 20


# Files that cannot be decoded


def test_a_failure_is_tried_again_at_each_build(tmp_path, sources, caplog):
    calls = []

    def decode(path):
        calls.append(path.name)
        if path.name in ("1.npy", "3.npy") and path.stat().st_size < 1000:
            raise UnreadableVideoError(f"cannot read {path}")
        return np.load(path)

    indices = []
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cache, _ = build(tmp_path / "cache", sources, decode=decode)
            assert cache.failures == {sources[i]: f"cannot read {sources[i]}" for i in (1, 3)}
            indices.append(next((tmp_path / "cache").glob("*.index")).read_bytes())
    assert calls[5:] == ["1.npy", "3.npy"]
    assert indices[0] == indices[1]  # what is known already is not written again
    assert caplog.text.count("left out of the cache: cannot read") == 4
    with pytest.raises(UnreadableVideoError, match=r"cannot read .*1.npy"):
        cache[sources[1]]
    # touched: still a failure; repaired, or what was wrong with the disk: none any more
    os.utime(sources[3], ns=(1, 1))
    write_source(sources[1], seed=5, shape=(99, 3, 5, 3))
    cache, _ = build(tmp_path / "cache", sources, decode=decode)
    assert calls[7:] == ["1.npy", "3.npy"]
    assert list(cache.failures) == [sources[3]]
    assert pickle.loads(pickle.dumps(cache)).failures == cache.failures
    # another file of that content is another case
    copy = tmp_path / "copy.npy"
    copy.write_bytes(sources[3].read_bytes())
    cache, _ = build(tmp_path / "cache", [copy], decode=decode)
    assert cache.failures == {}
    cache, _ = build(tmp_path / "cache", sources)
    assert cache.failures == {}
    assert_holds(cache, sources)


def test_a_mistake_in_the_settings_ends_the_build(tmp_path, sources):
    def decode(path):
        raise ValueError("fps cannot be had")

    with pytest.raises(ValueError, match="fps cannot be had"):
        build(tmp_path / "cache", sources, decode=decode)


def test_other_errors_end_the_build_and_keep_what_was_done(tmp_path, sources):
    def decode(path):
        if path.name == "3.npy":
            raise KeyboardInterrupt
        return np.load(path)

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "cache", sources, decode=decode)
    assert build(tmp_path / "cache", sources)[1] == ["3.npy", "4.npy"]


def test_a_file_that_changes_while_it_is_read_is_not_served(tmp_path, sources):
    def decode(path):
        clip = np.load(path)
        write_source(path, seed=50, shape=(9, 3, 5, 3))
        return clip

    cache, _ = build(tmp_path / "cache", sources[:1], decode=decode)
    text = r"expected .*0.npy not to change while it is read, got a change; build again"
    with pytest.raises(UnreadableVideoError, match=text):
        cache[sources[0]]
    cache, _ = build(tmp_path / "cache", sources)
    assert_holds(cache, sources)


def test_a_missing_source(tmp_path, sources):
    gone = tmp_path / "gone.npy"
    cache, calls = build(tmp_path / "cache", [*sources, gone])
    assert len(calls) == len(sources)
    assert list(cache.failures) == [gone]
    text = r"cannot read .*gone.npy: expected a file that can be opened, got none, or none any more"
    with pytest.raises(UnreadableVideoError, match=text):
        cache[gone]
    # a cache built without it does not know it
    cache, _ = build(tmp_path / "cache", sources)
    assert cache.failures == {}


def test_sources_that_cannot_be_opened(tmp_path, sources, monkeypatch):
    number = errno.EACCES

    def closed(path):
        if path.endswith("2.npy"):
            raise OSError(number, "no")
        return source_digest(path)

    source_digest = clip_cache.source_digest
    monkeypatch.setattr(clip_cache, "source_digest", closed)
    cache, calls = build(tmp_path / "cache", sources)
    assert "2.npy" not in calls
    assert list(cache.failures) == [sources[2]]
    # also where nothing can be written
    monkeypatch.setattr(clip_cache, "exclusive_lock", refuse)
    assert list(build(tmp_path / "cache", sources)[0].failures) == [sources[2]]
    monkeypatch.undo()
    monkeypatch.setattr(clip_cache, "source_digest", closed)
    number = errno.EMFILE
    with pytest.raises(OSError, match="no"):
        build(tmp_path / "cache", sources)


def test_failures_stay_where_nothing_can_be_written(tmp_path, sources, monkeypatch):
    def decode(path):
        if path.name == "1.npy":
            raise UnreadableVideoError("damaged")
        return np.load(path)

    build(tmp_path / "cache", sources, decode=decode)
    monkeypatch.setattr(clip_cache, "exclusive_lock", refuse)
    cache, _ = build(tmp_path / "cache", sources, decode=decode)
    assert cache.failures == {sources[1]: "damaged"}


@pytest.mark.parametrize(
    ("clip", "got"),
    [
        ([1, 2], "list"),
        (np.array(["a"]), "<U1"),
        (np.array([None]), "object"),
        (torch.zeros(1, dtype=torch.bfloat16), "torch.bfloat16"),
    ],
)
def test_a_decoder_that_gives_no_numbers(tmp_path, sources, clip, got):
    text = f"decode must give an array .*, got {got} for .*0.npy; convert it"
    with pytest.raises(TypeError, match=text):
        build(tmp_path / "cache", sources, decode=lambda path: clip)


@pytest.mark.parametrize("value", [Path("x"), float("nan"), {1, 2}])
def test_settings_that_json_does_not_know(tmp_path, value):
    text = r"settings must be values that JSON knows .*, got \{'a': .*; convert the others"
    with pytest.raises(TypeError, match=text):
        ClipCache(tmp_path, {"a": value})


# Folders and disks that cannot be written to


def refuse(*_args, **_kwargs):
    raise PermissionError(13, "Permission denied")


def test_a_complete_cache_is_read_where_nothing_can_be_written(tmp_path, sources, monkeypatch):
    build(tmp_path / "cache", sources)
    monkeypatch.setattr(clip_cache, "exclusive_lock", refuse)
    assert build(tmp_path / "cache", sources)[1] == []
    # moved files are found by their content, also by workers
    moved = sources[0].rename(tmp_path / "moved.npy")
    cache, calls = build(tmp_path / "cache", [moved, *sources[1:]])
    assert calls == []
    assert_holds(pickle.loads(pickle.dumps(cache)), [moved, *sources[1:]])
    write_source(moved, seed=70)
    text = r"expected to write decoded clips into .*cache, got Permission denied; make room"
    with pytest.raises(PermissionError, match=text):
        build(tmp_path / "cache", [moved, *sources[1:]])


def test_a_folder_that_cannot_be_made(tmp_path, sources):
    (tmp_path / "file").write_bytes(b"")
    text = r"expected to write decoded clips into .*file.cache, got .*; make room there, allow"
    with pytest.raises(OSError, match=text):
        build(tmp_path / "file" / "cache", sources)
