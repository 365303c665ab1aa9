"""Scores of motion: distances between real and drawn clips in how their frames change and last."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_FRAMES = 3
"""Least number of frames of a clip."""

# Per frame of lag, content may shift by this fraction of the height and the width
_REACH = 1 / 8
# Changes and contrasts below these fractions of a clip's own contrast are invisible
_LEAST_CHANGE = 0.05
_LEAST_CONTRAST = 1e-3
# Least spread between real clips, as a fraction of their mean
_LEAST_SPREAD = 0.01
_PERSISTENCE = "persistence"


def temporal_statistics(videos: Tensor) -> dict[str, Tensor]:
    """Measures how the frames of each video change, and how long their content lasts.

    Each measure is taken at all places in the video, and sorted, so that videos are compared by
    their quietest, ..., liveliest moments, wherever these are.

    Args:
        videos: `(b, c, f, h, w)` of at least 3 frames, in any units.

    Returns:
        By name, float64 on the CPU:

        - `change` `(b, f - 1)`: root mean square of the difference of neighbouring frames, in the
          units of the videos.
        - `flicker` `(b, f - 2)`: root mean square of the second difference of three frames, divided
          by the sum of those of their two differences: 0 for steady change, `sqrt(3) / 2` for
          frames of independent noise, 1 for a frame that comes and goes.
        - `persistence_1`, `persistence_2`, `persistence_4` ... `(b, f - lag)`: similarity of frames
          that far apart, `2 <x, y> / (<x, x> + <y, y>)` of smoothed frames without their means,
          after the best shift by whole pixels, of up to 1/8 of height and width per frame of lag
          and at most half of them. 1 for content that only moves, about 0 for unrelated content.

    Raises:
        ValueError: If the videos have another shape, too few frames, or NaN or infinite values.
    """
    if videos.ndim != 5 or videos.shape[2] < LEAST_FRAMES:
        raise ValueError(
            f"TemporalStatistics: videos must be (b, c, f, h, w) of at least {LEAST_FRAMES} "
            f"frames, got the shape {tuple(videos.shape)}; give longer videos"
        )
    each = [_of_one(video.float()) for video in videos]
    found = {name: torch.stack([one[name] for one in each]) for name in each[0]}
    if not all(bool(values.isfinite().all()) for values in found.values()):
        raise ValueError(
            "TemporalStatistics: videos must be finite, got NaN or infinite values; remove them"
        )
    return found


def _of_one(video: Tensor) -> dict[str, Tensor]:
    """The statistics of one video, `(c, f, h, w)`."""
    change, second = (_size(video.diff(dim=1, n=n)) for n in (1, 2))
    centred = (video.double() - video.double().mean(dim=(2, 3), keepdim=True)).float()
    contrast = _size(centred).square().mean().sqrt()
    least = (_LEAST_CHANGE * contrast).clamp(min=torch.finfo(torch.float32).tiny)
    found = {"change": change, "flicker": second / (change[1:] + change[:-1]).maximum(least)}
    # smoothed by (1, 2, 1) in both directions, so that noise and halves of pixels matter less
    padded = F.pad(centred, (1, 1, 1, 1), mode="replicate")
    smooth = F.avg_pool2d(F.avg_pool2d(padded, 2, stride=1), 2, stride=1)
    lag = 1
    while lag < video.shape[1]:
        found[f"{_PERSISTENCE}_{lag}"] = _similarity(smooth, lag)
        lag *= 2
    return {name: values.sort().values.double().cpu() for name, values in found.items()}


def _size(frames: Tensor) -> Tensor:
    """Root mean square of each frame of `(c, f, h, w)`."""
    return frames.square().mean(dim=(0, 2, 3)).sqrt()


def _similarity(frames: Tensor, lag: int) -> Tensor:
    """Similarity after the best shift of frames `(c, f, h, w)` that are `lag` apart."""
    size = frames.shape[2:]
    reach = [min(max(1, int(n * _REACH)) * lag, n // 2) for n in size]
    padded = [n + most for n, most in zip(size, reach, strict=True)]
    waves = torch.fft.rfft2(frames, s=padded)
    products = (waves[:, :-lag].conj() * waves[:, lag:]).sum(dim=0)
    shifted = torch.fft.irfft2(products, s=padded)
    for axis, most in zip((1, 2), reach, strict=True):
        # shifts back are at the end
        near = torch.arange(-most, most + 1, device=frames.device) % shifted.shape[axis]
        shifted = shifted.index_select(axis, near)
    energy = frames.square().sum(dim=(0, 2, 3))
    least = (_LEAST_CONTRAST * energy.mean()).clamp(min=torch.finfo(torch.float32).tiny)
    shared = 2 * shifted.amax(dim=(1, 2)) + least
    return shared / (energy[:-lag] + energy[lag:] + least)


class TemporalStatistics:
    """`temporal_statistics` of each of a set of videos, accumulated over batches.

    A video takes about `8 f log2(f)` bytes, which are all that is kept of it.

    Args:
        count: Number of videos.

    Example:
        >>> clip = torch.rand(1, 5, 8, 8)
        >>> moving = torch.stack([clip.roll(n, dims=3) for n in range(20)])
        >>> real, drawn = TemporalStatistics(20), TemporalStatistics(20)
        >>> real.add(moving, range(20))
        >>> drawn.add(moving[:, :, [0, 0, 1, 2, 3]], range(20))
        >>> scores = temporal_scores(real, drawn)
        >>> scores["change_distance"] > scores["change_distance_real"]
        True
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._rows: dict[str, Tensor] = {}
        self._seen = torch.zeros(count, dtype=torch.float64, device="cpu")

    def add(self, videos: Tensor, numbers: Sequence[int], counted: int | None = None) -> None:
        """Adds a batch.

        Args:
            videos: `(b, c, f, h, w)` of at least 3 frames, in any units, the same for all batches.
            numbers: Numbers of the videos, from 0 to `count - 1`.
            counted: Number of videos that count, from the first on; None for all.

        Raises:
            ValueError: If the videos have another shape, too few frames, or NaN or infinite values.
        """
        places = torch.tensor(numbers[:counted], dtype=torch.long, device="cpu")
        for name, values in temporal_statistics(videos).items():
            if name not in self._rows:
                self._rows[name] = values.new_zeros(self.count, values.shape[1])
            self._rows[name][places] = values[:counted]
        self._seen[places] = 1

    def over_processes(self, total: Callable[[Tensor], Tensor]) -> TemporalStatistics:
        """Returns the statistics of the videos of all processes, each of which has its part."""
        joined = TemporalStatistics(self.count)
        joined._rows = {name: total(rows) for name, rows in self._rows.items()}
        joined._seen = total(self._seen)
        return joined

    def rows(self) -> dict[str, Tensor]:
        """Returns the statistics by name, each with a row per video.

        Raises:
            ValueError: If a video is missing.
        """
        if not bool((self._seen == 1).all()):
            raise ValueError(
                f"TemporalStatistics: must have each of {self.count} videos once, got "
                f"{int(self._seen.sum())}; add the others, or give their number as count"
            )
        return self._rows

    def state_dict(self) -> dict[str, Tensor]:
        """Returns `rows()`."""
        return dict(self.rows())

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TemporalStatistics:
        """Makes the statistics of a `state_dict`."""
        made = cls(len(state["change"]))
        made._rows = dict(state)
        made._seen += 1
        return made


def wasserstein_distance(first: Tensor, second: Tensor) -> Tensor:
    """Computes the 1-Wasserstein distance of the values in each column of two matrices.

    The area between the distribution functions, or equally between the quantile functions
    (Vallender 1974).

    Args:
        first: `(n, d)`.
        second: `(m, d)`.

    Returns:
        `(d,)`.

    Example:
        >>> first, second = torch.tensor([[0.0], [1.0]]), torch.tensor([[2.0], [3.0], [4.0]])
        >>> wasserstein_distance(first, second)
        tensor([2.5000])
    """
    ours, theirs = (values.sort(dim=0).values for values in (first, second))
    # integers, so that steps of both quantile functions at one place are equal
    ends = torch.cat([torch.arange(1, n + 1, device="cpu") * m for n, m in _sizes(ours, theirs)])
    ends = ends.unique()
    widths = ends.diff(prepend=ends.new_zeros(1)).to(ours) / (len(ours) * len(theirs))
    places = [(ends - 1) // m for _, m in _sizes(ours, theirs)]
    apart = (ours[places[0]] - theirs[places[1]]).abs()
    return (apart * widths[:, None]).sum(dim=0)


def _sizes(first: Tensor, second: Tensor) -> list[tuple[int, int]]:
    return [(len(first), len(second)), (len(second), len(first))]


def temporal_scores(real: TemporalStatistics, drawn: TemporalStatistics) -> dict[str, float]:
    """Computes the distances of drawn videos from real ones.

    Each is a mean of 1-Wasserstein distances between the sorted statistics of the clips, divided by
    the mean standard deviation of these between real clips: at 1 the drawn clips differ from the
    real ones by as much as real clips do from their mean. Where real clips hardly differ, 1 % of
    the statistics' mean is the unit instead. Equal sets have the distance 0; from real clips that
    do not change at all, that of clips that do is infinite.

    Args:
        real: Statistics of at least two real videos.
        drawn: Statistics of drawn ones with as many frames.

    Returns:
        `change_distance`, `flicker_distance` and `persistence_distance`, the last the mean over
        lags; and each with the ending `_real`, the distance of the real clips with even from those
        with odd numbers, about the least that drawn videos can have.
    """
    ours, theirs = real.rows(), drawn.rows()
    found: dict[str, float] = {}
    for ending, pairs in (
        ("", {name: (rows, theirs[name]) for name, rows in ours.items()}),
        ("_real", {name: (rows[::2], rows[1::2]) for name, rows in ours.items()}),
    ):
        each = {name: _distance(ours[name], *pair) for name, pair in pairs.items()}
        lags = [value for name, value in each.items() if name.startswith(_PERSISTENCE)]
        found |= {f"{name}_distance{ending}": each[name] for name in ("change", "flicker")}
        found[f"{_PERSISTENCE}_distance{ending}"] = sum(lags) / len(lags)
    return found


def _distance(real: Tensor, first: Tensor, second: Tensor) -> float:
    """Mean distance of the columns of two sets, in units of the spread between real clips."""
    apart = wasserstein_distance(first, second).mean()
    spread = real.std(dim=0, correction=0).mean().maximum(_LEAST_SPREAD * real.mean().abs())
    return (apart / spread).item() if apart > 0 else 0.0
