"""The benchmark of the network's options: it runs, and its table compares seed by seed."""

import importlib.util
import json
from pathlib import Path

import pytest

from video_diffusion_pytorch import text

PATH = Path(__file__).parents[1] / "benchmarks" / "network_options.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)
    spec = importlib.util.spec_from_file_location("network_options", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    text.set_text_encoder()


def line(arm, seed, loss):
    return {
        "arm": arm, "seed": seed, "validation_loss": loss, "parameters": 1234,
        "cpu_seconds_per_step": 0.5,
    }  # fmt: skip


def test_arms_are_compared_over_the_seeds_that_both_have(benchmark):
    lines = [line("plain", 0, 0.1), line("plain", 1, 0.3), line("dropout=0.1", 1, 0.15)]
    lines += [line("captions: num_text_tokens=4", 0, 0.2)]
    _, _, *rows = benchmark.table(lines)
    assert rows == [
        "| `plain` | 1,234 | 0.50 | 0.1000, 0.3000 | 100.0% |",
        "| `dropout=0.1` | 1,234 | 0.50 | 0.1500 | 50.0% |",
        "| `captions: num_text_tokens=4` | 1,234 | 0.50 | 0.2000 |  |",
    ]


def test_what_is_in_the_file_is_not_run_again(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "HELD_OUT", 2)
    monkeypatch.setattr(benchmark, "TIMES", 1)
    output = tmp_path / "options.jsonl"
    output.write_text(json.dumps(line("plain", 0, 0.1)) + "\n")
    arms = ["plain", "captions: mean of the states", "captions: num_text_tokens=4"]
    sizes = ["--steps", "1", "--clips", "2", "--batch", "1", "--seeds", "0"]
    benchmark.main([*sizes, "--output", str(output), "--arms", *arms])
    found = [json.loads(one) for one in output.read_text().splitlines()]
    assert [one["arm"] for one in found] == arms
    assert found[0]["validation_loss"] == 0.1
    assert capsys.readouterr().out.count("| `") == 3
