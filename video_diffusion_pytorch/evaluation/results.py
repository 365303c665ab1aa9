"""Results: scores with their protocol, written, read and compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.files import replacing

FORMAT = 1

Result = Mapping[str, Any]


def write_result(result: Result, path: str | os.PathLike[str]) -> None:
    """Writes a result as JSON.

    Args:
        result: Has `scores` and `protocol`, in plain values. NaN and infinite ones become null.
        path: The file, which is replaced.

    Raises:
        OSError: If it cannot be written.
    """
    text = json.dumps({"format": FORMAT, **_finite(result)}, indent=2, allow_nan=False)
    with replacing(Path(path)) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    """The same without NaN and infinite numbers."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of `write_result`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not a result.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        found = None
    is_result = isinstance(found, dict) and found.keys() >= {"scores", "protocol"}
    if not is_result or found.get("format") != FORMAT:
        raise ValueError(
            f"evaluate: {path} must be a result in JSON of format {FORMAT}, got another file; give "
            "one written by video-diffusion evaluate"
        )
    return found


def differences(first: Result, second: Result) -> dict[str, tuple[Any, Any]]:
    """Compares two protocols.

    Args:
        first: A protocol, nested to any depth.
        second: Another one.

    Returns:
        The values in the first and the second by the name of each field in which they differ, such
        as `"samples.steps"`; None if a protocol lacks the field.
    """
    ours, theirs = dict(_flat(first)), dict(_flat(second))
    names = [*ours, *(name for name in theirs if name not in ours)]
    pairs = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differences of two protocols, for an error message."""
    return ", ".join(
        f"{name} {ours!r} and {theirs!r}" for name, (ours, theirs) in differing.items()
    )


def compare_results(
    results: Sequence[str | os.PathLike[str] | Result], *, allow: Sequence[str] = ()
) -> dict[str, list[float | None]]:
    """Collects the scores of results with one protocol.

    Args:
        results: Files, or results of `read_result`.
        allow: Fields of the protocol that may differ, such as `"samples.steps"`; the name of a
            group stands for all its fields.

    Returns:
        For each score its values in the results, None where a result lacks it.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the protocols differ in other fields.

    Example:
        >>> protocol = {"samples": {"number": 2048, "steps": 20}}
        >>> short = {"format": 1, "scores": {"fvd": 310.0}, "protocol": protocol}
        >>> protocol = {"samples": {"number": 2048, "steps": 50}}
        >>> long = {"format": 1, "scores": {"fvd": 300.0}, "protocol": protocol}
        >>> compare_results([short, long], allow=["samples.steps"])
        {'fvd': [310.0, 300.0]}
    """
    read = [one if isinstance(one, Mapping) else read_result(one) for one in results]
    for number, other in enumerate(read[1:], 2):
        wrong = {
            field: pair
            for field, pair in differences(read[0]["protocol"], other["protocol"]).items()
            if not any(field == name or field.startswith(f"{name}.") for name in allow)
        }
        if wrong:
            raise ValueError(
                f"compare: results must have one protocol, got results 1 and {number} with "
                f"{in_words(wrong)}; evaluate again, or allow these fields to differ"
            )
    names = dict.fromkeys(name for one in read for name in one["scores"])
    return {name: [one["scores"].get(name) for one in read] for name in names}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their path; lists are not split."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))
