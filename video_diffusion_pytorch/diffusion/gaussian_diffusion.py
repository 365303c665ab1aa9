"""A clip in, a loss out; noise in, a video out: the diffusion around a denoising network."""

from __future__ import annotations

import inspect
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.conditions import given, unwrap
from video_diffusion_pytorch.diffusion.noise_schedule import cosine_beta_schedule, draw_noise
from video_diffusion_pytorch.diffusion.reverse_process import ReverseProcess
from video_diffusion_pytorch.diffusion.value_range import Bound

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
# the constructor arguments that a checkpoint holds
_CONFIG = (
    "image_size",
    "num_frames",
    "text_use_bert_cls",
    "channels",
    "timesteps",
    "loss_type",
    "use_dynamic_thres",
    "dynamic_thres_percentile",
    "cond_drop_prob",
    "auto_normalize",
    "given_frames",
)


class GaussianDiffusion(ReverseProcess):
    """Trains a denoiser, and samples from it (Ho et al. 2020; for video Ho et al. 2022).

    Args:
        denoise_fn: The network: called with `(x_t, t, cond=...)` it predicts the noise, and so
            does its method `forward_with_cond_scale`, with `cond_scale` besides. Conditions of
            other names reach it only where they are given. It may be wrapped (DataParallel,
            DDP, torch.compile), and replaced later.
        image_size: Height and width of the clips, an int or `(h, w)`.
        num_frames: Frames of a clip.
        text_use_bert_cls: Whether captions become BERT's [CLS] state instead of the mean state.
        channels: Channels of the clips; None for `denoise_fn.channels`.
        timesteps: Number of steps of the cosine schedule.
        loss_type: `"l1"` or `"l2"`, between the noise and its prediction.
        use_dynamic_thres: Whether samples are clipped at a percentile of their own values instead
            of at 1 (Saharia et al. 2022, section 2.3).
        dynamic_thres_percentile: That percentile, in (0, 1].
        cond_drop_prob: How often the conditions of a clip are replaced by the network's null values
            in training, as guided sampling needs; `null_cond_prob` in the call overrides it.
        auto_normalize: Whether clips are in [0, 1]. If False they are in a range of their own
            (latents, physical fields), best with mean 0 and variance 1, and samples are
            neither clipped nor rescaled.
        value_range: `(low, high)`, the range of the clips in units of their own, each a number or
            one per channel. Clips come in these units and samples go out in them; bytes are
            then numbers from 0 to 255 of these units. None for [0, 1]. Weights remember it.
        cond_value_range: The same for `cond_video`; None for bytes, or a field that is as the
            network takes it, best in [-1, 1].
        given_frames: How many frames at the beginning of each clip the network is told, so that it
            learns to go on from them; 0 for none. They reach the network's `cond_video`, behind
            the channels of a field of your own, in as many channels as a frame has and one more,
            which is 1 where a frame is known.

    Raises:
        ValueError: If an argument is outside its range.

    Differs from the reference: conditions are dropped while training; `text_use_bert_cls` holds in
    `sample`; `interpolate` takes conditions and works on clips in [0, 1]; `sample` returns
    an ordinary tensor.

    Example:
        >>> from video_diffusion_pytorch import Unet3D
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
        >>> loss = diffusion(torch.rand(2, 3, 4, 16, 16))
        >>> diffusion.sample(batch_size=2, progress=False).shape
        torch.Size([2, 3, 4, 16, 16])

        Clips in kelvin, which the model learns to continue from their first frame:

        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, channels=1, cond_channels=2)
        >>> diffusion = GaussianDiffusion(
        ...     unet, image_size=16, num_frames=4, timesteps=3,
        ...     value_range=(250, 310), given_frames=1,
        ... )
        >>> clips = 270 + 20 * torch.rand(2, 1, 4, 16, 16)
        >>> loss = diffusion(clips)
        >>> more = diffusion.sample(first_frames=clips[:, :, :1], progress=False)
        >>> bool(more.min() >= 250 and more.max() <= 310)
        True
    """

    def __init__(
        self,
        denoise_fn: nn.Module,
        *,
        image_size: int | tuple[int, int],
        num_frames: int,
        text_use_bert_cls: bool = False,
        channels: int | None = None,
        timesteps: int = 1000,
        loss_type: str = "l1",
        use_dynamic_thres: bool = False,
        dynamic_thres_percentile: float = 0.9,
        cond_drop_prob: float = 0.1,
        auto_normalize: bool = True,
        value_range: tuple[Bound, Bound] | None = None,
        cond_value_range: tuple[Bound, Bound] | None = None,
        given_frames: int = 0,
    ) -> None:
        if isinstance(image_size, Integral):
            image_size = int(image_size)
        config = {name: value for name, value in locals().items() if name in _CONFIG}
        _check_arguments(config)
        super().__init__(cosine_beta_schedule(timesteps))
        if channels is None:
            channels = getattr(unwrap(denoise_fn), "channels", 3)
        self.config = {**config, "channels": channels}
        self.denoise_fn = denoise_fn
        self.channels = channels
        self.image_size = image_size
        self.num_frames = num_frames
        self.loss_type = loss_type
        self.text_use_bert_cls = text_use_bert_cls
        self.use_dynamic_thres = use_dynamic_thres
        self.dynamic_thres_percentile = dynamic_thres_percentile
        self.cond_drop_prob = cond_drop_prob
        self.auto_normalize = auto_normalize
        self.given_frames = given_frames
        self._check_given_frames()
        self._set_ranges(value_range, cond_value_range, self._field_channels())

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
        **kwargs: Any,
    ) -> Tensor:
        """The loss of the noise prediction at given steps (Ho et al. 2020, eq. 14).

        Args:
            x_start: Clips in [-1, 1], `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            cond: Conditions, as in `forward`.
            noise: A standard normal draw of the shape of the clips; None to draw it.
            labels: As in `forward`.
            frame_cond: As in `forward`.
            cond_video: As in `forward`.
            first_frames: As in `forward`.
            null_cond_mask: As in `forward`.
            **kwargs: Further arguments of the denoiser, such as `null_cond_prob` and
                `prob_focus_present` of `Unet3D`.

        Returns:
            The mean loss, a scalar.
        """
        noise = draw_noise(x_start) if noise is None else noise
        x_t = self.q_sample(x_start=x_start, t=t, noise=noise)
        conditions = self._for_network(
            x_t,
            clips=x_start,
            cond=cond,
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        if conditions and "null_cond_prob" not in kwargs and self._denoiser_drops_conditions():
            kwargs["null_cond_prob"] = self.cond_drop_prob
        pred_noise = self.denoise_fn(
            x_t, t, cond=conditions.pop("cond", None), **conditions, **kwargs
        )
        return LOSSES[self.loss_type](pred_noise, noise)

    def forward(
        self,
        x: Tensor,
        *args: Any,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The training loss of a batch of clips, at random time steps.

        Conditions are tensors, arrays or lists of numbers, with one row per clip; which of them
        there must be is a matter of the network.

        Args:
            x: Clips, `(b, c, f, h, w)`: in [0, 1], or uint8, or in `value_range`, or, if
                `auto_normalize` is False, in their own range.
            *args: As in `p_losses`, after `t`: `cond` and `noise`. `cond` is a tensor of vectors,
                `(b, cond_dim)`, or a list of `b` captions, None where there is no caption.
            labels: Classes, integers `(b,)`, -1 for none.
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or without that range as the network takes it.
            first_frames: What a model with `given_frames` is told instead of the clips' own first
                frames, `(b, c, given_frames, h, w)` in the range of the clips; None for their own.
            null_cond_mask: Boolean `(b,)`: where true, `cond` is as if there were none.
            **kwargs: As in `p_losses`.

        Returns:
            The mean loss, a scalar.

        Raises:
            TypeError: If a condition cannot become a tensor.
            ValueError: If shapes are not those of the model's clips and conditions.
        """
        self.check_clips(x)
        kwargs |= given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
        )
        t = torch.randint(0, self.num_timesteps, (x.shape[0],), device=x.device)
        return self.p_losses(self._to_model_range(x), t, *args, **kwargs)

    def check_clips(self, x: Tensor) -> None:
        """Raises a ValueError for clips of another shape or type than `forward` takes."""
        if x.ndim != 5 or tuple(x.shape[1:]) != self.clip_shape:
            raise ValueError(
                f"GaussianDiffusion: clips must have the shape (b, c, f, h, w) = (b, "
                f"{', '.join(map(str, self.clip_shape))}), got {tuple(x.shape)}; resize or cut "
                "them, or build GaussianDiffusion with their image_size, num_frames and channels"
            )
        if not x.is_floating_point() and x.dtype != torch.uint8:
            raise ValueError(
                f"GaussianDiffusion: clips must be floating-point or uint8, got {x.dtype}; "
                "convert them with .float() and bring them into [0, 1]"
            )

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
        denoiser.check_inputs(x, steps, 1.0, **told)

    def _denoiser_drops_conditions(self) -> bool:
        parameters = inspect.signature(unwrap(self.denoise_fn).forward).parameters
        return "null_cond_prob" in parameters


def _check_arguments(config: dict[str, Any]) -> None:
    """Raises a ValueError for constructor arguments outside their range."""
    size = config["image_size"]
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or min(sizes) < 1:
        raise ValueError(
            f"GaussianDiffusion: image_size must be a positive int or (h, w), got {size}; "
            "give the height and width of the clips"
        )
    for name in ("num_frames", "timesteps"):
        if config[name] < 1:
            raise ValueError(
                f"GaussianDiffusion: {name} must be at least 1, got {config[name]}; "
                "give a positive number"
            )
    if config["loss_type"] not in LOSSES:
        raise ValueError(
            f"GaussianDiffusion: loss_type must be one of {', '.join(LOSSES)}, got "
            f"{config['loss_type']!r}; choose one of them"
        )
    for name in ("cond_drop_prob", "dynamic_thres_percentile"):
        if not 0 <= config[name] <= 1:
            raise ValueError(
                f"GaussianDiffusion: {name} must be in [0, 1], got {config[name]}; "
                "give it as a fraction"
            )
