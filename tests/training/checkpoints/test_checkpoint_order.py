import pytest
import torch

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import write_checkpoint
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import (
    in_order,
    newest,
    read_newest,
    set_aside,
)


@pytest.fixture
def folder(tmp_path):
    """Checkpoints whose names are no order, as the distance of milestones was changed."""
    for name, step in (("4", 20), ("3.6", 36), ("1", 5)):
        state = {"step": step, "model": {"w": torch.ones(2)}, "ema": {}}
        write_checkpoint(state, tmp_path / f"model-{name}.pt")
    return tmp_path


def names(paths):
    return [path.name for path in paths]


def test_the_step_is_the_order(folder):
    assert names(in_order(folder)) == ["model-1.pt", "model-4.pt", "model-3.6.pt"]
    assert newest(folder).name == "model-3.6.pt"
    path, state = read_newest(folder)
    assert (path.name, state["step"]) == ("model-3.6.pt", 36)


def test_what_cannot_be_read_comes_last_and_is_not_the_newest(folder):
    (folder / "model-2.pt").write_bytes(b"cut off")
    assert names(in_order(folder))[-1] == "model-2.pt"
    assert newest(folder).name == "model-3.6.pt"
    assert read_newest(folder)[0].name == "model-3.6.pt"


def test_an_empty_folder_has_no_newest(tmp_path):
    assert in_order(tmp_path) == []
    assert newest(tmp_path) is None


def test_later_steps_are_set_aside(folder, caplog):
    (folder / "model-9.pt").write_bytes(b"cut off")
    assert set_aside(folder, 36) == []
    assert not caplog.records
    moved = set_aside(folder, 6)
    assert names(in_order(folder)) == ["model-1.pt", "model-9.pt"]
    assert sorted(names(moved)) == ["model-3.6.pt", "model-4.pt"]
    assert sorted(names(folder.glob("earlier-1/*"))) == ["model-3.6.pt", "model-4.pt"]
    assert "checkpoints are of later steps than 6, at which this run begins" in caplog.text
    set_aside(folder, 0)
    assert names(folder.glob("earlier-2/*")) == ["model-1.pt"]
    assert "a checkpoint is of later steps than 0" in caplog.text
