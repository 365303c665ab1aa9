"""Files of fields and volumes: NetCDF, HDF5, Zarr and NIfTI, and what their metadata tell."""

from __future__ import annotations

import base64
import importlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from video_diffusion_pytorch.data.errors import missing_file, regular_file, unreadable
from video_diffusion_pytorch.data.formats.readers import decoding

FIELD_EXTS = {
    "nc": "netcdf",
    "nc4": "netcdf",
    "h5": "hdf5",
    "hdf5": "hdf5",
    "zarr": "zarr",
    "zarr.zip": "zarr",
    "nii": "nifti",
    "nii.gz": "nifti",
}
"""Ending of a file's name -> the kind of file."""

# What a dimension is, by its name and by the attributes of its coordinate (CF conventions)
_NAMES = {
    "f": ("time", "t", "step", "frame", "frames", "lead_time", "leadtime", "prediction_timedelta"),
    "h": ("y", "lat", "latitude", "rlat", "nlat", "grid_latitude", "south_north", "nj", "yc"),
    "w": ("x", "lon", "longitude", "rlon", "nlon", "grid_longitude", "west_east", "ni", "xc"),
    "z": ("z", "depth", "lev", "level", "plev", "height", "altitude", "pressure_level", "nz"),
    "n": ("member", "number", "ensemble", "realization", "sample", "simulation", "trajectory"),
    "c": ("channel", "channels", "component", "components", "variable", "band"),
}
_AXES = {"T": "f", "Y": "h", "X": "w", "Z": "z"}
_STANDARD_NAMES = {
    "time": "f",
    "latitude": "h",
    "grid_latitude": "h",
    "projection_y_coordinate": "h",
    "longitude": "w",
    "grid_longitude": "w",
    "projection_x_coordinate": "w",
    "realization": "n",
}
_UNITS = {"degrees_north": "h", "degrees_east": "w"}
# Attributes of The Well's datasets (Ohana et al. 2024): whether the leading axes are there
_WELL_AXES = (("sample_varying", "sample"), ("time_varying", "time"))
_ADVICE = "repair or replace the file"
_EXTRA = 'pip install "video-diffusion-pytorch[fields]"'


class Coordinate(NamedTuple):
    """The values along an axis.

    Attributes:
        name: Of the variable that holds them.
        attributes: Of this variable.
        read: Reads them, one per entry of the axis.
    """

    name: str
    attributes: Mapping[str, Any]
    read: Callable[[], np.ndarray]


class Variable(NamedTuple):
    """A variable of a file.

    Attributes:
        name: Its name, with its groups.
        shape: Sizes of its axes.
        dims: Names of its dimensions; empty for axes without one.
        roles: What names and attributes tell of each axis: a letter of `ROLES`, `"z"` for a level
            or depth, or None.
        read: Reads a part, given an index of each axis: a number, a slice, or of at most one axis
            increasing numbers. Missing values are NaN.
        attributes: As they are stored.
        coordinates: The values along each axis; None for an axis without.
    """

    name: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    roles: tuple[str | None, ...]
    read: Callable[[tuple[Any, ...]], np.ndarray]
    attributes: Mapping[str, Any]
    coordinates: tuple[Coordinate | None, ...]


@dataclass
class FieldFile:
    """An opened file.

    Attributes:
        path: Its path.
        variables: Those of numbers, by name.
        close: Closes it.
        parameters: Single numbers and lists of numbers, by name: scalar variables, those of one
            axis, and attributes of the file; each with the name of its dimension, empty for none or
            an unknown one, and what reads it.
    """

    path: Path
    variables: dict[str, Variable]
    close: Callable[[], Any] = field(default=lambda: None)
    parameters: dict[str, tuple[str, Callable[[], Any]]] = field(default_factory=dict)


def kind_of_fields(path: Path) -> str | None:
    """The kind of file by its name, one of the values of `FIELD_EXTS`, or None.

    Example:
        >>> kind_of_fields(Path("scan.nii.gz")), kind_of_fields(Path("film.mp4"))
        ('nifti', None)
    """
    endings = path.name.lower().split(".")[1:]
    for count in (2, 1):
        kind = FIELD_EXTS.get(".".join(endings[-count:]))
        if kind is not None:
            return kind
    return None


def _numbers_among(attributes: Mapping[str, Any]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Attributes that are one number each, as `FieldFile.parameters`."""
    found: dict[str, tuple[str, Callable[[], Any]]] = {}
    for name, value in attributes.items():
        array = np.asarray(value)
        if array.dtype.kind in "biuf" and array.size == 1:
            found[name] = "", partial(np.ravel, array)
    return found


def open_file(path: Path) -> FieldFile:
    """Opens a file of any kind, to be closed after use.

    Raises:
        FileNotFoundError: If it is missing.
        ImportError: If the library that reads it is not installed.
        UnreadableVideoError: If it is damaged.
    """
    kind = kind_of_fields(path)
    assert kind is not None
    if not path.exists():
        raise missing_file(path)
    if not path.is_dir() and not regular_file(path).stat().st_size:
        raise unreadable(path, f"a {kind} file", "an empty file")
    with decoding(path, f"a {kind} file", _ADVICE, damage=()):
        return _OPENERS[kind](path)


def _library(name: str, path: Path) -> Any:
    """The library that reads a file.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"to read {path.name} the package {name.partition('.')[0]} must be installed, got "
            f"{error}; {_EXTRA}"
        ) from error


def as_index(numbers: Sequence[int]) -> Any:
    """Increasing numbers as a slice where they are evenly spaced, else as a list."""
    steps = set(np.diff(numbers).tolist())
    if len(steps) <= 1:
        return slice(numbers[0], numbers[-1] + 1, steps.pop() if steps else 1)
    return list(numbers)


def role_of(name: str, attributes: Mapping[str, Any]) -> str | None:
    """What a dimension is by the attributes of its coordinate, or else by its name.

    Args:
        name: Of the dimension.
        attributes: Of the coordinate variable; empty without one.

    Returns:
        A letter of `ROLES`, `"z"` for a level or depth, or None.

    Example:
        >>> role_of("ncells_y", {"units": "degrees_north"}), role_of("time", {}), role_of("foo", {})
        ('h', 'f', None)
    """
    for table, key in ((_AXES, "axis"), (_STANDARD_NAMES, "standard_name"), (_UNITS, "units")):
        found = table.get(str(attributes.get(key, "")))
        if found is not None:
            return found
    if " since " in str(attributes.get("units", "")):
        return "f"
    short = name.lower().rpartition("/")[2]
    return next((letter for letter, names in _NAMES.items() if short in names), None)


def unpacked(values: Any, attributes: Mapping[str, Any]) -> np.ndarray:
    """Values in physical units, with NaN where they are missing (CF conventions, section 8.1).

    Args:
        values: As they are stored.
        attributes: `scale_factor`, `add_offset`, `_FillValue`, `missing_value` and `_Unsigned`
            count.
    """
    raw = np.asarray(values)
    is_missing = np.zeros(raw.shape, bool)
    fills = [
        fill
        for name in ("_FillValue", "missing_value")
        for fill in np.ravel(attributes.get(name, ()))
    ]
    for fill in fills:
        # as precise as the values: 1e20 in float64 is another number than in float32
        is_missing |= raw == (raw.dtype.type(fill) if raw.dtype.kind == "f" else fill)
    if str(attributes.get("_Unsigned", "false")).lower() == "true" and raw.dtype.kind == "i":
        raw = raw.view(raw.dtype.str.replace("i", "u"))
        for fill in fills:
            is_missing |= raw == fill
    scale, offset = (
        float(np.ravel(attributes.get(name, usual))[0])
        for name, usual in (("scale_factor", 1.0), ("add_offset", 0.0))
    )
    if (scale, offset) == (1.0, 0.0) and not is_missing.any():
        return raw
    found = raw.astype(np.float64) * scale + offset
    found[is_missing] = math.nan
    return found


# Files


# What stands for missing values in NetCDF files that do not say it, by type
_DEFAULT_FILLS = {
    **{"f4": 9.969209968386869e36, "f8": 9.969209968386869e36},
    **{"i2": -32767, "u2": 65535, "i4": -2147483647, "u4": 4294967295},
    **{"i8": -9223372036854775806, "u8": 18446744073709551614},
}


def _with_fill(attributes: dict[str, Any], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Attributes with the fill value that NetCDF has without one."""
    usual = _DEFAULT_FILLS.get(dtype.newbyteorder("=").str[1:])
    if usual is None or "_FillValue" in attributes:
        return attributes
    return {**attributes, "_FillValue": np.array(usual, dtype)}


def _open_netcdf(path: Path) -> FieldFile:
    """A NetCDF-4 file, with the library that reads HDF5 files, or a classic one."""
    with path.open("rb") as raw:
        magic = raw.read(4)
    if magic == b"CDF\x05":
        got = "one of 64-bit data (CDF-5)"
        raise unreadable(path, "a NetCDF-4 or classic NetCDF file", got, "convert it by nccopy -4")
    if magic[:3] == b"CDF":
        return _open_classic_netcdf(path)
    file = _library("h5netcdf", path).File(path, "r")
    variables: dict[str, Variable] = {}
    parameters = _numbers_among(file.attrs)

    def visit(group: Any, prefix: str) -> None:
        for name, variable in group.variables.items():
            dims = variable.dimensions
            if getattr(variable.dtype, "kind", "O") not in "biuf":
                continue  # text
            attributes = dict(variable.attrs)
            read = _reader(variable.__getitem__, _with_fill(attributes, variable.dtype))
            if len(dims) < 2:
                parameters[prefix + name] = "".join(dims), partial(read, ...)
            if not dims or name in dims:
                continue  # a coordinate
            coordinates = [_coordinate(group, dim) for dim in dims]
            variables[prefix + name] = Variable(
                prefix + name,
                tuple(variable.shape),
                tuple(dims),
                _roles(dims, coordinates),
                read,
                attributes,
                tuple(coordinates),
            )
        for name, inner in group.groups.items():
            visit(inner, f"{prefix}{name}/")

    visit(file, "")
    return FieldFile(path, variables, file.close, parameters)


def _open_classic_netcdf(path: Path) -> FieldFile:
    file = _library("scipy.io", path).netcdf_file(path, mmap=True)
    # all references to the mapped file, so that it can be closed
    arrays = {name: variable.data for name, variable in file.variables.items()}
    known = {name: (v.dimensions, decoded(v._attributes)) for name, v in file.variables.items()}

    def along(dim: str) -> Coordinate | None:
        if dim not in known:
            return None
        return Coordinate(dim, known[dim][1], partial(reader(dim, known[dim][1]), ...))

    def reader(name: str, attributes: dict[str, Any]) -> Callable[[Any], np.ndarray]:
        filled = _with_fill(attributes, arrays[name].dtype)
        return _reader(lambda index: np.array(arrays[name][index]), filled)

    variables, parameters = {}, _numbers_among(file._attributes)
    for name, (dims, attributes) in known.items():
        if len(dims) < 2 and arrays[name].dtype.kind in "biuf":
            parameters[name] = "".join(dims), partial(reader(name, attributes), ...)
        if dims and name not in dims and arrays[name].dtype.kind in "biuf":
            coordinates = tuple(map(along, dims))
            shape, roles = arrays[name].shape, _roles(dims, coordinates)
            read = reader(name, attributes)
            variables[name] = Variable(name, shape, dims, roles, read, attributes, coordinates)

    def close() -> None:
        arrays.clear()
        parameters.clear()
        file.close()

    return FieldFile(path, variables, close, parameters)


def decoded(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with texts for bytes."""
    return {key: _text(value) for key, value in attributes.items()}


def _coordinate(group: Any, dim: str) -> Coordinate | None:
    """The coordinate variable of a dimension, of a group or those around it."""
    while group is not None:
        if dim in group.variables:
            variable = group.variables[dim]
            attributes = dict(variable.attrs)
            read = partial(_reader(variable.__getitem__, attributes), ...)
            return Coordinate(dim, attributes, read)
        group = group.parent
    return None


def _roles(dims: Sequence[str], coordinates: Sequence[Coordinate | None]) -> tuple[str | None, ...]:
    """What dimensions are, by their names and coordinates."""
    pairs = zip(dims, coordinates, strict=True)
    return tuple(role_of(dim, {} if one is None else one.attributes) for dim, one in pairs)


def _reader(
    read: Callable[[Any], Any], attributes: Mapping[str, Any]
) -> Callable[[Any], np.ndarray]:
    return lambda index: unpacked(read(index), attributes)


def _open_hdf5(path: Path) -> FieldFile:
    h5py = _library("h5py", path)
    file = h5py.File(path, "r")
    variables: dict[str, Variable] = {}
    parameters = _numbers_among(file.attrs)

    def visit(name: str, found: Any) -> None:
        if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "biuf":
            return
        attributes = decoded(found.attrs)
        dims, coordinates = _hdf5_dims(file, name, found)
        if found.ndim < 2:
            # a scale is along itself
            along = name.rpartition("/")[2] if found.is_scale else "".join(dims)
            parameters[name] = along, partial(_reader(found.__getitem__, attributes), ...)
        if not found.shape or found.is_scale:
            return
        variables[name] = Variable(
            name,
            tuple(found.shape),
            dims,
            _roles(dims, coordinates),
            _reader(found.__getitem__, attributes),
            attributes,
            tuple(coordinates),
        )

    file.visititems(visit)
    return FieldFile(path, variables, file.close, parameters)


def _hdf5_dims(file: Any, name: str, found: Any) -> tuple[tuple[str, ...], list[Coordinate | None]]:
    """Names of the axes of a dataset, and the values along them."""
    group, _, _ = name.rpartition("/")
    if group in ("t0_fields", "t1_fields", "t2_fields") and "n_spatial_dims" in file.attrs:
        leading = [dim for key, dim in _WELL_AXES if found.attrs.get(key, True)]
        spatial = list(map(_text, file["dimensions"].attrs["spatial_dims"]))
        trailing = ["component"] * int(group[1])
        dims = (*leading, *spatial, *trailing)
        if len(dims) == found.ndim:
            along = [file["dimensions"].get(dim) for dim in dims]
            fits = [one is not None and one.ndim == 1 for one in along]
            pairs = zip(dims, along, fits, strict=True)
            return dims, [
                _scale(f"dimensions/{dim}", one) if fit else None for dim, one, fit in pairs
            ]
    names, scales = [], []
    # not by axis.label: HDF5 2.0 frees memory that is not its own where some axes have no label
    labels = list(map(_text, found.attrs.get("DIMENSION_LABELS", [""] * found.ndim)))
    for axis, label in zip(found.dims, labels, strict=True):
        scale = axis[0] if len(axis) else None
        names.append(label or ("" if scale is None else scale.name.rpartition("/")[2]))
        scales.append(None if scale is None else _scale(scale.name.lstrip("/"), scale))
    return tuple(names), scales


def _scale(name: str, dataset: Any) -> Coordinate:
    attributes = decoded(dataset.attrs)
    return Coordinate(name, attributes, partial(_reader(dataset.__getitem__, attributes), ...))


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


def _open_zarr(path: Path) -> FieldFile:
    zarr = _library("zarr", path)
    root = open_zarr(path, zarr)
    arrays = [("", root)] if isinstance(root, zarr.Array) else _zarr_arrays(root, zarr)
    along = {name: array for name, array in arrays if array.ndim == 1}
    variables: dict[str, Variable] = {}
    parameters = _numbers_among(dict(root.attrs))
    for name, array in arrays:
        if array.dtype.kind not in "biuf":
            continue
        attributes = _zarr_attributes(path, array)
        dims = getattr(array.metadata, "dimension_names", None)
        dims = dims or attributes.get("_ARRAY_DIMENSIONS") or [""] * array.ndim
        dims = tuple(dim or "" for dim in dims)
        if array.ndim < 2:
            read = _reader(array.__getitem__, attributes)
            parameters[name] = "".join(dims), partial(read, ...)
        if not array.shape:
            continue
        if name and name.rpartition("/")[2] in dims:
            continue  # a coordinate
        group = name.rpartition("/")[0]
        names = [f"{group}/{dim}".lstrip("/") for dim in dims]
        coordinates = [_zarr_coordinate(path, name, along.get(name)) for name in names]
        key = name or path.name.partition(".")[0]
        variables[key] = Variable(
            key,
            tuple(array.shape),
            dims,
            _roles(dims, coordinates),
            _zarr_reader(path, zarr, array, attributes),
            attributes,
            tuple(coordinates),
        )
    return FieldFile(path, variables, root.store.close, parameters)


def open_zarr(path: Path, zarr: Any) -> Any:
    """The array or group of a store, a folder or a zip file, which `store.close()` closes."""
    kind = zarr.storage.ZipStore if path.is_file() else zarr.storage.LocalStore
    return zarr.open(kind(path, read_only=True), mode="r")


def _zarr_attributes(path: Path, array: Any) -> dict[str, Any]:
    """Attributes of an array with the value that stands for missing ones, as xarray stores it."""
    attributes = dict(array.attrs)
    fill = attributes.get("_FillValue")
    if isinstance(fill, str) and array.dtype.kind == "f":
        # of floats in format 3: the bytes of a double
        try:
            [attributes["_FillValue"]] = struct.unpack("<d", base64.b64decode(fill, validate=True))
        except (ValueError, struct.error) as error:
            got = f"{fill!r} in {array.name}"
            raise unreadable(path, "a _FillValue that is a number", got, _ADVICE) from error
    elif fill is None and array.metadata.zarr_format == 2 and array.fill_value not in (None, 0):
        attributes["_FillValue"] = array.fill_value
    return attributes


def _zarr_coordinate(path: Path, name: str, array: Any) -> Coordinate | None:
    if array is None:
        return None
    attributes = _zarr_attributes(path, array)
    return Coordinate(name, attributes, partial(_reader(array.__getitem__, attributes), ...))


def _zarr_arrays(group: Any, zarr: Any) -> list[tuple[str, Any]]:
    """All arrays of a group, sorted by their names."""
    members = group.members(max_depth=None)
    return sorted((name, one) for name, one in members if isinstance(one, zarr.Array))


def _zarr_reader(
    path: Path, zarr: Any, array: Any, attributes: Mapping[str, Any]
) -> Callable[[tuple[Any, ...]], np.ndarray]:
    """Reads a part of an array, but no chunk that is missing.

    Chunks that hold only the fill value may be left out of a store, and damaged stores lack chunks,
    too. If the fill value is NaN, they count as missing values; otherwise nothing tells them apart.
    """

    def read(index: tuple[Any, ...]) -> Any:
        if not checked:
            _check_chunks(path, array, attributes)
            checked.append(True)
        return array.oindex[index]

    checked: list[bool] = []
    return _reader(read, attributes)


def _check_chunks(path: Path, array: Any, attributes: Mapping[str, Any]) -> None:
    """Raises an error for an array of which chunks are missing, unless they count as NaN."""
    fill = array.fill_value
    is_nan = fill is not None and np.issubdtype(array.dtype, np.floating) and np.isnan(fill)
    is_nan = is_nan or (fill is not None and fill in np.ravel(attributes.get("_FillValue", ())))
    if not is_nan and array.nchunks_initialized < array.nchunks:
        raise unreadable(
            path,
            "all chunks of an array",
            f"{array.nchunks_initialized} of its {array.nchunks} chunks in {array.name}",
            f"the others would be read as {fill}: write them, with array.write_empty_chunks, or "
            "set the fill value to NaN",
        )


def _open_nifti(path: Path) -> FieldFile:
    """A NIfTI volume, whose axes are turned to run from left, posterior and inferior."""
    nibabel = _library("nibabel", path)
    image = nibabel.load(path)
    turn = nibabel.io_orientation(image.affine).astype(int)
    # where each axis of the result is stored, and whether it runs backwards
    places = [int(np.flatnonzero(turn[:, 0] == axis)[0]) for axis in range(3)]
    flips = [turn[place, 1] < 0 for place in places]
    stored = image.shape
    places += range(3, len(stored))
    flips += [False] * (len(stored) - 3)
    shape = tuple(stored[place] for place in places)

    def read(index: tuple[Any, ...]) -> np.ndarray:
        """Reads a part as it is stored, then turns it."""
        of_stored: list[Any] = [slice(None)] * len(shape)
        for axis, one in enumerate(index):
            of_stored[places[axis]] = _mirrored(one, shape[axis]) if flips[axis] else one
        # nibabel reads no lists
        lists = [i for i, one in enumerate(of_stored) if isinstance(one, list)]
        parts = [of_stored]
        for at in lists:
            before, after = of_stored[:at], of_stored[at + 1 :]
            parts = [[*before, slice(n, n + 1), *after] for n in of_stored[at]]
        values = [np.asarray(image.dataobj[tuple(part)]) for part in parts]
        joined = np.concatenate(values, axis=lists[0]) if lists else values[0]
        kept = [axis for axis, one in enumerate(index) if not isinstance(one, int)]
        order = sorted(kept, key=lambda axis: places[axis])
        turned = joined.transpose([order.index(axis) for axis in kept])
        return np.flip(turned, tuple(i for i, axis in enumerate(kept) if flips[axis]))

    dims = ("x", "y", "z", "t", "component")[: len(shape)]
    roles: tuple[str | None, ...] = ("w", "h", "z", "f", "c")[: len(shape)]
    none = (None,) * len(shape)
    return FieldFile(path, {"volume": Variable("volume", shape, dims, roles, read, {}, none)})


def _mirrored(index: Any, size: int) -> Any:
    """The index of the same entries along an axis that runs backwards, in increasing order."""
    if isinstance(index, int):
        return size - 1 - index
    numbers = index if isinstance(index, list) else list(range(size)[index])
    return as_index([size - 1 - n for n in reversed(numbers)])


_OPENERS: dict[str, Callable[[Path], FieldFile]] = {
    "netcdf": _open_netcdf,
    "hdf5": _open_hdf5,
    "zarr": _open_zarr,
    "nifti": _open_nifti,
}
