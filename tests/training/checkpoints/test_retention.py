import shutil

import pytest
import torch

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import write_checkpoint
from video_diffusion_pytorch.training.checkpoints.retention import (
    best_checkpoint,
    check_keep,
    forget_old,
)

STATE = {"step": 3, "model": {"w": torch.arange(3)}, "ema": {}}


def write(folder, number, loss="none"):
    """A checkpoint with a validation loss, or without."""
    losses = {} if loss == "none" else {"losses": {"training": 1.0, "validation": loss}}
    write_checkpoint({**STATE, **losses}, folder / f"model-{number}.pt")


def write_sharded(folder, number, loss):
    path = folder / f"model-{number}.sharded"
    path.mkdir()
    (path / "shard").write_bytes(b"tensors")
    torch.save({"step": 3, "losses": {"validation": loss}}, path / "run.pt")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_are_kept(tmp_path):
    for number in (1, 2, 2.5, 9, 10):
        write(tmp_path, number)
    (tmp_path / "model-0.pt.bak").touch()
    (tmp_path / "0.gif").touch()
    (tmp_path / "model-best.pt").touch()
    others = ["0.gif", "model-0.pt.bak", "model-best.pt"]
    assert forget_old(tmp_path, None) == []
    assert len(names(tmp_path)) == 5 + len(others)
    removed = forget_old(tmp_path, 2)
    assert [path.name for path in removed] == ["model-1.pt", "model-2.pt", "model-2.5.pt"]
    assert names(tmp_path) == sorted([*others, "model-9.pt", "model-10.pt"])
    assert forget_old(tmp_path, 2) == []


def test_the_best_are_kept_besides(tmp_path):
    losses = [0.3, float("nan"), 0.1, "none", None, 0.2, 0.5, 0.4]
    for number, loss in enumerate(losses):
        write(tmp_path, number, loss)
    forget_old(tmp_path, 2, 2)
    assert names(tmp_path) == ["model-2.pt", "model-5.pt", "model-6.pt", "model-7.pt"]
    # those without a loss are never best, however many are wanted
    write(tmp_path, 1, float("nan"))
    write(tmp_path, 3)
    forget_old(tmp_path, 1, 5)
    assert names(tmp_path) == ["model-2.pt", "model-5.pt", "model-6.pt", "model-7.pt"]


def test_one_that_cannot_be_read_is_left_and_takes_no_place(tmp_path, caplog):
    for number in range(5):
        write(tmp_path, number)
    (tmp_path / "model-0.pt").write_bytes(b"cut off")
    (tmp_path / "model-4.pt").write_bytes(b"cut off")
    assert [path.name for path in forget_old(tmp_path, 2)] == ["model-1.pt"]
    assert names(tmp_path) == ["model-0.pt", "model-2.pt", "model-3.pt", "model-4.pt"]
    assert "model-4.pt is neither removed nor counted" in caplog.text


def test_that_just_written_is_kept_after_going_back(tmp_path):
    for number in (1, 8, 9):
        write(tmp_path, number)
    assert forget_old(tmp_path, 2, written=tmp_path / "model-1.pt") == []
    write(tmp_path, 2)
    removed = forget_old(tmp_path, 2, written=tmp_path / "model-2.pt")
    assert [path.name for path in removed] == ["model-1.pt"]


def test_folders_are_removed_whole(tmp_path):
    for number, loss in ((1, 0.5), (2, 0.1), (3, 0.9)):
        write_sharded(tmp_path, number, loss)
    (tmp_path / ".model-0.sharded.removed").mkdir()  # of a process killed while it removed
    removed = forget_old(tmp_path, 1, 1)
    assert [path.name for path in removed] == ["model-1.sharded"]
    assert names(tmp_path) == ["model-2.sharded", "model-3.sharded"]


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch, caplog):
    write_sharded(tmp_path, 1, 0.5)
    write(tmp_path, 2)

    def refusing(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refusing)
    assert forget_old(tmp_path, 1) == []
    assert "is an old checkpoint that could not be removed: [Errno 13]" in caplog.text


@pytest.mark.parametrize(
    ("keep", "text"),
    [
        ((0,), "keep_last must be at least 1, .*, got 0; give None"),
        ((1, -1), "keep_best must be 0 or more checkpoints, got -1; give 0"),
    ],
)
def test_impossible_numbers_are_refused(tmp_path, keep, text):
    for check in (check_keep, lambda *keep: forget_old(tmp_path, *keep)):
        with pytest.raises(ValueError, match=text):
            check(*keep)


def test_the_best_is_that_of_the_lowest_loss(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"validation loss in .*, found no checkpoint"):
        best_checkpoint(tmp_path)
    write(tmp_path, 1)
    with pytest.raises(FileNotFoundError, match=r"validation loss in .*, found model-1\.pt; train"):
        best_checkpoint(tmp_path)
    for number, loss in ((2, 0.5), (3, 0.25), (5, 0.75)):
        write(tmp_path, number, loss)
    assert best_checkpoint(tmp_path).name == "model-3.pt"
    write_sharded(tmp_path, 4, 0.25)
    assert best_checkpoint(tmp_path).name == "model-4.sharded"
