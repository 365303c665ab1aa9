"""The average over the last steps' weights, which samples better than the last weights."""

import torch
from torch import Tensor, nn


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

        Whatever else the models hold (counters, masks) is copied.
        """
        averages, currents = [], []
        for old, new in zip(_tensors(ma_model), _tensors(current_model), strict=True):
            if old.is_floating_point():
                averages.append(old)
                currents.append(new.detach().to(old.device, old.dtype))
            else:
                old.copy_(new)
        if averages:  # one kernel for all of them
            torch._foreach_lerp_(averages, currents, 1 - self.beta)

    def update_average(self, old: Tensor | None, new: Tensor) -> Tensor:
        """The average of one tensor, `new` where there is no old one."""
        return new if old is None else old * self.beta + (1 - self.beta) * new


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]
