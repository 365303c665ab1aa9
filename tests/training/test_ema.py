import copy

import pytest
import torch
from torch import nn

from video_diffusion_pytorch.training.ema import EMA


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("mask", torch.tensor([True, False]))


def test_parameters_and_buffers_are_averaged_and_the_rest_copied():
    old, new = Model(), Model()
    with torch.no_grad():
        new.norm.running_mean += 4
        new.norm.num_batches_tracked += 7
        new.mask.logical_not_()
    before = copy.deepcopy(old.state_dict())
    ema = EMA(0.75)
    ema.update_model_average(old, new)
    for name, value in old.state_dict().items():
        current = new.state_dict()[name]
        if value.is_floating_point():
            expected = ema.update_average(before[name], current)
            torch.testing.assert_close(value, expected)
            assert name.endswith(("running_var", "norm.weight", "norm.bias")) or not torch.equal(
                value, before[name]
            )
        else:
            assert torch.equal(value, current)


def test_an_average_of_one_is_itself():
    assert torch.equal(EMA(0.5).update_average(None, torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize("beta", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(beta):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {beta}; 0.995"):
        EMA(beta)
