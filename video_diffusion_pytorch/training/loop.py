"""The training loop: step after step, and an end that loses nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import (
    FolderLock,
    check_folder,
    check_room,
)
from video_diffusion_pytorch.training.checkpoints.checkpoint_order import set_aside
from video_diffusion_pytorch.training.clips.batch_stream import Endless
from video_diffusion_pytorch.training.engine import turns
from video_diffusion_pytorch.training.learning_rate import Schedule
from video_diffusion_pytorch.training.memory import state_bytes
from video_diffusion_pytorch.training.metrics import MetricsFile
from video_diffusion_pytorch.training.signals import StopSignals
from video_diffusion_pytorch.training.step import TrainingStep
from video_diffusion_pytorch.training.trackers import end_trackers, start_trackers

logger = logging.getLogger("video_diffusion_pytorch")


def noop(*args: Any, **kwargs: Any) -> None:
    """Logs nothing: the default of `Trainer.train`'s `log_fn`."""


class TrainingLoop(TrainingStep):
    """The part of a Trainer that goes from step to step; `Trainer` documents the attributes."""

    project: str
    _failure_key: str
    _signals: StopSignals | None

    def train(
        self,
        prob_focus_present: float = 0.0,
        focus_present_mask: Tensor | None = None,
        log_fn: Callable[[dict[str, Any]], Any] = noop,
    ) -> None:
        """Trains up to `train_num_steps`, with a milestone every `save_and_sample_every` steps.

        SIGTERM and Ctrl+C let the step in progress end, a checkpoint is written, and the process
        ends, with SystemExit(143) and KeyboardInterrupt; a second one ends it at once. The last
        step has a checkpoint as well.

        Args:
            prob_focus_present: Probability that the frames of a clip do not see each other.
            focus_present_mask: Boolean `(train_batch_size,)`, the clips whose frames do not see
                each other; None to draw them.
            log_fn: Called after each step, on every process, with a dict: `step` (done so far),
                `loss` (mean over the step's micro-batches and processes), `lr`, `grad_norm`,
                `skipped` (whether the weights were left as they are), `data_wait` (share of the
                step's time that was spent waiting for clips); where there was a validation or an
                evaluation, its losses or scores; and at a milestone `sample`, the gif's path.
        """
        focus: dict[str, Any] = {}
        if prob_focus_present:
            focus["prob_focus_present"] = prob_focus_present
        if focus_present_mask is not None:
            focus["focus_present_mask"] = focus_present_mask.to(self.device)
        signals = StopSignals()
        try:
            self._begin()
            with signals, self._bar() as bar:
                self._signals = signals
                self._go(bar, log_fn, focus)
        finally:
            self._signals = None
            end_trackers(self.accelerator)
            self._end_readers()
            if self._lock is not None:
                self._lock.release()
                self._lock = None
        if signals.caught is not None and self.is_main:
            logger.warning("told to stop at step %d: %s", self.step, self._last_checkpoint())
        signals.leave()

    def _go(self, bar: Any, log_fn: Callable[[dict[str, Any]], Any], focus: dict[str, Any]) -> None:
        try:
            self._draw_missing_samples()
            while self.step < self.train_num_steps and not self.is_told_to_stop:
                log = self._step_and_milestone(**focus)
                log_fn(log)
                self._show(bar, log)
            self.write_metrics()
            if self._is_diverged:
                self._set_diverged_aside()
            elif self._saved_step != self.step:
                self._save_step()
            self._forget_old()
        except Exception as error:
            self._save_after(error)
            raise

    def _save_after(self, error: Exception) -> None:
        """Saves what was learned before an error, if the weights are whole, without the others.

        Of several processes, which may wait for this one, the first that fails writes the file.
        """
        if not self._may_save or self._good_step <= self._saved_step:
            return
        try:
            is_whole = all(bool(weight.isfinite().all()) for weight in self.model.parameters())
            if not is_whole or (self.fsdp and self.num_processes > 1):
                return
            if not self._is_first(self._failure_key):
                return
            self._is_alone = self.num_processes > 1
            if not self._is_alone:
                self.write_metrics()
            self._set_diverged_aside() if self._is_diverged else self._save_step()
        except Exception as failure:
            logger.warning("step %d could not be saved after an error: %s", self.step, failure)
            return
        finally:
            self._is_alone = False
        said = f"training ended at step {self.step}, and its checkpoint is {self._saved_path}"
        logger.warning("%s (%s: %s)", said, type(error).__name__, error)
        if hasattr(error, "add_note"):
            error.add_note(said)

    def _end_readers(self) -> None:
        """Ends the processes that read clips: left to the garbage collector it waits for each."""
        # a loader with an order of its own would begin anew
        if self.order.indices and isinstance(self.dl, Endless):
            self.dl.restart()

    def _start_counting(self) -> None:
        self.step, self.skipped_steps = 0, 0
        self.losses = {"training": None, "validation": None}
        self._skipped_in_row, self._saved_step = 0, -1
        self._measured_step, self._validated_step = 0, -1
        self._shall_stop, self._signals, self.metrics_file = False, None, None
        self._good_step, self._is_diverged, self._is_owed = 0, False, False
        self._saved_path, self._is_unproven, self._lock = None, False, None
        self._may_save, self.resumed_from = False, None

    def _begin(self) -> None:
        self._shall_stop, self._first_step = False, self.step + 1
        self._measured_step = self.step
        self._failure_key = f"failed/{next(turns)}"
        if isinstance(self.scheduler, Schedule):
            # it may have been raised since
            self.scheduler.total_steps = self.train_num_steps
        if self._saved_step < 0:
            # the first weights need no file
            self._saved_step = self.step
        with self.main_first():
            if self.is_main:
                check_folder(self.results_folder)
                self._lock = FolderLock(self.results_folder)
                set_aside(self.results_folder, self.step)
                averages = len(self.averages.models)
                check_room(self.results_folder, state_bytes(self.model, self.opt, averages))
                self.metrics_file = MetricsFile(self.results_folder / "metrics.jsonl", self.step)
        start_trackers(self.accelerator, self.project, self.settings(), step=self.step)
        self._may_save = True

    def _bar(self) -> Any:
        return tqdm(
            initial=self.step,
            total=self.train_num_steps,
            desc="training",
            disable=not self.is_main,
        )

    def _show(self, bar: Any, log: dict[str, Any]) -> None:
        bar.set_postfix(
            loss=f"{log['loss']:.4f}", data_wait=f"{log['data_wait']:.0%}", refresh=False
        )
        bar.update()

    def _step_and_milestone(self, **kwargs: Any) -> dict[str, Any]:
        """A step, and the files of the milestone if it ends one; gives what there is to log."""
        start, self.waited = time.perf_counter(), 0.0
        step, position = self.step, self.order.position
        try:
            loss = self.train_step(**kwargs)
        except BaseException:
            if self.step == step:
                # the clips of a step that was not done come again
                self.order.position = position
            raise
        seconds = time.perf_counter() - start
        clips = self.batch_size * self.gradient_accumulate_every
        norm = self.step_metrics["grad_norm"]
        if not self.step_metrics["skipped"]:
            self._good_step = self.step
            self.metrics.add_step(
                loss=loss, grad_norm=norm, clips=clips, seconds=seconds, waited=self.waited
            )
        log = {
            "step": self.step,
            "loss": loss,
            "lr": self.opt.param_groups[0]["lr"],
            "data_wait": self.waited / seconds,
            **self.step_metrics,
        }
        return log | self.after_step()
