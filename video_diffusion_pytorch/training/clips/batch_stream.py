"""Beside the loop: batches without end, also when a loader ends or its processes die."""

from __future__ import annotations

import logging
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

logger = logging.getLogger("video_diffusion_pytorch")

# How often the processes that read a batch may die before it is given up
_TRIES = 3

# What is raised when one dies: by torch, or by what it fetches a batch with
_SIGNS = (RuntimeError, EOFError, ConnectionError, FileNotFoundError)

# Seconds after which a wait for clips is logged, and again each time it has become twice as long
_PATIENCE = 60.0

# The module of torch's handler of SIGCHLD
_OF_TORCH = "torch.utils.data._utils.signal_handling"


class Endless(Iterator[Any]):
    """The batches of a loader, from the beginning again where it ends or was interrupted.

    Where processes that read for a torch loader die, new ones are started.

    Args:
        loader: Anything that can be gone through more than once. After the death of a process it
            must go on with the batch that has not been given yet, as `EndlessShuffle` does.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        self._batches: Iterator[Any] | None = None
        self._waits = LongWaits()

    def restart(self) -> None:
        """Lets the next batch be the first of the loader."""
        self._batches = None
        # no thread may be left when the next epoch forks its workers
        self._waits.stop()

    def __next__(self) -> Any:
        """Gives the next batch.

        Raises:
            ValueError: If the loader gives none.
            RuntimeError: If the processes that read died again and again.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                return self._next()
            except _SIGNS as error:
                if not _is_death_of_worker(error, self.loader):
                    raise
                if not tries_left:
                    raise RuntimeError(
                        "Trainer: the processes that read clips must stay alive, got "
                        f"{_TRIES} deaths at one batch ({error}); look for a lack of memory or a "
                        "file that crashes its reader, or read in the main process with "
                        "num_workers=0"
                    ) from error
                logger.warning("a process that reads clips died (%s): new ones are started", error)
        raise AssertionError

    def _next(self) -> Any:
        for _ in range(2):
            if self._batches is None:
                self._batches = _iterate(self.loader)
            try:
                with self._waits:
                    return next(self._batches)
            except StopIteration:
                self.restart()
            except BaseException:
                # an interrupted reader is at its end, and would give no further batch
                self.restart()
                raise
        raise ValueError(
            "Trainer: the data loader must give at least one batch, got none; check that the "
            "dataset is not empty, and not smaller than a batch with drop_last"
        )


class LongWaits:
    """Logs a warning when a wait takes a minute, and again after two, four, eight and so on.

    A context manager, around each wait. One thread watches them all: to start one for each batch
    takes longer than to read some clips from a cache. It ends by `stop`, or with this object.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        self.since = time.monotonic()
        if self._thread is None:
            watched = weakref.ref(self)
            self._ended = threading.Event()
            self._thread = threading.Thread(target=_watch, args=(watched, self._ended), daemon=True)
            self._thread.start()

    def __exit__(self, *error: object) -> None:
        self.since = None

    def stop(self) -> None:
        """Ends the thread until the next wait."""
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            self._thread = None


def _watch(watched: weakref.ref[LongWaits], ended: threading.Event) -> None:
    last, until = None, _PATIENCE
    while not ended.wait(min(1.0, _PATIENCE / 10)):
        waits = watched()
        if waits is None:
            return
        since = waits.since
        del waits
        if since != last:
            last, until = since, _PATIENCE
        if since is not None and time.monotonic() - since >= until:
            logger.warning(
                "the training has waited %g s for clips: look for a disk that does not answer, or "
                "a reader or dataset that does not return; Ctrl+C twice ends the training",
                until,
            )
            until *= 2


def _iterate(loader: Iterable[Any]) -> Iterator[Any]:
    """Begins to go through a loader, without an exception out of the blue when a process dies.

    torch's handler of SIGCHLD raises wherever the main thread is, such as in the middle of an
    optimizer step. Without it the death is noticed when the next batch is waited for.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    batches = iter(loader)
    # a loader that was used before may have left torch's there
    if handler is None or getattr(handler, "__module__", None) == _OF_TORCH:
        handler = signal.SIG_DFL
    signal.signal(signal.SIGCHLD, handler)
    return batches


def _is_death_of_worker(error: Exception, loader: Iterable[Any]) -> bool:
    text = str(error)
    if isinstance(error, RuntimeError):
        return text.startswith("DataLoader worker") and ("exited" in text or "killed" in text)
    # the connection to a process broke before its death was seen; what the dataset itself raises
    # in a process says so
    first_line = text.partition("\n")[0]
    return (
        getattr(loader, "num_workers", 0) > 0 and "in DataLoader worker process" not in first_line
    )
