"""Manifests: tables of clips with their captions, classes, numbers, times and splits."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.data.clip_files import clips_by_name, composed

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": ("file", "filename", "filepath", "video", "videopath", "clip"),
    "caption": ("text", "prompt", "description"),
    "label": ("class", "category"),
    "start": ("starttime", "timestart"),
    "end": ("endtime", "timeend"),
    "split": ("subset",),
}
"""The roles of a manifest's columns, and the aliases of each, as `_plain` writes them."""

# As in pandas
_MISSING = frozenset(
    ("", "NaN", "nan", "-NaN", "-nan", "None", "NULL", "null", "NA", "N/A", "n/a", "<NA>", "#N/A",
     "#NA", "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN")
)  # fmt: skip
_SEPARATORS = (",", "\t", ";")
_SAME_SPLITS = (
    ("train", "training"),
    ("val", "valid", "validation", "validate"),
    ("test", "testing"),
)
_LARGEST = 3.4028234e38  # of float32


@dataclass(frozen=True)
class Clip:
    """A file, or a part of it, with its row of a manifest.

    Attributes:
        path: The file, or the folder of frames.
        caption: The text; None if it is missing.
        label: Name of the class; None if it is missing.
        start: First second; None for the file's beginning.
        end: Second before which the clip ends; None for the file's end.
        numbers: Values of the requested columns.
    """

    path: Path
    caption: str | None = None
    label: str | None = None
    start: float | None = None
    end: float | None = None
    numbers: tuple[float, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether the clip is the whole file."""
        return self.start is None and self.end is None


class Manifest:
    r"""A table of clips.

    A `.csv`, `.tsv` or `.txt` has the names of its columns in its first line, and commas,
    semicolons or tabs between cells; a `.jsonl` has one object per line. A column `path` is
    required: relative to `folder`, absolute, or the name, with or without its extension, of a file
    somewhere below `folder`. `caption`, `label`, `start` and `end` in seconds, and `split` are
    optional. Column names are matched without regard to case, spaces and underscores; the aliases
    in `COLUMNS` are accepted. Empty cells, and those that pandas reads as missing (`nan`, `None`,
    `NULL`, `N/A`, ...), are missing. Other columns are ignored.

    Args:
        path: The table; searched in `folder` if it does not exist.
        folder: Base of relative paths.
        columns: Names of columns in the table, by role, a key of `COLUMNS`; None to ignore a column
            whatever its name.
        numbers: Columns of numbers to read.
        exts: File extensions, besides those of videos, that names in the table may omit.
        exclude: Folders that are not searched for names.

    Attributes:
        splits: Names of the splits, sorted; empty without a column `split`.

    Raises:
        FileNotFoundError: The table is missing.
        ValueError: The table is malformed, or a column is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "cat.mp4").touch()
        ...     _ = (folder / "clips.csv").write_text("Path,caption,end\ncat,a cat,2.5\n")
        ...     [clip] = Manifest(folder / "clips.csv", folder).clips()
        >>> clip.path.name, clip.caption, clip.label, clip.end
        ('cat.mp4', 'a cat', None, 2.5)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        folder: Path,
        *,
        columns: Mapping[str, str | None] | None = None,
        numbers: Sequence[str] = (),
        exts: str | Sequence[str] | None = None,
        exclude: Sequence[str | os.PathLike[str]] = (),
    ) -> None:
        self._chosen = dict(columns or {})
        for role, name in self._chosen.items():
            if role not in COLUMNS or not isinstance(name, (str, type(None))):
                raise ValueError(
                    f"manifest_columns must be names of columns by {', '.join(COLUMNS)}, got "
                    f"{role!r}: {name!r}; give for example {{'path': 'FileName'}}"
                )
        self.path, self._folder = _locate(Path(path), folder), folder
        text = _decode(self.path)
        kind = self.path.suffix.lower()
        separator = "" if kind == ".jsonl" else "\t" if kind == ".tsv" else _separator(text)
        read = _csv_lines if separator else _json_lines
        header, lines = read(self.path, text, separator)
        find = functools.partial(_find_column, self.path, header)
        ignored = {role for role, name in self._chosen.items() if name is None} - {"path"}
        found = {
            role: find(role, self._chosen.get(role)) for role in COLUMNS if role not in ignored
        }
        by_role = {role: column for role, column in found.items() if column is not None}
        self._numbers = [find(name, name) or name for name in numbers]
        # with decimal commas, spreadsheets separate cells by semicolons
        has_commas = separator == ";"
        self._rows = [_Row(where, cells, by_role, has_commas) for where, cells in lines]
        if has_commas:
            of_times = [by_role[role] for role in ("start", "end") if role in by_role]
            _check_decimals(self._rows, [*self._numbers, *of_times])
        _make_labels_whole(self._rows)
        self.splits = sorted({name for row in self._rows if (name := row.text("split"))})
        self._named = functools.cache(lambda: clips_by_name(folder, exts, exclude))

    def clips(self, split: str | None = "train", *, needs_labels: bool = False) -> list[Clip]:
        """The clips of a split, in the table's order.

        Args:
            split: In upper or lower case; None for all rows. A table without splits is taken whole
                for `"train"`.
            needs_labels: Whether a missing label is an error in a table with labels.

        Raises:
            FileNotFoundError: A clip is missing.
            ValueError: A row is malformed, a name fits several files, or no row is left.
        """
        split = None if split is None else str(split).strip()
        if split is not None and not self.splits and _plain(split) not in _SAME_SPLITS[0]:
            raise ValueError(
                f"{self.path} must have a column split to take the split {split!r}, got none, or "
                "an empty one; name it in manifest_columns, or pass split=None for all rows"
            )
        if split is not None and "split" not in self._chosen:
            self._check_no_other_splits()
        rows = self._rows
        if split is not None and self.splits:
            wanted = _same_splits(split, self.splits)
            rows = [row for row in rows if row.text("split") in wanted]
        if not rows:
            known = ", ".join(map(repr, self.splits))
            raise ValueError(
                f"{self.path} must list clips{f' of the split {split!r}' if known else ''}, got "
                f"{f'only those of {known}' if known else 'no row'}; correct the table or the split"
            )
        has_labels = bool(self._chosen.get("label")) or any(row.text("label") for row in self._rows)
        return [self._clip(row, needs_labels and has_labels) for row in rows]

    def labels(self) -> list[Clip]:
        """Path and label of each row of all splits that has a path, whose file may be missing."""
        rows = [(row, name, row.text("label")) for row in self._rows if (name := row.text("path"))]
        if any(label for _, _, label in rows):
            return [Clip(self._folder / name, label=label) for _, name, label in rows]
        # the sub-folder of a file names its class
        return [Clip(self._find(row, name) or self._folder / name) for row, name, _ in rows]

    def _clip(self, row: _Row, needs_label: bool) -> Clip:
        name = row.required_text("path")
        path = self._find(row, name)
        if path is None:
            raise FileNotFoundError(
                f"{row.where}: expected a clip at {self._folder / name}, found none, nor one of "
                f"that name below; paths are relative to {self._folder}"
            )
        start, end = row.seconds("start"), row.seconds("end")
        if end is not None and end <= (start or 0.0):
            raise ValueError(
                f"{row.where}: end must be later than start, got {start or 0.0:g} to {end:g}; "
                "correct it"
            )
        label = row.required_text("label") if needs_label else row.text("label")
        numbers = tuple(row.number(column) for column in self._numbers)
        return Clip(path, row.text("caption"), label, start, end, numbers)

    def _find(self, row: _Row, name: str) -> Path | None:
        """The clip at that path, or else the only one below whose path ends so."""
        portable = name.replace("\\", "/")
        for spelled in (name, portable):
            if os.path.exists(self._folder / spelled):
                return self._folder / spelled
        *parents, last = Path(composed(portable)).parts or (name,)
        found = [
            path
            for path in self._named().get(last, ())
            if not parents or [composed(p) for p in path.parent.parts[-len(parents) :]] == parents
        ]
        if len(found) > 1:
            raise ValueError(
                f"{row.where}: expected one clip of the name {name}, got {len(found)}, {found[0]} "
                f"and {found[1]}; write the path from {self._folder}, and the extension"
            )
        return found[0] if found else None

    def _check_no_other_splits(self) -> None:
        """Raises a ValueError if a column of another name holds splits: all would be trained on."""
        rows = self._rows
        known = {"", *(word for same in _SAME_SPLITS for word in same)}
        if not rows or "split" in rows[0].columns:
            return
        for column in dict.fromkeys(name for row in rows for name in row.cells):
            words = {str(row.cells.get(column) or "").strip().casefold() for row in rows}
            if known >= words and len(words - {""}) > 1:
                raise ValueError(
                    f"{self.path} must have its splits in a column split, got what look like "
                    f"splits in {column}; pass manifest_columns={{'split': {column!r}}}, or None "
                    "to take all rows"
                )


def read_splits(
    path: str | os.PathLike[str], folder: Path, columns: Mapping[str, str | None] | None = None
) -> list[str]:
    """Names of the splits in a table, sorted; captions and labels may be malformed.

    Args:
        path: As for `Manifest`.
        folder: As for `Manifest`.
        columns: As for `Manifest`.

    Raises:
        FileNotFoundError: The table is missing.
        ValueError: The table is malformed.
    """
    ignored: dict[str, str | None] = {"caption": None, "label": None}
    return Manifest(path, folder, columns={**ignored, **(columns or {})}).splits


@dataclass(frozen=True)
class _Row:
    """A row of a table: its place for error messages, its cells, and the column of each role."""

    where: str
    cells: dict[str, Any]
    columns: Mapping[str, str]
    has_decimal_commas: bool

    def text(self, role: str) -> str | None:
        """The text in the column of a role; None if it is missing."""
        return self.cell(self.columns[role]) if role in self.columns else None

    def required_text(self, role: str) -> str:
        """The text in the column of a role, which may not be missing."""
        text = self.text(role)
        if text is None:
            column = self.columns[role]
            raise ValueError(
                f"{self.where}: expected a {role} in the column {column}, got "
                f"{self.cells.get(column)!r}, which counts as missing; write it, or remove the row"
            )
        return text

    def cell(self, column: str) -> str | None:
        """The text in a column; None if it is missing."""
        value = self.cells.get(column)
        if isinstance(value, (list, dict)):
            raise ValueError(
                f"{self.where}: {column} must be one text or number, got a {type(value).__name__}, "
                f"{value!s:.60}; write one, and further ones in rows of their own"
            )
        text = "" if value is None else str(value).strip()
        return None if text in _MISSING else text

    def number(self, column: str) -> float:
        """The number in a column."""
        text = self.cell(column)
        words = {"true": 1.0, "false": 0.0}
        value = words.get((text or "").lower(), _number(text or "", self.has_decimal_commas))
        if not abs(value) <= _LARGEST:
            raise ValueError(
                f"{self.where}: {column} must be a finite number, got "
                f"{'none' if text is None else repr(text)}; correct it, or remove the row"
            )
        return value

    def seconds(self, role: str) -> float | None:
        """The number of seconds in the column of a role; None if it is missing."""
        text = self.text(role)
        if text is None:
            return None
        value = _number(text, self.has_decimal_commas)
        if not 0 <= value < math.inf:
            raise ValueError(
                f"{self.where}: {role} must be a number of seconds, 0 or more, got {text!r}; "
                "correct it, or leave the cell empty, or the whole column out with "
                f"manifest_columns={{{role!r}: None}}"
            )
        return value


def _number(text: str, has_decimal_commas: bool) -> float:
    """Parses a number; NaN if the text is none."""
    if has_decimal_commas and "." not in text:
        text = text.replace(",", ".")
    try:
        # `float` accepts 1_000
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _same_splits(split: str, there: Collection[str | None]) -> set[str]:
    """The splits of a table that match a name or, if none does, a synonym of it."""
    names = {name: name.casefold() for name in there if name is not None}
    wanted = {split.casefold()}
    if wanted.isdisjoint(names.values()):
        wanted.update(*(same for same in _SAME_SPLITS if wanted & {*same}))
    return {name for name, folded in names.items() if folded in wanted}


def _locate(table: Path, folder: Path) -> Path:
    """The table itself, or that of its name in the folder."""
    # `Path.exists` raises for a name too long for the file system
    if not os.path.exists(table) and os.path.exists(folder / table):
        table = folder / table
    if not os.path.exists(table):
        raise FileNotFoundError(
            f"expected a manifest at {table}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        )
    is_file = table.is_file()
    if not is_file or table.suffix.lower() not in (".csv", ".tsv", ".txt", ".jsonl"):
        what = "a folder, " if table.is_dir() else "" if is_file else "no regular file, "
        raise ValueError(
            "a manifest must be a file that ends in .csv, .tsv, .txt or .jsonl, got "
            f"{what}{table}; write it as one of these"
        )
    return table


def _find_column(table: Path, header: Sequence[str], role: str, name: str | None) -> str | None:
    """The column of a name, or that of a role; None if the role has no column.

    Raises:
        ValueError: There are several, or none for a path or of the name.
    """
    wanted, aliases = (role, COLUMNS[role]) if name is None else (name.strip(), ())
    exact = [column for column in header if column == wanted]
    spelled = [column for column in header if _plain(column) == _plain(wanted)]
    found = exact or spelled or [column for column in header if _plain(column) in aliases]
    if len(found) > 1:
        raise ValueError(
            f"{table} must have one column for {wanted}, got {' and '.join(found)}; "
            + ("rename one of them" if exact else "choose one in manifest_columns")
        )
    if not found and (name is not None or role == "path"):
        there = ", ".join(filter(None, header)) or "none"
        raise ValueError(
            f"{table} must have a column {wanted}, got {there}; write the names of the columns "
            "into the first line (in .jsonl into each object), with commas, semicolons or tabs "
            "between, or choose among them"
            + (", as in manifest_columns={'path': 'FileName'}" if name is None else "")
        )
    return found[0] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", composed(name)).casefold()


def _check_decimals(rows: Sequence[_Row], columns: Sequence[str]) -> None:
    """Raises a ValueError for both 1,5 and 1.234 in a table: the latter may mean 1234."""
    found: dict[str, str] = {}
    for row in rows:
        for text in filter(None, map(row.cell, columns)):
            if not math.isnan(_number(text, True)):
                found.update({mark: text for mark in ",." if mark in text})
        if len(found) > 1:
            raise ValueError(
                f"{row.where}: decimal marks must be commas or points, the same in all rows, got "
                f"{found[',']!r} and {found['.']!r}; write them alike, and thousands without marks"
            )


def _make_labels_whole(rows: Sequence[_Row]) -> None:
    """Writes 2.0 as 2 where all labels are integers: pandas turns them into floats."""
    number = r"\d+([.,]0+)?" if rows and rows[0].has_decimal_commas else r"\d+(\.0+)?"
    labelled = [(row, label) for row in rows if (label := row.text("label")) is not None]
    if all(re.fullmatch(number, label) for _, label in labelled):
        for row, label in labelled:
            row.cells[row.columns["label"]] = re.split("[.,]", label)[0]


def _decode(table: Path) -> str:
    content = table.read_bytes()
    # spreadsheets write a byte order mark
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{table} must be text in UTF-8, got {error}; save it as UTF-8 (in Excel, as CSV UTF-8)"
        ) from error


def _separator(text: str) -> str:
    """The cell separator of the first line that is not empty."""
    header = re.sub('"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n "), maxsplit=1)[0])
    return next((separator for separator in _SEPARATORS if separator in header), ",")


def _csv_lines(
    table: Path, text: str, separator: str
) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """The names of the columns, and each row with its place."""
    # the csv module rejects spaces between a quote and a separator
    text = re.sub(rf'" +(?=[{separator}\r\n]|$)', '"', text)
    options: dict[str, Any] = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    lines = csv.reader(io.StringIO(text, newline=""), **options)
    header: list[str] = []
    rows = []
    number = 0
    try:
        for cells in lines:
            where, number = f"{table}, line {number + 1}", lines.line_num
            cells = [cell.strip() for cell in cells]
            while cells and not cells[-1]:
                cells.pop()
            if len(cells) > len(header) and header:
                raise ValueError(
                    f"{where}: expected at most {len(header)} cells, one for each column, got "
                    f'{len(cells)}; put cells with a {separator!r} in them between quotes (")'
                )
            if header and cells:
                rows.append((where, dict(zip(header, cells, strict=False))))
            header = header or cells
    except csv.Error as error:
        raise ValueError(
            f"{table}, line {number + 1}: expected comma-separated values, got {error}; write "
            'quotes (") around a whole cell or not at all, and those inside it twice'
        ) from error
    return header, rows


def _json_lines(
    table: Path, text: str, separator: str
) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """All names of columns, and each row with its place."""
    rows = []
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        where = f"{table}, line {number}"
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        # also raised for too many digits or brackets
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{where}: expected a JSON object, got a line that is none ({error}); write one in "
                "each line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: expected a JSON object, got {type(row).__name__}; write one in each "
                'line, as {"path": ..., "caption": ...}'
            )
        rows.append((where, row))
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows
