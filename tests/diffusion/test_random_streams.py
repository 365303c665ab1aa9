"""Streams of random numbers that belong to videos, not to batches."""

import re
import sys

import numpy as np
import pytest
import torch

from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise
from video_diffusion_pytorch.diffusion.random_streams import (
    make_streams,
    stream_seed,
)

SHAPE = (3, 2, 4, 4)


def exactly(message):
    return f"^{re.escape(message)}$"


def draws(streams, count, times=1):
    """The last of several draws, `(count, ...)`."""
    for _ in range(times):
        noise = streams(torch.empty(count, *SHAPE))
    return noise


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# Whose numbers they are


@pytest.mark.parametrize("times", [1, 3])
def test_a_stream_does_not_depend_on_its_batch(times):
    whole = draws(make_streams(5, None, 4, "cpu"), 4, times)
    assert torch.equal(draws(make_streams(5, None, 2, "cpu"), 2, times), whole[:2])
    parts = make_streams(5, None, 4, "cpu")
    assert torch.equal(draws(parts[1:3], 2, times), whole[1:3])
    assert torch.equal(draws(parts[3:], 1, times), whole[3:])
    assert parts[1:3].generators == parts.generators[1:3]


def test_one_seed_per_video():
    each = draws(make_streams([8, 3, 8], None, 3, "cpu"), 3)
    assert torch.equal(each[0], each[2])
    for row, seed in zip(each, (8, 3, 8), strict=True):
        assert torch.equal(draws(make_streams(seed, None, 1, "cpu"), 1)[0], row)


def test_one_generator_for_all_videos():
    generator = torch.Generator().manual_seed(1)
    first, second = (draws(make_streams(None, generator, 2, "cpu"), 2) for _ in range(2))
    assert not torch.equal(first, second)
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(draws(make_streams(None, generator, 3, "cpu"), 3)[:2], first)
    assert torch.equal(draws(make_streams(None, generator, 2, "cpu"), 2), second)


def test_a_generator_per_video():
    pair = generators(4, 6)
    streams = make_streams(None, pair, 2, "cpu")
    assert streams.generators == pair
    for row, seed in zip(draws(streams, 2, times=2), (4, 6), strict=True):
        (alone,) = generators(seed)
        torch.randn(SHAPE, generator=alone)
        assert torch.equal(row, torch.randn(SHAPE, generator=alone))


def test_the_global_stream():
    streams = make_streams(None, None, 2, "cpu")
    assert streams is draw_noise
    torch.manual_seed(0)
    found = draws(streams, 2)
    torch.manual_seed(0)
    assert torch.equal(found, torch.randn(2, *SHAPE))


def test_seeds_leave_the_global_stream_alone():
    before = torch.get_rng_state()
    draws(make_streams(5, None, 4, "cpu"), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_of_numpy():
    expected = draws(make_streams(5, None, 1, "cpu"), 1)
    assert torch.equal(draws(make_streams(np.int64(5), None, 1, "cpu"), 1), expected)
    assert torch.equal(draws(make_streams([np.uint8(5)], None, 1, "cpu"), 1), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_draws_have_the_shape_and_type_of_their_argument(dtype):
    like = torch.empty(2, *SHAPE, dtype=dtype).transpose(1, 3)
    noise = make_streams(0, None, 2, "cpu")(like)
    assert (noise.shape, noise.dtype, noise.device) == (like.shape, dtype, like.device)


def test_draws_move_to_another_device():
    like = torch.empty(2, *SHAPE, device="meta")
    assert make_streams(0, None, 2, "cpu")(like).device.type == "meta"


# How good they are


def test_neighbours_are_unrelated():
    rows = torch.cat(
        [
            make_streams(seed, None, 40, "cpu")(torch.empty(40, 10_000, dtype=torch.float64))
            for seed in (0, 1, 2**32, 2**64)
        ]
    )
    correlations = torch.corrcoef(rows) - torch.eye(len(rows)).double()
    assert correlations.abs().max() < 6 / 100
    torch.testing.assert_close(rows.mean(), torch.zeros(()).double(), rtol=0, atol=5e-3)
    torch.testing.assert_close(rows.var(), torch.ones(()).double(), rtol=0, atol=1e-2)


def test_no_two_streams_of_a_seed_are_the_same():
    """In the 32 bits that torch takes on the CPU, of which random ones would collide."""
    count = 200_000
    lower = {stream_seed(3, index) % 2**32 for index in range(count)}
    assert len(lower) == count
    # half of all pairs of bits differ, as far apart as they are
    bits = [(stream_seed(3, i) ^ stream_seed(3, i + 1)) % 2**32 for i in range(1000)]
    assert 15 < np.mean([bin(word).count("1") for word in bits]) < 17


# Errors


def test_both_seed_and_generator():
    message = (
        "sample: one of seed and generator must be None, got seed 5 and a generator; leave one out"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        make_streams(5, generators(0)[0], 2, "cpu")


@pytest.mark.parametrize("seed", [-5, [3, -5]])
def test_negative_seeds(seed):
    with pytest.raises(ValueError, match="sample: a seed must be 0 or greater, got"):
        make_streams(seed, None, 2, "cpu")


@pytest.mark.parametrize("seed", ["ab", 1.5, [1, None], {1, 2}, [1, 2, 3]])
def test_seeds_of_another_kind_or_number(seed):
    message = (
        "sample: expected a seed, an integer, for all videos, or a list of one per video, 2, got "
        f"{seed!r}"
    )
    with pytest.raises(ValueError, match=exactly(message)):
        make_streams(seed, None, 2, "cpu")


@pytest.mark.parametrize("generator", [7, [7, 8], sys, generators(0, 1, 2)])
def test_generators_of_another_kind_or_number(generator):
    message = (
        "sample: expected a torch.Generator for all videos, or a list of one per video, 2, got "
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make_streams(None, generator, 2, "cpu")
