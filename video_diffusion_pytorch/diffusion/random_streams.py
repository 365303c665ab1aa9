"""Random streams of sampling: one per video, independent of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.noise_schedule import Noise, draw_noise

_WORD = 2**32


class RandomStreams:
    """Draws the noise of a batch, each video's from its own generator.

    Args:
        generators: One per video. Each draws on its own device; the draws are moved.

    Example:
        >>> streams = RandomStreams([torch.Generator().manual_seed(i) for i in range(3)])
        >>> streams(torch.empty(3, 1, 4, 8, 8)).shape
        torch.Size([3, 1, 4, 8, 8])
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    def __getitem__(self, rows: slice) -> RandomStreams:
        """The streams of a part of the batch, which continue."""
        return RandomStreams(self.generators[rows])

    def __call__(self, like: Tensor) -> Tensor:
        """Draws standard normal noise of the shape, type and device of `like`, `(b, ...)`."""
        noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        for row, source in zip(noise, self.generators, strict=True):
            drawn = torch.randn(row.shape, generator=source, dtype=row.dtype, device=source.device)
            row.copy_(drawn)
        return noise


def make_streams(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
    device: torch.device | str,
) -> Noise:
    """The source of noise for a seed or a generator.

    Args:
        seed: For all videos: the `i`-th stream depends on the seed and on `i` alone. Or one per
            video, whose stream is that of a first video with this seed. None for none.
        generator: One from which a seed for all videos is drawn, or one per video. None for none.
        count: Number of videos.
        device: Where streams that come from seeds draw; another type of device draws other numbers.

    Returns:
        `RandomStreams`, or, without seed and generator, `draw_noise`, torch's global stream.

    Raises:
        ValueError: If both are given, or not one per video, or a seed is negative.

    Example:
        >>> pair = make_streams(7, None, 2, "cpu")(torch.empty(2, 3))
        >>> three = make_streams(7, None, 3, "cpu")(torch.empty(3, 3))
        >>> torch.equal(pair, three[:2])
        True
    """
    if seed is not None and generator is not None:
        raise ValueError(
            f"sample: one of seed and generator must be None, got seed {shown(seed)} and a "
            "generator; leave one out"
        )
    if isinstance(generator, torch.Generator):
        limit = torch.iinfo(torch.int64).max
        seed = int(torch.randint(limit, (), generator=generator, device=generator.device))
    elif generator is not None:
        return RandomStreams(_one_per_video("torch.Generator", torch.Generator, generator, count))
    if seed is None:
        return draw_noise
    if isinstance(seed, Integral):
        pairs = [(int(seed), i) for i in range(count)]
    else:
        each = _one_per_video("seed, an integer,", Integral, seed, count)
        pairs = [(int(one), 0) for one in each]
    if any(number < 0 for number, _ in pairs):
        raise ValueError(f"sample: a seed must be 0 or greater, got {shown(seed)}")
    seeds = [stream_seed(number, index) for number, index in pairs]
    return RandomStreams([torch.Generator(device).manual_seed(one) for one in seeds])


def stream_seed(seed: int, index: int) -> int:
    """A generator's seed for one of the streams of a seed.

    Neighbours are unrelated, and no two of the first 2^32 streams of a seed are the same, even on
    the CPU, where torch uses only the lower 32 bits.

    Args:
        seed: At least 0.
        index: Number of the stream, from 0.

    Returns:
        64 bits.
    """
    words = np.random.SeedSequence(seed).generate_state(2)
    place, upper = (int(word) for word in words)
    return upper * _WORD + _scatter((place + index) % _WORD)


def _scatter(word: int) -> int:
    """Maps 32 bits to 32 bits one to one, neighbours far apart (MurmurHash3's last step)."""
    word = (word ^ word >> 16) * 0x85EBCA6B % _WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 % _WORD
    return word ^ word >> 16


def _one_per_video(what: str, kind: type, values: Any, count: int) -> Sequence[Any]:
    """Raises a ValueError unless `values` is a sequence of `count` objects of a kind."""
    is_list = isinstance(values, Sequence) and all(isinstance(one, kind) for one in values)
    if not is_list or len(values) != count:
        raise ValueError(
            f"sample: expected a {what} for all videos, or a list of one per video, {count}, got "
            f"{shown(values)}"
        )
    return values
