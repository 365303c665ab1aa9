"""The benchmark of growth: its counts follow the known laws, and it prints its tables."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[1] / "benchmarks" / "growth.py"
TINY = {"frames": 2, "size": 8, "batch": 1, "dim": 8, "dim_mults": [1, 2], "attn_heads": 3}
TINY |= {"attn_dim_head": 4, "task": "training"}


@pytest.fixture
def growth(monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)
    spec = importlib.util.spec_from_file_location("growth", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "matmul_rate", lambda threads, device: 1e9)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def linear_and_quadratic(amounts, xs):
    """Factors a and b of `a x + b x²` through the first two points; the third must lie on it."""
    (y1, y2, y3), (x1, x2, x3) = amounts, xs
    b = (y2 / x2 - y1 / x1) / (x2 - x1)
    a = y1 / x1 - b * x1
    assert y3 == pytest.approx(a * x3 + b * x3**2, rel=1e-9)
    return a, b


# forward and backward pass, against a forward pass of twice the batch
@pytest.mark.parametrize(("task", "passes"), [("training", 3), ("sampling", 2)])
def test_the_arithmetic_of_a_layer_is_that_of_its_part(growth, task, passes):
    frames = (2, 4, 8)
    counts = [growth.flops({**TINY, "task": task, "frames": f}) for f in frames]
    of_part = {name: [count[name] for count in counts] for name in counts[0]}

    a, b = linear_and_quadratic(of_part["temporal attention"], frames)
    # layers: before the first block, one after each level of encoder and decoder, bottleneck
    pixels = 64 + 2 * (64 + 16) + 16
    # two products with each other frame, of 3 heads of width 4
    assert b == pytest.approx(passes * 2 * 2 * pixels * 3 * 4)
    assert a > 0
    for name in ("linear attention", "softmax attention"):
        _, b = linear_and_quadratic(of_part[name], frames)
        assert b == pytest.approx(0, abs=1e-6)
    assert of_part["optimizer"] == [0, 0, 0]
    assert max(of_part["rest"]) < 1e-2 * min(of_part["convolutions"])


def test_softmax_attention_alone_is_quadratic_in_the_pixels(growth):
    sizes = (8, 16, 32)
    counts = [growth.flops({**TINY, "size": size}) for size in sizes]
    pixels = [size**2 for size in sizes]
    _, b = linear_and_quadratic([count["softmax attention"] for count in counts], pixels)
    # 2 frames, 3 heads of width 32, a quarter of the pixels
    assert b == pytest.approx(3 * 2 * 2 * 2 * 3 * 32 / 16)
    _, b = linear_and_quadratic([count["temporal attention"] for count in counts], pixels)
    assert b == pytest.approx(0, abs=1e-6)


def test_recomputation_is_counted_where_it_happens(growth):
    plain, again = (growth.flops({**TINY, "gradient_checkpointing": on}) for on in (False, True))
    for name in growth.PARTS[:4]:
        # a third forward pass to two backward ones; the last product of a layer is not needed again
        assert 1.1 < again[name] / plain[name] <= 4 / 3, name
    assert again["rest"] == plain["rest"]


def test_a_point_is_measured_part_by_part(growth):
    found = growth.measure(TINY, "cpu", 1, 2)
    assert min(found["time"].values()) > 0
    checkpointed = growth.measure({**TINY, "gradient_checkpointing": True}, "cpu", 1, 1)
    for name in growth.ATTENTIONS:
        assert found["kept"][name] > 0
        assert checkpointed["kept"][name] == 0
    # the inputs of the layers instead
    assert found["kept"]["rest"] < checkpointed["kept"]["rest"] < sum(found["kept"].values()) / 2
    sampled = growth.measure({**TINY, "task": "sampling"}, "cpu", 1, 1)
    assert "kept" not in sampled
    assert sampled["time"]["optimizer"] == 0


def test_a_table_gives_a_clip_and_the_growth_of_a_step(growth):
    def row(batch, seconds, peak, differs=""):
        parts = dict.fromkeys(growth.PARTS, 0.0)
        parts |= {"convolutions": seconds / 4, "temporal attention": batch**2 / 4}
        found = {"seconds": seconds, "peak": peak, "time": parts, "flops": {"rest": 1e9 * batch}}
        return {**TINY, "batch": batch}, differs, found

    rows = [row(1, 1.0, 10), row(1, 3.0, 30, "`a=1`"), row(2, 4.0, 20), row(2, 6.0, 240, "`a=1`")]
    _, _, *lines = growth.table("batch", "time", rows, rate=2e9)
    # the clip, the share of the rate, the peak of a clip, the parts
    assert lines == [
        "| 1 |  | 1 |  | 50% | 10 |  | 50% | 0% | 0% | 50% | 0% | 0% |",
        "| 1 | `a=1` | 3 |  | 17% | 30 |  | 75% | 0% | 0% | 25% | 0% | 0% |",
        "| 2 |  | 2 | 2.00 | 25% | 10 | 1.00 | 50%, 2.00 | 0% | 0% | 50%, 2.00 | 0% | 0% |",
        "| 2 | `a=1` | 3 | 1.00 | 17% | 120 | 3.00 | 60%, 1.00 | 0% | 0% | 40%, 2.00 | 0% | 0% |",
    ]


def test_it_runs_each_point_in_a_process(growth, capsys):
    base = "size=8 dim=4 dim_mults=[1] attn_heads=1"
    small = f"--frames 2 --tasks training --threads 1 --repeats 1 --base {base}"
    growth.main(small.split())
    printed = capsys.readouterr().out
    titles = ("time", "arithmetic", "kept for the backward pass")
    places = [printed.index(f"Training step, by frames: {title}") for title in titles]
    assert places == sorted(places)
    rows = [line for line in printed.splitlines() if line.startswith("| 2 |")]
    assert len(rows) == 3
    mib_at_peak = float(rows[0].split(" | ")[5])
    assert 1 < mib_at_peak < 1000
    assert "The parts of a step add up to" in printed


def test_networks_are_compared_in_turns_and_the_base_point_runs_once(growth, monkeypatch, capsys):
    measured = []

    def run(command, **_):
        point = growth.json.loads(command[command.index("--point") + 1])
        measured.append((point["frames"], point["batch"], point.get("attn_heads")))
        found = {"seconds": 1.0, "peak": 1.0, "time": {"rest": 1.0}, "flops": {"rest": 1.0}}
        return growth.subprocess.CompletedProcess(command, 0, growth.json.dumps(found))

    monkeypatch.setattr(growth.subprocess, "run", run)
    chosen = "--tasks sampling --rounds 2 --frames 16 32 --batch 1 --with attn_heads=2"
    growth.main(chosen.split())
    assert measured == [(16, 1, None), (16, 1, 2), (32, 1, None), (32, 1, 2)] * 2
    assert capsys.readouterr().out.count("| `attn_heads=2` |") == 6


def test_a_point_that_fails_is_named(growth, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit, match=r'"frames": 3, .* ended with exit code 1'):
        growth.main(["--frames", "3"])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("heads=2", "expected one of .*attn_heads.*, got heads"),
        ("cond_dim=3", "got cond_dim"),
        ("attn_heads=two", "expected attn_heads= and a JSON value"),
        ("attn_heads", "expected attn_heads= and a JSON value"),
    ],
)
def test_settings_that_mean_nothing(growth, setting, message, capsys):
    with pytest.raises(SystemExit):
        growth.main(["--with", setting])
    assert re.search(message, capsys.readouterr().err)
