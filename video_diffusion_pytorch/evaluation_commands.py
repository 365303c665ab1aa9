"""What the commands `evaluate` and `compare` do, from checked options to files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from video_diffusion_pytorch import text
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.evaluation.feature_network import FeatureNetwork
from video_diffusion_pytorch.evaluation.results import compare_results, read_result, write_result
from video_diffusion_pytorch.pretrained import load_diffusion
from video_diffusion_pytorch.sample_conditions import class_names
from video_diffusion_pytorch.training.checkpoint import checkpoint_at
from video_diffusion_pytorch.training.checkpoint_file import glance
from video_diffusion_pytorch.training.evaluate import evaluate_diffusion
from video_diffusion_pytorch.training.processes import make_accelerator

NETWORKS = ("features", "classes", "frame_features", "frame_classes")
"""The networks that a user may give, by the option that takes the file of each."""


def run_evaluation(
    checkpoint: str,
    *,
    data: str,
    output: str | None,
    networks: Mapping[str, Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    data_options: Mapping[str, Any],
    image_size: int | tuple[int, int] | None,
    num_frames: int | None,
    device: str | None,
    ema_decay: float | None,
    text_encoder: str | None,
    say: Callable[[str], None],
) -> None:
    """Measures a checkpoint's videos, and writes the result.

    Args:
        checkpoint: A training file, or a results folder for its newest one.
        data: A folder of clips.
        output: The result's file; None for a new one beside the checkpoint.
        networks: Keywords of `FeatureNetwork` by the name of a network in `NETWORKS`.
        evaluation: Further keywords of `Evaluation`.
        data_options: Further keywords of `data.dataset.Dataset`.
        image_size: As in `load_diffusion`.
        num_frames: As in `load_diffusion`.
        device: As in `load_diffusion`; in several processes the launcher says it.
        ema_decay: Which of several averages is measured, by its decay; None for the first.
        text_encoder: As in `text.set_text_encoder`; None for BERT.
        say: Called with each line of the report.

    Raises:
        FileNotFoundError: If a file or folder is missing.
        ValueError: If an option is out of range, or does not fit the checkpoint.
    """
    file = checkpoint_at(checkpoint)
    accelerator = None
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        accelerator = make_accelerator(False, device)
        device = str(accelerator.device)
    averaged = True if ema_decay is None else ema_decay
    sizes: dict[str, Any] = {"image_size": image_size, "num_frames": num_frames}
    diffusion = load_diffusion(file, **sizes, device=device, averaged=averaged)
    if text_encoder is not None:
        text.set_text_encoder(text_encoder)
    made: dict[str, Any] = {name: FeatureNetwork(**told) for name, told in networks.items()}
    target = _free_name(file) if output is None else Path(output)
    # found out now, not after minutes of drawing
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"evaluate: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )
    result = evaluate_diffusion(
        diffusion,
        data,
        Evaluation(**made, **evaluation),
        class_names=class_names(file),
        about={"checkpoint": str(file), "step": glance(file)["step"], "ema_decay": ema_decay},
        accelerator=accelerator,
        **data_options,
    )
    if accelerator is not None and not accelerator.is_main_process:
        return
    write_result(result, target)
    for name, score in result["scores"].items():
        say(f"{name}: {score:.4g}")
    clips, samples = (result["protocol"][part] for part in ("clips", "samples"))
    say(
        f"step {result['model']['step']}, {samples['number']} videos against {clips['number']} "
        f"clips, {samples['sampler']} with {samples['steps']} steps, {result['seconds']:.0f} s"
    )
    say(f"wrote {target}: the scores and their protocol")


def run_comparison(results: list[str], *, allow: list[str], say: Callable[[str], None]) -> None:
    """Prints the scores of several results as a table.

    Args:
        results: Files that `evaluate` has written.
        allow: As in `compare_results`.
        say: Called with each line.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If they must not be compared.
    """
    columns = compare_results(results, allow=allow)
    steps = [read_result(file).get("model", {}).get("step") for file in results]
    shown = {name: [_number(score) for score in found] for name, found in columns.items()}
    table = {"result": results, "step": ["-" if s is None else str(s) for s in steps], **shown}
    widths = [max(len(cell) for cell in (name, *cells)) for name, cells in table.items()]
    for row in (list(table), *map(list, zip(*table.values(), strict=True))):
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.4g}"


def _free_name(checkpoint: Path) -> Path:
    """`evaluation-model-3.json`, or the next that is free: results are not replaced unasked."""
    first = checkpoint.parent / f"evaluation-{checkpoint.stem}.json"
    number, name = 1, first
    while name.exists():
        number += 1
        name = first.with_stem(f"{first.stem}-{number}")
    return name
