"""Runs the README's Python code, at a size that takes seconds."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch import text
from video_diffusion_pytorch.data.moving_digits import write_moving_digits
from video_diffusion_pytorch.data.video_file import read_video
from video_diffusion_pytorch.data.write_video import write_video
from video_diffusion_pytorch.training import evaluate as validation

ROOT = Path(__file__).parents[1]
# a smaller network and fewer steps; the tiny encoder's vectors have 32 numbers
SMALLER = {
    "Unet3D(dim=64": "Unet3D(dim=8",
    "dim_mults=(1, 2, 4, 8)": "dim_mults=(1,)",
    "dim_mults=(1, 2, 4)": "dim_mults=(1,)",
    "timesteps=1000": "timesteps=2",
    "steps=20": "steps=2",
    "train_batch_size=32": "train_batch_size=2",
    "train_num_steps=700_000": "train_num_steps=1",
    "save_and_sample_every=1000": "save_and_sample_every=1",
    "use_bert_text_cond=True": "cond_dim=32",
    "image_size=32": "image_size=8",
    "3, 5, 32, 32": "3, 5, 8, 8",
    "torch.ones(64, 64": "torch.ones(8, 8",
    "known[8:16, 8:16]": "known[2:4, 2:4]",
    "image_size=64": "image_size=8",
    "num_frames=16": "num_frames=12",
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A working folder with clips in `data`, the trained model, and the tiny text encoder."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "samples/moving_digits", "samples/moving_digits")
    for path in write_moving_digits(tmp_path / "data", num_clips=4, image_size=24):
        path.with_suffix(".txt").write_text(path.stem)
    write_video(torch.rand(3, 12, 24, 24), tmp_path / "data" / "clip.mp4")
    (tmp_path / "data" / "clip.txt").write_text("noise")
    text.set_text_encoder(ROOT / "tests/golden/tiny_bert")
    # each clip with one time step instead of a dozen
    monkeypatch.setattr(validation, "_LEAST", 1)
    yield tmp_path
    text.set_text_encoder()


def test_the_readmes_code_runs(workplace):
    code = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S))
    for large, small in SMALLER.items():
        assert large in code, f"the README no longer says {large}"
        code = code.replace(large, small)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert read_video("digits.gif")[0].shape[:2] == (1, 24)
    assert (workplace / "results" / "model-1.pt").is_file()
    assert names["samples"].shape == (2, 3, 5, 8, 8)
    assert names["videos"].shape == names["more"].shape == names["filled"].shape == (1, 3, 10, 8, 8)
    assert names["longer"].shape == (1, 3, 12, 8, 8)
    assert read_video("whale.gif")[0].shape == (3, 10, 8, 8)
    assert (workplace / "my-model" / "config.json").is_file()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


def test_the_readmes_commands_are_those_that_continuous_integration_runs():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci/run").read_text()
    test_command = next(line for line in script.splitlines() if ".venv/bin/pytest" in line)
    assert f"```bash\n{test_command}\n```" in readme


def test_every_link_to_a_file_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / target).exists(), target
