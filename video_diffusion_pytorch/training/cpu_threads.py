"""The number of CPU threads of a training beside other processes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

logger = logging.getLogger("video_diffusion_pytorch")

# Steps and seconds over which a number of threads is judged
_STEPS, _SECONDS = 2, 1.0
# Cores that must be lost to other processes before threads are given up
_LOST = 0.25
# Seconds after which all threads are tried again, doubled each time the cores are still busy
_PAUSE, _LONGEST_PAUSE = 60.0, 600.0


class CPUThreads:
    """Computes with fewer threads while other processes keep the cores busy.

    Each of thousands of operations of a step waits for its slowest thread. A thread whose core is
    also used by another process is late at all of them, which makes a step on two cores three to
    twenty times slower, where one thread less would lose no more than its share.

    Threads that wait for each other do so in a loop, so the CPU time of this process falls short of
    its threads' time only by what other processes take. Where it does, threads are given up, for
    as long as the steps are faster thus.

    The number of threads changes the order of sums, and so the last digits of the results. It is
    left alone if one of the environment variables `OMP_NUM_THREADS` and `MKL_NUM_THREADS` sets it.

    Args:
        device: The device of the training; on another one than a CPU nothing is changed.
        num_processes: Of the training; several wait for each other, and so nothing is changed.

    Attributes:
        most: Number of threads that torch has at the beginning.
    """

    def __init__(self, device: torch.device, num_processes: int = 1) -> None:
        self.most = self._threads = torch.get_num_threads()
        is_set = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
        is_alone = device.type == "cpu" and num_processes == 1
        self._is_adapted = is_alone and self.most > 1 and not is_set
        self._pause, self._resume_at, self._is_told = _PAUSE, 0.0, False
        self._full_speed: float | None = None
        # the first steps also set up what later ones reuse
        self._begin(warm_up=_STEPS)

    def _begin(self, warm_up: int = 0) -> None:
        self._warm_up, self._steps, self._wall, self._cpu = warm_up, 0, 0.0, 0.0

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Gives torch the threads back that it had before the block."""
        try:
            yield
        finally:
            if self._is_adapted:
                torch.set_num_threads(self.most)

    def add_step(self, wall: float, cpu: float) -> None:
        """Takes account of a step, and sets the threads of the next ones.

        Args:
            wall: Seconds that the step computed.
            cpu: Seconds of CPU time that all threads of this process used meanwhile.
        """
        # a number that somebody else sets meanwhile stays
        self._is_adapted = self._is_adapted and torch.get_num_threads() == self._threads
        if not self._is_adapted:
            return
        if self._warm_up:
            self._warm_up -= 1
            return
        self._steps, self._wall, self._cpu = self._steps + 1, self._wall + wall, self._cpu + cpu
        if self._steps < _STEPS or self._wall < _SECONDS:
            return
        threads, seconds = torch.get_num_threads(), self._wall / self._steps
        lost = threads - self._cpu / self._wall
        self._begin()
        now = time.monotonic()
        if threads < self.most:
            if self._full_speed is not None and seconds > self._full_speed:
                # it was something else
                self._set(self.most, now + _PAUSE)
            elif now >= self._resume_at:
                self._set(self.most, now)
            self._full_speed = None
        elif now >= self._resume_at and lost >= _LOST:
            self._give_up(lost, seconds, now)
        elif lost < _LOST:
            self._pause = _PAUSE

    def _give_up(self, lost: float, seconds: float, now: float) -> None:
        fewer = max(1, self.most - math.ceil(lost))
        level = logging.DEBUG if self._is_told else logging.WARNING
        logger.log(
            level,
            "the %d CPU threads of this training get the time of %.1f cores, as if other processes "
            "used the rest: it tries %d thread(s), and later all of them again; to keep the "
            "number, set OMP_NUM_THREADS",
            self.most,
            self.most - lost,
            fewer,
        )
        self._full_speed, self._is_told = seconds, True
        self._set(fewer, now + self._pause)
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _set(self, threads: int, resume_at: float) -> None:
        torch.set_num_threads(threads)
        self._threads, self._resume_at = threads, resume_at
