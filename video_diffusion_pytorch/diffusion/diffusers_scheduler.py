"""Schedulers of the optional diffusers package as samplers, for models of any process."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.continuous_schedule import MAX_LOG_SNR
from video_diffusion_pytorch.diffusion.noise_schedule import (
    CLEAN,
    ForwardProcess,
    Noise,
    NoiseLevel,
)
from video_diffusion_pytorch.diffusion.sampling_steps import Denoise, Sampler, checked_number

# classes whose videos are (1 - sigma) * x_start + sigma * noise, and whose network predicts the
# velocity towards the noise: no setting tells them from those with a velocity towards the clip
_FLOW_CLASSES = {
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "FlowMatchLCMScheduler",
}

# settings of a scheduler that the model or the kind determines, where its config has them
_OVERRIDES: dict[str, dict[str, Any]] = {
    "beta": {
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "thresholding": False,
        "rescale_betas_zero_snr": False,
        "set_alpha_to_one": True,
    },
    "flow": {"prediction_type": "flow_prediction", "thresholding": False},
    "edm": {"thresholding": False},
}

# steps that are as close to a whole one differ by the scheduler's single precision
_ROUNDING = 0.02
# the least time of a continuous schedule: at -1 a video of flow matching has no noise
_FIRST_TIME = -1 + 1e-4


class SchedulerLevel(NamedTuple):
    """How noisy a scheduler's own videos are at a call of the network, and what it expects of that.

    Attributes:
        alpha: Factor of the clean video in the scheduler's videos.
        sigma: Factor of the noise.
        of_x_start: Factor of the predicted clean video in the output.
        of_noise: Factor of the predicted noise.
    """

    alpha: float
    sigma: float
    of_x_start: float
    of_noise: float

    @property
    def log_snr(self) -> float:
        """As of `NoiseLevel`."""
        return NoiseLevel(0.0, self.alpha, self.sigma).log_snr

    @property
    def scale(self) -> float:
        """As of `NoiseLevel`."""
        return math.hypot(self.alpha, self.sigma)


class DiffusersScheduler(Sampler):
    """Samples with a scheduler of the optional diffusers package.

    Schedulers of three kinds of processes are taken: of betas (`trained_betas`), of flow matching
    and of EDM. Each works with a model of any objective and schedule: at each of the scheduler's
    noise levels the network is called at the model's time of the same log-SNR, or the closest,
    with the videos rescaled to the model's, and its prediction is converted to the output that the
    scheduler expects.

    The scheduler keeps its own config, including the spacing of steps, except for the betas, the
    kind of prediction and the clamping, which are the model's. It is copied, never changed.
    Random draws follow the seeds of `sample`: through `variance_noise` where its `step` takes that,
    else through a generator per video, seeded from a draw of the video's stream.

    Args:
        scheduler: Such as `diffusers.DPMSolverMultistepScheduler()`; any object with its
            `config`, `from_config`, `set_timesteps` and `step`.

    Raises:
        TypeError: If it is of another kind, or its `step` needs other arguments.
        ValueError: If its steps depend on the length of a sequence (`use_dynamic_shifting`), or go
            from the clip to noise (`invert_sigmas`).
    """

    default_steps: int | None = 50

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        config = getattr(scheduler, "config", {})
        kind = _kind_of(scheduler, config)
        parameters = inspect.signature(scheduler.step).parameters.values()
        if kind is None or sum(one.default is one.empty for one in parameters) != 3:
            raise TypeError(
                "sample: a diffusers scheduler must have trained_betas and prediction_type in its "
                "config, or be one of flow matching or EDM, and have a step(model_output, "
                f"timestep, sample), got {type(scheduler).__name__}; take e.g. "
                "DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler or EDMEulerScheduler"
            )
        for name, cure in (
            ("use_dynamic_shifting", "the shift of one length, such as shift or flow_shift"),
            ("invert_sigmas", "steps from noise to the clip"),
        ):
            if config.get(name):
                raise ValueError(
                    f"sample: {name} of a diffusers scheduler must be False, got True; build it "
                    f"with {cure}"
                )
        self.scheduler = scheduler
        self.kind = kind

    def levels(self, process: ForwardProcess, steps: int | Sequence[float]) -> list[NoiseLevel]:
        """The noise levels at which the scheduler calls the network.

        Args:
            process: The model's forward process.
            steps: Their number. A scheduler that calls the network twice in a step has more.

        Returns:
            Falling levels of the model; one that the scheduler asks for twice follows itself.

        Raises:
            ValueError: If `steps` is not a number from 1 to `num_timesteps`, or the scheduler goes
                from the clip to noise.
        """
        number = checked_number(process, steps)
        table = _steps_of_betas(process)
        scheduler = self._fitted(table)
        # on the CPU, where a step may look at them
        scheduler.set_timesteps(number, device="cpu")
        own = self._own_levels(scheduler, table)
        if own[0].log_snr > own[-1].log_snr:
            raise ValueError(
                "sample: the noise levels of a diffusers scheduler must fall, got a "
                f"{type(scheduler).__name__}, whose levels rise; take one that removes noise"
            )
        times = _times_of(process, [level.log_snr for level in own])
        return ScheduledLevels([*process.noise_levels(times), CLEAN], own, scheduler)

    def run(
        self, x: Tensor, levels: Sequence[NoiseLevel], denoise: Denoise, noise: Noise
    ) -> Iterator[Tensor]:
        """See `Sampler.run`; `levels` must come from this class's `levels`."""
        assert isinstance(levels, ScheduledLevels)
        scheduler = copy.deepcopy(levels.scheduler)
        keywords = inspect.signature(scheduler.step).parameters
        draws: dict[str, Any] = {}
        if "generator" in keywords and "variance_noise" not in keywords:
            draws["generator"] = _generators(noise(x))
        if hasattr(scheduler, "set_begin_index"):
            # else it searches for the first time, and may find a later step of the same time
            scheduler.set_begin_index(0)
        one = torch.ones((), device="cpu")
        own = levels.own
        # the size of the model's videos in units of the scheduler's; clean ones have the same
        scales = [a.scale / b.scale for a, b in zip(levels[:-1], own, strict=True)] + [1.0]
        x = x / scales[0]
        for i, t in enumerate(scheduler.timesteps):
            level, mine = levels[i], own[i]
            scaled = x * scales[i]
            seen = denoise(scaled, level)
            # guidance may have changed the noisy videos; without any, x stays the same bit for bit
            x = x + (seen.x_t - scaled) / scales[i]
            predicted = (x - mine.alpha * seen.x_start) / mine.sigma
            output = mine.of_x_start * seen.x_start + mine.of_noise * predicted
            if "variance_noise" in keywords:
                draws["variance_noise"] = noise(x)
            if hasattr(scheduler, "scale_model_input"):
                # for its own count of steps
                scheduler.scale_model_input(one, t)
            x = scheduler.step(output, t, x, return_dict=False, **draws)[0]
            yield x * scales[i + 1]

    def _fitted(self, table: np.ndarray) -> Any:
        """A new scheduler with the same config, except for the model's own settings.

        Args:
            table: Log-SNRs of the model's steps.
        """
        config = self.scheduler.config
        known = {name: value for name, value in _OVERRIDES[self.kind].items() if name in config}
        if self.kind == "beta":
            kept = [1.0, *(1 / (1 + np.exp(-table))).tolist()]
            known["trained_betas"] = [1 - after / before for before, after in pairwise(kept)]
            known["num_train_timesteps"] = len(table)
        return type(self.scheduler).from_config(config, **known)

    def _own_levels(self, scheduler: Any, table: np.ndarray) -> list[SchedulerLevel]:
        """The scheduler's noise levels at its calls of the network."""
        times = scheduler.timesteps.tolist()
        sigmas = scheduler.sigmas.tolist() if hasattr(scheduler, "sigmas") else []
        if self.kind == "flow":
            return [SchedulerLevel(1 - s, s, -1.0, 1.0) for s in sigmas[: len(times)]]
        if self.kind == "edm":
            return [_edm_level(scheduler, sigma) for sigma in sigmas[: len(times)]]
        # sigma / alpha; more exact than the times, which some schedulers round
        ratios = sigmas[:-1]
        if len(sigmas) != len(times) + 1:
            ratios = np.exp(-np.interp(times, range(len(table)), table) / 2).tolist()
        # some schedulers work on x / alpha, which shows in how they scale the network's input
        first = copy.deepcopy(scheduler).scale_model_input(
            torch.ones((), device="cpu"), scheduler.timesteps[0]
        )
        is_divided = float(first) != 1.0
        levels = []
        for ratio in ratios:
            length = math.hypot(1.0, ratio)
            alpha, sigma = 1 / length, ratio / length
            scale = length if is_divided else 1.0
            # v, since it fixes both the noise and the video at either end of the schedule
            levels.append(SchedulerLevel(scale * alpha, scale * sigma, -sigma, alpha))
        return levels


class ScheduledLevels(list[NoiseLevel]):
    """Noise levels of the model, and the scheduler that stops at them, with its own levels."""

    def __init__(
        self, levels: Sequence[NoiseLevel], own: Sequence[SchedulerLevel], scheduler: Any
    ) -> None:
        super().__init__(levels)
        self.own = own
        self.scheduler = scheduler


def _kind_of(scheduler: Any, config: Any) -> str | None:
    """The kind of process that a scheduler is for; None if it is none of those known."""
    names = {base.__name__ for base in type(scheduler).__mro__}
    if names & _FLOW_CLASSES or config.get("use_flow_sigmas"):
        return "flow"
    if hasattr(scheduler, "precondition_outputs"):
        return "edm"
    return "beta" if {"trained_betas", "prediction_type"} <= config.keys() else None


def _steps_of_betas(process: ForwardProcess) -> np.ndarray:
    """Log-SNRs of a model's steps as betas have them: that of pure noise, too, is finite."""
    levels = process.noise_levels(range(process.num_timesteps))
    log_snrs = np.array([level.log_snr for level in levels])
    least = np.where(np.isfinite(log_snrs), log_snrs, -MAX_LOG_SNR).min()
    return np.maximum(log_snrs, least)


def _times_of(process: ForwardProcess, log_snrs: list[float]) -> list[float]:
    """Times of the model with these log-SNRs, or the closest; also before step 0 if continuous."""
    if process.schedule is not None:
        wanted = torch.tensor(log_snrs, dtype=torch.float64, device="cpu")
        exact = process.schedule.time_of(wanted) * process.num_timesteps - 1
        return exact.clamp(min=_FIRST_TIME).tolist()
    times = process.times_of(log_snrs)
    return [round(t) if abs(t - round(t)) < _ROUNDING else t for t in times]


def _edm_level(scheduler: Any, sigma: float) -> SchedulerLevel:
    """A level of EDM, whose output makes the clean video of its preconditioning."""
    skip, out = (float(scheduler.precondition_outputs(*pair, sigma)) for pair in ((1, 0), (0, 1)))
    # x_start = skip * (x_start + sigma * noise) + out * output
    return SchedulerLevel(1.0, sigma, (1 - skip) / out, -skip * sigma / out)


def _generators(rows: Tensor) -> list[torch.Generator]:
    """A generator for each video, seeded from random numbers of its own."""
    words = rows.flatten(1)[:, :8].float().cpu().numpy().view(np.uint32)
    seeds = [np.random.SeedSequence(row).generate_state(1, np.uint64)[0] for row in words.tolist()]
    return [torch.Generator(rows.device).manual_seed(int(seed)) for seed in seeds]
