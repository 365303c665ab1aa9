"""A training file, written whole or not at all, and read without running code from it."""

import contextlib
import logging
import os
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.diffusion.reverse_process import unwrap
from video_diffusion_pytorch.training.batches import Endless, EndlessShuffle
from video_diffusion_pytorch.training.clip_source import clips_behind
from video_diffusion_pytorch.version import __version__

logger = logging.getLogger("video_diffusion_pytorch")

_NAME = re.compile(r"model-(\d+(?:\.\d+)?)\.pt")


def write_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes `state` to `path`; whatever interrupts it, `path` holds the old file or the new one.

    Raises:
        OSError: If it can't be written; the message names the file.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(_plain(state), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        # torch's zip writer turns a full disk into a RuntimeError
        raise OSError(
            f"the checkpoint {path} could not be written: {error}; the checkpoints before it are "
            "untouched: make room or check the folder's permissions, and train on from the last"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """The same with Python's own numbers for numpy's, which a file can't hold without code."""
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    # tensors and what holds them in classes of its own stay as they are
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def read_checkpoint(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a training file of this library or of the reference, tensors and plain values only.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not a whole training file.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a checkpoint at {path}, found none; the folder holds "
            f"{[p.name for p in list_checkpoints(path.parent)] or 'no checkpoint'}"
        )
    try:
        state = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"expected a checkpoint in {path}, got a file that is cut off, altered or of another "
            f"kind ({str(error).splitlines()[0] if str(error) else type(error).__name__}); "
            "use the checkpoint before it"
        ) from error
    if not isinstance(state, dict) or not {"step", "model", "ema"} <= state.keys():
        found = sorted(state)[:5] if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"expected a training file with step, model and ema in {path}, got {found}; load a "
            "bare state dict with load_state_dict"
        )
    return state


def list_checkpoints(folder: Path) -> list[Path]:
    """The files `model-N.pt` of a folder, by rising N."""
    named = [(_NAME.fullmatch(path.name), path) for path in folder.glob("model-*.pt")]
    found = [(float(match.group(1)), path) for match, path in named if match]
    return [path for _, path in sorted(found)]


def find_checkpoint(folder: Path, milestone: int | float | str | os.PathLike[str]) -> Path:
    """The file of a milestone: its number, -1 for the last one, or a path.

    Raises:
        FileNotFoundError: If -1 is asked for and there is no checkpoint.
    """
    if isinstance(milestone, (str, os.PathLike)):
        return Path(milestone)
    if milestone != -1:
        return folder / f"model-{milestone}.pt"
    checkpoints = list_checkpoints(folder)
    if not checkpoints:
        raise FileNotFoundError(
            f"expected a checkpoint model-N.pt in {folder.resolve()}, found none; train first, or "
            "give the path of a checkpoint"
        )
    return checkpoints[-1]


def random_states() -> dict[str, Any]:
    """The state of every random generator that a training run draws from."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Puts every generator back where `random_states` found it."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(states["torch"].cpu())
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])


class Resumable:
    """The part of a Trainer that goes to files and comes back; `Trainer` has the attributes."""

    step: int
    model: GaussianDiffusion
    ema_model: GaussianDiffusion
    opt: Any
    accelerator: Any
    results_folder: Path
    ds: Any
    order: EndlessShuffle
    dl: Endless

    def checkpoint_state(self) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values."""
        denoiser = getattr(unwrap(self.model.denoise_fn), "config", None)
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.ema_model.state_dict(),
            "optimizer": self.opt.state_dict(),
            "scaler": {} if self.scaler is None else self.scaler.state_dict(),
            "config": {
                "unet": denoiser,
                "diffusion": self.model.config,
                "class_names": self.class_names,
            },
            "version": __version__,
            "random_states": random_states(),
            "data": {
                "seed": self.order.seed,
                "position": self.order.position,
                "clips": len(self.order.indices),
            },
        }

    @property
    def scaler(self) -> Any:
        """The loss scaler of float16 training; None in other precisions."""
        return self.accelerator.scaler

    def save(self, milestone: int | float) -> None:
        """Writes `model-{milestone}.pt`, whole or not at all."""
        write_checkpoint(self.checkpoint_state(), self.results_folder / f"model-{milestone}.pt")

    def load(
        self,
        milestone: int | float | str | os.PathLike[str],
        *,
        map_location: Any = "cpu",
        **kwargs: Any,
    ) -> None:
        """Goes back to a checkpoint: weights, average, optimizer and random states.

        Args:
            milestone: Number of the milestone, -1 for the last one, or a file's path. The
                reference's files are read too; they hold no optimizer and no random states.
            map_location: As in `torch.load`; from there the tensors go to the training device.
            **kwargs: As in `load_state_dict`, for the model and its average.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a whole training file, or of a model with another objective,
                noise schedule or range of values.
        """
        path = find_checkpoint(self.results_folder, milestone)
        state = read_checkpoint(path, map_location)
        self._check_classes(path, (state.get("config") or {}).get("class_names"))
        self.model.load_state_dict(state["model"], **kwargs)
        self.ema_model.load_state_dict(state["ema"], **kwargs)
        self.step = state["step"]
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if "optimizer" in state:
            self.opt.load_state_dict(state["optimizer"])
        else:
            logger.warning("%s holds no optimizer state: Adam begins anew", path)
        if "data" in state:
            self._go_to(path, state["data"])
        self.restart_data()
        if "random_states" in state:
            restore_random_states(state["random_states"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that labels stand for, where the clips' folder tells them."""
        clips = clips_behind(self.ds)
        return () if clips is None else clips.class_names

    def restart_data(self) -> None:
        """Goes to the batch at `order.position`; `TrainingData` knows how."""
        raise NotImplementedError

    def _go_to(self, path: Path, data: dict[str, Any]) -> None:
        self.order.seed, self.order.position = data["seed"], data["position"]
        theirs, ours = data.get("clips"), len(self.order.indices)
        if theirs not in (None, ours):
            logger.warning(
                "%s was trained on %d clips, and now there are %d (held_out not counted): their "
                "order is another one",
                path,
                theirs,
                ours,
            )

    def _check_classes(self, path: Path, theirs: Any) -> None:
        ours = self.class_names
        if theirs and ours and tuple(theirs) != ours:
            raise ValueError(
                f"the clips must be of the classes that {path} was trained on, "
                f"{', '.join(theirs)}, got {', '.join(ours)}; a label would mean another class: "
                "train on the same classes, or begin anew in another results folder"
            )
