"""A step of the training: micro-batches in, new weights and averages out."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from video_diffusion_pytorch.training.memory import TrainingOutOfMemory, advice, out_of_memory
from video_diffusion_pytorch.training.milestones import Milestones
from video_diffusion_pytorch.training.sharding import clip_gradients

logger = logging.getLogger("video_diffusion_pytorch")


class MicroBatch(NamedTuple):
    """What is kept of a micro-batch: positions of its clips, their losses, their time steps.

    A subclass that gives their mean only has a scalar for `losses`, and one that draws time steps
    by itself None for `t`.
    """

    places: Sequence[int]
    losses: Tensor
    t: Tensor | None


class TrainingStep(Milestones):
    """The part of a Trainer that steps; `Trainer` documents the attributes."""

    gradient_accumulate_every: int
    update_ema_every: int
    max_grad_norm: float | None
    max_skipped_steps: int
    drawn: dict[str, Any]
    _skipped_in_row: int

    # what a subclass may make differently

    def step_ema(self) -> None:
        """Updates the averages; `Trainer` knows how."""
        raise NotImplementedError

    def compute_loss(self, videos: Tensor, **kwargs: Any) -> Tensor:
        """The loss of a micro-batch, in the training precision.

        A validation calls it, too, with a model in evaluation mode as `model`.

        Args:
            videos: `(b, c, f, h, w)`.
            **kwargs: Conditions, and further keywords of the diffusion's forward.

        Returns:
            The loss of each clip, `(b,)`; of a subclass also the mean, a scalar.
        """
        # what is given takes the place of what was drawn
        drawn = {name: value for name, value in self.drawn.items() if name not in kwargs}
        if "null_cond_prob" in kwargs:
            drawn.pop("drop_mask", None)
        with self.accelerator.autocast():
            return self.parallel_model(videos, **kwargs, **drawn)

    # a step

    def train_step(self, **kwargs: Any) -> float:
        """One optimizer step over `gradient_accumulate_every` micro-batches; gives their mean loss.

        A step whose loss, or whose gradients, are not finite leaves the weights as they are.

        Args:
            **kwargs: Further keywords of the diffusion's forward.

        Raises:
            FloatingPointError: If that happens `max_skipped_steps` times in a row.
            TrainingOutOfMemory: If the device's memory does not hold a micro-batch.
        """
        self.model.train()
        self.opt.zero_grad()

        # gradients, summed over the micro-batches and exchanged with the last of them
        seen: list[MicroBatch] = []
        try:
            for i in range(self.gradient_accumulate_every):
                is_last = i == self.gradient_accumulate_every - 1
                seen.append(self._micro_batch(is_last, **kwargs))
            norm = self._clip_gradients()
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise TrainingOutOfMemory(self._memory_advice(error)) from error

        # weights and average, unless the step is a bad one on any process
        loss, norm_of_all, is_good = self._agree(seen, norm)
        self._may_save = False
        if is_good or self.scaler is not None:
            # a loss scale leaves a bad step out by itself, and must learn of it
            self.opt.step()
        self._step_schedule(was_left_out=not is_good or self.accelerator.optimizer_step_was_skipped)
        if is_good and self.step % self.update_ema_every == 0:
            self.step_ema()
        self.step += 1
        self._may_save = True
        self.step_metrics = {"grad_norm": norm_of_all, "skipped": not is_good}
        if is_good:
            self._skipped_in_row, self._is_diverged = 0, False
            for part in seen:
                if part.t is not None and part.losses.ndim:
                    self.metrics.add_losses(part.losses, part.t)
        else:
            self._note_bad_step(seen, loss)
        return loss

    def _micro_batch(self, is_last: bool, **kwargs: Any) -> MicroBatch:
        """Adds the gradients of the next micro-batch."""
        videos, conditions = self.next_batch()
        images = conditions.get("images")
        frames = videos.shape[2] + (0 if images is None else images.shape[2])
        seeds = [self.order.seed_at(place) for place in self.places]
        self.drawn = self.clip_draws(seeds, frames, kwargs.get("prob_focus_present", 0.0))
        self._went_through_parallel = self.parallel_model is self.model
        with self._exchange(is_last):
            losses = self.compute_loss(videos, **conditions, **kwargs)
            self._check_exchanged()
            loss = losses.mean() / self.gradient_accumulate_every
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return MicroBatch(self.places, losses.detach().float(), self.drawn.get("t"))

    def _check_exchanged(self) -> None:
        if not self._went_through_parallel:
            raise RuntimeError(
                "Trainer: compute_loss must call self.parallel_model, so that the processes "
                "exchange their gradients, got one that calls another model; replace self.model "
                "by self.parallel_model in it"
            )

    def _clip_gradients(self) -> Tensor:
        """Cuts the gradients to `max_grad_norm`; gives the norm that they had, a scalar."""
        if self.scaler is not None:
            self.accelerator.unscale_gradients(self.opt)
        return clip_gradients(self.model.parameters(), self.max_grad_norm)

    def _agree(self, seen: list[MicroBatch], norm: Tensor) -> tuple[float, float, bool]:
        """Loss and norm of the gradients over all processes, and whether all can take the step."""
        mean = torch.stack([part.losses.mean() for part in seen]).mean()
        told = self._signals is not None and self._signals.caught is not None
        values = torch.stack([mean, norm.to(mean), torch.zeros_like(mean) + told])
        # the one moment of a step at which the device is waited for
        sums = self.sum_over_processes(values).tolist()
        loss, norm_of_all, told_to_stop = (value / self.num_processes for value in sums)
        self._shall_stop = told_to_stop > 0
        # under a loss scale gradients overflow now and then, and the scale is lowered for it
        is_good = math.isfinite(loss) and (self.scaler is not None or math.isfinite(norm_of_all))
        return loss, norm_of_all, is_good

    def _step_schedule(self, was_left_out: bool) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings() if was_left_out else nullcontext():
            if was_left_out:
                # torch takes a first step that was left out for one that comes too late
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def _note_bad_step(self, seen: list[MicroBatch], loss: float) -> None:
        """Counts a step that was left out, and names its clips."""
        self._skipped_in_row += 1
        self.skipped_steps += 1
        # the clips to blame: those without a finite loss, or else all
        bad = [place for part in seen for place in _bad_places(part)]
        own = self.clip_names(bad)
        names = [name for part in self.from_all(own) for name in part]
        count = self.num_processes * sum(len(part.places) for part in seen)
        # where some have a finite loss it is these clips, else it may be the weights
        self._is_diverged = len(names) in (0, count)
        if not names:
            mine = self.clip_names([place for part in seen for place in part.places])
            names = [name for part in self.from_all(mine) for name in part]
        if self.is_main:
            what = "gradients are" if math.isfinite(loss) else "loss is"
            logger.warning(
                "step %d is skipped, as its %s not finite (loss %s); its clips: %s",
                self.step,
                what,
                loss,
                ", ".join(names),
            )
            self._write_line(
                {"step": self.step, "time": time.time(), "event": "skipped step", "clips": names}
            )
        if self._skipped_in_row >= self.max_skipped_steps:
            if self._signals is not None and self._is_diverged:
                self._set_diverged_aside()
            raise FloatingPointError(
                "Trainer: loss and gradients must be finite, got "
                f"{self._skipped_in_row} steps in a row that are not; the weights are those before "
                f"them, and {self._last_checkpoint()}: train on with a smaller train_lr, with "
                "max_grad_norm=1.0 or without half precision, and look at the clips that were named"
            )

    def _memory_advice(self, error: BaseException) -> str:
        return advice(
            self.model,
            batch_size=self.batch_size,
            accumulate=self.gradient_accumulate_every,
            precision=self.accelerator.mixed_precision,
            checkpointing=bool(getattr(self.model.denoise_fn, "gradient_checkpointing", False)),
            error=error,
            image_frames=self.image_frames,
            averages=len(self.averages.models),
            optimizer=self.opt,
        )


def _bad_places(part: MicroBatch) -> list[int]:
    """Positions of the clips whose loss is not finite; all, if only their mean is known."""
    is_bad = (~part.losses.isfinite()).expand(len(part.places)).tolist()
    return [place for place, bad in zip(part.places, is_bad, strict=True) if bad]
