"""The progress bar of a run: steps, and what is done between them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

_TRAINING = "training"
# Seconds between two changes of the text, as each one is a line in a file
_INTERVAL = 1.0


class Progress:
    """A bar of training steps whose text says what is done in between, such as `sampling 3/50`.

    Without an open bar nothing is shown.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._what, self._shown_at = _TRAINING, 0.0
        self._values: dict[str, str] = {}

    @contextmanager
    def of_steps(self, done: int, total: int, is_shown: bool) -> Iterator[Any]:
        """Opens the bar, a `tqdm`, for the block.

        Args:
            done: Number of steps done before.
            total: Number of steps in all.
            is_shown: Whether to show it, as on the main process.
        """
        with tqdm(initial=done, total=total, desc=_TRAINING, disable=not is_shown) as bar:
            self._bar, self._values = bar, {}
            try:
                yield bar
            finally:
                self._bar = None

    def note(self, **values: str) -> None:
        """Shows values behind the bar from its next change on, in addition to earlier ones."""
        if self._bar is not None:
            self._values |= values
            self._bar.set_postfix(self._values, refresh=False)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows during the block what is done, a participle such as `"saving"`."""
        before, self._what = self._what, what
        self._show(what)
        try:
            yield
        finally:
            self._what = before
            self._show(before)

    def advance(self, done: int, total: int) -> None:
        """Shows how much of it is done, about once a second."""
        if time.monotonic() >= self._shown_at + _INTERVAL:
            self._show(f"{self._what} {done}/{total}")

    def _show(self, text: str) -> None:
        if self._bar is not None:
            self._bar.set_description(text)
        self._shown_at = time.monotonic()
