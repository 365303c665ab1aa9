"""Beside the path: the models of the paper, as keywords of this library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from video_diffusion_pytorch.diffusion.samplers import Ancestral


@dataclass(frozen=True)
class Preset:
    """One column of the paper's appendix A (Ho et al. 2022), as far as this library has its rows.

    Attributes:
        unet: Keywords of `Unet3D`.
        diffusion: Keywords of `GaussianDiffusion`.
        trainer: Keywords of `Trainer`, data options among them. The batch is that of all processes
            together, and of one step: where it is too large, a smaller `train_batch_size` with as
            much more `gradient_accumulate_every` gives the same.
        sampler: What samples are drawn with: `diffusion.sample(sampler=..., steps=...)`.
        steps: Number of its steps.
        guidance_weight: The weight of reconstruction guidance where frames are given (eq. 7), as
            `KnownRegion` and `predict` take it; None where the paper names none.
        text_encoder: What `text.set_text_encoder` is given; None for a model without captions.
    """

    unet: dict[str, Any]
    diffusion: dict[str, Any]
    trainer: dict[str, Any]
    sampler: Ancestral
    steps: int
    guidance_weight: float | None = None
    text_encoder: str | None = None


def _preset(
    size: int,
    base: int,
    mults: tuple[int, ...],
    levels: tuple[int, ...],
    *,
    frames: int = 16,
    blocks: int = 2,
    head: int = 64,
    mlp_layers: int = 4,
    dropout: float = 0.0,
    objective: str = "pred_noise",
    adam: tuple[float, float, float] = (0.99, 3e-4, 0.0),
    batch: int = 128,
    ema: float = 0.9999,
    images: int = 8,
    train_steps: int,
    sampling: tuple[int, float, float] = (256, 0.3, 0.0),
    is_told_text: bool = False,
    **more: Any,
) -> Preset:
    """A preset from the rows of the table.

    Args:
        size: Height and width of the clips.
        base: Base channels.
        mults: Their multipliers.
        levels: The resolutions with attention, as numbers of levels.
        frames: Frames of the clips.
        blocks: Residual blocks per resolution.
        head: Width of a head.
        mlp_layers: Layers of the embedding, which is 1024 wide.
        dropout: As in `Unet3D`.
        objective: What is predicted.
        adam: Its beta2, learning rate and weight decay.
        batch: Clips of a step.
        ema: Decay of the average.
        images: Image frames beside a clip.
        train_steps: Steps of training.
        sampling: Number of steps, gamma, and the size of Langevin steps between them.
        is_told_text: Whether clips have captions.
        **more: Further fields of `Preset`, and `data`, keywords of `Dataset`.
    """
    unet: dict[str, Any] = {
        "dim": base,
        "dim_mults": mults,
        "blocks_per_level": blocks,
        "attn_after_each_block": True,
        "full_attn_levels": levels,
        "temporal_attn_levels": levels,
        "use_sparse_linear_attn": False,
        "attn_heads": None,
        "attn_dim_head": head,
        "spatial_attn_dim_head": head,
        "dropout": dropout,
        "emb_dim": 1024,
        "emb_layers": mlp_layers,
        "time_input": "log_snr",
    }
    trainer: dict[str, Any] = {
        "train_batch_size": batch,
        "split_batches": True,
        "gradient_accumulate_every": 1,
        "train_lr": adam[1],
        "betas": (0.9, adam[0]),
        "optimizer": "adamw" if adam[2] else "adam",
        "weight_decay": adam[2],
        "train_num_steps": train_steps,
        "ema_decay": ema,
        "step_start_ema": 0,
        "update_ema_every": 1,
        "image_frames": images,
        **more.pop("data", {}),
    }
    if is_told_text:
        # BERT-large, pooled by attention (section 4.1)
        unet |= {"cond_dim": 1024, "text_pooling": "attention"}
        trainer["conditions"] = "caption"
        more["text_encoder"] = "bert-large-uncased"
    diffusion: dict[str, Any] = {
        "image_size": size,
        "num_frames": frames,
        "loss_type": "l2",
        "objective": objective,
        "beta_schedule": "continuous_cosine",
    }
    steps, gamma, delta = sampling
    return Preset(unet, diffusion, trainer, Ancestral(gamma, delta), steps, **more)


# 64 pixels halved once, twice and three times are 32, 16 and 8
_AT_64 = (1, 2, 3)
_AT_128 = (2, 3, 4)

PRESETS: dict[str, Preset] = {
    "ucf101": _preset(
        64, 256, (1, 2, 4, 8), _AT_64,
        dropout=0.1, train_steps=60_000, sampling=(256, 0.1, 0.0),
    ),
    "bair": _preset(
        64, 128, (1, 2, 3, 4), _AT_64,
        blocks=3, mlp_layers=2, dropout=0.1, objective="pred_v", adam=(0.999, 2e-4, 0.01),
        ema=0.999, train_steps=660_000, sampling=(256, 0.0, 0.1), guidance_weight=50.0,
        data={"horizontal_flip": True},
    ),
    "kinetics600": _preset(
        64, 256, (1, 2, 4, 8), _AT_64,
        mlp_layers=2, dropout=0.1, objective="pred_v", adam=(0.99, 2e-4, 0.0), batch=256,
        train_steps=220_000, sampling=(128, 0.0, 0.1), guidance_weight=9.0,
    ),
    "text_small": _preset(
        64, 128, (1, 2, 4, 8), _AT_64, train_steps=200_000, is_told_text=True
    ),
    "text_large": _preset(
        64, 256, (1, 2, 4, 8), _AT_64, train_steps=700_000, is_told_text=True
    ),
    "sr_9x128": _preset(
        128, 128, (1, 2, 4, 8, 16), _AT_128,
        frames=9, head=128, adam=(0.99, 2e-4, 0.0), images=7, train_steps=800_000,
        is_told_text=True,
    ),
}  # fmt: skip
"""The paper's models by name."""


def preset(name: str) -> Preset:
    """Gives a preset by its name.

    Args:
        name: Of `PRESETS`: `"ucf101"`, `"bair"`, `"kinetics600"`, `"text_small"`, `"text_large"` or
            `"sr_9x128"`.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> import torch
        >>> from video_diffusion_pytorch import Unet3D
        >>> with torch.device("meta"):
        ...     unet = Unet3D(**preset("bair").unet)
        >>> sum(weight.numel() for weight in unet.parameters()) // 10**6
        96
    """
    if name not in PRESETS:
        raise ValueError(
            f"preset: name must be one of {', '.join(PRESETS)}, got {name!r}; choose one of them"
        )
    return PRESETS[name]
