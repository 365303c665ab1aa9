"""Manifests: a table that lists clips with their captions, classes, numbers, times and splits."""

from __future__ import annotations

import csv
import functools
import io
import json
import math
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
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
"""What a manifest may hold, and other usual names of each column, as `_plain` writes them."""

# What pandas, too, reads as a missing cell
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
    """A file, or a part of it, and what a manifest holds on it.

    Attributes:
        path: The file, or the folder of frames.
        caption: What is to be seen; None if it is missing.
        label: Name of its class; None if it is missing.
        start: Second at which it begins; None for the file's beginning.
        end: Second before which it ends; None for the file's end.
        numbers: From the columns that were asked for.
    """

    path: Path
    caption: str | None = None
    label: str | None = None
    start: float | None = None
    end: float | None = None
    numbers: tuple[float, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether it is the file from its beginning to its end."""
        return self.start is None and self.end is None


def read_manifest(
    path: str | os.PathLike[str],
    folder: Path,
    split: str | None = "train",
    *,
    columns: Mapping[str, str | None] | None = None,
    numbers: Sequence[str] = (),
    kinds: Collection[str] | None = None,
    exts: str | Sequence[str] | None = None,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> list[Clip]:
    r"""Reads a list of clips.

    A `.csv`, `.tsv` or `.txt` has the names of its columns in its first line, and commas,
    semicolons or tabs between cells; a `.jsonl` has an object in each line. There must be a `path`,
    relative to `folder` unless it is absolute, or the name, with or without its ending, of a file
    somewhere below; there may be `caption`, `label`, `start` and `end` in seconds, and `split`.
    Upper and lower case, spaces and underscores in names of columns don't matter, and the names in
    `COLUMNS` are understood, too. Empty cells, and those that pandas takes for missing (`nan`,
    `None`, `NULL`, `N/A`, ...), are missing. Other columns are left alone.

    Args:
        path: The table; one that is not there is looked for in the folder.
        folder: Where relative paths begin.
        split: Take the rows with this in their column `split`, in upper or lower case; None for all
            rows. A table without splits is taken whole for `"train"`.
        columns: Names of columns in the table, by what they hold, a key of `COLUMNS`; None where
            there is none, whatever the names in the table.
        numbers: Columns whose numbers are wanted.
        kinds: Of `"caption"` and `"label"`, those that are wanted. If it has `"label"`, and rows of
            the table have labels, each clip must have one. None for both, where they are there.
        exts: Endings, besides those of videos, that names in the table may leave out.
        exclude: Folders in which no file is looked for by its name.

    Returns:
        The clips, in the table's order.

    Raises:
        FileNotFoundError: The table, or a clip of it, is missing.
        ValueError: A line of the table is not as described, a column is missing, a name fits
            several files, or no row is left.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     folder = Path(name)
        ...     (folder / "cat.mp4").touch()
        ...     _ = (folder / "clips.csv").write_text("Path,caption,end\ncat,a cat,2.5\n")
        ...     [clip] = read_manifest(folder / "clips.csv", folder)
        >>> clip.path.name, clip.caption, clip.label, clip.end
        ('cat.mp4', 'a cat', None, 2.5)
    """
    split = None if split is None else str(split).strip()
    rows = _read(Path(path), folder, columns or {}, numbers, kinds)
    below = functools.cache(lambda: clips_by_name(folder, exts, exclude))
    splits = {row.text("split") for row in rows} - {None}
    if split is not None and not splits and _plain(split) not in _SAME_SPLITS[0]:
        raise ValueError(
            f"{path} must have a column split to take the split {split!r}, got none, or an empty "
            "one; name it in manifest_columns, or pass split=None for all rows"
        )
    if split is not None and "split" not in (columns or {}):
        _check_no_other_splits(path, rows)
    wanted = _same_splits(split, splits) if split is not None and splits else None
    is_labelled = bool((columns or {}).get("label")) or any(row.text("label") for row in rows)
    has_labels = kinds is not None and "label" in kinds and is_labelled
    clips = [
        _clip(row, folder, below, has_labels)
        for row in rows
        if wanted is None or row.text("split") in wanted
    ]
    if not clips:
        known = ", ".join(sorted(map(repr, splits)))
        raise ValueError(
            f"{path} must list clips{f' of the split {split!r}' if known else ''}, got "
            f"{f'only those of {known}' if known else 'no row'}; correct the table or the split"
        )
    return clips


def read_labels(
    path: str | os.PathLike[str],
    folder: Path,
    *,
    columns: Mapping[str, str | None] | None = None,
    exts: str | Sequence[str] | None = None,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> list[Clip]:
    """Reads which classes a table has, whatever the split.

    Args:
        path: The table.
        folder: Where relative paths begin.
        columns: As in `read_manifest`.
        exts: As in `read_manifest`.
        exclude: As in `read_manifest`.

    Returns:
        Path and label of all rows that have a path; the files of other splits may be missing.

    Raises:
        FileNotFoundError: The table is missing.
        ValueError: It is none.
    """
    rows = _read(Path(path), folder, columns or {}, (), ("label",))
    below = functools.cache(lambda: clips_by_name(folder, exts, exclude))
    found = [(row, name, row.text("label")) for row in rows if (name := row.text("path"))]
    # without labels, the folder that a file is in names its class
    is_by_folder = not any(label for _, _, label in found)
    paths = [_find(row, name, folder, below) if is_by_folder else None for row, name, _ in found]
    return [
        Clip(path or folder / name, label=label)
        for path, (_, name, label) in zip(paths, found, strict=True)
    ]


def read_splits(
    path: str | os.PathLike[str], folder: Path, columns: Mapping[str, str | None] | None = None
) -> list[str]:
    """Names of the splits in a table, sorted; none where it says nothing there.

    Args:
        path: The table.
        folder: Where the table is looked for if it is not at `path`.
        columns: As in `read_manifest`.

    Raises:
        FileNotFoundError: It is missing.
        ValueError: It is none.
    """
    rows = _read(Path(path), folder, columns or {}, (), ())
    return sorted({name for row in rows if (name := row.text("split")) is not None})


@dataclass(frozen=True)
class _Row:
    """A row of a table: its place, to name in an error, its cells, and what its columns hold."""

    where: str
    cells: dict[str, Any]
    columns: Mapping[str, str]
    numbers: Sequence[str]
    has_decimal_commas: bool

    def text(self, role: str) -> str | None:
        """The text in the column for a key of `COLUMNS`; None if it is missing."""
        return self.cell(self.columns[role]) if role in self.columns else None

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
        value = {"true": 1.0, "false": 0.0}.get((text or "").lower())
        if value is None:
            value = _number(text or "", self.has_decimal_commas)
        if not abs(value) <= _LARGEST:
            raise ValueError(
                f"{self.where}: {column} must be a finite number, got "
                f"{'none' if text is None else repr(text)}; correct it, or remove the row"
            )
        return value

    def seconds(self, role: str) -> float | None:
        """The number of seconds in the column for a key of `COLUMNS`; None if it is missing."""
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
    """The number that a text is; NaN if it is none."""
    if has_decimal_commas and "." not in text:
        text = text.replace(",", ".")
    try:
        # Python reads 1_000, too
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _clip(
    row: _Row, folder: Path, below: Callable[[], dict[str, list[Path]]], has_labels: bool
) -> Clip:
    name = row.text("path")
    if name is None:
        raise ValueError(
            f"{row.where}: expected a path in the column {row.columns['path']}, got "
            f"{row.cells.get(row.columns['path'])!r}; write it, or remove the row"
        )
    path = _find(row, name, folder, below)
    if path is None:
        raise FileNotFoundError(
            f"{row.where}: expected a clip at {folder / name}, found none, nor one of that name "
            f"below; paths are relative to {folder}"
        )
    start, end = row.seconds("start"), row.seconds("end")
    if end is not None and end <= (start or 0.0):
        raise ValueError(
            f"{row.where}: end must be later than start, got {start or 0.0:g} to {end:g}; correct "
            "it"
        )
    label = row.text("label")
    if has_labels and label is None:
        column = row.columns["label"]
        raise ValueError(
            f"{row.where}: expected a label in the column {column}, as in other rows, got "
            f"{row.cells.get(column)!r}, which counts as missing; write it, or remove the row"
        )
    numbers = tuple(row.number(column) for column in row.numbers)
    return Clip(path, row.text("caption"), label, start, end, numbers)


def _find(
    row: _Row, name: str, folder: Path, below: Callable[[], dict[str, list[Path]]]
) -> Path | None:
    """The clip of that path; or else the one somewhere below whose path ends so, if there is one.

    Raises:
        ValueError: There are several.
    """
    name_here = name.replace("\\", "/")
    for spelled in dict.fromkeys((name, name_here)):
        if os.path.exists(folder / spelled):
            return folder / spelled
    *parents, last = Path(composed(name_here)).parts or (name,)
    depth = len(parents)
    found = [
        path
        for path in below().get(last, ())
        if not depth or [composed(part) for part in path.parent.parts[-depth:]] == parents
    ]
    if len(found) > 1:
        raise ValueError(
            f"{row.where}: expected one clip of the name {name}, got {len(found)}, {found[0]} and "
            f"{found[1]}; write the path from {folder}, and the ending"
        )
    return found[0] if found else None


def _check_no_other_splits(table: str | os.PathLike[str], rows: Sequence[_Row]) -> None:
    """Raises a ValueError if a column of another name holds splits: all would be trained on."""
    known = {"", *(word for same in _SAME_SPLITS for word in same)}
    if not rows or "split" in rows[0].columns:
        return
    for column in {name: None for row in rows for name in row.cells}:
        words = [str(row.cells.get(column) or "").strip().casefold() for row in rows]
        if known.issuperset(words) and len({*words} - {""}) > 1:
            raise ValueError(
                f"{table} must have its splits in a column split, got what look like splits in "
                f"{column}; pass manifest_columns={{'split': {column!r}}}, or None to take all rows"
            )


def _same_splits(split: str, there: Collection[str | None]) -> set[str]:
    """The splits of a table that are meant by one."""
    names = {name: name.casefold() for name in there if name is not None}
    wanted = {split.casefold()}
    if wanted.isdisjoint(names.values()):
        wanted.update(*(same for same in _SAME_SPLITS if wanted & {*same}))
    return {name for name, folded in names.items() if folded in wanted}


# from a file to rows


def _read(
    table: Path,
    folder: Path,
    chosen: Mapping[str, str | None],
    numbers: Sequence[str],
    kinds: Collection[str] | None,
) -> list[_Row]:
    for role, column in chosen.items():
        if role not in COLUMNS or not isinstance(column, (str, type(None))):
            raise ValueError(
                f"manifest_columns must be names of columns by {', '.join(COLUMNS)}, got "
                f"{role!r}: {column!r}; give for example {{'path': 'FileName'}}"
            )
    kind = table.suffix.lower()
    # `Path.exists` raises for a name too long for the file system
    is_below = not os.path.exists(table) and os.path.exists(folder / table)
    table = folder / table if is_below else table
    if not os.path.exists(table):
        raise FileNotFoundError(
            f"expected a manifest at {table}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        )
    if not table.is_file() or kind not in (".csv", ".tsv", ".txt", ".jsonl"):
        what = "a folder, " if table.is_dir() else "" if table.is_file() else "no regular file, "
        raise ValueError(
            "a manifest must be a file that ends in .csv, .tsv, .txt or .jsonl, got "
            f"{what}{table}; write it as one of these"
        )
    text = _decode(table)
    separator = "" if kind == ".jsonl" else "\t" if kind == ".tsv" else _separator(text)
    header, lines = _csv_lines(table, text, separator) if separator else _json_lines(table, text)
    left_out = {"caption", "label"} - {*(COLUMNS if kinds is None else kinds), *chosen}
    left_out |= {role for role, column in chosen.items() if column is None} - {"path"}
    wanted = [role for role in COLUMNS if role not in left_out]
    found = {role: _column(table, header, role, chosen.get(role)) for role in wanted}
    columns = {role: column for role, column in found.items() if column is not None}
    of_numbers = [_column(table, header, name, name) or name for name in numbers]
    # where commas are decimal, a spreadsheet separates cells by semicolons
    rows = [_Row(where, cells, columns, of_numbers, separator == ";") for where, cells in lines]
    if separator == ";":
        of_times = [columns[role] for role in ("start", "end") if role in columns]
        _check_decimals(rows, [*of_numbers, *of_times])
    _make_labels_whole(rows)
    return rows


def _column(table: Path, header: Sequence[str], role: str, name: str | None) -> str | None:
    """The column of a name, or the one for a key of `COLUMNS`; None if there is none.

    Raises:
        ValueError: There are several, or none for a path or of the name.
    """
    wanted, usual = (role, COLUMNS[role]) if name is None else (name.strip(), ())
    exact = [column for column in header if column == wanted]
    spelled = [column for column in header if _plain(column) == _plain(wanted)]
    found = exact or spelled or [column for column in header if _plain(column) in usual]
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
    """Raises a ValueError where 1,5 and 1.234 are both there, which may be 1234."""
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
    """Writes 2.0 as 2 where all labels are whole numbers: pandas makes floats of them."""
    number = r"\d+([.,]0+)?" if rows and rows[0].has_decimal_commas else r"\d+(\.0+)?"
    labelled = [(row, label) for row in rows if (label := row.text("label")) is not None]
    if all(re.fullmatch(number, label) for _, label in labelled):
        for row, label in labelled:
            row.cells[row.columns["label"]] = re.split("[.,]", label)[0]


def _decode(table: Path) -> str:
    content = table.read_bytes()
    # spreadsheets put a byte order mark before the first column's name
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{table} must be text in UTF-8, got {error}; save it as UTF-8 (in Excel, as CSV UTF-8)"
        ) from error


def _separator(text: str) -> str:
    """What is between the cells of the first line that is not empty."""
    header = re.sub('"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n "), maxsplit=1)[0])
    return next((separator for separator in _SEPARATORS if separator in header), ",")


def _csv_lines(
    table: Path, text: str, separator: str
) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """The names of the columns, and each row with its place."""
    # between a quote and what separates cells, spaces would be an error
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


def _json_lines(table: Path, text: str) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """All names of columns, and each row with its place."""
    lines = enumerate(io.StringIO(text, newline=""), 1)
    places = [(f"{table}, line {number}", line) for number, line in lines if line.strip()]
    rows = [(where, _parse(line, where)) for where, line in places]
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    # too many digits, too many brackets
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{where}: expected a JSON object, got a line that is none ({error}); write one in "
            "each line"
        ) from error
    if not isinstance(row, dict):
        raise ValueError(
            f"{where}: expected a JSON object, got {type(row).__name__}; write one in each line, "
            'as {"path": ..., "caption": ...}'
        )
    return row
