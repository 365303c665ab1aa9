"""A clip becomes a loss: noise is added, the network asked, and its answer compared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.diffusion.conditions import Conditions, unwrap
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.objective import (
    check_reduction,
    distance,
    min_snr_weight,
    target_of,
)
from video_diffusion_pytorch.diffusion.value_range import check_type

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class TrainingLoss(Conditions):
    """The part of `GaussianDiffusion` that training calls; it documents the attributes."""

    objective: str
    loss_type: str
    min_snr_gamma: float | None
    cond_drop_prob: float

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        cond: Any = None,
        noise: Tensor | None = None,
        *,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        cond_mask: Any = None,
        image_frames: int = 0,
        image_conditions: Mapping[str, Any] | None = None,
        drop_mask: Tensor | None = None,
        reduction: str = "mean",
        frame_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of the prediction at given steps (Ho et al. 2020, eq. 14).

        Args:
            x_start: Clips in [-1, 1], `(b, c, f, h, w)`.
            t: Time steps, `(b,)`, whole or not.
            cond: Conditions, as in `forward`.
            noise: A standard normal draw of the shape of the clips; None to draw it.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            first_frames: As in `forward`.
            null_cond_mask: As in `forward`.
            cond_mask: As in `forward`.
            image_frames: How many frames at the end of each clip are images of their own.
            image_conditions: As in `forward`.
            drop_mask: As in `forward`.
            reduction: As in `forward`.
            frame_mask: As in `forward`.
            **kwargs: Further arguments of the denoiser, such as `null_cond_prob` and
                `prob_focus_present` of `Unet3D`.

        Returns:
            The mean loss, a scalar, or with `reduction="none"` that of each clip, `(b,)`.

        Raises:
            ValueError: If `noise` has another shape than the clips, `frame_mask` another one than
                their frames, or `reduction` is unknown.
        """
        check_reduction(reduction)
        if noise is None:
            noise = draw_noise(x_start)
        if noise.shape != x_start.shape:
            raise ValueError(
                f"GaussianDiffusion: noise must have the shape of the clips, "
                f"{tuple(x_start.shape)}, got {tuple(noise.shape)}; draw it with "
                "torch.randn_like, or leave it out"
            )
        frames = x_start.shape[2] - image_frames
        if frame_mask is not None:
            frame_mask = self.check_frame_mask(frame_mask, x_start[:, :, :frames])
            # images are never padding
            frame_mask = F.pad(frame_mask, (0, image_frames), value=True)
        x_t = self.q_sample(x_start=x_start, t=t, noise=noise)
        conditions = self._for_network(
            x_t[:, :, :frames],
            clips=x_start,
            cond=cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
        )
        if drop_mask is not None:
            kwargs["drop_mask"] = torch.as_tensor(drop_mask, device=x_start.device)
        elif conditions and self.denoiser_takes("null_cond_prob"):
            kwargs.setdefault("null_cond_prob", self.cond_drop_prob)
        if image_frames:
            kwargs |= self._for_images(x_t[:, :, frames:], image_conditions or {})
        told = {"cond": conditions.pop("cond", None), **conditions, **kwargs}
        output = self.denoise_fn(x_t, self._network_time(t), **told)
        target = target_of(self.objective, self, x_start, t, noise)
        weight = None
        if self.min_snr_gamma is not None:
            weight = min_snr_weight(self.objective, self.log_snr(t), self.min_snr_gamma)
        return distance(self.loss_type, output, target, weight, reduction, frame_mask)

    def _for_images(self, images: Tensor, conditions: Mapping[str, Any]) -> dict[str, Any]:
        """The denoiser's keywords that tell it of images at the end of the clips.

        Raises:
            ValueError: If it takes none.
        """
        if not self.denoiser_takes("image_frames"):
            raise ValueError(
                "GaussianDiffusion: images need a denoiser whose forward takes image_frames, as "
                f"Unet3D's does, got {type(unwrap(self.denoise_fn)).__name__}; leave images out, "
                "or add the argument"
            )
        return {
            "image_frames": images.shape[2],
            "image_conditions": self._ready_of_images(images, conditions),
        }

    def check_clips(self, x: Tensor) -> None:
        """Raises a ValueError for clips of another shape or type than `forward` takes."""
        if x.ndim != 5 or tuple(x.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"GaussianDiffusion: clips must have the shape (b, c, f, h, w) = (b, "
                f"{', '.join(map(str, self.clip_shape))}), got {tuple(x.shape)}; resize or cut "
                "them, or build GaussianDiffusion with their image_size, num_frames and channels"
            )
        check_type("clips", x)

    def check_images(self, images: Any, x: Tensor) -> None:
        """Raises a ValueError for images that don't go with clips `x`."""
        c, _, h, w = self.clip_shape
        shape = tuple(images.shape) if torch.is_tensor(images) else type(images).__name__
        if (
            not torch.is_tensor(images)
            or images.ndim != 5
            or images.shape[2] == 0
            or (shape != (x.shape[0], c, images.shape[2], h, w))
        ):
            raise ValueError(
                f"GaussianDiffusion: images must have the shape (b, c, k, h, w) = ({x.shape[0]}, "
                f"{c}, k, {h}, {w}), k images for each clip, got {shape}; resize them, and stack "
                "those of a clip along axis 2"
            )
        check_type("images", images)

    def check_frame_mask(self, frame_mask: Any, x: Tensor) -> Tensor:
        """Gives the mask of real frames on the device of clips `x`.

        Raises:
            ValueError: If it is not boolean with one element per frame.
        """
        mask = torch.as_tensor(frame_mask, device=x.device)
        expected = x.shape[0], x.shape[2]
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(
                "GaussianDiffusion: frame_mask must be boolean with one element per frame, shape "
                f"(b, f) = {tuple(expected)}, got {mask.dtype} of shape {tuple(mask.shape)}; give "
                "True where a frame is real, and False where it is padding"
            )
        return mask

    def check_batch(self, x: Tensor, **conditions: Any) -> None:
        """Finds out whether a batch is what `forward` takes, as far as shapes and types tell.

        Args:
            x: As in `forward`.
            **conditions: As in `forward`; captions can be left out.

        Raises:
            ValueError: If it is not.
        """
        self.check_clips(x)
        denoiser: Any = unwrap(self.denoise_fn)
        if not hasattr(denoiser, "check_inputs"):
            return
        steps = torch.zeros(len(x), dtype=torch.long)
        told = self._for_network(x, clips=x.to(self.betas), **conditions)
        # with probability 1 of no condition, those that are left out are not missed
        denoiser.check_inputs(x, self._network_time(steps.to(self.betas.device)), 1.0, **told)

    def denoiser_takes(self, keyword: str) -> bool:
        """Whether the denoiser's `forward` has an argument of this name, such as `drop_mask`."""
        return keyword in inspect.signature(unwrap(self.denoise_fn).forward).parameters

    def _checked_times(self, t: Any, x: Tensor) -> Tensor:
        """Time steps of a caller's own, on the device of clips `x`.

        Raises:
            ValueError: If they are not one per clip, or none that the model is trained at.
        """
        first, last = -1 if self.is_continuous else 0, self.num_timesteps - 1
        kind = "real numbers" if self.is_continuous else "whole numbers"
        got = f"{t.dtype} of shape {tuple(t.shape)}" if torch.is_tensor(t) else type(t).__name__
        is_real = torch.is_tensor(t) and t.is_floating_point()
        is_whole = torch.is_tensor(t) and t.dtype in _WHOLE
        is_right = is_whole or (is_real and self.is_continuous)
        if is_right and t.shape == x.shape[:1]:
            outside: Tensor | None = None
            # on a GPU a look would make the host wait
            if t.is_cpu and not torch.compiler.is_compiling():
                outside = t[~((t >= first) & (t <= last))]
            if outside is None or not len(outside):
                return (t if is_real else t.long()).to(x.device)
            got = ", ".join(map(str, outside.tolist()[:3]))
        raise ValueError(
            f"GaussianDiffusion: t must be {kind} from {first} to {last}, one per clip, shape "
            f"({x.shape[0]},), got {got}; leave t out to have them drawn, or draw them with "
            "draw_times"
        )
