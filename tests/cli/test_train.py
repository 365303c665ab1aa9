"""What `train` takes from a preset, a file and the command line, and which of them wins."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.cli.train import named_preset


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
        (["--config", "preset: bair"], "bair"),
        (["--config", "bair.yaml", "--preset", "ucf101"], "ucf101"),
        (["--config", "bair.yaml", "--preset", "null"], None),
        (["--config", "missing.yaml"], None),
        (["clips", "--preset"], None),
        ([], None),
    ],
)
def test_the_preset_that_arguments_name(argv, name):
    assert named_preset(argv) == name


def printed(capsys, *argv):
    with pytest.raises(SystemExit):
        main(["train", "clips", *argv, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.usefixtures("files")
def test_options_come_before_files_and_files_before_presets(capsys):
    told = printed(capsys, "--config", "bair.yaml", "--config", "other.yaml", "--emb_layers", "3")
    assert told["preset"] == "bair"
    assert told["unet"]["blocks_per_level"] == 3
    assert told["unet"]["dropout"] == 0.2
    assert told["unet"]["dim"] == 32
    assert told["unet"]["emb_layers"] == 3
    assert told["data"]["horizontal_flip"] is True
    assert printed(capsys, "--config", "bair.yaml", "--preset", "null")["unet"]["dim"] == 64


@pytest.mark.usefixtures("files")
def test_a_printed_preset_is_a_file_with_the_same_settings(capsys):
    told = printed(capsys, "--preset", "text_small")
    Path("all.yaml").write_text(yaml.safe_dump(told))
    assert printed(capsys, "--config", "all.yaml") == told


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
    told = printed(capsys, *options, "--manifest-columns.path", "FileName")
    assert told["data"]["conditions"] == conditions
    assert told["data"]["manifest_columns"] == {"path": "FileName"}
    Path("all.yaml").write_text(yaml.safe_dump(told))
    assert printed(capsys, "--config", "all.yaml") == told


def test_a_preset_that_is_found_too_late_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("video_diffusion_pytorch.cli.train.named_preset", lambda argv: None)
    assert main(["train", "clips", "--preset", "bair"]) == 2
    message = "train: the preset must be known before other options, got None and then bair; give"
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", "pipe"], "train: --config must be a regular file of options, got pipe"),
        (["--config", "latin.yaml"], "--config must be text in UTF-8, got latin.yaml"),
        (["--config", "unet: !!set {a}"], "expected options in the group unet, got "),
        (["--config", "preset: [1]"], r"name must be one of .*, got '\[1\]'"),
        (["--preset", "!!python/name:os.system"], "name must be one of .*, got '!!python/name:os."),
        (["--config", "&" + "a" * 200_000], r"video-diffusion: error: .{1,2200}\n$"),
    ],
)
def test_odd_files_and_values_are_one_short_line(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("latin.yaml").write_bytes(b"a: \xe4")
    assert main(["train", ".", *options]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1


def repeated(depth):
    """A text of a few lines that stands for 9 to the power of its depth values."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        (repeated(9), r"20000 values \(aliases written out\)"),
        ("unet: &a {x: *a}", r"20000 values \(aliases written out\)"),
        ("folder: " + "[" * 40 + "]" * 40, "30 levels of nesting"),
        ("\n".join(" " * i + "a:" for i in range(40)), "30 levels of nesting"),
        ("folder: " + "x" * 300_000, "262144 bytes"),
    ],
)
def test_a_file_that_would_keep_the_parser_busy_is_refused(tmp_path, capsys, text, limit):
    (tmp_path / "options.yaml").write_text(text)
    began = time.monotonic()
    assert main(["train", "--config", str(tmp_path / "options.yaml")]) == 2
    assert time.monotonic() - began < 10
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(f"--config must be a file of options with at most {limit}, got more;", line)


@pytest.mark.parametrize(
    "text", [repeated(3), "a: &a 1\nb: [*a, *a, &b [*a]]\nc: *b", f"x: [{'0.5, ' * 4000}1]"]
)
def test_files_within_the_limits(tmp_path, text):
    (tmp_path / "options.yaml").write_text(text)
    assert named_preset(["--config", str(tmp_path / "options.yaml")]) is None
