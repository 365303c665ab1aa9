"""Images trained with each clip: single frames of other clips, with their conditions."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from video_diffusion_pytorch.conditions import CONDITIONS, to_one_length
from video_diffusion_pytorch.conditions import join_images as conditions_of_images
from video_diffusion_pytorch.data.dataset import Dataset as Clips
from video_diffusion_pytorch.data.dataset import SingleFrames
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.training.batches import (
    Draw,
    SeededItems,
    alike,
    collate,
    read_item,
)
from video_diffusion_pytorch.training.splits import file_key

logger = logging.getLogger("video_diffusion_pytorch")

Unpack = Callable[[Any], tuple[Tensor, dict[str, Any]]]


class ClipAndImages(NamedTuple):
    """An item, or a batch of items: a clip and its images.

    Attributes:
        clip: The item of the dataset.
        images: One dict per image: `video` `(c, 1, h, w)`, and its conditions by keyword.
    """

    clip: Any
    images: list[dict[str, Any]]


class ImageDraws:
    """Draws images for clips: random single frames of a dataset, each from another file.

    Files and frames depend on the seed only.

    Args:
        dataset: Has a length; its items are read as those of `SeededItems`.
        files: The indices of the items of each file.
        own: The file of each clip, by the clip's index; empty if the images are not of clips.
        count: Number of images per clip; with fewer files, files repeat.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If no file is left for the images of a clip.
    """

    def __init__(
        self,
        dataset: Any,
        files: Sequence[Sequence[int]],
        own: Mapping[int, int],
        count: int,
        unpack: Unpack,
    ) -> None:
        if len(files) < (2 if own else 1):
            raise ValueError(
                "Trainer: image_frames are frames of other clips, so there must be clips of at "
                f"least 2 files to train on, got {len(files)}; give more, or pass image_folder"
            )
        self.dataset, self.files, self.own = dataset, files, own
        self.count, self.unpack = count, unpack
        self._unreadable: dict[int, str] = {}

    def draw(self, clip: int | None, seed: int) -> list[dict[str, Any]]:
        """Draws the images of a clip.

        Args:
            clip: Index of the clip, whose file is excluded; None to exclude none.
            seed: Seed of the draws.

        Raises:
            UnreadableVideoError: If more than a tenth of the files were found unreadable.
        """
        own = None if clip is None else self.own.get(clip)
        images: list[dict[str, Any]] = []
        # a string as the seed, so that these draws are independent of the clip's
        for file in _endless_shuffle(len(self.files), random.Random(f"files {seed}")):
            if len(images) == self.count:
                break
            if file == own or file in self._unreadable:
                continue
            # one generator per image: an unreadable file must not change the next image's draws
            rng = random.Random(f"image {len(images)} of {seed}")
            try:
                images.append(self._read(rng.choice(self.files[file]), rng))
            except UnreadableVideoError as error:
                self._exclude(file, error)
        return images

    def _read(self, index: int, rng: random.Random) -> dict[str, Any]:
        batch = collate([read_item(self.dataset, index, rng.randrange(2**48))])
        videos, conditions = self.unpack(batch)
        # padding frames are not used as images
        mask = conditions.get("frame_mask")
        real = None if mask is None else mask[0].nonzero().flatten().tolist()
        frame = rng.choice(real) if real else rng.randrange(videos.shape[2])
        of_frame = {
            name: _of_frame(name, conditions[name], frame)
            for name in CONDITIONS
            if name in conditions
        }
        return {"video": videos[0, :, frame : frame + 1], **of_frame}

    def _exclude(self, file: int, error: UnreadableVideoError) -> None:
        self._unreadable[file] = str(error)
        count, total = len(self._unreadable), len(self.files)
        if count > total / 10:
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files that images are taken from to be "
                f"unreadable, got {count} so far; repair or remove them, the last being: {error}"
            ) from error
        logger.warning("left out for images: %s", error)


class ClipsWithImages(Dataset[Any]):
    """A dataset of clips with their images.

    Args:
        clips: The clips.
        images: Draws their images.
    """

    def __init__(self, clips: SeededItems, images: ImageDraws) -> None:
        self.clips, self.images = clips, images

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> ClipAndImages:
        """Returns the item `draw.clip` and its images."""
        return ClipAndImages(self.clips[draw], self.images.draw(draw.clip, draw.seed))


def draws_from_clips(
    dataset: Any, indices: Sequence[int], count: int, unpack: Unpack
) -> ImageDraws:
    """Draws images from the training clips themselves.

    Args:
        dataset: The clips. A folder's `Dataset` decodes single frames, any other one whole items.
        indices: Indices of the training clips.
        count: Number of images per clip.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If they are of fewer than two files.
    """
    items = {index: index for index in indices}
    while type(dataset) is Subset:
        items = {index: int(dataset.indices[item]) for index, item in items.items()}
        dataset = dataset.dataset
    paths = dataset.paths if isinstance(dataset, Clips) else None
    numbers: dict[Any, int] = {}
    files: list[list[int]] = []
    own: dict[int, int] = {}
    for index, item in items.items():
        number = numbers.setdefault(item if paths is None else paths[item], len(files))
        if number == len(files):
            files.append([])
        files[number].append(item)
        own[index] = number
    # a subclass may return other items
    source = SingleFrames(dataset) if type(dataset) is Clips else dataset
    return ImageDraws(source, files, own, count, unpack)


def draws_from_pictures(pictures: Any, apart: Set[Any], count: int, unpack: Unpack) -> ImageDraws:
    """Draws images from a dataset of pictures or clips.

    Args:
        pictures: The dataset; `paths`, if it has this attribute, are the files of its items.
        apart: Keys (`splits.file_key`) of files to exclude.
        count: Number of images per clip.
        unpack: Splits a batch into videos and conditions.
    """
    paths = getattr(pictures, "paths", None)
    items = range(len(pictures))
    files = [[i] for i in items if paths is None or file_key(paths[i]) not in apart]
    return ImageDraws(pictures, files, {}, count, unpack)


def join_images(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Joins images to keywords of the diffusion's forward.

    Args:
        batches: `k` dicts, one for each image of a clip: `video` `(b, c, 1, h, w)`, and conditions
            as for `b` clips of one frame.

    Returns:
        `images` `(b, c, k, h, w)` and `image_conditions`, with a row per image.
    """
    videos = [batch["video"] for batch in batches]
    conditions_of_each = [
        {name: v for name, v in batch.items() if name != "video"} for batch in batches
    ]
    if any("null_cond_mask" in one for one in conditions_of_each):
        all_false = torch.zeros(len(videos[0]), dtype=torch.bool, device=videos[0].device)
        conditions_of_each = [{"null_cond_mask": all_false, **one} for one in conditions_of_each]
    if "cond_mask" in conditions_of_each[0]:
        conditions_of_each = to_one_length(conditions_of_each)
    conditions = {
        name: conditions_of_images(name, alike([one[name] for one in conditions_of_each]))
        for name in conditions_of_each[0]
    }
    return {"images": torch.cat(alike(videos), dim=2), "image_conditions": conditions}


def _of_frame(name: str, rows: Any, frame: int) -> Any:
    """The condition of one frame, from a batch of one clip."""
    value = rows[0]
    if name == "frame_cond":
        return value[frame : frame + 1]
    if name == "cond_video":
        return value[:, None] if value.ndim == 3 else value[:, frame : frame + 1]
    return value


def _endless_shuffle(length: int, rng: random.Random) -> Iterator[int]:
    """Endless random permutations of the numbers below `length`, at constant cost per number."""
    while True:
        moved: dict[int, int] = {}
        for place in range(length):
            other = rng.randrange(place, length)
            yield moved.get(other, other)
            moved[other] = moved.get(place, place)
