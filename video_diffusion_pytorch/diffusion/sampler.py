"""What any sampler is: the noise levels that it stops at, and the steps from each to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.noise_level import CLEAN, Denoise, Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.spacing import check_spacing, spaced_times


class Sampler:
    """Takes noise to a video in steps; a subclass of your own needs no more than `run`.

    Args:
        spacing: How the steps are spaced, a name from `diffusion.spacing`.

    Attributes:
        default_steps: Number of steps where none is asked for; None for all steps of the model.

    Raises:
        ValueError: If the spacing is unknown.

    Example:
        The shortest sampler that there is, which is DDIM:

        >>> from itertools import pairwise
        >>> class Shortest(Sampler):
        ...     default_steps = 50
        ...
        ...     def run(self, x, levels, denoise, noise):
        ...         for t, s in pairwise(levels):
        ...             prediction = denoise(x, t)
        ...             x = s.alpha * prediction.x_start + s.sigma * prediction.noise
        ...             yield x
        >>> # diffusion.sample(sampler=Shortest(), steps=20)
    """

    default_steps: int | None = None
    spacing: str = "trailing"

    def __init__(self, *, spacing: str = "trailing") -> None:
        check_spacing(spacing)
        self.spacing = spacing

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels to stop at, one more than there are steps.

        Args:
            process: The model's forward process.
            steps: Their number, or falling time steps in [0, num_timesteps - 1], the last of which
                is followed by the clean end.

        Returns:
            Falling: the first is that of the noise at the start, the last is `CLEAN`.

        Raises:
            TypeError: If `steps` is neither a number nor a list.
            ValueError: If there are too many or too few, or times don't fall.
        """
        return [*process.noise_levels(spaced_times(process, steps, self.spacing)), CLEAN]

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """Takes videos from the first noise level to the last.

        Args:
            x: Noisy videos of the first level, `(b, c, f, h, w)`; left unchanged.
            levels: As `levels` gives them.
            denoise: Predicts the clean videos and the noise in videos of a level.
            noise: Draws standard normal noise in the shape of its argument.

        Yields:
            The videos after each step, of the next level.

        Raises:
            NotImplementedError: If a subclass has no such method.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: a sampler must define run(x, levels, denoise, noise), got "
            "none; see the example in Sampler"
        )


class SamplingStep(NamedTuple):
    """What a callback is told after each step of sampling.

    Attributes:
        step: Number of steps done, from 1.
        steps: Number of steps in all.
        level: The noise level that has been reached.
        x_t: The noisy videos, `(b, c, f, h, w)`, in the range of the model, [-1, 1] and noise.

    Counting begins anew for each batch, where `max_batch` splits them, and for each window of a
    longer video.
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

    Raises:
        ValueError: If there are more or fewer steps than levels.
    """
    steps = len(levels) - 1
    step = 0
    for step, x in enumerate(tqdm(run, "sampling", steps, disable=not progress), start=1):
        if step <= steps and callback is not None:
            callback(SamplingStep(step, steps, levels[step], x))
    if step != steps:
        raise ValueError(
            f"sample: a sampler must yield the videos after each of its {steps} steps, got {step}; "
            "look at its method run"
        )
    return x
