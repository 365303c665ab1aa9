"""Presets: the models of the paper, and a small one, as keywords of this library by name."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from video_diffusion_pytorch.diffusion.samplers import Ancestral


@dataclass(frozen=True)
class Preset:
    """A model of the paper: one column of its appendix A (Ho et al. 2022), with defaults of ours.

    Attributes:
        size: Height and width of the clips, in pixels.
        base_channels: Channels at full resolution.
        multipliers: Factors of the base channels, for each resolution.
        training_steps: Number of training steps.
        frames: Frames of the clips.
        blocks: Residual blocks per resolution.
        attention_at: Resolutions with attention, in pixels.
        head_width: Width of an attention head.
        embedding_layers: Layers of the time embedding, which is 1024 wide.
        dropout: Dropout probability.
        objective: What the network predicts.
        beta2: Adam's beta2; its beta1 is 0.9.
        learning_rate: Adam's learning rate.
        weight_decay: Adam's weight decay.
        batch: Clips per step, of all processes together.
        ema_decay: Decay of the averaged weights.
        image_frames: Images per clip in joint training.
        horizontal_flip: Whether clips are flipped at random.
        sampling_steps: Steps of ancestral sampling.
        gamma: Interpolation of the variance in ancestral sampling.
        langevin_delta: Size of the Langevin step after each sampling step; 0 for none.
        guidance_weight: Weight of reconstruction guidance by given frames (eq. 7) for `predict`;
            None if the paper has none.
        text_encoder: Name for `text.set_text_encoder`; None for a model without captions.
        cond_scale: Scale of classifier-free guidance for `sample`, 1 for none.
    """

    size: int
    base_channels: int
    multipliers: tuple[int, ...]
    training_steps: int
    frames: int = 16
    blocks: int = 2
    attention_at: tuple[int, ...] = (8, 16, 32)
    head_width: int = 64
    embedding_layers: int = 4
    dropout: float = 0.0
    objective: str = "pred_noise"
    beta2: float = 0.99
    learning_rate: float = 3e-4
    weight_decay: float = 0.0
    batch: int = 128
    ema_decay: float = 0.9999
    image_frames: int = 8
    horizontal_flip: bool = False
    sampling_steps: int = 256
    gamma: float = 0.3
    langevin_delta: float = 0.0
    guidance_weight: float | None = None
    text_encoder: str | None = None
    cond_scale: float = 1.0

    @property
    def unet(self) -> dict[str, Any]:
        """Keywords of `Unet3D`."""
        sizes = [self.size // 2**level for level in range(len(self.multipliers))]
        levels = tuple(i for i, size in enumerate(sizes) if size in self.attention_at)
        keywords: dict[str, Any] = {
            "dim": self.base_channels,
            "dim_mults": self.multipliers,
            "blocks_per_level": self.blocks,
            "attn_after_each_block": True,
            "full_attn_levels": levels,
            "temporal_attn_levels": levels,
            "use_sparse_linear_attn": False,
            "attn_heads": None,
            "attn_dim_head": self.head_width,
            "spatial_attn_dim_head": self.head_width,
            "dropout": self.dropout,
            "emb_dim": 1024,
            "emb_layers": self.embedding_layers,
            "time_input": "log_snr",
        }
        if self.text_encoder is not None:
            # BERT-large's states, pooled by attention
            keywords |= {"cond_dim": 1024, "text_pooling": "attention"}
        return keywords

    @property
    def diffusion(self) -> dict[str, Any]:
        """Keywords of `GaussianDiffusion`."""
        return {
            "image_size": self.size,
            "num_frames": self.frames,
            "loss_type": "l2",
            "objective": self.objective,
            "beta_schedule": "continuous_cosine",
        }

    @property
    def trainer(self) -> dict[str, Any]:
        """Keywords of `Trainer`, including those of `Dataset`.

        If the batch is too large for memory, reduce `train_batch_size` and increase
        `gradient_accumulate_every` by the same factor.
        """
        keywords: dict[str, Any] = {
            "train_batch_size": self.batch,
            "split_batches": True,
            "gradient_accumulate_every": 1,
            "train_lr": self.learning_rate,
            "betas": (0.9, self.beta2),
            "optimizer": "adamw" if self.weight_decay else "adam",
            "weight_decay": self.weight_decay,
            "train_num_steps": self.training_steps,
            "ema_decay": self.ema_decay,
            "step_start_ema": 0,
            "update_ema_every": 1,
            "image_frames": self.image_frames,
            "horizontal_flip": self.horizontal_flip,
        }
        if self.text_encoder is not None:
            keywords["conditions"] = "caption"
        return keywords

    @property
    def sampler(self) -> Ancestral:
        """The `sampler` of `diffusion.sample`; its `steps` are `sampling_steps`."""
        return Ancestral(self.gamma, self.langevin_delta)


@dataclass(frozen=True)
class Recipe:
    """Settings of a model by class, as found by `benchmarks/small_recipes.py`.

    Attributes:
        unet: Keywords of `Unet3D`; channels and conditions are those of the clips.
        diffusion: Keywords of `GaussianDiffusion`.
        trainer: Keywords of `Trainer`, including those of `Dataset`.
        sampler: The `sampler` of `diffusion.sample`.
        sampling_steps: Its `steps`.
        cond_scale: Scale of classifier-free guidance for models with conditions.
        guidance_weight: As in `Preset`.
        text_encoder: As in `Preset`.
    """

    unet: dict[str, Any]
    diffusion: dict[str, Any]
    trainer: dict[str, Any]
    sampler: str
    sampling_steps: int
    cond_scale: float
    guidance_weight: float | None = None
    text_encoder: str | None = None


_BERT = "bert-large-uncased"

PRESETS: dict[str, Preset | Recipe] = {
    # what two CPU cores can learn in a few minutes
    "small": Recipe(
        unet={
            "dim": 32,
            "dim_mults": (1, 2),
            "init_kernel_size": 3,
            "attn_heads": 2,
            "attn_dim_head": 16,
        },
        diffusion={
            "image_size": 16,
            "num_frames": 8,
            "timesteps": 1000,
            "loss_type": "l2",
            "objective": "flow",
        },
        trainer={
            "train_batch_size": 8,
            "gradient_accumulate_every": 1,
            "train_lr": 3e-3,
            "betas": (0.9, 0.99),
            "lr_schedule": "cosine",
            "warmup_steps": 30,
            "max_grad_norm": 1.0,
            "train_num_steps": 1000,
            "ema_decay": 0.995,
            "step_start_ema": 100,
            "update_ema_every": 1,
        },
        sampler="dpm++sde",
        sampling_steps=30,
        cond_scale=3.0,
    ),
    "ucf101": Preset(64, 256, (1, 2, 4, 8), 60_000, dropout=0.1, gamma=0.1),
    "bair": Preset(
        64,
        128,
        (1, 2, 3, 4),
        660_000,
        blocks=3,
        embedding_layers=2,
        dropout=0.1,
        objective="pred_v",
        beta2=0.999,
        learning_rate=2e-4,
        weight_decay=0.01,
        ema_decay=0.999,
        horizontal_flip=True,
        gamma=0.0,
        langevin_delta=0.1,
        guidance_weight=50.0,
    ),
    "kinetics600": Preset(
        64,
        256,
        (1, 2, 4, 8),
        220_000,
        embedding_layers=2,
        dropout=0.1,
        objective="pred_v",
        learning_rate=2e-4,
        batch=256,
        sampling_steps=128,
        gamma=0.0,
        langevin_delta=0.1,
        guidance_weight=9.0,
    ),
    "text_small": Preset(64, 128, (1, 2, 4, 8), 200_000, text_encoder=_BERT),
    "text_large": Preset(64, 256, (1, 2, 4, 8), 700_000, text_encoder=_BERT),
    "sr_9x128": Preset(
        128,
        128,
        (1, 2, 4, 8, 16),
        800_000,
        frames=9,
        head_width=128,
        learning_rate=2e-4,
        image_frames=7,
        text_encoder=_BERT,
    ),
}
"""The models by name: `"small"`, and those of the paper."""


def preset(name: str) -> Preset | Recipe:
    """Returns a preset by its name.

    Args:
        name: A key of `PRESETS`: `"small"`, which learns clips of 8 frames of 16 x 16 pixels in
            minutes on two CPU cores; or the paper's `"ucf101"`, `"bair"`, `"kinetics600"`,
            `"text_small"`, `"text_large"` or `"sr_9x128"`.

    Raises:
        ValueError: If the name is unknown.

    Example:
        >>> import torch
        >>> from video_diffusion_pytorch import Unet3D
        >>> with torch.device("meta"):
        ...     unet = Unet3D(**preset("bair").unet)
        >>> sum(weight.numel() for weight in unet.parameters()) // 10**6
        96
    """
    if name not in PRESETS:
        raise ValueError(f"preset: name must be one of {', '.join(PRESETS)}, got {name!r}")
    # the caller's own, to change at will
    return copy.deepcopy(PRESETS[name])
