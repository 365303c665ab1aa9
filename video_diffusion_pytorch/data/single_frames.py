"""Single images for joint training: frames of clips, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils import data

from video_diffusion_pytorch.data.clip_reader import ClipReader
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.formats.frame_folder import FRAME_EXTS
from video_diffusion_pytorch.data.formats.picture_file import PictureReader
from video_diffusion_pytorch.data.formats.video_reader import VideoReader
from video_diffusion_pytorch.data.transforms import cast_num_frames, random_window
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS

# Endings of pictures that are no video, and Pillow's names of what is in them
_STILLS = tuple(ending for ending in FRAME_EXTS if ending not in VIDEO_EXTS)
_STILL_FORMATS = ("JPEG", "BMP", "TIFF")


class SingleFrames(Dataset):
    """Frames of the clips of a `Dataset`, one drawn at random on each access.

    No more than that frame is decoded. Its conditions are those that the clip has there.

    Args:
        clips: The clips, as they are now; their files, their cache and their options are shared.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = video_tensor_to_gif(torch.rand(3, 5, 20, 30), f"{folder}/noise.gif")
        ...     SingleFrames(Dataset(folder, image_size=16, num_frames=4))[0].shape
        torch.Size([3, 1, 16, 16])
    """

    def __init__(self, clips: Dataset) -> None:
        self.__dict__.update(vars(clips))
        is_first = clips.clip_start == "first"
        self._most = clips.num_frames if is_first and clips.fit_frames != "all" else None
        # which part of a file is the first one is known, but not whether the file has all of it
        self._clips = [(clip, None if is_first else span) for clip, span in clips._clips]
        self.num_frames, self.clip_start, self.fit_frames = 1, "random", None
        self.cast_num_frames_fn = _first_frame

    def _cut(self, generator: torch.Generator | None, span: range) -> range:
        return random_window(span[: self._most], 1, generator)


def _first_frame(t: torch.Tensor) -> torch.Tensor:
    return cast_num_frames(t, frames=1)


class PictureFolder(data.Dataset[Any]):
    """The pictures in a folder, each `(c, 1, h, w)`, and random frames of the clips among them.

    Each picture counts by itself, numbered ones too. With captions or classes an item is a dict, as
    of `Dataset`.

    Args:
        folder: Searched with all its subfolders for whatever `Dataset` reads, and for `jpg`,
            `bmp` and `tif`.
        image_size: As for `Dataset`.
        channels: As for `Dataset`.
        has_captions: Whether the text in `picture.txt` is the condition `cond`; None where there
            is no such file.
        class_names: Names of classes, in the order of their labels: a picture in a sub-folder of
            that name has that label, any other one -1. Empty for no labels.
        **options: As for `Dataset`: `fit`, `crop`, `horizontal_flip`, `vertical_flip`,
            `value_range`, `axes`, `exclude`, `as_uint8` and `square_pixels`.

    Raises:
        FileNotFoundError: The folder is missing, or there is no picture in it.
        NotADirectoryError: `folder` is a file.
        ValueError: An argument is out of range.

    Attributes:
        paths: The files in sorted order.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        channels: int = 3,
        *,
        has_captions: bool = False,
        class_names: Sequence[str] = (),
        **options: Any,
    ) -> None:
        self._files = Dataset(
            folder,
            image_size,
            channels,
            num_frames=1,
            # named one by one, so that numbered pictures are not taken for the frames of one clip
            exts=(*VIDEO_EXTS, *_STILLS),
            clip_start="random",
            conditions="caption" if has_captions else None,
            missing_captions="null",
            **options,
        )
        reader = self._files._reader
        self._files._reader = _StillReader(
            reader.size,
            reader.timeline,
            reader.channels,
            reader.axes,
            reader.read_fn,
            reader.square_pixels,
        )
        self.paths, self.captions = self._files.paths, self._files.captions
        numbers = {name: number for number, name in enumerate(class_names)}
        self._labels = [_label(path, Path(folder), numbers) for path in self.paths if numbers]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """Read the picture with this index, with draws from torch's global generator."""
        return self.draw_clip(index)

    def draw_clip(self, index: int, generator: torch.Generator | None = None) -> Any:
        """As `dataset[index]`, with draws from a generator of the caller's; None for torch's.

        Raises:
            UnreadableVideoError: The file is damaged; the message names it.
        """
        item = self._files.draw_clip(index, generator)
        if not self._labels:
            return item
        item = item if isinstance(item, dict) else {"video": item}
        return {**item, "labels": self._labels[index]}


def _label(path: Path, folder: Path, numbers: dict[str, int]) -> int:
    inside = path.relative_to(folder).parts
    return numbers.get(inside[0], -1) if len(inside) > 1 else -1


class _StillReader(ClipReader):
    """A reader that opens pictures of the formats of frame folders, too."""

    def _open(self, path: Path) -> VideoReader:
        if path.suffix.lower().lstrip(".") in _STILLS:
            return PictureReader(path, self.channels, _STILL_FORMATS)
        return super()._open(path)
