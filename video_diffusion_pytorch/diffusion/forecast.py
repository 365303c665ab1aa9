"""Ensemble forecasts: many continuations of a video, window by window."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import as_count, shown
from video_diffusion_pytorch.conditions import CONDITIONS, frames_of
from video_diffusion_pytorch.diffusion.completion import Window, windows
from video_diffusion_pytorch.diffusion.guided_prediction import open_guide
from video_diffusion_pytorch.diffusion.random_streams import stream_seed
from video_diffusion_pytorch.diffusion.value_range import check_videos, level_of_user

if TYPE_CHECKING:
    from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion

# Keywords of `extend` that a forecast has no use for
_NOT_TAKEN: tuple[str, ...] = (
    *("generator", "guidance", "negative_cond", "overlap", "low_resolution"),
    *("frame_factor", "num_frames"),
)


@dataclass(frozen=True)
class Forecaster:
    """A call of `GaussianDiffusion.forecast`, whose arguments these are.

    Attributes:
        diffusion: The model.
        members: Continuations of each video.
        seed: Of all of them, or one per video.
        stride: New frames per window; None for the default.
        max_batch: Largest number of continuations drawn at once; None for all.
        options: Keywords of `extend`, conditions among them.
    """

    diffusion: GaussianDiffusion
    members: int
    seed: int | Sequence[int]
    stride: int | None
    max_batch: int | None
    options: Mapping[str, Any]

    @torch.no_grad()
    def run(self, initial_frames: Any, num_frames: int, progress: bool) -> Tensor:
        """Draws the forecasts, `(b, members, c, num_frames, h, w)`."""
        start, options, conditions = self._prepare(initial_frames)
        members = as_count(self.members, "forecast: members")
        seeds = self._seeds(len(start))
        total = start.shape[2] + as_count(num_frames, "forecast: num_frames")
        self._check_conditions(conditions, len(start), total)
        plan = self._plan(start.shape[2], total)
        rows = [(i, j) for i in range(len(start)) for j in range(members)]
        most = len(rows)
        if self.max_batch is not None:
            most = as_count(self.max_batch, "forecast: max_batch")
        batches = [rows[first : first + most] for first in range(0, len(rows), most)]
        parts = []
        with tqdm(total=len(batches) * len(plan), desc="forecast", disable=not progress) as bar:
            for batch in batches:
                of_row = torch.tensor([i for i, _ in batch], device=start.device)
                generators = [
                    torch.Generator(start.device).manual_seed(stream_seed(seeds[i], j))
                    for i, j in batch
                ]
                own = {name: value[of_row] for name, value in conditions.items()}
                later = (0, 0, 0, 0, 0, total - start.shape[2])
                video = F.pad(start[of_row], later, value=torch.nan)
                alive = torch.ones(len(batch), dtype=torch.bool, device=start.device)
                for window in plan:
                    self._draw(video, window, alive, generators, own, options)
                    bar.update()
                parts.append(video[:, :, start.shape[2] :])
        found = torch.cat(parts).unflatten(0, (len(start), members))
        _warn_of_diverged(found)
        return found

    def _draw(
        self,
        video: Tensor,
        window: Window,
        alive: Tensor,
        generators: Sequence[torch.Generator],
        conditions: Mapping[str, Tensor],
        options: Mapping[str, Any],
    ) -> None:
        """Draws a window of those continuations that are `alive`, and notes which diverge."""
        rows = alive.nonzero().flatten()
        if not len(rows):
            return
        known, frames = window.start + window.ready, slice(window.start, window.stop)
        of_window: dict[str, Any] = {
            name: frames_of(name, value[rows], frames) for name, value in conditions.items()
        }
        if self.diffusion.given_frames == window.ready and options.get("weight") is None:
            # the network sees the known frames; guidance by them would only cost gradients
            of_window["weight"] = 0.0
        drawn = self.diffusion.extend(
            video[rows][:, :, window.start : known],
            window.stop - window.start,
            generator=[generators[row] for row in rows.tolist()],
            progress=False,
            **{**options, **of_window},
        )[:, :, window.ready :]
        video[rows, :, known : window.stop] = drawn
        # also of finite values that have no place in the model's range, as expm1 of a large one
        alive[rows] = self.diffusion.takes(drawn).flatten(1).all(dim=1)

    def _prepare(self, initial_frames: Any) -> tuple[Tensor, dict[str, Any], dict[str, Tensor]]:
        """The initial frames in the units of the result; options; and conditions as tensors."""
        diffusion, options = self.diffusion, dict(self.options)
        for name in _NOT_TAKEN:
            if options.get(name) is not None:
                raise TypeError(
                    f"forecast: keywords must be those of extend without {', '.join(_NOT_TAKEN)}, "
                    f"got {name}; leave it out"
                )
        size = diffusion.sample_shape(None, options.get("image_size"))[2:]
        shape = ("b", diffusion.channels, "f", *size)
        check_videos("forecast: initial_frames", initial_frames, shape)
        is_bytes = initial_frames.dtype == torch.uint8 and not diffusion.has_units
        start, _ = diffusion.fill_missing(initial_frames.detach().to(diffusion.betas))
        start = start / 255 if is_bytes else start
        if not start.isfinite().all():
            raise ValueError(
                "forecast: initial_frames must be finite, got NaN or infinite values; fill them"
            )
        own = {name: options.pop(name) for name in CONDITIONS if name in options}
        # captions are encoded, and a guide is loaded, once for all windows
        conditions = diffusion.prepare_conditions(own)
        if options.get("guide") is not None:
            options["guide"] = open_guide(diffusion, options["guide"])
        return start, options, conditions

    def _check_conditions(self, conditions: Mapping[str, Tensor], count: int, total: int) -> None:
        """Raises a ValueError unless there is a row per forecast, and all frames of it."""
        for name, value in conditions.items():
            kind = CONDITIONS[name]
            has_frames = value.ndim == len(kind.axes) and "f" in kind.axes
            frames = value.shape[kind.axes.index("f")] if has_frames else total
            if len(value) != count or frames != total:
                raise ValueError(
                    f"forecast: {name} must have one row per forecast, {count}, and, if it has "
                    f"frames, all {total} of the initial frames and the forecast, got "
                    f"{tuple(value.shape)}"
                )

    def _plan(self, known: int, total: int) -> list[Window]:
        """The windows after the known frames."""
        length, given_frames = self.diffusion.num_frames, self.diffusion.given_frames
        stride = length - given_frames if given_frames else length - length // 2
        if self.stride is not None:
            stride = as_count(self.stride, "forecast: stride")
        if not 1 <= length - stride < length or length - stride < given_frames:
            most = length - max(given_frames, 1)
            raise ValueError(
                f"forecast: stride must be from 1 to {most}, so that a window of {length} frames "
                f"has known ones, got {stride}; leave it out"
            )
        if known < given_frames:
            raise ValueError(
                f"forecast: initial_frames must be at least the {given_frames} given_frames of the "
                f"model, got {known}; give more frames"
            )
        is_known = [frame < known for frame in range(total)]
        return windows(is_known, is_known, length, length - stride)

    def _seeds(self, count: int) -> list[int]:
        """The seed of each video."""
        is_one = not isinstance(self.seed, (list, tuple))
        seeds: Any = [self.seed] if is_one else self.seed
        are_numbers = all(isinstance(seed, Integral) and int(seed) >= 0 for seed in seeds)
        if not are_numbers or len(seeds) != (1 if is_one else count):
            raise ValueError(
                "forecast: seed must be a number of 0 or greater, or a list of one for each of the "
                f"{count} forecasts, got {shown(self.seed)}; correct it"
            )
        if is_one:
            return [stream_seed(int(seeds[0]), i) for i in range(count)]
        return [int(seed) for seed in seeds]


def _warn_of_diverged(found: Tensor) -> None:
    """Warns if continuations have NaN or infinite values."""
    is_finite = found.isfinite().transpose(2, 3).flatten(3).all(dim=3)
    diverged = ~is_finite.all(dim=2)
    if diverged.any():
        first = int((~is_finite).float().argmax(dim=2)[diverged].min())
        warnings.warn(
            f"forecast: {int(diverged.sum())} of {diverged.numel()} members have NaN or infinite "
            f"values, the first from frame {first} on; train for longer, or with given_noise",
            stacklevel=level_of_user(),
        )
