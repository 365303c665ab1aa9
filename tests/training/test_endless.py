"""Batches without end: their order on any number of processes, interrupts and dying readers."""

import gc
import os
import re
import signal
import threading
import time
from itertools import islice

import pytest
from torch.utils.data import DataLoader, Dataset, _utils
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from video_diffusion_pytorch.training import batches as batch_stream
from video_diffusion_pytorch.training.batches import Endless, EndlessShuffle

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")


def test_endless_starts_over():
    batches = Endless([1, 2])
    assert list(islice(batches, 5)) == [1, 2, 1, 2, 1]
    batches.restart()
    assert next(batches) == 1


def test_endless_continues_after_an_interrupt():
    def loader():
        yield 1
        raise KeyboardInterrupt

    class Loader:
        __iter__ = staticmethod(loader)

    batches = Endless(Loader())
    assert next(batches) == 1
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert next(batches) == 1


def test_endless_refuses_an_empty_loader():
    with pytest.raises(ValueError, match="must give at least one batch, got none; check"):
        next(Endless([]))


# the order on several processes


def make_order(length, batch_size=1, process=0, num_processes=1, position=0):
    # indices that are no positions
    order = EndlessShuffle([100 + 3 * i for i in range(length)], seed=7)
    order.batch_size, order.process, order.num_processes = batch_size, process, num_processes
    order.position = position
    return order


def joined(count, batch_size, num_processes, length, position=0):
    """What all processes draw, batch after batch, the first `count` of it."""
    streams = [
        iter(make_order(length, batch_size, process, num_processes, position))
        for process in range(num_processes)
    ]
    found = []
    while len(found) < count:
        for stream in streams:
            found += islice(stream, batch_size)
    return found[:count]


@pytest.mark.parametrize("length", [1, 5, 12])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
def test_processes_join_to_the_order_of_one(length, batch_size, num_processes):
    together = joined(4 * length, batch_size, num_processes, length)
    alone = list(islice(make_order(length), 4 * length))
    # the clips, and what is random about each
    assert together == alone
    for epoch in range(4):
        drawn = sorted(draw.clip for draw in together[epoch * length : (epoch + 1) * length])
        assert drawn == [100 + 3 * i for i in range(length)]
    assert len({draw.seed for draw in together}) == 4 * length


@pytest.mark.parametrize("position", [3, 12, 17])
@pytest.mark.parametrize(("batch_size", "num_processes"), [(2, 3), (5, 1), (1, 4)])
def test_any_number_of_processes_continues_mid_epoch(position, batch_size, num_processes):
    whole = list(islice(make_order(12), position + 24))
    assert joined(24, batch_size, num_processes, 12, position) == whole[position:]


def test_a_process_knows_the_places_of_its_clips():
    order = make_order(12, batch_size=2, process=1, num_processes=3, position=6)
    assert order.places(6) == range(8, 10)
    first = list(islice(order, 4))
    assert [draw.clip for draw in first[:2]] == [order.clip_at(8), order.clip_at(9)]
    # the next batch begins after those of all
    assert [draw.seed for draw in first[2:]] == [order.seed_at(14), order.seed_at(15)]


# processes that die


class Numbers(Dataset):
    """Its own numbers; some kill the process that reads them, as long as there is no `flag`."""

    def __init__(self, deadly=(), flag=None):
        self.deadly, self.flag = deadly, flag

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index in self.deadly and (self.flag is None or not self.flag.exists()):
            if self.flag is not None:
                self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return index


class FromPosition:
    """A loader that goes on with what has not been given yet, as that of a Trainer."""

    def __init__(self, dataset):
        self.dataset, self.num_workers, self.position = dataset, 2, 0
        self.started = []

    def __iter__(self):
        indices = [[i % 12, (i + 1) % 12] for i in range(self.position, 48, 2)]
        loader = DataLoader(self.dataset, batch_sampler=indices, num_workers=self.num_workers)
        self.started.append(iter(loader))
        return self.started[-1]


def take(batches, count):
    found = []
    for _ in range(count):
        found.append(next(batches).tolist())
        batches.loader.position += 2
    return found


@pytest.fixture
def soon(monkeypatch):
    """Lets deaths be noticed, and those left over be ended, sooner than after five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    yield
    gc.collect()


@pytest.fixture
def handler_of_torch(monkeypatch):
    """What another loader, used before, leaves behind: a handler that raises when one dies."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    next(iter(DataLoader(range(2), num_workers=1)))
    assert signal.getsignal(signal.SIGCHLD) != signal.SIG_DFL
    yield
    signal.signal(signal.SIGCHLD, before)


@needs_fork
@pytest.mark.usefixtures("soon")
def test_after_a_death_the_same_batches_come(tmp_path, caplog):
    loader = FromPosition(Numbers(deadly=(5,), flag=tmp_path / "died"))
    assert take(Endless(loader), 8) == [[i % 12, (i + 1) % 12] for i in range(0, 16, 2)]
    assert (tmp_path / "died").exists()
    assert len(loader.started) == 2
    assert len(caplog.records) == 1
    assert "a worker that reads clips died" in caplog.text
    assert "it is replaced" in caplog.text


@needs_fork
@pytest.mark.usefixtures("soon")
def test_a_batch_that_always_kills_ends_it(caplog):
    loader = FromPosition(Numbers(deadly=(5,)))
    batches = Endless(loader)
    message = (
        r"^Trainer: the workers that read clips must stay alive, got 3 deaths at one batch "
        r"\(DataLoader worker .*\); look for a lack of memory .* or read in the main process with "
        r"num_workers=0$"
    )
    with pytest.raises(RuntimeError, match=message):
        # batches before it may be given, or die with it as they are read ahead
        take(batches, 3)
    assert loader.position <= 4
    assert len(loader.started) >= 3
    assert len(caplog.records) == 3


@needs_fork
@pytest.mark.usefixtures("soon")
def test_deaths_at_several_batches_are_counted_apart(tmp_path):
    loader = FromPosition(Numbers())
    batches = Endless(loader)
    for _ in range(5):
        take(batches, 1)
        for worker in loader.started[-1]._workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        # what had been read before the death is still given
        take(batches, 3)
    assert len(loader.started) > 3


@needs_fork
@pytest.mark.usefixtures("soon", "handler_of_torch")
def test_a_dead_worker_raises_at_the_next_batch_only():
    """Not in the middle of an optimizer step, also when a loader was used before."""
    loader = FromPosition(Numbers())
    batches = Endless(loader)
    take(batches, 1)
    for worker in loader.started[-1]._workers:
        os.kill(worker.pid, signal.SIGKILL)
        # not waited for: the main thread is elsewhere when the system tells of it
        for _ in range(10):
            time.sleep(0.01)
    assert take(batches, 6)[-1] == [0, 1]
    assert len(loader.started) == 2


@needs_fork
@pytest.mark.usefixtures("soon")
def test_a_handler_of_the_user_stays():
    def own(number, frame):
        heard.append(number)

    heard = []
    before = signal.signal(signal.SIGCHLD, own)
    try:
        next(Endless(DataLoader(range(2), num_workers=1)))
        assert signal.getsignal(signal.SIGCHLD) == own
    finally:
        signal.signal(signal.SIGCHLD, before)


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise self.error


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", [RuntimeError, EOFError, ConnectionResetError, FileNotFoundError])
def test_errors_of_the_dataset_pass(workers, kind, caplog):
    dataset = Failing(kind("DataLoader of my own failed"))
    with pytest.raises(kind, match="of my own failed"):
        next(Endless(DataLoader(dataset, num_workers=workers)))
    assert not caplog.records


@pytest.mark.parametrize("kind", [EOFError, ConnectionResetError, FileNotFoundError])
def test_a_connection_that_breaks_is_a_death(kind, caplog):
    """It may break before torch sees that the process at its other end is dead."""

    class Loader:
        num_workers, begun = 1, 0

        def __iter__(self):
            self.begun += 1
            if self.begun < 3:
                raise kind
            yield "batch"

    assert next(Endless(Loader())) == "batch"
    assert len(caplog.records) == 2


# waiting


class Slow(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        time.sleep(0.7 * index)
        return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_long_wait_for_a_batch_is_logged_again_and_again(num_workers, monkeypatch, caplog):
    monkeypatch.setattr(batch_stream, "_PATIENCE", 0.1)
    batches = Endless(DataLoader(Slow(), batch_size=2, num_workers=num_workers))
    assert next(batches).tolist() == [0, 1]
    waits = [
        re.search(r"has waited (\S+) s for clips: look for", r.message) for r in caplog.records
    ]
    assert [float(wait[1]) for wait in waits][:3] == [0.1, 0.2, 0.4]
    caplog.clear()
    monkeypatch.setattr(batch_stream, "_PATIENCE", 60)
    next(batches)
    assert not caplog.records


def test_no_thread_is_left_after_a_wait():
    # threads of other tests may end meanwhile
    before = set(threading.enumerate())
    next(Endless(DataLoader(range(4))))
    assert set(threading.enumerate()) <= before
