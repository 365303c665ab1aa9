"""The benchmark of attention heads: it runs, and has a row for each length and setting."""

from pathlib import Path

import torch


def test_its_table(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import attention_heads

    threads = torch.get_num_threads()
    try:
        attention_heads.main(["--frames", "2", "4", "--size", "8", "--dim", "4", "--rounds", "1"])
    finally:
        torch.set_num_threads(threads)
    _, _, *rows = capsys.readouterr().out.splitlines()
    settings = [f"{heads} x {width}" for heads, width in attention_heads.HEADS]
    assert [row.split(" | ")[1] for row in rows] == settings * 2
    assert rows[0].endswith("| 1.00 |")
