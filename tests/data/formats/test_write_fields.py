"""Fields written back: files of the kind, names, units and coordinates of another one."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import write_video
from video_diffusion_pytorch.data.dataset import Dataset

h5netcdf = pytest.importorskip("h5netcdf")
netCDF4 = pytest.importorskip("h5netcdf.legacyapi")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
nibabel = pytest.importorskip("nibabel")
xarray = pytest.importorskip("xarray")

HOURS = "hours since 2020-01-01"


@pytest.fixture
def weather(tmp_path):
    """A NetCDF file of packed temperatures and of winds, with a level of one entry."""
    path = tmp_path / "weather.nc"
    rng = np.random.default_rng(0)
    with netCDF4.Dataset(path, "w") as file:
        file.title = "weather"
        sizes = {"time": 6, "level": 1, "lat": 4, "lon": 8}
        along = {"time": 6 * np.arange(6), "level": [850], "lat": [60, 20, -20, -60]}
        along["lon"] = 45 * np.arange(8)
        units = {"time": HOURS, "level": "hPa", "lat": "degrees_north", "lon": "degrees_east"}
        for name, size in sizes.items():
            file.createDimension(name, size)
            made = file.createVariable(name, "f8", (name,))
            made[:], made.units = along[name], units[name]
        made = file.createVariable("t", "i2", tuple(sizes), fill_value=-999)
        made.scale_factor, made.add_offset, made.units = 0.01, 280.0, "K"
        made.coordinates = "area"
        made[:] = 280 + rng.uniform(-20, 20, tuple(sizes.values()))
        made = file.createVariable("u", "f4", tuple(sizes))
        made[:], made.long_name = rng.standard_normal(tuple(sizes.values())), "wind"
        made = file.createVariable("area", "f8", ("lat", "lon"))
        made[:], made.units = rng.uniform(1, 2, (4, 8)), "m2"
    return path


def test_netcdf_keeps_names_units_and_coordinates(weather, tmp_path):
    video = torch.randn(2, 5, 4, 8)
    video[0, 1, 2, 3] = torch.nan
    target = tmp_path / "forecast.nc"
    write_video(video, target, like=weather, variables=["t", "u"], first_frame=6)
    with xarray.open_dataset(target) as found, xarray.open_dataset(weather) as source:
        assert found.t.dims == ("time", "level", "lat", "lon")
        np.testing.assert_array_equal(found.t[:, 0], video[0])
        np.testing.assert_array_equal(found.u[:, 0], video[1])
        assert (found.t.units, found.u.long_name, found.title) == ("K", "wind", "weather")
        for name in ("level", "lat", "lon"):
            np.testing.assert_array_equal(found[name], source[name])
            assert found[name].attrs == source[name].attrs
        # six hours apart, after the last one
        start = source.time.values[-1]
        np.testing.assert_array_equal(found.time, start + np.timedelta64(6, "h") * np.arange(1, 6))
        np.testing.assert_array_equal(found.area, source.area)
    # and reads as what was written
    options = {"exts": "nc", "missing": "mask", "variables": ["t", "u"]}
    folder = tmp_path / "back"
    folder.mkdir()
    target.rename(folder / "a.nc")
    [clip] = Dataset(folder, (4, 8), 2, 5, **options)
    torch.testing.assert_close(clip, video, equal_nan=True)


def test_coordinates_of_scaled_and_cropped_frames(weather, tmp_path):
    """Half the height of a square part in the middle: columns 2 to 5 of 8, two by two."""
    target = tmp_path / "small.nc"
    write_video(torch.randn(2, 3, 2, 2), target, like=weather, frame_skip=2, variables=["t", "u"])
    with xarray.open_dataset(target) as found:
        assert found.lat.values.tolist() == [40, -40]
        assert found.lon.values.tolist() == [2.5 * 45, 4.5 * 45]
        hours = (found.time - found.time[0]).values / np.timedelta64(1, "h")
        assert hours.tolist() == [0, 12, 24]
    write_video(torch.randn(2, 3, 2, 2), target, like=weather, fit="stretch", variables=["t", "u"])
    with xarray.open_dataset(target) as found:
        assert found.lon.values.tolist() == [1.5 * 45, 5.5 * 45]
        # of the whole grid only
        assert "area" not in found


def test_several_videos_have_a_dimension_of_their_own(weather, tmp_path):
    videos = torch.randn(3, 2, 5, 4, 8)
    folder = tmp_path / "back"
    folder.mkdir()
    write_video(videos, folder / "all.nc", like=weather, variables=["t", "u"])
    with xarray.open_dataset(folder / "all.nc") as found:
        assert found.u.dims == ("sample", "time", "level", "lat", "lon")
    clips = Dataset(folder, (4, 8), 2, 5, exts="nc", variables=["t", "u"])
    torch.testing.assert_close(torch.stack([*clips]), videos)


def test_hdf5_with_scales_and_components(tmp_path):
    with h5py.File(tmp_path / "flow.h5", "w") as file:
        file.attrs["reynolds"] = 100
        velocity = file.create_dataset("run/velocity", data=np.zeros((5, 6, 8, 2), "f4"))
        velocity.attrs["units"] = "m/s"
        file["run/x"] = np.linspace(0, 7, 8)
        file["run/x"].make_scale("x")
        velocity.dims[2].attach_scale(file["run/x"])
        labels = np.array(["time", "y", "x", "component"], h5py.string_dtype())
        velocity.attrs["DIMENSION_LABELS"] = labels
    video = torch.randn(2, 7, 6, 8)
    folder = tmp_path / "back"
    folder.mkdir()
    write_video(video, folder / "a.h5", like=tmp_path / "flow.h5")
    with h5py.File(folder / "a.h5") as file:
        assert file.attrs["reynolds"] == 100
        assert file["run/velocity"].attrs["units"] == "m/s"
        assert file["run/velocity"].dims[2][0][:].tolist() == [*range(8)]
    [clip] = Dataset(folder, (6, 8), 2, 7, exts="h5")
    torch.testing.assert_close(clip, video)


def well(path):
    """A file in the layout of The Well: two trajectories of a density and a velocity."""
    with h5py.File(path, "w") as file:
        file.attrs["n_spatial_dims"] = 2
        dimensions = file.create_group("dimensions")
        dimensions.attrs["spatial_dims"] = ["x", "y"]
        dimensions["time"], dimensions["x"] = np.arange(4.0), np.linspace(0, 1, 8)
        dimensions["y"] = np.linspace(0, 1, 6)
        for group, name, shape in (
            ("t0_fields", "density", (2, 4, 8, 6)),
            ("t1_fields", "velocity", (2, 4, 8, 6, 2)),
        ):
            made = file.require_group(group).create_dataset(name, data=np.zeros(shape, "f4"))
            made.attrs["sample_varying"] = made.attrs["time_varying"] = True
    return path


def test_the_layout_of_the_well(tmp_path):
    source = well(tmp_path / "source.hdf5")
    names = ["t0_fields/density", "t1_fields/velocity"]
    dims = {"x": "w", "y": "h"}
    videos = torch.randn(2, 3, 4, 6, 8)
    folder = tmp_path / "back"
    folder.mkdir()
    options = {"variables": names, "dims": dims}
    write_video(videos, folder / "a.hdf5", like=source, **options)
    clips = Dataset(folder, (6, 8), 3, 4, exts="hdf5", **options)
    torch.testing.assert_close(torch.stack([*clips]), videos)
    with h5py.File(folder / "a.hdf5") as file:
        assert file["dimensions/x"].shape == (8,)


@pytest.mark.parametrize("ending", ["zarr", "zarr.zip"])
def test_zarr(tmp_path, ending):
    source = xarray.Dataset(
        {"t": (("time", "lat", "lon"), np.zeros((3, 4, 8), "f4"), {"units": "K"})},
        {"time": [0, 1, 2], "lat": [3.0, 1, -1, -3]},
    )
    source.to_zarr(tmp_path / "source.zarr", consolidated=False)
    folder = tmp_path / "back"
    folder.mkdir()
    target = folder / f"a.{ending}"
    for _ in range(2):  # the second replaces the first
        video = torch.randn(1, 6, 4, 8)
        write_video(video, target, like=tmp_path / "source.zarr", first_frame=3)
    [clip] = Dataset(folder, (4, 8), 1, 6, exts=ending)
    torch.testing.assert_close(clip, video)
    assert [path.name for path in folder.iterdir()] == [target.name]
    if ending == "zarr":
        with xarray.open_zarr(target, consolidated=False) as found:
            assert found.t.units == "K"
            assert found.time.values.tolist() == [3, 4, 5, 6, 7, 8]
            assert found.lat.values.tolist() == [3, 1, -1, -3]


def test_a_store_of_one_array(tmp_path):
    zarr.create_array(tmp_path / "source.zarr", data=np.zeros((3, 4, 8), "f4"))
    video = torch.randn(1, 6, 4, 8)
    folder = tmp_path / "back"
    folder.mkdir()
    write_video(video, folder / "a.zarr", like=tmp_path / "source.zarr", dims="fhw")
    [clip] = Dataset(folder, (4, 8), 1, 6, exts="zarr", dims="fhw")
    torch.testing.assert_close(clip, video)


@pytest.mark.parametrize("ending", ["nii", "nii.gz"])
def test_nifti_keeps_the_place_of_each_voxel(tmp_path, ending):
    """Values that are the place itself stay at that place, also when the size is half."""
    affine = np.array([[0, -2.0, 0, 50], [1.5, 0, 0, -30], [0, 0, 3.0, 10], [0, 0, 0, 1]])
    index = np.stack(np.meshgrid(*map(np.arange, (8, 12, 6)), indexing="ij"), axis=-1)
    places = index @ affine[:3, :3].T + affine[:3, 3]
    scans, back = tmp_path / "scans", tmp_path / "back"
    scans.mkdir()
    back.mkdir()
    source = scans / f"a.{ending}"
    nibabel.save(nibabel.Nifti1Image(places[..., 0].astype(np.float32), affine), source)
    for size in ((8, 12), (4, 6)):
        [clip] = Dataset(scans, size, 1, 6, exts=ending)
        write_video(clip, back / f"a.{ending}", like=source)
        image = nibabel.load(back / f"a.{ending}")
        assert nibabel.aff2axcodes(image.affine) == ("R", "A", "S")
        values = image.get_fdata()
        own = np.stack(np.meshgrid(*map(np.arange, values.shape), indexing="ij"), axis=-1)
        found = (own @ image.affine[:3, :3].T + image.affine[:3, 3])[..., 0]
        inside = (slice(1, -1), slice(1, -1))
        np.testing.assert_allclose(values[inside], found[inside], atol=1e-4)
    assert [path.name for path in back.iterdir()] == [source.name]


def test_mistakes(weather, tmp_path):
    video = torch.zeros(2, 5, 4, 8)
    for options, line in (
        ({"path": "a.nc"}, "like a file of its kind, got (2, 5, 4, 8) and like=None; pass like="),
        ({"path": "a.h5", "like": weather}, "like must be a file of the same kind as a.h5, got"),
        (
            {"path": "a.nc", "like": weather, "crf": 5},
            "crf must be 0 to 51 for .mp4, None for other files, got 5 for .nc; leave it out",
        ),
        (
            {"path": "a.npy", "like": weather},
            "like must go with a file of fields, such as .nc, got",
        ),
        (
            {"path": "a.nc", "like": weather, "variables": "t"},
            "like must have the 2 channels of the video, got 1, t, in",
        ),
    ):
        path = tmp_path / options.pop("path")
        with pytest.raises(ValueError, match=re.escape(line)):
            write_video(video, path, **options)
        assert not path.exists()
    with pytest.raises(FileNotFoundError, match="expected a folder at"):
        write_video(video, tmp_path / "none" / "a.nc", like=weather, variables=["t", "u"])
    source = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 4, 5), np.float32), np.eye(4)), source)
    with pytest.raises(ValueError, match="a NIfTI file must have one video, got 3; write one"):
        write_video(torch.zeros(3, 1, 5, 4, 8), tmp_path / "b.nii", like=source)
    assert {one.name for one in Path(tmp_path).iterdir()} == {"weather.nc", "a.nii"}


# Places


@pytest.mark.parametrize("fit", ["cover", "contain", "stretch"])
@pytest.mark.parametrize(
    ("stored", "size"), [((73, 144), (72, 144)), ((73, 144), (36, 72)), ((73, 144), (16, 16)),
                         ((181, 361), (180, 360)), ((20, 30), (16, 16))],
)  # fmt: skip
def test_coordinates_are_those_of_the_pixels(fit, stored, size, tmp_path):
    """Fields whose values are their own coordinates, read at another size and written back."""
    y, x = np.linspace(90, -90, stored[0]), np.linspace(0, 357, stored[1])
    folder = tmp_path / "source"
    folder.mkdir()
    grids = np.broadcast_arrays(y[:, None], x[None])
    data = xarray.Dataset(
        {
            name: (("time", "lat", "lon"), grid[None])
            for name, grid in zip("ab", grids, strict=True)
        },
        {"lat": y, "lon": x, "time": [0]},
    )
    data.to_netcdf(folder / "a.nc", engine="h5netcdf")
    [clip] = Dataset(folder, size, 2, 1, exts="nc", fit=fit)
    write_video(clip, tmp_path / "b.nc", like=folder / "a.nc", fit=fit)
    with xarray.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as found:
        inside = slice(2, -2)
        if fit == "contain":
            # without the borders
            rows = np.flatnonzero(np.ptp(clip[1, 0].numpy(), axis=1))
            columns = np.flatnonzero(np.ptp(clip[0, 0].numpy(), axis=0))
            rows, columns = rows[2:-2], columns[2:-2]
        else:
            rows, columns = np.arange(size[0])[inside], np.arange(size[1])[inside]
        values = clip[:, 0].numpy()[:, rows][:, :, columns]
        # the weights of antialiasing are not quite symmetric
        cells = 180 / (stored[0] - 1), 357 / (stored[1] - 1)
        np.testing.assert_allclose(values[0, :, 0], found.lat[rows], atol=0.06 * cells[0])
        np.testing.assert_allclose(values[1, 0], found.lon[columns], atol=0.06 * cells[1])


def test_packed_coordinates_are_written_in_their_units(tmp_path):
    data = xarray.Dataset(
        {"u": (("time", "lat", "lon"), np.zeros((2, 4, 8), "f4"))},
        {"lat": [10.0, 20, 30, 40], "lon": np.arange(8.0), "time": [0, 1]},
    )
    encoding = {"lat": {"dtype": "i2", "scale_factor": 0.1}}
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)
    write_video(torch.zeros(1, 2, 4, 8), tmp_path / "b.nc", like=tmp_path / "a.nc")
    with xarray.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as found:
        np.testing.assert_allclose(found.lat, data.lat)


def test_variables_of_groups(tmp_path):
    with h5netcdf.File(tmp_path / "a.nc", "w") as file:
        file.dimensions = {"time": 2, "y": 4, "x": 8}
        for name in ("a", "b"):
            group = file.create_group(name).create_group("deep")
            group.create_variable("u", ("time", "y", "x"), data=np.zeros((2, 4, 8), "f4"))
    names = ["a/deep/u", "b/deep/u"]
    folder = tmp_path / "back"
    folder.mkdir()
    video = torch.randn(2, 3, 4, 8)
    write_video(video, folder / "a.nc", like=tmp_path / "a.nc", variables=names)
    [clip] = Dataset(folder, (4, 8), 2, 3, exts="nc", variables=names)
    torch.testing.assert_close(clip, video)


def test_what_goes_along_time_is_not_that_of_other_times(tmp_path):
    data = xarray.Dataset(
        {"u": (("time", "y", "x"), np.zeros((2, 4, 8), "f4"))},
        {"time": [0, 1], "month": ("time", [1, 2]), "area": (("y", "x"), np.ones((4, 8)))},
    )
    data.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    options = {"like": tmp_path / "a.nc", "first_frame": 2}
    write_video(torch.zeros(1, 2, 4, 8), tmp_path / "b.nc", **options)
    with xarray.open_dataset(tmp_path / "b.nc", engine="h5netcdf") as found:
        assert found.time.values.tolist() == [2, 3]
        assert "month" not in found.variables
        assert "area" in found.variables


def test_nifti_keeps_the_time_step_and_codes(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((8, 4, 1, 5), np.float32), np.diag([2.0, 2, 3, 1]))
    image.header.set_zooms((2, 2, 3, 2.5))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    nibabel.save(image, tmp_path / "a.nii")
    options = {"like": tmp_path / "a.nii", "dims": {"z": "c", "t": "f"}, "frame_skip": 2}
    write_video(torch.zeros(1, 3, 4, 8), tmp_path / "b.nii", **options)
    found = nibabel.load(tmp_path / "b.nii")
    assert found.header.get_zooms() == (2, 2, 3, 5)
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (1, 1)


@pytest.mark.parametrize("ending", ["zarr", "zarr.zip", "nii", "nc", "h5"])
def test_an_error_leaves_what_was_there(ending, tmp_path, monkeypatch):
    source = tmp_path / f"a.{ending.removesuffix('.zip')}"
    if ending == "nii":
        nibabel.save(nibabel.Nifti1Image(np.zeros((8, 4, 5), np.float32), np.eye(4)), source)
    elif ending == "h5":
        with h5py.File(source, "w") as file:
            file["u"] = np.zeros((5, 4, 8), np.float32)
    else:
        data = xarray.Dataset({"u": (("time", "y", "x"), np.ones((5, 4, 8), "f4"))})
        if ending == "nc":
            data.to_netcdf(source, engine="h5netcdf")
        else:
            data.to_zarr(source, consolidated=False)
    dims = {"dims": "fhw"} if ending == "h5" else {}
    target = tmp_path / f"b.{ending}"
    write_video(torch.ones(1, 5, 4, 8), target, like=source, **dims)
    names = {path.name for path in tmp_path.iterdir()}

    def fail(*args, **options):
        raise OSError("the disk is full")

    monkeypatch.setattr(h5py.File, "create_dataset", fail)
    monkeypatch.setattr(h5py.Group, "create_dataset", fail)
    monkeypatch.setattr(zarr, "create_array", fail)
    monkeypatch.setattr(nibabel, "save", fail)
    monkeypatch.setattr("h5netcdf.Group.create_variable", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_video(torch.zeros(1, 5, 4, 8), target, like=source, **dims)
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_folder_that_is_no_store_is_not_replaced(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.ones((3, 4, 8), "f4"))
    (tmp_path / "b.zarr").mkdir()
    (tmp_path / "b.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"expected a Zarr store at .*b.zarr to be repl"):
        write_video(
            torch.ones(1, 3, 4, 8), tmp_path / "b.zarr", like=tmp_path / "a.zarr", dims="fhw"
        )
    assert (tmp_path / "b.zarr" / "notes.txt").exists()
