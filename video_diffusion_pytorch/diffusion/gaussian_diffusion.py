"""A clip in, a loss out; noise in, a video out: the diffusion around a denoising network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.completion import Completion
from video_diffusion_pytorch.diffusion.conditions import given, unwrap
from video_diffusion_pytorch.diffusion.config import CONFIG, plain_config
from video_diffusion_pytorch.diffusion.noise_schedule import CONTINUOUS, make_betas
from video_diffusion_pytorch.diffusion.trained_for import remember_training
from video_diffusion_pytorch.diffusion.training_loss import TrainingLoss
from video_diffusion_pytorch.diffusion.value_range import Bound
from video_diffusion_pytorch.hub import NETWORK_PREFIX, Shareable


class GaussianDiffusion(Completion, TrainingLoss, Shareable, part="diffusion"):
    """Trains a denoiser, and samples from it (Ho et al. 2020; for video Ho et al. 2022).

    Args:
        denoise_fn: The network: called with `(x_t, t, cond=...)` it predicts what `objective` says,
            and so does its method `forward_with_cond_scale`, with `cond_scale` besides. Conditions
            of other names reach it only where they are given. It may be wrapped (DataParallel,
            DDP, torch.compile), and replaced later.
        image_size: Height and width of the clips, an int or `(h, w)`.
        num_frames: Frames of a clip.
        text_use_bert_cls: Whether captions become BERT's [CLS] state instead of the mean state;
            without effect on a network that takes the states themselves.
        channels: Channels of the clips; None for `denoise_fn.channels`.
        timesteps: Number of steps of the schedule.
        loss_type: `"l1"`, `"l2"` or `"huber"` (square below 1, linear above), between the
            prediction and its target.
        use_dynamic_thres: Whether samples are clipped at a percentile of their own values instead
            of at 1 (Saharia et al. 2022, section 2.3).
        dynamic_thres_percentile: That percentile, as a fraction in [0, 1].
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
        objective: What the network predicts: `"pred_noise"`, `"pred_x_start"`, or `"pred_v"`, for
            `v = alpha * noise - sigma * x_start` (Salimans and Ho 2022).
        beta_schedule: `"cosine"` (Nichol and Dhariwal 2021), `"linear"` (Ho et al. 2020),
            `"sigmoid"` (Jabri et al. 2022), or `timesteps` variances of your own. With
            `"continuous_cosine"`, the schedule of Ho et al. 2022, times are real numbers in
            training, and the log-SNR is between -20 and 20.
        min_snr_gamma: Weighs the loss of each clip by its noise level, so that low noise does not
            rule training (Hang et al. 2023, whose value is 5); None for equal weights.
        sampling_timesteps: Number of steps that samples take; None for all, or what suits the
            sampler. With fewer than `timesteps`, `sample` uses ddim.
        ddim_sampling_eta: How much noise ddim adds in each step: 0 for none, 1 for as much as ddpm.

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
        objective: str = "pred_noise",
        beta_schedule: str | Sequence[float] | Tensor = "cosine",
        min_snr_gamma: float | None = None,
        sampling_timesteps: int | None = None,
        ddim_sampling_eta: float = 0.0,
    ) -> None:
        if channels is None:
            channels = getattr(unwrap(denoise_fn), "channels", 3)
        config = plain_config({name: value for name, value in locals().items() if name in CONFIG})
        betas = make_betas(beta_schedule, config["timesteps"])
        by_name = isinstance(beta_schedule, str)
        config["beta_schedule"] = str(beta_schedule) if by_name else tuple(betas.tolist())
        super().__init__(betas, config["beta_schedule"] == CONTINUOUS)
        self.config = config
        self.denoise_fn = denoise_fn
        # each is an attribute, but for the schedule, of which the buffers are
        for name in CONFIG:
            if name not in ("timesteps", "beta_schedule"):
                setattr(self, name, config[name])
        self._check_given_frames()
        self._set_ranges(value_range, cond_value_range, self._field_channels())
        remember_training(self, self.objective)

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

        Conditions are tensors, arrays or lists of numbers, with one row per clip; which of them
        there must be is a matter of the network.

        Args:
            x: Clips, `(b, c, f, h, w)`: in [0, 1], or uint8, or in `value_range`, or, if
                `auto_normalize` is False, in their own range.
            *args: As in `p_losses`, after `t`: `cond` and `noise`. `cond` is a tensor of vectors,
                `(b, cond_dim)`, or of states of text, `(b, n, cond_dim)`, whichever the network
                takes; or a list of `b` captions, None where there is no caption.
            labels: Classes, integers `(b,)`, -1 for none.
            frame_cond: A vector per frame, `(b, f, frame_cond_dim)`.
            cond_video: A field, `(b, n, f, h, w)`, or `(b, n, h, w)` for all frames alike: uint8,
                or in `cond_value_range`, or without that range as the network takes it.
            first_frames: What a model with `given_frames` is told instead of the clips' own first
                frames, `(b, c, given_frames, h, w)` in the range of the clips; None for their own.
            null_cond_mask: Boolean `(b,)`: where true, `cond` is as if there were none.
            cond_mask: Of states of text, boolean `(b, n)`, true where there is a token; None for
                all. Captions bring their own.
            images: `k` images for each clip, `(b, c, k, h, w)`, in the range of the clips, to be
                learned from besides (Ho et al. 2022, section 4.3.1, where `k` is up to 8); None
                for none. They share the clip's noise level, and see no other frame.
            image_conditions: Conditions of the images, of those that the clips have: `cond`
                `(b, k, cond_dim)`, states `(b, k, n, cond_dim)` with a `cond_mask` `(b, k, n)`, or
                `b` lists of `k` captions, `labels` `(b, k)`, `frame_cond` `(b, k, d)`,
                `cond_video` `(b, n, k, h, w)`. Images that are told nothing learn without
                condition.
            t: Time steps, `(b,)`: whole, from 0 to `num_timesteps - 1`, or, with a continuous
                schedule, real, from -1. None to draw them. On a GPU their range is not checked.
            drop_mask: Boolean `(b,)`: where true, a clip is told none of its conditions; for a
                denoiser whose `forward` takes it, as `Unet3D`'s does. None to draw it with
                `cond_drop_prob`.
            reduction: `"mean"` for one number, `"none"` for one per clip.
            frame_mask: Boolean `(b, f)`, false where a frame is padding, which the loss leaves out:
                that of a clip is the mean over its real frames, and its images, and 0 if there are
                none. The network sees the padding as it sees other frames. None if all are real.
            **kwargs: As in `p_losses`.

        Returns:
            The mean loss, a scalar, or with `reduction="none"` the loss of each clip, `(b,)`, by
            `min_snr_gamma` weighed, whose mean it is.

        Raises:
            TypeError: If a condition cannot become a tensor.
            ValueError: If shapes are not those of the model's clips and conditions, if `t` is
                outside the schedule, or if `reduction` is unknown.
        """
        self.check_clips(x)
        kwargs |= given(
            labels=labels,
            frame_cond=frame_cond,
            cond_video=cond_video,
            first_frames=first_frames,
            null_cond_mask=null_cond_mask,
            cond_mask=cond_mask,
            drop_mask=drop_mask,
            frame_mask=frame_mask,
        )
        if reduction != "mean":
            # a subclass that is written for the reference knows none
            kwargs["reduction"] = reduction
        x_start = self._to_model_range(x)
        if images is not None:
            self.check_images(images, x)
            x_start = torch.cat((x_start, self._to_model_range(images)), dim=2)
            kwargs |= {"image_frames": images.shape[2], "image_conditions": image_conditions}
        elif image_conditions:
            raise ValueError(
                "GaussianDiffusion: image_conditions must go with images, got "
                f"{', '.join(image_conditions)} and no images; pass both, or neither"
            )
        t = self.draw_times(x.shape[0]).to(x.device) if t is None else self._checked_times(t, x)
        return self.p_losses(x_start, t, *args, **kwargs)

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
        return {"diffusion": self.config, "unet": network.config}, tensors

    @classmethod
    def _build(cls, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> GaussianDiffusion:
        network = cls._classes["unet"](**config["unet"])
        return cls(network, **{**config["diffusion"], **overrides})
