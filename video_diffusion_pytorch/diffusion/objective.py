"""Objectives and losses: targets, distances and loss weighting."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess

OBJECTIVES = ("pred_noise", "pred_v", "pred_x_start", "flow", "edm")
LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss, "huber": F.smooth_l1_loss}


def network_input(
    objective: str, process: ForwardProcess, x_t: Tensor, t: Tensor, sigma_data: Any
) -> Tensor:
    """The noisy videos as the network takes them.

    Those of EDM, whose noise has any size, are divided by the standard deviation that they have,
    `x_t / sqrt(sigma ** 2 + sigma_data ** 2)` (Karras et al. 2022, table 1).

    Args:
        objective: One of `OBJECTIVES`.
        process: The forward process.
        x_t: Noisy videos, `(b, c, f, h, w)`.
        t: Their time steps, `(b,)` or `(b, f)`.
        sigma_data: Standard deviation of the clean videos, which EDM needs.
    """
    if objective != "edm":
        return x_t
    _, sigma = process.signal_and_noise(t, x_t.shape)
    return x_t / (sigma**2 + sigma_data**2).sqrt()


def target_of(
    objective: str,
    process: ForwardProcess,
    x_start: Tensor,
    t: Tensor,
    noise: Tensor,
    sigma_data: Any = None,
) -> Tensor:
    """The target of the network, of the shape of `x_start`.

    That of flow matching is the velocity of the straight path, `noise - x_start` (Liu et al. 2022,
    eq. 1, towards the noise). That of EDM is what its preconditioning leaves to the network,
    `(x_start - c_skip * x_t) / c_out` (Karras et al. 2022, eq. 8), written so that nothing cancels;
    with their loss weight `1 / c_out ** 2` the squared error of this counts in full at all levels.
    """
    if objective == "pred_v":
        return process.predict_v(x_start, t, noise)
    if objective == "flow":
        return noise - x_start
    if objective == "edm":
        _, sigma = process.signal_and_noise(t, x_start.shape)
        length = sigma_data * (sigma**2 + sigma_data**2).sqrt()
        return (sigma * x_start - sigma_data**2 * noise) / length
    return noise if objective == "pred_noise" else x_start


def x_start_of(
    objective: str,
    process: ForwardProcess,
    output: Tensor,
    x_t: Tensor,
    t: Tensor,
    sigma_data: Any = None,
) -> Tensor:
    """The clean video that the network's output stands for."""
    if objective == "pred_v":
        return process.predict_start_from_v(x_t, t, output)
    if objective == "pred_noise":
        return process.predict_start_from_noise(x_t, t, output)
    if objective == "flow":
        alpha, sigma = process.signal_and_noise(t, x_t.shape)
        return (x_t - sigma * output) / (alpha + sigma)
    if objective == "edm":
        _, sigma = process.signal_and_noise(t, x_t.shape)
        variance = sigma**2 + sigma_data**2
        return sigma_data**2 / variance * x_t + sigma * sigma_data / variance.sqrt() * output
    return output


def min_snr_weight(objective: str, log_snr: Tensor, gamma: float) -> Tensor:
    """Loss weighting that keeps low noise from dominating training (Hang et al. 2023, eq. 8).

    In the space of `x_start` the weights are `min(snr, gamma)`. A squared error of the noise is
    `snr` times, one of v `snr + 1` times, and one of the velocity of flow matching
    `(sqrt(snr) + 1) ** 2` times that of `x_start`; the weights are divided by that.

    Args:
        objective: One of `OBJECTIVES` but EDM, which has a weighting of its own.
        log_snr: Of each video, `(b,)`, or of each frame, `(b, f)`.
        gamma: The largest SNR that counts in full; the paper's is 5.

    Returns:
        Of the shape of `log_snr`.
    """
    snr = log_snr.exp()
    capped = snr.clamp(max=gamma)
    if objective == "pred_x_start":
        return capped
    # gamma / snr where that is less than 1: a tiny SNR would give NaN
    if objective == "pred_noise":
        return (gamma * torch.exp(-log_snr)).clamp(max=1)
    if objective == "flow":
        return capped * torch.sigmoid(-log_snr / 2) ** 2
    return capped / (snr + 1)


def distance(
    loss_type: str,
    output: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    mask: Tensor | None = None,
) -> Tensor:
    """The distance of predictions from their targets.

    Args:
        loss_type: One of `LOSSES`.
        output: Of the network, `(b, ...)`.
        target: Of the same shape.
        weight: Of each video, `(b,)`, or of each frame of videos, `(b, f)`; None for 1.
        reduction: `"mean"` or `"none"`.
        mask: Boolean, broadcast against videos `(b, c, f, h, w)`: the loss of each is the mean over
            the values where it is true, 0 without any; None for all.

    Returns:
        The mean loss, a scalar, or, for `"none"`, the loss of each video, `(b,)`, whose mean it is.
    """
    if weight is None and reduction == "mean" and mask is None:
        return LOSSES[loss_type](output, target)
    each = LOSSES[loss_type](output, target, reduction="none")
    if mask is not None:
        # the mean over all values of this is that over the real ones
        counts = mask.flatten(1).sum(dim=1).clamp(min=1)
        share = counts / mask[0].numel()
        each = each * mask / share.view(-1, 1, 1, 1, 1)
    if weight is not None and weight.ndim == 2:
        each, weight = each * weight[:, None, :, None, None], None
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
