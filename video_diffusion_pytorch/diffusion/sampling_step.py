"""The loop over a sampler's steps: its progress bar, and who else wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.noise_level import NoiseLevel


class SamplingStep(NamedTuple):
    """What a callback is told after each step of sampling.

    Attributes:
        step: Number of steps done, from 1.
        steps: Number of steps in all.
        level: The noise level that has been reached.
        x_t: The noisy videos, `(b, c, f, h, w)`, in the range of the model, [-1, 1] and noise.
    """

    step: int
    steps: int
    level: NoiseLevel
    x_t: Tensor


Callback = Callable[[SamplingStep], Any]


def follow(
    x: Tensor,
    run: Iterator[Tensor],
    levels: Sequence[NoiseLevel],
    progress: bool,
    callback: Callback | None = None,
) -> Tensor:
    """Lets a sampler run to its end, and gives the last video.

    Args:
        x: The video that it starts from.
        run: The noisy videos after each step.
        levels: Their noise levels, and before these that of the noise at the start.
        progress: Whether to show a progress bar.
        callback: Called after each step.
    """
    steps = len(levels) - 1
    bar = tqdm(zip(levels[1:], run, strict=True), "sampling", steps, disable=not progress)
    for step, (level, x) in enumerate(bar, start=1):
        if callback is not None:
            callback(SamplingStep(step, steps, level, x))
    return x
