"""How a training run goes back to a checkpoint, its own or another's."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.diffusion.conditions import unwrap
from video_diffusion_pytorch.diffusion.shown import shown
from video_diffusion_pytorch.training.checkpoint import Saving
from video_diffusion_pytorch.training.checkpoints.checkpoint_file import read_checkpoint
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import (
    find_checkpoint,
    list_checkpoints,
)
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import (
    name_strangers,
    read_newest,
)
from video_diffusion_pytorch.training.checkpoints.load_weights import (
    MismatchedWeights,
    changed_settings,
    load_weights,
)
from video_diffusion_pytorch.training.checkpoints.random_states import restore_random_states
from video_diffusion_pytorch.training.checkpoints.retention import best_checkpoint
from video_diffusion_pytorch.training.checkpoints.sharded_checkpoint import (
    read_gathered,
    read_sharded,
    scattered,
    warm_optimizer,
)
from video_diffusion_pytorch.training.optimizer import (
    check_shapes,
    optimizer_settings,
    resume_schedule,
    take_new_settings,
)

logger = logging.getLogger("video_diffusion_pytorch")

# Settings of a network that its weights do not tell, so that it would load others', and what they
# are in checkpoints from before they were settings
_WITHOUT_WEIGHTS = {"token_shift": None, "resnet_groups": None}


class Resumable(Saving):
    """The part of a Trainer that comes back from files; `Trainer` has the attributes."""

    resumed_from: Path | None

    def load(
        self,
        milestone: int | float | str | os.PathLike[str],
        *,
        map_location: Any = "cpu",
        **kwargs: Any,
    ) -> None:
        """Goes back to a checkpoint: weights, averages, optimizer and random states.

        Checkpoints of any number of processes, sharded or not, go into any other number. A
        learning rate that was changed since takes the place of the checkpoint's.

        Args:
            milestone: Number of the milestone; -1 for the last one, or, if that is damaged, the
                last that is whole, with a warning; `"best"` for the one with the lowest validation
                loss; or a path. The reference's files are read too; they hold no optimizer and no
                random states.
            map_location: As in `torch.load`; from there the tensors go to the training device.
            **kwargs: As in `load_state_dict`, for the model and its averages.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a whole training file, or of a model with other parameters,
                another objective, noise schedule or range of values, or of another optimizer.
        """
        if milestone == -1:
            path, state = read_newest(
                self.results_folder, lambda path: self._read_state(path, map_location)
            )
        else:
            best = milestone == "best"
            path = (
                best_checkpoint(self.results_folder)
                if best
                else find_checkpoint(self.results_folder, milestone)
            )
            state = self._read_state(path, map_location)
        self._check_classes(path, (state.get("config") or {}).get("class_names"))
        self._load_model(path, state, **kwargs)
        self.resumed_from = path
        self.step = self._saved_step = self.run.good_step = state["step"]
        self._saved_path, self._is_unproven = path, False
        self.run.has_diverged = self.run.checkpoint_is_due = False
        self.skipped_steps = state.get("skipped_steps", 0)
        self.losses |= state.get("losses", {})
        self.run.validated_step = self.step
        self._load_optimizer(path, state)
        self.data.load_state_dict(state.get("data", {}), path)
        self._evaluator = None
        self._load_random_states(state.get("random_states"))

    def _read_state(self, path: Path, map_location: Any) -> dict[str, Any]:
        """A checkpoint's state; of a sharded model each process has its own part."""
        is_folder = path.is_dir()
        if is_folder and not self.fsdp:
            return read_gathered(path)
        if is_folder:
            warm_optimizer(self.opt)
            return read_sharded(path, self.checkpoint_state())
        state = read_checkpoint(path, map_location)
        if not self.fsdp:
            return state
        if "optimizer" in state:
            warm_optimizer(self.opt)
        return scattered(state, self.checkpoint_state())

    def _load_model(self, path: Path, state: Mapping[str, Any], **kwargs: Any) -> None:
        theirs, network = state.get("config") or {}, unwrap(self.model.denoise_fn)
        ours = getattr(network, "config", None) or {}
        told = theirs.get("unet") or {}
        silent = changed_settings({n: told.get(n, v) for n, v in _WITHOUT_WEIGHTS.items()}, ours)
        if silent and told:
            raise _not_to_train_on(path, silent)
        try:
            load_weights(self.model, state["model"], path, "model", **kwargs)
            self._load_averages(path, state, **kwargs)
        except MismatchedWeights as error:
            changed = changed_settings(told, ours)
            changed += changed_settings(theirs.get("diffusion"), self.model.config)
            if not changed:
                raise
            raise _not_to_train_on(path, changed) from error

    def _load_averages(self, path: Path, state: Mapping[str, Any], **kwargs: Any) -> None:
        theirs, ours = {**state.get("emas", {})}, self.averages.named()
        for name, decay in zip(("ema",), state.get("ema_decays", ()), strict=False):
            theirs[repr(float(decay))] = state[name]
        for name, average in ours.items():
            if name not in theirs and average is not self.averages.first:
                logger.warning(
                    "%s holds no average with decay %s: it goes on from that with decay %s",
                    path,
                    name,
                    next(iter(ours)),
                )
            load_weights(average, theirs.get(name, state["ema"]), path, "ema", **kwargs)
        # an only one, or the first, may go on with another decay
        is_other_decay = next(iter(ours)) not in theirs
        for name in state.get("emas", {}) if is_other_decay else theirs:
            if name not in ours:
                logger.warning("%s holds an average with decay %s, which is left out", path, name)

    def _load_optimizer(self, path: Path, state: Mapping[str, Any]) -> None:
        if self.scaler is not None and state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        if "optimizer" not in state:
            logger.warning("%s holds no optimizer state: Adam begins anew", path)
            return
        theirs = state.get("optimizer_settings", {})
        ours = optimizer_settings(self.opt)
        if theirs.get("class", ours["class"]) != ours["class"]:
            raise ValueError(
                f"the optimizer must be that of {path} to train on, {theirs['class']}, got "
                f"{ours['class']}; give the optimizer it was made with, or begin anew in another "
                "results folder"
            )
        check_shapes(self.opt, state["optimizer"], path)
        try:
            self.opt.load_state_dict(state["optimizer"])
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"the optimizer must be that of {path} to train on, got one with other groups of "
                f"parameters ({error}); give the optimizer and weight_decay it was made with, or "
                "begin anew in another results folder"
            ) from error
        take_new_settings(self.opt, theirs, ours)
        schedule = state.get("scheduler", {})
        if theirs.get("lr", ours.get("lr")) != ours.get("lr"):
            # the full learning rates are this run's
            schedule = {name: value for name, value in schedule.items() if name != "base_lrs"}
        resume_schedule(self.scheduler, self.opt, schedule, self.step)

    def _load_random_states(self, states: Any) -> None:
        if states is None:
            return
        of_processes = [states] if isinstance(states, dict) else states
        if len(of_processes) == self.num_processes:
            restore_random_states(of_processes[self.process])
        else:
            # those of other numbers of processes don't go on as any of these
            torch.manual_seed(self.order.seed_at(self.order.position) + self.process)

    def _resume(self, resume: str | os.PathLike[str] | None) -> None:
        """Goes on from where `Trainer`'s argument of this name says."""
        if not (resume is None or isinstance(resume, (str, os.PathLike))):
            raise ValueError(
                "Trainer: resume must be 'auto', 'never', a path or None, got "
                f"{shown(resume)}; 'auto' goes on from the last checkpoint"
            )
        existing = list_checkpoints(self.results_folder)
        if resume == "never" and existing:
            raise FileExistsError(
                "Trainer: with resume='never' the results folder must be without checkpoints, got "
                f"{self.results_folder} with {existing[-1].name}; choose another results_folder, "
                "or resume='auto'"
            )
        if resume == "auto" and not existing:
            name_strangers(self.results_folder)
            return
        if resume is None or resume == "never":
            return
        self.load(-1 if resume == "auto" else resume)

    def _check_classes(self, path: Path, theirs: Any) -> None:
        ours = self.class_names
        if theirs and ours and tuple(theirs) != ours:
            raise ValueError(
                f"the clips must be of the classes that {path} was trained on, "
                f"{', '.join(theirs)}, got {', '.join(ours)}; a label would mean another class: "
                "train on the same classes, or begin anew in another results folder"
            )


def _not_to_train_on(path: Path, changed: Sequence[str]) -> ValueError:
    return ValueError(
        f"the model must be that of the checkpoint {path} to train on, got {', '.join(changed)}; "
        "give the settings it was made with, or begin anew in another results folder"
    )
