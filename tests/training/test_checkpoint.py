import random

import numpy as np
import torch

from video_diffusion_pytorch.training.checkpoints.checkpoint_file import (
    read_checkpoint,
    write_checkpoint,
)
from video_diffusion_pytorch.training.checkpoints.random_states import (
    random_states,
    restore_random_states,
)


def draws():
    return random.random(), np.random.rand(), torch.rand(3).tolist()


def test_random_states_come_back(tmp_path):
    random.gauss(0, 1)  # leaves a second draw behind
    states = random_states()
    expected = draws()
    state = {"step": 3, "model": {}, "ema": {}, "random": states}
    write_checkpoint(state, tmp_path / "model-1.pt")
    draws()
    restore_random_states(read_checkpoint(tmp_path / "model-1.pt")["random"])
    assert draws() == expected
