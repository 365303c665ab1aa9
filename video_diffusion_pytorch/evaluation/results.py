"""Results in files, each with the protocol that it was measured by, and what may be compared."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.files import replacing

FORMAT = 1
_PARTS = ("format", "scores", "protocol")

Result = Mapping[str, Any]


def write_result(result: Result, path: str | os.PathLike[str]) -> None:
    """Writes a result as JSON.

    Args:
        result: With `scores` and `protocol`, in plain values. Scores that are not finite become
            null.
        path: The file; it is replaced.

    Raises:
        FileNotFoundError: If there is no folder for it.
        OSError: If it cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"evaluate: expected a folder at {target.parent} to write {target.name} into, found "
            "none; create it first"
        )
    finite = {n: v if math.isfinite(v) else None for n, v in result["scores"].items()}
    text = json.dumps({"format": FORMAT, **result, "scores": finite}, indent=2, allow_nan=False)
    with replacing(target) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `write_result` wrote.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no result.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"evaluate: expected a result at {file}, found no file; give one that "
            "video-diffusion evaluate has written"
        )
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"evaluate: {file} must be a result in JSON, got other text ({error}); give a file "
            "that video-diffusion evaluate has written"
        ) from error
    is_whole = isinstance(found, dict) and all(part in found for part in _PARTS)
    if not is_whole or found["format"] != FORMAT:
        raise ValueError(
            f"evaluate: {file} must be a result with {', '.join(_PARTS)}, of format {FORMAT}, got "
            "another file; give one that video-diffusion evaluate has written"
        )
    return found


def differences(first: Result, second: Result) -> dict[str, tuple[Any, Any]]:
    """The fields in which two protocols differ.

    Args:
        first: A protocol, to any depth.
        second: Another one.

    Returns:
        By the field's name, `"samples.steps"`, for one: what the first has, and the second. None
        where one of them has no such field.
    """
    ours, theirs = dict(_flat(first)), dict(_flat(second))
    names = [*ours, *(name for name in theirs if name not in ours)]
    pairs = {name: (ours.get(name), theirs.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def compare_results(
    results: Sequence[str | os.PathLike[str] | Result], *, allow: Sequence[str] = ()
) -> dict[str, list[float | None]]:
    """Scores side by side, of results that were measured alike.

    Args:
        results: Files, or what `read_result` gives of them; at least two.
        allow: Fields of the protocol that may differ, because they are what is compared, such as
            `"samples.steps"`; the name of a group stands for all in it.

    Returns:
        By name of the score, what each result has, None where it has none.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If there are not two results, they differ in a field of the protocol that may
            not differ, or `allow` names none.

    Example:
        >>> import json
        >>> protocol = {"samples": {"number": 2048, "steps": 20}}
        >>> short = {"format": 1, "scores": {"fvd": 310.0}, "protocol": protocol}
        >>> protocol = {"samples": {"number": 2048, "steps": 50}}
        >>> long = {"format": 1, "scores": {"fvd": 300.0}, "protocol": protocol}
        >>> compare_results([short, long], allow=["samples.steps"])
        {'fvd': [310.0, 300.0]}
    """
    if len(results) < 2:
        raise ValueError(
            f"compare: there must be at least 2 results, got {len(results)}; give more"
        )
    read = [one if isinstance(one, Mapping) else read_result(one) for one in results]
    fields = {name for one in read for name, _ in _flat(one["protocol"])}
    for name in allow:
        if not any(_is_in(field, name) for field in fields):
            raise ValueError(
                f"compare: allow must name fields of the protocol, {', '.join(sorted(fields))}, "
                f"got {name!r}; correct it"
            )
    for number, other in enumerate(read[1:], 2):
        found = differences(read[0]["protocol"], other["protocol"])
        wrong = {
            name: pair
            for name, pair in found.items()
            if not any(_is_in(name, allowed) for allowed in allow)
        }
        if wrong:
            told = ", ".join(f"{name}: {a!r} and {b!r}" for name, (a, b) in wrong.items())
            raise ValueError(
                "compare: results must be measured by one protocol, got results 1 and "
                f"{number} that differ in {told}; measure again alike, or allow these fields to "
                "differ if they are what is compared"
            )
    names = dict.fromkeys(name for one in read for name in one["scores"])
    return {name: [one["scores"].get(name) for one in read] for name in names}


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Fields by their path; lists stay whole."""
    if not isinstance(value, Mapping):
        yield prefix, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{prefix}.{name}" if prefix else str(name))


def _is_in(field: str, name: str) -> bool:
    return field == name or field.startswith(f"{name}.")
