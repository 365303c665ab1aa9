"""SIGINT and SIGTERM: recorded, so that training can stop after the current step."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl+C, and what clusters send before they stop a job
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class TrainingInterrupted(KeyboardInterrupt, SystemExit):
    """Training was interrupted by Ctrl+C.

    Where it isn't caught, Python ends with exit code 130, as after SIGINT in shells, and without a
    traceback.

    Args:
        *args: Of the KeyboardInterrupt that it stands for.

    Attributes:
        code: The exit code.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.code = 128 + signal.SIGINT


class StopSignals:
    """A context manager that records SIGINT and SIGTERM instead of ending the process.

    A second signal ends it at once. Outside the main thread signals are not handled.

    Attributes:
        caught: The signal that was received; None for none.
        at_once: Whether the next signal ends the process at once, as there is nothing to save.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self.at_once = False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            # ignored signals, such as Ctrl+C in a shell's background job, stay ignored
            self._before = {n: h for n, h in handlers.items() if h != signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._record)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def leave(self) -> None:
        """Raises the exception of the recorded signal; does nothing without one.

        Raises:
            TrainingInterrupted: A KeyboardInterrupt, after SIGINT.
            SystemExit: After SIGTERM, with exit code 143, as in shells.
        """
        if self.caught == signal.SIGINT:
            raise TrainingInterrupted
        if self.caught is not None:
            sys.exit(128 + self.caught)

    def _record(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # a worker: Ctrl+C in a terminal reaches it too, but the current step still needs its
            # clips
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        is_second, self.caught = self.caught is not None, number
        if self.at_once or is_second:
            self.leave()
