"""Beside the path: a table that lists clips, and says what is in them."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COLUMNS = ("path", "caption", "label", "start", "end", "split")


@dataclass(frozen=True)
class Clip:
    """A file, or a part of it, and what is said of it.

    Attributes:
        path: The file, or the folder of frames.
        caption: What is to be seen; None if nobody says.
        label: Name of its class; None if nobody says.
        start: Second at which it begins; None for the file's beginning.
        end: Second before which it ends; None for the file's end.
    """

    path: Path
    caption: str | None = None
    label: str | None = None
    start: float | None = None
    end: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is the file from its beginning to its end."""
        return self.start is None and self.end is None


def read_manifest(
    path: str | os.PathLike[str], folder: Path, split: str | None = "train"
) -> list[Clip]:
    r"""Reads a list of clips.

    A `.csv` has a head line with the names of its columns, a `.jsonl` an object in each line. There
    must be a `path`, relative to `folder` unless it is absolute; there may be `caption`, `label`,
    `start` and `end` in seconds, and `split`. An empty cell says nothing. Other columns are left
    alone.

    Args:
        path: The table.
        folder: Where relative paths begin.
        split: Take the rows with this in their column `split`; None for all rows. A table that
            says nothing there is taken whole.

    Returns:
        The clips, in the table's order.

    Raises:
        FileNotFoundError: The table, or a clip of it, is missing.
        ValueError: A line of the table is not as said above, or no row is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "cat.mp4").touch()
        ...     _ = (folder / "clips.csv").write_text("path,caption,end\ncat.mp4,a cat,2.5\n")
        ...     [clip] = read_manifest(folder / "clips.csv", folder)
        >>> clip.path.name, clip.caption, clip.label, clip.end
        ('cat.mp4', 'a cat', None, 2.5)
    """
    table = Path(path)
    rows = list(_rows(table))
    splits = {_cell(row, "split") for _, row in rows} - {None}
    is_wanted = split is not None and bool(splits)
    clips = [
        _clip(where, row, folder)
        for where, row in rows
        if not is_wanted or _cell(row, "split") == split
    ]
    if not clips:
        known = ", ".join(sorted(map(repr, splits)))
        raise ValueError(
            f"{table} must list clips{f' of the split {split!r}' if known else ''}, got "
            f"{f'only those of {known}' if known else 'no row'}; correct the table or the split"
        )
    return clips


def read_labels(path: str | os.PathLike[str], folder: Path) -> list[Clip]:
    """Reads which classes a table knows, whatever the split.

    Args:
        path: The table.
        folder: Where relative paths begin.

    Returns:
        Path and label of all rows that have a path; whether their files are there is not looked up.

    Raises:
        FileNotFoundError: The table is missing.
        ValueError: It is none.
    """
    paths_and_rows = ((_cell(row, "path"), row) for _, row in _rows(Path(path)))
    return [
        Clip(folder / name, label=_cell(row, "label"))
        for name, row in paths_and_rows
        if name is not None
    ]


def _rows(table: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows, each with the place to name in an error."""
    if not table.is_file():
        raise FileNotFoundError(
            f"expected a manifest at {table}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        )
    kind = table.suffix.lower()
    if kind not in (".csv", ".jsonl"):
        raise ValueError(
            f"a manifest must end in .csv or .jsonl, got {table}; write it as one of these"
        )
    try:
        # spreadsheets put a byte order mark before the first column's name
        with table.open(newline="", encoding="utf-8-sig") as file:
            if kind == ".csv":
                reader = csv.DictReader(file)
                for row in reader:
                    yield f"{table}, line {reader.line_num}", row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{table}, line {number}", _parse(line, f"{table}, line {number}")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} must be text in UTF-8, got {error}; save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(
            f"{table} must be a table of comma-separated values, got {error}; write it anew"
        ) from error


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    # too many digits, too many brackets
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected a JSON object, got a line that is none ({error}); correct it"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected a JSON object, got {type(row).__name__}; write "
            '{"path": ..., "caption": ...}'
        )
    return row


def _cell(row: dict[str, Any], name: str) -> str | None:
    value = row.get(name)
    return None if value is None or not str(value).strip() else str(value).strip()


def _clip(where: str, row: dict[str, Any], folder: Path) -> Clip:
    name = _cell(row, "path")
    if name is None:
        columns = ", ".join(str(column) for column in row if column is not None)
        raise ValueError(
            f"{where}: expected a path, got none among {columns or 'no column'}; the columns are "
            f"{', '.join(_COLUMNS)}"
        )
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(
            f"{where}: expected a clip at {path}, found none; paths are relative to {folder}"
        )
    start, end = _seconds(where, row, "start"), _seconds(where, row, "end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(
            f"{where}: end must be later than start, got {start or 0.0:g} to {end:g}; correct it"
        )
    return Clip(path, _cell(row, "caption"), _cell(row, "label"), start, end)


def _seconds(where: str, row: dict[str, Any], name: str) -> float | None:
    text = _cell(row, name)
    try:
        value = None if text is None else float(text)
    except ValueError:
        value = math.nan
    if value is not None and not (0 <= value < math.inf):
        raise ValueError(
            f"{where}: {name} must be a number of seconds, 0 or more, got {text!r}; correct it, "
            "or leave the cell empty"
        )
    return value
