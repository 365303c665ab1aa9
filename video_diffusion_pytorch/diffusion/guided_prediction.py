"""Guidance of predictions by conditions and by a worse model, in an interval of noise levels."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.conditions import check_cond_scale, guidance_groups, rows_of
from video_diffusion_pytorch.diffusion.guidance import times
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, NoiseLevel
from video_diffusion_pytorch.hub import LOADERS

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

GUIDE_SCALE = 2.0
"""The default scale of the guidance away from a worse model."""

CondScale = float | Mapping[str, float]
"""A guidance scale for all conditions, or one by condition."""

# Log-SNRs and time steps this close are the same: they come from float32 buffers
_ROUNDING = 1e-4

_Predict = Callable[[Tensor, Tensor], Tensor]


class Autoguidance:
    """Guidance away from a worse version of the model (Karras et al. 2024, eq. 3).

    The predicted clean videos become `guide + scale * (model - guide)`. At one noise level the
    predictions of x_start, of the noise and of v are affine functions of each other, with the same
    coefficients for both models. The weights of the two sum to 1, so that the combination is the
    same in each of them, whatever the two networks predict.

    The guide sees the videos at the time step of its own schedule with the same log-SNR. Where it
    has none, it doesn't act.

    Args:
        model: The model that samples.
        guide: The worse one.
        scale: 1 for the model alone, 0 for the guide alone.
        levels: The noise levels of the steps.

    Raises:
        ValueError: If the guide has none of these levels.
    """

    def __init__(
        self,
        model: GaussianDiffusion,
        guide: GaussianDiffusion,
        scale: float,
        levels: Sequence[NoiseLevel],
    ) -> None:
        self.model, self.guide, self.scale = model, guide, scale
        self.has_frames = guide.frame_noise is not None
        # by time step of the model: the guide's, and the factor between the scales of the videos
        self._matches: dict[float, tuple[float, float] | None] = {}
        # all at once, as each look at a schedule synchronises with a GPU
        self._match([level.t for level in levels if level.sigma])
        if not any(self._matches.values()):
            raise ValueError(
                "sample: guide must have noise levels of the steps in its schedule, got none of "
                f"the {len(self._matches)}; give one with a schedule like the model's, or other "
                "steps"
            )

    def match(self, level: NoiseLevel) -> tuple[float, float] | None:
        """The guide's time step of a noise level, and the factor that takes videos to its scale.

        None where the level is outside the guide's schedule.
        """
        if level.t not in self._matches:
            self._match([level.t])
        return self._matches[level.t]

    def _match(self, steps: Sequence[float]) -> None:
        # not the levels' own log-SNR, which differs from the network's where a scheduler rounds t
        levels = self.model.noise_levels(steps)
        last = self.guide.num_timesteps - 1
        own_times = [_whole(t) for t in self.guide.times_of([level.log_snr for level in levels])]
        own = self.guide.noise_levels([*own_times, 0, last])
        most, least = (level.log_snr for level in own[-2:])
        for step, level, t, there in zip(steps, levels, own_times, own, strict=False):
            is_known = least - _ROUNDING <= level.log_snr <= most + _ROUNDING
            # of the noise, as at the first level of flow matching there is no signal
            factor = there.sigma / level.sigma
            factor = 1.0 if abs(factor - 1) < _ROUNDING else factor
            self._matches[step] = (t, factor) if is_known else None


def _whole(number: float) -> float:
    """The number, or the whole one that it is up to rounding."""
    return float(round(number)) if abs(number - round(number)) < _ROUNDING else number


@dataclass(frozen=True)
class GuidedPrediction:
    """Predicts clean videos with guidance, from noisy videos and their noise level.

    Attributes:
        guided: The model's prediction with guidance by conditions.
        plain: The model's prediction without.
        interval: Where guidance acts, as in `sample`; None for everywhere.
        autoguidance: Guidance away from a worse model; None for none.
        below: The guide's prediction, with the same guidance by conditions; None without guide.
    """

    guided: _Predict
    plain: _Predict
    interval: tuple[float, float] | None
    autoguidance: Autoguidance | None
    below: _Predict | None

    def __call__(self, x_t: Tensor, level: NoiseLevel) -> Tensor:
        """Predicts the clean videos in `x_t`, `(b, c, f, h, w)`, not clamped."""
        if self.interval is not None:
            low, high = self.interval
            if not low < math.exp(-level.log_snr / 2) <= high:
                return self.plain(x_t, times(level, x_t))
        x_start = self.guided(x_t, times(level, x_t))
        if self.autoguidance is None or self.below is None:
            return x_start
        match = self.autoguidance.match(level)
        if match is None:
            return x_start
        t, factor = match
        if level.frames is not None and (
            match != (level.t, 1.0) or not self.autoguidance.has_frames
        ):
            raise ValueError(
                "sample: guide must have the model's noise schedule and frame_noise where frames "
                "have noise levels of their own, got another; leave it out, or pass a weight, by "
                "which known frames guide instead"
            )
        seen = x_t if factor == 1 else factor * x_t
        worse = self.below(seen, times(level._replace(t=t), seen))
        return worse + self.autoguidance.scale * (x_start - worse)


@dataclass(frozen=True)
class PredictionGuidance:
    """What guides the predictions of all videos of a call of `sample`.

    Attributes:
        cond_scale: From `as_cond_scale`.
        negative: From `GaussianDiffusion.prepare_negative`.
        rescale: The argument `guidance_rescale`.
        interval: From `as_interval`.
        autoguidance: Guidance away from a worse model; None for none.
    """

    cond_scale: CondScale
    negative: Mapping[str, Tensor]
    rescale: float
    interval: tuple[float, float] | None
    autoguidance: Autoguidance | None

    @property
    def has_options(self) -> bool:
        """Whether there is more than a `cond_scale`."""
        has_interval = self.interval is not None and self.cond_scale != 1
        return bool(self.negative or self.rescale or has_interval or self.autoguidance)

    def predictor(
        self, model: GaussianDiffusion, x: Tensor, conditions: Mapping[str, Tensor], rows: slice
    ) -> GuidedPrediction:
        """The prediction for some of the videos.

        Args:
            model: The model.
            x: Noisy videos, for their shape.
            conditions: Those of these videos, from `GaussianDiffusion.prepare_conditions`.
            rows: The videos' place in the batch.
        """
        how = rows_of(self.negative, rows), self.cond_scale, self.rescale
        guided = model.predictor(x, conditions, *how)
        plain = guided
        if self.interval is not None:
            plain = model.predictor(x, conditions, {}, 1.0, 0.0)
        below = None
        if self.autoguidance is not None:
            below = self.autoguidance.guide.predictor(x, conditions, *how)
        return GuidedPrediction(guided, plain, self.interval, self.autoguidance, below)

    def networks(self, model: GaussianDiffusion) -> nn.Module:
        """All networks that predict, as one module."""
        if self.autoguidance is None:
            return model.denoise_fn
        return nn.ModuleList([model.denoise_fn, self.autoguidance.guide.denoise_fn])


def as_cond_scale(cond_scale: CondScale, given: Iterable[str] | None = None) -> CondScale:
    """Guidance scales by the names of the network's conditions; idempotent.

    Args:
        cond_scale: The argument of `sample`: one number, which stays, or a mapping.
        given: Names of the conditions that are given; None to leave them unchecked.

    Raises:
        ValueError: If a mapping does not fit the conditions.
    """
    if given is not None:
        check_cond_scale("sample: cond_scale", cond_scale, given)
    if not isinstance(cond_scale, Mapping):
        return cond_scale
    scales: dict[str, float] = {}
    for name, scale in cond_scale.items():
        # known frames are channels of the field
        own = "cond_video" if name == "first_frames" else name
        if scales.setdefault(own, scale) != scale:
            raise ValueError(
                "sample: cond_scale must be the same for cond_video and first_frames, which are "
                f"one field for the network, got {shown(cond_scale)}; name one of them"
            )
    return scales


def guided_conditions(cond_scale: CondScale, names: Sequence[str]) -> list[str]:
    """Those of some conditions that guidance leads along, so that they may have negative ones.

    Args:
        cond_scale: From `as_cond_scale`.
        names: Of conditions that the network takes.
    """
    first, *others = guidance_groups(cond_scale, names)
    groups = others if first[1] == 1 else [first, *others]
    return [name for group, _ in groups for name in group]


def as_interval(interval: Any) -> tuple[float, float] | None:
    """The argument `guidance_interval` of `sample`, checked.

    Raises:
        ValueError: If it is not two numbers of which the second is larger.
    """
    if interval is None:
        return None
    try:
        low, high = (float(end) for end in interval)
    except (TypeError, ValueError):
        low = high = math.nan
    if not 0 <= low < high:
        raise ValueError(
            "sample: guidance_interval must be two numbers (low, high) of sigma / alpha, with "
            f"0 <= low < high, got {shown(interval)}; pass for example (0.2, 5), or math.inf as "
            "high"
        )
    return low, high


def make_autoguidance(
    model: GaussianDiffusion, guide: Any, scale: float, levels: Sequence[NoiseLevel]
) -> Autoguidance | None:
    """The arguments `guide` and `guide_scale` of `sample` for the noise levels of its steps.

    Returns:
        None without a guide, or where a scale of 1 leaves nothing of it.

    Raises:
        FileNotFoundError: As `open_guide`.
        TypeError: As `open_guide`.
        ValueError: As `open_guide`, and if the scale is not a finite number or without a guide.
    """
    if not isinstance(scale, Real) or not math.isfinite(scale):
        raise ValueError(
            f"sample: guide_scale must be a finite number, got {shown(scale)}; 1 is without "
            f"guidance, {GUIDE_SCALE:g} is common"
        )
    if guide is None and scale != GUIDE_SCALE:
        raise ValueError(
            f"sample: guide_scale is that of guide, which must be given, got {shown(scale)} and no "
            "guide; give a worse model, or leave it out"
        )
    opened = open_guide(model, guide)
    if opened is None or scale == 1:
        return None
    return Autoguidance(model, opened, float(scale), levels)


def open_guide(model: GaussianDiffusion, guide: Any) -> GaussianDiffusion | None:
    """The argument `guide` of `sample`, checked; one at a path is loaded.

    Returns:
        The guide, on the model's device; None for none.

    Raises:
        FileNotFoundError: If there is no file or folder at its path.
        TypeError: If it is neither a path nor a model.
        ValueError: If it does not fit the model.
    """
    if guide is None:
        return None
    if isinstance(guide, (str, os.PathLike)):
        guide = LOADERS["diffusion"](guide).to(model.betas)
    if not isinstance(guide, ForwardProcess):
        raise TypeError(
            "sample: guide must be a GaussianDiffusion, or the path of a checkpoint or of a shared "
            f"model, got {shown(guide)}; load it with load_diffusion"
        )
    opened: Any = guide
    theirs = _traits(opened)
    for name, own in _traits(model).items():
        if theirs[name] != own:
            cure = "take an earlier checkpoint of the model, or a smaller one for the same clips"
            if name in ("device", "dtype"):
                cure = "move it with guide.to(model.betas)"
            raise ValueError(
                f"sample: guide must have the model's {name}, {own}, got {theirs[name]}; {cure}"
            )
    return opened


def _traits(model: GaussianDiffusion) -> dict[str, Any]:
    """What a model and its guide must have in common, by its name for errors."""
    return {
        "clip shape": model.clip_shape,
        "auto_normalize": model.auto_normalize,
        "value_range": model.config["value_range"],
        "given_frames": model.given_frames,
        "condition_names": model.condition_names,
        "takes_text_states": model.takes_text_states,
        "device": model.betas.device,
        "dtype": model.betas.dtype,
    }
