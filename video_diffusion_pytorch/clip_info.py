"""What a model was trained on: names of conditions, text encoder, frame rate, data settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from video_diffusion_pytorch.arguments import shown


@dataclass(frozen=True)
class ClipInfo:
    """What a model's weights and settings don't say about its training clips.

    `Trainer` sets it as `GaussianDiffusion.clip_info`; checkpoints and shared folders keep it.

    Attributes:
        class_names: Names of the classes, by label; empty if unknown.
        cond_ranges: The least and the largest value in the clips of each number in `cond`, by the
            name of its column, whose header may say the unit; empty if unknown.
        text_encoder: Name or folder of the text encoder of the captions; None if unknown.
        fps: Frames per second of the clips; None if unknown.
        settings: Keywords of `data.dataset.Dataset` by which files became clips, such as `fit` and
            `conditions`.

    Example:
        >>> info = ClipInfo(class_names=("cat", "dog"), fps=25.0)
        >>> info.label_numbers(["dog", None, 0])
        [1, -1, 0]
        >>> ClipInfo.from_config(info.to_config()) == info
        True
        >>> info.in_words()
        {'classes': 'cat, dog', 'frames per second': '25'}
    """

    class_names: tuple[str, ...] = ()
    cond_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    text_encoder: str | None = None
    fps: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_config(self) -> dict[str, Any]:
        """The same as plain values, for a checkpoint or `config.json`; unknown ones left out."""
        return {name: value for name, value in asdict(self).items() if value not in (None, (), {})}

    def in_words(self) -> dict[str, str]:
        """What is known, as lines of a description by their titles."""
        ranges = (f"{n} {low:g} to {high:g}" for n, (low, high) in self.cond_ranges.items())
        options = (f"{n} {value}" for n, value in self.settings.items() if value is not None)
        found = {
            "classes": ", ".join(self.class_names),
            "cond": ", ".join(ranges),
            "text encoder": self.text_encoder or "",
            "frames per second": "" if self.fps is None else f"{self.fps:g}",
            "data": ", ".join(options),
        }
        return {name: text for name, text in found.items() if text}

    @classmethod
    def from_config(cls, config: Any) -> ClipInfo:
        """The opposite of `to_config`; None for nothing known. Unknown entries are ignored.

        Raises:
            ValueError: If a value has another type.
        """
        found = {} if config is None else config
        if not isinstance(found, Mapping):
            raise ValueError(f"the description of the clips must be a mapping, got {shown(config)}")
        known = {name: found[name] for name in cls.__dataclass_fields__ if name in found}
        try:
            return replace(cls(), **{n: _PARSERS[n](value) for n, value in known.items()})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"the description of the clips must hold names, ranges, a text encoder, fps and "
                f"settings, got {shown(known)} ({error})"
            ) from error

    def completed_by(self, other: ClipInfo) -> ClipInfo:
        """This one, with what it doesn't know from another."""
        return replace(other, **self.to_config())

    def label_numbers(self, labels: Any) -> Any:
        """Labels with names of classes replaced by their numbers, and None by -1.

        Args:
            labels: A list or tuple, of names, numbers or None; others are returned unchanged.

        Raises:
            ValueError: If a name is unknown.
        """
        if isinstance(labels, str):
            labels = [labels]
        if not isinstance(labels, (list, tuple)):
            return labels
        return [self._number(label) for label in labels]

    def _number(self, label: Any) -> Any:
        if label is None:
            return -1
        if not isinstance(label, str):
            return label
        if label not in self.class_names:
            known = "numbers, as the model has no names of classes"
            if self.class_names:
                known = f"among {', '.join(self.class_names)}, or -1 for none"
            raise ValueError(
                f"GaussianDiffusion: labels must be {known}, got {label!r}; choose one of them"
            )
        return self.class_names.index(label)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a text, got {shown(value)}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"expected a list of texts, got {shown(value)}")
    return tuple(map(_text, value))


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not 0 < value < math.inf:
        raise ValueError(f"expected frames per second above 0, got {shown(value)}")
    return float(value)


def _ranges(value: Any) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, (low, high) in _settings(value).items()}


def _settings(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected settings by name, got {shown(value)}")
    return {_text(name): each for name, each in value.items()}


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "class_names": _texts,
    "cond_ranges": _ranges,
    "text_encoder": _text,
    "fps": _rate,
    "settings": _settings,
}
