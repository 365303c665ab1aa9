"""What samplers have in common."""

import re

import pytest
import torch

from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    cosine_beta_schedule,
)
from video_diffusion_pytorch.diffusion.samplers import Sampler


def exactly(message):
    return f"^{re.escape(message)}$"


@pytest.mark.parametrize("spacing", ["trailing", "log_snr"])
def test_levels_end_clean(spacing):
    process = ForwardProcess(cosine_beta_schedule(50))
    levels = Sampler(spacing=spacing).levels(process, 5)
    assert len(levels) == 6
    assert levels[0] == process.noise_level(49)
    assert levels[-1] == CLEAN
    log_snrs = [level.log_snr for level in levels]
    assert log_snrs == sorted(log_snrs)


def test_a_subclass_need_not_call_its_parent():
    class Own(Sampler):
        def __init__(self):
            self.strength = 1

    process = ForwardProcess(cosine_beta_schedule(50))
    assert Own().levels(process, 5) == Sampler().levels(process, 5)


def test_unknown_spacing():
    message = (
        "sample: spacing must be one of trailing, leading, linspace, log_snr, karras, spectrum, "
        "got 'even'; choose one, or pass a list of time steps"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        Sampler(spacing="even")


def test_a_subclass_must_run():
    class Own(Sampler):
        pass

    message = (
        "Own: a sampler must define run(x, levels, denoise, noise), got none; see the example in "
        "Sampler"
    )
    with pytest.raises(NotImplementedError, match=exactly(message)):
        Own().run(torch.zeros(1), [], None, None)
