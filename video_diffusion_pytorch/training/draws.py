"""Random draws per clip: time steps, noise and masks from the clip's seed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.noise_schedule import ForwardProcess

# The fractional part of the golden ratio: its multiples fill an interval evenly, however many
_GOLDEN = 0.6180339887498949


class ClipDraws:
    """Draws time steps, noise, and which clips drop their conditions or focus on the present.

    A clip's draws depend on its seed only: not on the batch, the number of processes or earlier
    draws. So runs on one and on eight devices train on the same noisy clips, and a resumed run
    repeats them.

    Args:
        diffusion: The model. If its class overrides `draw_times`, or has a `forward` or `p_losses`
            with an older signature, it draws itself, from the global generators.
    """

    def __init__(self, diffusion: GaussianDiffusion) -> None:
        own = inspect.signature(type(diffusion).forward).parameters
        loss = inspect.signature(type(diffusion).p_losses).parameters
        network = inspect.signature(unwrap(diffusion.denoise_fn).forward).parameters
        self.is_supported = (
            "t" in own
            and {"reduction", "drop_mask"} <= own.keys() & loss.keys()
            and type(diffusion).draw_times is ForwardProcess.draw_times
        )
        self.diffusion = diffusion
        self._can_drop = "drop_mask" in network and bool(diffusion.condition_names)
        self._can_focus = "focus_present_mask" in network

    def __call__(
        self, seeds: Sequence[int], num_frames: int, prob_focus_present: float = 0.0
    ) -> dict[str, Any]:
        """Keywords of the diffusion's `forward` for clips with these seeds.

        Args:
            seeds: One per clip.
            num_frames: Frames of a clip plus its images.
            prob_focus_present: Probability that the frames of a clip do not attend to each other.

        Returns:
            `t` `(b,)`, `noise` `(b, c, num_frames, h, w)`, `reduction="none"`, and the boolean
            masks `(b,)` that the network takes; empty for a model that draws itself.
        """
        if not self.is_supported:
            return {}
        generator = torch.Generator()
        numbers = torch.empty(len(seeds), 3, dtype=torch.float64)
        for row, seed in zip(numbers, seeds, strict=True):
            row.uniform_(generator=generator.manual_seed(_mixed(seed, 0)))
        drawn = self._given(numbers[:, 0], seeds, num_frames)
        device = self.diffusion.betas.device
        if self._can_drop:
            dropped = numbers[:, 1] < self.diffusion.cond_drop_prob
            drawn["drop_mask"] = dropped.to(device, non_blocking=True)
        if self._can_focus and prob_focus_present:
            focused = numbers[:, 2] < prob_focus_present
            drawn["focus_present_mask"] = focused.to(device, non_blocking=True)
        return drawn

    def fixed(self, numbers: Sequence[int], num_frames: int) -> dict[str, Any]:
        """Draws for validation: nothing is dropped, and time steps are spread evenly.

        Args:
            numbers: Numbers of the draws, from 0; each has the same time step and noise in every
                run.
            num_frames: Frames of a clip.

        Returns:
            As `__call__`; empty for a model that draws itself.
        """
        if not self.is_supported:
            return {}
        fractions = torch.tensor([(0.5 + n * _GOLDEN) % 1 for n in numbers], dtype=torch.float64)
        drawn = self._given(fractions, numbers, num_frames)
        if self._can_drop:
            drawn["drop_mask"] = torch.zeros(
                len(numbers), dtype=torch.bool, device=drawn["t"].device
            )
        return drawn

    def _given(self, fractions: Tensor, seeds: Sequence[int], num_frames: int) -> dict[str, Any]:
        """Time steps at fractions of the schedule in [0, 1), and noise."""
        betas, steps = self.diffusion.betas, self.diffusion.num_timesteps
        if self.diffusion.is_continuous:
            t = (fractions * steps - 1).to(betas.dtype)
        else:
            t = (fractions * steps).long().clamp(max=steps - 1)
        c, _, h, w = self.diffusion.clip_shape
        noise = torch.empty(len(seeds), c, num_frames, h, w, device=betas.device, dtype=betas.dtype)
        generator = torch.Generator(betas.device)
        for clip, seed in zip(noise, seeds, strict=True):
            clip.normal_(generator=generator.manual_seed(_mixed(seed, 1)))
        return {"t": t.to(betas.device, non_blocking=True), "noise": noise, "reduction": "none"}


def _mixed(seed: int, stream: int) -> int:
    """Mixes a seed and a stream into a well-distributed seed (splitmix64, Steele et al. 2014).

    CPU generators use the lower 32 bits only, and similar seeds give similar first numbers.
    """
    z = (seed * 2 + stream + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return (z ^ (z >> 31)) >> 1
