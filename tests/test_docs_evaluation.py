"""Runs the code and the commands of `docs/evaluation.md`, at a size that takes seconds."""

import json
import re
import warnings
from pathlib import Path

import pytest
import torch

from tests.docs_code import NETWORK, TRAINING, Page
from video_diffusion_pytorch import Evaluation, GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.cli import main, parse
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.evaluation import frame_classifier

PAGE = Page("evaluation.md")
START = "Evaluate a model"
# a few videos of 4 frames of 16 x 16, where the page has thousands of 16 of 64 x 64
SMALL = {"count": 4, "steps": 2, "splits": 2}
SMALL_OPTIONS = {
    "-n": "4", "--splits": "2", "--steps": "2",
    "--feature_size": "16", "--frame_feature_size": "16", "--class_size": "16",
}  # fmt: skip
# the page's numbers of sampling steps
FEWER_STEPS = {"20": "2", "50": "3"}
# whose commands take several processes, or minutes
ONLY_PARSED = ("8", "10")
TEMPORAL = {"change_distance", "flicker_distance", "persistence_distance"}
BY_DEFAULT = {"random_feature_distance", *TEMPORAL, *(f"{name}_real" for name in TEMPORAL)}


class Means(torch.nn.Module):
    """A row for each video, or for each picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).mean(dim=2)


def unet(**options):
    return Unet3D(**{**options, **NETWORK})


def diffusion(network, **options):
    return GaussianDiffusion(
        network, **{**options, "image_size": 16, "num_frames": 4}, timesteps=50
    )


def evaluation(**options):
    return Evaluation(**{**options, **SMALL})


class SmallTrainer(Trainer):
    def __init__(self, model, folder, **options):
        super().__init__(model, folder, **{**options, **TRAINING, "evaluate_every": 1})


MADE_SMALL = {
    "Unet3D": unet, "GaussianDiffusion": diffusion, "Trainer": SmallTrainer,
    "Evaluation": evaluation,
}  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The names that the page's code has defined after each section, and where it was run."""
    root = tmp_path_factory.mktemp("page")
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # of few videos, and of TorchScript, which torch develops no further
        warnings.filterwarnings("ignore", "frechet_distance: a covariance")
        warnings.filterwarnings("ignore", category=FutureWarning)
        # of a classifier that is hardly trained
        warnings.filterwarnings("ignore", "FrameClassifier: more than")
        patch.setattr(frame_classifier, "_STEPS", 2)
        patch.chdir(root)
        Path("films").mkdir()
        for number in range(5):
            write_video(torch.rand(3, 5, 16, 16), f"films/{number}.gif")
        Path("films.csv").write_text("path,label\n0,a\n1,b\n2,a\n3,b\n4,b\n")
        SmallTrainer(diffusion(unet(dim=8)), "films", results_folder="results/films").save(1)
        for name in ("i3d", "c3d", "inception"):
            torch.jit.script(Means()).save(f"{name}.pt")
        names, after = {}, {"root": root}
        for title in PAGE.sections:
            number = title.split(".")[0]
            if number not in ONLY_PARSED:
                commands(title)
            for block in PAGE.blocks(title):
                if title != START:
                    names |= MADE_SMALL
                PAGE.run(block, names)
            after[number] = dict(names)
    return after


def commands(title):
    """Runs the commands of a section, at their small size."""
    for program, command, *words in PAGE.commands(title):
        if program != "video-diffusion":
            continue
        for name, value in SMALL_OPTIONS.items() if command == "evaluate" else ():
            if name in words and name == "--steps":
                at = words.index(name) + 1
                words[at] = FEWER_STEPS[words[at]]
            elif name in words and name.endswith("_size"):
                words[words.index(name) + 1] = value
            elif name not in words and not name.endswith("_size"):
                words += [name, value]
        assert main([command, *words]) is None, words


def test_one_call(ran):
    assert Path(ran["root"], "results/films/evaluation-model-1.json").is_file()
    result = json.loads(Path(ran["root"], "films.json").read_text())
    assert result["scores"].keys() == BY_DEFAULT
    assert result["protocol"]["samples"]["number"] == 5


def test_a_network_of_ones_own(ran):
    assert ran["2"]["i3d"].size == (224, 224)
    assert ran["2"]["result"]["protocol"]["features"]["layout"] == "bfchw"
    assert ran["2"]["result"]["scores"]["fvd"] > 0


def test_scores_are_those_of_the_table(ran):
    section = PAGE.sections["3. Inception score, and scores of frames"]
    named = {
        n for row in re.findall(r"^\| (`.*?) \|", section, re.M) for n in re.findall(r"\w+", row)
    }
    found = {n for number in "345" for n in ran[number]["scores"]} - {"random_feature_distance"}
    assert {n for n in found if not n.endswith("_real")} <= named
    # the last two need a model with classes
    assert named - found == {"is_avg", "is_first", "lpips", "label_frames", "label_clips"}
    of_labels = {"sureness", "constancy", "constant_clips", "label_frames", "label_clips"}
    real = {f"{name}_real" for name in TEMPORAL | of_labels}
    assert {n for n in found if n.endswith("_real")} == real
    explained = PAGE.sections["4. Motion, and content that lasts"]
    assert all(f"`{name}`" in explained for name in TEMPORAL | of_labels)


def test_the_error_is_what_the_page_says(ran, capsys):
    files = [str(ran["root"] / name) for name in ("20.json", "50.json")]
    assert main(["compare", *files]) == 2
    error = capsys.readouterr().err
    quoted = re.search(r"`(results must have one protocol.*?)`", PAGE.text)[1]
    assert quoted.replace("20 and 50", "2 and 3") in error
    assert ran["6"]["scores"].keys() == BY_DEFAULT


def test_while_training(ran):
    assert ran["7"]["trainer"].step == 1
    assert Path(ran["root"], "results/measured/evaluation-1.json").is_file()


def test_the_other_commands_have_options_that_there_are():
    titles = [title for title in PAGE.sections if title.split(".")[0] in ONLY_PARSED]
    assert len(titles) == len(ONLY_PARSED)
    for words in (words for title in titles for words in PAGE.commands(title)):
        start = 1 + words.index("-m" if "-m" in words else "video-diffusion")
        start += words[start] == "video_diffusion_pytorch"
        parse(words[start:])
