"""The conditions of clips: captions, labels, numbers and arrays, from files or a manifest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError, file_errors, finite
from video_diffusion_pytorch.data.formats.arrays import read_array
from video_diffusion_pytorch.data.manifest import Clip, beside

logger = logging.getLogger("video_diffusion_pytorch")

KINDS = ("caption", "label", "vector", "frame_vectors", "field")
"""Names of the conditions that files and manifests hold."""

ConditionFn = Callable[[Path], Mapping[str, Any]]
# Columns of the manifest, by keyword of the diffusion
Columns = Mapping[str, str | Sequence[str]]
# Functions last: the command line tries the types in this order
Conditions = str | Columns | Sequence[str | Columns | ConditionFn] | ConditionFn

_ARRAYS = (".npy", ".pt", ".npz")
# Whole numbers from here on are names, not labels
_LABELS = 10_000
# The keyword of the diffusion that takes each kind
_KEYS = {
    "caption": "cond",
    "label": "labels",
    "vector": "cond",
    "frame_vectors": "frame_cond",
    "field": "cond_video",
}
_AXES = {"vector": (1,), "frame_vectors": (2,), "field": (3, 4)}
_SHAPES = {"vector": "(d,)", "frame_vectors": "(f, d)", "field": "(c, h, w) or (c, f, h, w)"}


class ClipConditions:
    """Finds and reads the conditions of clips.

    Args:
        conditions: As for `Dataset`: names, of `"caption"` (from the manifest, or `clip.txt`),
            `"label"` (from the manifest, or the sub-folder's name), and one of `"vector"`,
            `"frame_vectors"` (one per frame of the file) and `"field"` (uint8 stays uint8), from
            `clip.npy` or `clip.pt`; a function; a dict of columns of the manifest.
        missing: For a clip without caption, `"error"`, or `"null"` for the null condition.

    Attributes:
        numbers: The columns of numbers.
        class_names: Names of the classes, sorted; a class's label is its index. Names that are all
            whole numbers below 10000 are the labels themselves.

    Raises:
        TypeError: `conditions` has another type, or holds two functions.
        ValueError: `conditions` or `missing` is none of the above.
    """

    def __init__(
        self,
        conditions: Conditions | None,
        missing: str = "error",
    ) -> None:
        names, function, self.columns = split_conditions(conditions)
        unknown = [name for name in names if name not in KINDS]
        if unknown:
            raise ValueError(
                f"conditions must be among {', '.join(KINDS)}, or be a function, or a dict of "
                f"columns of the manifest as {{'cond': ['EF']}}, got {unknown[0]!r}; choose one of "
                "them"
            )
        cond = self.columns.get("cond", ())
        self.numbers: tuple[str, ...] = () if isinstance(cond, str) else tuple(cond)
        kinds = [
            *names,
            *["caption"] * isinstance(cond, str),
            *["label"] * ("labels" in self.columns),
        ]
        keys = [_KEYS[kind] for kind in kinds] + ["cond"] * bool(self.numbers)
        arrays = [kind for kind in kinds if kind in _AXES]
        if len(set(keys)) < len(keys) or len(arrays) > 1:
            raise ValueError(
                "conditions must differ in where they come from and where they go, got "
                f"{', '.join([*kinds, *self.numbers])}; only one of vector, frame_vectors and "
                "field can be the array beside the clip, and of a caption, a vector and columns of "
                "numbers only one can be cond: give a function for the others"
            )
        if missing not in ("error", "null"):
            raise ValueError(
                f"missing_captions must be 'error' or 'null', got {missing!r}; choose one of them"
            )
        self.kinds, self.function, self.missing = tuple(kinds), function, missing
        self.array_kind = arrays[0] if arrays else None
        self.class_names: tuple[str, ...] = ()
        self._labels: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.kinds or self.numbers) or self.function is not None

    @property
    def roles(self) -> dict[str, str | None]:
        """The columns of a manifest that hold captions and labels, by role."""
        roles = {"cond": "caption", "labels": "label"}
        return {roles[k]: name for k, name in self.columns.items() if isinstance(name, str)}

    @property
    def may_use_arrays(self) -> bool:
        """Whether arrays beside the clips are conditions; a function may read them."""
        return self.array_kind is not None or self.function is not None

    def complete(
        self, clips: Sequence[Clip], folder: Path, all_rows: Sequence[Clip] = ()
    ) -> list[Clip]:
        """Adds captions and class names to clips, and checks that none is missing.

        Args:
            clips: The clips.
            folder: Sub-folders are class names.
            all_rows: Rows of all splits of the manifest, which share their labels.

        Raises:
            FileNotFoundError: A caption or an array is missing.
            ValueError: A clip has no class, or two classes have the same number.
        """
        if "caption" in self.kinds:
            clips = [_with_caption(clip) for clip in clips]
            self._check_captions(clips)
        if "label" in self.kinds:
            clips = [_with_label(clip, folder) for clip in clips]
            names = {str(clip.label) for clip in clips} | _names_in(all_rows, folder)
            self.class_names, self._labels = _classes(names)
            if len(names) == 1 and all_rows and not any(row.label for row in all_rows):
                logger.warning(
                    "the manifest has no labels, and all clips are in one sub-folder, %s, so all "
                    "have one class; name the column of labels in manifest_columns={'label': ...}",
                    *names,
                )
        if self.array_kind is not None:
            for path in {clip.path: None for clip in clips}:
                self._array_path(path)
        return list(clips)

    def read(self, clip: Clip, frames: Sequence[int]) -> dict[str, Any]:
        """Reads the conditions of a clip with these frames of its file.

        Returns:
            Keywords of the diffusion: a caption is a string or None, a label an int, arrays are
            float32 tensors, or uint8 ones for a field of bytes.

        Raises:
            UnreadableVideoError: An array is damaged, has another shape, or is not finite.
        """
        found: dict[str, Any] = {}
        if "caption" in self.kinds:
            found["cond"] = clip.caption
        if "label" in self.kinds:
            found["labels"] = self._labels[str(clip.label)]
        if self.numbers:
            found["cond"] = torch.tensor(clip.numbers, dtype=torch.float32)
        if self.array_kind is not None:
            found[_KEYS[self.array_kind]] = self._read_array(clip.path, frames)
        if self.function is not None:
            found.update(self._call(clip.path))
        return found

    def _check_captions(self, clips: Sequence[Clip]) -> None:
        without = [clip.path for clip in clips if clip.caption is None]
        if without and self.missing == "error":
            raise FileNotFoundError(
                f"expected a caption for each of {len(clips)} clips, in the manifest or in a .txt "
                f"of the clip's name, got none for {len(without)}, the first being {without[0]}; "
                "write them, or pass missing_captions='null'"
            )
        column = self.columns.get("cond")
        texts = [clip.caption for clip in clips if clip.caption is not None]
        if column is not None and texts and all(_is_number(text) for text in texts):
            raise ValueError(
                f"the column {column} must hold texts to be a caption, got numbers only, such as "
                f"{texts[0]}; for a vector of them write conditions={{'cond': [{column!r}]}}, for "
                f"captions manifest_columns={{'caption': {column!r}}} and conditions='caption'"
            )

    def _array_path(self, clip: Path) -> Path:
        path = beside(clip, _ARRAYS)
        if path is None:
            raise FileNotFoundError(
                f"expected the {self.array_kind} of {clip} in a .npy or .pt of the same name "
                "beside it, found none; write it there (or, beside an array, as "
                f"{clip.stem}.cond.npy)"
            )
        return path

    def _read_array(self, clip: Path, frames: Sequence[int]) -> torch.Tensor:
        kind = self.array_kind
        assert kind is not None
        path = self._array_path(clip)
        with file_errors(path):
            values = read_array(path)
        # the diffusion scales uint8 fields, as it does clips
        values = values if kind == "field" else values.float()
        if values.ndim not in _AXES[kind]:
            raise UnreadableVideoError(
                f"cannot take {path} for the {kind} of {clip.name}: expected the shape "
                f"{_SHAPES[kind]}, got {tuple(values.shape)}; write it so, or choose another kind "
                "of condition"
            )
        per_frame = {"frame_vectors": 0, "field": 1 if values.ndim == 4 else None}.get(kind)
        if per_frame is None:
            return finite(values, path)
        if frames and values.shape[per_frame] <= frames[-1]:
            raise UnreadableVideoError(
                f"cannot take {path} for the {kind} of {clip.name}: expected one for each frame, "
                f"at least {frames[-1] + 1}, got {values.shape[per_frame]}; add those that are "
                "missing"
            )
        chosen = values.index_select(per_frame, torch.tensor(frames, dtype=torch.long))
        return finite(chosen, path)

    def _call(self, path: Path) -> Mapping[str, Any]:
        assert self.function is not None
        given = self.function(path)
        if not isinstance(given, Mapping):
            raise TypeError(
                f"the function of conditions must give a dict, got {type(given).__name__} for "
                f"{path}; return for example {{'cond': vector}}"
            )
        return given


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True


def _with_caption(clip: Clip) -> Clip:
    if clip.caption is not None:
        return clip
    path = beside(clip.path, (".txt",))
    if path is None:
        return clip
    try:
        text = " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise ValueError(
            f"the caption {path} must be text in UTF-8, got {error}; save it as UTF-8"
        ) from error
    return replace(clip, caption=text or None)


def _with_label(clip: Clip, folder: Path) -> Clip:
    if clip.label is not None:
        return clip
    name = _folder_of(clip, folder)
    if name is None:
        raise ValueError(
            f"expected {clip.path} to be in a sub-folder of {folder} that names its class, got "
            "none; sort the clips into sub-folders, or give a manifest with a column label"
        )
    return replace(clip, label=name)


def _folder_of(clip: Clip, folder: Path) -> str | None:
    """The first sub-folder on the path of a clip; None if there is none."""
    try:
        inside = clip.path.relative_to(folder).parts[:-1]
    except ValueError:
        return None
    return inside[0] if inside else None


def _names_in(rows: Sequence[Clip], folder: Path) -> set[str]:
    """Class names in a manifest; rows of other splits may have none."""
    names = {row.label for row in rows} - {None} or {_folder_of(row, folder) for row in rows}
    return {name for name in names if name is not None}


def _classes(names: set[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in the order of their labels, and the label of each name."""
    if all(name.isdecimal() and int(name) < _LABELS for name in names):
        labels = {name: int(name) for name in sorted(names)}
        written: dict[int, str] = {}
        for name, number in labels.items():
            other = written.setdefault(number, name)
            if other != name:
                raise ValueError(
                    "classes that are whole numbers must each be written in one way, got "
                    f"{other!r} and {name!r}; write them alike"
                )
        return tuple(str(number) for number in range(max(labels.values()) + 1)), labels
    ordered = tuple(sorted(names))
    return ordered, {name: number for number, name in enumerate(ordered)}


def split_conditions(
    conditions: Any,
) -> tuple[list[str], Callable[[Path], Any] | None, dict[str, Any]]:
    """Splits `conditions` of `Dataset` into names, a function, and columns by keyword.

    Raises:
        TypeError: An item is none of these, or there are two functions.
        ValueError: A keyword or its columns are not possible with a manifest.
    """
    if conditions is None:
        return [], None, {}
    is_single = isinstance(conditions, (str, Mapping)) or callable(conditions)
    items = [conditions] if is_single else list(conditions)
    functions = [item for item in items if callable(item)]
    kinds = [item for item in items if isinstance(item, str)]
    mappings = [item for item in items if isinstance(item, Mapping)]
    if max(len(functions), len(mappings)) > 1 or len(items) > len([*functions, *kinds, *mappings]):
        raise TypeError(
            "conditions must be names of conditions, at most one function and one dict of columns, "
            f"got {conditions!r}; let one function give the conditions of both"
        )
    columns = dict(mappings[0]) if mappings else {}
    for name, column in columns.items():
        is_list = name == "cond" and isinstance(column, (list, tuple)) and len(column) > 0
        names = column if is_list else [column]
        if name not in ("cond", "labels") or not all(isinstance(n, str) for n in names):
            raise ValueError(
                "conditions from columns of the manifest must be 'cond', a list of columns of "
                "numbers or one column of texts, and 'labels', one column, got "
                f"{name!r}: {column!r}; write for example {{'cond': ['EF'], 'labels': 'Class'}}"
            )
    return kinds, functions[0] if functions else None, columns
