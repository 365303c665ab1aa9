"""Fields and volumes: the variables and dimensions of a file that become a clip, read on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from video_diffusion_pytorch.data.errors import unreadable
from video_diffusion_pytorch.data.formats.arrays import ArrayReader, LazyArray, StoredArray
from video_diffusion_pytorch.data.formats.field_files import (
    FieldFile,
    Variable,
    as_index,
    kind_of_fields,
    open_file,
)
from video_diffusion_pytorch.data.formats.readers import decoding

ROLES = {
    "n": "simulation, member or trajectory, each a clip of its own",
    "f": "frames",
    "c": "channels",
    "h": "height",
    "w": "width",
}
"""Letter of an axis -> what it is."""
_EXPECTED, _ADVICE = "fields of numbers", "repair or replace the file"


@dataclass(frozen=True)
class Layout:
    """What of a file is read, and what its dimensions are.

    Attributes:
        variables: Names of the variables that become channels, in this order; None if there is
            only one choice.
        dims: Letters of `ROLES` by name of dimension, or, for arrays without such names, the
            letters of all axes in order; None for what names and attributes tell.
    """

    variables: tuple[str, ...] | None = None
    dims: Mapping[str, str] | str | None = None


def layout_of(
    variables: str | Sequence[str] | None, dims: Mapping[str, str] | str | None
) -> Layout:
    """The layout of keywords of `Dataset`: `variables` may be a single name."""
    names = (variables,) if isinstance(variables, str) else variables
    return Layout(None if names is None else tuple(names), dims)


def open_fields(
    path: Path, channels: int | None, layout: Layout, item: int | None = None
) -> ArrayReader:
    """Opens a file of fields, whose frames are read on demand.

    Args:
        path: The file, or the folder of a Zarr store.
        channels: Required number of channels; None for any.
        layout: What of it is read.
        item: Number of the simulation; None for the only one.

    Returns:
        A reader, to be closed after use.

    Raises:
        FileNotFoundError: The file is missing.
        ImportError: The library that reads it is not installed.
        UnreadableVideoError: It is damaged, or does not have what `layout` says.
    """
    file = open_file(path)
    try:
        grid = Grid.of(file, layout, channels)
        items = grid.sizes.get("n", 1)
        if item is not None and not 0 <= item < items:
            got = f"{items} in the file"
            raise unreadable(path, f"a simulation with the number {item}", got, "count from 0")
        if item is None and items > 1:
            got = f"{items} along {grid.name_of('n')}"
            raise unreadable(path, "one simulation", got, "open it as a dataset, or choose one")
        return ArrayReader(path, StoredArray(FieldArray(file, grid, item or 0), "cfhw"), channels)
    except BaseException:
        file.close()
        raise


def count_items(path: Path, channels: int | None, layout: Layout) -> tuple[int, tuple[int, int]]:
    """Number of simulations in a file, and its grid points along height and width.

    The arguments are those of `open_fields`.
    """
    file = open_file(path)
    try:
        sizes = Grid.of(file, layout, channels).sizes
        return sizes.get("n", 1), (sizes["h"], sizes["w"])
    finally:
        file.close()


def variable_names(path: Path, channels: int | None, layout: Layout) -> tuple[str, ...]:
    """Names of the variables that are channels; the arguments are those of `open_fields`."""
    file = open_file(path)
    try:
        return tuple(variable.name for variable, _ in Grid.of(file, layout, channels).parts)
    finally:
        file.close()


def read_parameters(
    path: Path, names: Sequence[str], channels: int | None, layout: Layout
) -> np.ndarray:
    """Numbers of the simulations in a file, such as the viscosity of each.

    Args:
        path: The file.
        names: Of scalar variables, of variables with one number per simulation, or of attributes
            of the file. The group may be left out if that is unambiguous.
        channels: As in `open_fields`.
        layout: Likewise.

    Returns:
        `(n, len(names))`, float64, a row per simulation.

    Raises:
        UnreadableVideoError: If a name is missing, or is not a finite number.
    """
    file = open_file(path)
    try:
        grid = Grid.of(file, layout, channels)
        count, along = grid.sizes.get("n", 1), grid.name_of("n")
        columns = []
        for name in names:
            found = [key for key in file.parameters if key == name or key.endswith(f"/{name}")]
            expected = f"one number {name!r} for each simulation"
            if len(found) != 1:
                got = ", ".join(found or file.parameters) or "none"
                raise unreadable(path, expected, got, "correct conditions")
            dim, read = file.parameters[found[0]]
            values = np.asarray(read(), np.float64).ravel()
            fits = values.size == 1 or (values.size == count and dim in ("", along))
            if not fits or not np.isfinite(values).all():
                got = "NaN" if fits else f"{values.size} numbers along {dim or 'an axis'}"
                raise unreadable(path, expected, f"{got} in {found[0]}", "correct conditions")
            columns.append(np.broadcast_to(values, count))
        return np.stack(columns, axis=1)
    finally:
        file.close()


# What is read of a file


@dataclass(frozen=True)
class Grid:
    """The variables that become channels, and the letters of their axes.

    Attributes:
        parts: The variables, each with the letters of its axes; empty for one of a single entry
            that is left out.
        sizes: Size by letter; `c` counts all channels.
    """

    parts: tuple[tuple[Variable, tuple[str, ...]], ...]
    sizes: dict[str, int]

    @classmethod
    def of(cls, file: FieldFile, layout: Layout, channels: int | None) -> Grid:
        """Chooses variables, and finds what their axes are.

        Raises:
            UnreadableVideoError: A variable is missing, an axis is not known, or variables differ
                in their grid.
        """
        parts = []
        for variable in _chosen(file, layout, channels):
            parts.append((variable, _letters(file.path, variable, layout)))
        sizes: dict[str, int] = {}
        count = 0
        for variable, letters in parts:
            own = {a: n for a, n in zip(letters, variable.shape, strict=True) if a}
            count += own.pop("c", 1)
            for letter, size in own.items():
                if sizes.setdefault(letter, size) != size:
                    names = ", ".join(f"{v.name} {v.shape}" for v, _ in parts)
                    raise unreadable(
                        file.path,
                        "variables on one grid",
                        f"{ROLES[letter]} of {sizes[letter]} and {size} in {names}",
                        "choose variables of one grid, or resample them first",
                    )
        return cls(tuple(parts), {**sizes, "c": count})

    def name_of(self, letter: str) -> str:
        """Name of the dimension of a letter."""
        for variable, letters in self.parts:
            if letter in letters:
                return variable.dims[letters.index(letter)] or f"axis {letters.index(letter)}"
        return letter


def _chosen(file: FieldFile, layout: Layout, channels: int | None) -> list[Variable]:
    """The variables that become channels."""
    named = file.variables
    # a volume has no name
    if layout.variables is not None and kind_of_fields(file.path) != "nifti":
        missing = [name for name in layout.variables if name not in named]
        if missing:
            found = ", ".join(f"{v.name} {v.shape}" for v in named.values()) or "none"
            raise unreadable(file.path, f"the variable {missing[0]!r}", found, "correct variables")
        return [named[name] for name in layout.variables]
    # coordinates and scalars are no fields
    beside: set[str] = set()
    for variable in named.values():
        both = (variable.attributes, *(c.attributes for c in variable.coordinates if c))
        for key in (
            "coordinates",
            "bounds",
            "grid_mapping",
            "cell_measures",
            "ancillary_variables",
        ):
            beside.update(word for one in both for word in str(one.get(key, "")).split())
    fields = [
        v
        for v in named.values()
        if sum(n > 1 for n in v.shape) > 1 and v.name.rpartition("/")[2] not in beside
    ]
    if len(fields) == 1 or (fields and len(fields) == channels):
        return fields
    found = ", ".join(f"{v.name} {v.shape}" for v in fields) or "none of two axes or more"
    some = ", ".join(repr(v.name) for v in fields[: channels or 2])
    raise unreadable(
        file.path,
        f"one variable, or {'as many as' if channels is None else channels} channels",
        found,
        f"choose them, as variables=[{some}]",
    )


def _letters(path: Path, variable: Variable, layout: Layout) -> tuple[str, ...]:
    """The letter of each axis of a variable; empty for axes of one entry that are left out."""
    what = f"{variable.name} with the axes {_shown_axes(variable)}"
    if isinstance(layout.dims, str):
        if len(layout.dims) != len(variable.shape):
            advice = "give a letter for each axis"
            raise unreadable(path, f"axes {layout.dims!r}", what, advice)
        letters = list(layout.dims)
    else:
        given = layout.dims or {}
        known = zip(variable.dims, variable.roles, strict=True)
        letters = [given.get(dim) or role or "?" for dim, role in known]
        if "z" in letters and "f" not in letters:
            # a volume: depth becomes frames
            letters[letters.index("z")] = "f"
    letters = [
        "" if n == 1 and letter not in ROLES else letter
        for n, letter in zip(variable.shape, letters, strict=True)
    ]
    for place, letter in enumerate(letters):
        if letter and letter not in ROLES:
            name = variable.dims[place]
            roles = ", ".join(f"{short} ({long})" for short, long in ROLES.items())
            cure = f"dims={{{name!r}: ...}}" if name else "dims='...', a letter for each axis,"
            raise unreadable(path, "axes whose meaning is known", what, f"say by {cure} of {roles}")
    for letter in ROLES:
        if letters.count(letter) > 1 or (letter in "hw" and letter not in letters):
            count = "one axis" if letter in "hw" else "at most one axis"
            expected = f"{count} of {ROLES[letter]} ({letter})"
            raise unreadable(path, expected, what, "say by dims what each axis is")
    return tuple(letters)


def _shown_axes(variable: Variable) -> str:
    names = [name or "?" for name in variable.dims]
    return ", ".join(f"{name}: {n}" for name, n in zip(names, variable.shape, strict=True))


class FieldArray(LazyArray):
    """The channels of one simulation, `(c, f, h, w)`, read on demand.

    Args:
        file: The file; closed by `close`.
        grid: What of it is read.
        item: Number of the simulation.
    """

    def __init__(self, file: FieldFile, grid: Grid, item: int) -> None:
        sizes = grid.sizes
        self.shape = (sizes["c"], sizes.get("f", 1), sizes["h"], sizes["w"])
        self._file, self._grid, self._item = file, grid, item

    def read(self, axis: int | None = None, wanted: Sequence[int] = ()) -> np.ndarray:
        """Reads the requested frames, float32; `axis` is that of frames, or None for all."""
        assert axis in (None, 1)
        frames = range(self.shape[1]) if axis is None else wanted
        with decoding(self._file.path, _EXPECTED, _ADVICE, damage=()):
            return np.concatenate([self._read(*part, frames) for part in self._grid.parts])

    def _read(
        self, variable: Variable, letters: Sequence[str], frames: Sequence[int]
    ) -> np.ndarray:
        """The frames of a variable, `(c, f, h, w)`."""
        if not len(frames):
            count = dict(zip(letters, variable.shape, strict=True)).get("c", 1)
            return np.empty((count, 0, *self.shape[2:]), np.float32)
        chosen = {"n": self._item, "f": as_index(frames), "": 0}
        values = variable.read(tuple(chosen.get(letter, slice(None)) for letter in letters))
        kept = [letter for letter in letters if letter not in ("n", "")]
        for letter in "cf":
            if letter not in kept:
                kept, values = [letter, *kept], values[None]
        values = values.transpose([kept.index(letter) for letter in "cfhw"])
        if "f" not in letters:
            # a static field is the same in all frames
            values = np.repeat(values, len(frames), axis=1)
        with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite
            return np.asarray(values, np.float32)

    def close(self) -> None:
        """Closes the file; harmless when repeated."""
        self._file.close()
