"""Writing of fields and volumes: files of the kind, names, units and coordinates of another one."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from video_diffusion_pytorch.data.formats.field_files import (
    Variable,
    decoded,
    kind_of_fields,
    open_file,
    open_zarr,
)
from video_diffusion_pytorch.data.formats.fields import Grid, Layout
from video_diffusion_pytorch.data.transforms import FrameSize
from video_diffusion_pytorch.files import replacing

# Attributes of how values are stored, which are float32 here
_PACKING = {"scale_factor", "add_offset", "_FillValue", "missing_value", "valid_range"}
_PACKING |= {"valid_min", "valid_max", "_Unsigned", "DIMENSION_LIST", "REFERENCE_LIST", "CLASS"}
_PACKING |= {"DIMENSION_LABELS"}
_PACKING |= {"NAME", "_ARRAY_DIMENSIONS", "_Netcdf4Dimid", "_Netcdf4Coordinates", "_NCProperties"}


class Axis(NamedTuple):
    """An axis of a variable that is written.

    Attributes:
        name: Of the dimension; empty for none.
        size: Number of entries.
        values: The values along it; None for none.
        path: Name of the variable that holds them.
        attributes: Of that variable.
        is_same: Whether it has the entries of the other file.
    """

    name: str
    size: int
    values: np.ndarray | None
    path: str
    attributes: Mapping[str, Any]
    is_same: bool = False


class Written(NamedTuple):
    """A variable that is written: its name, axes, values and attributes."""

    name: str
    axes: tuple[Axis, ...]
    values: np.ndarray
    attributes: Mapping[str, Any]


def write_fields(
    values: np.ndarray,
    path: Path,
    like: Path,
    *,
    layout: Layout | None = None,
    fit: str = "cover",
    first_frame: int = 0,
    frame_skip: float = 1,
    several: str = "sample",
) -> None:
    """Writes videos as variables of a file like another one; it appears complete or not at all.

    Names, units, other attributes and coordinates are those of the other file; values are float32
    and not packed, NaN where they are missing. Coordinates along height and width are those of the
    places of the pixels, also where frames were scaled or cropped. Those of frames go on evenly
    after the end of the other file, as their last step; if they have fewer than two values, there
    are none. NIfTI volumes run from left, posterior and inferior, with the affine for that.

    Args:
        values: A video, `(c, f, h, w)`; or several, `(n, c, f, h, w)`, along a dimension of their
            own in front, not for NIfTI.
        path: The file, or folder of a Zarr store, to write or replace.
        like: A file of the same kind.
        layout: What of `like` became the channels, as in training; None for what is certain.
        fit: How frames of `like` became those of the video, as in `Dataset`.
        first_frame: Number of the first frame on the timeline of `like`, in frames of the video.
        frame_skip: Frames of `like` from one to the next frame of the video.
        several: Name of the dimension of several videos.

    Raises:
        FileNotFoundError: If `like` or the folder of `path` is missing.
        ImportError: If the library that writes it is not installed.
        ValueError: If the kinds of the files differ, or `like` has other channels.
    """
    kind = kind_of_fields(path)
    if kind is None or kind_of_fields(like) != kind:
        raise ValueError(
            f"write_video: like must be a file of the same kind as {path.name}, got {like.name}; "
            "give one, or another ending"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"expected a folder at {path.parent} to write {path.name} into, found none; create it "
            "first"
        )
    batch = values if values.ndim == 5 else values[None]
    file = open_file(like)
    try:
        grid = Grid.of(file, Layout() if layout is None else layout, batch.shape[1])
        _check_channels(grid, batch, like)
        rows, columns = FrameSize(tuple(batch.shape[-2:]), fit).places(
            grid.sizes["h"], grid.sizes["w"]
        )
        frames = frame_skip * (first_frame + np.arange(batch.shape[2]))
        places = {"f": frames, "h": rows, "w": columns}
        if kind == "nifti":
            if values.ndim == 5:
                raise ValueError(
                    f"write_video: a NIfTI file must have one video, got {len(values)}; write one "
                    "file for each"
                )
            with replacing(path) as unfinished:
                _write_nifti(values, path, unfinished, like, grid, places, frame_skip)
            return
        lead = several if values.ndim == 5 else ""
        written, start = [], 0
        for variable, letters in grid.parts:
            count = dict(zip(letters, variable.shape, strict=True)).get("c", 1)
            part = batch[:, start : start + count]
            written.append(_written(variable, letters, part, places, lead))
            start += count
        if kind != "zarr":
            with replacing(path) as unfinished:
                _WRITERS[kind](unfinished, written, like)
            return
        _check_store(path)
        with replacing_store(path) as unfinished:
            _write_zarr(unfinished, written, like, path.name.lower().endswith(".zip"))
    finally:
        file.close()


def _check_store(path: Path) -> None:
    """Raises a FileExistsError for what is in the place of a Zarr store and is none."""
    is_zip = path.name.lower().endswith(".zip")
    is_store = (
        path.is_file()
        if is_zip
        else any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    )
    if path.exists() and not is_store:
        raise FileExistsError(
            f"expected a Zarr store at {path} to be replaced, found something else; remove it, or "
            "give another name"
        )


@contextlib.contextmanager
def replacing_store(path: Path) -> Iterator[Path]:
    """As `files.replacing`, for a file or a folder, of which the old one is moved aside first."""
    unfinished, old = (
        path.with_name(f".{path.name[:50]}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old")
    )
    try:
        yield unfinished
        if path.exists():
            path.replace(old)
        unfinished.replace(path)
    finally:
        for left in (unfinished, old):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _check_channels(grid: Grid, batch: np.ndarray, like: Path) -> None:
    if grid.sizes["c"] != batch.shape[1]:
        names = ", ".join(variable.name for variable, _ in grid.parts)
        raise ValueError(
            f"write_video: like must have the {batch.shape[1]} channels of the video, got "
            f"{grid.sizes['c']}, {names}, in {like}; give variables"
        )


def _written(
    variable: Variable,
    letters: Sequence[str],
    values: np.ndarray,
    places: Mapping[str, np.ndarray],
    lead: str,
) -> Written:
    """A variable with the values of its channels, `(n, c, f, h, w)`, in its order of axes."""
    axes = []
    for place, letter in enumerate(letters):
        if letter == "n":
            continue
        size = 1 if letter == "" else values.shape[1 + "cfhw".index(letter)]
        name = variable.dims[place] or f"axis_{place}"
        along, coordinate, own_places = None, variable.coordinates[place], places.get(letter)
        is_same = size == variable.shape[place]
        is_same &= own_places is None or np.allclose(own_places, np.arange(size))
        if coordinate is not None:
            along = _along(coordinate.read(), own_places, size)
        path = "" if coordinate is None else coordinate.name
        attributes = {} if coordinate is None else plain(coordinate.attributes)
        axes.append(Axis(name, size, along, path, attributes, is_same))
    kept = [letter for letter in letters if letter not in ("n", "")]
    # axes that the variable lacks have one entry, as a static field has in time
    dropped = tuple(1 + "cfhw".index(letter) for letter in "cfhw" if letter not in kept)
    own = values[:, :, :1] if "f" not in kept else values
    own = own.squeeze(dropped)
    order = [letter for letter in "cfhw" if letter in kept]
    own = own.transpose([0, *(1 + order.index(letter) for letter in kept)])
    shape = tuple(axis.size for axis in axes)
    if lead:
        axes.insert(0, Axis(lead, len(values), np.arange(len(values)), lead, {}))
        shape = (len(values), *shape)
    found = np.ascontiguousarray(own, dtype=np.float32).reshape(shape)
    return Written(variable.name, tuple(axes), found, plain(variable.attributes))


def _along(stored: np.ndarray, places: np.ndarray | None, size: int) -> np.ndarray | None:
    """The values of an axis at some places of it, which may be beyond its end."""
    if places is None:
        return stored if len(stored) == size else None
    is_whole = np.allclose(places, np.round(places)) and 0 <= places[0] <= places[-1] < len(stored)
    if is_whole:
        return stored[np.round(places).astype(int)]
    if len(stored) < 2:
        return None
    inside = np.interp(places, np.arange(len(stored)), stored.astype(np.float64))
    first, last = float(stored[1]) - float(stored[0]), float(stored[-1]) - float(stored[-2])
    before, after = np.minimum(places, 0), np.maximum(places - (len(stored) - 1), 0)
    return inside + before * first + after * last


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes that do not describe how values are stored."""
    return {key: value for key, value in attributes.items() if key not in _PACKING}


# Kinds of files


def _write_netcdf(path: Path, variables: Sequence[Written], like: Path) -> None:
    """Writes a NetCDF-4 file; `like` may be a classic one."""
    h5netcdf = importlib.import_module("h5netcdf")
    with h5netcdf.File(path, "w") as file, _netcdf_source(like) as source:
        file.attrs.update(source.attributes)
        for one in variables:
            group_name, _, name = one.name.rpartition("/")
            group = file
            for part in filter(None, group_name.split("/")):
                group = group.groups[part] if part in group.groups else group.create_group(part)
            # of the whole file, so that variables of several groups share them
            for axis in one.axes:
                if axis.name not in file.dimensions:
                    file.dimensions[axis.name] = axis.size
                    if axis.values is not None:
                        along = file.create_variable(axis.name, (axis.name,), data=axis.values)
                        along.attrs.update(axis.attributes)
            dims = [axis.name for axis in one.axes]
            made = group.create_variable(name, dims, data=one.values, fillvalue=np.float32(np.nan))
            made.attrs.update(one.attributes)
            _copy_auxiliaries(group, source.variables(group_name), one)


class _NetcdfSource(NamedTuple):
    """Attributes of a NetCDF file, and dimensions, values and attributes of its variables."""

    attributes: dict[str, Any]
    variables: Callable[[str], dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, Any]]]]


@contextlib.contextmanager
def _netcdf_source(path: Path) -> Iterator[_NetcdfSource]:
    with path.open("rb") as raw:
        is_classic = raw.read(3) == b"CDF"
    if is_classic:
        with importlib.import_module("scipy.io").netcdf_file(path, mmap=False) as file:
            yield _NetcdfSource(
                decoded(file._attributes),
                lambda group: {
                    name: (one.dimensions, one.data, decoded(one._attributes))
                    for name, one in file.variables.items()
                },
            )
        return
    with importlib.import_module("h5netcdf").File(path, "r") as file:
        yield _NetcdfSource(
            dict(file.attrs),
            lambda group: {
                name: (one.dimensions, one, dict(one.attrs))
                for name, one in (file[group] if group else file).variables.items()
            },
        )


def _copy_auxiliaries(
    group: Any,
    source: Mapping[str, tuple[tuple[str, ...], Any, dict[str, Any]]],
    one: Written,
) -> None:
    """Copies what attributes name (CF conventions, sections 5.2 and 5.6) where it still fits."""
    named = f"{one.attributes.get('coordinates', '')} {one.attributes.get('grid_mapping', '')}"
    sizes = {axis.name: axis.size for axis in one.axes if axis.is_same}
    for name in named.replace(":", " ").split():
        if name not in source or name in group.variables:
            continue
        dims, values, attributes = source[name]
        is_number = getattr(values.dtype, "kind", "O") in "biuf"
        fits = all(sizes.get(dim) == n for dim, n in zip(dims, values.shape, strict=True))
        if is_number and fits:
            fill = attributes.pop("_FillValue", None)
            made = group.create_variable(name, dims, data=values[...], fillvalue=fill)
            made.attrs.update(attributes)


def _write_hdf5(path: Path, variables: Sequence[Written], like: Path) -> None:
    h5py = importlib.import_module("h5py")
    with h5py.File(path, "w") as file, h5py.File(like, "r") as source:
        _copy_attributes(file, source)
        is_well = "n_spatial_dims" in source.attrs
        if is_well:
            _copy_attributes(file.require_group("dimensions"), source["dimensions"])
        for one in variables:
            made = file.create_dataset(one.name, data=one.values)
            group, _, _ = one.name.rpartition("/")
            if is_well and group:
                _copy_attributes(file[group], source[group])
            made.attrs.update(one.attributes)
            if not is_well:
                # all at once: HDF5 2.0 frees memory that is not its own if axes lack a label
                names = [axis.name for axis in one.axes]
                made.attrs["DIMENSION_LABELS"] = np.array(names, h5py.string_dtype())
            for place, axis in enumerate(one.axes):
                if axis.values is not None:
                    name = axis.path or axis.name
                    if name not in file:
                        file.create_dataset(name, data=axis.values).attrs.update(axis.attributes)
                    if not is_well:
                        if not file[name].is_scale:
                            file[name].make_scale(axis.name)
                        made.dims[place].attach_scale(file[name])


def _copy_attributes(to: Any, source: Any) -> None:
    for key, value in source.attrs.items():
        if key not in _PACKING:
            to.attrs[key] = value


def _write_zarr(path: Path, variables: Sequence[Written], like: Path, is_zip: bool) -> None:
    zarr = importlib.import_module("zarr")
    source = open_zarr(like, zarr)
    store = zarr.storage.ZipStore(path, mode="w") if is_zip else zarr.storage.LocalStore(path)
    try:
        if isinstance(source, zarr.Array):
            [one] = variables
            _zarr_array(zarr, store, None, one.values, one.axes, one.attributes)
            return
        group = zarr.create_group(store, attributes=dict(source.attrs))
        for one in variables:
            _zarr_array(zarr, store, one.name, one.values, one.axes, one.attributes)
            for axis in one.axes:
                name = axis.path or axis.name
                if axis.values is not None and name not in group:
                    alone = (axis._replace(values=None),)
                    _zarr_array(zarr, store, name, axis.values, alone, axis.attributes)
    finally:
        source.store.close()
        store.close()


def _zarr_array(
    zarr: Any,
    store: Any,
    name: str | None,
    values: np.ndarray,
    axes: Sequence[Axis],
    attributes: Mapping[str, Any],
) -> None:
    made = zarr.create_array(
        store,
        name=name,
        shape=values.shape,
        dtype=values.dtype,
        fill_value=np.nan if values.dtype.kind == "f" else 0,
        dimension_names=[axis.name or None for axis in axes],
        attributes=dict(attributes),
        config={"write_empty_chunks": True},
    )
    made[...] = values


def _write_nifti(
    values: np.ndarray,
    path: Path,
    unfinished: Path,
    like: Path,
    grid: Grid,
    places: Mapping[str, np.ndarray],
    frame_skip: float,
) -> None:
    """Writes a volume, with the affine of voxels where they are after scaling and cropping."""
    nibabel = importlib.import_module("nibabel")
    stored = nibabel.load(like)
    source = nibabel.as_closest_canonical(stored)
    [(_, letters)] = grid.parts
    affine = source.affine.astype(np.float64)
    for axis, letter in enumerate(letters[:3]):
        if letter in places:
            along = places[letter]
            step = along[1] - along[0] if len(along) > 1 else grid.sizes[letter] / len(along)
            affine[:3, 3] += affine[:3, axis] * along[0]
            affine[:3, axis] *= step
    kept = [letter for letter in letters if letter]
    own = values.squeeze(tuple("cfhw".index(letter) for letter in "cfhw" if letter not in kept))
    order = [letter for letter in "cfhw" if letter in kept]
    own = own.transpose([order.index(letter) for letter in kept])
    shape = iter(own.shape)
    own = own.reshape([next(shape) if letter else 1 for letter in letters])
    image = nibabel.Nifti1Image(np.asarray(own, np.float32), affine)
    image.header.set_xyzt_units(*source.header.get_xyzt_units())
    zooms, known = list(image.header.get_zooms()), source.header.get_zooms()
    for axis, letter in enumerate(letters[3:], 3):
        zooms[axis] = known[axis] * (frame_skip if letter == "f" else 1)
    image.header.set_zooms(zooms)
    for name in ("sform", "qform"):
        code = int(stored.header[f"{name}_code"])
        getattr(image, f"set_{name}")(affine, code=code)
    # by the ending, which that of the unfinished file is not
    ending = ".nii.gz" if path.name.lower().endswith(".gz") else ".nii"
    whole = unfinished.with_name(f"{unfinished.name}{ending}")
    try:
        nibabel.save(image, whole)
        os.replace(whole, unfinished)
    finally:
        whole.unlink(missing_ok=True)


_WRITERS: dict[str, Callable[[Path, Sequence[Written], Path], None]] = {
    "netcdf": _write_netcdf,
    "hdf5": _write_hdf5,
}
