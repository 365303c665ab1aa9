"""Optimizers and learning-rate schedules: making, resuming and checking them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from video_diffusion_pytorch.diffusion.shown import shown

logger = logging.getLogger("video_diffusion_pytorch")

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")

_DEFAULTS = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.0}
# Where one kernel updates all weights; on the CPU that takes 15 to 60 % of the time of a loop.
# That of MPS is young.
_FUSED_ON = ("cuda", "cpu")
# What a group of parameters says of the program, and not of the training
_OWN = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
# Optimizers of torch's, whose steps don't look at shapes, and what they keep of each weight's
_OF_TORCH = (
    *(torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam),
    *(torch.optim.RAdam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adadelta, torch.optim.ASGD, torch.optim.Rprop),
)
_LIKE_WEIGHTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer"}
_LIKE_WEIGHTS |= {"square_avg", "grad_avg", "acc_delta", "sum", "ax", "prev", "step_size"}


def make_optimizer(
    model: nn.Module,
    kind: str | Callable[[Iterable[nn.Parameter]], Optimizer] = "adam",
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
) -> Optimizer:
    """The optimizer of all parameters of a model, in the model's order.

    Args:
        model: What is trained, already on its device.
        kind: `"adam"` (Kingma & Ba 2015), `"adamw"` (Loshchilov & Hutter 2019), or a function
            that gets the list of parameters and gives their optimizer, such as
            `functools.partial(torch.optim.RMSprop, lr=1e-4)`.
        lr: Learning rate, above 0.
        betas: Share of the old averages of the gradient and of its square in the new ones, each in
            [0, 1).
        weight_decay: At least 0. For `"adamw"` the share of a weight that is lost per step is
            `lr * weight_decay`; for `"adam"` it is the factor of the weight that is added to its
            gradient. It is for kernels and matrices; gains, biases and vectors, which have one
            axis that is longer than 1 or none, are a second group of parameters without it.

    Raises:
        ValueError: If `kind` is unknown, a number is out of range, or numbers are given that a
            function as `kind` would not see.
        TypeError: If the function gives no optimizer.
    """
    given = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    if callable(kind):
        return _made_by(kind, model, given)
    if kind not in OPTIMIZERS:
        raise ValueError(
            f"the optimizer must be one of {', '.join(OPTIMIZERS)} or a function that makes one "
            f"from parameters, got {shown(kind)}; for another one of torch's give "
            "functools.partial(torch.optim.SGD, lr=0.01) or the like"
        )
    _check_numbers(lr, betas, weight_decay)
    parameters = list(model.parameters())
    groups: list[Any] = parameters
    if weight_decay:
        matrices = [p for p in parameters if _is_matrix(p)]
        vectors = [p for p in parameters if not _is_matrix(p)]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    # `fused` where it can be, otherwise torch's own choice
    options: dict[str, Any] = {**given, "fused": all(map(_can_be_fused, parameters)) or None}
    optimizer = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(groups, **options)
    optimizer.register_load_state_dict_pre_hook(_keep_own_ways)
    if options["fused"]:
        optimizer.register_step_pre_hook(_lay_out_like_weights)
    return optimizer


def _made_by(
    make: Callable[[Iterable[nn.Parameter]], Optimizer], model: nn.Module, given: dict[str, Any]
) -> Optimizer:
    unseen = [f"{name}={value}" for name, value in given.items() if value != _DEFAULTS[name]]
    if unseen:
        raise ValueError(
            "with an optimizer of your own, learning rate, betas and weight decay must be left "
            f"out, got {', '.join(unseen)}; give them to the optimizer itself, as in "
            "functools.partial(torch.optim.RMSprop, lr=1e-3)"
        )
    optimizer = make(list(model.parameters()))
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            "the function that makes the optimizer must return a torch.optim.Optimizer, got "
            f"{type(optimizer).__name__}; return the optimizer that it makes"
        )
    return optimizer


def _check_numbers(lr: float, betas: tuple[float, float], weight_decay: float) -> None:
    if not 0 < lr < math.inf:
        raise ValueError(
            f"the learning rate must be a finite number above 0, got {shown(lr)}; 1e-4 is usual"
        )
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(
            "the optimizer's betas must be two numbers in [0, 1), got "
            f"{shown(betas)}; (0.9, 0.999) is "
            "usual"
        )
    if not 0 <= weight_decay < math.inf:
        raise ValueError(
            "the weight decay must be a finite number, at least 0, got "
            f"{shown(weight_decay)}; 0 is "
            "without"
        )


def _is_matrix(parameter: Tensor) -> bool:
    return sum(length > 1 for length in parameter.shape) > 1


def _can_be_fused(parameter: Tensor) -> bool:
    if parameter.device.type not in _FUSED_ON or not parameter.is_floating_point():
        return False
    # a view with gaps can't be laid out like anything
    gapless = torch.empty_like(parameter, device="meta")
    return gapless.stride() == parameter.stride()


def _keep_own_ways(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Before a state is loaded: takes from it how to train, and not how to compute.

    A file of another machine or time would switch the fused kernel on or off, and loss scaling
    fails on an optimizer that was made with it and goes on without.
    """
    ours, theirs = optimizer.param_groups, state["param_groups"]
    if len(ours) != len(theirs):
        raise ValueError(
            f"the optimizer's state must be of {len(ours)} groups of parameters, got "
            f"{len(theirs)}; there are two with weight decay and one without: train on with the "
            "weight decay that the checkpoint was trained with"
        )
    groups = [
        {**loaded, **{name: own[name] for name in _OWN if name in own}}
        for own, loaded in zip(ours, theirs, strict=True)
    ]
    return {**state, "param_groups": groups}


def _lay_out_like_weights(optimizer: Optimizer, *_: Any) -> None:
    """Before a step: gives gradients and averages the strides of their weights.

    The fused kernels go through memory and not through axes: on the CPU other strides, such as a
    file's contiguous averages of a channels-last kernel, give wrong weights without a word.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient, stride = parameter.grad, parameter.stride()
            if gradient is None:
                continue
            if gradient.stride() != stride:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            averages = optimizer.state.get(parameter, {})
            for name, value in averages.items():
                if value.shape == parameter.shape and value.stride() != stride:
                    averages[name] = torch.empty_like(parameter).copy_(value)


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The class of an optimizer, and what it was made with, in plain values for a file."""
    inner = getattr(optimizer, "optimizer", optimizer)
    plain = {n: v for n, v in inner.defaults.items() if isinstance(v, (bool, int, float, tuple))}
    told = {name: value for name, value in plain.items() if name not in _OWN}
    return {"class": type(inner).__name__, **told}


def take_new_settings(
    optimizer: Optimizer, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """After a state is loaded: what was changed since it was saved takes the place of the old.

    Args:
        optimizer: With the loaded state.
        theirs: The settings of the run that saved it; empty if they are not known.
        ours: Those of this run. What differs from `theirs` goes to all groups of parameters that
            still have the old value: a rate that was set by hand, and groups without weight decay,
            stay as they are.
    """
    changed = {n: v for n, v in ours.items() if n in theirs and theirs[n] != v and n != "class"}
    for group in optimizer.param_groups:
        for name, value in changed.items():
            for entry in (name, f"initial_{name}"):
                if entry in group and group[entry] == theirs[name]:
                    group[entry] = value


def check_shapes(optimizer: Any, state: Mapping[str, Any], path: Path) -> None:
    """Checks the moments in a checkpoint against the weights: a step would write beside them.

    Args:
        optimizer: Of torch's kind, or wrapped by accelerate.
        state: What is to be its state dict.
        path: The checkpoint that it is from, for the message.

    Raises:
        ValueError: If a moment has another shape than its weight.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, _OF_TORCH):
        return
    theirs = [[*group.get("params", ())] for group in state.get("param_groups", ())]
    ours = [group["params"] for group in optimizer.param_groups]
    if [*map(len, theirs)] != [*map(len, ours)]:
        return  # load_state_dict says so
    for number, weight in zip(chain(*theirs), chain(*ours), strict=True):
        for name, value in state.get("state", {}).get(number, {}).items():
            is_tensor = torch.is_tensor(value) and name in _LIKE_WEIGHTS
            if is_tensor and value.shape != weight.shape:
                raise ValueError(
                    f"the optimizer of {path} must have {name} of the weights' shapes, got "
                    f"{tuple(value.shape)} for a weight of {tuple(weight.shape)}; use the "
                    "checkpoint before it, or build the model it was made with"
                )


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
