"""Around the loop: a signal to stop lets the step in progress end, so that nothing is lost."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

# Ctrl+C, and what clusters send before they take the machine away
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While it is entered, SIGINT and SIGTERM are noted instead of ending the process.

    A second one ends it at once. In a thread that is not the main one signals are left alone.

    Attributes:
        caught: The signal that came; None for none.
        at_once: Whether the next signal ends the process at once: where nothing is left to save.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self.at_once = False
        self._owner = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in _SIGNALS}
            # what is ignored, as Ctrl+C is in the background of a shell, stays ignored
            self._before = {n: h for n, h in handlers.items() if h != signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._note)
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
        """Ends the process as the signal wanted it, by an exception; does nothing without one.

        Raises:
            KeyboardInterrupt: After SIGINT.
            SystemExit: After SIGTERM, with the code 143 that shells have for it.
        """
        if self.caught == signal.SIGINT:
            raise KeyboardInterrupt
        if self.caught is not None:
            sys.exit(128 + self.caught)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # a process that reads clips: Ctrl+C in a terminal reaches it as well, but the step in
            # progress still needs its clips
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        is_second, self.caught = self.caught is not None, number
        if self.at_once or is_second:
            self.leave()
