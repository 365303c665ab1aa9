import random
import re
from collections import OrderedDict

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.training.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    random_states,
    read_checkpoint,
    restore_random_states,
    write_checkpoint,
)

STATE = {"step": 3, "model": {"w": torch.arange(200_000)}, "ema": {}}


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_what_is_written_is_read(tmp_path):
    write_checkpoint(STATE, tmp_path / "model-1.pt")
    state = read_checkpoint(tmp_path / "model-1.pt")
    assert state["step"] == 3
    assert torch.equal(state["model"]["w"], STATE["model"]["w"])
    assert [path.name for path in tmp_path.iterdir()] == ["model-1.pt"]


def test_numbers_of_numpy_are_written_as_pythons_own(tmp_path):
    weights = OrderedDict(w=torch.ones(2))
    weights._metadata = {"": {"version": 1}}
    own = {"step": np.int64(3), "model": weights, "ema": {}, "name": np.str_("a")}
    own["optimizer"] = {"param_groups": [{"lr": np.float64(1e-4), "betas": (np.float32(0.5), 1)}]}
    write_checkpoint(own, tmp_path / "model-1.pt")
    state = read_checkpoint(tmp_path / "model-1.pt")
    assert state["optimizer"] == {"param_groups": [{"lr": 1e-4, "betas": (0.5, 1)}]}
    assert type(state["step"]) is int
    assert type(state["name"]) is str
    # what a class of its own holds stays with it
    assert type(state["model"]) is OrderedDict
    assert state["model"]._metadata == weights._metadata
    assert type(own["step"]) is np.int64


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
def test_a_truncated_file_is_named(tmp_path, share):
    path = tmp_path / "model-1.pt"
    write_checkpoint(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(
        ValueError, match=r"expected a checkpoint in .*model-1\.pt, got a file that"
    ):
        read_checkpoint(path)


def test_a_file_with_code_in_it_does_not_run(tmp_path):
    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"step": 0, "model": Danger(), "ema": {}}, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match="altered or of another kind"):
        read_checkpoint(tmp_path / "model-1.pt")
    assert not (tmp_path / "ran").exists()


def test_another_torch_file_is_refused(tmp_path):
    torch.save({"weight": torch.ones(1)}, tmp_path / "model-1.pt")
    text = re.escape("with step, model and ema in")
    with pytest.raises(ValueError, match=rf"{text} .*, got \['weight'\]; load a bare state dict"):
        read_checkpoint(tmp_path / "model-1.pt")


def test_a_missing_file_is_named_with_what_there_is(tmp_path):
    write_checkpoint(STATE, tmp_path / "model-7.pt")
    with pytest.raises(
        FileNotFoundError, match=r"model-8\.pt, found none; the folder holds \['mod"
    ):
        read_checkpoint(tmp_path / "model-8.pt")


def test_the_last_checkpoint_is_that_of_the_highest_number(tmp_path):
    for name in ("model-9.pt", "model-10.pt", "model-2.5.pt", "model-best.pt", "other.pt"):
        (tmp_path / name).touch()
    names = [path.name for path in list_checkpoints(tmp_path)]
    assert names == ["model-2.5.pt", "model-9.pt", "model-10.pt"]
    assert find_checkpoint(tmp_path, -1).name == "model-10.pt"
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt in"):
        find_checkpoint(tmp_path / "empty", -1)


def test_a_failed_write_keeps_the_old_file_and_says_so(tmp_path, monkeypatch):
    path = tmp_path / "model-1.pt"
    write_checkpoint(STATE, path)
    before = path.read_bytes()

    def full_disk(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"model-1\.pt could not be written: .*No space left"):
        write_checkpoint(STATE, path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_random_states_come_back(tmp_path):
    random.gauss(0, 1)  # leaves a second draw behind
    states = random_states()
    expected = draws()
    write_checkpoint({**STATE, "random": states}, tmp_path / "model-1.pt")
    draws()
    restore_random_states(read_checkpoint(tmp_path / "model-1.pt")["random"])
    assert draws() == expected
