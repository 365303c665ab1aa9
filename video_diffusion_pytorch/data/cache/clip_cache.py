"""Between decoding and cutting: clips are decoded once, and mapped into memory from then on."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.cache.clip_record import Record
from video_diffusion_pytorch.data.cache.clip_writer import Writer, disk_errors
from video_diffusion_pytorch.data.cache.file_lock import exclusive_lock
from video_diffusion_pytorch.data.cache.packed_clips import VERSION, PackedClips
from video_diffusion_pytorch.data.cache.source_state import source_digest, source_state
from video_diffusion_pytorch.data.errors import UnreadableVideoError, file_errors

logger = logging.getLogger("video_diffusion_pytorch")


class ClipCache:
    """Decoded clips on the disk, shared by all processes that train on them.

    `build` decodes what is not there yet. It may be killed at any moment and goes on from there the
    next time, less a few seconds' work. Of several processes that build at once, one does and the
    others wait for it. A folder that cannot be written into serves what is in it.

    A source is known by its path, size and time of last change; where these differ, by its content.
    So a file that was moved or touched is not decoded again, and one with other content is.

    Args:
        folder: Where the clips are kept; made when they are built. Many caches can share one.
        settings: All that decides what `decode` makes of a source, in values that JSON knows.
            Clips of other settings are kept apart.

    Attributes:
        failures: Source -> message, for those of the last `build` that cannot be opened or decoded.
            The next build tries them again: what failed may have been the disk, or the settings.

    Raises:
        TypeError: `settings` holds values that JSON does not know.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = Path(folder, "clip.npy")
        ...     np.save(source, np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1))
        ...     cache = ClipCache(folder, {"channels": 1})
        ...     cache.build([source], np.load, progress=False)
        ...     cache[source].shape, cache[source].flags.writeable
        ((1, 2, 3, 1), False)
    """

    def __init__(self, folder: str | os.PathLike[str], settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.failures: dict[Path, str] = {}
        # What cannot even be looked at has no place in the index
        self._closed: dict[str, str] = {}
        self._clips = PackedClips(self.folder, _name_of(settings), settings)

    def build(
        self,
        sources: Sequence[Path],
        decode: Callable[[Path], np.ndarray | torch.Tensor],
        *,
        progress: bool = True,
    ) -> None:
        """Decode the sources that are not in the cache as they are now.

        Args:
            sources: Files, or folders of frames. Others that are in the cache stay there.
            decode: Makes a clip of a source: numbers of any shape and dtype that NumPy has. An
                `UnreadableVideoError` says that it cannot be decoded.
            progress: Whether to show a progress bar.

        Raises:
            OSError: The folder cannot be written into, or the disk is full. The cache stays valid.
            TypeError: `decode` gives something else.
        """
        by_path = {os.path.abspath(source): source for source in sources}
        self._closed, states = {}, {}
        for path, source in by_path.items():
            try:
                with file_errors(source):
                    states[path] = source_state(path)
            except UnreadableVideoError as error:
                self._refuse(path, error)
        if self._stale(states):
            self._catch_up(by_path, states, decode, progress)
        errors = {source: self._error(path) for path, source in by_path.items()}
        self.failures = {source: error for source, error in errors.items() if error is not None}

    def __getitem__(self, source: str | os.PathLike[str]) -> np.ndarray:
        """Give a clip as it was decoded, in a read-only view of the file: nothing is copied.

        Raises:
            KeyError: The source was never part of a build.
            UnreadableVideoError: It could not be decoded.
        """
        path = os.path.abspath(source)
        if path not in self._clips.records and path not in self._closed:
            raise KeyError(
                f"expected a source that is in the cache {self.folder}, got {source}; pass it to "
                "ClipCache.build first"
            )
        error = self._error(path)
        if error is not None:
            raise UnreadableVideoError(error)
        return self._clips.clip(path)

    def _error(self, path: str) -> str | None:
        return self._closed.get(path) or self._clips.records[path].error

    def _refuse(self, path: str, error: UnreadableVideoError) -> None:
        logger.warning("left out of the cache: %s", error)
        self._closed[path] = str(error)

    def _stale(self, states: Mapping[str, str]) -> list[str]:
        records = self._clips.records
        return [
            path
            for path, state in states.items()
            if path not in records or records[path].state != state or records[path].error
        ]

    def _catch_up(
        self,
        by_path: Mapping[str, Path],
        states: Mapping[str, str],
        decode: Callable[[Path], np.ndarray | torch.Tensor],
        progress: bool,
    ) -> None:
        with ExitStack() as stack:
            # Alone, or not at all
            try:
                with disk_errors(self.folder):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    stack.enter_context(exclusive_lock(self._clips.index.with_suffix(".lock")))
            except OSError:
                if self._adopt_all(states):
                    return
                raise
            # What another process has done meanwhile need not be done again
            self._clips.load()
            stale = self._stale(states)
            if not stale:
                return
            with self._clips.writing() as writer:
                contents = self._contents()
                for path in tqdm(stale, desc="decoding clips", unit="", disable=not progress):
                    record = self._renew(path, by_path[path], decode, writer, contents)
                    if record is not None and record.error is None:
                        contents[record.digest] = record
            # The clips of files that are gone need not be kept
            records = self._clips.records
            live = [records[path] for path in records if path in states or os.path.exists(path)]
            self._clips.compact(live)

    def _renew(
        self,
        path: str,
        source: Path,
        decode: Callable[[Path], np.ndarray | torch.Tensor],
        writer: Writer,
        contents: Mapping[str, Record],
    ) -> Record | None:
        """Find the clip of a source by its content, or decode it; None if it cannot be opened."""
        try:
            with file_errors(source):
                state, digest = source_state(path), source_digest(path)
        except UnreadableVideoError as error:
            self._refuse(path, error)
            return None
        known = self._known(path, digest, contents)
        if known is not None and known.error is None:
            return writer.add(known._replace(path=path, state=state))
        try:
            with file_errors(source):
                array = _to_array(decode(source), source)
                is_same = source_state(path) == state
        except UnreadableVideoError as error:
            logger.warning("left out of the cache: %s", error)
            failure = Record(path, state, digest, error=str(error))
            # Tried at each build, and written down once
            return failure if failure == known else writer.add(failure)
        if not is_same:
            # Neither the old nor the new content need be what was decoded: no digest
            message = f"expected {source} not to change while it is read, got a change; build again"
            return writer.add(Record(path, state, "", error=message))
        return writer.add(Record(path, state, digest), array)

    def _known(self, path: str, digest: str, contents: Mapping[str, Record]) -> Record | None:
        record = self._clips.records.get(path)
        # An error's message names its file: it is of no use for another one of the same content
        return record if record and record.digest == digest else contents.get(digest)

    def _contents(self) -> dict[str, Record]:
        records = self._clips.records.values()
        return {record.digest: record for record in records if record.error is None}

    def _adopt_all(self, states: Mapping[str, str]) -> bool:
        """Without writing, find all sources by their content; False if one is new."""
        self._clips.load()
        contents = self._contents()
        for path in self._stale(states) if self._clips.records else ():
            try:
                with file_errors(Path(path)):
                    known = self._known(path, source_digest(path), contents)
            except UnreadableVideoError as error:
                self._refuse(path, error)
                continue
            if known is None:
                return False
            self._clips.records[path] = known._replace(path=path, state=states[path])
        return bool(self._clips.records)


def _name_of(settings: Mapping[str, Any]) -> str:
    try:
        text = json.dumps([VERSION, settings], sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "the cache's settings must be values that JSON knows (text, finite numbers, lists, "
            f"dicts), got {settings!r}: {error}; convert the others, for example with str()"
        ) from error
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _to_array(clip: object, source: Path) -> np.ndarray:
    if isinstance(clip, torch.Tensor) and clip.dtype != torch.bfloat16:
        clip = clip.detach().cpu().numpy()
    if not isinstance(clip, np.ndarray) or clip.dtype.kind not in "biuf":
        raise TypeError(
            f"decode must give an array or a tensor of numbers that NumPy has, got "
            f"{getattr(clip, 'dtype', type(clip).__name__)} for {source}; convert it, for example "
            "to uint8 or float32"
        )
    return clip
