"""Single images for joint training: random frames of clips, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import data

from video_diffusion_pytorch.data.clip_reader import STILL_EXTS
from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.transforms import cast_num_frames, random_window
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS


class SingleFrames(Dataset):
    """One random frame of each clip of a `Dataset`, drawn on each access.

    Only that frame is decoded. Its conditions are those of the clip at that frame.

    Args:
        clips: The clips. Files, cache and options are shared; later changes have no effect.

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
        self._length = clips.num_frames if is_first and clips.fit_frames != "all" else None
        # the file may be shorter than its first part
        self._clips = [(clip, None if is_first else span) for clip, span in clips._clips]
        self.num_frames, self.clip_start, self.fit_frames = 1, "random", None
        self.cast_num_frames_fn = partial(cast_num_frames, frames=1)

    def _choose(self, generator: torch.Generator | None, span: range) -> range:
        return random_window(span[: self._length], 1, generator)


class PictureFolder(data.Dataset[Any]):
    """The pictures in a folder, each `(c, 1, h, w)`, and random frames of the clips among them.

    Numbered pictures are separate items, too. With captions or classes an item is a dict, as in
    `Dataset`.

    Args:
        folder: Searched with all its subfolders for all formats of `Dataset`, `jpg`, `bmp` and
            `tif`.
        image_size: As for `Dataset`.
        channels: As for `Dataset`.
        has_captions: Use the text in `picture.txt` as the condition `cond`; None without the file.
        class_names: Names of classes, in the order of their labels: a picture in a sub-folder of
            that name has its label, others -1. Empty for no labels.
        **options: As for `Dataset`: `fit`, `crop`, `horizontal_flip`, `vertical_flip`,
            `value_range`, `axes`, `exclude`, `as_uint8` and `square_pixels`.

    Raises:
        FileNotFoundError: The folder is missing, or holds no picture.
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
            # explicit extensions: folders of numbered pictures are not clips here
            exts=(*VIDEO_EXTS, *STILL_EXTS),
            clip_start="random",
            conditions="caption" if has_captions else None,
            missing_captions="null",
            **options,
        )
        self._files._reader.opens_stills = True
        self.paths, self.captions = self._files.paths, self._files.captions
        numbers = {name: number for number, name in enumerate(class_names)}
        self._labels = [_label(path, Path(folder), numbers) for path in self.paths if numbers]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        """Reads the picture with this index, with draws from torch's global generator."""
        return self.draw_clip(index)

    def draw_clip(self, index: int, generator: torch.Generator | None = None) -> Any:
        """As `dataset[index]`, with draws from `generator`; None for torch's global one.

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
