"""`video-diffusion gather`: one file of a checkpoint that is a folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    """Makes the parser of the options of `gather`."""
    parser = ArgumentParser(
        usage="video-diffusion gather FOLDER [-o OUTPUT]",
        description="Makes one file of a sharded checkpoint, to sample from or to train on.",
    )
    add = parser.add_argument
    add("folder", type=str, help="A folder model-N.sharded.")
    add("-o", "--output", type=str | None, help="The file; null for model-N.pt beside the folder.")
    return parser


def run(options: Namespace, say: Callable[[str], None]) -> None:
    """Writes a sharded checkpoint as one file."""
    from video_diffusion_pytorch.training.fsdp import gather_checkpoint

    folder = Path(options.folder)
    if folder.is_file():
        raise NotADirectoryError(f"gather: {folder} is one file already; give a model-N.sharded")
    target = None if options.output is None else Path(options.output)
    written = gather_checkpoint(folder, target)
    say(f"wrote {written}: the checkpoint {folder} as one file")
