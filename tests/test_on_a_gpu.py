"""The benchmark of a GPU, on a CPU: its report, its parts apart from each other, and its time."""

import dataclasses
import json
import math
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TASK = {
    "device": "cpu", "tiny": True, "seed": 0, "reference": None, "seconds": 60, "earlier": {},
}  # fmt: skip
BROKEN = """
import os, signal, time

def fails(run):
    run.put("figures", "before", value=1.5)
    raise ZeroDivisionError("no part may do this")

def dies(run):
    os.kill(os.getpid(), signal.SIGSEGV)

def hangs(run):
    run.put("figures", "before", value=2.5)
    time.sleep(100)
"""


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.fixture
def run(tmp_path):
    from gpu_run import Run

    return Run(TASK, tmp_path)


@pytest.fixture
def on_a_gpu(monkeypatch, tmp_path):
    import on_a_gpu

    (tmp_path / "broken_parts.py").write_text(BROKEN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def measure(parts, seconds):
        functions = {name: on_a_gpu.PARTS[name].function for name in on_a_gpu.PARTS}
        chosen = {
            name: on_a_gpu.Part(name, weight, functions.get(name, f"broken_parts:{name}"))
            for name, weight in parts.items()
        }
        monkeypatch.setattr(on_a_gpu, "PARTS", chosen)
        words = ["--seconds", str(seconds), "--tiny", "--device", "cpu", "--out", str(tmp_path)]
        code = on_a_gpu.main([*words, "--parts", *chosen])
        report = json.loads((tmp_path / "on_a_gpu.json").read_text())
        return code, report, (tmp_path / "on_a_gpu.md").read_text()

    return measure


# parts and their time


def test_a_part_that_fails_dies_or_hangs_leaves_the_others_alone(on_a_gpu, capsys):
    # the first one's share is 3 s, that of others what they need
    weights = {"hangs": 2, "dies": 9, "fails": 9, "machine": 9, "graphs": 9}
    code, report, table = on_a_gpu(weights, 58)
    assert code == 1
    parts = report["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "hangs": "cut", "dies": "failed", "fails": "failed", "machine": "ok", "graphs": "ok",
    }  # fmt: skip
    assert 2 < parts["hangs"]["seconds"] < 8
    assert "its share" in parts["hangs"]["why"]
    assert "exit code -11" in parts["dies"]["why"]
    assert "no part may do this" in parts["fails"]["why"]
    assert "in fails\n" in parts["fails"]["errors"][0]["traceback"]
    # what was measured before is kept
    assert parts["fails"]["tables"] == {"figures": [{"what": "before", "value": 1.5}]}
    assert parts["hangs"]["tables"] == {"figures": [{"what": "before", "value": 2.5}]}
    assert report["versions"]["torch"] == torch.__version__
    assert "cores" in report["device"]
    rates = {row["what"]: row for row in parts["machine"]["tables"]["rates"]}
    assert rates["product in bf16"]["tflops"] > 0
    [figures] = parts["graphs"]["tables"].values()
    without = [row for row in figures if "CUDA graph" in row["what"]]
    assert without
    assert all(row["ms"] is None and row["note"] == "needs a GPU" for row in without)
    assert all(row["ms"] > 0 for row in figures if row not in without)
    assert capsys.readouterr().out.strip() == table.strip()
    assert table.splitlines()[-5].startswith("| hangs | cut |")


def test_parts_without_time_are_skipped(on_a_gpu):
    start = time.monotonic()
    code, report, table = on_a_gpu({"hangs": 1}, 2)
    assert code == 0
    assert time.monotonic() - start < 60
    assert report["parts"]["hangs"]["status"] == "skipped"
    assert "| hangs | skipped |" in table


def test_a_reference_that_is_none_is_refused(tmp_path, capsys):
    import on_a_gpu

    for path in (tmp_path, tmp_path / "missing.whl"):
        with pytest.raises(SystemExit):
            on_a_gpu.main(["--reference", str(path)])
        assert (
            "--reference must be a folder or a wheel with version 0.7.0" in capsys.readouterr().err
        )


# what parts do


def test_errors_against_the_reference_and_float32(run):
    import gpu_correctness

    gpu_correctness.correctness(run)
    assert run.errors == []
    parity, precisions, kernels = run.tables.values()
    assert len(parity) == 5
    errors = {row["what"]: row for row in precisions}
    assert 0 < errors["fp32 against float64"]["gradients"] < 1e-5
    assert 1e-4 < errors["fp16"]["gradients"] < errors["bf16"]["gradients"] < 0.1
    assert {row["math"] for row in kernels} == {"yes"}


@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_other_numbers_than_the_references_are_errors(run, tmp_path, monkeypatch, factor):
    import gpu_correctness

    name = "unet_small_cond_0.7.0.pt"
    record = torch.load(gpu_correctness.GOLDEN / name, weights_only=True)
    record["output"] *= factor
    torch.save(record, tmp_path / name)
    monkeypatch.setattr(gpu_correctness, "GOLDEN", tmp_path)
    for function in ("compare_precisions", "attention_kernels_of"):
        monkeypatch.setattr(gpu_correctness, function, lambda *_: None)
    gpu_correctness.correctness(run)
    [error] = run.errors
    assert "must be at most 1e-05" in error["traceback"]


def test_the_largest_batch_is_found(run):
    from gpu_run import search_batch

    run.size = dataclasses.replace(run.size, largest=1000)
    case = run.ours("training step", "bf16")

    def turn(repeats, precision):
        if len(case.videos) > 21:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [{"seconds": 0.5, "peak_mib": 1.0}] * repeats

    case.turn = turn
    search_batch(run, "batches", case, 2)
    rows = [(row["clips"], row["fits"]) for row in run.tables["batches"]]
    assert rows[:5] == [(2, True), (4, True), (8, True), (16, True), (32, False)]
    assert rows[-1] in ((21, True), (22, False))
    assert run.errors == []


def test_a_side_that_fails_keeps_its_turns(run):
    from gpu_run import in_turns

    run.size = dataclasses.replace(run.size, rounds=3)
    turns = {"good": 0, "bad": 0}

    class Side:
        def __init__(self, name):
            self.name = name

        def turn(self, repeats, precision):
            turns[self.name] += 1
            if self.name == "bad" and turns["bad"] == 4:
                raise RuntimeError("lost")
            return [{"seconds": 1.0 * turns[self.name], "peak_mib": 1.0}] * repeats

    sides = {name: (Side(name), "fp32") for name in turns} | {"0.7.0": (None, "fp32")}
    in_turns(run, "steps", "forward", sides, lambda seconds: {"seconds": seconds})
    rows = {row["what"]: row for row in run.tables["steps"]}
    # the first turn warms up
    assert (rows["good"]["seconds"], rows["good"]["turns"]) == (3.0, 3)
    assert (rows["bad"]["seconds"], rows["bad"]["turns"]) == (2.5, 2)
    assert "lost" in rows["bad"]["error"]
    assert "no --reference" in rows["0.7.0"]["note"]


def test_gaps_are_what_no_kernel_covers(tmp_path):
    import gpu_speed

    class Recorded:
        def export_chrome_trace(self, path):
            events = [
                {"name": "b", "cat": "kernel", "ts": 5.0, "dur": 10.0},
                {"name": "a", "cat": "kernel", "ts": 0.0, "dur": 10.0},
                {"name": "copy", "cat": "gpu_memcpy", "ts": 40.0, "dur": 5.0},
                {"name": "step", "cat": "gpu_user_annotation", "ts": 0.0, "dur": 100.0},
                {"name": "launch", "cat": "cuda_runtime", "ts": 20.0, "dur": 10.0},
                {"name": "meta", "ph": "M"},
            ]
            Path(path).write_text(json.dumps({"traceEvents": events}))

    kernels = gpu_speed.kernels_in(Recorded(), tmp_path / "trace.json")
    assert [name for name, *_ in kernels] == ["a", "b", "copy"]
    found = gpu_speed.gaps_of(kernels, steps=1)
    assert found == pytest.approx(
        {"kernels": 3, "kernel_ms": 0.025, "busy_ms": 0.02, "gaps_over_10_us": 1}
        | {"longest_gap_ms": 0.025}
    )


# kernels


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("n", [1, 5, 10])
def test_kernels_compute_the_same(n):
    import attention_kernels as kernels

    inputs = kernels.make_inputs(24, n, 2, 8, torch.float32, torch.device("cpu"))
    expected = kernels.float32_results(inputs)
    rows = [kernels.measure(name, inputs, expected, 1, "eager") for name in kernels.KERNELS]
    done = [row for row in rows if row["error"] is None]
    # not on a CPU
    without = {"sdpa, flash", "sdpa, efficient", "sdpa, cudnn", "flex, packed rows"}
    assert {row["kernel"] for row in rows} - {row["kernel"] for row in done} == without
    names = ("output_error", "gradient_error", "bias_gradient_error")
    # with one position alone the gradient of the bias is zero, and so that of queries and keys
    assert all(row[name] < 1e-5 for row in done for name in names[: 3 if n > 1 else 1])
    assert all(row["forward_ms"] > 0 for row in done)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
def test_flex_attention_keeps_packed_rows_apart():
    import attention_kernels as kernels

    *inputs, _ = kernels.make_inputs(24, 5, 2, 16, torch.float32, torch.device("cpu"))
    flex = kernels.make_flex(inputs[0], "eager")
    assert kernels.error_of(flex(*inputs), kernels.products(*inputs)) < 1e-5


def test_the_table_of_kernels(capsys):
    import attention_kernels as kernels

    sizes = ["--rows", "4", "--frames", "2", "3", "--heads", "1", "--repeats", "1"]
    names = ["--kernels", "products", "sdpa, packed rows"]
    kernels.main(["--device", "cpu", "--dtype", "float32", *sizes, *names])
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.startswith("| rows | n | kernel |")
    assert [row.split(" | ")[1] for row in rows] == ["2", "2", "3", "3"]
