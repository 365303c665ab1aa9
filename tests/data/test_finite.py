"""What is no number does not get into a clip."""

from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.finite import finite


@pytest.mark.parametrize(
    "values",
    [torch.tensor([0, 255], dtype=torch.uint8), torch.tensor([-1e38, 0.0]), torch.empty(0)],
)
def test_numbers_pass(values):
    assert finite(values, Path("a.npy")) is values


def test_others_are_counted():
    values = torch.tensor([[float("nan"), 1.0], [float("inf"), -float("inf")]])
    message = (
        r"cannot read a.npy: expected finite numbers in float32, got 3 NaN or infinite ones of 4; "
        r"replace them, as with numpy.nan_to_num, or remove the file"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        finite(values, Path("a.npy"))
