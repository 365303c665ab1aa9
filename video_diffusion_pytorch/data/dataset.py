"""`Dataset`: the clips of a folder at one size and length; their single frames, and pictures."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils import data
from tqdm.auto import tqdm

from video_diffusion_pytorch.arguments import as_count, as_image_size
from video_diffusion_pytorch.data import transforms
from video_diffusion_pytorch.data.cache import ClipCache
from video_diffusion_pytorch.data.condition_files import ClipConditions, Conditions
from video_diffusion_pytorch.data.errors import (
    UnreadableVideoError,
    file_errors,
    finite,
    unreadable,
)
from video_diffusion_pytorch.data.formats.arrays import (
    ArrayReader,
    ReadFn,
    call_reader,
    count_arrays,
    read_array,
)
from video_diffusion_pytorch.data.formats.field_files import kind_of_fields
from video_diffusion_pytorch.data.formats.fields import (
    Layout,
    count_items,
    layout_of,
    open_fields,
    read_parameters,
    variable_names,
)
from video_diffusion_pytorch.data.formats.frame_folder import FRAME_EXTS
from video_diffusion_pytorch.data.formats.pictures import PictureReader
from video_diffusion_pytorch.data.formats.readers import (
    CHANNELS_TO_MODE,
    VideoReader,
    family_of_name,
)
from video_diffusion_pytorch.data.manifest import Clip, Manifest, find_clips
from video_diffusion_pytorch.data.transforms import FrameSize, Timeline, View, cast_num_frames
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS, open_video
from video_diffusion_pytorch.value_scale import padding_values

if TYPE_CHECKING:
    from PIL.Image import Image

logger = logging.getLogger("video_diffusion_pytorch")

# Increase when the decoders give other pixels or read more files: it invalidates caches
_DECODER = 3

STILL_EXTS = tuple(ext for ext in FRAME_EXTS if ext not in VIDEO_EXTS)
"""Extensions of pictures that `open_video` does not take for clips."""
# Their names in Pillow
_STILL_FORMATS = ("JPEG", "BMP", "TIFF")

# Attributes that `recorded_options` holds
_RECORDED = (
    *("fit_frames", "pad", "pad_position", "clip_start"),
    *("horizontal_flip", "vertical_flip", "missing_captions", "static_field"),
)

FrameTransform = Callable[["Image"], torch.Tensor]

_DEFAULT_EXTS = ["gif"]
# Share of missing values in a scaled one from which on it is missing
_LEAST_SHARE = 1e-3
_CHOICES = {
    "clip_start": ("first", "random", "all"),
    "pad": ("black", "repeat", "mask", "error"),
    "pad_position": ("end", "center"),
    "fit_frames": (None, "short", "all"),
    "missing_captions": ("error", "null"),
    "missing": ("error", "mask"),
}


class Dataset(data.Dataset[Any]):
    """The clips in a folder.

    An item is a clip, `(c, f, h, w)`, of 8-bit files float32 in [0, 1]. With conditions, or
    `pad="mask"`, it is a dict: the clip is its `video`, and its other keys are keywords of
    `GaussianDiffusion.forward`.

    Args:
        folder: Searched with all its subfolders.
        image_size: Height and width in pixels: one number for squares, or `(height, width)`.
        channels: Of a clip. Pictures and movies have 1 (grey), 3 (colour) or 4 (colour and
            opacity), arrays any number.
        num_frames: Frames of a clip: longer files are cut, shorter ones padded.
        horizontal_flip: Flip each clip left to right with probability 1/2.
        force_num_frames: False keeps the length of each file.
        exts: File extensions to search, in upper or lower case, one or several; None for all
            supported formats, folders of numbered pictures included.
        frame_skip: Take every `frame_skip`-th frame of a file.
        fps: Frames per second to take instead, by the timestamps of the file.
        clip_start: The part of a long file to use: its `"first"` frames; a `"random"` part, drawn
            on each access; `"all"` parts, as consecutive clips.
        pad: How to pad a file that is too short: with `"black"` frames (the low of `value_range`,
            if given), by `"repeat"` of its last frame, or not: `"error"`. `"mask"` repeats the last
            frame, too, and excludes padding from the loss: an item's `frame_mask`, bool `(f,)`, is
            true for the frames of the file.
        fit: Scale a frame until it covers the size, then crop it (`"cover"`); scale it until it
            fits in, then pad it with black (`"contain"`; with the low of `value_range`, if given);
            or scale height and width independently (`"stretch"`).
        crop: Keep the `"center"` of a frame that covers the size, or a `"random"` part, the same
            for all frames of a clip.
        vertical_flip: Flip each clip upside down with probability 1/2.
        value_range: `(low, high)`, each a number or one per channel, in the files' own units, or
            `"fit"` for the minimum and maximum of the clips, at their size and before padding; or,
            for samples that are not clamped, a mapping of `mean` and `std`, or `"standardize"` for
            those of the clips, by channel. Clips keep their units: a `GaussianDiffusion` with this
            `value_range` scales them. The attribute of this name holds lows and highs, one per
            channel each, or a `Standardization`.
        value_transform: With `"standardize"`, what is applied to values first: `"log"`, `"log1p"`,
            `"sqrt"` or `"asinh"`, for all channels, or one or None for each; None for nothing.
        fit_clips: Largest number of files that `"fit"` and `"standardize"` look at, evenly spaced;
            None for all. With `"fit"` samples are clamped to the range of these.
        conditions: The conditions of a clip; one or several of `"caption"` (the text in `clip.txt`
            or in the manifest), `"label"` (by sub-folder, or in the manifest), `"vector"`,
            `"frame_vectors"` or `"field"` (an array in `clip.npy` or `clip.pt`: `(d,)`, `(f, d)`,
            `(c, h, w)` or `(c, f, h, w)`), a function that is called with the file's path
            and returns a dict of keywords, and a dict of the manifest's columns: `{"cond": ["EF",
            "ESV"]}` for a vector of numbers `(2,)`, float32, `{"cond": "Report", "labels":
            "Class"}` for a text and a label. Each clip must have a finite number and a label.
            Without a manifest, numbers are those of NetCDF, HDF5 and Zarr files: scalar variables,
            variables with one number per simulation, or attributes of the file.
        missing_captions: `"error"`, or `"null"` to train clips without caption on the null
            condition.
        manifest: A `.csv`, `.tsv`, `.txt` or `.jsonl` with the columns `path`, `caption`, `label`,
            `start`, `end` (seconds) and `split`, of which only `path` is required; only its clips
            are used. Paths are relative to `folder`, or names of files below, with or without
            extension. Other usual names of columns, as in `data.manifest.COLUMNS`, are accepted,
            and cells such as `nan` count as missing.
        split: Use the manifest's clips of this split, in upper or lower case; None for all.
        missing: What to do with a file that has missing values, NaN or fill values: `"error"`, or
            `"mask"` to leave them NaN in clips, for a `GaussianDiffusion(missing="mask")`. Values
            that scaling would make of missing ones are missing, too.
        static_field: A file of one frame on the grid of the clips, such as topography or a mask of
            land, which becomes the field of every clip, its `cond_video` `(c, h, w)`, in front of
            the mask; None for none.
        cond_standardize: Whether to find the mean and the standard deviation of each number of
            the conditions, of vectors and fields by entry and channel, for a `GaussianDiffusion`
            that standardises them; not of what a function returns.
        variables: Of NetCDF, HDF5 and Zarr files: the variables that become channels, in this
            order; None if there is only one choice.
        dims: What the dimensions of such files, and of NIfTI files, are, by name, in the letters
            n, c, f, h, w: `{"member": "n", "lev": "c"}`; or, for axes without names, the letters of
            all of them in order, as `"nfhwc"`. Each entry of `n` is a clip of its own. None for
            what names and attributes tell.
        read_fn: Reads a file instead of `read_video`: called with its path, it returns an array
            `(c, f, h, w)`, or that and the frames per second.
        axes: Order of the axes in array files, such as `"fhwc"`; None to infer it.
        cache: A folder for decoded clips, filled on first use and read from then on.
        exclude: Sub-folders not to search: one or several paths, of which relative ones start in
            the working folder, as that of `folder` does.
        as_uint8: Keep 8-bit clips uint8, which `GaussianDiffusion` accepts, too; not with a
            `value_range`, in whose units they are floats from 0 to 255.
        manifest_columns: Names of the manifest's columns by role: `{"path": "FileName", "split":
            "Set"}`; None to ignore a column of a usual name.
        pad_position: Where to pad a file that is too short: at its `"end"`, or on both sides,
            `"center"`, an odd frame at the end. Before a file, its first frame is repeated.
        fit_frames: Files to resample in time instead of cutting or padding them: the `"short"`
            ones, or `"all"`, into one clip each. Of the frames selected by `frame_skip` or `fps`,
            `num_frames` evenly spaced ones are taken, the first and the last included, each rounded
            to the nearest: frames are repeated or dropped, not interpolated. None for no file.
        square_pixels: Scale the width of a movie with non-square pixels, as players do; False
            keeps frames as they are stored.

    Attributes:
        paths: The files in sorted order, one per clip.
        transform: Called with each decoded frame, a Pillow picture; returns its `(c, h, w)` tensor.
            May be replaced, but not with a cache.
        cast_num_frames_fn: Called with each clip to cut it or pad it with black.
        value_deviation: With `value_range="fit"` or `"standardize"`, the standard deviation of the
            values in the range of the network; else None.
        cond_standardization: With `cond_standardize`, what was found, as `GaussianDiffusion` takes
            it; else None.
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
        value_transform: Any = None,
        fit_clips: int | None = None,
        conditions: Conditions | None = None,
        missing_captions: str = "error",
        manifest: str | os.PathLike[str] | None = None,
        split: str | None = "train",
        read_fn: ReadFn | None = None,
        axes: str | None = None,
        cache: str | os.PathLike[str] | None = None,
        exclude: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        as_uint8: bool = False,
        manifest_columns: Mapping[str, str | None] | None = None,
        pad_position: str = "end",
        fit_frames: str | None = None,
        square_pixels: bool = True,
        variables: str | Sequence[str] | None = None,
        dims: Mapping[str, str] | str | None = None,
        missing: str = "error",
        static_field: str | os.PathLike[str] | None = None,
        cond_standardize: bool = False,
    ) -> None:
        super().__init__()
        self.folder, self.image_size = folder, image_size
        self.channels = as_count(channels, "channels")
        num_frames = as_count(num_frames, "num_frames")
        self.num_frames = num_frames if force_num_frames else None
        self.clip_start, self.fit_frames = clip_start, fit_frames
        self.pad, self.pad_position = pad, pad_position
        self.horizontal_flip, self.vertical_flip = horizontal_flip, vertical_flip
        self.as_uint8, self.missing_captions = as_uint8, missing_captions
        size, timeline = FrameSize(as_image_size(image_size), fit, crop), Timeline(frame_skip, fps)
        layout = layout_of(variables, dims or axes)
        self._reader = ClipReader(
            size, timeline, channels, axes, read_fn, square_pixels, layout, missing == "mask"
        )
        self.missing = missing
        self._check_options(num_frames, cache is not None)
        # to be found from another folder, too
        self.static_field = None if static_field is None else os.path.abspath(static_field)
        self._static_field = None if static_field is None else self._reader.static(static_field)
        self.transform: FrameTransform = size
        cast: Callable[[torch.Tensor], torch.Tensor] = partial(cast_num_frames, frames=num_frames)
        self.cast_num_frames_fn = cast if force_num_frames else torch.nn.Identity()

        # the files and their conditions
        self._split = None if manifest is None else split
        self._conditions = ClipConditions(conditions, missing_captions)
        self._has_conditions = bool(self._conditions)
        search: dict[str, Any] = {"exts": exts, "exclude": exclude}
        clips = self._find(manifest, manifest_columns, split, search)
        self.class_names = self._conditions.class_names
        self._check_channels(clips)
        self._reader.settle_variables(clips)
        clips = self._reader.items_of(clips)
        if manifest is None and self._conditions.numbers:
            clips = self._reader.with_parameters(clips, self._conditions.numbers)
        if cache is not None:
            are_whole = all(clip.is_whole for clip in clips)
            is_cut = clip_start == "first" and fit_frames != "all" and are_whole
            self._reader.fill_cache(cache, clips, self.num_frames if is_cut else None)

        self.cond_standardization = None
        if cond_standardize:
            self.cond_standardization = self._conditions.scales(clips, self._static_field)

        # the part of each file that is a clip, and the range of their values
        self._clips = self._cut(clips)
        self.paths = [clip.path for clip, _ in self._clips]
        parts = join_parts(self._clips) if isinstance(value_range, str) else []
        self.value_range, self.value_deviation = transforms.fit_scale(
            value_range, channels, parts, self._read_part, value_transform, fit_clips
        )

    def _check_options(self, num_frames: int, has_cache: bool) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(map(str, known))}, got "
                    f"{getattr(self, name)!r}; choose one of them"
                )
        clip_start, fit_frames = self.clip_start, self.fit_frames
        pad, pad_position = self.pad, self.pad_position
        if self.num_frames is None and (clip_start, fit_frames) != ("first", None):
            rule = "clip_start and fit_frames must be left out with force_num_frames=False"
        elif fit_frames == "all" and clip_start != "first":
            rule = "clip_start must be left out with fit_frames='all', one clip of each file"
        elif fit_frames is not None and (pad, pad_position) != ("black", "end"):
            rule = "pad and pad_position must be left out with fit_frames"
        elif has_cache and self._reader.read_fn is not None:
            rule = "cache must be left out with read_fn, whose code may change"
        else:
            return
        raise ValueError(
            f"{rule}, got {num_frames=}, {clip_start=}, {fit_frames=}, {pad=}, {pad_position=}; "
            "change or leave out one of them"
        )

    def _check_channels(self, clips: Sequence[Clip]) -> None:
        if self.channels in CHANNELS_TO_MODE or self._reader.read_fn is not None:
            return
        for clip in clips:
            if not _is_array(clip.path):
                raise ValueError(
                    f"channels must be 1 (grey), 3 (colour) or 4 (colour and opacity), got "
                    f"{self.channels} for {clip.path}; only arrays have other numbers: choose them "
                    "by exts='npy'"
                )

    @property
    def is_cached(self) -> bool:
        """Whether clips are read from a cache."""
        return self._reader.cache is not None

    @property
    def settings(self) -> dict[str, Any]:
        """How files become clips, as JSON values."""
        flips = [self.horizontal_flip, self.vertical_flip]
        own: dict[str, Any] = {"frames": self.num_frames, "split": self._split, "flips": flips}
        own |= {"clip_start": self.clip_start, "pad": self.pad}
        # only where they are used, so that settings of older versions compare equal
        if self.pad_position != "end":
            own["pad_position"] = self.pad_position
        if self.fit_frames is not None:
            own["fit_frames"] = self.fit_frames
        return {**own, **self._reader.settings}

    @property
    def frame_options(self) -> dict[str, Any]:
        """Keywords of `Dataset` by which frames are chosen and scaled."""
        size, timeline, reader = self._reader.size, self._reader.timeline, self._reader
        chosen = {"frame_skip": timeline.frame_skip, "fps": timeline.fps}
        own: dict[str, Any] = {"axes": reader.axes, "square_pixels": reader.square_pixels}
        # only where they are used, so that those of older versions compare equal
        if reader.layout.variables is not None:
            own["variables"] = list(reader.layout.variables)
        if reader.layout.dims not in (None, reader.axes):
            own["dims"] = reader.layout.dims
        return {"fit": size.fit, "crop": size.crop, **chosen, **own}

    @property
    def recorded_options(self) -> dict[str, Any]:
        """`frame_options`, and the other keywords for clips like these, unless they are defaults.

        Functions in `conditions` are left out with it.
        """
        parameters = inspect.signature(Dataset).parameters
        found = {name: getattr(self, name) for name in _RECORDED}
        found["conditions"] = self._conditions.plain
        changed = {n: value for n, value in found.items() if value != parameters[n].default}
        return {**self.frame_options, **changed}

    @property
    def frame_rate(self) -> float | None:
        """Frames per second of the clips, by the first readable file; None without timestamps."""
        timeline = self._reader.timeline
        if self.fit_frames is not None or timeline.fps is not None:
            return None if self.fit_frames is not None else timeline.fps
        for path in dict.fromkeys(self.paths):
            # training skips damaged files and names them
            with suppress(UnreadableVideoError), self._reader.open(path) as file:
                return None if file.fps is None else file.fps / timeline.frame_skip
        return None

    @property
    def cond_ranges(self) -> dict[str, tuple[float, float]]:
        """The least and the largest value of each column of numbers in `cond`, by its name."""
        columns = zip(*(clip.numbers for clip, _ in self._clips), strict=True)
        return {
            name: (min(values), max(values))
            for name, values in zip(self._conditions.numbers, columns, strict=False)
        }

    @property
    def captions(self) -> list[str]:
        """The distinct captions, in order."""
        return list(dict.fromkeys(clip.caption for clip, _ in self._clips if clip.caption))

    def listed_conditions(self, index: int) -> tuple[Any, ...] | None:
        """Caption, class and numbers of a clip, none of which is read from files; None for none."""
        clip = self._clips[index][0]
        found = (clip.caption, clip.label, clip.numbers)
        return found if any(found) else None

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> Any:
        """Reads the clip with this index, with draws from torch's global generator.

        Raises:
            UnreadableVideoError: The file is damaged; the message names it.
            ValueError: The file is too short, and `pad` is `"error"`.
        """
        return self.draw_clip(index)

    def draw_clip(self, index: int, generator: torch.Generator | None = None) -> Any:
        """As `dataset[index]`, with draws from `generator`.

        Args:
            index: Of the clip.
            generator: For the part of the file, the crop and the flips; None for torch's global
                one.
        """
        clip, span = self._clips[index]
        size = self._reader.size
        transform = None if self.transform is size else self.transform
        choose = partial(self._choose, generator)
        video, positions = self._reader.read(clip, span, choose, transform)
        flips = (self.horizontal_flip, self.vertical_flip)
        view = View.draw(size.crop == "random", flips, generator)
        black = None
        if self.value_range is not None:
            black = torch.tensor(padding_values(self.value_range, self.channels), device="cpu")
            video = video.float()  # uint8 cannot hold a low below 0
        # a transform of the user's own may give frames of any size
        video = view.of(video, size if transform is None else None, black)
        count = video.shape[1]
        item: dict[str, Any] = {"video": self._set_length(video, black, clip.path)}
        if self.pad == "mask":
            length = self.num_frames or count
            item["frame_mask"] = transforms.real_frames(count, length, self.pad_position)
        if self._has_conditions:
            item.update(self._read_conditions(clip, positions, view))
        self._add_fields(item, view)
        return item if len(item) > 1 else item["video"]

    def _find(
        self,
        manifest: str | os.PathLike[str] | None,
        columns: Mapping[str, str | None] | None,
        split: str | None,
        search: Mapping[str, Any],
    ) -> list[Clip]:
        """The clips in the folder, or those of a manifest, with captions and class names."""
        conditions, folder = self._conditions, Path(self.folder)
        if manifest is None:
            # numbers may be in the files themselves
            if {*conditions.columns} - ({"cond"} if conditions.numbers else set()) or columns:
                raise ValueError(
                    "columns must be those of a manifest, got "
                    f"{dict(columns or conditions.columns)} without one; pass manifest='clips.csv'"
                )
            if split not in ("train", None):
                raise ValueError(
                    f"split must be one of a manifest, got {split!r} without one; pass "
                    "manifest='clips.csv', or the folder of these clips"
                )
            paths = find_clips(folder, **search, uses_arrays=conditions.may_use_arrays)
            return conditions.complete([Clip(path) for path in paths], folder)
        unused = {kind: None for kind in ("caption", "label") if kind not in conditions.kinds}
        columns = {**unused, **(columns or {}), **conditions.roles}
        table = Manifest(manifest, folder, columns=columns, numbers=conditions.numbers, **search)
        rows = table.labels() if "label" in conditions.kinds else ()
        return conditions.complete(table.clips(split), folder, rows)

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
            try:
                spans = transforms.windows(self._reader.span(clip), self.num_frames)
            except UnreadableVideoError:  # reading the clip raises it again
                parts.append((clip, None))
            else:
                parts += [(clip, span) for span in spans]
        return parts

    def _choose(self, generator: torch.Generator | None, span: range) -> Sequence[int]:
        """The positions of a clip, out of those that it may be taken from."""
        if self.num_frames is None:
            return span
        is_short = self.fit_frames == "short" and len(span) < self.num_frames
        if self.fit_frames == "all" or is_short:
            return transforms.stretched(span, self.num_frames)
        if self.clip_start == "random":
            return transforms.random_window(span, self.num_frames, generator)
        return span[: self.num_frames]

    def _read_part(self, part: tuple[Clip, range | None]) -> Iterator[torch.Tensor]:
        """All frames that may be seen of a part of a file; of arrays as many as a clip has."""
        clip, span = part
        if self.clip_start == "first" or self.num_frames is None:
            yield self._reader.read(clip, span, partial(self._choose, None))[0]
        elif not _is_array(clip.path):
            yield self._reader.read(clip, span, lambda span: span)[0]
        else:
            # which is read at its own size
            span = self._reader.span(clip) if span is None else span
            for first in range(0, len(span), self.num_frames):
                yield self._reader.read(clip, span[first : first + self.num_frames], list)[0]

    def _set_length(
        self, video: torch.Tensor, black: torch.Tensor | None, path: Path
    ) -> torch.Tensor:
        length = self.num_frames
        if length is not None and video.shape[1] < length:
            if self.pad == "error":
                raise ValueError(
                    f"{path} must have {length} frames for a clip, got {video.shape[1]}; remove "
                    "it, or pass pad='repeat' or pad='black'"
                )
            if self.pad != "black":
                video = transforms.repeat_ends(video, length, 1, self.pad_position)
            elif black is not None or self.pad_position != "end":
                video = transforms.pad_black(video, length, black, self.pad_position)
        # may be replaced; by default pads with zeros at the end
        video = self.cast_num_frames_fn(video)
        return video if video.dtype != torch.uint8 or self.as_uint8 else video.float() / 255

    def _add_fields(self, item: dict[str, Any], view: View) -> None:
        """Joins the fields that all clips have, or that follow from them, to that of an item."""
        fields = [item["cond_video"]] if "cond_video" in item else []
        if self._static_field is not None:
            fields.append(view.of(self._static_field, self._reader.size)[:, 0])
        if self._conditions.has_mask:
            fields.append(item["video"].isfinite().all(dim=0, keepdim=True).float())
        if fields:
            item["cond_video"] = join_fields(fields)

    def _read_conditions(self, clip: Clip, positions: Sequence[int], view: View) -> dict[str, Any]:
        kind, size = self._conditions.array_kind, self._reader.size
        frames = [] if kind is None else self._reader.frame_numbers(clip.path, positions)
        found = self._conditions.read(clip, frames)
        length, pad = self.num_frames, transforms.repeat_ends
        if kind == "frame_vectors":
            found["frame_cond"] = pad(found["frame_cond"], length, 0, self.pad_position)
        elif kind == "field":
            field = found["cond_video"]
            video = field if field.ndim == 4 else field[:, None]
            video = pad(view.of(size.read_array(video), size), length, 1, self.pad_position)
            found["cond_video"] = video if field.ndim == 4 else video[:, 0]
        return found


class SingleFrames(Dataset):
    """One random frame of each clip of a `Dataset`, drawn on each access.

    Only that frame is decoded. Its conditions are those of the clip at that frame.

    Args:
        clips: The clips. Files, cache and options are shared; later changes have no effect.

    Example:
        >>> import tempfile
        >>> from video_diffusion_pytorch.data.video_file import video_tensor_to_gif
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = video_tensor_to_gif(torch.rand(3, 5, 20, 30), f"{folder}/noise.gif")
        ...     SingleFrames(Dataset(folder, image_size=16, num_frames=4))[0].shape
        torch.Size([3, 1, 16, 16])
    """

    def __init__(self, clips: Dataset) -> None:
        self.__dict__.update(vars(clips))
        is_first = clips.clip_start == "first"
        self._length = clips.num_frames if is_first and clips.fit_frames != "all" else None
        # the file may be shorter than its first part
        self._clips = [(clip, None if is_first else span) for clip, span in clips._clips]
        self.num_frames, self.clip_start, self.fit_frames = 1, "random", None
        self.cast_num_frames_fn = partial(cast_num_frames, frames=1)

    def _choose(self, generator: torch.Generator | None, span: range) -> range:
        return transforms.random_window(span[: self._length], 1, generator)


class PictureFolder(Dataset):
    """The pictures in a folder, each `(c, 1, h, w)`, and random frames of the clips among them.

    Numbered pictures are separate items, too. With captions or classes an item is a dict, as in
    `Dataset`.

    Args:
        folder: Searched with all its subfolders for all formats of `Dataset`, `jpg`, `bmp` and
            `tif`.
        image_size: As for `Dataset`.
        channels: As for `Dataset`.
        has_captions: Use the text in `picture.txt` as the condition `cond`; None without the file.
        class_names: Names of classes, in the order of their labels: a picture in a sub-folder of
            that name has its label, others -1. Empty for no labels.
        **options: As for `Dataset`: `fit`, `crop`, `horizontal_flip`, `vertical_flip`,
            `value_range`, `axes`, `exclude`, `as_uint8` and `square_pixels`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        image_size: int | tuple[int, int],
        channels: int = 3,
        *,
        has_captions: bool = False,
        class_names: Sequence[str] = (),
        **options: Any,
    ) -> None:
        numbers = {name: number for number, name in enumerate(class_names)}
        label = partial(_label_by_folder, folder=Path(folder), numbers=numbers)
        super().__init__(
            folder,
            image_size,
            channels,
            num_frames=1,
            # explicit extensions: folders of numbered pictures are not clips here
            exts=(*VIDEO_EXTS, *STILL_EXTS),
            clip_start="random",
            conditions=[*["caption"] * has_captions, *[label] * bool(numbers)],
            missing_captions="null",
            **options,
        )


def _label_by_folder(path: Path, folder: Path, numbers: Mapping[str, int]) -> dict[str, int]:
    return {"labels": numbers.get(path.relative_to(folder).parts[0], -1)}


@dataclass
class ClipReader:
    """Decodes frames of files at the size of the clips.

    Attributes:
        size: Scales and crops the frames.
        timeline: Maps positions to frames.
        channels: Number of channels of a clip.
        axes: Order of the axes in array files, as in `read_video`.
        read_fn: Reads files instead of `open_video`; None for none.
        square_pixels: As in `read_video`.
        layout: What of files of fields is read.
        keeps_missing: Whether missing values stay NaN, or else are an error.
        cache: Decoded files; None for none. `fill_cache` sets it.
    """

    size: FrameSize
    timeline: Timeline
    channels: int
    axes: str | None = None
    read_fn: ReadFn | None = None
    square_pixels: bool = True
    layout: Layout = field(default_factory=Layout)
    keeps_missing: bool = False
    cache: ClipCache | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """How frames are chosen and scaled, as JSON values."""
        size, timeline = self.size, self.timeline
        chosen = {"frame_skip": timeline.frame_skip, "fps": timeline.fps}
        scaling = {"size": list(size.size), "fit": size.fit, "crop": size.crop}
        found: dict[str, Any] = {"channels": self.channels, **chosen, **scaling}
        found["filter"] = "bilinear, antialiased"
        # only where they are used, so that settings of older versions compare equal
        if not self.square_pixels:
            found["square_pixels"] = False
        if self.layout.variables is not None:
            found["variables"] = list(self.layout.variables)
        if self.layout.dims not in (None, self.axes):
            found["dims"] = self.layout.dims
        if self.keeps_missing:
            found["missing"] = "mask"
        return found

    def settle_variables(self, clips: Sequence[Clip]) -> None:
        """Takes the variables of the first file for those of all.

        Otherwise a file with other variables, or in another order, would give other channels.
        """
        if self.layout.variables is not None or self.read_fn is not None:
            return
        for clip in clips:
            if kind_of_fields(clip.path) in (None, "nifti"):
                continue
            # training reports files that cannot be read
            with suppress(UnreadableVideoError), file_errors(clip.path):
                names = variable_names(clip.path, self.channels, self.layout)
                # the name of a store of one array is that of the file
                if names != (clip.path.name.partition(".")[0],):
                    self.layout = replace(self.layout, variables=names)
                return

    def items_of(self, clips: Sequence[Clip]) -> list[Clip]:
        """A clip for each simulation of those files that have several.

        A warning says if files of fields have different grids, which are scaled to one size.

        Raises:
            ImportError: If the library that reads a file is not installed.
        """
        found: list[Clip] = []
        grids: dict[tuple[int, int], Path] = {}
        for clip in clips:
            count = 1
            # training reports files that cannot be read
            with suppress(UnreadableVideoError), file_errors(clip.path):
                count, grid = self._count_items(clip.path)
                if grid is not None:
                    grids.setdefault(grid, clip.path)
            several = [replace(clip, item=item) for item in range(count)]
            found += several if count > 1 else [clip]
        if len(grids) > 1:
            sizes = [f"{h} x {w} in {path}" for (h, w), path in list(grids.items())[:2]]
            height, width = self.size.size
            logger.warning(
                "files have %d grids, such as %s, which all become %d x %d; resample them to one "
                "grid, unless their points are to be at different places",
                len(grids),
                " and ".join(sizes),
                height,
                width,
            )
        return found

    def with_parameters(self, clips: Sequence[Clip], names: Sequence[str]) -> list[Clip]:
        """Clips with numbers that their own files hold, such as parameters of simulations.

        Raises:
            UnreadableVideoError: If a file has no such number.
            ValueError: If a file is not one of fields, so that it cannot have any.
        """
        known: dict[Path, np.ndarray] = {}
        found = []
        for clip in clips:
            if kind_of_fields(clip.path) is None or self.read_fn is not None:
                raise ValueError(
                    f"columns must be those of a manifest, or numbers in NetCDF, HDF5 or Zarr "
                    f"files, got {', '.join(names)} for {clip.path}; pass manifest='clips.csv'"
                )
            if clip.path not in known:
                with file_errors(clip.path):
                    known[clip.path] = read_parameters(clip.path, names, self.channels, self.layout)
            row = known[clip.path][clip.item or 0]
            found.append(replace(clip, numbers=tuple(row.tolist())))
        return found

    def _count_items(self, path: Path) -> tuple[int, tuple[int, int] | None]:
        """Number of simulations in a file, and its grid, but none of a scanner's volume."""
        if self.read_fn is not None:
            return 1, None
        if (kind := kind_of_fields(path)) is not None:
            count, grid = count_items(path, self.channels, self.layout)
            return count, None if kind == "nifti" else grid
        order = self.layout.dims
        if isinstance(order, str) and "n" in order and family_of_name(path) in ("npy", "zip"):
            return count_arrays(path, order), None
        return 1, None

    @contextmanager
    def open(self, path: Path, item: int | None = None) -> Iterator[VideoReader]:
        """Opens a file or a folder of frames in a `with` statement.

        Args:
            path: The file or folder.
            item: Number of the simulation in a file of several; None for a file of one.

        Raises:
            UnreadableVideoError: It is damaged or must not be read; also if that shows only within
                the statement.
        """
        is_still = path.suffix.lower().lstrip(".") in STILL_EXTS and not path.is_dir()
        with file_errors(path):
            if self.read_fn is not None:
                file: VideoReader = call_reader(path, self.read_fn, self.channels)
            elif kind_of_fields(path) is not None:
                file = open_fields(path, self.channels, self.layout, item)
            elif is_still:
                file = PictureReader(path, self.channels, _STILL_FORMATS)
            else:
                order = self.layout.dims if isinstance(self.layout.dims, str) else self.axes
                options: dict[str, Any] = {"axes": order, "square_pixels": self.square_pixels}
                file = open_video(path, channels=self.channels, item=item, **options)
            with file:
                yield file

    def span(self, clip: Clip) -> range:
        """The positions of a clip on its file's timeline.

        Raises:
            UnreadableVideoError: The file is damaged, or has no frame there.
        """
        if self.cache is not None and clip.is_whole:
            return range(self.cache[clip.path, clip.item].num_frames)
        with self.open(clip.path, clip.item) as file:
            return self.timeline.between(file, clip.start, clip.end)

    def frame_numbers(self, path: Path, positions: Sequence[int]) -> list[int]:
        """The frames of a file at these positions of its timeline."""
        if self.timeline.fps is None:
            return [position * self.timeline.frame_skip for position in positions]
        with self.open(path) as file:
            return self.timeline.frames(file, positions)

    def read(
        self,
        clip: Clip,
        span: range | None,
        choose: Callable[[range], Sequence[int]],
        transform: FrameTransform | None = None,
    ) -> tuple[torch.Tensor, Sequence[int]]:
        """Reads the frames of a clip.

        Args:
            clip: The file.
            span: Positions to choose from, which may exceed the file's end; None for those of the
                clip, which are looked up in the opened file.
            choose: Gives the positions to read, in ascending order; they may repeat.
            transform: As for `decode`.

        Returns:
            The frames, as from `decode`, and their positions.

        Raises:
            UnreadableVideoError: As `decode`.
            ValueError: Both a transform and a cache are used.
        """
        if self.cache is None:
            with self.open(clip.path, clip.item) as file:
                if span is None:
                    span = self.timeline.between(file, clip.start, clip.end)
                positions = choose(span)
                video = self.decode(file, self.timeline.frames(file, positions), transform)
            return video, positions[: video.shape[1]]
        if transform is not None:
            raise ValueError(
                f"Dataset.transform must stay as it is with a cache, got {transform!r}; leave one "
                "of cache and transform out"
            )
        positions = choose(self.span(clip) if span is None else span)
        pixels = torch.from_numpy(self.cache[clip.path, clip.item].frames(positions))
        return pixels.permute(3, 0, 1, 2), positions[: len(pixels)]

    def decode(
        self, file: VideoReader, frames: Sequence[int], transform: FrameTransform | None = None
    ) -> torch.Tensor:
        """Decodes frames of an opened file.

        Args:
            file: The file.
            frames: Their numbers in ascending order; they may repeat.
            transform: Converts a Pillow picture to a tensor; None for `size`.

        Returns:
            `(c, f, h, w)`, with fewer frames if the file ends before. Uint8 for 8-bit files. `h`
            and `w` are larger than the clip's before a random crop, smaller before padding.

        Raises:
            UnreadableVideoError: The file is damaged, has none of the frames, or holds NaN or
                infinite values.
        """
        once = sorted(set(frames))
        if isinstance(file, ArrayReader):
            video = self._scaled(file.array(once), file.path)
        elif file.is_array:
            # frame by frame, as they may differ in size
            there = [frame for frame in once if frame < file.num_frames]
            video = _stack([self._read_frame(file, frame) for frame in there], file.path)
        elif transform is not None:
            pictures = [transform(picture) for picture in file.pictures(once)]
            video = torch.stack(pictures, dim=1) if pictures else torch.empty(0, 0, device="cpu")
            finite(video, file.path)
        else:
            # map: a comprehension would keep a picture until the next is decoded
            video = _stack(list(map(self.size.read, file.pictures(once))), file.path)
        if not video.shape[1]:
            expected = f"a frame with the number {min(frames, default=0)}"
            raise unreadable(file.path, expected, "a file that ends before", "correct its start")
        if len(once) < len(frames):
            places = {frame: place for place, frame in enumerate(once[: video.shape[1]])}
            video = video[:, [places[frame] for frame in frames if frame in places]]
        return video

    def _scaled(self, video: torch.Tensor, path: Path) -> torch.Tensor:
        """Scales an array `(c, f, h, w)`, of which values may be missing."""
        if not self.keeps_missing or not video.is_floating_point():
            return self.size.read_array(finite(video, path))
        is_missing = video.isnan()
        scaled = self.size.read_array(finite(video.nan_to_num(0.0, torch.inf, -torch.inf), path))
        if not is_missing.any():
            return scaled
        # also those to which a missing one contributes
        share = self.size.read_array(is_missing.float())
        return scaled.masked_fill(share > _LEAST_SHARE, torch.nan)

    def static(self, path: str | os.PathLike[str]) -> torch.Tensor:
        """Reads a file of one frame at the size of the clips, `(c, 1, h, w)`.

        Raises:
            FileNotFoundError: It is missing.
            UnreadableVideoError: It is damaged, has several frames, or values that are missing.
        """
        found, expected = Path(path), "an array (h, w) or (c, h, w), or a file of one frame"
        with file_errors(found):
            if kind_of_fields(found) is None:
                values = read_array(found).float()
                if values.ndim not in (2, 3):
                    raise unreadable(found, expected, f"the shape {tuple(values.shape)}")
                values = values.view(-1, 1, *values.shape[-2:])
            else:
                with open_fields(found, None, Layout(dims=self.layout.dims)) as file:
                    if file.num_frames != 1:
                        raise unreadable(found, expected, f"{file.num_frames} frames")
                    values = file.array([0])
        return self.size.read_array(finite(values, found))

    def _read_frame(self, file: VideoReader, frame: int) -> np.ndarray:
        """Reads and scales one frame of numbers, `(h, w, c)`."""
        numbers = finite(file.array([frame]), file.path)
        return self.size.read_array(numbers)[:, 0].movedim(0, -1).numpy()

    def fill_cache(
        self, folder: str | os.PathLike[str], clips: Sequence[Clip], limit: int | None
    ) -> None:
        """Decodes all files that the cache lacks.

        Args:
            folder: The cache; made if missing.
            clips: Of these files.
            limit: Number of positions to cache of each file; None for all.
        """
        settings = {**self.settings, "decoder": _DECODER, "axes": self.axes, "limit": limit}

        def decode(source: tuple[Path, int | None]) -> np.ndarray:
            with self.open(*source) as file:
                length = self.timeline.length(file) if limit is None else limit
                video = self.decode(file, self.timeline.frames(file, range(length)))
            return video.permute(1, 2, 3, 0).numpy()

        self.cache = ClipCache(folder, settings)
        self.cache.build(list(dict.fromkeys((clip.path, clip.item) for clip in clips)), decode)


def _is_array(path: Path) -> bool:
    """Whether a file holds an array or fields, by its name."""
    return family_of_name(path) in ("npy", "zip") or kind_of_fields(path) is not None


def join_fields(fields: Sequence[torch.Tensor]) -> torch.Tensor:
    """Joins the channels of fields, `(c, h, w)` or `(c, f, h, w)`; of frames if one has them."""
    frames = max((one.shape[1] for one in fields if one.ndim == 4), default=0)
    if not frames:
        return torch.cat([*fields])
    whole = [one if one.ndim == 4 else one[:, None].expand(-1, frames, -1, -1) for one in fields]
    return torch.cat(whole)


def _stack(arrays: list[np.ndarray], path: Path) -> torch.Tensor:
    """Stacks frames `(h, w, c)` to `(c, f, h, w)`, channels last in memory."""
    if not arrays:
        return torch.empty(0, 0, device="cpu")
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({array.shape[:2] for array in arrays})
        advice = "use fit='stretch', or fit='cover' and crop='center', or remove the file"
        raise unreadable(path, "frames of one shape", f"(height, width) {shapes}", advice)
    return torch.from_numpy(np.stack(arrays)).permute(3, 0, 1, 2)


def join_parts(clips: Sequence[tuple[Clip, range | None]]) -> list[tuple[Clip, range | None]]:
    """Merges the parts of each file that clips are taken from.

    Args:
        clips: Each with its positions; None for all.

    Example:
        >>> from pathlib import Path
        >>> join_parts([(Clip(Path("a"), "a cat"), range(4)), (Clip(Path("a")), range(4, 8))])
        [(Clip(path=...('a'), ..., start=None, end=None, numbers=(), item=None), range(0, 8))]
    """
    parts: dict[Clip, range | None] = {}
    for clip, span in clips:
        part = replace(clip, caption=None, label=None, numbers=())
        before = parts.get(part, span)
        if span is not None and before is not None:
            span = range(min(before.start, span.start), max(before.stop, span.stop))
        parts[part] = span
    return list(parts.items())
