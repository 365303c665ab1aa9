"""Beside the loop: whether clips can be evaluated on, and what a result must tell of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from video_diffusion_pytorch.data.dataset_options import as_value_range
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.training.evaluation_options import Evaluation
from video_diffusion_pytorch.training.splits import clips_behind, name_of


def checked_indices(
    diffusion: GaussianDiffusion, dataset: Any, indices: Sequence[int] | None
) -> Sequence[int]:
    """The clips that are meant, by index.

    Args:
        diffusion: The model.
        dataset: Should have a length.
        indices: Those that are meant; None for all.

    Raises:
        ValueError: If they cannot be read in any order, are fewer than two, or are in units that
            the model does not know.
    """
    is_list = hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)
    if not is_list or len(dataset if indices is None else indices) < 2:
        found = "fewer" if is_list else f"a {type(dataset).__name__}"
        raise ValueError(
            "Evaluation: there must be at least 2 clips that can be read in any order, got "
            f"{found}; give a folder, or a dataset with a length"
        )
    clips = clips_behind(dataset)
    if clips is not None and clips.value_range and diffusion.config["value_range"] is None:
        raise ValueError(
            "Evaluation: the clips must be in the units that the model was trained with, which "
            f"are no value_range, got clips with {clips.value_range}; leave their value_range out"
        )
    return range(len(dataset)) if indices is None else indices


def unit_limits(diffusion: GaussianDiffusion, evaluation: Evaluation) -> Any:
    """The clips' values that are 0 and 1 to networks of features.

    Args:
        diffusion: The model.
        evaluation: Whose `value_range` comes before the model's.

    Returns:
        Lows and highs, one per channel each; None for clips in [0, 1].

    Raises:
        ValueError: If nothing tells them.
    """
    given = evaluation.value_range or diffusion.config["value_range"]
    if given is None and not diffusion.auto_normalize:
        raise ValueError(
            "Evaluation: networks must know what is 0 and what is 1 to them, got a model with "
            "auto_normalize=False and no value_range; pass value_range=(low, high) of the clips"
        )
    return as_value_range(given, diffusion.channels)


def protocol_of_clips(dataset: Any, indices: Sequence[int]) -> dict[str, Any]:
    """What a result must tell of the real clips, in plain values.

    Args:
        dataset: A `Dataset` of this library, for whose files there is a hash of names and sizes;
            of any other one, the name of its class.
        indices: Of the clips that are looked at.
    """
    clips = clips_behind(dataset)
    if clips is None:
        return {"dataset": type(dataset).__qualname__}
    found = hashlib.sha256()
    for path in sorted({Path(name_of(dataset, index)) for index in indices}):
        name = path.relative_to(clips.folder) if path.is_relative_to(clips.folder) else path
        size = path.stat().st_size if path.is_file() else 0
        found.update(f"{name.as_posix()} {size}\n".encode())
    return {**clips.settings, "files": found.hexdigest()[:16]}
