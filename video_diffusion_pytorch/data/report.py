"""A report before training: the shares of pixels and frames that are cropped or padding."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter

from video_diffusion_pytorch.data.clip_reader import ClipReader
from video_diffusion_pytorch.data.dataset import Dataset
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
    sizes: Counter[tuple[int, int]] = Counter()
    lengths: list[int] = []
    end = time.monotonic() + _MOST_SECONDS
    for clip in random.Random(0).sample(parts, min(most, len(parts))):
        if time.monotonic() > end:
            break
        try:
            size, length = _measure(reader, clip)
        except Exception:  # training reports what is wrong with a file
            continue
        sizes[size] += 1
        lengths += [] if length is None else [length]
    if sizes and clips.transform is reader.size:
        _report_sizes(reader.size, sizes, _files(sizes.total(), len(parts)))
    if lengths and clips.num_frames is not None and clips.fit_frames != "all":
        _report_lengths(clips, clips.num_frames, lengths, _files(len(lengths), len(parts)))


def _files(count: int, total: int) -> str:
    files = "1 file" if count == 1 else f"{count} files"
    return files if count == total else f"{files} (a sample of {total})"


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


def _report_sizes(target: FrameSize, sizes: Counter[tuple[int, int]], files: str) -> None:
    if target.fit == "stretch":
        return
    is_cut, wanted = target.fit == "cover", target.size[0] * target.size[1]
    lost: dict[tuple[int, int], float] = {}
    for size, count in sizes.items():
        height, width = target.scaled_size(*size)
        kept = wanted / (height * width) if is_cut else height * width / wanted
        lost[size] = (1 - kept) * count
    share = sum(lost.values()) / sizes.total()
    if share <= _MUCH:
        return
    (height, width), (h, w) = max(lost, key=lost.__getitem__), target.size
    advice = "an image_size, (height, width), of their shape keeps them whole"
    if is_cut:
        advice += ", and so does fit='contain', with padding"
    if height * h == width * w:
        advice = f"image_size=({w}, {h}), which is (height, width), keeps them whole"
    logger.warning(
        "%.0f %% of each frame is %s, on average over %s: frames of %dx%d (height x width) are "
        "scaled to %dx%d and %s %dx%d; %s",
        100 * share,
        "cut away" if is_cut else "padding",
        files,
        height,
        width,
        *target.scaled_size(height, width),
        "cut to" if is_cut else "padded to",
        h,
        w,
        advice,
    )


def _report_lengths(clips: Dataset, num_frames: int, lengths: list[int], files: str) -> None:
    is_all, timeline, unit = clips.clip_start == "all", clips._reader.timeline, ""
    if timeline.fps is not None:
        unit = f" at fps={timeline.fps}"
    elif timeline.frame_skip > 1:
        unit = f" at frame_skip={timeline.frame_skip}"
    # of each file: how many clips it makes, and how many of its frames they show
    made = [max(1, n // num_frames) if is_all else 1 for n in lengths]
    shown = [min(n, k * num_frames) for n, k in zip(lengths, made, strict=True)]
    padding = 1 - sum(shown) / (num_frames * sum(made))
    if padding > _MUCH and clips.fit_frames is None and clips.pad != "error":
        is_masked = clips.pad == "mask"
        logger.warning(
            "of %s %d have fewer than %d frames%s: %.0f %% of all frames of the clips are padding "
            "(pad='%s')%s; fit_frames='short' stretches short files%s, and a smaller num_frames "
            "needs less",
            files,
            sum(n < num_frames for n in lengths),
            num_frames,
            unit,
            100 * padding,
            clips.pad,
            ", left out of the loss, but computed" if is_masked else "",
            "" if is_masked else ", pad='mask' leaves padding out of the loss",
        )
    unseen = 1 - sum(shown) / sum(lengths)
    if unseen > _MUCH and clips.clip_start != "random":
        logger.warning(
            "of %s %d have more than %d frames%s: with clip_start='%s' %.0f %% of all frames of "
            "the files are never seen; clip_start='random'%s shows them",
            files,
            sum(n > num_frames for n in lengths),
            num_frames,
            unit,
            clips.clip_start,
            100 * unseen,
            "" if is_all else " or 'all'",
        )
