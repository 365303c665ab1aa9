"""Beside the loop: batches without end, also when a loader ends or its processes die."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
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

    def restart(self) -> None:
        """Lets the next batch be the first of the loader."""
        self._batches = None

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
                with long_waits_logged():
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


@contextlib.contextmanager
def long_waits_logged() -> Iterator[None]:
    """Logs a warning when reading takes a minute, and again after two, four, eight and so on."""
    is_read = threading.Event()

    def watch() -> None:
        waited, until = 0.0, _PATIENCE
        while not is_read.wait(until - waited):
            logger.warning(
                "the training has waited %g s for clips: look for a disk that does not answer, or "
                "a reader or dataset that does not return; Ctrl+C twice ends the training",
                until,
            )
            waited, until = until, 2 * until

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_read.set()
        # no thread may be left when the next epoch forks its workers
        thread.join()


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
