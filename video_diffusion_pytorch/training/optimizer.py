"""Optimizers and learning-rate schedules: making, resuming and checking them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from video_diffusion_pytorch.arguments import shown

logger = logging.getLogger("video_diffusion_pytorch")

OPTIMIZERS = ("adam", "adamw")
SCHEDULES = ("constant", "cosine", "linear")

_DEFAULTS = {"lr": 1e-4, "betas": (0.9, 0.999), "weight_decay": 0.0}
# Devices whose fused kernel is used; on the CPU it takes 15 to 60 % of the time of a loop
_FUSED_ON = ("cuda", "cpu")
# Options of a parameter group that choose an implementation and leave the results alone
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable", "decoupled_weight_decay")
# State of torch's optimizers that has the shape of the weight
_LIKE_WEIGHTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer"}
_LIKE_WEIGHTS |= {"square_avg", "grad_avg", "acc_delta", "sum", "ax", "prev", "step_size"}


def make_optimizer(
    model: nn.Module,
    kind: str | Callable[[Iterable[nn.Parameter]], Optimizer] = "adam",
    *,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    without: Collection[str] = (),
) -> Optimizer:
    """Makes the optimizer of the parameters of a model, in the model's order.

    Args:
        model: The model to train, already on its device.
        kind: `"adam"` (Kingma & Ba 2015), `"adamw"` (Loshchilov & Hutter 2019), or a function
            that gets the list of parameters and returns their optimizer, such as
            `functools.partial(torch.optim.RMSprop, lr=1e-4)`.
        lr: Learning rate, at least 0.
        betas: Decays of the moving averages of the gradient and of its square, each in [0, 1).
        weight_decay: At least 0. `"adamw"` multiplies a weight by `1 - lr * weight_decay` per step;
            `"adam"` adds `weight_decay` times the weight to its gradient. It applies to kernels and
            matrices; gains, biases and vectors, which have at most one axis longer than 1, are a
            second parameter group without it.
        without: Names of parameters to leave out.

    Raises:
        TypeError: If a function as `kind` returns no optimizer.
        ValueError: If `kind` is unknown, a number is out of range, or numbers are given that a
            function as `kind` would not see.
    """
    given = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    parameters = [p for name, p in model.named_parameters() if name not in without]
    if callable(kind):
        if given != _DEFAULTS:
            raise ValueError(
                "with an optimizer of your own, learning rate, betas and weight decay must be left "
                f"out, got {given}; use functools.partial(torch.optim.RMSprop, lr=1e-3) or the like"
            )
        return _made(kind(parameters), Optimizer, "the optimizer's function")
    if kind not in OPTIMIZERS:
        raise ValueError(
            f"the optimizer must be one of {', '.join(OPTIMIZERS)} or a function that makes one "
            f"from parameters, such as partial(torch.optim.SGD, lr=0.01), got {shown(kind)}"
        )
    groups: list[Any] = parameters
    if weight_decay:
        matrices = [p for p in parameters if _is_matrix(p)]
        vectors = [p for p in parameters if not _is_matrix(p)]
        groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    # `fused` where possible, otherwise torch's own choice
    options: dict[str, Any] = {**given, "fused": all(map(_can_be_fused, parameters)) or None}
    optimizer = (torch.optim.Adam if kind == "adam" else torch.optim.AdamW)(groups, **options)
    optimizer.register_load_state_dict_pre_hook(_keep_implementation)
    if options["fused"]:
        optimizer.register_step_pre_hook(_match_strides)
    return optimizer


def _made(value: Any, kind: type, maker: str) -> Any:
    """Checks what a user's function returned."""
    if not isinstance(value, kind):
        raise TypeError(f"Trainer: {maker} must return a torch {kind.__name__}, got {shown(value)}")
    return value


def _is_matrix(parameter: Tensor) -> bool:
    return sum(length > 1 for length in parameter.shape) > 1


def _can_be_fused(parameter: Tensor) -> bool:
    if parameter.device.type not in _FUSED_ON or not parameter.is_floating_point():
        return False
    # the strides of a view with gaps cannot be copied
    gapless = torch.empty_like(parameter, device="meta")
    return gapless.stride() == parameter.stride()


def _keep_implementation(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Before a state is loaded: keeps this optimizer's choice of implementation.

    Otherwise a state of another machine or version would switch the fused kernel on or off, and
    loss scaling fails if that changes after construction.
    """
    # torch itself refuses another number of groups
    owners = chain(optimizer.param_groups, repeat({}))
    groups = [
        {**loaded, **{name: own[name] for name in _IMPLEMENTATION if name in own}}
        for own, loaded in zip(owners, state["param_groups"], strict=False)
    ]
    return {**state, "param_groups": groups}


def _match_strides(optimizer: Optimizer, *_: Any) -> None:
    """Before a step: gives gradients and moments the strides of their weights.

    The fused kernels assume equal strides: on the CPU others, such as contiguous moments from a
    file for a channels-last kernel, silently give wrong weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            gradient, stride = parameter.grad, parameter.stride()
            if gradient is None:
                continue
            if gradient.stride() != stride:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            moments = optimizer.state.get(parameter, {})
            for name, value in moments.items():
                if value.shape == parameter.shape and value.stride() != stride:
                    moments[name] = torch.empty_like(parameter).copy_(value)


def optimizer_settings(optimizer: Optimizer) -> dict[str, Any]:
    """The class and settings of an optimizer, in plain values for a checkpoint."""
    inner = getattr(optimizer, "optimizer", optimizer)
    plain = {n: v for n, v in inner.defaults.items() if isinstance(v, (bool, int, float, tuple))}
    settings = {name: value for name, value in plain.items() if name not in _IMPLEMENTATION}
    return {"class": type(inner).__name__, **settings}


def take_new_settings(
    optimizer: Optimizer, theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> None:
    """After a state is loaded: applies settings that changed since it was saved.

    Args:
        optimizer: With the loaded state.
        theirs: Settings of the run that saved it; empty if unknown.
        ours: Settings of this run. Those that differ from `theirs` replace the value in all
            parameter groups that still have the old one: a learning rate that was set by hand, and
            groups without weight decay, stay unchanged.
    """
    changed = {n: v for n, v in ours.items() if n in theirs and theirs[n] != v and n != "class"}
    for group in optimizer.param_groups:
        for name, value in changed.items():
            for entry in (name, f"initial_{name}"):
                if entry in group and group[entry] == theirs[name]:
                    group[entry] = value


def check_shapes(optimizer: Any, state: Mapping[str, Any], path: Path) -> None:
    """Checks the shapes of moments in a checkpoint, as a step would write out of bounds.

    Args:
        optimizer: A torch optimizer, or one wrapped by accelerate.
        state: The state dict to load.
        path: The checkpoint, for the message.

    Raises:
        ValueError: If a moment has another shape than its weight.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not type(optimizer).__module__.startswith("torch.optim."):
        return  # others may keep moments of other shapes
    theirs = [[*group.get("params", ())] for group in state.get("param_groups", ())]
    ours = [group["params"] for group in optimizer.param_groups]
    if [*map(len, theirs)] != [*map(len, ours)]:
        return  # load_state_dict raises
    for number, weight in zip(chain(*theirs), chain(*ours), strict=True):
        for name, value in state.get("state", {}).get(number, {}).items():
            is_tensor = torch.is_tensor(value) and name in _LIKE_WEIGHTS
            if is_tensor and value.shape != weight.shape:
                raise ValueError(
                    f"the optimizer of {path} must have {name} of the weights' shapes, got "
                    f"{tuple(value.shape)} for a weight of {tuple(weight.shape)}; use another one"
                )


class Schedule(LRScheduler):
    """The learning rate over the steps: a linear warm-up, then constant or falling to 0.

    Call `step()` after each step of the loop, including skipped ones; it sets the learning rates of
    all groups, replacing values set by hand. Its state holds the steps done and the base learning
    rates; kind and length are those of the constructor, so that a resumed run can be longer.

    Args:
        optimizer: The optimizer, whose current learning rates become the base learning rates.
        kind: One of `SCHEDULES`.
        warmup_steps: Number of warm-up steps, 0 for none; at step `s`, from 0, the learning rate is
            `(s + 1) / warmup_steps` of the base learning rate.
        total_steps: Step at which `"cosine"` and `"linear"` reach 0.
    """

    def __init__(
        self, optimizer: Optimizer, kind: str, warmup_steps: int, total_steps: int
    ) -> None:
        self.kind, self.warmup_steps, self.total_steps = kind, warmup_steps, total_steps
        super().__init__(optimizer)

    def factor(self, step: int) -> float:
        """The learning rate at a step, from 0, divided by the base learning rate."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return 1 - done if self.kind == "linear" else (1 + math.cos(math.pi * done)) / 2

    def get_lr(self) -> list[float]:  # type: ignore[override] # never tensors
        """The learning rate of the next step, for each parameter group."""
        return [float(base) * self.factor(self.last_epoch) for base in self.base_lrs]

    def get_last_lr(self) -> list[float]:  # type: ignore[override]
        """The current learning rate of each parameter group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    # torch's own `step` warns if the optimizer's first step was skipped
    def step(self, epoch: int | None = None) -> None:
        """Advances to the next step, or to step `epoch`."""
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """The steps done and the base learning rates."""
        return {"last_epoch": self.last_epoch, "base_lrs": [float(lr) for lr in self.base_lrs]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state and sets the learning rates; load the optimizer first.

        Args:
            state_dict: As from `state_dict`; without `base_lrs` the base learning rates stay.
        """
        self.base_lrs = list(state_dict.get("base_lrs", self.base_lrs))
        self.step(state_dict["last_epoch"])


def make_schedule(
    optimizer: Optimizer,
    kind: str | Callable[[Optimizer], LRScheduler] = "constant",
    *,
    warmup_steps: int = 0,
    total_steps: int,
) -> LRScheduler | None:
    """Makes the learning-rate schedule of an optimizer, to be stepped after each step.

    Args:
        optimizer: The optimizer, possibly wrapped by accelerate.
        kind: One of `SCHEDULES`, or a function that gets the optimizer and returns a torch
            schedule, such as `lambda opt: StepLR(opt, 10_000)`.
        warmup_steps: Number of steps over which the learning rate grows linearly, 0 for none.
        total_steps: Step at which `"cosine"` and `"linear"` reach 0.

    Returns:
        The schedule; None for a constant learning rate without warm-up, so that changes by hand
        stay.

    Raises:
        TypeError: If a function as `kind` returns no schedule.
        ValueError: If `kind` is unknown, or `warmup_steps` is longer than a schedule that falls, or
            given with a function, which can make its own.

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
    if callable(kind):
        # not combined with ours: whether it starts during or after the warm-up, and multiplies or
        # replaces the learning rate, is for the caller to decide
        if warmup_steps:
            raise ValueError(
                f"with a schedule of your own, warmup_steps must be 0, got {warmup_steps}; make "
                "the warm-up a part of it, as with torch.optim.lr_scheduler.SequentialLR"
            )
        return _made(kind(optimizer), LRScheduler, "lr_schedule, which gets the optimizer,")
    if kind not in SCHEDULES:
        raise ValueError(
            f"the learning-rate schedule must be one of {', '.join(SCHEDULES)} or a function that "
            f"makes one, such as lambda opt: StepLR(opt, 10_000), got {shown(kind)}"
        )
    if kind != "constant" and warmup_steps > total_steps:
        raise ValueError(
            f"the warm-up must end within the {total_steps} steps of a {kind} schedule, got "
            f"{warmup_steps}; shorten it, or train for longer"
        )
    if kind == "constant" and not warmup_steps:
        return None
    return Schedule(optimizer, kind, warmup_steps, total_steps)


def resume_schedule(
    schedule: LRScheduler | None, optimizer: Optimizer, state: dict[str, Any], step: int
) -> None:
    """Resumes a schedule from a checkpoint, whose optimizer state is loaded already.

    Args:
        schedule: The schedule of this run, from `make_schedule`.
        optimizer: Its optimizer. If only the checkpoint has a schedule, it gets the base learning
            rate back.
        state: State of the schedule in the checkpoint, empty if there was none.
        step: Steps done, for a `Schedule` that has no state in the checkpoint.
    """
    if schedule is None:
        for group in optimizer.param_groups if state else ():
            group["lr"] = float(group.get("initial_lr", group["lr"]))
    elif isinstance(schedule, Schedule):
        schedule.load_state_dict({"last_epoch": step, **state})
    elif state.keys() - {"last_epoch", "base_lrs"}:  # of a schedule of torch's own
        schedule.load_state_dict(state)
    else:
        logger.warning(
            "the checkpoint holds no state of a %s: it starts anew", type(schedule).__name__
        )
