"""Clip files: which files of a folder are clips, and which belong to another clip."""

from __future__ import annotations

import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder, stills_among
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS

logger = logging.getLogger("video_diffusion_pytorch")

# Beside a film of the same name such a file is its condition, or its thumbnail
_BESIDE = (".npy", ".npz", ".pt", ".png")
# `scan.nii.gz` is a scan that was compressed: both endings are left out of its name
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What a Trainer leaves in its results folder, and what such a file begins with: in a checkpoint,
# the keys as pickled texts
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

    Names that start with a dot are left out: they are half-written or a file system's own. Where
    `clip.mp4` has a `clip.npy` beside it, that is no clip but belongs to it; and so does, of any
    clip, `clip.cond.npy`.

    The results folder of a run, in which there are checkpoints `model-N.pt` or a `metrics.jsonl`,
    is left out, unless it is `folder` itself: samples are no clips to train on.

    Args:
        folder: The folder.
        exts: File name endings to look for, in upper or lower case; None for all that can be
            read, folders of numbered pictures included.
        exclude: Folders that are not looked into.
        uses_arrays: Whether arrays beside clips are read as their conditions; if not, a warning
            says that they are left out.

    Returns:
        Files and folders of frames, sorted.

    Raises:
        FileNotFoundError: The folder is missing, or there is no clip in it.
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
    apart: list[Path] = []
    others: Counter[str] = Counter()
    for here, folders, names in _walk(folder, exclude):
        names = _without_results(here, here == folder, names, folders)
        others.update(Path(name).suffix.lower() or "no extension" for name in names)
        if exts is None and is_frame_folder(here, [*names, *folders]):
            found.append(here)
            frame_folders.add(here)
            continue
        found += [here / name for name in names if name.lower().endswith(endings)]
        if exts is None and stills_among(here, names):
            apart.append(here)
    if apart:
        logger.warning(
            "the numbered pictures of %d folders, such as %s, are not taken for frames of one "
            "clip, because of what else is there: move the other files, or those pictures, into a "
            "folder of their own",
            len(apart),
            apart[0],
        )
    found = _without_company(sorted(found), frame_folders, uses_arrays)
    if not found:
        counts = ", ".join(f"{count} × {ext}" for ext, count in others.most_common(5))
        listed = " or ".join(endings) or "(exts is empty)"
        raise FileNotFoundError(
            f"expected files ending in {listed} in {folder} and its subfolders, got "
            f"{counts or 'no file at all'}; check the folder, or say in exts what to look for"
        )
    return found


def clips_by_name(
    folder: Path,
    exts: str | Sequence[str] | None = None,
    exclude: Sequence[str | os.PathLike[str]] = (),
) -> dict[str, list[Path]]:
    """All files below a folder by their names, and clips by their names without endings as well.

    Args:
        folder: The folder.
        exts: As in `find_clips`; endings of clips besides those that can be read.
        exclude: As in `find_clips`.

    Returns:
        Files and folders of frames, by `composed` names. What belongs to another clip has its full
        name only.
    """
    endings = _endings(VIDEO_EXTS) + _endings(exts or ())
    found: dict[str, list[Path]] = {}
    clips: list[Path] = []
    frame_folders: set[Path] = set()
    for here, folders, names in _walk(folder, exclude):
        if is_frame_folder(here, [*names, *folders]):
            frame_folders.add(here)
            continue
        for name in names:
            path = here / name
            found.setdefault(composed(name), []).append(path)
            clips += [path] if name.lower().endswith(endings) else []
    clips += frame_folders
    companions = set(_companions(clips, frame_folders))
    for path in sorted(clips, key=str):
        if path not in companions and not path.stem.endswith(".cond"):
            name = composed(name_of(path, path in frame_folders))
            found.setdefault(name, []).append(path)
    return found


def composed(name: str) -> str:
    """A name in Unicode's form NFC: macOS writes an accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def _endings(exts: str | Sequence[str]) -> tuple[str, ...]:
    wanted = [exts] if isinstance(exts, str) else exts
    return tuple("." + ext.lower().lstrip(".") for ext in wanted)


def _walk(
    folder: Path, exclude: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Folders with the names of their folders and files, hidden and excluded ones left out."""
    closed = {Path(path).resolve() for path in exclude}
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if (here / name).resolve() not in closed]
        yield here, folders, [name for name in names if not name.startswith(".")]


def name_of(path: Path, is_folder: bool) -> str:
    """The name of a clip without its ending, which what belongs to it shares.

    Args:
        path: The clip.
        is_folder: Whether it is a folder of frames; it has no ending, whatever its name.

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
    """The file that belongs to a clip: `clip.cond` with one of the endings, or `clip`."""
    stem = name_of(clip, clip.is_dir())
    for middle in (".cond", ""):
        for ending in endings:
            path = clip.with_name(stem + middle + ending)
            # `Path.is_file` raises where `.cond` makes the name too long for the file system
            if path != clip and os.path.isfile(path):
                return path
    return None


def _without_results(here: Path, is_top: bool, names: list[str], folders: list[str]) -> list[str]:
    """Leaves out what a training run has written; from `folders`, too, which is changed."""
    of_a_run = [name for name in names if _of_a_run(here / name)]
    sharded = [name for name in folders if _SHARDED.fullmatch(name)]
    if (of_a_run or sharded) and not is_top:
        logger.warning("left out the results folder of a run, %s: samples are no clips", here)
        folders.clear()
        return []
    folders[:] = [name for name in folders if name not in sharded]
    return [name for name in names if name not in of_a_run]


def _of_a_run(file: Path) -> bool:
    """Whether a file is a checkpoint or the numbers of a run, not only named like one."""
    for name, words in _OF_A_RUN.items():
        if name.fullmatch(file.name) and file.is_file():
            try:
                with file.open("rb") as content:
                    head = content.read(1 << 16)
            except OSError:
                return False
            return all(word in head for word in words)
    return False


def _companions(found: list[Path], frame_folders: set[Path]) -> list[Path]:
    """Files that belong to another clip by their names."""
    names = {
        path.with_name(name_of(path, path in frame_folders))
        for path in found
        if path in frame_folders or path.suffix.lower() not in _BESIDE
    }
    return [
        path
        for path in found
        if path not in frame_folders
        and path.suffix.lower() in _BESIDE
        and path.with_name(path.stem) in names
    ]


def _without_company(found: list[Path], frame_folders: set[Path], uses_arrays: bool) -> list[Path]:
    """Leaves out files that belong to another clip."""
    named = _companions(found, frame_folders)
    thumbnails = [path for path in named if path.suffix.lower() == ".png"]
    if thumbnails:
        _warn_of("pictures", thumbnails, "rename those that are clips of their own")
    arrays = [path for path in named if path.suffix.lower() != ".png"]
    if arrays and not uses_arrays:
        advice = "rename those that are clips of their own, or say in conditions what they are"
        _warn_of("arrays", arrays, advice)
    left_out = set(named)
    return [
        path
        for path in found
        if path not in left_out and (path in frame_folders or not path.stem.endswith(".cond"))
    ]


def _warn_of(kind: str, paths: list[Path], advice: str) -> None:
    logger.warning(
        "left out %d %s beside clips of the same name, such as %s: %s",
        len(paths),
        kind,
        paths[0],
        advice,
    )
