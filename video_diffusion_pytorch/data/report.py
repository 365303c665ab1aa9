"""A report before training: the shares of pixels and frames that are cropped or padding."""

from __future__ import annotations

import logging
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
    """Warns if more than a quarter of the pixels or frames is cropped or padding.

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
    if sizes and clips.transform is reader.size:
        _report_sizes(reader.size, sizes, f"{len(sizes)} of {len(parts)} files")
    if lengths and clips.num_frames is not None and clips.fit_frames != "all":
        files = f"{len(lengths)} of {len(parts)} files"
        _report_lengths(clips, clips.num_frames, lengths, files)


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


def _report_sizes(target: FrameSize, sizes: Sequence[tuple[int, int]], files: str) -> None:
    lost = []
    for size in sizes:
        height, width = target.scaled_size(*size)
        ratio = height * width / (target.size[0] * target.size[1])
        lost.append(1 - min(ratio, 1 / ratio))
    if fmean(lost) <= _MUCH:
        return
    size = sizes[lost.index(max(lost))]
    logger.warning(
        "%.0f %% of each frame is %s, on average over %s: frames of %dx%d (height x width) are "
        "scaled to %dx%d for clips of %dx%d; an image_size, (height, width), of their shape keeps "
        "them whole",
        100 * fmean(lost),
        "padding" if target.fit == "contain" else "cropped",
        files,
        *size,
        *target.scaled_size(*size),
        *target.size,
    )


def _report_lengths(clips: Dataset, num_frames: int, lengths: Sequence[int], files: str) -> None:
    # of each file: how many clips it makes, and how many of its frames they show
    is_all = clips.clip_start == "all"
    made = [max(1, length // num_frames) if is_all else 1 for length in lengths]
    shown = [min(n, k * num_frames) for n, k in zip(lengths, made, strict=True)]
    padding = 1 - sum(shown) / (num_frames * sum(made))
    if padding > _MUCH and clips.fit_frames is None and clips.pad != "error":
        logger.warning(
            "%.0f %% of the frames of the clips are padding, in a look at %s: pad='mask' leaves "
            "padding out of the loss, fit_frames='short' stretches short files, and a smaller "
            "num_frames needs less",
            100 * padding,
            files,
        )
    unseen = 1 - sum(shown) / sum(lengths)
    if unseen > _MUCH and clips.clip_start != "random":
        logger.warning(
            "%.0f %% of the frames of the files are never seen with clip_start='%s', in a look at "
            "%s: clip_start='random' shows all",
            100 * unseen,
            clips.clip_start,
            files,
        )
