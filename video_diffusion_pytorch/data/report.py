"""A report before training: the shares of pixels and frames that are cropped, padding or unseen."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from statistics import fmean

from video_diffusion_pytorch.data.dataset import ClipReader, Dataset
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize

logger = logging.getLogger("video_diffusion_pytorch")

_MOST_FILES, _MOST_SECONDS = 100, 3.0
# Each call of a `read_fn` reads the whole file
_MOST_CALLS = 8
# Counting the frames of a movie reads all of it
_MOST_BYTES = 2**26
# Larger shares of the pixels or frames are reported
_MUCH = 0.25


def report_clips(clips: Dataset) -> None:
    """Warns if more than a quarter of the pixels or frames is cropped, padding or never seen.

    It decodes the first frame of at most 100 files, the same ones on each run, for at most 3
    seconds. A decoded frame has its true size: headers store rotation and pixel shape in many ways.

    Args:
        clips: The clips.
    """
    reader = clips._reader
    parts = list({(clip.path, clip.start, clip.end): clip for clip, _ in clips._clips}.values())
    most = _MOST_FILES if reader.read_fn is None else _MOST_CALLS
    sizes: list[tuple[int, int]] = []
    lengths: list[int] = []
    end = time.monotonic() + _MOST_SECONDS
    for clip in random.Random(0).sample(parts, min(most, len(parts))):
        if time.monotonic() > end:
            break
        try:
            size, length = _measure(reader, clip)
        except Exception:  # training reports what is wrong with a file
            continue
        sizes.append(size)
        lengths += [] if length is None else [length]
    shares: dict[str, float] = {}
    if sizes and clips.transform is reader.size:
        shares |= _lost_pixels(reader.size, sizes)
    if lengths and clips.num_frames is not None and clips.fit_frames != "all":
        shares |= _lost_frames(clips, clips.num_frames, lengths)
    for what, share in shares.items():
        if share > _MUCH:
            files = f"in a look at {len(sizes)} of {len(parts)} files"
            logger.warning("%.0f %% of %s (%s)", 100 * share, what, files)


def _measure(reader: ClipReader, clip: Clip) -> tuple[tuple[int, int], int | None]:
    """Height and width of a file's frames, and its number of frames; None for a large movie."""
    with reader.open(clip.path) as file:
        if file.is_array:
            height, width = file.array(range(1)).shape[-2:]
        else:
            width, height = next(iter(file.pictures(range(1)))).size
            if clip.path.is_file() and clip.path.stat().st_size > _MOST_BYTES:
                return (height, width), None
        return (height, width), len(reader.timeline.between(file, clip.start, clip.end))


def _lost_pixels(target: FrameSize, sizes: Sequence[tuple[int, int]]) -> dict[str, float]:
    lost = {}
    for size in sizes:
        height, width = target.scaled_size(*size)
        ratio = height * width / (target.size[0] * target.size[1])
        lost[size] = 1 - min(ratio, 1 / ratio)
    (height, width), (h, w) = max(lost, key=lost.__getitem__), target.size
    kind, other = "cropped", "fit='contain', which pads instead"
    if target.fit == "contain":
        kind, other = "padding", "fit='cover', which crops instead"
    # about as many pixels; networks halve sizes several times
    scale = math.sqrt(h * w / (height * width))
    better = tuple(max(1, round(scale * side / 8)) * 8 for side in (height, width))
    what = (
        f"each frame is {kind}, such as frames of {height}x{width} (height x width) for an "
        f"image_size of ({h}, {w}), which is (height, width), too; choose one of their shape, such "
        f"as image_size={better}, or {other}"
    )
    return {what: fmean(lost[size] for size in sizes)}


def _lost_frames(clips: Dataset, num_frames: int, lengths: Sequence[int]) -> dict[str, float]:
    # of each file: how many clips it makes, and how many of its frames they show
    made = [max(1, n // num_frames) if clips.clip_start == "all" else 1 for n in lengths]
    shown = sum(min(n, k * num_frames) for n, k in zip(lengths, made, strict=True))
    shares = {}
    if clips.fit_frames is None and clips.pad != "error":
        what = (
            "all frames of the clips are padding; pad='mask' leaves it out of the loss, and "
            "fit_frames='short' or a smaller num_frames avoids it"
        )
        shares[what] = 1 - shown / (num_frames * sum(made))
    if clips.clip_start != "random":
        what = "all frames of the files are never seen; clip_start='random' shows them"
        shares[what] = 1 - shown / sum(lengths)
    return shares
