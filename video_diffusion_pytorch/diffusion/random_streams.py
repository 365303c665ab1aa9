"""Random streams of sampling: one per video, independent of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from video_diffusion_pytorch.arguments import shown
from video_diffusion_pytorch.diffusion.denoiser import Noise
from video_diffusion_pytorch.diffusion.noise_schedule import draw_noise

_WORD = 2**32


class RandomStreams(Sequence[torch.Generator]):
    """Draws the noise of a batch, each video's from its own generator.

    A slice holds the streams of a part of the batch, which continue.

    Args:
        generators: One per video. Draws happen on the device of each, and are moved.

    Example:
        >>> streams = RandomStreams([torch.Generator().manual_seed(i) for i in range(3)])
        >>> streams(torch.empty(3, 1, 4, 8, 8)).shape
        torch.Size([3, 1, 4, 8, 8])
        >>> len(streams[1:])
        2
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    def __len__(self) -> int:
        """How many videos they are for."""
        return len(self.generators)

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...

    @overload
    def __getitem__(self, index: slice) -> RandomStreams: ...

    def __getitem__(self, index: int | slice) -> torch.Generator | RandomStreams:
        """One video's generator, or the streams of a part of the batch."""
        if isinstance(index, slice):
            return RandomStreams(self.generators[index])
        return self.generators[index]

    def __call__(self, like: Tensor) -> Tensor:
        """A standard normal draw.

        Args:
            like: `(b, ...)`, one row per video; its shape, number type and device count.

        Raises:
            ValueError: If it has another number of rows.
        """
        if len(like) != len(self):
            raise ValueError(
                f"RandomStreams: draws must have one row per stream, {len(self)}, got {len(like)}; "
                "slice the streams as the batch"
            )
        noise = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.copy_(
                torch.randn(
                    row.shape, generator=generator, dtype=row.dtype, device=generator.device
                )
            )
        return noise


def make_streams(
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    count: int,
    device: torch.device | str,
) -> Noise:
    """The source of noise that a seed or a generator stands for.

    Args:
        seed: For all videos: the `i`-th stream depends on the seed and on `i` alone. Or one per
            video, each of which gives what it gives as the seed of a first video. None for none.
        generator: One from which a seed for all videos is drawn, or one per video. None for none.
        count: Number of videos.
        device: Where streams that come from seeds draw: another kind of device draws other numbers.

    Returns:
        `RandomStreams`, or without seed and generator `draw_noise`, from torch's global stream.

    Raises:
        TypeError: If `seed` or `generator` is something else.
        ValueError: If both are given, or not one per video, or a seed is negative.

    Example:
        >>> pair = make_streams(7, None, 2, "cpu")(torch.empty(2, 3))
        >>> three = make_streams(7, None, 3, "cpu")(torch.empty(3, 3))
        >>> torch.equal(pair, three[:2])
        True
    """
    if seed is not None and generator is not None:
        raise ValueError(
            "sample: one of seed and generator must be None, got seed "
            f"{shown(seed)} and a generator; "
            "leave one out"
        )
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            return RandomStreams(_checked_generators(generator, count))
        limit = torch.iinfo(torch.int64).max
        draw = torch.randint(limit, (), generator=generator, device=generator.device)
        seed = int(draw)
    if seed is None:
        return draw_noise
    seeds = _checked_seeds(seed, count)
    indices = range(count) if isinstance(seed, Integral) else [0] * count
    pairs = zip(seeds, indices, strict=True)
    return RandomStreams(
        [torch.Generator(device).manual_seed(stream_seed(one, i)) for one, i in pairs]
    )


def stream_seed(seed: int, index: int) -> int:
    """A generator's seed for one of the streams of a seed.

    Neighbours are unrelated, and no two of the first 2^32 streams of a seed are the same, also not
    on the CPU, where torch takes no more than the lower 32 bits.

    Args:
        seed: At least 0.
        index: Which stream, at least 0.

    Returns:
        64 bits.
    """
    words = np.random.SeedSequence(int(seed)).generate_state(2)
    place, upper = (int(word) for word in words)
    return upper * _WORD + _scatter((place + index) % _WORD)


def _scatter(word: int) -> int:
    """Maps 32 bits to 32 bits one to one, neighbours far apart (MurmurHash3's last step)."""
    word = (word ^ word >> 16) * 0x85EBCA6B % _WORD
    word = (word ^ word >> 13) * 0xC2B2AE35 % _WORD
    return word ^ word >> 16


def _checked_seeds(seed: Any, count: int) -> list[int]:
    """A seed for each video, the same for all if there is one only."""
    seeds = [seed] * count if isinstance(seed, Integral) else seed
    is_list = isinstance(seeds, Sequence) and all(isinstance(one, Integral) for one in seeds)
    if not is_list:
        raise TypeError(
            "sample: seed must be an integer, or a list of one per video, got "
            f"{shown(seed)}; pass e.g. "
            "seed=0"
        )
    if len(seeds) != count:
        raise ValueError(
            f"sample: a list of seeds must have one per video, {count}, got {len(seeds)}; give as "
            "many, or one integer for all"
        )
    for one in seeds:
        if one < 0:
            raise ValueError(
                f"sample: a seed must be at least 0, got {one}; pass another, e.g. {-one}"
            )
    return [int(one) for one in seeds]


def _checked_generators(generators: Any, count: int) -> list[torch.Generator]:
    is_list = isinstance(generators, Sequence) and all(
        isinstance(one, torch.Generator) for one in generators
    )
    if not is_list:
        raise TypeError(
            f"sample: generator must be a torch.Generator, or a list of one per video, got "
            f"{shown(generators)}; pass e.g. torch.Generator().manual_seed(0)"
        )
    if len(generators) != count:
        raise ValueError(
            f"sample: a list of generators must have one per video, {count}, got "
            f"{len(generators)}; give as many, or one for all"
        )
    return list(generators)
