"""What a call of `sample` is told of its videos, and how it is cut into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from video_diffusion_pytorch.diffusion.guidance import Guidance
from video_diffusion_pytorch.diffusion.noise_level import Noise
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams


@dataclass(frozen=True)
class Told:
    """What is told of a batch of videos; the attributes are arguments of `sample`.

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
        """Whether it is no more than conditions, their scale and torch's global stream."""
        has_options = self.guidance_rescale or self.dynamic_thres_percentile is not None
        return self.noise is draw_noise and not (self.negative or self.guidance or has_options)

    def rows(self, rows: slice) -> Told:
        """The part of it about some of the videos."""
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


def rows_known(guidance: Sequence[Guidance]) -> int | None:
    """How many videos the guidance is for; None if it does not tell."""
    return next((one.num_videos for one in guidance if one.num_videos is not None), None)


def check_options(
    guidance_rescale: float, dynamic_thres_percentile: float | None, max_batch: int | None
) -> None:
    """Raises a ValueError for options of `sample` outside their range."""
    shares = {"guidance_rescale": guidance_rescale}
    if dynamic_thres_percentile is not None:
        shares["dynamic_thres_percentile"] = dynamic_thres_percentile
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise ValueError(
                f"sample: {name} must be in [0, 1], got {value}; give it as a fraction"
            )
    if max_batch is not None and max_batch < 1:
        raise ValueError(
            f"sample: max_batch must be at least 1, got {max_batch}; leave it out to draw all "
            "videos at once"
        )
