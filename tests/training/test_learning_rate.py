import copy
import logging
import math
from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, StepLR

from video_diffusion_pytorch.training.optimizer import (
    Schedule,
    make_schedule,
    resume_schedule,
)


def make_optimizer(lr=0.5, prepared=False):
    groups = [{"params": [nn.Parameter(torch.ones(2))], "lr": lr * k} for k in (1, 2)]
    optimizer = torch.optim.Adam(groups, lr=lr)
    return Accelerator(cpu=True).prepare(optimizer) if prepared else optimizer


def rates(optimizer, schedule, steps):
    """The learning rates of the first group at the next steps."""
    found = []
    for _ in range(steps):
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert second == pytest.approx(2 * first)
        assert schedule.get_last_lr() == [first, second]
        found.append(first)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]),
    ],
)
def test_it_warms_up_and_falls(kind, shares, prepared):
    optimizer = make_optimizer(0.5, prepared)
    schedule = make_schedule(optimizer, kind, warmup_steps=2, total_steps=6)
    assert rates(optimizer, schedule, 8) == pytest.approx([0.5 * s for s in shares])


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_it_falls_from_the_first_step_on_without_a_warm_up(kind):
    optimizer = make_optimizer()
    found = rates(optimizer, make_schedule(optimizer, kind, total_steps=10), 11)
    assert found[0] == 0.5
    assert found[-1] == 0
    assert all(a > b for a, b in pairwise(found))


@pytest.mark.parametrize("total", [0, 3])
def test_a_run_may_be_all_warm_up(total):
    optimizer = make_optimizer()
    schedule = make_schedule(optimizer, "cosine", warmup_steps=total, total_steps=total)
    assert [schedule.factor(s) for s in range(total)] == [(s + 1) / total for s in range(total)]
    assert schedule.factor(total) == 1


def test_a_constant_learning_rate_is_left_alone():
    assert make_schedule(make_optimizer(), "constant", warmup_steps=0, total_steps=10) is None


def test_a_first_step_that_the_scaler_skips_is_a_step_without_a_warning():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5, fused=False)
    schedule = make_schedule(optimizer, "linear", total_steps=2)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(weight.sum() * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    schedule.step()  # warnings are errors
    assert torch.equal(weight, torch.ones(2))
    assert optimizer.param_groups[0]["lr"] == 0.25


# its state


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("kind", ["constant", "linear", "cosine"])
def test_a_run_continues_as_if_it_had_not_stopped(kind, prepared):
    options = {"warmup_steps": 3, "total_steps": 9}
    optimizer = make_optimizer(0.3, prepared)
    expected = rates(optimizer, make_schedule(optimizer, kind, **options), 9)
    for done in (0, 1, 5):
        optimizer = make_optimizer(0.3, prepared)
        schedule = make_schedule(optimizer, kind, **options)
        before = rates(optimizer, schedule, done)
        states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
        optimizer = make_optimizer(0.3, prepared)
        schedule = make_schedule(optimizer, kind, **options)
        optimizer.load_state_dict(states[0])
        resume_schedule(schedule, optimizer, states[1], done)
        assert before + rates(optimizer, schedule, 9 - done) == expected


def test_a_resumed_run_may_be_longer():
    optimizer = make_optimizer()
    short = make_schedule(optimizer, "linear", total_steps=4)
    rates(optimizer, short, 4)
    assert optimizer.param_groups[0]["lr"] == 0
    state = short.state_dict()
    assert set(state) == {"last_epoch", "base_lrs"}
    resumed = make_optimizer()
    longer = make_schedule(resumed, "linear", total_steps=8)
    resumed.load_state_dict(optimizer.state_dict())
    resume_schedule(longer, resumed, state, 4)
    assert rates(resumed, longer, 4) == pytest.approx([0.25, 0.1875, 0.125, 0.0625])


def test_the_full_learning_rate_is_the_checkpoints_own():
    optimizer = make_optimizer(0.5)
    schedule = make_schedule(optimizer, "linear", total_steps=4)
    schedule.step()
    resumed = make_optimizer(0.1)
    other = make_schedule(resumed, "linear", total_steps=4)
    resumed.load_state_dict(optimizer.state_dict())
    resume_schedule(other, resumed, schedule.state_dict(), 1)
    assert rates(resumed, other, 2) == pytest.approx([0.375, 0.25])


def test_a_checkpoint_without_a_schedule_is_continued_from_its_step():
    optimizer = make_optimizer()
    schedule = make_schedule(optimizer, "linear", total_steps=4)
    optimizer.load_state_dict(make_optimizer().state_dict())
    resume_schedule(schedule, optimizer, {}, 3)
    assert rates(optimizer, schedule, 2) == pytest.approx([0.125, 0])


def test_a_constant_learning_rate_after_a_schedule_is_the_full_one():
    optimizer = make_optimizer()
    schedule = make_schedule(optimizer, "cosine", total_steps=4)
    rates(optimizer, schedule, 4)
    resumed = make_optimizer()
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.param_groups[0]["lr"] == 0
    resume_schedule(None, resumed, schedule.state_dict(), 4)
    assert [group["lr"] for group in resumed.param_groups] == [0.5, 1]


def test_a_learning_rate_changed_by_hand_stays_after_a_resume():
    optimizer = make_optimizer()
    optimizer.param_groups[0]["lr"] = 0.01
    resume_schedule(None, optimizer, {}, 4)
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 1]


# schedules of torch's


def test_the_schedule_may_be_a_custom():
    optimizer = make_optimizer(prepared=True)
    schedule = make_schedule(optimizer, lambda o: StepLR(o, 2, 0.1), total_steps=9)
    assert rates(optimizer, schedule, 5) == pytest.approx([0.5, 0.5, 0.05, 0.05, 0.005])
    states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
    resumed = make_optimizer()
    other = make_schedule(resumed, lambda o: StepLR(o, 2, 0.1), total_steps=9)
    resumed.load_state_dict(states[0])
    resume_schedule(other, resumed, states[1], 5)
    assert rates(resumed, other, 2) == pytest.approx([0.005, 0.0005])


@pytest.mark.parametrize("of_ours", [False, True])
def test_a_custom_schedule_that_cannot_continue_starts_over_aloud(of_ours, caplog):
    optimizer = make_optimizer()
    state = make_schedule(optimizer, "linear", total_steps=4).state_dict() if of_ours else {}
    schedule = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        resume_schedule(schedule, optimizer, state, 3)
    assert "the checkpoint holds no state of a LambdaLR: it starts anew" in caplog.text
    assert schedule.last_epoch == 0


# mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "must be one of constant, cosine, linear or .*, got 'cosin'"),
        (
            {"kind": "linear", "warmup_steps": 10},
            "must end within the 9 steps of a linear schedule, got 10; shorten it",
        ),
        (
            {"kind": lambda o: StepLR(o, 2), "warmup_steps": 1},
            "with a schedule of your own, warmup_steps must be 0, got 1; make",
        ),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_schedule(make_optimizer(), total_steps=9, **options)


def test_a_schedule_knows_its_place_among_torchs():
    optimizer = make_optimizer()
    schedule = make_schedule(optimizer, "linear", total_steps=4)
    assert isinstance(schedule, Schedule)
    joined = torch.optim.lr_scheduler.ChainedScheduler([schedule])
    optimizer.step()
    joined.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.375)


def test_a_function_must_return_a_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(TypeError, match=r"must return a torch LRScheduler, got 0\.5"):
        make_schedule(optimizer, lambda step: 0.5, total_steps=4)
