"""Clip files: finds the clips in a folder, and the files that belong to a clip."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder, stills_among
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS

logger = logging.getLogger("video_diffusion_pytorch")

# Beside a movie of the same name such a file is its condition or its thumbnail
_BESIDE = (".npy", ".npz", ".pt", ".png")
# The name of `scan.nii.gz` is `scan`
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# Files of a Trainer's results folder, and what they start with: a checkpoint, with its keys as
# pickled texts
_OF_A_RUN = {
    re.compile(r"model-\d+(\.\d+)?\.pt"): (b"\x04\0\0\0step", b"\x05\0\0\0model"),
    re.compile(r"metrics\.jsonl"): (b'"step"', b'"clips_per_second"'),
}
_SHARDED = re.compile(r"model-\d+(\.\d+)?\.sharded")


def find_clips(
    folder: Path,
    exts: str | Sequence[str] | None = None,
    exclude: Sequence[str | os.PathLike[str]] = (),
    *,
    uses_arrays: bool = True,
) -> list[Path]:
    """Finds the clips in a folder and its subfolders.

    Names that start with a dot are skipped: they are half-written or belong to the file system.
    `clip.npy` beside `clip.mp4` is not a clip but belongs to it, as does `clip.cond.npy` beside any
    clip.

    The results folder of a run, with checkpoints `model-N.pt` or a `metrics.jsonl`, is skipped
    unless it is `folder` itself: samples are not training data.

    Args:
        folder: The folder.
        exts: File extensions to search, in upper or lower case; None for all supported formats,
            folders of numbered pictures included.
        exclude: Folders that are not searched.
        uses_arrays: Whether arrays beside clips are their conditions; if not, a warning counts
            them.

    Returns:
        Files and folders of frames, sorted.

    Raises:
        FileNotFoundError: The folder is missing, or holds no clip.
        NotADirectoryError: `folder` is a file.
    """
    if not folder.exists():
        raise FileNotFoundError(
            f"expected a folder of videos at {folder}, found none; check the path (working "
            f"folder: {Path.cwd()})"
        )
    if not folder.is_dir():
        raise NotADirectoryError(
            f"expected a folder of videos at {folder}, got a file; pass the folder that holds it"
        )
    endings = _endings(VIDEO_EXTS if exts is None else exts)
    found: list[Path] = []
    frame_folders: set[Path] = set()
    split_folders: list[Path] = []
    counts: Counter[str] = Counter()
    for here, folders, names in _walk(folder, exclude):
        names = _without_results(here, here == folder, names, folders)
        counts.update(Path(name).suffix.lower() or "no extension" for name in names)
        if exts is None and is_frame_folder(here, [*names, *folders]):
            frame_folders.add(here)
            continue
        found += [here / name for name in names if name.lower().endswith(endings)]
        if exts is None and stills_among(here, names):
            split_folders.append(here)
    if split_folders:
        logger.warning(
            "the numbered pictures of %d folders, such as %s, are not taken for frames of one "
            "clip, because of what else is there: move the other files, or those pictures, into a "
            "folder of their own",
            len(split_folders),
            split_folders[0],
        )
    clips, companions = _without_companions([*found, *frame_folders], frame_folders)
    _warn_of_companions(companions, uses_arrays)
    if not clips:
        there = ", ".join(f"{count} × {ext}" for ext, count in counts.most_common(5))
        raise FileNotFoundError(
            f"expected files ending in {' or '.join(endings) or '(exts is empty)'} in {folder} and "
            f"its subfolders, got {there or 'no file at all'}; check the folder, or say in exts "
            "what to look for"
        )
    return clips


def clips_by_name(
    folder: Path,
    exts: str | Sequence[str] | None = None,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> dict[str, list[Path]]:
    """All files below a folder by name, and clips also by their name without extension.

    Args:
        folder: The folder.
        exts: Extensions of clips besides those of the supported formats.
        exclude: As for `find_clips`.

    Returns:
        Files and folders of frames, by `composed` names. Files that belong to a clip have their
        full name only.
    """
    endings = _endings(VIDEO_EXTS) + _endings(exts or ())
    files: list[Path] = []
    frame_folders: set[Path] = set()
    for here, folders, names in _walk(folder, exclude):
        if is_frame_folder(here, [*names, *folders]):
            frame_folders.add(here)
        else:
            files += [here / name for name in names]
    found: dict[str, list[Path]] = {}
    for path in files:
        found.setdefault(composed(path.name), []).append(path)
    with_endings = [path for path in files if path.name.lower().endswith(endings)]
    clips, _ = _without_companions([*with_endings, *frame_folders], frame_folders)
    for path in clips:
        found.setdefault(composed(name_of(path, path in frame_folders)), []).append(path)
    return found


def composed(name: str) -> str:
    """Normalises a name to NFC: macOS stores accents as combining characters."""
    return unicodedata.normalize("NFC", name)


def _endings(exts: str | Sequence[str]) -> tuple[str, ...]:
    wanted = [exts] if isinstance(exts, str) else exts
    return tuple("." + ext.lower().lstrip(".") for ext in wanted)


def _walk(
    folder: Path, exclude: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As `os.walk`, without hidden and excluded files and folders."""
    closed = {Path(path).resolve() for path in exclude}
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if (here / name).resolve() not in closed]
        yield here, folders, [name for name in names if not name.startswith(".")]


def name_of(path: Path, is_folder: bool) -> str:
    """The name of a clip without extension, which the files that belong to it share.

    Args:
        path: The clip.
        is_folder: Whether it is a folder of frames, which has no extension.

    Example:
        >>> name_of(Path("knee.nii.gz"), False), name_of(Path("a.b.mp4"), False)
        ('knee', 'a.b')
        >>> name_of(Path("run.v2"), True)
        'run.v2'
    """
    if is_folder:
        return path.name
    return Path(path.stem).stem if path.suffix.lower() in _COMPRESSED else path.stem


def beside(clip: Path, endings: Sequence[str]) -> Path | None:
    """The file of a clip's name with one of the extensions; `clip.cond.npy` before `clip.npy`."""
    stem = name_of(clip, clip.is_dir())
    for middle in (".cond", ""):
        for ending in endings:
            path = clip.with_name(stem + middle + ending)
            # `Path.is_file` raises where `.cond` makes the name too long for the file system
            if path != clip and os.path.isfile(path):
                return path
    return None


def _without_results(here: Path, is_top: bool, names: list[str], folders: list[str]) -> list[str]:
    """Drops the files of a training run; also from `folders`, in place, for `os.walk`."""
    of_a_run = [name for name in names if _of_a_run(here / name)]
    sharded = [name for name in folders if _SHARDED.fullmatch(name)]
    if (of_a_run or sharded) and not is_top:
        logger.warning("left out the results folder of a run, %s: samples are no clips", here)
        folders.clear()
        return []
    folders[:] = [name for name in folders if name not in sharded]
    return [name for name in names if name not in of_a_run]


def _of_a_run(file: Path) -> bool:
    """Whether a file is a checkpoint or the metrics of a run, by its name and its content."""
    for name, words in _OF_A_RUN.items():
        if name.fullmatch(file.name) and file.is_file():
            try:
                with file.open("rb") as content:
                    head = content.read(1 << 16)
            except OSError:
                return False
            return all(word in head for word in words)
    return False


def _without_companions(
    found: Sequence[Path], frame_folders: Set[Path]
) -> tuple[list[Path], list[Path]]:
    """The clips, and the files that belong to one of them by their names, both sorted."""
    beside = {
        path for path in found if path not in frame_folders and path.suffix.lower() in _BESIDE
    }
    names = {path.with_name(name_of(path, path in frame_folders)) for path in {*found} - beside}
    companions = {path for path in beside if path.with_name(path.stem) in names}
    clips = [
        path
        for path in sorted({*found} - companions)
        if path in frame_folders or not path.stem.endswith(".cond")
    ]
    return clips, sorted(companions)


def _warn_of_companions(companions: Sequence[Path], uses_arrays: bool) -> None:
    pictures = [path for path in companions if path.suffix.lower() == ".png"]
    arrays = [] if uses_arrays else [path for path in companions if path.suffix.lower() != ".png"]
    advice = "rename those that are clips of their own"
    for kind, paths, more in (
        ("pictures", pictures, ""),
        ("arrays", arrays, ", or say in conditions what they are"),
    ):
        if paths:
            logger.warning(
                "left out %d %s beside clips of the same name, such as %s: %s",
                len(paths),
                kind,
                paths[0],
                advice + more,
            )
