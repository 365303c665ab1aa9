"""What tells a source from another, and from what it was before."""

import os

import pytest

from video_diffusion_pytorch.data.cache.source_state import source_digest, source_state


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "clip.gif"
    path.write_bytes(b"content" * 300_000)
    os.utime(path, ns=(1, 1))
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "frames"
    (path / "inner").mkdir(parents=True)
    for name in ("1.png", "2.png", "inner/3.png"):
        (path / name).write_bytes(name.encode())
    return path


def both(path):
    return source_state(path), source_digest(path)


def test_a_touched_file_has_another_state_and_the_same_content(file):
    state, digest = both(file)
    assert both(file) == (state, digest)
    os.utime(file, ns=(1, 2))
    assert source_state(file) != state
    assert source_digest(file) == digest


def test_the_last_byte_counts(file):
    digest = source_digest(file)
    file.write_bytes(file.read_bytes()[:-1] + b"T")
    assert source_digest(file) != digest
    assert len(digest) == 32


def test_the_ending_counts_and_the_rest_of_the_name_does_not(file):
    digest = source_digest(file)
    assert source_digest(file.rename(file.with_name("other.GIF"))) == digest
    assert source_digest(file.with_name("other.GIF").rename(file.with_name("a.png"))) != digest


def test_a_folder_is_all_its_files(folder):
    before = both(folder)
    folder = folder.rename(folder.with_name("moved"))
    assert both(folder) == before
    (folder / ".hidden").write_bytes(b"")
    assert both(folder) == before
    (folder / "inner" / "3.png").write_bytes(b"changed")
    changed = both(folder)
    assert changed[0] != before[0]
    assert changed[1] != before[1]


def test_names_and_contents_of_a_folder_do_not_run_into_each_other(folder):
    digest = source_digest(folder)
    (folder / "2.png").rename(folder / "4.png")
    assert source_digest(folder) != digest
    (folder / "4.png").rename(folder / "2.png")
    assert source_digest(folder) == digest
    (folder / "1.png").write_bytes(b"1.png2.png")
    (folder / "2.png").write_bytes(b"")
    assert source_digest(folder) != digest


def test_a_missing_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a video at .*gone, found none; check"):
        source_state(tmp_path / "gone")
