"""The requests of `sample`: checked arguments, and their split into batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.conditions import VALUES
from video_diffusion_pytorch.diffusion.denoiser import Noise
from video_diffusion_pytorch.diffusion.guidance import Guidance
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams
from video_diffusion_pytorch.diffusion.samplers import DDPM, Sampler


@dataclass(frozen=True)
class SamplingRequest:
    """What is asked of a sampler for a batch of videos; attributes as the arguments of `sample`.

    Attributes:
        conditions: By keyword, a row per video.
        negative: The same of those to guide away from.
        guidance: What is known of the videos, made ready for them.
        noise: The source of their noise.
        cond_scale: As in `sample`.
        guidance_rescale: As in `sample`.
        dynamic_thres_percentile: As in `sample`.
    """

    conditions: dict[str, Any]
    negative: dict[str, Tensor]
    guidance: tuple[Guidance, ...]
    noise: Noise
    cond_scale: float
    guidance_rescale: float
    dynamic_thres_percentile: float | None

    @property
    def is_plain(self) -> bool:
        """Whether it has conditions, their scale and torch's global random stream only."""
        has_options = self.guidance_rescale or self.dynamic_thres_percentile is not None
        return self.noise is draw_noise and not (self.negative or self.guidance or has_options)

    def rows(self, rows: slice) -> SamplingRequest:
        """The request for some of the videos."""
        return replace(
            self,
            conditions={name: value[rows] for name, value in self.conditions.items()},
            negative={name: value[rows] for name, value in self.negative.items()},
            guidance=tuple(one.rows(rows) for one in self.guidance),
            noise=self.noise[rows] if isinstance(self.noise, RandomStreams) else self.noise,
        )


def batches(count: int, max_batch: int | None) -> list[slice]:
    """The rows of the batches that `count` videos are drawn in; one batch even of none."""
    size = max_batch or max(count, 1)
    return [slice(i, min(i + size, count)) for i in range(0, max(count, 1), size)]


def as_guidance(guidance: Any) -> tuple[Guidance, ...]:
    """One object, or several, as a tuple.

    Raises:
        TypeError: If one is no `Guidance`.
    """
    several = guidance if isinstance(guidance, (list, tuple)) else (guidance,)
    for one in several:
        if not isinstance(one, Guidance):
            raise TypeError(
                "sample: guidance must be a Guidance, such as KnownRegion or Measurement, or "
                f"several of them, got {shown(one)}; make one of it, or leave it out"
            )
    return tuple(several)


def rows_known(guidance: Sequence[Guidance]) -> int | None:
    """How many videos the guidance is for; None for any number."""
    return next((one.num_videos for one in guidance if one.num_videos is not None), None)


def check_rows(guidance: Sequence[Guidance], count: int) -> None:
    """Raises a ValueError unless guidance is for as many videos as there are."""
    for one in guidance:
        if one.num_videos not in (None, count):
            raise ValueError(
                f"sample: guidance must be for as many videos as are drawn, {count}, got a "
                f"{type(one).__name__} for {one.num_videos}; give as many rows, or one for all"
            )


def check_options(
    guidance_rescale: float, dynamic_thres_percentile: float | None, is_clipped: bool
) -> None:
    """Raises a ValueError for options of `sample` outside their range.

    Args:
        guidance_rescale: As in `sample`.
        dynamic_thres_percentile: As in `sample`.
        is_clipped: Whether the model clamps its samples.
    """
    shares = {"guidance_rescale": guidance_rescale}
    if dynamic_thres_percentile is not None:
        shares["dynamic_thres_percentile"] = dynamic_thres_percentile
    for name, value in shares.items():
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(
                f"sample: {name} must be in [0, 1], got {shown(value)}; give it as a fraction"
            )
    if dynamic_thres_percentile is not None and not is_clipped:
        raise ValueError(
            "sample: dynamic_thres_percentile needs a model that clips, got one with "
            "auto_normalize=False, whose clips have no range; leave it out"
        )


def check_numbers(**numbers: Any) -> None:
    """Raises a ValueError for arguments of `sample` that are given, and not whole and positive."""
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, Integral) or int(value) < 1):
            raise ValueError(
                f"sample: {name} must be a whole number, at least 1, got "
                f"{shown(value)}; {_HINTS[name]}"
            )


_HINTS = {
    "batch_size": "give the number of videos to draw",
    "num_frames": "leave it out for the frames of a training clip",
    "max_batch": "leave it out to draw all videos at once",
}


NEGATIVES = tuple(name for name in VALUES)
"""Conditions that samples can be guided away from, if the network does not name its own."""


def takes_reference_chain(sampler: Sampler, request: SamplingRequest) -> bool:
    """Decides between the reference's chain, `p_sample_loop`, and the sampler's own steps.

    The chain, whose methods a subclass may override, is taken for all steps of `DDPM` with no
    option beyond conditions, `cond_scale` and torch's global random stream: then it gives the
    reference's numbers.
    """
    return type(sampler) is DDPM and request.is_plain


def check_denoiser_takes(guided: Callable[..., Any], request: SamplingRequest) -> None:
    """Raises a ValueError for options that the denoiser's `forward_with_cond_scale` lacks."""
    options = {"negative": request.negative, "guidance_rescale": request.guidance_rescale}
    wanted = [name for name, value in options.items() if value]
    if not wanted:
        return
    parameters = inspect.signature(guided).parameters
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    unknown = [name for name in wanted if name not in parameters]
    if unknown and not takes_any:
        raise ValueError(
            "sample: the denoiser's forward_with_cond_scale must take "
            f"{' and '.join(unknown)}, as Unet3D's does, got one with "
            f"{', '.join(parameters)}; add it, or leave the option out"
        )
