"""Runs the code and the commands of `docs/your_own_data.md`, at a size that takes seconds."""

import gc
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs_code import (
    NETWORK,
    TINY_BERT,
    TINY_BERT_DIM,
    TRAINING,
    Page,
    SmallPage,
    array,
    clip,
    diffusion,
    films,
    small_options,
)
from video_diffusion_pytorch import Trainer, Unet3D, load_diffusion, text
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.video_file import FRAME_EXTS, VIDEO_EXTS

PAGE = Page("your_own_data.md")
CONDITIONS = Page("conditions.md")
# the page's clips have 16 frames of 64 x 64, those of the test 4 of 16 x 16
SMALLER = {"16": "4", "64": "16", "48": "12", "96": "24"}


# The files that the page takes for granted


def fields():
    for name in "ab":
        array(f"fields/{name}.npy", (5, 2, 18, 24))


def volumes():
    for depth in (2, 4, 9):
        array(f"fields/{depth}.npy", (depth, 2, 16, 16))


def wild():
    clip("wild/whale.mp4", num_frames=16, fps=4)
    for number in (7, 8):
        clip(f"wild/birds/{number:03}.gif")
    [table] = PAGE.blocks("5. A manifest", "csv")
    Path("clips.csv").write_text(table)
    rows = ["FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split"]
    for number, split in enumerate(("TRAIN", "TRAIN", "TEST")):
        clip(f"echo/Videos/0X{number}.mp4")
        rows.append(f"0X{number},55.5,30.25,70,18,24,8,8,{split}")
    Path("echo/FileList.csv").write_text("\n".join(rows))


def films_and_pictures():
    films()
    clip("pictures/cat.png", num_frames=1)


def flows():
    array("flows.npy", (4, 2, 4, 16, 16))
    array("speeds.npy", (4, 1))


def matlab_files():
    scipy = pytest.importorskip("scipy.io")
    Path("flows").mkdir()
    values = np.linspace(-3, 3, 2 * 5 * 18 * 18, dtype=np.float32).reshape(2, 5, 18, 18)
    scipy.savemat("flows/a.mat", {"velocity": values, "fps": 20.0})


def flow_files():
    h5py = pytest.importorskip("h5py")
    with h5py.File("all.h5", "w") as file:
        shape = (3, 2, 4, 16, 16)
        values = np.linspace(-3, 3, int(np.prod(shape)), dtype=np.float32)
        file["velocity"] = values.reshape(shape)


def shards():
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter("shards-000.tar") as tar:
        for number in range(3):
            video = np.full((1, 4, 16, 16), number / 2, np.float32)
            tar.write({"__key__": f"{number:04}", "npy": video, "txt": f"number {number}"})


FILES = {
    "1. Which files a folder may hold": films,
    "2. Choosing frames and sizes": films,
    "3. Fields and volumes": fields,
    "Volumes of different depths": volumes,
    "4. Formats of other libraries": matlab_files,
    "5. A manifest": wild,
    "6. Learning from images, too": films_and_pictures,
    "7. Your own dataset or loader": flows,
    "WebDataset": shards,
    "One HDF5 file of many clips": flow_files,
    "8. When reading is slow": films,
}


@pytest.fixture(autouse=True)
def _workplace(tmp_path, monkeypatch):
    """A working folder, and the tiny text encoder in the place of BERT."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    text.set_text_encoder(TINY_BERT)
    yield
    text.set_text_encoder()


def test_every_block_belongs_to_a_test():
    with_code = [title for title in PAGE.sections if PAGE.blocks(title)]
    assert with_code == [PAGE.start, *FILES]


# webdataset leaves its file open when the training stops before the end of the shard
OPEN_FILE = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize(
    "title",
    [pytest.param(title, marks=OPEN_FILE * (title == "WebDataset")) for title in FILES],
)
def test_the_pages_code_runs(title):
    FILES[title]()
    page = SmallPage(PAGE, SMALLER)
    for block in PAGE.blocks(title):
        page.run(block)
        for trainer in page.trainers:
            trainer.train()  # does nothing where the block has trained it
            assert trainer.step == 1
            assert Path(trainer.results_folder, "1.npy").is_file()
        page.trainers.clear()
    _check(title, page.names)
    page.names.clear()
    gc.collect()


def _check(title, names):
    """What the page says of the results."""
    shapes = {key: tuple(value.shape) for key, value in names.items() if torch.is_tensor(value)}
    if title.startswith("1."):
        assert [path.name for path in names["dataset"].paths] == ["bird.gif", "walk", "whale.mp4"]
        assert shapes["clip"] == (3, 4, 16, 16)
        assert names["clip"].max() <= 1
    elif title.startswith("2."):
        assert shapes["clip"] == (3, 4, 12, 16)
    elif title.startswith("3."):
        assert shapes["samples"] == (4, 2, 4, 16, 24)
        assert names["again"].config["value_range"] == (names["lows"], names["highs"])
        assert names["samples"].max() <= max(names["highs"]) + 1e-5
    elif title == "5. A manifest":
        assert names["trainer"].ds.class_names == ("bird", "whale")
        assert len(names["trainer"].ds) == 3
        assert names["item"].keys() == {"video", "cond", "labels"}
        assert names["item"]["labels"] == 0
        assert [path.name for path in names["test"].paths] == ["0X2.mp4"]
    elif title.startswith("6."):
        assert names["loss"].ndim == 0
    elif title.startswith("8."):
        assert 0 <= names["log"][-1]["data_wait"] <= 1
    elif "videos" in shapes:
        assert shapes["videos"][1:] == (names["trainer"].model.channels, 4, 16, 16)


def test_the_pages_commands_run(capsys):
    for write in (films_and_pictures, fields, wild):
        write()
    for program, *argv in PAGE.commands("9. From the command line"):
        assert program == "video-diffusion"
        if "--use_bert_text_cond" in argv:
            at = argv.index("--use_bert_text_cond")
            argv[at : at + 2] = ["--cond_dim", str(TINY_BERT_DIM)]
        argv += small_options(timesteps=2) if argv[0] == "train" else []
        assert main(argv) is None, (argv, capsys.readouterr().err)
        if argv[0] == "sample":
            assert Path(argv[argv.index("-o") + 1]).stat().st_size > 0
    assert np.load("fields.npy").shape == (4, 2, 4, 16, 16)


# What the page says beside its code


def test_the_page_knows_all_endings_and_options():
    options = inspect.signature(Dataset).parameters
    for name in (*VIDEO_EXTS, *FRAME_EXTS, *options):
        # what goes with captions has a page of its own
        text = CONDITIONS.text if name == "missing_captions" else PAGE.text
        if name != "folder":
            assert re.search(rf'[`"]{name}\b|\b{name}=', text), name


def test_a_still_picture_is_a_clip_of_one_frame():
    clip("pictures/cat.png", num_frames=1)
    video = Dataset("pictures", 16, num_frames=2, exts=None)[0]
    assert video[:, 0].max() > 0
    assert video[:, 1].max() == 0


def test_links_to_folders_are_not_followed(tmp_path):
    clip("films/whale.gif")
    clip("elsewhere/dog.gif")
    try:
        Path("films/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    except OSError:
        pytest.skip("the system does not let everybody make links")
    assert [path.name for path in Dataset("films", 16).paths] == ["whale.gif"]


def test_a_run_that_goes_on_keeps_its_range():
    def trainer(value_range):
        made = diffusion(Unet3D(channels=2, **NETWORK), image_size=16, num_frames=4)
        options = {**TRAINING, "axes": "fchw", "value_range": value_range}
        return Trainer(made, "fields", **options)

    fields()
    trainer("fit").save(1)
    own = load_diffusion("results/model-1.pt").config["value_range"]
    np.save("fields/c.npy", np.full((5, 2, 18, 24), 9, np.float32))
    resumed = trainer("fit")
    resumed.load(1)
    assert resumed.model.config["value_range"] == own
    with pytest.raises(ValueError, match=r"must have the model's value_range, .*; build"):
        trainer((0, 9)).load(1)
