"""The conditions of clips: captions, labels, numbers and arrays, from files or a manifest."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.data.errors import file_errors, finite, unreadable
from video_diffusion_pytorch.data.formats.arrays import read_array
from video_diffusion_pytorch.data.manifest import Clip, beside, parse_number, read_text
from video_diffusion_pytorch.data.transforms import Moments

logger = logging.getLogger("video_diffusion_pytorch")

# The keyword of the diffusion that takes each kind
_KEYS = {
    "caption": "cond",
    "label": "labels",
    "vector": "cond",
    "frame_vectors": "frame_cond",
    "field": "cond_video",
    "mask": "cond_video",
}
KINDS = tuple(_KEYS)
"""Names of the conditions that files and manifests hold."""

ConditionFn = Callable[[Path], Mapping[str, Any]]
# Columns of the manifest, by keyword of the diffusion
Columns = Mapping[str, str | Sequence[str]]
# Functions last: the command line tries the types in this order
Conditions = str | Columns | Sequence[str | Columns | ConditionFn] | ConditionFn

_ARRAYS = (".npy", ".pt", ".npz")
# Whole numbers from here on are names, not labels
_MOST_LABELS = 10_000
# The axes of arrays, a letter each
_SHAPES = {"vector": ("d",), "frame_vectors": ("fd",), "field": ("chw", "cfhw")}


class ClipConditions:
    """Finds and reads the conditions of clips.

    Args:
        conditions: As for `Dataset`: names, of `"caption"` (from the manifest, or `clip.txt`),
            `"label"` (from the manifest, or the sub-folder's name), and one of `"vector"`,
            `"frame_vectors"` (one per frame of the file) and `"field"` (uint8 stays uint8), from
            `clip.npy` or `clip.pt`; a function; a dict of columns of the manifest.
        missing: For a clip without caption, `"error"`, or `"null"` for the null condition.

    Attributes:
        kinds: The names, those of columns included.
        numbers: The columns of numbers.
        array_kind: The one of the names that is an array; None without.
        may_use_arrays: Whether arrays beside the clips are conditions; a function may read them.
        has_mask: Whether the mask of values that are there is one.
        class_names: Names of the classes, sorted; a class's label is its index. Names that are all
            whole numbers below 10000 are the labels themselves.

    Raises:
        ValueError: `conditions` is none of the above.
    """

    def __init__(self, conditions: Conditions | None, missing: str = "error") -> None:
        names, self.function, self.columns = split_conditions(conditions)
        self._names = names
        cond = self.columns.get("cond", ())
        has_texts = isinstance(cond, str)
        self.numbers: tuple[str, ...] = () if has_texts else tuple(cond)
        self.kinds = [*names, *["caption"] * has_texts, *["label"] * ("labels" in self.columns)]
        # the mask is joined to a field of the clip
        self.has_mask = "mask" in self.kinds
        keys = [_KEYS[kind] for kind in self.kinds if kind != "mask"]
        keys += ["cond"] * bool(self.numbers)
        arrays = [kind for kind in self.kinds if kind in _SHAPES]
        if len(set(keys)) < len(keys) or len(arrays) > 1:
            raise ValueError(
                "conditions must differ: one of caption, vector and columns of numbers, and one "
                "array (vector, frame_vectors or field), got "
                f"{', '.join([*self.kinds, *self.numbers])}; give a function for the others"
            )
        self.array_kind = arrays[0] if arrays else None
        self.may_use_arrays = bool(arrays) or self.function is not None
        self.missing = missing
        self.class_names: tuple[str, ...] = ()
        self._labels: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.kinds or self.numbers) or self.function is not None

    @property
    def plain(self) -> Any:
        """The conditions as strings, lists and dicts; None if there are none, or a function."""
        columns = {k: v if isinstance(v, str) else list(v) for k, v in self.columns.items()}
        items = [*self._names, *[columns] * bool(columns)]
        if self.function is not None or not items:
            return None
        return items if len(items) > 1 else items[0]

    @property
    def roles(self) -> dict[str, str | None]:
        """The columns of a manifest that hold captions and labels, by role."""
        roles = {"cond": "caption", "labels": "label"}
        return {roles[k]: name for k, name in self.columns.items() if isinstance(name, str)}

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
            clips = self._with_labels(clips, folder, all_rows)
        if self.array_kind is not None:
            for path in {clip.path: None for clip in clips}:
                self._array_path(path)
        return list(clips)

    def scales(
        self, clips: Sequence[Clip], static_field: torch.Tensor | None
    ) -> dict[str, dict[str, tuple[float, ...]]]:
        """The mean and standard deviation of numeric conditions over clips, in float64.

        Those of entries that are constant are 1, and those of the mask 0 and 1.

        Args:
            clips: The clips.
            static_field: A field of all clips, `(c, 1, h, w)`; None for none.

        Returns:
            By keyword of the diffusion `mean` and `std`, one number per entry or channel.

        Raises:
            UnreadableVideoError: If an array is damaged.
            ValueError: If no condition is numeric.
        """
        found: dict[str, Any] = {}
        if self.numbers:
            rows = torch.tensor([clip.numbers for clip in clips], dtype=torch.float64, device="cpu")
            found["cond"] = _scale_of([rows.T])
        fields = []
        if self.array_kind is not None:
            kind, paths = self.array_kind, dict.fromkeys(clip.path for clip in clips)
            arrays = (self._read_array(path, kind, None).float() for path in paths)
            axis = 0 if kind in ("vector", "field") else 1
            scale = _scale_of(
                values.movedim(axis, 0).flatten(1) if values.ndim > 1 else values[:, None]
                for values in arrays
            )
            if kind == "field":
                fields.append(scale)
            else:
                found[_KEYS[kind]] = scale
        if static_field is not None:
            fields.append(_scale_of([static_field.flatten(1)]))
        if fields:
            fields += [{"mean": (0.0,), "std": (1.0,)}] * self.has_mask
            parts = ("mean", "std")
            found["cond_video"] = {part: sum((f[part] for f in fields), ()) for part in parts}
        if not found:
            raise ValueError(
                "cond_standardize must go with numbers: columns, vector, frame_vectors, field or a "
                f"static_field, got {', '.join(self.kinds) or 'no condition'}; leave it out"
            )
        return found

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
            found["cond"] = torch.tensor(clip.numbers, dtype=torch.float32, device="cpu")
        if self.array_kind is not None:
            found[_KEYS[self.array_kind]] = self._read_array(clip.path, self.array_kind, frames)
        if self.function is not None:
            given = self.function(clip.path)
            if not isinstance(given, Mapping) or "video" in given:
                raise TypeError(
                    "the function in conditions must return a dict of keywords of the diffusion, "
                    f"such as {{'cond': vector}}, got {shown(given)} for {clip.path}"
                )
            found = {**found, **given}
        return found

    def _check_captions(self, clips: Sequence[Clip]) -> None:
        without = [clip.path for clip in clips if clip.caption is None]
        if without and self.missing == "error":
            raise FileNotFoundError(
                f"expected a caption for each of {len(clips)} clips, in the manifest or in a .txt "
                f"of the clip's name, got none for {len(without)}, such as {without[0]}; write "
                "them, or pass missing_captions='null'"
            )
        column = self.columns.get("cond")
        texts = [clip.caption for clip in clips if clip.caption is not None]
        numbers = [parse_number(text.replace(",", ".")) for text in texts]
        if column is not None and texts and not any(math.isnan(number) for number in numbers):
            raise ValueError(
                f"the column {column} must hold texts to be captions, got only numbers such as "
                f"{texts[0]}; for a vector of numbers pass conditions={{'cond': [{column!r}]}}"
            )

    def _with_labels(
        self, clips: Sequence[Clip], folder: Path, all_rows: Sequence[Clip]
    ) -> list[Clip]:
        """Adds missing labels, and numbers the classes of these clips and of all splits."""
        rows = [*clips, *all_rows]
        if not any(row.label for row in rows):
            rows = [replace(row, label=_folder_of(row, folder)) for row in rows]
            if all_rows and len({row.label for row in rows}) == 1:
                logger.warning(
                    "the manifest has no labels, and all clips are in one sub-folder, %s, so all "
                    "have one class; name the column of labels in manifest_columns={'label': ...}",
                    rows[0].label,
                )
        without = [clip.path for clip in rows[: len(clips)] if clip.label is None]
        if without:
            raise ValueError(
                f"expected a class for each clip, in the manifest or by a sub-folder of {folder}, "
                f"got none for {without[0]}; write it, or sort clips into sub-folders"
            )
        # other splits may lack labels
        self.class_names, self._labels = _classes(sorted({row.label for row in rows if row.label}))
        return rows[: len(clips)]

    def _array_path(self, clip: Path) -> Path:
        path = beside(clip, _ARRAYS)
        if path is None:
            raise FileNotFoundError(
                f"expected the {self.array_kind} of {clip} in a .npy or .pt of its name, found "
                f"none; write it (beside an array, as {clip.stem}.cond.npy)"
            )
        return path

    def _read_array(self, clip: Path, kind: str, frames: Sequence[int] | None) -> torch.Tensor:
        """Reads an array, of which `frames` are these ones; None for all."""
        path = self._array_path(clip)
        with file_errors(path):
            values = read_array(path)
        # the diffusion scales uint8 fields, as it does clips
        values = values if kind == "field" else values.float()
        shapes = {len(shape): shape for shape in _SHAPES[kind]}
        if values.ndim not in shapes:
            expected = " or ".join(f"({', '.join(shape)})" for shape in _SHAPES[kind])
            got, advice = f"the shape {tuple(values.shape)}", "write it so, or change conditions"
            raise unreadable(path, f"a {kind} of the shape {expected}", got, advice)
        axis = shapes[values.ndim].find("f")
        if axis < 0 or frames is None:
            return finite(values, path)
        if frames and values.shape[axis] <= frames[-1]:
            expected = f"a {kind} of at least {frames[-1] + 1} frames, as the clip has"
            raise unreadable(path, expected, str(values.shape[axis]), "add those that are missing")
        return finite(
            values.index_select(axis, torch.tensor(frames, dtype=torch.long, device="cpu")), path
        )


def _scale_of(parts: Iterable[torch.Tensor]) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation over tensors `(c, n)`; 1 for what is constant."""
    moments = Moments()
    for part in parts:
        moments.add(part)
    std = (moments.squares / moments.count).sqrt()
    is_constant = std <= 8 * torch.finfo(torch.float32).eps * moments.mean.abs()
    return {
        "mean": tuple(moments.mean.tolist()),
        "std": tuple(std.masked_fill(is_constant, 1.0).tolist()),
    }


def _with_caption(clip: Clip) -> Clip:
    path = None if clip.caption is not None else beside(clip.path, (".txt",))
    return (
        clip if path is None else replace(clip, caption=" ".join(read_text(path).split()) or None)
    )


def _folder_of(clip: Clip, folder: Path) -> str | None:
    """The first sub-folder on the path of a clip; None if there is none."""
    inside = clip.path.relative_to(folder).parts if clip.path.is_relative_to(folder) else ()
    return inside[0] if len(inside) > 1 else None


def _classes(names: Sequence[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names in the order of their labels, and the label of each name."""
    if not all(name.isdecimal() and int(name) < _MOST_LABELS for name in names):
        return tuple(names), {name: number for number, name in enumerate(names)}
    labels = {name: int(name) for name in names}
    if len(set(labels.values())) < len(labels):
        raise ValueError(
            "classes that are whole numbers must each be written in one way, got "
            f"{', '.join(names)}; write them alike"
        )
    return tuple(map(str, range(max(labels.values()) + 1))), labels


def split_conditions(
    conditions: Any,
) -> tuple[list[str], Callable[[Path], Any] | None, dict[str, Any]]:
    """Splits `conditions` of `Dataset` into names, a function, and columns by keyword.

    Raises:
        ValueError: An item is none of these, or there are two functions or dicts.
    """
    if conditions is None:
        return [], None, {}
    is_single = isinstance(conditions, (str, Mapping)) or callable(conditions)
    items = [conditions] if is_single else list(conditions)
    functions = [item for item in items if callable(item)]
    kinds = [item for item in items if isinstance(item, str)]
    mappings = [item for item in items if isinstance(item, Mapping)]
    is_known = len(items) == len([*functions, *kinds, *mappings]) and {*kinds} <= {*KINDS}
    if not is_known or len(functions) > 1 or len(mappings) > 1:
        raise ValueError(
            f"conditions must be among {', '.join(KINDS)}, one function and one dict of columns of "
            f"the manifest as {{'cond': ['EF']}}, got {conditions!r}; use the function for others"
        )
    columns = dict(mappings[0]) if mappings else {}
    for name, column in columns.items():
        is_list = name == "cond" and isinstance(column, (list, tuple)) and len(column) > 0
        if name not in ("cond", "labels") or not (is_list or isinstance(column, str)):
            raise ValueError(
                "conditions from columns of the manifest must be 'cond', a list of columns of "
                "numbers or one column of texts, and 'labels', one column, got "
                f"{name!r}: {column!r}; write for example {{'cond': ['EF'], 'labels': 'Class'}}"
            )
    return kinds, functions[0] if functions else None, columns
