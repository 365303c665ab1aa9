"""The learning rate over the steps: warm-up and schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from video_diffusion_pytorch.diffusion.shown import shown

logger = logging.getLogger("video_diffusion_pytorch")

SCHEDULES = ("constant", "cosine", "linear")


class Schedule(LRScheduler):
    """The learning rate over the steps: a linear warm-up, then constant or falling to 0.

    `step()` is called after each step of the loop, also one that the loss scaler skipped; it then
    sets the learning rates of all groups, those that were changed by hand included. Its state has
    the steps done and the full learning rates; shape and length are those it is made with, so that
    a resumed run may be made longer.

    Args:
        optimizer: Whose learning rates to set; those it has now are the full ones.
        kind: One of `SCHEDULES`.
        warmup_steps: Number of steps of the warm-up, 0 for none; at its step `s`, from 0, the
            learning rate is `(s + 1) / warmup_steps` of the full one.
        total_steps: Step at which `"cosine"` and `"linear"` arrive at 0.
    """

    def __init__(
        self, optimizer: Optimizer, kind: str, warmup_steps: int, total_steps: int
    ) -> None:
        self.kind, self.warmup_steps, self.total_steps = kind, warmup_steps, total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The learning rate of the step with number `step`, from 0, as a share of the full one."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return 1 - done if self.kind == "linear" else (1 + math.cos(math.pi * done)) / 2

    def get_lr(self) -> list[float]:  # type: ignore[override] # never tensors
        """The learning rate of the step to come, of each group of parameters."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The learning rate that each group of parameters has."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    # torch's own `step` warns if the optimizer's first step was skipped
    def step(self, epoch: int | None = None) -> None:
        """Goes to the next step, or to the step `epoch`."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            _set_lr(group, lr)

    def state_dict(self) -> dict[str, Any]:
        """The steps done and the full learning rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(lr) for lr in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to a state of `state_dict`, and sets the learning rates: load the optimizer first.

        Args:
            state_dict: As from `state_dict`; without `base_lrs` the full learning rates stay.
        """
        self.base_lrs = list(state_dict.get("base_lrs", self.base_lrs))
        self.step(state_dict["last_epoch"])


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)  # whoever captured the tensor goes on seeing it
    else:
        group["lr"] = lr


def make_schedule(
    optimizer: Optimizer,
    kind: str | Callable[[Optimizer], LRScheduler] = "constant",
    *,
    warmup_steps: int = 0,
    total_steps: int,
) -> LRScheduler | None:
    """The schedule of an optimizer's learning rate, to be stepped after each step of the loop.

    Args:
        optimizer: Whose learning rate it sets; one that accelerate prepared will do.
        kind: One of `SCHEDULES`, or a function that gets the optimizer and gives a schedule of
            torch's, such as `lambda opt: StepLR(opt, 10_000)`.
        warmup_steps: Number of steps over which the learning rate grows linearly, 0 for none.
        total_steps: Step at which `"cosine"` and `"linear"` arrive at 0.

    Returns:
        The schedule; None for a constant learning rate without warm-up, so that one that is
        changed by hand stays.

    Raises:
        ValueError: If `kind` is unknown, `warmup_steps` is out of range or longer than a schedule
            that falls, or is given with a function, which can make its own.
        TypeError: If the function gives no schedule, or one that waits for a loss.

    Example:
        >>> from torch import nn, optim
        >>> optimizer = optim.Adam(nn.Linear(2, 2).parameters(), lr=0.1)
        >>> schedule = make_schedule(optimizer, "linear", warmup_steps=2, total_steps=4)
        >>> for _ in range(5):
        ...     print(optimizer.param_groups[0]["lr"])
        ...     schedule.step()
        0.05
        0.1
        0.1
        0.05
        0.0
    """
    if not isinstance(warmup_steps, Integral) or warmup_steps < 0:
        raise ValueError(
            "the warm-up of the learning rate must be a whole number of steps, at least 0, got "
            f"{shown(warmup_steps)}; 0 is without"
        )
    if callable(kind):
        return _schedule_made_by(kind, optimizer, warmup_steps)
    if kind not in SCHEDULES:
        raise ValueError(
            f"the schedule of the learning rate must be one of {', '.join(SCHEDULES)} or a "
            "function that makes one from an optimizer, got "
            f"{shown(kind)}; for another one of torch's "
            "give lambda optimizer: StepLR(optimizer, 10_000) or the like"
        )
    if kind != "constant" and warmup_steps > total_steps:
        raise ValueError(
            f"the warm-up of the learning rate must end within the {total_steps} steps of a "
            f"{kind} schedule, got {warmup_steps}; shorten it, or train for longer"
        )
    if kind == "constant" and not warmup_steps:
        return None
    return Schedule(optimizer, kind, int(warmup_steps), total_steps)


def _schedule_made_by(
    make: Callable[[Optimizer], LRScheduler], optimizer: Optimizer, warmup_steps: int
) -> LRScheduler:
    # not joined with one of ours: whether its own steps begin with the warm-up or after it, and
    # whether it multiplies or replaces the rate, is the caller's to know
    if warmup_steps:
        raise ValueError(
            "with a schedule of your own, the steps of the warm-up must be 0, got "
            f"{warmup_steps}; make the warm-up a part of it, as with "
            "torch.optim.lr_scheduler.SequentialLR"
        )
    schedule = make(optimizer)
    if not isinstance(schedule, LRScheduler) or isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            "the function that makes the schedule of the learning rate must return a torch "
            "LRScheduler that is stepped without a loss, got "
            f"{type(schedule).__name__}; return the schedule that it makes"
        )
    return schedule


def resume_schedule(
    schedule: LRScheduler | None, optimizer: Optimizer, state: dict[str, Any], step: int
) -> None:
    """Goes on with a schedule from a checkpoint, whose optimizer state is loaded already.

    Args:
        schedule: That of this run, from `make_schedule`.
        optimizer: Its optimizer. Without a schedule now, but with one in the checkpoint, it gets
            the full learning rate back.
        state: The `state_dict` of the schedule in the checkpoint, empty if there was none.
        step: Number of steps done, to which a `Schedule` goes if the checkpoint had none.
    """
    if schedule is None:
        for group in optimizer.param_groups if state else ():
            _set_lr(group, float(group.get("initial_lr", group["lr"])))
    elif isinstance(schedule, Schedule):
        schedule.load_state_dict({"last_epoch": step, **state})
    elif state.keys() - {"last_epoch", "base_lrs"}:  # of a schedule of torch's own
        schedule.load_state_dict(state)
    else:
        logger.warning(
            "the checkpoint holds no state of a %s: the schedule of the learning rate begins anew",
            type(schedule).__name__,
        )
