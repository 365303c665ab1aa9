"""Embeddings of the time step and of frames' places."""

import math
from pathlib import Path

import pytest
import torch

from video_diffusion_pytorch.model import embeddings
from video_diffusion_pytorch.model.embeddings import (
    RelativePositionBias,
    SinusoidalPosEmb,
    rotary_tables,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = torch.load(GOLDEN / "blocks_0.7.0.pt", weights_only=True)["cases"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["RelativePositionBias", "SinusoidalPosEmb"])
def test_same_numbers_as_the_reference(name):
    case = CASES[name]
    layer = getattr(embeddings, name)(**case["kwargs"])
    layer.load_state_dict(case["state_dict"])
    output = layer(*case["args"], **case["call"])
    torch.testing.assert_close(output, case["output"], rtol=0, atol=1e-5)


# Time


def test_sinusoids_are_sines_and_cosines_of_a_geometric_series():
    times = torch.tensor([0, 1, 250, 999])
    embedded = SinusoidalPosEmb(10)(times)
    assert embedded.shape == (4, 10)
    for row, time in zip(embedded.double(), times.tolist(), strict=True):
        for i in range(5):
            angle = time * 10_000 ** (-i / 4)
            assert row[i] == pytest.approx(math.sin(angle), abs=1e-4)
            assert row[5 + i] == pytest.approx(math.cos(angle), abs=1e-4)


@pytest.mark.parametrize("dim", [2, 7])
def test_a_width_that_cannot_be(dim):
    message = f"SinusoidalPosEmb: dim must be an even number, at least 4, got {dim}; round"
    with pytest.raises(ValueError, match=message):
        SinusoidalPosEmb(dim)


# Place among the frames


def bucket_rows(n, **config):
    """The bias of a layer whose table holds each bucket's own number."""
    layer = RelativePositionBias(heads=1, **config)
    with torch.no_grad():
        layer.relative_attention_bias.weight.copy_(torch.arange(layer.num_buckets)[:, None])
        return layer(n, device="cpu")[0].long()


def test_buckets_are_exact_for_near_frames_and_coarser_for_far_ones():
    n = 200
    buckets = bucket_rows(n, num_buckets=32, max_distance=128)
    middle = 100
    later, earlier = buckets[middle, middle + 1 :], buckets[middle, :middle].flip(0)
    assert buckets[middle, middle] == 0
    # a bucket each for distances below 8, then wider and wider ones
    assert later[:7].tolist() == [17, 18, 19, 20, 21, 22, 23]
    assert earlier[:7].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (later[:99] - earlier[:99] == 16).all()
    assert (later.diff() >= 0).all()
    _, widths = later[7:].unique_consecutive(return_counts=True)
    assert (widths[:-1].diff() >= 0).all()


def test_all_beyond_the_largest_distance_share_a_bucket():
    row = bucket_rows(300, num_buckets=16, max_distance=64)[0]
    assert (row[64:] == 15).all()
    assert row[30] < 15


def test_the_bias_is_one_of_the_difference_per_head():
    layer = RelativePositionBias(heads=3, max_distance=32)
    bias = layer(40, device="cpu")
    assert bias.shape == (3, 40, 40)
    assert torch.equal(bias[:, 1:, 1:], bias[:, :-1, :-1])
    assert not torch.equal(bias, bias.transpose(1, 2))
    # a longer clip has the same biases
    assert torch.equal(layer(50, device="cpu")[:, :40, :40], bias)


def test_the_tables_of_rotation_hold_the_angle_of_each_frame():
    frequencies = torch.tensor([1.0, 0.25])
    cos, sin = rotary_tables(frequencies.bfloat16(), 300)
    assert cos.dtype == sin.dtype == torch.float32
    for frame in (0, 1, 299):
        for pair, frequency in enumerate(frequencies.tolist()):
            assert cos[frame, pair] == pytest.approx(math.cos(frame * frequency), abs=1e-4)
            assert sin[frame, pair] == pytest.approx(math.sin(frame * frequency), abs=1e-4)
