"""The reverse process: from noise to a video, one learned step at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.conditions import (
    Conditions,
    common_length,
    given,
    is_list_str,
    unwrap,
)
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.value_range import normalize_img, unnormalize_img

__all__ = ["ReverseProcess", "is_list_str", "normalize_img", "unnormalize_img", "unwrap"]


class ReverseProcess(Conditions):
    """Draws videos with a denoiser; `GaussianDiffusion` documents the attributes."""

    image_size: int | tuple[int, int]
    use_dynamic_thres: bool
    dynamic_thres_percentile: float

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip, `(c, f, h, w)`."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.channels, self.num_frames, height, width

    def p_mean_variance(
        self,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool,
        cond: Any = None,
        cond_scale: float = 1.0,
        *,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of p(x_{t-1} | x_t) (Ho et al. 2020, eq. 11).

        Args:
            x: Noisy videos, `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            clip_denoised: Whether the predicted x_start is brought into [-1, 1].
            cond: As in `sample`, and so the other conditions.
            cond_scale: Strength of the guidance; 1 is without.
            labels: As in `sample`.
            frame_cond: As in `sample`.
            cond_video: As in `sample`.
            first_frames: As in `sample`.
            null_cond_mask: As in `sample`.
        """
        conditions = self._for_network(
            x,
            cond=cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        denoiser: Any = unwrap(self.denoise_fn)
        pred_noise = denoiser.forward_with_cond_scale(
            x, t, cond=conditions.pop("cond", None), cond_scale=cond_scale, **conditions
        )
        pred_x_start = self.predict_start_from_noise(x, t=t, noise=pred_noise)
        if clip_denoised:
            pred_x_start = self._clip(pred_x_start)
        return self.q_posterior(x_start=pred_x_start, x_t=x, t=t)

    def _clip(self, x_start: Tensor) -> Tensor:
        if not self.use_dynamic_thres:
            return x_start.clamp(-1, 1)
        values = rearrange(x_start, "b ... -> b (...)").abs()
        limit = torch.quantile(values, self.dynamic_thres_percentile, dim=-1).clamp(min=1)
        limit = limit.view(-1, *[1] * (x_start.ndim - 1))
        return x_start.clamp(-limit, limit) / limit

    @torch.no_grad()
    def p_sample(
        self,
        x: Tensor,
        t: Tensor,
        cond: Any = None,
        cond_scale: float = 1.0,
        clip_denoised: bool = True,
        *,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
    ) -> Tensor:
        """Draws x_{t-1} from p(x_{t-1} | x_t); arguments as in `p_mean_variance`."""
        conditions = given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        mean, _, log_variance = self.p_mean_variance(
            x, t, clip_denoised=clip_denoised, cond=cond, cond_scale=cond_scale, **conditions
        )
        noise = draw_noise(x)
        # the last step is without noise
        noisy = (t > 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return mean + noisy * (0.5 * log_variance).exp() * noise

    def _denoise_from(
        self,
        x: Tensor,
        steps: int,
        cond_scale: float,
        progress: bool,
        conditions: dict[str, Any],
    ) -> Tensor:
        """Takes `x` from step `steps - 1` to the end, and into the range of the clips."""
        # captions go through their encoder once, not at every step
        conditions = {"cond": None, **self._ready(**conditions)}
        batch = x.shape[0]
        every_step = reversed(range(steps))
        for i in tqdm(every_step, desc="sampling", total=steps, disable=not progress):
            t = torch.full((batch,), i, device=x.device, dtype=torch.long)
            x = self.p_sample(
                x, t, cond_scale=cond_scale, clip_denoised=self.auto_normalize, **conditions
            )
        return self._to_users_range(x)

    @torch.no_grad()
    def p_sample_loop(
        self,
        shape: Sequence[int],
        cond: Any = None,
        cond_scale: float = 1.0,
        *,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        progress: bool = True,
    ) -> Tensor:
        """Draws videos of a shape `(b, c, f, h, w)`; arguments as in `sample`."""
        conditions = given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        noise = torch.randn(tuple(shape), device=self.betas.device)
        conditions = {"cond": cond, **conditions}
        return self._denoise_from(noise, self.num_timesteps, cond_scale, progress, conditions)

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
        progress: bool = True,
    ) -> Tensor:
        """Draws videos from the model by ancestral sampling over all steps.

        Conditions are tensors, arrays or lists of numbers, with one row per video; which of them
        there must be is a matter of the network.

        Args:
            cond: Vectors, `(b, cond_dim)`, or a list of `b` captions, of which some may be None
                for no caption; None for none.
            cond_scale: Strength of the guidance; 1 is without.
            batch_size: Number of videos, where there is no condition to tell it.
            labels: Classes, integers `(b,)`, -1 for none.
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or without that range as the network takes it.
            first_frames: The frames to go on from, `(b, c, given_frames, h, w)` in the range of
                the clips; for a model with `given_frames`.
            null_cond_mask: Boolean `(b,)`: where true, `cond` is as if there were none.
            progress: Whether to show a progress bar.

        Returns:
            `(b, c, f, h, w)` in [0, 1], or in `value_range`, or in the clips' range if
            `auto_normalize` is False.

        Raises:
            TypeError: If a condition cannot become a tensor.
            ValueError: If conditions differ in number, or don't fit the model.
        """
        conditions = self._ready(
            cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        shape = (common_length(conditions, batch_size), *self.clip_shape)
        cond = conditions.pop("cond", None)
        return self.p_sample_loop(shape, cond, cond_scale, progress=progress, **conditions)

    @torch.no_grad()
    def interpolate(
        self,
        x1: Tensor,
        x2: Tensor,
        t: int | None = None,
        lam: float = 0.5,
        *,
        cond: Any = None,
        cond_scale: float = 1.0,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        progress: bool = True,
    ) -> Tensor:
        """Blends two batches of clips at a noise level, and denoises the blend.

        Args:
            x1: Clips, `(b, c, f, h, w)`, in the range of the training clips.
            x2: As many others.
            t: Step at which they are blended, in [0, num_timesteps); None for the last.
            lam: Share of `x2`, in [0, 1].
            cond: As in `sample`.
            cond_scale: As in `sample`.
            labels: As in `sample`.
            frame_cond: As in `sample`.
            cond_video: As in `sample`.
            first_frames: As in `sample`.
            null_cond_mask: As in `sample`.
            progress: Whether to show a progress bar.

        Returns:
            `(b, c, f, h, w)`.

        Raises:
            ValueError: If shapes differ, or `t` is out of range.
        """
        t = self.num_timesteps - 1 if t is None else t
        if x1.shape != x2.shape:
            raise ValueError(
                f"interpolate: x1 and x2 must have the same shape, got {tuple(x1.shape)} and "
                f"{tuple(x2.shape)}; cut or resize one"
            )
        if not 0 <= t < self.num_timesteps:
            raise ValueError(
                f"interpolate: t must be a step from 0 to {self.num_timesteps - 1}, got {t}; "
                "leave it out to blend at the last"
            )
        steps = torch.full(x1.shape[:1], t, device=x1.device, dtype=torch.long)
        x1, x2 = (self.q_sample(self._to_model_range(x), steps) for x in (x1, x2))
        conditions = given(
            cond=cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        blend = (1 - lam) * x1 + lam * x2
        return self._denoise_from(blend, t, cond_scale, progress, conditions)
