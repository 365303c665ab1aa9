"""The benchmark of recipes for a small model, at a size that takes seconds."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.evaluation import frame_classifier

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import small_recipes

    monkeypatch.setitem(small_recipes.SMALL.unet, "dim", 4)
    monkeypatch.setitem(small_recipes.SMALL.trainer, "warmup_steps", 1)
    recipe = dataclasses.replace(small_recipes.SMALL, sampling_steps=2)
    monkeypatch.setattr(small_recipes, "SMALL", recipe)
    yield small_recipes
    sys.modules.pop("small_recipes")


def test_arms_are_run_once_and_the_table_has_them(recipes, tmp_path, capsys):
    output = tmp_path / "found.jsonl"
    words = ["--data=balls", "--seconds=0.05", "--count=4", "--clips=12", f"--output={output}"]
    recipes.main([*words, "--arms", "small", "small, no labels", "--seeds", "0"])
    capsys.readouterr()
    recipes.main([*words, "--arms", "small", "--seeds", "0", "1"])
    out = capsys.readouterr().out
    assert "small, seed 0" not in out
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(line["arm"], line["seed"]) for line in found] == [
        ("small", 0),
        ("small, no labels", 0),
        ("small", 1),
    ]
    assert all(line["clips"] == 8 * line["steps"] >= 8 for line in found)
    table = out.split(recipes.HEAD)[-1].strip().splitlines()
    assert [line.split("|")[1:3] for line in table[:2]] == [
        [" small ", " 2 "],
        [" small, no labels ", " 1 "],
    ]
    assert table[-1] == "| real clips | | | | | 100% | 100% | 100% |"
    assert (tmp_path / "balls_small_0.gif").is_file()


def test_every_arm_builds(recipes):
    for changes in recipes.ARMS.values():
        network = recipes.Unet3D(**{**recipes.SMALL.unet, **changes.get("unet", {})}, channels=1)
        diffusion = {**recipes.SMALL.diffusion, **changes.get("diffusion", {})}
        recipes.GaussianDiffusion(network, **diffusion)


def test_digits_are_judged_by_what_frames_show(recipes, tmp_path, monkeypatch):
    monkeypatch.setattr(frame_classifier, "_STEPS", 150)
    data = recipes.Digits(tmp_path / "digits", 60)
    videos, labels = recipes.read(tmp_path / "digits" / "judge")
    assert 0.5 < videos.max() <= 1
    right = data.judge(videos, labels)
    wrong = data.judge(videos, (labels + 1) % 10)
    assert right["label_frames"] > 0.8
    assert wrong["label_frames"] < 0.2
    flickering = videos.clone()
    flickering[1:, :, ::2] = videos[:-1, :, ::2]
    assert data.judge(flickering, None)["constancy"] < right["constancy"] - 0.3


def test_the_reference_needs_its_folder(recipes, tmp_path):
    output = f"--output={tmp_path / 'found.jsonl'}"
    with pytest.raises(SystemExit, match=r"'0\.7\.0' needs --reference, a folder with"):
        recipes.main(["--data=balls", "--clips=6", output, "--arms", "0.7.0"])


def test_weights_of_the_reference_are_sampled_from(recipes, tmp_path, monkeypatch):
    """With a process that trains nothing in the place of 0.7.0's."""
    data = recipes.Balls(tmp_path / "balls", 6)

    def run(command, **options):
        task = torch.load(command[-1])
        assert task["videos"].shape == (6, 1, 8, 16, 16)
        assert 0.5 < task["videos"].max() <= 1
        network = recipes.Unet3D(**task["network"])
        weights = recipes.GaussianDiffusion(network, image_size=16, num_frames=8).state_dict()
        found = {"weights": weights, "steps": 1, "clips": 2 * task["batch"]}
        torch.save(found, command[-1].with_name("weights.pt"))

    monkeypatch.setattr(recipes.subprocess, "run", run)
    monkeypatch.setitem(recipes.REFERENCE_ARMS, "0.7.0", ({"dim": 4, "dim_mults": (1,)}, 2))
    words = ["--seconds=1", "--count=3", f"--output={tmp_path / 'o.jsonl'}", "--reference=ours"]
    options = recipes.parse([*words, "--data=balls"])
    line = recipes.run("0.7.0", 0, data, options)
    assert line["clips"] == 4
    assert 0 <= line["label_frames"] <= 1
