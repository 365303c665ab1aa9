"""Runs the code and the commands of `docs/longer_videos.md`, at a size that takes seconds."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from tests.docs_code import Page, checkpoints, unet
from video_diffusion_pytorch import GaussianDiffusion, read_video, write_video
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.diffusion.guidance import RECONSTRUCTION_WEIGHT

PAGE = Page("longer_videos.md")
# the page's clips have 16 frames of 64 x 64, those of the test 4 of 16 x 16
SMALLER = {"4": "2", "16": "4", "31": "7", "32": "8", "64": "16", "128": "32"}
METHODS = ("predict", "extend", "interpolate_frames", "inpaint", "upsample", "roll_out")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The checkpoints that the page takes for granted."""
    root = tmp_path_factory.mktemp("page")
    models = {
        name: GaussianDiffusion(unet(), image_size=side, num_frames=4, timesteps=8)
        for name, side in {"films": 16, "large": 32}.items()
    }
    checkpoints(root, models)
    write_video(torch.rand(3, 5, 16, 16), root / "whale.mp4")
    write_video(torch.ones(1, 1, 16, 16), root / "mask.png")
    return root


@pytest.fixture(autouse=True)
def _workplace(folder, monkeypatch):
    monkeypatch.chdir(folder)
    torch.manual_seed(0)


def run(number):
    """The names that a section's code defines, run after the page's beginning."""
    [title] = [title for title in PAGE.sections if title.startswith(number)]
    names = {}
    for block in [*PAGE.blocks(PAGE.start), *PAGE.blocks(title)]:
        code = re.sub(r"steps=\d+", "steps=3", block)
        PAGE.run(re.sub(r"\b\d+\b", lambda number: SMALLER.get(number[0], number[0]), code), names)
    return names


def test_every_section_with_code_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    run_here = re.findall(r'run\("(.*?)"\)', source)
    with_code = [t[:2] for t in PAGE.sections if PAGE.blocks(t) and t != PAGE.start]
    assert with_code == run_here


def test_going_on_between_frames_larger_and_filling_in():
    names = run("1.")
    video, missing = names["video"], names["missing"]
    assert names["more"].shape == (1, 3, 4, 16, 16)
    assert torch.equal(names["more"][:, :, :2], video[:, :, :2])
    assert torch.equal(names["longer"][:, :, :4], video)
    assert names["longer"].shape[2] == 16
    assert names["slower"].shape[2] == 7
    assert torch.equal(names["slower"][:, :, ::2], video)
    assert torch.equal(names["filled"][..., ~missing], video[..., ~missing])


def test_long_and_large_by_two_models():
    names = run("2.")
    assert names["upsampled"].shape == names["another"].shape == (1, 3, 8, 32, 32)
    assert torch.equal(names["another"][:, :, :4], names["beginning"])
    assert names["smooth"].shape == (1, 3, 15, 32, 32)


def test_weight_time_and_memory():
    names = run("3.")
    assert names["longer"].shape == (2, 3, 8, 16, 16)
    assert names["films"].denoise_fn.gradient_checkpointing


def test_clips_of_your_own():
    names = run("4.")
    assert names["whale"].shape == names["small"].shape == (1, 3, 5, 16, 16)
    assert names["longer"].shape[2] == names["slower"].shape[2] == 9
    assert names["filled"].shape[2] == 4
    assert names["upsampled"].shape == (1, 3, 5, 32, 32)


def test_models_with_a_noise_level_per_frame():
    names = run("8.")
    assert names["more"].shape == (1, 3, 4, 16, 16)
    assert names["longer"].shape == names["endless"].shape == (1, 3, 16, 16, 16)
    assert names["videos"].shape == (2, 3, 4, 16, 16)


def test_the_pages_commands_run(capsys):
    shapes = {}
    for program, *argv in PAGE.commands("5. From the command line"):
        assert program == "video-diffusion"
        argv = [SMALLER.get(word, word) if word in ("64", "128") else word for word in argv]
        assert main([*argv, "--steps", "3"]) is None, (argv, capsys.readouterr())
        name = argv[argv.index("-o") + 1]
        shapes[name] = tuple(read_video(name)[0].shape[1:])
    # with a border of 2 pixels around each video of a grid of several
    assert shapes == {
        "long.mp4": (16, 16, 16),
        "longer.mp4": (16, 16, 16),
        "filled.mp4": (5, 20, 40),
        "smoother.mp4": (9, 16, 16),
        "large.mp4": (5, 32, 32),
    }


# What the page says beside its code


def test_the_page_knows_all_methods_and_their_options():
    for name in METHODS:
        assert f"`{name}(" in PAGE.text
        parameters = inspect.signature(getattr(GaussianDiffusion, name)).parameters.values()
        for parameter in parameters:
            if parameter.kind is parameter.KEYWORD_ONLY:
                assert parameter.name in PAGE.text, (name, parameter.name)


def test_the_default_weight_is_the_one_that_the_page_gives():
    assert "`weight`, 2 by default" in PAGE.text
    assert RECONSTRUCTION_WEIGHT == 2
