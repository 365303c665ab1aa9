"""Beside the path: the files of a shared model, written, found and read without running code."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "model.safetensors", "README.md"
# Of a config.json, which has about 2000
_MOST_BYTES = 1 << 20


def write_model(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], card: str
) -> None:
    """Writes the files of a model; each is whole, or as it was.

    Args:
        folder: Made if need be.
        config: Plain values.
        tensors: A state dict.
        card: Text of a `README.md`, written if there is none.

    Raises:
        ValueError: If the folder is a file, or something can't be held by such files.
    """
    from safetensors.torch import save_file

    text = _as_json(config)
    whole = {name: _whole(name, value) for name, value in tensors.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"save_pretrained: {folder} must be a folder, got a path where a file is; choose "
            "another"
        ) from error
    _replace(folder / WEIGHTS_FILE, lambda path: save_file(whole, path, {"format": "pt"}))
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    if not (folder / CARD_FILE).exists():
        (folder / CARD_FILE).write_text(card, encoding="utf-8")


def find_file(
    folder_or_repo: str | os.PathLike[str], name: str, options: Mapping[str, Any]
) -> Path:
    """A file of a folder, or of a repository, from which it is downloaded if need be.

    Args:
        folder_or_repo: A folder, or else a repository's name.
        name: The file's name.
        options: Keywords of `huggingface_hub.hf_hub_download`.

    Raises:
        FileNotFoundError: If there is none.
    """
    if Path(folder_or_repo).is_file():
        raise FileNotFoundError(
            f"from_pretrained: {folder_or_repo} must be a folder that save_pretrained wrote, got a "
            "file; load a training file with load_diffusion"
        )
    if Path(folder_or_repo).is_dir():
        file = Path(folder_or_repo) / name
        if not file.is_file():
            raise FileNotFoundError(
                f"from_pretrained: {folder_or_repo} must hold {CONFIG_FILE} and {WEIGHTS_FILE}, "
                f"got a folder without {name}; write it with save_pretrained, or load a training "
                "file with load_diffusion"
            )
        return file
    from huggingface_hub import errors, hf_hub_download

    repo = os.fspath(folder_or_repo)
    missing = (
        errors.HFValidationError,
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.EntryNotFoundError,
    )
    try:
        return Path(hf_hub_download(repo, name, **options))
    except missing as error:
        raise FileNotFoundError(
            f"from_pretrained: {repo} must be a folder here, or a repository of the Hugging Face "
            f"Hub that can be reached, with {name} in it, got {type(error).__name__} "
            f"({_short(error)}); check the name, the network, and for a private one the token"
        ) from error


def read_config(file: Path) -> dict[str, Any]:
    """The settings in a `config.json`.

    Raises:
        ValueError: If it is no such file.
    """
    try:
        # or a large one takes the memory, many times its size
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES} bytes")
        config = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"from_pretrained: {file} must be JSON, got a file that is cut off, altered or of "
            f"another kind ({_short(error)}); save or download the model again"
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("unet"), dict):
        found = ", ".join(list(config)[:5]) if isinstance(config, dict) else type(config).__name__
        raise ValueError(
            f"from_pretrained: {file} must hold the settings of a Unet3D under unet, got "
            f"{found or 'nothing'}; use a model that save_pretrained wrote"
        )
    return config


def read_tensors(file: Path) -> dict[str, Tensor]:
    """The tensors in a `model.safetensors`, on the CPU.

    Raises:
        ValueError: If it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"from_pretrained: {file} must hold tensors in the safetensors format, got a file that "
            f"is cut off, altered or of another kind ({_short(error)}); save or download the "
            "model again"
        ) from error


def _as_json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(
            "save_pretrained: the model's config must hold finite numbers, texts and tuples of "
            f"them, got what a JSON file can't hold ({error}); build the model with plain values"
        ) from error


def _whole(name: str, value: Any) -> Tensor:
    """A tensor as safetensors takes it: on the CPU, contiguous, in memory of its own."""
    if not torch.is_tensor(value) or value.is_meta or hasattr(value, "full_tensor"):
        kind = type(value).__name__
        raise ValueError(
            f"save_pretrained: {name} must be a tensor that is whole and has data, got a "
            f"{'meta tensor' if getattr(value, 'is_meta', False) else kind}; save a checkpoint of "
            "the training, load it with load_diffusion, and save that"
        )
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes beside the old file, so that it is there until the new one is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
