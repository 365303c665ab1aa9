"""A report before training: how much of its files a dataset cuts away or pads."""

from __future__ import annotations

import logging
import random
import time
from collections import Counter

from video_diffusion_pytorch.data.dataset import Dataset
from video_diffusion_pytorch.data.manifest import Clip
from video_diffusion_pytorch.data.transforms import FrameSize

logger = logging.getLogger("video_diffusion_pytorch")

_MOST_FILES, _MOST_SECONDS = 100, 3.0
# Each costs a call of a function of the user's, which reads the whole file
_MOST_CALLS = 8
# The frames of a movie are counted by reading it, which takes too long for larger ones
_MOST_BYTES = 2**26
# Larger shares of the pixels or frames are reported
_MUCH = 0.25


def report_clips(clips: Dataset) -> None:
    """Warns, with numbers, where more than a quarter of pixels or frames is cut away or padding.

    It decodes the first frame of at most 100 files, always the same ones of a folder, for at most a
    few seconds: rotation and shape of pixels, which headers tell in many ways, are in its size.

    Args:
        clips: The clips.
    """
    parts = list({(clip.path, clip.start, clip.end): clip for clip, _ in clips._clips}.values())
    most = _MOST_FILES if clips._reader.read_fn is None else _MOST_CALLS
    sample = random.Random(0).sample(parts, min(most, len(parts)))
    sizes: list[tuple[int, int]] = []
    lengths: list[int] = []
    end = time.monotonic() + _MOST_SECONDS
    for clip in sample:
        if time.monotonic() > end:
            break
        try:
            size, length = _look(clips, clip)
        except Exception:  # what is wrong with a file is said when training comes to it
            continue
        sizes.append(size)
        lengths += [] if length is None else [length]
    if sizes and clips.transform is clips._reader.size:
        _report_sizes(clips._reader.size, Counter(sizes), _files(len(sizes), len(parts)))
    if lengths and clips.num_frames is not None and clips.fit_frames != "all":
        _report_lengths(clips, clips.num_frames, lengths, _files(len(lengths), len(parts)))


def _files(count: int, total: int) -> str:
    files = "1 file" if count == 1 else f"{count} files"
    return files if count == total else f"{files} (a sample of {total})"


def _look(clips: Dataset, clip: Clip) -> tuple[tuple[int, int], int | None]:
    """Height and width of a file's frames, and how many clips may be cut from; None if too long."""
    with clips._reader.open(clip.path) as file:
        if file.is_array:
            height, width = file.array(range(1)).shape[-2:]
        else:
            width, height = next(iter(file.pictures(range(1)))).size
        is_large = clip.path.is_file() and clip.path.stat().st_size > _MOST_BYTES
        if is_large and not file.is_array:
            return (height, width), None
        span = clips._reader.timeline.between(file, clip.start, clip.end)
    return (height, width), len(span)


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
    if height * h == width * w:
        advice = f"image_size=({w}, {h}), which is (height, width), keeps them whole"
    else:
        advice = "an image_size, (height, width), of their shape keeps them whole"
        advice += ", and so does fit='contain', with padding" if is_cut else ""
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
    is_all, unit = clips.clip_start == "all", _unit(clips)
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


def _unit(clips: Dataset) -> str:
    timeline = clips._reader.timeline
    if timeline.fps is not None:
        return f" at fps={timeline.fps}"
    return f" at frame_skip={timeline.frame_skip}" if timeline.frame_skip > 1 else ""
