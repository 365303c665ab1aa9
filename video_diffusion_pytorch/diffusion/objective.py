"""Objectives and losses: targets, distances and loss weighting."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess

OBJECTIVES = ("pred_noise", "pred_v", "pred_x_start")
LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.smooth_l1_loss}


def target_of(
    objective: str, process: ForwardProcess, x_start: Tensor, t: Tensor, noise: Tensor
) -> Tensor:
    """The target of the network, of the shape of `x_start`."""
    if objective == "pred_v":
        return process.predict_v(x_start, t, noise)
    return noise if objective == "pred_noise" else x_start


def x_start_of(
    objective: str, process: ForwardProcess, output: Tensor, x_t: Tensor, t: Tensor
) -> Tensor:
    """The clean video that the network's output stands for."""
    if objective == "pred_v":
        return process.predict_start_from_v(x_t, t, output)
    if objective == "pred_noise":
        return process.predict_start_from_noise(x_t, t, output)
    return output


def min_snr_weight(objective: str, log_snr: Tensor, gamma: float) -> Tensor:
    """Loss weighting that keeps low noise from dominating training (Hang et al. 2023, eq. 8).

    In the space of `x_start` the weights are `min(snr, gamma)`. A squared error of the noise is
    `snr` times, and one of v `snr + 1` times, that of `x_start`; the weights are divided by that.

    Args:
        objective: One of `OBJECTIVES`.
        log_snr: Of each video, `(b,)`.
        gamma: The largest SNR that counts in full; the paper's is 5.

    Returns:
        `(b,)`.
    """
    snr = log_snr.exp()
    capped = snr.clamp(max=gamma)
    if objective == "pred_x_start":
        return capped
    # gamma / snr where that is less than 1: a tiny SNR would give NaN
    if objective == "pred_noise":
        return (gamma * torch.exp(-log_snr)).clamp(max=1)
    return capped / (snr + 1)


def distance(
    loss_type: str,
    output: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    frame_mask: Tensor | None = None,
) -> Tensor:
    """The distance of predictions from their targets.

    Args:
        loss_type: One of `LOSSES`.
        output: Of the network, `(b, ...)`.
        target: Of the same shape.
        weight: Of each video, `(b,)`; None for 1.
        reduction: `"mean"` or `"none"`.
        frame_mask: Of videos `(b, c, f, h, w)`, boolean `(b, f)`: the loss of each is the mean over
            the frames where it is true, 0 without any; None for all.

    Returns:
        The mean loss, a scalar, or, for `"none"`, the loss of each video, `(b,)`, whose mean it is.
    """
    if weight is None and reduction == "mean" and frame_mask is None:
        return LOSSES[loss_type](output, target)
    each = LOSSES[loss_type](output, target, reduction="none")
    if frame_mask is not None:
        # the mean over all frames of this is that over the real ones
        share = frame_mask.sum(dim=1, keepdim=True).clamp(min=1) / frame_mask.shape[1]
        each = each * (frame_mask / share)[:, None, :, None, None]
    if weight is None and reduction == "mean":
        return each.mean()
    each = each.flatten(1).mean(dim=1)
    if weight is not None:
        each = each * weight
    return each.mean() if reduction == "mean" else each


def check_reduction(reduction: str) -> None:
    """Raises a ValueError for a reduction that does not exist."""
    if reduction not in ("mean", "none"):
        raise ValueError(
            f"GaussianDiffusion: reduction must be one of mean, none, got {shown(reduction)}; "
            "choose mean for a scalar, or none for the loss of each clip"
        )
