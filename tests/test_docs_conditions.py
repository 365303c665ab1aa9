"""Runs the code and the commands of `docs/conditions.md`, at a size that takes seconds."""

import inspect
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.docs_code import (
    TINY_BERT,
    TINY_BERT_DIM,
    Page,
    SmallPage,
    array,
    clip,
    films,
    small_options,
)
from video_diffusion_pytorch import GaussianDiffusion, text
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.data.condition_files import KINDS
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.moving_digits import write_moving_digits

PAGE = Page("conditions.md")
# the page's clips have 16 frames of 64 x 64, those of the test 4 of 16 x 16
SMALLER = {"16": "4", "64": "16"}


# The files that the page takes for granted


def captioned():
    paths = write_moving_digits("captioned", num_clips=2, image_size=24, num_frames=4)
    paths[0].with_suffix(".txt").write_text("a three that moves left")


def actions():
    for name in ("jump", "run", "walk"):
        clip(f"actions/{name}/0.gif")


def robots_and_masks():
    for folder, shape in {"measured": (4,), "robots": (8, 7)}.items():
        clip(f"{folder}/0.gif")
        array(f"{folder}/0.npy", shape)
    array("poses.npy", (1, 4, 7))
    clip("masked/0.gif")
    array("masked/0.npy", (1, 18, 24), np.uint8)


def rocks():
    lines = ["path,permeability"]
    for name, value in {"sand": 5e-12, "silt": 3e-15}.items():
        clip(f"rocks/{name}.gif", channels=1)
        lines.append(f"{name}.gif,{value}")
    Path("rocks.csv").write_text("\n".join(lines))


def digits():
    clip("digits/0.gif", channels=1)
    array("notes/0.npy", (4,))


def wild():
    for name, caption in {"bird/7": "a bird taking off", "whale/1": "a whale diving"}.items():
        clip(f"wild/{name}.gif").with_suffix(".txt").write_text(caption)


def nothing():
    pass


FILES = {
    "2. Captions": captioned,
    "An encoder of your own": captioned,
    "3. Classes": actions,
    "4. Vectors and fields": robots_and_masks,
    "Numbers of a table": rocks,
    "5. First frames": films,
    "6. A function": digits,
    "7. Several at once": wild,
    "8. In a loop of your own": nothing,
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


@pytest.mark.parametrize("title", FILES)
def test_the_pages_code_runs(title):
    FILES[title]()
    page = SmallPage(PAGE, SMALLER)
    for block in PAGE.blocks(title):
        page.run(block)
        for trainer in page.trainers:
            trainer.train()  # does nothing where the block has trained it
            assert trainer.step == 1
            assert Path(trainer.results_folder, "1.npy").is_file()
    names = page.names
    if title.startswith("8."):
        assert names["loss"].ndim == 0
    elif title == "Numbers of a table":
        scale = names["trainer"].model.config["cond_standardization"]["cond"]
        conds = [names["trainer"].ds[number]["cond"].item() for number in (0, 1)]
        mean, std = scale["mean"][0], scale["std"][0]
        assert [round((cond - mean) / std, 4) for cond in conds] == [1.0, -1.0]
    if "videos" in names and not title.startswith("8."):
        assert names["videos"].shape[1:] == (names["trainer"].model.channels, 4, 16, 16)


def test_the_pages_commands_run(capsys):
    for write in (films, actions, wild, robots_and_masks):
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


# What the page says beside its code


def test_the_page_knows_all_kinds_and_keywords():
    for kind in KINDS:
        assert f'"{kind}"' in PAGE.text, kind
    told = set(inspect.signature(GaussianDiffusion.sample).parameters)
    told &= {"cond", "labels", "frame_cond", "cond_video", "first_frames", "cond_scale"}
    assert len(told) == 6
    for name in told:
        assert re.search(rf"\b{name}\b", PAGE.text), name


def test_what_belongs_to_a_folder_of_pictures_is_beside_it():
    for number in range(3):
        clip(f"films/walk/{number}.png", num_frames=1)
    Path("films/walk.txt").write_text("a walk")
    array("films/walk.npy", (7,))
    options = {"num_frames": 3, "exts": None}
    dataset = Dataset("films", 16, conditions="vector", **options)
    assert [path.name for path in dataset.paths] == ["walk"]
    assert dataset[0]["cond"].shape == (7,)
    assert Dataset("films", 16, conditions="caption", **options)[0]["cond"] == "a walk"


def test_a_caption_replaces_both_endings_of_a_compressed_file():
    array("scans/scan.npy", (1, 4, 16, 16))
    Path("scans/scan.npy").rename("scans/scan.nii.gz")
    Path("scans/scan.txt").write_text("a knee")
    options = {"channels": 1, "num_frames": 4, "read_fn": lambda path: np.zeros((1, 4, 16, 16))}
    dataset = Dataset("scans", 16, exts=["nii.gz"], conditions="caption", **options)
    assert dataset[0]["cond"] == "a knee"


def test_a_field_of_bytes_stays_bytes():
    clip("masked/0.gif")
    np.save("masked/0.npy", np.full((1, 18, 24), 255, np.uint8))
    field = Dataset("masked", 16, num_frames=4, conditions="field")[0]["cond_video"]
    assert field.dtype == torch.uint8
    assert field.unique().tolist() == [255]
