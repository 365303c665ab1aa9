"""Under the clip cache: a line of its index, which says where a clip is."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any, NamedTuple

import numpy as np

# NumPy's names of all kinds of real numbers
_DTYPES = {np.dtype(order + kind).str for kind in "?bBhHiIlLqQefdg" for order in "<>"}


class Record(NamedTuple):
    """What the index says of one source: where its clip is, or why it has none.

    Attributes:
        path: The source.
        state: What `source_state` gave when it was decoded.
        digest: What `source_digest` gave then; empty for a source that changed meanwhile.
        offset: Where the clip begins in the data file, in bytes.
        shape: The clip's.
        dtype: NumPy's name for the clip's, byte order included.
        error: Why there is no clip; None if there is one.
    """

    path: str
    state: str
    digest: str
    offset: int = 0
    shape: tuple[int, ...] = ()
    dtype: str = "|u1"
    error: str | None = None

    @property
    def num_bytes(self) -> int:
        """The clip's size in the data file."""
        if self.error is not None:
            return 0
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def to_line(fields: Any) -> bytes:
    r"""Make a line of the index, which begins with a checksum of the rest.

    Args:
        fields: What JSON knows.

    Example:
        >>> to_line(["clip.gif", 3])
        b'f3406f59 ["clip.gif",3]\n'
    """
    text = json.dumps(fields, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def from_line(line: bytes) -> Any:
    """Read a line of the index.

    Args:
        line: With or without its end.

    Returns:
        What was given to `to_line`, with lists for tuples; None if the line is not as it was.
    """
    text = line.rstrip(b"\n")[9:]
    if not text or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def to_record(fields: Any) -> Record | None:
    """Make a record of what `from_line` gave; None if it cannot be one.

    A clip's place and type come from the disk, and may say anything: an array over a place outside
    of the data file, or of objects, would be memory of the process.

    Example:
        >>> to_record(["a.gif", "", "", 64, [2, 3], "|u1", None]).num_bytes
        6
        >>> to_record(["a.gif", "", "", -64, [2, 3], "|u1", None]) is None
        True
    """
    if not isinstance(fields, list) or len(fields) != len(Record._fields):
        return None
    path, state, digest, offset, shape, dtype, error = fields
    numbers = [offset, *shape] if isinstance(shape, list) else [None]
    if not all(isinstance(text, str) for text in (path, state, digest, dtype, error or "")):
        return None
    if not all(type(number) is int and 0 <= number < 2**63 for number in numbers):
        return None
    if dtype not in _DTYPES or len(shape) > 32:
        return None
    return Record(path, state, digest, offset, tuple(shape), dtype, error)
