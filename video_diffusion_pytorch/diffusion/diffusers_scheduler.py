"""The samplers of another package: a scheduler of diffusers as a sampler of this one."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.forward_process import ForwardProcess
from video_diffusion_pytorch.diffusion.noise_level import CLEAN, Denoise, Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.sampler import Sampler
from video_diffusion_pytorch.diffusion.spacing import whole_number

# what a scheduler must be told, where its configuration knows the word; what is no matter of
# taste is the model's here: its steps, its clipping, what it predicts, and that samples end clean
_OVERRIDES = {
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
}


class DiffusersScheduler(Sampler):
    """Samples by a scheduler of the diffusers package, which need not be installed otherwise.

    The scheduler keeps its own configuration, spacing of steps included, but for the betas, the
    kind of prediction and the clipping, which are the model's. It is copied, never changed.
    Random draws follow the seeds of `sample`: by `variance_noise`, where its `step` takes that, or
    else by a generator per video that is seeded from a draw of the video's stream.

    Args:
        scheduler: Such as `diffusers.DPMSolverMultistepScheduler()`; any object with its
            `config`, `from_config`, `set_timesteps`, `scale_model_input` and `step`.

    Raises:
        TypeError: If it cannot take betas or predictions of v, as those of flow matching, or its
            `step` needs to be told more than others.
    """

    default_steps: int | None = 50

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        config = getattr(scheduler, "config", {})
        lacking = [name for name in ("trained_betas", "prediction_type") if name not in config]
        parameters = inspect.signature(scheduler.step).parameters.values()
        if sum(one.default is one.empty for one in parameters) != 3:
            lacking.append("such a step")
        if lacking:
            raise TypeError(
                "sample: a diffusers scheduler must have trained_betas and prediction_type in its "
                "config, and a step(model_output, timestep, sample), got "
                f"{type(scheduler).__name__} without {' and '.join(lacking)}; take e.g. "
                "DPMSolverMultistepScheduler or EulerDiscreteScheduler"
            )
        self.scheduler = scheduler

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels at which the scheduler asks the network.

        Args:
            process: The model's forward process.
            steps: Their number. A scheduler that calls the network twice in a step has more.

        Returns:
            They fall, but one that is asked for twice follows itself.

        Raises:
            ValueError: If `steps` is not a number from 1 to `num_timesteps`, or the scheduler goes
                from videos to noise.
        """
        number = whole_number(steps)
        if number is None or not 1 <= number <= process.num_timesteps:
            raise ValueError(
                "sample: with a diffusers scheduler, steps must be a number from 1 to "
                f"{process.num_timesteps}, got {steps}; choose where they are in the scheduler's "
                "config, e.g. timestep_spacing"
            )
        scheduler = self._fitted(process)
        scheduler.set_timesteps(number, device=process.betas.device)
        times = [float(t) for t in scheduler.timesteps]
        levels = process.noise_levels(times)
        ratios = [float(ratio) for ratio in getattr(scheduler, "sigmas", ())]
        if len(ratios) == len(times) + 1:
            # more exact than the times, which some schedulers round
            levels = [_level_of(t, ratio) for t, ratio in zip(times, ratios, strict=False)]
        if levels[0].log_snr > levels[-1].log_snr:
            raise ValueError(
                "sample: a diffusers scheduler must go from noise to videos, got "
                f"{type(scheduler).__name__}, which goes from step {times[0]:g} to {times[-1]:g}; "
                "take the one that it is the inverse of"
            )
        return ScheduledLevels([*levels, CLEAN], scheduler)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`.

        Raises:
            TypeError: If the levels are not from this class's `levels`.
        """
        if not isinstance(levels, ScheduledLevels):
            raise TypeError(
                "DiffusersScheduler: levels must be what its method levels returned, got "
                f"{type(levels).__name__}; a scheduler cannot stop elsewhere, so pass them whole"
            )
        scheduler = copy.deepcopy(levels.scheduler)
        draws = _Draws(scheduler, x, noise)
        if hasattr(scheduler, "set_begin_index"):
            # else it searches for the first time, and may find a later step of the same time
            scheduler.set_begin_index(0)
        # some schedulers work on x / alpha, and say so by what they do before the network
        first = scheduler.scale_model_input(x.new_ones(()), scheduler.timesteps[0])
        is_divided = float(first) != 1.0
        x = x / first
        for (level, after), t in zip(pairwise(levels), scheduler.timesteps, strict=True):
            scale = scheduler.scale_model_input(x.new_ones(()), t)
            scaled = scheduler.scale_model_input(x, t)
            seen = denoise(scaled, level)
            # what guidance has put in, and without any the same to the last digit
            x = x + (seen.x_t - scaled) / scale
            # v, since it fixes both the noise and the video at either end of the schedule
            v = level.alpha * seen.noise - level.sigma * seen.x_start
            x = scheduler.step(v, t, x, return_dict=False, **draws.options(x))[0]
            yield x * after.alpha if is_divided else x

    def _fitted(self, process: ForwardProcess) -> Any:
        """A new scheduler, of the same configuration but for what is the model's."""
        total = process.num_timesteps
        kept = [1.0, *(level.alpha**2 for level in process.noise_levels(range(total)))]
        betas = [1 - after / before for before, after in pairwise(kept)]
        config = self.scheduler.config
        known = {name: value for name, value in _OVERRIDES.items() if name in config}
        return type(self.scheduler).from_config(
            config, trained_betas=betas, num_train_timesteps=total, **known
        )


class ScheduledLevels(list[NoiseLevel]):
    """Noise levels, and the scheduler that stops at them."""

    def __init__(self, levels: Sequence[NoiseLevel], scheduler: Any) -> None:
        super().__init__(levels)
        self.scheduler = scheduler


class _Draws:
    """Gives a scheduler's `step` its random numbers in the form that it takes."""

    def __init__(self, scheduler: Any, x: Tensor, noise: Noise) -> None:
        parameters = inspect.signature(scheduler.step).parameters
        self.noise = noise
        self.takes_noise = "variance_noise" in parameters
        self.generators: list[torch.Generator] | None = None
        if "generator" in parameters and not self.takes_noise:
            self.generators = [_generator(row) for row in noise(x)]

    def options(self, x: Tensor) -> dict[str, Any]:
        """Keywords of `step`."""
        if self.takes_noise:
            return {"variance_noise": self.noise(x)}
        return {} if self.generators is None else {"generator": self.generators}


def _generator(row: Tensor) -> torch.Generator:
    """A generator that is seeded from some random numbers."""
    words = row.flatten()[:8].float().cpu().numpy().view(np.uint32)
    (seed,) = np.random.SeedSequence(words.tolist()).generate_state(1, np.uint64)
    return torch.Generator(row.device).manual_seed(int(seed))


def _level_of(t: float, ratio: float) -> NoiseLevel:
    """The noise level of a ratio of sigma to alpha."""
    length = math.hypot(1.0, ratio)
    return NoiseLevel(t, 1 / length, ratio / length)


def is_scheduler(thing: Any) -> bool:
    """Whether it has what a scheduler object of the diffusers package has."""
    is_object = not isinstance(thing, type)
    return is_object and hasattr(thing, "set_timesteps") and hasattr(thing, "step")
