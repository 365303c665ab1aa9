"""Two processes that train together, started as users start them; they run process_script.py."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from video_diffusion_pytorch import load_diffusion
from video_diffusion_pytorch.cli import main as run_command
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif

SCRIPT = Path(__file__).with_name("process_script.py")
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

spec = importlib.util.spec_from_file_location("process_script", SCRIPT)
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

ANSWERS = ("weights", "averages", "moments")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Fifteen clips of three classes, and what one process makes of them, with a batch for two."""
    folder = tmp_path_factory.mktemp("processes")
    generator = torch.Generator().manual_seed(0)
    for i in range(15):
        of_class = folder / "clips" / "abc"[i % 3]
        of_class.mkdir(parents=True, exist_ok=True)
        clip = torch.rand(1, 4, 10, 10, generator=generator)
        video_tensor_to_gif(clip, of_class / f"{i:02}.gif")
    return folder


@pytest.fixture(scope="module")
def one(folder):
    return run_alone(folder, "one")


@pytest.fixture(scope="module")
def launched(folder, one):
    """What each of two processes found, with whole models and with sharded ones."""
    in_processes([str(SCRIPT), str(folder)])
    results = [torch.load(folder / f"{process}.pt") for process in (0, 1)]
    return {
        kind: {name: [result[kind][name] for result in results] for name in results[0][kind]}
        for kind in ("plain", "sharded")
    }


@pytest.fixture
def plain(launched):
    return launched["plain"]


@pytest.fixture
def sharded(launched):
    return launched["sharded"]


def run_alone(folder, name, **options):
    return script.run(script.make(folder, name, train_batch_size=4, **options))


def in_processes(arguments, launcher=LAUNCH):
    done = subprocess.run(
        [*launcher, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        # a crash in a library then shows where it was called
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a, b):
    """The same bit for bit."""
    for name in ANSWERS:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0)


def assert_close(a, b):
    """The same but for the order of sums."""
    torch.testing.assert_close(a["moments"], b["moments"], rtol=1e-4, atol=1e-6)
    for name in ("weights", "averages"):
        # where a gradient is about 0, Adam makes of its last bits a twentieth of a step at most
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=5e-5)


def assert_measured_alike(logs, others):
    """The same losses, of training and validation, and norms, in the same steps."""
    assert len(logs) == len(others)
    for log, other in zip(logs, others, strict=True):
        assert log.keys() == other.keys()
        for name in log.keys() - {"sample"}:
            # Adam's differences above, after some steps
            tolerance = 1e-4 if name == "grad_norm" else 1e-5
            assert log[name] == pytest.approx(other[name], rel=tolerance), name


@pytest.fixture(params=["plain", "sharded"])
def both(request, launched):
    """Runs of two processes, of whole models and of sharded ones."""
    return request.param, launched[request.param]


def test_two_processes_train_as_one_does_with_the_batch_of_both(both, one):
    first, second = both[1]["whole"]
    assert_equal(first, second)
    assert_close(first, one)
    assert first["step"] == second["step"] == script.STEPS
    for of_process in (first, second):
        assert_measured_alike(of_process["logs"], one["logs"])
    assert "validation_loss_ema_0.99" in one["logs"][-1]
    # and it is not a comparison of runs that stand still, or of a network that ignores its labels
    assert (one["weights"] - one["averages"][1]).abs().max() > 1e-3
    assert 0 in one["told"]
    assert 1 in one["told"]


def test_split_batches_divides_the_batch(plain, one):
    first, second = plain["split"]
    assert_equal(first, second)
    # the losses of the second step tell of the weights after the first
    assert_measured_alike(first["logs"], one["logs"][:2])
    assert [*map(len, first["seen"])] == [2] * 4


def test_each_clip_is_seen_once_an_epoch(both, one):
    first, second = both[1]["whole"]
    joined = [a + b for a, b in zip(first["seen"], second["seen"], strict=True)]
    assert joined == one["seen"]
    assert torch.equal(torch.cat([first["looks"], second["looks"]], dim=1), one["looks"])
    names = [name for batch in joined for name in batch]
    clips = len(set(names))
    assert clips == 11  # of 15, less three to validate on and one to sample for
    assert len(names) > 4 * clips
    for start in range(0, len(names) - clips + 1, clips):
        assert set(names[start : start + clips]) == set(names)
    assert {*Counter(names).values()} <= {4, 5}


def test_only_the_main_process_writes(both, folder, one):
    kind, found = both
    assert [run["is_main"] for run in found["whole"]] == [True, False]
    name = "whole" if kind == "plain" else "sharded"
    ending = ".pt" if kind == "plain" else ".sharded"
    wanted = [file.replace(".pt", ending) for file in files(folder / "one")]
    written = [file for file in files(folder / name) if ".sharded/" not in file]
    # samples and metrics included; hidden files are what somebody left half-written
    assert written == wanted
    assert [line["step"] for line in metrics(folder / name)] == [
        line["step"] for line in metrics(folder / "one")
    ]


def test_samples_are_those_of_one_process(both, folder):
    name = "whole" if both[0] == "plain" else "sharded"
    for milestone in (1, 2):
        theirs, ours = (np.load(folder / n / f"{milestone}.npy") for n in (name, "one"))
        np.testing.assert_allclose(theirs, ours, atol=1e-3)
        assert (folder / name / f"{milestone}.txt").read_text() == (
            folder / "one" / f"{milestone}.txt"
        ).read_text()
    assert len(ours) == 4
    assert np.ptp(ours) > 0.5


def test_a_resumed_run_ends_bit_identical(both):
    for whole, resumed in zip(both[1]["whole"], both[1]["resumed"], strict=True):
        assert resumed["resumed_from"] is not None
        assert 0 < len(resumed["logs"]) < script.STEPS
        assert_equal(resumed, whole)
        assert resumed["seen"] == whole["seen"][-len(resumed["seen"]) :]
        after = whole["logs"][-len(resumed["logs"]) :]
        assert [{**log, "sample": None} for log in resumed["logs"]] == [
            {**log, "sample": None} for log in after
        ]


def test_a_checkpoint_of_one_process_goes_on_in_two(both, one):
    first, second = both[1]["of one"]
    assert first["resumed_from"] == "model-1.pt"
    assert len(first["logs"]) == 3
    assert_equal(first, second)
    assert_close(first, one)


def test_fine_tuning_starts_alike_in_two_processes(both, folder):
    first, second = both[1]["tuned"]
    alone = script.tuned(folder, f"tuned-alone-{both[0]}", train_batch_size=4)
    assert alone["step"] == first["step"] == 2
    assert_equal(first, second)
    assert_close(first, alone)
    # a snapshot of its averages is one whole file
    file = folder / ("tuned" if both[0] == "plain" else "tuned-sharded") / "averages-2.pt"
    for std, average in zip((0.1, 0.05), first["averages"], strict=True):
        assert torch.equal(script.weights(load_diffusion(file, averaged=std)), average)


def test_a_checkpoint_of_two_processes_goes_on_in_one(plain, sharded, folder, one, capsys):
    ends = {}
    assert run_command(["gather", str(folder / "sharded" / "model-1.sharded")]) is None
    gathered = folder / "sharded" / "model-1.pt"
    assert str(gathered) in capsys.readouterr().out
    for name, path in {
        "plain": folder / "whole" / "model-1.pt",
        "sharded": folder / "sharded" / "model-1.sharded",
        "gathered": gathered,
    }.items():
        ends[name] = run_alone(folder, f"alone-{name}", resume=path)
        assert ends[name]["resumed_from"] == path.name
        assert len(ends[name]["logs"]) == 3
        assert_close(ends[name], one)
        assert ends[name]["seen"] == one["seen"][-6:]
    assert_equal(ends["sharded"], ends["gathered"])
    gathered.unlink()


def test_a_signal_to_one_process_stops_both(plain, folder):
    first, second = plain["stopped"]
    # it came after the third step, and the next one tells
    assert first["step"] == second["step"] == 4
    assert (first["end"], second["end"]) == (None, 143)
    assert_equal(first, second)
    assert plain["resumed"][0]["resumed_from"] == "model-1.333333.pt"


def test_a_bad_loss_on_one_process_leaves_the_step_out_on_both(plain, folder):
    first, second = plain["bad"]
    for run in (first, second):
        assert [log["skipped"] for log in run["logs"]] == [False, True, False]
        assert math.isnan(run["logs"][1]["loss"])
        assert math.isfinite(run["logs"][2]["loss"])
        assert run["weights"].isfinite().all()
    assert_equal(first, second)
    # the clips that were to blame are named, and no others
    (event,) = [line for line in metrics(folder / "bad") if "event" in line]
    assert event["clips"] == second["seen"][2] + second["seen"][3]


def test_the_reason_reaches_all_processes(plain, sharded):
    main, other = plain["missing"]
    assert main.startswith("FileNotFoundError: expected a folder of videos")
    assert other == f"RuntimeError: Trainer: the main process stopped, see there: {main}"
    for main, other in (plain["gone"], sharded["gone"]):
        assert main.startswith("OSError: the checkpoint ")
        assert main.split(": ", 1)[1] in other
    for reason in plain["odd"]:
        assert reason == (
            "ValueError: Trainer: with split_batches, train_batch_size must be a multiple of the "
            "number of processes, 2, got 3; change one of them"
        )


def test_the_others_wait_for_what_the_main_process_makes_first(plain):
    # for longer than a collective would
    assert plain["waited"] == [15, 15]


def test_one_process_that_fails_saves_for_all(plain, folder, one):
    assert plain["alone"][1] == "ValueError: the disk of process 1 is gone"
    [saved] = [file for file in files(folder / "alone") if file.startswith("model")]
    assert saved == "model-0.02.pt"
    state = torch.load(folder / "alone" / saved)
    assert state["step"] == 2
    assert state["data"]["position"] == 2 * 8
    # none of the other's random states, whose process could not be asked
    assert len(state["random_states"]) == 1
    resumed = run_alone(folder, "after", resume=folder / "alone" / saved, train_num_steps=3)
    assert resumed["logs"][0]["loss"] == pytest.approx(one["logs"][2]["loss"], rel=1e-5)


def test_a_loss_that_goes_past_the_exchange_of_gradients_is_refused(plain):
    for reason in plain["past"]:
        assert reason == (
            "RuntimeError: Trainer: compute_loss must call self.parallel_model, so that the "
            "processes exchange their gradients, got one that calls another model; replace "
            "self.model by self.parallel_model in it"
        )


def test_the_command_trains_in_two_processes_and_speaks_once(folder, tmp_path):
    options = {
        "results_folder": tmp_path,
        "dim": 4,
        "dim_mults": [1, 2],
        "attn_heads": 1,
        "channels": 1,
        "image_size": 8,
        "num_frames": 2,
        "timesteps": 2,
        "train_batch_size": 2,
        "train_num_steps": 2,
        "save_and_sample_every": 2,
        "num_sample_rows": 1,
        "num_workers": 0,
        "device": "cpu",
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    out = in_processes(["-m", "video_diffusion_pytorch", "train", str(folder / "clips"), *given])
    said = [line.split(":")[0] for line in out.stdout.splitlines()]
    assert said == ["trained to step 2", "samples"]
    assert out.stderr.count("| 0/2") == 1  # one bar
    assert files(tmp_path) == ["1.gif", "1.npy", "metrics.jsonl", "model-1.pt"]


def test_they_evaluate_as_one_process(one, plain, sharded):
    expected = one["logs"][-1]["fvd"]
    assert expected > 0
    for found in (*plain["whole"], *sharded["whole"]):
        assert found["logs"][-1]["fvd"] == pytest.approx(expected, rel=1e-2)
