"""Rollouts of any length, in which each frame is denoised at a pace of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import as_count
from video_diffusion_pytorch.conditions import frames_of
from video_diffusion_pytorch.diffusion.completion import Completion
from video_diffusion_pytorch.diffusion.guided_prediction import PredictionGuidance, as_cond_scale
from video_diffusion_pytorch.diffusion.noise_schedule import Noise, NoiseLevel
from video_diffusion_pytorch.diffusion.random_streams import make_streams
from video_diffusion_pytorch.diffusion.samplers import Sampler, multistep_factors


class Tick(NamedTuple):
    """One call of the network in a rollout.

    Attributes:
        start: The first frame that the network sees.
        stop: The frame after the last.
        done: For each of these frames, how many of its steps are done: 0 where it is noise, all
            of them where it is clean.
        after: The same after this one.
    """

    start: int
    stop: int
    done: tuple[int, ...]
    after: tuple[int, ...]


def ticks(
    known: int, num_frames: int, length: int, steps: int, lag: int, overlap: int
) -> list[Tick]:
    """The calls of a rollout, in which every frame begins `lag` steps after the one before.

    Args:
        known: Frames that are clean at the beginning.
        num_frames: Frames in all.
        length: Frames that the network sees at once.
        steps: Steps of a frame.
        lag: Steps after which the next frame begins.
        overlap: Clean frames that the network sees before those that are drawn.

    Example:
        Two frames after one that is known, of two steps each:

        >>> for tick in ticks(known=1, num_frames=3, length=3, steps=2, lag=1, overlap=1):
        ...     print(tick)
        Tick(start=0, stop=3, done=(2, 0, 0), after=(2, 1, 0))
        Tick(start=0, stop=3, done=(2, 1, 0), after=(2, 2, 1))
        Tick(start=0, stop=3, done=(2, 2, 1), after=(2, 2, 2))
    """

    def done(frame: int, tick: int) -> int:
        return steps if frame < known else min(max(tick - lag * (frame - known), 0), steps)

    found = []
    for tick in range(lag * (num_frames - known - 1) + steps):
        # the first frame that is not clean
        first = known + max(0, (tick - steps) // lag + 1)
        start = max(0, min(first - overlap, num_frames - length))
        seen = range(start, min(start + length, num_frames))
        now, after = (tuple(done(frame, when) for frame in seen) for when in (tick, tick + 1))
        found.append(Tick(seen.start, seen.stop, now, after))
    return found


@dataclass(frozen=True)
class Rollout:
    """A call that continues videos frame by frame: the model and the options.

    Attributes:
        completion: The model, and the options that it shares with other ways to continue a video.
        steps: Steps of each frame.
        lag: Steps after which the next frame begins; None for the least that fits.
        spacing: Spacing of the steps, as in `Sampler`.
    """

    completion: Completion
    steps: int
    lag: int | None
    spacing: str

    @torch.no_grad()
    def run(self, video: Any, num_frames: int, progress: bool) -> Tensor:
        """Continues `video` to `num_frames` frames; see `GaussianDiffusion.roll_out`."""
        diffusion = self.completion.diffusion
        video, num_frames = self.completion.longer("video", video, num_frames)
        known = video.shape[2]
        levels = Sampler(spacing=self.spacing).levels(diffusion, self.steps)
        plan = self._plan(known, num_frames)
        whole = F.pad(video, (0, 0, 0, 0, 0, num_frames - known))
        options, conditions, _ = self.completion.prepare_for_all(whole)
        scale = as_cond_scale(options.pop("cond_scale", 1.0), conditions)
        guiding = PredictionGuidance(scale, {}, 0.0, None, None)
        streams = make_streams(None, options.pop("generator", None), len(video), video.device)
        draw = diffusion.correlating(streams)
        if options:
            raise TypeError(
                f"roll_out: conditions must be among those of sample, got {', '.join(options)}; "
                "leave it out"
            )
        x = levels[0].scale * draw(whole)
        x[:, :, :known] = diffusion.to_model_range(video)
        # once, as a look at the schedule synchronises with a GPU
        given = diffusion.level_of_noise(self.completion.given_noise)
        # the clean frames that were predicted in their last step
        x_start = torch.zeros_like(x)
        for tick in tqdm(plan, "roll out", disable=not progress):
            frames = slice(tick.start, tick.stop)
            cut = {name: frames_of(name, value, frames) for name, value in conditions.items()}
            noisy, level = self._seen(x[:, :, frames], tick, levels, given, draw)
            predict = guiding.predictor(diffusion, noisy, cut, slice(0, len(x)))
            found = predict(noisy, level)
            found = diffusion.clamp(found) if diffusion.clamps else found
            x[:, :, frames] = _moved(x[:, :, frames], found, x_start[:, :, frames], tick, levels)
            x_start[:, :, frames] = found
        result = diffusion.to_data_range(x)
        result[:, :, :known] = video
        return result

    def _plan(self, known: int, num_frames: int) -> list[Tick]:
        """The calls of the network.

        Raises:
            ValueError: If the model has no `frame_noise`, or needs known frames in another way, or
                the frames that are drawn at once don't fit into its clips.
        """
        diffusion = self.completion.diffusion
        if diffusion.frame_noise is None or diffusion.given_frames:
            got = "given_frames" if diffusion.given_frames else "a noise level per clip"
            raise ValueError(
                "roll_out: the model must be trained with frame_noise='independent' and without "
                f"given_frames, got one with {got}; use extend"
            )
        length = diffusion.num_frames
        overlap = self.completion.overlap
        overlap = length // 2 if overlap is None else as_count(overlap, "roll_out: overlap")
        if not 1 <= overlap < length:
            raise ValueError(
                f"roll_out: overlap must be from 1 to {length - 1}, one less than the frames of "
                f"the model's clips, got {overlap}; leave it out for half of them"
            )
        least = -(-self.steps // (length - overlap))
        lag = least if self.lag is None else as_count(self.lag, "roll_out: lag")
        if lag < least:
            raise ValueError(
                f"roll_out: lag must be at least {least}, so that the frames that are drawn at "
                f"once, steps / lag, fit into the {length - overlap} of a clip beside the overlap, "
                f"got {lag}; give a larger one, fewer steps, or a smaller overlap"
            )
        return ticks(known, num_frames, length, self.steps, lag, overlap)

    def _seen(
        self, x: Tensor, tick: Tick, levels: Sequence[NoiseLevel], given: NoiseLevel, draw: Noise
    ) -> tuple[Tensor, NoiseLevel]:
        """The frames as the network sees them, with hardly any noise in the clean ones."""
        own = tuple(given if done == self.steps else levels[done] for done in tick.done)
        noisy = given.alpha * x
        if self.completion.given_noise:
            noisy = noisy + given.sigma * draw(x)
        is_clean = torch.tensor([done == self.steps for done in tick.done], device=x.device)
        x_t = torch.where(is_clean.view(-1, 1, 1), noisy, x)
        return x_t, levels[0]._replace(frames=own)


def _moved(
    x: Tensor, x_start: Tensor, before: Tensor, tick: Tick, levels: Sequence[NoiseLevel]
) -> Tensor:
    """The frames after a step of DPM-Solver++ of those that move.

    Args:
        x: Noisy and clean frames, `(b, c, f, h, w)`.
        x_start: The clean frames that were predicted from them.
        before: Those of the step before.
        tick: Which frames move.
        levels: The noise levels of the steps.
    """
    factors = [(1.0, 0.0, 0.0)] * len(tick.done)
    for i, (done, after) in enumerate(zip(tick.done, tick.after, strict=True)):
        if done < after:
            last = levels[done - 1] if done else None
            factors[i] = multistep_factors(last, levels[done], levels[after])
    kept, gain, lean = x.new_tensor(factors).view(-1, 1, 1, 3).unbind(-1)
    return kept * x + gain * (x_start + lean * (x_start - before))
