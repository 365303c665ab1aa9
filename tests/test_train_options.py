"""What `train` takes from a preset, a file and the command line, and which of them wins."""

import os
import re
import time
from pathlib import Path

import pytest
import yaml

from video_diffusion_pytorch.cli import main
from video_diffusion_pytorch.train_options import named_preset


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
        (["train", "clips", "--preset", "ucf101"], "ucf101"),
        (["train", "clips", "--preset=ucf101"], "ucf101"),
        (["train", "--config", "bair.yaml"], "bair"),
        (["train", "--config=bair.yaml", "--config=other.yaml"], "bair"),
        (["train", "--config", "bair.yaml", "--config", "null.yaml"], None),
        (["train", "--config", "preset: bair"], "bair"),
        (["train", "--config", "bair.yaml", "--preset", "ucf101"], "ucf101"),
        (["train", "--config", "bair.yaml", "--preset", "null"], None),
        (["train", "--config", "missing.yaml"], None),
        (["train", "clips", "--preset"], None),
        (["sample", "model.pt", "--preset", "ucf101"], None),
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
    monkeypatch.setattr("video_diffusion_pytorch.cli.named_preset", lambda argv: None)
    assert main(["train", "clips", "--preset", "bair"]) == 2
    message = "train: the preset must be known before other options, got None and then bair; give"
    assert re.search(message, capsys.readouterr().err)


def repeated(depth):
    """A file of a few lines that stands for 9 to the power of its depth."""
    lines = ["a0: &a0 [x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, depth)]
    return "\n".join(lines)


MERGED = re.sub(
    r"(\*.*)]", r"<<: [\1]}", repeated(9).replace("[", "{").replace("x, x, x]", "x: 1}")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (repeated(9), r"at most 20000 values \(aliases written out\), got more"),
        (
MERGED,
            r"at most 20000 values \(aliases written out\), got more",
        ),
        ("unet: &a {x: *a}", r"at most 20000 values \(aliases written out\), got more"),
        ("a: &a 1\nb: [*a, *a, &b [*a]]\nc: *b", None),
        ("folder: " + "[" * 40 + "]" * 40, "at most 30 levels of nesting, got more"),
        ("\n".join(" " * i + "a:" for i in range(40)), "at most 30 levels of nesting, got more"),
        ("folder: " + "x" * 300_000, "at most 262144 bytes, got more"),
        (repeated(3), None),
        ("beta_schedule: [" + "0.5, " * 4000 + "1]", None),
    ],
)  # fmt: skip
def test_a_file_that_would_keep_the_parser_busy_is_refused(tmp_path, capsys, text, told):
    (tmp_path / "options.yaml").write_text(text)
    argv = ["train", "--config", str(tmp_path / "options.yaml")]
    if told is None:
        assert named_preset(argv) is None
        return
    began = time.monotonic()
    assert main(argv) == 2
    assert time.monotonic() - began < 10
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(f"train: --config must be a file of options with {told}; ", line)


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
