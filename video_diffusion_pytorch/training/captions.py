"""Encoded captions: a cache in memory and on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.cache import source_state
from video_diffusion_pytorch.files import replacing
from video_diffusion_pytorch.text import (
    embed_captions,
    encode_captions,
    encoder_name,
    pad_states,
)

logger = logging.getLogger("video_diffusion_pytorch")

_BATCH = 64
# Batches after which the file is written first, so that an interrupted run resumes there
_FIRST = 64
# Largest size of encoded captions that were not prepared, in bytes
_MOST = 300_000_000


class EncodedCaptions:
    """Vectors or states of captions, cached in memory and, if prepared, in a file.

    Vectors are float32, with BERT 3 kB per caption. States are stored without padding in float16,
    with BERT 1.5 kB per token; the relative rounding error is at most 1/2000, as in float16
    training. States above the range of float16, 65504, stay in float32.

    Args:
        use_cls: As in `text.embed_captions`; ignored for states.
        folder: Folder of the file; None for no file. The file's name depends on the encoder, on
            whether it holds vectors or states and, for an encoder in a local folder, on the sizes
            and times of its files. An encoder without a name has no file.
        states: Whether the network takes sequences of states instead of vectors.
    """

    def __init__(self, use_cls: bool, folder: Path | None = None, *, states: bool = False) -> None:
        self.use_cls, self.folder, self.states = use_cls, folder, states
        # prepared captions stay, the others are dropped above a limit
        self._kept: dict[str, Tensor] = {}
        self._others: dict[str, Tensor] = {}
        self._bytes_of_others = 0

    @property
    def file(self) -> Path | None:
        """The file of the current encoder; None if it has none."""
        name = encoder_name()
        if self.folder is None or name is None:
            return None
        # a folder may get another encoder, with other sizes and times
        content = [source_state(name)] if os.path.isdir(name) else []
        key = json.dumps([name, *[self.use_cls] * (not self.states), *content]).encode()
        digest = hashlib.blake2b(key, digest_size=8).hexdigest()
        return self.folder / f".caption_{'states' if self.states else 'vectors'}-{digest}.pt"

    @property
    def width(self) -> int | None:
        """Width of the prepared captions' vectors or states; None if none are prepared."""
        return next((value.shape[-1] for value in self._kept.values()), None)

    def prepare(self, captions: Iterable[str], device: torch.device) -> None:
        """Encodes captions that the file does not hold yet, and adds them to it.

        Args:
            captions: All captions of the training data.
            device: Device of the encoder.
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
        for start in tqdm(starts, desc="encoding captions", leave=False, disable=len(starts) < 2):
            self._kept.update(self._encode(missing[start : start + _BATCH], device))
            is_last, number = start == starts[-1], start // _BATCH + 1
            # twice as rarely each time, as each write takes longer
            if file is not None and (is_last or (number & (number - 1) == 0 and number >= _FIRST)):
                self._write(file)

    def __call__(self, captions: Sequence[str | None], device: torch.device) -> dict[str, Tensor]:
        """Encodes the captions of a batch.

        Args:
            captions: One per clip; None for a missing caption.
            device: Device of the result, and of the encoder if it is still needed.

        Returns:
            Keywords of the diffusion: `cond`, vectors `(b, d)` or states `(b, n, d)`, in float32;
            with states `cond_mask` `(b, n)`, true for tokens; and, if captions are missing,
            `null_cond_mask` `(b,)`, true for these.
        """
        wanted = ["" if caption is None else caption for caption in captions]
        if self._bytes_of_others > _MOST:
            self._others, self._bytes_of_others = {}, 0
        missing = [c for c in dict.fromkeys(wanted) if not (c in self._kept or c in self._others)]
        if missing:
            encoded = self._encode(missing, device)
            self._others |= encoded
            self._bytes_of_others += sum(value.nbytes for value in encoded.values())
        found = [self._kept[c] if c in self._kept else self._others[c] for c in wanted]
        chosen = [value.float() for value in found]
        if self.states:
            states, mask = pad_states(chosen)
            batch = {"cond": states, "cond_mask": mask}
        else:
            batch = {"cond": torch.stack(chosen)}
        if None in captions:
            batch["null_cond_mask"] = torch.tensor(
                [caption is None for caption in captions], device="cpu"
            )
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    def _encode(self, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        if not self.states:
            vectors = embed_captions(captions, use_cls=self.use_cls, device=device).float().cpu()
            return dict(zip(captions, vectors, strict=True))
        states, mask = (value.cpu() for value in encode_captions(captions, device=device))
        # copies, as a view would keep the whole batch in memory
        rows = [_halved(one[there]) for one, there in zip(states, mask, strict=True)]
        return dict(zip(captions, rows, strict=True))

    def _read(self, file: Path) -> None:
        try:
            kept = torch.load(file, weights_only=True)
            values = kept["states"].split(kept["lengths"]) if self.states else kept["vectors"]
            self._kept.update(zip(kept["captions"], values, strict=True))
        except Exception as error:
            logger.warning("%s could not be read (%r): captions are encoded again", file, error)

    def _write(self, file: Path) -> None:
        try:
            kept: dict[str, Any] = {"captions": list(self._kept)}
            values = list(self._kept.values())
            if self.states:
                kept |= {"states": torch.cat(values), "lengths": [len(value) for value in values]}
            else:
                kept["vectors"] = torch.stack(values)
            with replacing(file) as unfinished:
                torch.save(kept, unfinished)
        except (OSError, RuntimeError) as error:
            logger.warning(
                "%s could not be written (%s): the next run encodes the captions again", file, error
            )


def _halved(states: Tensor) -> Tensor:
    """States in float16, unless they exceed its range."""
    half = states.half()
    return half if half.isfinite().all() else states
