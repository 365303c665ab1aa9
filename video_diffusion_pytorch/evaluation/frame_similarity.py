"""Similarity of predicted and real frames: PSNR, SSIM and LPIPS."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork

SIMILARITIES = ("psnr", "ssim")
"""Measures of torchmetrics without a network."""

LPIPS_NETWORKS = ("alex", "vgg", "squeeze")
"""Networks of torchmetrics' LPIPS, whose weights torchvision downloads on first use."""

MOST_PSNR = 100.0
"""PSNR in dB of frames that are predicted exactly, which would be infinite."""

_WINDOW = 11  # pixels of SSIM's window


class FrameSimilarity:
    """Mean similarity of predicted to real frames, by torchmetrics.

    Args:
        measures: Names in `SIMILARITIES`.
        lpips: A name in `LPIPS_NETWORKS`; or a TorchScript file or a function that maps two batches
            of images, `(b, 3, h, w)` in [-1, 1], to their distances, `(b,)`. None for no LPIPS.
        size: Height and width of the frames.
        channels: Number of channels of the frames.
        name: As in `FeatureNetwork`, for a `lpips` that is a function.

    Raises:
        ValueError: If torchmetrics is missing, a measure is unknown, or the frames are too small or
            have the wrong number of channels.

    Example:
        >>> similarity = FrameSimilarity(("psnr",), size=(16, 16), channels=1)
        >>> real = torch.full((2, 1, 3, 16, 16), 0.5)
        >>> similarity.add(real + 0.1, real)
        >>> round(similarity.compute()["psnr"], 3)
        20.0
    """

    def __init__(
        self,
        measures: Sequence[str] = SIMILARITIES,
        *,
        lpips: str | os.PathLike[str] | Callable[..., Any] | None = None,
        size: tuple[int, int],
        channels: int,
        name: str | None = None,
    ) -> None:
        _check(measures, lpips is not None, size, channels)
        self.measures, self._lpips = tuple(measures), lpips
        self._pairs: Callable[[Tensor, Tensor], Tensor] | None = None
        self.protocol: dict[str, Any] = {"measures": list(measures), "most_psnr": MOST_PSNR}
        if isinstance(lpips, str) and lpips in LPIPS_NETWORKS:
            self.protocol["lpips"] = f"torchmetrics, {lpips}"
        elif lpips is not None:
            network = FeatureNetwork(lpips, name=name)
            self.protocol["lpips"] = network.identity
            self._pairs = network.network
        self._names = [*measures, *["lpips"] * (lpips is not None)]
        self._sums = torch.zeros(len(self._names) + 1, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(self, predicted: Tensor, real: Tensor) -> None:
        """Adds the predicted frames of a batch.

        Args:
            predicted: `(b, c, f, h, w)` in [0, 1].
            real: The real frames, likewise.
        """
        ours, theirs = (v.float().movedim(2, 1).flatten(0, 1) for v in (predicted, real))
        if not len(ours):
            return
        # torchmetrics makes tensors on torch's default device
        with ours.device:
            sums = [_measure(measure, ours, theirs) for measure in self.measures]
            if self._lpips is not None:
                sums.append(self._distances(ours, theirs))
        self._sums += torch.tensor([*sums, len(ours)], dtype=torch.float64, device="cpu")

    def _distances(self, ours: Tensor, theirs: Tensor) -> float:
        if self._pairs is None:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            net: Any = self._lpips
            metric = LearnedPerceptualImagePatchSimilarity(net, reduction="sum")
            self._pairs = metric.to(ours.device)
        if isinstance(self._pairs, torch.nn.Module):
            self._pairs.to(ours.device)
        pair = (frames.expand(-1, 3, -1, -1).clamp(0, 1) * 2 - 1 for frames in (ours, theirs))
        return self._pairs(*pair).sum().item()

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Computes the means over the frames of all processes.

        Args:
            total: Sums over the processes a tensor that every process has.

        Returns:
            As `compute`.
        """
        *sums, count = total(self._sums).tolist()
        return {name: value / count for name, value in zip(self._names, sums, strict=True)}

    def compute(self) -> dict[str, float]:
        """Computes the means of `psnr` in dB, `ssim` and `lpips`, a distance."""
        return self.over_processes(lambda sums: sums)


def _measure(measure: str, ours: Tensor, theirs: Tensor) -> float:
    """Computes the sum of a measure over frames."""
    from torchmetrics.functional import image

    each: Any
    if measure == "psnr":
        options: dict[str, Any] = {"reduction": "none", "dim": (1, 2, 3)}
        each = image.peak_signal_noise_ratio(ours, theirs, data_range=1.0, **options)
        each = each.clamp(max=MOST_PSNR)
    else:
        options = {"reduction": "none", "kernel_size": _WINDOW}
        each = image.structural_similarity_index_measure(ours, theirs, data_range=1.0, **options)
    return each.double().sum().item()


def _check(measures: Sequence[str], has_lpips: bool, size: tuple[int, int], channels: int) -> None:
    for measure in measures:
        if measure not in SIMILARITIES:
            raise ValueError(
                f"FrameSimilarity: measures must be among {', '.join(SIMILARITIES)}, got "
                f"{measure!r}; LPIPS has an argument of its own"
            )
    if "ssim" in measures and min(size) < _WINDOW:
        raise ValueError(
            f"FrameSimilarity: for SSIM frames must have at least {_WINDOW} x {_WINDOW} pixels, "
            f"got {size[0]} x {size[1]}; leave 'ssim' out of the measures"
        )
    if has_lpips and channels not in (1, 3):
        raise ValueError(
            f"FrameSimilarity: for LPIPS frames must have 1 or 3 channels, got {channels}; leave "
            "lpips out"
        )
    try:
        import torchmetrics  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            "FrameSimilarity: PSNR, SSIM and LPIPS must have torchmetrics, got none; install it, "
            "as in: pip install 'video-diffusion-pytorch[evaluate]'"
        ) from error
