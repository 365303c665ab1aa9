"""The clips of a folder: the files that a search finds, or those that a manifest lists."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import itertools
import json
import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder, stills_among
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS

logger = logging.getLogger("video_diffusion_pytorch")

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
_SAME_SPLITS = [{"train", "training"}, {"val", "valid", "validation", "validate"}]
_SAME_SPLITS += [{"test", "testing"}]
_LARGEST = 3.4028234e38  # of float32

# Next to a movie of the same name such a file is its condition or its thumbnail
_COMPANIONS = (".npy", ".npz", ".pt", ".png")
# The name of `scan.nii.gz` is `scan`
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Results of a Trainer, and words of their content: a checkpoint has pickled keys
_RESULTS = {
    re.compile(r"model-\d+(\.\d+)?\.pt"): (b"\x04\0\0\0step", b"\x05\0\0\0model"),
    re.compile(r"metrics\.jsonl"): (b'"step"', b'"clips_per_second"'),
}
_SHARDED = re.compile(r"model-\d+(\.\d+)?\.sharded")

Exts = str | Sequence[str] | None
Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
# Ending of a Zarr store
_STORE = ".zarr"
# The argument that names the column of a role
_NAMED_IN = {"cond": "conditions"}
_NAMED_IN |= dict.fromkeys(("caption", "label"), "conditions or manifest_columns")
# The names of the columns, and each row with its place
_Table = tuple[list[str], list[tuple[str, dict[str, Any]]]]


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
        item: Number of the simulation in a file of several; None for a file of one.
    """

    path: Path
    caption: str | None = None
    label: str | None = None
    start: float | None = None
    end: float | None = None
    numbers: tuple[float, ...] = ()
    item: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the clip is the whole file."""
        return self.start is None and self.end is None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        error = NotADirectoryError if folder.exists() else FileNotFoundError
        raise error(
            f"expected a folder of videos at {folder}, found none; check the path (working folder: "
            f"{Path.cwd()})"
        )


def find_clips(
    folder: Path, exts: Exts = None, exclude: Paths = (), *, uses_arrays: bool = True
) -> list[Path]:
    """Finds the clips in a folder and its subfolders.

    Names that start with a dot are skipped: they are half-written or belong to the file system.
    `clip.npy` beside `clip.mp4` is not a clip but belongs to it, as does `clip.cond.npy` beside any
    clip.

    The results folder of a run, with checkpoints `model-N.pt` or a `metrics.jsonl`, is skipped
    unless it is `folder` itself: samples are not training data.

    Args:
        folder: The folder.
        exts: File extensions to search, in upper or lower case; None for all supported formats,
            folders of numbered pictures included.
        exclude: Folders that are not searched, one or several paths.
        uses_arrays: Whether arrays beside clips are their conditions; if not, a warning counts
            them.

    Returns:
        Files and folders of frames, sorted.

    Raises:
        FileNotFoundError: The folder is missing, or holds no clip.
        NotADirectoryError: `folder` is a file.
    """
    _check_folder(folder)
    endings = _endings(VIDEO_EXTS if exts is None else exts)
    files, frame_folders = _scan(folder, exclude, joins_frames=exts is None)
    found = [path for path in files if path.name.lower().endswith(endings)]
    clips, companions = _without_companions([*found, *frame_folders], frame_folders)
    unused = [path for path in companions if not uses_arrays or path.suffix.lower() == ".png"]
    advice = "rename those that are clips of their own, and name arrays in conditions to use them"
    _warn_of("left out %d files beside clips of the same name", unused, advice)
    by_folder = itertools.groupby(files if exts is None else (), lambda path: path.parent)
    mixed = [here for here, paths in by_folder if stills_among(here, [p.name for p in paths])]
    advice = "move other files, or the pictures, into a folder of their own"
    _warn_of("numbered pictures of %d folders are not frames of one clip", mixed, advice)
    if not clips:
        counts = Counter(_ending(path) or "no extension" for path in files)
        there = ", ".join(f"{count} × {ext}" for ext, count in counts.most_common(5))
        raise FileNotFoundError(
            f"expected files ending in {' or '.join(endings)} in {folder} and its subfolders, got "
            f"{there or 'no file at all'}; pass other exts, and a read_fn for other formats"
        )
    return clips


def _warn_of(what: str, paths: Sequence[Path], advice: str) -> None:
    if paths:
        logger.warning(f"{what}, such as %s: %s", len(paths), paths[0], advice)


def clips_by_name(folder: Path, exts: Exts = None, exclude: Paths = ()) -> dict[str, list[Path]]:
    """All files below a folder by name, and clips also by their name without extension.

    Args:
        folder: The folder.
        exts: Extensions of clips besides those of the supported formats.
        exclude: As for `find_clips`.

    Returns:
        Files and folders of frames, by `composed` names. Files that belong to a clip have their
        full name only.
    """
    endings = _endings(VIDEO_EXTS) + _endings(exts or ())
    files, frame_folders = _scan(folder, exclude, joins_frames=True)
    with_endings = [path for path in files if path.name.lower().endswith(endings)]
    clips, _ = _without_companions([*with_endings, *frame_folders], frame_folders)
    names = [(path.name, path) for path in files]
    names += [(name_of(path, path in frame_folders), path) for path in clips]
    found: dict[str, list[Path]] = {}
    for name, path in names:
        found.setdefault(composed(name), []).append(path)
    return found


def composed(name: str) -> str:
    """Normalises a name to NFC: macOS stores accents as combining characters."""
    return unicodedata.normalize("NFC", name)


def _endings(exts: str | Sequence[str]) -> tuple[str, ...]:
    wanted = [exts] if isinstance(exts, str) else exts
    return tuple("." + ext.lower().lstrip(".") for ext in wanted)


def _scan(folder: Path, exclude: Paths, *, joins_frames: bool) -> tuple[list[Path], set[Path]]:
    """The files below a folder, and the folders of frames, whose files are not among them.

    Hidden and excluded ones, and results of training, are left out.
    """
    excluded = [exclude] if isinstance(exclude, (str, os.PathLike)) else exclude
    for path in excluded:
        if not Path(path).exists() and (folder / path).exists():
            logger.warning("not excluded: %s is no path from the working folder", folder / path)
    closed = {Path(path).resolve() for path in excluded}
    files: list[Path] = []
    frame_folders: set[Path] = set()
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        names = [name for name in names if not name.startswith(".")]
        folders[:] = [name for name in folders if not name.startswith(".")]
        results = {name for name in names if _is_result(here / name)}
        results.update(filter(_SHARDED.fullmatch, folders))
        if results and here != folder:
            logger.warning("left out the results folder of a run, %s: samples are not clips", here)
            folders.clear()
            continue
        names = [name for name in names if name not in results]
        # a store is a folder, but one clip
        names += [name for name in folders if name.lower().endswith(_STORE)]
        folders[:] = [name for name in folders if not name.lower().endswith(_STORE)]
        folders[:] = [name for name in folders if name not in results]
        folders[:] = [name for name in folders if (here / name).resolve() not in closed]
        if joins_frames and is_frame_folder(here, [*names, *folders]):
            frame_folders.add(here)
        else:
            files += [here / name for name in names]
    return files, frame_folders


def _is_result(file: Path) -> bool:
    """Whether a file is a checkpoint or the metrics of a run, by its name and its content."""
    for name, words in _RESULTS.items():
        if name.fullmatch(file.name) and file.is_file():
            with contextlib.suppress(OSError), file.open("rb") as content:
                head = content.read(1 << 16)
                return all(word in head for word in words)
    return False


def name_of(path: Path, is_folder: bool) -> str:
    """The name of a clip without extension, which the files that belong to it share.

    Args:
        path: The clip.
        is_folder: Whether it is a folder of frames, which has no extension.

    Example:
        >>> name_of(Path("knee.nii.gz"), False), name_of(Path("a.b.mp4"), False)
        ('knee', 'a.b')
        >>> name_of(Path("run.v2"), True)
        'run.v2'
    """
    if is_folder:
        return path.name
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSED else path.stem


def _ending(path: Path) -> str:
    """The extension of a file in lower case, both of a compressed one."""
    return path.name.removeprefix(name_of(path, is_folder=False)).lower()


def beside(clip: Path, endings: Sequence[str]) -> Path | None:
    """The file of a clip's name with one of the extensions; `clip.cond.npy` before `clip.npy`."""
    stem = name_of(clip, clip.is_dir())
    for middle in (".cond", ""):
        for ending in endings:
            path = clip.with_name(stem + middle + ending)
            # `Path.is_file` raises where `.cond` makes the name too long for the file system
            if path != clip and os.path.isfile(path):
                return path
    return None


def _without_companions(
    found: Sequence[Path], frame_folders: Set[Path]
) -> tuple[list[Path], list[Path]]:
    """The clips, and the files that belong to one of them by their names, both sorted."""
    files = {*found} - frame_folders
    arrays = {path for path in files if path.suffix.lower() in _COMPANIONS}
    names = {path.with_name(name_of(path, path in frame_folders)) for path in {*found} - arrays}
    companions = {path for path in arrays if path.with_name(path.stem) in names}
    of_others = {path for path in files - companions if path.stem.endswith(".cond")}
    return sorted({*found} - companions - of_others), sorted(companions)


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
        exts: Exts = None,
        exclude: Paths = (),
    ) -> None:
        self._chosen = dict(columns or {})
        for role, name in self._chosen.items():
            if role not in COLUMNS:
                raise ValueError(
                    f"manifest_columns must be names of columns by {', '.join(COLUMNS)}, got "
                    f"{role!r}: {name!r}; give for example {{'path': 'FileName'}}"
                )
        _check_folder(folder)
        self.path, self._folder = Path(path), folder
        if not os.path.exists(path):
            self.path = folder / path
        if not os.path.isfile(self.path):  # reading a pipe could block forever
            raise FileNotFoundError(
                f"expected a table at {path} or {folder / path}, found no file; correct manifest, "
                f"which is a path from {folder} or the working folder ({Path.cwd()})"
            )
        text, kind = read_text(self.path), self.path.suffix.lower()
        separator = "" if kind == ".jsonl" else "\t" if kind == ".tsv" else _separator(text)
        header, lines = _csv(self.path, text, separator) if separator else _jsonl(self.path, text)
        self._columns: dict[str, str] = {}
        for role in COLUMNS:
            name = self._chosen.get(role)
            is_ignored = role in self._chosen and name is None and role != "path"
            if not is_ignored and (column := _find_column(self.path, header, role, name)):
                self._columns[role] = column
        self._numbers = [_find_column(self.path, header, "cond", n) or n for n in numbers]
        has_split = "split" in self._columns.keys() | self._chosen.keys()
        self._other_splits = None if has_split else _column_of_splits(lines)
        used = {*self._columns.values(), *self._numbers}
        self._rows = [_Row(where, _texts(where, cells, used)) for where, cells in lines]
        # with decimal commas, spreadsheets separate cells by semicolons
        if separator == ";":
            times = (self._columns.get(role, "") for role in ("start", "end"))
            _read_decimal_commas(self._rows, [*self._numbers, *filter(None, times)])
        self._make_labels_whole("[.,]" if separator == ";" else "[.]")
        self.splits = sorted({name for row in self._rows if (name := self._text(row, "split"))})
        self._named = functools.cache(lambda: clips_by_name(folder, exts, exclude))

    def clips(self, split: str | None = "train") -> list[Clip]:
        """The clips of a split, in the table's order.

        Args:
            split: In upper or lower case; None for all rows. A table without splits is taken whole
                for `"train"`.

        Raises:
            FileNotFoundError: A clip is missing.
            ValueError: A row is malformed, a name fits several files, or no row is left.
        """
        rows = self._rows
        if split is not None and self._other_splits is not None:
            raise ValueError(
                f"{self.path} must have a column split, got splits in {self._other_splits!r}; name "
                "it in manifest_columns={'split': ...}, or None there to take all rows"
            )
        if split is not None and (self.splits or _plain(str(split)) not in _SAME_SPLITS[0]):
            wanted = _same_splits(str(split).strip(), self.splits)
            rows = [row for row in rows if self._text(row, "split") in wanted]
        if not rows:
            raise ValueError(
                f"{self.path} must list clips of the split {split!r}, got {self.splits}; name the "
                "column in manifest_columns={'split': ...}, or pass split=None for all rows"
            )
        return list(map(self._clip, rows))

    def labels(self) -> list[Clip]:
        """Path and label of each row of all splits that has a path, whose file may be missing."""
        text = self._text
        rows = [(row, name) for row in self._rows if (name := text(row, "path"))]
        if any(text(row, "label") for row, _ in rows):
            return [Clip(self._folder / name, label=text(row, "label")) for row, name in rows]
        # the sub-folder of a file names its class
        return [Clip(self._find(row, name) or self._folder / name) for row, name in rows]

    def _text(self, row: _Row, role: str) -> str | None:
        """The text in the column of a role; None if it is missing."""
        return row.cells.get(self._columns.get(role, ""))

    def _seconds(self, row: _Row) -> tuple[float | None, float | None]:
        texts = [self._text(row, role) for role in ("start", "end")]
        start, end = (None if text is None else parse_number(text) for text in texts)
        if not 0 <= (start or 0) < (math.inf if end is None else end):
            raise ValueError(
                f"{row.where}: start and end must be seconds with 0 <= start < end, got {texts}; "
                "correct them, or ignore a column with manifest_columns={'end': None}"
            )
        return start, end

    def _make_labels_whole(self, mark: str) -> None:
        """Writes 2.0 as 2 where all labels are integers: pandas turns them into floats."""
        column = self._columns.get("label", "")
        labels = [row.cells[column] for row in self._rows if column in row.cells]
        if all(re.fullmatch(rf"\d+({mark}0+)?", label) for label in labels):
            for row in self._rows:
                if column in row.cells:
                    row.cells[column] = re.split(mark, row.cells[column])[0]

    def _clip(self, row: _Row) -> Clip:
        name = self._text(row, "path")
        if name is None:
            raise ValueError(f"{row.where}: expected a path, got none; write it, or remove the row")
        path = self._find(row, name)
        if path is None:
            raise FileNotFoundError(
                f"{row.where}: expected a clip at {self._folder / name}, found none, and none of "
                "that name in a subfolder; correct the path"
            )
        start, end = self._seconds(row)
        numbers = tuple(row.number(column) for column in self._numbers)
        return Clip(path, self._text(row, "caption"), self._text(row, "label"), start, end, numbers)

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


class _Row(NamedTuple):
    """A row of a table.

    Attributes:
        where: Its place, for error messages.
        cells: The text by column, without missing ones.
    """

    where: str
    cells: dict[str, str]

    def number(self, column: str) -> float:
        """The number in a column; true and false are 1 and 0."""
        text = self.cells.get(column, "none")
        value = {"true": 1.0, "false": 0.0}.get(text.lower(), parse_number(text))
        if not abs(value) <= _LARGEST:
            raise ValueError(
                f"{self.where}: {column} must be a finite number, got {text!r}; correct it, or "
                "remove the row"
            )
        return value


def parse_number(text: str) -> float:
    """Parses a number; NaN if the text is none."""
    try:
        # `float` accepts 1_000
        return math.nan if "_" in text else float(text)
    except ValueError:
        return math.nan


def _texts(where: str, cells: Mapping[str, Any], columns: Set[str]) -> dict[str, str]:
    """The text by column, without missing ones."""
    found = {}
    for column in columns & cells.keys():
        value = cells[column]
        if isinstance(value, (list, dict)):
            raise ValueError(
                f"{where}: {column} must be one text or number, got a {type(value).__name__}, "
                f"{value!s:.60}; write one, and further ones in rows of their own"
            )
        text = "" if value is None else str(value).strip()
        if text not in _MISSING:
            found[column] = text
    return found


def _column_of_splits(lines: Sequence[tuple[str, dict[str, Any]]]) -> str | None:
    """The column that holds names of splits only, and more than one."""
    known = {"", *(word for same in _SAME_SPLITS for word in same)}
    for column in dict.fromkeys(name for _, cells in lines for name in cells):
        words = {str(cells.get(column) or "").strip().casefold() for _, cells in lines}
        if known >= words and len(words - {""}) > 1:
            return column
    return None


def _same_splits(split: str, there: Sequence[str]) -> set[str]:
    """The splits of a table that match a name or, if none does, a synonym of it."""
    wanted = {split.casefold()}
    if wanted.isdisjoint(name.casefold() for name in there):
        wanted.update(*(same for same in _SAME_SPLITS if wanted & same))
    return {name for name in there if name.casefold() in wanted}


def _find_column(table: Path, header: Sequence[str], role: str, name: str | None) -> str | None:
    """The column of a name, or that of a role; None if the role has no column.

    Raises:
        ValueError: There are several, or none for a path or of the name.
    """
    wanted, aliases = (role, COLUMNS[role]) if name is None else (name.strip(), ())
    exact = [column for column in header if column == wanted]
    spelled = [column for column in header if _plain(column) == _plain(wanted)]
    found = exact or spelled or [column for column in header if _plain(column) in aliases]
    if len(found) > 1 or (not found and (name is not None or role == "path")):
        got = " and ".join(found) or ", ".join(filter(None, header)) or "none"
        advice = f"correct the column's name in {_NAMED_IN.get(role, 'manifest_columns')}"
        if name is None:
            advice = "rename a column, or choose one in manifest_columns={'path': 'FileName'}"
        raise ValueError(
            f"{table} must have one column {wanted} in its first line, with commas, semicolons or "
            f"tabs between (in .jsonl in each object), got {got}; {advice}"
        )
    return found[0] if found else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", composed(name)).casefold()


def _read_decimal_commas(rows: Sequence[_Row], columns: Sequence[str]) -> None:
    """Writes 1,5 as 1.5; both 1,5 and 1.234 in a table are an error: the latter may mean 1234."""
    found: dict[str, str] = {}
    for row in rows:
        for column in {*columns} & row.cells.keys():
            text = row.cells[column]
            found.update({mark: text for mark in ",." if mark in text})
            row.cells[column] = text.replace(",", ".")
        if len(found) > 1:
            raise ValueError(
                f"{row.where}: decimal marks must be commas or points, the same in all rows, got "
                f"{found[',']!r} and {found['.']!r}; write them alike, and thousands without marks"
            )


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        ValueError: It has another encoding.
    """
    content = path.read_bytes()
    # spreadsheets write a byte order mark
    is_utf_16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = content.decode("utf-16" if is_utf_16 else "utf-8-sig")
        if "\0" in text:
            raise UnicodeError("zero bytes, as in UTF-16 without a byte order mark")
    except UnicodeError as error:
        raise ValueError(
            f"{path} must be text in UTF-8, got {error}; save it as UTF-8 (in Excel, as CSV UTF-8)"
        ) from error
    return text


def _separator(text: str) -> str:
    """The cell separator of the first line that is not empty."""
    header = re.sub('"[^"]*"', "", re.split(r"[\r\n]", text.lstrip("\r\n "), maxsplit=1)[0])
    return next((separator for separator in _SEPARATORS if separator in header), ",")


def _csv(table: Path, text: str, separator: str) -> _Table:
    # the csv module rejects spaces between a quote and a separator
    text = re.sub(rf'" +(?=[{separator}\r\n]|$)', '"', text)
    options: dict[str, Any] = {"delimiter": separator, "skipinitialspace": True, "strict": True}
    lines = csv.reader(io.StringIO(text, newline=""), **options)
    header: list[str] = []
    rows = []
    where = f"{table}, line 1"
    try:
        for line in lines:
            cells = [cell.strip() for cell in line]
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
            where = f"{table}, line {lines.line_num + 1}"
    except csv.Error as error:
        raise ValueError(
            f'{where}: expected comma-separated values, got {error}; write quotes (") around a '
            "whole cell or not at all, and those inside it twice"
        ) from error
    return header, rows


def _jsonl(table: Path, text: str) -> _Table:
    rows = []
    for number, line in enumerate(io.StringIO(text, newline=""), 1):
        where = f"{table}, line {number}"
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):  # also for too many digits or brackets
            row = None
        if not isinstance(row, dict):
            raise ValueError(
                f"{where}: expected a JSON object, got {line.strip()!r:.60}; write one in each "
                'line, as {"path": ..., "caption": ...}'
            )
        if row:
            rows.append((where, row))
    return list(dict.fromkeys(name for _, row in rows for name in row)), rows
