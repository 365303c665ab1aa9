"""Exponential moving averages of the weights."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WARMUPS = ("copy", "power", "inverse_gamma")

POSTHOC = "posthoc"
STDS = (0.1, 0.05)
"""Widths of the averages of `ema_decay="posthoc"` (Karras et al. 2024, section 3.2)."""
# The width of the mean of the whole training
_LARGEST_STD = 12**-0.5

# Exponent of the power function whose width is a tenth of the training time (Karras et al. 2024,
# eq. 123: the width is sqrt((gamma + 1) / ((gamma + 2)² (gamma + 3))))
_GAMMA = 6.94


class EMA:
    """Exponential moving average of a model (Ho et al. 2022, appendix A).

    Args:
        beta: Share of the old average in the new one, in [0, 1).

    Raises:
        ValueError: If `beta` is out of range.
    """

    def __init__(self, beta: float) -> None:
        if not 0 <= beta < 1:
            raise ValueError(
                f"EMA: the decay must be in [0, 1), got {beta}; 0.995 averages about 200 updates"
            )
        self.beta = beta

    @torch.no_grad()
    def update_model_average(self, ma_model: nn.Module, current_model: nn.Module) -> None:
        """Moves all floating-point parameters and buffers of `ma_model` towards the current ones.

        Whatever else the models hold (counters, masks) is copied. Sharded models must be sharded
        alike: each process averages its own shards.
        """
        averages, currents = [], []
        for old, new in zip(_tensors(ma_model), _tensors(current_model), strict=True):
            if old.is_floating_point():
                averages.append(old)
                currents.append(new.to(old.device, old.dtype))
            else:
                old.copy_(new)
        if averages:  # one kernel for all of them
            torch._foreach_lerp_(averages, currents, 1 - self.beta)

    def update_average(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The average of one tensor, `new` where there is no old one."""
        return new if old is None else old * self.beta + (1 - self.beta) * new


@functools.cache
def gamma_of(std: float) -> float:
    """The exponent of the power function of a width (Karras et al. 2024, eq. 123 and 126).

    Args:
        std: Standard deviation of the power function on [0, 1], in (0, 0.2886].

    Returns:
        The exponent, at least 0.

    Raises:
        ValueError: If `std` is out of range.

    Example:
        >>> round(gamma_of(0.1), 2)
        6.94
    """
    if not 0 < std <= _LARGEST_STD:
        raise ValueError(
            f"averages: the width std must be in (0, 0.2886], got {std}; 0.1 averages over about "
            "the last tenth of the training"
        )
    # std² = (gamma + 1) / ((gamma + 2)² (gamma + 3))
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return max(0.0, float(roots.real.max()))


def decay_at(warmup: str, decay: float, update: int) -> float:
    """The decay of an update, which with a warm-up grows from 0 at the first one to `decay`.

    A short memory at first makes the average forget the initial weights soon.

    Args:
        warmup: `"copy"` for `decay` at all updates; `"power"` for `(1 - 1/n) ** 7.94` at the n-th
            update, which averages over about the last tenth of the training done so far (Karras et
            al. 2024, arXiv 2312.02696, eq. 127); `"inverse_gamma"` for `1 - n ** (-2/3)`, whose
            memory grows more slowly than the training; `"posthoc"` for the power function of the
            width `decay`.
        decay: The largest decay, in [0, 1); with `"posthoc"` the width, as of `gamma_of`.
        update: Number of the update, from 1.

    Returns:
        The share of the old average in the new one, in [0, `decay`]; with `"posthoc"` in [0, 1).

    Example:
        >>> [round(decay_at("power", 0.999, n), 3) for n in (1, 10, 1000, 100_000)]
        [0.0, 0.433, 0.992, 0.999]
    """
    if warmup == POSTHOC:
        return _power_decay(gamma_of(decay), update)
    if warmup == "power":
        return min(decay, _power_decay(_GAMMA, update))
    if warmup == "inverse_gamma":
        return min(decay, 1 - update ** (-2 / 3))
    return decay


def _power_decay(gamma: float, update: int) -> float:
    return (1 - 1 / update) ** (gamma + 1)


class Averages:
    """Averaged models, one per decay; the first draws samples by default.

    Args:
        model: The model to average; the averages start as copies of it. To shard a model, shard
            it and each average afterwards, in the same way.
        decays: Share of the old average in the new one, in [0, 1): one number or several; or
            `"posthoc"` for power functions of the widths `STDS`, which then stand for decays.
        warmup: How the averages start: `"copy"` for copies of the weights before step `start`,
            `"power"` and `"inverse_gamma"` for a decay that grows as in `decay_at`. Ignored with
            `"posthoc"`.
        start: Step before which `"copy"` copies; ignored otherwise.
        every: Steps between updates.

    Raises:
        ValueError: If a decay is out of range, there is none or one twice, or the warm-up is
            unknown.

    Attributes:
        models: The averaged models by decay, in the order given; in evaluation mode, without
            gradients.
        is_posthoc: Whether they are power functions, by width.
    """

    def __init__(
        self,
        model: nn.Module,
        decays: float | Sequence[float] | str,
        *,
        warmup: str = "copy",
        start: int = 2000,
        every: int = 10,
    ) -> None:
        self.is_posthoc = isinstance(decays, str)
        if self.is_posthoc and decays != POSTHOC:
            raise ValueError(
                f"averages: ema_decay must be numbers in [0, 1) or {POSTHOC!r}, got {decays!r}; "
                "0.995 averages about 200 updates"
            )
        decays = STDS if self.is_posthoc else decays
        wanted = [float(d) for d in (decays if isinstance(decays, Sequence) else [decays])]
        for decay in wanted:
            EMA(decay)
        if not wanted or len({*wanted}) < len(wanted):
            raise ValueError(f"averages: there must be different decays, got {wanted}")
        if warmup not in WARMUPS:
            raise ValueError(
                f"averages: the warm-up must be one of {', '.join(WARMUPS)}, got {warmup!r}; "
                "'copy' is the reference's"
            )
        self.warmup, self.start, self.every = warmup, start, every
        if self.is_posthoc:
            self.warmup = POSTHOC
        self.models: dict[float, nn.Module] = {
            decay: copy.deepcopy(model).requires_grad_(False).eval() for decay in wanted
        }

    @property
    def first(self) -> nn.Module:
        """The average of the first decay."""
        return next(iter(self.models.values()))

    @torch.no_grad()
    def copy(self, model: nn.Module) -> None:
        """Makes every average a copy of the weights and buffers of `model`."""
        # not load_state_dict, which checks names and noise schedule
        for average in self.models.values():
            for old, new in zip(_tensors(average), _tensors(model), strict=True):
                old.copy_(new)

    def update(self, model: nn.Module, step: int) -> None:
        """Updates or copies the averages if the step is one of every `every`.

        Args:
            model: The model to average, after the step.
            step: Number of the step, from 0.
        """
        if step % self.every:
            return
        if self.warmup == "copy" and step < self.start:
            self.copy(model)
            return
        for decay, average in self.models.items():
            now = decay_at(self.warmup, decay, step // self.every + 1)
            EMA(now).update_model_average(average, model)

    def time_at(self, step: int) -> int:
        """The time up to which the averages reach after `step` steps, in steps.

        It is later than `step` between updates, as each update stands for `every` steps.
        """
        return math.ceil(step / self.every) * self.every

    def named(self) -> dict[str, nn.Module]:
        """The averaged models by their decay as text, such as `"0.999"`."""
        # repr, not :g, for which 0.9999999 is 1
        return {repr(decay): model for decay, model in self.models.items()}

    def choose(self, decay: float | None) -> nn.Module:
        """The average with a decay; the first for None.

        Raises:
            ValueError: If there is no average of that decay.
        """
        if decay is None:
            return self.first
        if decay not in self.models:
            raise ValueError(
                f"averages: the decay must be one of {', '.join(self.named())}, got {decay}"
            )
        return self.models[decay]


def _tensors(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers of a model; of sharded ones, this process's shards."""
    # FSDP2's root module stays gathered after a forward without backward, and writes to gathered
    # parameters are lost. Recognized by its method, as importing the class takes long.
    for part in model.modules():
        reshard: Any = getattr(part, "reshard", None)
        if reshard is not None:
            reshard()
    tensors: list[Any] = [t.detach() for t in (*model.parameters(), *model.buffers())]
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
