"""Embeddings of the time step, and position encodings of frames."""

import math

import torch
from torch import Tensor, nn


class SinusoidalPosEmb(nn.Module):
    """Sines and cosines of a scalar, usually the time step (Vaswani et al. 2017, section 3.5).

    Args:
        dim: Width of the embedding; even, at least 4.

    Raises:
        ValueError: If `dim` is odd or below 4.

    Example:
        >>> SinusoidalPosEmb(16)(torch.tensor([0, 5])).shape
        torch.Size([2, 16])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(
                f"SinusoidalPosEmb: dim must be an even number, at least 4, got {dim}; "
                "round the network's dim up to an even number"
            )
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        """Embeds scalars `x` of shape `(...)` as `(..., dim)`: all sines, then all cosines."""
        half = self.dim // 2
        exponents = torch.arange(half, device=x.device) * -(math.log(10_000) / (half - 1))
        angles = x[..., None] * exponents.exp()
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def make_time_mlp(dim: int, dim_out: int, layers: int = 2) -> nn.Sequential:
    """Layers that make `(..., dim_out)` of time steps `(...)`, by `dim` sines and cosines."""
    linear: list[nn.Module] = [nn.Linear(dim, dim_out)]
    for _ in range(layers - 1):
        linear += [nn.GELU(), nn.Linear(dim_out, dim_out)]
    return nn.Sequential(SinusoidalPosEmb(dim), *linear)


def time_of_log_snr(log_snr: Tensor) -> Tensor:
    """The time from 0 to 1000 that stands for a log-SNR in the sinusoidal embedding.

    It is the time at which a cosine schedule has this log-SNR,
    `2000 / pi * atan(exp(-log_snr / 2))`: most of the sinusoids are too slow to tell apart numbers
    from -20 to 20.

    Args:
        log_snr: `log(alpha**2 / sigma**2)`, of any shape.

    Example:
        >>> time_of_log_snr(torch.tensor([20.0, 0.0, -20.0]))
        tensor([2.8902e-02, 5.0000e+02, 9.9997e+02])
    """
    return torch.atan(torch.exp(-log_snr / 2)) * (2000 / math.pi)


class RelativePositionBias(nn.Module):
    """A learned attention bias per head and bucketed distance (T5, Raffel et al. 2020, sec. 2.1).

    Half of the buckets is for keys before the query, half for keys after it. Short distances
    have a bucket each, longer ones share buckets of logarithmic width up to `max_distance`.

    Args:
        heads: Number of attention heads.
        num_buckets: Number of rows of the learned table.
        max_distance: Distance, in frames, from which on all share the last bucket.
    """

    def __init__(self, heads: int = 8, num_buckets: int = 32, max_distance: int = 128) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.relative_attention_bias = nn.Embedding(num_buckets, heads)

    def _buckets(self, key_minus_query: Tensor) -> Tensor:
        per_side = self.num_buckets // 2
        exact = per_side // 2
        distance = key_minus_query.abs()
        # the clamp only keeps log() off zero: short distances take the other branch
        octaves = torch.log(distance.clamp(min=exact).float() / exact)
        wide = exact + (octaves / math.log(self.max_distance / exact) * (per_side - exact)).long()
        bucket = torch.where(distance < exact, distance, wide.clamp(max=per_side - 1))
        return bucket + per_side * (key_minus_query > 0)

    def forward(self, n: int, device: torch.device | str | None) -> Tensor:
        """Gives the bias `(heads, n, n)`, query by key, for sequences of `n` frames."""
        positions = torch.arange(n, device=device)
        buckets = self._buckets(positions[None, :] - positions[:, None])
        return self.relative_attention_bias(buckets).permute(2, 0, 1)


def rotary_tables(frequencies: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines that turn queries and keys by their position (Su et al. 2021, eq. 15).

    Args:
        frequencies: Radians per frame of each pair of features, `(pairs,)`.
        n: Number of positions.

    Returns:
        Two tables `(n, pairs)`, in float32 or better.
    """
    dtype = torch.promote_types(frequencies.dtype, torch.float32)
    positions = torch.arange(n, device=frequencies.device, dtype=dtype)
    angles = positions[:, None] * frequencies.to(dtype)
    return angles.cos(), angles.sin()
