"""Noise becomes videos: the choice of a sampler, of its steps, and of what guides it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.condition_tensors import common_length
from video_diffusion_pytorch.diffusion.conditions import given, unwrap
from video_diffusion_pytorch.diffusion.denoiser import Denoiser
from video_diffusion_pytorch.diffusion.guidance import Guidance
from video_diffusion_pytorch.diffusion.noise_level import NoiseLevel
from video_diffusion_pytorch.diffusion.random_streams import make_streams
from video_diffusion_pytorch.diffusion.reverse_process import ReverseProcess, guided
from video_diffusion_pytorch.diffusion.sampler import Callback, follow
from video_diffusion_pytorch.diffusion.samplers import DDIM, DDPM, Sampler, make_sampler
from video_diffusion_pytorch.diffusion.sampling_batch import (
    Told,
    as_guidance,
    as_height_and_width,
    batches,
    check_numbers,
    check_options,
    check_rows,
    rows_known,
)

NEGATIVES = ("cond", "labels", "frame_cond", "cond_video")
"""Conditions that samples can be guided away from, where the network does not tell its own."""


class Sampling(ReverseProcess):
    """The part of `GaussianDiffusion` that draws videos; it documents the attributes."""

    sampling_timesteps: int | None
    ddim_sampling_eta: float

    @torch.no_grad()
    def sample(
        self,
        cond: Any = None,
        cond_scale: float = 1.0,
        batch_size: int = 16,
        *,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        cond_mask: Any = None,
        sampler: str | Sampler | Any = None,
        steps: int | Sequence[float] | None = None,
        guidance: Guidance | Sequence[Guidance] = (),
        negative_cond: Any = None,
        guidance_rescale: float = 0.0,
        dynamic_thres_percentile: float | None = None,
        num_frames: int | None = None,
        image_size: int | tuple[int, int] | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        max_batch: int | None = None,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Tensor:
        """Draws videos from the model.

        Conditions are tensors, arrays or lists of numbers, with one row per video; which of them
        there must be is a matter of the network.

        Args:
            cond: Vectors, `(b, cond_dim)`, or states of text, `(b, n, cond_dim)`, as the network
                takes; or a list of `b` captions, of which some may be None; None for none.
            cond_scale: Strength of the guidance by conditions; 1 is without.
            batch_size: Number of videos, where neither condition nor `guidance` tells it.
            labels: Classes, integers `(b,)`, -1 for none.
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or without that range as the network takes it.
            first_frames: The frames to go on from, `(b, c, given_frames, h, w)` in the range of
                the clips; for a model with `given_frames`.
            null_cond_mask: Boolean `(b,)`: where true, `cond` is as if there were none.
            cond_mask: Of states, boolean `(b, n)`, true where there is a token; None for all.
            sampler: `"ddpm"` (the reference's, all steps), `"ancestral"`, `"ddim"`, `"dpm++"`,
                `"dpm++sde"`, an object of `diffusion.samplers` with options of its own, or a
                scheduler of the diffusers package. None for ddpm, or, where fewer steps are asked
                for, ddim.
            steps: Number of steps, or falling time steps to stop at; None for the model's
                `sampling_timesteps`, or without these what suits the sampler.
            guidance: What is known of the videos: a `Measurement`, a `KnownRegion`, or several.
            negative_cond: What to guide away from, in the place of no condition: as `cond`, or a
                dict of conditions by name; one row for all or one per video.
            guidance_rescale: How far a guided prediction is brought back to the standard deviation
                of the unguided one, in [0, 1] (Lin et al. 2023, section 3.4; theirs is 0.7).
            dynamic_thres_percentile: Clips at this percentile, as `use_dynamic_thres` does for all
                samples; None for what the model does.
            num_frames: Frames of a video; None for the training clips'.
            image_size: Height and width, an int or `(h, w)`; None for the training clips'.
            seed: One for all, of which each video gets a stream of random numbers of its own, so
                that it is the same in any batch; or one per video. None for torch's global stream.
            generator: In the place of `seed`: a generator that draws a seed for all, or one per
                video, from which its noise comes.
            max_batch: The most videos to draw at a time, where memory is short; None for all.
            callback: Called with a `SamplingStep` after each step.
            progress: Whether to show a progress bar.

        Returns:
            `(b, c, f, h, w)` in [0, 1], or in `value_range`, or in the clips' range if
            `auto_normalize` is False.

        Raises:
            TypeError: If a condition cannot become a tensor, or the sampler is none.
            ValueError: If conditions differ in number, or don't fit the model, or an argument is
                outside its range.
        """
        # mistakes first: captions may have to wait for their encoder
        known = as_guidance(guidance)
        check_numbers(batch_size=batch_size, num_frames=num_frames, max_batch=max_batch)
        check_options(guidance_rescale, dynamic_thres_percentile, self.auto_normalize)
        chosen, levels = self._choose_sampler(sampler, steps)
        size = self._shape_of_sample(num_frames, image_size)
        conditions = self._ready(
            cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
        )
        count = common_length(conditions, rows_known(known) or batch_size)
        check_rows(known, count)
        told = Told(
            conditions,
            self._ready_negative(negative_cond, cond_scale, count),
            tuple(one.prepare(self, (count, *size)) for one in known),
            make_streams(seed, generator, count, self.betas.device),
            cond_scale,
            guidance_rescale,
            dynamic_thres_percentile,
        )
        self._check_guided(told)
        follower: dict[str, Any] = {"progress": progress, **given(callback=callback)}
        videos = [
            self._draw((rows.stop - rows.start, *size), told.rows(rows), chosen, levels, follower)
            for rows in batches(count, max_batch)
        ]
        return torch.cat(videos)

    def _draw(
        self,
        shape: tuple[int, ...],
        told: Told,
        sampler: Sampler,
        levels: Sequence[NoiseLevel],
        follower: Mapping[str, Any],
    ) -> Tensor:
        """One batch of videos; `follower` are keywords of `follow`."""
        if type(sampler) is DDPM and told.is_plain:
            # the reference's own chain, bit for bit, by methods that a subclass may replace
            parameters = inspect.signature(self.p_sample_loop).parameters
            # one that is written for the reference knows no progress
            wanted = {k: v for k, v in follower.items() if k in parameters or k != "progress"}
            plain = {"cond_scale": told.cond_scale, **told.conditions, **wanted}
            return self.p_sample_loop(shape, **plain)
        self._warn_of_replaced_methods()
        x = told.noise(torch.empty(shape, device=self.betas.device, dtype=self.betas.dtype))
        denoise = self._denoiser(x, told)
        x = follow(x, sampler.run(x, levels, denoise, told.noise), levels, **follower)
        return self._to_users_range(denoise.settle(x))

    def _denoiser(self, x: Tensor, told: Told) -> Denoiser:
        """What a sampler asks, for videos of the shape of `x`."""
        options: dict[str, Any] = given(guidance_rescale=told.guidance_rescale or None)
        if told.negative:
            has_field = "cond_video" in told.negative
            # without a field of their own, first frames too are as if unknown
            frames = told.conditions.get("first_frames") if has_field else None
            own = {**told.negative, **given(first_frames=frames)}
            options["negative"] = self._for_network(x, **own) if has_field else told.negative
        predict = partial(
            self._predict_x_start,
            cond_scale=told.cond_scale,
            conditions=self._for_network(x, **told.conditions),
            **options,
        )
        clip = partial(self._clip, percentile=told.dynamic_thres_percentile)
        return Denoiser(
            predict,
            clip if self.auto_normalize else None,
            told.guidance,
            told.noise,
            self.denoise_fn,
        )

    def _shape_of_sample(
        self, num_frames: int | None, image_size: int | tuple[int, int] | None
    ) -> tuple[int, int, int, int]:
        """`(c, f, h, w)`; None for the training clips'."""
        c, f, h, w = self.clip_shape
        if image_size is not None:
            h, w = as_height_and_width(image_size)
        return c, f if num_frames is None else int(num_frames), h, w

    @property
    def replaced_methods(self) -> list[str]:
        """Methods of the chain that a subclass has replaced, as scripts for the reference do."""
        names = ("p_sample", "p_mean_variance", "p_sample_loop")
        return [n for n in names if getattr(type(self), n) is not getattr(ReverseProcess, n)]

    def _warn_of_replaced_methods(self) -> None:
        """Says that methods of a subclass, which change the chain's steps, are not called."""
        replaced = self.replaced_methods
        if replaced:
            warnings.warn(
                f"sample: {type(self).__name__} has a {' and '.join(replaced)} of its own, which "
                "only the chain of all steps calls, without seed, generator, guidance and other "
                "options; leave these out, or put the change into a Sampler or a Guidance",
                stacklevel=4,
            )

    def _choose_sampler(
        self, sampler: Any, steps: int | Sequence[float] | None
    ) -> tuple[Sampler, list[NoiseLevel]]:
        """The sampler, and the noise levels that it goes through."""
        if self.betas.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "sample: the model must be in float32 or float64, whose schedule has digits "
                f"enough, got {self.betas.dtype}; convert it with .float(), and sample within "
                "torch.autocast for half precision"
            )
        all_steps = self.num_timesteps
        times: Any = self.sampling_timesteps if steps is None else steps
        if sampler is None:
            is_all = times is None or (isinstance(times, Integral) and times == all_steps)
            sampler = "ddpm" if is_all else "ddim"
        is_ddim = isinstance(sampler, str) and sampler == "ddim"
        chosen = DDIM(eta=self.ddim_sampling_eta) if is_ddim else make_sampler(sampler)
        if steps is None and (times is None or isinstance(chosen, DDPM)):
            times = min(chosen.default_steps or all_steps, all_steps)
        return chosen, chosen.levels(self, times)

    def _check_guided(self, told: Told) -> None:
        """Raises a ValueError for options that the denoiser does not know."""
        options = {"negative": told.negative, "guidance_rescale": told.guidance_rescale}
        wanted = [name for name, value in options.items() if value]
        if not wanted:
            return
        parameters = inspect.signature(guided(self.denoise_fn)).parameters
        takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        unknown = [name for name in wanted if name not in parameters]
        if unknown and not takes_any:
            raise ValueError(
                "sample: the denoiser's forward_with_cond_scale must take "
                f"{' and '.join(unknown)}, as Unet3D's does, got one with "
                f"{', '.join(parameters)}; add it, or leave the option out"
            )

    def _ready_negative(
        self, negative_cond: Any, cond_scale: float, count: int
    ) -> dict[str, Tensor]:
        """Conditions to guide away from, `count` rows of each."""
        if negative_cond is None:
            return {}
        if cond_scale == 1:
            raise ValueError(
                "sample: negative_cond needs a cond_scale other than 1, got 1, which is without "
                "guidance; pass a larger one"
            )
        named = negative_cond if isinstance(negative_cond, Mapping) else {"cond": negative_cond}
        is_told = hasattr(unwrap(self.denoise_fn), "condition_names")
        known = self.condition_names if is_told else NEGATIVES
        # captions, once they are tensors, say where there was none, and where tokens are
        allowed = {*known, *(("null_cond_mask", "cond_mask") if "cond" in named else ())}
        unknown = [str(name) for name in named if name not in allowed]
        if unknown:
            raise ValueError(
                "sample: negative_cond must hold conditions that the network takes, "
                f"{', '.join(known) or 'none'}, got {', '.join(unknown)}; give captions or "
                "vectors, or a dict of those by name"
            )
        ready = self._ready(**named)
        for name, value in ready.items():
            if len(value) not in (1, count):
                raise ValueError(
                    f"sample: negative_cond must have 1 row or one per video, {count}, got "
                    f"{len(value)} of {name}; give as many"
                )
        return {name: value.expand(count, *value.shape[1:]) for name, value in ready.items()}
