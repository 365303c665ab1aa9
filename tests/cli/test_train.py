"""What `train` takes from a preset, a file and the command line, and which of them wins."""

import os
import re
import threading
import time
from pathlib import Path

import pytest
import yaml

from video_diffusion_pytorch.cli import main, parse
from video_diffusion_pytorch.cli.train import rewrite


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bair.yaml").write_text("preset: bair\nunet: {dropout: 0.2}\n")
    Path("other.yaml").write_text("unet: {dim: 32}\n")
    Path("null.yaml").write_text("preset: null\n")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["clips", "--preset", "ucf101"], "ucf101"),
        (["clips", "--preset=ucf101"], "ucf101"),
        (["--config", "bair.yaml"], "bair"),
        (["--config=bair.yaml", "--config=other.yaml"], "bair"),
        (["--config", "bair.yaml", "--config", "null.yaml"], None),
        (["--config", "bair.yaml", "--preset", "ucf101"], "ucf101"),
        (["--config", "bair.yaml", "--preset", "null"], None),
        (["clips", "--preset"], None),
        ([], None),
    ],
)
def test_the_preset_that_arguments_name(argv, name):
    assert rewrite(argv)[1].preset == name


def printed(capsys, *argv):
    with pytest.raises(SystemExit):
        main(["train", "clips", *argv, "--print_config", "full"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.usefixtures("files")
def test_options_come_before_files_and_files_before_presets(capsys):
    settings = printed(
        capsys, "--config", "bair.yaml", "--config", "other.yaml", "--emb_layers", "3"
    )
    assert settings["preset"] == "bair"
    assert settings["unet"]["blocks_per_level"] == 3
    assert settings["unet"]["dropout"] == 0.2
    assert settings["unet"]["dim"] == 32
    assert settings["unet"]["emb_layers"] == 3
    assert settings["data"]["horizontal_flip"] is True
    assert printed(capsys, "--config", "bair.yaml", "--preset", "null")["unet"]["dim"] == 64


@pytest.mark.usefixtures("files")
def test_a_printed_preset_is_a_file_with_the_same_settings(capsys):
    settings = printed(capsys, "--preset", "text_small")
    Path("all.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", "all.yaml") == settings


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("options", "conditions"),
    [
        (["--conditions", "label"], "label"),
        (["--conditions", "[caption, label]"], ["caption", "label"]),
        (["--conditions", '{"cond": ["EF", "ESV"]}'], {"cond": ["EF", "ESV"]}),
        (["--conditions.cond", "[EF]", "--conditions.labels=Class"],
         {"cond": ["EF"], "labels": "Class"}),
        (["--conditions", '[{"cond": ["EF"]}, label]'], [{"cond": ["EF"]}, "label"]),
    ],
)  # fmt: skip
def test_conditions_are_printed_as_they_are(options, conditions, capsys):
    settings = printed(capsys, *options, "--manifest-columns.path", "FileName")
    assert settings["data"]["conditions"] == conditions
    assert settings["data"]["manifest_columns"] == {"path": "FileName"}
    Path("all.yaml").write_text(yaml.safe_dump(settings))
    assert printed(capsys, "--config", "all.yaml") == settings


BY_NAME = "--config must hold options by name, and those of unet, diffusion, data, trainer in a map"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xe4", r"--config must be a YAML file in UTF-8, got options.yaml \('utf-8' codec"),
        (
            b"[" * 100_000,
            r"--config must be a YAML file in UTF-8, got options.yaml \(maximum recurs",
        ),
        (b"unet: !!set {a}", BY_NAME),
        (b"unet: 5", BY_NAME),
        (b"- 1", BY_NAME),
        (b"", BY_NAME),
        (b"config: other.yaml", BY_NAME),
        (b"preset: [1]", r"name must be one of .*, got '\[1\]'"),
        (b"preset: !!python/name:os.system ''", "could not determine a constructor for the tag"),
        (b"&" + b"a" * 200_000, r"video-diffusion: error: .{1,2200}\n$"),
    ],
)
def test_files_that_hold_no_options(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    Path("options.yaml").write_bytes(content)
    assert main(["train", ".", "--config", "options.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines(keepends=True)
    assert re.search(message, line)


def test_a_pipe_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=["---\npreset: bair\nseed: 3\n"])
    writer.start()
    options = parse(["train", "--config", "pipe"]).train
    writer.join()
    assert (options.seed, options.unet.dim) == (3, 128)


def repeated(depth):
    """A text of a few lines that stands for 9 to the power of its depth values."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        repeated(9),
        "unet: &a {x: *a}",
        "folder: " + "x" * 300_000,
    ],
)
def test_a_file_that_would_keep_the_parser_busy_is_refused(tmp_path, capsys, text):
    (tmp_path / "options.yaml").write_text(text)
    began = time.monotonic()
    assert main(["train", "--config", str(tmp_path / "options.yaml")]) == 2
    assert time.monotonic() - began < 10
    [line] = capsys.readouterr().err.splitlines()
    assert "--config must be a file of at most 262144 characters and 20000 values (alia" in line


@pytest.mark.parametrize(
    "text",
    [
        "exts: &a [gif, mp4]\nfull_attn_levels: &b [1, 2]\ntemporal_attn_levels: *b\nsplit: null",
        f"beta_schedule: [{'0.5, ' * 4000}1]",
    ],
)
def test_files_within_the_limits(tmp_path, text):
    (tmp_path / "options.yaml").write_text(text)
    assert rewrite(["--config", str(tmp_path / "options.yaml")])[1].preset is None
