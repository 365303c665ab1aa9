import io
import logging
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.training.checkpoint import read_newest
from video_diffusion_pytorch.training.checkpoint_file import (
    FORMAT,
    NewerFormat,
    glance,
    read_checkpoint,
    write_checkpoint,
)

STATE = {"step": 3, "model": {"w": torch.arange(200_000)}, "ema": {}}
DAMAGED = r"expected a checkpoint in .*model-1\.pt, got one that is cut off, altered or of anot"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model-1.pt"


@pytest.fixture(scope="module")
def small_state():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 4)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return {
        "step": 3,
        "format": FORMAT,
        "model": model.state_dict(),
        "ema": {name: value.detach().clone() for name, value in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "config": {"unet": {"dim": 4, "dim_mults": (1, 2)}, "class_names": ("run", "walk")},
        "losses": {"training": 0.5, "validation": None},
        "version": "1.2.3",
    }


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def with_byte(path, place, value):
    content = bytearray(path.read_bytes())
    assert content[place] != value
    content[place] = value
    path.write_bytes(content)


# Writing


def test_what_is_written_is_read(path):
    write_checkpoint(STATE, path)
    assert same(read_checkpoint(path), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_numbers_of_numpy_are_written_as_pythons_own(path):
    weights = OrderedDict(w=torch.ones(2))
    weights._metadata = {"": {"version": 1}}
    own = {"step": np.int64(3), "model": weights, "ema": {}, "name": np.str_("a")}
    own["optimizer"] = {"param_groups": [{"lr": np.float64(1e-4), "betas": (np.float32(0.5), 1)}]}
    write_checkpoint(own, path)
    state = read_checkpoint(path)
    assert state["optimizer"] == {"param_groups": [{"lr": 1e-4, "betas": (0.5, 1)}]}
    assert type(state["step"]) is int
    assert type(state["name"]) is str
    # what a class of its own holds stays with it
    assert type(state["model"]) is OrderedDict
    assert state["model"]._metadata == weights._metadata
    assert type(own["step"]) is np.int64


def test_a_file_over_the_limit_of_the_process_keeps_the_old_one(path):
    write_checkpoint({**STATE, "model": {}}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"model-1\.pt could not be written: .*too large"):
            write_checkpoint(STATE, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting takes root")
    try:
        path = disk / "model-1.pt"
        write_checkpoint(STATE, path)
        before = path.read_bytes()
        with pytest.raises(OSError, match=r"model-1\.pt could not be written: .*No space left"):
            write_checkpoint(STATE, path)
        assert path.read_bytes() == before
        assert list(disk.iterdir()) == [path]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_killed_writer_leaves_a_whole_checkpoint(path):
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from video_diffusion_pytorch.training.checkpoint_file import write_checkpoint\n"
        "for step in range(1_000_000):\n"
        "    weights = torch.full((2_000_000,), step)\n"
        "    state = {'step': step, 'model': {'w': weights}, 'ema': {}}\n"
        "    write_checkpoint(state, Path(sys.argv[1]))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    deadline = time.monotonic() + 60
    leftover = []
    while not (path.exists() and leftover) and writer.poll() is None:
        assert time.monotonic() < deadline
        leftover = list(path.parent.glob(".model-*.tmp"))
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    state = read_checkpoint(path)
    assert torch.equal(state["model"]["w"], torch.full((2_000_000,), state["step"]))


class Failing(io.FileIO):
    """A file whose n-th write fails."""

    def __init__(self, path, failure, after):
        super().__init__(path, "wb")
        self.failure, self.left = failure, after

    def write(self, data):
        self.left -= 1
        if self.left < 0:
            raise self.failure
        return super().write(data)


def fail(monkeypatch, failure, after):
    monkeypatch.setattr(Path, "open", lambda path, mode: Failing(path, failure, after))


@pytest.mark.parametrize("after", [0, 2, 5, 9, 14])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, OSError])
def test_an_interrupted_write_keeps_the_old_file(path, monkeypatch, kind, after):
    write_checkpoint(STATE, path)
    before = path.read_bytes()
    expected = kind()
    with monkeypatch.context() as patch:
        fail(patch, expected, after)
        with pytest.raises(kind) as caught:
            write_checkpoint(STATE, path)
    # torch's zip writer puts a RuntimeError of its own in the place of some of them
    assert caught.value is expected or kind is OSError
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_an_error_while_an_interrupt_is_handled_is_not_that_one(path, monkeypatch):
    fail(monkeypatch, OSError(28, "No space left on device"), 5)
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(OSError, match="No space left"):
            write_checkpoint(STATE, path)


def test_an_error_keeps_the_old_file(path, monkeypatch):
    write_checkpoint(STATE, path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"model-1\.pt could not be written: .*No space left.*free"):
        write_checkpoint({**STATE, "step": 4}, path)
    assert same(read_checkpoint(path), STATE)
    assert list(path.parent.iterdir()) == [path]


class Own:
    """A class that reading refuses."""


def test_what_can_be_read_only_by_running_code_is_not_written(path):
    write_checkpoint(STATE, path)
    with pytest.raises(TypeError, match=r"tensors and plain values only, .* got .*Own; convert"):
        write_checkpoint({**STATE, "own": Own()}, path)
    assert same(read_checkpoint(path), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_named(path, monkeypatch, caplog):
    sync = os.fsync

    def refusing(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refusing)
    write_checkpoint(STATE, path)
    assert "may not outlast a power failure" in caplog.text
    assert same(read_checkpoint(path), STATE)


# Damage


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9, 0.999])
@pytest.mark.parametrize("look", [read_checkpoint, glance])
def test_a_truncated_file_is_named(path, share, look):
    write_checkpoint(STATE, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ValueError, match=DAMAGED):
        look(path)


def test_an_altered_byte_of_a_tensor_is_found(path):
    write_checkpoint(STATE, path)
    place = path.read_bytes().index(STATE["model"]["w"][100:110].numpy().tobytes())
    with_byte(path, place, 0)
    # what torch.load reads is another tensor
    altered = torch.load(path, weights_only=True)["model"]["w"]
    assert altered[100] == 0
    with pytest.raises(ValueError, match=f"{DAMAGED}.*Bad CRC-32"):
        read_checkpoint(path)
    assert glance(path)["step"] == 3


def test_an_altered_byte_of_a_plain_value_is_found_at_a_glance(path, small_state):
    write_checkpoint(small_state, path)
    with_byte(path, path.read_bytes().index(b"1.2.3"), ord("2"))
    assert torch.load(path, weights_only=True)["version"] == "2.2.3"
    with pytest.raises(ValueError, match=f"{DAMAGED}.*Bad CRC-32"):
        glance(path)


def test_a_tensor_marked_as_a_folder_is_found(path, small_state):
    """The checksums are right then, and torch gives memory as it was."""
    write_checkpoint(small_state, path)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
    entry = path.read_bytes().rindex(name.encode()) - 46  # in the directory at the end
    with_byte(path, entry + 38, 0x10)
    for look in (read_checkpoint, glance):
        with pytest.raises(ValueError, match=f"{DAMAGED}.*marked as a folder"):
            look(path)


def alter(content, chance):
    content = bytearray(content)
    kind = chance.choice(["byte", "bit", "directory", "many", "cut", "zeros", "insert"])
    place = chance.randrange(len(content))
    if kind == "directory":  # at the end of a zip
        place = len(content) - 1 - chance.randrange(1500)
    if kind == "bit":
        content[place] ^= 1 << chance.randrange(8)
    elif kind in ("byte", "directory"):
        content[place] = (content[place] + chance.randrange(1, 256)) % 256
    elif kind == "many":
        for _ in range(chance.randrange(2, 40)):
            content[chance.randrange(len(content))] = chance.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "zeros":
        content[place : place + 300] = bytes(len(content[place : place + 300]))
    else:
        content[place:place] = bytes(chance.randrange(1, 9))
    return content


def read_altered(path):
    """The state after each of 250 alterations, and None for those that are refused by name."""
    good = path.read_bytes()
    states = []
    for seed in range(250):
        path.write_bytes(alter(good, random.Random(seed)))
        said = None
        try:
            states.append(read_checkpoint(path))
        except ValueError as error:
            states.append(None)
            said = str(error)
        assert said is None or str(path) in said
    return states


def test_altered_files_are_named_or_read_right(path, small_state):
    write_checkpoint(small_state, path)
    read = [state for state in read_altered(path) if state is not None]
    assert all(same(state, small_state) for state in read)
    assert 0 < len(read) < 100


def test_altered_files_of_the_old_format_are_named_or_read(path, small_state):
    torch.save(small_state, path, _use_new_zipfile_serialization=False)
    assert read_altered(path).count(None) > 50


# Reading


def test_a_file_with_code_in_it_does_not_run(tmp_path, path):
    class Danger:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"step": 0, "model": Danger(), "ema": {}}, path)
    for look in (read_checkpoint, glance):
        with pytest.raises(ValueError, match="altered or of another kind"):
            look(path)
    assert not (tmp_path / "ran").exists()


def test_another_torch_file_is_refused(path):
    torch.save({"weight": torch.ones(1), 1: 2}, path)
    text = re.escape("with the entries step, model, ema in")
    for look in (read_checkpoint, glance):
        with pytest.raises(ValueError, match=rf"{text} .*, got \['1', 'weight'\]; load a bare sta"):
            look(path)
    torch.save(torch.ones(1), path)
    with pytest.raises(ValueError, match=rf"{text} .*, got Tensor; load a bare state dict"):
        read_checkpoint(path)


def test_a_missing_file_is_named_with_what_there_is(tmp_path):
    write_checkpoint(STATE, tmp_path / "model-7.pt")
    text = r"model-8\.pt, found none; the folder holds \['model-7\.pt'\]"
    for look in (read_checkpoint, glance):
        with pytest.raises(FileNotFoundError, match=text):
            look(tmp_path / "model-8.pt")
        with pytest.raises(FileNotFoundError, match=r"none: no such file or folder; check the pat"):
            look(tmp_path / "reslts" / "model-8.pt")


@pytest.mark.parametrize("number", [FORMAT + 1, "2b"])
def test_a_later_format_asks_to_upgrade(path, number):
    write_checkpoint({**STATE, "format": number, "version": "9.1"}, path)
    text = f"format {FORMAT} or older in .*, got format {number}, written by version 9.1; upgrade"
    for look in (read_checkpoint, glance):
        with pytest.raises(NewerFormat, match=text):
            look(path)
    write_checkpoint({**STATE, "format": FORMAT}, path)
    assert read_checkpoint(path)["format"] == FORMAT


def test_files_of_torch_before_1_6_are_read(path, small_state):
    torch.save(small_state, path, _use_new_zipfile_serialization=False)
    assert same(read_checkpoint(path), small_state)
    assert glance(path)["version"] == "1.2.3"
    assert glance(path)["model"]["weight"].shape == (4, 3)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="torch before 2.6 always writes"
)
def test_files_without_checksums_are_read_with_a_warning(path, small_state, caplog):
    torch.serialization.set_crc32_options(False)
    try:
        write_checkpoint(small_state, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read_checkpoint(path), small_state)
    assert "has no checksums" in caplog.text
    caplog.clear()
    write_checkpoint(small_state, path)
    read_checkpoint(path)
    assert not caplog.records


def test_a_glance_is_the_state_without_values(path, small_state):
    write_checkpoint(small_state, path)
    state = glance(path)
    for name in ("step", "config", "losses", "version", "format"):
        assert same(state[name], small_state[name])
    assert list(state["model"]) == ["weight", "bias"]
    assert {value.device.type for value in state["model"].values()} == {"meta"}
    assert state["model"]["weight"].shape == (4, 3)
    moments = state["optimizer"]["state"][0]["exp_avg"]
    assert (moments.shape, moments.dtype) == ((4, 3), torch.float32)
    assert state["optimizer"]["param_groups"] == small_state["optimizer"]["param_groups"]


def test_a_glance_at_a_folder_reads_its_plain_values(tmp_path):
    folder = tmp_path / "model-2.sharded"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"model-2\.sharded/run\.pt, found none"):
        glance(folder)
    torch.save({"step": 5, "losses": {"validation": 0.25}}, folder / "run.pt")
    assert glance(folder) == {"step": 5, "losses": {"validation": 0.25}}
    torch.save({"losses": {}}, folder / "run.pt")
    with pytest.raises(ValueError, match=r"with the entries step in .*run\.pt, got \['losses"):
        glance(folder)


# The newest that is whole


def fill(folder, *steps):
    for step in steps:
        write_checkpoint({**STATE, "step": step}, folder / f"model-{step}.pt")
    return [folder / f"model-{step}.pt" for step in steps]


def test_the_newest_is_read(tmp_path, caplog):
    files = fill(tmp_path, 2, 10)
    path, state = read_newest(tmp_path)
    assert (path, state["step"]) == (files[1], 10)
    assert not caplog.records


def test_a_damaged_one_is_named_and_the_one_before_it_is_read(tmp_path, caplog):
    files = fill(tmp_path, 1, 2, 3, 4)
    files[3].write_bytes(b"")
    with_byte(files[2], 50_001, 77)
    with caplog.at_level(logging.WARNING):
        path, state = read_newest(tmp_path)
    assert (path, state["step"]) == (files[1], 2)
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"{files[3]} is neither used, counted nor removed: expected")
    assert second.startswith(f"{files[2]} is damaged, the checkpoint before it is used: expected")


def test_none_that_is_whole_is_an_error(tmp_path):
    for file in fill(tmp_path, 1, 2):
        file.write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"an undamaged checkpoint in .*: model-2\.pt, model-1"):
        read_newest(tmp_path)


def test_no_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a checkpoint model-N\.pt or model"):
        read_newest(tmp_path)


def test_a_later_version_s_checkpoint_is_not_gone_back_behind(tmp_path):
    fill(tmp_path, 1)
    write_checkpoint({**STATE, "format": FORMAT + 1}, tmp_path / "model-2.pt")
    with pytest.raises(NewerFormat, match="upgrade"):
        read_newest(tmp_path)


def test_the_newest_is_read_as_the_caller_says(tmp_path):
    fill(tmp_path, 1)
    for step in (2, 3):
        (tmp_path / f"model-{step}.sharded").mkdir()
        torch.save({"step": step}, tmp_path / f"model-{step}.sharded" / "run.pt")

    def read(path):
        if path.name == "model-3.sharded":
            raise FileNotFoundError("its shard is missing")
        return {"step": path.name}

    expected = tmp_path / "model-2.sharded"
    assert read_newest(tmp_path, read) == (expected, {"step": "model-2.sharded"})


# Values of other types, and files that claim more than they hold


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("step", "seven", "str"),
        ("step", -1, "-1"),
        ("step", 3.0, "float"),
        ("step", True, "True"),
        ("step", torch.ones(2), "Tensor"),
        ("model", [1], "list"),
        ("ema", None, "NoneType"),
        ("ema_decays", 0.5, "float"),
        ("optimizer", [], "list"),
        ("scheduler", None, "NoneType"),
        ("config", "unet", "str"),
        ("losses", [0.5], "list"),
        ("random_states", "none", "str"),
        ("data", 4, "4"),
    ],
)
def test_an_entry_of_another_type_is_named(path, small_state, name, value, got):
    torch.save({**small_state, name: value}, path)
    for read in (read_checkpoint, glance):
        with pytest.raises(ValueError, match=f"with a valid entry {name} in .*, got {got}; use"):
            read(path)
    write_checkpoint(small_state, path.with_name("model-0.pt"))
    assert read_newest(path.parent)[0].name == "model-0.pt"


def test_entries_of_ones_own_may_be_anything(path, small_state):
    own = {"mine": ["a", {3: None}], "emas": {}, "scaler": {}, "random_states": None}
    weights = {**small_state["model"], "block._extra_state": {"calls": 3}}
    state = {**small_state, **own, "model": weights}
    write_checkpoint(state, path)
    assert same(read_checkpoint(path), state)


@pytest.mark.parametrize("kind", ["compressed", "twice", "overlap"])
def test_entries_that_torch_never_writes(path, kind):
    """What claims more than the file holds is refused before any of it is read."""
    write_checkpoint(STATE, path)
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    method = zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the two of one name
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in records * (2 if kind == "twice" else 1):
                archive.writestr(name, content)
    if kind == "overlap":
        content = bytearray(path.read_bytes())
        last = content.rindex(b"PK\x01\x02")
        content[last + 42 : last + 46] = bytes(4)  # where its content begins
        path.write_bytes(content)
    reason = {"compressed": "compressed entries", "twice": "two entries of one name"}
    for read in (read_checkpoint, glance):
        with pytest.raises(ValueError, match=f"{DAMAGED}.*{reason.get(kind, 'overlap')}"):
            read(path)


def test_a_name_as_long_as_file_systems_allow(path):
    long = path.with_name("x" * 252 + ".pt")
    write_checkpoint(STATE, long)
    assert same(read_checkpoint(long), STATE)
    assert list(path.parent.iterdir()) == [long]


@pytest.mark.parametrize("look", [read_checkpoint, glance])
def test_lists_that_hold_each_other_many_times_end(path, look):
    nested = [0]
    for _ in range(60):
        nested = [nested] * 10
    rows = {f"r{i}": torch.zeros(1) for i in range(2000)}
    state = {**STATE, "own": nested, "emas": {f"e{i}": rows for i in range(2000)}}
    torch.save(state, path)
    start = time.process_time()
    found = look(path)
    assert time.process_time() - start < 10
    assert found["own"][3][4] is found["own"][0][0]


class OfSize:
    def __reduce__(self):
        return bytearray, (1 << 40,)


@pytest.mark.parametrize("look", [read_checkpoint, glance])
def test_memory_that_a_few_bytes_ask_for_is_refused(path, look):
    torch.save({**STATE, "own": OfSize()}, path)
    with pytest.raises(ValueError, match=f"{DAMAGED}.*bytearray, which torch.save does not write"):
        look(path)
