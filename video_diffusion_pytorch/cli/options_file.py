"""Files of options of `train`: YAML, read with its mistakes named and written with comments."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import yaml

from video_diffusion_pytorch.arguments import nearest_name

# Far more than all options need: aliases in a few lines can stand for billions of values
_MOST_CHARACTERS, _MOST_VALUES = 1 << 18, 20_000
_WIDTH = 98


def read_options(
    path: str, groups: Mapping[str, Collection[str]], short: Mapping[str, str], top: Collection[str]
) -> dict[str, Any]:
    """Reads a file of options.

    Args:
        path: The file, which is read once, as a pipe can be.
        groups: Names of the options of each group.
        short: Full names, such as `unet.dim`, by the names without their group.
        top: Names of the options without a group.

    Returns:
        The options, those of a group in a dict, whichever way the file has them.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is not YAML, is too large, or has an unknown option or one twice.
    """
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for place, value in _entries(_load(path), groups, path):
        written = place.replace("-", "_")
        name = written if written in top else short.get(written, written)
        group, _, key = name.partition(".")
        if name not in top and key not in groups.get(group, ()):
            raise ValueError(
                f"train: expected options of train in {path}, got {place}"
                f"{suggested(written, groups, short, top)}; see video-diffusion train --help_all"
            )
        if name in given:
            raise ValueError(
                f"train: each option must be given once, got {given[name]} and {place} for {name} "
                f"in {path}; remove one"
            )
        given[name] = place
        (found.setdefault(group, {}) if key else found)[key or name] = value
    return found


def suggested(
    name: str, groups: Mapping[str, Collection[str]], short: Mapping[str, str], top: Collection[str]
) -> str:
    """The option that is meant by an unknown one, in words; empty if there is none.

    Args:
        name: The unknown one, with its group if that was given.
        groups: As of `read_options`.
        short: Likewise.
        top: Likewise.
    """
    group, dot, key = name.rpartition(".")
    # with a group, one of the same group
    meant = nearest_name(key, groups.get(group, ()) if dot else [*top, *groups, *short])
    return "" if meant is None else f" (is {group}{dot}{meant} meant?)"


def _entries(
    found: Any, groups: Mapping[str, Collection[str]], path: str
) -> Iterator[tuple[str, Any]]:
    """The options of a file as they are written, those in a group with its name before."""
    parts = [found.get(group) or {} for group in groups] if isinstance(found, dict) else [found]
    if not all(isinstance(part, dict) for part in parts) or "config" in found:
        raise ValueError(
            f"train: --config must hold options by name, and those of {', '.join(groups)} in a "
            f"mapping each, got others in {path}; write them as --print_config does"
        )
    for name, value in found.items():
        if name in groups:
            yield from ((f"{name}.{key}", inner) for key, inner in (value or {}).items())
        else:
            yield str(name), value


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            content = file.read(_MOST_CHARACTERS + 1)
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        if len(content) > _MOST_CHARACTERS or _is_large(node):
            raise ValueError(
                f"train: --config must be a file of at most {_MOST_CHARACTERS} characters and "
                f"{_MOST_VALUES} values (aliases written out), got more in {path}; write only the "
                "options that differ from the defaults"
            )
        return node and loader.construct_document(node)
    except OSError as error:
        raise OSError(
            f"train: --config must be a YAML file that can be read, got {path} "
            f"({error.strerror}); correct the path"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(
            f"train: --config must be a YAML file in UTF-8, got {path} ({error}); correct it"
        ) from error


def _is_large(root: yaml.Node | None) -> bool:
    """Whether a document has more than `_MOST_VALUES` values with its aliases written out."""
    pending, count = [root], 0
    while pending and count + len(pending) <= _MOST_VALUES:
        node = pending.pop()
        count += 1
        if isinstance(node, yaml.MappingNode):
            pending += itertools.chain.from_iterable(node.value)
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value
    return bool(pending)


def write_options(
    options: Mapping[str, Any], groups: Collection[str], comment: Callable[[str], str]
) -> str:
    """Writes options as YAML, each under its comment.

    Args:
        options: Plain values, those of a group in a mapping.
        groups: Names of the groups.
        comment: The comment of a group or an option, by its full name; empty for none.
    """
    lines = []
    for name, value in options.items():
        if name in groups:
            lines += ["", *_commented(comment(name), ""), f"{name}:"]
            for key, inner in value.items():
                lines += [*_commented(comment(f"{name}.{key}"), "  "), *_entry(key, inner, "  ")]
        else:
            lines += [*_commented(comment(name), ""), *_entry(name, value, "")]
    return "\n".join(lines) + "\n"


def _commented(text: str, indent: str) -> list[str]:
    lead = f"{indent}# "
    return textwrap.wrap(text, _WIDTH, initial_indent=lead, subsequent_indent=lead)


def _entry(name: str, value: Any, indent: str) -> list[str]:
    # as an item of a list, whose brackets are left out: lists and mappings are in one line
    item = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return [f"{indent}{name}: {item.strip()[1:-1]}"]
