"""The reverse process: from noise to a video, one learned step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from types import MethodType
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.conditions import (
    Conditions,
    given,
    is_list_str,
    unwrap,
)
from video_diffusion_pytorch.diffusion.denoiser import in_evaluation_mode
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.objective import x_start_of
from video_diffusion_pytorch.diffusion.sampler import Callback, follow
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.diffusion.value_range import (
    check_type,
    normalize_img,
    unnormalize_img,
)

__all__ = ["ReverseProcess", "is_list_str", "normalize_img", "unnormalize_img", "unwrap"]


def guided(denoise_fn: nn.Module) -> Any:
    """The denoiser's `forward_with_cond_scale`, which runs compiled if the denoiser is.

    Raises:
        TypeError: If it has none.
    """
    inner = unwrap(denoise_fn)
    method: Any = getattr(inner, "forward_with_cond_scale", None)
    if method is None:
        raise TypeError(
            "GaussianDiffusion: to sample, the denoiser must have a method "
            f"forward_with_cond_scale(x, t, cond=..., cond_scale=...), got {type(inner).__name__} "
            "without; add one, which may call forward"
        )
    # a compiled module lends all attributes of its own, and its call is the compiled one
    is_compiled = hasattr(denoise_fn, "_orig_mod") and hasattr(method, "__func__")
    return MethodType(method.__func__, denoise_fn) if is_compiled else method


class ReverseProcess(Conditions):
    """The reference's chain of steps; `GaussianDiffusion` documents the attributes."""

    objective: str
    use_dynamic_thres: bool
    dynamic_thres_percentile: float

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
        cond_mask: Any = None,
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
            cond_mask: As in `sample`.
        """
        conditions = self._for_network(
            x,
            cond=cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
        )
        pred_x_start = self._predict_x_start(x, t, cond_scale=cond_scale, conditions=conditions)
        if clip_denoised:
            pred_x_start = self._clip(pred_x_start)
        return self.q_posterior(x_start=pred_x_start, x_t=x, t=t)

    def _predict_x_start(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cond_scale: float,
        conditions: Mapping[str, Tensor],
        **guidance: Any,
    ) -> Tensor:
        """The clean video, as the network sees it, not clipped.

        Args:
            x: Noisy videos, `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            cond_scale: Strength of the guidance; 1 is without.
            conditions: What `_for_network` gives.
            **guidance: Further keywords of the denoiser's `forward_with_cond_scale`.
        """
        others = dict(conditions)
        told = {"cond": others.pop("cond", None), **others, **guidance}
        with in_evaluation_mode(self.denoise_fn):
            output = guided(self.denoise_fn)(
                x, self._network_time(t), cond_scale=cond_scale, **told
            )
        return x_start_of(self.objective, self, output, x, t)

    def _clip(self, x_start: Tensor, percentile: float | None = None) -> Tensor:
        """Brings videos into [-1, 1], at a percentile of their values where one is asked for."""
        if percentile is None and not self.use_dynamic_thres:
            return x_start.clamp(-1, 1)
        percentile = self.dynamic_thres_percentile if percentile is None else percentile
        values = rearrange(x_start, "b ... -> b (...)").abs()
        limit = torch.quantile(values, percentile, dim=-1).clamp(min=1)
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
        cond_mask: Any = None,
    ) -> Tensor:
        """Draws x_{t-1} from p(x_{t-1} | x_t); arguments as in `p_mean_variance`."""
        conditions = given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
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
        conditions: dict[str, Any],
        progress: bool,
        callback: Callback | None = None,
    ) -> Tensor:
        """Takes `x` from step `steps - 1` to the end, and into the range of the clips."""
        # captions go through their encoder once, not at every step
        conditions = {"cond": None, **self._ready(**conditions)}
        times = range(steps - 1, -1, -1)

        def run(x: Tensor) -> Iterator[Tensor]:
            for i in times:
                t = torch.full(x.shape[:1], i, device=x.device, dtype=torch.long)
                x = self.p_sample(
                    x, t, cond_scale=cond_scale, clip_denoised=self.auto_normalize, **conditions
                )
                yield x

        x = follow(x, run(x), self.noise_levels([*times, -1]), progress, callback)
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
        cond_mask: Any = None,
        progress: bool = True,
        callback: Callback | None = None,
    ) -> Tensor:
        """Draws videos of a shape `(b, c, f, h, w)`; arguments as in `sample`."""
        conditions = given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
        )
        noise = torch.randn(tuple(shape), device=self.betas.device, dtype=self.betas.dtype)
        conditions = {"cond": cond, **conditions}
        steps = self.num_timesteps
        return self._denoise_from(noise, steps, cond_scale, conditions, progress, callback)

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
        cond_mask: Any = None,
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
            cond_mask: As in `sample`.
            progress: Whether to show a progress bar.

        Returns:
            `(b, c, f, h, w)`.

        Raises:
            ValueError: If shapes differ, or `t` or `lam` is out of range.
        """
        t = self.num_timesteps - 1 if t is None else t
        for name, x in (("x1", x1), ("x2", x2)):
            check_type(name, x)
        if x1.shape != x2.shape:
            raise ValueError(
                f"interpolate: x1 and x2 must have the same shape, got {tuple(x1.shape)} and "
                f"{tuple(x2.shape)}; cut or resize one"
            )
        if not isinstance(t, Integral) or not 0 <= t < self.num_timesteps:
            raise ValueError(
                f"interpolate: t must be a step from 0 to {self.num_timesteps - 1}, got "
                f"{shown(t)}; "
                "leave it out to blend at the last"
            )
        if not 0 <= lam <= 1:
            raise ValueError(
                f"interpolate: lam must be in [0, 1], got {shown(lam)}; it is the share of x2"
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
            cond_mask=cond_mask,
        )
        blend = (1 - lam) * x1 + lam * x2
        return self._denoise_from(blend, t, cond_scale, conditions, progress)
