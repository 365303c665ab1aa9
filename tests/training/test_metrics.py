"""What steps measured, and the file of it."""

import builtins
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.training import metrics
from video_diffusion_pytorch.training.metrics import (
    BINS,
    MetricsFile,
    StepMetrics,
    peak_memory,
    read_metrics,
)

CPU = torch.device("cpu")


def alone(tensor):
    return tensor


def step_of(steps, loss=1.0, grad_norm=None, clips=1, seconds=1.0, waited=0.0):
    steps.add_step(loss=loss, grad_norm=grad_norm, clips=clips, seconds=seconds, waited=waited)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# Sums


def test_a_line_has_the_means_of_its_steps():
    steps = StepMetrics("cpu", 1000)
    step_of(steps, loss=1.0, grad_norm=2.0, clips=8, seconds=1.0, waited=0.25)
    step_of(steps, loss=3.0, grad_norm=4.0, clips=8, seconds=3.0, waited=0.75)
    line = steps.take(20, 1e-4, alone)
    assert (line["step"], line["steps"], line["lr"]) == (20, 2, 1e-4)
    assert line["loss"] == 2.0
    assert line["grad_norm"] == 3.0
    assert line["clips_per_second"] == 4.0
    assert line["data_wait"] == 0.25
    assert line["memory_mib"] > 1
    assert line["loss_by_noise"] == [None] * BINS
    assert line["time"] > 1.7e9
    assert json.loads(json.dumps(line, allow_nan=False)) == line


def test_a_line_starts_over():
    steps = StepMetrics("cpu", 10)
    steps.add_losses(torch.ones(2), torch.tensor([0, 9]))
    step_of(steps, loss=9.0, grad_norm=1.0)
    steps.take(1, 1.0, alone)
    empty = steps.take(1, 1.0, alone)
    assert empty["steps"] == 0
    for name in ("loss", "grad_norm", "clips_per_second", "data_wait"):
        assert empty[name] is None, name
    assert empty["loss_by_noise"] == [None] * BINS
    step_of(steps, loss=1.0)
    assert steps.take(2, 1.0, alone)["loss"] == 1.0


@pytest.mark.parametrize("num_timesteps", [10, 30, 1000, 990])
def test_ranges_of_the_schedule_are_equal(num_timesteps):
    steps = StepMetrics("cpu", num_timesteps)
    t = torch.arange(num_timesteps)
    steps.add_losses(t.float(), t)
    width = num_timesteps // BINS
    expected = t.view(BINS, width).double().mean(dim=1).tolist()
    assert steps.take(1, 1.0, alone)["loss_by_noise"] == pytest.approx(expected)


@pytest.mark.parametrize("num_timesteps", [1, 2, 7, 10, 1000])
def test_every_time_is_in_a_range(num_timesteps):
    steps = StepMetrics("cpu", num_timesteps)
    t = torch.cat((torch.linspace(-1, num_timesteps - 1, 777), torch.arange(num_timesteps)))
    steps.add_losses(torch.ones(len(t)), t)
    assert steps._by_noise[1].sum() == len(t)
    first, last = StepMetrics("cpu", num_timesteps), StepMetrics("cpu", num_timesteps)
    first.add_losses(torch.ones(1), torch.tensor([-1.0]))
    last.add_losses(torch.ones(1), torch.tensor([num_timesteps - 1]))
    assert first.take(1, 1.0, alone)["loss_by_noise"] == [1.0] + [None] * (BINS - 1)
    assert last.take(1, 1.0, alone)["loss_by_noise"] == [None] * (BINS - 1) + [1.0]


def test_processes_are_summed():
    own, other = StepMetrics("cpu", 10), StepMetrics("cpu", 10)
    step_of(own, loss=1.0, grad_norm=1.0, clips=4, seconds=2.0, waited=0.0)
    step_of(other, loss=3.0, grad_norm=1.0, clips=4, seconds=2.0, waited=1.0)
    own.add_losses(torch.ones(1), torch.tensor([3]))
    other.add_losses(torch.tensor([5.0, 2.0]), torch.tensor([3, 8]))
    sent = []
    other.take(1, 1.0, lambda tensor: sent.append(tensor.clone()) or tensor)
    calls = []
    line = own.take(1, 1.0, lambda tensor: calls.append(1) or tensor + sent[0])
    assert len(sent) == len(calls) == 1
    assert line["loss"] == 2.0
    assert line["clips_per_second"] == 4.0  # eight clips in two seconds
    assert line["data_wait"] == 0.25
    assert line["steps"] == 1
    assert (line["loss_by_noise"][3], line["loss_by_noise"][8]) == (3.0, 2.0)


def test_what_is_not_finite_is_none_and_reaches_nothing_else():
    steps = StepMetrics("cpu", 10)
    steps.add_losses(torch.tensor([math.nan, 2.0, math.inf]), torch.tensor([0, 1, 2]))
    step_of(steps, loss=math.nan, grad_norm=math.inf)
    step_of(steps, loss=1.0, grad_norm=3.0)
    line = steps.take(2, math.nan, alone)
    assert line["loss"] is None
    assert line["lr"] is None
    assert line["grad_norm"] == 3.0
    assert line["loss_by_noise"] == [None, 2.0, None] + [None] * 7


def test_losses_are_summed_where_they_are():
    # a tensor without data would refuse to give a number to the host
    steps = StepMetrics("meta", 10)
    losses = torch.ones(4, device="meta", requires_grad=True)
    steps.add_losses(losses, torch.zeros(4, device="meta", dtype=torch.long))
    steps.add_losses(losses.bfloat16(), torch.zeros(4, device="meta"))
    assert not steps._by_noise.requires_grad


@pytest.mark.parametrize(("losses", "t"), [((), ()), ((2, 3), (2, 3)), ((2,), (3,))])
def test_a_loss_for_each_clip_is_wanted(losses, t):
    with pytest.raises(ValueError, match=r"the shape of t, \(b,\), one for each clip, got .*"):
        StepMetrics("cpu", 10).add_losses(torch.ones(losses), torch.ones(t))


def test_peak_memory_is_in_mib():
    code = """
import torch
from video_diffusion_pytorch.training.metrics import peak_memory
torch.ones(2**27)
print(peak_memory(torch.device("cpu")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 512 and the libraries
    assert 512 < float(done.stdout) < 2048


def test_peak_memory_is_that_of_the_gpu_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    assert peak_memory(torch.device("cuda")) == 3


def test_memory_is_none_where_it_is_not_reported(monkeypatch):
    importing = builtins.__import__

    def without(name, *args):
        if name == "resource":
            raise ModuleNotFoundError(name)
        return importing(name, *args)

    def without_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.setattr(Path, "read_text", without_file)
    assert peak_memory(CPU) is None


# The file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write_steps(path, *steps):
    file = MetricsFile(path, 0)
    for step in steps:
        file.write({"step": step, "loss": step / 2})
    return path.read_bytes()


def test_lines_come_back(path):
    file = MetricsFile(path, 0)
    assert not path.exists()
    file.write({"step": 1, "loss": 0.5, "loss_by_noise": [1.0, None]})
    file.write({"step": 2, "validation_loss": math.nan, "by": [math.inf, {"x": -math.inf}]})
    assert read_metrics(path) == [
        {"step": 1, "loss": 0.5, "loss_by_noise": [1.0, None]},
        {"step": 2, "validation_loss": None, "by": [None, {"x": None}]},
    ]


def test_steps_that_are_repeated_are_dropped(path):
    write_steps(path, 10, 20, 30, 40)
    file = MetricsFile(path, 25)
    assert [line["step"] for line in read_metrics(path)] == [10, 20]
    file.write({"step": 30})
    assert [line["step"] for line in read_metrics(path)] == [10, 20, 30]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_a_file_without_such_steps_is_left_alone(path):
    before = write_steps(path, 10, 20)
    os.utime(path, (1, 1))
    MetricsFile(path, 20)
    assert (path.read_bytes(), path.stat().st_mtime) == (before, 1)


def test_a_line_that_was_cut_off_is_dropped(path, caplog):
    whole = write_steps(path, 10, 20, 30)
    begin_of_last = whole.rstrip().rindex(b"\n") + 1
    for end in range(begin_of_last, len(whole)):
        path.write_bytes(whole[:end])
        # without its line feed only, the last one is whole
        expected = [10, 20, 30] if end == len(whole) - 1 else [10, 20]
        assert [line["step"] for line in read_metrics(path)] == expected
        MetricsFile(path, 30).write({"step": 40})
        assert [line["step"] for line in lines_of(path)] == [*expected, 40]
    assert not caplog.records


def test_a_new_run_keeps_the_file_of_the_old_one(path):
    olds = []
    for step in (1, 2, 3):
        olds.append(write_steps(path, step))
    assert path.read_bytes() == olds[2]
    assert (path.parent / "metrics-1.jsonl").read_bytes() == olds[0]
    assert (path.parent / "metrics-2.jsonl").read_bytes() == olds[1]
    path.write_bytes(b"")
    MetricsFile(path, 0)
    assert len(os.listdir(path.parent)) == 3


def test_other_lines_are_dropped(path):
    whole = write_steps(path, 10, 20)
    path.write_bytes(b'\0\0\0\n[1]\n{"loss": 1}\n' + whole)
    MetricsFile(path, 20)
    assert path.read_bytes() == whole


def test_any_damage_is_survived(path):
    whole = write_steps(path, *range(10, 60, 10))
    draw = random.Random(0)
    for _ in range(100):
        bytes_ = bytearray(whole[: draw.randrange(1, len(whole) + 1)])
        for _ in range(draw.randrange(3)):
            bytes_[draw.randrange(len(bytes_))] = draw.randrange(256)
        path.write_bytes(bytes_)
        MetricsFile(path, 1000).write({"step": 1000})
        assert read_metrics(path)[-1] == {"step": 1000}


def test_a_full_disk_is_named_and_leaves_whole_lines(path, tmp_path):
    code = f"""
import resource, signal
from video_diffusion_pytorch.training.metrics import MetricsFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
file = MetricsFile({str(path)!r}, 0)
file.write({{"step": 1}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    file.write({{"step": 2, "text": "x" * 200}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"no space is left on the disk of {path}; make room" in done.stdout
    assert path.read_text() == '{"step": 1}\n'


def test_a_folder_that_is_gone_is_named(tmp_path):
    file = MetricsFile(tmp_path / "gone" / "metrics.jsonl", 0)
    with pytest.raises(FileNotFoundError, match="gone"):
        file.write({"step": 1})


def test_a_rewrite_that_fails_leaves_the_file(path, monkeypatch):
    before = write_steps(path, 10, 20)

    def broken(self, target):
        raise OSError("no")

    monkeypatch.setattr(metrics.Path, "replace", broken)
    with pytest.raises(OSError, match="no"):
        MetricsFile(path, 10)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_reading_names_what_is_wrong(path):
    with pytest.raises(FileNotFoundError, match=r"numbers of a run at .*, found no file; give"):
        read_metrics(path)
    for middle in (b"nothing\n", b"\n", b"[1]\n", b"\xff\n"):
        path.write_bytes(b'{"step": 1}\n' + middle + b'{"step": 2}\n')
        with pytest.raises(ValueError, match=r"object with a step in .* in line 2; remove"):
            read_metrics(path)
