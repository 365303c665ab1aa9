"""Frame folders: numbered pictures read as one video."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.pictures import PictureReader, frame_durations
from video_diffusion_pytorch.data.formats.readers import VideoReader

FRAME_EXTS = ("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp")
"""Extensions of single frames in a folder."""

_FRAME_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
_ADVICE = "put numbered stills into it, such as frame_0001.png, and no other pictures"
# Files of file managers, and notes on the frames
_NO_FRAMES = ("thumbs.db", "desktop.ini")
_NOTES = (".txt", ".json", ".csv", ".md", ".xml")


class FrameFolderReader(VideoReader):
    """Frames of a folder that holds them as numbered stills: frame2.png, ..., frame10.png.

    If the first has more than 8 bits, `array` returns the numbers of the stills, else `pictures`
    returns the stills.

    Args:
        path: The folder; hidden files and notes in it do not count, as in `is_frame_folder`.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the first still has.

    Raises:
        FileNotFoundError: The folder is missing.
        UnreadableVideoError: It holds other files than numbered stills, or their order is
            ambiguous, or the first is damaged.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        try:
            names = [entry.name for entry in path.iterdir()]
        except FileNotFoundError as error:
            raise missing_file(path) from error
        ordered = _in_order(path, names)
        if not ordered:
            listed = ", ".join(sorted(names)[:5]) or "an empty folder"
            raise unreadable(path, "a folder of numbered stills", listed, _ADVICE)
        self._files = [path / name for name in ordered]
        with PictureReader(self._files[0], channels, _FRAME_FORMATS) as first:
            super().__init__(path, first.channels, len(ordered))
            self.is_array = first.is_array

    def _frame(self, index: int) -> Any:
        if index >= self.num_frames:
            return None
        file = self._files[index]
        with PictureReader(file, self.channels, _FRAME_FORMATS) as still:
            if still.num_frames > 1:
                ending, got = file.suffix[1:], f"{still.num_frames} pages or frames"
                advice = f"store each by itself; to take each file as a clip, set exts={ending!r}"
                raise unreadable(file, "a single picture", got, advice)
            if still.is_array != self.is_array:
                kinds = ("8 bits", "more than 8 bits")
                expected = f"a still of {kinds[self.is_array]}, as {self._files[0].name} is"
                got = f"one of {kinds[still.is_array]}"
                raise unreadable(file, expected, got, "store all frames alike")
            return still.array([0])[:, 0] if self.is_array else next(still.pictures([0]))


def is_frame_folder(folder: Path, names: Sequence[str]) -> bool:
    """Whether a folder is one video, stored as numbered stills, rather than many videos.

    Args:
        folder: The folder.
        names: The names of all its entries.

    Returns:
        True if the names are of pictures and differ in numbers only, and the first picture is not
        an animation, which would be a video by itself. Names that begin with a dot do not count,
        nor do `Thumbs.db`, `desktop.ini` and notes: txt, json, csv, md, xml. But a txt with the
        name of a picture is its caption: then each picture is a clip.

    Raises:
        UnreadableVideoError: They differ in several numbers, and their order is ambiguous.

    Example:
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "f2.jpg", "f10.jpg"])
        True
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "f2.jpg", "notes.txt"])
        True
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "g2.jpg"])
        False
    """
    return bool(_in_order(folder, names))


def _in_order(folder: Path, names: Sequence[str]) -> list[str]:
    """The stills of a folder that is one video, as defined by `is_frame_folder`; else none."""
    frames = [
        name
        for name in names
        if not name.startswith(".")
        and name.lower() not in _NO_FRAMES
        and _ending(name) not in _NOTES
    ]
    kinds = {_texts(name) for name in frames}
    ending = _ending(frames[0])[1:] if frames else ""
    if len(kinds) != 1 or ending not in FRAME_EXTS or len(next(iter(kinds))) < 2:
        return []
    captions = {Path(name).stem for name in names if _ending(name) == ".txt"}
    if any(Path(name).stem in captions for name in frames):
        return []
    if ending in ("png", "webp") and _is_animation(folder / min(frames, key=_numbers)):
        return []
    return sort_by_counter(frames, folder)


def sort_by_counter(names: Sequence[str], folder: Path) -> list[str]:
    """Sorts names by the number in them that counts the frames.

    It is different in each name. If several numbers differ, the others must not decrease as it
    increases, or it must be the only one that increases by 1 (or else by another constant step).
    Two numbers with a dot between them also count as a decimal.

    Args:
        names: They differ in numbers only.
        folder: Their folder, for the error.

    Returns:
        The sorted names; none if only one number differs, and two names share it.

    Raises:
        UnreadableVideoError: There is no such number.

    Example:
        >>> sort_by_counter(["f_2_640x480.png", "f_10_640x480.png", "f_1_640x480.png"], Path("a"))
        ['f_1_640x480.png', 'f_2_640x480.png', 'f_10_640x480.png']
    """
    columns = [
        dict(zip(names, column, strict=True)) for column in _columns(names) if len(set(column)) > 1
    ]
    counters = [column for column in columns if len(set(column.values())) == len(names)]
    if not counters and len(columns) < 2:
        return list(names) if len(names) == 1 else []
    orders = [sorted(names, key=counter.__getitem__) for counter in counters]
    agreed = [
        order
        for order in orders
        if all([column[name] for name in order] == sorted(column.values()) for column in columns)
    ]
    steps = [
        {counter[b] - counter[a] for a, b in itertools.pairwise(order)}
        for counter, order in zip(counters, orders, strict=True)
    ]
    by_one = [order for order, step in zip(orders, steps, strict=True) if step == {1}]
    even = [order for order, step in zip(orders, steps, strict=True) if len(step) == 1]
    for chosen in (agreed, by_one, even):
        if chosen and all(order == chosen[0] for order in chosen):
            return chosen[0]
    some = ", ".join(sorted(names)[:3])
    ending = _ending(names[0])[1:]
    raise unreadable(
        folder,
        "stills with a number in their names that counts them",
        f"several numbers that differ and give no clear order, as in {some}",
        f"rename them, such as frame_0001.{ending}, or set exts={ending!r} to take each picture as "
        "a clip",
    )


def _columns(names: Sequence[str]) -> list[tuple[int, ...]]:
    """The numbers at each place of the names, and the decimals that two of them make."""
    columns = list(zip(*map(_numbers, names), strict=True))
    for place, text in enumerate(_texts(names[0])[1:-1], start=1):
        if text == ".":
            digits = [re.findall(r"\d+", name)[place] for name in names]
            longest = max(map(len, digits))
            wholes = zip(columns[place - 1], digits, strict=True)
            columns.append(tuple(int(f"{whole}{part:0<{longest}}") for whole, part in wholes))
    return columns


def stills_among(folder: Path, names: Sequence[str]) -> list[str]:
    """Finds the numbered stills of a folder that is no video because of its other files.

    Args:
        folder: The folder.
        names: The names of all its entries.

    Returns:
        Names of two or more pictures that would be one video if they were alone; empty if there
        are none. A picture with the name of a movie is its thumbnail.

    Example:
        >>> stills_among(Path("clip"), ["f1.jpg", "f2.jpg", "cover.jpg"])
        ['f1.jpg', 'f2.jpg']
    """
    no_movies = ("", *_NOTES, *("." + ending for ending in FRAME_EXTS))
    taken = {Path(name).stem for name in names if _ending(name) not in no_movies}
    series: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if _ending(name)[1:] in FRAME_EXTS and Path(name).stem not in taken:
            series.setdefault(_texts(name), []).append(name)
    longest = max(series.values(), key=len, default=[])
    try:
        return longest if len(longest) > 1 and is_frame_folder(folder, longest) else []
    except UnreadableVideoError:
        return longest


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _texts(name: str) -> tuple[str, ...]:
    return tuple(re.split(r"\d+", name))


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", name)))


def _is_animation(file: Path) -> bool:
    try:
        return bool(frame_durations(file, regular_file(file).read_bytes()))
    except (PermissionError, FileNotFoundError, UnreadableVideoError):
        return False  # reading the folder raises it
