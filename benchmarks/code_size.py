"""Measures the size of the code: files, lines, base classes, files that a training step passes.

python benchmarks/code_size.py
"""

from __future__ import annotations

import ast
import io
import sys
import tempfile
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch

import video_diffusion_pytorch
from video_diffusion_pytorch import GaussianDiffusion, Trainer, Unet3D
from video_diffusion_pytorch.data.dataset import Dataset

PACKAGE = Path(video_diffusion_pytorch.__file__).parent
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def docstring_lines(tree: ast.AST) -> Iterator[int]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            docstring = node.body[0]
            yield from range(docstring.lineno, docstring.end_lineno + 1)


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor comment nor docstring."""
    source = path.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines.difference(docstring_lines(ast.parse(source))))


def own_bases(cls: type) -> list[str]:
    """Modules of ours, other than its own, in which a class's bases are."""
    modules = {base.__module__ for base in cls.__mro__} - {cls.__module__}
    return sorted(m for m in modules if m.split(".")[0] == PACKAGE.name)


def files_of_a_step() -> list[str]:
    """Files of ours with a function that a plain training step calls, clips read in the process."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    with tempfile.TemporaryDirectory() as folder:
        for name in range(4):
            video = torch.rand(3, 4, 16, 16)
            video_diffusion_pytorch.write_video(video, f"{folder}/{name}.gif")
        unet = Unet3D(8, dim_mults=(1, 2), attn_heads=1)
        trainer = Trainer(
            GaussianDiffusion(unet, image_size=16, num_frames=4),
            folder,
            results_folder=f"{folder}/results",
            train_batch_size=2,
            num_workers=0,
            device="cpu",
        )
        trainer.train_step()
        sys.setprofile(note)
        trainer.train_step()
        sys.setprofile(None)
    own = (Path(name) for name in seen if name.startswith(str(PACKAGE)))
    return sorted(str(path.relative_to(PACKAGE)) for path in own)


def main() -> None:
    """Prints the figures."""
    sources = sorted(PACKAGE.rglob("*.py"))
    print(f"files: {len(sources)}")
    print(f"lines of code without docstrings: {sum(map(lines_of_code, sources))}")
    for cls in (Trainer, GaussianDiffusion, Unet3D, Dataset):
        bases = own_bases(cls)
        print(f"{cls.__name__} inherits from {len(bases)} other modules: {', '.join(bases)}")
    step = files_of_a_step()
    print(f"files that a training step passes: {len(step)}: {', '.join(step)}")
    print(f"README.md: {len((PACKAGE.parent / 'README.md').read_bytes())} bytes")


if __name__ == "__main__":
    main()
