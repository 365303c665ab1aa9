"""Damaged files of every format are read or refused, without other errors."""

import importlib
import os
import random
from pathlib import Path

import pytest

MOVIES = ["mp4", "m4v", "mov", "mkv", "webm", "avi"]
STILLS = ["jpg", "bmp", "tif"]
FORMATS = ["gif", "webp", "png", *MOVIES, *STILLS, "npy", "npz", "pt"]


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("fuzz_readers")


def test_all_formats_are_tried(fuzz):
    assert fuzz.FORMATS == FORMATS


@pytest.mark.parametrize("ending", FORMATS)
def test_damaged_files_are_read_or_refused(tmp_path, fuzz, ending):
    contents = fuzz.seeds(ending, tmp_path)
    path = tmp_path / "damaged" / f"1.{ending}"
    path.parent.mkdir()
    video = path.parent if ending in STILLS else path
    for content in contents:
        path.write_bytes(content)
        assert fuzz.read(video) == "read"
    open_before = fuzz.open_files()
    rng = random.Random(f"test {ending}")
    outcomes = []
    for _ in range(40):
        path.write_bytes(fuzz.damage(rng.choice(contents), rng.choice(contents), rng))
        outcomes.append(fuzz.read(video))
    assert set(outcomes) <= {"read", "refused"}
    assert "refused" in outcomes
    assert fuzz.open_files() == open_before


def test_other_errors_are_reported(tmp_path, fuzz, monkeypatch):
    from video_diffusion_pytorch.data import video_file

    def fails(*arguments, **options):
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(video_file, "read_video", fails)
    assert "ZeroDivisionError: on purpose" in fuzz.read(tmp_path / "clip.gif")


@pytest.mark.skipif(not hasattr(os, "kill"), reason="needs processes that can be killed")
def test_a_process_that_dies_is_noticed_and_replaced(tmp_path, fuzz):
    fuzz.seeds("gif", tmp_path)
    path = tmp_path / "seed0.gif"
    reader = fuzz.Reader([path])
    reader.process.kill()
    assert reader.read(path)[0].startswith("crash: exit code")
    assert reader.read(path)[0] == "read"
    reader.stop()
