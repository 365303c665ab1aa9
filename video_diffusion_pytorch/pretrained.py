"""Loading of a diffusion model from a checkpoint or a shared folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.clip_info import ClipInfo
from video_diffusion_pytorch.diffusion.config import training_of
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.hub import LOADERS, check_network_size, read_config, short
from video_diffusion_pytorch.model.unet3d import Unet3D
from video_diffusion_pytorch.reference.state_dict import unet_config_from_state_dict
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance, read_checkpoint
from video_diffusion_pytorch.training.initialize import (
    SavedModel,
    check_shared,
    is_shared,
    read_model,
)
from video_diffusion_pytorch.training.posthoc_ema import average_snapshots, plan_average
from video_diffusion_pytorch.training.resume import clip_info_of


def load_diffusion(
    path: str | os.PathLike[str],
    *,
    image_size: int | tuple[int, int] | None = None,
    num_frames: int | None = None,
    device: str | torch.device | None = None,
    averaged: bool | float = True,
    **overrides: Any,
) -> GaussianDiffusion:
    """Loads a diffusion and its network from a file or folder, of which no code is run.

    Args:
        path: A training file, `model-N.pt`, of this library's Trainer or of the reference's, from
            version 0.6.0 on; a folder, `model-N.sharded`, of a sharded run; a results folder, for
            its newest checkpoint; or a shared model, a folder of `save_pretrained` or the name of
            a repository on the Hugging Face Hub, such as `"user/my-model"`.
        image_size: Height and width of the samples, an int or `(h, w)`; None for those of the
            training clips, which files of the reference do not hold.
        num_frames: Frames of a sample; None for those of the training clips, which files of the
            reference do not hold.
        device: Device of the model, such as `"cuda"`; None for the CPU.
        averaged: True for the averaged weights, which sample better, of several averages the first;
            the decay of an average, or the width of a post-hoc one; or False for the last weights.
            A shared model holds one set.
        **overrides: Other keywords of `GaussianDiffusion` that override the file's, such as
            `use_dynamic_thres`.

    Returns:
        The diffusion in evaluation mode; its `denoise_fn` is a `Unet3D`, and its `clip_info` says
        what is known of the training clips.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an override is not a keyword of `GaussianDiffusion`.
        ValueError: If it is not a whole training file, if its network is not a `Unet3D`, if the
            size of the clips is unknown, if an argument is out of range, or if one contradicts the
            weights: `objective`, `beta_schedule`, `timesteps`, `time_shift`, `sigma_data`, and the
            ranges of values.

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
    try:
        torch.empty(0, device=device)
    # without CUDA torch raises an AssertionError
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"load_diffusion: device must be one that this machine has, got {str(device)!r} "
            f"({short(error)}); leave it out, or pass 'cpu'"
        ) from error
    sizes = {"image_size": image_size, "num_frames": num_frames}
    given = {name: value for name, value in sizes.items() if value is not None} | overrides
    if is_shared(path):
        check_shared(path, averaged, "load_diffusion: averaged")
        shared = GaussianDiffusion.from_pretrained(path, **given)
        return shared.to("cpu" if device is None else device)
    saved = read_model(path, averaged, "load_diffusion: averaged")
    return _build(saved, given).to("cpu" if device is None else device)


def posthoc_average(
    results_folder: str | os.PathLike[str], std: float, *, step: int | None = None
) -> GaussianDiffusion:
    """Makes the average of any width of a training with `Trainer(ema_decay="posthoc")`.

    The average at a time is over the weights before, by a power function; from the snapshots of two
    such averages others are made by least squares (Karras et al. 2024, arXiv 2312.02696, section
    3.2). Snapshots are read one after the other.

    Args:
        results_folder: The results folder of the training, with snapshots `averages-STEP.pt`.
        std: Width of the average: the standard deviation of the times that it is over, relative to
            the time from the beginning to `step`, in (0, 0.2886]. 0.1 averages over about the last
            tenth. Which widths can be made depends on the number of snapshots.
        step: Training step at which it ends, that of a snapshot; None for the newest snapshot.

    Returns:
        The diffusion in evaluation mode, on the CPU, as of `load_diffusion`.

    Raises:
        FileNotFoundError: If the folder has no snapshots.
        ValueError: If there is no snapshot of the step, if the snapshots can't make the width, if
            one is damaged, or if its network is not a `Unet3D`; then
            `training.posthoc_ema.average_snapshots` gives the weights.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch import Trainer
        >>> from video_diffusion_pytorch.data.moving_digits import write_moving_digits
        >>> unet = Unet3D(dim=4, dim_mults=(1, 2), channels=1, attn_heads=1)
        >>> diffusion = GaussianDiffusion(unet, image_size=12, num_frames=2, timesteps=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_moving_digits(f"{folder}/clips", num_clips=2, image_size=24, num_frames=2)
        ...     Trainer(diffusion, f"{folder}/clips", ema_decay="posthoc", train_num_steps=4,
        ...             train_batch_size=1, update_ema_every=1, snapshot_every=1, device="cpu",
        ...             save_and_sample_every=9, results_folder=folder, num_workers=0).train()
        ...     narrow = posthoc_average(folder, 0.04)
        >>> narrow.sample(batch_size=1, progress=False).shape
        torch.Size([1, 1, 2, 12, 12])
    """
    state = average_snapshots(plan_average(results_folder, std, step))
    saved = SavedModel(str(results_folder), state["ema"], state["config"], clip_info_of(state))
    return _build(saved, {})


def _build(saved: SavedModel, given: Mapping[str, Any]) -> GaussianDiffusion:
    """Builds a diffusion in evaluation mode on the CPU, with given settings besides the file's."""
    # not on torch's default device
    with torch.device("cpu"):
        unet, settings = _build_network(saved, given)
    try:
        with torch.device("cpu"):
            diffusion = GaussianDiffusion(unet, **{**settings, **given})
        diffusion.load_state_dict(saved.weights)
        diffusion.clip_info = saved.clip_info
    except (RuntimeError, OverflowError) as error:
        raise ValueError(
            f"load_diffusion: the tensors in {saved.place} must fit the model that the file and "
            f"the arguments describe, got {short(error)}; leave out the arguments that change the "
            "model, such as timesteps"
        ) from error
    return diffusion.eval()


LOADERS["diffusion"] = load_diffusion


def read_settings(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, Any], ClipInfo]:
    """Reads the settings of a model, quickly, as its tensors are left out.

    Args:
        path: As of `load_diffusion`.

    Returns:
        The keywords of `Unet3D`; those of `GaussianDiffusion`, without the size of the clips for a
        file of the reference; and what is known of the training clips.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or its network is not a `Unet3D`.
    """
    if is_shared(path):
        shared = read_config(path, GaussianDiffusion)
        return shared["unet"], shared["diffusion"], ClipInfo.from_config(shared.get("clips"))
    file = checkpoint_at(path)
    state = glance(file)
    config = state.get("config")
    if config is None:
        weights = read_checkpoint(file)["model"]
        return unet_config_from_state_dict(weights)[1], _training_of(weights), ClipInfo()
    _check_network(config, file)
    return config["unet"], config["diffusion"], clip_info_of(state)


def _training_of(weights: Mapping[str, Any]) -> dict[str, Any]:
    # of a model that was wrapped, say by DistributedDataParallel
    prefix = next((n.removesuffix("betas") for n in weights if n.endswith("betas")), "")
    return training_of(weights, prefix)


def _build_network(saved: SavedModel, given: Mapping[str, Any]) -> tuple[Unet3D, dict[str, Any]]:
    """Builds the network of a file, and returns it with the settings of the diffusion."""
    config, weights, file = saved.config, saved.weights, saved.place
    if config is None:
        missing = [name for name in ("image_size", "num_frames") if name not in given]
        if missing:
            raise ValueError(
                f"load_diffusion: {file} is of version 0.7.0 or older, which holds no size of the "
                f"clips; pass {' and '.join(missing)}, as in training"
            )
        return Unet3D.from_state_dict(weights), _training_of(weights)
    _check_network(config, file)
    try:
        check_network_size(Unet3D, config, weights)
        return Unet3D(**config["unet"]), dict(config["diffusion"])
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise ValueError(
            f"load_diffusion: the settings in {file} must build a Unet3D, got {short(error)}; use "
            "the version that wrote the file"
        ) from error


def _check_network(config: Mapping[str, Any], file: Path | str) -> None:
    if config.get("unet") is None:
        raise ValueError(
            f"load_diffusion: the network in {file} must be a Unet3D, got one of another class; "
            "build it yourself in a GaussianDiffusion, and load the file's 'ema' with "
            "load_state_dict"
        )
