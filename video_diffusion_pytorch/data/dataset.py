"""Second step of the path: a folder of video files becomes clips of one size and length."""

from __future__ import annotations

import functools
import logging
import operator
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import torch
from torch.utils import data

from .video_file import CHANNELS_TO_MODE, ToTensor, UnreadableVideoError, gif_to_tensor

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("video_diffusion_pytorch")

_DEFAULT_EXTS = ["gif"]


def cast_num_frames(t: torch.Tensor, *, frames: int) -> torch.Tensor:
    """Cut a clip to its first frames, or lengthen it with black ones.

    Args:
        t: `(c, f, h, w)`.
        frames: The number of frames wanted.

    Returns:
        `(c, frames, h, w)`: `t` itself where it has that length, a view of it where it is longer.

    Example:
        >>> cast_num_frames(torch.ones(1, 3, 2, 2), frames=5)[0, :, 0, 0]
        tensor([1., 1., 1., 0., 0.])
    """
    missing = frames - t.shape[1]
    if missing > 0:
        return torch.nn.functional.pad(t, (0, 0, 0, 0, 0, missing))
    return t[:, :frames]


def _keep_all_frames(t: torch.Tensor) -> torch.Tensor:
    return t


class _FrameTransform:
    """Scale a frame until it covers the target, cut out the middle, make it a tensor."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.to_tensor = ToTensor()

    def __call__(self, frame: Image) -> torch.Tensor:
        from PIL.Image import Resampling

        target_h, target_w = self.size
        # Cover: one side fits exactly, the other one is rounded down as torchvision does
        if frame.height * target_w >= frame.width * target_h:
            w, h = target_w, max(target_h, target_w * frame.height // frame.width)
        else:
            w, h = max(target_w, target_h * frame.width // frame.height), target_h
        if (w, h) != frame.size:
            frame = frame.resize((w, h), Resampling.BILINEAR)
        # Centre crop
        top, left = round((h - target_h) / 2), round((w - target_w) / 2)
        return self.to_tensor(frame.crop((left, top, left + target_w, top + target_h)))

    def __repr__(self) -> str:
        return f"resize to cover and centre-crop to {self.size}, ToTensor()"


class Dataset(data.Dataset[torch.Tensor]):
    """The clips in a folder, each `(c, f, h, w)` float32 in [0, 1].

    A frame is scaled (bilinear, antialiased) until it covers `image_size`, and its middle is cut
    out. Files whose names start with a dot are left out: they are half-written or a file system's
    own.

    Args:
        folder: Searched with all its subfolders.
        image_size: Height and width in pixels: one number for squares, or `(height, width)`.
        channels: 1 (grey), 3 (colour) or 4 (colour and opacity).
        num_frames: Frames of a clip: longer files are cut, shorter ones end in black frames.
        horizontal_flip: Mirror half of the clips, drawn from torch's global generator on each
            access.
        force_num_frames: False leaves each clip as long as its file.
        exts: File name endings to look for, in upper or lower case.

    Attributes:
        paths: The files in sorted order, one per clip.
        transform: Called with each decoded frame, a Pillow picture; gives its `(c, h, w)` tensor.
        cast_num_frames_fn: Called with each clip.

    Raises:
        FileNotFoundError: The folder is missing, or there is no such file in it.
        NotADirectoryError: `folder` is a file.
        ValueError: `image_size`, `channels` or `num_frames` is out of range.

    Differs from the reference: clips are flipped as a whole rather than frame by frame, `paths` is
    sorted, and two numbers in `image_size` crop where the reference distorts.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = video_tensor_to_gif(torch.rand(3, 5, 20, 30), f"{folder}/noise.gif")
        ...     Dataset(folder, image_size=16, num_frames=8)[0].shape
        torch.Size([3, 8, 16, 16])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        channels: int = 3,
        num_frames: int = 16,
        horizontal_flip: bool = False,
        force_num_frames: bool = True,
        exts: Sequence[str] = _DEFAULT_EXTS,
    ) -> None:
        super().__init__()
        size = _check_image_size(image_size)
        if channels not in CHANNELS_TO_MODE:
            raise ValueError(
                f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 "
                "for grey, 3 for colour, 4 for colour and opacity"
            )
        if not _is_positive_int(num_frames):
            raise ValueError(
                f"num_frames must be a whole number of at least 1, got {num_frames!r}; for clips "
                "of any length pass force_num_frames=False"
            )
        self.folder = folder
        self.image_size = image_size
        self.channels = channels
        self.horizontal_flip = horizontal_flip
        self.paths = _find_files(Path(folder), [exts] if isinstance(exts, str) else exts)
        self.transform: Callable[[Image], torch.Tensor] = _FrameTransform(size)
        self.cast_num_frames_fn: Callable[[torch.Tensor], torch.Tensor] = (
            functools.partial(cast_num_frames, frames=num_frames)
            if force_num_frames
            else _keep_all_frames
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        """Decode the clip with this index.

        Raises:
            UnreadableVideoError: The file is damaged; the message names it.
        """
        video = gif_to_tensor(self.paths[index], self.channels, transform=self.transform)
        if self.horizontal_flip and torch.rand(()) < 0.5:
            video = video.flip(-1)
        return self.cast_num_frames_fn(video)


class SkipUnreadable(data.Dataset[Any]):
    """Another dataset, with the next readable item in place of each unreadable one.

    A long training run should not end at one damaged file, nor go on without its user's knowledge:
    each such file is logged as a warning, and more than a tenth of them is an error. Which ones are
    known is remembered per process: each worker of a `DataLoader` finds them for itself.

    Args:
        dataset: Has a length, and raises `UnreadableVideoError` for an item it cannot decode.

    Attributes:
        dataset: The wrapped dataset.
        unreadable: Index -> message, for each item found unreadable so far.

    Example:
        >>> clips = [torch.zeros(1, 2, 4, 4)] * 3
        >>> len(SkipUnreadable(clips)), SkipUnreadable(clips)[2].shape
        (3, torch.Size([1, 2, 4, 4]))
    """

    def __init__(self, dataset: data.Dataset[Any] | Sequence[Any]) -> None:
        super().__init__()
        self.dataset: Any = dataset
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: SupportsIndex) -> Any:
        """Give the item, or the next readable one after it (after the last comes the first).

        Raises:
            IndexError: The index is out of range.
            UnreadableVideoError: More than a tenth of all items are known to be unreadable.
        """
        total = len(self)
        start = operator.index(index)
        if not -total <= start < total:
            raise IndexError(
                f"index must be in -{total} to {total - 1}, got {start}; the dataset has "
                f"{total} items"
            )
        position = start % total
        while True:
            self._check_share()
            if position not in self.unreadable:
                try:
                    return self.dataset[position]
                except UnreadableVideoError as error:
                    self.unreadable[position] = str(error)
                    logger.warning("left out item %d of the dataset: %s", position, error)
            position = (position + 1) % total

    def _check_share(self) -> None:
        count, total = len(self.unreadable), len(self)
        if count > total / 10:
            first = "\n  ".join(list(self.unreadable.values())[:5])
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files to be unreadable, got {count} so "
                f"far; repair or remove them, the first being:\n  {first}"
            )


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _check_image_size(image_size: object) -> tuple[int, int]:
    pair = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(pair) != 2 or not all(_is_positive_int(side) for side in pair):
        raise ValueError(
            "image_size must be a whole number of pixels of at least 1, or such a (height, width), "
            f"got {image_size!r}; pass for example 64 or (48, 64)"
        )
    return pair[0], pair[1]


def _find_files(folder: Path, exts: Sequence[str]) -> list[Path]:
    if not folder.exists():
        raise FileNotFoundError(
            f"expected a folder of videos at {folder}, found none; check the path (working "
            f"folder: {Path.cwd()})"
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"expected a folder of videos at {folder}, got a file; pass the folder that holds it"
        )
    endings = tuple("." + ext.lower().lstrip(".") for ext in exts)
    names = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
    names = [path for path in names if not path.name.startswith(".")]
    found = sorted(path for path in names if path.name.lower().endswith(endings))
    if not found:
        others = Counter(path.suffix.lower() or "no extension" for path in names).most_common(5)
        instead = ", ".join(f"{count} × {ext}" for ext, count in others) or "no file at all"
        raise FileNotFoundError(
            f"expected files ending in {' or '.join(endings) or '(exts is empty)'} in {folder} and "
            f"its subfolders, got {instead}; check the folder, or say in exts what to look for"
        )
    return found
