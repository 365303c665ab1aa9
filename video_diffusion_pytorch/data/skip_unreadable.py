"""Beside the path: a damaged file does not end a training run, nor go by unnoticed."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

from torch.utils import data

from video_diffusion_pytorch.data.errors import UnreadableVideoError

logger = logging.getLogger("video_diffusion_pytorch")


class SkipUnreadable(data.Dataset[Any]):
    """Another dataset, with the next readable item in place of each unreadable one.

    A long training run should not end at one damaged file, nor go on without its user's knowledge:
    each such file is logged as a warning, and more than a tenth of them is an error. Which ones are
    known is remembered per process: each worker of a `DataLoader` finds them for itself.

    Args:
        dataset: Has a length, and raises `UnreadableVideoError` for an item it cannot decode.

    Attributes:
        dataset: The wrapped dataset.
        unreadable: Index -> message, for each item found unreadable so far.

    Example:
        >>> import torch
        >>> clips = [torch.zeros(1, 2, 4, 4)] * 3
        >>> len(SkipUnreadable(clips)), SkipUnreadable(clips)[2].shape
        (3, torch.Size([1, 2, 4, 4]))
    """

    def __init__(self, dataset: data.Dataset[Any] | Sequence[Any]) -> None:
        super().__init__()
        self.dataset: Any = dataset
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Give the item, or the next readable one after it (after the last comes the first).

        Raises:
            IndexError: The index is out of range.
            UnreadableVideoError: More than a tenth of all items are known to be unreadable.
        """
        return self.first_readable(index, self.dataset.__getitem__)

    def first_readable(self, index: SupportsIndex, read: Callable[[int], Any]) -> Any:
        """The same, with a way of one's own to read the item of an index."""
        total = len(self)
        start = operator.index(index)
        if not -total <= start < total:
            raise IndexError(
                f"index must be in -{total} to {total - 1}, got {start}; the dataset has "
                f"{total} items"
            )
        position = start % total
        self._check_share()
        while True:
            if position not in self.unreadable:
                try:
                    return read(position)
                except UnreadableVideoError as error:
                    self.unreadable[position] = str(error)
                    logger.warning("left out item %d of the dataset: %s", position, error)
                    self._check_share(error)
            position = (position + 1) % total

    def _check_share(self, last: UnreadableVideoError | None = None) -> None:
        count, total = len(self.unreadable), len(self)
        if count > total / 10:
            first = "\n  ".join(list(self.unreadable.values())[:5])
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files to be unreadable, got {count} so "
                f"far; repair or remove them, the first being:\n  {first}"
            ) from last
