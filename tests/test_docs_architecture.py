"""Runs the code and the commands of `docs/architecture.md`, at a size that takes seconds."""

import re

import pytest
import torch

from tests.docs_code import NETWORK, TINY_BERT, TINY_BERT_DIM, TRAINING, Page
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D, text
from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.cli.train import option_names
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.presets import preset

PAGE = Page("architecture.md")
START = "Choose the network"
SMALLER = {"128": "8", "64": "8", "16": "4", "1024": "16"}
# what a small network takes of a larger one's options
LEVELS = {"full_attn_levels": (1,), "temporal_attn_levels": (1,)}
TWO_LEVELS = NETWORK | {"dim_mults": (1, 2)}


def smaller(code):
    return re.sub(r"\b\d+\b(?!\.)", lambda number: SMALLER.get(number[0], number[0]), code)


def unet(**options):
    options |= {name: value for name, value in LEVELS.items() if options.get(name)}
    if options.pop("use_bert_text_cond", False):
        options["cond_dim"] = TINY_BERT_DIM
    if options.get("emb_dim"):
        options["emb_dim"] = 16
    return Unet3D(**{**options, **TWO_LEVELS})


def diffusion(network, **options):
    sizes = {"image_size": 8, "num_frames": 4, "timesteps": 4}
    return GaussianDiffusion(network, **{**options, **sizes})


def trainer(model, folder, **options):
    return Trainer(model, folder, **{**options, **TRAINING})


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for i in range(3):
        write_video(torch.rand(3, 4, 8, 8), tmp_path / "data" / f"{i}.gif")
        (tmp_path / "data" / f"{i}.txt").write_text("noise")
    text.set_text_encoder(TINY_BERT)
    yield tmp_path
    text.set_text_encoder()


SECTIONS = [title for title in PAGE.sections if title != START and PAGE.blocks(title)]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("title", SECTIONS)
def test_the_pages_code_runs(title):
    names: dict = {}
    PAGE.run(smaller("\n".join(PAGE.blocks(START))), names)
    chosen = preset("bair")
    small = {"Unet3D": unet, "GaussianDiffusion": diffusion, "Trainer": trainer}
    names |= small
    for code in PAGE.blocks(title):
        code = code.replace("steps=chosen.sampling_steps", "steps=2")
        code = code.replace(
            "weight=chosen.guidance_weight", "steps=2, weight=chosen.guidance_weight"
        )
        PAGE.run(smaller(code), names)
    if "videos" in names:
        assert names["videos"].shape == (1, 3, 4, 8, 8)
        assert names["chosen"] == chosen
    if "output" in names:
        assert names["output"].shape == (2, 3, 4, 8, 8)


def test_the_pages_commands_have_the_options():
    commands = PAGE.commands("4. The models by name")
    assert len(commands) == 4
    known = {*option_names("unet"), *option_names("data"), *option_names("trainer")}
    for words in commands[:3]:
        names = [word.removeprefix("--").split(".")[-1] for word in words if word.startswith("--")]
        assert {*names} <= {*known, "preset", "text_encoder"}


def test_a_preset_trains_on_captions(workplace, capsys):
    words = PAGE.commands("4. The models by name")[2][1:]
    words = [str(TINY_BERT) if word == "bert-base-cased" else word for word in words]
    words = ["32" if word == "768" else word for word in words]
    small = {**{n: v for n, v in TWO_LEVELS.items() if n != "attn_heads"}, **TRAINING, **LEVELS}
    small |= {"image_size": 8, "num_frames": 4, "emb_dim": 16, "timesteps": 2, "image_frames": 1}
    options = [f"--{n}={list(v) if isinstance(v, tuple) else v}" for n, v in small.items()]
    assert main([*words, *options]) is None, capsys.readouterr().err
    assert (workplace / "results" / "model-1.pt").is_file()
    said = (workplace / "results" / "1.txt").read_text()
    assert "noise" in said
