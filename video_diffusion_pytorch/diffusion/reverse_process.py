"""The reverse process: from noise to a video, one learned step at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess, draw_noise
from video_diffusion_pytorch.text import bert_embed, tokenize

# how far outside [0, 1] a clip's values may be before it looks like a mistake
RANGE_TOLERANCE = 0.05


def is_list_str(x: Any) -> bool:
    """Whether `x` is a list or tuple of strings."""
    return isinstance(x, (list, tuple)) and all(isinstance(item, str) for item in x)


def normalize_img(t: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1]."""
    return t * 2 - 1


def unnormalize_img(t: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (t + 1) * 0.5


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and torch.compile."""
    wrapped = getattr(module, "_orig_mod", None)
    if wrapped is None and isinstance(
        module, (nn.DataParallel, nn.parallel.DistributedDataParallel)
    ):
        wrapped = module.module
    return module if wrapped is None else unwrap(wrapped)


class ReverseProcess(ForwardProcess):
    """Draws videos with a denoiser; `GaussianDiffusion` documents the attributes."""

    denoise_fn: nn.Module
    image_size: int | tuple[int, int]
    num_frames: int
    channels: int
    text_use_bert_cls: bool
    use_dynamic_thres: bool
    dynamic_thres_percentile: float
    auto_normalize: bool
    _range_is_known = False

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
        cond: Tensor | None = None,
        cond_scale: float = 1.0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of p(x_{t-1} | x_t) (Ho et al. 2020, eq. 11).

        Args:
            x: Noisy videos, `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            clip_denoised: Whether the predicted x_start is brought into [-1, 1].
            cond: Conditions, `(b, cond_dim)`.
            cond_scale: Strength of the guidance; 1 is without.
        """
        denoiser: Any = unwrap(self.denoise_fn)
        pred_noise = denoiser.forward_with_cond_scale(x, t, cond=cond, cond_scale=cond_scale)
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
        cond: Tensor | None = None,
        cond_scale: float = 1.0,
        clip_denoised: bool = True,
    ) -> Tensor:
        """Draws x_{t-1} from p(x_{t-1} | x_t); arguments as in `p_mean_variance`."""
        mean, _, log_variance = self.p_mean_variance(
            x, t, clip_denoised=clip_denoised, cond=cond, cond_scale=cond_scale
        )
        noise = draw_noise(x)
        # the last step is without noise
        noisy = (t > 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return mean + noisy * (0.5 * log_variance).exp() * noise

    def _denoise_from(
        self, x: Tensor, steps: int, cond: Any, cond_scale: float, progress: bool
    ) -> Tensor:
        """Takes `x` from step `steps - 1` to the end, and into the range of the clips."""
        cond = self._embed_captions(cond)
        if torch.is_tensor(cond):
            cond = cond.to(x.device)
        batch = x.shape[0]
        every_step = reversed(range(steps))
        for i in tqdm(every_step, desc="sampling", total=steps, disable=not progress):
            t = torch.full((batch,), i, device=x.device, dtype=torch.long)
            x = self.p_sample(
                x, t, cond=cond, cond_scale=cond_scale, clip_denoised=self.auto_normalize
            )
        return unnormalize_img(x) if self.auto_normalize else x

    @torch.no_grad()
    def p_sample_loop(
        self,
        shape: Sequence[int],
        cond: Any = None,
        cond_scale: float = 1.0,
        *,
        progress: bool = True,
    ) -> Tensor:
        """Draws videos of a shape `(b, c, f, h, w)`; arguments as in `sample`."""
        noise = torch.randn(tuple(shape), device=self.betas.device)
        return self._denoise_from(noise, self.num_timesteps, cond, cond_scale, progress)

    @torch.no_grad()
    def sample(
        self,
        cond: Any = None,
        cond_scale: float = 1.0,
        batch_size: int = 16,
        *,
        progress: bool = True,
    ) -> Tensor:
        """Draws videos from the model by ancestral sampling over all steps.

        Args:
            cond: Conditions, `(b, cond_dim)`, or a list of `b` captions; None for none.
            cond_scale: Strength of the guidance; 1 is without.
            batch_size: Number of videos, where there is no condition to tell it.
            progress: Whether to show a progress bar.

        Returns:
            `(b, c, f, h, w)` in [0, 1], or in the clips' range if `auto_normalize` is False.
        """
        if cond is not None:
            batch_size = len(cond)
        return self.p_sample_loop(
            (batch_size, *self.clip_shape), cond, cond_scale, progress=progress
        )

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
        return self._denoise_from((1 - lam) * x1 + lam * x2, t, cond, cond_scale, progress)

    def _to_model_range(self, x: Tensor) -> Tensor:
        """Clips as the user has them, as the model wants them."""
        if x.dtype == torch.uint8:
            x = x.float() / 255
        elif self.auto_normalize and not torch.compiler.is_compiling():
            self._check_range(x)
        return normalize_img(x) if self.auto_normalize else x

    def _check_range(self, x: Tensor) -> None:
        """Warns once of clips that are not in [0, 1]; on a GPU it looks at the first only."""
        if self._range_is_known:
            return
        low, high = (value.item() for value in torch.aminmax(x.detach()))
        outside = low < -RANGE_TOLERANCE or high > 1 + RANGE_TOLERANCE
        # on a GPU each look would make the host wait
        self._range_is_known = outside or not x.is_cpu
        if outside:
            warnings.warn(
                f"GaussianDiffusion: clips must be in [0, 1], got values from {low:.3g} to "
                f"{high:.3g}; rescale them ((x + 1) / 2 if they are in [-1, 1]), or build "
                "GaussianDiffusion with auto_normalize=False to keep a range of their own",
                stacklevel=6,  # past _to_model_range, forward and two of nn.Module
            )

    def _embed_captions(self, cond: Any) -> Any:
        if not is_list_str(cond):
            return cond
        token_ids = tokenize(cond).to(self.betas.device)
        return bert_embed(token_ids, return_cls_repr=self.text_use_bert_cls)
