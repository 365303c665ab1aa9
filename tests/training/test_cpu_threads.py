"""The number of threads of a training on a CPU whose cores other processes use."""

import itertools
import logging

import pytest
import torch

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.training import cpu_threads
from video_diffusion_pytorch.training.cpu_threads import CPUThreads

CPU = torch.device("cpu")


class Machine:
    """Threads and a clock that only tests set."""

    def __init__(self):
        self.threads, self.now = 2, 1000.0
        self.choice = None

    def steps(self, count, wall, cores):
        """Steps of `wall` seconds in which the process gets so many cores."""
        for _ in range(count):
            self.now += wall
            self.choice.add_step(wall, wall * cores)
        return self.threads


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: setattr(machine, "threads", n))
    monkeypatch.setattr(cpu_threads.time, "monotonic", lambda: machine.now)
    machine.choice = CPUThreads(CPU)
    return machine


def test_cores_of_its_own_keep_their_threads(machine):
    assert machine.steps(50, wall=0.6, cores=1.97) == 2


def test_the_first_steps_are_not_judged(machine):
    assert machine.steps(2, wall=5.0, cores=0.9) == 2
    assert machine.steps(50, wall=0.6, cores=1.97) == 2


def test_a_busy_core_costs_a_thread_until_it_is_free(machine, caplog):
    assert machine.steps(4, wall=2.0, cores=1.3) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "the 2 CPU threads of this training get the time of 1.3 cores, as if other processes used "
        "the rest: it tries 1 thread(s), and later all of them again; to keep the number, set "
        "OMP_NUM_THREADS"
    ]
    # faster than before, so it stays
    assert machine.steps(40, wall=1.0, cores=1.0) == 1
    # after a minute all are tried again
    until = machine.now + 24
    while machine.steps(1, wall=1.0, cores=1.0) == 1:
        assert machine.now < until
    assert machine.steps(40, wall=0.6, cores=1.97) == 2
    assert len(caplog.records) == 1


def test_a_core_that_stays_busy_is_tried_less_and_less_often(machine, caplog):
    caplog.set_level(logging.WARNING)
    tried = []
    machine.steps(4, wall=2.0, cores=1.3)
    for _ in range(3000):
        if machine.steps(1, wall=1.0, cores=1.0) == 2:
            tried.append(machine.now)
            assert machine.steps(2, wall=2.0, cores=1.3) == 1
    pauses = [round(b - a, -1) for a, b in itertools.pairwise(tried)]
    assert pauses[:4] == [120, 240, 480, 600]
    assert max(pauses) == 600
    assert len(caplog.records) == 1


def test_threads_come_back_where_fewer_are_not_faster(machine):
    assert machine.steps(4, wall=1.0, cores=1.3) == 1
    assert machine.steps(2, wall=1.2, cores=1.0) == 2
    # and are left alone for a minute
    assert machine.steps(50, wall=1.0, cores=1.3) == 2


def test_as_many_threads_as_cores_are_left(machine):
    machine.threads = 8
    machine.choice = CPUThreads(CPU)
    assert machine.steps(4, wall=1.0, cores=6.7) == 6


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_a_number_that_the_user_sets_stays(machine, monkeypatch, name):
    monkeypatch.setenv(name, "2")
    machine.choice = CPUThreads(CPU)
    assert machine.steps(50, wall=1.0, cores=1.3) == 2


def test_a_number_that_is_set_meanwhile_stays(machine):
    assert machine.steps(4, wall=2.0, cores=1.3) == 1
    machine.threads = 3
    with machine.choice.restored():
        assert machine.steps(200, wall=1.0, cores=1.0) == 3
    assert machine.threads == 3


@pytest.mark.parametrize(("device", "processes"), [("cuda", 1), ("cpu", 2)])
def test_gpus_and_several_processes_are_left_alone(machine, device, processes):
    machine.choice = CPUThreads(torch.device(device), processes)
    assert machine.steps(50, wall=1.0, cores=1.3) == 2


def test_threads_are_restored(machine):
    def train():
        with machine.choice.restored():
            assert machine.steps(4, wall=1.0, cores=1.3) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert machine.threads == 2


def test_a_trainer_measures_each_step(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(CPUThreads, "add_step", lambda self, wall, cpu: steps.append((wall, cpu)))
    unet = Unet3D(dim=8, dim_mults=(1,), attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=2, timesteps=4)
    Trainer(
        diffusion,
        dataset=torch.rand(4, 3, 2, 8, 8),
        results_folder=tmp_path,
        train_batch_size=2,
        train_num_steps=3,
        num_workers=0,
        device="cpu",
    ).train()
    assert len(steps) == 3
    assert all(0 < wall < 60 and 0 < cpu < 60 for wall, cpu in steps)
