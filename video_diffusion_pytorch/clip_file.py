"""Clips of one's own, prepared as the training clips of a model were."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import as_count, as_image_size
from video_diffusion_pytorch.data.dataset import ClipReader
from video_diffusion_pytorch.data.errors import missing_file
from video_diffusion_pytorch.data.formats.arrays import ReadFn
from video_diffusion_pytorch.data.formats.fields import layout_of
from video_diffusion_pytorch.data.formats.write_fields import write_fields
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize, Timeline, stretched
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.value_scale import padding_values


def prepare_clip(
    path: str | os.PathLike[str],
    diffusion: GaussianDiffusion,
    *,
    read_fn: ReadFn | None = None,
    num_frames: int | None = None,
    image_size: int | tuple[int, int] | str | None = None,
    keep_rate: bool = False,
    axes: str | None = None,
    first_frame: int = 0,
    item: int | None = None,
) -> Tensor:
    """Reads a clip for `predict`, `extend`, `inpaint`, `interpolate_frames` and `upsample`.

    Frames are selected, scaled and cropped as the model's training clips were, as far as
    `diffusion.clip_info.settings` says so, and by the defaults of `Dataset` otherwise. Instead of a
    random crop the center is kept. If training resampled files in time (`fit_frames`), so is this
    one, to `num_frames` or those of the model: `"all"` files, or only the `"short"` ones.

    Args:
        path: A file of any format, or a folder of numbered pictures.
        diffusion: The model, such as one of `load_diffusion`.
        read_fn: Reads the file, as in `Dataset`; None for the formats that this library knows.
        num_frames: Number of frames, from `first_frame` on; None for all. Of a file that is
            resampled in time, the number of frames of the whole.
        image_size: Height and width in pixels, as 64 or `(48, 64)`; None for those of the model;
            `"own"` for those of the file, as `upsample` takes.
        keep_rate: Whether to take all frames, as `interpolate_frames` does, even if training took
            every n-th one or another frame rate, or resampled them in time.
        axes: Order of the axes of an array file, such as `"fhw"`, as in `read_video`; None for that
            of the training clips.
        first_frame: Number of the first frame, of those that training would take.
        item: Number of the simulation in a file of several; None for a file of one.

    Returns:
        `(1, c, f, h, w)`, float32 in [0, 1], or in the model's `value_range`, or, if its
        `auto_normalize` is False, in the values of the file (8-bit ones in [0, 1]). Of a model with
        `missing="mask"` NaN where values are missing.

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
    reader = clip_reader(diffusion, read_fn=read_fn, keep_rate=keep_rate, axes=axes)
    size, path = reader.size, Path(path)
    if not path.exists():
        raise missing_file(path)
    if image_size == "own":
        reader.size = FrameSize(_size_of(reader, path, item), "stretch")
    elif image_size is not None:
        reader.size = FrameSize(as_image_size(image_size), size.fit)
    if num_frames is not None:
        num_frames = as_count(num_frames, "num_frames")
    is_resampled = not keep_rate and diffusion.clip_info.settings.get("fit_frames") is not None
    if first_frame < 0 or (first_frame and is_resampled):
        raise ValueError(
            "first_frame must be 0 or greater, and 0 for a model whose training resampled files in "
            f"time (fit_frames), got {first_frame}; take the frames of the whole file"
        )
    # without its length, which some files only show when they are read to the end
    wanted = None
    if num_frames is not None and not is_resampled:
        wanted = range(first_frame, first_frame + num_frames)
    choose = _choice(diffusion, num_frames) if is_resampled else (lambda span: span)
    if wanted is None and not is_resampled:
        choose = lambda span: span[first_frame:]  # noqa: E731
    video, _ = reader.read(Clip(path, item=item), wanted, choose)
    if num_frames is not None and video.shape[1] < num_frames:
        raise ValueError(
            f"{path} must have {num_frames} frames, got {video.shape[1]}; give a longer clip"
        )
    units, black = diffusion.config["value_range"], None
    if units is not None:
        black = torch.tensor(padding_values(units, diffusion.channels), device="cpu")
    elif video.dtype == torch.uint8:
        video = video / 255
    return reader.size.finish_array(video.float(), black=black)[None]


def clip_reader(
    diffusion: GaussianDiffusion,
    *,
    read_fn: ReadFn | None = None,
    keep_rate: bool = False,
    axes: str | None = None,
) -> ClipReader:
    """Reads files as training did; the arguments are those of `prepare_clip`."""
    settings, timeline = diffusion.clip_info.settings, Timeline()
    if not keep_rate:
        timeline = Timeline(settings.get("frame_skip") or 1, settings.get("fps"))
    options: dict[str, Any] = {"axes": axes or settings.get("axes"), "read_fn": read_fn}
    options["square_pixels"] = settings.get("square_pixels", True)
    dims = settings.get("dims") or options["axes"]
    options["layout"] = layout_of(settings.get("variables"), dims)
    options["keeps_missing"] = diffusion.missing == "mask"
    return ClipReader(frame_size(diffusion), timeline, diffusion.channels, **options)


def write_like(
    videos: Tensor,
    path: str | os.PathLike[str],
    like: str | os.PathLike[str],
    diffusion: GaussianDiffusion,
    *,
    first_frame: int = 0,
    several: str = "sample",
) -> None:
    """Writes samples of a model as files of fields or volumes like those it was trained on.

    Args:
        videos: One, `(c, f, h, w)`, or several, `(n, c, f, h, w)`.
        path: The file; its ending says the kind: `.nc`, `.h5`, `.zarr`, `.nii` and others.
        like: A file of this kind, whose names, units and coordinates it gets.
        diffusion: The model, whose `clip_info.settings` say how such files became clips.
        first_frame: The number of the first frame on the timeline of `like`, in frames of clips.
        several: Name of the dimension of several videos.

    Raises:
        FileNotFoundError: If `like` or the folder of `path` is missing.
        ImportError: If the library that writes the file is not installed.
        ValueError: If the kinds of the files differ, or `like` has other channels.
    """
    settings = diffusion.clip_info.settings
    layout = layout_of(settings.get("variables"), settings.get("dims") or settings.get("axes"))
    step = settings.get("frame_skip") or 1
    if settings.get("fit_frames") is not None:
        chosen, count = frame_numbers(Path(like), diffusion, None, None, item=0)
        if len(chosen) > 1 and chosen != [*range(len(chosen))]:
            # the whole file became a clip
            step = (count - 1) / (len(chosen) - 1)
    write_fields(
        videos.detach().cpu().float().numpy(),
        Path(path),
        Path(like),
        layout=layout,
        fit=settings.get("fit") or "cover",
        first_frame=first_frame,
        frame_skip=step,
        several=several,
    )


def frame_numbers(
    path: Path,
    diffusion: GaussianDiffusion,
    num_frames: int | None,
    axes: str | None,
    item: int | None = None,
) -> tuple[list[int], int]:
    """The frames of a file that `prepare_clip` takes, and how many the file has."""
    reader = clip_reader(diffusion, axes=axes)
    with reader.open(path, item) as file:
        positions = _choice(diffusion, num_frames)(reader.timeline.between(file, None, None))
        return reader.timeline.frames(file, positions), file.num_frames


def _choice(
    diffusion: GaussianDiffusion, num_frames: int | None
) -> Callable[[range], Sequence[int]]:
    """Chooses among the positions of a file, as `Dataset` does with the `fit_frames` of training.

    Args:
        diffusion: The model.
        num_frames: As in `prepare_clip`.
    """
    kind, length = diffusion.clip_info.settings.get("fit_frames"), num_frames
    if length is None:
        length = diffusion.num_frames

    def choose(span: range) -> Sequence[int]:
        if kind == "all" or (kind == "short" and len(span) < length):
            return stretched(span, length)
        return span[:num_frames]

    return choose


def frame_size(diffusion: GaussianDiffusion) -> FrameSize:
    """Scales and crops frames to the size of a model's clips, as in training."""
    return FrameSize(diffusion.clip_shape[2:], diffusion.clip_info.settings.get("fit") or "cover")


def _size_of(reader: ClipReader, path: Path, item: int | None) -> tuple[int, int]:
    """Height and width of the first frame of a file."""
    with reader.open(path, item) as file:
        if file.is_array:
            height, width = file.array([0]).shape[-2:]
        else:
            width, height = next(iter(file.pictures([0]))).size
    return height, width
