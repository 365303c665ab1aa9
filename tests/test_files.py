"""Atomic writes."""

import pytest

from video_diffusion_pytorch import files
from video_diffusion_pytorch.files import free_name, replacing


@pytest.mark.parametrize("sync", [False, True])
def test_a_file_is_replaced_when_the_block_ends(tmp_path, sync):
    target = tmp_path / "result.json"
    target.write_text("old")
    with replacing(target, sync=sync) as unfinished:
        unfinished.write_text("new")
        assert target.read_text() == "old"
        assert unfinished.parent == tmp_path
        assert unfinished.name.startswith(".")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.json"
    target.write_text("old")

    def write_half():
        with replacing(target) as unfinished:
            unfinished.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "result.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    target = tmp_path / "result.json"
    with replacing(target) as first, replacing(target) as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"


def test_the_longest_name_a_file_system_takes(tmp_path):
    target = tmp_path / ("x" * 255)
    with replacing(target) as unfinished:
        unfinished.write_text("new")
    assert target.read_text() == "new"


def test_a_free_name(tmp_path):
    assert free_name(tmp_path / "a.json", 2).name == "a-2.json"
    (tmp_path / "a-2.json").touch()
    assert free_name(tmp_path / "a.json", 2).name == "a-3.json"


def test_a_folder_that_cannot_be_synchronised_is_logged(tmp_path, monkeypatch, caplog):
    def refuse(descriptor):
        raise OSError("no")

    monkeypatch.setattr(files.os, "name", "posix")
    monkeypatch.setattr(files.os, "fsync", refuse)
    files.sync_folder(tmp_path)
    assert f"the newest file in {tmp_path} may not outlast a power failure: no" in caplog.text
