"""First step of the path: which files of a folder are clips, and which only belong to one."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from video_diffusion_pytorch.data.formats.frame_folder import is_frame_folder
from video_diffusion_pytorch.data.video_file import VIDEO_EXTS

logger = logging.getLogger("video_diffusion_pytorch")

# Beside a film of the same name such a file is its condition, or its thumbnail
_BESIDE = (".npy", ".npz", ".pt", ".png")


def find_clips(
    folder: Path, exts: Sequence[str] | None = None, exclude: Sequence[str | os.PathLike[str]] = ()
) -> list[Path]:
    """Finds the clips in a folder and its subfolders.

    Names that start with a dot are left out: they are half-written or a file system's own. Where
    `clip.mp4` has a `clip.npy` beside it, that is no clip but belongs to it; and so does, of any
    clip, `clip.cond.npy`.

    Args:
        folder: The folder.
        exts: File name endings to look for, in upper or lower case; None for all that can be
            read, folders of numbered pictures included.
        exclude: Folders that are not looked into.

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
    endings = tuple("." + ext.lower().lstrip(".") for ext in (VIDEO_EXTS if exts is None else exts))
    closed = {Path(path).resolve() for path in exclude}
    found: list[Path] = []
    others: Counter[str] = Counter()
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in folders if (here / name).resolve() not in closed]
        names = [name for name in names if not name.startswith(".")]
        others.update(Path(name).suffix.lower() or "no extension" for name in names)
        if exts is None and is_frame_folder(here, [*names, *folders]):
            found.append(here)
        else:
            found += [here / name for name in names if name.lower().endswith(endings)]
    found = _without_company(sorted(found))
    if not found:
        counts = ", ".join(f"{count} × {ext}" for ext, count in others.most_common(5))
        wanted = " or ".join(endings) or "(exts is empty)"
        raise FileNotFoundError(
            f"expected files ending in {wanted} in {folder} and its subfolders, got "
            f"{counts or 'no file at all'}; check the folder, or say in exts what to look for"
        )
    return found


def beside(clip: Path, endings: Sequence[str]) -> Path | None:
    """The file that belongs to a clip: `clip.cond` with one of the endings, or `clip`."""
    stem = clip.name if clip.is_dir() else clip.stem
    for middle in (".cond", ""):
        for ending in endings:
            path = clip.with_name(stem + middle + ending)
            if path != clip and path.is_file():
                return path
    return None


def _without_company(found: list[Path]) -> list[Path]:
    """Leaves out files that belong to another clip."""
    stems = {path.with_name(path.stem): path for path in found if not _may_belong(path)}
    company = [
        path
        for path in found
        if path.stem.endswith(".cond") or (_may_belong(path) and path.with_name(path.stem) in stems)
    ]
    thumbnails = [path for path in company if path.suffix.lower() == ".png"]
    if thumbnails:
        logger.warning(
            "left out %d pictures beside clips of the same name, such as %s: rename those that "
            "are clips of their own",
            len(thumbnails),
            thumbnails[0],
        )
    left_out = set(company)
    return [path for path in found if path not in left_out]


def _may_belong(path: Path) -> bool:
    return path.suffix.lower() in _BESIDE
