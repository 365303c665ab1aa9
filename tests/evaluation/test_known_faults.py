"""The benchmark of known faults: scores of motion rank them where random features do not."""

import sys
from pathlib import Path

import pytest

from video_diffusion_pytorch.evaluation import frame_classifier


@pytest.mark.filterwarnings("ignore:frechet_distance", "ignore:FrameClassifier. more than")
def test_its_table(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    monkeypatch.setattr(frame_classifier, "_STEPS", 30)
    monkeypatch.setattr(sys, "argv", ["known_faults.py", "--clips", "30"])
    import known_faults

    known_faults.main()
    rows = [line.strip("|").split(" | ") for line in capsys.readouterr().out.splitlines()]
    scores = {row[0].strip(): [*map(float, row[1:])] for row in rows[3:]}
    assert len(scores) == 19
    digits, blur = scores["another digit in every frame, 100% of clips"], "blur of 0.8 pixels"
    random, _, _, persistence, constancy, *_ = zip(*scores.values(), strict=True)
    # random features find blur worse than clips whose content changes all the time
    assert scores[blur][0] == max(random) > 2 * digits[0]
    assert digits[3] == max(persistence) > 3 * scores[blur][3]
    assert digits[4] == min(constancy)
    # each with the strength of the fault
    for fault in ("digit from the middle", "shuffled", "frozen", "noise"):
        values = [found[3] for name, found in scores.items() if fault in name]
        assert values == sorted(values)
        assert len(values) == 3
