"""First step of the path: a folder of numbered stills is read as one video."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    missing_file,
    regular_file,
    unreadable,
)
from video_diffusion_pytorch.data.formats.picture_file import PictureReader
from video_diffusion_pytorch.data.formats.png_format import png_durations
from video_diffusion_pytorch.data.formats.video_reader import VideoReader, check_indices, mode_of
from video_diffusion_pytorch.data.formats.webp_format import webp_durations

if TYPE_CHECKING:
    from PIL.Image import Image

FRAME_EXTS = ("png", "jpg", "jpeg", "bmp", "tif", "tiff", "webp")
"""Endings of the names of single frames in a folder."""

_FRAME_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
# The text before the last number of a name, that number, the text behind it, the ending
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)\.(\w+)", re.DOTALL)
_ADVICE = "put numbered stills into it, such as frame_0001.png, and no other pictures"
# What file managers leave behind, and notes on the frames
_NO_FRAMES = ("thumbs.db", "desktop.ini")
_NOTES = (".txt", ".json", ".csv", ".md", ".xml")


class FrameFolderReader(VideoReader):
    """Frames of a folder that holds them as numbered stills: frame2.png, ..., frame10.png.

    Args:
        path: The folder; hidden files and notes in it do not count, as in `is_frame_folder`.
        channels: 1 (grey), 3 (colour), 4 (colour and opacity); None for what the first still has.

    Raises:
        FileNotFoundError: There is no such folder.
        UnreadableVideoError: It holds other files than numbered stills, or the first is damaged.
        ValueError: `channels` is none of 1, 3, 4, None.
    """

    def __init__(self, path: Path, channels: int | None = None) -> None:
        if channels is not None:
            mode_of(channels)
        try:
            names = [entry.name for entry in path.iterdir()]
        except FileNotFoundError as error:
            raise missing_file(path) from error
        if not is_frame_folder(path, names):
            listed = ", ".join(sorted(names)[:5]) or "an empty folder"
            raise unreadable(path, "a folder of numbered stills", listed, _ADVICE)
        self._files = [path / name for name in sorted(_frames_among(names), key=_number)]
        if channels is None:
            with PictureReader(self._files[0], formats=_FRAME_FORMATS) as first:
                channels = first.channels
        super().__init__(path, channels)

    @property
    def num_frames(self) -> int:
        """How many stills there are."""
        return len(self._files)

    @property
    def fps(self) -> None:
        """None: stills have no clock."""
        return None

    @property
    def times(self) -> None:
        """None: stills have no clock."""
        return None

    def pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        """Decode stills, as `VideoReader.pictures` says."""
        return self._pictures(check_indices(indices))

    def _pictures(self, indices: Sequence[int] | range) -> Iterator[Image]:
        for index in indices:
            if index >= len(self._files):
                return
            with PictureReader(self._files[index], self.channels, _FRAME_FORMATS) as still:
                yield from still.pictures(range(1))

    def close(self) -> None:
        """Nothing to let go of: each still is opened and closed when its turn comes."""


def is_frame_folder(folder: Path, names: Sequence[str]) -> bool:
    """Tell whether a folder is one video, stored as numbered stills, rather than many videos.

    Args:
        folder: The folder.
        names: Of all that is in it.

    Returns:
        True if the names are of pictures, differ in one number only, and the first picture is not
        an animation, which would be a video by itself. Names that begin with a dot do not count,
        nor do `Thumbs.db`, `desktop.ini` and notes: txt, json, csv, md, xml. But a txt of the same
        name as a picture is its caption: then each picture is a clip.

    Example:
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "f2.jpg", "f10.jpg"])
        True
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "f2.jpg", "notes.txt"])
        True
        >>> is_frame_folder(Path("clip"), ["f1.jpg", "g2.jpg"])
        False
    """
    frames = _frames_among(names)
    parts = [_NUMBERED.fullmatch(name) for name in frames]
    if not parts or any(part is None for part in parts):
        return False
    surroundings = {(part[1], part[3], part[4]) for part in parts if part is not None}
    numbers = Counter(int(part[2]) for part in parts if part is not None)
    ending = next(iter(surroundings))[2].lower()
    if len(surroundings) != 1 or ending not in FRAME_EXTS or max(numbers.values()) > 1:
        return False
    if _captioned_among(names):
        return False
    return ending not in ("png", "webp") or not _is_animation(folder / min(frames, key=_number))


def stills_among(folder: Path, names: Sequence[str]) -> list[str]:
    """Find the numbered stills of a folder that is no video because of what else is in it.

    Args:
        folder: The folder.
        names: Of all that is in it.

    Returns:
        Names of two or more pictures that would be one video if they were alone; empty if there
        are none. A picture that has the name of a movie beside it is its thumbnail.

    Example:
        >>> stills_among(Path("clip"), ["f1.jpg", "f2.jpg", "cover.jpg"])
        ['f1.jpg', 'f2.jpg']
    """
    no_movies = ("", *_NOTES, *("." + ending for ending in FRAME_EXTS))
    taken = {Path(name).stem for name in names if _ending(name) not in no_movies}
    series: dict[tuple[str, str, str], list[str]] = {}
    for name in names:
        part = _NUMBERED.fullmatch(name)
        is_still = part is not None and part[4].lower() in FRAME_EXTS
        if part is not None and is_still and Path(name).stem not in taken:
            series.setdefault((part[1], part[3], part[4]), []).append(name)
    longest = max(series.values(), key=len, default=[])
    return longest if len(longest) > 1 and is_frame_folder(folder, longest) else []


def _frames_among(names: Sequence[str]) -> list[str]:
    """Names without those that are hidden, or of notes."""
    return [
        name
        for name in names
        if not name.startswith(".")
        and name.lower() not in _NO_FRAMES
        and _ending(name) not in _NOTES
    ]


def _captioned_among(names: Sequence[str]) -> bool:
    captions = {Path(name).stem for name in names if _ending(name) == ".txt"}
    return bool(captions) and any(Path(name).stem in captions for name in _frames_among(names))


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _number(name: str) -> int:
    part = _NUMBERED.fullmatch(name)
    assert part is not None
    return int(part[2])


def _is_animation(file: Path) -> bool:
    try:
        content = regular_file(file).read_bytes()
    except (PermissionError, FileNotFoundError, UnreadableVideoError):
        return False  # whoever reads the folder is told of it
    durations_of = png_durations if file.suffix.lower() == ".png" else webp_durations
    return len(content) >= 12 and bool(durations_of(content))
