"""Runs the code of `docs/from_the_reference.md` on files that the reference has written."""

import re
import shutil

import pytest
import torch

from tests.docs_code import ROOT, TRAINING, Page, diffusion, unet
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.reference.state_dict import RENAMES

PAGE = Page("from_the_reference.md")
GOLDEN = ROOT / "tests/golden"
RECORD = torch.load(GOLDEN / "trainer_0.7.0.pt", weights_only=True)
# what the reference has trained: clips of 4 frames of 16 x 16, up to milestone 2
SMALLER = {"64": "16", "10": "4", "12": "2", "100_000": "30"}


class SmallTrainer(Trainer):
    """Takes a step beyond what the file has done."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, **TRAINING})

    def load(self, *args, **options):
        super().load(*args, **options)
        self.train_num_steps = self.step + 1


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the code of a section, after the page's beginning."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    shutil.copytree(GOLDEN / "reference_results_0.7.0", "old")
    write_moving_digits("clips", num_clips=3, image_size=24, num_frames=4)

    def run(number):
        [title] = [title for title in PAGE.sections if title.startswith(number)]
        names = {}
        PAGE.run(*PAGE.blocks(PAGE.start), names)
        names |= {"Unet3D": unet, "GaussianDiffusion": diffusion, "Trainer": SmallTrainer}
        for block in PAGE.blocks(title):
            code = re.sub(r"\b[\d_]+\b", lambda number: SMALLER.get(number[0], number[0]), block)
            PAGE.run(code, names)
        return names

    return run


def test_every_section_with_code_is_run_here():
    assert [t[:2] for t in PAGE.sections if PAGE.blocks(t) and t != PAGE.start] == ["2.", "4."]


def test_checkpoints_go_on(run, caplog, tmp_path):
    names = run("2.")
    assert names["videos"].shape == (4, 3, 4, 16, 16)
    trainer = names["trainer"]
    before = torch.load(tmp_path / "old" / "model-2.pt", weights_only=True)
    assert trainer.step == before["step"] + 1
    assert "holds no optimizer state: the optimizer starts anew" in caplog.text
    written = torch.load(tmp_path / "for-0.7.0.pt", weights_only=True)
    assert written.keys() == before.keys()
    assert all(torch.equal(written["ema"][name], value) for name, value in before["ema"].items())
    # and draws what the reference draws
    model = GaussianDiffusion(Unet3D(**RECORD["unet"]), **RECORD["diffusion"])
    model.load_state_dict(written["ema"])
    torch.manual_seed(5)
    videos = model.sample(batch_size=2, progress=False)
    torch.testing.assert_close(videos, RECORD["ema_sample_seed_5_batch_2"], rtol=0, atol=1e-4)


def test_a_patched_copy_becomes_a_subclass(run, tmp_path):
    trainer = run("4.")["trainer"]
    assert type(trainer).__name__ == "MyTrainer"
    assert trainer.step == 1
    assert not trainer.skipped_steps
    assert (tmp_path / "volumes" / "model-1.pt").is_file()


# What the page says beside its code


def test_the_table_of_names_is_that_of_the_renames():
    section = PAGE.sections["3. Names inside the network"]
    named = {}
    for row in re.findall(r"^\| (`.*?) \| (`.*?) \|$", section, re.M):
        theirs, ours = (re.findall(r"`(.*?)`", cell) for cell in row)
        named |= dict(zip(ours, theirs, strict=True))
    expected = {ours.rstrip("."): theirs.rstrip(".") for ours, theirs in RENAMES.items()}
    beginning = {name: expected[name] for name in expected if not name.startswith("ups.")}
    assert named == beginning | {"ups.{i}.block1": "ups.{i}.0"}
    # the way up is named like the way down
    for ours, theirs in expected.items():
        if ours.startswith("ups."):
            assert expected[ours.replace("ups", "downs")] == theirs.replace("ups", "downs")


def test_the_methods_to_replace_are_there():
    [_, words] = PAGE.text.split("A subclass of `Trainer` can override ")
    names = re.findall(r"`(\w+)`", words.split(". A copy")[0])
    assert len(names) == 9
    assert all(callable(getattr(Trainer, name)) for name in names)
