"""Beside the loop: captions become vectors once, not at each step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.text import embed_captions, encoder_name

logger = logging.getLogger("video_diffusion_pytorch")

_BATCH = 64
# What is remembered of captions that no dataset announced: about 300 MB of BERT's vectors
_MOST = 100_000


class CaptionVectors:
    """The vectors of captions, kept in memory and, of those known beforehand, in a file.

    Args:
        use_cls: As in `text.embed_captions`.
        folder: Where the file is; None for none. Its name tells encoder and `use_cls`. An encoder
            without a name has no file.
    """

    def __init__(self, use_cls: bool, folder: Path | None = None) -> None:
        self.use_cls, self.folder = use_cls, folder
        # those known beforehand stay, of the others only so many
        self._kept: dict[str, Tensor] = {}
        self._vectors: dict[str, Tensor] = {}

    @property
    def file(self) -> Path | None:
        """The file of the encoder that is set; None if it has none."""
        name = encoder_name()
        if self.folder is None or name is None:
            return None
        told = json.dumps([name, self.use_cls]).encode()
        return (
            self.folder / f".caption_vectors-{hashlib.blake2b(told, digest_size=8).hexdigest()}.pt"
        )

    def prepare(self, captions: Iterable[str], device: torch.device) -> None:
        """Embeds what the file does not hold yet, and writes it there.

        Args:
            captions: All that training will meet.
            device: Where the encoder runs.
        """
        wanted = list(dict.fromkeys(captions))
        if not wanted:
            return
        file = self.file
        if file is not None and file.is_file():
            self._read(file)
        missing = [caption for caption in wanted if caption not in self._kept]
        if not missing:
            return
        starts = range(0, len(missing), _BATCH)
        for start in tqdm(starts, desc="embedding captions", leave=False, disable=len(starts) < 2):
            self._kept.update(self._embed(missing[start : start + _BATCH], device))
        if file is not None:
            self._write(file)

    def __call__(
        self, captions: Sequence[str | None], device: torch.device
    ) -> tuple[Tensor, Tensor | None]:
        """The vectors of a batch.

        Args:
            captions: Of each clip; None where there is none.
            device: Where the vectors, and an encoder that is still needed, shall be.

        Returns:
            `(b, d)`, and the boolean mask `(b,)` of those without caption, None if all have one.
        """
        wanted = ["" if caption is None else caption for caption in captions]
        known = {c: self._kept[c] for c in wanted if c in self._kept}
        known |= {c: self._vectors[c] for c in wanted if c in self._vectors}
        missing = [caption for caption in dict.fromkeys(wanted) if caption not in known]
        if missing:
            known |= (embedded := self._embed(missing, device))
            if len(self._vectors) + len(embedded) > _MOST:
                self._vectors = {c: self._vectors[c] for c in wanted if c in self._vectors}
            self._vectors.update(embedded)
        vectors = torch.stack([known[caption] for caption in wanted])
        is_missing = torch.tensor([caption is None for caption in captions])
        mask = is_missing.to(device) if is_missing.any() else None
        return vectors.to(device, non_blocking=True), mask

    def _embed(self, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        vectors = embed_captions(captions, use_cls=self.use_cls, device=device).float().cpu()
        return dict(zip(captions, vectors, strict=True))

    def _read(self, file: Path) -> None:
        try:
            kept = torch.load(file, weights_only=True)
            self._kept.update(zip(kept["captions"], kept["vectors"], strict=True))
        # whatever is wrong with it, captions can be embedded anew
        except Exception as error:
            kind = type(error).__name__
            logger.warning("%s could not be read (%s): captions are embedded anew", file, kind)

    def _write(self, file: Path) -> None:
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            kept = {
                "captions": list(self._kept),
                "vectors": torch.stack(list(self._kept.values())),
            }
            torch.save(kept, unfinished)
            unfinished.replace(file)
        except (OSError, RuntimeError) as error:
            logger.warning(
                "%s could not be written (%s): the next run embeds the captions again", file, error
            )
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
