"""Which images go with which clip, and how they come into a batch."""

import logging
import re
from collections import Counter

import pytest
import torch
from torch.utils.data import Dataset, Subset

from video_diffusion_pytorch.data import dataset as clip_dataset
from video_diffusion_pytorch.data.dataset import SingleFrames
from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
from video_diffusion_pytorch.training.batches import (
    ClipAndImages,
    ClipsWithImages,
    Draw,
    ImageDraws,
    SeededItems,
    collate,
    draws_from_clips,
    join_images,
    unpack_batch,
)

FRAMES = 3


class Numbered(Dataset):
    """Clips whose values tell their number, and the first digit after the point their frame."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableVideoError(f"clip {index} is damaged")
        frames = index + torch.arange(FRAMES) / 10
        return {
            "video": frames.view(1, -1, 1, 1).expand(2, -1, 4, 4),
            "text": None if index == 1 else f"clip {index}",
            "label": index,
            "frame_cond": frames[:, None],
            "cond_video": frames.view(1, -1, 1, 1).expand(1, -1, 4, 4),
        }


def number_of(image):
    return int(image["video"].flatten()[0])


def draws(dataset, indices=None, count=2):
    indices = range(len(dataset)) if indices is None else indices
    return draws_from_clips(dataset, indices, count, unpack_batch)


@pytest.fixture
def parts(tmp_path):
    """Five files of nine frames, cut into three clips each."""
    for number in range(5):
        video_tensor_to_gif(
            torch.full((1, 9, 8, 8), (10 + 20 * number) / 255), tmp_path / f"{number}.gif"
        )
    return clip_dataset.Dataset(
        tmp_path, 8, channels=1, num_frames=FRAMES, clip_start="all", as_uint8=True
    )


# Which


def test_images_are_of_other_clips_each_of_another():
    images = draws(Numbered(6), count=3)
    seen = Counter()
    for seed in range(200):
        drawn = [number_of(image) for image in images.draw(2, seed)]
        assert len(set(drawn)) == 3
        seen.update(drawn)
    # all others, about equally often: 600 draws of 5
    assert seen.keys() == {0, 1, 3, 4, 5}
    assert all(80 < count < 160 for count in seen.values())


def test_where_there_are_few_clips_they_come_again():
    images = draws(Numbered(3), count=5)
    for seed in range(20):
        drawn = Counter(number_of(image) for image in images.draw(0, seed))
        assert drawn.keys() == {1, 2}
        assert sorted(drawn.values()) in ([2, 3],)


def test_clips_that_are_held_out_give_no_images():
    images = draws(Numbered(8), indices=[0, 2, 4, 6], count=3)
    drawn = {number_of(image) for seed in range(50) for image in images.draw(4, seed)}
    assert drawn == {0, 2, 6}
    # a clip from elsewhere leaves none out
    drawn = {number_of(image) for seed in range(50) for image in images.draw(None, seed)}
    assert drawn == {0, 2, 4, 6}


def test_no_image_is_of_another_part_of_the_same_file(parts):
    images = draws(parts, count=4)
    assert isinstance(images.dataset, SingleFrames)
    for clip in range(15):
        for seed in range(5):
            values = [int(image["video"][0, 0, 0, 0]) for image in images.draw(clip, seed)]
            assert sorted((value - 10) // 20 for value in values) == [
                number for number in range(5) if number != clip // 3
            ]


def test_parts_of_a_dataset_are_seen_through(parts):
    some = Subset(Subset(parts, torch.arange(14, -1, -1)), range(6))  # files 4 and 3
    images = draws(some, count=2)
    assert isinstance(images.dataset, SingleFrames)
    for clip, other in ((0, 3), (2, 3), (3, 4), (5, 4)):
        for image in images.draw(clip, 0):
            assert (int(image["video"][0, 0, 0, 0]) - 10) // 20 == other


def test_classes_of_the_users_give_their_own_items(parts):
    class Brighter(clip_dataset.Dataset):
        def __getitem__(self, index):
            return super().__getitem__(index) + 1

    brighter = Brighter(parts.folder, 8, channels=1, num_frames=FRAMES, as_uint8=True)
    values = [image["video"].unique().item() for image in draws(brighter).draw(0, 0)]
    assert {value % 20 for value in values} == {11}


@pytest.mark.parametrize("count", [0, 1])
def test_there_must_be_another_clip(count):
    message = (
        f"Trainer: image_frames must be frames of other clips, got clips of {count} files to train "
        "on; give more, or pass image_folder"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        draws(Numbered(5), indices=range(count))


# What they are


def test_a_frame_is_drawn_with_its_conditions():
    images = draws(Numbered(5))
    frames = set()
    for seed in range(60):
        for image in images.draw(0, seed):
            value = image["video"].unique()
            assert image["video"].shape == (2, 1, 4, 4)
            assert len(value) == 1
            number = int(value)
            frames.add(round(10 * (value.item() - number)))
            assert image["cond"] == (None if number == 1 else f"clip {number}")
            assert image["labels"] == number
            assert torch.equal(image["frame_cond"], value[:, None])
            assert torch.equal(image["cond_video"], value.expand(1, 1, 4, 4))
    assert frames == {0, 1, 2}


def test_padding_is_no_image():
    class Padded(Numbered):
        def __getitem__(self, index):
            mask = torch.tensor([True, False, index == 0])
            return {"video": super().__getitem__(index)["video"], "frame_mask": mask}

    images = draws(Padded(3))
    drawn = [
        image["video"][0, 0, 0, 0].item() for seed in range(60) for image in images.draw(2, seed)
    ]
    assert {round(value, 1) for value in drawn} == {0.0, 0.2, 1.0}


def test_clips_without_conditions_or_with_a_constant_field():
    plain = draws([torch.full((1, FRAMES, 4, 4), float(i)) for i in range(3)]).draw(0, 0)
    assert [image.keys() for image in plain] == [{"video"}] * 2
    fields = [(torch.rand(1, FRAMES, 4, 4), torch.full((2, 4, 4), float(i))) for i in range(3)]
    for image in draws(fields).draw(0, 0):
        assert image["cond_video"].shape == (2, 1, 4, 4)


def test_other_keys_stay_with_their_clips():
    items = [{"video": torch.rand(1, 2, 4, 4), "mood": i, "__key__": "x"} for i in range(3)]
    assert draws(items).draw(0, 0)[0].keys() == {"video"}


# Of what they are a function


def test_images_are_a_function_of_the_seed():
    images = draws(Numbered(50), count=4)

    def drawn(seed):
        return [image["video"][0, 0, 0, 0].item() for image in images.draw(0, seed)]

    first = drawn(3)
    torch.rand(5)
    assert drawn(3) == first == drawn(3)
    assert len({tuple(drawn(seed)) for seed in range(20)}) == 20


def test_random_items_are_drawn_again_and_leave_other_draws_alone():
    items = draws([torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)], count=6)
    items.dataset = Random()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    values = [image["video"].item() for image in items.draw(0, 1)]
    assert torch.equal(torch.rand(3), expected)
    assert len(set(values)) == 6
    assert values == [image["video"].item() for image in items.draw(0, 1)]


class Random(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.rand(1, 1, 1, 1)


# Damaged files


def test_damaged_clips_are_left_out_and_named_once(caplog):
    images = draws(Numbered(20, broken=[7, 8]), count=3)
    whole = draws(Numbered(20), count=3)
    with caplog.at_level(logging.WARNING, "video_diffusion_pytorch"):
        for seed in range(40):
            drawn = [number_of(image) for image in images.draw(0, seed)]
            assert len(drawn) == 3
            assert not {0, 7, 8} & set(drawn)
            # the other draws are as they would have been
            kept = [n for n in map(number_of, whole.draw(0, seed)) if n not in (7, 8)]
            assert drawn[: len(kept)] == kept
    assert sorted(caplog.messages) == [
        f"left out for images: clip {number} is damaged" for number in (7, 8)
    ]


def draw_often(images):
    for seed in range(40):
        images.draw(0, seed)


def test_too_many_damaged_clips_end_the_training():
    images = draws(Numbered(20, broken=[7, 8, 9]), count=3)
    message = (
        r"expected at most a tenth of the 20 files of images to be unreadable, got 3; repair or "
        r"remove them, the last being: clip \d is damaged"
    )
    with pytest.raises(UnreadableVideoError, match=message):
        draw_often(images)
    # also where it is the only other one
    with pytest.raises(UnreadableVideoError, match="a tenth of the 2 files"):
        draws(Numbered(2, broken=[1])).draw(0, 0)


# How they come into a batch


def test_batches_of_clips_with_images():
    clips = Numbered(6)
    joint = ClipsWithImages(SeededItems(clips), draws(clips))
    assert len(joint) == 6
    batch = collate([joint[Draw(clip, 7 + clip)] for clip in (2, 3, 5)])
    assert isinstance(batch, ClipAndImages)
    assert batch.clip["label"].tolist() == [2, 3, 5]
    assert len(batch.images) == 2
    for image in batch.images:
        assert image["video"].shape == (3, 2, 1, 4, 4)
        assert image["labels"].tolist() == image["video"][:, 0, 0, 0, 0].int().tolist()


def test_images_of_a_clip_stand_side_by_side():
    def batch(number, **more):
        base = 10 * number
        return {
            "video": torch.full((2, 3, 1, 4, 4), base),
            "cond": torch.full((2, 5), base),
            "labels": torch.tensor([base, base + 1]),
            "frame_cond": torch.full((2, 1, 6), base),
            "cond_video": torch.full((2, 7, 1, 4, 4), base),
            **more,
        }

    mask = torch.tensor([True, False])
    told = join_images([batch(0), batch(1, null_cond_mask=mask)])
    conditions = told.pop("image_conditions")
    assert {name: tuple(value.shape) for name, value in conditions.items()} == {
        "cond": (2, 2, 5),
        "labels": (2, 2),
        "frame_cond": (2, 2, 6),
        "cond_video": (2, 7, 2, 4, 4),
        "null_cond_mask": (2, 2),
    }
    assert told["images"].shape == (2, 3, 2, 4, 4)
    assert told["images"][0, 0, :, 0, 0].tolist() == [0, 10]
    assert conditions["labels"].tolist() == [[0, 10], [1, 11]]
    assert conditions["frame_cond"][0, :, 0].tolist() == [0, 10]
    assert conditions["cond_video"][0, 0, :, 0, 0].tolist() == [0, 10]
    assert conditions["null_cond_mask"].tolist() == [[False, True], [False, False]]


def test_images_with_captions_of_several_lengths():
    batches = []
    for number, length in enumerate((2, 4, 1)):
        mask = torch.ones(2, length, dtype=torch.bool)
        cond = torch.full((2, length, 3), float(number))
        batches.append({"video": torch.zeros(2, 1, 1, 8, 8), "cond": cond, "cond_mask": mask})
    told = join_images(batches)["image_conditions"]
    assert told["cond"].shape == (2, 3, 4, 3)
    assert told["cond_mask"].sum(dim=2).tolist() == [[2, 4, 1]] * 2
    for number in range(3):
        assert (told["cond"][:, number][told["cond_mask"][:, number]] == number).all()


def test_images_of_bytes_and_of_floats_become_floats():
    batches = [
        {"video": torch.full((1, 1, 1, 2, 2), 255, dtype=torch.uint8)},
        {"video": torch.full((1, 1, 1, 2, 2), 0.5)},
    ]
    images = join_images(batches)["images"]
    assert images[0, 0, :, 0, 0].tolist() == [1.0, 0.5]
    assert join_images(batches[:1])["images"].dtype == torch.uint8


def test_shuffling_files_needs_no_list():
    # with a hundred thousand clips a draw must not go through all of them
    images = ImageDraws(Numbered(10**9), range(10**9), {0: 0}, 2, unpack_batch)
    images.files = Identity()
    assert len(images.draw(0, 0)) == 2


class Identity:
    """A billion files of one item."""

    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return [index % 100]
