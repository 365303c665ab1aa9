"""Fields and volumes: values, axes, windows and errors, against the libraries' own reading."""

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats import field_files
from video_diffusion_pytorch.data.formats.field_files import role_of, unpacked
from video_diffusion_pytorch.data.video_file import open_video

netCDF4 = pytest.importorskip("h5netcdf.legacyapi")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
nibabel = pytest.importorskip("nibabel")

# frames, height, width
F, H, W = 6, 8, 10


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_netcdf(path, variables, dims=("time", "lat", "lon"), **options):
    """Variables `{name: values}` with dimensions of these names, without coordinates."""
    with netCDF4.Dataset(path, "w", **options) as file:
        for name, size in zip(dims, next(iter(variables.values())).shape, strict=True):
            file.createDimension(name, size)
        for name, array in variables.items():
            file.createVariable(name, array.dtype, dims)[:] = array
    return path


def write_hdf5(path, variables, dims=()):
    with h5py.File(path, "w") as file:
        for name, array in variables.items():
            found = file.create_dataset(name, data=array)
            if dims:
                found.attrs["DIMENSION_LABELS"] = np.array(dims, h5py.string_dtype())
    return path


def write_zarr(path, variables, dims=None, **options):
    group = zarr.open_group(path, mode="w")
    for name, array in variables.items():
        made = group.create_array(
            name, shape=array.shape, dtype=array.dtype, dimension_names=dims, **options
        )
        made[:] = array
    return path


def read(path, frames=None, channels=None, **options):
    """The frames of a file, `(c, f, h, w)`."""
    with open_video(path, channels=channels, **options) as file:
        return file.array(range(file.num_frames) if frames is None else frames)


WRITERS = {
    "nc": write_netcdf,
    "h5": write_hdf5,
    "zarr": write_zarr,
}
DIMS = {"dims": ("time", "lat", "lon")}


# Values and axes


@pytest.mark.parametrize("ending", WRITERS)
def test_variables_become_channels_in_the_order_that_is_asked_for(ending, tmp_path):
    u, v = values(F, H, W), values(F, H, W, seed=1)
    path = WRITERS[ending](tmp_path / f"flow.{ending}", {"u": u, "v": v}, **DIMS)
    found = read(path, variables=("v", "u"))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, np.stack((v, u)))
    np.testing.assert_array_equal(read(path, [1, 2, 5], channels=2), np.stack((u, v))[:, [1, 2, 5]])
    np.testing.assert_array_equal(read(path, [4, 90], channels=1, variables=["u"]), u[None, 4:5])


@pytest.mark.parametrize("ending", WRITERS)
def test_axes_in_any_order_are_found_by_their_names(ending, tmp_path):
    stored = values(W, 2, F, H)
    path = WRITERS[ending](
        tmp_path / f"a.{ending}", {"flow": stored}, dims=("x", "component", "time", "y")
    )
    np.testing.assert_array_equal(read(path), stored.transpose(1, 2, 3, 0))


@pytest.mark.parametrize("ending", WRITERS)
def test_axes_without_known_names_are_asked_for(ending, tmp_path):
    stored = values(F, 3, H, W)
    options = {"dims": ("step_number", "band_number", "row", "column")} if ending == "nc" else {}
    path = WRITERS[ending](tmp_path / f"a.{ending}", {"flow": stored}, **options)
    with pytest.raises(UnreadableVideoError, match=r"axes whose meaning is known, got flow with"):
        read(path)
    wanted = stored.transpose(1, 0, 2, 3)
    np.testing.assert_array_equal(read(path, dims="fchw"), wanted)
    if ending == "nc":
        dims = {"step_number": "f", "band_number": "c", "row": "h", "column": "w"}
        np.testing.assert_array_equal(read(path, dims=dims), wanted)


@pytest.mark.parametrize(
    ("name", "attributes", "role"),
    [
        ("time", {}, "f"),
        ("foo", {"axis": "Y"}, "h"),
        ("foo", {"standard_name": "longitude"}, "w"),
        ("ncells", {"units": "degrees_north"}, "h"),
        ("foo", {"units": "hours since 1900-01-01"}, "f"),
        # attributes before names
        ("y", {"axis": "X"}, "w"),
        ("lev", {}, "z"),
        ("number", {}, "n"),
        ("foo", {}, None),
    ],
)
def test_what_a_dimension_is(name, attributes, role):
    assert role_of(name, attributes) == role


def test_the_attributes_of_coordinates_count(tmp_path):
    stored = values(H, W, F)
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size, attributes in (
            ("a", H, {"axis": "Y"}),
            ("b", W, {"units": "degrees_east"}),
            ("c", F, {"units": "days since 2000-01-01"}),
        ):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,)).attrs.update(attributes)
        group = file.createGroup("model")
        group.createVariable("rain", "f4", ("a", "b", "c"))[:] = stored
    np.testing.assert_array_equal(
        read(tmp_path / "a.nc", variables=["model/rain"]), stored.transpose(2, 0, 1)[None]
    )


def test_a_level_is_asked_for_and_one_of_one_entry_left_out(tmp_path):
    dims = ("time", "lev", "lat", "lon")
    path = write_netcdf(tmp_path / "a.nc", {"t": values(F, 3, H, W)}, dims)
    message = r"got t with the axes time: 6, lev: 3, lat: 8, lon: 10; say by dims=\{'lev': \.\.\.\}"
    with pytest.raises(UnreadableVideoError, match=message):
        read(path)
    assert read(path, dims={"lev": "c"}).shape == (3, F, H, W)
    one = write_netcdf(tmp_path / "one.nc", {"t": values(F, 1, H, W)}, dims)
    assert read(one).shape == (1, F, H, W)


def test_the_depth_of_a_volume_is_its_frames(tmp_path):
    stored = values(5, H, W)
    path = write_netcdf(tmp_path / "a.nc", {"t": stored}, ("depth", "y", "x"))
    np.testing.assert_array_equal(read(path)[0], stored)


def test_a_static_field_is_the_same_in_all_frames(tmp_path):
    moving, fixed = values(F, H, W), values(H, W)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, array, dims in (("u", moving, "tyx"), ("land", fixed, "yx")):
            file[name] = array
            file[name].attrs["DIMENSION_LABELS"] = np.array([*dims], h5py.string_dtype())
    found = read(tmp_path / "a.h5", [1, 3], variables=("u", "land"))
    np.testing.assert_array_equal(found[0], moving[[1, 3]])
    np.testing.assert_array_equal(found[1], np.stack((fixed, fixed)))


# Packed and missing values


# in a process of its own, as the HDF5 libraries of netCDF4 and h5py do not go together
NETCDF4 = """
import sys
import netCDF4, numpy as np
(path, kind, form), (f, h, w) = sys.argv[1:4], map(int, sys.argv[4:])
dims = {"time": None, "lat": h, "lon": w}
with netCDF4.Dataset(path, "w", format=form) as file:
    for name, size in dims.items():
        file.createDimension(name, size)
    file.createVariable("lat", "f8", ("lat",)).units = "degrees_north"
    file["lat"][:] = np.arange(h)
    endian = "big" if kind.startswith(">") else "native"
    made = file.createVariable("t2m", kind, tuple(dims), fill_value=99, endian=endian)
    made.setncatts({"scale_factor": 0.25, "add_offset": 273.0})
    if kind == "i1":
        made._Unsigned = "true"
    made.missing_value = np.array(98, kind)
    made.set_auto_maskandscale(False)
    made[:] = np.random.default_rng(0).integers(-20 if "i" in kind else 0, 98, (f, h, w))
    made[0, 0, 0], made[1, 1, 1] = 99, 98
    # without a value of its own for what is missing
    file.createVariable("rain", "f4", tuple(dims))[1:] = np.ones((f - 1, h, w))
with netCDF4.Dataset(path) as file:
    np.save(path + ".npy", file["t2m"][:].filled(np.nan))
"""


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, "NETCDF4") for kind in ("i2", ">i2", "u1", "i1", "f8")),
        *((kind, "NETCDF3_CLASSIC") for kind in ("i2", "f8")),
        ("i2", "NETCDF3_64BIT_OFFSET"),
    ],
)
def test_packed_values_are_those_of_netcdf4(kind, form, tmp_path):
    pytest.importorskip("netCDF4")
    path = tmp_path / "a.nc"
    command = [sys.executable, "-W", "ignore", "-c", NETCDF4, path, kind, form, F, H, W]
    subprocess.run([*map(str, command)], check=True)
    wanted = np.load(f"{path}.npy")
    assert np.isnan(wanted).sum() == 2
    found = read(path, variables="t2m")[0]
    np.testing.assert_array_equal(found, wanted.astype(np.float32))
    np.testing.assert_array_equal(read(path, [0, 2], variables="t2m")[0], found[[0, 2]])
    rain = read(path, variables="rain")[0]
    assert rain[0].isnan().all()
    assert (rain[1:] == 1).all()


def test_a_classic_file_of_64_bit_data_says_how_to_convert_it(tmp_path):
    (tmp_path / "a.nc").write_bytes(b"CDF\x05" + bytes(100))
    with pytest.raises(UnreadableVideoError, match=r"64-bit data .*convert it by nccopy"):
        read(tmp_path / "a.nc")


@pytest.mark.parametrize("ending", ["h5", "zarr"])
def test_other_files_are_packed_likewise(ending, tmp_path):
    xarray = pytest.importorskip("xarray")
    raw = np.random.default_rng(0).integers(-100, 100, (F, H, W)).astype(np.int16)
    raw[0, 0, :2] = -7
    path = WRITERS[ending](tmp_path / f"a.{ending}", {"t2m": raw}, **DIMS)
    attributes = {"scale_factor": 0.5, "add_offset": -3.0, "_FillValue": -7}
    opened = h5py.File(path, "r+") if ending == "h5" else zarr.open_group(path, mode="r+")
    opened["t2m"].attrs.update(attributes)
    if ending == "h5":
        opened.close()
    variable = xarray.Variable(("time", "lat", "lon"), raw, attributes)
    wanted = xarray.conventions.decode_cf_variable("t2m", variable)
    assert np.isnan(wanted.values).any()
    np.testing.assert_allclose(read(path)[0], wanted.values, rtol=1e-6)


def test_values_without_a_scale_keep_their_type():
    raw = np.arange(4, dtype=np.uint8)
    assert unpacked(raw, {"units": "K"}) is raw
    assert unpacked(raw, {"_FillValue": 9}) is raw
    np.testing.assert_array_equal(
        unpacked(raw, {"missing_value": [1, 3]}), [0, math.nan, 2, math.nan]
    )


# Simulations


@pytest.mark.parametrize("ending", WRITERS)
def test_each_simulation_is_a_clip_of_its_own(ending, tmp_path):
    stored = values(3, F, H, W)
    (tmp_path / "data").mkdir()
    dims = ("sample", "time", "y", "x")
    WRITERS[ending](tmp_path / "data" / f"a.{ending}", {"w": stored}, dims=dims)
    WRITERS[ending](tmp_path / "data" / f"b.{ending}", {"w": stored[0]}, dims=dims[1:])
    clips = Dataset(tmp_path / "data", (H, W), 1, 4, exts=None, clip_start="all")
    # windows of 4 of 6 frames: one of each, and none from one simulation to the next
    assert len(clips) == 4
    for item in range(3):
        np.testing.assert_array_equal(clips[item][0], stored[item, :4])
    np.testing.assert_array_equal(clips[3], clips[0])
    with pytest.raises(UnreadableVideoError, match="one simulation, got 3 along sample; open it"):
        read(tmp_path / "data" / f"a.{ending}")
    found = read(tmp_path / "data" / f"a.{ending}", item=2)
    np.testing.assert_array_equal(found[0], stored[2])


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize(
    "options",
    [{"clip_start": "random"}, {"frame_skip": 2}, {"cache": "cache"}, {"clip_start": "all"}],
)
def test_windows_are_those_of_an_array(ending, options, tmp_path):
    """As of the same numbers in npy files, one for each simulation."""
    stored = values(2, 2, 12, H, W)
    fields_folder, arrays = tmp_path / "fields", tmp_path / "arrays"
    fields_folder.mkdir()
    arrays.mkdir()
    dims = ("sample", "component", "time", "y", "x")
    WRITERS[ending](fields_folder / f"a.{ending}", {"flow": stored}, dims=dims)
    for i, array in enumerate(stored):
        np.save(arrays / f"{i}.npy", array)
    sides = []
    for folder in (fields_folder, arrays):
        own = (
            {**options, "cache": tmp_path / folder.name / "cache"}
            if "cache" in options
            else options
        )
        sides.append(Dataset(folder, (H, W), 2, 4, exts=None, **own))
    ours, theirs = sides
    assert len(ours) == len(theirs) == (6 if options.get("clip_start") == "all" else 2)
    for i in range(len(ours)):
        torch.manual_seed(i)
        ours_clip = ours[i]
        torch.manual_seed(i)
        torch.testing.assert_close(ours_clip, theirs[i], rtol=0, atol=0)


@pytest.mark.parametrize("order", ["nfchw", "fhwcn", "cnfhw"])
@pytest.mark.parametrize("ending", ["npy", "npz", "pt"])
@pytest.mark.parametrize("name", ["dims", "axes"])
def test_arrays_of_several_simulations(order, ending, name, tmp_path):
    stored = values(3, 7, 2, H, W)
    array = stored.transpose(["nfchw".index(letter) for letter in order])
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / f"a.{ending}"
    if ending == "pt":
        torch.save(torch.from_numpy(array.copy()), path)
    else:
        (np.save if ending == "npy" else np.savez)(path, array)
    clips = Dataset(tmp_path / "data", (H, W), 2, 3, exts=None, clip_start="all", **{name: order})
    assert len(clips) == 6
    for i in range(6):
        wanted = stored[i // 2, 3 * (i % 2) : 3 * (i % 2) + 3].transpose(1, 0, 2, 3)
        np.testing.assert_array_equal(clips[i], wanted)
    with pytest.raises(UnreadableVideoError, match="expected one simulation, got 3 of them; open"):
        read(path, **{name: order})


# Only what is needed is read


def test_only_the_window_is_read_of_hdf5(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("u", data=values(64, 32, 32), chunks=(1, 32, 32))
    size = path.stat().st_size
    read_bytes = 0
    import builtins

    with builtins.open(path, "rb") as raw:

        class Counting:
            """A file that counts what is read of it."""

            def read(self, count=-1):
                nonlocal read_bytes
                found = raw.read(count)
                read_bytes += len(found)
                return found

            def readinto(self, buffer):
                nonlocal read_bytes
                count = raw.readinto(buffer)
                read_bytes += count
                return count

            def __getattr__(self, name):
                return getattr(raw, name)

        with h5py.File(Counting(), "r") as file:
            found = field_files._reader(file["u"].__getitem__, {})(
                (slice(10, 14), slice(None), slice(None))
            )
    assert found.shape == (4, 32, 32)
    assert read_bytes < 4 * 4096 + 0.2 * size


def test_only_the_chunks_of_the_window_are_read_of_zarr(tmp_path, monkeypatch):
    stored = values(20, H, W)
    path = write_zarr(tmp_path / "a.zarr", {"u": stored}, dims=("t", "y", "x"), chunks=(2, H, W))
    seen = []
    get = zarr.storage.LocalStore.get

    async def watched(self, key, *args, **options):
        seen.append(key)
        return await get(self, key, *args, **options)

    monkeypatch.setattr(zarr.storage.LocalStore, "get", watched)
    with open_video(path) as file:
        seen.clear()
        found = file.array([5, 6, 7])
    np.testing.assert_array_equal(found[0], stored[5:8])
    assert len(seen) == 2


def test_only_the_slices_of_the_window_are_read_of_netcdf(tmp_path, monkeypatch):
    stored = values(50, H, W)
    path = write_netcdf(tmp_path / "a.nc", {"u": stored}, ("time", "y", "x"))
    asked, unpack = [], field_files.unpacked

    def watched(values, attributes):
        asked.append(np.shape(values))
        return unpack(values, attributes)

    monkeypatch.setattr(field_files, "unpacked", watched)
    with open_video(path) as file:
        np.testing.assert_array_equal(file.array([7, 9, 11])[0], stored[7:12:2])
    assert asked == [(3, H, W)]


# NIfTI


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1), (1, -1, 1)])
def test_volumes_are_turned_to_one_orientation(ending, order, signs, tmp_path):
    """As by nibabel's closest canonical orientation: frames go up, rows forward, columns right."""
    stored = np.random.default_rng(0).integers(-100, 100, (4, 5, 6)).astype(np.int16)
    affine = np.zeros((4, 4))
    for axis, (to, sign) in enumerate(zip(order, signs, strict=True)):
        affine[to, axis] = 2.0 * sign
    affine[3, 3] = 1
    image = nibabel.Nifti1Image(stored, affine)
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / f"a.{ending}")
    loaded = nibabel.load(tmp_path / f"a.{ending}")
    wanted = nibabel.as_closest_canonical(loaded).get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(read(tmp_path / f"a.{ending}")[0], wanted, rtol=1e-6)
    last = wanted.shape[0] - 1
    some = [0, 1, last]
    np.testing.assert_allclose(read(tmp_path / f"a.{ending}", some)[0], wanted[some], rtol=1e-6)


def test_a_volume_in_time_is_asked_for(tmp_path):
    stored = values(4, 5, 3, 6)
    nibabel.save(nibabel.Nifti1Image(stored, np.eye(4)), tmp_path / "bold.nii")
    with pytest.raises(UnreadableVideoError, match="x: 4, y: 5, z: 3, t: 6; say by dims"):
        read(tmp_path / "bold.nii")
    found = read(tmp_path / "bold.nii", dims={"z": "n"}, item=1)
    np.testing.assert_array_equal(found[0], stored[:, :, 1].transpose(2, 1, 0))
    found = read(tmp_path / "bold.nii", dims={"z": "c"})
    np.testing.assert_array_equal(found, stored.transpose(2, 3, 1, 0))


# The Well


def test_the_layout_of_the_well(tmp_path):
    density, velocity = values(2, F, W, H), values(2, F, W, H, 2)
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.attrs["n_spatial_dims"] = 2
        dims = file.create_group("dimensions")
        dims.attrs["spatial_dims"] = ["x", "y"]
        dims["time"] = np.arange(F, dtype=np.float32)
        for group, name, array in (
            ("t0_fields", "density", density),
            ("t1_fields", "velocity", velocity),
        ):
            made = file.create_group(group).create_dataset(name, data=array)
            made.attrs.update({"sample_varying": True, "time_varying": True})
        made = file["t0_fields"].create_dataset("mask", data=density[0, 0])
        made.attrs.update({"sample_varying": False, "time_varying": False})
        file.create_group("t2_fields")
    names = ("t0_fields/density", "t1_fields/velocity", "t0_fields/mask")
    found = read(tmp_path / "a.hdf5", variables=names, item=1)
    np.testing.assert_array_equal(found[0], density[1].transpose(0, 2, 1))
    np.testing.assert_array_equal(found[1:3], velocity[1].transpose(3, 0, 2, 1))
    np.testing.assert_array_equal(found[3, 2], density[0, 0].T)


# Errors


def test_a_library_that_is_missing_is_named(tmp_path, monkeypatch):
    path = write_hdf5(tmp_path / "a.h5", {"u": values(F, H, W)})

    def import_module(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(field_files.importlib, "import_module", import_module)
    message = (
        "to read a.h5 the package h5py must be installed, got No module named 'h5py'; pip install "
        '"video-diffusion-pytorch[fields]"'
    )
    with pytest.raises(ImportError, match=f"^{re.escape(message)}$"):
        read(path)
    with pytest.raises(ImportError, match="the package h5py must be installed"):
        Dataset(tmp_path, H, 1, 2, exts=None)


@pytest.mark.parametrize("ending", WRITERS)
def test_wrong_and_missing_variables(ending, tmp_path):
    path = WRITERS[ending](
        tmp_path / f"a.{ending}", {"u": values(F, H, W), "v": values(F, H, W)}, **DIMS
    )
    message = "expected the variable 'w', got u (6, 8, 10), v (6, 8, 10); correct variables"
    with pytest.raises(UnreadableVideoError, match=re.escape(message)):
        read(path, variables=["u", "w"])
    message = (
        "expected one variable, or as many as channels, got u (6, 8, 10), v (6, 8, 10); choose "
        "them, as variables=['u', 'v']"
    )
    with pytest.raises(UnreadableVideoError, match=re.escape(message)):
        read(path)
    with pytest.raises(UnreadableVideoError, match=re.escape("one variable, or 3 channels, got u")):
        read(path, channels=3)


def test_variables_of_other_grids(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", {"u": values(F, H, W), "v": values(F, H, W + 1)}, "tyx")
    message = (
        "expected variables on one grid, got width of 10 and 11 in u (6, 8, 10), v (6, 8, 11); "
        "choose variables of one grid, or resample them first"
    )
    with pytest.raises(UnreadableVideoError, match=re.escape(message)):
        read(path, variables=["u", "v"])


def test_axes_that_cannot_be(tmp_path):
    path = write_hdf5(tmp_path / "a.h5", {"u": values(F, H, W)})
    for dims, message in (
        ("fhwc", "axes 'fhwc', got u with the axes ?: 6, ?: 8, ?: 10; give a letter for each axis"),
        ("fhh", "one axis of height (h), got u with the axes ?: 6, ?: 8, ?: 10; say by dims what"),
        ("fch", "one axis of width (w), got u with"),
        ("khw", "axes whose meaning is known, got u with the axes ?: 6, ?: 8, ?: 10; say by dims="),
    ):
        with pytest.raises(UnreadableVideoError, match=re.escape(message)):
            read(path, dims=dims)


@pytest.mark.parametrize("ending", ["nc", "h5", "nii", "nii.gz", "zarr.zip"])
def test_damaged_files(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UnreadableVideoError, match=rf"cannot read .*a\.{ending}: expected a"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match="got an empty file"):
        read(path)


@pytest.mark.parametrize("ending", ["nc", "h5"])
def test_truncated_files(ending, tmp_path):
    path = WRITERS[ending](tmp_path / f"a.{ending}", {"u": values(40, 32, 32)}, **DIMS)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableVideoError, match=rf"a\.{ending}: expected"):
        read(path)


def test_missing_chunks_are_no_zeros(tmp_path):
    path = write_zarr(
        tmp_path / "a.zarr", {"u": 1 + values(F, H, W) ** 2}, dims=("t", "y", "x"), chunks=(1, H, W)
    )
    chunk = next(p for p in sorted(path.rglob("*")) if p.is_file() and p.suffix != ".json")
    chunk.unlink()
    message = "expected all chunks of an array, got 5 of its 6 chunks in /u; the others would be"
    with pytest.raises(UnreadableVideoError, match=re.escape(message)):
        read(path)
    nan = write_zarr(
        tmp_path / "nan.zarr", {"u": values(F, H, W)}, dims=("t", "y", "x"), chunks=(1, H, W),
        fill_value=math.nan,
    )  # fmt: skip
    chunk = next(p for p in sorted(Path(nan).rglob("*")) if p.is_file() and p.suffix != ".json")
    chunk.unlink()
    assert read(nan).isnan().any()


def test_a_zarr_store_in_a_zip_file(tmp_path):
    stored = values(F, H, W)
    with zarr.storage.ZipStore(tmp_path / "a.zarr.zip", mode="w") as store:
        group = zarr.open_group(store, mode="w")
        group.create_array("u", data=stored, dimension_names=("t", "y", "x"))
    np.testing.assert_array_equal(read(tmp_path / "a.zarr.zip")[0], stored)
    # and one that is a single array
    zarr.save_array(tmp_path / "b.zarr", stored)
    np.testing.assert_array_equal(read(tmp_path / "b.zarr", dims="fhw")[0], stored)


def test_files_in_a_folder_are_found(tmp_path):
    write_netcdf(tmp_path / "a.nc", {"u": values(F, H, W)})
    write_zarr(tmp_path / "b.zarr", {"u": values(F, H, W)}, **DIMS)
    (tmp_path / "c").mkdir()
    write_hdf5(tmp_path / "c" / "c.h5", {"u": values(F, H, W)}, **DIMS)
    nibabel.save(nibabel.Nifti1Image(values(W, H, F), np.eye(4)), tmp_path / "d.nii.gz")
    clips = Dataset(tmp_path, (H, W), 1, F, exts=None)
    assert [path.name for path in clips.paths] == ["a.nc", "b.zarr", "c.h5", "d.nii.gz"]
    assert all(clips[i].shape == (1, F, H, W) for i in range(4))
    only = Dataset(tmp_path, (H, W), 1, F, exts=["zarr", "nc"])
    assert [path.name for path in only.paths] == ["a.nc", "b.zarr"]


# Numbers of simulations


def test_parameters_of_simulations_are_conditions(tmp_path):
    stored = values(3, F, H, W)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["gravity"] = 9.81
        file["scalars/Re"] = np.array([100.0, 200.0, 400.0])
        file["scalars/Sc"] = 0.5
        file["u"] = stored
    options = {"exts": "h5", "dims": "nfhw", "variables": "u"}
    names = ["Re", "scalars/Sc", "gravity"]
    clips = Dataset(tmp_path, (H, W), 1, F, conditions={"cond": names}, **options)
    assert [clip["cond"].tolist()[:2] for clip in clips] == [[100, 0.5], [200, 0.5], [400, 0.5]]
    assert clips[1]["cond"][2] == pytest.approx(9.81)
    torch.testing.assert_close(clips[2]["video"][0], torch.from_numpy(stored[2]))
    assert clips.cond_ranges["Re"] == (100, 400)
    message = r"expected one number 'Ra' for each simulation, got gravity, scalars/Re, scalars/Sc"
    with pytest.raises(UnreadableVideoError, match=message):
        Dataset(tmp_path, (H, W), 1, F, conditions={"cond": ["Ra"]}, **options)
    np.save(tmp_path / "b.npy", stored[:1])
    with pytest.raises(ValueError, match=r"numbers in NetCDF, HDF5 or Zarr files, got Re for"):
        Dataset(tmp_path, (H, W), 1, F, conditions={"cond": ["Re"]}, exts="npy")


@pytest.mark.parametrize("ending", ["nc", "zarr", "classic"])
def test_parameters_of_other_files(ending, tmp_path):
    xarray = pytest.importorskip("xarray")
    data = xarray.Dataset(
        {"u": (("time", "y", "x"), values(F, H, W)), "nu": ((), 0.25), "bad": ((), math.nan)},
        attrs={"force": 3.0, "title": "flow"},
    )
    if ending == "zarr":
        data.to_zarr(tmp_path / "a.zarr", consolidated=False)
    elif ending == "nc":
        data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    else:
        data.to_netcdf(tmp_path / "a.nc", engine="scipy")
    [clip] = Dataset(tmp_path, (H, W), 1, F, exts=None, conditions={"cond": ["force", "nu"]})
    assert clip["cond"].tolist() == [3.0, 0.25]
    with pytest.raises(UnreadableVideoError, match=r"for each simulation, got NaN in bad"):
        Dataset(tmp_path, (H, W), 1, F, exts=None, conditions={"cond": ["bad"]})


# What readers of files by others must get right


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize(
    "encoding",
    [
        {"_FillValue": np.float32(-9999)},
        {"dtype": "i2", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -32767},
    ],
)
def test_missing_values_of_stores_that_xarray_writes(form, encoding, tmp_path):
    xarray = pytest.importorskip("xarray")
    stored = values(F, H, W)
    stored[1, 2, 3] = math.nan
    data = xarray.Dataset({"u": (("time", "y", "x"), stored)})
    options = {"zarr_format": form, "encoding": {"u": encoding}, "consolidated": False}
    data.to_zarr(tmp_path / "a.zarr", **options)
    with xarray.open_zarr(tmp_path / "a.zarr", consolidated=False) as found:
        wanted = found.u.values
    assert np.isnan(wanted).sum() == 1
    np.testing.assert_allclose(read(tmp_path / "a.zarr")[0], wanted, rtol=1e-6)


def test_fill_values_of_another_type(tmp_path):
    stored = values(F, H, W)
    stored[0, 0, 0], stored[0, 0, 1] = 1e20, 9.969209968386869e36
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in zip(("time", "y", "x"), (F, H, W), strict=True):
            file.createDimension(name, size)
        made = file.createVariable("u", "f4", ("time", "y", "x"))
        made.missing_value = 1e20  # a double
        made[:] = stored
    found = read(tmp_path / "a.nc")[0]
    assert found.isnan().sum() == 2
    assert found[0, 0, :2].isnan().all()


def test_files_of_different_variables_are_not_mixed(tmp_path):
    write_netcdf(tmp_path / "a.nc", {"t2m": values(F, H, W)})
    write_netcdf(tmp_path / "b.nc", {"msl": values(F, H, W)})
    clips = Dataset(tmp_path, (H, W), 1, F, exts="nc")
    assert clips[0].shape == (1, F, H, W)
    with pytest.raises(UnreadableVideoError, match=r"b.nc: expected the variable 't2m', got msl"):
        clips[1]


def test_coordinates_of_two_axes_and_bounds_are_no_fields(tmp_path):
    xarray = pytest.importorskip("xarray")
    grid, bounds = values(H, W), values(H, 2)
    data = xarray.Dataset(
        {"t": (("time", "y", "x"), values(F, H, W)), "y_bnds": (("y", "nv"), bounds)},
        {"lat": (("y", "x"), grid), "lon": (("y", "x"), grid), "y": ("y", np.arange(float(H)))},
    )
    data.y.attrs["bounds"] = "y_bnds"
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    np.testing.assert_array_equal(read(tmp_path / "a.nc")[0], data.t)


def test_parameters_are_in_physical_units_and_along_their_axis(tmp_path):
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in zip(("viscosity", "time", "y", "x"), (3, 3, H, W), strict=True):
            file.createDimension(name, size)
        file.createVariable("viscosity", "f8", ("viscosity",))[:] = [0.1, 0.2, 0.3]
        packed = file.createVariable("re", "i2", ("viscosity",), fill_value=-9999)
        packed.scale_factor = 10.0
        packed[:] = [1, 2, 3]
        lost = file.createVariable("lost", "i2", ("viscosity",), fill_value=-9999)
        lost[:] = [1, 2, -9999]
        file.createVariable("forcing", "f8", ("time",))[:] = [1, 2, 3]
        file.createVariable("u", "f4", ("viscosity", "time", "y", "x"))[:] = values(3, 3, H, W)
    options = {"exts": "nc", "variables": "u", "dims": {"viscosity": "n"}}

    def conditions(*names):
        clips = Dataset(tmp_path, (H, W), 1, 3, conditions={"cond": names}, **options)
        return torch.stack([clip["cond"] for clip in clips])

    found = conditions("viscosity", "re")
    torch.testing.assert_close(found, torch.tensor([[0.1, 10], [0.2, 20], [0.3, 30]]))
    with pytest.raises(UnreadableVideoError, match="got NaN in lost; correct conditions"):
        conditions("lost")
    with pytest.raises(UnreadableVideoError, match="got 3 numbers along time in forcing; correct"):
        conditions("forcing")


def test_a_number_that_no_simulation_has(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = values(3, F, H, W)
    for item in (3, -1):
        with pytest.raises(UnreadableVideoError, match=f"the number {item}, got 3 in the file; co"):
            read(tmp_path / "a.h5", dims="nfhw", item=item)


def test_different_grids_in_one_folder_are_told_apart(tmp_path, caplog):
    write_netcdf(tmp_path / "a.nc", {"t": values(F, 8, 10)})
    write_netcdf(tmp_path / "b.nc", {"t": values(F, 8, 10)})
    assert len(Dataset(tmp_path, 8, 1, F, exts="nc")) == 2
    assert not caplog.records
    write_netcdf(tmp_path / "c.nc", {"t": values(F, 16, 20)})
    assert len(Dataset(tmp_path, 8, 1, F, exts="nc")) == 3
    [record] = caplog.records
    found = record.getMessage()
    assert "files have 2 grids, such as 8 x 10 in" in found
    assert "a.nc and 16 x 20 in" in found
    assert "c.nc, which all become 8 x 8; resample them" in found
