"""Ctrl+C while the `video-diffusion` command is being imported: one line and exit code 130."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

INTERRUPTED = 128 + signal.SIGINT  # the convention of shells


def _exit_on_interrupt() -> None:
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and multiprocessing.parent_process() is None and _is_command():
        signal.signal(signal.SIGINT, _exit)


def raise_on_interrupt() -> None:
    """Lets Ctrl+C raise a KeyboardInterrupt again, which the command reports itself."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    program = sys.argv[0] if sys.argv else ""
    if program == "-m":  # until the module is found
        return sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] == [__package__]
    return os.path.basename(program).partition(".")[0] == "video-diffusion"


def _exit(*_: Any) -> None:
    # an import that is cut off could print more, if it raised
    sys.stderr.write("video-diffusion: interrupted during start-up\n")
    sys.stderr.flush()
    os._exit(INTERRUPTED)


_exit_on_interrupt()
