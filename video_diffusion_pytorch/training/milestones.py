"""Between the steps: what is measured, written, kept and shown now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from video_diffusion_pytorch.diffusion.conditioning import unwrap
from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.evaluation.evaluator import Evaluation, Evaluator
from video_diffusion_pytorch.evaluation.results import write_result
from video_diffusion_pytorch.training.draws import ClipDraws
from video_diffusion_pytorch.training.evaluate import make_evaluator
from video_diffusion_pytorch.training.metrics import MetricsFile, StepMetrics
from video_diffusion_pytorch.training.resume import Resumable
from video_diffusion_pytorch.training.samples import (
    describe,
    draw_samples,
    is_of_others,
    write_samples,
)
from video_diffusion_pytorch.training.trackers import log_line, log_video
from video_diffusion_pytorch.training.training_data import TrainingData
from video_diffusion_pytorch.training.validation import Part, Validation

logger = logging.getLogger("video_diffusion_pytorch")

# What a batch may have beside its videos that validation leaves out
_IMAGES = ("images", "image_conditions")


class Milestones(TrainingData, Resumable):
    """The part of a Trainer between the steps; `Trainer` documents the attributes."""

    save_and_sample_every: int
    num_sample_rows: int
    sample_cond_scale: float
    save_every: int | None
    validate_every: int
    log_every: int
    train_num_steps: int
    validation: Validation | None
    evaluate_every: int | None
    evaluation: Evaluation
    _evaluator: Evaluator | None
    clip_draws: ClipDraws
    drawn: dict[str, Any]
    metrics: StepMetrics
    metrics_file: MetricsFile | None
    step_metrics: dict[str, Any]
    _shall_stop: bool
    _signals: Any
    _first_step: int
    _measured_step: int
    _validated_step: int

    # samples

    def sample(self, ema_decay: float | None = None) -> Tensor:
        """A milestone's samples, `(num_sample_rows ** 2, c, f, h, w)`, of an averaged model.

        Each process draws its part, and all get all of them. Noise and conditions are the same at
        every milestone. Training's random numbers are not touched.

        Args:
            ema_decay: Which average draws, by its decay; None for the first.
        """
        count = self.num_sample_rows**2
        videos = draw_samples(
            cast(GaussianDiffusion, self.averages.choose(ema_decay)),
            count,
            self.batch_size,
            self.sample_conditions(),
            self.order.seed,
            self.sample_cond_scale,
            share=(self.process, self.num_processes),
        )
        if self.num_processes > 1:
            videos = self.accelerator.gather(videos.contiguous())
        return videos[:count]

    def save_sample(self, videos: Tensor, milestone: int) -> Path:
        """Writes the samples: a grid `N.gif`, their values `N.npy`, what they were told `N.txt`."""
        return write_samples(
            videos,
            self.results_folder,
            str(milestone),
            rows=self.num_sample_rows,
            value_range=self.model.config["value_range"],
            in_unit_range=self.model.auto_normalize,
            captions=describe(self._sample_conditions or {}, self.class_names, len(videos)),
        )

    # validation

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The loss on the clips that are not trained on, with time steps and noise that stay.

        Training's random numbers are not touched.

        Returns:
            `validation_loss`, of the weights, and `validation_loss_ema_D`, of the average with
            decay `D`.

        Raises:
            ValueError: If the trainer was given no clips to validate on.
        """
        if self.validation is None:
            raise ValueError(
                "Trainer.validate: there must be clips to validate on, got none; pass "
                "validation_folder, validation_dataset or validation_split"
            )
        models: dict[str, nn.Module] = {"": self.model}
        models |= {f"_ema_{name}": model for name, model in self.averages.named().items()}
        for model in models.values():
            model.eval()
        sums = [StepMetrics(self.device, self.model.num_timesteps) for _ in models]
        totals = torch.zeros(len(models) + 1, device=self.device)
        for part in self.validation.parts(self.num_workers or 0):
            self._validate_part(part, [*models.values()], sums, totals)
        *losses, count = self.sum_over_processes(totals).tolist()
        by_noise = [s.take(self.step, 0.0, self.sum_over_processes)["loss_by_noise"] for s in sums]
        means = [loss / count for loss in losses]
        found = {f"validation_loss{name}": mean for name, mean in zip(models, means, strict=True)}
        self.losses["validation"], self._validated_step = means[1], self.step
        line = {"step": self.step, "time": time.time(), **found, "validation_by_noise": by_noise[1]}
        self._write_line(line)
        return found

    def _validate_part(
        self,
        part: Part,
        models: list[nn.Module],
        sums: list[StepMetrics],
        totals: Tensor,
    ) -> None:
        videos, conditions = self.unpack_batch(part.batch)
        # a loss of videos alone compares between runs with more and with fewer images
        told = self._to_device({n: v for n, v in conditions.items() if n not in _IMAGES})
        if self.validation is not None:
            told = self.validation.with_trained_labels(told)
        videos = videos.to(self.device, non_blocking=True)
        self.drawn = self.clip_draws.fixed(part.numbers, videos.shape[2])
        trained = self.model, self.parallel_model
        for i, model in enumerate(models):
            self.model = self.parallel_model = cast(GaussianDiffusion, model)
            try:
                # a model that draws for itself draws the same each time, at least
                with self._seeded(part.numbers[0]):
                    losses = self.compute_loss(videos, **told).float()
            finally:
                self.model, self.parallel_model = trained
            counted = losses[: part.counted] if losses.ndim else losses.expand(part.counted)
            if losses.ndim and "t" in self.drawn and part.counted:
                sums[i].add_losses(counted, self.drawn["t"][: part.counted])
            totals[i] += counted.sum()
        totals[-1] += part.counted

    @contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        """Lets torch's random numbers begin at a seed; afterwards they go on as if nothing was."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    # evaluation

    def evaluate(self) -> dict[str, float]:
        """Scores of the first average's videos, by the `evaluation` that the Trainer was given.

        Real clips are those that are validated on, or else those that are trained on. Training's
        random numbers are not touched. `evaluation-STEP.json` gets the scores and their protocol.

        Returns:
            As of an `Evaluator`; empty if a signal came meanwhile, or, with a warning, if the
            average draws videos that are not finite.

        Raises:
            ValueError: If the clips cannot be read in any order, or don't fit the evaluation.
        """
        if self._evaluator is None:
            self._evaluator = self._make_evaluator()
        average = cast(GaussianDiffusion, self.averages.first)
        try:
            found = self._evaluator(average, self._is_signalled)
        except FloatingPointError as error:
            # training may yet recover
            logger.warning("step %d is not evaluated: %s", self.step, error)
            return {}
        if found is None:
            return {}
        if self.is_main:
            self._keep_folder()
            about = {"step": self.step, "ema_decay": next(iter(self.averages.models))}
            with _not_fatal("the file of the evaluation"):
                result = self._evaluator.result(found, about, self.device)
                write_result(result, self.results_folder / f"evaluation-{self.step}.json")
        self._write_line({"step": self.step, "time": time.time(), **found})
        return found

    def _make_evaluator(self) -> Evaluator:
        dataset, indices = self.ds, self.order.indices
        if self.validation is not None:
            dataset, indices = self.validation.dataset, self.validation.indices
        return make_evaluator(
            self.model,
            dataset,
            self.evaluation,
            indices=indices,
            unpack=self._unpack_for_model,
            ready=self._to_device,
            class_names=self.class_names,
            share=(self.process, self.num_processes),
            total=lambda values: self.sum_over_processes(values.to(self.device)).cpu(),
            num_workers=self.num_workers or 0,
        )

    def _is_signalled(self) -> bool:
        """Whether any of the processes was told to stop."""
        is_caught = self._signals is not None and self._signals.caught is not None
        flag = torch.tensor(float(is_caught), device=self.device)
        return bool(self.sum_over_processes(flag).item())

    # what is written

    @property
    def milestone(self) -> int | float:
        """The number in a checkpoint's name: of the milestone, between two of them a fraction."""
        whole, rest = divmod(self.step, self.save_and_sample_every)
        digits = max(6, len(str(self.save_and_sample_every)) + 1)
        return round(self.step / self.save_and_sample_every, digits) if rest else whole

    @property
    def is_told_to_stop(self) -> bool:
        """Whether a signal came, and all processes know of it."""
        is_alone = self.num_processes == 1 and self._signals is not None
        return self._shall_stop or (is_alone and self._signals.caught is not None)

    def after_step(self) -> dict[str, Any]:
        """Validates, writes, evaluates and shows what is due; gives what there is to log."""
        found: dict[str, Any] = {}
        is_milestone = self.step % self.save_and_sample_every == 0
        is_saved = is_milestone or (self.save_every and self.step % self.save_every == 0)
        is_saved = is_saved or self._is_owed
        if not self.step_metrics["skipped"]:
            self._forget_old()
        is_validated = self.validation is not None and self.step % self.validate_every == 0
        if is_validated:
            found |= self.validate()
        if self.step % self.log_every == 0 or is_saved or self.step == self._first_step:
            self.write_metrics()
        if is_saved:
            # before sampling, which takes long and may be interrupted
            self._save_if_good()
        is_evaluated = self.evaluate_every is not None and self.step % self.evaluate_every == 0
        if is_evaluated and not self.is_told_to_stop:
            found |= self.evaluate()
        if is_milestone and not self.is_told_to_stop:
            path = self._show_samples()
            if path is not None:
                found["sample"] = str(path)
        return found

    def _save_if_good(self) -> None:
        """Saves, or, where the weights may have diverged, does so after the next good step."""
        if not self._is_diverged:
            self._save_step()
        elif not self._is_owed and self.is_main:
            logger.warning(
                "there is no checkpoint of step %d, whose loss or gradients are not finite: it is "
                "written after the next good step; %s",
                self.step,
                self._last_checkpoint(),
            )
        self._is_owed = self._is_diverged

    def _show_samples(self) -> Path | None:
        # nothing is lost if it is ended in between: they are drawn when the run goes on
        self._signals.at_once = True
        videos, path = self.sample(), None
        with self.main_first():
            if self.is_main:
                self._keep_folder()
                with _not_fatal("a milestone's samples"):
                    path = self.save_sample(videos, self._sample_name(videos))
                    log_video(self.accelerator, path, self.step)
        self._signals.at_once = False
        return self.from_main(path)

    def _sample_name(self, videos: Tensor) -> Any:
        """The number of the milestone, with the step besides where other samples have it."""
        milestone = self.step // self.save_and_sample_every
        name = f"{milestone}-step{self.step}"
        is_so_named = self._saved_path is not None and self._saved_path.stem == f"model-{name}"
        if is_so_named or is_of_others(videos, self.results_folder, str(milestone)):
            return name
        return milestone

    def _draw_missing_samples(self) -> None:
        """Draws those of the milestone that the run goes on from, if it was ended before."""
        milestone, rest = divmod(self.step, self.save_and_sample_every)
        is_missing, path = False, self.resumed_from
        if path is not None and milestone and not rest and self.is_main:
            name = path.stem.removeprefix("model-")
            is_ours = name in (str(milestone), f"{milestone}-step{self.step}")
            is_here = path.resolve().parent == self.results_folder.resolve()
            # the grid is the last that is written
            found = [p for p in path.parent.glob(f"{name}.*") if p.suffix not in (".npy", ".txt")]
            # of a loader's own order the first batch is not known again
            is_known = self._sample_conditions is not None or not self.model.condition_names
            is_missing = is_ours and is_here and is_known and not found
        if self.from_main(is_missing):
            self._show_samples()

    def settings(self) -> dict[str, Any]:
        """What the run was told, in plain values, for trackers."""
        network = getattr(unwrap(self.model.denoise_fn), "config", None) or {}
        own = {n: v for n, v in vars(self).items() if isinstance(v, (bool, int, float, str))}
        shown = {name: value for name, value in own.items() if not name.startswith("_")}
        return {"trainer": shown, "diffusion": self.model.config, "unet": network}

    def write_metrics(self) -> None:
        """Writes the line of the steps since the last one, if there are any."""
        if self._measured_step == self.step:
            return
        lr = self.opt.param_groups[0]["lr"]
        line = self.metrics.take(self.step, lr, self.sum_over_processes)
        self._measured_step = self.step
        self.losses["training"] = line["loss"]
        self._write_line({**line, "skipped_steps": self.skipped_steps})

    def _write_line(self, line: Mapping[str, Any]) -> None:
        """Sends a line to `metrics.jsonl` and the trackers."""
        if self.is_main and self.metrics_file is not None:
            self._keep_folder()
            with _not_fatal("a line of metrics.jsonl"):
                self.metrics_file.write(dict(line))
            with _not_fatal("what the trackers show"):
                log_line(self.accelerator, line)


@contextmanager
def _not_fatal(what: str) -> Iterator[None]:
    """Lets training go on without what is written for people."""
    try:
        yield
    except Exception as error:
        logger.warning("training goes on without %s: %s: %s", what, type(error).__name__, error)
