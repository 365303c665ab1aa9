"""The trainer: a folder of clips in, checkpoints and sample videos out."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from video_diffusion_pytorch.diffusion.gaussian_diffusion import GaussianDiffusion
from video_diffusion_pytorch.evaluation.evaluator import Evaluation
from video_diffusion_pytorch.training.checkpoints.checkpoint_folder import check_folder
from video_diffusion_pytorch.training.checks import (
    check_model,
    check_precision,
    check_trainer,
    share_of_batch,
)
from video_diffusion_pytorch.training.clips.clip_source import check_sample_conditions
from video_diffusion_pytorch.training.draws import ClipDraws
from video_diffusion_pytorch.training.ema import EMA, Averages
from video_diffusion_pytorch.training.engine import compile_network, make_accelerator, use_fsdp
from video_diffusion_pytorch.training.learning_rate import make_schedule
from video_diffusion_pytorch.training.loop import TrainingLoop
from video_diffusion_pytorch.training.metrics import StepMetrics
from video_diffusion_pytorch.training.optimizer import make_optimizer


class Trainer(TrainingLoop):
    """Trains a `GaussianDiffusion` on a folder of clips, or on any dataset.

    Writes `model-N.pt`, and samples as `N.gif` (to look at), `N.npy` (their values) and, if they
    have conditions, `N.txt`, to the results folder at every N-th milestone, and what it measures to
    `metrics.jsonl`. Started by `torchrun` or `accelerate launch` it trains in several processes.
    What it does is made of small methods, to be replaced in a subclass: `make_dataset`,
    `make_image_dataset`, `make_dataloader`, `make_optimizer`, `make_schedule`, `unpack_batch`,
    `compute_loss`, `sample`, `save_sample` and `checkpoint_state`.

    Args:
        diffusion_model: The diffusion to train; it is moved to the training device.
        folder: Where the clips are, at any depth and in any format that `Dataset` reads.
        ema_decay: Share of the old average in the new one, at each update; several for as many
            averages, of which the first draws the samples.
        num_frames: Without effect: a clip has `diffusion_model.num_frames` frames.
        train_batch_size: Clips of a micro-batch, on each process.
        train_lr: Learning rate of Adam.
        train_num_steps: Number of optimizer steps after which training is complete.
        gradient_accumulate_every: Micro-batches of a step.
        amp: Whether to compute in half precision: bfloat16 where the hardware has it, otherwise
            float16 with a loss scale.
        step_start_ema: Up to this step the average is a copy of the weights, with `ema_warmup`
            `"copy"`.
        update_ema_every: Steps between updates of the average.
        save_and_sample_every: Steps between milestones.
        results_folder: Where checkpoints and samples go; made if missing.
        num_sample_rows: Rows, and columns, of a milestone's grid of samples.
        max_grad_norm: Norm to which gradients are cut; None for no cut.
        device: Where to train, such as `"cpu"`; None for the fastest there is.
        num_workers: Processes that read clips; 0 to read between the steps. None for as many as
            cores, at most 8, and none for a cache, or where processes cannot fork.
        dataset: In the place of `folder`: any dataset of torch's, one that iterates included, whose
            items `unpack_batch` understands once they are collated. If it has a `value_range`,
            that is the model's as well.
        dataloader: In the place of `folder`: anything that gives such batches when it is iterated
            over. Its order is its own, also after `load`.
        held_out: Number of files that are not trained on, and whose conditions the samples get.
            None for as many as there are samples, but at most a twentieth of the files, if they
            come with conditions.
        sample_conditions: What the samples are told instead: keywords of `diffusion.sample`, such
            as `{"cond": ["a whale"]}`, repeated to the number of samples.
        sample_cond_scale: Strength of the samples' guidance; 1 is without.
        image_frames: Images that each clip is trained with (Ho et al. 2022, section 4.3.1): frames
            drawn anew from other clips, with the conditions that they have there; 0 for none.
        image_folder: Where images are drawn from instead: pictures of any size and clips, at any
            depth. They are told the caption in `picture.txt` and the class whose name their
            sub-folder has, where clips are told such; None to draw from the clips.
        seed: Of the order and all that is random about the clips, such as their noise; None to draw
            it from torch's generator.
        mixed_precision: `"no"`, `"bf16"` or `"fp16"`, to choose what `amp` chooses by itself; None
            to leave it to `amp`, or to `accelerate launch`.
        split_batches: Whether `train_batch_size` is that of all processes together.
        fsdp: Whether each process keeps only its part of weights, averages and optimizer state
            (torch's fully_shard, FSDP2); `accelerate launch --use_fsdp` says so as well.
        compile: Whether to compile the network's blocks, which takes a while once.
        optimizer: `"adam"`, `"adamw"`, or a function that makes one from the parameters.
        betas: Of Adam.
        weight_decay: Of kernels and matrices.
        lr_schedule: `"constant"`, or `"cosine"` or `"linear"` down to 0 at `train_num_steps`, or
            a function that makes a scheduler of torch's from the optimizer.
        warmup_steps: Steps over which the learning rate rises to `train_lr`.
        ema_warmup: How averages begin: `"copy"`, or with a decay that grows, `"power"` or
            `"inverse_gamma"`, as in `training.ema.decay_at`.
        save_every: Steps between checkpoints, besides those at milestones; None for no others.
        keep_last: How many of the newest checkpoints are kept; None for all.
        keep_best: How many of those with the lowest validation loss are kept besides.
        resume: `"auto"` to go on from the last whole checkpoint in the results folder, if there is
            one; `"never"` to refuse a folder that has one; a path to go on from; None for neither.
        max_skipped_steps: How many steps in a row may have a loss that is not finite.
        validation_folder: Clips to validate on.
        validation_split: Share of the files that are validated on instead of trained on; or the
            name of a split, to validate on the manifest's rows of that name. The files of clips
            that are validated on are never trained on.
        validation_manifest: The table of the clips to validate on, in `validation_folder` or else
            in `folder`; None for `manifest`. Without `validation_split` its rows of the split
            `"val"`, `"valid"` or `"validation"` are taken, or all if it has no splits.
        validation_dataset: In the place of a folder: any dataset with a length, whose items are
            as those of `dataset`.
        validate_every: Steps between validations; None for `save_and_sample_every`.
        validation_clips: The most clips to validate on.
        evaluate_every: Steps between evaluations, which draw videos with the first average and
            measure how near they are to clips; None for none.
        evaluation: What they measure; None for `Evaluation(clips=256)`, which needs no file.
        log_every: Steps between lines of `metrics.jsonl`.
        log_with: Trackers, such as `"tensorboard"`, `"wandb"` or several, as accelerate takes them.
        project: What trackers file the run under.
        **data_options: Further keywords of `data.dataset.Dataset`, such as `conditions`,
            `clip_start`, `value_range` and `cache`; only with `folder`.

    Raises:
        TypeError: If a keyword is neither the Trainer's nor the Dataset's.
        ValueError: If an argument is outside its range, or the first clip does not fit the model.
        FileNotFoundError: If the folder is missing or holds no clips.

    Attributes:
        step: Number of optimizer steps done.
        model: The diffusion that is trained.
        ema_model: The diffusion with averaged weights, which draws the samples.
    """

    def __init__(
        self,
        diffusion_model: GaussianDiffusion,
        folder: str | os.PathLike[str] | None = None,
        *,
        ema_decay: float | Sequence[float] = 0.995,
        num_frames: int = 16,
        train_batch_size: int = 32,
        train_lr: float = 1e-4,
        train_num_steps: int = 100_000,
        gradient_accumulate_every: int = 2,
        amp: bool = False,
        step_start_ema: int = 2000,
        update_ema_every: int = 10,
        save_and_sample_every: int = 1000,
        results_folder: str | os.PathLike[str] = "./results",
        num_sample_rows: int = 4,
        max_grad_norm: float | None = None,
        device: str | None = None,
        num_workers: int | None = None,
        dataset: Any = None,
        dataloader: Any = None,
        held_out: int | None = None,
        sample_conditions: Mapping[str, Any] | None = None,
        sample_cond_scale: float = 1.0,
        image_frames: int = 0,
        image_folder: str | os.PathLike[str] | None = None,
        seed: int | None = None,
        mixed_precision: str | None = None,
        split_batches: bool = False,
        fsdp: bool = False,
        compile: bool = False,
        optimizer: str | Callable[..., Any] = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        lr_schedule: str | Callable[..., Any] = "constant",
        warmup_steps: int = 0,
        ema_warmup: str = "copy",
        save_every: int | None = None,
        keep_last: int | None = None,
        keep_best: int = 0,
        resume: str | os.PathLike[str] | None = None,
        max_skipped_steps: int = 10,
        validation_folder: str | os.PathLike[str] | None = None,
        validation_split: float | str | None = None,
        validation_manifest: str | os.PathLike[str] | None = None,
        validation_dataset: Any = None,
        validate_every: int | None = None,
        validation_clips: int = 256,
        evaluate_every: int | None = None,
        evaluation: Evaluation | None = None,
        log_every: int = 10,
        log_with: Any = None,
        project: str = "video-diffusion",
        **data_options: Any,
    ) -> None:
        check_model(diffusion_model)
        check_precision(diffusion_model)

        # how a step is taken
        self.train_lr, self.optimizer, self.betas = train_lr, optimizer, betas
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.lr_schedule, self.warmup_steps = lr_schedule, warmup_steps
        self.train_num_steps, self.max_skipped_steps = train_num_steps, max_skipped_steps
        self.gradient_accumulate_every, self.amp = gradient_accumulate_every, amp
        self.step_start_ema, self.update_ema_every = step_start_ema, update_ema_every
        self.ema_warmup = ema_warmup

        # what is done when, and what of it is kept
        self.save_and_sample_every, self.save_every = save_and_sample_every, save_every
        self.validate_every = save_and_sample_every if validate_every is None else validate_every
        self.evaluate_every, self._evaluator = evaluate_every, None
        self.evaluation = Evaluation(clips=256) if evaluation is None else evaluation
        self.log_every, self.project, self.num_sample_rows = log_every, project, num_sample_rows
        self.keep_last, self.keep_best = keep_last, keep_best
        self.results_folder = Path(results_folder)
        self._start_counting()

        # data
        self.batch_size, self.num_workers = train_batch_size, num_workers
        self.image_frames, self.image_folder = image_frames, image_folder
        self.validation_folder, self.validation_split = validation_folder, validation_split
        self.validation_manifest, self.validation_dataset = validation_manifest, validation_dataset
        self.validation_clips = validation_clips
        self.data_options = data_options
        self.model, self.image_size = diffusion_model, diffusion_model.image_size
        self.sample_cond_scale = sample_cond_scale
        sources = {"folder": folder, "dataset": dataset, "dataloader": dataloader}
        self._chosen_conditions = None if sample_conditions is None else dict(sample_conditions)
        if self._chosen_conditions is not None:
            check_sample_conditions(diffusion_model, self._chosen_conditions)
        check_trainer(self, log_with)

        # processes, and what each of them has
        self.fsdp = use_fsdp(fsdp)
        self.accelerator = make_accelerator(
            amp,
            device,
            mixed_precision=mixed_precision,
            log_with=log_with,
            folder=self.results_folder,
        )
        self.device = self.accelerator.device
        if split_batches:
            self.batch_size = share_of_batch(train_batch_size, self.num_processes)
        self._prepare_data(sources, held_out, num_sample_rows**2, seed)
        if evaluate_every is not None:
            self._evaluator = self._make_evaluator()
        self._prepare_model(ema_decay, compile)
        with self.main_first():
            self.captions.prepare(self.known_captions, self.device)
            check_folder(self.results_folder)
        self._resume(resume)

    def _prepare_model(self, ema_decay: float | Sequence[float], compile: bool) -> None:
        self.model.to(self.device)
        self.averages = Averages(
            self.model,
            ema_decay,
            warmup=self.ema_warmup,
            start=self.step_start_ema,
            every=self.update_ema_every,
        )
        self.ema_model: Any = self.averages.first
        self.ema = EMA(next(iter(self.averages.models)))
        if compile:
            compile_network(self.model, *self.averages.models.values())
        self.parallel_model = self._share_model([*self.averages.models.values()])
        # the processes agree on the first one's weights when they share the model
        self.averages.copy(self.model)
        self.opt = self.accelerator.prepare(self.make_optimizer())
        self.scheduler = self.make_schedule()
        self.clip_draws = ClipDraws(self.model)
        self.metrics = StepMetrics(self.device, self.model.num_timesteps)

    # what a subclass may make differently

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of `model`."""
        return make_optimizer(
            self.model,
            self.optimizer,
            lr=self.train_lr,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )

    def make_schedule(self) -> Any:
        """The schedule of the learning rate of `opt`; None for none."""
        return make_schedule(
            self.opt,
            self.lr_schedule,
            warmup_steps=self.warmup_steps,
            total_steps=self.train_num_steps,
        )

    # the average

    def reset_parameters(self) -> None:
        """Makes the averages copies of the weights."""
        self.averages.copy(self.model)

    def step_ema(self) -> None:
        """Updates the averages, or copies the weights up to `step_start_ema`."""
        self.averages.update(self.model, self.step)
