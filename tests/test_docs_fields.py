"""Runs the code and the commands of `docs/fields.md`, at a size that takes seconds."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs_code import Page, SmallPage, small_options
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.formats.field_files import FIELD_EXTS
from video_diffusion_pytorch.data.video_file import open_video

netCDF4 = pytest.importorskip("h5netcdf.legacyapi")

PAGE = Page("fields.md")
# frames, height and width of the page, and of the test
SMALLER = {"73": "9", "144": "12", "16": "3", "8": "2", "32": "8", "64": "12", "10": "4"}
SIZES = {"73": "9", "144": "12", "10": "4", "16": "3", "8": "2", "2000": "2"}


def field(path, names, shape, gaps=False):
    """A NetCDF file with variables of a mean and a deviation of their own."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    with netCDF4.Dataset(path, "w") as file:
        for name, size in zip(("time", "lat", "lon"), shape, strict=True):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,))[:] = np.arange(size)
        for number, name in enumerate(names):
            values = rng.gamma(2.0, 1.0, shape) + 100 * number
            if gaps:
                values[:, :2, :3] = math.nan
            file.createVariable(name, "f4", ("time", "lat", "lon"))[:] = values


def weather():
    for number in range(3):
        field(f"weather/{number}.nc", ["t2m", "msl"], (9, 9, 12))
        field(f"held_out/{number}.nc", ["t2m", "msl"], (5, 9, 12))
    field("today/today.nc", ["t2m", "msl"], (2, 9, 12))
    Path("today.nc").write_bytes(Path("today/today.nc").read_bytes())


def ocean():
    for number in range(3):
        field(f"ocean/{number}.nc", ["sst", "salinity"], (9, 8, 12), gaps=True)
    np.save("depth.npy", np.random.default_rng(0).uniform(0, 1, (8, 12)).astype(np.float32))


def rain():
    for number in range(3):
        field(f"rain/{number}.nc", ["tp", "t2m"], (9, 8, 12))


FILES = {
    "1. From files to a forecast": weather,
    "2. Files": ocean,
    "3. Units": rain,
    "6. Verification": lambda: None,
}


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)


def test_every_block_belongs_to_a_test():
    with_code = [title for title in PAGE.sections if PAGE.blocks(title)]
    assert with_code == [PAGE.start, *FILES]


# an untrained model drifts from the mean
@pytest.mark.filterwarnings("ignore:GaussianDiffusion. the mean of clips:UserWarning")
@pytest.mark.parametrize("title", FILES)
def test_the_pages_code_runs(title):
    FILES[title]()
    page = SmallPage(PAGE, SMALLER)
    for block in PAGE.blocks(title):
        page.run(block)
    for trainer in page.trainers:
        trainer.train()
        assert trainer.step == 1
    if title.startswith("1."):
        assert page.names["members"].shape == (1, 2, 2, 3, 9, 12)
        with netCDF4.Dataset("forecast.nc") as file:
            assert file["t2m"].dimensions == ("sample", "time", "lat", "lon")
            assert file["time"][:].tolist() == [2, 3, 4]
    elif title.startswith("3."):
        found = page.names["trainer"].ds.value_range
        assert found.transform == ("log1p", None)
        assert 0.5 < found.mean[0] < 2


@pytest.mark.filterwarnings("ignore:GaussianDiffusion. the mean of clips:UserWarning")
def test_the_pages_commands_run(capsys):
    weather()
    for program, *words in PAGE.commands("1. From files to a forecast"):
        assert program == "video-diffusion"
        words = [re.sub(r"\b\d+\b", lambda n: SIZES.get(n[0], n[0]), word) for word in words]
        if words[0] == "train":
            given = {word for word in words if word.startswith("--")}
            words += [o for o in small_options(timesteps=2) if o.partition("=")[0] not in given]
        elif words[0] != "plot":
            words += ["--steps", "1"]
        assert main(words) is None, (words, capsys.readouterr().err)
    assert Path("results/forecast-model-1.png").stat().st_size > 10_000
    with netCDF4.Dataset("forecast.nc") as file:
        assert file["msl"].shape == (2, 3, 9, 12)
        assert file["time"][:].tolist() == [2, 3, 4]
    with netCDF4.Dataset("samples.nc") as file:
        assert file["msl"].shape == (4, 4, 9, 12)


def test_the_page_knows_all_endings():
    for ending in FIELD_EXTS:
        assert f"`{ending}`" in PAGE.sections["2. Files"], ending


def test_what_the_page_says_of_refused_files():
    table = PAGE.sections["7. When a file is refused"]
    field("a.nc", ["u", "p"], (6, 8, 10))
    with pytest.raises(UnreadableVideoError) as error:
        open_video("a.nc", variables=["v"])
    assert str(error.value).partition(": ")[2] in table
    Path("b.nc").write_bytes(Path("a.nc").read_bytes()[:3000])
    with pytest.raises(UnreadableVideoError, match=r"expected a netcdf file, got OSError"):
        open_video("b.nc")
