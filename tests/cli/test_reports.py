"""The commands that report on a run: `info`, `plot` and `gather`."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from video_diffusion_pytorch.cli import main

REFERENCE = Path(__file__).parents[1] / "golden" / "reference_results_0.7.0" / "model-2.pt"
GATHERING = "video_diffusion_pytorch.training.fsdp"


@pytest.fixture
def mistake(capsys):
    """Runs a command that must fail; gives the one line it prints."""

    def run(*argv):
        assert main([str(argument) for argument in argv]) == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.count("\n") == 1
        assert err.startswith("video-diffusion: error: ")
        return err

    return run


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    """A working folder with the numbers of a run in `results`."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, 4)]
    Path("results/metrics.jsonl").write_text("\n".join(lines) + "\n")
    return Path("results")


@pytest.fixture
def gathered(monkeypatch):
    """What the gathering is asked for; it writes nothing."""
    asked = []

    def gather_checkpoint(folder, file=None):
        asked.append((folder, file))
        return file or folder.with_suffix(".pt")

    fake = ModuleType(GATHERING)
    fake.gather_checkpoint = gather_checkpoint
    monkeypatch.setitem(sys.modules, GATHERING, fake)
    return asked


def test_a_checkpoint_is_described(capsys):
    assert main(["info", str(REFERENCE)]) is None
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"{REFERENCE}: checkpoint of the reference, version 0.7.0, ")
    assert out[1] == "  step                4"


def test_a_run_is_plotted(run_folder, capsys):
    assert main(["plot", "results"]) is None
    assert capsys.readouterr().out == "wrote results/metrics.png\n"
    assert Path("results/metrics.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "results", "results/metrics.jsonl", "-o", "both.svg"]) is None
    assert capsys.readouterr().out == "wrote both.svg\n"
    assert "results/metrics.jsonl" in Path("both.svg").read_text()
    assert main(["plot", "results", "results/metrics.jsonl", "--output", "again.png"]) is None
    assert Path("again.png").is_file()


def test_a_sharded_checkpoint_is_gathered(gathered, capsys):
    assert main(["gather", "results/model-3.sharded"]) is None
    assert capsys.readouterr().out == (
        "wrote results/model-3.pt: the checkpoint results/model-3.sharded as one file\n"
    )
    assert main(["gather", "results/model-3.sharded", "-o", "one.pt"]) is None
    assert gathered == [
        (Path("results/model-3.sharded"), None),
        (Path("results/model-3.sharded"), Path("one.pt")),
    ]


@pytest.mark.usefixtures("run_folder")
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["info"], "arguments are required: checkpoint; see"),
        (["info", "results"], "expected a checkpoint model-N.pt or model-N.sharded in "),
        (["info", "model-1.pt"], "expected a checkpoint at model-1.pt, found none"),
        (["info", "results", "--steps", "3"], "see video-diffusion info --help"),
        (["plot"], "arguments are required: folders; see"),
        (["plot", "missing"], "expected the numbers of a run at missing/metrics.jsonl, found no"),
        (["plot", "results", "-o", "a.txt"], "Format 'txt' is not supported"),
        (["gather"], "arguments are required: folder; see"),
        (["gather", __file__], "is one file already; give a model-N.sharded"),
    ],
)
def test_mistakes_are_one_line(argv, line, mistake):
    assert line in mistake(*argv)


@pytest.mark.parametrize("command", ["forecast", "ema", "info", "plot", "gather"])
def test_the_commands_have_a_help_text(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    out = capsys.readouterr().out
    assert "{demo,train,sample,forecast,evaluate,compare,ema,info,plot,gather}" in out
    assert f"\n    {command} " in out
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert f"video-diffusion {command}" in " ".join(capsys.readouterr().out.split())
