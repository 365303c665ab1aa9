"""`Dataset`: a folder of video files as clips of one size and length."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils import data
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.clip_files import find_clips
from video_diffusion_pytorch.data.clip_reader import ClipReader, FrameTransform, Timeline
from video_diffusion_pytorch.data.condition_files import ClipConditions, Conditions
from video_diffusion_pytorch.data.formats.readers import CHANNELS_TO_MODE, ReadFn
from video_diffusion_pytorch.data.manifest import Clip, Manifest
from video_diffusion_pytorch.data.transforms import (
    FrameSize,
    View,
    cast_num_frames,
    fill_up,
    fit_value_range,
    random_window,
    real_frames,
    repeat_ends,
    stretched,
    windows,
)
from video_diffusion_pytorch.sizes import as_image_size, as_value_range

_DEFAULT_EXTS = ["gif"]


class Dataset(data.Dataset[Any]):
    """The clips in a folder, each `(c, f, h, w)`: 8-bit ones float32 in [0, 1].

    With conditions, or `pad="mask"`, an item is a dict: the clip is its `video`, and its other keys
    are keywords of `GaussianDiffusion.forward`.

    Args:
        folder: Searched with all its subfolders.
        image_size: Height and width in pixels: one number for squares, or `(height, width)`.
        channels: Of a clip. Pictures and films have 1 (grey), 3 (colour) or 4 (colour and opacity),
            arrays any number.
        num_frames: Frames of a clip: longer files are cut, shorter ones filled up.
        horizontal_flip: Mirror half of the clips left to right.
        force_num_frames: False leaves each clip as long as its file.
        exts: File name endings to look for, in upper or lower case, one or several; None for all
            that can be read, folders of numbered pictures included.
        frame_skip: Take every `frame_skip`-th frame of a file.
        fps: Frames per second to take instead, by the file's own clock, whatever its rate.
        clip_start: Which part of a long file: its `"first"` frames; a `"random"` part, drawn on
            each access; `"all"` parts, one clip after the other.
        pad: What follows on a file that is too short: `"black"` frames (the least value, where
            there is a `value_range`), its last one (`"repeat"`), or an `"error"`. With `"mask"`
            its last one follows as well, but the loss leaves it out: an item's `frame_mask`, bool
            `(f,)`, is true for the frames of the file.
        fit: Scale a frame until it covers the size and cut the rest off (`"cover"`), until it fits
            in and leave the rest black (`"contain"`; the least value, where there is a
            `value_range`), or distort it (`"stretch"`).
        crop: Keep the `"center"` of a frame that covers the size, or a `"random"` part, the same
            for all frames of a clip.
        vertical_flip: Turn half of the clips upside down.
        value_range: `(low, high)`, each a number or one per channel, in the files' own units, or
            `"fit"` for the least and largest values of the clips, at their size and before they
            are filled up. Clips keep their units: a `GaussianDiffusion` with this `value_range`
            scales them. The attribute of this name holds lows and highs, one per channel each.
        conditions: What comes with a clip; one or several of `"caption"` (the text in `clip.txt`
            or in the manifest), `"label"` (by sub-folder, or in the manifest), `"vector"`,
            `"frame_vectors"` or `"field"` (an array in `clip.npy` or `clip.pt`: `(d,)`, `(f, d)`,
            `(c, h, w)` or `(c, f, h, w)`), a function that is called with the file's path
            and gives a dict of keywords, and a dict of the manifest's columns: `{"cond": ["EF",
            "ESV"]}` for a vector of numbers `(2,)`, float32, `{"cond": "Report", "labels":
            "Class"}` for a text and a label. Each clip must have a finite number and a label.
        missing_captions: `"error"`, or `"null"`: a clip without caption is trained as if its
            condition had been dropped.
        manifest: A `.csv`, `.tsv`, `.txt` or `.jsonl` with the columns `path`, `caption`, `label`,
            `start`, `end` (seconds) and `split`, of which all but `path` may be left out; only its
            clips are taken. Paths are relative to `folder`, or names of files below, which may lack
            their ending. Other usual names of columns, as in `data.manifest.COLUMNS`, are
            understood, and cells such as `nan` count as missing.
        split: Take the manifest's clips of this split, in upper or lower case; None for all.
        read_fn: Reads a file in the place of `read_video`: called with its path, it gives an array
            `(c, f, h, w)`, or that and the frames per second.
        axes: Order of the axes in array files, such as `"fhwc"`; None where it can be recognised.
        cache: A folder for decoded clips, filled on first use and read from then on.
        exclude: Sub-folders not to search.
        as_uint8: Leave 8-bit clips uint8, as `GaussianDiffusion` takes them as well; not with a
            `value_range`, in whose units they are floats from 0 to 255.
        manifest_columns: Names of the manifest's columns where they are others, by what they hold:
            `{"path": "FileName", "split": "Set"}`; None to leave a column of a usual name alone.
        pad_position: Where a file that is too short is filled up: at its `"end"`, or on both sides
            of it, `"center"`, an odd frame at the end. Before a file, its first frame is repeated.
        fit_frames: Which files are resampled in time instead of cut or filled up: the `"short"`
            ones, or `"all"`, into one clip each. Of the frames that `frame_skip` or `fps` leave,
            `num_frames` are taken at even distances, the first and the last included, each the
            nearest: frames are repeated or left out, not mixed. None for no file.
        square_pixels: Scale the width of a film whose pixels are no squares, as players do; False
            leaves frames as they are stored.

    Attributes:
        paths: The files in sorted order, one per clip.
        transform: Called with each decoded frame, a Pillow picture; gives its `(c, h, w)` tensor.
            Another one may be put in its place, but not with a cache.
        cast_num_frames_fn: Called with each clip that is cut or filled up with black.
        class_names: Of the labels: the sorted names, those of a manifest's other splits included,
            or, if all are whole numbers below 10000, these.

    Raises:
        FileNotFoundError: The folder, a clip or a condition is missing.
        NotADirectoryError: `folder` is a file.
        ValueError: An argument is out of range.

    Differs from the reference: clips are flipped as a whole rather than frame by frame, `paths` is
    sorted, and two numbers in `image_size` crop where the reference distorts.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = video_tensor_to_gif(torch.rand(3, 5, 20, 30), f"{folder}/noise.gif")
        ...     Dataset(folder, image_size=16, num_frames=8)[0].shape
        torch.Size([3, 8, 16, 16])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        channels: int = 3,
        num_frames: int = 16,
        horizontal_flip: bool = False,
        force_num_frames: bool = True,
        exts: str | Sequence[str] | None = _DEFAULT_EXTS,
        *,
        frame_skip: int = 1,
        fps: float | None = None,
        clip_start: str = "first",
        pad: str = "black",
        fit: str = "cover",
        crop: str = "center",
        vertical_flip: bool = False,
        value_range: Any = None,
        conditions: Conditions | None = None,
        missing_captions: str = "error",
        manifest: str | os.PathLike[str] | None = None,
        split: str | None = "train",
        read_fn: ReadFn | None = None,
        axes: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        exclude: Sequence[str | os.PathLike[str]] = (),
        as_uint8: bool = False,
        manifest_columns: Mapping[str, str | None] | None = None,
        pad_position: str = "end",
        fit_frames: str | None = None,
        square_pixels: bool = True,
    ) -> None:
        super().__init__()
        size = FrameSize(as_image_size(image_size), fit, crop)
        choices = {"clip_start": clip_start, "pad": pad, "pad_position": pad_position}
        _check_options(num_frames, force_num_frames, {**choices, "fit_frames": fit_frames})
        self.folder, self.image_size, self.channels = folder, image_size, channels
        self.num_frames = num_frames if force_num_frames else None
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.clip_start, self.pad, self.as_uint8 = clip_start, pad, as_uint8
        self.pad_position, self.fit_frames = pad_position, fit_frames
        self.transform: FrameTransform = size
        cast: Callable[[torch.Tensor], torch.Tensor] = partial(cast_num_frames, frames=num_frames)
        self.cast_num_frames_fn = cast if force_num_frames else _keep_all_frames

        # the files and their conditions
        self._conditions = ClipConditions(conditions, missing_captions)
        self._split = None if manifest is None else split
        if manifest is None:
            clips = _clips_of_folder(
                Path(folder), self._conditions, manifest_columns, exts, exclude
            )
        else:
            clips = _clips_of_manifest(
                manifest, Path(folder), split, self._conditions, manifest_columns, exts, exclude
            )
        self.class_names = self._conditions.class_names
        _check_channels(channels, clips, read_fn is not None)

        # the part of each file that is a clip
        timeline = Timeline(frame_skip, fps)
        self._reader = ClipReader(size, timeline, channels, axes, read_fn, square_pixels)
        if cache is not None:
            is_first = clip_start == "first" and fit_frames != "all"
            limit = self.num_frames if is_first and all(clip.is_whole for clip in clips) else None
            self._reader.fill_cache(cache, [clip.path for clip in clips], limit)
        self._clips = self._cut(clips)
        self.paths = [clip.path for clip, _ in self._clips]
        if isinstance(value_range, str) and value_range == "fit":
            value_range = fit_value_range(join_parts(self._clips), self._read_part)
        self.value_range = as_value_range(value_range, channels)

    @property
    def is_cached(self) -> bool:
        """Whether clips are decoded already."""
        return self._reader.cache is not None

    @property
    def settings(self) -> dict[str, Any]:
        """How files become clips, in plain values."""
        flips = [self.horizontal_flip, self.vertical_flip]
        own: dict[str, Any] = {"frames": self.num_frames, "split": self._split, "flips": flips}
        # named where they are used, so that results from before there were such still compare
        if self.pad_position != "end":
            own["pad_position"] = self.pad_position
        if self.fit_frames is not None:
            own["fit_frames"] = self.fit_frames
        return {**own, "clip_start": self.clip_start, "pad": self.pad, **self._reader.settings}

    @property
    def captions(self) -> list[str]:
        """All captions, each once; empty where clips have none."""
        return list(dict.fromkeys(clip.caption for clip, _ in self._clips if clip.caption))

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Any:
        """Read the clip with this index, with draws from torch's global generator.

        Raises:
            UnreadableVideoError: The file is damaged; the message names it.
            ValueError: The file is too short, and `pad` is `"error"`.
        """
        return self.draw_clip(index)

    def draw_clip(self, index: int, generator: torch.Generator | None = None) -> Any:
        """As `dataset[index]`, with draws from a generator of the caller's.

        Args:
            index: Of the clip.
            generator: Draws the part of the file, the crop and the flips; None for torch's global
                one.
        """
        clip, span = self._clips[index]
        size = self._reader.size
        transform = None if self.transform is size else self.transform
        choose = partial(self._choose, generator)
        video, positions = self._reader.read(clip, span, choose, transform)
        view = View.draw(size.crop == "random", self.horizontal_flip, self.vertical_flip, generator)
        black = None
        if self.value_range is not None:
            black = torch.tensor(self.value_range[0])
            video = video.float()  # uint8 cannot hold a low below 0
        # a transform of the user's own may give frames of any size
        video = view.of(video, size if transform is None else None, black)
        count = video.shape[1]
        item: dict[str, Any] = {"video": self._set_length(video, black, clip.path)}
        if self.pad == "mask":
            item["frame_mask"] = real_frames(count, self.num_frames or count, self.pad_position)
        if self._conditions:
            item.update(self._read_conditions(clip, positions, view))
        return item if self._conditions or self.pad == "mask" else item["video"]

    def _cut(self, clips: Sequence[Clip]) -> list[tuple[Clip, range | None]]:
        """The part of each file's timeline that a clip is taken from; None if not yet known."""
        if self.clip_start != "all":
            # the first frames need no counting
            is_known = self.clip_start == "first" and self.fit_frames is None
            first = range(self.num_frames) if is_known and self.num_frames is not None else None
            return [(clip, first if clip.is_whole else None) for clip in clips]
        assert self.num_frames is not None
        parts: list[tuple[Clip, range | None]] = []
        for clip in tqdm(clips, desc="counting frames", leave=False, disable=len(clips) < 100):
            span = self._reader.span(clip)
            cut = [None] if span is None else windows(span, self.num_frames)
            parts += [(clip, part) for part in cut]
        return parts

    def _choose(self, generator: torch.Generator | None, span: range) -> Sequence[int]:
        """The positions of a clip, out of those that it may be taken from."""
        if self.num_frames is None:
            return span
        is_short = self.fit_frames == "short" and len(span) < self.num_frames
        if self.fit_frames == "all" or is_short:
            return stretched(span, self.num_frames)
        if self.clip_start == "random":
            return random_window(span, self.num_frames, generator)
        return span[: self.num_frames]

    def _read_part(self, part: tuple[Clip, range | None]) -> torch.Tensor:
        """All frames that may be seen of a part of a file."""
        choose = partial(self._choose, None) if self.clip_start == "first" else (lambda span: span)
        return self._reader.read(*part, choose)[0]

    def _set_length(
        self, video: torch.Tensor, black: torch.Tensor | None, path: Path
    ) -> torch.Tensor:
        # `cast_num_frames_fn`, which may be replaced, pads with zeros at the end
        is_plain = self.pad == "black" and black is None and self.pad_position == "end"
        if self.num_frames is not None and not is_plain:
            video = fill_up(video, self.num_frames, self.pad, black, path, self.pad_position)
        video = self.cast_num_frames_fn(video)
        return video if video.dtype != torch.uint8 or self.as_uint8 else video.float() / 255

    def _read_conditions(self, clip: Clip, positions: Sequence[int], view: View) -> dict[str, Any]:
        kind, size = self._conditions.array_kind, self._reader.size
        frames = [] if kind is None else self._reader.frame_numbers(clip.path, positions)
        found = self._conditions.read(clip, frames)
        lengthen = partial(repeat_ends, length=self.num_frames, position=self.pad_position)
        if kind == "frame_vectors":
            found["frame_cond"] = lengthen(found["frame_cond"], dim=0)
        elif kind == "field":
            field = found["cond_video"]
            video = field if field.ndim == 4 else field[:, None]
            video = lengthen(view.of(size.read_array(video), size), dim=1)
            found["cond_video"] = video if field.ndim == 4 else video[:, 0]
        return found


def _keep_all_frames(t: torch.Tensor) -> torch.Tensor:
    return t


def _clips_of_folder(
    folder: Path,
    conditions: ClipConditions,
    columns: Mapping[str, str | None] | None,
    exts: str | Sequence[str] | None,
    exclude: Sequence[str | os.PathLike[str]],
) -> list[Clip]:
    if conditions.columns or columns:
        raise ValueError(
            f"columns must be those of a manifest, got {dict(columns or conditions.columns)} and "
            "no manifest; pass manifest='clips.csv'"
        )
    paths = find_clips(folder, exts, exclude, uses_arrays=conditions.may_use_arrays)
    return conditions.complete([Clip(path) for path in paths], folder)


def _clips_of_manifest(
    path: str | os.PathLike[str],
    folder: Path,
    split: str | None,
    conditions: ClipConditions,
    columns: Mapping[str, str | None] | None,
    exts: str | Sequence[str] | None,
    exclude: Sequence[str | os.PathLike[str]],
) -> list[Clip]:
    has_labels = "label" in conditions.kinds
    ignored = {kind: None for kind in ("caption", "label") if kind not in conditions.kinds}
    columns = {**ignored, **(columns or {}), **conditions.roles}
    options: dict[str, Any] = {"numbers": conditions.numbers, "exts": exts, "exclude": exclude}
    table = Manifest(path, folder, columns=columns, **options)
    clips = table.clips(split, needs_labels=has_labels)
    return conditions.complete(clips, folder, table.labels() if has_labels else ())


_ARRAYS = (".npy", ".npz", ".pt")
_CHOICES = {
    "clip_start": ("first", "random", "all"),
    "pad": ("black", "repeat", "mask", "error"),
    "pad_position": ("end", "center"),
    "fit_frames": (None, "short", "all"),
}


def _check_options(
    num_frames: object, force_num_frames: bool, chosen: Mapping[str, str | None]
) -> None:
    if not _is_positive_int(num_frames):
        raise ValueError(
            f"num_frames must be a whole number of at least 1, got {num_frames!r}; for clips "
            "of any length pass force_num_frames=False"
        )
    for name, value in chosen.items():
        if value not in _CHOICES[name]:
            raise ValueError(
                f"{name} must be one of {', '.join(map(str, _CHOICES[name]))}, got {value!r}; "
                "choose one of them"
            )
    if not force_num_frames and chosen["clip_start"] != "first":
        raise ValueError(
            "clip_start must be 'first' where clips are as long as their files, got "
            f"{chosen['clip_start']!r}; leave force_num_frames=False out to cut clips"
        )
    if chosen["fit_frames"] is None:
        return
    if not force_num_frames:
        raise ValueError(
            "fit_frames must be None where clips are as long as their files, got "
            f"{chosen['fit_frames']!r}; leave force_num_frames=False out to resample them in time"
        )
    if chosen["fit_frames"] == "all" and chosen["clip_start"] != "first":
        raise ValueError(
            "fit_frames='all' makes one clip of each file, so clip_start must be 'first', got "
            f"{chosen['clip_start']!r}; leave it out, or pass fit_frames='short' to cut long files"
        )
    if (chosen["pad"], chosen["pad_position"]) != ("black", "end"):
        raise ValueError(
            "pad and pad_position must be left out with fit_frames, which leaves no clip too "
            f"short, got pad={chosen['pad']!r} and pad_position={chosen['pad_position']!r}; choose "
            "whether short files are filled up or stretched"
        )


def _check_channels(channels: object, clips: Sequence[Clip], has_read_fn: bool) -> None:
    are_arrays = has_read_fn or all(clip.path.suffix.lower() in _ARRAYS for clip in clips)
    if not _is_positive_int(channels) or (not are_arrays and channels not in CHANNELS_TO_MODE):
        raise ValueError(
            f"channels must be one of {list(CHANNELS_TO_MODE)}, got {channels!r}; choose 1 "
            "for grey, 3 for colour, 4 for colour and opacity; only arrays (npy, npz, pt) have "
            "any number"
        )


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def join_parts(clips: Sequence[tuple[Clip, range | None]]) -> list[tuple[Clip, range | None]]:
    """The parts of files that clips are cut from, each once.

    Args:
        clips: Each with its frames; None for all.

    Example:
        >>> from pathlib import Path
        >>> join_parts([(Clip(Path("a"), "a cat"), range(4)), (Clip(Path("a")), range(4, 8))])
        [(Clip(path=...('a'), ..., start=None, end=None, numbers=()), range(0, 8))]
    """
    parts: dict[Clip, range | None] = {}
    for clip, span in clips:
        part = replace(clip, caption=None, label=None, numbers=())
        before = parts.get(part, span)
        if span is not None and before is not None:
            span = range(min(before.start, span.start), max(before.stop, span.stop))
        parts[part] = span
    return list(parts.items())
