import random
import re
from itertools import islice
from typing import NamedTuple

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.data.errors import UnreadableVideoError
from video_diffusion_pytorch.training.batches import (
    Draw,
    EndlessShuffle,
    SeededItems,
    collate,
    unpack_batch,
)


def take(order, count):
    return list(islice(iter(order), count))


def test_each_epoch_has_each_clip_once_in_another_order():
    order = EndlessShuffle(range(10), seed=3)
    indices = [draw.clip for draw in take(order, 30)]
    epochs = [indices[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("position", [0, 1, 9, 10, 11, 25])
def test_the_order_continues_from_any_position(position):
    order = EndlessShuffle(range(10), seed=3)
    whole = take(order, 40)
    order.position = position
    assert take(order, 40 - position) == whole[position:]


def test_the_seed_decides_the_order():
    assert take(EndlessShuffle(range(50), 1), 50) == take(EndlessShuffle(range(50), 1), 50)
    assert take(EndlessShuffle(range(50), 1), 50) != take(EndlessShuffle(range(50), 2), 50)


def test_only_the_indices_given_are_drawn():
    assert {draw.clip for draw in take(EndlessShuffle([4, 7], 1), 9)} == {4, 7}
    assert take(EndlessShuffle((), 1), 9) == []


def test_no_seed_comes_twice():
    seeds = [draw.seed for seed in range(3) for draw in take(EndlessShuffle(range(7), seed), 500)]
    assert len(set(seeds)) == 1500


class Drawing:
    """Items that draw from all global generators; the third is broken."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 3:
            raise UnreadableVideoError("cannot read 3")
        return index, random.random(), np.random.rand(), float(torch.rand(()))


class OwnGenerator(Drawing):
    def draw_clip(self, index, generator):
        if index == 3:
            raise UnreadableVideoError("cannot read 3")
        return index, float(torch.rand((), generator=generator))


@pytest.mark.parametrize("dataset", [Drawing(), OwnGenerator()])
def test_what_is_random_about_an_item_follows_from_its_seed(dataset):
    items = SeededItems(dataset)
    assert len(items) == 20
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    item = items[Draw(5, 2**31 * 1_000_003)]
    after = random.random(), np.random.rand(), float(torch.rand(()))
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    # the caller's generators are as they were
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))
    assert items[Draw(5, 2**31 * 1_000_003)] == item
    assert items[Draw(5, 1)] != item
    assert items[Draw(3, 1)][0] == 4


@pytest.mark.parametrize("kind", [Drawing, OwnGenerator])
def test_a_broken_item_does_not_change_the_next_ones_draws(kind):
    items = SeededItems(kind())
    # the second time it is known to be broken, and not tried
    assert items[Draw(3, 11)] == items[Draw(3, 11)] == SeededItems(kind())[Draw(4, 11)]


def test_a_subclass_may_override_getitem():
    class Dimmed(OwnGenerator):
        def __getitem__(self, index):
            return index * 2

    class Brighter(Dimmed):
        def draw_clip(self, index, generator):
            return index * 3

    assert SeededItems(Dimmed())[Draw(5, 1)] == 10
    assert SeededItems(Brighter())[Draw(5, 1)] == 15
    assert SeededItems([7, 8])[Draw(1, 1)] == 8


class Pair(NamedTuple):
    video: torch.Tensor
    cond: list[float]


def test_named_tuples_stay_named_tuples():
    batch = collate([Pair(torch.zeros(2), [1.0, 2.0]), Pair(torch.ones(2), [3.0, 4.0])])
    assert isinstance(batch, Pair)
    assert batch.cond.tolist() == [[1, 2], [3, 4]]


def test_two_keys_for_one_thing():
    message = r"one key per condition, got \['caption', 'text', 'video'\]; rename them"
    with pytest.raises(ValueError, match=message):
        unpack_batch({"video": 1, "text": 2, "caption": 3})


@pytest.mark.parametrize("order", [1, -1])
def test_dicts_among_other_items(order):
    clip = torch.rand(1, 2, 4, 4)
    items = [{"video": clip, "frame_mask": torch.ones(2, dtype=torch.bool)}, clip]
    with pytest.raises(ValueError, match=r"must be all dicts .*, or none, got .*no dict"):
        collate(items[::order])


def test_collating():
    items = [{"video": torch.full((1, 2, 3, 3), float(i)), "cond": None, "n": i} for i in range(3)]
    items[1]["cond"] = "a cat"
    batch = collate(items)
    assert batch["video"].shape == (3, 1, 2, 3, 3)
    assert batch["video"][:, 0, 0, 0, 0].tolist() == [0, 1, 2]
    assert batch["cond"] == [None, "a cat", None]
    assert batch["n"].tolist() == [0, 1, 2]
    assert collate([(torch.zeros(2), "a"), (torch.ones(2), "b")])[1] == ["a", "b"]
    assert collate([torch.zeros(2), torch.ones(2)]).tolist() == [[0, 0], [1, 1]]
    assert collate([1.5, 2.5]).tolist() == [1.5, 2.5]


def test_bytes_and_floats_may_be_mixed():
    pixels = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    batch = collate([pixels, torch.full((1, 1, 2, 2), 0.5)])
    assert batch[:, 0, 0, 0, 0].tolist() == [1, 0.5]


def test_frames_with_their_channels_last_stay_so():
    clips = [torch.rand(4, 8, 8, 3).permute(3, 0, 1, 2) for _ in range(2)]
    batch = collate(clips)
    assert torch.equal(batch, torch.stack(clips))
    assert batch.is_contiguous(memory_format=torch.channels_last_3d)


def test_items_that_make_no_batch():
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        collate([torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 3)])
    message = r"same keys, or none, got \['cond', 'video'\] and \['video'\]; give each all keys"
    with pytest.raises(ValueError, match=message):
        collate([{"video": torch.zeros(1), "cond": "a"}, {"video": torch.zeros(1)}])


def test_unpacking():
    video, cond = torch.rand(2, 1, 3, 4, 4), torch.rand(2, 5)
    assert unpack_batch(video) == (video, {})
    assert unpack_batch((video,)) == (video, {})
    assert unpack_batch([video, cond]) == (video, {"cond": cond})
    assert unpack_batch((video, ["a", "b"])) == (video, {"cond": ["a", "b"]})
    batch = {"video": video, "cond": cond, "focus_present_mask": None}
    assert unpack_batch(batch) == (video, {"cond": cond, "focus_present_mask": None})
    webdataset = {"__key__": ["1"], "video": video, "text": ["a"], "label": [1]}
    assert unpack_batch(webdataset) == (video, {"cond": ["a"], "labels": [1]})


@pytest.mark.parametrize(
    ("condition", "keyword"),
    [
        (torch.tensor([1, 2]), "labels"),
        (torch.rand(2, 3), "cond"),
        (["a", None], "cond"),
        (torch.rand(2, 4, 3), "frame_cond"),
        (torch.rand(2, 1, 8, 8), "cond_video"),
        (torch.rand(2, 1, 4, 8, 8), "cond_video"),
    ],
)
def test_what_the_second_of_a_tuple_is(condition, keyword):
    video = torch.rand(2, 1, 3, 4, 4)
    assert unpack_batch((video, condition)) == (video, {keyword: condition})


@pytest.mark.parametrize(
    ("batch", "error", "text"),
    [
        (
            {"clip": 1, "cond": 2},
            ValueError,
            "must have the key 'video', and one key per condition",
        ),
        (
            (1, 2, 3),
            TypeError,
            "must be a tensor of clips (b, c, f, h, w), (clips, cond), or a dict",
        ),
        ("clip", TypeError, "got str for the clips; change the dataset"),
    ],
)
def test_other_batches_are_refused(batch, error, text):
    with pytest.raises(error, match=re.escape(text)):
        unpack_batch(batch)


def test_states_of_several_lengths_are_filled_up():
    items = [{"video": torch.ones(1, 2, 3, 3), "cond": torch.ones(n, 4)} for n in (2, 5, 1)]
    batch = collate(items)
    assert batch["cond"].shape == (3, 5, 4)
    assert batch["cond_mask"].sum(dim=1).tolist() == [2, 5, 1]
    assert torch.equal(batch["cond"][..., 0] > 0, batch["cond_mask"])
    # of one length, with a mask of their own, or of several widths nothing is done
    assert "cond_mask" not in collate(items[:1] * 2)
    masked = [{"cond": torch.ones(2, 4), "cond_mask": torch.ones(2) > 0}] * 2
    assert collate(masked)["cond_mask"].shape == (2, 2)
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        collate([{"cond": torch.ones(2, 4)}, {"cond": torch.ones(3, 5)}])
