"""Results in files, and which of them may be compared."""

import json

import pytest

from video_diffusion_pytorch.evaluation.results import (
    compare_results,
    differences,
    read_result,
    write_result,
)

PROTOCOL = {
    "clips": {"size": [16, 16], "number": 500},
    "samples": {"steps": 20, "seed": 0},
    "classes": None,
}


def result(score=1.0, **samples):
    changed = {**PROTOCOL, "samples": {**PROTOCOL["samples"], **samples}}
    return {"scores": {"fvd": score}, "protocol": changed, "model": {"step": 3}}


def test_a_file_holds_the_scores_and_the_protocol(tmp_path):
    write_result(result(float("nan")), tmp_path / "a.json")
    found = read_result(tmp_path / "a.json")
    assert found["scores"] == {"fvd": None}
    assert found["protocol"] == PROTOCOL
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    write_result(result(2.0), tmp_path / "a.json")
    assert read_result(tmp_path / "a.json")["scores"] == {"fvd": 2.0}
    long = tmp_path / ("x" * 250 + ".json")  # as long as file systems allow
    write_result(result(2.0), long)
    assert read_result(long)["scores"] == {"fvd": 2.0}


def test_files_that_hold_no_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/\.a\.json"):
        write_result(result(), tmp_path / "none" / "a.json")
    with pytest.raises(FileNotFoundError, match=r"b\.json"):
        read_result(tmp_path / "b.json")
    for content in ("scores", "[1]", json.dumps({"format": 2, "scores": {}, "protocol": {}})):
        (tmp_path / "b.json").write_text(content)
        with pytest.raises(
            ValueError, match=r"b.json must be a result in JSON of format 1, got an"
        ):
            read_result(tmp_path / "b.json")


def test_differences_are_named_by_their_path():
    assert differences(PROTOCOL, PROTOCOL) == {}
    other = {"clips": {"size": [16, 16], "number": 400}, "samples": {"steps": 20}, "classes": None}
    assert differences(PROTOCOL, other) == {
        "clips.number": (500, 400),
        "samples.seed": (0, None),
    }
    # a network where the other has none
    assert differences(PROTOCOL, {**PROTOCOL, "classes": {"name": "x"}}) == {
        "classes.name": (None, "x")
    }


def test_results_of_one_protocol_are_compared(tmp_path):
    write_result(result(2.0), tmp_path / "a.json")
    write_result({**result(1.0), "scores": {"fvd": 1.0, "fid_avg": 3.0}}, tmp_path / "b.json")
    found = compare_results([tmp_path / "a.json", tmp_path / "b.json"])
    assert found == {"fvd": [2.0, 1.0], "fid_avg": [None, 3.0]}


def test_results_of_different_protocols_are_not():
    few, many = result(3.0), result(2.0, steps=50, seed=1)
    with pytest.raises(
        ValueError,
        match=r"have one protocol, got results 1 and 3 with samples.steps 20 and 50, "
        r"samples.seed 0 and 1; evaluate again, or allow these fields to differ",
    ):
        compare_results([few, few, many])
    with pytest.raises(ValueError, match=r"with samples.seed 0 and 1;"):
        compare_results([few, many], allow=["samples.steps"])
    assert compare_results([few, many], allow=["samples"]) == {"fvd": [3.0, 2.0]}
    # what is allowed to differ is a field, not the beginning of its name
    with pytest.raises(ValueError, match=r"with samples.steps 20 and 50"):
        compare_results([few, many], allow=["sam"])
