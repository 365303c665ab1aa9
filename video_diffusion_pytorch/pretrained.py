"""Loading of a diffusion model from a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.diffusion.config import training_of
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.hub import check_network_size
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.fsdp import read_sharded


def load_diffusion(
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    num_frames: int | None = None,
    device: str | torch.device | None = None,
    averaged: bool | float = True,
    **overrides: Any,
) -> GaussianDiffusion:
    """Builds the diffusion and the network that a training file belongs to, and loads the weights.

    No code from the file is run.

    Args:
        path: A training file, `model-N.pt`, of this library's Trainer or of the reference's, from
            version 0.6.0 on; or a folder, `model-N.sharded`, of a sharded run; or a results folder,
            for its newest checkpoint.
        image_size: Height and width of the samples, an int or `(h, w)`; None for those of the
            training clips. The reference's files don't hold them.
        num_frames: Frames of a sample; None for those of the training clips. The reference's
            files don't hold them.
        device: Where to put the model, such as `"cuda"`; None for the CPU.
        averaged: Whether to take the averaged weights, which sample better, or the last ones; of
            several averages the first, or that whose decay is given.
        **overrides: Other keywords of `GaussianDiffusion`, such as `use_dynamic_thres`, which take
            the place of the file's.

    Returns:
        The diffusion in evaluation mode; its `denoise_fn` is a `Unet3D`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an override is no keyword of `GaussianDiffusion`.
        ValueError: If it is not a whole training file, if its network is not a `Unet3D`, if it
            holds no size and none is given, if an argument is outside its range, or if one
            contradicts what the weights were trained for: `objective`, `beta_schedule`,
            `timesteps`, and the ranges of values.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch import Trainer
        >>> from video_diffusion_pytorch.data.moving_digits import write_moving_digits
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), channels=1, attn_heads=2)
        >>> diffusion = GaussianDiffusion(unet, image_size=24, num_frames=4, timesteps=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_moving_digits(f"{folder}/clips", num_clips=2, image_size=24)
        ...     Trainer(diffusion, f"{folder}/clips", results_folder=folder, device="cpu").save(1)
        ...     again = load_diffusion(f"{folder}/model-1.pt")
        >>> again.sample(batch_size=1, progress=False).shape
        torch.Size([1, 1, 4, 24, 24])
    """
    where = _check_device(device)
    file = checkpoint_at(path)
    state = read_sharded(file) if file.is_dir() else read_checkpoint(file)
    weights = _choose_weights(state, averaged, file)
    config = state.get("config")
    sizes = {"image_size": image_size, "num_frames": num_frames}
    given = {name: value for name, value in sizes.items() if value is not None} | overrides
    if config is None:
        unet, settings = _from_reference(weights, given, file)
    else:
        unet, settings = _from_config(config, weights, file)
    try:
        diffusion = GaussianDiffusion(unet, **{**settings, **given})
        diffusion.load_state_dict(weights)
    except (RuntimeError, OverflowError) as error:
        raise ValueError(
            f"load_diffusion: the tensors in {file} must fit the model that the file and the "
            f"arguments describe, got {_first_lines(error)}; leave out the arguments that change "
            "the model, such as timesteps, or use another file"
        ) from error
    return diffusion.to(where).eval()


def _choose_weights(state: Mapping[str, Any], averaged: bool | float, file: Path) -> Any:
    if isinstance(averaged, bool):
        return state["ema" if averaged else "model"]
    decays = [float(decay) for decay in state.get("ema_decays", ())]
    if averaged not in decays:
        held = ", ".join(map(str, decays)) or "one of unknown decay"
        raise ValueError(
            f"load_diffusion: averaged must be True, False or the decay of an average in {file}, "
            f"which holds {held}, got {averaged}; give one of them"
        )
    first = averaged == decays[0]
    return state["ema"] if first else state["emas"][repr(float(averaged))]


def _from_config(
    config: Mapping[str, Any], weights: Mapping[str, Any], file: Path
) -> tuple[Unet3D, dict[str, Any]]:
    if config.get("unet") is None:
        raise ValueError(
            f"load_diffusion: the network in {file} must be a Unet3D, got one of another class, "
            "which the file cannot rebuild; build it yourself, wrap it in a GaussianDiffusion, and "
            "load the file's 'ema' with load_state_dict"
        )
    try:
        check_network_size(Unet3D, config, weights)
        return Unet3D(**config["unet"]), dict(config["diffusion"])
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(
            f"load_diffusion: the settings in {file} must build a Unet3D, got "
            f"{_first_lines(error)}; use the version that wrote the file, or another file"
        ) from error


def _from_reference(
    weights: Mapping[str, Any], given: Mapping[str, Any], file: Path
) -> tuple[Unet3D, dict[str, Any]]:
    missing = [name for name in ("image_size", "num_frames") if name not in given]
    if missing:
        raise ValueError(
            f"load_diffusion: {file} must hold the size of its clips or be given it, got a file of "
            "version 0.7.0 or older, which holds no size, and no "
            f"{' and no '.join(missing)}; pass {' and '.join(missing)}, as in training"
        )
    return Unet3D.from_state_dict(weights), training_of(weights)


def _check_device(device: str | torch.device | None) -> torch.device:
    try:
        where = torch.device("cpu" if device is None else device)
        torch.empty(0, device=where)
    # without CUDA torch raises an AssertionError
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"load_diffusion: device must be one that this machine has, got {str(device)!r} "
            f"({_first_lines(error, 1)}); leave it out for the CPU"
        ) from error
    return where


def _first_lines(error: Exception, count: int = 2) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:count])[:300]
