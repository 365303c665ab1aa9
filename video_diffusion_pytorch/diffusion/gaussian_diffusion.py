"""The diffusion: from a clip to a loss, and from noise to a video."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from numbers import Integral
from os import PathLike
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from video_diffusion_pytorch.arguments import (
    as_count,
    as_image_size,
    per_channel,
    plain_range,
    shown,
)
from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.conditions import VALUES, given, masks_of, rows_of
from video_diffusion_pytorch.diffusion.completion import Completion
from video_diffusion_pytorch.diffusion.conditioning import (
    CONDITION_NAMES,
    as_tensor,
    encode_condition,
    is_captions,
    join_fields,
    show_first_frames,
    unwrap,
)
from video_diffusion_pytorch.diffusion.config import (
    CONFIG,
    OWN_SCHEDULES,
    normal_of,
    plain_config,
    remember_training,
)
from video_diffusion_pytorch.diffusion.forecast import Forecaster
from video_diffusion_pytorch.diffusion.guidance import (
    Denoiser,
    Guidance,
    as_guidance,
    count_videos,
    switched_off,
)
from video_diffusion_pytorch.diffusion.guided_prediction import (
    GUIDE_SCALE,
    CondScale,
    PredictionGuidance,
    as_cond_scale,
    as_interval,
    guided_conditions,
    make_autoguidance,
)
from video_diffusion_pytorch.diffusion.noise_schedule import (
    ForwardProcess,
    Noise,
    NoiseLevel,
    correlate_frames,
    draw_noise,
    make_schedule,
)
from video_diffusion_pytorch.diffusion.objective import (
    check_reduction,
    distance,
    min_snr_weight,
    network_input,
    target_of,
    x_start_of,
)
from video_diffusion_pytorch.diffusion.random_streams import RandomStreams, make_streams
from video_diffusion_pytorch.diffusion.rollout import Rollout
from video_diffusion_pytorch.diffusion.samplers import DDIM, DDPM, make_sampler
from video_diffusion_pytorch.diffusion.sampling_steps import Callback, Sampler, follow
from video_diffusion_pytorch.diffusion.value_range import (
    FAR_FROM_MEAN,
    RANGE_TOLERANCE,
    Bound,
    check_videos,
    level_of_user,
    normalize_img,
    to_unit_range,
    unnormalize_img,
)
from video_diffusion_pytorch.hub import NETWORK_PREFIX, Shareable
from video_diffusion_pytorch.text import use_encoder
from video_diffusion_pytorch.value_scale import (
    CONDITION_AXES,
    TRANSFORM_CODES,
    Standardization,
    check_domain,
    in_domain,
    parse_condition_scales,
    parse_scale,
    standardized,
    unstandardized,
)

# Of the range of the clips, which weights remember: a low and a high, or else the others
VALUE_BUFFERS = ("value_low", "value_high", "value_mean", "value_std", "value_transform")
# Of numeric conditions, likewise
CONDITION_BUFFERS = tuple(f"{name}_{part}" for name in CONDITION_AXES for part in ("mean", "std"))


class GaussianDiffusion(ForwardProcess, Shareable, part="diffusion"):
    """Trains a denoiser, and samples from it (Ho et al. 2020; for video Ho et al. 2022).

    Args:
        denoise_fn: The network: called with `(x_t, t, cond=...)` it predicts what `objective` says,
            and so does its method `forward_with_cond_scale`, which also takes `cond_scale`. Other
            conditions are passed only if they are given. It may be wrapped (DataParallel, DDP,
            torch.compile), and replaced later.
        image_size: Height and width of the clips, an int or `(h, w)`.
        num_frames: Frames of a clip.
        text_use_bert_cls: Whether captions become BERT's [CLS] state instead of the mean state;
            without effect on a network that takes the states themselves.
        channels: Channels of the clips; None for `denoise_fn.channels`.
        timesteps: Number of steps of the schedule.
        loss_type: `"l1"`, `"l2"` or `"huber"` (square below 1, linear above), between the
            prediction and its target.
        use_dynamic_thres: Whether samples are clamped at a percentile of their own values instead
            of at 1 (Saharia et al. 2022, section 2.3).
        dynamic_thres_percentile: That percentile, as a fraction in [0, 1].
        cond_drop_prob: Probability that the conditions of a clip are replaced by the network's null
            values in training, as guided sampling needs; `null_cond_prob` in the call overrides it.
        auto_normalize: Whether clips are in [0, 1]. If False they are in a range of their own
            (latents, physical fields), best with mean 0 and variance 1, and samples are
            neither clamped nor rescaled.
        value_range: `(low, high)`, the range of the clips in units of their own, each a number or
            one per channel. Clips, uint8 ones too, and samples are then in these units, and samples
            are clamped to it. Or a mapping of `mean` and `std`, each likewise, to standardise clips
            without clamping samples, and `transform`, one of `"log"`, `"log1p"`, `"sqrt"` and
            `"asinh"`, for all channels, or one or None for each, to apply before it; mean and std
            are those of transformed values. None for [0, 1]. It is stored with the weights.
        cond_value_range: `(low, high)` of `cond_video`, likewise; None for uint8, or for a field
            in the range that the network takes, best [-1, 1].
        cond_standardization: Mean and standard deviation of numeric conditions, in units of their
            own, by keyword: `{"cond": {"mean": (50, 101325), "std": (10, 500)}}`, of `cond`,
            `frame_cond` and `cond_video`, each a number or one per entry or channel. The network
            sees them with mean 0 and deviation 1. It is stored with the weights. None for
            conditions as they are.
        given_frames: Number of frames at the beginning of each clip that the network is conditioned
            on, to learn to predict the rest; 0 for none. They are appended to the channels of
            `cond_video`: those of a frame, and a mask that is 1 where frames are known.
        objective: What the network predicts: `"pred_noise"`, `"pred_x_start"`, or `"pred_v"`, for
            `v = alpha * noise - sigma * x_start` (Salimans and Ho 2022). Two have a continuous
            schedule of their own: `"flow"`, flow matching, for `noise - x_start` on the straight
            path between them (Liu et al. 2022; Lipman et al. 2022), and `"edm"`, for the
            preconditioned clip in variance-exploding noise (Karras et al. 2022). The papers' loss
            of both is `"l2"`.
        beta_schedule: `"cosine"` (Nichol and Dhariwal 2021), `"linear"` (Ho et al. 2020),
            `"sigmoid"` (Jabri et al. 2022), or `timesteps` variances of your own. With
            `"continuous_cosine"`, the schedule of Ho et al. 2022, times are real numbers in
            training, and the log-SNR is between -20 and 20. Left out for `"flow"` and `"edm"`.
        min_snr_gamma: Loss weighting by noise level, so that low noise does not dominate
            training (Hang et al. 2023, whose value is 5); None for equal weights.
        sampling_timesteps: Number of sampling steps; None for all, or the sampler's default. With
            fewer than `timesteps`, `sample` uses ddim.
        ddim_sampling_eta: How much noise ddim adds in each step: 0 for none, 1 for as much as ddpm.
        time_distribution: How often training draws each time of a continuous schedule:
            `"uniform"`; `"logit_normal"`, which prefers the middle (Esser et al. 2024, section
            3.1); or `(mean, std)` of a normal distribution of `log(sigma / alpha)`, which for flow
            matching is the logit of its time, and for EDM the logarithm of its sigma. None for
            uniform, and for EDM `(-1.2, 1.2)`.
        time_shift: Factor of `sigma / alpha` at each time, in training and sampling, for flow
            matching and `"continuous_cosine"`: above 1 for more noise, as larger or longer videos
            need (Esser et al. 2024, eq. 23; Hoogeboom et al. 2023, eq. 3).
        sigma_data: Standard deviation of the clips in the range of the model, for EDM. A `Trainer`
            with `value_range="fit"` measures it; of standardised clips it is 1.
        frame_noise: `"independent"` to train with a noise level of its own for each frame (Chen et
            al. 2024), so that one model predicts from any number of frames and fills gaps: the
            frames that are known have no noise. None for one level per clip.
        shared_noise_prob: With `frame_noise`, probability that all frames of a clip have one level.
        missing: `"error"`, or `"mask"` for clips with missing values, which are NaN: the network
            sees them as the middle of the range (of standardised clips the mean) with noise, and
            the loss leaves them out.
        noise_correlation: Correlation of the noise of each two frames of a clip, in training and
            sampling, in [0, 1): some of it suits clips whose frames are alike (Ge et al. 2023).

    Raises:
        ValueError: If an argument is outside its range.

    Attributes:
        clip_info: What is known of the training clips, such as names of classes: set by `Trainer`,
            `load_diffusion` and `from_pretrained`.

    Differs from the reference: conditions are dropped in training; `text_use_bert_cls` applies in
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

    # arguments of the constructor, each an attribute
    image_size: int | tuple[int, int]
    num_frames: int
    text_use_bert_cls: bool
    channels: int
    loss_type: str
    use_dynamic_thres: bool
    dynamic_thres_percentile: float
    cond_drop_prob: float
    auto_normalize: bool
    given_frames: int
    objective: str
    min_snr_gamma: float | None
    sampling_timesteps: int | None
    ddim_sampling_eta: float
    time_distribution: str | tuple[float, float] | None
    frame_noise: str | None
    shared_noise_prob: float
    noise_correlation: float
    missing: str
    # of EDM, which weights remember
    sigma_data: Tensor | None
    # the ranges of values, which weights remember
    value_low: Tensor | None
    value_high: Tensor | None
    value_mean: Tensor | None
    value_std: Tensor | None
    value_transform: Tensor | None
    cond_value_low: Tensor | None
    cond_value_high: Tensor | None

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
        value_range: tuple[Bound, Bound] | Mapping[str, Any] | None = None,
        cond_value_range: tuple[Bound, Bound] | None = None,
        given_frames: int = 0,
        objective: str = "pred_noise",
        beta_schedule: str | Sequence[float] | Tensor = "cosine",
        min_snr_gamma: float | None = None,
        sampling_timesteps: int | None = None,
        ddim_sampling_eta: float = 0.0,
        time_distribution: str | Sequence[float] | None = None,
        time_shift: float = 1.0,
        sigma_data: float = 0.5,
        frame_noise: str | None = None,
        shared_noise_prob: float = 0.1,
        noise_correlation: float = 0.0,
        missing: str = "error",
        cond_standardization: Mapping[str, Any] | None = None,
    ) -> None:
        if channels is None:
            channels = getattr(unwrap(denoise_fn), "channels", 3)
        config = plain_config({name: value for name, value in locals().items() if name in CONFIG})
        schedule = make_schedule(config["beta_schedule"], config["timesteps"], config["time_shift"])
        if torch.is_tensor(schedule) and not isinstance(config["beta_schedule"], str):
            config["beta_schedule"] = tuple(schedule.tolist())
        super().__init__(schedule, config["timesteps"], normal_of(config))
        self.config = config
        self.clip_info = ClipInfo()
        self.denoise_fn = denoise_fn
        # each is an attribute, except for the schedule, whose buffers are
        for name in CONFIG:
            if name not in ("timesteps", "beta_schedule", "time_shift", "sigma_data"):
                setattr(self, name, config[name])
        free, needed = self._field_channels(), self.channels + 1
        if self.given_frames and free is not None and free < 0:
            raise ValueError(
                f"GaussianDiffusion: with given_frames the network must have at least {needed} "
                f"cond_channels, those of a frame and one, got {needed + free}; build it with "
                f"cond_channels={needed}, and more for a cond_video of your own"
            )
        for name in (*VALUE_BUFFERS, "cond_value_low", "cond_value_high", *CONDITION_BUFFERS):
            self.register_buffer(name, None)
        self.config |= {"value_range": None, "cond_value_range": None, "cond_standardization": None}
        self._range_is_known = False
        if value_range is not None:
            self.set_value_range(value_range)
        if cond_value_range is not None:
            self._store_range("cond_value", cond_value_range, self._field_channels())
        if cond_standardization is not None:
            self.set_cond_standardization(cond_standardization)
        remember_training(self, config)

    # training

    def forward(
        self,
        x: Tensor,
        *args: Any,
        labels: Any = None,
        frame_cond: Any = None,
        cond_video: Any = None,
        first_frames: Any = None,
        null_cond_mask: Any = None,
        cond_mask: Any = None,
        images: Tensor | None = None,
        image_conditions: Mapping[str, Any] | None = None,
        t: Tensor | None = None,
        drop_mask: Tensor | None = None,
        reduction: str = "mean",
        frame_mask: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """The training loss of a batch of clips.

        Conditions are tensors, arrays or lists of numbers, with one row per clip; the network
        determines which are needed.

        Args:
            x: Clips, `(b, c, f, h, w)`: in [0, 1], or uint8, or in `value_range`, or, if
                `auto_normalize` is False, in their own range.
            *args: As in `p_losses`, after `t`: `cond` and `noise`. `cond` is a tensor of vectors,
                `(b, cond_dim)`, or of states of text, `(b, n, cond_dim)`, as the network takes; or
                a list of `b` captions, None where there is no caption.
            labels: Classes, integers `(b,)`, -1 for none; or a list of their names, if the model
                knows them (`clip_info.class_names`).
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or, without that, in the range that the network takes.
            first_frames: For a model with `given_frames`, known frames instead of the clips' first
                ones, `(b, c, given_frames, h, w)` in the range of the clips; None for their own.
            null_cond_mask: Boolean `(b,)`, true where `cond` is dropped.
            cond_mask: Of states of text, boolean `(b, n)`, true where there is a token; None for
                all. Captions bring their own.
            images: `k` images for each clip, `(b, c, k, h, w)`, in the range of the clips, to
                train on jointly (Ho et al. 2022, section 4.3.1, where `k` is up to 8); None
                for none. They share the clip's noise level, and attend to no other frame.
            image_conditions: Conditions of the images, of the same kinds as the clips': `cond`
                `(b, k, cond_dim)`, states `(b, k, n, cond_dim)` with a `cond_mask` `(b, k, n)`, or
                `b` lists of `k` captions, `labels` `(b, k)`, `frame_cond` `(b, k, d)`,
                `cond_video` `(b, n, k, h, w)`. Images without conditions get the null
                conditions.
            t: Time steps, `(b,)`, or one for each frame and image, `(b, f)`: whole, from 0 to
                `num_timesteps - 1`, or, with a continuous schedule, real, from -1. None to draw
                them. On a GPU their range is not checked.
            drop_mask: Boolean `(b,)`: where true, a clip's conditions are dropped; for a
                denoiser whose `forward` takes it, as `Unet3D`'s does. None to draw it with
                `cond_drop_prob`.
            reduction: `"mean"` for one number, `"none"` for one per clip.
            frame_mask: Boolean `(b, f)`, false where a frame is padding, which the loss leaves out:
                that of a clip is the mean over its real frames and its images, and 0 without any.
                The network sees padding like other frames. None if all frames are real.
            **kwargs: As in `p_losses`.

        Returns:
            The mean loss, a scalar, or with `reduction="none"` the loss of each clip, `(b,)`,
            weighted as in the mean.

        Raises:
            TypeError: If a condition cannot become a tensor.
            ValueError: If shapes don't fit the model, `t` is outside the schedule, or `reduction`
                is unknown.
        """
        self.check_clips(x)
        kwargs |= given(
            {
                "labels": labels,
                "frame_cond": frame_cond,
                "cond_video": cond_video,
                "first_frames": first_frames,
                "null_cond_mask": null_cond_mask,
                "cond_mask": cond_mask,
                "drop_mask": drop_mask,
                "frame_mask": frame_mask,
            }
        )
        if reduction != "mean":
            # p_losses of a subclass written for the reference does not take it
            kwargs["reduction"] = reduction
        filled, is_there = self.fill_missing(x)
        x_start = self.to_model_range(filled)
        if images is not None:
            c, _, h, w = self.clip_shape
            check_videos("GaussianDiffusion: images", images, (len(x), c, "k", h, w))
            filled, are_there = self.fill_missing(images)
            x_start = torch.cat((x_start, self.to_model_range(filled)), dim=2)
            if is_there is not None and are_there is not None:
                is_there = torch.cat((is_there, are_there), dim=2)
            kwargs |= {"image_frames": images.shape[2], "image_conditions": image_conditions}
        elif image_conditions:
            raise ValueError("GaussianDiffusion: image_conditions must go with images, got none")
        if is_there is not None:
            kwargs["value_mask"] = is_there
        t = self._draw_levels(x_start) if t is None else self._checked_times(t, x_start)
        return self.p_losses(x_start, t, *args, **kwargs)

    def fill_missing(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Fills the missing values of clips, for a model with `missing="mask"`.

        Args:
            x: Clips in their own range, NaN where values are missing.

        Returns:
            The clips with the middle of the range there, of standardised clips the mean; and
            where values are, boolean of the shape of `x`, or None for everywhere.
        """
        if self.missing == "error" or not x.is_floating_point():
            return x, None
        is_there = ~x.isnan()
        middle = self.to_data_range(self.betas.new_zeros(1, x.shape[1], 1, 1, 1))
        return torch.where(is_there, x, middle.to(x)), is_there

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        cond: Any = None,
        noise: Tensor | None = None,
        *,
        image_frames: int = 0,
        image_conditions: Mapping[str, Any] | None = None,
        drop_mask: Tensor | None = None,
        reduction: str = "mean",
        frame_mask: Any = None,
        value_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """The loss of the prediction at given steps (Ho et al. 2020, eq. 14).

        Args:
            x_start: Clips in [-1, 1], `(b, c, f, h, w)`.
            t: Time steps, `(b,)` or `(b, f)`, whole or not.
            cond: Conditions, as in `forward`.
            noise: Of the shape of the clips, normal with variance 1; None to draw it.
            image_frames: How many frames at the end of each clip are images of their own.
            image_conditions: As in `forward`.
            drop_mask: As in `forward`.
            reduction: As in `forward`.
            frame_mask: As in `forward`.
            value_mask: Boolean, broadcast against `x_start`, false where a value is missing, which
                the loss leaves out, too; None if all are there.
            **kwargs: Further conditions, as in `forward`, and further arguments of the denoiser,
                such as `null_cond_prob` and `prob_focus_present` of `Unet3D`.

        Returns:
            The mean loss, a scalar, or with `reduction="none"` that of each clip, `(b,)`.

        Raises:
            ValueError: If the shape of `noise` or `frame_mask` does not fit the clips, or
                `reduction` is unknown.
        """
        check_reduction(reduction)
        frames = x_start.shape[2] - image_frames
        if noise is None:
            noise = self.correlated(draw_noise(x_start), frames)
        check_videos("GaussianDiffusion: noise", noise, x_start.shape)
        if frame_mask is not None:
            frame_mask = self.check_frame_mask(frame_mask, x_start[:, :, :frames])
            frame_mask = F.pad(frame_mask, (0, image_frames), value=True)
            # images are never padding
            by_frame = frame_mask[:, None, :, None, None].expand(-1, 1, -1, *x_start.shape[3:])
            value_mask = by_frame if value_mask is None else by_frame & value_mask
        x_t = self.q_sample(x_start=x_start, t=t, noise=noise)
        named = {name: kwargs.pop(name) for name in CONDITION_NAMES if name in kwargs}
        conditions = self.network_conditions(x_t[:, :, :frames], {"cond": cond, **named}, x_start)
        if drop_mask is not None:
            kwargs["drop_mask"] = torch.as_tensor(drop_mask, device=x_start.device)
        elif conditions and self.denoiser_takes("null_cond_prob"):
            kwargs.setdefault("null_cond_prob", self.cond_drop_prob)
        if image_frames:
            of_images = self.image_conditions(x_t[:, :, frames:], image_conditions or {})
            kwargs |= {"image_frames": image_frames, "image_conditions": of_images}
        # a denoiser written for the reference always gets cond
        arguments = {"cond": None, **conditions, **kwargs}
        seen = network_input(self.objective, self, x_t, t, self.sigma_data)
        output = self.denoise_fn(seen, self._network_time(t), **arguments)
        target = target_of(self.objective, self, x_start, t, noise, self.sigma_data)
        weight = None
        if self.min_snr_gamma is not None:
            weight = min_snr_weight(self.objective, self.log_snr(t), self.min_snr_gamma)
        return distance(self.loss_type, output, target, weight, reduction, value_mask)

    def correlated(self, noise: Tensor, frames: int | None = None) -> Tensor:
        """Noise with the model's `noise_correlation`, from independent noise.

        Args:
            noise: Standard normal, `(b, c, f, h, w)`.
            frames: Frames of the video, at the beginning; the others are images, whose noise stays
                independent. None for all.
        """
        if not self.noise_correlation:
            return noise
        video, images = (
            noise[:, :, :frames],
            noise[:, :, noise.shape[2] if frames is None else frames :],
        )
        return torch.cat((correlate_frames(video, self.noise_correlation), images), dim=2)

    def correlating(self, noise: Noise) -> Noise:
        """A source of noise with the model's `noise_correlation`."""
        return (lambda like: self.correlated(noise(like))) if self.noise_correlation else noise

    def check_batch(self, x: Tensor, **conditions: Any) -> None:
        """Raises a ValueError for a batch that `forward` would refuse.

        Args:
            x: As in `forward`.
            **conditions: As in `forward`; captions can be left out.
        """
        self.check_clips(x)
        denoiser: Any = unwrap(self.denoise_fn)
        if not hasattr(denoiser, "check_inputs"):
            return
        steps = torch.zeros(len(x), dtype=torch.long, device="cpu")
        ready = self.network_conditions(x, conditions, clips=x.to(self.betas))
        # if conditions are dropped with probability 1, none is required
        denoiser.check_inputs(x, self._network_time(steps.to(self.betas.device)), 1.0, **ready)

    def check_clips(self, x: Tensor) -> None:
        """Raises a ValueError for clips of another shape or type than `forward` takes."""
        cure = "cut or resize them, or build GaussianDiffusion for clips of this shape"
        check_videos("GaussianDiffusion: clips", x, ("b", *self.clip_shape), cure)

    def check_frame_mask(self, frame_mask: Any, x: Tensor) -> Tensor:
        """The mask of real frames on the device of clips `x`, after a check of type and shape."""
        mask = torch.as_tensor(frame_mask, device=x.device)
        expected = x.shape[0], x.shape[2]
        if mask.dtype != torch.bool or mask.shape != expected:
            raise ValueError(
                "GaussianDiffusion: frame_mask must be boolean with one element per frame, shape "
                f"(b, f) = {tuple(expected)}, got {mask.dtype} of shape {tuple(mask.shape)}; give "
                "True where a frame is real, and False where it is padding"
            )
        return mask

    def _draw_levels(self, x: Tensor) -> Tensor:
        """Draws time steps for clips `x`, `(b,)`, or `(b, f)` with `frame_noise`."""
        b, _, f = x.shape[:3]
        t = self.draw_times(b).to(x.device)
        if self.frame_noise is None:
            return t
        own = self.draw_times(b * f).to(x.device).view(b, f)
        is_shared = torch.rand(b, 1, device=x.device) < self.shared_noise_prob
        return torch.where(is_shared, t[:, None], own)

    def _checked_times(self, t: Any, x: Tensor) -> Tensor:
        """A caller's time steps on the device of clips `x`, after a check of shape and range."""
        t = t if torch.is_tensor(t) else torch.as_tensor(t, device="cpu")
        t = t if t.is_floating_point() else t.long()
        first, last = -1 if self.is_continuous else 0, self.num_timesteps - 1
        is_right = t.shape in (x.shape[:1], (x.shape[0], x.shape[2]))
        is_right = is_right and (self.is_continuous or not t.is_floating_point())
        # on a GPU a look at the values would synchronise
        if is_right and t.is_cpu and not torch.compiler.is_compiling():
            is_right = bool(((t >= first) & (t <= last)).all())
        if not is_right:
            values = f" from {t.min().item()} to {t.max().item()}" if t.ndim and t.numel() else ""
            raise ValueError(
                f"GaussianDiffusion: t must be {'real' if self.is_continuous else 'whole'} numbers "
                f"from {first} to {last}, one per clip, {len(x)}, or one per frame, got {shown(t)}"
                f"{values}; leave it out, or draw it with draw_times"
            )
        return t.to(x.device)

    def denoiser_takes(self, keyword: str) -> bool:
        """Whether the denoiser's `forward` has an argument of this name, such as `drop_mask`."""
        return keyword in inspect.signature(unwrap(self.denoise_fn).forward).parameters

    # conditions

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of one clip, `(c, f, h, w)`."""
        size = self.image_size
        height, width = (size, size) if isinstance(size, int) else size
        return self.channels, self.num_frames, height, width

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Keywords of the conditions that training data must have, if the network names them."""
        names = getattr(unwrap(self.denoise_fn), "condition_names", ())
        is_own = self._field_channels() != 0
        return tuple(name for name in names if name != "cond_video" or is_own)

    @property
    def takes_text_states(self) -> bool:
        """Whether the network takes captions as sequences of states instead of as vectors."""
        return bool(getattr(unwrap(self.denoise_fn), "takes_text_states", False))

    def prepare_conditions(self, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """Conditions as tensors on the model's device, with captions encoded; idempotent.

        Args:
            conditions: By keyword of `sample`; those that are None are left out. `cond` may be
                captions, some of which may be None.

        Returns:
            By keyword, a row per video.

        Raises:
            TypeError: If one has an unknown name, or is not numbers with a row per video.
            ValueError: If there is a `cond_mask` for captions, or the network takes none.
        """
        if unknown := [name for name in conditions if name not in CONDITION_NAMES]:
            raise TypeError(
                f"GaussianDiffusion: conditions must be among {', '.join(CONDITION_NAMES)}, got "
                f"{', '.join(map(str, unknown))}; correct the name, or leave it out"
            )
        ready = given(conditions)
        if "labels" in ready:
            ready["labels"] = self.clip_info.label_numbers(ready["labels"])
        if is_captions(ready.get("cond")):
            use_encoder(self.clip_info.text_encoder)
            if "cond" not in getattr(unwrap(self.denoise_fn), "condition_names", ("cond",)):
                raise ValueError(
                    "GaussianDiffusion: the network must take captions, got one built without "
                    "cond_dim and use_bert_text_cond; build it with one of them, or leave out cond"
                )
            ready |= encode_condition(
                ready,
                states=self.takes_text_states,
                use_cls=self.text_use_bert_cls,
                device=self.betas.device,
            )
        return {name: as_tensor(name, value, self.betas) for name, value in ready.items()}

    def network_conditions(
        self, x: Tensor, conditions: Mapping[str, Any], clips: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The conditions as arguments of the denoiser.

        Args:
            x: Noisy videos, for their shape.
            conditions: As in `prepare_conditions`.
            clips: Clips in [-1, 1] that known frames are taken from; None to require
                `first_frames`.
        """
        ready = self.prepare_conditions(conditions)
        for name in ready.keys() & CONDITION_AXES.keys():
            ready[name] = self._standardized(name, ready[name])
        field, frames = ready.pop("cond_video", None), ready.pop("first_frames", None)
        if field is not None:
            field = self._field_to_model_range(field)
        if frames is not None:
            expected = (*x.shape[:2], self.given_frames, *x.shape[3:])
            cure = f"this model was built with given_frames={self.given_frames}"
            check_videos("GaussianDiffusion: first_frames", frames, expected, cure)
            frames = self.to_model_range(frames)
        elif clips is not None:
            frames = clips[:, :, : self.given_frames]
        if self.given_frames:
            if frames is None:
                raise ValueError(
                    "GaussianDiffusion: this model was built with given_frames, so first_frames "
                    f"of {self.given_frames} frames must be given; pass the beginning of each video"
                )
            known_frames = show_first_frames(frames, x.shape[2])
            field = join_fields(field, known_frames, self._field_channels())
        return ready if field is None else {**ready, "cond_video": field}

    def image_conditions(self, images: Tensor, conditions: Mapping[str, Any]) -> dict[str, Tensor]:
        """As `network_conditions`, for images at the end of clips, with a row per image.

        Args:
            images: `(b, c, k, h, w)`, for their shape.
            conditions: `cond` `(b, k, d)` or `(b, k, n, d)`, or `b` lists of `k` captions;
                `cond_mask` `(b, k, n)`, `labels` `(b, k)`, `frame_cond` `(b, k, d)`, `cond_video`
                `(b, n, k, h, w)`, `null_cond_mask` `(b, k)`.
        """
        b, k = images.shape[0], images.shape[2]
        named, rows = dict(conditions), conditions.get("cond")
        if isinstance(rows, (list, tuple)) and rows and all(map(is_captions, rows)):
            mask = named.pop("null_cond_mask", None)
            if mask is not None:
                mask = torch.as_tensor(mask, device="cpu").flatten()
            flat = {
                "cond": [caption for row in rows for caption in row],
                "null_cond_mask": mask,
                "cond_mask": named.get("cond_mask"),
            }
            for name, value in self.prepare_conditions(flat).items():
                named[name] = value.reshape(b, k, *value.shape[1:])
        ready = self.prepare_conditions(named)
        for name in ready.keys() & CONDITION_AXES.keys():
            ready[name] = self._standardized(name, ready[name])
        field = ready.pop("cond_video", None)
        if field is None:
            return ready
        field = self._field_to_model_range(field)
        if self.given_frames:
            nothing_known = show_first_frames(images[:, :, :0], k)
            field = join_fields(field, nothing_known, self._field_channels())
        return {**ready, "cond_video": field}

    def _network_time(self, t: Tensor) -> Tensor:
        """Time steps as the network takes them: themselves, or their log-SNR."""
        taken = getattr(unwrap(self.denoise_fn), "time_input", "step")
        return self.log_snr(t) if taken == "log_snr" else t

    def _field_channels(self) -> int | None:
        """Channels of the user's own `cond_video`; None if they are unknown."""
        total = getattr(unwrap(self.denoise_fn), "cond_channels", None)
        if total is None or not self.given_frames:
            return total
        return total - self.channels - 1

    # the range of the data

    def set_value_range(self, low_high: Any) -> None:
        """Sets `value_range`, where it becomes known only after the model is built.

        Args:
            low_high: As `value_range` of the constructor.

        Raises:
            ValueError: If it is not a range, or `auto_normalize` is False.
        """
        if not self.auto_normalize:
            raise ValueError("GaussianDiffusion: value_range needs auto_normalize=True, got False")
        name, channels = "GaussianDiffusion: value_range", self.channels
        own: dict[str, Tensor] = {}
        if isinstance(low_high, (Mapping, Standardization)):
            scale = parse_scale(low_high, channels, name)
            assert isinstance(scale, Standardization)
            codes = [TRANSFORM_CODES.index(each) for each in scale.transform]
            own["value_mean"] = self.betas.new_tensor(scale.mean)
            own["value_std"] = self.betas.new_tensor(scale.std)
            own["value_transform"] = self.betas.new_tensor(codes, dtype=torch.uint8)
            plain: Any = scale.plain()
        else:
            plain = plain_range(low_high, channels, name)
            low, high = map(self.betas.new_tensor, per_channel(plain, channels))
            own |= {"value_low": low, "value_high": high}
        for buffer in VALUE_BUFFERS:
            self.register_buffer(buffer, own.get(buffer))
        self.config = {**self.config, "value_range": plain}
        self._range_is_known = False

    def set_cond_standardization(self, scales: Any) -> None:
        """Sets `cond_standardization`, where it becomes known only after the model is built.

        Args:
            scales: As `cond_standardization` of the constructor.

        Raises:
            ValueError: If it is not one, or `cond_video` has a `cond_value_range`, too.
        """
        name = "GaussianDiffusion: cond_standardization"
        plain = parse_condition_scales(scales, name) or {}
        if "cond_video" in plain and self.cond_value_low is not None:
            raise ValueError(
                f"{name} must not have cond_video beside a cond_value_range, got both; leave one "
                "out"
            )
        for key in CONDITION_AXES:
            for part in ("mean", "std"):
                numbers = plain[key][part] if key in plain else None
                buffer = None if numbers is None else self.betas.new_tensor(numbers)
                self.register_buffer(f"{key}_{part}", buffer)
        self.config = {**self.config, "cond_standardization": plain or None}

    def _standardized(self, name: str, value: Tensor) -> Tensor:
        """A condition as the network takes it: with mean 0 and deviation 1, if these are known."""
        mean, std = (getattr(self, f"{name}_{part}", None) for part in ("mean", "std"))
        # one of too few axes is refused with the other shapes
        if mean is None or std is None or value.ndim < 2:
            return value
        axis = CONDITION_AXES[name]
        if len(mean) not in (1, value.shape[axis]):
            raise ValueError(
                f"GaussianDiffusion: {name} must have the {len(mean)} entries of "
                f"cond_standardization, got the shape {tuple(value.shape)}; correct one of them"
            )
        shape = [1] * value.ndim
        shape[axis] = len(mean)
        return (value.to(mean.dtype) - mean.view(shape)) / std.view(shape)

    @property
    def has_units(self) -> bool:
        """Whether clips have a `value_range`, so that bytes are values in its units."""
        return self.config["value_range"] is not None

    def takes(self, x: Tensor) -> Tensor:
        """Whether values of clips are finite and in the domain of their transform; as `x`."""
        names = () if self.value_mean is None else self._transforms()
        return in_domain(x, names)

    @property
    def clamps(self) -> bool:
        """Whether predicted clips are clamped: those that have a range."""
        return self.auto_normalize and self.value_mean is None

    def set_sigma_data(self, sigma_data: float) -> None:
        """Sets `sigma_data`, where it becomes known only after the model is built.

        Args:
            sigma_data: Standard deviation of the clips in the range of the model.

        Raises:
            ValueError: If it is not a number above 0, or the objective is not EDM.
        """
        if self.sigma_data is None:
            raise ValueError(
                f"GaussianDiffusion: sigma_data needs objective='edm', got {self.objective!r}; "
                "leave it out"
            )
        given = {name: self.config[name] for name in CONFIG}
        plain = plain_config({**given, "sigma_data": sigma_data})
        self.sigma_data.fill_(plain["sigma_data"])
        self.config = {**self.config, "sigma_data": plain["sigma_data"]}

    def _store_range(self, kind: str, low_high: Any, channels: int | None) -> None:
        limits = plain_range(low_high, channels, f"GaussianDiffusion: {kind}_range")
        counts = [len(bound) for bound in limits if isinstance(bound, tuple)]
        bounds = per_channel(limits, channels or max(counts, default=1))
        for end, values in zip(("low", "high"), bounds, strict=True):
            self.register_buffer(f"{kind}_{end}", self.betas.new_tensor(values))
        self.config = {**self.config, f"{kind}_range": limits}

    def to_model_range(self, x: Tensor) -> Tensor:
        """Maps clips from the range of the data to that of the model."""
        if not self.has_units and x.dtype == torch.uint8:
            x = x.float() / 255
        # while torch or JAX traces a graph, there are no values to look at
        elif self.auto_normalize and not (torch.compiler.is_compiling() or x.device.type == "jax"):
            self._check_range(x)
        if self.value_low is not None and self.value_high is not None:
            return to_unit_range(x, self.value_low, self.value_high)
        if self.value_mean is not None and self.value_std is not None:
            return standardized(x, self.value_mean, self.value_std, self._transforms())
        x = x.to(self.betas.dtype)
        return normalize_img(x) if self.auto_normalize else x

    def to_data_range(self, x: Tensor) -> Tensor:
        """Maps clips from the range of the model to that of the data."""
        if self.value_low is not None and self.value_high is not None:
            low, high = (bound.view(1, -1, 1, 1, 1) for bound in (self.value_low, self.value_high))
            return low + (x + 1) * 0.5 * (high - low)
        if self.value_mean is not None and self.value_std is not None:
            return unstandardized(x, self.value_mean, self.value_std, self._transforms())
        return unnormalize_img(x) if self.auto_normalize else x

    def _transforms(self) -> tuple[str | None, ...]:
        """The transforms of standardised channels."""
        names: tuple[str | None, ...] = self.config["value_range"]["transform"]
        return names

    def _field_to_model_range(self, field: Tensor) -> Tensor:
        """Maps a `cond_video` to the range of the network."""
        if self.cond_value_low is None or self.cond_value_high is None:
            is_bytes = field.dtype == torch.uint8
            return normalize_img(field.to(self.betas.dtype) / 255) if is_bytes else field
        channels = len(self.cond_value_low)
        if field.ndim not in (4, 5) or channels not in (1, field.shape[1]):
            raise ValueError(
                f"GaussianDiffusion: cond_video must have the {channels} channels of "
                f"cond_value_range, shape (b, {channels}, f, h, w) or (b, {channels}, h, w), got "
                f"{tuple(field.shape)}; move its axes, or change cond_value_range"
            )
        return to_unit_range(field, self.cond_value_low, self.cond_value_high)

    def _check_range(self, x: Tensor) -> None:
        """Warns once about clips outside their range; on a GPU it checks the first batch only."""
        if self._range_is_known:
            return
        if self.value_mean is not None:
            self._check_standard(x.detach())
            return
        low, high = 0.0, 1.0
        unit = x.detach()
        if self.value_low is not None and self.value_high is not None:
            low, high = self.value_low.min().item(), self.value_high.max().item()
            unit = unnormalize_img(to_unit_range(unit, self.value_low, self.value_high))
        least, most = (value.item() for value in torch.aminmax(unit))
        # NaN is outside as well
        outside = not (least >= -RANGE_TOLERANCE and most <= 1 + RANGE_TOLERANCE)
        # on a GPU each check would synchronise
        self._range_is_known = outside or not x.is_cpu
        if outside:
            found = " to ".join(f"{value.item():.3g}" for value in torch.aminmax(x.detach()))
            cure = "give the value_range of all clips"
            if self.value_low is None:
                cure = (
                    "rescale them ((x + 1) / 2 if they are in [-1, 1]), build GaussianDiffusion "
                    "with value_range=(low, high) in their units, or with auto_normalize=False to "
                    "keep a range of their own"
                )
            warnings.warn(
                f"GaussianDiffusion: clips must be in [{low:g}, {high:g}], got values from "
                f"{found}; {cure}",
                stacklevel=level_of_user(),
            )

    def _check_standard(self, x: Tensor) -> None:
        """As `_check_range`, for clips that are standardised."""
        assert self.value_mean is not None
        assert self.value_std is not None
        check_domain(x, self._transforms(), "GaussianDiffusion: clips")
        found = standardized(x, self.value_mean, self.value_std, self._transforms())
        middle = found.mean(dim=(0, 2, 3, 4)).abs().max().item()
        # NaN is outside as well
        outside = not middle <= FAR_FROM_MEAN
        self._range_is_known = outside or not x.is_cpu
        if outside:
            warnings.warn(
                "GaussianDiffusion: the mean of clips must be near that of value_range, got one "
                f"{middle:.3g} standard deviations away; give clips in the units of the training",
                stacklevel=level_of_user(),
            )

    # the reference's chain of all steps

    def p_mean_variance(
        self,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool,
        cond: Any = None,
        cond_scale: CondScale = 1.0,
        **conditions: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of p(x_{t-1} | x_t) (Ho et al. 2020, eq. 11).

        Args:
            x: Noisy videos, `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            clip_denoised: Whether the predicted x_start is clamped to [-1, 1].
            cond: As in `sample`.
            cond_scale: As in `sample`.
            **conditions: The other conditions, by keyword of `sample`.
        """
        ready = self.network_conditions(x, {"cond": cond, **conditions})
        scale = as_cond_scale(cond_scale)
        pred_x_start = self._predict_x_start(x, t, cond_scale=scale, conditions=ready)
        if clip_denoised:
            pred_x_start = self.clamp(pred_x_start)
        return self.q_posterior(x_start=pred_x_start, x_t=x, t=t)

    def _predict_x_start(
        self,
        x: Tensor,
        t: Tensor,
        *,
        cond_scale: CondScale,
        conditions: Mapping[str, Tensor],
        **guidance: Any,
    ) -> Tensor:
        """The clean videos that the network predicts, not clamped.

        Args:
            x: Noisy videos, `(b, c, f, h, w)`.
            t: Time steps, `(b,)`.
            cond_scale: Strength of the guidance, from `as_cond_scale`; 1 for none.
            conditions: From `network_conditions`.
            **guidance: Further keywords of the denoiser's `forward_with_cond_scale`.
        """
        arguments = {"cond": None, **conditions, **guidance}
        # without dropout, also in training
        with switched_off(self.denoise_fn.modules(), "training"):
            call = guided(self.denoise_fn)
            seen = network_input(self.objective, self, x, t, self.sigma_data)
            output = call(seen, self._network_time(t), cond_scale=cond_scale, **arguments)
        return x_start_of(self.objective, self, output, x, t, self.sigma_data)

    def clamp(self, x_start: Tensor, percentile: float | None = None) -> Tensor:
        """Clamps videos to [-1, 1], or at a percentile of their values, and rescales them."""
        if percentile is None and not self.use_dynamic_thres:
            return x_start.clamp(-1, 1)
        percentile = self.dynamic_thres_percentile if percentile is None else percentile
        values = x_start.flatten(1).abs()
        limit = torch.quantile(values, percentile, dim=-1).clamp(min=1)
        limit = limit.view(-1, *[1] * (x_start.ndim - 1))
        return x_start.clamp(-limit, limit) / limit

    @torch.no_grad()
    def p_sample(
        self,
        x: Tensor,
        t: Tensor,
        cond: Any = None,
        cond_scale: CondScale = 1.0,
        clip_denoised: bool = True,
        **conditions: Any,
    ) -> Tensor:
        """Draws x_{t-1} from p(x_{t-1} | x_t); arguments as in `p_mean_variance`."""
        mean, _, log_variance = self.p_mean_variance(
            x, t, clip_denoised=clip_denoised, cond=cond, cond_scale=cond_scale, **conditions
        )
        noise = self.correlated(draw_noise(x))
        # no noise in the last step
        noisy = (t > 0).to(x.dtype).view(-1, *[1] * (x.ndim - 1))
        return mean + noisy * (0.5 * log_variance).exp() * noise

    @torch.no_grad()
    def p_sample_loop(
        self,
        shape: Sequence[int],
        cond: Any = None,
        cond_scale: CondScale = 1.0,
        *,
        progress: bool = True,
        callback: Callback | None = None,
        **conditions: Any,
    ) -> Tensor:
        """Draws videos of a shape `(b, c, f, h, w)`; arguments as in `sample`."""
        noise = torch.randn(tuple(shape), device=self.betas.device, dtype=self.betas.dtype)
        conditions = {"cond": cond, **conditions}
        steps = self.num_timesteps
        noise = self.correlated(noise) * self.noise_level(steps - 1).scale
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
        cond_scale: CondScale = 1.0,
        progress: bool = True,
        **conditions: Any,
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
            **conditions: The other conditions, by keyword of `sample`.

        Returns:
            `(b, c, f, h, w)`.

        Raises:
            ValueError: If shapes differ, or `t` or `lam` is out of range.
        """
        t = self.num_timesteps - 1 if t is None else t
        check_videos("interpolate: x1", x1)
        check_videos("interpolate: x2", x2, x1.shape)
        if not 0 <= lam <= 1:
            raise ValueError(f"interpolate: lam, the share of x2, must be in [0, 1], got {lam}")
        if not 0 <= t < self.num_timesteps:
            last = self.num_timesteps - 1
            raise ValueError(f"interpolate: t must be a step from 0 to {last}, got {t}")
        steps = torch.full(x1.shape[:1], t, device=x1.device, dtype=torch.long)
        x1, x2 = (self.q_sample(self.to_model_range(x), steps) for x in (x1, x2))
        blend = (1 - lam) * x1 + lam * x2
        conditions = {"cond": cond, **conditions}
        return self._denoise_from(blend, t, cond_scale, conditions, progress)

    def _denoise_from(
        self,
        x: Tensor,
        steps: int,
        cond_scale: CondScale,
        conditions: dict[str, Any],
        progress: bool,
        callback: Callback | None = None,
    ) -> Tensor:
        """Denoises `x` in `steps` steps, and maps it to the range of the clips."""
        # captions are encoded once, not at every step
        conditions = {"cond": None, **self.prepare_conditions(conditions)}
        times = range(steps - 1, -1, -1)

        def run(x: Tensor) -> Iterator[Tensor]:
            for i in times:
                t = torch.full(x.shape[:1], i, device=x.device, dtype=torch.long)
                x = self.p_sample(
                    x, t, cond_scale=cond_scale, clip_denoised=self.clamps, **conditions
                )
                yield x

        x = follow(x, run(x), self.noise_levels([*times, -1]), progress, callback)
        return self.to_data_range(x)

    # sampling

    @torch.no_grad()
    def sample(
        self,
        cond: Any = None,
        cond_scale: CondScale = 1.0,
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
        guidance_interval: tuple[float, float] | None = None,
        guide: GaussianDiffusion | str | PathLike[str] | None = None,
        guide_scale: float = GUIDE_SCALE,
    ) -> Tensor:
        """Draws videos from the model.

        Conditions are tensors, arrays or lists of numbers, with one row per video; the network
        determines which are needed.

        Args:
            cond: Vectors, `(b, cond_dim)`, or states of text, `(b, n, cond_dim)`, as the network
                takes; or a list of `b` captions, some of which may be None; None for none.
            cond_scale: Strength of the guidance by conditions; 1 for none. For several conditions
                also a mapping of their keywords to a scale each, such as
                `{"cond": 3.0, "labels": 1.5}`: they are added in this order, each to those before
                it (Brooks et al. 2023, eq. 3), after those not named, whose scale is 1. Equal
                scales are as one number.
            batch_size: Number of videos, if neither conditions nor `guidance` determine it.
            labels: Classes, integers `(b,)`, -1 for none; or a list of their names, if the model
                knows them (`clip_info.class_names`).
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or, without that, in the range that the network takes.
            first_frames: The known first frames, `(b, c, given_frames, h, w)` in the range of
                the clips; for a model with `given_frames`.
            null_cond_mask: Boolean `(b,)`, true where `cond` is dropped.
            cond_mask: Of states, boolean `(b, n)`, true where there is a token; None for all.
            sampler: `"ddpm"` (the reference's, all steps), `"ancestral"`, `"ddim"`, `"euler"`,
                `"heun"`, `"dpm++"`, `"dpm++sde"`, a `Sampler` with options of its own, or a
                scheduler of the diffusers package. None for ddpm, or, with fewer steps, ddim; for
                flow matching and EDM dpm++.
            steps: Number of steps, or falling time steps to stop at; None for the model's
                `sampling_timesteps`, or without these the sampler's default.
            guidance: What is known of the videos: a `Measurement`, a `KnownRegion`, or several.
            negative_cond: What to guide away from, instead of from no condition: as `cond`, or a
                dict of conditions by name; one row for all or one per video.
            guidance_rescale: How far a guided prediction is rescaled to the standard deviation of
                the unguided one, in [0, 1] (Lin et al. 2023, section 3.4; theirs is 0.7).
            dynamic_thres_percentile: Percentile at which samples are clamped, as with
                `use_dynamic_thres`; None for the model's setting.
            num_frames: Frames of a video; None for the training clips'.
            image_size: Height and width, an int or `(h, w)`; None for the training clips'.
            seed: One for all, from which each video gets a random stream of its own, so that it is
                the same in any batch; or one per video. None for torch's global stream.
            generator: Instead of `seed`: a generator that draws a seed for all, or one per video
                that draws its noise.
            max_batch: Maximum number of videos to draw at a time; None for all.
            callback: Called with a `SamplingStep` after each step.
            progress: Whether to show a progress bar.
            guidance_interval: `(low, high)`, the noise levels `sigma / alpha` above `low` and up to
                `high` at which `cond_scale` and `guide` act (Kynkaanniemi et al. 2024, whose sigma,
                of noise on clips that are not scaled down, is this ratio). `high` may be infinite.
                None for all.
            guide: A worse version of this model to guide away from (Karras et al. 2024): an earlier
                checkpoint, or a smaller network, as a model on the same device or the path of one.
                It may have another objective and noise schedule, and acts at the noise levels that
                its schedule has. It gets the same conditions and `cond_scale`. None for none.
            guide_scale: The prediction is `guide + guide_scale * (model - guide)`; 1 for no effect.

        Returns:
            `(b, c, f, h, w)` in [0, 1], or in `value_range`, or, if `auto_normalize` is False, in
            the range of the clips.

        Raises:
            FileNotFoundError: If there is no model at the path of `guide`.
            TypeError: If a condition, the sampler or the guide has another type.
            ValueError: If conditions differ in number or don't fit the model, the guide doesn't fit
                it, or an argument is outside its range.
        """
        conditions: dict[str, Any] = given(
            {
                "cond": cond,
                "labels": labels,
                "frame_cond": frame_cond,
                "cond_video": cond_video,
                "first_frames": first_frames,
                "null_cond_mask": null_cond_mask,
                "cond_mask": cond_mask,
            }
        )
        # mistakes first: captions may take a while to encode
        known, interval = as_guidance(guidance), as_interval(guidance_interval)
        cond_scale = as_cond_scale(cond_scale, conditions)
        self._check_percentile(dynamic_thres_percentile)
        sampler, levels = self._choose_sampler(sampler, steps)
        autoguidance = make_autoguidance(self, guide, guide_scale, levels)
        size = self.sample_shape(num_frames, image_size)
        conditions = self.prepare_conditions(conditions)
        count = count_videos(conditions, known, as_count(batch_size, "sample: batch_size"))
        known = tuple(one.prepare(self, (count, *size)) for one in known)
        negative = self.prepare_negative(negative_cond, cond_scale, count)
        guiding = PredictionGuidance(cond_scale, negative, guidance_rescale, interval, autoguidance)
        noise = make_streams(seed, generator, count, self.betas.device)
        # the reference's chain, whose methods a subclass may override, has no other options
        has_options = known or guiding.has_options or dynamic_thres_percentile is not None
        is_chain = type(sampler) is DDPM and noise is draw_noise and not has_options
        follower: dict[str, Any] = given({"progress": progress, "callback": callback})
        if not is_chain:
            self._warn_of_replaced_methods()
        elif "progress" not in inspect.signature(self.p_sample_loop).parameters:
            # a subclass's own, written for the reference
            del follower["progress"]
        videos = []
        most = count if max_batch is None else as_count(max_batch, "sample: max_batch")
        for rows in batches(count, most):
            shape, own = (rows.stop - rows.start, *size), rows_of(conditions, rows)
            if is_chain:
                video = self.p_sample_loop(shape, cond_scale=cond_scale, **own, **follower)
            else:
                draw = self.correlating(noise[rows] if isinstance(noise, RandomStreams) else noise)
                x = draw(torch.empty(shape, device=self.betas.device, dtype=self.betas.dtype))
                x = x * levels[0].scale
                clamp = partial(self.clamp, percentile=dynamic_thres_percentile)
                denoise = Denoiser(
                    guiding.predictor(self, x, own, rows),
                    clamp if self.clamps else None,
                    [one.rows(rows) for one in known],
                    draw,
                    guiding.networks(self),
                )
                x = follow(x, sampler.run(x, levels, denoise, draw), levels, **follower)
                video = self.to_data_range(denoise.settle(x))
            videos.append(video)
        return torch.cat(videos)

    def _check_percentile(self, percentile: float | None) -> None:
        """Raises a ValueError for a `dynamic_thres_percentile` of `sample` that can't be used."""
        if percentile is not None and not self.clamps:
            raise ValueError(
                "sample: dynamic_thres_percentile needs a model that clamps, got one whose clips "
                "have no range (auto_normalize=False, or standardised); leave it out"
            )
        if not 0 <= (percentile or 0) <= 1:
            raise ValueError(
                "sample: dynamic_thres_percentile must be a fraction in [0, 1], got "
                f"{percentile}; pass for example 0.995"
            )

    def predictor(
        self,
        x: Tensor,
        conditions: Mapping[str, Any],
        negative: Mapping[str, Any],
        cond_scale: CondScale,
        guidance_rescale: float,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The network with its conditions, as a function of videos like `x` and time steps.

        Args:
            x: Noisy videos, for their shape.
            conditions: From `prepare_conditions`.
            negative: From `prepare_negative`.
            cond_scale: From `as_cond_scale`.
            guidance_rescale: As in `sample`.
        """
        options: dict[str, Any] = given({"guidance_rescale": guidance_rescale or None})
        if negative:
            # without a field of their own, first frames are unknown as well
            if "cond_video" in negative:
                frames = conditions.get("first_frames")
                negative = self.network_conditions(x, {**negative, "first_frames": frames})
            options["negative"] = negative
        ready = self.network_conditions(x, conditions)
        return partial(self._predict_x_start, cond_scale=cond_scale, conditions=ready, **options)

    def _choose_sampler(
        self, sampler: Any, steps: int | Sequence[float] | None
    ) -> tuple[Sampler, list[NoiseLevel]]:
        """The sampler, and the noise levels that it stops at."""
        if self.betas.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "sample: the model must be in float32 or float64, which the schedule "
                f"needs, got {self.betas.dtype}; convert it with .float(), and sample within "
                "torch.autocast for half precision"
            )
        all_steps = self.num_timesteps
        times: Any = self.sampling_timesteps if steps is None else steps
        if sampler is None and self.objective in OWN_SCHEDULES:
            sampler = "dpm++"
        if sampler is None:
            is_all = times is None or (isinstance(times, Integral) and times == all_steps)
            sampler = "ddpm" if is_all else "ddim"
        # the name alone takes the model's eta
        is_ddim = isinstance(sampler, str) and sampler == "ddim"
        chosen = DDIM(eta=self.ddim_sampling_eta) if is_ddim else make_sampler(sampler)
        if steps is None and (times is None or isinstance(chosen, DDPM)):
            times = min(chosen.default_steps or all_steps, all_steps)
        return chosen, chosen.levels(self, times)

    def sample_shape(
        self, num_frames: int | None, image_size: int | tuple[int, int] | None
    ) -> tuple[int, int, int, int]:
        """Shape of a sample, `(c, f, h, w)`; None for that of the training clips."""
        c, f, h, w = self.clip_shape
        if image_size is not None:
            h, w = as_image_size(image_size, "sample: image_size")
        if num_frames is not None:
            f = as_count(num_frames, "sample: num_frames")
        return c, f, h, w

    def prepare_negative(
        self, negative_cond: Any, cond_scale: CondScale, count: int
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
        is_known = hasattr(unwrap(self.denoise_fn), "condition_names")
        known = self.condition_names if is_known else VALUES
        # encoded captions come with masks of missing captions and of tokens
        allowed = (*known, *(masks_of(["cond"]) if "cond" in named else ()))
        if unknown := [str(name) for name in named if name not in allowed]:
            raise ValueError(
                "sample: negative_cond must hold conditions that the network takes, "
                f"{', '.join(known) or 'none'}, got {', '.join(unknown)}; give captions or "
                "vectors, or a dict of those by name"
            )
        guided = guided_conditions(as_cond_scale(cond_scale), known)
        if unguided := [name for name in known if name in named and name not in guided]:
            raise ValueError(
                "sample: negative_cond must hold conditions that cond_scale guides by, got "
                f"{', '.join(unguided)} for {shown(cond_scale)}; name them there, with a scale "
                "other than 1"
            )
        ready = self.prepare_conditions(named)
        if counts := sorted({len(value) for value in ready.values()} - {1, count}):
            raise ValueError(
                f"sample: negative_cond must have 1 row or one per video, {count}, got {counts[0]}"
            )
        return {name: value.expand(count, *value.shape[1:]) for name, value in ready.items()}

    @property
    def replaced_methods(self) -> list[str]:
        """Methods of the reference's chain that a subclass overrides."""
        names = ("p_sample", "p_mean_variance", "p_sample_loop")
        return [n for n in names if getattr(type(self), n) is not getattr(GaussianDiffusion, n)]

    def _warn_of_replaced_methods(self) -> None:
        """Warns that methods of a subclass are not called."""
        if replaced := self.replaced_methods:
            warnings.warn(
                f"sample: {type(self).__name__} has a {' and '.join(replaced)} of its own, which "
                "only the chain of all steps calls, without seed, generator, guidance and other "
                "options; leave these out, or put the change into a Sampler or a Guidance",
                stacklevel=level_of_user(),
            )

    # videos of which a part is known

    def predict(
        self,
        frames: Tensor,
        num_frames: int | None = None,
        *,
        weight: float | None = None,
        given_noise: float = 0.0,
        **sampling: Any,
    ) -> Tensor:
        """Predicts the continuation of the first frames of videos.

        Args:
            frames: `(b, c, k, h, w)`, in the range of the clips or uint8.
            num_frames: Frames of the result; None for those of a training clip.
            weight: Weight w_r of the known frames in the guidance; 0 for replacement alone. None
                for 2, or, in a model with `frame_noise`, for known frames without noise instead.
            given_noise: For a model with `frame_noise`, noise of the known frames, `sigma / alpha`:
                a little, 0.02 to 0.1, say, for long rollouts; 0 for hardly any.
            **sampling: As in `extend`.

        Returns:
            `(b, c, num_frames, h, w)`, beginning with `frames`, in the range of `sample`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If the frames don't fit the model or are not finite, or none is left to
                predict.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> diffusion.predict(torch.rand(2, 3, 1, 16, 16), progress=False).shape
            torch.Size([2, 3, 4, 16, 16])
        """
        length = self.num_frames if num_frames is None else num_frames
        return Completion(self, "predict", weight, sampling, None, given_noise).extend(
            frames, length, name="frames"
        )

    def extend(
        self,
        video: Tensor,
        num_frames: int,
        *,
        overlap: int | None = None,
        weight: float | None = None,
        low_resolution: Tensor | None = None,
        frame_factor: int = 1,
        given_noise: float = 0.0,
        **sampling: Any,
    ) -> Tensor:
        """Continues videos to any length, window by window.

        Args:
            video: `(b, c, f, h, w)` of any length, in the range of the clips or uint8.
            num_frames: Frames of the result.
            overlap: Frames of a window that are known from before it; None for half of them.
            weight: Weight w_r of what is known in the guidance; 0 for replacement alone. None for
                2, or, in a model with `frame_noise`, for known frames without noise instead.
            low_resolution: The whole result, small, which guides every window:
                `(b, c, ceil(num_frames / frame_factor), h', w')`; None for none.
            frame_factor: `low_resolution` has every `frame_factor`-th frame, from the first on.
            given_noise: For a model with `frame_noise`, noise of the known frames, `sigma / alpha`:
                a little, 0.02 to 0.1, say, for long rollouts; 0 for hardly any.
            **sampling: As in `sample`, without `batch_size` and `first_frames`. Conditions have a
                row per video; `frame_cond` and `cond_video` have all frames of the result, and are
                cut. `guidance` of your own guides each window. A model with `given_frames` gets
                those of each window. Random streams continue from window to window.

        Returns:
            `(b, c, num_frames, h, w)`, beginning with `video`, in the range of `sample`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If shapes don't fit the model, no frame is left to draw, the overlap does
                not leave any, or does not give what a model with `given_frames` needs, `batch_size`
                or `first_frames` are given, or values that are known, or that the model has drawn
                for the next window, are not finite.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> first = diffusion.sample(batch_size=2, progress=False)
            >>> diffusion.extend(first, num_frames=10, seed=0, progress=False).shape
            torch.Size([2, 3, 10, 16, 16])
        """
        return Completion(self, "extend", weight, sampling, overlap, given_noise).extend(
            video, num_frames, low_resolution=low_resolution, frame_factor=frame_factor
        )

    def forecast(
        self,
        initial_frames: Tensor,
        num_frames: int,
        *,
        members: int = 8,
        seed: int | Sequence[int] = 0,
        stride: int | None = None,
        weight: float | None = None,
        given_noise: float = 0.0,
        max_batch: int | None = None,
        progress: bool = True,
        **sampling: Any,
    ) -> Tensor:
        """Draws ensembles of continuations, window by window.

        Each window is drawn given the last frames before it, in the way that the model was trained:
        as its `given_frames`, as frames without noise in a model with `frame_noise`, or else by
        reconstruction guidance. A member whose values become NaN or infinite stops: the frames
        after that window are NaN, and a warning says so.

        Args:
            initial_frames: The known beginning, `(b, c, k, h, w)`, in the range of the clips or
                uint8; of a model with `missing="mask"` NaN where values are missing.
            num_frames: Number of frames to draw.
            members: Number of continuations of each.
            seed: Member `j` of forecast `i` depends on the seed, `i` and `j` alone, whatever the
                number of members and `max_batch`; or one per forecast, on which and `j` it depends.
            stride: New frames per window; None for all that the model can draw given
                `given_frames`, or half of a window.
            weight: As in `extend`.
            given_noise: As in `extend`.
            max_batch: Largest number of continuations drawn at once; None for all.
            progress: Whether to show a progress bar.
            **sampling: As in `extend`, without `generator`, `guidance` and `negative_cond`.
                Conditions have a row per forecast; `frame_cond` and `cond_video` have all
                `k + num_frames` frames, so that what is known of the future, such as forcings, is
                given for it.

        Returns:
            `(b, members, c, num_frames, h, w)` in the range of `sample`, without initial frames.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If an argument is out of range, or as `extend`.

        Warns:
            UserWarning: If members have diverged.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> start = torch.rand(1, 3, 2, 16, 16)
            >>> diffusion.forecast(start, num_frames=5, members=2, progress=False).shape
            torch.Size([1, 2, 3, 5, 16, 16])
        """
        given_options = {"weight": weight, "given_noise": given_noise, **sampling}
        forecaster = Forecaster(self, members, seed, stride, max_batch, given_options)
        return forecaster.run(initial_frames, num_frames, progress)

    def interpolate_frames(
        self,
        video: Tensor,
        factor: int,
        *,
        overlap: int | None = None,
        weight: float | None = None,
        given_noise: float = 0.0,
        **sampling: Any,
    ) -> Tensor:
        """Draws the frames between those of videos, for a model of clips at the higher rate.

        Args:
            video: `(b, c, f, h, w)`, at least two frames, in the range of the clips or uint8.
            factor: How many times as many frames there are in the same time, at least 2.
            overlap: As in `extend`; None for half a window, or for fewer frames, such that each
                window has given frames on both sides of those it draws.
            weight: Weight w_r of the known frames in the guidance; 0 for replacement alone. None
                for 2, or, in a model with `frame_noise`, for known frames without noise instead.
            given_noise: For a model with `frame_noise`, noise of the known frames, `sigma / alpha`:
                a little, 0.02 to 0.1, say, for long rollouts; 0 for hardly any.
            **sampling: As in `extend`.

        Returns:
            `(b, c, (f - 1) * factor + 1, h, w)`, the given frames at every `factor`-th place, in
            the range of `sample`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If shapes don't fit the model, or no window has room for two given frames.
        """
        completion = Completion(self, "interpolate_frames", weight, sampling, overlap, given_noise)
        return completion.interpolate_frames(video, factor)

    def upsample(
        self,
        video: Tensor,
        image_size: int | tuple[int, int] | None = None,
        *,
        frame_factor: int = 1,
        overlap: int | None = None,
        weight: float | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Draws videos at a higher resolution, for a model of clips at that resolution.

        Args:
            video: `(b, c, f, h', w')` of any length, in the range of the clips or uint8.
            image_size: Height and width of the result, an int or `(h, w)`; None for those of the
                training clips.
            frame_factor: How many times as many frames there are in the same time.
            overlap: As in `extend`.
            weight: Weight w_r of the low resolution in the guidance, for each pixel of the result
                that a small one is made of; None for 2.
            **sampling: As in `extend`.

        Returns:
            `(b, c, (f - 1) * frame_factor + 1, h, w)` in the range of `sample`, which, shrunk
            bilinearly and with every `frame_factor`-th frame, is close to `video`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If shapes don't fit the model, there is nothing to make larger, the weight
                is not positive, or the model has `given_frames`: it takes `extend`, with
                `low_resolution`.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> diffusion.upsample(torch.rand(1, 3, 4, 8, 8), frame_factor=2, progress=False).shape
            torch.Size([1, 3, 7, 16, 16])
        """
        sampling |= given({"image_size": image_size})
        completion = Completion(self, "upsample", weight, sampling, overlap)
        return completion.upsample(video, frame_factor)

    def inpaint(
        self,
        video: Tensor,
        mask: Tensor,
        *,
        overlap: int | None = None,
        weight: float | None = None,
        given_noise: float = 0.0,
        **sampling: Any,
    ) -> Tensor:
        """Draws the missing part of videos.

        Args:
            video: `(b, c, f, h, w)` of any length, in the range of the clips or uint8. Values
                outside the known part are ignored, even NaN.
            mask: Boolean, **true where the video is known** and kept, false where it is drawn:
                for each value `(b, c, f, h, w)`, with 1 for an axis along which it is the same; or
                by frame and pixel `(f, h, w)`, by pixel `(h, w)`, or by frame `(f,)`.
            overlap: As in `extend`.
            weight: Weight w_r of the known part in the guidance; 0 for replacement alone. None for
                2, or, where whole frames are known, in a model with `frame_noise`, for frames
                without noise instead.
            given_noise: For a model with `frame_noise`, noise of the known frames, `sigma / alpha`:
                a little, 0.02 to 0.1, say, for long rollouts; 0 for hardly any.
            **sampling: As in `extend`.

        Returns:
            `(b, c, f, h, w)`, equal to `video` where the mask is true, in the range of `sample`.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If shapes don't fit each other or the model.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
            >>> video, kept = torch.rand(1, 3, 4, 16, 16), torch.ones(16, 16, dtype=torch.bool)
            >>> kept[4:8, 4:8] = False
            >>> torch.equal(diffusion.inpaint(video, kept, progress=False)[..., 8:], video[..., 8:])
            True
        """
        return Completion(self, "inpaint", weight, sampling, overlap, given_noise).inpaint(
            video, mask
        )

    def roll_out(
        self,
        video: Tensor,
        num_frames: int,
        *,
        steps: int = 20,
        lag: int | None = None,
        overlap: int | None = None,
        spacing: str = "spectrum",
        given_noise: float = 0.0,
        cond_scale: CondScale = 1.0,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        progress: bool = True,
        **conditions: Any,
    ) -> Tensor:
        """Continues videos to any length, each frame at a pace of its own (Chen et al. 2024).

        For a model trained with `frame_noise`. The frames in front are almost clean while those
        behind are still noise, the pyramid of Chen et al. 2024, section 4.2: a frame is drawn
        knowing roughly what comes after it, and there are no windows with seams. `extend` draws all
        frames of a window at once instead.

        Args:
            video: `(b, c, f, h, w)` of any length, in the range of the clips or uint8.
            num_frames: Frames of the result.
            steps: Steps of each frame.
            lag: After how many steps the next frame begins; None for the least with which the
                frames that are being drawn fit into a clip beside the overlap.
            overlap: Clean frames before these that the network sees; None for half of a clip.
            spacing: Spacing of the steps, as in `Sampler`.
            given_noise: Noise of the clean frames, as in `extend`.
            cond_scale: As in `sample`.
            seed: As in `sample`.
            generator: As in `sample`.
            progress: Whether to show a progress bar.
            **conditions: By keyword of `sample`, as in `extend`.

        Returns:
            `(b, c, num_frames, h, w)`, beginning with `video`, in the range of `sample`.

        Raises:
            TypeError: If a condition is unknown.
            ValueError: If the model has no `frame_noise`, shapes don't fit it, or the lag is too
                small for its clips.

        Example:
            >>> from video_diffusion_pytorch import GaussianDiffusion, Unet3D
            >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
            >>> diffusion = GaussianDiffusion(
            ...     unet, image_size=16, num_frames=4, timesteps=30, frame_noise="independent"
            ... )
            >>> first = diffusion.sample(batch_size=2, steps=3, progress=False)
            >>> diffusion.roll_out(first, num_frames=9, steps=4, progress=False).shape
            torch.Size([2, 3, 9, 16, 16])
        """
        options = given({"cond_scale": cond_scale, "seed": seed, "generator": generator})
        completion = Completion(
            self, "roll_out", None, {**options, **conditions}, overlap, given_noise
        )
        return Rollout(completion, steps, lag, spacing).run(video, num_frames, progress)

    # files

    def _to_share(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        # without a wrapper, whose names a loaded model would not have
        network = unwrap(self.denoise_fn)
        if type(network) is not self._classes["unet"]:
            raise ValueError(
                "save_pretrained: the network of a GaussianDiffusion must be a Unet3D, got "
                f"{type(network).__name__}, which from_pretrained could not build; save "
                "state_dict() with torch.save, and build the network yourself before you load it"
            )
        tensors = {
            name: value
            for name, value in self.state_dict().items()
            if not name.startswith(NETWORK_PREFIX)
        }
        for name, value in network.state_dict().items():
            tensors[NETWORK_PREFIX + name] = value
        clips = self.clip_info.to_config()
        return {"diffusion": self.config, "unet": network.config, "clips": clips}, tensors

    def _describe_clips(self) -> str:
        lines = [f"- {name}: {text}\n" for name, text in self.clip_info.in_words().items()]
        return "".join(["\nTrained on clips with\n\n", *lines]) if lines else ""

    @classmethod
    def _build(cls, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> GaussianDiffusion:
        network = cls._classes["unet"](**config["unet"])
        model = cls(network, **{**config["diffusion"], **overrides})
        model.clip_info = ClipInfo.from_config(config.get("clips"))
        return model


def guided(denoise_fn: nn.Module) -> Any:
    """The denoiser's `forward_with_cond_scale`, which runs compiled if the denoiser is."""
    method: Any = unwrap(denoise_fn).forward_with_cond_scale
    # the attributes of a compiled module are its own module's, and its call is the compiled one
    is_compiled = hasattr(denoise_fn, "_orig_mod") and hasattr(method, "__func__")
    return MethodType(method.__func__, denoise_fn) if is_compiled else method


def batches(count: int, most: int) -> list[slice]:
    """Rows of the batches of at most `most` videos that `count` videos are drawn in."""
    return [slice(i, min(i + most, count)) for i in range(0, count, most)]
