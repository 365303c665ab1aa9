"""What a run tells, sent on to experiment trackers: TensorBoard, Weights & Biases and others."""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from video_diffusion_pytorch.diffusion.shown import shown

logger = logging.getLogger("video_diffusion_pytorch")

# What a tracker shows is told once
_told: weakref.WeakKeyDictionary[Any, set[str]] = weakref.WeakKeyDictionary()
# What browsers show as a picture, and what Weights & Biases plays
_PICTURES = (".gif", ".png", ".webp", ".jpg", ".jpeg")
_FILMS = (".gif", ".mp4", ".webm")
# Names of packages where they are not the tracker's
_PACKAGES = {"comet_ml": "comet-ml"}


def check_trackers(log_with: Any) -> None:
    """Refuses trackers that can't be used here, before anything else is done.

    Args:
        log_with: Name of a tracker that accelerate knows, `"all"` for those that are installed, an
            accelerate `GeneralTracker` of one's own, a list of such, or None.

    Raises:
        ValueError: If a name is not known, or its package is not installed.
        TypeError: If one is neither a name nor a tracker.
    """
    if log_with is None:
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
    from accelerate.utils import LoggerType

    here = sorted(map(str, get_available_trackers()))
    builtin = sorted(set(map(str, LoggerType)) - {"all"})
    # those that were registered by their class
    usable = [*here, *sorted(LOGGER_TYPE_TO_CLASS.keys() - set(builtin))]
    for tracker in log_with if isinstance(log_with, (list, tuple)) else [log_with]:
        if isinstance(tracker, GeneralTracker):
            continue
        if not isinstance(tracker, (str, LoggerType)):
            raise TypeError(
                "Trainer: log_with must be names of trackers or GeneralTrackers of accelerate, got "
                f"{shown(tracker)}; give a name such as 'tensorboard', or an instance of the class"
            )
        name = str(tracker)
        if name in usable or (name == "all" and usable):
            continue
        package = _PACKAGES.get(name, name) if name in builtin else "tensorboard"
        raise ValueError(
            "Trainer: log_with must name trackers that can be used here, "
            f"{', '.join(usable) or 'of which none is installed'}, got {name!r}; choose one of "
            f"{', '.join(builtin)}, and install its package, as in: pip install {package}"
        )


def start_trackers(
    accelerator: Any, project: str, config: Mapping[str, Any], *, step: int = 0
) -> None:
    """Starts the trackers that the accelerator was made with, unless they are started.

    Args:
        accelerator: Of accelerate, made with `log_with` and, for trackers that write files,
            `project_dir`.
        project: Name of the project, for TensorBoard that of a folder.
        config: Settings of the run, to any depth: in trackers `{"unet": {"dim": 8}}` is
            `unet.dim`. What is no number, text or truth is told by its text.
        step: Steps done so far: TensorBoard hides what an interrupted run told of later ones.
    """
    if accelerator.trackers or not accelerator.log_with:
        return
    options = {"tensorboard": {"purge_step": step + 1}} if step else {}
    accelerator.init_trackers(project, config=_flat(config), init_kwargs=options)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, int | float | str | bool]:
    flat: dict[str, int | float | str | bool] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (bool, int, float, str)):
            flat[f"{prefix}{key}"] = value
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat


def log_line(accelerator: Any, line: Mapping[str, Any]) -> None:
    """Sends the numbers of a line of `metrics.jsonl`.

    Args:
        accelerator: With started trackers; without any nothing is done.
        line: Numbers by name. The items of a list are named `loss_by_noise/0` and so on. What is
            None or text is left out, and so are lines of an event.
    """
    if not accelerator.trackers or "event" in line:
        return
    numbers: dict[str, int | float] = {}
    for name, value in line.items():
        # trackers have a clock of their own
        if name in ("step", "time"):
            continue
        if _is_number(value):
            numbers[name] = value
        elif isinstance(value, Sequence) and not isinstance(value, str):
            numbers |= {f"{name}/{i}": item for i, item in enumerate(value) if _is_number(item)}
    if numbers:
        accelerator.log(numbers, step=line["step"])


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def log_video(accelerator: Any, path: str | os.PathLike[str], step: int) -> None:
    """Sends a milestone's samples to the trackers that play them.

    TensorBoard plays a gif among its images, Weights & Biases gif, mp4 and webm. For other trackers
    and files a warning says once that the samples are in the file only.

    Args:
        accelerator: With started trackers; without any nothing is done.
        path: The file.
        step: Steps done so far.
    """
    path = Path(path)
    ending = path.suffix.lower()
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard" and ending in _PICTURES:
            _show_in_tensorboard(tracker.tracker, path, step)
        elif tracker.name == "wandb" and ending in _FILMS:
            import wandb

            video = wandb.Video(str(path), format=ending[1:])
            tracker.log({"samples": video}, step=step)
        else:
            _tell_once(accelerator, tracker.name, path)


def _show_in_tensorboard(writer: Any, path: Path, step: int) -> None:
    """Adds the file as it is, which plays, where `SummaryWriter.add_image` takes one frame."""
    from PIL import Image

    try:
        from tensorboard.compat.proto.summary_pb2 import Summary
    except ModuleNotFoundError:
        # accelerate takes this package in its place
        from tensorboardX.proto.summary_pb2 import Summary

    with Image.open(path) as image:
        width, height = image.size
    # 3 channels, as colours have
    content = {"height": height, "width": width, "colorspace": 3}
    shown = Summary.Image(**content, encoded_image_string=path.read_bytes())
    writer.file_writer.add_summary(Summary(value=[Summary.Value(tag="samples", image=shown)]), step)
    writer.flush()


def _tell_once(accelerator: Any, name: str, path: Path) -> None:
    told = _told.setdefault(accelerator, set())
    if name not in told:
        told.add(name)
        logger.warning(
            "%s is not sent files such as %s: samples stay in %s", name, path.name, path.parent
        )


def end_trackers(accelerator: Any) -> None:
    """Ends the trackers, so that all they were told is written; they may be started again."""
    for tracker in accelerator.trackers:
        try:
            tracker.finish()
        except Exception as error:
            logger.warning("%s did not end well: %s", tracker.name, error)
    # accelerate's own end_training would end the processes' connection as well
    accelerator.trackers.clear()
