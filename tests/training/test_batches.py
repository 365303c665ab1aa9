import re
from itertools import islice

import pytest
import torch

from video_diffusion_pytorch.training.batches import (
    Endless,
    EndlessShuffle,
    repeat_to,
    unpack_batch,
)


def take(order, count):
    return list(islice(iter(order), count))


def test_each_epoch_has_each_clip_once_in_another_order():
    order = EndlessShuffle(range(10), seed=3)
    indices = take(order, 30)
    epochs = [indices[i : i + 10] for i in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("position", [0, 1, 9, 10, 11, 25])
def test_the_order_goes_on_from_any_position(position):
    order = EndlessShuffle(range(10), seed=3)
    whole = take(order, 40)
    order.position = position
    assert take(order, 40 - position) == whole[position:]


def test_the_seed_decides_the_order():
    assert take(EndlessShuffle(range(50), 1), 50) == take(EndlessShuffle(range(50), 1), 50)
    assert take(EndlessShuffle(range(50), 1), 50) != take(EndlessShuffle(range(50), 2), 50)


def test_endless_begins_again():
    batches = Endless([1, 2])
    assert list(islice(batches, 5)) == [1, 2, 1, 2, 1]
    batches.restart()
    assert next(batches) == 1


def test_endless_goes_on_after_an_interrupt():
    def loader():
        yield 1
        raise KeyboardInterrupt

    class Loader:
        __iter__ = staticmethod(loader)

    batches = Endless(Loader())
    assert next(batches) == 1
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert next(batches) == 1


def test_endless_refuses_an_empty_loader():
    with pytest.raises(ValueError, match="must give at least one batch, got none; check"):
        next(Endless([]))


def test_unpacking():
    video, cond = torch.rand(2, 1, 3, 4, 4), torch.rand(2, 5)
    assert unpack_batch(video) == (video, {})
    assert unpack_batch((video,)) == (video, {})
    assert unpack_batch([video, cond]) == (video, {"cond": cond})
    assert unpack_batch((video, ["a", "b"])) == (video, {"cond": ["a", "b"]})
    batch = {"video": video, "cond": cond, "focus_present_mask": None}
    assert unpack_batch(batch) == (video, {"cond": cond, "focus_present_mask": None})


@pytest.mark.parametrize(
    ("batch", "error", "text"),
    [
        ({"clip": 1, "cond": 2}, ValueError, "must have the key 'video', got ['clip', 'cond']"),
        ((1, 2, 3), ValueError, "must be (video,) or (video, cond), got 3 items"),
        ("clip", TypeError, "must be a tensor, a tuple or a dict, got str"),
    ],
)
def test_other_batches_are_refused(batch, error, text):
    with pytest.raises(error, match=re.escape(text)):
        unpack_batch(batch)


def test_conditions_repeat():
    assert repeat_to(["a", "b", "c"], 5) == ["a", "b", "c", "a", "b"]
    assert repeat_to(torch.arange(3), 4).tolist() == [0, 1, 2, 0]
    assert repeat_to(torch.arange(9), 2).tolist() == [0, 1]
