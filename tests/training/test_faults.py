"""What goes wrong in a training run: bad numbers, dead processes, signals, disks, memory."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import _utils
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.training.checkpoint import list_checkpoints
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.memory import TrainingOutOfMemory
from video_diffusion_pytorch.training.metrics import read_metrics

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
BOTH = (signal.SIGINT, signal.SIGTERM)
# Of a checkpoint, what the weights to come follow from
LEARNT = ("step", "model", "ema", "emas", "optimizer", "scheduler", "data")


def learnt(trainer):
    state = trainer.checkpoint_state()
    return json.dumps({n: state[n] for n in LEARNT}, default=lambda value: value.tolist())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


# numbers that are not finite


def poisoned(*steps, how="loss"):
    """A Trainer whose loss, or whose gradients, are not finite at these steps, from 0."""

    class Poisoned(Trainer):
        def compute_loss(self, videos, **kwargs):
            losses = super().compute_loss(videos, **kwargs)
            if self.step not in steps:
                return losses
            if how == "loss":
                return losses * float("nan")
            # 0, whose derivative is not a number
            weight = next(self.model.parameters())
            return losses + (weight * 0).sum().sqrt() * 0

    return Poisoned


class Hole(Trainer):
    """Twelve clips, of which number 7 has one value that is not a number."""

    def make_dataset(self, folder, diffusion):
        dataset = super().make_dataset(folder, diffusion)
        draw_clip = dataset.draw_clip

        def with_hole(index, generator):
            video = draw_clip(index, generator)
            if index == 7:
                video = video / 255
                video[0, 1, 2, 3] = float("nan")
            return video

        dataset.draw_clip = with_hole
        return dataset


# the range of the first clips is looked at, too
@pytest.mark.filterwarnings("ignore:GaussianDiffusion. clips must be in")
def test_a_clip_with_a_hole_is_named_and_its_step_skipped(make_trainer, clips, results, caplog):
    trainer = make_trainer(Hole, train_num_steps=6, log_every=2, step_start_ema=0)
    states, logs = [learnt(trainer)], []

    def note(log):
        logs.append(log)
        states.append(learnt(trainer))

    trainer.train(log_fn=note)
    # twelve clips are three steps of two micro-batches of two
    skipped = [log["step"] for log in logs if log["skipped"]]
    assert len(skipped) == 2
    assert (skipped[0] - 1) // 3 == 0
    assert (skipped[1] - 1) // 3 == 1
    assert [log["step"] for log in logs] == [1, 2, 3, 4, 5, 6]
    for log, before, after in zip(logs, states, states[1:], strict=False):
        before, after = json.loads(before), json.loads(after)
        for name in ("model", "ema", "optimizer"):
            assert (before[name] == after[name]) == log["skipped"]
        assert np.isnan(log["loss"]) == log["skipped"]
        assert after["step"] == before["step"] + 1
        assert after["data"]["position"] == before["data"]["position"] + 4
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())

    # only the clip to blame is named
    bad = str(clips / "07.gif")
    messages = [record.getMessage() for record in caplog.records]
    assert [f"step {step} is skipped" in m for step, m in zip(skipped, messages, strict=True)]
    assert all(message.endswith(f"its clips: {bad}") for message in messages)
    lines = read_metrics(results / "metrics.jsonl")
    events = [line for line in lines if line.get("event") == "skipped step"]
    assert [(line["step"], line["clips"]) for line in events] == [(s, [bad]) for s in skipped]
    # and the numbers of the other steps are theirs alone
    measured = [line for line in lines if "loss_by_noise" in line]
    assert sum(line["steps"] for line in measured) == 4
    assert all(line["loss"] is None or np.isfinite(line["loss"]) for line in measured)
    assert measured[-1]["skipped_steps"] == 2
    assert trainer.skipped_steps == read_checkpoint(results / "model-3.pt")["skipped_steps"] == 2


@pytest.mark.parametrize("how", ["loss", "gradients"])
def test_a_skipped_step_changes_nothing(make_trainer, how, caplog):
    trainer = make_trainer(poisoned(2, how=how), ema_decay=(0.9, 0.5), step_start_ema=0)
    for _ in range(2):
        trainer.train_step()
    before = json.loads(learnt(trainer))
    loss = trainer.train_step()
    after = json.loads(learnt(trainer))
    assert np.isfinite(loss) == (how == "gradients")
    assert trainer.step == 3
    assert trainer.step_metrics["skipped"]
    for name in ("model", "ema", "emas", "optimizer"):
        assert before[name] == after[name]
    assert f"step 3 is skipped, as its {how} " in caplog.text
    # no clip has a loss that is not finite, so that all may be to blame
    if how == "gradients":
        assert caplog.text.count(".gif") == 4
    trainer.train_step()
    assert not trainer.step_metrics["skipped"]
    assert json.loads(learnt(trainer))["model"] != before["model"]


def test_a_loss_of_the_user_may_be_their_mean(make_trainer, caplog):
    class Mean(poisoned(0)):
        def compute_loss(self, videos, **kwargs):
            return super().compute_loss(videos, **kwargs).mean()

    trainer = make_trainer(Mean)
    trainer.train_step()
    assert trainer.step_metrics["skipped"]
    assert caplog.text.count(".gif") == 4
    trainer.train_step()
    assert not trainer.step_metrics["skipped"]


@pytest.mark.parametrize(
    "schedule", ["cosine", lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2)]
)
def test_a_bad_first_step_lets_the_schedule_continue(make_trainer, schedule):
    trainer = make_trainer(poisoned(0), lr_schedule=schedule, save_and_sample_every=100)
    logs = []
    trainer.train(log_fn=logs.append)
    assert [log["skipped"] for log in logs] == [True, False, False, False]
    whole = make_trainer(lr_schedule=schedule, results_folder="", save_and_sample_every=100)
    rates = []
    for _ in range(4):
        whole.train_step()
        rates.append(whole.opt.param_groups[0]["lr"])
    assert [log["lr"] for log in logs] == rates


def test_many_bad_steps_in_a_row_end_the_run(make_trainer, results, caplog):
    trainer = make_trainer(
        poisoned(3, 4, 5, 6, 7), train_num_steps=20, max_skipped_steps=3, save_every=1
    )
    good = []
    message = (
        r"^Trainer: loss and gradients must be finite, got 3 steps in a row that are not; "
        r"the last checkpoint is .*model-1\.pt: train on "
        r"with a smaller train_lr, with max_grad_norm=1\.0 or without half precision, and look at "
        r"the clips that were named$"
    )
    with pytest.raises(FloatingPointError, match=message):
        trainer.train(log_fn=lambda log: good.append(learnt(trainer)))
    assert trainer.step == 6
    # the last checkpoint is one after which a loss was finite
    resumed = make_trainer(train_num_steps=7)
    resumed.load(-1)
    assert resumed.step == 2
    resumed.train()
    assert resumed.step == 7
    # the weights of the last good step are not lost
    resumed.load("not-finite-step3")
    assert resumed.step == 3
    assert json.loads(learnt(resumed))["model"] == json.loads(good[2])["model"]


class BadClips(Trainer):
    """One clip of each batch has a loss that is not finite, from a step on."""

    first = 2

    def compute_loss(self, videos, **kwargs):
        losses = super().compute_loss(videos, **kwargs)
        return losses * torch.tensor([float("nan") if self.step >= self.first else 1.0, 1.0])


@pytest.mark.parametrize(
    ("first", "kept"), [(2, {"model-1.pt": 2}), (3, {"model-1.pt": 2, "model-2.pt": 4})]
)
def test_bad_clips_put_no_checkpoint_aside(make_trainer, results, monkeypatch, first, kept):
    # the other clips show that the weights are whole
    monkeypatch.setattr(BadClips, "first", first)
    trainer = make_trainer(BadClips, max_skipped_steps=1, keep_last=1)
    with pytest.raises(FloatingPointError, match="got 1 steps in a row"):
        trainer.train()
    assert {p.name: read_checkpoint(p)["step"] for p in results.glob("model-*")} == kept
    again = make_trainer(resume="auto")
    # clips of a step that was counted don't come again
    assert (again.step, again.order.position) == (max(kept.values()), max(kept.values()) * 2 * 2)


def test_bad_steps_before_any_checkpoint(make_trainer):
    trainer = make_trainer(poisoned(*range(9)), max_skipped_steps=2)
    trainer.train_step()
    with pytest.raises(FloatingPointError, match="; there is no checkpoint yet: train on"):
        trainer.train_step()


def test_a_good_step_begins_the_count_anew(make_trainer):
    trainer = make_trainer(poisoned(0, 1, 3, 4, 6, 7), max_skipped_steps=3, train_num_steps=9)
    trainer.train()
    assert trainer.step == 9
    assert trainer.skipped_steps == 6


class Spike(Trainer):
    """Whose weights one step throws far away, with a finite loss."""

    def train_step(self, **kwargs):
        for group in self.opt.param_groups:
            group["lr"] = 1e30 if self.step == 4 else 1e-3
        return super().train_step(**kwargs)


SGD = {"optimizer": partial(torch.optim.SGD, lr=1e-3), "train_lr": 1e-4}


@pytest.mark.parametrize("keep_last", [1, 2, None])
def test_diverged_weights_displace_no_checkpoint(make_trainer, results, keep_last, caplog):
    options = {**SGD, "train_num_steps": 40, "save_every": 1, "keep_last": keep_last}
    trainer = make_trainer(Spike, max_skipped_steps=3, **options)
    with pytest.raises(FloatingPointError, match=r"the last checkpoint is .*model-2\.pt: train"):
        trainer.train()
    assert max(p.abs().max() for p in trainer.model.parameters()) > 1e20
    # of step 5, after which no loss was finite
    aside = results / "model-not-finite-step5.pt"
    assert f"its weights are in {aside}; the last checkpoint is" in caplog.text
    assert read_checkpoint(aside)["step"] == 5
    whole = [read_checkpoint(path)["step"] for path in list_checkpoints(results)]
    assert whole == [1, 2, 3, 4][-(keep_last or 4) :]
    again = make_trainer(resume="auto", **{**options, "train_num_steps": 7})
    assert again.step == 4
    again.load(-1)
    again.train()
    assert (again.step, again.skipped_steps) == (7, 0)
    assert aside.exists()


def test_a_signal_while_steps_are_skipped_saves_no_diverged_weights(make_trainer, results):
    def stop(log):
        if log["step"] == 6:
            send(signal.SIGTERM)

    trainer = make_trainer(Spike, **SGD, train_num_steps=40, save_every=4, keep_last=1)
    with pytest.raises(SystemExit):
        trainer.train(log_fn=stop)
    assert sorted(p.name for p in results.glob("model*")) == [
        "model-2.pt",
        "model-not-finite-step6.pt",
    ]
    assert make_trainer(**SGD, resume="auto").step == 4


def test_a_last_step_that_is_skipped_is_no_checkpoint_to_continue_from(make_trainer, results):
    make_trainer(poisoned(5), train_num_steps=6, save_every=5).train()
    assert [path.name for path in list_checkpoints(results)] == ["model-1.pt", "model-2.pt"]
    trainer = make_trainer(resume="auto")
    assert trainer.step == 4
    # no step has shown that its weights are whole, but they may be
    trainer.load("not-finite-step5")
    assert trainer.step == 5


def test_a_checkpoint_that_is_due_at_a_bad_step_is_written_after_it(make_trainer, results, caplog):
    make_trainer(poisoned(3), train_num_steps=6, save_and_sample_every=4).train()
    expected = "the checkpoint of step 4, which was skipped, follows after the next good step"
    assert expected in caplog.text
    found = {path.name: read_checkpoint(path)["step"] for path in list_checkpoints(results)}
    assert found == {"model-1.25.pt": 5, "model-1.5.pt": 6}


# other errors


@pytest.mark.parametrize(("step", "accumulate"), [(3, 1), (3, 2), (4, 2)])
def test_an_error_of_the_clips_ends_with_a_checkpoint(
    make_trainer, results, tmp_path, caplog, step, accumulate
):
    options = {
        "train_num_steps": 6,
        "gradient_accumulate_every": accumulate,
        "save_and_sample_every": 100,
        "horizontal_flip": True,
        "seed": 3,
    }
    whole = make_trainer(results_folder=tmp_path / "whole", **options)
    whole.train()
    error = RuntimeError("the disk is gone")

    class Gone(Trainer):
        batches = 0

        def next_batch(self):
            self.batches += 1
            if self.batches == step * accumulate:
                raise error
            return super().next_batch()

    trainer = make_trainer(Gone, **options)
    with pytest.raises(RuntimeError, match=r"^the disk is gone") as caught:
        trainer.train()
    assert caught.value is error
    [saved] = list_checkpoints(results)
    said = f"training ended at step {step - 1}, and its checkpoint is {saved}"
    assert said in caplog.text
    assert getattr(error, "__notes__", [said]) == [said]
    assert read_metrics(results / "metrics.jsonl")[-1]["step"] == step - 1
    resumed = make_trainer(resume="auto", **options)
    assert resumed.step == step - 1
    resumed.train()
    assert learnt(resumed) == learnt(whole)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("step", [0, 2, 3])
def test_after_an_error_the_same_trainer_continues_with_the_same_clips(
    make_trainer, tmp_path, step, kind
):
    class Fails(Trainer):
        left = 2

        def compute_loss(self, videos, **kwargs):
            if self.step == step:
                self.left -= 1
                if not self.left:
                    raise kind("once")
            return super().compute_loss(videos, **kwargs)

    whole = make_trainer(results_folder=tmp_path / "whole", seed=3)
    whole.train()
    trainer = make_trainer(Fails, seed=3)
    with pytest.raises(kind, match="once"):
        trainer.train()
    assert trainer.step == step
    trainer.train()
    assert learnt(trainer) == learnt(whole)


def test_an_error_during_an_update_is_not_saved(make_trainer, results):
    trainer = make_trainer(save_and_sample_every=100)
    step = trainer.opt.step

    def failing(*args, **kwargs):
        step(*args, **kwargs)
        if trainer.step == 2:
            raise RuntimeError("in the midst")

    trainer.opt.step = failing
    with pytest.raises(RuntimeError, match="in the midst"):
        trainer.train()
    assert not list_checkpoints(results)


def test_an_error_with_infinite_weights_is_not_saved(make_trainer, results):
    trainer = make_trainer(save_and_sample_every=100)

    def spoil(log):
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(torch.inf)
        raise KeyError("log_fn")

    with pytest.raises(KeyError):
        trainer.train(log_fn=spoil)
    assert not list_checkpoints(results)


# what is written for people


class Odd(Trainer):
    """Two classes, one with a name that is no text."""

    def save_sample(self, videos, milestone):
        path = super().save_sample(videos, milestone)
        if self.step == 2:
            raise OSError(28, "No space left on device")
        return path


def test_names_that_are_no_text_and_other_trifles_end_no_training(clips, tmp_path, results, caplog):
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    for i, path in enumerate(sorted(clips.iterdir())):
        (clips / ("b", odd)[i % 2]).mkdir(exist_ok=True)
        path.rename(clips / ("b", odd)[i % 2] / path.name)
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1, num_classes=2)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
    options = {"results_folder": results, "device": "cpu", "num_workers": 0, "num_sample_rows": 2}
    options |= {"conditions": "label", "train_batch_size": 2, "save_and_sample_every": 2}
    trainer = Odd(diffusion, clips, train_num_steps=4, **options)
    logs = []

    def log(line):
        logs.append(line)
        if line["step"] == 3:
            trainer.metrics_file.path = results  # a folder can't be written

    trainer.train(log_fn=log)
    assert trainer.step == 4
    assert "sample" not in logs[1]
    assert logs[3]["sample"] == str(results / "2.gif")
    assert "row 1, column 1" in (results / "2.txt").read_text(encoding="utf-8")
    assert "caf?" in (results / "2.txt").read_text(encoding="utf-8")
    assert "training continues without a milestone's samples: OSError: [Errno 28]" in caplog.text
    assert "training continues without a line of metrics.jsonl: IsADirectoryError" in caplog.text
    assert read_checkpoint(results / "model-2.pt")["config"]["clips"]["class_names"] == ("b", odd)
    assert Trainer(diffusion, clips, resume="auto", **options).step == 4


def test_a_results_folder_that_is_deleted_is_made_again(make_trainer, results, caplog):
    def delete(log):
        if log["step"] == 3:
            shutil.rmtree(results)

    trainer = make_trainer(train_num_steps=5, log_every=1)
    trainer.train(log_fn=delete)
    assert names(results) == ["2.gif", "2.npy", "metrics.jsonl", "model-2.5.pt", "model-2.pt"]
    assert caplog.text.count("is gone: it is made again") == 1
    assert [line["step"] for line in read_metrics(results / "metrics.jsonl")] == [4, 5]


RUN = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
file.write("process 7 on elsewhere")
file.flush()
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
time.sleep(60)
"""


@needs_fork
def test_a_deleted_results_folder_that_another_run_took_is_left_to_it(make_trainer, results):
    runs = []

    def replace(log):
        shutil.rmtree(results)
        results.mkdir()
        command = [sys.executable, "-c", RUN, str(results / ".lock")]
        runs.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        runs[0].stdout.readline()

    trainer = make_trainer()
    try:
        with pytest.raises(BlockingIOError, match="results, in which process 7 on elsewhere"):
            trainer.train(log_fn=replace)
        assert names(results) == [".lock"]
        # nor does it write there when it is asked again
        with pytest.raises(BlockingIOError, match="in which process 7 on elsewhere"):
            trainer.train()
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()
    trainer.train()
    assert trainer.step == 4
    assert "model-2.pt" in names(results)


def test_a_results_folder_that_is_no_longer_one_is_reported_before_training(make_trainer, results):
    trainer = make_trainer()
    results.rmdir()
    results.write_text("no folder")
    with pytest.raises(OSError, match=r"File exists: .*results"):
        trainer.train()
    assert trainer.step == 0


def test_samples_of_a_killed_milestone_are_drawn_when_the_run_continues(
    make_trainer, results, tmp_path
):
    make_trainer(results_folder=tmp_path / "whole").train()

    class Killed(Trainer):
        def save_sample(self, videos, milestone):
            # the grid is written last
            super().save_sample(videos, milestone).unlink()
            raise SystemExit

    for _ in range(2):
        with pytest.raises(SystemExit):
            make_trainer(Killed, resume="auto").train()
    assert (results / "1.npy").exists()
    trainer = make_trainer(resume="auto")
    assert trainer.step == 2
    trainer.train()
    assert names(results) == names(tmp_path / "whole")
    for name in ("1.gif", "1.npy", "2.gif", "2.npy"):
        assert (results / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # also where no step is left
    (results / "2.gif").unlink()
    make_trainer(resume="auto").train()
    assert names(results) == names(tmp_path / "whole")


def test_a_folder_in_which_a_run_trains_is_refused(make_trainer, results):
    other = make_trainer()

    def train_too(log):
        with pytest.raises(BlockingIOError, match=r"only one run at a time .*results, in"):
            other.train()
        assert (results / ".lock").exists()

    trainer = make_trainer(train_num_steps=2)
    trainer.train(log_fn=train_too)
    assert other.step == 0
    assert not (results / ".lock").exists()
    # afterwards it may
    other.train()
    assert other.step == 4


# processes that read clips


@pytest.fixture
def soon(monkeypatch):
    """Lets deaths be noticed sooner than after five seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    monkeypatch.setattr(_utils, "MP_STATUS_CHECK_INTERVAL", 0.1)


class Deadly(Trainer):
    """Whose clips kill the process that reads them, those of a number and as long as wanted."""

    flag = None
    number = 7

    def make_dataset(self, folder, diffusion):
        dataset = super().make_dataset(folder, diffusion)
        main, draw_clip = os.getpid(), dataset.draw_clip

        def dying(index, generator):
            if index == self.number and os.getpid() != main and not self.is_over():
                self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return draw_clip(index, generator)

        dataset.draw_clip = dying
        return dataset

    def is_over(self):
        return self.flag is None or self.flag.exists()


@needs_fork
@pytest.mark.usefixtures("soon")
def test_a_run_outlives_a_dead_process(make_trainer, tmp_path, caplog):
    whole = make_trainer(Deadly, num_workers=2, horizontal_flip=True, train_num_steps=6)
    torch.manual_seed(3)
    whole.train()
    assert not caplog.records

    class Once(Deadly):
        flag = tmp_path / "died"

    trainer = make_trainer(
        Once,
        num_workers=2,
        horizontal_flip=True,
        train_num_steps=6,
        results_folder=tmp_path / "other",
    )
    torch.manual_seed(3)
    trainer.train()
    assert (tmp_path / "died").exists()
    assert [r.getMessage().split(" (")[0] for r in caplog.records] == [
        "a worker that reads clips died"
    ]
    assert learnt(trainer) == learnt(whole)


@needs_fork
@pytest.mark.usefixtures("soon")
def test_a_clip_that_always_kills_ends_the_run(make_trainer, tmp_path):
    class Always(Deadly):
        flag = tmp_path / "died"

        def is_over(self):
            return False

    trainer = make_trainer(Always, num_workers=2, train_num_steps=6)
    with pytest.raises(RuntimeError, match=r"must stay alive, got 3 deaths at one batch .*; look"):
        trainer.train()


# signals to stop


def send(number):
    os.kill(os.getpid(), number)


def handlers():
    return [signal.getsignal(number) for number in BOTH]


@pytest.mark.parametrize(
    ("number", "error", "where"),
    [
        (signal.SIGINT, KeyboardInterrupt, "in the step"),
        (signal.SIGTERM, SystemExit, "in log_fn"),
    ],
)
def test_a_signal_lets_the_step_end_and_is_saved(
    make_trainer, results, tmp_path, caplog, number, error, where
):
    # in the step, each micro-batch tells: a second one would end it at once
    options = {"train_num_steps": 6, "gradient_accumulate_every": 1 if "step" in where else 2}
    whole = make_trainer(results_folder=tmp_path / "whole", **options)
    whole.train()

    class Told(Trainer):
        def compute_loss(self, videos, **kwargs):
            if self.step == 2 and where == "in the step":
                send(number)
            return super().compute_loss(videos, **kwargs)

    def log_fn(log):
        steps.append(log["step"])
        if log["step"] == 3 and where == "in log_fn":
            send(number)

    steps, before = [], handlers()
    trainer = make_trainer(Told, num_workers=2, **options)
    with pytest.raises(error) as end:
        trainer.train(log_fn=log_fn)
    assert end.value.code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert steps == [1, 2, 3]
    assert names(results) == ["1.gif", "1.npy", "metrics.jsonl", "model-1.5.pt", "model-1.pt"]
    assert read_metrics(results / "metrics.jsonl")[-1]["step"] == 3
    assert "training is stopped at step 3: the last checkpoint is" in caplog.text
    assert handlers() == before

    resumed = make_trainer(resume="auto", **options)
    assert resumed.step == 3
    resumed.train()
    assert learnt(resumed) == learnt(whole)


def test_a_second_signal_ends_at_once(make_trainer, results):
    class Told(Trainer):
        def compute_loss(self, videos, **kwargs):
            if self.step == 2:
                send(signal.SIGTERM)
                send(signal.SIGTERM)
            return super().compute_loss(videos, **kwargs)

    before = handlers()
    trainer = make_trainer(Told)
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.step == 2
    assert names(results) == ["1.gif", "1.npy", "metrics.jsonl", "model-1.pt"]
    assert handlers() == before


def test_samples_are_not_waited_for(make_trainer, results):
    class Told(Trainer):
        def sample(self, ema_decay=None):
            send(signal.SIGTERM)
            raise AssertionError("it went on to sample")

    before = handlers()
    trainer = make_trainer(Told)
    with pytest.raises(SystemExit) as end:
        trainer.train()
    assert end.value.code == 143
    assert names(results) == ["metrics.jsonl", "model-1.pt"]
    assert handlers() == before
    assert make_trainer(resume="auto").step == 2


def test_a_signal_while_saving_leaves_the_samples_out(make_trainer, results):
    class Told(Trainer):
        saved = 0

        def checkpoint_state(self):
            self.saved += 1
            send(signal.SIGTERM)
            return super().checkpoint_state()

    trainer = make_trainer(Told)
    with pytest.raises(SystemExit):
        trainer.train()
    assert trainer.saved == 1
    assert names(results) == ["metrics.jsonl", "model-1.pt"]
    assert make_trainer(resume="auto").step == 2


def test_handlers_are_put_back_after_any_end(make_trainer):
    def fail(log):
        during.append(handlers())
        raise ZeroDivisionError

    during, before = [], handlers()
    with pytest.raises(ZeroDivisionError):
        make_trainer().train(log_fn=fail)
    assert handlers() == before
    make_trainer(train_num_steps=1).train()
    assert handlers() == before
    # they were others, or all this says nothing
    assert all(now != then for now, then in zip(during[0], before, strict=True))


def test_another_thread_trains_without_handlers(make_trainer):
    during, before = [], handlers()
    trainer = make_trainer(train_num_steps=2, num_workers=1)
    thread = threading.Thread(
        target=trainer.train, kwargs={"log_fn": lambda log: during.append(handlers())}
    )
    thread.start()
    thread.join()
    assert trainer.step == 2
    assert during == [before, before]


MODEL = """
import torch
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D

def make(steps, results, **options):
    torch.manual_seed(1)
    unet = Unet3D(dim=4, dim_mults=(1,), channels=1, attn_heads=1)
    diffusion = GaussianDiffusion(unet, image_size=8, num_frames=3, timesteps=2)
    return Trainer(
        diffusion, "clips", train_batch_size=2, train_lr=1e-2, train_num_steps=steps,
        num_sample_rows=1, results_folder=results, device="cpu", num_workers=2, seed=5,
        horizontal_flip=True, step_start_ema=0, update_ema_every=1, lr_schedule="cosine",
        resume="auto", save_and_sample_every=1000, **options,
    )
"""
SCRIPT = """
import sys, time
trainer = make(16, "stopped")

def log_fn(log):
    print(log["step"], flush=True)
    time.sleep(0.3)

trainer.train(log_fn=log_fn)
"""
CONFIG = """
unet: {dim: 4, dim_mults: [1, 2], channels: 1, attn_heads: 1}
diffusion: {image_size: 8, num_frames: 3, timesteps: 2}
trainer: {train_batch_size: 2, train_num_steps: 100000, num_sample_rows: 1, device: cpu,
  num_workers: 2, save_and_sample_every: 100000}
"""


def start(*argv):
    # in a group of its own, as what a terminal runs
    return subprocess.Popen(
        [sys.executable, *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_signals_stop_processes(clips, tmp_path, monkeypatch):
    """SIGTERM to a script; Ctrl+C, which its readers get as well, to another and the command."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(MODEL + SCRIPT)
    Path("other.py").write_text((MODEL + SCRIPT).replace("stopped", "other"))
    Path("small.yaml").write_text(CONFIG)
    script, other = start("script.py"), start("other.py")
    command = start("-m", "video_diffusion_pytorch", "train", "clips", "--config", "small.yaml")
    try:
        while script.stdout.readline() != "3\n":
            assert script.poll() is None
        script.send_signal(signal.SIGTERM)
        while other.stdout.readline() != "1\n":
            assert other.poll() is None
        os.killpg(other.pid, signal.SIGINT)
        metrics = Path("results/metrics.jsonl")
        wait_for(lambda: metrics.is_file() and metrics.read_bytes())
        os.killpg(command.pid, signal.SIGINT)
        processes = (script, command, other)
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in (script, command, other):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert script.returncode == 143, errors[0]
    assert command.returncode == other.returncode == 130, errors[1:]
    for folder, error in zip(("stopped", "results", "other"), errors, strict=True):
        assert "Traceback" not in error
        assert "interrupted" not in error
        [saved] = list_checkpoints(Path(folder))
        [line] = [line for line in error.splitlines() if "stopped at step" in line]
        assert f"checkpoint is {saved}, from which training continues with resume='auto'" in line
        assert read_checkpoint(saved)["step"] >= 1

    # what was stopped goes on to the end that it would have come to
    [saved] = list_checkpoints(Path("stopped"))
    stopped_at = read_checkpoint(saved)["step"]
    assert 3 <= stopped_at < 16
    scope = {}
    exec(MODEL, scope)
    resumed = scope["make"](16, "stopped")
    assert resumed.step == stopped_at
    resumed.train()
    whole = scope["make"](16, "whole")
    assert whole.step == 0
    whole.train()
    assert learnt(resumed) == learnt(whole)


# disks


def test_a_failing_write_is_reported_at_once(make_trainer, results, monkeypatch):
    trainer = make_trainer(train_num_steps=20)
    save = torch.save

    def full(state, file):
        if state["step"] == 4:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    message = r"the checkpoint .*model-2\.pt could not be written: .*No space left .*free disk"
    with pytest.raises(OSError, match=message):
        trainer.train()
    assert trainer.step == 4
    assert names(results) == ["1.gif", "1.npy", "metrics.jsonl", "model-1.pt"]
    assert make_trainer(resume="auto").step == 2


def test_a_full_disk(make_trainer, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting takes root")
    try:
        trainer = make_trainer(results_folder=disk, train_num_steps=20)

        def fill(log):
            if log["step"] == 3:
                room = os.statvfs(disk)
                rest = (disk / "model-1.pt").stat().st_size // 2
                (disk / "other").write_bytes(bytes(room.f_bavail * room.f_bsize - rest))

        with pytest.raises(OSError, match=r"model-2\.pt could not be written: .*No space left"):
            trainer.train(log_fn=fill)
        assert trainer.step == 4
        assert names(disk) == ["1.gif", "1.npy", "metrics.jsonl", "model-1.pt", "other"]
        (disk / "other").unlink()
        assert make_trainer(results_folder=disk, resume="auto").step == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_results_folder_that_cannot_be_is_reported_by_the_constructor(make_trainer, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match=r"Not a directory: .*results"):
        make_trainer(results_folder=tmp_path / "file" / "results")


def truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def alter(path):
    # within a record, as bytes between two have no checksum
    with zipfile.ZipFile(path) as archive:
        record = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content = bytearray(path.read_bytes())
    content[content.index(record) + len(record) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("damage", "how"), [(truncate, "load"), (alter, "resume")])
def test_a_damaged_checkpoint_is_passed_over(make_trainer, results, caplog, damage, how):
    whole = make_trainer()
    whole.train()
    damage(results / "model-2.pt")
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        trainer = make_trainer(resume="auto" if how == "resume" else None)
        if how == "load":
            trainer.load(-1)
    assert trainer.step == 2
    assert trainer.resumed_from == results / "model-1.pt"
    assert "model-2.pt is " in caplog.text
    trainer.train()
    assert learnt(trainer) == learnt(whole)
    # and what was damaged is written anew
    assert make_trainer(resume="auto").step == 4
    # whoever asks for a damaged one by name is not given another
    damage(results / "model-1.pt")
    with pytest.raises(ValueError, match=r"expected a checkpoint in .*model-1\.pt, got one that"):
        make_trainer().load(1)


def test_no_whole_checkpoint_is_an_error(make_trainer, results):
    make_trainer().train()
    for path in list_checkpoints(results):
        truncate(path)
    for how in ({"resume": "auto"}, {}):
        message = r"expected an undamaged checkpoint in .*: model-2\.pt, model-1\.pt; move them"
        with pytest.raises(ValueError, match=message):
            make_trainer(**how).load(-1)


# memory


def test_out_of_memory_names_the_options_that_help(make_trainer):
    class Large(Trainer):
        def compute_loss(self, videos, **kwargs):
            if self.step == 1 and self.batch_size == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().compute_loss(videos, **kwargs)

    trainer = make_trainer(Large)
    message = (
        r"^Trainer: a step must fit into the memory of cpu, got a micro-batch of 2 clips of "
        r"1 x 3 x 8 x 8 in precision 'no'; use amp=True.*CUDA out of memory"
    )
    with pytest.raises(TrainingOutOfMemory, match=message) as caught:
        trainer.train()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    # nothing is half done
    assert trainer.step == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: misaligned"), KeyError("cond")])
def test_other_errors_of_a_step_pass(make_trainer, error):
    class Failing(Trainer):
        def compute_loss(self, videos, **kwargs):
            raise error

    with pytest.raises(type(error)) as caught:
        make_trainer(Failing).train()
    assert caught.value is error


def test_a_model_that_is_called_past_the_exchange_is_refused_in_several_processes(make_trainer):
    """Of several processes; here one whose model counts as shared."""

    class Past(Trainer):
        def compute_loss(self, videos, **kwargs):
            return self.model(videos, **kwargs)

    trainer = make_trainer(Past)
    trainer.train_step()
    trainer.parallel_model = torch.nn.Sequential(trainer.model)
    trainer.parallel_model.no_sync = nullcontext
    with pytest.raises(RuntimeError, match=r"compute_loss must call self\.parallel_model, so that"):
        trainer.train_step()
