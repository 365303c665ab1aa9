"""Beside the loop: captions are encoded once, not at each step."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.data.cache import source_state
from video_diffusion_pytorch.text import (
    embed_captions,
    encode_captions,
    encoder_name,
    pad_states,
)

logger = logging.getLogger("video_diffusion_pytorch")

_BATCH = 64
# How long a run encodes before it writes what it has, so that one that is killed goes on there
_SECONDS = 30.0
# What is remembered of captions that no dataset announced, in bytes
_MOST = 300_000_000


class EncodedCaptions:
    """What captions are for the network, kept in memory and, if known beforehand, in a file.

    Vectors are kept in float32, 3 kB of BERT's for each caption. States are kept without padding
    in float16, 1.5 kB for each token; that changes them by at most a 2000th, about what float16
    training does. Those of a caption that exceed its range, 65504, stay in float32.

    Args:
        use_cls: As in `text.embed_captions`; without effect on states.
        folder: Where the file is; None for none. Its name tells the encoder, and vectors from
            states; of an encoder in a folder also the sizes and times of the files there. An
            encoder without a name has no file.
        states: Whether the network takes sequences of states instead of vectors.
    """

    def __init__(self, use_cls: bool, folder: Path | None = None, *, states: bool = False) -> None:
        self.use_cls, self.folder, self.states = use_cls, folder, states
        # those known beforehand stay, of the others only so many
        self._kept: dict[str, Tensor] = {}
        self._others: dict[str, Tensor] = {}
        self._bytes_of_others = 0

    @property
    def file(self) -> Path | None:
        """The file of the encoder that is set; None if it has none."""
        name = encoder_name()
        if self.folder is None or name is None:
            return None
        # a folder may get another encoder: then it has other sizes and times
        content = [source_state(name)] if os.path.isdir(name) else []
        told = json.dumps([name, *[self.use_cls] * (not self.states), *content]).encode()
        digest = hashlib.blake2b(told, digest_size=8).hexdigest()
        return self.folder / f".caption_{'states' if self.states else 'vectors'}-{digest}.pt"

    def prepare(self, captions: Iterable[str], device: torch.device) -> None:
        """Encodes what the file does not hold yet, and writes it there, also in between.

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
        due = time.monotonic() + _SECONDS
        for start in tqdm(starts, desc="encoding captions", leave=False, disable=len(starts) < 2):
            self._kept.update(self._encode(missing[start : start + _BATCH], device))
            began = time.monotonic()
            if file is not None and (start == starts[-1] or began >= due):
                self._write(file)
                # so that writing takes a small part of the time
                due = time.monotonic() + max(_SECONDS, 20 * (time.monotonic() - began))

    def __call__(self, captions: Sequence[str | None], device: torch.device) -> dict[str, Tensor]:
        """What a batch is told.

        Args:
            captions: Of each clip; None where there is none.
            device: Where the result, and an encoder that is still needed, shall be.

        Returns:
            Keywords of the diffusion: `cond`, vectors `(b, d)` or states `(b, n, d)`, in float32;
            of states `cond_mask` `(b, n)`, true where there is a token; and, if captions are
            missing, `null_cond_mask` `(b,)`, true where.
        """
        wanted = ["" if caption is None else caption for caption in captions]
        known = {c: self._kept[c] for c in wanted if c in self._kept}
        known |= {c: self._others[c] for c in wanted if c in self._others}
        missing = [caption for caption in dict.fromkeys(wanted) if caption not in known]
        if missing:
            known |= (encoded := self._encode(missing, device))
            self._remember(encoded, wanted)
        chosen = [known[caption].float() for caption in wanted]
        if self.states:
            states, mask = pad_states(chosen)
            told = {"cond": states, "cond_mask": mask}
        else:
            told = {"cond": torch.stack(chosen)}
        if None in captions:
            told["null_cond_mask"] = torch.tensor([caption is None for caption in captions])
        return {name: value.to(device, non_blocking=True) for name, value in told.items()}

    def _encode(self, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        if not self.states:
            vectors = embed_captions(captions, use_cls=self.use_cls, device=device).float().cpu()
            return dict(zip(captions, vectors, strict=True))
        states, mask = (value.cpu() for value in encode_captions(captions, device=device))
        # each in memory of its own, as a part of the batch would keep the whole
        rows = [_halved(one[there]) for one, there in zip(states, mask, strict=True)]
        return dict(zip(captions, rows, strict=True))

    def _remember(self, encoded: Mapping[str, Tensor], wanted: Sequence[str]) -> None:
        """Keeps what no dataset announced, and lets older ones go where it is too much."""
        size = _bytes(encoded)
        if self._bytes_of_others + size > _MOST:
            self._others = {c: self._others[c] for c in wanted if c in self._others}
            self._bytes_of_others = _bytes(self._others)
        self._others.update(encoded)
        self._bytes_of_others += size

    def _read(self, file: Path) -> None:
        try:
            kept = torch.load(file, weights_only=True)
            values = kept["states"].split(kept["lengths"]) if self.states else kept["vectors"]
            self._kept.update(zip(kept["captions"], values, strict=True))
        # whatever is wrong with it, captions can be encoded anew
        except Exception as error:
            kind = type(error).__name__
            logger.warning("%s could not be read (%s): captions are encoded anew", file, kind)

    def _write(self, file: Path) -> None:
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        try:
            kept: dict[str, Any] = {"captions": list(self._kept)}
            values = list(self._kept.values())
            if self.states:
                kept |= {"states": torch.cat(values), "lengths": [len(value) for value in values]}
            else:
                kept["vectors"] = torch.stack(values)
            torch.save(kept, unfinished)
            unfinished.replace(file)
        except (OSError, RuntimeError) as error:
            logger.warning(
                "%s could not be written (%s): the next run encodes the captions again", file, error
            )
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)


def _halved(states: Tensor) -> Tensor:
    """States in float16, unless they exceed its range."""
    half = states.half()
    return half if half.isfinite().all() else states


def _bytes(encoded: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in encoded.values())
