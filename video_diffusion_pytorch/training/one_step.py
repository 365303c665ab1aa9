"""A deterministic forecast, as a baseline: a network that predicts the next frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.batches import (
    Draw,
    SeededItems,
    collate,
    unpack_batch,
)

# Settings of a network that belong to its conditions
_NO_CONDITIONS: dict[str, Any] = {
    "cond_dim": None,
    "use_bert_text_cond": False,
    "num_classes": None,
    "frame_cond_dim": None,
    "cond_channels": 0,
    "num_text_tokens": None,
    "text_pooling": "mean",
}


class OneStepForecast(nn.Module):
    """A network that predicts the change from the last of some frames to the next one.

    It has the size of a model's network, and is trained by the mean squared error of one step in
    the model's range of values. Of what cannot be known it predicts the mean, so its long forecasts
    become smooth.

    Args:
        diffusion: The model; its range of values, and the settings of its network except for the
            conditions, are used.
        known: Number of frames that the network sees.

    Example:
        >>> from video_diffusion_pytorch import Unet3D
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, channels=1)
        >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
        >>> model = OneStepForecast(diffusion, known=2)
        >>> loss = model(torch.rand(2, 1, 5, 16, 16))
        >>> model.forecast(torch.rand(2, 1, 2, 16, 16), num_frames=3).shape
        torch.Size([2, 1, 3, 16, 16])
    """

    def __init__(self, diffusion: GaussianDiffusion, known: int) -> None:
        super().__init__()
        own = unwrap(diffusion.denoise_fn)
        settings: Any = own.config
        self.network = type(own)(**{**settings, **_NO_CONDITIONS}).to(diffusion.betas.device)
        self.known = known
        # not a part of this module
        self._ranges = (diffusion,)

    def forward(self, x: Tensor) -> Tensor:
        """The mean squared error of each frame that follows `known` others.

        Args:
            x: Clips, `(b, c, f, h, w)`, at least one frame longer than `known`; NaN where values
                are missing.
        """
        filled, is_there = self._ranges[0].fill_missing(x)
        clips = self._ranges[0].to_model_range(filled)
        count = clips.shape[2] - self.known
        windows = [clips[:, :, i : i + self.known] for i in range(count)]
        error = self._next(torch.cat(windows)) - torch.cat(
            [clips[:, :, self.known + i] for i in range(count)]
        )
        if is_there is not None:
            seen = torch.cat([is_there[:, :, self.known + i] for i in range(count)])
            return error.square().masked_fill(~seen, 0.0).sum() / seen.sum().clamp(min=1)
        return error.square().mean()

    @torch.no_grad()
    def forecast(self, initial_frames: Tensor, num_frames: int) -> Tensor:
        """Predicts frame by frame, each from those before it.

        Args:
            initial_frames: `(b, c, k, h, w)`, at least `known` frames, in the range of the clips.
            num_frames: Number of frames to predict.

        Returns:
            `(b, c, num_frames, h, w)`.
        """
        video = self._ranges[0].to_model_range(self._ranges[0].fill_missing(initial_frames)[0])
        for _ in range(num_frames):
            video = torch.cat((video, self._next(video[:, :, -self.known :])[:, :, None]), dim=2)
        return self._ranges[0].to_data_range(video[:, :, -num_frames:])

    def _next(self, frames: Tensor) -> Tensor:
        """The frame after frames `(b, c, known, h, w)`, in the range of the model."""
        time = torch.zeros(len(frames), device=frames.device)
        found: Tensor = self.network(frames, time)
        return frames[:, :, -1] + found[:, :, -1]


def train_one_step(
    diffusion: GaussianDiffusion,
    dataset: Any,
    known: int,
    steps: int,
    *,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    seed: int = 0,
    num_workers: int = 0,
    progress: bool = True,
) -> OneStepForecast:
    """Trains a `OneStepForecast` with AdamW, and a cosine schedule of the learning rate.

    Args:
        diffusion: As for `OneStepForecast`.
        dataset: The training clips; each has at least one frame more than `known`, and all windows
            of them are used.
        known: As for `OneStepForecast`.
        steps: Number of training steps.
        batch_size: Clips per step.
        learning_rate: Of AdamW.
        seed: Of the weights, the order of the clips, and their random parts.
        num_workers: Number of worker processes that read clips.
        progress: Whether to show a progress bar.

    Returns:
        The model, in evaluation mode.
    """
    device = diffusion.betas.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        model = OneStepForecast(diffusion, known)
        optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, learning_rate, total_steps=steps + 1, pct_start=0.05
        )
        chosen = torch.randint(len(dataset), (steps, batch_size), device="cpu").tolist()
        draws = [
            [Draw(index, step * batch_size + row) for row, index in enumerate(rows)]
            for step, rows in enumerate(chosen)
        ]
        loader: DataLoader[Any] = DataLoader(
            SeededItems(dataset), batch_sampler=draws, num_workers=num_workers, collate_fn=collate
        )
        for batch in tqdm(loader, desc="one-step network", disable=not progress, leave=False):
            videos, _ = unpack_batch(batch)
            loss = model(videos.to(device))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()
