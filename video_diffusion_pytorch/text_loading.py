"""Beside the path: a text encoder and its tokenizer, from the Hugging Face hub or a folder."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def find_encoder(name_or_folder: str | os.PathLike[str]) -> str:
    """A text encoder's name on the Hugging Face hub as it is, or its folder without `~`.

    Raises:
        FileNotFoundError: If it is a path, and there is no such folder.
    """
    found = os.fspath(name_or_folder)
    is_path = (
        isinstance(name_or_folder, os.PathLike)
        or found.startswith((".", "~"))
        or os.path.isabs(found)
        or found.count("/") > 1
        or "\\" in found
    )
    if not is_path:
        return found
    found = os.path.expanduser(found)
    if not os.path.isdir(found):
        raise FileNotFoundError(
            f"expected a folder with a text encoder at {found}, found none; check the path "
            f"(working folder: {Path.cwd()}), or give the model's name on the Hugging Face hub"
        )
    return found


def load_part(encoder: str, part: str, auto_class: str, *, trust_remote_code: bool = False) -> Any:
    """Reads one part of a text encoder.

    Args:
        encoder: A model's name on the Hugging Face hub, or a folder that holds one.
        part: What it is, in a word, for the message if it fails.
        auto_class: The class of `transformers` that reads it.
        trust_remote_code: Whether to run Python code that comes with the encoder.

    Raises:
        OSError: If it cannot be read; the message says what was looked for and where.
    """
    import huggingface_hub.constants
    import transformers

    try:
        with _quiet(transformers.utils.logging):
            # left out, it would be asked for on the terminal
            return getattr(transformers, auto_class).from_pretrained(
                encoder, trust_remote_code=trust_remote_code
            )
    # Which error it is differs between versions of the hub's client, and with its network library
    except Exception as error:
        if os.path.isdir(encoder):
            where = f"in the folder {encoder}"
        else:
            cache = huggingface_hub.constants.HF_HUB_CACHE
            where = f"as {encoder!r} on the Hugging Face hub and in its cache {cache}"
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        if isinstance(error, ValueError) and "trust_remote_code=True" in str(error):
            raise OSError(
                f"the text encoder's {part} was expected {where} without code of its own, got an "
                "encoder whose Python code would have to be run; choose another encoder, or read "
                "that code, and if you trust it call "
                f"video_diffusion_pytorch.text.set_text_encoder({encoder!r}, "
                'trust_remote_code=True), for a command by: python -c "from '
                "video_diffusion_pytorch import cli, text; "
                f'text.set_text_encoder({encoder!r}, trust_remote_code=True); cli.main()" train '
                "FOLDER --text_encoder null"
            ) from error
        raise OSError(
            f"the text encoder's {part} was expected {where}, but loading it gave "
            f"{type(error).__name__}: {reason}; go online once to fill the cache, or call "
            "video_diffusion_pytorch.text.set_text_encoder(folder) with a folder written by "
            "save_pretrained"
        ) from error


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Silence progress bars and load reports, which would come between a training run's lines."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
