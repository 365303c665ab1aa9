"""Clips of one's own, prepared as the training clips of a model were."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count, as_image_size, per_channel
from video_diffusion_pytorch.data.dataset import ClipReader
from video_diffusion_pytorch.data.errors import missing_file
from video_diffusion_pytorch.data.formats.arrays import ReadFn
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize, Timeline
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion


def prepare_clip(
    path: str | os.PathLike[str],
    diffusion: GaussianDiffusion,
    *,
    read_fn: ReadFn | None = None,
    num_frames: int | None = None,
    image_size: int | tuple[int, int] | str | None = None,
    keep_rate: bool = False,
) -> Tensor:
    """Reads a clip for `predict`, `extend`, `inpaint`, `interpolate_frames` and `upsample`.

    Frames are selected, scaled and cropped as the model's training clips were, as far as
    `diffusion.clip_info.settings` says so, and by the defaults of `Dataset` otherwise. Instead of a
    random crop the center is kept.

    Args:
        path: A file of any format, or a folder of numbered pictures.
        diffusion: The model, such as one of `load_diffusion`.
        read_fn: Reads the file, as in `Dataset`; None for the formats that this library knows.
        num_frames: Number of frames, from the first on; None for all.
        image_size: Height and width in pixels, as 64 or `(48, 64)`; None for those of the model;
            `"own"` for those of the file, as `upsample` takes.
        keep_rate: Whether to take all frames, as `interpolate_frames` does, even if training took
            every n-th one or another frame rate.

    Returns:
        `(1, c, f, h, w)`, float32 in [0, 1], or in the model's `value_range`, or, if its
        `auto_normalize` is False, in the values of the file (8-bit ones in [0, 1]).

    Raises:
        FileNotFoundError: If the file is missing.
        UnreadableVideoError: If it is damaged, or its channels are not those of the model.
        ValueError: If it has fewer than `num_frames` frames, or an argument is out of range.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch import Unet3D, write_video
        >>> unet = Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2)
        >>> diffusion = GaussianDiffusion(unet, image_size=16, num_frames=4, timesteps=3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_video(torch.rand(3, 6, 20, 30), f"{folder}/whale.mp4")
        ...     clip = prepare_clip(f"{folder}/whale.mp4", diffusion)
        >>> clip.shape
        torch.Size([1, 3, 6, 16, 16])
        >>> diffusion.extend(clip, num_frames=8, progress=False).shape
        torch.Size([1, 3, 8, 16, 16])
    """
    size, timeline = frame_size(diffusion), Timeline()
    settings = diffusion.clip_info.settings
    if not keep_rate:
        timeline = Timeline(settings.get("frame_skip") or 1, settings.get("fps"))
    options: dict[str, Any] = {"axes": settings.get("axes"), "read_fn": read_fn}
    options["square_pixels"] = settings.get("square_pixels", True)
    reader = ClipReader(size, timeline, diffusion.channels, **options)
    path = Path(path)
    if not path.exists():
        raise missing_file(path)
    if image_size == "own":
        reader.size = FrameSize(_size_of(reader, path), "stretch")
    elif image_size is not None:
        reader.size = FrameSize(as_image_size(image_size), size.fit)
    wanted = None if num_frames is None else range(as_count(num_frames, "num_frames"))
    video, _ = reader.read(Clip(path), wanted, lambda span: span)
    if wanted is not None and video.shape[1] < len(wanted):
        raise ValueError(
            f"{path} must have {len(wanted)} frames, got {video.shape[1]}; give a longer clip"
        )
    units, black = diffusion.config["value_range"], None
    if units is not None:
        black = torch.tensor(per_channel(units, diffusion.channels)[0])
    elif video.dtype == torch.uint8:
        video = video / 255
    return reader.size.finish_array(video.float(), black=black)[None]


def frame_size(diffusion: GaussianDiffusion) -> FrameSize:
    """Scales and crops frames to the size of a model's clips, as in training."""
    return FrameSize(diffusion.clip_shape[2:], diffusion.clip_info.settings.get("fit") or "cover")


def _size_of(reader: ClipReader, path: Path) -> tuple[int, int]:
    """Height and width of the first frame of a file."""
    with reader.open(path) as file:
        if file.is_array:
            height, width = file.array([0]).shape[-2:]
        else:
            width, height = next(iter(file.pictures([0]))).size
    return height, width
