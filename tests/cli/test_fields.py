"""Files of fields on the command line: train, sample, forecast, evaluate and plot."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.docs_code import small_options
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.dataset import Dataset

netCDF4 = pytest.importorskip("h5netcdf.legacyapi")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
nibabel = pytest.importorskip("nibabel")

H, W, FRAMES = 8, 16, 12


def field(number):
    """A wave that travels, in kelvin, `(f, h, w)`."""
    t, y, x = np.meshgrid(np.arange(FRAMES), np.arange(H), np.arange(W), indexing="ij")
    return (280 + 10 * np.sin(2 * math.pi * (x - t + number) / W) + y).astype(np.float32)


def netcdf(path, values):
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", None), ("lat", H), ("lon", W)):
            file.createDimension(name, size)
            made = file.createVariable(name, "f8", (name,))
            made[:] = np.arange(FRAMES if size is None else size)
        file["time"].units = "days since 2000-01-01"
        file.createVariable("t2m", "f4", ("time", "lat", "lon"))[:] = values
        file["t2m"].units = "K"


def hdf5(path, values):
    with h5py.File(path, "w") as file:
        file["t2m"] = values
        labels = np.array(["time", "y", "x"], h5py.string_dtype())
        file["t2m"].attrs["DIMENSION_LABELS"] = labels


def zarr_store(path, values):
    zarr.create_array(path, data=values, dimension_names=["time", "lat", "lon"])


def nifti(path, values):
    nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), np.diag([2.0, 2, 3, 1])), path)


WRITERS = {"nc": netcdf, "h5": hdf5, "zarr": zarr_store, "nii.gz": nifti}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command, and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        status = main(line.split())
        found = capsys.readouterr()
        assert status is None, found.err
        return found.out

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with clips and a trained model, for commands that write nothing."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(train("nc").split()) is None
    return folder


def train(ending, *options):
    """The command that trains a tiny model on files of a format."""
    Path("clips").mkdir()
    for number in range(4):
        WRITERS[ending](Path(f"clips/{number}.{ending}"), field(number))
    small = small_options(timesteps=3)
    words = ["train", "clips", "--channels", "1", "--value_range", "standardize"]
    # of which an untrained network gives samples near the mean
    words += ["--objective", "pred_x_start", *options, *small]
    for name, value in (("image_size", f"[{H},{W}]"), ("num_frames", "4")):
        at = words.index(f"--{name}") + 1 if f"--{name}" in words else None
        if at is None:
            words += [f"--{name}", value]
        else:
            words[at] = value
    return " ".join(words)


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_of_each_format_trains_samples_and_is_written_back(run, ending):
    run(train(ending, "--padding_mode", "[replicate,circular]"))
    run(f"sample results -n 1 -o back/ --format {ending} --like clips/0.{ending} --steps 2")
    options = {"exts": ending, "image_size": (H, W), "channels": 1, "num_frames": 4}
    [clip] = Dataset("back", **options)
    assert clip.shape == (1, 4, H, W)
    # near the files' own units, without knowing more than their mean
    assert 200 < clip.mean() < 360
    if ending == "nii.gz":
        run(f"forecast results --initial clips/0.{ending} --frames 5 --members 2 -o f.npy")
        assert np.load("f.npy").shape == (2, 1, 5, H, W)
        return
    found = run(f"forecast results --initial clips/0.{ending} --frames 5 --members 2 -o f.{ending}")
    assert f"wrote 2 members of 5 frames, {H} x {W} pixels, after frame {FRAMES} of" in found
    Path("out").mkdir()
    Path(f"f.{ending}").rename(f"out/f.{ending}")
    members = Dataset("out", **{**options, "num_frames": 5})
    assert len(members) == 2
    if ending == "nc":
        with netCDF4.Dataset("out/f.nc") as file:
            assert file["t2m"].dimensions == ("member", "time", "lat", "lon")
            assert file["t2m"].units == "K"
            assert file["time"][:].tolist() == [12, 13, 14, 15, 16]


def test_a_folder_of_files_is_forecast_and_verified(run):
    run(train("nc", "--given_frames", "2"))
    run("forecast results --initial clips --initial_frames 3 --frames 2 --members 2 -o out")
    assert sorted(path.name for path in Path("out").iterdir()) == [f"{n}.nc" for n in range(4)]
    run("forecast results --initial clips/0.nc --frames 2 --members 2 -o all.gif")
    # the same member, and not those of another file
    run("forecast results --initial clips/0.nc --initial_frames 3 --frames 2 --members 3 -o a.npy")
    with netCDF4.Dataset("out/0.nc") as file:
        np.testing.assert_allclose(file["t2m"][:], np.load("a.npy")[:2, 0], rtol=1e-4)
    found = run(
        "evaluate results --data clips --forecast --frames 6 --members 3 --clips 3 --steps 2 "
        "--training_data clips --one_step 2 --latitudes [-70,-50,-30,-10,10,30,50,70]"
    )
    rows = [line.split()[0] for line in found.splitlines()[:5]]
    assert rows == ["forecast", "model", "persistence", "climatology", "one-step"]
    assert "3 forecasts of 6 frames from 2, 3 members" in found
    result = json.loads(Path("results/forecast-model-1.json").read_text())
    assert result["protocol"]["clips"]["number"] == 3
    assert len(result["by_lead_time"]["model"]["crps"][0]) == 6
    assert "acc" in result["scores"]
    run("plot results/forecast-model-1.json")
    assert Path("results/forecast-model-1.png").stat().st_size > 10_000
    assert Path("results/forecast-model-1.gif").stat().st_size > 1000


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sample results -o a.nc", "--like must be a file whose names, units and coordinates a.nc"),
        ("sample results -o a.gif --like b.nc", "--like must go with a file of fields, got a.gif;"),
        ("forecast results --initial clips/0.nc -o a.h5", "a hdf5 file must continue one of its"),
        ("forecast results --initial clips/0.nc -o a.txt", "the output must end in .npy, .gif,"),
        ("forecast results --initial clips -o a.nc", "--output must be a folder for 4 files, got"),
        ("forecast results --initial clips/0.nc --members 0", "--members must be"),
        ("forecast results --initial clips/9.nc", "clips/9.nc"),
        ("evaluate results --data clips --frames 3", "--frames must go with --forecast, got none"),
        (
            "evaluate results --data clips --forecast --frames 30",
            "0.nc must have 31 frames for a clip, got 12",
        ),
        (
            "evaluate results --data clips --forecast --one_step 3",
            "one_step must go with the training clips, got none; pass",
        ),
    ],
)
def test_mistakes_are_one_line(trained, capsys, monkeypatch, line, expected):
    monkeypatch.chdir(trained)
    assert main(line.split()) == 2
    [error] = capsys.readouterr().err.strip().splitlines()[-1:]
    assert expected in error


def test_each_file_of_a_folder_gets_a_forecast_of_its_own(run, capsys):
    run(train("nc"))
    for name in ("2020.01", "2020.02"):
        Path("days/a").mkdir(parents=True, exist_ok=True)
        Path("days/b").mkdir(parents=True, exist_ok=True)
        netcdf(f"days/a/{name}.nc", field(0))
    netcdf("days/b/2020.01.nc", field(0))
    short = "--frames 2 --members 2 --steps 1"
    run(f"forecast results --initial days -o out --format npy {short}")
    found = sorted(str(path) for path in Path("out").rglob("*.npy"))
    assert found == ["out/a/2020.01.npy", "out/a/2020.02.npy", "out/b/2020.01.npy"]
    # not of the same noise
    assert not np.array_equal(np.load(found[0]), np.load(found[1]))
    before = Path("days/b/2020.01.nc").read_bytes()
    assert main(f"forecast results --initial days -o days {short}".split()) == 2
    assert "each file must get one of its own, got days" in capsys.readouterr().err
    assert Path("days/b/2020.01.nc").read_bytes() == before


# clips of 4 frames, from the first of 12 to the last, and then on
@pytest.mark.parametrize(
    ("kind", "times"), [("all", [44 / 3, 55 / 3, 66 / 3]), ("short", [12, 13, 14])]
)
def test_files_that_training_resamples_in_time(run, kind, times):
    """The last frame is that of the file, and time goes on in steps of the clips."""
    run(train("nc", "--fit_frames", kind))
    run("forecast results --initial clips/0.nc --frames 3 --members 2 --steps 1 -o f.nc")
    with netCDF4.Dataset("f.nc") as file:
        np.testing.assert_allclose(file["time"][:], times)


def test_options_of_the_other_evaluation(run, capsys):
    run(train("nc"))
    assert main(["evaluate", "results", "--data", "clips", "--forecast", "--count", "7"]) == 2
    assert "--count must be left out with --forecast, got 7" in capsys.readouterr().err
