"""Images beside the clips: single frames of other clips, drawn by seed, with their conditions."""

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
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.single_frames import SingleFrames
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
    """An item, or a batch of them: a clip as its dataset gives it, and the images that go with it.

    Attributes:
        clip: The item of the dataset.
        images: For each image a dict: `video` `(c, 1, h, w)`, and its conditions by keyword.
    """

    clip: Any
    images: list[dict[str, Any]]


class ImageDraws:
    """Draws images for clips: single frames out of a dataset, each of another file.

    Which files and which frames is a function of a seed alone.

    Args:
        dataset: Has a length; its items are read as those of `SeededItems`.
        files: For each file the indices of its items.
        own: By number of a clip, which of the files it is from; missing for clips from elsewhere.
        count: Number of images of a clip; where there are fewer files, they are gone through again.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If there is no file that a clip is not from.
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
        """The images of a clip.

        Args:
            clip: Its number, to leave its file out; None for one from elsewhere.
            seed: Of all that is random about them.

        Raises:
            UnreadableVideoError: More than a tenth of the files are known to be unreadable.
        """
        own = None if clip is None else self.own.get(clip)
        images: list[dict[str, Any]] = []
        # a text as the seed, so that these draws have nothing to do with those of the clip
        for file in _shuffled_for_ever(len(self.files), random.Random(f"files {seed}")):
            if len(images) == self.count:
                break
            if file == own or file in self._unreadable:
                continue
            # anew for each image: a file that cannot be read must not change the next one's draws
            rng = random.Random(f"image {len(images)} of {seed}")
            try:
                images.append(self._read(rng.choice(self.files[file]), rng))
            except UnreadableVideoError as error:
                self._leave_out(file, error)
        return images

    def _read(self, index: int, rng: random.Random) -> dict[str, Any]:
        batch = collate([read_item(self.dataset, index, rng.randrange(2**48))])
        videos, told = self.unpack(batch)
        # padding is no image
        real = told["frame_mask"][0].nonzero().flatten().tolist() if "frame_mask" in told else None
        frame = rng.choice(real) if real else rng.randrange(videos.shape[2])
        known = {name: _of_frame(name, told[name], frame) for name in CONDITIONS if name in told}
        return {"video": videos[0, :, frame : frame + 1], **known}

    def _leave_out(self, file: int, error: UnreadableVideoError) -> None:
        self._unreadable[file] = str(error)
        count, total = len(self._unreadable), len(self.files)
        if count > total / 10:
            raise UnreadableVideoError(
                f"expected at most a tenth of the {total} files that images are taken from to be "
                f"unreadable, got {count} so far; repair or remove them, the last being: {error}"
            ) from error
        logger.warning("left out for images: %s", error)


class ClipsWithImages(Dataset[Any]):
    """Clips with the images that are trained with each.

    Args:
        clips: The clips.
        images: Draws their images.
    """

    def __init__(self, clips: SeededItems, images: ImageDraws) -> None:
        self.clips, self.images = clips, images

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, draw: Draw) -> ClipAndImages:
        """Gives the item of `draw.clip` and its images."""
        return ClipAndImages(self.clips[draw], self.images.draw(draw.clip, draw.seed))


def draws_from_clips(
    dataset: Any, indices: Sequence[int], count: int, unpack: Unpack
) -> ImageDraws:
    """Images for the clips of a dataset, out of its other clips.

    Args:
        dataset: The clips. Of a folder's `Dataset` single frames are decoded, of any other one
            whole items.
        indices: Of the clips that are trained on.
        count: Number of images of a clip.
        unpack: Splits a batch into videos and conditions.

    Raises:
        ValueError: If there are not two files of them.
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
    # a class of the user's own may give other items
    source = SingleFrames(dataset) if type(dataset) is Clips else dataset
    return ImageDraws(source, files, own, count, unpack)


def draws_from_pictures(pictures: Any, apart: Set[Any], count: int, unpack: Unpack) -> ImageDraws:
    """Images out of a dataset of pictures or clips.

    Args:
        pictures: The dataset; its `paths`, if it has some, say which file an item is of.
        apart: Keys (`splits.file_key`) of files that are not trained on.
        count: Number of images of a clip.
        unpack: Splits a batch into videos and conditions.
    """
    paths = getattr(pictures, "paths", None)
    items = range(len(pictures))
    files = [[i] for i in items if paths is None or file_key(paths[i]) not in apart]
    return ImageDraws(pictures, files, {}, count, unpack)


def join_images(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Keywords of the diffusion for the first, second, ... image of each clip.

    Args:
        batches: Of each `k` a dict: `video` `(b, c, 1, h, w)`, and conditions as for `b` clips of
            one frame.

    Returns:
        `images` `(b, c, k, h, w)` and `image_conditions`, with a row per image.
    """
    videos = [batch["video"] for batch in batches]
    told = [{name: v for name, v in batch.items() if name != "video"} for batch in batches]
    if any("null_cond_mask" in one for one in told):
        nowhere = torch.zeros(len(videos[0]), dtype=torch.bool, device=videos[0].device)
        told = [{"null_cond_mask": nowhere, **one} for one in told]
    if "cond_mask" in told[0]:
        told = to_one_length(told)
    conditions = {
        name: conditions_of_images(name, alike([one[name] for one in told])) for name in told[0]
    }
    return {"images": torch.cat(alike(videos), dim=2), "image_conditions": conditions}


def _of_frame(name: str, rows: Any, frame: int) -> Any:
    """What the only clip of a batch is told at one frame."""
    value = rows[0]
    if name == "frame_cond":
        return value[frame : frame + 1]
    if name == "cond_video":
        return value[:, None] if value.ndim == 3 else value[:, frame : frame + 1]
    return value


def _shuffled_for_ever(length: int, rng: random.Random) -> Iterator[int]:
    """All numbers below `length` in random order, again and again; each costs the same."""
    while True:
        moved: dict[int, int] = {}
        for place in range(length):
            other = rng.randrange(place, length)
            yield moved.get(other, other)
            moved[other] = moved.get(place, place)
